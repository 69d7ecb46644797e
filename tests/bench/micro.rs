#![allow(missing_docs, reason = "criterion makes public functions of its own")]
//! `cargo bench`: what one core does in a second. The check of a handshake initiation, by the stage at which it ends; a
//! STUN answer; what an exit with 10,000 peers works out when it starts.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gotatun::noise::Tunn;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::x25519;
use peervpn::host::numbers;
use peervpn::join::address::peer_addresses;
use peervpn::join::admission::Admission;
use peervpn::join::initiation::{Checker, Reason, Verdict};
use peervpn::join::peers::{How, Peer, PeerStore};
use peervpn::key::{PrivateKey, PublicKey};
use peervpn::nat::stun;
use peervpn::tunnel;
use peervpn_platform::types::{Route, RouteKind, System};

const PEERS: u32 = 10_000;

fn initiation(key: &PrivateKey, exit: &PublicKey) -> [u8; 148] {
    let theirs = x25519::PublicKey::from(exit.0);
    let limiter = Arc::new(RateLimiter::new(&theirs, 1));
    let private = key.as_x25519().clone();
    let mut tunnel = Tunn::new(private, theirs, None, None, IndexTable::from_os_rng(), limiter);
    let packet = tunnel.format_handshake_initiation(true).expect("a first one");
    packet.into_bytes().as_ref().try_into().expect("148 bytes")
}

/// Changes a byte, and puts the right mac1 on it; WireGuard paper §5.4.4.
fn forged(real: &[u8; 148], at: usize, exit: &PublicKey) -> [u8; 148] {
    let mut packet = *real;
    packet[at] ^= 0x40;
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(exit.0).finalize();
    let mac1: Blake2sMac<U16> = KeyInit::new_from_slice(&key).expect("32 bytes are a key");
    let mac1 = mac1.chain_update(&packet[..116]).finalize().into_bytes();
    packet[116..132].copy_from_slice(&mac1);
    packet
}

fn initiations(criterion: &mut Criterion) {
    let key = PrivateKey::generate();
    let exit = key.public();
    let peer = PrivateKey::generate();
    let real = initiation(&peer, &exit);
    let mut noise = real;
    noise[40] ^= 1;
    let drop = Verdict::Drop;
    // whether time goes by between two, so that the buckets always have a token
    let stages: [(&str, &[u8], bool, bool, Verdict); 6] = [
        ("1 length and type", &real[..147], true, false, drop(Reason::Malformed)),
        ("2 mac1", &noise, true, false, drop(Reason::Mac1)),
        ("3 bucket", &real, false, true, drop(Reason::SourceRate)),
        ("4 static key", &forged(&real, 60, &exit), true, false, drop(Reason::StaticKey)),
        ("4 static key, known", &real, true, true, Verdict::Settled { key: peer.public() }),
        ("5 timestamp", &forged(&real, 100, &exit), true, false, drop(Reason::Timestamp)),
    ];
    let mut group = criterion.benchmark_group("initiation ends at");
    group.throughput(Throughput::Elements(1));
    let source: SocketAddr = "198.51.100.7:40001".parse().expect("an address");
    for (name, packet, time_goes_by, settled, verdict) in stages {
        let mut checker = Checker::new(&key);
        let mut now = Instant::now();
        if !time_goes_by {
            for _ in 0..1000 {
                checker.check(packet, source, now, |_| settled);
            }
        }
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                if time_goes_by {
                    now += Duration::from_secs(1);
                }
                let found = checker.check(black_box(packet), source, now, |_| settled);
                assert_eq!(found, verdict);
            });
        });
    }
}

fn stun_answers(criterion: &mut Criterion) {
    // RFC 5769 §2.2, without its integrity and fingerprint
    let mut answer = vec![0x01, 0x01, 0x00, 0x1c, 0x21, 0x12, 0xa4, 0x42];
    answer.extend(*b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae");
    answer.extend(*b"\x80\x22\x00\x0btest vector\x20");
    answer.extend(*b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43");
    let mut group = criterion.benchmark_group("STUN");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode", |bencher| bencher.iter(|| stun::decode(black_box(&answer)).expect("an answer")));
}

fn many_peers(criterion: &mut Criterion) {
    let exit = PrivateKey::generate();
    let mut store = PeerStore::default();
    for n in 0..PEERS {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let key = PublicKey(key);
        let mut addresses = peer_addresses(&exit.public(), &key);
        // the plan is measured, not the chance of a collision
        addresses.v4 = Ipv4Addr::from_bits(0x0a80_0000 + n);
        store.add(Peer::new(key, addresses, How::Accepted, 1_767_225_600)).expect("all differ");
    }
    let text = store.to_json();
    let routes: Vec<Route> = store
        .peers()
        .flat_map(|peer| peer.tunnel_addresses.allowed_ips())
        .map(|destination| Route {
            table: 254,
            destination,
            kind: RouteKind::Unicast,
            oif: Some("peervpn0".to_owned()),
            gateway: None,
            metric: None,
            protocol: peervpn_platform::OUR_PROTOCOL,
            mtu: None,
        })
        .collect();
    let mut group = criterion.benchmark_group("10,000 peers");
    group.sample_size(20);
    group.bench_function("read the peers file", |bencher| {
        bencher.iter(|| PeerStore::parse(black_box(text.as_bytes())).expect("as written"));
    });
    group.bench_function("write the peers file", |bencher| bencher.iter(|| black_box(&store).to_json()));
    group.bench_function("plan the device", |bencher| {
        bencher.iter(|| {
            let mut config = tunnel::device(&exit, 51820, 0);
            config.peers = store
                .peers()
                .map(|peer| tunnel::peer(&peer.public_key, None, peer.tunnel_addresses.allowed_ips().to_vec()))
                .collect();
            config
        });
    });
    group.bench_function("know them", |bencher| {
        bencher.iter(|| {
            let mut admission = Admission::new(peervpn::config::Accept::Any, exit.public());
            store.peers().for_each(|peer| admission.know(peer.public_key, peer.tunnel_addresses));
            admission
        });
    });
    group.bench_function("choose mark, table and priority beside their routes", |bencher| {
        bencher.iter(|| numbers::choose(System::Linux, &[], black_box(&routes)));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = initiations, stun_answers, many_peers
}
criterion_main!(benches);
