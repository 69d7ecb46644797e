//! `recover`: put the host back after nodes that were killed.

use peervpn_platform::{files, os};

use super::apply::{self, Leftovers};
use super::event::{Event, Output};
use crate::config::Places;
use crate::error::Failure;

/// What `recover` did.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Recovered {
    /// Interfaces whose journal was found and undone.
    pub interfaces: Vec<String>,
    /// Interfaces whose node runs and was left alone.
    pub running: Vec<String>,
    /// What is left: empty when everything was put back.
    pub left: Vec<String>,
}

/// Undoes every orphaned journal (or that of `only`). Where there is none, and no node runs, deletes what carries our
/// marks.
pub fn run(places: &Places, only: Option<&str>, out: &mut dyn Output) -> Result<Recovered, Failure> {
    if !os::privileged() {
        return Err(super::not_root("recover"));
    }
    let mut host = os::host()?;
    let mut done = Recovered::default();
    for interface in journals(places)? {
        if only.is_some_and(|only| only != interface) {
            continue;
        }
        let path = apply::journal_path(places, &interface);
        match files::Log::open(&path).map_err(apply::unwritable)? {
            files::LogOpen::Busy(_) => done.running.push(interface),
            files::LogOpen::Locked(mut log) => {
                if !log.is_empty().map_err(apply::unwritable)? {
                    out.event(&Event::Step(format!("putting the host back after {interface}")));
                }
                let (left, journal) = apply::undo_journal(&mut host, &mut log);
                let state = left.describe();
                let unwritable = |error| apply::unwritable(error).host(state.clone());
                if let Some(line) = journal.damaged_at {
                    let kept = path.with_extension("damaged");
                    files::write_atomic(&kept, &log.contents().unwrap_or_default(), 0o600).map_err(unwritable)?;
                    out.event(&Event::Warning(format!(
                        "line {line} of the journal is damaged: undid the rest and whatever carries our marks; kept as {}. \
                         Kernel settings carry no mark: look at net.ipv4.conf.*.forwarding and net.ipv6.conf.*.forwarding",
                        kept.display()
                    )));
                }
                if left.none() {
                    os::control::forget(&places.run_dir, &interface);
                    log.remove().map_err(unwritable)?;
                }
                done.left.extend(left.0);
                done.interfaces.push(interface);
            }
        }
    }
    if done.interfaces.is_empty() && done.running.is_empty() && only.is_none() {
        done.left.extend(apply::sweep(&mut host).0);
    }
    if done.left.is_empty() { Ok(done) } else { Err(apply::not_restored(&Leftovers(done.left))) }
}

/// Interfaces that have a journal, sorted.
pub(super) fn journals(places: &Places) -> Result<Vec<String>, Failure> {
    let Ok(entries) = std::fs::read_dir(apply::journal_dir(places)) else { return Ok(Vec::new()) };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut interfaces: Vec<String> =
        names.filter_map(|name| name.strip_suffix(".journal").map(str::to_owned)).collect();
    interfaces.sort();
    Ok(interfaces)
}
