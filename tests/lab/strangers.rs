//! Strangers at the exit's port: a flood of forged initiations from many sources, while peers join and another one's
//! packets flow. With `PEERVPN_FLOOD=1` it is 50,000 a second for 30 s and measures, which takes the whole machine for a
//! minute (tests/bench/flood.sh); without, it is a tenth of that, only until everybody is in.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use peervpn::key::{PrivateKey, PublicKey};
use serde_json::Value;

use crate::forge;
use crate::net::Namespace;
use crate::node::process_number;
use crate::record::patience;
use crate::topology::{Lab, Nat, Site, WEB};
use crate::{assert_leaves_through_exit, join, lab_tests, open_exit, text};

/// Initiations a second, and for how many seconds at least.
const MEASURED: (u64, u64) = (50_000, 30);
/// The same in an ordinary run.
const ORDINARY: (u64, u64) = (5_000, 0);
/// How often throughput is measured with and without the node.
const TURNS: usize = 3;
/// Packets of the connected peer a second.
const STREAM: u64 = 1000;

/// What the strangers know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forgery {
    /// Not even the exit's public key: mac1 is noise.
    WrongMac1,
    /// The connect string: mac1 is right, the rest is noise.
    RandomStatic,
}

/// Forged initiations, each inside an IPv4 and a UDP header whose source is filled in later.
fn forged(forgery: Forgery, exit: &PublicKey, to: Ipv4Addr, port: u16) -> Vec<Vec<u8>> {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut noise = || {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as u8
    };
    (0..1024)
        .map(|_| {
            let mut packet = vec![0; 28 + forge::LENGTH];
            let total = packet.len() as u16;
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            packet[8..10].copy_from_slice(&[64, 17]);
            packet[16..20].copy_from_slice(&to.octets());
            packet[22..24].copy_from_slice(&port.to_be_bytes());
            packet[24..26].copy_from_slice(&(total - 20).to_be_bytes());
            let initiation = &mut packet[28..];
            initiation.iter_mut().for_each(|byte| *byte = noise());
            initiation[..4].copy_from_slice(&[1, 0, 0, 0]);
            initiation[132..].fill(0);
            if forgery == Forgery::RandomStatic {
                forge::seal(exit, initiation);
            }
            packet
        })
        .collect()
}

/// Sends `rate` a second of them from `space` with sources out of 10.128.0.0/9, many a system call, until told to stop.
fn flood(space: &Namespace, mut packets: Vec<Vec<u8>>, to: Ipv4Addr, rate: u64, stop: &AtomicBool, sent: &AtomicU64) {
    space.run(|| {
        // SAFETY: no pointers; the descriptor is closed below.
        let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
        assert!(raw >= 0, "a raw socket: {}", io::Error::last_os_error());
        // SAFETY: plain data for which zeros are valid.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = libc::AF_INET as u16;
        address.sin_addr.s_addr = u32::from_ne_bytes(to.octets());
        let start = Instant::now();
        let mut number = 0u32;
        while !stop.load(Ordering::Relaxed) {
            let due = start.elapsed().as_micros() as u64 * rate / 1_000_000;
            if sent.load(Ordering::Relaxed) >= due {
                std::thread::sleep(Duration::from_micros(100));
                continue;
            }
            // no bursts: between two of them a bucket would have a token for whoever comes then
            let size = (rate as usize / 3000).clamp(1, 64);
            let first = number as usize % (packets.len() / size) * size;
            let batch = &mut packets[first..first + size];
            for packet in batch.iter_mut() {
                number = number.wrapping_add(1);
                let source = 0x0a80_0000 | number.wrapping_mul(2_654_435_761) >> 9;
                packet[12..16].copy_from_slice(&source.to_be_bytes());
                packet[20..22].copy_from_slice(&(1024 + (number % 60_000) as u16).to_be_bytes());
            }
            let mut parts: Vec<libc::iovec> = batch
                .iter_mut()
                .map(|packet| libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() })
                .collect();
            let mut messages: Vec<libc::mmsghdr> = parts
                .iter_mut()
                .map(|part| {
                    // SAFETY: plain data for which zeros are valid.
                    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                    message.msg_hdr.msg_name = (&raw mut address).cast();
                    message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
                    message.msg_hdr.msg_iov = part;
                    message.msg_hdr.msg_iovlen = 1;
                    message
                })
                .collect();
            // SAFETY: every pointer is into a live buffer of the length given.
            let done = unsafe { libc::sendmmsg(raw, messages.as_mut_ptr(), messages.len() as u32, 0) };
            if done > 0 {
                sent.fetch_add(done as u64, Ordering::Relaxed);
            }
        }
        // SAFETY: our own descriptor.
        unsafe { libc::close(raw) };
    });
}

/// Ends the senders, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Resident memory of a process in kilobytes.
fn memory(pid: u32) -> u64 {
    process_number(pid, "VmRSS")
}

/// How often its main thread, which is the node, has waited so far.
fn waits(pid: u32) -> u64 {
    process_number(pid, "voluntary_ctxt_switches")
}

/// Processor time of a process so far, in ms; proc_pid_stat(5).
fn processor(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields = stat.rsplit(") ").next().expect("behind the name").split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
    // a hundredth of a second each on every Linux
    ticks * 10
}

/// Entries of the connection table of a namespace.
fn connections(space: &Namespace) -> u64 {
    let count = space.run(|| std::fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack"));
    // one line a processor, the first field of each is the same total; nf_conntrack is there, the exit masquerades
    let count = count.expect("connection tracking");
    let line = count.lines().nth(1).expect("a processor");
    u64::from_str_radix(line.split_whitespace().next().expect("a field"), 16).expect("hexadecimal")
}

/// Share of the peer's packets that arrive in two seconds, in percent, given its count at the web server.
fn arriving(sink: &crate::service::Sink, sent: &AtomicU64) -> u64 {
    let (before, sent_before) = (sink.count(), sent.load(Ordering::Relaxed));
    std::thread::sleep(Duration::from_secs(2));
    let (after, sent_after) = (sink.count(), sent.load(Ordering::Relaxed));
    (after - before) * 100 / (sent_after - sent_before).max(1)
}

/// A steady trickle of packets from a site to the web server, through the tunnel.
fn stream(site: &Site, stop: &AtomicBool, sent: &AtomicU64) {
    site.host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        let start = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let due = start.elapsed().as_micros() as u64 * STREAM / 1_000_000;
            for _ in sent.load(Ordering::Relaxed)..due {
                if socket.send_to(&[0; 1000], (WEB[0], 9)).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Mbit/s of one TCP connection from a site to a port of the internet, as much as goes through in three seconds.
fn throughput(lab: &Lab, site: &Site) -> u64 {
    const SECONDS: u64 = 3;
    let listener = lab.internet.run(|| TcpListener::bind((WEB[0], 0))).expect("a listener");
    let port = listener.local_addr().expect("it has one").port();
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                taken.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        let socket = site.host.run(|| TcpStream::connect_timeout(&(WEB[0], port).into(), patience(10)));
        let mut socket = socket.expect("a connection through the tunnel");
        let (start, chunk) = (Instant::now(), vec![0; 1 << 16]);
        // the first second is the connection's own, until it has found its pace
        let mut first = None;
        while start.elapsed() < Duration::from_secs(1 + SECONDS) {
            socket.write_all(&chunk).expect("it stays open");
            if first.is_none() && start.elapsed() >= Duration::from_secs(1) {
                first = Some(taken.load(Ordering::Relaxed));
            }
        }
        let bytes = taken.load(Ordering::Relaxed) - first.unwrap_or_default();
        bytes * 8 / 1_000_000 / SECONDS
    })
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A peer joins while the flood lasts; how long the handshake took, in ms.
fn join_during_flood(site: &Site, target: &str) -> (crate::node::Node, u64) {
    let mut node = site.connect(target, &["--timeout", "60"]);
    let connected = node.event_within("connected", patience(70));
    (node, connected["handshake_ms"].as_u64().expect("a number"))
}

fn under_flood(forgery: Forgery) {
    let measured = std::env::var_os("PEERVPN_FLOOD").is_some();
    let (rate, seconds) = if measured { MEASURED } else { ORDINARY };
    let lab = Lab::new(Nat::Open, &[Nat::PortRestricted.into(); 4]);
    let (mut exit, ready) = open_exit(&lab, &[]);
    let (mut first, _) = join(lab.peer(), &ready, &[]);
    let key: PublicKey = text(&ready, "public_key").parse().expect("a key");
    let target = text(&ready, "connect");
    let port = ready["port"].as_u64().expect("a port") as u16;
    let packets = forged(forgery, &key, lab.exit.public4, port);
    let sink = lab.sink();
    let (stop, forged_sent, stream_sent) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let quiet_throughput = if measured { throughput(&lab, lab.peer()) } else { 0 };
    std::thread::scope(|scope| {
        let ending = Stop(&stop);
        scope.spawn(|| stream(lab.peer(), &stop, &stream_sent));
        std::thread::sleep(Duration::from_secs(1));
        let quiet = arriving(&sink, &stream_sent);
        let (memory_before, busy_before, waits_before) = (memory(exit.id()), processor(exit.id()), waits(exit.id()));
        let start = Instant::now();
        scope.spawn(|| flood(&lab.internet, packets, lab.exit.public4, rate, &stop, &forged_sent));
        std::thread::sleep(Duration::from_secs(2));
        let loud = arriving(&sink, &stream_sent);
        // newcomers; then one of them again, which the exit knows by now, from a new port
        let mut took = Vec::new();
        for site in &lab.peers[1..] {
            let (mut node, handshake_ms) = join_during_flood(site, target);
            took.push(handshake_ms);
            if took.len() == 1 {
                assert_leaves_through_exit(&lab, site);
            }
            node.stop(libc::SIGINT);
        }
        let (mut node, again) = join_during_flood(&lab.peers[1], target);
        node.stop(libc::SIGINT);
        let busy = (processor(exit.id()) - busy_before) * 100 / start.elapsed().as_millis().max(1) as u64;
        // looked at some hundred times a second, many at a time: nobody is woken for each
        let (waited, looks) = (waits(exit.id()) - waits_before, start.elapsed().as_millis() as u64 / 4);
        let came = forged_sent.load(Ordering::Relaxed);
        assert!(waited < 2 * looks + came / 10, "woken {waited} times in {looks} looks, by {came} initiations");
        // they take turns: what else the machine does meets both alike
        let (mut through, mut through_without_node) = (Vec::new(), Vec::new());
        for _ in 0..if measured { TURNS } else { 0 } {
            through.push(throughput(&lab, lab.peer()));
            exit.signal(libc::SIGSTOP);
            through_without_node.push(throughput(&lab, lab.peer()));
            exit.signal(libc::SIGCONT);
        }
        let (through, through_without_node) = (median(through), median(through_without_node));
        while start.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(100));
        }
        let late = arriving(&sink, &stream_sent);
        let (memory_after, connections) = (memory(exit.id()), connections(&lab.exit.host));
        let sent = forged_sent.load(Ordering::Relaxed);
        let achieved = sent as f64 / start.elapsed().as_secs_f64();
        drop(ending);
        took.sort_unstable();
        println!(
            "FLOOD {forgery:?} backend={} rate={achieved:.0} seconds={} join_ms={took:?} known_ms={again} \
             arriving_before={quiet}% arriving={loud}% arriving_late={late}% mbit_quiet={quiet_throughput} \
             mbit_flood={through} mbit_flood_without_node={through_without_node} memory_kb={memory_before}..{memory_after} \
             node_busy={busy}% connections={connections}",
            crate::record::backend(),
            start.elapsed().as_secs(),
        );
        assert!(
            memory_after < memory_before + 16 * 1024,
            "the exit's memory grows: {memory_before} to {memory_after} kB"
        );
        // what gets through to WireGuard makes an entry for half a minute; all of them would be ten times as many
        assert!(connections < sent.min(20_000) / 2 + 1000, "{connections} connections, {sent} initiations");
    });
    first.stop(libc::SIGINT);
    exit.stop(libc::SIGINT);
}

/// What the exit counted of initiations, by name; waits until they are this many in all.
fn counted(site: &Site, all: u64) -> Value {
    let deadline = Instant::now() + patience(10);
    loop {
        let status = site.run_ok(&["status", "--json"]).stdout;
        let mut status: Value = serde_json::from_str(&status).unwrap_or_else(|e| panic!("{e}: {status}"));
        let counts = status["initiations"].take();
        if total(&counts) >= all || Instant::now() > deadline {
            return counts;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn total(counts: &Value) -> u64 {
    counts.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}

lab_tests! {
    /// Every kind of wrong initiation is dropped, counted and shown, and lets nobody in.
    fn forged_initiations_are_dropped_and_counted() {
        let lab = Lab::new(Nat::Open, &[Nat::PortRestricted.into()]);
        let mut exit = lab.exit.exit(&[]);
        let ready = exit.event("ready");
        let mut peer = lab.peer().connect(text(&ready, "connect"), &[]);
        let pending = exit.event("pending");
        lab.exit.run_ok(&["peers", "accept", text(&pending, "peer_id")]);
        peer.event("connected");
        let key: PublicKey = text(&ready, "public_key").parse().expect("a key");
        let member: PublicKey = text(&pending, "public_key").parse().expect("a key");
        let before = counted(&lab.exit, 1);

        let to = (lab.exit.public4, ready["port"].as_u64().expect("a port") as u16);
        let socket = lab.internet.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        let send = |packet: &[u8]| {
            socket.send_to(packet, to).expect("it is sent");
            // each source has ten a second
            std::thread::sleep(Duration::from_millis(100));
        };
        let (stranger, claimed) = (PrivateKey::generate(), PrivateKey::generate().public());
        let honest = |seconds| forge::initiation(&key, &stranger.public(), &stranger, seconds);
        const NOW: u64 = 1_800_000_000;

        let mut wrong_mac1 = honest(NOW);
        wrong_mac1[120] ^= 1;
        send(&wrong_mac1);
        let mut random_static = wrong_mac1.clone();
        random_static[40..88].fill(0x5a);
        forge::seal(&key, &mut random_static);
        send(&random_static);
        // somebody else's key, without its private half: nobody's, and that of the peer who is in
        send(&forge::initiation(&key, &claimed, &stranger, NOW));
        send(&forge::initiation(&key, &member, &stranger, NOW + 1_000_000_000));
        // a true stranger asks, which is his right; again, from the past, from a far future, and from now again
        let first = honest(NOW);
        let future = honest(NOW + 1_000_000_000);
        send(&first);
        send(&first);
        send(&honest(NOW - 60));
        send(&future);
        send(&future);
        send(&honest(NOW + 1));

        let counts = counted(&lab.exit, total(&before) + 10);
        let more = |name: &str| counts[name].as_u64().unwrap_or(0) - before[name].as_u64().unwrap_or(0);
        let expected = [
            ("mac1", 1), ("static_key", 1), ("timestamp", 1), ("settled", 1), ("valid", 2), ("replay", 4),
            ("source_rate", 0), ("total_rate", 0), ("malformed", 0), ("unfit_key", 0), ("refused", 0), ("unseen", 0),
        ];
        for (name, count) in expected {
            assert_eq!(more(name), count, "{name}: {counts}, before {before}");
        }
        let shown = lab.exit.run_ok(&["status"]).stdout;
        assert!(shown.contains("1 wrong mac1") && shown.contains("4 replayed"), "{shown}");

        // the one that asked waits, once, and is not in; the one that is in never noticed
        let waiting = lab.exit.run_ok(&["peers", "pending", "--json"]).stdout;
        assert_eq!(waiting.matches("\"public_key\"").count(), 1, "{waiting}");
        assert!(waiting.contains(&stranger.public().to_string()), "{waiting}");
        let members = lab.exit.run_ok(&["peers", "list", "--json"]).stdout;
        assert!(members.contains(&member.to_string()) && !members.contains(&stranger.public().to_string()), "{members}");
        assert!(!members.contains(&claimed.to_string()), "{members}");
        assert_leaves_through_exit(&lab, lab.peer());
        // a datagram shorter than it says wakes the exit as an initiation does, so it counts, for a flood, too
        let lying = forged(Forgery::WrongMac1, &key, to.0, to.1).swap_remove(0)[..28 + 8].to_vec();
        lab.internet.run(|| {
            // a header of one's own, raw(7): the kernel puts in source and total length; the UDP header's stays
            let raw = socket2::Socket::new(
                socket2::Domain::IPV4,
                socket2::Type::RAW,
                Some(socket2::Protocol::from(libc::IPPROTO_RAW)),
            );
            let raw = raw.expect("a raw socket");
            raw.send_to(&lying, &SocketAddr::from(to).into()).expect("it is sent");
        });
        assert_eq!(counted(&lab.exit, total(&counts) + 1)["malformed"], 1);
        let counts = counted(&lab.exit, 1);

        // denied, he is not heard, however new his timestamp
        lab.exit.run_ok(&["peers", "deny", &stranger.public().to_string()]);
        send(&honest(NOW + 2_000_000_000));
        // it opens, and is refused
        assert_eq!(counted(&lab.exit, total(&counts) + 2)["refused"], 1);
        assert_eq!(lab.exit.run_ok(&["peers", "pending", "--json"]).stdout.matches("\"public_key\"").count(), 0);
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }


    fn strangers_without_the_exits_key() { under_flood(Forgery::WrongMac1) }
    fn strangers_with_the_connect_string() { under_flood(Forgery::RandomStatic) }
}
