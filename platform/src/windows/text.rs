//! Text as Windows takes it.

use std::ffi::OsStr;
use std::os::windows::ffi::OsStrExt as _;

use windows_sys::core::GUID;

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
    // SAFETY: by the caller.
    String::from_utf16_lossy(&unsafe { units(text) })
}

/// The same as it is.
///
/// # Safety
/// As above.
pub(crate) unsafe fn units(text: *const u16) -> Vec<u16> {
    if text.is_null() {
        return Vec::new();
    }
    // SAFETY: up to the zero, by the caller.
    (0..).map(|index| unsafe { *text.add(index) }).take_while(|unit| *unit != 0).collect()
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
pub(crate) fn guid_text(guid: &GUID) -> String {
    let GUID { data1, data2, data3, data4 } = *guid;
    let tail = u64::from_be_bytes(data4);
    format!("{data1:08X}-{data2:04X}-{data3:04X}-{:04X}-{:012X}", tail >> 48, tail & 0xffff_ffff_ffff)
}

/// What Windows itself makes of a command line.
#[cfg(test)]
pub(crate) fn split_by_windows(line: &[u16]) -> Vec<Vec<u16>> {
    use windows_sys::Win32::Foundation::LocalFree;

    #[link(name = "shell32")]
    unsafe extern "system" {
        fn CommandLineToArgvW(line: *const u16, count: *mut i32) -> *mut *mut u16;
    }
    let line: Vec<u16> = line.iter().copied().chain([0]).collect();
    let mut count = 0;
    // SAFETY: the line ends with zero; the count is written.
    let found = unsafe { CommandLineToArgvW(line.as_ptr(), &raw mut count) };
    assert!(!found.is_null());
    // SAFETY: so many pointers, each to a text that ends with zero.
    let texts = unsafe { std::slice::from_raw_parts(found, count as usize) };
    // SAFETY: as above.
    let split = texts.iter().map(|text| unsafe { units(*text) }).collect();
    // SAFETY: its documentation says that LocalFree frees it; nothing points into it any more.
    unsafe { LocalFree(found.cast()) };
    split
}
