//! Text as Windows takes it.

use std::ffi::OsStr;
use std::os::windows::ffi::OsStrExt as _;

/// UTF-16, ended by zero.
pub(crate) fn wide(text: impl AsRef<OsStr>) -> Vec<u16> {
    text.as_ref().encode_wide().chain([0]).collect()
}

/// The text in a buffer, up to its zero.
pub(crate) fn narrow(buffer: &[u16]) -> String {
    let end = buffer.iter().position(|unit| *unit == 0).unwrap_or(buffer.len());
    String::from_utf16_lossy(&buffer[..end])
}

/// The text behind a pointer; empty for null.
///
/// # Safety
/// The pointer must be null or lead to a text that ends with zero.
pub(crate) unsafe fn from_wide(text: *const u16) -> String {
    if text.is_null() {
        return String::new();
    }
    let mut length = 0;
    // SAFETY: up to the zero, by the caller.
    while unsafe { *text.add(length) } != 0 {
        length += 1;
    }
    // SAFETY: these were just read.
    String::from_utf16_lossy(unsafe { std::slice::from_raw_parts(text, length) })
}
