//! The wall clock.

use windows_sys::Win32::Foundation::SYSTEMTIME;
use windows_sys::Win32::System::SystemInformation::GetLocalTime;

/// Hours, minutes and seconds of the local time of day.
pub fn local_time() -> (u8, u8, u8) {
    let mut now = SYSTEMTIME::default();
    // SAFETY: the time is written.
    unsafe { GetLocalTime(&raw mut now) };
    (now.wHour as u8, now.wMinute as u8, now.wSecond as u8)
}
