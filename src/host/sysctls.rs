//! Kernel settings that a node needs, as changes; `Documentation/networking/ip-sysctl.rst` of the kernel.

use super::Change;

fn set(key: String, value: &str) -> Change {
    Change::Sysctl { key, value: value.to_owned(), beside: Vec::new() }
}

/// For an exit, on every system: settings that this one does not have are left out. Forwarding on the tunnel and the uplinks only (v4), and as far as the kernel allows (v6).
///
/// IPv4 forwards what comes in by an interface whose own `forwarding` is set. IPv6 forwards nothing unless
/// `all/forwarding` is set, and setting that sets every interface's; one that forwards ignores router advertisements,
/// and so loses its default route, unless its `accept_ra` is 2. Hence `accept_ra` first, on each link that listens to
/// them now.
pub fn exit(
    tunnel: &str,
    uplinks: &[String],
    links: &[String],
    mut now: impl FnMut(&str) -> Option<String>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for link in std::iter::once(tunnel).chain(uplinks.iter().map(String::as_str)) {
        changes.push(set(format!("net/ipv4/conf/{link}/forwarding"), "1"));
    }
    let others: Vec<&String> = links.iter().filter(|link| *link != tunnel).collect();
    // `default` is for links that come later: they are to forward, too, as soon as `all` does
    for link in std::iter::once("default").chain(others.iter().map(|link| link.as_str())) {
        let listens = now(&format!("net/ipv6/conf/{link}/accept_ra")).as_deref() == Some("1");
        let forwards = now(&format!("net/ipv6/conf/{link}/forwarding")).as_deref() == Some("1");
        if listens && !forwards {
            changes.push(set(format!("net/ipv6/conf/{link}/accept_ra"), "2"));
        }
    }
    let beside = std::iter::once("default")
        .chain(others.iter().map(|link| link.as_str()))
        .map(|link| format!("net/ipv6/conf/{link}/forwarding"))
        .collect();
    changes.push(Change::Sysctl { key: "net/ipv6/conf/all/forwarding".to_owned(), value: "1".to_owned(), beside });
    // macOS: for all interfaces, a family each
    changes.extend(["net/inet/ip/forwarding", "net/inet6/ip6/forwarding"].map(|key| set(key.to_owned(), "1")));
    changes
}

/// For a connected peer: where a link drops packets whose sender it would answer by another link (strict reverse path
/// filter), let it judge with the packet's fwmark, which our firewall puts on the answers to outer packets.
pub fn connect<'a>(links: impl Iterator<Item = &'a str>, mut now: impl FnMut(&str) -> Option<String>) -> Vec<Change> {
    let strict =
        links.chain(["all"]).any(|link| now(&format!("net/ipv4/conf/{link}/rp_filter")).as_deref() == Some("1"));
    if strict { vec![set("net/ipv4/conf/all/src_valid_mark".to_owned(), "1")] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(changes: &[Change]) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_exit_forwards_by_tunnel_and_uplink_and_keeps_router_advertisements() {
        let links = ["lo", "eth0", "docker0", "peervpn0"].map(str::to_owned);
        let now = |key: &str| match key {
            "net/ipv6/conf/default/accept_ra" => Some("1".to_owned()),
            "net/ipv6/conf/eth0/accept_ra" | "net/ipv6/conf/docker0/accept_ra" => Some("1".to_owned()),
            "net/ipv6/conf/docker0/forwarding" => Some("1".to_owned()),
            _ => Some("0".to_owned()),
        };
        let changes = exit("peervpn0", &["eth0".to_owned()], &links, now);
        assert_eq!(
            text(&changes),
            [
                "set net.ipv4.conf.peervpn0.forwarding to 1",
                "set net.ipv4.conf.eth0.forwarding to 1",
                "set net.ipv6.conf.default.accept_ra to 2",
                "set net.ipv6.conf.eth0.accept_ra to 2",
                "set net.ipv6.conf.all.forwarding to 1",
                "set net.inet.ip.forwarding to 1",
                "set net.inet6.ip6.forwarding to 1",
            ]
        );
        let Some(Change::Sysctl { beside, .. }) = changes.get(4) else { panic!() };
        assert_eq!(beside.len(), 4, "default and every link but the tunnel: {beside:?}");
    }

    #[test]
    fn src_valid_mark_only_where_a_link_is_strict() {
        assert_eq!(connect(["eth0"].into_iter(), |_| Some("0".to_owned())), []);
        let strict = |key: &str| Some(if key.contains("eth0") { "1" } else { "2" }.to_owned());
        assert_eq!(text(&connect(["eth0"].into_iter(), strict)), ["set net.ipv4.conf.all.src_valid_mark to 1"]);
    }
}
