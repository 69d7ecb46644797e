//! The grid: exit NAT kind × peer NAT kind, by IPv4. Each cell is tried with plain `connect`, then with `peers add`, and
//! compared with what `nattest` on both sides predicts. The table in the README is this test's.
//!
//! All sites stand in one lab; every peer goes from exit to exit, and all peers do so side by side, never two at the
//! same one. No NAT remembers one cell in another: sites have addresses of their own.

use std::net::SocketAddr;
use std::time::Duration;

use peervpn::nat::discovery::{Behaviour, Measured};
use peervpn::nat::verdict::{Meeting, meeting};
use serde_json::Value;

use crate::node::Node;
use crate::record::patience;
use crate::topology::{Lab, Nat, Plan, Site};
use crate::{lab_tests, text};

const KINDS: [Nat; 7] = [
    Nat::Open,
    Nat::UdpFirewall,
    Nat::FullCone,
    Nat::RestrictedCone,
    Nat::PortRestricted,
    Nat::Symmetric,
    Nat::Blocked,
];
const SERVERS: [&str; 4] = ["--stun-server", "192.0.2.3:3478", "--stun-server", "192.0.2.4:3478"];
/// How long a cell that is to stay without a handshake is watched after `peers add`: six calls of the exit.
const NEVER: Duration = Duration::from_secs(6);
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const BEGIN: &str = "<!-- grid: written by PEERVPN_BLESS=1 cargo test --test lab the_grid -->\n";
const END: &str = "<!-- end of the grid -->\n";

fn name(nat: Nat) -> &'static str {
    match nat {
        Nat::Open => "open",
        Nat::UdpFirewall => "UDP firewall",
        Nat::FullCone => "full cone",
        Nat::RestrictedCone => "restricted cone",
        Nat::PortRestricted => "port-restricted cone",
        Nat::Symmetric => "symmetric",
        Nat::Blocked => "blocked",
    }
}

fn words(meeting: Meeting) -> &'static str {
    match meeting {
        Meeting::Plain => "yes",
        Meeting::Helped => "`peers add`",
        Meeting::Never => "no",
        Meeting::Unknown => "unknown",
    }
}

/// What `nattest --json` says at a site, as the rule of `nat::verdict` takes it, and its verdict.
fn measure(site: &Site) -> (Measured, String) {
    let answer = site.run_ok(&[&["nattest", "--json"], &SERVERS[..]].concat()).stdout;
    let report: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
    let v4 = &report["ipv4"];
    let behaviour = |field: &str| match text(v4, field) {
        "endpoint-independent" => Behaviour::EndpointIndependent,
        "address-dependent" => Behaviour::AddressDependent,
        "address-and-port-dependent" => Behaviour::AddressAndPortDependent,
        _ => Behaviour::Unknown,
    };
    let address = |field: &str| v4[field].as_str().map(|text| text.parse::<SocketAddr>().expect("an address"));
    let mapping = behaviour("mapping");
    let measured = Measured {
        udp: v4["udp"] == true,
        local: address("local"),
        reflexive: address("reflexive"),
        mapping,
        maps_by_destination: matches!(mapping, Behaviour::AddressDependent | Behaviour::AddressAndPortDependent),
        filtering: behaviour("filtering"),
        ..Measured::default()
    };
    (measured, text(&report, "can_be_exit").to_owned())
}

/// One cell as it really is, and what the peer said. What is `told` of it decides how patient we are, nothing else.
fn try_cell(exit: &Site, target: &str, peer: &Site, told: Meeting) -> (Meeting, String) {
    let timeout = patience(60).as_secs().to_string();
    let mut node = peer.connect(target, &[&SERVERS[..], &["--timeout", &timeout, "--port", "40001"]].concat());
    let limit = if told == Meeting::Never { NEVER } else { patience(20) };
    let met = attempt(exit, &mut node, limit);
    node.signal(libc::SIGINT);
    node.wait();
    (met, node.log())
}

fn attempt(exit: &Site, node: &mut Node, limit: Duration) -> Meeting {
    // `connect` says after 3 s that the exit does not answer; before that, it was a plain one
    match node.any_event(&["connected", "unreachable"], patience(10)) {
        Ok(event) if event["event"] == "connected" => Meeting::Plain,
        Ok(event) => {
            exit.run_ok(&["peers", "add", text(&event, "own")]);
            match node.try_event("connected", limit) {
                Ok(_) => Meeting::Helped,
                Err(_) => Meeting::Never,
            }
        }
        Err(why) => panic!("{why}\n{}", node.log()),
    }
}

/// The table in Markdown.
fn table(cells: &[[Meeting; 7]; 7]) -> String {
    let row = |first: &str, rest: Vec<&str>| format!("| {first} | {} |\n", rest.join(" | "));
    let mut text = row("exit ↓ peer →", KINDS.map(name).to_vec());
    text += &format!("|{}\n", "---|".repeat(8));
    for (kind, cells) in KINDS.iter().zip(cells) {
        text += &row(&format!("**{}**", name(*kind)), cells.map(words).to_vec());
    }
    text
}

/// Holds the README's table against this one, or writes it.
fn compare_with_readme(table: &str) {
    let readme = std::fs::read_to_string(README).expect("README.md");
    let (before, rest) = readme.split_once(BEGIN).expect("README.md has the grid's first marker");
    let (found, after) = rest.split_once(END).expect("README.md has the grid's second marker");
    if std::env::var_os("PEERVPN_BLESS").is_some() {
        std::fs::write(README, format!("{before}{BEGIN}{table}{END}{after}")).expect("write README.md");
    } else {
        assert_eq!(found, table, "README.md has another table; PEERVPN_BLESS=1 writes it anew");
    }
}

lab_tests! {
    fn the_grid() {
        let v4 = KINDS.map(Plan::v4_only);
        let [first, others @ ..] = v4;
        let lab = Lab::new(first, &[&others[..], &v4].concat());
        let mut exits = vec![&lab.exit];
        let (more, peers) = lab.peers.split_at(KINDS.len() - 1);
        exits.extend(more);

        // what is predicted; before any node runs, since a node's port may not be tested. A few at a time: where the
        // processor is short, an answer that waits for it looks like one that never came
        let measured: Vec<[(Measured, String); 2]> = exits.iter().zip(peers).map(|(exit, peer)| {
            std::thread::scope(|scope| {
                [*exit, peer].map(|site| scope.spawn(|| measure(site))).map(|one| one.join().expect("nattest at every site"))
            })
        }).collect();
        let told = |row: usize, column: usize| meeting(&measured[row][0].0, &measured[column][1].0);

        let mut nodes = Vec::new();
        let targets: Vec<String> = exits.iter().zip(KINDS).map(|(site, kind)| {
            nodes.push(site.exit(&[&["--accept", "any"], &SERVERS[..]].concat()));
            let node = nodes.last_mut().expect("just pushed");
            let ready = node.event("ready");
            match kind {
                // without UDP it prints its local address; it is to fail with the right one
                Nat::Blocked => format!("{}@{}:{}", text(&ready, "public_key"), site.public4, ready["port"]),
                _ => text(&ready, "connect").to_owned(),
            }
        }).collect();

        let columns: Vec<Vec<(usize, Meeting, String)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = peers.iter().enumerate().map(|(column, peer)| {
                let (exits, targets, told) = (&exits, &targets, &told);
                scope.spawn(move || (0..KINDS.len()).map(|round| {
                    let row = (column + round) % KINDS.len();
                    let (met, log) = try_cell(exits[row], &targets[row], peer, told(row, column));
                    (row, met, log)
                }).collect())
            }).collect();
            threads.into_iter().map(|thread| thread.join().expect("every cell was tried")).collect()
        });
        let mut cells = [[Meeting::Unknown; 7]; 7];
        let mut wrong = String::new();
        for (column, tried) in columns.into_iter().enumerate() {
            for (row, met, log) in tried {
                cells[row][column] = met;
                let told = told(row, column);
                if told != met {
                    let (exit, peer) = (name(KINDS[row]), name(KINDS[column]));
                    wrong += &format!("exit {exit}, peer {peer}: predicted {told:?}, was {met:?}\n{log}\n{}\n", nodes[row].log());
                }
            }
        }
        let table = table(&cells);
        println!("{table}");
        assert!(wrong.is_empty(), "{wrong}");
        for (row, [(_, exit), (_, peer)]) in measured.iter().enumerate() {
            let with_udp = &cells[row][..6];
            let expected = match () {
                () if with_udp.iter().all(|cell| *cell == Meeting::Plain) => "yes",
                () if cells[row].contains(&Meeting::Helped) => "with-help",
                () => "no",
            };
            assert_eq!([exit, peer], [expected; 2], "can_be_exit behind {}", name(KINDS[row]));
        }
        compare_with_readme(&table);
        for mut node in nodes {
            node.stop(libc::SIGINT);
        }
    }
}
