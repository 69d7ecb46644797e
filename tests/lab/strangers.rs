//! Strangers at the exit's port: 50,000 forged initiations a second from many sources, while a peer joins and another
//! one's packets flow. It takes the whole machine for a minute, so it runs only with `PEERVPN_FLOOD=1`.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blake2::digest::{FixedOutput, KeyInit, Update, consts::U16};
use blake2::{Blake2s256, Blake2sMac, Digest};
use peervpn::key::PublicKey;

use crate::net::Namespace;
use crate::topology::{Lab, Nat, WEB};
use crate::{assert_leaves_through_exit, join, lab_tests, open_exit, text};

/// Initiations a second.
const RATE: u64 = 50_000;
/// How long; `PEERVPN_FLOOD_SECONDS` changes it.
const SECONDS: u64 = 30;
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
    let mac1_key = Digest::chain_update(Blake2s256::new(), b"mac1----").chain_update(exit.0).finalize();
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
            let mut packet = vec![0; 28 + 148];
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
                let mac: Blake2sMac<U16> = KeyInit::new_from_slice(&mac1_key).expect("32 bytes");
                let mac = mac.chain(&initiation[..116]).finalize_fixed();
                initiation[116..132].copy_from_slice(&mac);
            }
            packet
        })
        .collect()
}

/// Sends them from `space` with sources out of 10.128.0.0/9 at [`RATE`], many a system call, until told to stop.
fn flood(space: &Namespace, mut packets: Vec<Vec<u8>>, to: Ipv4Addr, stop: &AtomicBool, sent: &AtomicU64) {
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
            let due = start.elapsed().as_micros() as u64 * RATE / 1_000_000;
            if sent.load(Ordering::Relaxed) >= due {
                std::thread::sleep(Duration::from_micros(300));
                continue;
            }
            let first = number as usize % (packets.len() / 64) * 64;
            let batch = &mut packets[first..first + 64];
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

/// Resident memory of a process in kilobytes; proc(5).
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a resident size");
    line.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse().ok()).expect("a number")
}

/// Share of the peer's packets that arrive in two seconds, in percent, given its count at the web server.
fn arriving(sink: &crate::service::Sink, sent: &AtomicU64) -> u64 {
    let (before, sent_before) = (sink.count(), sent.load(Ordering::Relaxed));
    std::thread::sleep(Duration::from_secs(2));
    let (after, sent_after) = (sink.count(), sent.load(Ordering::Relaxed));
    (after - before) * 100 / (sent_after - sent_before).max(1)
}

fn under_flood(forgery: Forgery) {
    if std::env::var_os("PEERVPN_FLOOD").is_none() {
        println!("SKIP: PEERVPN_FLOOD=1 (the flood takes a whole machine)");
        return;
    }
    let lab = Lab::new(Nat::Open, &[Nat::PortRestricted.into(), Nat::PortRestricted.into()]);
    let (mut exit, ready) = open_exit(&lab, &[]);
    let (mut first, _) = join(lab.peer(), &ready, &[]);
    let key: PublicKey = text(&ready, "public_key").parse().expect("a key");
    let port = ready["port"].as_u64().expect("a port") as u16;
    let packets = forged(forgery, &key, lab.exit.public4, port);
    let sink = lab.sink();
    let (stop, forged_sent, stream_sent) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let seconds = std::env::var("PEERVPN_FLOOD_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(SECONDS);
    std::thread::scope(|scope| {
        let ending = Stop(&stop);
        scope.spawn(|| {
            lab.peer().host.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                let start = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let due = start.elapsed().as_micros() as u64 * STREAM / 1_000_000;
                    for _ in stream_sent.load(Ordering::Relaxed)..due {
                        if socket.send_to(&[0; 1000], (WEB[0], 9)).is_ok() {
                            stream_sent.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        });
        std::thread::sleep(Duration::from_secs(1));
        let quiet = arriving(&sink, &stream_sent);
        let memory_before = memory(exit.id());
        let start = Instant::now();
        scope.spawn(|| flood(&lab.internet, packets, lab.exit.public4, &stop, &forged_sent));
        std::thread::sleep(Duration::from_secs(2));
        let loud = arriving(&sink, &stream_sent);
        let joining = Instant::now();
        let mut second = lab.peers[1].connect(text(&ready, "connect"), &["--timeout", "25"]);
        let joined = second.try_event("connected", Duration::from_secs(26));
        let joined = joined.map(|event| (joining.elapsed(), event["handshake_ms"].as_u64().expect("a number")));
        while start.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(100));
        }
        let late = arriving(&sink, &stream_sent);
        let memory_after = memory(exit.id());
        let rate = forged_sent.load(Ordering::Relaxed) / start.elapsed().as_secs().max(1);
        drop(ending);
        println!(
            "{forgery:?}: {rate} initiations a second for {} s; of a connected peer's packets arrive {quiet} % before, \
             {loud} % and {late} % during; joining took {joined:?}; the exit's memory {memory_before} kB before, \
             {memory_after} kB after",
            start.elapsed().as_secs(),
        );
        assert!(
            memory_after < memory_before + 16 * 1024,
            "the exit's memory grows: {memory_before} to {memory_after} kB"
        );
        assert!(loud + 10 >= quiet && late + 10 >= quiet, "a connected peer suffers");
        if joined.is_ok() {
            assert_leaves_through_exit(&lab, &lab.peers[1]);
        }
        if forgery == Forgery::WrongMac1 {
            let (_, handshake_ms) = joined.expect("a peer joins during the flood");
            assert!(handshake_ms <= 1000, "joining took {handshake_ms} ms");
            second.stop(libc::SIGINT);
        } else if joined.is_ok() {
            second.stop(libc::SIGINT);
        } else {
            assert_eq!(second.wait(), Some(1));
        }
    });
    // the flood is over: whoever could not come in does
    if !matches!(forgery, Forgery::WrongMac1) {
        let (mut second, _) = join(&lab.peers[1], &ready, &[]);
        second.stop(libc::SIGINT);
    }
    first.stop(libc::SIGINT);
    exit.stop(libc::SIGINT);
}

lab_tests! {
    fn strangers_without_the_exits_key() { under_flood(Forgery::WrongMac1) }
    fn strangers_with_the_connect_string() { under_flood(Forgery::RandomStatic) }
}
