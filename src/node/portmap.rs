//! Port mapping on the exit: asks the default gateway by PCP, NAT-PMP and UPnP IGD side by side, keeps the lease, and
//! tells the node. [`gateway`] moves the bytes, [`remove`] deletes a mapping from any process.
//!
//! A task of its own, so that a slow gateway holds up nothing. It writes no journal itself: before a request that
//! creates something leaves, it hands the undo over ([`News::Journal`]) and waits until that is on disk.

mod gateway;
pub mod remove;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::gateway::{Found, Grant, No};
use super::apply::Applier;
use crate::error::Failure;
use crate::host::Undo;
use crate::host::change::PortMapping;
use crate::nat::portmap::upnp::{self, Fault, Service};
use crate::nat::portmap::{LEASE, Protocol, renewal};

/// When a gateway that maps ports refuses ours, or has gone, ask again after this, doubled each time up to the second.
/// Where none has ever spoken, or the doubling has come there, only the second: a search takes a dozen wake-ups.
const AGAIN: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(600)];
/// External ports tried by UPnP IGD, where the gateway does not choose one: ours, and then ones at random.
const PORTS_TRIED: usize = 4;

/// What the node must do or know.
#[derive(Debug)]
pub enum News {
    /// Write this undo to the journal, then say so; dropping the sender forbids the mapping.
    Journal {
        /// The undo.
        undo: Undo,
        /// Told when it is on disk.
        written: oneshot::Sender<()>,
    },
    /// The gateway maps our port to this endpoint, or to another one than before.
    Mapped {
        /// By which protocol.
        protocol: Protocol,
        /// The endpoint.
        external: SocketAddrV4,
    },
    /// The mapping is gone.
    Lost {
        /// Where it was.
        external: SocketAddrV4,
        /// What happened.
        why: String,
    },
    /// The gateway speaks a protocol and won't map our port.
    Refused {
        /// Protocols and their words.
        why: String,
    },
    /// No gateway, or none that speaks any of the protocols, so far.
    Silent,
}

enum Command {
    Map(u16),
    Refresh,
}

/// The port mapping of one port.
pub struct PortMap {
    news: mpsc::UnboundedReceiver<News>,
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<()>,
}

impl PortMap {
    /// Starts looking for a gateway that maps ports; nothing is mapped before [`PortMap::map`].
    pub fn start() -> PortMap {
        let (news, news_here) = mpsc::unbounded_channel();
        let (commands, commands_there) = mpsc::unbounded_channel();
        let task = tokio::spawn(Mapper { news, commands: commands_there }.run());
        PortMap { news: news_here, commands, task }
    }

    /// Has this UDP port mapped from now on.
    pub fn map(&self, port: u16) {
        let _ = self.commands.send(Command::Map(port));
    }

    /// Renews the mapping now, with the gateway that is the default one now: after a change of the network.
    pub fn refresh(&self) {
        let _ = self.commands.send(Command::Refresh);
    }

    /// The first word about the mapping, waited for no longer than `limit`. Journals what is to be journaled meanwhile.
    pub async fn first(&mut self, applier: &mut Applier, limit: Duration) -> Result<Option<News>, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            match tokio::time::timeout_at(deadline, self.news.recv()).await {
                Ok(Some(News::Journal { undo, written })) => {
                    applier.journal(undo)?;
                    let _ = written.send(());
                }
                Ok(news) => return Ok(news),
                Err(_) => return Ok(None),
            }
        }
    }
}

impl Drop for PortMap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The next news, if ports are mapped.
pub async fn next_news(portmap: &mut Option<PortMap>) -> News {
    let news = match portmap {
        Some(portmap) => portmap.news.recv().await,
        None => None,
    };
    match news {
        Some(news) => news,
        None => std::future::pending().await,
    }
}

/// A mapping that we hold.
struct Held {
    mapping: PortMapping,
    grant: Grant,
    since: Instant,
}

/// Why a mapping is no longer held.
enum Ended {
    /// Lost: look for a gateway again.
    Lost,
    /// The node has gone.
    Over,
}

struct Mapper {
    news: mpsc::UnboundedSender<News>,
    commands: mpsc::UnboundedReceiver<Command>,
}

impl Mapper {
    async fn run(mut self) {
        let mut found = gateway::discover(|| self.tell(News::Silent)).await;
        let port = loop {
            match self.commands.recv().await {
                Some(Command::Map(port)) => break port,
                Some(Command::Refresh) => {}
                None => return,
            }
        };
        let mut pause = if found.is_some() { AGAIN[0] } else { AGAIN[1] };
        loop {
            match self.establish(found.as_ref(), port).await {
                Ok(held) => {
                    pause = AGAIN[0];
                    if let Ended::Over = self.hold(held).await {
                        return;
                    }
                }
                Err(refusals) => {
                    self.tell(if refusals.is_empty() {
                        News::Silent
                    } else {
                        News::Refused { why: refusals.join("; ") }
                    });
                    tokio::select! {
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(AGAIN[1]),
                        command = self.commands.recv() => if command.is_none() { return },
                    }
                }
            }
            found = gateway::discover(|| {}).await;
        }
    }

    fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }

    /// Has an undo written; false where it can't be, and then nothing may be created.
    async fn journal(&self, mapping: &PortMapping) -> bool {
        let (written, done) = oneshot::channel();
        self.tell(News::Journal { undo: Undo::PortMapping(mapping.clone()), written });
        done.await.is_ok()
    }

    /// Maps `port` by the first protocol that does it; else what the gateway said by each.
    async fn establish(&self, found: Option<&Found>, port: u16) -> Result<Held, Vec<String>> {
        let Some(found) = found else { return Err(Vec::new()) };
        let &Found { gateway, client, .. } = found;
        let mut refusals = Vec::new();
        let mut refuse = |protocol: Protocol, no: No| refusals.push(format!("{protocol}: {no}"));
        if found.pcp {
            let mut nonce = [0; 12];
            getrandom::fill(&mut nonce).expect("the operating system gives random bytes");
            match self.create(PortMapping::Pcp { gateway, client, port, nonce }, port).await {
                Ok(held) => return Ok(held),
                Err(no) => refuse(Protocol::Pcp, no),
            }
        }
        // a discovery ends with the first answer, and a server of the one mostly speaks the other
        if found.nat_pmp || found.pcp {
            match self.create(PortMapping::NatPmp { gateway, client, port }, port).await {
                Ok(held) => return Ok(held),
                Err(no) => refuse(Protocol::NatPmp, no),
            }
        }
        // where the others spoke, nobody has waited for this one
        let igd = match &found.igd {
            None if found.pcp || found.nat_pmp => gateway::search(gateway, client).await,
            igd => igd.clone(),
        };
        if let Some(description) = igd {
            match self.upnp(&description, client, port).await {
                Ok(held) => return Ok(held),
                Err(no) => refuse(Protocol::Upnp, no),
            }
        }
        Err(refusals)
    }

    /// Journals a mapping's undo, then asks for it.
    async fn create(&self, mapping: PortMapping, suggested_port: u16) -> Result<Held, No> {
        if !self.journal(&mapping).await {
            return Err(No::Forbidden);
        }
        let suggested = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, suggested_port);
        let grant = gateway::request(&mapping, suggested).await?;
        self.tell(News::Mapped { protocol: protocol(&mapping), external: grant.external });
        Ok(Held { mapping, grant, since: Instant::now() })
    }

    async fn upnp(&self, description: &upnp::Url, client: Ipv4Addr, port: u16) -> Result<Held, No> {
        let mut last = No::Refused("the device names no service that maps ports".to_owned());
        for service in gateway::services(description).await? {
            match self.upnp_service(&service, client, port).await {
                Ok(held) => return Ok(held),
                Err(No::Forbidden) => return Err(No::Forbidden),
                Err(no) => last = no,
            }
        }
        Err(last)
    }

    async fn upnp_service(&self, service: &Service, client: Ipv4Addr, port: u16) -> Result<Held, No> {
        gateway::external_address(service).await?;
        let mapping = |external_port, permanent| PortMapping::Upnp {
            server: service.control.server,
            path: service.control.path.clone(),
            service: service.kind.clone(),
            external_port,
            client,
            port,
            permanent,
        };
        let ports = std::iter::once(port).chain(std::iter::repeat_with(random_port)).take(PORTS_TRIED);
        let mut last = No::Refused("every external port tried is taken".to_owned());
        for external_port in ports {
            // some routers overwrite without a word; what someone else has mapped stays
            if let Some(entry) = gateway::entry(service, external_port).await?
                && !ours(&entry, client, port)
            {
                continue;
            }
            match self.create(mapping(external_port, false), external_port).await {
                Err(No::Fault(Fault { code: Fault::ONLY_PERMANENT, .. })) => {
                    return self.create(mapping(external_port, true), external_port).await;
                }
                Err(no @ No::Fault(Fault { code: Fault::CONFLICT, .. })) => last = no,
                other => return other,
            }
        }
        Err(last)
    }

    /// Renews the lease until it is lost.
    async fn hold(&mut self, mut held: Held) -> Ended {
        let mut failed = None;
        loop {
            let external = held.grant.external;
            let Some(due) = renewal(held.grant.lifetime, failed) else {
                self.tell(News::Lost { external, why: "the gateway does not answer any more".to_owned() });
                return Ended::Lost;
            };
            tokio::select! {
                () = tokio::time::sleep_until(held.since + due) => {}
                command = self.commands.recv() => match command {
                    None => return Ended::Over,
                    Some(_) if !gateway::is_default(&held.mapping) => {
                        self.tell(News::Lost { external, why: "the default gateway is another one".to_owned() });
                        return Ended::Lost;
                    }
                    Some(_) => {}
                }
            }
            match gateway::request(&held.mapping, external).await {
                Ok(grant) => {
                    if grant.external != external {
                        self.tell(News::Mapped { protocol: protocol(&held.mapping), external: grant.external });
                    }
                    (held.grant, held.since, failed) = (grant, Instant::now(), None);
                }
                Err(No::Silent | No::Forbidden) => {
                    tracing::debug!(%external, "the gateway did not answer a renewal");
                    failed = Some((failed.map_or(0, |(count, _)| count) + 1, held.since.elapsed()));
                }
                Err(no) => {
                    self.tell(News::Lost { external, why: format!("the gateway does not renew it: {no}") });
                    return Ended::Lost;
                }
            }
        }
    }
}

fn protocol(mapping: &PortMapping) -> Protocol {
    match mapping {
        PortMapping::Pcp { .. } => Protocol::Pcp,
        PortMapping::NatPmp { .. } => Protocol::NatPmp,
        PortMapping::Upnp { .. } => Protocol::Upnp,
    }
}

/// Whether a mapping that stands on a gateway is one of ours to this port.
fn ours(entry: &upnp::Entry, client: Ipv4Addr, port: u16) -> bool {
    entry.client == Some(client) && entry.port == Some(port) && entry.description == upnp::DESCRIPTION
}

/// A port of the dynamic range; RFC 6335 §6.
fn random_port() -> u16 {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    u16::from_ne_bytes(bytes) | 0xc000
}

/// How long a mapping lasts that nobody renews, for a person.
fn lease_text() -> String {
    format!("{} h", LEASE.as_secs() / 3600)
}
