//! The way of a real WireGuard implementation's initiation through tap, check and admission; and what a flood costs.
#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use peervpn::config::Accept;
use peervpn::join::address::peer_addresses;
use peervpn::join::admission::{Admission, Decision};
use peervpn::join::initiation::{Checker, Reason, Verdict};
use peervpn::key::PrivateKey;
use peervpn_platform::os::packet::{BUFFER_LEN, InitiationTap};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Kills and reaps what we started.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &str, input: &str) -> bool {
    let mut child = Command::new(program)
        .args(arguments.split(' '))
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait().unwrap().success()
}

/// A WireGuard device in this thread's namespace: the kernel's, else wireguard-go's.
fn device(name: &str) -> Option<(&'static str, Option<Started>)> {
    if run("ip", &format!("link add name {name} type wireguard"), "") {
        return Some(("kernel", None));
    }
    let child = Command::new("wireguard-go")
        .args(["-f", name])
        .env("WG_SUDO", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let started = Started(child);
    let socket = format!("/var/run/wireguard/{name}.sock");
    let until = Instant::now() + Duration::from_secs(10);
    while !Path::new(&socket).exists() {
        assert!(Instant::now() < until, "wireguard-go does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(("wireguard-go", Some(started)))
}

fn wait_readable(tap: &InitiationTap, limit: Duration) -> bool {
    let mut poll = libc::pollfd { fd: tap.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd that lives through the call.
    unsafe { libc::poll(&raw mut poll, 1, limit.as_millis() as libc::c_int) == 1 }
}

#[test]
fn a_real_implementations_initiation_passes_and_its_replay_does_not() {
    // SAFETY: no pointers; affects this thread only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        println!("SKIP: a network namespace");
        return;
    }
    if !["ip", "wg"].iter().all(|program| Command::new(program).arg("--version").output().is_ok()) {
        println!("SKIP: iproute2 and wireguard-tools");
        return;
    }
    assert!(run("ip", "link set lo up", ""));
    let name = format!("h{}", std::process::id());
    let Some((implementation, _started)) = device(&name) else {
        println!("SKIP: kernel WireGuard or wireguard-go");
        return;
    };
    let (exit, peer) = (PrivateKey::generate(), PrivateKey::generate());
    let tap = InitiationTap::open(51820).unwrap();
    let mut checker = Checker::new(&exit);
    let mut admission = Admission::new(Accept::Any, exit.public());

    let settings = format!(
        "set {name} listen-port 40000 private-key /dev/stdin peer {} endpoint 127.0.0.1:51820 allowed-ips 0.0.0.0/0 \
         persistent-keepalive 1",
        exit.public()
    );
    assert!(run("wg", &settings, &peer.to_base64()));
    assert!(run("ip", &format!("link set {name} up"), ""));

    let valid = Verdict::Valid { key: peer.public() };
    let addresses = peer_addresses(&exit.public(), &peer.public());
    let mut initiations = Vec::new();
    // the second one is the repetition after 5 s
    for _ in 0..2 {
        assert!(wait_readable(&tap, Duration::from_secs(20)), "no initiation from {implementation}");
        let mut buf = [0; BUFFER_LEN];
        let (source, payload) = tap.recv(&mut buf).unwrap().unwrap();
        assert_eq!(source, "127.0.0.1:40000".parse().unwrap());
        let now = Instant::now();
        assert_eq!(checker.check(payload, source, now, |key| admission.is_settled(key)), valid, "{implementation}");
        assert_eq!(admission.consider(peer.public(), source, now), Decision::Admit(addresses));
        initiations.push(payload.to_vec());
    }
    for replay in &initiations {
        let verdict = checker.check(replay, "192.0.2.1:1".parse().unwrap(), Instant::now(), |_| false);
        assert_eq!(verdict, Verdict::Drop(Reason::Replay));
    }
    println!("initiations of {implementation} checked");
    run("ip", &format!("link delete {name}"), "");
}

#[test]
fn a_flood_costs_no_allocation() {
    let key = PrivateKey::generate();
    let mut checker = Checker::new(&key);
    let now = Instant::now();
    let source: SocketAddr = "192.0.2.1:1".parse().unwrap();
    let mut noise = [7; 148];
    noise[..4].copy_from_slice(&[1, 0, 0, 0]);
    // nothing inside opens, but the outside is right: what someone sends who knows our public key only
    let mut sealed = noise;
    let mac1 = {
        use blake2::digest::{FixedOutput, KeyInit, Update, consts::U16};
        use blake2::{Blake2s256, Blake2sMac, Digest};
        let mac1_key = Digest::chain_update(Blake2s256::new(), b"mac1----").chain_update(key.public().0).finalize();
        let mac: Blake2sMac<U16> = KeyInit::new_from_slice(&mac1_key).unwrap();
        mac.chain(&sealed[..116]).finalize_fixed()
    };
    sealed[116..132].copy_from_slice(&mac1);
    let mut drained = 0;
    while checker.check(&sealed, source, now, |_| false) == Verdict::Drop(Reason::StaticKey) {
        drained += 1;
    }
    assert!((1..100).contains(&drained));

    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..1000 {
        assert_eq!(checker.check(&noise[..147], source, now, |_| false), Verdict::Drop(Reason::Malformed));
        assert_eq!(checker.check(&noise, source, now, |_| false), Verdict::Drop(Reason::Mac1));
        assert_eq!(checker.check(&sealed, source, now, |_| false), Verdict::Drop(Reason::SourceRate));
    }
    assert_eq!(ALLOCATIONS.with(Cell::get), before);
    let mut other = 0u32;
    let mut from_others = || {
        other += 1;
        let source = SocketAddr::from((other.to_be_bytes(), 1));
        checker.check(&sealed, source, now, |_| false)
    };
    while from_others() == Verdict::Drop(Reason::StaticKey) {}
    let between = ALLOCATIONS.with(Cell::get);
    for _ in 0..1000 {
        assert_eq!(from_others(), Verdict::Drop(Reason::TotalRate));
    }
    assert!(between > before, "the allocator counts: opening needs memory");
    assert_eq!(ALLOCATIONS.with(Cell::get), between);
    let counters = checker.counters();
    assert_eq!([counters.malformed, counters.mac1], [1000, 1000]);
}
