//! The two firewall policies, as text against golden files (`PEERVPN_BLESS=1` writes them anew), and through the kernel:
//! what we install by netlink lists like the golden file loaded by `nft -f`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use peervpn::host::firewall::{
    ConnectPolicy, ExitPolicy, KillSwitch, OnlyDns, Policy, Surroundings, closes, table_name,
};
use peervpn::host::lan::Lan;
use peervpn_platform::nft::{Rule, Statement, Table};
use peervpn_platform::pf::Anchor;
use peervpn_platform::types::{Family, System};

pub const V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
pub const FWMARK: u32 = 0x51820;

pub fn exit() -> ExitPolicy<'static> {
    ExitPolicy {
        interface: "peervpn0",
        port: 51820,
        initiations: 200,
        v4: Some(V4),
        v6: Some(V6),
        allow_lan: false,
        allow_peers: false,
        services: Vec::new(),
        dns: Vec::new(),
        lan: &[],
        outer: None,
    }
}

pub fn connect() -> ConnectPolicy<'static> {
    ConnectPolicy {
        interface: "peervpn0",
        v4: Some(V4),
        v6: Some(V6),
        fwmark: FWMARK,
        refuse_v6: false,
        listening: Vec::new(),
        carriers: &[],
        dns: None,
        kill_switch: None,
    }
}

/// File name and table of every policy that has a golden file.
fn golden() -> Vec<(&'static str, Table)> {
    let open = ExitPolicy { allow_lan: true, allow_peers: true, interface: "pv1", ..exit() };
    let services = ExitPolicy { services: vec![(17, 53), (6, 53)], v6: None, ..exit() };
    let no_v6 = ConnectPolicy { refuse_v6: true, listening: vec![443, 22, 80, 81, 22], ..connect() };
    let v4_only = ConnectPolicy { v6: None, interface: "pv1", ..connect() };
    let lan = |interface: &str, prefix: &str| Lan { interface: interface.into(), prefix: prefix.parse().unwrap() };
    let lans = [lan("eth0", "192.168.1.0/24"), lan("docker0", "172.17.0.0/16"), lan("eth0", "2001:db8:1::/64")];
    let everything = Family::BOTH.map(Family::default_prefix);
    let one = ["198.51.100.0/24".parse().unwrap()];
    let other = ["198.51.100.128/25".parse().unwrap()];
    let own = [V4.into(), V6.into()];
    let resolver = ["192.168.1.1".parse().unwrap()];
    let closed = KillSwitch { allowed: &everything, exclude: &[], exit: &own, lan: Some(&lans) };
    let only_dns = Some(OnlyDns { lan_servers: &[] });
    let kill_switch = ConnectPolicy { kill_switch: Some(closed), dns: only_dns, ..connect() };
    let no_lan =
        ConnectPolicy { kill_switch: Some(KillSwitch { lan: None, ..closed }), carriers: &[0xca6c], ..connect() };
    let split = KillSwitch { allowed: &one, exclude: &other, ..closed };
    let split = ConnectPolicy { kill_switch: Some(split), dns: Some(OnlyDns { lan_servers: &resolver }), ..connect() };
    let dns = ExitPolicy {
        dns: vec![resolver[0], "192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
        lan: &lans,
        ..exit()
    };
    vec![
        ("connect-kill-switch.nft", Policy::Connect(kill_switch).table()),
        ("connect-kill-switch-no-lan.nft", Policy::Connect(no_lan).table()),
        ("connect-split.nft", Policy::Connect(split).table()),
        ("exit-dns.nft", Policy::Exit(dns).table()),
        ("exit.nft", Policy::Exit(exit()).table()),
        ("exit-open.nft", Policy::Exit(open).table()),
        ("exit-services-v4.nft", Policy::Exit(services).table()),
        ("connect.nft", Policy::Connect(connect()).table()),
        ("connect-exit-without-v6.nft", Policy::Connect(no_v6).table()),
        ("connect-v4-only.nft", Policy::Connect(v4_only).table()),
    ]
}

pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan").join(name)
}

#[test]
fn policies_read_as_agreed() {
    for (name, table) in golden() {
        if std::env::var_os("PEERVPN_BLESS").is_some() {
            std::fs::write(path(name), table.to_string()).expect("the golden file is writable");
        }
        let agreed = std::fs::read_to_string(path(name)).expect("the golden file is there");
        assert_eq!(table.to_string(), agreed, "{name}");
    }
}

#[test]
fn a_table_for_each_interface() {
    assert_eq!(table_name("peervpn0"), "peervpn");
    assert_eq!(table_name("pv1"), "peervpn-pv1");
    assert_eq!(table_name("peervpn1"), "peervpn-peervpn1");
}

/// The journal knows a firewall by this name alone: a kill switch that it does not find again is lost.
#[test]
fn every_systems_firewall_has_that_name() {
    for system in [System::Linux, System::Macos, System::Windows] {
        for interface in ["peervpn0", "pv1"] {
            let policy = Policy::Connect(ConnectPolicy { interface, ..connect() });
            let around = Surroundings { port: None, mtu: 1420, uplinks: Vec::new() };
            let firewall = policy.firewall(system, &around).expect("every system can connect");
            assert_eq!(firewall.name(), table_name(interface), "{system:?}");
        }
    }
}

/// What a journal does not tell any more is read off the rules, as each system shows them.
#[test]
fn a_kill_switch_is_known_by_its_rules() {
    let comments = |table: Table| {
        let rules = table.chains.into_iter().flat_map(|chain| chain.rules);
        rules.filter_map(|rule| rule.comment).collect()
    };
    let lines = |anchor: Anchor| anchor.rules.lines().map(str::to_owned).collect();
    let linux = golden().into_iter().map(|(name, table)| (System::Linux, name, comments(table)));
    let macos = super::anchors::golden().into_iter().map(|(name, anchor)| (System::Macos, name, lines(anchor)));
    let windows = super::filters::golden().into_iter().map(|(name, set)| (System::Windows, name, set.names()));
    let all: Vec<(System, &str, Vec<String>)> = linux.chain(macos).chain(windows).collect();
    for (system, name, rules) in all {
        let expected = ["kill-switch", "split", "lockdown"].iter().any(|closed| name.contains(closed));
        assert_eq!(closes(system, &rules), expected, "{name}");
    }
}

#[test]
fn verdicts_end_their_rule_and_comments_fit() {
    let verdict = |statement: &Statement| {
        matches!(statement, Statement::Accept | Statement::Drop | Statement::Reject | Statement::Reset)
            || matches!(statement, Statement::Masquerade | Statement::Jump(_))
    };
    let check = |rule: &Rule| {
        let early = rule.statements.iter().rev().skip(1).any(verdict);
        !early && !rule.statements.is_empty() && rule.comment.as_ref().is_none_or(|comment| comment.len() <= 127)
    };
    for (name, table) in golden() {
        for chain in &table.chains {
            for rule in &chain.rules {
                assert!(check(rule), "{name}: {rule}");
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_kernel_holds_what_the_golden_files_say() {
    use peervpn_platform::os;
    if !super::firewall_lab::net::enter_new_namespace(&["nft"]) {
        return;
    }
    let mut host = os::host().expect("netlink");
    for (name, table) in golden() {
        let list = || super::firewall_lab::net::run(&["nft", "-s", "list", "table", "inet", &table.name]);
        host.replace_table(&table).expect("the kernel takes it");
        assert_eq!(host.table_shape(&table.name).expect("read back"), Some(table.shape()), "{name}");
        let ours = list();
        host.delete_table(&table.name).expect("delete");
        super::firewall_lab::net::run(&["nft", "-f", path(name).to_str().expect("UTF-8")]);
        assert_eq!(ours, list(), "{name}");
        host.delete_table(&table.name).expect("delete");
        assert_eq!(host.table_shape(&table.name).expect("read back"), None, "{name}");
    }
}
