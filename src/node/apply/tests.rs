//! Apply, `down` and `recover` on a host in memory, with a journal on the disk: what was there is there again, wherever
//! the node is killed and whatever the system refuses.

use std::net::Ipv4Addr;

use peervpn_platform::firewall::Firewall;
use peervpn_platform::nft::foreign::{SeenChain, SeenRule, TableFamily, Verdict};
use peervpn_platform::types::{Family, RouteKind, System};
use peervpn_platform::{OUR_ALIAS, OUR_PROTOCOL};

use super::*;
use crate::host::firewall::{ConnectPolicy, KillSwitch, Policy, Surroundings};
use crate::node::fake::{FORWARDING, FakeHost, Scratch, State, Trouble, Unwarned, link};
use crate::node::recover::{Recovered, run_on};

/// No node of this machine has it: a sweep asks the machine itself for a device's process.
const NAME: &str = "pvfake0";
const SYSTEMS: [System; 3] = [System::Linux, System::Macos, System::Windows];
const KILLED: [Trouble; 2] = [Trouble::KilledBefore, Trouble::KilledAfter];

fn route(destination: &str, oif: &str, gateway: Option<&str>, protocol: u8) -> Route {
    Route {
        table: 254,
        destination: destination.parse().unwrap(),
        kind: RouteKind::Unicast,
        oif: Some(oif.to_owned()),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        metric: None,
        protocol,
        mtu: None,
    }
}

fn rule(family: Family, priority: u32) -> Rule {
    let fwmark = Some((0x5045, u32::MAX));
    Rule { family, priority, fwmark, invert: true, table: 51820, suppress_prefixlen: None, protocol: OUR_PROTOCOL }
}

fn docker() -> Place {
    Place { family: TableFamily::Ip, table: "filter".into(), chain: "FORWARD".into(), position: Position::Last }
}

/// A host with a link to a router, as it is before we come.
fn untouched() -> State {
    let settings = [
        ("net/ipv4/conf/all/src_valid_mark", "0"),
        (FORWARDING, "0"),
        ("net/ipv6/conf/eth0/forwarding", "1"),
        ("net/inet/ip/forwarding", "0"),
    ];
    let rules = vec![SeenRule { handle: 1, comment: Some("docker's".into()), always: Some(Verdict::Drop) }];
    State {
        links: vec![link(2, "eth0", "ether", None)],
        routes: vec![route("0.0.0.0/0", "eth0", Some("192.0.2.1"), 0)],
        settings: settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        chains: vec![SeenChain {
            family: TableFamily::Ip,
            table: docker().table,
            name: docker().chain,
            forwards: true,
            receives: false,
            drops: true,
            rules,
        }],
        ..State::default()
    }
}

fn kill_switch(system: System) -> Firewall {
    let allowed = Family::BOTH.map(Family::default_prefix);
    let policy = Policy::Connect(ConnectPolicy {
        interface: NAME,
        v4: Some(Ipv4Addr::new(100, 100, 1, 2)),
        v6: None,
        fwmark: 0x5045,
        refuse_v6: false,
        listening: Vec::new(),
        carriers: &[],
        dns: None,
        kill_switch: Some(KillSwitch { allowed: &allowed, exclude: &[], exit: &[], lan: None }),
    });
    policy.firewall(system, &Surroundings::default()).unwrap()
}

/// Every kind of change that this system's nodes make of its host.
fn plan(system: System) -> Vec<Change> {
    let sysctl = |key: &str, beside: &[&str]| Change::Sysctl {
        key: key.to_owned(),
        value: "1".to_owned(),
        beside: beside.iter().map(|key| (*key).to_owned()).collect(),
    };
    let link = Change::Link { name: NAME.to_owned() };
    let firewall = Change::Firewall(kill_switch(system));
    let past = Change::Route(route("198.51.100.7/32", "eth0", Some("192.0.2.1"), OUR_PROTOCOL));
    let into = ["0.0.0.0/1", "128.0.0.0/1"].map(|half| Change::Route(route(half, NAME, None, OUR_PROTOCOL)));
    let dns = Change::SystemDns { interface: NAME.to_owned(), servers: vec![Ipv4Addr::new(100, 100, 1, 1).into()] };
    match system {
        System::Linux => vec![
            sysctl("net/ipv4/conf/all/src_valid_mark", &[]),
            link,
            sysctl(FORWARDING, &["net/ipv6/conf/eth0/forwarding", "net/ipv6/conf/gone/forwarding"]),
            firewall,
            Change::Rule(rule(Family::V4, 5180)),
            Change::Rule(rule(Family::V6, 5181)),
            past,
            Change::ForeignAccept { place: docker(), interface: NAME.to_owned() },
        ],
        System::Macos => {
            [vec![sysctl("net/inet/ip/forwarding", &[]), firewall, past], into.to_vec(), vec![dns]].concat()
        }
        System::Windows => [vec![link, firewall], into.to_vec(), vec![dns]].concat(),
    }
}

fn start(host: &FakeHost, places: &Places) -> Result<Applier<FakeHost>, Failure> {
    Applier::open_on(host.clone(), places, NAME, "connect", &mut Unwarned)
}

/// Makes the first `count` changes of the plan, as a node that closes the host; one that fails is the last.
fn apply(applier: &mut Applier<FakeHost>, system: System, count: usize) -> Result<(), Failure> {
    applier.will_close(true);
    plan(system).into_iter().take(count).try_for_each(|change| applier.make(change))
}

/// How many things are there that were not, or are not as they were.
fn other_than_before(state: &State) -> usize {
    let before = untouched();
    let settings = state.settings.iter().filter(|(key, value)| before.settings.get(*key) != Some(value)).count();
    let new = |state: &State| {
        let chains: usize = state.chains.iter().map(|chain| chain.rules.len()).sum();
        [state.links.len(), state.routes.len(), state.rules.len(), state.firewalls.len(), state.dns.len(), chains]
    };
    settings + new(state).iter().sum::<usize>() - new(&before).iter().sum::<usize>()
}

/// A node whose process ends without undoing anything.
fn killed_node(host: &FakeHost, places: &Places, system: System) {
    apply(&mut start(host, places).unwrap(), system, usize::MAX).unwrap();
}

fn recover(host: &FakeHost, places: &Places) -> Result<Recovered, Failure> {
    run_on(&mut host.clone(), places, None, &mut Unwarned)
}

#[track_caller]
fn recovers(host: &FakeHost, places: &Places, what: &str) {
    let recovered = recover(host, places).unwrap_or_else(|failure| panic!("{what}: {failure}"));
    assert_eq!(recovered.interfaces, [NAME], "{what}");
    assert_eq!(host.state(), untouched(), "{what}");
    assert!(!journal_path(places, NAME).exists(), "{what}");
}

#[test]
fn recover_waits_for_a_node_that_is_still_dying() {
    let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("dying"));
    killed_node(&host, &scratch.0, System::Linux);
    let files::LogOpen::Locked(held) = files::Log::open(&journal_path(&scratch.0, NAME)).unwrap() else {
        panic!("nobody has it")
    };
    // a living one answers on its socket; this one has none
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            drop(held);
        });
        recovers(&host, &scratch.0, "the lock is let go of");
    });
}

#[test]
fn what_is_applied_is_undone() {
    for system in SYSTEMS {
        let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("applied"));
        let mut applier = start(&host, &scratch.0).unwrap();
        apply(&mut applier, system, usize::MAX).unwrap();
        applier.verify().unwrap();
        assert_eq!(host.state().firewalls.len(), 1, "{system}");
        assert!(applier.undo_all().none());
        assert_eq!(host.state(), untouched(), "{system}");
        assert!(!journal_path(&scratch.0, NAME).exists());
    }
}

#[test]
fn killed_at_any_change_the_journal_alone_puts_it_back() {
    for system in SYSTEMS {
        let changes = plan(system).len();
        for (count, trouble) in (1..=changes).flat_map(|count| KILLED.map(|trouble| (count, trouble))) {
            let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("killed"));
            let mut applier = start(&host, &scratch.0).unwrap();
            host.trouble(count as u32, trouble);
            apply(&mut applier, system, changes).unwrap_err();
            drop(applier);
            assert!(host.no_trouble());
            recovers(&host, &scratch.0, &format!("{system}: {trouble:?} change {count}"));
        }
        for count in 1..=changes {
            let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("killed"));
            apply(&mut start(&host, &scratch.0).unwrap(), system, count).unwrap();
            recovers(&host, &scratch.0, &format!("{system}: killed with change {count} marked as done"));
        }
    }
}

#[test]
fn all_undos_are_on_the_disk_before_the_first_of_many_changes() {
    for system in SYSTEMS {
        for (count, trouble) in (1..=plan(system).len()).flat_map(|count| KILLED.map(|trouble| (count, trouble))) {
            let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("batch"));
            let mut applier = start(&host, &scratch.0).unwrap();
            host.trouble(count as u32, trouble);
            applier.make_all(plan(system)).unwrap_err();
            drop(applier);
            assert!(host.no_trouble());
            recovers(&host, &scratch.0, &format!("{system}: {trouble:?} change {count}"));
        }
    }
}

#[test]
fn killed_while_it_recovers_it_recovers_again() {
    for (system, trouble) in SYSTEMS.into_iter().flat_map(|system| KILLED.map(|trouble| (system, trouble))) {
        for count in 1.. {
            let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("again"));
            killed_node(&host, &scratch.0, system);
            host.trouble(count, trouble);
            let recovered = recover(&host, &scratch.0);
            if !host.no_trouble() {
                assert!(count as usize > plan(system).len(), "{system}: an undo for every change");
                break;
            }
            assert_eq!(recovered.unwrap_err().status, Status::NotRestored);
            recovers(&host, &scratch.0, &format!("{system}: {trouble:?} undo {count}"));
        }
    }
}

#[test]
fn a_torn_last_record_is_of_a_change_that_was_not_made() {
    for system in SYSTEMS {
        for count in 1..=plan(system).len() {
            for cut in [1, 20] {
                let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("torn"));
                let mut applier = start(&host, &scratch.0).unwrap();
                host.trouble(count as u32, Trouble::KilledBefore);
                apply(&mut applier, system, count).unwrap_err();
                drop(applier);
                host.no_trouble();
                let path = journal_path(&scratch.0, NAME);
                let journal = std::fs::read(&path).unwrap();
                std::fs::write(&path, &journal[..journal.len() - cut]).unwrap();
                recovers(&host, &scratch.0, &format!("{system}: change {count}, {cut} bytes"));
            }
        }
    }
}

#[test]
fn what_others_have_changed_since_is_left_alone() {
    let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("others"));
    killed_node(&host, &scratch.0, System::Linux);
    // each in the place of something of ours
    let others = |state: &mut State| {
        state.settings.insert("net/ipv4/conf/all/src_valid_mark".to_owned(), "2".to_owned());
        state.settings.insert("net/ipv6/conf/eth0/forwarding".to_owned(), "2".to_owned());
        state.links.retain(|link| link.name != NAME);
        state.links.push(link(9, NAME, "wireguard", Some("wg-quick")));
        state.routes.retain(|route| route.protocol != OUR_PROTOCOL);
        state.routes.push(route("198.51.100.7/32", "eth0", Some("192.0.2.9"), 4));
        state.rules.retain(|rule| rule.protocol != OUR_PROTOCOL);
        state.rules.push(Rule { protocol: 4, ..rule(Family::V4, 5180) });
    };
    host.set(others);
    recover(&host, &scratch.0).unwrap();
    let mut expected = untouched();
    others(&mut expected);
    assert_eq!(host.state(), expected);
}

#[test]
fn a_failing_undo_stops_no_other_and_is_said() {
    for system in SYSTEMS {
        let mut said = Vec::new();
        for count in 1.. {
            let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("refused"));
            let mut applier = start(&host, &scratch.0).unwrap();
            apply(&mut applier, system, usize::MAX).unwrap();
            host.trouble(count, Trouble::Refused);
            let failure = applier.undo_after(Failure::new("it went wrong", ""));
            let left = failure.host.unwrap();
            if !host.no_trouble() {
                assert_eq!((failure.status, &*left), (Status::Failed, "restored"));
                break;
            }
            assert_eq!(failure.status, Status::NotRestored, "{system}: undo {count}");
            // that one undo is left, and nothing else: it is of two things at most
            assert!(left.starts_with("not fully restored: ") && !left.contains("; "), "{left}");
            assert!(other_than_before(&host.state()) <= 2, "{left}: {:#?}", host.state());
            said.push(left);
            recovers(&host, &scratch.0, &format!("{system}: undo {count}"));
        }
        said.dedup();
        assert_eq!(said.len(), plan(system).len(), "{said:#?}");
    }
}

#[test]
fn after_a_reboot_only_what_outlives_it_is_taken_back() {
    let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("reboot"));
    killed_node(&host, &scratch.0, System::Windows);
    // as the journal has it, and someone else's now
    let since = |state: &mut State| {
        state.links.push(link(3, NAME, "wireguard", Some(OUR_ALIAS)));
    };
    host.reboot(untouched());
    host.set(since);
    recover(&host, &scratch.0).unwrap();
    let mut expected = untouched();
    since(&mut expected);
    assert_eq!(host.state(), expected);
}

#[test]
fn without_a_journal_what_bears_our_marks_goes() {
    for system in SYSTEMS {
        let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("sweep"));
        killed_node(&host, &scratch.0, system);
        let (left, found) = undo::sweep(&mut host.clone(), None);
        assert!(left.none() && found);
        // settings bear none
        assert_eq!(State { settings: untouched().settings, ..host.state() }, untouched(), "{system}");
    }
}

#[test]
fn a_killed_nodes_kill_switch_stays_until_somebody_lifts_it() {
    for system in SYSTEMS {
        let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("closed"));
        killed_node(&host, &scratch.0, system);
        let closed = State { firewalls: host.state().firewalls, ..untouched() };
        let exit = Applier::open_on(host.clone(), &scratch.0, NAME, "exit", &mut Unwarned).map(drop).unwrap_err();
        assert!(exit.message.contains("its kill switch is still on"), "{exit}");

        let next = start(&host, &scratch.0).unwrap();
        assert!(next.closed());
        assert_eq!(host.state(), closed, "{system}: all but the rules that close is put back");
        let failure = next.undo_after(Failure::new("no exit answers", ""));
        assert!(failure.host.unwrap().starts_with("restored, but its kill switch is on"));
        assert_eq!(host.state(), closed, "{system}: and it outlives a node that fails");
        recovers(&host, &scratch.0, "recover lifts it");

        killed_node(&host, &scratch.0, system);
        let mut next = start(&host, &scratch.0).unwrap();
        apply(&mut next, system, usize::MAX).unwrap();
        assert!(next.undo_all().none());
        assert_eq!(host.state(), untouched(), "{system}: so does the next node's end");
    }
}

#[test]
fn the_kill_switch_never_opens_while_one_node_takes_over_from_another() {
    for (system, trouble) in SYSTEMS.into_iter().flat_map(|system| KILLED.map(|trouble| (system, trouble))) {
        for count in 1.. {
            let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("takeover"));
            killed_node(&host, &scratch.0, system);
            host.trouble(count, trouble);
            let next = start(&host, &scratch.0).and_then(|mut next| apply(&mut next, system, usize::MAX));
            assert!(!host.state().firewalls.is_empty(), "{system}: {trouble:?} change {count}");
            if !host.no_trouble() {
                next.unwrap();
                break;
            }
            next.unwrap_err();
            assert!(start(&host, &scratch.0).unwrap().closed(), "{system}: {trouble:?} change {count}");
            assert!(!host.state().firewalls.is_empty(), "{system}: {trouble:?} change {count}");
            recovers(&host, &scratch.0, &format!("{system}: {trouble:?} change {count}"));
        }
    }
}

#[test]
fn a_torn_journal_does_not_open_a_host_that_is_seen_to_be_closed() {
    let (host, scratch) = (FakeHost::new(untouched()), Scratch::new("unsure"));
    // how this system shows its rules
    killed_node(&host, &scratch.0, os::SYSTEM);
    let path = journal_path(&scratch.0, NAME);
    let journal = std::fs::read(&path).unwrap();
    std::fs::write(&path, &journal[..journal.len() - 1]).unwrap();
    assert!(start(&host, &scratch.0).unwrap().closed());
    assert_eq!(host.state(), State { firewalls: host.state().firewalls, ..untouched() });
    assert_eq!(host.state().firewalls.len(), 1);
    recovers(&host, &scratch.0, "recover lifts it");
}
