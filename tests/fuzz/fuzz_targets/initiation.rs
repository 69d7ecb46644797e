//! Payloads as they come from anyone, and the same under a right mac1, as they come from whoever knows our key.
#![no_main]

use std::time::{Duration, Instant};

use blake2::digest::{FixedOutput, KeyInit, Update, consts::U16};
use blake2::{Blake2s256, Blake2sMac, Digest};
use libfuzzer_sys::fuzz_target;
use peervpn::join::initiation::{Checker, Verdict};
use peervpn::key::PrivateKey;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fuzz_target!(|data: &[u8]| {
    let key: PrivateKey = KEY.parse().unwrap();
    let mut checker = Checker::new(&key);
    let source = "[2001:db8::1]:40000".parse().unwrap();
    let now = Instant::now();
    checker.check(data, source, now, |_| false);
    let mut sealed = [0; 148];
    sealed[0] = 1;
    for (to, from) in sealed[4..].iter_mut().zip(data) {
        *to = *from;
    }
    let mac1_key = Digest::chain_update(Blake2s256::new(), b"mac1----").chain_update(key.public().0).finalize();
    let mac: Blake2sMac<U16> = KeyInit::new_from_slice(&mac1_key).unwrap();
    let mac1 = mac.chain(&sealed[..116]).finalize_fixed();
    sealed[116..132].copy_from_slice(&mac1);
    let verdict = checker.check(&sealed, source, now + Duration::from_secs(1), |_| false);
    // nobody finds a packet that opens without a private key
    assert!(matches!(verdict, Verdict::Drop(_)));
});
