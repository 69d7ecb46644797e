//! The Linux [`Host`] against the real kernel, in a network namespace of its own, read back with iproute2.
#![cfg(target_os = "linux")]

use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use ipnetwork::IpNetwork;
use peervpn_platform::os::{self, SystemHost};
use peervpn_platform::types::*;
use peervpn_platform::{Host, OUR_ALIAS, OUR_PROTOCOL};
use serde_json::Value;

/// Runs `test` in a thread with a fresh network namespace, loopback up.
fn in_namespace(test: impl FnOnce(&mut SystemHost) + Send + 'static) {
    if !os::privileged() {
        println!("SKIP: root");
        return;
    }
    let run = move || {
        // SAFETY: unshare(2) touches no memory; only this thread moves to the new namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
        ip("link set lo up");
        test(&mut os::host().unwrap());
    };
    std::thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Runs `ip` in this thread's namespace.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ip_json(arguments: &str) -> Vec<Value> {
    match serde_json::from_str(&ip(&format!("-N -d -j {arguments}"))).unwrap() {
        Value::Array(values) => {
            values.into_iter().filter(|value| value.as_object().is_some_and(|o| !o.is_empty())).collect()
        }
        other => panic!("{other}"),
    }
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn unicast(destination: &str, oif: &str, table: u32) -> Route {
    Route {
        table,
        destination: net(destination),
        kind: RouteKind::Unicast,
        oif: Some(oif.to_owned()),
        gateway: None,
        metric: None,
        protocol: OUR_PROTOCOL,
        mtu: None,
    }
}

/// A veth pair that is up, with 192.0.2.1/24 and 2001:db8::1/64.
fn veth() {
    ip("link add name h1a type veth peer name h1b");
    for link in ["h1a", "h1b"] {
        ip(&format!("link set {link} up"));
    }
    ip("addr add 192.0.2.1/24 dev h1a");
    ip("addr add 2001:db8::1/64 dev h1a nodad");
}

#[test]
fn links_are_what_ip_shows() {
    in_namespace(|host| {
        ip("link add name h1a mtu 1280 type veth peer name h1b");
        ip("link set h1b up");
        let links = host.links().unwrap();
        let shown = ip_json("link show");
        assert_eq!(links.len(), shown.len());
        for shown in shown {
            let link = links.iter().find(|link| link.name == shown["ifname"]).unwrap();
            assert_eq!(Value::from(link.index), shown["ifindex"]);
            assert_eq!(Value::from(link.mtu), shown["mtu"]);
            let flags = shown["flags"].as_array().unwrap();
            assert_eq!(link.up, flags.contains(&"UP".into()), "{link:?}");
            assert_eq!(link.loopback, flags.contains(&"LOOPBACK".into()), "{link:?}");
            assert_eq!(link.kind.as_deref(), shown["linkinfo"]["info_kind"].as_str());
            assert_eq!(host.link(&link.name).unwrap().as_ref(), Some(link));
        }
        assert_eq!(host.link("h1none").unwrap(), None);
        assert_eq!(host.link("a name that is far too long").unwrap(), None);
    });
}

#[test]
fn links_are_marked_raised_and_deleted() {
    in_namespace(|host| {
        ip("link add name h1a type veth peer name h1b");
        host.mark_link("h1a").unwrap();
        host.bring_up("h1a", 1340).unwrap();
        let shown = &ip_json("link show h1a")[0];
        assert_eq!((&shown["ifalias"], &shown["mtu"]), (&OUR_ALIAS.into(), &1340.into()));
        assert!(shown["flags"].as_array().unwrap().contains(&"UP".into()));
        assert_eq!(host.link("h1a").unwrap().unwrap().alias.as_deref(), Some(OUR_ALIAS));
        host.delete_link("h1a").unwrap();
        host.delete_link("h1a").unwrap();
        assert_eq!(host.link("h1b").unwrap(), None);
        let error = host.bring_up("h1a", 1420).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV));
        assert!(error.to_string().starts_with("cannot bring up link h1a with MTU 1420: "), "{error}");
    });
}

#[test]
fn addresses_are_added_without_prefix_route_and_without_delay() {
    in_namespace(|host| {
        ip("link add name h1a type veth peer name h1b");
        ip("link set h1b up");
        host.bring_up("h1a", 1420).unwrap();
        let addresses = [net("10.7.8.9/32"), net("fd00:1::9/128")];
        for address in addresses {
            host.add_address("h1a", address).unwrap();
            let error = host.add_address("h1a", address).unwrap_err();
            assert_eq!(error.errno(), Some(libc::EEXIST));
            assert!(error.to_string().contains(&format!("add address {address} to h1a")), "{error}");
        }
        let index = host.link("h1a").unwrap().unwrap().index;
        let found = host.addresses().unwrap();
        for address in addresses {
            assert!(found.contains(&Address { ifindex: index, address }), "{found:?}");
        }
        let shown = ip_json("addr show h1a");
        let shown = shown[0]["addr_info"].as_array().unwrap();
        let v6 = shown.iter().find(|shown| shown["local"] == "fd00:1::9").unwrap();
        assert_eq!((&v6["nodad"], &v6["noprefixroute"]), (&true.into(), &true.into()));
        assert_ne!(v6["tentative"], true);
        assert!(!ip("-6 route show").contains("fd00:1::9"));
        // a link-local address comes by itself, between the two looks perhaps
        let all = ip_json("addr show");
        let all = all.iter().flat_map(|link| link["addr_info"].as_array().unwrap());
        let count = all.filter(|shown| !shown["local"].as_str().unwrap().starts_with("fe80:")).count();
        let link_local = net("fe80::/10");
        assert_eq!(found.iter().filter(|found| !link_local.contains(found.address.ip())).count(), count);
        // the local address of a point-to-point pair, not the other side's
        ip("addr add 10.1.1.1 peer 10.1.1.2/32 dev h1a");
        assert!(host.addresses().unwrap().iter().any(|found| found.address == net("10.1.1.1/32")));
    });
}

#[test]
fn routes_are_added_read_back_and_deleted_exactly() {
    in_namespace(|host| {
        veth();
        let before = (ip("-4 route show table all"), ip("-6 route show table all"));
        let gateway = |address: &str| Some(address.parse::<IpAddr>().unwrap());
        let unreachable =
            Route { kind: RouteKind::Unreachable, oif: None, metric: Some(9), ..unicast("::/0", "", 51821) };
        let routes = [
            unicast("0.0.0.0/0", "h1a", 51820),
            Route { metric: Some(77), ..unicast("::/0", "h1a", 51820) },
            Route { gateway: gateway("192.0.2.254"), mtu: Some(1300), ..unicast("198.51.100.0/24", "h1a", 254) },
            Route { gateway: gateway("2001:db8::2"), metric: Some(5), ..unicast("2001:db8:1::/48", "h1a", 254) },
            unreachable.clone(),
            Route { destination: net("0.0.0.0/0"), metric: None, ..unreachable.clone() },
            unicast("10.0.0.7/32", "h1a", 200),
        ];
        for route in &routes {
            host.add_route(route).unwrap();
            assert_eq!(host.add_route(route).unwrap_err().errno(), Some(libc::EEXIST), "{route:?}");
        }
        let found = host.routes().unwrap();
        for route in &routes {
            assert!(found.contains(route), "{route:?} not in {found:#?}");
        }
        assert!(found.iter().all(|route| route.table != 255));
        let shown: Vec<Value> =
            ["-4", "-6"].iter().flat_map(|family| ip_json(&format!("{family} route show table all"))).collect();
        let shown = shown.iter().filter(|shown| shown["table"] != "255").count();
        assert_eq!(found.len(), shown);
        assert!(ip("-N -4 route show table 51820").contains("default dev h1a proto 80 scope 253"));

        // another owner's twin stays
        for route in &routes {
            host.delete_route(&Route { protocol: OUR_PROTOCOL + 1, ..route.clone() }).unwrap();
            assert!(host.routes().unwrap().contains(route), "{route:?}");
        }
        // the IPv6 default route of the same table with another metric stays
        ip("-6 route add default dev h1a table 51821 metric 1024 proto 80");
        host.delete_route(&unreachable).unwrap();
        assert!(ip("-6 route show table 51821").contains("default dev h1a"));
        ip("-6 route del default table 51821");
        for route in &routes {
            host.delete_route(route).unwrap();
            host.delete_route(route).unwrap();
        }
        assert_eq!((ip("-4 route show table all"), ip("-6 route show table all")), before);
        host.delete_route(&unicast("0.0.0.0/0", "h1none", 51820)).unwrap();
        let error = host.add_route(&unicast("0.0.0.0/0", "h1none", 51820)).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV));
        assert!(error.to_string().starts_with("cannot add route 0.0.0.0/0 dev h1none table 51820: "), "{error}");
    });
}

#[test]
fn an_ipv6_route_without_a_metric_is_deleted_and_no_other() {
    in_namespace(|host| {
        veth();
        let ours = unicast("::/0", "h1a", 51820);
        host.add_route(&ours).unwrap();
        ip("-6 route add default dev h1a table 51820 metric 5 proto 80");
        host.delete_route(&ours).unwrap();
        let left: Vec<Route> = host.routes().unwrap().into_iter().filter(|route| route.table == 51820).collect();
        assert_eq!(left, [Route { metric: Some(5), ..ours }]);
    });
}

#[test]
fn ten_thousand_routes_are_added_at_once_and_a_refused_one_is_named() {
    in_namespace(|host| {
        veth();
        let routes: Vec<Route> =
            (0..10_000).map(|n| unicast(&format!("10.{}.{}.0/24", n / 250, n % 250), "h1a", 51820)).collect();
        let started = Instant::now();
        host.add_routes(&routes).unwrap();
        let added = started.elapsed();
        println!("10,000 routes added in {added:?}");
        // about 0.1 s; the bound leaves room for a loaded machine and for UML
        assert!(added.as_secs() < 10, "{added:?}");
        let found = host.routes().unwrap().into_iter().filter(|route| route.table == 51820).count();
        assert_eq!(found, routes.len());
        println!("added and listed in {:?}", started.elapsed());
        // sizes around one batch and around 64, where an acknowledgement might be lost
        for count in [1, 63, 64, 65, 100, 101, 128, 200] {
            let more: Vec<Route> =
                routes[..count].iter().map(|r| Route { table: 1000 + count as u32, ..r.clone() }).collect();
            host.add_routes(&more).unwrap();
            let found = host.routes().unwrap().iter().filter(|route| route.table == 1000 + count as u32).count();
            assert_eq!(found, count);
        }
        let mut again = routes[..150].to_vec();
        again.iter_mut().for_each(|route| route.table = 7);
        again[120] = routes[5].clone();
        let error = host.add_routes(&again).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST));
        assert!(error.to_string().contains("add route 10.0.5.0/24 dev h1a table 51820"), "{error}");
        // the socket is usable after a batch that was cut short
        assert_eq!(host.link("h1a").unwrap().unwrap().name, "h1a");
        host.add_routes(&[]).unwrap();
    });
}

#[test]
fn rules_are_added_read_back_and_deleted_exactly() {
    in_namespace(|host| {
        let before = (ip("-4 rule show"), ip("-6 rule show"), host.rules().unwrap());
        for family in Family::BOTH {
            let plain = Rule {
                family,
                priority: 5181,
                fwmark: None,
                invert: false,
                table: 254,
                suppress_prefixlen: Some(0),
                protocol: OUR_PROTOCOL,
            };
            let marked = Rule {
                priority: 5182,
                fwmark: Some((0xca6c, u32::MAX)),
                invert: true,
                table: 51820,
                suppress_prefixlen: None,
                ..plain.clone()
            };
            let masked = Rule { priority: 5183, fwmark: Some((0x10, 0xf0)), invert: false, table: 7, ..marked.clone() };
            for rule in [&plain, &marked, &masked] {
                host.add_rule(rule).unwrap();
                let error = host.add_rule(rule).unwrap_err();
                assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
                assert!(host.rules().unwrap().contains(rule), "{rule:?} not in {:#?}", host.rules());
            }
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            let shown = ip(&format!("-N {flag} rule show"));
            assert!(shown.contains("5181:\tfrom all lookup 254 suppress_prefixlength 0 proto 80"), "{shown}");
            assert!(shown.contains("5182:\tnot from all fwmark 0xca6c lookup 51820 proto 80"), "{shown}");
            assert!(shown.contains("5183:\tfrom all fwmark 0x10/0xf0 lookup 7 proto 80"), "{shown}");
            // not these: another owner, not inverted, another mask
            host.delete_rule(&Rule { protocol: 81, ..plain.clone() }).unwrap();
            host.delete_rule(&Rule { invert: false, ..marked.clone() }).unwrap();
            host.delete_rule(&Rule { fwmark: None, ..masked.clone() }).unwrap();
            assert_eq!(ip(&format!("-N {flag} rule show")), shown);
            for rule in [&plain, &marked, &masked] {
                host.delete_rule(rule).unwrap();
                host.delete_rule(rule).unwrap();
            }
        }
        assert_eq!((ip("-4 rule show"), ip("-6 rule show"), host.rules().unwrap()), before);
        let local =
            host.rules().unwrap().into_iter().find(|rule| rule.family == Family::V4 && rule.priority == 0).unwrap();
        assert_eq!((local.table, local.protocol), (255, 2));
        ip("rule add pref 9 blackhole");
        let blackhole = host.rules().unwrap().into_iter().find(|rule| rule.priority == 9).unwrap();
        assert_eq!(blackhole.table, 0);
        assert!(host.add_rule(&blackhole).is_err());
    });
}

#[test]
fn look_ups_follow_the_mark_and_tell_table_source_and_mtu() {
    in_namespace(|host| {
        veth();
        let outside: [IpAddr; 2] = ["203.0.113.9".parse().unwrap(), "2001:db8:9::9".parse().unwrap()];
        for address in outside {
            assert_eq!(host.route_lookup(address, 0).unwrap(), None, "{address}");
        }
        ip("-4 route add default via 192.0.2.254 dev h1a");
        ip("-6 route add default via 2001:db8::2 dev h1a mtu 1400");
        ip("-4 route add default via 192.0.2.253 dev h1a table 51820 mtu 1300");
        ip("-6 route add default dev h1b table 51820");
        for family in ["-4", "-6"] {
            ip(&format!("{family} rule add fwmark 0x51 lookup 51820"));
        }
        let index = host.link("h1a").unwrap().unwrap().index;
        let v4 = RouteLookup {
            ifindex: index,
            interface: "h1a".to_owned(),
            source: "192.0.2.1".parse().unwrap(),
            gateway: Some("192.0.2.254".parse().unwrap()),
            mtu: 1500,
            table: 254,
        };
        assert_eq!(host.route_lookup(outside[0], 0).unwrap().as_ref(), Some(&v4));
        let marked =
            RouteLookup { gateway: Some("192.0.2.253".parse().unwrap()), mtu: 1300, table: 51820, ..v4.clone() };
        assert_eq!(host.route_lookup(outside[0], 0x51).unwrap(), Some(marked));
        let v6 = host.route_lookup(outside[1], 0).unwrap().unwrap();
        assert_eq!((v6.interface.as_str(), v6.mtu, v6.table), ("h1a", 1400, 254));
        assert_eq!((v6.source, v6.gateway), ("2001:db8::1".parse().unwrap(), Some("2001:db8::2".parse().unwrap())));
        let marked = host.route_lookup(outside[1], 0x51).unwrap().unwrap();
        assert_eq!((marked.interface.as_str(), marked.table, marked.gateway), ("h1b", 51820, None));
        let local = host.route_lookup("192.0.2.1".parse().unwrap(), 0).unwrap().unwrap();
        assert_eq!((local.interface.as_str(), local.table), ("lo", 255));
        for kind in ["unreachable", "prohibit", "blackhole"] {
            for (family, address) in [("-4", outside[0]), ("-6", outside[1])] {
                ip(&format!("{family} route add {kind} {address} metric 1"));
                assert_eq!(host.route_lookup(address, 0).unwrap(), None, "{kind} {address}");
                ip(&format!("{family} route del {kind} {address} metric 1"));
            }
        }
    });
}

#[test]
fn sysctls_are_read_and_written_by_their_slash_form() {
    in_namespace(|host| {
        ip("link add name h1.5 type veth peer name h1b");
        let key = "net/ipv4/conf/h1.5/forwarding";
        assert_eq!(host.sysctl(key).unwrap().as_deref(), Some("0"));
        host.set_sysctl(key, "1").unwrap();
        assert_eq!(host.sysctl(key).unwrap().as_deref(), Some("1"));
        assert_eq!(std::fs::read_to_string(format!("/proc/sys/{key}")).unwrap(), "1\n");
        assert_eq!(host.sysctl("net/ipv4/conf/h1none/forwarding").unwrap(), None);
        let error = host.set_sysctl("net/ipv4/conf/h1none/forwarding", "1").unwrap_err();
        assert!(error.to_string().starts_with("cannot set sysctl net/ipv4/conf/h1none/forwarding to 1: "), "{error}");
        for key in ["../etc/passwd", "/etc/passwd", "", "net//ipv4"] {
            assert!(host.sysctl(key).is_err(), "{key}");
        }
    });
}
