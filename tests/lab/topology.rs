//! A small internet: one router in the middle that carries the services, and sites of every NAT type around it.
//!
//! ```text
//!   web 192.0.2.80, 2001:db8:ff::80   STUN 192.0.2.3 and .4, 2001:db8:ff::3 and ::4
//!                       \   /
//!                      internet ------------ peer site 198.51.100.0/26, 2001:db8:1::/48
//!                          |     \
//!   exit site 203.0.113.0/26      `-------- second peer site 198.51.100.64/26, 2001:db8:2::/48
//!             2001:db8:e::/48                 a third one 198.51.100.128/26, 2001:db8:3::/48
//! ```
//!
//! An open site is one host on its public network. Every other site is a router and a host behind it: 192.168.1.2 behind
//! 192.168.1.1 at every site alike, as at home. Where the v4 has a NAT, the v6 is routed behind a stateful firewall.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use crate::net::{Namespace, Namespaces};
use crate::service::{self, Stun, Web};

/// What stands between a site's host and the internet; the words of RFC 3489 for the v4, RFC 4787 behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "one palette for every lab test, present and coming")]
pub enum Nat {
    /// A public address of its own.
    Open,
    /// A public address behind a stateful firewall.
    UdpFirewall,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    RestrictedCone,
    /// Endpoint-independent mapping, address-and-port-dependent filtering: most home routers.
    PortRestricted,
    /// Address-and-port-dependent mapping and filtering: mobile carriers, strict firewalls.
    Symmetric,
    /// No UDP at all.
    Blocked,
}

/// A site's IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum V6 {
    /// Global addresses, routed.
    Routed,
    /// The provider has none: link-local addresses only.
    None,
    /// Its owner switched it off by sysctl.
    Disabled,
}

/// How a site is built.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub nat: Nat,
    pub v6: V6,
}

impl From<Nat> for Plan {
    fn from(nat: Nat) -> Self {
        Plan { nat, v6: V6::Routed }
    }
}

impl Plan {
    /// The same site without IPv6.
    pub fn v4_only(nat: Nat) -> Self {
        Plan { nat, v6: V6::None }
    }
}

/// Where a site sits; a const table keeps every address of the lab in one place.
struct Place {
    short: &'static str,
    gateway4: Ipv4Addr,
    public4: Ipv4Addr,
    /// A public block behind the router, for [`Nat::UdpFirewall`]: router and host in it.
    routed4: [Ipv4Addr; 2],
    net6: u16,
}

/// Those of the picture, and room for a crowd.
static PLACES: [Place; 17] = [
    Place {
        short: "exit",
        gateway4: Ipv4Addr::new(203, 0, 113, 1),
        public4: Ipv4Addr::new(203, 0, 113, 20),
        routed4: [Ipv4Addr::new(203, 0, 113, 201), Ipv4Addr::new(203, 0, 113, 202)],
        net6: 0xe,
    },
    Place {
        short: "peer",
        gateway4: Ipv4Addr::new(198, 51, 100, 1),
        public4: Ipv4Addr::new(198, 51, 100, 10),
        routed4: [Ipv4Addr::new(198, 51, 100, 201), Ipv4Addr::new(198, 51, 100, 202)],
        net6: 1,
    },
    Place {
        short: "peer2",
        gateway4: Ipv4Addr::new(198, 51, 100, 65),
        public4: Ipv4Addr::new(198, 51, 100, 74),
        routed4: [Ipv4Addr::new(198, 51, 100, 209), Ipv4Addr::new(198, 51, 100, 210)],
        net6: 2,
    },
    Place {
        short: "peer3",
        gateway4: Ipv4Addr::new(198, 51, 100, 129),
        public4: Ipv4Addr::new(198, 51, 100, 138),
        routed4: [Ipv4Addr::new(198, 51, 100, 217), Ipv4Addr::new(198, 51, 100, 218)],
        net6: 3,
    },
    crowd("s4", 4),
    crowd("s5", 5),
    crowd("s6", 6),
    crowd("s7", 7),
    crowd("s8", 8),
    crowd("s9", 9),
    crowd("s10", 10),
    crowd("s11", 11),
    crowd("s12", 12),
    crowd("s13", 13),
    crowd("s14", 15),
    crowd("s15", 16),
    crowd("s16", 17),
];

/// One of many: 198.18.N.0/26 and 2001:db8:N::/48 (198.18.0.0/15: RFC 2544).
const fn crowd(short: &'static str, number: u8) -> Place {
    Place {
        short,
        gateway4: Ipv4Addr::new(198, 18, number, 1),
        public4: Ipv4Addr::new(198, 18, number, 10),
        routed4: [Ipv4Addr::new(198, 18, number, 201), Ipv4Addr::new(198, 18, number, 202)],
        net6: number as u16,
    }
}

const LAN_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const LAN_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);

/// The web server.
pub const WEB: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x80))];
/// The STUN server's two addresses; v6 after v4.
pub const STUN4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 3), Ipv4Addr::new(192, 0, 2, 4)];
/// See [`STUN4`].
pub const STUN6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 3), Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 4)];
/// An address that swallows everything sent to it.
pub const DEAD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);

/// One site: a host, and the router in front of it unless it is open.
pub struct Site {
    pub host: Namespace,
    pub router: Option<Namespace>,
    /// The host's own v4 address.
    pub host4: Ipv4Addr,
    /// The v4 address that the internet sees it with.
    pub public4: Ipv4Addr,
    /// The host's v6 address, which is the one the internet sees.
    pub host6: Option<Ipv6Addr>,
    /// Private directory of the site: state and run directories of its node.
    pub dir: PathBuf,
    /// A program with its arguments under which `peervpn` is run here; empty for none.
    pub under: Vec<String>,
    plan: Plan,
    place: &'static Place,
    /// See [`Site::mappings_live`].
    short_lived: bool,
}

/// The whole lab of one test. Order of fields is order of dropping: services first, namespaces last.
pub struct Lab {
    pub web: Web,
    _stun: Option<Stun>,
    /// The router in the middle, which carries the services.
    pub internet: Namespace,
    pub exit: Site,
    /// Peer sites, as many as were asked for.
    pub peers: Vec<Site>,
    _spaces: Namespaces,
}

impl Lab {
    /// Builds the sites, starts the web server and the STUN server.
    pub fn new(exit: impl Into<Plan>, peers: &[Plan]) -> Lab {
        Self::build(exit.into(), peers, true)
    }

    /// The same without a STUN server.
    pub fn without_stun(exit: impl Into<Plan>, peers: &[Plan]) -> Lab {
        Self::build(exit.into(), peers, false)
    }

    fn build(exit: Plan, peers: &[Plan], stun: bool) -> Lab {
        let plans: Vec<Plan> = std::iter::once(exit).chain(peers.iter().copied()).collect();
        assert!(plans.len() <= PLACES.len(), "no more room");
        let mut short = vec!["inet".to_owned()];
        for (plan, place) in plans.iter().zip(&PLACES) {
            short.push(place.short.to_owned());
            if plan.nat != Nat::Open {
                short.push(format!("{}-router", place.short));
            }
        }
        let (spaces, list) = Namespaces::new(&short.iter().map(String::as_str).collect::<Vec<_>>());
        let mut list = list.into_iter();
        let internet = list.next().expect("made above");
        internet.sysctl(&ROUTER);
        internet.ip(&format!(
            "link set lo up\naddr add {}/32 dev lo\naddr add {}/128 dev lo\n\
             addr add {}/32 dev lo\naddr add {}/32 dev lo\naddr add {}/128 dev lo\naddr add {}/128 dev lo\n\
             route add blackhole {DEAD}\n",
            WEB[0], WEB[1], STUN4[0], STUN4[1], STUN6[0], STUN6[1]
        ));
        let mut sites = plans.iter().zip(&PLACES).map(|(plan, place)| {
            let host = list.next().expect("made above");
            let router = (plan.nat != Nat::Open).then(|| list.next().expect("made above"));
            Site::build(*plan, place, &internet, host, router, spaces.dir.join(place.short))
        });
        let exit = sites.next().expect("at least the exit");
        let peers = sites.collect();
        let web = Web::start(&internet, WEB);
        let stun = stun.then(|| Stun::start(&internet, &spaces.dir));
        Lab { web, _stun: stun, internet, exit, peers, _spaces: spaces }
    }

    /// Counts the UDP packets that arrive at the web server's address.
    pub fn sink(&self) -> service::Sink {
        service::Sink::start(&self.internet, WEB[0])
    }

    /// The first peer's site.
    pub fn peer(&self) -> &Site {
        &self.peers[0]
    }
}

/// Settings of a namespace that forwards; DAD would keep addresses unusable for a second.
const ROUTER: [&str; 6] = [
    "net/ipv4/ip_forward=1",
    "net/ipv6/conf/all/forwarding=1",
    "net/ipv6/conf/default/forwarding=1",
    "net/ipv6/conf/all/accept_dad=0",
    "net/ipv6/conf/default/accept_dad=0",
    "net/ipv4/conf/default/rp_filter=0",
];
const HOST: [&str; 2] = ["net/ipv6/conf/all/accept_dad=0", "net/ipv6/conf/default/accept_dad=0"];
const NO_V6: &str = "net/ipv6/conf/default/disable_ipv6=1";

impl Site {
    fn build(
        plan: Plan,
        place: &'static Place,
        internet: &Namespace,
        host: Namespace,
        router: Option<Namespace>,
        dir: PathBuf,
    ) -> Site {
        std::fs::create_dir(&dir).expect("create a site's directory");
        let net6 = place.net6;
        let has_v6 = plan.v6 == V6::Routed;
        host.sysctl(&HOST);
        if plan.v6 == V6::Disabled {
            // after the defaults, before the links are made, which take them over
            host.sysctl(&[NO_V6]);
        }
        if let Some(router) = &router {
            router.sysctl(&ROUTER);
        }
        let Place { short, gateway4, public4, .. } = place;
        internet.ip(&format!(
            "link add name {short} type veth peer name eth0 netns {edge}\n\
             addr add {gateway4}/26 dev {short}\naddr add 2001:db8:{net6:x}::1/64 dev {short} nodad\n\
             link set {short} up\n",
            edge = router.as_ref().unwrap_or(&host).name,
        ));
        let site = |host4, public4, host6| Site {
            host: host.clone(),
            router,
            host4,
            public4,
            host6,
            dir,
            under: Vec::new(),
            plan,
            place,
            short_lived: false,
        };
        if plan.nat == Nat::Open {
            let site = site(*public4, *public4, has_v6.then(|| v6(net6, 0, 0x10)));
            site.host.ip(&site.edge_lines(&site.host));
            return site;
        }
        let firewall = plan.nat == Nat::UdpFirewall;
        let (inner, host4, seen4) = match firewall {
            true => (place.routed4[0], place.routed4[1], place.routed4[1]),
            false => (LAN_ROUTER, LAN_HOST, *public4),
        };
        let site = site(host4, seen4, has_v6.then(|| v6(net6, 1, 2)));
        let router = site.router.as_ref().expect("given");
        let bits = if firewall { 29 } else { 24 };
        router.ip(&format!(
            "{}link add name lan0 type veth peer name eth0 netns {}\n\
             addr add {inner}/{bits} dev lan0\naddr add {}/64 dev lan0 nodad\nlink set lan0 up\n",
            site.edge_lines(router),
            site.host.name,
            v6(net6, 1, 1),
        ));
        internet.ip(&format!(
            "route add 2001:db8:{net6:x}:1::/64 via {}\n{}",
            v6(net6, 0, 0x10),
            if firewall { format!("route add {host4}/32 via {public4}\n") } else { String::new() }
        ));
        router.nft(&rules(plan.nat));
        site.host.ip(&format!(
            "link set lo up\naddr add {host4}/{bits} dev eth0\n{}link set eth0 up\nroute add default via {inner}\n{}",
            if has_v6 { format!("addr add {}/64 dev eth0 nodad\n", v6(net6, 1, 2)) } else { String::new() },
            if has_v6 { format!("route add default via {}\n", v6(net6, 1, 1)) } else { String::new() },
        ));
        site
    }

    /// Configuration of the box whose `eth0` faces the internet.
    fn edge_lines(&self, edge: &Namespace) -> String {
        let Place { gateway4, public4, net6, .. } = self.place;
        let v6_lines = format!(
            "addr add {}/64 dev eth0 nodad\nlink set eth0 up\nroute add default via {}\n",
            v6(*net6, 0, 0x10),
            v6(*net6, 0, 1)
        );
        let has_v6 = self.plan.v6 == V6::Routed || edge.name != self.host.name;
        format!(
            "link set lo up\naddr add {public4}/26 dev eth0\nlink set eth0 up\nroute add default via {gateway4}\n{}",
            if has_v6 { v6_lines.as_str() } else { "" }
        )
    }

    /// The host's LAN gateway, which other hosts at the site would reach at this address.
    pub fn lan_router(&self) -> Ipv4Addr {
        LAN_ROUTER
    }

    /// What `GET /` on the web server answers: the address that this host's request arrived with.
    pub fn whoami(&self, web: IpAddr) -> std::io::Result<IpAddr> {
        self.host.run(|| service::get(web, Duration::from_secs(5)))
    }

    /// The address that the internet sees for this family.
    pub fn public(&self, web: IpAddr) -> Option<IpAddr> {
        match web {
            IpAddr::V4(_) => Some(self.public4.into()),
            IpAddr::V6(_) => self.host6.map(IpAddr::V6),
        }
    }

    /// The NAT router restarts with another external address: mappings are gone, the next ones differ.
    pub fn renumber(&mut self) {
        let router = self.router.as_ref().expect("a site with a router");
        let Place { gateway4, public4, .. } = self.place;
        let next = Ipv4Addr::from(u32::from(*public4) + 1);
        router.ip(&format!(
            "addr del {public4}/26 dev eth0\naddr add {next}/26 dev eth0\nroute add default via {gateway4}\n"
        ));
        self.public4 = next;
        self.forget_mappings();
    }

    /// The NAT router forgets every mapping.
    pub fn forget_mappings(&self) {
        let router = self.router.as_ref().expect("a site with a router");
        router.output("conntrack", &["-F"]);
        if self.short_lived {
            router.nft("flush set ip nat live\n");
        }
    }

    /// The router behaves like this type from now on, and remembers nothing.
    pub fn change_nat(&mut self, nat: Nat) {
        let router = self.router.as_ref().expect("a site with a router");
        router.nft(&format!("flush ruleset\n{}", rules(nat)));
        self.short_lived = false;
        self.forget_mappings();
    }

    /// Makes the router a full cone whose mappings live this long. The plain one is a forwarded port, open whether or
    /// not anything was ever sent; here the way in is there while the mapping is (RFC 4787 REQ-5, REQ-6).
    pub fn mappings_live(&mut self, seconds: u32) {
        let router = self.router.as_ref().expect("a site with a router");
        let timeouts = ["", "_stream"].map(|of| format!("net/netfilter/nf_conntrack_udp_timeout{of}={seconds}"));
        router.sysctl(&timeouts.each_ref().map(String::as_str));
        router.nft(&format!("flush ruleset\n{}", short_lived_cone(seconds)));
        self.short_lived = true;
        self.forget_mappings();
    }
}

fn v6(site: u16, network: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, site, network, 0, 0, 0, host)
}

/// Only what is for the router's present address: neighbours go on sending to one that it has lost.
const OURS: &str = "fib daddr type local";

/// nft rules that make a router's NAT and firewall behave like this type; each was checked with an independent
/// RFC 5780 client against coturn.
fn rules(nat: Nat) -> String {
    let to_host = format!("dnat to {LAN_HOST}");
    match nat {
        Nat::Open => String::new(),
        Nat::UdpFirewall => stateful("", ""),
        Nat::Blocked => masquerade("", "") + &stateful("meta l4proto udp drop", ""),
        Nat::PortRestricted => masquerade("", "") + &stateful("", ""),
        Nat::Symmetric => masquerade("fully-random", "") + &stateful("", ""),
        Nat::FullCone => {
            masquerade("", &format!("iifname eth0 {OURS} udp dport 1024-65535 {to_host}"))
                + &stateful("", "iifname eth0 udp dport 1024-65535 accept")
        }
        Nat::RestrictedCone => {
            masquerade("", &format!("iifname eth0 {OURS} udp dport . ip saddr @seen {to_host}"))
                + &stateful("", "iifname eth0 ct status dnat accept")
        }
    }
}

fn short_lived_cone(seconds: u32) -> String {
    format!(
        "table ip nat {{
  set live {{ type inet_service; flags dynamic,timeout; timeout {seconds}s; }}
  chain watching {{ type filter hook forward priority -10;
    iifname lan0 meta l4proto udp update @live {{ udp sport }}
  }}
}}
{}{}",
        masquerade("", &format!("iifname eth0 {OURS} udp dport @live dnat to {LAN_HOST}")),
        stateful("", "iifname eth0 ct status dnat accept")
    )
}

/// A firewall for established flows; `blocked` is refused before, `inbound` let in beyond.
fn stateful(blocked: &str, inbound: &str) -> String {
    // new flows from outside never reach the router's own input: confirmed there, they would take the port of a mapping
    format!(
        "table inet edge {{
  chain entering {{ type filter hook input priority 0; policy accept;
    ct state established,related accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} accept
    iifname eth0 drop
  }}
  chain passing {{ type filter hook forward priority 0; policy drop;
    {blocked}
    ct state established,related accept
    iifname lan0 accept
    {inbound}
  }}
}}
"
    )
}

/// Endpoint-independent mapping that keeps the port, unless `how` says otherwise; `inward`: who is let in.
fn masquerade(how: &str, inward: &str) -> String {
    format!(
        "table ip nat {{
  set seen {{ type inet_service . ipv4_addr; flags dynamic,timeout; timeout 5m; }}
  chain inward {{ type nat hook prerouting priority -100;
    {inward}
  }}
  chain outward {{ type nat hook postrouting priority 100;
    oifname eth0 masquerade {how}
  }}
  chain seeing {{ type filter hook forward priority -10;
    iifname lan0 meta l4proto udp add @seen {{ udp sport . ip daddr }}
  }}
}}
"
    )
}
