//! What the exit makes of a port mapping: the mapped endpoint goes first into the connect string once it is worth it.

use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use peervpn_platform::types::{Family, RouteLookup};

use super::Exit;
use crate::error::Failure;
use crate::nat::gather::Gathered;
use crate::nat::portmap::{Protocol, Worth, worth};
use crate::node::apply::Applier;
use crate::node::event::{Event, Output};
use crate::node::portmap::{News, PortMap};

/// The start waits for the gateway no longer than this, once STUN is done.
const GRACE: Duration = Duration::from_millis(300);

/// The mapping that stands, as far as the connect string is concerned.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    /// The mapped endpoint, and where it belongs.
    standing: Option<(SocketAddrV4, Worth)>,
    /// The person has been told that the gateway refuses.
    told: bool,
}

/// Has `port` mapped and waits a moment for it, so that the first connect string is the best one.
pub(super) async fn first(
    portmap: &mut Option<PortMap>,
    port: u16,
    gathered: &Gathered,
    uplinks: &[(Family, RouteLookup)],
    applier: &mut Applier,
    out: &mut dyn Output,
) -> Result<Mapped, Failure> {
    let mut mapped = Mapped::default();
    let Some(portmap) = portmap else { return Ok(mapped) };
    portmap.map(port);
    let reflexive = gathered.reflexive();
    // without a NAT there is nothing to map, but perhaps a firewall to open: that can come later
    let no_nat = reflexive.iter().any(|seen| seen.is_ipv4() && uplinks.iter().any(|(_, way)| way.source == seen.ip()));
    let limit = if no_nat { Duration::ZERO } else { GRACE };
    match portmap.first(applier, limit).await? {
        Some(News::Mapped { protocol, external }) => mapped.take(protocol, external, &reflexive, out),
        Some(News::Refused { why }) => mapped.refused(&why, port, out),
        _ => {}
    }
    Ok(mapped)
}

impl Mapped {
    /// The mapped endpoint where it is to be offered; `true`: before the reflexive ones.
    pub(super) fn offered(&self) -> Option<(String, bool)> {
        match self.standing? {
            (_, Worth::AnotherNat) => None,
            (external, worth) => Some((external.to_string(), worth == Worth::First)),
        }
    }

    /// Puts the mapped endpoint where it belongs, the first `stated` endpoints being stated by hand.
    pub(super) fn place(&self, endpoints: &mut Vec<String>, stated: usize) {
        let Some((endpoint, first)) = self.offered() else { return };
        if endpoints[..stated.min(endpoints.len())].contains(&endpoint) {
            return;
        }
        endpoints.retain(|other| *other != endpoint);
        let at = if first { stated.min(endpoints.len()) } else { endpoints.len() };
        endpoints.insert(at, endpoint);
    }

    fn take(&mut self, protocol: Protocol, external: SocketAddrV4, reflexive: &[SocketAddr], out: &mut dyn Output) {
        let worth = worth(*external.ip(), reflexive);
        self.standing = Some((external, worth));
        match worth {
            Worth::First => out.event(&Event::Step(format!("the router maps {external} to us ({protocol})"))),
            Worth::Last => out.event(&Event::Warning(format!(
                "the router maps {external} to us ({protocol}), but STUN sees us come from another address: the mapped \
                 endpoint stands last in the connect string"
            ))),
            Worth::AnotherNat => out.event(&Event::Warning(format!(
                "the router maps a port to us ({protocol}), but its own address {} is not a public one: there is \
                 another NAT in front of it, and the mapping alone lets nobody in. Forward the port there, too, and \
                 state it with --endpoint HOST:PORT; where the provider runs that NAT, ask for a public address",
                external.ip()
            ))),
        }
    }

    /// Says once that the gateway refuses.
    fn refused(&mut self, why: &str, port: u16, out: &mut dyn Output) {
        tracing::info!(why, "no port mapping");
        if !std::mem::replace(&mut self.told, true) {
            out.event(&Event::Warning(format!(
                "the router does not map our port ({why}). Allow port mapping in its settings, or forward UDP port \
                 {port} to this host there and state it with --endpoint HOST:PORT; --no-portmap asks no more"
            )));
        }
    }
}

impl Exit<'_> {
    /// News of the port mapping.
    pub(super) fn port_mapping(&mut self, news: News, applier: &mut Applier, out: &mut dyn Output) {
        match news {
            News::Journal { undo, written } => match applier.journal(undo) {
                // it may have been aborted meanwhile
                Ok(()) => drop(written.send(())),
                Err(failure) => out.event(&Event::Warning(format!("no port mapping: {}", failure.message))),
            },
            News::Mapped { protocol, external } => {
                let before = self.endpoints.clone();
                let reflexive = self.mapping.as_ref().map(|mapping| mapping.reflexive()).unwrap_or_default();
                self.withdraw_mapped(&reflexive);
                self.mapped.take(protocol, external, &reflexive, out);
                self.mapped.place(&mut self.endpoints, self.options.endpoints.len());
                self.announce(&before, out);
            }
            News::Lost { external, why } => {
                let before = self.endpoints.clone();
                let reflexive = self.mapping.as_ref().map(|mapping| mapping.reflexive()).unwrap_or_default();
                out.event(&Event::Warning(format!("the port mapping {external} is lost: {why}; asking for a new one")));
                self.withdraw_mapped(&reflexive);
                self.announce(&before, out);
            }
            News::Refused { why } => self.mapped.refused(&why, self.port, out),
            News::Silent => tracing::debug!("no gateway that maps ports"),
        }
    }

    /// Where a newly found reflexive endpoint belongs: behind what is stated by hand or mapped.
    pub(super) fn reflexive_place(&self) -> usize {
        let mapped = usize::from(matches!(self.mapped.offered(), Some((_, true))));
        (self.options.endpoints.len() + mapped).min(self.endpoints.len())
    }

    /// Takes the mapped endpoint out of the connect string, unless it stands there on its own merits or alone.
    fn withdraw_mapped(&mut self, reflexive: &[SocketAddr]) {
        let stated = self.options.endpoints.len();
        let Some((external, _)) = self.mapped.standing.take() else { return };
        let kept = reflexive.contains(&SocketAddr::V4(external));
        let text = external.to_string();
        if let Some(at) = self.endpoints.iter().skip(stated).position(|endpoint| *endpoint == text)
            && !kept
            && self.endpoints.len() > 1
        {
            self.endpoints.remove(stated + at);
        }
    }

    /// STUN has found another address: the mapped endpoint may now be worth more or less.
    pub(super) fn reconsider_mapped(&mut self, out: &mut dyn Output) {
        let Some((external, before)) = self.mapped.standing else { return };
        let reflexive = self.mapping.as_ref().map(|mapping| mapping.reflexive()).unwrap_or_default();
        let now = worth(*external.ip(), &reflexive);
        if now != before {
            let endpoints = self.endpoints.clone();
            self.mapped.standing = Some((external, now));
            self.mapped.place(&mut self.endpoints, self.options.endpoints.len());
            self.announce(&endpoints, out);
        }
    }

    /// Shows the connect string anew where it has changed.
    fn announce(&self, before: &[String], out: &mut dyn Output) {
        if self.endpoints == before {
            return;
        }
        if let (Some(old), Some(new)) = (before.first(), self.endpoints.first())
            && old != new
        {
            out.event(&Event::Mapping { old: old.clone(), new: new.clone() });
        }
        out.event(&Event::Connect(self.connect_string()));
    }
}
