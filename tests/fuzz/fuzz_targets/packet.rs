//! IP packets as the kernel hands them over.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peervpn_platform::datagram::parse;
use peervpn_platform::types::Family;

fuzz_target!(|data: &[u8]| {
    for family in Family::BOTH {
        if let Some((source, payload)) = parse(family, data, 3) {
            assert_eq!(Family::of(&source.ip()), family);
            assert!(data.get(payload).is_some());
        }
    }
});
