//! How programs on this host are told which DNS servers to ask: the choice, the text of a resolv.conf, and whether a file
//! that we wrote is still ours. Pure: the probes come in.

use std::fmt::Write as _;
use std::net::IpAddr;

use peervpn_platform::types::{DnsProbes, FileState, Resolvconf, ResolvconfKind};
use sha2::{Digest, Sha256};

use crate::error::Hint;

/// resolv.conf(5): the C library reads no more (`MAXNS`).
const MAX_SERVERS: usize = 3;

/// How it is done here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Tell systemd-resolved.
    Resolved,
    /// Tell the system's one resolver.
    System,
    /// Give resolvconf(8) a record.
    Resolvconf(Resolvconf),
    /// Write `/etc/resolv.conf`.
    File {
        /// Write over it instead of replacing it.
        in_place: bool,
    },
}

/// The choice, and what led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Every one of these is done, in order.
    pub modes: Vec<Mode>,
    /// What was found, in order; the last one decided.
    pub trail: Vec<&'static str>,
}

/// DNS can't be changed here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// chattr(1) `+i`.
    #[error("/etc/resolv.conf is protected against changes (immutable attribute)")]
    Immutable,
    /// We run in a network namespace that shares the file with its host.
    #[error("this network namespace uses its host's /etc/resolv.conf, which other programs need as it is")]
    Shared,
    /// A read-only file system.
    #[error("/etc/resolv.conf is on a read-only file system")]
    ReadOnly,
}

impl Hint for Refusal {
    fn hint(&self) -> Option<String> {
        let beside = "or leave DNS as it is with --dns none (names are then asked of whoever is configured, through the \
                      tunnel or on the LAN)";
        Some(match self {
            Refusal::Immutable => format!("allow it: chattr -i /etc/resolv.conf; {beside}"),
            Refusal::Shared => {
                format!("give it one of its own: /etc/netns/NAME/resolv.conf, see ip-netns(8); {beside}")
            }
            Refusal::ReadOnly => format!("make /etc writable; {beside}"),
        })
    }
}

/// Chooses by who owns `/etc/resolv.conf`, since that is what the C library and most other programs read.
pub fn choose(probes: &DnsProbes) -> Result<Choice, Refusal> {
    if probes.system {
        return Ok(Choice { modes: vec![Mode::System], trail: vec!["the system's own resolver"] });
    }
    let mut trail = Vec::new();
    let mut modes = Vec::new();
    let text = &probes.file.text;
    let linked = |part: &str| matches!(&probes.file.state, FileState::Link { target } if target.to_string_lossy().contains(part));
    if probes.resolved {
        trail.push("systemd-resolved runs");
        modes.push(Mode::Resolved);
        if linked("systemd/resolve/") || stub(text) {
            trail.push("/etc/resolv.conf leads to it");
            return Ok(Choice { modes, trail });
        }
        // programs that ask by nsswitch's `resolve` or by D-Bus reach it, all others read the file
        trail.push("/etc/resolv.conf does not lead to it");
    } else {
        trail.push("systemd-resolved does not run");
    }
    if probes.file.shared {
        return Err(Refusal::Shared);
    }
    match &probes.resolvconf {
        Some(resolvconf) => {
            trail.push(match resolvconf.kind {
                ResolvconfKind::Openresolv => "openresolv is there",
                ResolvconfKind::Debian => "Debian's resolvconf is there",
            });
            if linked("resolvconf/") || text.lines().any(|line| line.starts_with('#') && line.contains("resolvconf")) {
                trail.push("/etc/resolv.conf was written by resolvconf");
                modes.push(Mode::Resolvconf(resolvconf.clone()));
                return Ok(Choice { modes, trail });
            }
            trail.push("/etc/resolv.conf was not written by resolvconf");
        }
        None => trail.push("no resolvconf"),
    }
    if probes.file.immutable {
        return Err(Refusal::Immutable);
    }
    if probes.file.read_only {
        return Err(Refusal::ReadOnly);
    }
    trail.push(match (&probes.file.state, probes.file.mounted) {
        (_, true) => "/etc/resolv.conf is a mount point: written in place",
        (FileState::Missing, _) => "/etc/resolv.conf is missing: made",
        (FileState::Link { .. }, _) => "/etc/resolv.conf is a symbolic link: replaced by a file",
        (FileState::Text { .. }, _) => "/etc/resolv.conf is a file: replaced",
    });
    modes.push(Mode::File { in_place: probes.file.mounted });
    Ok(Choice { modes, trail })
}

/// systemd-resolved's own addresses, systemd-resolved(8).
fn stub(text: &str) -> bool {
    servers(text).iter().any(|server| matches!(server, IpAddr::V4(ip) if matches!(ip.octets(), [127, 0, 0, 53 | 54])))
}

/// The servers of a resolv.conf, in order. One with a zone (`fe80::1%eth0`) is left out: it means nothing elsewhere.
pub fn servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok())
        .collect()
}

/// Servers that can be asked from elsewhere in the kernel: not this host's own stub on the loopback.
pub fn uplink(servers: &[IpAddr]) -> Vec<IpAddr> {
    servers.iter().copied().filter(|server| !server.is_loopback() && !server.is_unspecified()).collect()
}

/// The text of a resolv.conf, with the options of the one before. Search domains are left out: they belong to the
/// network that is left.
pub fn resolv_conf(interface: &str, servers: &[IpAddr], before: &str) -> String {
    let mut text = format!("# Written by peervpn, connected on {interface}; `peervpn down` puts back what was here.\n");
    text.push_str(&record(servers));
    for line in before.lines().filter(|line| line.trim_start().starts_with("options ")) {
        let _ = writeln!(text, "{}", line.trim());
    }
    text
}

/// The lines for resolvconf(8).
pub fn record(servers: &[IpAddr]) -> String {
    servers.iter().take(MAX_SERVERS).fold(String::new(), |mut text, server| {
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}

/// The name of our record: Debian's resolvconf orders records by it, VPNs first (interface-order(5)).
pub fn record_name(kind: ResolvconfKind, interface: &str) -> String {
    match kind {
        ResolvconfKind::Openresolv => interface.to_owned(),
        ResolvconfKind::Debian => format!("tun.{interface}"),
    }
}

/// SHA-256 in hex, to know a file again.
pub fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Whether the file is still what we wrote; if not, someone has changed it since, and it is theirs.
pub fn still_ours(now: &FileState, written: &str) -> bool {
    matches!(now, FileState::Text { text, .. } if digest(text) == written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use peervpn_platform::types::ResolvConf;

    fn file(text: &str) -> ResolvConf {
        ResolvConf {
            state: FileState::Text { text: text.into(), mode: 0o644 },
            text: text.into(),
            immutable: false,
            mounted: false,
            read_only: false,
            shared: false,
        }
    }

    fn link(target: &str, text: &str) -> ResolvConf {
        ResolvConf { state: FileState::Link { target: target.into() }, ..file(text) }
    }

    fn program(kind: ResolvconfKind) -> Option<Resolvconf> {
        Some(Resolvconf { program: "/sbin/resolvconf".into(), kind })
    }

    fn text(resolved: bool, resolvconf: Option<Resolvconf>, file: ResolvConf) -> String {
        match choose(&DnsProbes { system: false, resolved, resolvconf, file }) {
            Ok(choice) => {
                let modes = choice.modes.iter().map(|mode| match mode {
                    Mode::System => "system",
                    Mode::Resolved => "resolved",
                    Mode::Resolvconf(_) => "resolvconf",
                    Mode::File { in_place: true } => "in place",
                    Mode::File { in_place: false } => "file",
                });
                format!("{}: {}", modes.collect::<Vec<_>>().join("+"), choice.trail.join(" > "))
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn the_choice_and_its_trail() {
        use ResolvconfKind::*;
        let stub = "../run/systemd/resolve/stub-resolv.conf";
        let openresolv = "# Generated by resolvconf\nnameserver 192.0.2.1\n";
        for (resolved, resolvconf, file, expected) in [
            (
                true,
                None,
                link(stub, "nameserver 127.0.0.53\n"),
                "resolved: systemd-resolved runs > /etc/resolv.conf leads to it",
            ),
            (
                true,
                None,
                file("nameserver 127.0.0.53\noptions edns0\n"),
                "resolved: systemd-resolved runs > /etc/resolv.conf leads to it",
            ),
            (
                true,
                None,
                file("nameserver 192.0.2.1\n"),
                "resolved+file: systemd-resolved runs > /etc/resolv.conf does not lead to it > no resolvconf > \
                 /etc/resolv.conf is a file: replaced",
            ),
            (
                false,
                program(Openresolv),
                file(openresolv),
                "resolvconf: systemd-resolved does not run > openresolv is there > \
                 /etc/resolv.conf was written by resolvconf",
            ),
            (
                false,
                program(Debian),
                link("/run/resolvconf/resolv.conf", "nameserver 192.0.2.1\n"),
                "resolvconf: systemd-resolved does not run > Debian's resolvconf is there > \
                 /etc/resolv.conf was written by resolvconf",
            ),
            (
                false,
                program(Openresolv),
                file("nameserver 192.0.2.1\n"),
                "file: systemd-resolved does not run > openresolv is there > \
                 /etc/resolv.conf was not written by resolvconf > /etc/resolv.conf is a file: replaced",
            ),
            (
                false,
                None,
                link("/run/NetworkManager/resolv.conf", "# Generated by NetworkManager\nnameserver 192.0.2.1\n"),
                "file: systemd-resolved does not run > no resolvconf > \
                 /etc/resolv.conf is a symbolic link: replaced by a file",
            ),
            (
                false,
                None,
                ResolvConf { mounted: true, ..file("") },
                "in place: systemd-resolved does not run > no resolvconf > \
                 /etc/resolv.conf is a mount point: written in place",
            ),
            (
                false,
                None,
                ResolvConf { state: FileState::Missing, ..file("") },
                "file: systemd-resolved does not run > no resolvconf > /etc/resolv.conf is missing: made",
            ),
            (
                false,
                None,
                ResolvConf { immutable: true, ..file("") },
                "/etc/resolv.conf is protected against changes (immutable attribute)",
            ),
            (
                false,
                program(Openresolv),
                ResolvConf { shared: true, ..file(openresolv) },
                "this network namespace uses its host's /etc/resolv.conf, which other programs need as it is",
            ),
            (
                false,
                None,
                ResolvConf { read_only: true, mounted: true, ..file("") },
                "/etc/resolv.conf is on a read-only file system",
            ),
        ] {
            assert_eq!(text(resolved, resolvconf, file), expected);
        }
    }

    #[test]
    fn servers_of_a_resolv_conf() {
        let text = "# nameserver 192.0.2.9\nnameserver 127.0.0.1\n nameserver\t192.0.2.1 # home\nnameserver fe80::1%eth0\n\
                    nameserver 2001:db8::1\nsearch lan\n";
        let found = servers(text);
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["127.0.0.1", "192.0.2.1", "2001:db8::1"]
        );
        assert_eq!(uplink(&found), found[1..]);
    }

    #[test]
    fn our_text_keeps_options_and_is_known_again() {
        let servers: Vec<IpAddr> = ["10.1.2.3", "fd00::1"].iter().map(|s| s.parse().unwrap()).collect();
        let ours = resolv_conf("peervpn0", &servers, "search home\noptions edns0 timeout:1\nnameserver 192.168.1.1\n");
        assert_eq!(
            ours.lines().skip(1).collect::<Vec<_>>(),
            ["nameserver 10.1.2.3", "nameserver fd00::1", "options edns0 timeout:1"]
        );
        let state = |text: &str| FileState::Text { text: text.into(), mode: 0o644 };
        assert!(still_ours(&state(&ours), &digest(&ours)));
        assert!(!still_ours(&state("nameserver 192.0.2.1\n"), &digest(&ours)));
        assert!(!still_ours(&FileState::Missing, &digest(&ours)));
        assert!(!still_ours(&FileState::Link { target: "x".into() }, &digest(&ours)));
    }
}
