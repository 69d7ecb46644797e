//! Which boot this is. Windows has no name for it: the first of us that asks makes one, in a key that is not kept on the disk
//! and so ends with the system, when our filters do. Both outlive a fast start-up, which goes on with the old system.

use std::io;
use std::time::Duration;

use windows_sys::Win32::System::Registry::{HKEY_LOCAL_MACHINE, REG_OPTION_VOLATILE};
use windows_sys::Win32::System::Rpc::UuidCreate;
use windows_sys::core::GUID;

use super::registry::create;
use super::text::guid_text;
use crate::{Error, Result};

const KEY: &str = r"SOFTWARE\PeerVPN";
const VALUE: &str = "Boot";
/// How often the value is looked for that another process is about to write, and the pause between two looks.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(10);

pub(super) fn id() -> Result<String> {
    let (key, new) = create(HKEY_LOCAL_MACHINE, KEY, REG_OPTION_VOLATILE)?;
    for _ in 0..if new { 0 } else { LOOKS } {
        if let Some(id) = key.text(VALUE) {
            return Ok(id);
        }
        std::thread::sleep(PAUSE);
    }
    // made by us, or by one that died at once
    let mut id = GUID::default();
    // SAFETY: the place for it is ours.
    let answer = unsafe { UuidCreate(&raw mut id) };
    if answer != 0 {
        return Err(Error::system("name this boot", io::Error::from_raw_os_error(answer)));
    }
    let id = guid_text(&id);
    key.set_text(VALUE, &id).map(|()| id)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_boot_keeps_its_name() {
        let first = super::id().unwrap();
        assert_eq!(first.len(), 36);
        assert_eq!(super::id().unwrap(), first);
    }
}
