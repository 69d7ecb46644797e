//! STUN answers: no bytes panic, and what is accepted has a usable address and the transaction ID that the quick look sees.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peervpn::nat::stun::{Body, MAX_MESSAGE, decode, transaction_id};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(response) = decode(bytes) {
        assert_eq!(transaction_id(bytes), Some(response.id));
        assert!(bytes.len() <= MAX_MESSAGE);
        match response.body {
            Body::Success(success) => assert!(success.mapped.port() != 0 && !success.mapped.ip().is_unspecified()),
            Body::Error(code) => assert!((300..700).contains(&code)),
        }
    }
});
