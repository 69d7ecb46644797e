//! A running exit, asked and stopped by the commands.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use crate::harness::*;

/// `peervpn ARGS --json`, and its first event.
fn start(namespace: &Namespace, place: &Place, args: &[&str]) -> (Child, serde_json::Value) {
    let mut command = namespace.peervpn(place, &[args, &["--json", "--no-stun"]].concat());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    // what comes after it stays in the pipe: a reader of one line only
    BufReader::with_capacity(1 << 16, child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    match serde_json::from_str(&line) {
        Ok(event) => (child, event),
        Err(_) => panic!("no event: {line:?}, {:?}", finish_child(child)),
    }
}

/// `peervpn exit`, ready.
fn start_exit(namespace: &Namespace, place: &Place) -> (Child, serde_json::Value) {
    start(namespace, place, &["exit", "--port", "51820"])
}

/// SIGKILL, which leaves everything as it is.
fn killed(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
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
    let second = ["exit", "--interface", "wg9", "--port", "51821", "--no-stun"];
    golden("node-second-exit", &place, &run(&second));
    let nowhere = place.state().join("none/phone.conf").display().to_string();
    golden("node-invite-nowhere", &place, &run(&["invite", "--wg-quick", &nowhere]));
    golden("node-peers-list", &place, &run(&["peers", "list"]));
    golden("node-peers-pending", &place, &run(&["peers", "pending"]));
    golden("node-peers-accept-unknown", &place, &run(&["peers", "accept", "000000-000000-000000"]));
    golden("node-recover-while-running", &place, &run(&["recover"]));
    golden("node-other-interface", &place, &run(&["status", "--interface", "wg9"]));
    golden("node-down", &place, &run(&["down"]));
    golden("node-down-again", &place, &run(&["down"]));

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

/// Nobody to ask, nothing to print every 10 s.
#[test]
fn monitoring_the_nat_without_stun_is_said_to_be_impossible() {
    let Some(namespace) = Namespace::with_default_route("monitor") else { return };
    let place = Place::new("monitor").with_key();
    let (child, _) = start(&namespace, &place, &["exit", "--monitor-nat"]);
    assert!(finish(&mut namespace.peervpn(&place, &["down"])).status.success());
    let said = finish_child(child);
    assert!(String::from_utf8_lossy(&said.stderr).contains("no --monitor-nat"), "{said:?}");
}

/// `peervpn exit --json | (sleep 1000)`, or a terminal stopped with Ctrl-S.
#[test]
fn a_node_whose_readers_stall_goes_on() {
    use std::os::fd::AsRawFd as _;
    let Some(namespace) = Namespace::with_default_route("stalled") else { return };
    let place = Place::new("stalled").with_key();
    let before = namespace.snapshot();
    let (child, _) = start(&namespace, &place, &["exit", "--port", "51820", "-vv"]);
    let (out, err) = (child.stdout.as_ref().unwrap(), child.stderr.as_ref().unwrap());
    for pipe in [out.as_raw_fd(), err.as_raw_fd()] {
        // a page, fcntl(2); what is in it already may be more
        // SAFETY: a descriptor that is open for the length of the call, and a constant
        unsafe { libc::fcntl(pipe, libc::F_SETPIPE_SZ, 4096) };
    }
    const PEERS: u8 = 60;
    use base64::Engine as _;
    for number in 1..=PEERS {
        let key = base64::engine::general_purpose::STANDARD.encode([number; 32]);
        let added = finish(&mut namespace.peervpn(&place, &["peers", "add", &key]));
        assert!(added.status.success(), "peer {number}: {added:?}");
    }
    let status = finish(&mut namespace.peervpn(&place, &["status", "--json"]));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["peers"].as_array().map(Vec::len), Some(usize::from(PEERS)), "{status}");
    // SAFETY: kill(2) on a child that was not waited for yet
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    let output = finish_child(child);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.len() < usize::from(PEERS) * 100, "the pipe took everything: nobody stalled");
    assert_eq!(before, namespace.snapshot(), "the host is not as before");
    nothing_left(&place);
}

/// A connect string that nobody answers.
fn silent_exit() -> String {
    format!("{EXIT_KEY}@198.51.100.1:51820")
}

/// Behind a lockdown nothing leaves this host: it must be possible to lift it from another shell at any time.
#[test]
fn a_node_that_waits_for_its_exit_is_asked_and_stopped() {
    let Some(namespace) = Namespace::with_default_route("waiting") else { return };
    let place = Place::new("waiting").with_key();
    let before = namespace.snapshot();
    let (child, event) = start(&namespace, &place, &["connect", &silent_exit(), "--lockdown"]);
    assert_eq!(event["event"], "unreachable");
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
    let (child, _) = start(&namespace, &place, &["exit", "--interface", "wg9"]);
    killed(child);
    golden("node-killed-status", &place, &finish(&mut namespace.peervpn(&place, &["status"])));
    golden("node-killed-down", &place, &finish(&mut namespace.peervpn(&place, &["down"])));
    assert_eq!(before, namespace.snapshot(), "the host is not as before");
    nothing_left(&place);
}

/// Marks of ours do not say whose they are: those of a node that runs are left alone, whatever its state directory.
#[test]
fn recover_leaves_the_nodes_of_other_state_directories_alone() {
    let Some(namespace) = Namespace::with_default_route("others") else { return };
    let [place, other] = ["others-mine", "others-other"].map(|name| Place::new(name).with_key());
    let before = namespace.snapshot();
    let (theirs, _) = start(&namespace, &other, &["exit", "--interface", "wg9"]);
    let running = namespace.snapshot();
    golden("node-others-recover", &place, &finish(&mut namespace.peervpn(&place, &["recover"])));
    assert_eq!(running, namespace.snapshot(), "recover took a running node's things away");

    // a journal that does not tell all, beside a node that runs
    let split = ["connect", &silent_exit(), "--lockdown", "--allowed-ips", "203.0.113.0/24"];
    let (ours, _) = start(&namespace, &place, &split);
    killed(ours);
    let journal = place.state().join("journal/peervpn0.journal");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, text.replacen("\"kind\":\"table\"", "\"kind\":\"tabel\"", 1)).unwrap();
    golden("node-others-damaged", &place, &finish(&mut namespace.peervpn(&place, &["recover"])));
    assert!(namespace.snapshot().contains("wg9"), "recover took a running node's link away");

    // and when nobody else runs, the next node ends it, and keeps what it could not read
    assert!(finish(&mut namespace.peervpn(&other, &["down"])).status.success());
    assert!(finish_child(theirs).status.success());
    std::fs::remove_file(journal.with_extension("damaged")).unwrap();
    let (ours, _) = start(&namespace, &place, &split);
    assert!(journal.with_extension("damaged").exists(), "a damaged journal is not kept");
    assert!(finish(&mut namespace.peervpn(&place, &["down"])).status.success());
    let said = finish_child(ours);
    assert!(String::from_utf8_lossy(&said.stderr).contains("is damaged"), "{said:?}");
    assert_eq!(before, namespace.snapshot(), "the host is not as before");
    nothing_left(&place);
    nothing_left(&other);
}

/// The state directory's default is the same in every network namespace; what a journal tells of lies in one of them.
#[test]
fn what_was_changed_in_another_network_namespace_is_left_to_it() {
    let Some(there) = Namespace::with_default_route("there") else { return };
    let here = Namespace::with_default_route("here").expect("as the other one");
    let [place, own] = ["elsewhere", "elsewhere-own"].map(|name| Place::new(name).with_key());
    let split = ["connect", &silent_exit(), "--lockdown", "--allowed-ips", "203.0.113.0/24"];
    let before = [there.snapshot(), here.snapshot()];
    let (child, _) = start(&there, &place, &split);
    killed(child);
    let left = there.snapshot();
    // of the same names as those that the journal tells of
    let (child, _) = start(&here, &own, &["exit"]);
    let running = here.snapshot();
    golden("node-elsewhere-recover", &place, &finish(&mut here.peervpn(&place, &["recover"])));
    golden("node-elsewhere-exit", &place, &finish(&mut here.peervpn(&place, &["exit", "--no-stun"])));
    assert_eq!([&left, &running], [&there.snapshot(), &here.snapshot()], "something was undone");
    assert!(finish(&mut there.peervpn(&place, &["recover"])).status.success());
    assert_eq!(before[0], there.snapshot(), "the host is not as before");
    assert_eq!(running, here.snapshot(), "recover reached into another namespace");
    nothing_left(&place);

    // one that has gone took its changes along
    let (mut orphan, _) = start(&there, &place, &split);
    orphan.kill().unwrap();
    orphan.wait().unwrap();
    there.kill_all();
    drop(there);
    let recovered = finish(&mut here.peervpn(&place, &["recover"]));
    assert!(recovered.status.success(), "{recovered:?}");
    assert_eq!(running, here.snapshot(), "the changes of a namespace that has gone were undone in another");
    nothing_left(&place);
    // SAFETY: kill(2) on a child that was not waited for yet
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    assert!(finish_child(child).status.success());
    assert_eq!(before[1], here.snapshot(), "the host is not as before");
}

/// `peervpn exit &` in a shell: a terminal is there, and another program reads from it. Asking on it would stop the node.
#[test]
fn a_node_in_the_background_of_a_terminal_goes_on() {
    use std::os::fd::FromRawFd as _;
    let Some(namespace) = Namespace::with_default_route("background") else { return };
    let place = Place::new("background").with_key();
    let (mut ours, mut theirs) = (0, 0);
    let none = std::ptr::null_mut::<libc::c_char>();
    // SAFETY: openpty(3) writes two descriptors, which are ours from then on.
    let (_ours, theirs) = unsafe {
        assert_eq!(libc::openpty(&mut ours, &mut theirs, none, none.cast(), none.cast()), 0);
        (std::fs::File::from_raw_fd(ours), std::fs::File::from_raw_fd(theirs))
    };
    // a shell with job control stays in the foreground of the terminal
    let job = "mkdir -p /run/wireguard && mount -t tmpfs none /run/wireguard; \"$0\" exit --no-stun & wait";
    let mut command = namespace.command("setsid", &["-c", "-w", "sh", "-mc", job, PEERVPN]);
    place.environment(&mut command);
    command.stdin(theirs.try_clone().unwrap()).stdout(Stdio::piped()).stderr(theirs);
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    BufReader::with_capacity(1 << 16, child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("is ready"), "{said}");
    golden("node-background-down", &place, &finish(&mut namespace.peervpn(&place, &["down"])));
    child.wait().unwrap();
}
