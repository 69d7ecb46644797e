//! What measurements mean for a person: the familiar NAT type, whether this machine can be an exit, whether two machines
//! can meet, in words.

use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::discovery::{Behaviour, Measured};

/// The older cone/symmetric name (RFC 3489 §5), shown beside the two behaviours because users know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatType {
    /// A public address, everything gets in.
    Open,
    /// A public address behind a firewall that lets only answers in.
    UdpFirewall,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    RestrictedCone,
    /// Endpoint-independent mapping, address-and-port-dependent filtering.
    PortRestrictedCone,
    /// Maps by destination.
    Symmetric,
    /// No UDP.
    Blocked,
    /// The measurements don't tell.
    Unknown,
}

impl NatType {
    /// From what was measured.
    pub fn of(measured: &Measured) -> Self {
        use Behaviour::{AddressAndPortDependent, AddressDependent, EndpointIndependent, Unknown};
        if !measured.udp {
            // one silent server may simply be down
            return if measured.silent >= 2 { NatType::Blocked } else { NatType::Unknown };
        }
        if measured.maps_by_destination {
            return NatType::Symmetric;
        }
        let natted = measured.reflexive != measured.local;
        match (natted, measured.mapping, measured.filtering) {
            (_, Unknown | AddressDependent | AddressAndPortDependent, _) | (_, _, Unknown) => NatType::Unknown,
            (false, EndpointIndependent, EndpointIndependent) => NatType::Open,
            (false, EndpointIndependent, _) => NatType::UdpFirewall,
            (true, EndpointIndependent, EndpointIndependent) => NatType::FullCone,
            (true, EndpointIndependent, AddressDependent) => NatType::RestrictedCone,
            (true, EndpointIndependent, AddressAndPortDependent) => NatType::PortRestrictedCone,
        }
    }

    /// Its familiar name.
    pub fn name(self) -> &'static str {
        match self {
            NatType::Open => "Open Internet",
            NatType::UdpFirewall => "public address behind a UDP firewall",
            NatType::FullCone => "Full Cone",
            NatType::RestrictedCone => "Restricted Cone",
            NatType::PortRestrictedCone => "Port-Restricted Cone",
            NatType::Symmetric => "Symmetric",
            NatType::Blocked => "Blocked/Firewalled",
            NatType::Unknown => "unknown",
        }
    }
}

impl Behaviour {
    /// In words; RFC 4787's.
    pub fn name(self) -> &'static str {
        match self {
            Behaviour::EndpointIndependent => "endpoint-independent",
            Behaviour::AddressDependent => "address-dependent",
            Behaviour::AddressAndPortDependent => "address-and-port-dependent",
            Behaviour::Unknown => "unknown",
        }
    }
}

/// Whether this machine can be an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CanBeExit {
    /// Anyone with UDP reaches it by its connect string alone.
    Yes,
    /// Once the gateway grants a port mapping.
    WithPortMapping,
    /// Once its operator has typed `peervpn peers add` for the peer, and not for every peer.
    WithHelp,
    /// No.
    No,
}

/// How far others get in one family, without a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Anyone,
    Helped,
    Nobody,
}

fn reach(measured: &Measured) -> Reach {
    let independent = measured.mapping == Behaviour::EndpointIndependent;
    match (measured.udp, independent && measured.filtering == Behaviour::EndpointIndependent && !measured.port_taken) {
        (false, _) => Reach::Nobody,
        (true, true) => Reach::Anyone,
        // what is unknown isn't promised
        (true, false) => Reach::Helped,
    }
}

/// Whether this machine can be an exit: by IPv4 if that has UDP, since not every peer has IPv6. `port_mapping`: the
/// gateway offers a protocol for that. `cgn`: a second NAT is behind the gateway's, where its mapping leads nowhere.
pub fn can_be_exit(v4: Option<&Measured>, v6: Option<&Measured>, port_mapping: bool, cgn: bool) -> CanBeExit {
    let deciding = v4.filter(|m| m.udp).map(|m| (m, port_mapping && !cgn)).or(v6.map(|m| (m, port_mapping)));
    match deciding.map(|(measured, mapping)| (reach(measured), mapping)) {
        Some((Reach::Anyone, _)) => CanBeExit::Yes,
        Some((Reach::Helped, true)) => CanBeExit::WithPortMapping,
        Some((Reach::Helped, false)) => CanBeExit::WithHelp,
        Some((Reach::Nobody, _)) | None => CanBeExit::No,
    }
}

/// How two machines can meet in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Meeting {
    /// `peervpn connect` alone.
    Plain,
    /// After `peervpn peers add PUBKEY@ENDPOINT` on the exit.
    Helped,
    /// Not at all.
    Never,
    /// The measurements don't tell.
    Unknown,
}

/// Whether a peer meets an exit: each side knows the other's reflexive address as a STUN server saw it (RFC 5128 §3.3).
pub fn meeting(exit: &Measured, peer: &Measured) -> Meeting {
    use Behaviour::{AddressAndPortDependent, EndpointIndependent, Unknown};
    if !exit.udp || !peer.udp {
        return Meeting::Never;
    }
    if reach(exit) == Reach::Anyone {
        return Meeting::Plain;
    }
    let independent = |side: &Measured| side.mapping == EndpointIndependent && !side.port_taken;
    let unknown = |side: &Measured| side.mapping == Unknown && !side.maps_by_destination;
    // the side that maps by destination comes from a port the other one never sent to
    let lets_in = |side: &Measured| match side.filtering {
        Unknown => Meeting::Unknown,
        AddressAndPortDependent => Meeting::Never,
        _ => Meeting::Helped,
    };
    match (independent(exit), independent(peer)) {
        (true, true) => Meeting::Helped,
        _ if unknown(exit) || unknown(peer) => Meeting::Unknown,
        (true, false) => lets_in(exit),
        (false, true) => lets_in(peer),
        (false, false) => Meeting::Never,
    }
}

/// 100.64.0.0/10; RFC 6598.
pub fn is_shared_space(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64
}

/// Carrier-grade NAT, from our address, the gateway's external address where it told it, and the reflexive one.
/// `None`: not measurable without the gateway's word.
pub fn cgn(local: IpAddr, gateway_external: Option<IpAddr>, reflexive: Option<IpAddr>) -> Option<bool> {
    if matches!(local, IpAddr::V4(ip) if is_shared_space(ip)) {
        return Some(true);
    }
    let reflexive = reflexive?;
    if reflexive == local {
        return Some(false);
    }
    let external = gateway_external.filter(|ip| !ip.is_unspecified())?;
    Some(external != reflexive)
}

/// Silence, but of too few servers to blame the network.
fn is_blocked_unsure(v4: Option<&Measured>, v6: Option<&Measured>) -> bool {
    let families = [v4, v6];
    !families.into_iter().flatten().any(|measured| NatType::of(measured) == NatType::Blocked)
}

/// What a mapping lifetime means for an exit that refreshes its mapping every `interval` seconds; `None`: nothing.
pub fn explain_lifetime(lifetime_s: u64, interval_s: u64) -> Option<String> {
    (lifetime_s <= interval_s).then(|| {
        format!(
            "The NAT forgets a mapping after {lifetime_s} s, sooner than the {interval_s} s between refreshes: \
             start `peervpn exit --keeper-interval {}s`.",
            (lifetime_s / 2).max(1)
        )
    })
}

/// The verdict in a few plain lines: can this be an exit, what to expect, what to do.
pub fn explain(v4: Option<&Measured>, v6: Option<&Measured>, can: CanBeExit, cgn: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |line: &str| lines.push(line.to_owned());
    match can {
        CanBeExit::Yes => {
            say("This machine can be an exit: whoever has its connect string reaches it.");
        }
        CanBeExit::WithPortMapping => {
            say("This machine can be an exit: its gateway can map a port, and `peervpn exit` asks for one.");
        }
        CanBeExit::WithHelp => {
            say(
                "This machine can be an exit only with a hand from its operator: the peer sends its connect string, and",
            );
            say("`peervpn peers add PUBKEY@ENDPOINT` on the exit opens the way.");
            say(
                "Better: forward one UDP port on the router to this machine and start `peervpn exit --port N --endpoint HOST:N`.",
            );
        }
        CanBeExit::No if is_blocked_unsure(v4, v6) => {
            say("Nothing can be said: the STUN server asked is down, or this network lets no UDP through.");
            say("Name more servers: --stun-server HOST:PORT, or leave the option out to ask public ones.");
        }
        CanBeExit::No => {
            say("This machine can't be an exit, and it can't reach one: no UDP comes through.");
            say("Ask whoever runs this network to let UDP out, or use another one.");
        }
    }
    let deciding = v4.filter(|m| m.udp).or(v6);
    if let Some(measured) = deciding {
        match NatType::of(measured) {
            NatType::Symmetric => {
                say(
                    "As a peer it reaches open and full-cone exits at once, restricted-cone ones with `peers add`, others not:",
                );
                say("its NAT gives every destination another port, so the endpoint it prints holds for nobody else.");
            }
            NatType::PortRestrictedCone | NatType::UdpFirewall if can == CanBeExit::WithHelp => {
                say("Every peer but one behind a symmetric NAT can be helped in this way.");
            }
            NatType::RestrictedCone if can == CanBeExit::WithHelp => say("Every peer can be helped in this way."),
            NatType::Unknown => {
                say("Not everything could be measured; what is unknown counts as unfavourable here.");
            }
            _ => {}
        }
        if measured.port_taken {
            say("Another machine behind this NAT holds the same port: choose another one with --port N.");
        }
        for why in &measured.why {
            say(&format!("Unknown because: {why}."));
        }
    }
    if cgn {
        say("There is a carrier's NAT behind the router's own: a port forwarded on the router leads nowhere.");
    }
    if let (Some(v4), Some(v6)) = (v4, v6)
        && v4.udp
        && reach(v6) == Reach::Anyone
        && can != CanBeExit::Yes
    {
        say("Peers with IPv6 reach it directly all the same.");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use Behaviour::{AddressAndPortDependent as Apd, AddressDependent as Ad, EndpointIndependent as Ei, Unknown};

    fn measured(natted: bool, mapping: Behaviour, filtering: Behaviour) -> Measured {
        Measured {
            udp: true,
            local: Some("192.168.1.2:5".parse().unwrap()),
            reflexive: Some(if natted { "203.0.113.9:5" } else { "192.168.1.2:5" }.parse().unwrap()),
            mapping,
            maps_by_destination: matches!(mapping, Ad | Apd),
            filtering,
            ..Measured::default()
        }
    }

    fn blocked() -> Measured {
        Measured { silent: 2, ..Measured::default() }
    }

    #[test]
    fn the_familiar_names() {
        let cases = [
            (measured(false, Ei, Ei), NatType::Open),
            (measured(false, Ei, Ad), NatType::UdpFirewall),
            (measured(false, Ei, Apd), NatType::UdpFirewall),
            (measured(true, Ei, Ei), NatType::FullCone),
            (measured(true, Ei, Ad), NatType::RestrictedCone),
            (measured(true, Ei, Apd), NatType::PortRestrictedCone),
            (measured(true, Ad, Ad), NatType::Symmetric),
            (measured(true, Apd, Unknown), NatType::Symmetric),
            (Measured { maps_by_destination: true, ..measured(true, Unknown, Unknown) }, NatType::Symmetric),
            (measured(true, Ei, Unknown), NatType::Unknown),
            (measured(true, Unknown, Apd), NatType::Unknown),
            (measured(false, Ei, Unknown), NatType::Unknown),
            (blocked(), NatType::Blocked),
            (Measured { silent: 1, ..blocked() }, NatType::Unknown),
        ];
        for (measured, expected) in cases {
            assert_eq!(NatType::of(&measured), expected, "{measured:?}");
        }
    }

    /// The seven kinds of facts.md, in the order of the grid.
    fn kinds() -> [Measured; 7] {
        [
            measured(false, Ei, Ei),
            measured(false, Ei, Apd),
            measured(true, Ei, Ei),
            measured(true, Ei, Ad),
            measured(true, Ei, Apd),
            measured(true, Apd, Apd),
            blocked(),
        ]
    }

    #[test]
    fn who_meets_whom() {
        // rows: the exit is open, firewalled, full cone, restricted, port-restricted, symmetric, blocked; columns: the peer
        // P connects plainly, h with `peers add`, . never
        let expected = ["PPPPPP.", "hhhhh..", "PPPPPP.", "hhhhhh.", "hhhhh..", "h.hh...", "......."];
        for (exit, row) in kinds().iter().zip(expected) {
            let told: String = kinds()
                .iter()
                .map(|peer| match meeting(exit, peer) {
                    Meeting::Plain => 'P',
                    Meeting::Helped => 'h',
                    Meeting::Never => '.',
                    Meeting::Unknown => '?',
                })
                .collect();
            assert_eq!(told, row, "{exit:?}");
        }
        assert_eq!(meeting(&measured(true, Ei, Unknown), &measured(true, Apd, Apd)), Meeting::Unknown);
        assert_eq!(meeting(&measured(true, Unknown, Apd), &measured(true, Ei, Ei)), Meeting::Unknown);
    }

    #[test]
    fn can_be_exit_agrees_with_the_grid() {
        for exit in kinds() {
            let open = &kinds()[0];
            let expected = match meeting(&exit, open) {
                Meeting::Plain => CanBeExit::Yes,
                Meeting::Helped => CanBeExit::WithHelp,
                Meeting::Never | Meeting::Unknown => CanBeExit::No,
            };
            assert_eq!(can_be_exit(Some(&exit), None, false, false), expected);
        }
        let restricted = &kinds()[3];
        assert_eq!(can_be_exit(Some(restricted), None, true, false), CanBeExit::WithPortMapping);
        assert_eq!(can_be_exit(Some(restricted), None, true, true), CanBeExit::WithHelp);
        assert_eq!(can_be_exit(Some(&blocked()), Some(&kinds()[0]), false, false), CanBeExit::Yes);
        assert_eq!(can_be_exit(None, None, true, false), CanBeExit::No);
    }

    #[test]
    fn cgn_is_told_from_shared_space_or_the_gateways_word() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(cgn(ip("100.64.0.1"), None, None), Some(true));
        assert_eq!(cgn(ip("100.128.0.1"), None, Some(ip("203.0.113.9"))), None);
        assert_eq!(cgn(ip("192.168.1.2"), Some(ip("203.0.113.9")), Some(ip("203.0.113.9"))), Some(false));
        assert_eq!(cgn(ip("192.168.1.2"), Some(ip("100.64.3.4")), Some(ip("203.0.113.9"))), Some(true));
        assert_eq!(cgn(ip("192.168.1.2"), Some(ip("0.0.0.0")), Some(ip("203.0.113.9"))), None);
        assert_eq!(cgn(ip("203.0.113.9"), None, Some(ip("203.0.113.9"))), Some(false));
    }

    #[test]
    fn the_verdict_says_what_to_do() {
        let text = |m: &Measured| {
            let can = can_be_exit(Some(m), None, false, false);
            explain(Some(m), None, can, false).join("\n")
        };
        for kind in kinds() {
            let text = text(&kind);
            assert!(text.starts_with("This machine can"), "{text}");
            assert!(text.lines().all(|line| line.len() < 125), "{text}");
        }
        assert!(
            text(&kinds()[4]).contains("peers add") && text(&kinds()[4]).contains("but one behind a symmetric NAT")
        );
        assert!(text(&Measured { silent: 1, ..blocked() }).starts_with("Nothing can be said"));
        assert_eq!(explain_lifetime(30, 20), None);
        assert!(explain_lifetime(10, 20).is_some_and(|line| line.contains("--keeper-interval 5s")));
        assert!(text(&Measured { why: vec!["no reason"], ..measured(true, Unknown, Unknown) }).contains("no reason"));
    }
}
