//! The nf_tables encoder against the kernel, judged by nft: what we install by netlink must list exactly like our text
//! form loaded by `nft -f`. Each test runs in a network namespace of its own thread.
#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};

use peervpn_platform::nft::{Base, Chain, Hook, Kind, Match, Rule, Statement, Table};
use peervpn_platform::os;
use peervpn_platform::types::Family;

/// Puts this thread into a new, empty network namespace; says why not and returns false where that is impossible.
fn new_namespace() -> bool {
    // SAFETY: no memory is involved; only this thread's network namespace changes.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        eprintln!("SKIP: needs root to make network namespaces");
        return false;
    }
    if Command::new("nft").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIP: nft is not installed");
        return false;
    }
    true
}

fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("nft starts");
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("nft writes UTF-8")
}

fn load(text: &str) {
    use std::io::Write;
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft starts");
    child.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("nft reads");
    assert!(child.wait().expect("it was started").success(), "nft refuses:\n{text}");
}

fn rule(matches: &[Match], statements: &[Statement]) -> Rule {
    Rule { matches: matches.to_vec(), statements: statements.to_vec(), comment: None }
}

fn chain(name: &str, kind: Kind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: Some(Base { kind, hook, priority, drop: false }), rules }
}

fn prefix(text: &str) -> ipnetwork::IpNetwork {
    text.parse().expect("a prefix")
}

/// Every match and every statement at least once.
fn everything() -> Table {
    let name = || "peervpn0".to_owned();
    let mut conditions = vec![
        vec![Match::Iif { name: name(), not: false }],
        vec![Match::Iif { name: "abcdefghijklmno".to_owned(), not: true }],
        vec![Match::Oif { name: name(), not: false }, Match::Oif { name: "lo".to_owned(), not: true }],
        vec![Match::Family(Family::V4)],
        vec![Match::Family(Family::V6)],
        vec![Match::L4Proto(17)],
        vec![Match::L4Proto(6), Match::SourcePort(1, 1)],
        vec![Match::L4Proto(6), Match::SourcePort(1024, 65535)],
        vec![Match::L4Proto(17), Match::DestinationPort(53, 53)],
        vec![Match::L4Proto(17), Match::DestinationPort(255, 256)],
        vec![Match::L4Proto(17), Match::UdpLength(156)],
        vec![Match::L4Proto(17), Match::UdpPayload(0x0100_0000)],
        vec![Match::L4Proto(17), Match::DestinationPort(53, 53), Match::UdpLength(156), Match::UdpPayload(0xff)],
        vec![Match::IcmpType(8)],
        vec![Match::Icmp6Type(128)],
        vec![Match::CtEstablished],
        vec![Match::CtNew],
        vec![Match::CtInvalid],
        vec![Match::CtDnat],
        vec![Match::CtNotRelated],
        vec![Match::CtOriginal],
        vec![Match::CtReply],
        vec![Match::DestinationLocal { not: false }],
        vec![Match::DestinationLocal { not: true }],
        vec![Match::TcpSyn],
        vec![Match::TcpNotSyn],
    ];
    for not in [false, true] {
        for value in [0, 1, 0x51820, u32::MAX] {
            conditions.push(vec![Match::Mark { value, not }]);
            conditions.push(vec![Match::CtMark { value, not }]);
        }
        for text in ["10.0.0.0/8", "10.64.0.0/10", "192.0.2.1/32", "fc00::/7", "2001:db8::/32", "2001:db8::1/128"] {
            conditions.push(vec![Match::Source { prefix: prefix(text), not }]);
            conditions.push(vec![Match::Destination { prefix: prefix(text), not }]);
        }
    }
    let mut all: Vec<Rule> = conditions.iter().map(|matches| rule(matches, &[Statement::Counter])).collect();
    for statement in [Statement::Accept, Statement::Drop, Statement::Reject, Statement::Jump("called".to_owned())] {
        all.push(rule(&[], &[statement]));
    }
    all.push(rule(&[Match::TcpSyn], &[Statement::ClampMss]));
    all.push(rule(&[Match::L4Proto(6)], &[Statement::Counter, Statement::Reset]));
    all.push(rule(&[], &[Statement::Over { per_second: 200, burst: 300 }, Statement::Counter, Statement::Drop]));
    all.push(rule(&[], &[Statement::SetMark(0x51820)]));
    all.push(rule(&[], &[Statement::SetCtMark(0x51820)]));
    all.push(Rule { comment: Some("ünïcode, 'quotes'".to_owned()), ..rule(&[], &[Statement::Accept]) });
    all.push(Rule { comment: Some("x".repeat(127)), ..rule(&[], &[Statement::Accept]) });

    let dnat = ["192.0.2.7", "2001:db8::7"]
        .map(|address| address.parse().expect("an address"))
        .map(|address| rule(&[Match::Family(Family::of(&address))], &[Statement::Dnat(address)]));
    let mark = vec![rule(&[Match::CtMark { value: 7, not: false }], &[Statement::SetMark(7)])];
    let masquerade = vec![rule(&[Match::Oif { name: name(), not: true }], &[Statement::Masquerade])];
    Table {
        name: "peervpn-test.1".to_owned(),
        chains: vec![
            chain("pre", Kind::Nat, Hook::Prerouting, -100, dnat.to_vec()),
            Chain {
                base: Some(Base { kind: Kind::Filter, hook: Hook::Input, priority: 0, drop: true }),
                ..chain("inward", Kind::Filter, Hook::Input, 0, Vec::new())
            },
            chain("across", Kind::Filter, Hook::Forward, -7, all),
            chain("outward", Kind::Route, Hook::Output, -150, mark),
            chain("post", Kind::Nat, Hook::Postrouting, 100, masquerade),
            Chain { name: "called".to_owned(), base: None, rules: vec![rule(&[], &[Statement::Counter])] },
        ],
    }
}

fn shape(table: &Table) -> Vec<(String, usize)> {
    table.chains.iter().map(|chain| (chain.name.clone(), chain.rules.len())).collect()
}

#[test]
fn every_word_reaches_the_kernel_as_nft_would_put_it() {
    if !new_namespace() {
        return;
    }
    let table = everything();
    let mut host = os::host().expect("netlink");
    host.replace_table(&table).expect("the kernel takes it");
    let ours = nft(&["list", "ruleset"]);
    assert_eq!(host.table_shape(&table.name).expect("read back"), Some(shape(&table)));
    host.delete_table(&table.name).expect("delete");
    assert_eq!(nft(&["list", "ruleset"]), "");
    load(&table.to_string());
    let theirs = nft(&["list", "ruleset"]);
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
}

#[test]
fn replaces_whole_and_leaves_other_tables_alone() {
    if !new_namespace() {
        return;
    }
    load("table inet other { chain peervpn { counter; }\n}\ntable ip peervpn { chain c { counter; }\n}");
    let before = nft(&["list", "ruleset"]);
    let mut host = os::host().expect("netlink");
    assert_eq!(host.table_shape("peervpn").expect("read"), None, "a table of another family is not ours");
    host.delete_table("peervpn").expect("a missing table is no error");
    let mut table = everything();
    table.name = "peervpn".to_owned();
    for _ in 0..3 {
        host.replace_table(&table).expect("replace");
    }
    assert_eq!(host.table_shape("peervpn").expect("read"), Some(shape(&table)));
    table.chains.truncate(2);
    host.replace_table(&table).expect("replace");
    assert_eq!(host.table_shape("peervpn").expect("read"), Some(shape(&table)));
    host.delete_table("peervpn").expect("delete");
    host.delete_table("peervpn").expect("a missing table is no error");
    assert_eq!(nft(&["list", "ruleset"]), before);
}

#[test]
fn a_refused_rule_is_named_and_changes_nothing() {
    if !new_namespace() {
        return;
    }
    let mut host = os::host().expect("netlink");
    host.replace_table(&everything()).expect("the kernel takes it");
    let before = nft(&["list", "ruleset"]);
    let mut table = everything();
    // masquerade only works in a nat chain of postrouting
    table.chains[2].rules.insert(4, rule(&[], &[Statement::Masquerade]));
    let error = host.replace_table(&table).expect_err("the kernel refuses it");
    assert_eq!(
        error.to_string(),
        "cannot replace firewall table inet peervpn-test.1 (chain across, rule 5): \
         Operation not supported (os error 95)"
    );
    assert_eq!(nft(&["list", "ruleset"]), before);
    // the refusal left no answer behind that a later request could take for its own
    assert_eq!(host.table_shape("peervpn-test.1").expect("read back"), Some(shape(&everything())));
    host.replace_table(&everything()).expect("the kernel takes it");

    table.chains[2].rules[4] = rule(&[Match::Iif { name: "sixteen-letters!".to_owned(), not: false }], &[]);
    let error = host.replace_table(&table).expect_err("too long for an interface");
    assert_eq!(error.kind(), Some(std::io::ErrorKind::InvalidInput));
    assert!(error.to_string().contains("sixteen-letters!"), "{error}");
}

#[test]
fn a_table_of_thousands_of_rules() {
    if !new_namespace() {
        return;
    }
    let address = |index: u32| prefix(&std::net::Ipv4Addr::from(0x0a00_0000 + index).to_string());
    let mut rules: Vec<Rule> = (0..3000)
        .map(|index| rule(&[Match::Destination { prefix: address(index), not: false }], &[Statement::Accept]))
        .collect();
    let mut table = Table {
        name: "peervpn".to_owned(),
        chains: vec![chain("forward", Kind::Filter, Hook::Forward, 0, rules.clone())],
    };
    let mut host = os::host().expect("netlink");
    host.replace_table(&table).expect("the kernel takes it");
    assert_eq!(host.table_shape("peervpn").expect("read back"), Some(shape(&table)));

    // many refusals in one batch: the first is the one that is told
    for index in (100..3000).step_by(2) {
        rules[index].statements = vec![Statement::Masquerade];
    }
    table.chains[0].rules = rules;
    let error = host.replace_table(&table).expect_err("the kernel refuses it").to_string();
    assert!(error.contains("(chain forward, rule 101)"), "{error}");
    assert_eq!(host.table_shape("peervpn").expect("read back"), Some(shape(&table)));
}
