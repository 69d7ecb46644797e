//! `connect INVITE`, the first time: through the invite's slot to the exit's control service, where our own key takes the
//! invite's place. Afterwards it is an ordinary `connect`.
//!
//! Each step is on disk before the next one is taken, on both sides, so whoever dies in between, asking again ends it:
//! 1. our key is there (`identity.key`); `exits.json` says that we are asking;
//! 2. the exit writes its peers file: from now on our key is a peer of it, and the invite is spent;
//! 3. the exit puts our key on its device and answers;
//! 4. `exits.json` says that we have joined, with what was answered.
//!
//! Up to 2 both sides have the old key, from 2 on the new one: the same invite with the same key then gets the same
//! answer, for as long as the exit has not heard our key.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use peervpn_platform::Host as _;
use peervpn_platform::types::PeerConfig;

use super::approach::Approach;
use super::event::{Event, Output};
use super::{Ground, exit_route, service, state};
use crate::config::{ConnectOptions, Places};
use crate::error::Failure;
use crate::join::address::{TunnelAddresses, exit_addresses, peer_addresses};
use crate::join::connect::Endpoint;
use crate::join::invite::{Invite, InviteError};
use crate::join::service::{Answer, Refusal, Request, Settings, proof};
use crate::tunnel::{self, mtu};

/// One request gets this long, then the next endpoint is tried: a handshake and three round trips.
const ATTEMPT: Duration = Duration::from_secs(3);

/// What the exit told us when we joined it by this invite; `None` if that is still to be done, and can be.
pub(super) fn joined(invite: &Invite, places: &Places) -> Result<Option<Settings>, Failure> {
    let slot = invite.key.public();
    let exits = state::exits(places)?;
    if let Some(settings) = exits.joined_by(&invite.exit, &slot) {
        return Ok(Some(settings.clone()));
    }
    if !exits.is_asking(&invite.exit, &slot) {
        invite.check_time(state::now())?;
    }
    Ok(None)
}

/// Joins the exit by the invite. A host that is to be closed is so before the exit is asked, and afterwards: names cannot
/// be looked up again then, so it also returns what they stood for.
pub(super) async fn redeem(
    ground: &mut Ground,
    invite: &Invite,
    options: &ConnectOptions,
    places: &Places,
    out: &mut dyn Output,
) -> Result<(Settings, Vec<Endpoint>), Failure> {
    let slot = invite.key.public();
    let exit = IpAddr::V4(exit_addresses(&invite.exit).v4);
    // there is none for IPv6: what we would have as an ordinary peer
    let addresses = TunnelAddresses { v4: invite.door, ..peer_addresses(&invite.exit, &slot) };
    let approach = Approach::new(ground, &invite.endpoints, addresses, &[exit], None, options, out).await?;
    approach.lock_down(&mut ground.applier, options, out)?;
    let answer = ask(ground, &approach, invite, options, places, out).await?;
    let mut exits = state::exits(places)?;
    match answer {
        Answer::You(settings) => {
            exits.join(&invite.exit, slot, settings.clone());
            state::save_exits(places, &exits)?;
            out.event(&Event::Step("joined: this machine's own key has taken the invite's place".to_owned()));
            let left = ground.applier.undo_but_firewall();
            let found = approach.candidates.iter().map(|candidate| candidate.address.into()).collect();
            if left.none() { Ok((settings, found)) } else { Err(super::apply::not_restored(&left)) }
        }
        Answer::Refused { why } => {
            if !matches!(why, Refusal::Failed) {
                exits.refused(&invite.exit);
                state::save_exits(places, &exits)?;
            }
            Err(match why.about_invite(&ground.key.public()) {
                Some(InviteError::Expired(_)) => {
                    InviteError::Expired(state::now().saturating_sub(invite.expires_at)).into()
                }
                Some(error) => error.into(),
                None => {
                    Failure::new(why.to_string(), "ask the exit's operator to look at its messages, then try again")
                }
            })
        }
    }
}

/// Asks the exit's control service, through the invite's slot, until it answers.
async fn ask(
    ground: &mut Ground,
    approach: &Approach,
    invite: &Invite,
    options: &ConnectOptions,
    places: &Places,
    out: &mut dyn Output,
) -> Result<Answer, Failure> {
    let slot = invite.key.public();
    let own = ground.key.public();
    let candidates = &approach.candidates;
    out.event(&Event::Step(format!("joining {} by the invite, as {}", invite.exit.peer_id(), own.peer_id())));
    let mut exits = state::exits(places)?;
    exits.ask(invite.exit, slot);
    state::save_exits(places, &exits)?;

    let door = IpAddr::V4(invite.door);
    let exit = IpAddr::V4(exit_addresses(&invite.exit).v4);
    let peer = |turn: usize| PeerConfig {
        preshared_key: Some(invite.preshared_key.secret()),
        ..tunnel::peer(&invite.exit, Some(candidates[turn % candidates.len()].address), vec![exit.into()])
    };
    let mut config = tunnel::device(&invite.key, approach.port, approach.numbers.fwmark);
    config.peers.push(peer(0));
    let mut wireguard = ground.create_device(&config, &[door], mtu::MIN)?;
    let interface = ground.interface.clone();
    ground.applier.host.add_route(&exit_route(&interface, exit))?;

    let request = Request::Redeem { exit: invite.exit, key: own, proof: proof(&ground.key, &invite.exit, &slot) };
    let started = Instant::now();
    let limit = options.timeout * options.retry.max(1);
    let mut turn = 0;
    let mut said = false;
    loop {
        let why = match tokio::time::timeout(ATTEMPT.min(limit), service::ask(door, exit, &request)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        tracing::debug!(remote = %candidates[turn % candidates.len()].address, why, "asking the control service");
        if started.elapsed() >= limit && !said {
            let heard = wireguard.state(&interface)?.peers.iter().any(|peer| peer.last_handshake.is_some());
            let failure = no_answer(invite, heard, limit, &why);
            // giving up would open what the lockdown closes
            if !options.lockdown {
                return Err(failure);
            }
            said = true;
            let hint = failure.hint.unwrap_or_default();
            out.event(&Event::Warning(format!("{}; we keep trying. {hint}", failure.message)));
        }
        turn += 1;
        // removing and adding the peer makes WireGuard ask at once, and undoes what another user of the same slot did
        wireguard.configure(&interface, &tunnel::peers(vec![tunnel::removal(&invite.exit)]))?;
        wireguard.configure(&interface, &tunnel::peers(vec![peer(turn)]))?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn no_answer(invite: &Invite, heard: bool, limit: Duration, why: &str) -> Failure {
    let exit = invite.exit.peer_id();
    if heard {
        return Failure::new(
            format!("{exit} is there, but its control service gave no answer within {} s ({why})", limit.as_secs()),
            "peervpn exit has ended there, or is just starting: have it started again, then use the same invite again",
        );
    }
    let endpoints = invite.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Failure::new(
        format!("no handshake with {exit} within {} s (tried {endpoints})", limit.as_secs()),
        "check that peervpn exit runs there; if it does, the invite was taken back, or there is another exit now: ask \
         for a new one",
    )
}
