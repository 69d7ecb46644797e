//! What the exit makes of the mapping keeper's news: the connect string follows the mapping.

use super::{Exit, traffic};
use crate::nat::keeper::Event as News;
use crate::node::PROBES;
use crate::node::apply::Applier;
use crate::node::event::{Event, Output};
use crate::tunnel;
use peervpn_platform::types::{Family, RouteLookup};
use peervpn_platform::{Error, Host};

/// How packets to the internet leave, a family each.
pub fn uplinks(host: &mut impl Host) -> Result<Vec<(Family, RouteLookup)>, Error> {
    let mut ways = Vec::new();
    for probe in PROBES {
        if let Some(way) = host.route_lookup(probe, 0)? {
            ways.push((Family::of(&probe), way));
        }
    }
    Ok(ways)
}

impl Exit<'_> {
    /// One piece of news.
    pub(super) fn news(&mut self, news: News, applier: &mut Applier, out: &mut dyn Output) {
        match news {
            News::Unchanged { .. } => {}
            News::Unanswered { family } => tracing::debug!(?family, "no STUN server answered"),
            News::Found { reflexive } => {
                let found = reflexive.to_string();
                if !self.endpoints.contains(&found) {
                    self.endpoints.insert(self.reflexive_place(), found);
                    out.event(&Event::Connect(self.connect_string()));
                }
                self.reconsider_mapped(out);
            }
            News::Changed { old, new } => {
                let (old, new) = (old.to_string(), new.to_string());
                // a mapped endpoint stays where it is, whatever our own packets get
                let mapped = self.mapped.offered().is_some_and(|(mapped, _)| mapped == old);
                match self.endpoints.iter_mut().find(|endpoint| **endpoint == old && !mapped) {
                    Some(endpoint) => endpoint.clone_from(&new),
                    None => self.endpoints.insert(self.reflexive_place(), new.clone()),
                }
                if let Some(portmap) = &self.portmap {
                    portmap.refresh();
                }
                out.event(&Event::Mapping { old, new });
                out.event(&Event::Connect(self.connect_string()));
                self.reconsider_mapped(out);
                self.show_peers_the_new_way(applier);
            }
            News::ByDestination { family: Family::V4 } if matches!(self.mapped.offered(), Some((_, true))) => {}
            News::ByDestination { family } => out.event(&Event::Warning(format!(
                "this network's NAT now maps each destination to another port ({}): the endpoint in the connect string \
                 can't be relied on. Forward UDP port {} on the router and state it with --endpoint HOST:PORT",
                if family == Family::V4 { "IPv4" } else { "IPv6" },
                self.port,
            ))),
        }
    }

    /// Links, addresses or routes have changed: forward by a new uplink, too, measure again, and let peers know.
    pub(super) fn network_changed(&mut self, applier: &mut Applier, out: &mut dyn Output) {
        let ways = uplinks(&mut applier.host).unwrap_or_default();
        let moved = !ways.is_empty() && ways != self.uplinks;
        let lan = traffic::lan(applier).unwrap_or_else(|_| self.lan.clone());
        let other_lan = lan != self.lan;
        self.lan = lan;
        let led = self.outer.look_after(applier).unwrap_or_else(|failure| {
            tracing::warn!(%failure, "the way of our outer packets cannot be looked after");
            false
        });
        if moved {
            self.uplinks = ways;
        }
        if (moved || other_lan || led)
            && let Err(failure) = self.direct_traffic(applier)
        {
            out.event(&Event::Warning(format!("peers' traffic goes on as before: {}", failure.message)));
        }
        if !moved {
            return;
        }
        let by: Vec<String> =
            self.uplinks.iter().map(|(_, way)| format!("{} by {}", way.source, way.interface)).collect();
        out.event(&Event::Step(format!("the network has changed: leaving from {}", by.join(" and "))));
        if let Some(mapping) = &mut self.mapping {
            mapping.refresh();
        }
        if let Some(portmap) = &self.portmap {
            portmap.refresh();
        }
        self.show_peers_the_new_way(applier);
    }

    /// The line that others copy.
    pub(super) fn connect_string(&self) -> String {
        format!("{}@{}", self.key.public(), self.endpoints.join(","))
    }

    /// Peers learn our new endpoint from the next packet we send. Switching the keepalive off and on makes the kernel
    /// send one at once instead of within 25 s.
    fn show_peers_the_new_way(&mut self, applier: &Applier) {
        let there: Vec<_> = self.keepalives.on().copied().collect();
        for keepalive in [0, tunnel::KEEPALIVE] {
            self.set_keepalives(&there, keepalive, applier);
        }
    }
}
