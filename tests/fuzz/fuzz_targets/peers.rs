//! Peers files: read or refused, and what was read is written so that it reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peervpn::join::peers::PeerStore;

fuzz_target!(|data: &[u8]| {
    if let Ok(store) = PeerStore::parse(data) {
        let text = store.to_json();
        assert_eq!(PeerStore::parse(text.as_bytes()).unwrap(), store);
        for peer in store.peers() {
            assert_eq!(store.find(&peer.public_key.to_string()).unwrap(), peer);
        }
    }
});
