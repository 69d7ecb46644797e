//! Which prefixes are the LAN: what stays reachable beside the tunnel unless `--no-lan`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use peervpn_platform::types::{Address, Link, Route, RouteKind};

/// The kernel's `main` table, `RT_TABLE_MAIN`.
const MAIN: u32 = 254;

/// Shortest on-link prefixes of public addresses that are believed to be a LAN. A DHCP server could otherwise declare
/// half the internet local and read what goes there (CVE-2023-36672).
const SHORTEST_PUBLIC: (u8, u8) = (20, 64);

/// A prefix on or behind a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lan {
    /// Interface name.
    pub interface: String,
    /// Prefix, without host bits.
    pub prefix: IpNetwork,
}

/// The LAN of every link but `tunnel` and the loopback: the prefixes of its addresses, and what any table reaches by it in
/// private address space. A route to public addresses through a gateway is none, whoever set it (CVE-2024-3661:
/// DHCP sets some).
pub fn prefixes(tunnel: &str, links: &[Link], addresses: &[Address], routes: &[Route]) -> Vec<Lan> {
    let of = |interface: &str| links.iter().any(|l| l.name == interface && l.name != tunnel && !l.loopback);
    let mut lan = Vec::new();
    for address in addresses {
        let Some(link) = links.iter().find(|link| link.index == address.ifindex) else { continue };
        let prefix = network(&address.address);
        if of(&link.name) && (private(&prefix) || long_enough(&prefix)) {
            lan.push(Lan { interface: link.name.clone(), prefix });
        }
    }
    for route in routes {
        let prefix = network(&route.destination);
        // other programs keep private networks in tables of their own, as Tailscale does; no DHCP server can
        let public = route.table == MAIN && route.gateway.is_none() && long_enough(&prefix);
        if let (RouteKind::Unicast, Some(oif)) = (route.kind, &route.oif)
            && of(oif)
            && (private(&prefix) || public)
        {
            lan.push(Lan { interface: oif.clone(), prefix });
        }
    }
    // link-local is the LAN on every link
    lan.retain(|lan| !matches!(lan.prefix.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local()));
    lan.sort();
    lan.dedup();
    lan
}

/// Whether an address is in it.
pub fn contains(lan: &[Lan], address: IpAddr) -> bool {
    lan.iter().any(|lan| lan.prefix.contains(address))
}

fn long_enough(prefix: &IpNetwork) -> bool {
    prefix.prefix() >= if prefix.is_ipv4() { SHORTEST_PUBLIC.0 } else { SHORTEST_PUBLIC.1 }
}

/// Wholly in private address space: RFC 1918, RFC 6598, RFC 3927; RFC 4193, RFC 4291 §2.5.6.
fn private(prefix: &IpNetwork) -> bool {
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10"]
        .iter()
        .filter_map(|block| block.parse::<IpNetwork>().ok())
        .any(|block| block.prefix() <= prefix.prefix() && block.contains(prefix.network()))
}

/// The prefix without host bits.
fn network(prefix: &IpNetwork) -> IpNetwork {
    IpNetwork::new(prefix.network(), prefix.prefix()).expect("a prefix length that was valid before")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        let loopback = name == "lo";
        Link { index, name: name.into(), kind: None, up: true, loopback, mtu: 1500, alias: None }
    }

    fn address(ifindex: u32, address: &str) -> Address {
        Address { ifindex, address: address.parse().unwrap() }
    }

    fn route(destination: &str, oif: &str, gateway: Option<&str>) -> Route {
        Route {
            table: MAIN,
            destination: destination.parse().unwrap(),
            kind: RouteKind::Unicast,
            oif: Some(oif.into()),
            gateway: gateway.map(|g| g.parse().unwrap()),
            metric: None,
            protocol: 3,
            mtu: None,
        }
    }

    fn text(addresses: &[Address], routes: &[Route]) -> Vec<String> {
        let links = [link(1, "lo"), link(2, "eth0"), link(3, "docker0"), link(9, "peervpn0")];
        prefixes("peervpn0", &links, addresses, routes)
            .into_iter()
            .map(|lan| format!("{} {}", lan.interface, lan.prefix))
            .collect()
    }

    #[test]
    fn what_is_on_the_link_and_private_networks_behind_it() {
        let addresses = [
            address(1, "127.0.0.1/8"),
            address(2, "192.168.1.7/24"),
            address(2, "2001:db8:1::7/64"),
            address(2, "fe80::1/64"),
            address(3, "172.17.0.1/16"),
            address(9, "10.1.2.3/32"),
        ];
        let routes = [
            route("0.0.0.0/0", "eth0", Some("192.168.1.1")),
            route("192.168.1.0/24", "eth0", None),
            route("10.8.0.0/16", "eth0", Some("192.168.1.254")),
            route("10.1.0.1/32", "peervpn0", None),
            Route { table: 52, ..route("100.64.0.0/10", "docker0", None) },
            Route { table: 52, ..route("198.51.100.0/24", "docker0", None) },
        ];
        assert_eq!(
            text(&addresses, &routes),
            [
                "docker0 100.64.0.0/10",
                "docker0 172.17.0.0/16",
                "eth0 10.8.0.0/16",
                "eth0 192.168.1.0/24",
                "eth0 2001:db8:1::/64"
            ]
        );
    }

    #[test]
    fn nobody_declares_the_internet_local() {
        let addresses = [address(2, "198.51.100.7/1"), address(2, "203.0.113.7/26"), address(2, "2001:db8::1/32")];
        let routes = [
            route("0.0.0.0/1", "eth0", Some("203.0.113.1")),
            route("128.0.0.0/1", "eth0", None),
            route("198.51.100.0/24", "eth0", Some("203.0.113.1")),
            route("8.0.0.0/5", "eth0", Some("203.0.113.1")),
        ];
        assert_eq!(text(&addresses, &routes), ["eth0 203.0.113.0/26"]);
    }
}
