//! What `connect` routes into the tunnel: a table of its own, and two policy rules a family (the scheme of wg-quick(8)).
//!
//! ```text
//! priority P      lookup main suppress_prefixlength 0      the LAN and every more specific route stay (not with --no-lan)
//! priority P+1    not fwmark M/M lookup T                  all but WireGuard's own outer packets
//! priority P      fwmark C lookup main                     outer packets of another tunnel that carries ours
//! table T         ALLOWED dev peervpn0; throw EXCLUDED     `throw` goes on with the rules after ours, that is `main`
//! ```

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use peervpn_platform::OUR_PROTOCOL;
use peervpn_platform::types::{Family, Route, RouteKind, RouteLookup, Rule};

use crate::host::Numbers;

/// `RTN_THROW`, rtnetlink(7): look on in the next rule.
const THROW: RouteKind = RouteKind::Other(9);
/// The kernel's `main` table, `RT_TABLE_MAIN`.
const MAIN: u32 = 254;

/// What shall go through the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Tunnel interface.
    pub interface: &'a str,
    /// Free numbers.
    pub numbers: Numbers,
    /// Prefixes through the tunnel.
    pub allowed: &'a [IpNetwork],
    /// Prefixes that keep their way.
    pub exclude: &'a [IpNetwork],
    /// The exit's tunnel addresses; always through the tunnel.
    pub exit: &'a [IpAddr],
    /// The LAN, too, goes through the tunnel.
    pub no_lan: bool,
    /// Marks of the outer packets of other tunnels that carry ours, which would go round in circles.
    pub carriers: &'a [u32],
}

/// Families that have anything to route: both with the default allowed IPs.
pub fn families(wanted: &Wanted) -> Vec<Family> {
    Family::BOTH.into_iter().filter(|f| wanted.allowed.iter().any(|p| Family::of(&p.network()) == *f)).collect()
}

/// The routes of our table. They lie on our link, or in a table that only our rules ask.
pub fn routes(wanted: &Wanted) -> Vec<Route> {
    let route = |destination: IpNetwork, kind: RouteKind| Route {
        table: wanted.numbers.table,
        destination,
        kind,
        oif: (kind == RouteKind::Unicast).then(|| wanted.interface.to_owned()),
        gateway: None,
        metric: None,
        protocol: OUR_PROTOCOL,
        mtu: None,
    };
    let mut routes: Vec<Route> = wanted.allowed.iter().map(|p| route(network(p), RouteKind::Unicast)).collect();
    for address in wanted.exit {
        routes.push(route(IpNetwork::from(*address), RouteKind::Unicast));
    }
    for prefix in wanted.exclude {
        routes.push(route(network(prefix), THROW));
    }
    routes.sort_by_key(|r| (r.destination, r.kind != THROW));
    // a prefix that is both allowed and excluded is excluded
    routes.dedup_by_key(|r| r.destination);
    routes
}

/// The policy rules, in the order to add them. The default route moves with the last one of a family.
pub fn rules(wanted: &Wanted) -> Vec<Rule> {
    let Numbers { fwmark, table, priority } = wanted.numbers;
    let mut rules = Vec::new();
    for family in families(wanted) {
        let rule = Rule {
            family,
            priority,
            fwmark: None,
            invert: false,
            table: MAIN,
            suppress_prefixlen: Some(0),
            protocol: OUR_PROTOCOL,
        };
        let outer = wanted.carriers.iter().map(|mark| Rule {
            fwmark: Some((*mark, u32::MAX)),
            suppress_prefixlen: None,
            ..rule.clone()
        });
        rules.extend(outer);
        if !wanted.no_lan {
            rules.push(rule.clone());
        }
        rules.push(Rule {
            priority: priority + 1,
            fwmark: Some((fwmark, fwmark)),
            invert: true,
            table,
            suppress_prefixlen: None,
            ..rule
        });
    }
    rules
}

/// The routes where there is one table and no policy routing (macOS, Windows), to go beside the host's own: those over the
/// tunnel, then those of what must not enter it (`beside`: how packets leave next to the tunnel): what is excluded, and
/// `outer`, the endpoints whose packets the system would otherwise send into the tunnel that they make.
pub fn single(wanted: &Wanted, beside: &[(Family, RouteLookup)], outer: &[IpAddr]) -> Vec<Route> {
    let route = |destination: IpNetwork, oif: &str, gateway: Option<IpAddr>| Route {
        table: MAIN,
        destination,
        kind: RouteKind::Unicast,
        oif: Some(oif.to_owned()),
        gateway,
        metric: None,
        protocol: OUR_PROTOCOL,
        mtu: None,
    };
    let mut routes: Vec<Route> = Vec::new();
    for prefix in wanted.exclude.iter().copied().chain(outer.iter().map(|address| IpNetwork::from(*address))) {
        let family = Family::of(&prefix.network());
        if let Some((_, way)) = beside.iter().find(|(of, _)| *of == family) {
            routes.push(route(network(&prefix), &way.interface, way.gateway));
        }
    }
    let tunnelled = wanted.allowed.iter().flat_map(halves).chain(wanted.exit.iter().map(|a| IpNetwork::from(*a)));
    routes.extend(tunnelled.map(|prefix| route(prefix, wanted.interface, None)));
    // a prefix that is both allowed and excluded is excluded
    routes.sort_by_key(|r| r.destination);
    routes.dedup_by_key(|r| r.destination);
    routes.sort_by_key(|r| r.oif.as_deref() != Some(wanted.interface));
    routes
}

/// A default route as two that are more specific, so that the host's own stays, and works again when ours are gone.
fn halves(prefix: &IpNetwork) -> Vec<IpNetwork> {
    if prefix.prefix() != 0 {
        return vec![network(prefix)];
    }
    let texts = if prefix.is_ipv4() { ["0.0.0.0/1", "128.0.0.0/1"] } else { ["::/1", "8000::/1"] };
    texts.map(|text| text.parse().expect("a prefix")).to_vec()
}

/// The prefix without host bits.
fn network(prefix: &IpNetwork) -> IpNetwork {
    IpNetwork::new(prefix.network(), prefix.prefix()).expect("a prefix length that was valid before")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNetwork> {
        list.iter().map(|p| p.parse().unwrap()).collect()
    }

    fn text(wanted: &Wanted) -> Vec<String> {
        let routes =
            routes(wanted).into_iter().map(|r| format!("{:?} {} {}", r.kind, r.destination, r.oif.unwrap_or_default()));
        let rules = rules(wanted).into_iter().map(|r| {
            let mark = r.fwmark.map_or(String::new(), |(m, mask)| {
                format!("{}fwmark {m:#x}/{mask:#x} ", if r.invert { "not " } else { "" })
            });
            let suppress = r.suppress_prefixlen.map_or(String::new(), |n| format!(" suppress_prefixlength {n}"));
            format!("{:?} {}: {mark}lookup {}{suppress}", r.family, r.priority, r.table)
        });
        routes.chain(rules).collect()
    }

    #[test]
    fn without_policy_routing_two_halves_and_what_goes_beside() {
        let (allowed, exclude) = (nets(&["0.0.0.0/0", "::/0"]), nets(&["198.51.100.0/24", "2001:db8::/32"]));
        let wanted = Wanted {
            interface: "utun5",
            numbers: Numbers::NONE,
            allowed: &allowed,
            exclude: &exclude,
            exit: &["10.2.3.4".parse().unwrap()],
            no_lan: false,
            carriers: &[],
        };
        let way = RouteLookup {
            ifindex: 4,
            interface: "en0".to_owned(),
            source: "192.0.2.7".parse().unwrap(),
            gateway: Some("192.0.2.1".parse().unwrap()),
            mtu: 1500,
            table: 254,
        };
        let text: Vec<String> = single(&wanted, &[(Family::V4, way)], &["203.0.113.20".parse().unwrap()])
            .into_iter()
            .map(|r| {
                let via = r.gateway.map_or(String::new(), |gateway| format!(" via {gateway}"));
                format!("{}{via} dev {}", r.destination, r.oif.unwrap())
            })
            .collect();
        assert_eq!(
            text,
            [
                "0.0.0.0/1 dev utun5",
                "10.2.3.4/32 dev utun5",
                "128.0.0.0/1 dev utun5",
                "::/1 dev utun5",
                "8000::/1 dev utun5",
                "198.51.100.0/24 via 192.0.2.1 dev en0",
                "203.0.113.20/32 via 192.0.2.1 dev en0",
            ]
        );
    }

    const NUMBERS: Numbers = Numbers { fwmark: 0x2000_0000, table: 51820, priority: 5300 };

    #[test]
    fn everything_but_the_lan() {
        let allowed = nets(&["0.0.0.0/0", "::/0"]);
        let exit = ["10.2.3.4".parse().unwrap()];
        let wanted = Wanted {
            interface: "peervpn0",
            numbers: NUMBERS,
            allowed: &allowed,
            exclude: &[],
            exit: &exit,
            no_lan: false,
            carriers: &[],
        };
        assert_eq!(
            text(&wanted),
            [
                "Unicast 0.0.0.0/0 peervpn0",
                "Unicast 10.2.3.4/32 peervpn0",
                "Unicast ::/0 peervpn0",
                "V4 5300: lookup 254 suppress_prefixlength 0",
                "V4 5301: not fwmark 0x20000000/0x20000000 lookup 51820",
                "V6 5300: lookup 254 suppress_prefixlength 0",
                "V6 5301: not fwmark 0x20000000/0x20000000 lookup 51820",
            ]
        );
    }

    #[test]
    fn split_tunnel_excludes_and_no_lan() {
        let allowed = nets(&["203.0.113.7/24", "198.51.100.0/24"]);
        let exclude = nets(&["203.0.113.128/25", "198.51.100.0/24"]);
        let wanted = Wanted {
            interface: "wg1",
            numbers: NUMBERS,
            allowed: &allowed,
            exclude: &exclude,
            exit: &[],
            no_lan: true,
            carriers: &[0xca6c],
        };
        assert_eq!(
            text(&wanted),
            [
                "Other(9) 198.51.100.0/24 ",
                "Unicast 203.0.113.0/24 wg1",
                "Other(9) 203.0.113.128/25 ",
                "V4 5300: fwmark 0xca6c/0xffffffff lookup 254",
                "V4 5301: not fwmark 0x20000000/0x20000000 lookup 51820",
            ]
        );
    }
}
