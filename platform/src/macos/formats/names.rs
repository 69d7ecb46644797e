//! Names of utun interfaces: the system numbers them, and whoever makes one writes its name into a file for us.

/// The name in such a file; `None` if it holds none.
pub fn utun(text: &str) -> Option<&str> {
    let name = text.trim_end();
    let number = name.strip_prefix("utun")?;
    // IFNAMSIZ leaves no room for more
    let sound = !number.is_empty() && number.len() <= 8 && number.bytes().all(|byte| byte.is_ascii_digit());
    sound.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_utun_with_a_number() {
        assert_eq!(utun("utun5\n"), Some("utun5"));
        assert_eq!(utun("utun12"), Some("utun12"));
        for text in ["", "utun", "utun\n", "utun5/..", "utun-1", "en0\n", "utun5\nutun6", "utun123456789"] {
            assert_eq!(utun(text), None, "{text:?}");
        }
    }
}
