//! A running exit, asked and stopped by the commands.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use crate::harness::*;

/// `peervpn exit --json`, ready.
fn start_exit(namespace: &Namespace, place: &Place) -> (Child, serde_json::Value) {
    let args = ["exit", "--json", "--port", "51820", "--no-stun"];
    let mut command = namespace.peervpn(place, &args);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    // what comes after it stays in the pipe: a reader of one line only
    BufReader::with_capacity(1 << 16, child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    match serde_json::from_str(&line) {
        Ok(ready) => (child, ready),
        Err(_) => panic!("no ready: {line:?}, {:?}", finish_child(child)),
    }
}

#[test]
fn a_node_is_asked_and_stopped() {
    let Some(namespace) = Namespace::with_default_route("node") else { return };
    let place = Place::new("node").with_key();
    let before = namespace.snapshot();
    let (child, ready) = start_exit(&namespace, &place);
    assert_eq!((&ready["event"], &ready["mode"]), (&"ready".into(), &"exit".into()), "{ready}");
    assert_eq!(ready["endpoints"], serde_json::json!(["192.0.2.2:51820"]));

    let run = |args: &[&str]| finish(&mut namespace.peervpn(&place, args));
    let status: serde_json::Value = serde_json::from_slice(&run(&["status", "--json"]).stdout).unwrap();
    for field in ["interface", "backend", "public_key", "port", "mode"] {
        assert_eq!(status[field], ready[field], "{field}");
    }
    assert_eq!(status["peers"], serde_json::json!([]));
    golden("node-second", &place, &run(&["exit", "--port", "51821", "--no-stun"]));
    golden("node-peers-list", &place, &run(&["peers", "list"]));
    golden("node-peers-pending", &place, &run(&["peers", "pending"]));
    golden("node-peers-accept-unknown", &place, &run(&["peers", "accept", "000000-000000-000000"]));
    golden("node-recover-while-running", &place, &run(&["recover"]));
    golden("node-down", &place, &run(&["down"]));

    let output = finish_child(child);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"event\":\"stopped\",\"host\":\"restored\"}\n");
    assert_eq!(before, namespace.snapshot(), "the host is not as before");
    nothing_left(&place);
}

#[test]
fn a_node_whose_readers_went_away_goes_on() {
    let Some(namespace) = Namespace::with_default_route("deaf") else { return };
    let place = Place::new("deaf").with_key();
    let before = namespace.snapshot();
    let (mut child, _) = start_exit(&namespace, &place);
    drop((child.stdout.take(), child.stderr.take()));
    let status = finish(&mut namespace.peervpn(&place, &["status", "--json"]));
    assert!(status.status.success(), "{status:?}");
    // SAFETY: kill(2) on a child that was not waited for yet
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    assert!(finish_child(child).status.success());
    assert_eq!(before, namespace.snapshot(), "the host is not as before");
    nothing_left(&place);
}

/// Behind a lockdown nothing leaves this host: it must be possible to lift it from another shell at any time.
#[test]
fn a_node_that_waits_for_its_exit_is_asked_and_stopped() {
    let Some(namespace) = Namespace::with_default_route("waiting") else { return };
    let place = Place::new("waiting").with_key();
    let before = namespace.snapshot();
    let target = format!("{EXIT_KEY}@198.51.100.1:51820");
    let args = ["connect", &target, "--json", "--lockdown", "--no-stun"];
    let mut command = namespace.peervpn(&place, &args);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(1 << 16, child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("unreachable"), "{line}");
    assert_ne!(before, namespace.snapshot(), "nothing is closed");

    let run = |args: &[&str]| finish(&mut namespace.peervpn(&place, args));
    golden("node-waiting-status", &place, &run(&["status"]));
    golden("node-waiting-down", &place, &run(&["down"]));
    let output = finish_child(child);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"event\":\"stopped\",\"host\":\"restored\"}\n");
    assert_eq!(before, namespace.snapshot(), "the host is not as before");
    nothing_left(&place);
}

#[test]
fn down_finds_the_killed_node_of_another_interface() {
    let Some(namespace) = Namespace::with_default_route("killed") else { return };
    let place = Place::new("killed").with_key();
    let before = namespace.snapshot();
    let mut command = namespace.peervpn(&place, &["exit", "--json", "--interface", "wg9", "--no-stun"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("ready"), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
    golden("node-killed-status", &place, &finish(&mut namespace.peervpn(&place, &["status"])));
    golden("node-killed-down", &place, &finish(&mut namespace.peervpn(&place, &["down"])));
    assert_eq!(before, namespace.snapshot(), "the host is not as before");
    nothing_left(&place);
}
