//! A Windows command line and its arguments: one text, which each program takes apart for itself, by the rules of
//! CommandLineToArgvW ("Parsing C command-line arguments", Microsoft). UTF-16 units only, so every system can test it.

const SPACE: u16 = b' ' as u16;
const TAB: u16 = b'\t' as u16;
const QUOTE: u16 = b'"' as u16;
const BACKSLASH: u16 = b'\\' as u16;

/// The line that [`split`] takes apart into `program` and `arguments`. A program's path has no quote in it.
pub fn join<'a>(program: &[u16], arguments: impl IntoIterator<Item = &'a [u16]>) -> Vec<u16> {
    let mut line = vec![QUOTE];
    line.extend(program);
    line.push(QUOTE);
    for argument in arguments {
        line.push(SPACE);
        quote(argument, &mut line);
    }
    line
}

/// Always in quotes: then only quotes, and backslashes before them, mean anything.
fn quote(argument: &[u16], line: &mut Vec<u16>) {
    line.push(QUOTE);
    let mut backslashes = 0;
    for unit in argument {
        if *unit == QUOTE {
            // each of those before it, and it itself, needs one more
            line.extend(std::iter::repeat_n(BACKSLASH, backslashes + 1));
        }
        backslashes = if *unit == BACKSLASH { backslashes + 1 } else { 0 };
        line.push(*unit);
    }
    line.extend(std::iter::repeat_n(BACKSLASH, backslashes));
    line.push(QUOTE);
}

/// Program and arguments of a line, as CommandLineToArgvW gives them.
pub fn split(line: &[u16]) -> Vec<Vec<u16>> {
    let blank = |unit: &u16| matches!(*unit, SPACE | TAB);
    // the program: up to the next quote or blank, backslashes mean themselves
    let (program, mut rest) = match line.split_first() {
        Some((&QUOTE, line)) => line.split_at(line.iter().position(|unit| *unit == QUOTE).unwrap_or(line.len())),
        _ => line.split_at(line.iter().position(blank).unwrap_or(line.len())),
    };
    rest = rest.strip_prefix(&[QUOTE]).unwrap_or(rest);
    let mut found = vec![program.to_vec()];
    loop {
        while let Some((first, tail)) = rest.split_first()
            && blank(first)
        {
            rest = tail;
        }
        if rest.is_empty() {
            return found;
        }
        let (mut argument, mut quoted) = (Vec::new(), false);
        while let Some((&unit, tail)) = rest.split_first() {
            if !quoted && blank(&unit) {
                break;
            }
            let backslashes = rest.iter().take_while(|unit| **unit == BACKSLASH).count();
            if backslashes > 0 {
                rest = &rest[backslashes..];
                let before_quote = rest.first() == Some(&QUOTE);
                argument
                    .extend(std::iter::repeat_n(BACKSLASH, if before_quote { backslashes / 2 } else { backslashes }));
                if before_quote && backslashes % 2 == 1 {
                    argument.push(QUOTE);
                    rest = &rest[1..];
                }
                continue;
            }
            rest = tail;
            match unit {
                // two in a quoted part are one, and end it
                QUOTE if quoted && rest.first() == Some(&QUOTE) => {
                    argument.push(QUOTE);
                    rest = &rest[1..];
                    quoted = false;
                }
                QUOTE => quoted = !quoted,
                _ => argument.push(unit),
            }
        }
        found.push(argument);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn units(text: &str) -> Vec<u16> {
        text.encode_utf16().collect()
    }

    fn line(arguments: &[&str]) -> String {
        let arguments: Vec<Vec<u16>> = arguments.iter().map(|text| units(text)).collect();
        String::from_utf16(&join(&units(r"C:\p q\x.exe"), arguments.iter().map(Vec::as_slice))).unwrap()
    }

    #[test]
    fn lines_read_as_agreed() {
        assert_eq!(line(&["connect", r"C:\Program Files\"]), r#""C:\p q\x.exe" "connect" "C:\Program Files\\""#);
        assert_eq!(line(&["", r#"a"b\"c"#]), r#""C:\p q\x.exe" "" "a\"b\\\"c""#);
    }

    #[test]
    fn other_programs_lines_come_apart_too() {
        let apart = |text: &str| {
            split(&units(text)).iter().map(|units| String::from_utf16(units).unwrap()).collect::<Vec<_>>().join("|")
        };
        // the examples of Microsoft's page, behind a program
        assert_eq!(apart(r#"x "abc" d e"#), "x|abc|d|e");
        assert_eq!(apart(r#"x a\\\b d"e f"g h"#), r"x|a\\\b|de fg|h");
        assert_eq!(apart(r#"x a\\\"b c d"#), r#"x|a\"b|c|d"#);
        assert_eq!(apart(r#"x a\\\\"b c" d e"#), r"x|a\\b c|d|e");
        assert_eq!(apart(r#""C:\p q\x.exe"  a"#), r"C:\p q\x.exe|a");
        assert_eq!(apart(""), "");
    }

    /// What CommandLineToArgvW treats specially, often; anything else, now and then.
    fn argument() -> impl Strategy<Value = Vec<u16>> {
        let special = proptest::sample::select(units("\"\\ \ta"));
        proptest::collection::vec(prop_oneof![4 => special, 1 => 1..=u16::MAX], 0..12)
    }

    proptest! {
        #[test]
        fn split_undoes_join(arguments in proptest::collection::vec(argument(), 0..6)) {
            let program = units(r"C:\dir with blanks\peervpn.exe");
            let line = join(&program, arguments.iter().map(Vec::as_slice));
            let mut wanted = vec![program];
            wanted.extend(arguments);
            prop_assert_eq!(split(&line), wanted);
        }

        /// Windows' own function agrees, on lines of ours and on any others.
        #[cfg(windows)]
        #[test]
        fn windows_splits_the_same(arguments in proptest::collection::vec(argument(), 0..4), raw in argument()) {
            let program = units(r"C:\dir with blanks\peervpn.exe");
            let line = join(&program, arguments.iter().map(Vec::as_slice));
            prop_assert_eq!(crate::os::text::split_by_windows(&line), split(&line));
            let line = [units("x "), raw].concat();
            prop_assert_eq!(crate::os::text::split_by_windows(&line), split(&line));
        }
    }
}
