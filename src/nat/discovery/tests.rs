//! A simulated internet in RFC 4787's words: one NAT or firewall of any mapping and filtering behaviour, one RFC 5780
//! server (with quirks), delay and loss, in virtual time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::net::Ipv4Addr;

use super::*;

const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const PORTS: [u16; 3] = [51820, 40001, 40002];

#[derive(Clone, Copy, PartialEq, Debug)]
enum Quirk {
    None,
    /// No OTHER-ADDRESS.
    Plain,
    /// OTHER-ADDRESS, but CHANGE-REQUEST is ignored.
    IgnoresChange,
    /// Changed answers are lost inside the server's own network.
    LosesChanged,
    /// Nobody listens on the other address.
    OtherAddressDead,
    /// Answers CHANGE-REQUEST with an error.
    RefusesChange,
}

#[derive(Clone, Debug)]
struct World {
    natted: bool,
    mapping: Behaviour,
    filtering: Behaviour,
    hairpin: bool,
    blocked: bool,
    /// Outside ports another host holds towards 192.0.2.3.
    taken: Option<u16>,
    round_trip: Duration,
    /// Percent of datagrams lost, each way.
    loss: u64,
    /// Of the servers at 192.0.2.3 and .4 (one RFC 5780 pair), then of 198.51.100.3 and .4.
    quirks: [Quirk; 2],
    seed: u64,
}

impl World {
    fn new(mapping: Behaviour, filtering: Behaviour) -> Self {
        World {
            natted: true,
            mapping,
            filtering,
            hairpin: false,
            blocked: false,
            taken: None,
            round_trip: Duration::from_millis(1),
            loss: 0,
            quirks: [Quirk::None; 2],
            seed: 1,
        }
    }

    fn random(&mut self) -> u64 {
        // xorshift64*: enough for losing packets reproducibly
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        self.seed.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
    }

    fn lost(&mut self) -> bool {
        self.random() % 100 < self.loss
    }
}

/// The NAT's state.
#[derive(Default)]
struct Table {
    /// (inside port, mapping key) → outside port.
    outside: HashMap<(u16, Option<SocketAddr>), u16>,
    /// (outside port, remote) that was sent to.
    sent: HashSet<(u16, SocketAddr)>,
    next: u16,
}

impl Table {
    /// Outbound: the source the internet sees.
    fn out(&mut self, world: &World, inside: u16, to: SocketAddr) -> SocketAddr {
        let port = if world.natted {
            let key = match world.mapping {
                Behaviour::EndpointIndependent => {
                    (world.taken == Some(inside) && to.ip() == IpAddr::from([192, 0, 2, 3])).then_some(to)
                }
                Behaviour::AddressDependent => Some(SocketAddr::new(to.ip(), 0)),
                _ => Some(to),
            };
            let fresh = 20000 + self.next;
            let preserved = key.is_none();
            *self.outside.entry((inside, key)).or_insert_with(|| {
                self.next += 1;
                if preserved { inside } else { fresh }
            })
        } else {
            inside
        };
        self.sent.insert((port, to));
        SocketAddr::new(if world.natted { OUTSIDE } else { HOST }.into(), port)
    }

    /// Inbound: the inside port, if the filter lets it through.
    fn inward(&self, world: &World, from: SocketAddr, outside: u16) -> Option<u16> {
        let inside = match world.natted {
            true => self.outside.iter().find(|(_, port)| **port == outside).map(|((inside, _), _)| *inside)?,
            false => outside,
        };
        let passes = match world.filtering {
            Behaviour::EndpointIndependent => true,
            Behaviour::AddressDependent => self.sent.iter().any(|(p, to)| *p == outside && to.ip() == from.ip()),
            _ => self.sent.contains(&(outside, from)),
        };
        passes.then_some(inside)
    }
}

fn address_attribute(kind: u16, address: SocketAddr) -> Vec<u8> {
    let IpAddr::V4(ip) = address.ip() else { panic!("the simulation is v4") };
    let mut bytes = kind.to_be_bytes().to_vec();
    bytes.extend([0, 8, 0, 1]);
    bytes.extend(address.port().to_be_bytes());
    bytes.extend(ip.octets());
    bytes
}

/// The server's answer: from where, and its bytes.
fn serve(world: &World, to: SocketAddr, from: SocketAddr, request: &[u8]) -> Option<(SocketAddr, Vec<u8>)> {
    let IpAddr::V4(ip) = to.ip() else { return None };
    let [a, b, c, d] = ip.octets();
    let pair = match (a, b, c) {
        (192, 0, 2) => 0,
        (198, 51, 100) => 1,
        _ => return None,
    };
    let quirk = world.quirks[pair];
    if !matches!(d, 3 | 4) || !matches!(to.port(), 3478 | 3479) || (quirk == Quirk::OtherAddressDead && d == 4) {
        return None;
    }
    let flags = if request.len() >= 28 { request[27] } else { 0 };
    let other = |change_ip: bool, change_port: bool| {
        let ip = Ipv4Addr::new(a, b, c, if change_ip { 7 - d } else { d });
        SocketAddr::new(ip.into(), if change_port { 6957 - to.port() } else { to.port() })
    };
    let refused = quirk == Quirk::RefusesChange && flags != 0;
    let mut body = match refused {
        true => vec![0x00, 0x09, 0x00, 0x04, 0, 0, 4, 20],
        false => address_attribute(0x0001, from),
    };
    if quirk != Quirk::Plain {
        body.extend(address_attribute(0x802c, other(true, true)));
    }
    let source = match quirk {
        Quirk::IgnoresChange | Quirk::Plain | Quirk::RefusesChange => to,
        Quirk::LosesChanged if flags != 0 => return None,
        _ => other(flags & 4 != 0, flags & 2 != 0),
    };
    let mut answer = vec![0x01, if refused { 0x11 } else { 0x01 }];
    answer.extend((body.len() as u16).to_be_bytes());
    answer.extend(&request[4..20]);
    answer.extend(body);
    Some((source, answer))
}

/// Runs a whole discovery: the result, how long it took, how many datagrams were sent.
fn run(world: &World, servers: &[&str]) -> (Measured, Duration, usize) {
    let mut world = world.clone();
    let start = Instant::now();
    let mut now = start;
    let mut next_id = 0u64;
    let ids = move || {
        next_id += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&next_id.to_be_bytes());
        TransactionId(id)
    };
    let mut discovery = Discovery::new(Family::V4, PORTS, servers.len(), ids, now);
    for server in servers {
        discovery.resolved(Some((server.parse().unwrap(), HOST.into())), now);
    }
    let mut table = Table::default();
    // (arrival, order, path, from, bytes)
    type Flight = (Instant, usize, Path, SocketAddr, Vec<u8>);
    let mut flying: BinaryHeap<Reverse<Flight>> = BinaryHeap::new();
    let mut count = 0;
    while !discovery.is_done() {
        while let Some((path, transmit)) = discovery.poll_transmit(now) {
            count += 1;
            assert!(count < 5000, "a flood");
            let inside = PORTS[path.index()];
            let source = table.out(&world, inside, transmit.to);
            if world.blocked || world.lost() {
                continue;
            }
            let (from, bytes, delay) = if transmit.to.ip() == IpAddr::from(OUTSIDE) {
                if !world.hairpin {
                    continue;
                }
                (source, transmit.bytes, Duration::from_micros(200))
            } else {
                let Some((from, bytes)) = serve(&world, transmit.to, source, &transmit.bytes) else { continue };
                if world.lost() {
                    continue;
                }
                (from, bytes, world.round_trip)
            };
            let outside = if transmit.to.ip() == IpAddr::from(OUTSIDE) { transmit.to.port() } else { source.port() };
            if let Some(inside) = table.inward(&world, from, outside) {
                let path = Path::ALL[PORTS.iter().position(|port| *port == inside).unwrap()];
                flying.push(Reverse((now + delay, count, path, from, bytes)));
            }
        }
        let wake = discovery.poll_timeout(now);
        assert!(wake > now, "the discovery would spin");
        match flying.peek() {
            Some(Reverse((at, ..))) if *at <= wake => {
                let Some(Reverse((at, _, path, from, bytes))) = flying.pop() else { unreachable!("peeked") };
                now = at.max(now);
                discovery.handle(path, from, &bytes, now);
            }
            _ => {
                now = wake;
                discovery.handle_timeout(now);
            }
        }
    }
    (discovery.measured(), now - start, count)
}

const PAIR: [&str; 1] = ["192.0.2.3:3478"];
const ALL_BEHAVIOURS: [Behaviour; 3] =
    [Behaviour::EndpointIndependent, Behaviour::AddressDependent, Behaviour::AddressAndPortDependent];

#[test]
fn every_combination_of_behaviours_is_told_apart_in_time() {
    for mapping in ALL_BEHAVIOURS {
        for filtering in ALL_BEHAVIOURS {
            for (round_trip, limit) in [(1, 1000), (100, 2500), (300, 4500)] {
                for hairpin in [false, true] {
                    let mut world = World::new(mapping, filtering);
                    world.round_trip = Duration::from_millis(round_trip);
                    world.hairpin = hairpin;
                    let (measured, took, count) = run(&world, &PAIR);
                    let told = (measured.mapping, measured.filtering);
                    assert_eq!(told, (mapping, filtering), "{round_trip} ms: {measured:?}");
                    assert_eq!(measured.why, [""; 0]);
                    assert!(took <= Duration::from_millis(limit), "{mapping:?} {filtering:?} {round_trip}: {took:?}");
                    assert!(count < 200, "{count} datagrams");
                    assert_eq!(measured.local, Some(SocketAddr::new(HOST.into(), PORTS[0])));
                    if mapping == Behaviour::EndpointIndependent {
                        assert_eq!(measured.hairpin, Some(hairpin), "{filtering:?} {round_trip}");
                        assert_eq!(measured.reflexive, Some(SocketAddr::new(OUTSIDE.into(), PORTS[0])));
                    }
                }
            }
        }
    }
}

#[test]
fn no_nat_with_and_without_a_firewall() {
    for filtering in ALL_BEHAVIOURS {
        let mut world = World::new(Behaviour::EndpointIndependent, filtering);
        world.natted = false;
        let (measured, took, _) = run(&world, &PAIR);
        assert_eq!((measured.mapping, measured.filtering), (Behaviour::EndpointIndependent, filtering));
        assert_eq!(measured.reflexive, measured.local);
        assert_eq!(measured.hairpin, None, "there is nothing to hairpin on");
        assert!(took < Duration::from_millis(700), "{took:?}");
    }
}

#[test]
fn blocked_udp_is_silence_of_every_server_within_a_second_and_a_bit() {
    let mut world = World::new(Behaviour::EndpointIndependent, Behaviour::EndpointIndependent);
    world.blocked = true;
    let (measured, took, count) = run(&world, &["192.0.2.3:3478", "192.0.2.4:3478", "198.51.100.3:3478"]);
    assert!(!measured.udp && measured.silent == 3 && measured.reflexive.is_none());
    assert_eq!((took, count), (CONTACT_LIMIT, 12));
}

#[test]
fn a_wrong_result_never_comes_from_loss() {
    let kinds: Vec<World> = ALL_BEHAVIOURS
        .into_iter()
        .flat_map(|mapping| ALL_BEHAVIOURS.map(|filtering| World::new(mapping, filtering)))
        .chain(ALL_BEHAVIOURS.map(|f| World { natted: false, ..World::new(Behaviour::EndpointIndependent, f) }))
        .collect();
    for (loss, round_trip, least_known) in [(10, 1, 38), (10, 100, 32), (20, 1, 20)] {
        for kind in &kinds {
            let mut known = 0;
            for seed in 1..=40u64 {
                let world = World {
                    loss,
                    round_trip: Duration::from_millis(round_trip),
                    hairpin: true,
                    seed: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15),
                    ..kind.clone()
                };
                let (measured, _, _) = run(&world, &["192.0.2.3:3478", "192.0.2.4:3478"]);
                let right = |told: Behaviour, truth| told == Behaviour::Unknown || told == truth;
                assert!(right(measured.mapping, kind.mapping), "{world:?}: {measured:?}");
                assert!(right(measured.filtering, kind.filtering), "{world:?}: {measured:?}");
                assert!(measured.udp, "{world:?}");
                assert!(!measured.port_taken, "{world:?}");
                if kind.mapping == Behaviour::EndpointIndependent {
                    assert_ne!(measured.hairpin, Some(false), "{world:?}");
                }
                known += u32::from(![measured.mapping, measured.filtering].contains(&Behaviour::Unknown));
            }
            assert!(known >= least_known, "{loss} % at {round_trip} ms, {kind:?}: {known} of 40 told");
        }
    }
}

#[test]
fn a_server_that_does_not_keep_its_promise_makes_it_unknown_and_says_why() {
    for quirk in [Quirk::IgnoresChange, Quirk::RefusesChange, Quirk::LosesChanged, Quirk::OtherAddressDead] {
        for filtering in ALL_BEHAVIOURS {
            let mut world = World::new(Behaviour::EndpointIndependent, filtering);
            world.quirks = [quirk, Quirk::Plain];
            let (measured, took, _) = run(&world, &PAIR);
            let open = quirk == Quirk::OtherAddressDead && filtering == Behaviour::EndpointIndependent;
            if !open {
                assert_eq!(measured.filtering, Behaviour::Unknown, "{quirk:?} {filtering:?}");
                assert!(!measured.why.is_empty());
            }
            assert!(took < Duration::from_millis(1300), "{quirk:?}: {took:?}");
        }
    }
}

#[test]
fn another_server_takes_over_from_one_that_is_no_good() {
    for quirk in [Quirk::IgnoresChange, Quirk::RefusesChange, Quirk::LosesChanged, Quirk::OtherAddressDead] {
        let mut world = World::new(Behaviour::EndpointIndependent, Behaviour::AddressDependent);
        world.quirks = [quirk, Quirk::None];
        let (measured, _, _) = run(&world, &["192.0.2.3:3478", "198.51.100.3:3478"]);
        assert_eq!(measured.mapping, Behaviour::EndpointIndependent, "{quirk:?}");
        assert_eq!(measured.filtering, Behaviour::AddressDependent, "{quirk:?} {measured:?}");
    }
}

#[test]
fn without_other_address_servers_are_compared() {
    let two = ["192.0.2.3:3478", "198.51.100.3:3478"];
    let cases = [
        (Behaviour::EndpointIndependent, Behaviour::EndpointIndependent, false),
        (Behaviour::AddressDependent, Behaviour::Unknown, true),
        (Behaviour::AddressAndPortDependent, Behaviour::Unknown, true),
    ];
    for (truth, told, by_destination) in cases {
        let mut world = World::new(truth, Behaviour::AddressDependent);
        world.quirks = [Quirk::Plain; 2];
        let (measured, took, _) = run(&world, &two);
        assert_eq!((measured.mapping, measured.maps_by_destination), (told, by_destination));
        assert_eq!(measured.filtering, Behaviour::Unknown);
        assert!(!measured.why.is_empty() && took < Duration::from_millis(100), "{took:?}");
    }
    let mut world = World::new(Behaviour::AddressAndPortDependent, Behaviour::AddressDependent);
    world.quirks = [Quirk::Plain; 2];
    let (measured, _, _) = run(&world, &["192.0.2.3:3478", "192.0.2.3:3479"]);
    assert_eq!(measured.mapping, Behaviour::AddressAndPortDependent);
    let (measured, _, _) = run(&world, &["192.0.2.3:3478"]);
    assert_eq!((measured.mapping, measured.udp), (Behaviour::Unknown, true));
}

#[test]
fn a_port_that_another_host_holds_is_not_taken_for_a_symmetric_nat() {
    let mut world = World::new(Behaviour::EndpointIndependent, Behaviour::AddressAndPortDependent);
    world.taken = Some(PORTS[0]);
    let (measured, _, _) = run(&world, &PAIR);
    assert_eq!(measured.mapping, Behaviour::EndpointIndependent);
    assert_eq!(measured.filtering, Behaviour::AddressAndPortDependent);
    assert!(measured.port_taken && !measured.maps_by_destination);
}

#[test]
fn a_dead_server_costs_no_time() {
    let world = World::new(Behaviour::EndpointIndependent, Behaviour::AddressAndPortDependent);
    let (measured, took, _) = run(&world, &["192.0.2.99:3478", "192.0.2.3:3478", "198.51.100.99:1"]);
    assert_eq!(measured.filtering, Behaviour::AddressAndPortDependent);
    assert!(took < Duration::from_millis(700), "{took:?}");
}
