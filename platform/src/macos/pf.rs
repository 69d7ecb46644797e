//! pf: rules of ours in an anchor below `com.apple`, and a reference that keeps pf enabled.
//!
//! The rules go in by pfctl(8): the structures of pf's ioctls are private on macOS and have changed between releases,
//! while the rule language has not. macOS's own `/etc/pf.conf`, loaded at every boot, asks `com.apple/*` (filter, nat,
//! rdr, scrub), so nothing of the host's main rules need be changed; where that hook is missing, or other rules
//! decide before it, that is an error, never silence.
//!
//! The reference is taken by ioctl, `DIOCSTARTREF`, which takes no structure: so it bears this process's ID and name in
//! `pfctl -s References`, where pfctl -E would leave those of a pfctl that has ended. That is how an undo, in whatever
//! process, finds it, without a token that could be lost between its making and its journal record.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

use super::{names, process, sys};
use crate::macos_formats::pf::{self as said, Hook, Reference};
use crate::pf::Anchor;
use crate::{Error, Result};

const PFCTL: &str = "/sbin/pfctl";
/// Where the main rules look for other programs' anchors.
const BELOW: &str = "com.apple";
/// The kernel keeps as many bytes of a process's name (`MAXCOMLEN`).
const NAME: usize = 16;
/// Which table of nat(8)-like rules or filters is shown or flushed.
const KINDS: [&str; 2] = ["rules", "nat"];

fn path(name: &str) -> String {
    format!("{BELOW}/{name}")
}

fn pfctl(args: &[&str], input: &str) -> Result<String> {
    process::run(PFCTL, args, input)
}

/// Whether a reference is one of ours: the program's name, and the process where one is named.
fn ours(reference: &Reference, pid: Option<u32>) -> bool {
    let own = std::env::current_exe().ok().and_then(|exe| Some(exe.file_name()?.to_string_lossy().into_owned()));
    let named = |name: &str| reference.program.as_bytes() == &name.as_bytes()[..name.len().min(NAME)];
    (named("peervpn") || own.as_deref().is_some_and(named)) && pid.is_none_or(|pid| pid == reference.pid)
}

fn references() -> Result<Vec<Reference>> {
    Ok(said::references(&pfctl(&["-s", "References"], "")?))
}

/// Keeps pf enabled as long as this process's reference is not released.
fn enable() -> Result<()> {
    if references()?.iter().any(|reference| ours(reference, Some(std::process::id()))) {
        return Ok(());
    }
    let start = || -> io::Result<()> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/pf")?;
        let mut token = 0u64;
        // SAFETY: the request writes one u64.
        unsafe { sys::ioctl(device.as_raw_fd(), sys::DIOCSTARTREF, &mut token) }
    };
    start().map_err(|e| Error::system("enable pf", e))
}

/// Loads rules, all or none, in place of those that were there, and sees to it that they are asked.
pub(super) fn load(anchor: &Anchor) -> Result<()> {
    let hooks = [("rules", "scrub-anchor"), ("rules", "anchor"), ("nat", "nat-anchor"), ("nat", "rdr-anchor")];
    for (kind, hook) in hooks {
        match said::hook(&pfctl(&["-s", kind], "")?, hook) {
            Hook::There => {}
            Hook::Missing => {
                return Err(Error::Unsupported {
                    what: "a firewall whose main rules do not ask the anchor com.apple/*",
                    instead: "load macOS's own: sudo pfctl -f /etc/pf.conf",
                });
            }
            Hook::Behind(rule) => {
                return Err(Error::Unexpected {
                    operation: "load our firewall rules".to_owned(),
                    detail: format!(
                        "another rule decides before they are asked: {rule} (in /etc/pf.conf, put it behind \
                         `{hook} \"com.apple/*\"`)"
                    ),
                });
            }
        }
    }
    let real = names::real(&anchor.interface);
    // where the device is not there yet, an interface of no such name: nothing goes by it
    let text = format!("tunnel = \"{real}\"\n{}", anchor.rules);
    // -o none: one rule stays one, for the read-back
    pfctl(&["-q", "-a", &path(&anchor.name), "-o", "none", "-f", "-"], &text)?;
    enable()
}

/// Rules of ours, of one kind, as pf has them.
fn shown(name: &str, kind: &str) -> Vec<String> {
    // of an anchor that is not there pfctl shows nothing, or fails
    let text = pfctl(&["-q", "-a", &path(name), "-s", kind], "").unwrap_or_default();
    text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

/// Filters of ours.
pub(super) fn rules(name: &str) -> Vec<String> {
    shown(name, "rules")
}

/// Whether as many rules stand as were loaded, and pf is kept enabled by us.
pub(super) fn stands(anchor: &Anchor) -> Result<bool> {
    let mut count = 0;
    for kind in KINDS {
        count += shown(&anchor.name, kind).len();
    }
    Ok(count == anchor.count() && references()?.iter().any(|reference| ours(reference, Some(std::process::id()))))
}

/// Removes the rules of every node.
pub(super) fn delete_all() -> Result<()> {
    said::anchors(&pfctl(&["-a", BELOW, "-s", "Anchors"], "")?).into_iter().try_for_each(delete)
}

/// Removes rules of ours, and releases the references that nothing of ours needs any more: this process's, and those of
/// nodes that are dead, even if another program has got its number since.
pub(super) fn delete(name: &str) -> Result<()> {
    for kind in KINDS {
        pfctl(&["-q", "-a", &path(name), "-F", kind], "")?;
    }
    let needed = |reference: &Reference| {
        reference.pid != std::process::id() && process::program(reference.pid).as_ref() == Some(&reference.program)
    };
    for reference in references()?.iter().filter(|reference| ours(reference, None) && !needed(reference)) {
        pfctl(&["-q", "-X", &reference.token.to_string()], "")?;
    }
    Ok(())
}
