//! `info`: what is known about this machine without changing anything.

use std::path::PathBuf;

use peervpn_platform::{Host as _, OUR_ALIAS, os};
use serde::Serialize;

use super::state;
use crate::config::Places;
use crate::error::Failure;
use crate::key::PublicKey;

/// `peervpn info --json`.
#[derive(Debug, Serialize)]
pub struct Info {
    /// The program's version.
    pub version: &'static str,
    /// Our static public key; `None` before the first run, and where the key file cannot be read.
    pub public_key: Option<PublicKey>,
    /// Our peer ID.
    pub peer_id: Option<String>,
    /// Back ends that work here.
    pub backends: Backends,
    /// The interface that was asked about.
    pub interface: Interface,
    /// `--state-dir`.
    pub state_dir: PathBuf,
    /// `--run-dir`.
    pub run_dir: PathBuf,
    /// Why the key file cannot be read.
    #[serde(skip)]
    pub unreadable: Option<Failure>,
}

/// Back ends that work here.
#[derive(Debug, Serialize)]
pub struct Backends {
    /// The kernel has WireGuard.
    pub kernel: bool,
    /// There is a TUN device.
    pub userspace: bool,
    /// Why the kernel's can't be asked or loaded.
    #[serde(skip)]
    pub fault: Option<Failure>,
}

/// An interface.
#[derive(Debug, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `absent`, `up`, `down` or `foreign` (it exists and is not ours).
    pub state: &'static str,
}

/// Looks, and changes nothing: no key is made.
pub fn gather(places: &Places, interface: &str) -> Result<Info, Failure> {
    let (key, unreadable) = match state::key(places) {
        Ok(key) => (key.map(|key| key.public()), None),
        Err(failure) => (None, Some(failure)),
    };
    let state = match os::host()?.link(interface)? {
        None => "absent",
        Some(link) if link.alias.as_deref() != Some(OUR_ALIAS) => "foreign",
        Some(link) if link.up => "up",
        Some(_) => "down",
    };
    let (kernel, fault) = match os::kernel_wireguard() {
        Ok(kernel) => (kernel, None),
        Err(error) => (false, Some(error.into())),
    };
    Ok(Info {
        version: env!("CARGO_PKG_VERSION"),
        public_key: key,
        peer_id: key.map(|key| key.peer_id()),
        backends: Backends { kernel, userspace: os::tun_available(), fault },
        interface: Interface { name: interface.to_owned(), state },
        state_dir: places.state_dir.clone(),
        run_dir: places.run_dir.clone(),
        unreadable,
    })
}
