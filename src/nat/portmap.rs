//! Port mapping asked of the gateway: PCP MAP (RFC 6887 §11), NAT-PMP (RFC 6886 §3.3) and UPnP IGD's WANIPConnection.
//!
//! Bytes and decisions only: [`pcp`] and [`nat_pmp`] are datagrams, [`upnp`] is texts carried by [`http`] and read by
//! [`xml`]; here is when a lease is renewed and whether a mapped endpoint is worth offering. What the gateway says is
//! never trusted beyond its own address: `node::portmap` talks to the default gateway alone.

pub mod http;
pub mod nat_pmp;
pub mod pcp;
pub mod upnp;
pub mod xml;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Lease asked for; the lifetime that RFC 6886 §3.3 recommends.
pub const LEASE: Duration = Duration::from_secs(7200);
/// A lease is renewed at half its time (RFC 6887 §11.2.1), and no later than this: so long does it take at most until a
/// gateway that forgot everything in a restart is noticed.
const RENEW: Duration = Duration::from_secs(600);
/// An unanswered renewal is tried again after half the remaining time, within these; the lower is RFC 6887 §11.2.1's.
const RETRY: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(60)];
/// After so many unanswered renewals in a row the mapping is taken for lost, though its lease may have time left.
const GIVE_UP: u32 = 4;

/// A port-mapping protocol, in the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Pcp => "PCP",
            Protocol::NatPmp => "NAT-PMP",
            Protocol::Upnp => "UPnP IGD",
        })
    }
}

/// What a gateway's "no" says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// When to renew a lease next, counted from its grant; `None`: it is lost. `failed`: how many renewals in a row went
/// unanswered, and when the last of them did.
pub fn renewal(lifetime: Duration, failed: Option<(u32, Duration)>) -> Option<Duration> {
    let Some((count, at)) = failed else { return Some((lifetime / 2).min(RENEW)) };
    let left = lifetime.checked_sub(at)?;
    let next = at + (left / 2).clamp(RETRY[0], RETRY[1]);
    (count < GIVE_UP && next < lifetime).then_some(next)
}

/// Where a mapped endpoint belongs in the connect string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// First: STUN saw the same external address, or there is nothing that speaks against it.
    First,
    /// Behind the reflexive one: STUN saw another external address, so our packets leave by another way.
    Last,
    /// Nowhere: the external address is not public, so there is another NAT in front of the gateway.
    AnotherNat,
}

/// Judges an endpoint that the gateway mapped, by the reflexive addresses that STUN found.
pub fn worth(external: Ipv4Addr, reflexive: &[SocketAddr]) -> Worth {
    if !is_public(external) {
        return Worth::AnotherNat;
    }
    let mut seen = reflexive.iter().map(SocketAddr::ip).filter(IpAddr::is_ipv4).peekable();
    if seen.peek().is_none() || seen.any(|ip| ip == external) { Worth::First } else { Worth::Last }
}

/// Whether an address can be reached from the internet; RFC 6890's special-purpose registry, but for the documentation
/// prefixes, which no NAT hands out and labs use.
pub fn is_public(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let protocol = a == 192 && b == 0 && ip.octets()[2] == 0; // 192.0.0.0/24, DS-Lite among others: RFC 6333
    let benchmark = a == 198 && b & 0xfe == 18; // RFC 2544
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || a == 0
        || a >= 224
        || super::verdict::is_shared_space(ip)
        || protocol
        || benchmark)
}

/// A lifetime in whole seconds off the wire; no lease is believed to last longer than a day.
fn lifetime(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds).min(86400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_early_and_tried_again_until_it_ends() {
        let s = Duration::from_secs;
        assert_eq!(renewal(s(7200), None), Some(s(600)));
        assert_eq!(renewal(s(120), None), Some(s(60)));
        assert_eq!(renewal(s(120), Some((1, s(60)))), Some(s(90)));
        assert_eq!(renewal(s(120), Some((2, s(113)))), Some(s(117)), "never less than 4 s apart");
        assert_eq!(renewal(s(120), Some((3, s(117)))), None, "the lease ends before");
        assert_eq!(renewal(s(120), Some((1, s(500)))), None);
        assert_eq!(renewal(s(7200), Some((1, s(600)))), Some(s(660)), "nor more than a minute");
        assert_eq!(renewal(s(7200), Some((4, s(900)))), None, "the gateway is gone");
    }

    #[test]
    fn only_a_public_endpoint_is_offered_and_stun_decides_how_early() {
        let external = Ipv4Addr::new(203, 0, 113, 20);
        let same: SocketAddr = "203.0.113.20:40000".parse().unwrap();
        let other: SocketAddr = "198.51.100.7:40000".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:51820".parse().unwrap();
        assert_eq!(worth(external, &[same]), Worth::First);
        assert_eq!(worth(external, &[v6]), Worth::First, "no v4 answer speaks against it");
        assert_eq!(worth(external, &[other, v6]), Worth::Last);
        for private in
            ["192.168.1.1", "10.0.0.1", "172.16.0.1", "100.64.0.1", "169.254.1.1", "127.0.0.1", "0.0.0.0", "192.0.0.2"]
        {
            assert_eq!(worth(private.parse().unwrap(), &[same]), Worth::AnotherNat, "{private}");
        }
        assert!(is_public("100.128.0.1".parse().unwrap()) && is_public("192.0.1.1".parse().unwrap()));
    }
}
