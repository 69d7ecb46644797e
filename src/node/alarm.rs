//! Sleeping for long with one wake-up, through a suspend too.

use std::time::Instant;

use peervpn_platform::os::Timer;
use peervpn_platform::os::ready::Watched;

/// A sleeper. tokio's own wakes several times on the way to a distant deadline (its timer wheel), and does not count
/// the time that the host was suspended; it stands in where the system has no timer of that kind.
pub struct Alarm {
    timer: Option<Watched<Timer>>,
    set: Option<Instant>,
}

/// How it was woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The time has come.
    Due,
    /// Only by the time that the host was suspended: [`Instant`] does not count it.
    Suspended,
}

impl Alarm {
    /// Sleeps nowhere yet.
    pub fn new() -> Alarm {
        let timer = Timer::open().ok().and_then(|timer| Watched::new(timer).ok());
        Alarm { timer, set: None }
    }

    /// Until `due`. Can be dropped and called again at any time.
    pub async fn until(&mut self, due: Instant) -> Woken {
        let Some(timer) = &self.timer else {
            tokio::time::sleep_until(due.into()).await;
            return Woken::Due;
        };
        if self.set != Some(due) {
            if timer.get_ref().set(due.saturating_duration_since(Instant::now())).is_err() {
                return std::future::pending().await;
            }
            self.set = Some(due);
        }
        loop {
            let Ok(ready) = timer.readable().await else { return std::future::pending().await };
            ready.clear();
            if timer.get_ref().expired() {
                self.set = None;
                return if due <= Instant::now() { Woken::Due } else { Woken::Suspended };
            }
        }
    }
}
