//! DNS servers by SystemConfiguration's dynamic store, spoken to by scutil(8): the framework itself would be one more
//! library to link (with Apple's SDK), for the same four words.

use std::net::IpAddr;
use std::path::Path;

use super::process;
use crate::macos_formats::dns;
use crate::types::{DnsProbes, FileState, ResolvConf};
use crate::{Error, Result};

const SCUTIL: &str = "/usr/sbin/scutil";

pub use super::absent::dns::{resolvconf, resolved};

/// There is one resolver to tell, always.
pub fn probe() -> Result<DnsProbes> {
    let file = ResolvConf {
        state: FileState::Missing,
        text: file::read(Path::new(file::PATH)).unwrap_or_default(),
        immutable: false,
        mounted: false,
        read_only: false,
        shared: false,
    };
    Ok(DnsProbes { system: true, resolved: false, resolvconf: None, file })
}

/// Makes programs ask these servers.
pub(super) fn set(interface: &str, servers: &[IpAddr]) -> Result<()> {
    process::run(SCUTIL, &[], &dns::set(&dns::service(interface), servers)).map(drop)
}

/// The servers that our service names.
pub(super) fn servers(interface: &str) -> Result<Vec<IpAddr>> {
    process::run(SCUTIL, &[], &dns::show(&dns::service(interface))).map(|answer| dns::servers(&answer))
}

/// Takes our service back. One that is not there is no error.
pub(super) fn remove(interface: &str) -> Result<()> {
    remove_service(&dns::service(interface))
}

fn remove_service(service: &str) -> Result<()> {
    if dns::servers(&process::run(SCUTIL, &[], &dns::remove(service))?).is_empty() {
        return Ok(());
    }
    let detail = "it is still there".to_owned();
    Err(Error::Unexpected { operation: format!("take back the DNS servers of {service}"), detail })
}

/// Takes every service of ours back, of whichever node.
pub(super) fn remove_all() -> Result<()> {
    dns::services(&process::run(SCUTIL, &[], &dns::list())?).into_iter().try_for_each(remove_service)
}

/// `/etc/resolv.conf`, which configd writes out of what it knows; nobody else does.
pub mod file {
    use std::path::Path;

    pub use super::super::absent::dns::file::{MODE, PATH, put, state};

    /// Larger ones are not read, in bytes.
    const MAX: u64 = 16 << 10;

    /// The text of a resolv.conf.
    pub fn read(path: &Path) -> Option<String> {
        std::fs::metadata(path).ok().filter(|found| found.is_file() && found.len() <= MAX)?;
        std::fs::read_to_string(path).ok()
    }
}
