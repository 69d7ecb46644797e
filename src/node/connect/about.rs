//! What the exit's control service says about itself, asked for once the tunnel stands: nobody waits for it. It is
//! remembered for the next time, and mends what was assumed: MTU, IPv6, DNS.

use std::net::Ipv4Addr;
use std::time::Duration;

use peervpn_platform::Host as _;

use super::Connected;
use crate::config::Places;
use crate::error::Failure;
use crate::join::connect::Endpoint;
use crate::join::service::{Answer, Request, Settings};
use crate::key::PublicKey;
use crate::node::apply::Applier;
use crate::node::event::{Event, Output};
use crate::node::{service, state};

/// One question gets this long, and comes again after as long.
const LIMIT: Duration = Duration::from_secs(5);
/// The first may be lost to a handshake that is not confirmed yet; an older exit never answers.
const TRIES: u32 = 3;

/// The answer under way.
pub struct About(tokio::task::JoinHandle<Option<Settings>>);

impl About {
    /// Asks the exit at `exit` from our tunnel address.
    pub fn ask(own: Ipv4Addr, exit: Ipv4Addr) -> About {
        About(tokio::spawn(async move {
            for _ in 0..TRIES {
                match tokio::time::timeout(LIMIT, service::ask(own.into(), exit.into(), &Request::About)).await {
                    Ok(Ok(Answer::You(settings))) => return Some(settings),
                    Ok(Ok(Answer::Refused { why })) => {
                        tracing::debug!(%why, "the exit says nothing about itself");
                        return None;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "asking the exit about itself"),
                    Err(_) => tracing::debug!("the exit is asked about itself and says nothing"),
                }
                tokio::time::sleep(LIMIT).await;
            }
            None
        }))
    }

    /// What it said; once. Can be dropped and called again at any time.
    pub async fn answered(about: &mut Option<About>) -> Settings {
        if let Some(About(task)) = about {
            let answer = task.await;
            *about = None;
            if let Ok(Some(settings)) = answer {
                return settings;
            }
        }
        std::future::pending().await
    }
}

impl Drop for About {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The endpoints to try: those we were told, then those we know of, as far as they are addresses.
pub fn endpoints(told: &[Endpoint], known: Option<&Settings>) -> Vec<Endpoint> {
    let known = known.map(|known| known.endpoints.as_slice()).unwrap_or_default();
    let more = known.iter().filter(|endpoint| endpoint.socket_addr().is_some() && !told.contains(endpoint));
    told.iter().chain(more).cloned().collect()
}

impl Connected {
    /// Takes over what the exit says.
    pub(super) fn heard_about(
        &mut self,
        settings: &Settings,
        places: &Places,
        applier: &mut Applier,
        out: &mut dyn Output,
    ) -> Result<(), Failure> {
        if let Err(failure) = remember(&self.exit, settings, places) {
            tracing::warn!(%failure, "what the exit says is not remembered");
        }
        if self.exit_mtu != Some(settings.mtu) {
            self.exit_mtu = Some(settings.mtu);
            if let (None, true) = (self.mtu, settings.mtu < self.config.mtu) {
                applier.host.bring_up(&self.interface, settings.mtu)?;
                self.config.mtu = settings.mtu;
                tracing::info!(mtu = settings.mtu, "the exit's tunnel has a lower MTU");
            }
        }
        if self.guard.exit_has_v6(settings.ipv6) {
            applier.make(self.guard.change()?)?;
            applier.verify()?;
            if !settings.ipv6 {
                out.event(&Event::Step("the exit has no IPv6: connections by IPv6 are refused at once".to_owned()));
            }
        }
        self.config.dns.clone_from(&settings.dns);
        if settings.dns.is_empty() && self.guard.asks_exit() {
            out.event(&Event::Warning(
                "this exit answers no DNS queries, so names do not resolve: connect again with --dns ADDR[,ADDR]"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

fn remember(exit: &PublicKey, settings: &Settings, places: &Places) -> Result<(), Failure> {
    let mut exits = state::exits(places)?;
    if exits.learn(exit, settings.clone()) {
        state::save_exits(places, &exits)?;
    }
    Ok(())
}
