//! PCP, NAT-PMP and SSDP answers that `nattest` reads: no bytes panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peervpn::nat::gateway::{is_internet_gateway, is_pcp, nat_pmp};

fuzz_target!(|bytes: &[u8]| {
    let _ = is_internet_gateway(bytes);
    // an answer is of one protocol
    assert!(!(is_pcp(bytes) && nat_pmp(bytes).is_some()));
});
