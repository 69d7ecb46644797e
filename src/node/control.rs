//! The control socket of a running node (`RUN_DIR/INTERFACE.sock`, 0600; on Windows a named pipe): one JSON object a line
//! each way.
//! `status`, `peers` and `down` speak to it.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use peervpn_platform::os;
use peervpn_platform::types::PeerState;
use serde::{Deserialize, Serialize};

use zeroize::{Zeroize as _, Zeroizing};

use super::invite;
use crate::config::{DEFAULT_INTERFACE, Places};
use crate::error::{Failure, Words};
use crate::join::connect::ConnectString;
use crate::join::initiation::Counters;
use crate::join::peers::{Invite, Peer};
use crate::key::PublicKey;

/// Longest request in bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// Longest answer in bytes: 10,000 peers fit many times.
const MAX_ANSWER: u64 = 64 << 20;
/// How long to wait for an answer; `down` is answered when the host is put back.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What can be asked of a running node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How it stands.
    Status,
    /// Who waits for admission.
    PeersPending,
    /// Who is in.
    PeersList,
    /// Let a waiting peer in.
    PeersAccept {
        /// Its peer ID or public key.
        id: String,
        /// The name to give it.
        name: Option<String>,
    },
    /// Let a peer in by its key, and call it where an endpoint is given.
    PeersAdd {
        /// `PUBKEY` or `PUBKEY@ENDPOINT[,ENDPOINT…]`, names resolved.
        target: String,
        /// The name to give it.
        name: Option<String>,
    },
    /// Don't let a waiting peer in.
    PeersDeny {
        /// Its peer ID or public key.
        id: String,
    },
    /// Give a peer another name.
    PeersRename {
        /// Its peer ID, public key or name.
        id: String,
        /// The name; none takes it away.
        name: Option<String>,
    },
    /// Throw a peer out, or take an invite back; answered when the device has forgotten it.
    PeersRevoke {
        /// Its peer ID, public key or name.
        id: String,
    },
    /// Make an invite, or a wg-quick file for a stock app.
    Invite(invite::Wanted),
    /// The node's own configuration as a wg-quick file.
    Export {
        /// With the secret keys.
        show_keys: bool,
    },
    /// Stop and put the host back; answered when that is done.
    Down,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
// the tag comes first and apart from the rest, so that a long answer is read in one go
#[serde(tag = "response", content = "answer", rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::PeersPending`].
    Pending {
        /// Those who wait, oldest first.
        pending: Vec<PendingPeer>,
    },
    /// To [`Request::PeersList`].
    Peers {
        /// Those who are in.
        peers: Vec<PeerStatus>,
    },
    /// To [`Request::PeersAccept`] and [`Request::PeersAdd`].
    Accepted(PeerStatus),
    /// To [`Request::PeersDeny`], [`Request::PeersRename`] and [`Request::PeersRevoke`].
    Changed(Changed),
    /// To [`Request::Invite`].
    Invite(Box<invite::Made>),
    /// To [`Request::Export`].
    Export {
        /// The wg-quick file.
        wg_quick: SecretText,
    },
    /// To [`Request::Down`]: the node has stopped.
    Stopped {
        /// `restored`, or what is left.
        host: String,
        /// Everything was put back.
        restored: bool,
    },
    /// It could not be done.
    Failed {
        /// Why.
        error: String,
        /// What mends it.
        hint: Option<String>,
    },
}

/// `peervpn status --json` (cli.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Interface name.
    pub interface: String,
    /// `exit` or `connect`.
    pub mode: String,
    /// `kernel` or `userspace`.
    pub backend: String,
    /// Our static public key.
    pub public_key: PublicKey,
    /// Listen port.
    pub port: u16,
    /// Our endpoints (exit: those in the connect string).
    pub endpoints: Vec<String>,
    /// Peers.
    pub peers: Vec<PeerStatus>,
    /// The kill switch, of a node that is connected to an exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_switch: Option<KillSwitchStatus>,
    /// Handshake initiations that came to an exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initiations: Option<Initiations>,
}

/// Handshake initiations since the start, by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Initiations {
    /// As they were checked.
    #[serde(flatten)]
    pub checked: Counters,
    /// Of these, those of revoked and denied keys.
    pub refused: u64,
    /// More than could be looked at.
    pub unseen: u64,
}

/// How the kill switch stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillSwitchStatus {
    /// It is there.
    pub on: bool,
    /// It closed before the first handshake (`--lockdown`).
    pub lockdown: bool,
    /// The exit is silent, so that nothing gets through at present.
    pub blocking: bool,
}

/// One peer of a running node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Peer ID.
    pub peer_id: String,
    /// Name, if it was given one.
    pub name: Option<String>,
    /// Static public key.
    pub public_key: PublicKey,
    /// Current endpoint.
    pub endpoint: Option<String>,
    /// Tunnel addresses.
    pub tunnel_addresses: Vec<IpAddr>,
    /// Seconds since the last handshake; `null` before the first.
    pub last_handshake_s: Option<u64>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// `accepted`, `any`, `invite`, `added`, or `exit` for the exit we are connected to.
    pub how: String,
    /// `stock app`, `stock app, unused`, `open invite`, `spent invite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl PeerStatus {
    /// A peer as the peers file has it, without a device.
    pub fn at_rest(peer: &Peer) -> Self {
        PeerStatus {
            peer_id: peer.public_key.peer_id(),
            name: peer.name.clone(),
            public_key: peer.public_key,
            endpoint: peer.endpoint.as_ref().map(ToString::to_string),
            tunnel_addresses: peer.tunnel_addresses.to_vec(),
            last_handshake_s: None,
            rx_bytes: 0,
            tx_bytes: 0,
            how: peer.how.as_str().to_owned(),
            note: match (peer.stock, peer.use_by) {
                (false, _) => None,
                (true, None) => Some("stock app".to_owned()),
                (true, Some(_)) => Some("stock app, unused".to_owned()),
            },
        }
    }

    /// An invite, as the peers file has it.
    pub fn of_invite(invite: &Invite) -> Self {
        let key = invite.public_key;
        PeerStatus {
            peer_id: key.peer_id(),
            name: invite.name.clone(),
            public_key: key,
            endpoint: None,
            tunnel_addresses: vec![invite.door.into()],
            last_handshake_s: None,
            rx_bytes: 0,
            tx_bytes: 0,
            how: "invite".to_owned(),
            note: Some(if invite.is_spent() { "spent invite" } else { "open invite" }.to_owned()),
        }
    }

    /// A peer of the device that no file tells of.
    pub fn of_device(device: &PeerState, tunnel_addresses: Vec<IpAddr>, how: &str, now: Duration) -> Self {
        let key = PublicKey(device.public_key);
        let bare = PeerStatus {
            peer_id: key.peer_id(),
            name: None,
            public_key: key,
            endpoint: None,
            tunnel_addresses,
            last_handshake_s: None,
            rx_bytes: 0,
            tx_bytes: 0,
            how: how.to_owned(),
            note: None,
        };
        bare.with_device(device, now)
    }

    /// The same peer, with what its device tells at `now` (since the Unix epoch).
    pub fn with_device(self, device: &PeerState, now: Duration) -> Self {
        PeerStatus {
            endpoint: device.endpoint.map(|endpoint| endpoint.to_string()),
            last_handshake_s: device.last_handshake.map(|at| now.saturating_sub(at).as_secs()),
            rx_bytes: device.rx_bytes,
            tx_bytes: device.tx_bytes,
            ..self
        }
    }
}

/// A text with secrets in it: wiped when dropped, never in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// The text, for the one who asked for it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<Zeroizing<String>> for SecretText {
    fn from(mut text: Zeroizing<String>) -> Self {
        SecretText(std::mem::take(&mut text))
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText(…)")
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A peer to which something was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// `denied`, `renamed`, `revoked`, or `withdrawn` for an invite.
    pub done: String,
    /// Peer ID.
    pub peer_id: String,
    /// Static public key.
    pub public_key: PublicKey,
    /// Name, if it has one.
    pub name: Option<String>,
}

impl Changed {
    /// What was done, to whom.
    pub fn new(done: &str, key: PublicKey, name: Option<String>) -> Self {
        Changed { done: done.to_owned(), peer_id: key.peer_id(), public_key: key, name }
    }
}

/// One peer that waits for admission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingPeer {
    /// Peer ID.
    pub peer_id: String,
    /// Static public key.
    pub public_key: PublicKey,
    /// Source of its packet.
    pub endpoint: String,
    /// Seconds since it first asked.
    pub since_s: u64,
}

/// One request on its way to the node, and the way back.
pub struct Asked {
    /// What is asked.
    pub request: Request,
    answer: tokio::sync::oneshot::Sender<Response>,
}

impl Asked {
    /// Answers; the asker may have gone.
    pub fn reply(self, response: Response) {
        let _ = self.answer.send(response);
    }
}

/// The node's end of the control socket; removed when closed or dropped, which must come before the journal is given up:
/// the next node makes a socket of the same name.
pub struct Server {
    requests: tokio::sync::mpsc::Receiver<Asked>,
    accepting: tokio::task::JoinHandle<()>,
    writing: std::sync::Arc<tokio::sync::Semaphore>,
    entry: Option<os::control::Entry>,
}

/// Connections served at a time; a further one waits.
const MAX_CONNECTIONS: usize = 16;
/// How long an asker gets to send its request and take its answer.
const CONNECTION_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a connection that could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

impl Server {
    /// Listens. The caller holds the interface's journal, so a socket file that is there is a dead node's.
    pub fn bind(places: &Places, interface: &str) -> Result<Server, Failure> {
        let (mut listener, entry) = os::control::Listener::bind(&places.run_dir, interface)
            .map_err(|error| Failure::new(error.to_string(), "choose another place with --run-dir DIR"))?;
        let (sender, requests) = tokio::sync::mpsc::channel(MAX_CONNECTIONS);
        let writing = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        let slots = writing.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let Ok(slot) = slots.clone().acquire_owned().await else { return };
                let stream = match listener.accept().await {
                    Ok(stream) => stream,
                    Err(error) => {
                        not_accepted(error).await;
                        continue;
                    }
                };
                let sender = sender.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, sender).await {
                        tracing::debug!(%error, "control connection");
                    }
                    drop(slot);
                });
            }
        });
        Ok(Server { requests, accepting, writing, entry: Some(entry) })
    }

    /// The next request.
    pub async fn next(&mut self) -> Asked {
        match self.requests.recv().await {
            Some(asked) => asked,
            // the accepting task has ended: nothing will ever come
            None => std::future::pending().await,
        }
    }

    /// Takes no more requests; those that were taken can still be answered.
    pub fn close(&mut self) {
        self.accepting.abort();
        self.entry = None;
    }

    /// Waits, for a short while, until the answers under way are written.
    pub async fn finish(mut self) {
        self.close();
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            // the accepting task held one slot
            let _ = self.writing.acquire_many(MAX_CONNECTIONS as u32).await;
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

/// Waits after a connection that could not be taken, for want of descriptors most likely: the next one is tried soon,
/// without spinning.
pub(super) async fn not_accepted(error: std::io::Error) {
    tracing::debug!(%error, "accept a connection");
    tokio::time::sleep(ACCEPT_AGAIN).await;
}

async fn converse(stream: os::control::Stream, node: tokio::sync::mpsc::Sender<Asked>) -> std::io::Result<()> {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
    let (read, mut write) = tokio::io::split(stream);
    let mut line = Vec::new();
    let mut reader = tokio::io::BufReader::new(read.take(MAX_REQUEST));
    tokio::time::timeout(CONNECTION_LIMIT, reader.read_until(b'\n', &mut line)).await??;
    let response = match serde_json::from_slice(&line) {
        Ok(request) => {
            let (answer, answered) = tokio::sync::oneshot::channel();
            if node.send(Asked { request, answer }).await.is_err() {
                return Ok(());
            }
            match answered.await {
                Ok(response) => response,
                Err(_) => return Ok(()),
            }
        }
        Err(error) => Response::Failed {
            error: format!("the node does not understand the request: {error}"),
            hint: Some("use the peervpn of the same version as the running node".to_owned()),
        },
    };
    let mut bytes = Zeroizing::new(serde_json::to_vec(&response)?);
    bytes.push(b'\n');
    tokio::time::timeout(CONNECTION_LIMIT, write.write_all(&bytes)).await??;
    write.shutdown().await
}

/// The interface that a command means: the one it names, else that of the only node that runs or, where none does, of one
/// that was killed; the default one if there are several.
pub fn meant(places: &Places, interface: Option<&str>) -> Result<String, Failure> {
    if let Some(name) = interface {
        return Ok(name.to_owned());
    }
    let default = DEFAULT_INTERFACE.to_owned();
    match running(places).as_slice() {
        [only] => Ok(only.clone()),
        [] => {
            let mut killed = super::recover::journals(places)?;
            killed.retain(|name| orphaned(places, name));
            if killed.contains(&default) { Ok(default) } else { Ok(killed.into_iter().next().unwrap_or(default)) }
        }
        several if several.contains(&default) => Ok(default),
        several => Err(Failure::usage(
            format!("several nodes run here: {}", several.join(", ")),
            "say which one: --interface NAME",
        )),
    }
}

/// Asks the node on the interface that is [`meant`].
pub fn request(places: &Places, interface: Option<&str>, request: &Request) -> Result<Response, Failure> {
    let mut line = Zeroizing::new(Vec::new());
    let interface = asked(places, interface, request, &mut whole(&mut line))?;
    parse(&interface, &line)
}

/// As [`request`], but `None` where no node runs on that interface.
pub fn request_if_running(
    places: &Places,
    interface: Option<&str>,
    request: &Request,
) -> Result<Option<Response>, Failure> {
    let mut line = Zeroizing::new(Vec::new());
    let (interface, answer) = tried(places, interface, request, &mut whole(&mut line))?;
    match answer {
        Ok(()) => parse(&interface, &line).map(Some),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(refused(places, &interface, request, error)),
    }
}

/// Takes the pieces of an answer together.
fn whole(line: &mut Zeroizing<Vec<u8>>) -> impl FnMut(&[u8]) -> std::io::Result<()> {
    |piece| {
        line.extend_from_slice(piece);
        Ok(())
    }
}

/// Writes the [`Status`] of the node on this interface as a line of JSON, in the node's own words and as they come:
/// thousands of peers need not be read, kept and written once more to be passed on. `false` if `out` takes no more.
pub fn status_json(places: &Places, interface: Option<&str>, out: &mut dyn Write) -> Result<bool, Failure> {
    let mut passing = Passing { out, held: Vec::new(), begun: false, gone: false };
    let asked = asked(places, interface, &Request::Status, &mut |piece| passing.take(piece));
    let Passing { out, held, begun, gone } = passing;
    if gone {
        return Ok(false);
    }
    let interface = asked?;
    if begun && held == STATUS_TAIL {
        return Ok(out.write_all(b"\n").is_ok());
    }
    match parse(&interface, &held)? {
        Response::Status(status) if !begun => {
            let line = serde_json::to_string(&status).expect("string keys only");
            Ok(writeln!(out, "{line}").is_ok())
        }
        other => Err(Failure::new(
            format!("the running node gave an answer to another question: {other:?}"),
            "update the program that runs the node, or this one: they are of different versions",
        )),
    }
}

/// How an answer to [`Request::Status`] begins, and how it ends.
const STATUS_HEAD: &[u8] = br#"{"response":"status","answer":"#;
const STATUS_TAIL: &[u8] = b"}\n";

/// What stands between the head and the tail, on its way out.
struct Passing<'a> {
    out: &'a mut dyn Write,
    /// What may not be passed on yet: all of another answer, of this one what may be its tail.
    held: Vec<u8>,
    /// The head was there.
    begun: bool,
    /// Nobody reads any more.
    gone: bool,
}

impl Passing<'_> {
    fn take(&mut self, piece: &[u8]) -> std::io::Result<()> {
        self.held.extend_from_slice(piece);
        if !self.begun && self.held.starts_with(STATUS_HEAD) {
            self.begun = true;
            self.held.drain(..STATUS_HEAD.len());
        }
        if self.begun && self.held.len() > STATUS_TAIL.len() {
            let passed = self.held.len() - STATUS_TAIL.len();
            self.out.write_all(&self.held[..passed]).inspect_err(|_| self.gone = true)?;
            self.held.drain(..passed);
        }
        Ok(())
    }
}

/// Asks the interface that is [`meant`]; hands on the line that its node answers, piece by piece. Returns the interface.
fn asked(
    places: &Places,
    interface: Option<&str>,
    request: &Request,
    take: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<String, Failure> {
    let (interface, answer) = tried(places, interface, request, take)?;
    match answer {
        Ok(()) => Ok(interface),
        Err(error) => Err(refused(places, &interface, request, error)),
    }
}

/// As [`asked`], and what came of it.
fn tried(
    places: &Places,
    interface: Option<&str>,
    request: &Request,
    take: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<(String, std::io::Result<()>), Failure> {
    let mut bytes = serde_json::to_vec(request).expect("requests have string keys only");
    bytes.push(b'\n');
    let mut ask =
        |interface: &str| os::control::ask(&places.run_dir, interface, &bytes, MAX_ANSWER, ANSWER_LIMIT, &mut *take);
    // one socket is the usual case: its node is asked right away, not first whether it runs
    if let (None, [only]) = (interface, listed(places).as_slice()) {
        match ask(only) {
            Err(error) if is_gone(&error) => {}
            answer => return Ok((only.clone(), answer)),
        }
    }
    let interface = meant(places, interface)?;
    let answer = ask(&interface);
    Ok((interface, answer))
}

/// No node has this socket open.
fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}

/// Why the node on this interface can't be asked.
fn refused(places: &Places, interface: &str, request: &Request, error: std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        return Failure::new(
            format!("the node on {interface} answers {} only", Words::HERE.answered()),
            Words::HERE.elevate(),
        );
    }
    match is_gone(&error) {
        true if orphaned(places, interface) => Failure::new(
            format!(
                "no node runs on {interface}, but what it changed is still there: if it was connected with the kill \
                 switch, this host's traffic is blocked"
            ),
            format!("put the host back: {}", Words::HERE.ours("recover")),
        ),
        true => {
            let hint = match (running(places).as_slice(), request) {
                ([], Request::Down) => {
                    let recover = Words::HERE.ours("recover");
                    format!("none has left anything, either; if something still blocks this host: {recover}")
                }
                ([], _) => Words::HERE.start(),
                (others, _) => format!("say which one, --interface NAME: {}", others.join(", ")),
            };
            Failure::new(format!("no node runs on {interface}"), hint)
        }
        false => Failure::new(
            format!("cannot ask the node on {interface}: {error}"),
            format!("if it hangs, end its process, then: {}", Words::HERE.ours("recover")),
        ),
    }
}

fn parse(interface: &str, line: &[u8]) -> Result<Response, Failure> {
    let response = serde_json::from_slice(line).map_err(|error| {
        Failure::new(
            format!("the node on {interface} ended without a sensible answer ({error})"),
            format!("peervpn status tells whether it still runs; if it does not: {}", Words::HERE.ours("recover")),
        )
    })?;
    match response {
        Response::Failed { error, hint } => Err(Failure { hint, ..Failure::new(error, "") }),
        response => Ok(response),
    }
}

/// A `peers add` target with its endpoints' names looked up here, so that the node's loop never waits for DNS.
pub fn resolve(target: &str) -> Result<String, Failure> {
    use std::net::ToSocketAddrs as _;
    let Some((key, _)) = target.split_once('@') else {
        target.parse::<PublicKey>()?;
        return Ok(target.to_owned());
    };
    let parsed: ConnectString = target.parse()?;
    let mut addresses = Vec::new();
    for endpoint in &parsed.endpoints {
        match endpoint.socket_addr() {
            Some(address) => addresses.push(address.to_string()),
            None => {
                let found = endpoint.to_string().to_socket_addrs().map_err(|error| {
                    Failure::new(
                        format!("{endpoint} does not resolve: {error}"),
                        "check the spelling and this host's DNS, or use the address instead of the name",
                    )
                })?;
                addresses.extend(found.map(|address| address.to_string()));
            }
        }
    }
    Ok(format!("{key}@{}", addresses.join(",")))
}

/// Whether a node that was killed has left changes behind.
pub fn orphaned(places: &Places, interface: &str) -> bool {
    std::fs::metadata(super::apply::journal_path(places, interface)).is_ok_and(|journal| journal.len() > 0)
}

/// Interfaces that have a control socket, a dead node's among them; sorted.
pub fn listed(places: &Places) -> Vec<String> {
    os::control::listed(&places.run_dir)
}

/// Interfaces whose node answers, sorted.
pub fn running(places: &Places) -> Vec<String> {
    os::control::running(&places.run_dir)
}

/// A failure as an answer.
pub fn failed(failure: Failure) -> Response {
    Response::Failed { error: failure.message, hint: failure.hint }
}

/// The time since the Unix epoch, as devices count.
pub fn epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests;
