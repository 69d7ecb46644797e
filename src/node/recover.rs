//! `recover`: put the host back after nodes that were killed.

use std::path::Path;
use std::time::{Duration, Instant};

use peervpn_platform::files;
use peervpn_platform::{Host, os};

use super::apply;
use super::event::{Event, Output};
use super::undo::{self, Leftovers};
use crate::config::Places;
use crate::error::{Failure, Words};

/// A killed process gets so long to be gone.
const DYING: Duration = Duration::from_secs(1);

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

/// Undoes every orphaned journal (or that of `only`). Where there is none, and no node runs on this host, deletes what
/// carries our marks.
pub fn run(places: &Places, only: Option<&str>, out: &mut dyn Output) -> Result<Recovered, Failure> {
    if !os::privileged() {
        return Err(super::not_root("recover"));
    }
    run_on(&mut os::host()?, places, only, out)
}

/// [`run`] on that host.
pub(super) fn run_on(
    host: &mut dyn Host,
    places: &Places,
    only: Option<&str>,
    out: &mut dyn Output,
) -> Result<Recovered, Failure> {
    let mut done = Recovered::default();
    let mut elsewhere = None;
    for interface in journals(places)? {
        if only.is_some_and(|only| only != interface) {
            continue;
        }
        let path = apply::journal_path(places, &interface);
        match open(places, &interface, &path)? {
            files::LogOpen::Busy(_) => done.running.push(interface),
            files::LogOpen::Locked(mut log) => {
                if let Some(other) = undo::elsewhere(host, &mut log)? {
                    out.event(&Event::Warning(format!("{other}, and what it changed there is left alone")));
                    elsewhere.get_or_insert((interface, other));
                    continue;
                }
                if !log.is_empty().map_err(apply::unwritable)? {
                    out.event(&Event::Step(format!("putting the host back after {interface}")));
                }
                let left = orphan(host, &path, &mut log, None, out)?;
                let state = left.describe();
                let unwritable = |error| apply::unwritable(error).host(state.clone());
                if left.none() {
                    os::control::forget(&places.run_dir, &interface);
                    log.remove().map_err(unwritable)?;
                }
                done.left.extend(left.0);
                done.interfaces.push(interface);
            }
        }
    }
    if done.interfaces.is_empty() && done.running.is_empty() && elsewhere.is_none() && only.is_none() {
        done.running = others();
        if done.running.is_empty() {
            let (left, found) = undo::sweep(host, None);
            done.left.extend(left.0);
            if found {
                out.event(&Event::Warning(format!(
                    "there is no journal of the node that was here: whatever carries our marks is deleted. {}",
                    Words::HERE.unmarked()
                )));
            }
        }
    }
    match (done.left.is_empty(), elsewhere) {
        (false, _) => Err(apply::not_restored(&Leftovers(done.left))),
        (true, Some((interface, other))) if done.interfaces.is_empty() => Err(other.failure(&interface, "")),
        (true, _) => Ok(done),
    }
}

/// A node that was killed a moment ago may still be dying, with its journal in hand. It answers nobody any more.
fn open(places: &Places, interface: &str, path: &Path) -> Result<files::LogOpen, Failure> {
    let until = Instant::now() + DYING;
    loop {
        let opened = files::Log::open(path).map_err(apply::unwritable)?;
        let answers = || os::control::running(&places.run_dir).iter().any(|name| name == interface);
        if matches!(opened, files::LogOpen::Locked(_)) || Instant::now() >= until || answers() {
            return Ok(opened);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Undoes what a killed node's journal says, but for the firewall rules of the interface that is to stay `closed`. A
/// damaged one is kept, and what carries our marks is deleted too, unless another node's marks are among them.
pub(super) fn orphan(
    host: &mut dyn Host,
    path: &Path,
    log: &mut files::Log,
    closed: Option<&str>,
    out: &mut dyn Output,
) -> Result<Leftovers, Failure> {
    let before = log.contents().unwrap_or_default();
    let (mut left, journal) = match closed {
        Some(interface) => undo::but_firewall(host, log, interface),
        None => undo::journal(host, log),
    };
    // where it says nothing of the rules that are there, its end is lost
    let cut = closed.is_some_and(|interface| !journal.undos.contains(&undo::firewall(interface)));
    let end = || cut.then(|| before.split_inclusive(|byte| *byte == b'\n').count());
    let Some(line) = journal.damaged_at.or_else(end) else { return Ok(left) };
    let kept = path.with_extension("damaged");
    let copied = files::write_atomic(&kept, &before, 0o600);
    copied.map_err(|error| apply::unwritable(error).host(left.describe()))?;
    let others = others();
    let did = match others.as_slice() {
        [] => {
            left.0.extend(undo::sweep(host, closed).0.0);
            "undid the rest and whatever carries our marks"
        }
        others => {
            left.0.push(format!("what carries our marks, since a node runs on {}", others.join(", ")));
            "undid the rest"
        }
    };
    out.event(&Event::Warning(format!(
        "line {line} of the journal is damaged: {did}; kept as {}. {}",
        kept.display(),
        Words::HERE.unmarked()
    )));
    Ok(left)
}

/// Interfaces of the other nodes in this network namespace, whatever their state directories: who holds a journal.
fn others() -> Vec<String> {
    let journal = |path: &Path| {
        path.extension().is_some_and(|e| e == "journal") && path.parent().is_some_and(|p| p.ends_with("journal"))
    };
    let mut interfaces: Vec<String> = os::process::open_elsewhere(journal)
        .iter()
        .filter_map(|path| path.file_stem()?.to_str().map(str::to_owned))
        .collect();
    interfaces.sort();
    interfaces.dedup();
    interfaces
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
