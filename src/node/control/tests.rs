//! A node's control server and those who ask it, over the system's own socket or pipe; `down` with a host in memory.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use super::*;
use crate::host::Change;
use crate::node::apply::Applier;
use crate::node::end;
use crate::node::fake::{FakeHost, Scratch, State, Trouble, Unwarned};

const KEY: &str = "cGVlcnZwbg==";

#[test]
fn a_status_is_passed_on_as_the_node_wrote_it() {
    let status = Status {
        interface: "peervpn0".to_owned(),
        mode: "exit".to_owned(),
        backend: "kernel".to_owned(),
        public_key: PublicKey([7; 32]),
        port: 51820,
        endpoints: Vec::new(),
        peers: Vec::new(),
        kill_switch: None,
        initiations: None,
    };
    let mut line = serde_json::to_vec(&Response::Status(status.clone())).unwrap();
    line.push(b'\n');
    // wherever it is cut into pieces
    for size in 1..=line.len() {
        let mut out = Vec::new();
        let mut passing = Passing { out: &mut out, held: Vec::new(), begun: false, gone: false };
        line.chunks(size).for_each(|piece| passing.take(piece).unwrap());
        assert!(passing.begun && passing.held == STATUS_TAIL, "pieces of {size}");
        assert_eq!(out, serde_json::to_vec(&status).unwrap(), "pieces of {size}");
    }
    assert_eq!(parse("peervpn0", &line).unwrap(), Response::Status(status));
}

#[test]
fn another_answer_than_a_status_is_not_passed_on() {
    let mut out = Vec::new();
    let mut passing = Passing { out: &mut out, held: Vec::new(), begun: false, gone: false };
    let line = br#"{"response":"failed","answer":{"error":"no","hint":null}}"#;
    line.chunks(5).for_each(|piece| passing.take(piece).unwrap());
    assert!(!passing.begun && passing.held == line);
    assert!(out.is_empty());
}

/// A node in a thread of its own, which has set its DNS servers: answers `status`, `peers list` and `export`, and ends as a
/// node does. It gives what it ended with, and its host.
fn node(places: &Places, interface: &str, trouble: Option<Trouble>) -> JoinHandle<(Result<(), Failure>, State)> {
    let (places, interface) = (places.clone(), interface.to_owned());
    let (ready, is_ready) = mpsc::channel();
    let node = thread::spawn(move || {
        let host = FakeHost::default();
        let mut applier = Applier::open_on(host.clone(), &places, &interface, "connect", &mut Unwarned).unwrap();
        let servers = vec![IpAddr::from([10, 77, 0, 9])];
        applier.make(Change::SystemDns { interface: interface.clone(), servers }).unwrap();
        if let Some(trouble) = trouble {
            host.trouble(1, trouble);
        }
        let serve = async {
            let mut server = Server::bind(&places, &interface).unwrap();
            ready.send(()).unwrap();
            loop {
                let asked = server.next().await;
                let response = match &asked.request {
                    Request::Status => Response::Status(status(&interface)),
                    Request::PeersList => Response::Peers { peers: status(&interface).peers },
                    Request::Export { show_keys } => {
                        let key = if *show_keys { KEY } else { "(hidden)" };
                        Response::Export { wg_quick: Zeroizing::new(format!("PrivateKey = {key}\n")).into() }
                    }
                    Request::Down => return end(applier, Some(asked), server, &mut Unwarned).await,
                    _ => failed(Failure::new("it is no exit", "ask one")),
                };
                asked.reply(response);
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        (runtime.block_on(serve), host.state())
    });
    is_ready.recv().unwrap();
    node
}

/// Longer than one piece of an answer.
fn status(interface: &str) -> Status {
    let peer = |number: u16| {
        let mut key = PublicKey([7; 32]);
        key.0[..2].copy_from_slice(&number.to_be_bytes());
        let device = PeerState {
            public_key: key.0,
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            keepalive: 0,
            last_handshake: None,
            rx_bytes: 1,
            tx_bytes: 2,
            allowed_ips: Vec::new(),
        };
        PeerStatus::of_device(&device, vec![IpAddr::from([10, 77, 1, 1])], "any", Duration::ZERO)
    };
    Status {
        interface: interface.to_owned(),
        mode: "exit".to_owned(),
        backend: "kernel".to_owned(),
        public_key: PublicKey([7; 32]),
        port: 51820,
        endpoints: Vec::new(),
        peers: (0..1000).map(peer).collect(),
        kill_switch: None,
        initiations: None,
    }
}

#[test]
fn a_node_answers_those_who_ask_until_it_is_down() {
    let scratch = Scratch::new("control");
    let places = &scratch.0;
    let interface = &*format!("c{}", std::process::id());
    let ask = |asked| request(places, Some(interface), &asked);
    let nobody = ask(Request::Status).unwrap_err();
    assert_eq!(nobody.message, format!("no node runs on {interface}"));

    let node = node(places, interface, None);
    assert!(running(places).contains(&interface.to_owned()));
    assert_eq!(ask(Request::Status).unwrap(), Response::Status(status(interface)));
    assert_eq!(ask(Request::PeersList).unwrap(), Response::Peers { peers: status(interface).peers });
    let mut out = Vec::new();
    assert!(status_json(places, Some(interface), &mut out).unwrap());
    assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&status(interface)).unwrap() + "\n");
    for show_keys in [true, false] {
        let Response::Export { wg_quick } = ask(Request::Export { show_keys }).unwrap() else { panic!() };
        assert_eq!(wg_quick.reveal().contains(KEY), show_keys);
    }
    let no = ask(Request::PeersDeny { id: "1".to_owned() }).unwrap_err();
    assert_eq!((&*no.message, no.hint.as_deref()), ("it is no exit", Some("ask one")));
    let mut answer = Vec::new();
    let take = &mut |piece: &[u8]| {
        answer.extend_from_slice(piece);
        Ok(())
    };
    os::control::ask(&places.run_dir, interface, b"{\"request\":\"dance\"}\n", MAX_ANSWER, ANSWER_LIMIT, take).unwrap();
    assert!(parse(interface, &answer).unwrap_err().message.starts_with("the node does not understand the request"));

    assert_eq!(ask(Request::Down).unwrap(), Response::Stopped { host: "restored".to_owned(), restored: true });
    let (ended, host) = node.join().unwrap();
    ended.unwrap();
    assert_eq!(host, State::default());
    assert!(!running(places).contains(&interface.to_owned()) && !orphaned(places, interface));
    assert_eq!(ask(Request::Down).unwrap_err().message, nobody.message);
}

#[test]
fn down_says_what_could_not_be_put_back() {
    let scratch = Scratch::new("control-left");
    let places = &scratch.0;
    let interface = &*format!("d{}", std::process::id());
    let node = node(places, interface, Some(Trouble::Refused));
    let Response::Stopped { host, restored: false } = request(places, Some(interface), &Request::Down).unwrap() else {
        panic!()
    };
    assert!(host.starts_with("not fully restored: "), "{host}");
    let (ended, left) = node.join().unwrap();
    let ended = ended.unwrap_err();
    assert_eq!((ended.status, ended.host.as_deref()), (crate::error::Status::NotRestored, Some(&*host)));
    assert_ne!(left, State::default());
    let next = request(places, Some(interface), &Request::Status).unwrap_err();
    assert!(next.message.contains("but what it changed is still there"), "{next}");
}
