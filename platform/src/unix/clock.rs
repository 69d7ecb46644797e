//! The clock on the wall.

/// The local time of day: hours, minutes, seconds; localtime_r(3).
pub fn local_time() -> (u8, u8, u8) {
    // SAFETY: time(2) allows a null pointer; localtime_r writes into `parts`, which lives through the call.
    let parts = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const now, &raw mut parts);
        parts
    };
    (parts.tm_hour as u8, parts.tm_min as u8, parts.tm_sec as u8)
}
