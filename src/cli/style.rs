//! Colour, and words for sizes and times. Meaning never comes by colour alone.

use std::fmt::Display;

/// Whether to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    /// Use it.
    pub(super) colour: bool,
}

impl Style {
    /// Never colour.
    #[cfg(test)]
    pub(super) const PLAIN: Style = Style { colour: false };

    /// An error.
    pub(super) fn red(self, text: impl Display) -> String {
        self.sgr("1;31", text)
    }

    /// A warning.
    pub(super) fn yellow(self, text: impl Display) -> String {
        self.sgr("1;33", text)
    }

    /// What went well.
    pub(super) fn green(self, text: impl Display) -> String {
        self.sgr("32", text)
    }

    /// What to look at.
    pub(super) fn bold(self, text: impl Display) -> String {
        self.sgr("1", text)
    }

    /// ECMA-48 §8.3.117.
    fn sgr(self, code: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

/// A number of bytes: `512 B`, `1.5 KiB`, `20.0 GiB`.
pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

/// A time span: `12 s`, `3 min`, `2 h 5 min`, `4 d 1 h`.
pub(super) fn span(seconds: u64) -> String {
    let two = |big: u64, big_unit, small: u64, small_unit| match small {
        0 => format!("{big} {big_unit}"),
        small => format!("{big} {big_unit} {small} {small_unit}"),
    };
    match seconds {
        0..120 => format!("{seconds} s"),
        120..3600 => format!("{} min", seconds / 60),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// Text that came from elsewhere, without control characters that could steer a terminal.
pub(super) fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn spans() {
        for (seconds, text) in [(12, "12 s"), (119, "119 s"), (180, "3 min"), (7500, "2 h 5 min"), (345_600, "4 d")] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn colour_only_where_wanted() {
        assert_eq!(Style::PLAIN.red("x"), "x");
        assert_eq!(Style { colour: true }.red("x"), "\x1b[1;31mx\x1b[0m");
        assert_eq!(tame("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
