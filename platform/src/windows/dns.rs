//! Windows has one resolver, told by [`crate::Host::set_dns`]; what Linux has beside it is not here.

pub use super::absent::dns::{file, resolvconf, resolved};

use crate::Result;
use crate::types::{DnsProbes, FileState, ResolvConf};

/// Looks at what is there.
pub fn probe() -> Result<DnsProbes> {
    super::nrpt::supported()?;
    let file = ResolvConf {
        state: FileState::Missing,
        text: String::new(),
        immutable: false,
        mounted: false,
        read_only: false,
        shared: false,
    };
    Ok(DnsProbes { system: true, resolved: false, resolvconf: None, file })
}
