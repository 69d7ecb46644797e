//! QR codes: the text as a square of modules, drawn for a terminal, as SVG, as PNG.

use qrcode::{Color, EcLevel, QrCode};

/// Light modules around the code; ISO/IEC 18004 §6.3.8 asks for four.
const QUIET: usize = 4;
/// Pixels a module in the PNG.
const PIXELS: usize = 8;
/// Black on white in the 6×6×6 colour cube (xterm's 256 colours): a theme may change colours 0 to 15, not these.
const BLACK_ON_WHITE: &str = "\x1b[38;5;16;48;5;231m";
const RESET: &str = "\x1b[0m";

/// The text is longer than the largest code holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes are too many for a QR code")]
pub struct TooLong(usize);

impl crate::error::Hint for TooLong {
    fn hint(&self) -> Option<String> {
        Some("hand it over as a file: --wg-quick FILE".to_owned())
    }
}

/// A QR code with its quiet zone.
pub struct Qr {
    /// Modules a side, quiet zone included.
    side: usize,
    dark: Vec<bool>,
}

impl Qr {
    /// Encodes a text at the lowest error correction: a screen has no scratches, and small codes fit terminals.
    pub fn new(text: &str) -> Result<Qr, TooLong> {
        let code = QrCode::with_error_correction_level(text, EcLevel::L).map_err(|_| TooLong(text.len()))?;
        let inner = code.width();
        let side = inner + 2 * QUIET;
        let mut dark = vec![false; side * side];
        for (index, color) in code.to_colors().into_iter().enumerate() {
            dark[(index / inner + QUIET) * side + index % inner + QUIET] = color == Color::Dark;
        }
        Ok(Qr { side, dark })
    }

    fn is_dark(&self, x: usize, y: usize) -> bool {
        y < self.side && self.dark[y * self.side + x]
    }

    /// Two modules a character, one above the other. With `colour` black on white whatever the terminal's colours are;
    /// without, drawn for light text on a dark ground, as qrencode does.
    pub fn terminal(&self, colour: bool) -> String {
        let mut text = String::new();
        for y in (0..self.side).step_by(2) {
            text.push_str(if colour { BLACK_ON_WHITE } else { "" });
            for x in 0..self.side {
                // below the last row of an odd height there is more quiet zone
                let halves = (self.is_dark(x, y) == colour, self.is_dark(x, y + 1) == colour);
                text.push(match halves {
                    (true, true) => '█',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (false, false) => ' ',
                });
            }
            text.push_str(if colour { RESET } else { "" });
            text.push('\n');
        }
        text
    }

    /// A picture of any size, black on white.
    pub fn svg(&self) -> String {
        let side = self.side;
        let mut path = String::new();
        for y in 0..side {
            for x in (0..side).filter(|x| self.is_dark(*x, y)) {
                path.push_str(&format!("M{x} {y}h1v1h-1z"));
            }
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {side} {side}\" width=\"{px}\" height=\"{px}\" \
             shape-rendering=\"crispEdges\"><path fill=\"#fff\" d=\"M0 0h{side}v{side}H0z\"/><path d=\"{path}\"/></svg>\n",
            px = side * PIXELS,
        )
    }

    /// A picture of one bit a pixel, black on white.
    pub fn png(&self) -> Vec<u8> {
        let side = self.side * PIXELS;
        let row_bytes = side.div_ceil(8);
        let mut pixels = vec![0u8; row_bytes * side];
        for y in 0..side {
            for x in (0..side).filter(|x| !self.is_dark(x / PIXELS, y / PIXELS)) {
                pixels[y * row_bytes + x / 8] |= 0x80 >> (x % 8);
            }
        }
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, side as u32, side as u32);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::One);
        let mut writer = encoder.write_header().expect("a vector takes everything");
        writer.write_image_data(&pixels).expect("as many bytes as rows need");
        drop(writer);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_have_a_quiet_zone_and_fit() {
        let qr = Qr::new("hello").unwrap();
        let plain = qr.terminal(false);
        let lines: Vec<Vec<char>> = plain.lines().map(|line| line.chars().collect()).collect();
        assert_eq!((lines.len(), lines[0].len()), (15, 29), "21 modules and 4 on each side");
        assert!(lines[0].iter().chain(&lines[1]).all(|c| *c == '█'), "light on dark: the quiet zone is drawn");
        assert!(lines.iter().all(|line| line[..4] == ['█'; 4] && line[25..] == ['█'; 4]));
        let coloured = qr.terminal(true);
        let first = coloured.lines().next().unwrap();
        assert_eq!(first, format!("{BLACK_ON_WHITE}{}{RESET}", " ".repeat(29)));
        assert!(qr.svg().contains("viewBox=\"0 0 29 29\""));
        assert!(qr.png().starts_with(b"\x89PNG\r\n\x1a\n"));
        assert!(Qr::new(&"x".repeat(5000)).is_err());
    }
}
