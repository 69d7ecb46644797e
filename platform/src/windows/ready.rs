//! What of ours can become readable, in the caller's event loop. Windows has no one call that waits for everything:
//! each source raises a [`Signal`] from wherever its news come (a thread, a callback of IP Helper, a wait on an event).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::Result;

/// Counts news, and wakes who waits for them.
#[derive(Debug, Default)]
pub struct Signal {
    raised: AtomicU64,
    notify: Notify,
}

impl Signal {
    /// There is something to read. From any thread.
    pub fn raise(&self) {
        self.raised.fetch_add(1, Ordering::Release);
        self.notify.notify_one();
    }
}

/// A source that raises a signal when there is something to read; reading itself never blocks.
pub trait Source {
    /// The same one for as long as the source lives.
    fn signal(&self) -> &Arc<Signal>;
}

/// A source, watched.
#[derive(Debug)]
pub struct Watched<T: Source> {
    source: T,
    /// How many news the caller has dealt with.
    seen: AtomicU64,
}

impl<T: Source> Watched<T> {
    /// From now on, and what came before.
    pub fn new(source: T) -> Result<Self> {
        Ok(Watched { source, seen: AtomicU64::new(0) })
    }

    /// The source.
    pub fn get_ref(&self) -> &T {
        &self.source
    }

    /// There may be something to read. Until the caller has found that there is nothing and said so
    /// ([`Ready::clear`]), this returns at once. Can be dropped and called again at any time. Never fails.
    pub async fn readable(&self) -> io::Result<Ready<'_, T>> {
        let signal = self.source.signal();
        loop {
            let raised = signal.raised.load(Ordering::Acquire);
            if raised != self.seen.load(Ordering::Relaxed) {
                return Ok(Ready { watched: self, raised });
            }
            // a raise since the look above has left its permit
            signal.notify.notified().await;
        }
    }
}

/// A source that may be readable.
#[derive(Debug)]
pub struct Ready<'a, T: Source> {
    watched: &'a Watched<T>,
    raised: u64,
}

impl<T: Source> Ready<'_, T> {
    /// Nothing is left to read; what came while we read, and what comes from now on, wakes again.
    pub fn clear(self) {
        self.watched.seen.store(self.raised, Ordering::Relaxed);
    }
}
