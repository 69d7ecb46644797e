//! What a stranger's packet costs in memory: forged initiations allocate nothing until they have a right mac1 and tokens
//! of both buckets, and what opens those gives it all back. Counted, in the very functions that an exit runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use gotatun::noise::Tunn;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::x25519;
use peervpn::join::initiation::{Checker, Reason, Verdict};
use peervpn::key::{PrivateKey, PublicKey};

struct Counting;

thread_local! {
    /// Bytes that this thread has asked for, and given back.
    static BYTES: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

fn count(asked: usize, given_back: usize) {
    // gone when the thread ends
    let _ = BYTES.try_with(|bytes| {
        let (a, b) = bytes.get();
        bytes.set((a + asked as u64, b + given_back as u64));
    });
}

// SAFETY: the system's allocator does it all; `BYTES` allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: passed on as it came.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes asked for and given back meanwhile.
fn counted<T>(work: impl FnOnce() -> T) -> (T, u64, u64) {
    let (asked, given_back) = BYTES.get();
    let result = work();
    let now = BYTES.get();
    (result, now.0 - asked, now.1 - given_back)
}

/// An initiation to `exit` from this key.
fn initiation(key: &PrivateKey, exit: &PublicKey) -> [u8; 148] {
    let theirs = x25519::PublicKey::from(exit.0);
    let limiter = Arc::new(RateLimiter::new(&theirs, 1));
    let private = key.as_x25519().clone();
    let mut tunnel = Tunn::new(private, theirs, None, None, IndexTable::from_os_rng(), limiter);
    let packet = tunnel.format_handshake_initiation(true).expect("a first one");
    packet.into_bytes().as_ref().try_into().expect("148 bytes")
}

/// Puts the right mac1 on a changed packet, as everyone who knows the exit's public key can; WireGuard paper §5.4.4.
fn seal(packet: &mut [u8; 148], exit: &PublicKey) {
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(exit.0).finalize();
    let mac1: Blake2sMac<U16> = KeyInit::new_from_slice(&key).expect("32 bytes are a key");
    let mac1 = mac1.chain_update(&packet[..116]).finalize().into_bytes();
    packet[116..132].copy_from_slice(&mac1);
}

#[test]
fn forged_initiations_allocate_nothing() {
    let exit = PrivateKey::generate();
    let mut checker = Checker::new(&exit);
    let exit = exit.public();
    let peer = PrivateKey::generate();
    let real = initiation(&peer, &exit);
    let changed = |at: usize, sealed: bool| {
        let mut packet = real;
        packet[at] ^= 0x40;
        if sealed {
            seal(&mut packet, &exit);
        }
        packet
    };
    let source = |n: u32| SocketAddr::new(std::net::Ipv4Addr::from_bits(0xc633_6400 + n).into(), 1);
    let start = Instant::now();
    let mut later = 0;
    let mut check = |packet: &[u8], settled: bool| {
        later += 1;
        let now = start + Duration::from_secs(later);
        counted(|| checker.check(packet, source(1), now, |_| settled))
    };
    let drop = |reason| Verdict::Drop(reason);
    let cases: [(&str, &[u8], Verdict); 3] = [
        ("another type", &changed(0, false), drop(Reason::Malformed)),
        ("another length", &real[..147], drop(Reason::Malformed)),
        ("a wrong mac1", &changed(40, false), drop(Reason::Mac1)),
    ];
    for (name, packet, verdict) in cases {
        for _ in 0..3 {
            assert_eq!(check(packet, false), (verdict, 0, 0), "{name}");
        }
    }
    // with a token of each bucket, which bound how many come here
    let opened: [(&str, [u8; 148], bool, Verdict); 4] = [
        ("a made-up ephemeral key", changed(20, true), false, drop(Reason::StaticKey)),
        ("a static key that does not open", changed(60, true), false, drop(Reason::StaticKey)),
        ("a known key", real, true, Verdict::Settled { key: peer.public() }),
        ("a timestamp that does not open", changed(100, true), false, drop(Reason::Timestamp)),
    ];
    for (name, packet, settled, verdict) in opened {
        for _ in 0..3 {
            let (found, asked, given_back) = check(&packet, settled);
            assert_eq!((found, asked), (verdict, given_back), "{name}");
            assert!(asked > 0, "the counter counts nothing");
            println!("{name}: {asked} bytes, all of them given back");
        }
    }

    // a flood from one source and from many, once the tables that it fills are there
    let now = start + Duration::from_secs(3600);
    let forged = changed(60, true);
    let mut refused = 0;
    for round in 0..2 {
        for n in 0..10_000 {
            let from = source(if n % 2 == 0 { 0 } else { n });
            let (found, asked, _) = counted(|| checker.check(&forged, from, now, |_| false));
            if matches!(found, Verdict::Drop(Reason::SourceRate | Reason::TotalRate)) {
                refused += 1;
                assert!(round == 0 || asked == 0, "packet {n}: {asked} bytes for {found:?}");
            }
        }
    }
    assert!(refused > 15_000, "{refused} refused");
}
