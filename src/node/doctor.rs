//! `doctor`: what would stop `exit` or `connect` on this machine, and the command that mends it. Changes nothing.

use peervpn_platform::files;
use peervpn_platform::nft::foreign::Verdict;
use peervpn_platform::os::{self, SystemHost};
use peervpn_platform::types::{Family, RouteLookup, System};
use peervpn_platform::{Host, OUR_ALIAS};
use serde::Serialize;

use super::exit::FIRST_PORT;
use super::{PROBES, apply, recover, state};
use crate::config::Places;
use crate::error::{Failure, Words, chain};
use crate::host::firewall::can_exit;
use crate::host::{foreign, numbers};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but a person may want to know.
    Note,
    /// Would stop a node.
    Stop,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, one word.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// The commands it would stop.
    pub stops: Vec<&'static str>,
    /// What was found.
    pub found: String,
    /// What mends it.
    pub hint: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Nothing would stop `exit`.
    pub exit: bool,
    /// Nothing would stop `connect`.
    pub connect: bool,
    /// The findings.
    pub findings: Vec<Finding>,
}

const BOTH: [&str; 2] = ["exit", "connect"];

/// Kinds of links that another VPN would have, in each system's words.
const TUNNELS: [&str; 3] = ["wireguard", "tun", "utun"];

/// Findings as they come.
#[derive(Default)]
struct Notes(Vec<Finding>);

impl Notes {
    fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.0.push(Finding { check, level: Level::Ok, stops: Vec::new(), found: found.into(), hint: None });
    }

    fn note(&mut self, check: &'static str, found: impl Into<String>, hint: impl Into<String>) {
        let hint = Some(hint.into());
        self.0.push(Finding { check, level: Level::Note, stops: Vec::new(), found: found.into(), hint });
    }

    fn stop(&mut self, check: &'static str, stops: &[&'static str], found: impl Into<String>, hint: impl Into<String>) {
        let hint = Some(hint.into());
        self.0.push(Finding { check, level: Level::Stop, stops: stops.to_vec(), found: found.into(), hint });
    }

    /// A failure that a node would meet.
    fn failure(&mut self, check: &'static str, failure: Failure) {
        self.stop(check, &BOTH, failure.message, failure.hint.unwrap_or_default());
    }
}

/// Looks at everything a node needs.
pub fn examine(places: &Places, interface: &str) -> Report {
    let mut notes = Notes::default();
    if os::privileged() {
        notes.ok("privileges", "network configuration and raw sockets are allowed");
    } else {
        notes.stop(
            "privileges",
            &BOTH,
            format!("exit and connect need {}; so does the rest of this examination", Words::HERE.administrator()),
            Words::HERE.elevated("doctor"),
        );
    }
    if let Err(no) = can_exit(os::SYSTEM) {
        let failure = Failure::from(no);
        notes.stop("exit", &["exit"], failure.message, failure.hint.unwrap_or_default());
    }
    back_ends(&mut notes);
    files_of_ours(places, &mut notes);
    match os::host() {
        Ok(mut host) => network(&mut host, interface, &mut notes),
        Err(error) => notes.failure("network", error.into()),
    }
    let free = |command| notes.0.iter().all(|finding| !finding.stops.contains(&command));
    Report { exit: free("exit"), connect: free("connect"), findings: notes.0 }
}

fn back_ends(notes: &mut Notes) {
    match (os::kernel_wireguard(), os::tun_available()) {
        (Err(error), false) => notes.failure("wireguard", error.into()),
        (Ok(true), _) | (_, true) => notes.ok("wireguard", "there is a WireGuard back end (peervpn info tells which)"),
        (_, false) => {
            let (found, hint) = Words::HERE.no_back_end();
            notes.stop("wireguard", &BOTH, found, hint);
        }
    }
}

fn files_of_ours(places: &Places, notes: &mut Notes) {
    let dir = &places.state_dir;
    match std::fs::symlink_metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            notes.ok("state", format!("{} will be made", dir.display()));
        }
        // looks only, since it is there
        _ => match files::private_dir(dir) {
            Err(error) => notes.failure("state", apply::unwritable(error)),
            Ok(()) if os::writable(dir) => notes.ok("state", format!("{} is ours", dir.display())),
            Ok(()) => notes.stop(
                "state",
                &BOTH,
                format!("{} cannot be written to", dir.display()),
                "mount it writable, or choose another place with --state-dir DIR",
            ),
        },
    }
    if let Err(failure) = state::key(places) {
        notes.failure("key", failure);
    }
    if let Err(failure) = state::peers(places) {
        notes.stop("peers", &["exit"], failure.message, failure.hint.unwrap_or_default());
    }
    let (mut running, mut orphaned) = (Vec::new(), Vec::new());
    for interface in recover::journals(places).unwrap_or_default() {
        match files::Log::open(&apply::journal_path(places, &interface)) {
            Ok(files::LogOpen::Busy(_)) => running.push(interface),
            Ok(files::LogOpen::Locked(log)) if !log.is_empty().unwrap_or(true) => orphaned.push(interface),
            _ => {}
        }
    }
    if !running.is_empty() {
        notes.note("nodes", format!("a node runs on {}", running.join(", ")), Words::HERE.ours("status"));
    }
    if !orphaned.is_empty() {
        notes.note(
            "journal",
            format!("a node on {} did not stop by itself; what it changed is still in place", orphaned.join(", ")),
            Words::HERE.ours("recover"),
        );
    }
}

fn network(host: &mut SystemHost, interface: &str, notes: &mut Notes) {
    match host.link(interface) {
        Ok(Some(link)) if link.alias.as_deref() != Some(OUR_ALIAS) => notes.stop(
            "interface",
            &BOTH,
            format!("the interface {interface} exists already and is not ours"),
            Words::HERE.name_taken(interface),
        ),
        Ok(_) => {}
        Err(error) => notes.failure("interface", error.into()),
    }
    if os::SYSTEM != System::Linux {
        // what follows asks for sysctls, policy routing and nftables
        ways(host, notes);
        return;
    }
    if os::writable(std::path::Path::new("/proc/sys/net/ipv4/ip_forward")) {
        notes.ok("settings", "kernel settings can be changed");
    } else if os::privileged() {
        notes.stop(
            "settings",
            &["exit"],
            "the kernel's settings (/proc/sys/net) are read-only here",
            "in a container, start it with --privileged, or mount /proc/sys/net writable",
        );
    }
    ways(host, notes);
    match (host.rules(), host.routes()) {
        (Ok(rules), Ok(routes)) if numbers::choose(os::SYSTEM, &rules, &routes).is_none() => notes.stop(
            "rules",
            &["connect"],
            "no free fwmark, table or rule priority is left on this host",
            "see who takes them: ip rule",
        ),
        (Ok(rules), Ok(_)) if rules.is_empty() => notes.stop(
            "rules",
            &["connect"],
            "this kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES)",
            "take a kernel that has it, as every distribution's does",
        ),
        (Ok(_), Ok(_)) => notes.ok("rules", "policy routing works, with numbers to spare"),
        (rules, routes) => {
            let error = rules.err().or(routes.err());
            notes.stop(
                "rules",
                &BOTH,
                error.map_or_else(String::new, |e| chain(&e)),
                "take a kernel with policy routing",
            );
        }
    }
    firewall(host, interface, notes);
    if let Some(holder) = os::port_holder(FIRST_PORT) {
        notes.note(
            "port",
            format!("UDP port {FIRST_PORT} is in use by {} (process {})", holder.program, holder.pid),
            "nothing to do: an exit takes the next one; or choose with --port N",
        );
    }
}

/// How this host reaches the internet.
fn ways(host: &mut dyn Host, notes: &mut Notes) {
    let mut ways: Vec<(Family, RouteLookup)> = Vec::new();
    for probe in PROBES {
        if let Ok(Some(way)) = host.route_lookup(probe, 0) {
            ways.push((Family::of(&probe), way));
        }
    }
    let by = |family| ways.iter().find(|(f, _)| *f == family).map(|(_, way)| way.interface.clone());
    match (by(Family::V4), by(Family::V6)) {
        (None, None) => notes.stop(
            "route",
            &BOTH,
            "this host has no default route",
            format!("connect it to the internet first; its routes: {}", Words::HERE.routes()),
        ),
        (Some(v4), Some(_)) => notes.ok("route", format!("IPv4 and IPv6 leave by {v4}")),
        (Some(v4), None) => notes.ok("route", format!("IPv4 leaves by {v4}; there is no way for IPv6")),
        (None, Some(v6)) => notes.ok("route", format!("IPv6 leaves by {v6}; there is no way for IPv4")),
    }
    let links = host.links().unwrap_or_default();
    for (_, way) in &ways {
        let link = links.iter().find(|link| link.name == way.interface);
        let tunnel = link.is_some_and(|l| l.kind.as_deref().is_some_and(|kind| TUNNELS.contains(&kind)));
        let ours = link.is_some_and(|l| l.alias.as_deref() == Some(OUR_ALIAS));
        if tunnel && !ours {
            notes.note(
                "route",
                format!("another VPN ({}) carries this host's traffic", way.interface),
                "an exit's peers would leave through it, and connect may be refused: stop it first if that is not wanted",
            );
            break;
        }
    }
}

fn firewall(host: &mut SystemHost, interface: &str, notes: &mut Notes) {
    match host.seen_chains() {
        Ok(chains) => {
            notes.ok("firewall", "nftables works");
            let places: Vec<String> = foreign::places(&chains, interface).iter().map(ToString::to_string).collect();
            if !places.is_empty() {
                notes.ok(
                    "firewall",
                    format!(
                        "another program drops forwarded packets ({}): an exit lets its own pass",
                        places.join(", ")
                    ),
                );
            }
            let refuses = |chain: &&peervpn_platform::nft::foreign::SeenChain| {
                chain.receives && (chain.drops || chain.rules.iter().any(|rule| rule.always == Some(Verdict::Drop)))
            };
            if let Some(chain) = chains.iter().find(refuses) {
                notes.note(
                    "firewall",
                    format!(
                        "the firewall here ({} {} {}) drops packets that come in unasked; an exit's port must be open",
                        chain.family, chain.table, chain.name
                    ),
                    format!("ufw allow {FIRST_PORT}/udp; or: firewall-cmd --add-port={FIRST_PORT}/udp"),
                );
            }
        }
        Err(error) if os::privileged() => notes.stop(
            "firewall",
            &BOTH,
            format!("nftables does not work here: {}", chain(&error)),
            "load it: modprobe nf_tables; or take a kernel that has it",
        ),
        Err(_) => {}
    }
    for (names, command) in foreign::LEGACY {
        if os::legacy_tables(names).iter().any(|table| table == "filter") {
            notes.note(
                "firewall",
                format!("{command} has rules, which cannot be seen from here and may drop what an exit forwards"),
                foreign::legacy_mend(command, interface),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use peervpn_platform::types::{Route, RouteKind};

    use super::*;
    use crate::node::fake::{FakeHost, State, link};

    #[test]
    fn another_vpn_that_carries_the_traffic_is_noted() {
        let noted = |name: &str, kind, alias| {
            let route = Route {
                table: 254,
                destination: Family::V4.default_prefix(),
                kind: RouteKind::Unicast,
                oif: Some(name.to_owned()),
                gateway: None,
                metric: None,
                protocol: 0,
                mtu: None,
            };
            let links = vec![link(2, name, kind, alias)];
            let mut notes = Notes::default();
            ways(&mut FakeHost::new(State { links, routes: vec![route], ..State::default() }), &mut notes);
            notes.0.iter().any(|finding| finding.found == format!("another VPN ({name}) carries this host's traffic"))
        };
        assert!(noted("utun4", "utun", None) && noted("tun0", "tun", None) && noted("wg0", "wireguard", None));
        assert!(!noted("en0", "ether", None) && !noted("peervpn0", "utun", Some(OUR_ALIAS)));
    }
}
