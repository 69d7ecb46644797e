//! What macOS's kernel and programs say and want to hear, as bytes and text: routing messages, captured packets, pf. Pure,
//! and compiled on every system, so that the tests that no Mac runs here run somewhere. Byte layouts are those of 64-bit
//! macOS, little-endian (x86_64 and arm64); `macos/asserts.rs` holds them against libc's when compiled for the target.

pub mod capture;
pub mod dns;
pub mod names;
pub mod pf;
pub mod route;

/// A 32-bit word of the machine at `at`.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A 16-bit one.
fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
