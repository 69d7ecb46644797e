//! Text as Windows takes it.

use std::ffi::OsStr;
use std::os::windows::ffi::OsStrExt as _;

/// UTF-16, ended by zero.
pub(crate) fn wide(text: impl AsRef<OsStr>) -> Vec<u16> {
    text.as_ref().encode_wide().chain([0]).collect()
}
