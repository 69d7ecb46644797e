//! Peers files with changes behind them: read or refused, and what was read is written, whole or as one more change, so
//! that it reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peervpn::join::peers::PeerStore;

fuzz_target!(|data: &[u8]| {
    if let Ok(read) = PeerStore::read(data) {
        let mut store = read.store;
        let text = store.to_json();
        assert_eq!(PeerStore::parse(text.as_bytes()).unwrap(), store);
        for peer in store.peers() {
            assert_eq!(store.find(&peer.public_key.to_string()).unwrap(), peer);
        }
        let first = store.peers().next().map(|peer| peer.public_key);
        if let (Some(extent), Some(key)) = (read.extent, first) {
            assert!(extent.whole <= extent.all && extent.all == data.len());
            store.remove(&key);
            let mut longer = data.to_vec();
            longer.extend_from_slice(store.changes().expect("a change").as_bytes());
            assert_eq!(PeerStore::parse(&longer).unwrap(), store);
        }
    }
});
