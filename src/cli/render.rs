//! Events and answers as text or JSON lines, into any writer. Pure: no clock, no terminal.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::style::{Style, bytes, span, tame};
use crate::error::{Failure, Words};
use crate::node::control::{Changed, Initiations, KillSwitchStatus, PeerStatus, PendingPeer, Status};
use crate::node::event::Event;
use crate::node::invite::Made;

/// Where text goes.
pub(super) type Out<'a> = &'a mut dyn Write;

/// One JSON object on a line of its own.
pub(super) fn json(out: Out, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

/// `error: …`, `host: …`, `hint: …`.
pub(super) fn failure(err: Out, failure: &Failure, style: Style) -> io::Result<()> {
    for line in failure.to_string().lines() {
        match line.split_once(": ") {
            Some(("error", rest)) => writeln!(err, "{} {}", style.red("error:"), tame(rest))?,
            Some((word @ ("host" | "hint"), rest)) => {
                writeln!(err, "{} {}", style.bold(format!("{word}:")), tame(rest))?
            }
            _ => writeln!(err, "{}", tame(line))?,
        }
    }
    Ok(())
}

/// What of an event is the answer (stdout): the block to read and copy from.
pub(super) fn answer(out: Out, event: &Event, style: Style) -> io::Result<()> {
    match event {
        Event::Ready {
            interface, backend, public_key, peer_id, port, endpoints, tunnel_addresses, connect, ..
        } => {
            writeln!(out, "{}", style.green(format_args!("The exit is ready on {interface} ({backend} back end).")))?;
            let mut rows = vec![
                ("peer ID", peer_id.clone()),
                ("public key", public_key.to_string()),
                ("listen port", format!("{port} (UDP)")),
                ("tunnel addresses", listed(tunnel_addresses)),
            ];
            for (index, endpoint) in endpoints.iter().enumerate() {
                let label = if index == 0 { "endpoints" } else { "" };
                rows.push((label, format!("{endpoint}  {}", kind_of_endpoint(endpoint))));
            }
            table(out, &rows)?;
            writeln!(
                out,
                "\nOn the other machine:\n\n  {}\n",
                style.bold(Words::elsewhere(&format!("connect {}", quoted(connect))))
            )
        }
        Event::Connected { peer_id, endpoint, handshake_ms, tunnel_addresses, dns, .. } => {
            let through = format!("Connected to {peer_id} through {endpoint} in {handshake_ms} ms.");
            writeln!(out, "{}", style.green(through))?;
            let mut rows = vec![("tunnel addresses", listed(tunnel_addresses))];
            if !dns.is_empty() {
                rows.push(("DNS", listed(dns)));
            }
            table(out, &rows)
        }
        Event::Connect(connect) => writeln!(
            out,
            "\nThe connect string is now:\n\n  {}\n",
            style.bold(Words::elsewhere(&format!("connect {}", quoted(connect))))
        ),
        // the form of these lines is a contract (design §3)
        Event::Monitor { time, old, now } => match (old, now) {
            (_, None) => writeln!(out, "[{time}] ❓ NAT port unknown: no STUN server answers"),
            (None, Some(now)) => writeln!(out, "[{time}] ✅ NAT port persistent: {now} (unchanged)"),
            (Some(old), Some(now)) => writeln!(out, "[{time}] ⚠️  NAT port changed: {old} -> {now}"),
        },
        _ => Ok(()),
    }
}

/// What of an event tells the person how it goes (stderr).
pub(super) fn progress(err: Out, event: &Event, style: Style) -> io::Result<()> {
    match event {
        Event::Step(what) => writeln!(err, "… {}", tame(what)),
        // the cursor stays behind it, for the answer
        Event::Question(text) => write!(err, "{} {}", style.yellow("?"), tame(text)),
        Event::Warning(what) => writeln!(err, "{} {}", style.yellow("warning:"), tame(what)),
        Event::Ready { .. } => writeln!(err, "Waiting for peers. Ctrl-C stops the exit and puts this host back."),
        Event::Connected { .. } => writeln!(err, "Ctrl-C disconnects and puts this host back."),
        Event::Pending { peer_id, public_key, endpoint } => writeln!(
            err,
            "{} peer {} waits for admission: key {public_key}, from {endpoint}\n  let it in: {}",
            style.yellow("?"),
            style.bold(peer_id),
            Words::HERE.ours(&format!("peers accept {peer_id}")),
        ),
        Event::Joined { peer_id, tunnel_addresses, how, .. } => {
            writeln!(
                err,
                "{} peer {} is in ({how}): {}",
                style.green("+"),
                style.bold(peer_id),
                listed(tunnel_addresses)
            )
        }
        Event::Mapping { old, new } => {
            writeln!(err, "{} NAT port changed: {old} -> {new}", style.yellow("warning:"))
        }
        Event::Unreachable { since_s, hint, own } => {
            let waited = format!("no answer from the exit for {since_s} s");
            writeln!(err, "{} {waited}; our connect string is {own}", style.yellow("warning:"))?;
            writeln!(err, "{} {}", style.bold("hint:"), tame(hint))
        }
        Event::Stopped { .. } => stopped(err, event),
        Event::Connect(_) | Event::Monitor { .. } => Ok(()),
    }
}

/// The node stopped.
pub(super) fn stopped(out: Out, event: &Event) -> io::Result<()> {
    match event {
        Event::Stopped { host } => writeln!(out, "Stopped. Host: {}", tame(host)),
        _ => Ok(()),
    }
}

/// How a node stands: a header and a line a peer.
pub(super) fn status(out: Out, status: &Status, style: Style) -> io::Result<()> {
    let Status { interface, mode, backend, public_key, port, endpoints, peers, kill_switch, initiations } = status;
    writeln!(out, "{}: {mode}, {backend} back end", style.bold(interface))?;
    let mut rows = vec![
        ("peer ID", public_key.peer_id()),
        ("public key", public_key.to_string()),
        ("listen port", format!("{port} (UDP)")),
    ];
    if !endpoints.is_empty() {
        rows.push(("endpoints", endpoints.join(", ")));
    }
    if let Some(kill_switch) = kill_switch {
        rows.push(("kill switch", kill_switch_state(kill_switch)));
    }
    if let Some(refused) = initiations.as_ref().and_then(refused_initiations) {
        rows.push(("not let in", refused));
    }
    table(out, &rows)?;
    if peers.is_empty() {
        return writeln!(out, "  no peers yet");
    }
    self::peers(out, peers, style)
}

/// Initiations that led to nothing, by reason, most first; `None` where there were none.
fn refused_initiations(initiations: &Initiations) -> Option<String> {
    let Initiations { checked, refused, unseen } = initiations;
    let mut reasons = [
        (checked.malformed, "malformed"),
        (checked.mac1, "wrong mac1"),
        (checked.source_rate, "too many from one source"),
        (checked.total_rate, "too many in all"),
        (checked.static_key, "no static key"),
        (checked.unfit_key, "unfit static key"),
        (checked.timestamp, "no proof of the static key"),
        (checked.replay, "replayed"),
        (*refused, "of revoked or denied keys"),
        (*unseen, "too many to look at"),
    ];
    reasons.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let all: u64 = reasons.iter().map(|(count, _)| count).sum();
    let listed: Vec<String> =
        reasons.iter().filter(|(count, _)| *count > 0).map(|(count, reason)| format!("{count} {reason}")).collect();
    (all > 0).then(|| format!("{all} handshake initiations: {}", listed.join(", ")))
}

/// What the kill switch does now, and how to lift it.
fn kill_switch_state(kill_switch: &KillSwitchStatus) -> String {
    let lift = Words::HERE.ours("down");
    match kill_switch {
        KillSwitchStatus { on: false, .. } => "off: if the tunnel fails, traffic leaves beside it".to_owned(),
        KillSwitchStatus { blocking: true, .. } => {
            format!("on, and the exit is silent: this host's traffic is blocked; {lift} lifts it")
        }
        _ => format!("on: nothing leaves beside the tunnel; {lift} lifts it"),
    }
}

/// Peers in aligned columns.
pub(super) fn peers(out: Out, peers: &[PeerStatus], style: Style) -> io::Result<()> {
    let header = ["PEER ID", "NAME", "ENDPOINT", "TUNNEL ADDRESSES", "LAST HANDSHAKE", "RECEIVED", "SENT", "HOW"];
    let rows = peers.iter().map(|peer| {
        [
            peer.peer_id.clone(),
            peer.name.as_deref().map_or_else(|| "-".to_owned(), tame),
            peer.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
            listed(&peer.tunnel_addresses),
            peer.last_handshake_s.map_or_else(|| "never".to_owned(), |seconds| format!("{} ago", span(seconds))),
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
            peer.note.as_ref().map_or_else(|| peer.how.clone(), |note| format!("{}, {}", peer.how, tame(note))),
        ]
    });
    columns(out, header, rows, style)
}

/// Peers that wait, in aligned columns.
pub(super) fn pending(out: Out, pending: &[PendingPeer], style: Style) -> io::Result<()> {
    let rows = pending.iter().map(|peer| {
        [
            peer.peer_id.clone(),
            peer.endpoint.clone(),
            format!("{} ago", span(peer.since_s)),
            peer.public_key.to_string(),
        ]
    });
    columns(out, ["PEER ID", "ENDPOINT", "ASKED", "PUBLIC KEY"], rows, style)
}

/// What to do with what was made, and for how long it is good.
pub(super) fn invited(err: Out, made: &Made, seconds: u64, style: Style) -> io::Result<()> {
    let Made { invite, peer_id, reusable, .. } = made;
    let within = span(seconds);
    writeln!(err)?;
    if invite.is_some() {
        writeln!(err, "On the other machine, within {within}:\n\n  {}\n", style.bold(Words::elsewhere("connect -")))?;
        writeln!(
            err,
            "and paste the line above there. It is a secret: whoever has it can join{}.",
            match reusable {
                true => ", as often as they like",
                false => ", once",
            }
        )?;
    } else {
        writeln!(err, "Use it within {within}, on one device. It is a secret: whoever has it can join.")?;
    }
    writeln!(err, "Take it back: {}", Words::HERE.ours(&format!("peers revoke {peer_id}")))
}

/// What was done to a peer.
pub(super) fn changed(out: Out, changed: &Changed) -> io::Result<()> {
    let Changed { done, peer_id, name, .. } = changed;
    let whom = name.as_deref().map_or_else(|| peer_id.clone(), |name| format!("{peer_id} ({})", tame(name)));
    match done.as_str() {
        "denied" => writeln!(out, "Peer {whom} is not let in and is ignored for an hour."),
        "renamed" => writeln!(out, "Peer {whom} has its name."),
        "withdrawn" => writeln!(out, "The invite {whom} is void."),
        _ => {
            let back = Words::HERE.ours(&format!("peers accept {peer_id}"));
            writeln!(out, "Peer {whom} is out. Its key is not let in again until: {back}")
        }
    }
}

/// Label and value, the values below each other.
pub(super) fn table(out: Out, rows: &[(&str, String)]) -> io::Result<()> {
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    for (label, value) in rows {
        writeln!(out, "  {label:width$}  {}", tame(value))?;
    }
    Ok(())
}

/// A header and rows in columns as wide as their widest cell.
fn columns<const N: usize>(
    out: Out,
    header: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
    style: Style,
) -> io::Result<()> {
    let rows: Vec<[String; N]> = rows.collect();
    let mut widths = header.map(|cell| cell.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("  {}", padded.join("  ")).trim_end().to_owned()
    };
    writeln!(out, "{}", style.bold(line(header)))?;
    for row in &rows {
        writeln!(out, "{}", line(row.each_ref().map(String::as_str)))?;
    }
    Ok(())
}

/// Comma-separated.
fn listed(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What an endpoint is, by its address, so that a person knows who can reach it.
fn kind_of_endpoint(endpoint: &str) -> &'static str {
    match endpoint.parse::<SocketAddr>().map(|address| address.ip()) {
        Err(_) => "a name",
        Ok(IpAddr::V4(ip)) if ip.is_loopback() => "loopback: from this machine only",
        Ok(IpAddr::V6(ip)) if ip.is_loopback() => "loopback: from this machine only",
        // RFC 1918, RFC 3927, RFC 4193, RFC 4291 §2.5.6
        Ok(IpAddr::V4(ip)) if ip.is_private() || ip.is_link_local() => "private IPv4: from the same LAN only",
        Ok(IpAddr::V6(ip)) if ip.is_unique_local() || ip.is_unicast_link_local() => {
            "private IPv6: from the same LAN only"
        }
        // RFC 6598
        Ok(IpAddr::V4(ip)) if ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64 => {
            "shared space: from behind the same carrier's NAT only"
        }
        Ok(IpAddr::V4(_)) => "public IPv4",
        Ok(IpAddr::V6(_)) => "public IPv6",
    }
}

/// A connect string for a shell, Windows' cmd.exe too: in double quotes where it has a character that some shell expands
/// (zsh: the brackets of an IPv6 endpoint). It has none that means something between them.
fn quoted(connect: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@:.,+/=_-".contains(c);
    if connect.chars().all(plain) { connect.to_owned() } else { format!("\"{connect}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::initiation::Counters;
    use crate::key::PublicKey;

    const KEY: PublicKey = PublicKey([7; 32]);

    fn text(write: impl FnOnce(Out) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn ready(endpoints: &[&str]) -> Event {
        Event::Ready {
            mode: "exit",
            interface: "peervpn0".into(),
            backend: "kernel".into(),
            public_key: KEY,
            peer_id: KEY.peer_id(),
            port: 51820,
            endpoints: endpoints.iter().map(|e| (*e).to_owned()).collect(),
            tunnel_addresses: vec!["10.9.8.7".parse().unwrap(), "fd00::1".parse().unwrap()],
            connect: format!("{KEY}@{}", endpoints.join(",")),
        }
    }

    #[test]
    fn ready_is_the_json_of_cli_md() {
        assert_eq!(
            text(|out| json(out, &ready(&["203.0.113.20:51820"]))),
            format!(
                concat!(
                    r#"{{"event":"ready","mode":"exit","interface":"peervpn0","backend":"kernel","public_key":"{k}","#,
                    r#""peer_id":"{id}","port":51820,"endpoints":["203.0.113.20:51820"],"#,
                    r#""tunnel_addresses":["10.9.8.7","fd00::1"],"connect":"{k}@203.0.113.20:51820"}}"#,
                    "\n"
                ),
                k = KEY,
                id = KEY.peer_id()
            )
        );
    }

    #[test]
    fn every_event_is_the_json_of_cli_md() {
        let of = |event: Event| text(|out| json(out, &event));
        assert_eq!(
            of(Event::Pending { peer_id: "1".into(), public_key: KEY, endpoint: "e:1".into() }),
            format!("{{\"event\":\"pending\",\"peer_id\":\"1\",\"public_key\":\"{KEY}\",\"endpoint\":\"e:1\"}}\n")
        );
        assert_eq!(
            of(Event::Joined { peer_id: "1".into(), public_key: KEY, tunnel_addresses: vec![], how: "any" }),
            format!(
                "{{\"event\":\"joined\",\"peer_id\":\"1\",\"public_key\":\"{KEY}\",\"tunnel_addresses\":[],\"how\":\"any\"}}\n"
            )
        );
        assert_eq!(
            of(Event::Mapping { old: "a:1".into(), new: "a:2".into() }),
            "{\"event\":\"mapping\",\"old\":\"a:1\",\"new\":\"a:2\"}\n"
        );
        assert_eq!(
            of(Event::Unreachable { since_s: 3, hint: "h".into(), own: "o".into() }),
            "{\"event\":\"unreachable\",\"since_s\":3,\"hint\":\"h\",\"own\":\"o\"}\n"
        );
        assert_eq!(of(Event::Stopped { host: "restored".into() }), "{\"event\":\"stopped\",\"host\":\"restored\"}\n");
    }

    #[test]
    fn ready_has_the_line_to_copy() {
        let shown = text(|out| answer(out, &ready(&["203.0.113.20:51820", "192.168.1.9:51820"]), Style::PLAIN));
        assert_eq!(
            shown,
            format!(
                "The exit is ready on peervpn0 (kernel back end).\n  \
                 peer ID           {id}\n  \
                 public key        {KEY}\n  \
                 listen port       51820 (UDP)\n  \
                 tunnel addresses  10.9.8.7, fd00::1\n  \
                 endpoints         203.0.113.20:51820  public IPv4\n                    \
                 192.168.1.9:51820  private IPv4: from the same LAN only\n\n\
                 On the other machine:\n\n  sudo peervpn connect {KEY}@203.0.113.20:51820,192.168.1.9:51820\n\n",
                id = KEY.peer_id()
            )
        );
        let v6 = text(|out| answer(out, &ready(&["[2001:db8::1]:51820"]), Style::PLAIN));
        assert!(v6.contains(&format!("connect \"{KEY}@[2001:db8::1]:51820\"\n")), "{v6}");
    }

    #[test]
    fn a_failure_is_plain_without_colour() {
        let failed = Failure::new("cannot\x1b add", "run it as root").host("unchanged");
        assert_eq!(
            text(|err| failure(err, &failed, Style::PLAIN)),
            "error: cannot\u{fffd} add\nhost: unchanged\nhint: run it as root\n"
        );
        assert!(text(|err| failure(err, &failed, Style { colour: true })).contains("\x1b[1;31merror:\x1b[0m "));
    }

    #[test]
    fn endpoints_by_kind() {
        for (endpoint, kind) in [
            ("203.0.113.1:1", "public IPv4"),
            ("10.0.0.1:1", "private IPv4: from the same LAN only"),
            ("100.127.0.1:1", "shared space: from behind the same carrier's NAT only"),
            ("100.128.0.1:1", "public IPv4"),
            ("[fd00::1]:1", "private IPv6: from the same LAN only"),
            ("[2001:db8::1]:1", "public IPv6"),
            ("[::1]:1", "loopback: from this machine only"),
            ("home.example.org:1", "a name"),
        ] {
            assert_eq!(kind_of_endpoint(endpoint), kind, "{endpoint}");
        }
    }

    #[test]
    fn status_is_aligned() {
        let peer = |name: Option<&str>, last| PeerStatus {
            peer_id: "012255-093004-201117".into(),
            name: name.map(str::to_owned),
            public_key: KEY,
            endpoint: Some("203.0.113.10:40001".into()),
            tunnel_addresses: vec!["10.9.8.8".parse().unwrap()],
            last_handshake_s: last,
            rx_bytes: 1536,
            tx_bytes: 0,
            how: "accepted".into(),
            note: None,
        };
        let node = Status {
            interface: "peervpn0".into(),
            mode: "exit".into(),
            backend: "kernel".into(),
            public_key: KEY,
            port: 51820,
            endpoints: vec![],
            kill_switch: None,
            initiations: None,
            peers: vec![peer(Some("phone"), Some(12)), peer(None, None)],
        };
        let shown = text(|out| status(out, &node, Style::PLAIN));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "peervpn0: exit, kernel back end");
        assert!(lines[5].contains("phone") && lines[5].contains("12 s ago") && lines[5].contains("1.5 KiB"), "{shown}");
        assert_eq!(lines[4].find("LAST"), lines[5].find("12 s ago"), "{shown}");
        assert_eq!(lines[5].find("1.5 KiB"), lines[6].find("1.5 KiB"), "{shown}");
        let checked = Counters { valid: 9, mac1: 3, replay: 40, ..Counters::default() };
        let initiations = Some(Initiations { checked, refused: 0, unseen: 1 });
        let disturbed = text(|out| status(out, &Status { initiations, ..node.clone() }, Style::PLAIN));
        let line = "44 handshake initiations: 40 replayed, 3 wrong mac1, 1 too many to look at";
        assert!(disturbed.contains(line), "{disturbed}");
        let empty = Status { peers: vec![], ..node };
        assert!(text(|out| status(out, &empty, Style::PLAIN)).ends_with("no peers yet\n"));
    }
}
