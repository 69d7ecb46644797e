//! What macOS's kernel and programs say, made up and bent: no decoder panics, runs away or gives more than its input holds,
//! and what we write reads back. The decoders are pure, so no Mac is needed.
#![cfg(unix)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use peervpn_platform::datagram;
use peervpn_platform::macos_formats::capture::{LinkType, frames};
use peervpn_platform::macos_formats::route::{ADD, Entry, Request, best, entries, tell_of_change};
use peervpn_platform::macos_formats::{dns, names, pf};
use peervpn_platform::types::Family;
use proptest::prelude::*;

/// `sizeof(struct rt_msghdr)`, and of `struct bpf_hdr` without its padding.
const ROUTE_HEADER: usize = 92;
const CAPTURE_HEADER: usize = 18;

fn v4() -> impl Strategy<Value = IpAddr> {
    any::<[u8; 4]>().prop_map(|octets| Ipv4Addr::from(octets).into())
}

/// Not those whose second word holds an interface in the kernel's form.
fn v6() -> impl Strategy<Value = IpAddr> {
    any::<[u8; 16]>()
        .prop_map(|mut octets| {
            octets[0] = 0x20 | octets[0] & 0x1f;
            Ipv6Addr::from(octets).into()
        })
        .boxed()
}

fn network(address: IpAddr, prefix: u8) -> IpNetwork {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let wide = IpNetwork::new(address, prefix.min(longest)).unwrap();
    IpNetwork::new(wide.network(), wide.prefix()).unwrap()
}

/// A route of ours, as a request to add it.
fn request() -> impl Strategy<Value = Request> {
    let addresses = prop_oneof![(v4(), proptest::option::of(v4())), (v6(), proptest::option::of(v6()))];
    (addresses, 0..=128u8, 1..9999u32, any::<bool>(), any::<u32>()).prop_map(
        |((destination, gateway), prefix, index, reject, seq)| Request {
            kind: ADD,
            destination: network(destination, prefix),
            gateway,
            index,
            reject,
            seq,
        },
    )
}

/// The same as the kernel would list it: `RTM_GET`, its interface's index in the header.
fn listed(request: &Request) -> Vec<u8> {
    let mut message = request.encode();
    message[3] = 4;
    message[4..6].copy_from_slice(&(request.index as u16).to_le_bytes());
    message
}

fn bent(mut bytes: Vec<u8>, changes: &[(usize, u8)], keep: usize) -> Vec<u8> {
    for (at, value) in changes {
        let length = bytes.len();
        if let Some(byte) = bytes.get_mut(at % length.max(1)) {
            *byte = *value;
        }
    }
    bytes.truncate(keep);
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6)
}

fn routes_are_sound(bytes: &[u8]) {
    let found = entries(bytes);
    assert!(found.len() * ROUTE_HEADER <= bytes.len());
    let _ = tell_of_change(bytes);
    for destination in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        if let Some(chosen) = best(&found, destination, |_| true) {
            assert!(chosen.destination.contains(destination) && !chosen.rejects());
            let longer = |e: &&Entry| {
                e.destination.contains(destination) && e.destination.prefix() > chosen.destination.prefix()
            };
            assert_eq!(found.iter().find(longer), None);
        }
    }
}

fn frames_are_sound(bytes: &[u8]) {
    let whole = bytes.as_ptr_range();
    let (mut count, mut sum) = (0, 0);
    for frame in frames(bytes) {
        (count, sum) = (count + 1, sum + frame.len());
        assert!(whole.start <= frame.as_ptr() && frame.as_ptr_range().end <= whole.end);
        for link in [LinkType::Null, LinkType::Ethernet, LinkType::Raw] {
            let Some((family, packet)) = link.packet(frame) else { continue };
            assert!(frame.ends_with(packet));
            if let Some((source, payload)) = datagram::parse(family, packet, 3) {
                assert_eq!(Family::of(&source.ip()), family);
                assert!(packet.get(payload).is_some());
            }
        }
    }
    assert!(count * CAPTURE_HEADER + sum <= bytes.len());
}

/// A record as bpf(4) writes it.
fn record(frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; CAPTURE_HEADER];
    bytes[8..12].copy_from_slice(&(frame.len() as u32).to_le_bytes());
    bytes[16..18].copy_from_slice(&(CAPTURE_HEADER as u16).to_le_bytes());
    bytes.extend(frame);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

proptest! {
    #[test]
    fn a_route_that_we_add_is_read_as_ours(requests in proptest::collection::vec(request(), 0..5)) {
        let dump: Vec<u8> = requests.iter().flat_map(listed).collect();
        let found = entries(&dump);
        prop_assert_eq!(found.len(), requests.len());
        for (entry, request) in found.iter().zip(&requests) {
            prop_assert!(entry.ours());
            prop_assert_eq!(
                (entry.destination, entry.gateway, entry.index, entry.rejects(), entry.mtu),
                (request.destination, request.gateway, request.index, request.reject, None)
            );
        }
        let added: Vec<u8> = requests.iter().flat_map(Request::encode).collect();
        prop_assert_eq!(tell_of_change(&added), !requests.is_empty());
    }

    #[test]
    fn bent_routing_messages(requests in proptest::collection::vec(request(), 1..5), changes in changes(), keep in 0..1000usize) {
        routes_are_sound(&bent(requests.iter().flat_map(listed).collect(), &changes, keep));
    }

    #[test]
    fn any_bytes_as_routing_messages(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        routes_are_sound(&bytes);
    }

    #[test]
    fn captured_frames_come_out_as_they_went_in(all in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..6)) {
        let buffer: Vec<u8> = all.iter().flat_map(|frame| record(frame)).collect();
        prop_assert!(frames(&buffer).eq(all.iter().map(Vec::as_slice)));
        frames_are_sound(&buffer);
    }

    #[test]
    fn bent_captures(
        all in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..6),
        changes in changes(),
        keep in 0..600usize,
    ) {
        frames_are_sound(&bent(all.iter().flat_map(|frame| record(frame)).collect(), &changes, keep));
    }

    #[test]
    fn any_bytes_as_a_capture(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        frames_are_sound(&bytes);
    }

    #[test]
    fn references_are_listed_whatever_the_programs_are_called(
        held in proptest::collection::vec((1..99_999u32, "[ -~]{0,20}[!-~]", any::<u64>(), 0..400u32), 0..6),
        noise in "\\PC{0,80}",
    ) {
        let mut text = "TOKENS:\nPID      Process Name                 TOKEN                    TIMESTAMP\n".to_owned();
        for (pid, name, token, days) in &held {
            text += &format!("{pid:<9}{name:<29}{token:<25}{days} days 00:03:31\n");
        }
        let found = pf::references(&text);
        prop_assert_eq!(found.len(), held.len());
        for (found, (pid, name, token, _)) in found.iter().zip(&held) {
            let words: Vec<&str> = name.split_whitespace().collect();
            prop_assert_eq!((found.pid, found.token, &found.program), (*pid, *token, &words.join(" ")));
        }
        prop_assert!(pf::references(&noise).len() <= noise.lines().count());
    }

    #[test]
    fn any_text_as_rules(text in "(anchor|quick|pass|\"com.apple/\\*\"|[ \n]|\\PC){0,40}") {
        let _ = pf::enabled(&text);
        match pf::hook(&text, "anchor") {
            // one line or the other says so
            pf::Hook::There => prop_assert!(text.contains("anchor \"com.apple/*\"")),
            pf::Hook::Behind(rule) => prop_assert!(text.contains(&rule) && text.contains("anchor \"com.apple/*\"")),
            pf::Hook::Missing => {}
        }
    }

    #[test]
    fn the_servers_that_scutil_shows_are_those_that_were_set(
        servers in proptest::collection::vec(prop_oneof![v4(), v6()], 0..8),
        noise in "\\PC{0,200}",
    ) {
        let mut answer = "<dictionary> {\n  ServerAddresses : <array> {\n".to_owned();
        for (at, server) in servers.iter().enumerate() {
            answer += &format!("    {at} : {server}\n");
        }
        answer += "  }\n  SupplementalMatchDomains : <array> {\n    0 : 192.0.2.1\n  }\n}\n";
        prop_assert_eq!(dns::servers(&answer), servers.clone());
        prop_assert!(dns::servers(&noise).len() <= noise.lines().count());
        // four commands, each on its line
        prop_assert_eq!(dns::set(&dns::service("peervpn0"), &servers).lines().count(), 5);
    }

    #[test]
    fn what_nodes_left_is_found_among_others(
        nodes in proptest::collection::vec("[!-.0-~]{1,15}", 0..5),
        others in proptest::collection::vec("[!-.0-~]{1,15}", 0..5),
        noise in "\\PC{0,200}",
    ) {
        let mut text: String = others.iter().map(|name| format!("  com.apple/250.{name}\n")).collect();
        text.extend(nodes.iter().map(|name| format!("  com.apple/peervpn-{name}\n")));
        let names: Vec<String> = nodes.iter().map(|name| format!("peervpn-{name}")).collect();
        prop_assert_eq!(pf::anchors(&text), names.clone());
        let keys = others.into_iter().chain(names.iter().cloned()).map(|name| format!("State:/Network/Service/{name}/DNS"));
        let answer: String = keys.enumerate().map(|(at, key)| format!("  subKey [{at}] = {key}\n")).collect();
        prop_assert_eq!(dns::services(&answer), names);
        prop_assert!(pf::anchors(&noise).len() + dns::services(&noise).len() <= noise.lines().count());
    }

    #[test]
    fn a_utun_is_a_name_that_fits(text in prop_oneof!["utun[0-9]{0,12}\n?", "[utn0-9/. \n]{0,16}", "\\PC{0,40}"]) {
        if let Some(name) = names::utun(&text) {
            prop_assert!(name.len() < 16 && text.trim_end() == name);
            prop_assert!(name.strip_prefix("utun").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())));
        }
    }
}
