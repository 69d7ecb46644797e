//! Once a node is up: gives up the privileges that it needs no more, and tells the service manager.

use std::time::{Duration, Instant};

use peervpn_platform::types::Capability;
use peervpn_platform::{Error, os};

use super::alarm::Alarm;
use super::apply::{self, Applier};
use super::event::{Event, Output};
use crate::config::Places;
use crate::error::chain;

/// What a running node and its undo need: netlink and settings; raw and packet sockets.
const NEEDED: [Capability; 2] = [Capability::NetAdmin, Capability::NetRaw];

/// Long enough for what follows a start: the first packets, an exit asked about itself, a `status`.
const SETTLED: Duration = Duration::from_secs(5);

/// Gives up every other capability. Files of ours belong to root, as this process does, so they need none; unless they
/// lie where only someone else may go, as below a home directory. Later also the memory that only the start needed.
pub fn settled(places: &Places) {
    if let Err(error) = confine(places) {
        tracing::warn!(%error, "the node keeps its privileges");
    }
    os::notify("READY=1");
    tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        os::release_program_pages();
    });
}

fn confine(places: &Places) -> Result<(), Error> {
    let mut keep = NEEDED.to_vec();
    let directories = [apply::journal_dir(places), places.state_dir.clone(), places.run_dir.clone(), "/etc".into()];
    let directories: Vec<_> = directories.iter().map(std::path::PathBuf::as_path).collect();
    if !os::reachable(&directories, &keep)? {
        keep.push(Capability::DacOverride);
    }
    let dropped = os::confine(&keep)?;
    let kept: Vec<String> = keep.iter().map(ToString::to_string).collect();
    tracing::info!(dropped, kept = kept.join(" "), "gave up capabilities that are needed no more");
    Ok(())
}

/// Puts back what other programs have taken away, and says so.
pub fn put_back(applier: &mut Applier, out: &mut dyn Output) {
    let cannot = |why: String| format!("cannot put back what another program took away: {why}");
    let said = match applier.put_back() {
        Ok(again) => again
            .into_iter()
            .map(|outcome| match outcome {
                Ok(what) => format!("another program had taken it away: {what}, again"),
                Err(error) => cannot(chain(&error)),
            })
            .collect(),
        Err(failure) => vec![cannot(failure.message)],
    };
    for warning in said {
        out.event(&Event::Warning(warning));
    }
}

/// Keep-alives for the service manager's watchdog, as long as the event loop turns.
pub async fn keep_alive() {
    let Some(every) = os::watchdog() else { return };
    let mut alarm = Alarm::new();
    loop {
        os::notify("WATCHDOG=1");
        alarm.until(Instant::now() + every).await;
    }
}
