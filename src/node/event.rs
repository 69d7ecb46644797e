//! What a running node tells the person or script that started it: the JSON events of cli.md, and the steps in between
//! that only a person sees. `cli::render` turns them into text or JSON.

use std::net::IpAddr;

use serde::Serialize;

use crate::key::PublicKey;

/// One thing that happened. With `--json` each is one line, tagged `"event"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// What is being done now. Only for people (stderr); never in JSON.
    #[serde(skip)]
    Step(String),
    /// Something the person should know, with what to do about it. Only for people (stderr); never in JSON.
    #[serde(skip)]
    Warning(String),
    /// A question to be answered on the terminal, printed without a newline. Never in JSON.
    #[serde(skip)]
    Question(String),
    /// The connect string has changed. Only for people; scripts have [`Event::Mapping`] and `status`.
    #[serde(skip)]
    Connect(String),
    /// A line of `--monitor-nat`: the mapping, and the one before where it changed. Only for people.
    #[serde(skip)]
    Monitor {
        /// Local time, `15:04:05`.
        time: String,
        /// Before, where it changed since the last line.
        old: Option<String>,
        /// Now; `None` where no server answered.
        now: Option<String>,
    },
    /// The node stands. `connect` is the line to copy.
    Ready {
        /// `exit`.
        mode: &'static str,
        /// Interface name.
        interface: String,
        /// `kernel` or `userspace`.
        backend: String,
        /// Our static public key.
        public_key: PublicKey,
        /// Our peer ID.
        peer_id: String,
        /// Listen port.
        port: u16,
        /// Endpoints in the connect string, best first.
        endpoints: Vec<String>,
        /// Our tunnel addresses.
        tunnel_addresses: Vec<IpAddr>,
        /// Connect string.
        connect: String,
    },
    /// An unknown peer waits for admission.
    Pending {
        /// Its peer ID.
        peer_id: String,
        /// Its key.
        public_key: PublicKey,
        /// The source of its packet.
        endpoint: String,
    },
    /// A peer was let in.
    Joined {
        /// Its peer ID.
        peer_id: String,
        /// Its key.
        public_key: PublicKey,
        /// Its tunnel addresses.
        tunnel_addresses: Vec<IpAddr>,
        /// `accepted`, `any`, `invite` or `added`.
        how: &'static str,
    },
    /// The first handshake is done and traffic goes through the exit.
    Connected {
        /// `connect`.
        mode: &'static str,
        /// The exit's peer ID.
        peer_id: String,
        /// The exit's endpoint.
        endpoint: String,
        /// Milliseconds from the first initiation to the handshake.
        handshake_ms: u64,
        /// Our tunnel addresses.
        tunnel_addresses: Vec<IpAddr>,
        /// DNS servers in use.
        dns: Vec<IpAddr>,
    },
    /// The NAT's mapping of our port changed.
    Mapping {
        /// Before.
        old: String,
        /// Now.
        new: String,
    },
    /// No answer from the exit so far.
    Unreachable {
        /// Seconds since the first initiation.
        since_s: u64,
        /// What to ask of the exit's operator.
        hint: String,
        /// Our own connect string.
        own: String,
    },
    /// The node stopped.
    Stopped {
        /// `restored`, or what is left.
        host: String,
    },
}

impl Event {
    /// Only a person sees it; it has no JSON form.
    pub fn for_people(&self) -> bool {
        matches!(
            self,
            Event::Step(_) | Event::Warning(_) | Event::Question(_) | Event::Connect(_) | Event::Monitor { .. }
        )
    }
}

/// Where events go: a terminal, a script, a test.
pub trait Output {
    /// Shows one event.
    fn event(&mut self, event: &Event);

    /// A person reads this, and can be asked if there is a terminal to answer on.
    fn interactive(&self) -> bool {
        false
    }
}
