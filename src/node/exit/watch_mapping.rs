//! What the exit makes of the mapping keeper's news: the connect string follows the mapping.

use super::Exit;
use crate::nat::keeper::Event as News;
use crate::node::apply::Applier;
use crate::node::event::{Event, Output};
use crate::tunnel;
use peervpn_platform::types::{Backend, Family, PeerConfig};

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

    /// The line that others copy.
    pub(super) fn connect_string(&self) -> String {
        format!("{}@{}", self.key.public(), self.endpoints.join(","))
    }

    /// Peers learn our new endpoint from the next packet we send. Switching the keepalive off and on makes the kernel
    /// send one at once instead of within 25 s; the userspace devices would lose their sessions by it.
    fn show_peers_the_new_way(&mut self, applier: &Applier) {
        if self.backend != Backend::Kernel.to_string() {
            return;
        }
        for keepalive in [0, tunnel::KEEPALIVE] {
            let peers = self.store.peers().map(|peer| PeerConfig {
                public_key: peer.public_key.0,
                update_only: true,
                keepalive: Some(keepalive),
                ..PeerConfig::default()
            });
            let config = tunnel::peers(peers.collect());
            if let Err(error) = self.wireguard.configure(applier.interface(), &config) {
                tracing::warn!(%error, "peers learn the new mapping late");
            }
        }
    }
}
