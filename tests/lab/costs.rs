//! What a node asks of the kernel, counted by strace(1): what must not grow unnoticed, and no clock would show.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use peervpn::join::address::peer_addresses;
use peervpn::join::peers::{How, Peer, PeerStore};
use peervpn::key::PublicKey;

use crate::node::{Node, process_number};
use crate::record::{self, patience};
use crate::topology::{Lab, Nat, Plan, Site};
use crate::{assert_leaves_through_exit, join, lab_tests, open_exit};

/// Netlink requests of a `connect` from start to `connected`, for routes, links, addresses and rules; and for nftables.
/// A few of them depend on what happens meanwhile.
const ROUTE_REQUESTS: usize = 44;
const FIREWALL_REQUESTS: usize = 2;
/// For WireGuard. It is asked for the handshake when a packet has come, and four times a second until then.
const DEVICE_REQUESTS: usize = 12;
/// System calls of a keeper's tick: two servers, a route look-up for each (two requests of three calls), two probes sent,
/// the transaction IDs, the timer, the wait for the next.
const TICK: usize = 20;

/// The system calls of a site's next node.
struct Trace(PathBuf);

impl Trace {
    /// `calls` as strace's `-e trace=` takes them.
    fn of(site: &mut Site, calls: &str) -> Trace {
        let path = site.dir.join("strace");
        let trace = format!("trace={calls}");
        let words = ["strace", "-f", "-qq", "-yy", "-s", "64", "-e", &trace, "-e", "signal=none", "-o"];
        site.under = words.iter().map(|word| (*word).to_owned()).chain([path.display().to_string()]).collect();
        Trace(path)
    }

    /// Thread and call, so far.
    fn calls(&self) -> Vec<(u32, String)> {
        let text = std::fs::read_to_string(&self.0).expect("a trace");
        let call = |line: &str| {
            let (thread, call) = line.split_once(' ')?;
            Some((thread.parse().ok()?, call.trim_start().to_owned()))
        };
        // User-Mode Linux has no vDSO, so the clock is a call there
        let counts = |call: &str| !call.contains(" resumed>") && !call.starts_with("clock_gettime(");
        text.lines().filter_map(call).filter(|(_, call)| counts(call)).collect()
    }

    /// Those of the node's one thread, once it has called something with `words` so often.
    fn wait_for(&self, node: &Node, words: &str, times: usize) -> Vec<String> {
        let deadline = Instant::now() + patience(30);
        loop {
            let calls = self.calls();
            let node_thread = calls.first().map_or(0, |(thread, _)| *thread);
            let own: Vec<String> = calls.into_iter().filter(|(t, _)| *t == node_thread).map(|(_, call)| call).collect();
            if own.iter().filter(|call| call.contains(words)).count() >= times {
                return own;
            }
            assert!(Instant::now() < deadline, "not {times} times {words}\n{}\n{}", own.join("\n"), node.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A process and those that it started; proc_pid_task_tid_children(5).
fn family(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: String =
        tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default()).collect();
    let started = children.split_whitespace().flat_map(|child| family(child.parse().expect("a number")));
    std::iter::once(pid).chain(started).collect()
}

/// Resident memory now and at its most, in kB.
fn resident(pid: u32) -> (u64, u64) {
    (process_number(pid, "VmRSS"), process_number(pid, "VmHWM"))
}

lab_tests! {
    /// What only the start needed is not held by an exit that waits, nor by its device.
    fn an_idle_exit_lets_go_of_memory() {
        let lab = Lab::without_stun(Plan::v4_only(Nat::Open), &[]);
        let (mut exit, _) = open_exit(&lab, &["--no-stun"]);
        let deadline = Instant::now() + patience(30);
        loop {
            let held: Vec<_> = family(exit.id()).into_iter().map(resident).collect();
            if held.iter().all(|(now, most)| now * 6 < most * 5) {
                break;
            }
            assert!(Instant::now() < deadline, "kB now and at most: {held:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        exit.stop(libc::SIGINT);
    }

    fn a_connect_asks_little_of_the_kernel("strace") {
        let mut lab = Lab::without_stun(Plan::v4_only(Nat::Open), &[Plan::v4_only(Nat::PortRestricted)]);
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let trace = Trace::of(&mut lab.peers[0], "sendto,sendmsg,sendmmsg,write,writev,execve,execveat,clone,clone3");
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        assert_leaves_through_exit(&lab, lab.peer());
        let calls = trace.calls();
        lab.peers[0].under.clear();
        lab.peer().run_ok(&["down"]);
        peer.stopped();
        exit.stop(libc::SIGINT);
        let count = |words: &str| calls.iter().filter(|(_, call)| call.contains(words)).count();
        let [route, firewall, device] = ["ROUTE", "NETFILTER", "GENERIC"].map(|name| count(&format!("<NETLINK:[{name}:")));
        let programs = count("execve");
        println!(
            "{} back end: netlink route {route}, netfilter {firewall}, generic {device}; {programs} programs, itself one",
            record::backend()
        );
        let list = || calls.iter().map(|(_, call)| call.as_str()).collect::<Vec<_>>().join("\n");
        assert!((1..=ROUTE_REQUESTS).contains(&route), "{route} requests:\n{}", list());
        assert!((1..=FIREWALL_REQUESTS).contains(&firewall), "{firewall} requests:\n{}", list());
        // the userspace device is the one other program, and is spoken to by its socket
        let (programs_most, device_most) = if record::backend() == "kernel" { (1, DEVICE_REQUESTS) } else { (2, 0) };
        assert_eq!(programs, programs_most, "{}", list());
        assert!(device <= device_most, "{device} requests:\n{}", list());
        assert!(record::backend() != "kernel" || count("clone") == 0, "a thread or process was started:\n{}", list());
    }

    /// `status` asks the one node that there is, and does not first ask whether it answers.
    fn a_status_is_one_connection("strace") {
        let mut lab = Lab::without_stun(Plan::v4_only(Nat::Open), &[]);
        let (mut exit, _) = open_exit(&lab, &["--no-stun"]);
        let trace = Trace::of(&mut lab.exit, "connect,execve,execveat,clone,clone3");
        lab.exit.run_ok(&["status"]);
        let calls = trace.calls();
        lab.exit.under.clear();
        exit.stop(libc::SIGINT);
        let count = |words: &str| calls.iter().filter(|(_, call)| call.contains(words)).count();
        let list = calls.iter().map(|(_, call)| call.as_str()).collect::<Vec<_>>().join("\n");
        assert_eq!((count("connect("), count("execve"), count("clone")), (1, 1, 0), "{list}");
    }

    /// What is written does not grow with the peers that are there.
    fn a_change_of_a_peer_is_one_line_however_many_there_are("strace") {
        let mut lab = Lab::without_stun(Nat::Open, &[]);
        let state = lab.exit.dir.join("state");
        std::fs::DirBuilder::new().mode(0o700).create(&state).expect("a state directory");
        let key = |number: u32| {
            let mut key = PublicKey([13; 32]);
            key.0[..4].copy_from_slice(&number.to_be_bytes());
            key
        };
        let written = [10, 1000].map(|many| {
            let mut store = PeerStore::default();
            for number in 0..many {
                let addresses = peer_addresses(&PublicKey([1; 32]), &key(number));
                // two of a thousand may collide
                let _ = store.add(Peer::new(key(number), addresses, How::Added, 1));
            }
            std::fs::write(state.join("peers.json"), store.to_json().as_bytes()).expect("write the peers file");
            let trace = Trace::of(&mut lab.exit, "write,writev,pwrite64,rename,renameat,renameat2,fsync,fdatasync");
            let (mut exit, _) = open_exit(&lab, &["--no-stun"]);
            lab.exit.under.clear();
            // the first one also opens the file
            lab.exit.run_ok(&["peers", "add", &key(5000).to_string()]);
            let before = trace.calls().len();
            lab.exit.run_ok(&["peers", "add", &key(5001).to_string()]);
            lab.exit.run_ok(&["peers", "revoke", &key(5001).to_string()]);
            let calls: Vec<String> = trace.calls().split_off(before).into_iter().map(|(_, call)| call).collect();
            lab.exit.run_ok(&["down"]);
            exit.stopped();
            let stored: Vec<&String> = calls.iter().filter(|call| call.contains("/state/")).collect();
            let list = || calls.join("\n");
            let count = |name: &str| stored.iter().filter(|call| call.starts_with(name)).count();
            assert_eq!((count("write("), count("fdatasync("), stored.len()), (2, 2, 4), "{}", list());
            // its last argument: the result stands elsewhere where another thread called something meanwhile
            let bytes = |call: &&String| {
                let arguments = call.split(" <unfinished").next()?.split(") = ").next()?;
                arguments.rsplit(", ").next()?.parse::<usize>().ok()
            };
            stored.iter().filter(|call| call.starts_with("write(")).filter_map(bytes).sum::<usize>()
        });
        println!("{} bytes written to add and revoke a peer beside 10, {} beside 1000", written[0], written[1]);
        // an address is as long as its digits
        assert!((100..500).contains(&written[0]) && written[0].abs_diff(written[1]) < 64, "{written:?}");
    }

    /// Between two of its wake-ups there is no other, although the answers come.
    fn a_keepers_tick_is_one_wake_up_and_few_system_calls("strace") {
        let mut lab = Lab::new(Plan::v4_only(Nat::FullCone), &[]);
        let trace = Trace::of(&mut lab.exit, "all");
        let args = ["--stun-server", "192.0.2.3:3478", "--stun-server", "192.0.2.4:3478", "--keeper-interval", "1s"];
        let (mut exit, _) = open_exit(&lab, &[&args[..], &["--no-portmap", "--dns", "none"]].concat());
        // the ninth one asks and listens
        let calls = trace.wait_for(&exit, "timerfd_settime(", 8);
        lab.exit.under.clear();
        lab.exit.run_ok(&["down"]);
        exit.stopped();
        let ends: Vec<usize> = (0..calls.len()).filter(|at| calls[*at].starts_with("timerfd_settime(")).collect();
        let mut ticks: Vec<&[String]> = ends.windows(2).map(|pair| &calls[pair[0] + 1..=pair[1]]).collect();
        // the first ones may see the network come to rest
        ticks.sort_by_key(|tick| tick.len());
        let tick = ticks[ticks.len() / 2];
        let count = |words: &str| tick.iter().filter(|call| call.starts_with(words)).count();
        println!("{} system calls, {} of them waits, {} probes", tick.len(), count("epoll_"), count("sendmsg("));
        assert_eq!((count("epoll_"), count("sendmsg(")), (1, 2), "{}", tick.join("\n"));
        assert!(tick.len() <= TICK, "{} calls:\n{}", tick.len(), tick.join("\n"));
    }
}
