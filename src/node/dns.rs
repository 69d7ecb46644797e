//! DNS of a node: on a peer, the host's programs are told to ask the exit; on an exit, peers' queries are sent on to this
//! host's own resolver, whose changes are followed.

use std::net::IpAddr;
use std::path::Path;

use peervpn_platform::os::{self, watch};
use peervpn_platform::types::FileState;

use super::apply::Applier;
use super::event::{Event, Output};
use super::roam::Changes;
use crate::config::ExitDns;
use crate::error::Failure;
use crate::host::Change;
use crate::host::dns::{self, Mode};

/// The servers that systemd-resolved asks itself, where it runs; systemd-resolved(8) "/etc/resolv.conf".
const UPLINK: &str = "/run/systemd/resolve/resolv.conf";
/// Where an exit's own servers stand, the better list first.
const FILES: [&str; 2] = [UPLINK, os::dns::file::PATH];
/// How often another program may write over our resolv.conf before we leave it to it.
const TAKE_BACK: u32 = 20;

/// What makes this host's programs ask `servers`; chosen from what runs here. `plain`: no DNS over TLS.
pub fn changes(interface: &str, servers: &[IpAddr], plain: bool, out: &mut dyn Output) -> Result<Vec<Change>, Failure> {
    let probes = os::dns::probe()?;
    let choice = dns::choose(&probes)?;
    tracing::info!(trail = choice.trail.join("; "), "DNS");
    let list = servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let why = choice.trail.last().copied().unwrap_or_default();
    out.event(&Event::Step(format!("DNS goes to {list} ({why})")));
    let change = |mode: Mode| match mode {
        Mode::Resolved => Change::ResolvedLink { interface: interface.to_owned(), servers: servers.to_vec(), plain },
        Mode::System => Change::SystemDns { interface: interface.to_owned(), servers: servers.to_vec() },
        Mode::Resolvconf(resolvconf) => Change::Resolvconf {
            record: dns::record_name(resolvconf.kind, interface),
            text: dns::record(servers),
            resolvconf,
        },
        Mode::File { in_place } => Change::File {
            path: os::dns::file::PATH.into(),
            text: dns::resolv_conf(interface, servers, &probes.file.text),
            in_place,
        },
    };
    Ok(choice.modes.into_iter().map(change).collect())
}

/// Our resolv.conf, watched while we are connected.
pub struct FileWatch {
    change: Change,
    changes: Changes<watch::FileWatch>,
    taken_back: u32,
}

impl FileWatch {
    /// Watches the file of these changes, if there is one.
    pub fn of(changes: &[Change]) -> Result<Option<FileWatch>, Failure> {
        let file = changes.iter().find_map(|change| match change {
            Change::File { path, .. } => Some((change, path)),
            _ => None,
        });
        let watched = |(change, path): (&Change, &std::path::PathBuf)| {
            Ok(FileWatch { change: change.clone(), changes: Changes::watch_files(&[path])?, taken_back: 0 })
        };
        file.map(watched).transpose()
    }

    /// Someone has written it, or beside it. Can be dropped and called again at any time.
    pub async fn changed(&mut self) {
        self.changes.settled().await;
    }

    /// Takes the file back where another program wrote over it (a DHCP client, mostly); what it wrote is what will be put
    /// back at the end.
    pub fn take_back(&mut self, applier: &mut Applier, out: &mut dyn Output) -> Result<(), Failure> {
        let Change::File { path, text, .. } = &self.change else { return Ok(()) };
        let same = matches!(os::dns::file::state(path)?, FileState::Text { text: now, .. } if now == *text);
        if same || self.taken_back > TAKE_BACK {
            return Ok(());
        }
        self.taken_back += 1;
        if self.taken_back > TAKE_BACK {
            out.event(&Event::Warning(format!(
                "another program keeps writing {}: names do not resolve until it points to the tunnel; --dns none leaves \
                 DNS to that program",
                path.display()
            )));
            return Ok(());
        }
        out.event(&Event::Warning(format!(
            "another program wrote {}; it points to the tunnel again, and what was written comes back at the end",
            path.display()
        )));
        applier.make(self.change.clone())
    }
}

/// Where an exit sends its peers' queries.
pub struct Resolver {
    wanted: ExitDns,
    servers: Vec<IpAddr>,
    /// Of the files that name them; `None` where they are named by hand.
    changes: Option<Changes<watch::FileWatch>>,
}

impl Resolver {
    /// Reads the servers; says so if peers will have none.
    pub fn new(wanted: &ExitDns, out: &mut dyn Output) -> Resolver {
        // before they are read, so that no change is missed
        let changes = match wanted {
            ExitDns::System => Changes::watch_files(&FILES.map(Path::new)).map_or_else(
                |failure| {
                    out.event(&Event::Warning(format!(
                        "changes of this host's DNS servers will not be noticed: {}; name servers with --dns ADDR",
                        failure.message
                    )));
                    None
                },
                Some,
            ),
            ExitDns::None | ExitDns::Servers(_) => None,
        };
        let (servers, why) = servers(wanted);
        if let Some(why) = why {
            out.event(&Event::Warning(format!("peers get no DNS from this exit: {why}; name servers with --dns ADDR")));
        }
        Resolver { wanted: wanted.clone(), servers, changes }
    }

    /// As they are now.
    pub fn servers(&self) -> &[IpAddr] {
        &self.servers
    }

    /// Waits until they have changed. Can be dropped and called again at any time.
    pub async fn changed(&mut self) {
        let Some(changes) = &mut self.changes else { return std::future::pending().await };
        loop {
            changes.settled().await;
            let (servers, _) = servers(&self.wanted);
            // a file that is being written is not the end of DNS
            if servers != self.servers && !servers.is_empty() {
                tracing::info!(?servers, "this host's DNS servers have changed");
                self.servers = servers;
                return;
            }
        }
    }
}

/// The servers, and why there are none.
fn servers(wanted: &ExitDns) -> (Vec<IpAddr>, Option<&'static str>) {
    match wanted {
        ExitDns::None => (Vec::new(), None),
        ExitDns::Servers(servers) => (servers.clone(), None),
        ExitDns::System => {
            let texts = FILES.map(|path| os::dns::file::read(Path::new(path)).unwrap_or_default());
            let named = texts.iter().map(|text| dns::servers(text)).find(|found| !dns::uplink(found).is_empty());
            match named {
                Some(found) => (dns::uplink(&found), None),
                None if texts.iter().any(|text| !dns::servers(text).is_empty()) => {
                    (Vec::new(), Some("its only name server is a stub on its loopback, which peers cannot reach"))
                }
                None => (Vec::new(), Some("/etc/resolv.conf names no server")),
            }
        }
    }
}
