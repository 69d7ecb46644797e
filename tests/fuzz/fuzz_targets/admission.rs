//! Any order of initiations, answers and time: the list stays bounded and no key is two things at once.
#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use peervpn::config::Accept;
use peervpn::join::admission::{Admission, Decision, MAX_PENDING};
use peervpn::key::PublicKey;

fuzz_target!(|data: &[u8]| {
    let exit = PublicKey([1; 32]);
    let (accept, steps) = match data.split_first() {
        Some((0..=199, rest)) => (Accept::Ask, rest),
        Some((200..=227, rest)) => (Accept::Any, rest),
        Some((_, rest)) => (Accept::None, rest),
        None => return,
    };
    let mut admission = Admission::new(accept, exit);
    let mut now = Instant::now();
    for step in steps.chunks_exact(4) {
        let key = PublicKey([step[1]; 32]);
        let source = SocketAddr::from((Ipv4Addr::new(192, 0, 2, step[2]), 40000));
        now += Duration::from_secs(u64::from(step[3]));
        match step[0] % 8 {
            0 => admission.revoke(key),
            1 => admission.forget(&key),
            2 => {
                let _ = admission.deny(&key.peer_id(), now);
            }
            3 => {
                if let Ok(peer) = admission.accept(&key.to_string(), now) {
                    admission.know(peer.key, peer.addresses);
                    assert_eq!(admission.consider(key, source, now), Decision::Known);
                }
            }
            _ => {
                if let Decision::Admit(addresses) = admission.consider(key, source, now) {
                    admission.know(key, addresses);
                }
            }
        }
        let pending = admission.pending(now);
        assert!(pending.len() <= MAX_PENDING);
        assert!(pending.iter().all(|peer| !admission.is_settled(&peer.key)));
        assert!(accept == Accept::Ask || pending.is_empty());
    }
});
