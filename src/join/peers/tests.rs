use super::*;
use crate::error::Failure;
use crate::error::{Hint as _, Status};
use crate::join::address::peer_addresses;

fn key(number: u32) -> PublicKey {
    let mut key = PublicKey([7; 32]);
    key.0[..4].copy_from_slice(&number.to_be_bytes());
    key
}

fn peer(number: u32) -> Peer {
    Peer {
        public_key: key(number),
        name: None,
        tunnel_addresses: peer_addresses(&PublicKey([1; 32]), &key(number)),
        how: How::Accepted,
        added_at: 1_767_225_600,
        endpoint: Some("[2001:db8::1]:40001".parse().unwrap()),
        preshared_key: None,
        stock: false,
        use_by: None,
    }
}

fn store(peers: impl IntoIterator<Item = Peer>) -> PeerStore {
    let mut store = PeerStore::default();
    peers.into_iter().for_each(|peer| store.add(peer).unwrap());
    store
}

#[test]
fn the_format_is_what_is_documented() {
    let mut store = store([Peer { name: Some("phone".into()), ..peer(2) }, Peer { endpoint: None, ..peer(1) }]);
    store.revoke(&key(1), 1_767_225_601).unwrap();
    let text = store.to_json();
    let (v4, v6) = (peer(2).tunnel_addresses.v4, peer(2).tunnel_addresses.v6);
    assert_eq!(
        *text,
        format!(
            "{{\"version\":3,\n\"peers\":[\n{{\"public_key\":\"{}\",\"name\":\"phone\",\"tunnel_addresses\":\
             {{\"v4\":\"{v4}\",\"v6\":\"{v6}\"}},\"how\":\"accepted\",\"added_at\":1767225600,\
             \"endpoint\":\"[2001:db8::1]:40001\"}}],\n\"revoked\":[\n{{\"public_key\":\"{}\",\
             \"revoked_at\":1767225601}}],\n\"invites\":[]}}\n",
            key(2),
            key(1)
        )
    );
    assert_eq!(PeerStore::parse(text.as_bytes()).unwrap(), store);
    let empty = PeerStore::default();
    assert_eq!(PeerStore::parse(empty.to_json().as_bytes()).unwrap(), empty);
}

#[test]
fn the_order_of_adding_does_not_show() {
    assert_eq!(store([peer(1), peer(2), peer(3)]).to_json(), store([peer(3), peer(1), peer(2)]).to_json());
}

#[test]
fn ten_thousand_peers_are_read_and_written() {
    let mut many = PeerStore::default();
    // straight into the map: adding one by one compares each with all others
    let mut taken = HashSet::new();
    for peer in (0..10_100).map(peer).filter(|peer| taken.insert(peer.tunnel_addresses.v4)).take(10_000) {
        many.peers.insert(peer.public_key, peer);
    }
    for (number, peer) in many.peers.values_mut().enumerate() {
        peer.name = Some(format!("peer number {number}"));
    }
    assert_eq!(many.peers.len(), 10_000);
    let text = many.to_json();
    let read = PeerStore::parse(text.as_bytes()).unwrap();
    assert_eq!(read, many);
    assert_eq!(read.find("peer number 9999").unwrap().name.as_deref(), Some("peer number 9999"));
}

#[test]
fn bad_files_are_refused_with_a_hint() {
    let good = store([Peer { name: Some("a".into()), ..peer(1) }, Peer { name: Some("b".into()), ..peer(2) }]);
    let good = good.to_json();
    let v4 = |number| peer(number).tunnel_addresses.v4.to_string();
    let cases = [
        ("", "the peers file cannot be read: EOF", "mend peers.json"),
        ("[]", "the peers file cannot be read: ", "mend peers.json"),
        (&good[..good.len() / 2], "the peers file cannot be read: ", "mend peers.json"),
        ("{\"version\":4,\"what\":0}", "the peers file has version 4, this program knows 3", "a newer peervpn"),
        (&good.replace("\"how\"", "\"who\""), "the peers file cannot be read: unknown field `who`", "mend"),
        (&good.replace("accepted", "guessed"), "the peers file cannot be read: unknown variant", "mend"),
        (&good.replace(&key(1).to_string(), "AAAA"), "the peers file cannot be read: a key has 44", "mend"),
        (&good.replace(&key(1).to_string(), &key(2).to_string()), "peer ", "peervpn peers list"),
        (&good.replace("\"a\"", "\"b\""), "another peer has the name \"b\"", "choose another name"),
        (&good.replace("\"a\"", "\"a\\u0007\""), "\"a\\u{7}\" is no peer name: it has a character", "choose"),
        (&good.replace(&v4(1), &v4(2)), "peer ", "let the new peer connect with an invite"),
        (&good.replace(&v4(1), "127.0.0.1"), "peer ", "mend its tunnel_addresses"),
        (&good.replace(&v4(1), "10.0.0"), "the peers file cannot be read: invalid IPv4", "mend"),
        (
            &good.replace("\"revoked\":[", &format!("\"revoked\":[{{\"public_key\":\"{}\",\"revoked_at\":1}}", key(1))),
            "peer ",
            "peervpn peers list",
        ),
        (&good.replace("[2001:db8::1]", "2001:db8::1"), "the peers file cannot be read: endpoint", "mend"),
        (&format!("{}x\n", *good), "the change in line 7 of the peers file cannot be read: expected value", "mend"),
        (
            &format!("{}x", good.replace("\"version\":3", "\"version\":2")),
            "the peers file cannot be read: trailing characters",
            "mend",
        ),
    ];
    for (text, message, hint) in cases {
        let failure = Failure::from(PeerStore::parse(text.as_bytes()).expect_err(text));
        assert!(failure.message.starts_with(message), "{}", failure.message);
        assert!(failure.hint.as_deref().unwrap().starts_with(hint), "{} {:?}", failure.message, failure.hint);
    }
    assert!(matches!(PeerStore::parse(&vec![b' '; MAX_FILE + 1]), Err(PeersError::TooLong(_))));
}

#[test]
fn a_peer_is_found_by_key_id_and_name() {
    let store = store([Peer { name: Some("Ann's phone".into()), ..peer(1) }, peer(2)]);
    let id = key(1).peer_id();
    for text in [key(1).to_string(), id.clone(), id.replace('-', ""), format!(" {id} "), "Ann's phone".to_owned()] {
        assert_eq!(store.find(&text).unwrap().public_key, key(1), "{text}");
    }
    for text in ["", "ann's phone", &key(3).to_string(), &key(3).peer_id(), &id[..13]] {
        assert!(matches!(store.find(text), Err(PeersError::Unknown(_))), "{text}");
    }
}

#[test]
fn adding_revoking_and_renaming_keep_everything_unique() {
    let mut store = store([Peer { name: Some("a".into()), ..peer(1) }, peer(2)]);
    let before = store.clone();
    assert!(matches!(store.add(peer(1)), Err(PeersError::DuplicateKey(_))));
    let same_name = Peer { name: Some("a".into()), ..peer(3) };
    assert!(matches!(store.add(same_name), Err(PeersError::DuplicateName(_))));
    let same_address = Peer { tunnel_addresses: peer(2).tunnel_addresses, ..peer(3) };
    assert!(matches!(store.add(same_address), Err(PeersError::DuplicateAddress { .. })));
    assert!(matches!(store.rename(&key(2), Some("a")), Err(PeersError::DuplicateName(_))));
    assert!(matches!(store.rename(&key(9), Some("z")), Err(PeersError::Unknown(_))));
    assert!(matches!(store.revoke(&key(9), 0), Err(PeersError::Unknown(_))));
    assert_eq!(store, before, "a refused change changed something");

    store.rename(&key(1), Some("a")).unwrap();
    store.rename(&key(2), Some("b")).unwrap();
    assert_eq!(store.revoke(&key(2), 5).unwrap().name.as_deref(), Some("b"));
    assert!(store.is_revoked(&key(2)) && store.get(&key(2)).is_none());
    store.rename(&key(1), Some("b")).unwrap();
    store.add(peer(2)).unwrap();
    assert!(!store.is_revoked(&key(2)), "added by the operator again");
    assert_eq!(store.remove(&key(2)), Some(peer(2)));
    assert!(!store.is_revoked(&key(2)));
}

#[test]
fn names_are_printable() {
    let long = "ä".repeat(MAX_NAME);
    for name in ["a", "Ann's phone", "büro 2", "电话", &long] {
        check_name(name).unwrap();
    }
    let (key_like, id_like, longer) = (key(1).to_string(), key(1).peer_id(), format!("{long}a"));
    for name in ["", " a", "a\n", "a\tb", "\u{1b}[31m", "a\u{202e}b", "\u{feff}", &key_like, &id_like, &longer] {
        let error = check_name(name).expect_err(name);
        assert_eq!(error.status(), Status::Usage);
        assert!(!error.to_string().contains(['\n', '\u{1b}', '\u{202e}']), "{error}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        proptest::prop_assert!(PeerStore::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn a_changed_byte_never_reads_as_something_else_silently(at in 0usize..600, byte in 0u8..=255) {
        let text = store([peer(1), peer(2)]).to_json();
        let mut bytes = text.as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(read) = PeerStore::parse(&bytes) {
            proptest::prop_assert_eq!(PeerStore::parse(read.to_json().as_bytes()).unwrap(), read);
        }
    }
}
