//! The exits file and the waiting file: read or refused, and what was read is written so that it reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peervpn::join::exits::Exits;
use peervpn::join::waiting::Waiting;

fuzz_target!(|data: &[u8]| {
    if let Ok(exits) = Exits::parse(data) {
        assert_eq!(Exits::parse(exits.to_json().as_bytes()).unwrap(), exits);
    }
    let waiting = Waiting::parse(data);
    assert_eq!(Waiting::parse(waiting.to_json().as_bytes()), waiting);
});
