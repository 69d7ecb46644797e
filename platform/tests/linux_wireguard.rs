//! Both Linux WireGuard back ends against real devices, read back with `wg`: the kernel's where it has one, and Debian's
//! wireguard-go over its UAPI socket; and the life of the userspace device's process.
#![cfg(target_os = "linux")]

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use peervpn_platform::os::process::*;
use peervpn_platform::types::*;
use peervpn_platform::{Error, Host, OUR_ALIAS, WireGuard};
use peervpn_platform::{files, os};

/// Whether `test` can run in a thread of a fresh network namespace, and its run.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !os::privileged() {
        println!("SKIP: root");
        return;
    }
    let run = move || {
        // SAFETY: unshare(2) touches no memory; only this thread moves to the new namespace.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
        test();
    };
    std::thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn key(number: u16) -> [u8; 32] {
    let mut key = [7; 32];
    key[..2].copy_from_slice(&number.to_be_bytes());
    key
}

fn peer<'a>(state: &'a DeviceState, key: &[u8; 32]) -> &'a PeerState {
    state.peers.iter().find(|peer| peer.public_key == *key).unwrap()
}

fn addresses(peer: &PeerState) -> HashSet<String> {
    peer.allowed_ips.iter().map(ToString::to_string).collect()
}

/// What every back end must do on a device that is up and empty. `rebinds`: it survives a later change of fwmark.
fn exercise(wireguard: &mut dyn WireGuard, name: &str, rebinds: bool) {
    let empty = wireguard.state(name).unwrap();
    assert_eq!((empty.public_key, empty.fwmark, empty.peers.len()), (None, 0, 0));
    let first = PeerConfig {
        public_key: key(1),
        preshared_key: Some(Secret(key(900))),
        endpoint: Some("192.0.2.1:5000".parse().unwrap()),
        keepalive: Some(25),
        replace_allowed_ips: true,
        allowed_ips: vec!["10.0.0.1/32".parse().unwrap(), "fd00::1/128".parse().unwrap()],
        ..Default::default()
    };
    let second = PeerConfig {
        public_key: key(2),
        endpoint: Some("[2001:db8::1]:6000".parse().unwrap()),
        allowed_ips: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        ..Default::default()
    };
    let all = DeviceConfig {
        private_key: Some(Secret([0x11; 32])),
        listen_port: Some(40123),
        fwmark: Some(0x5151),
        replace_peers: true,
        peers: vec![first.clone(), second],
    };
    wireguard.configure(name, &all).unwrap();
    let state = wireguard.state(name).unwrap();
    assert_eq!((state.listen_port, state.fwmark, state.peers.len()), (40123, 0x5151, 2));
    // what `wg pubkey` makes of the private key
    let public = "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13";
    assert_eq!(state.public_key.unwrap().map(|byte| format!("{byte:02x}")).concat(), public);
    let one = peer(&state, &key(1));
    assert_eq!((one.endpoint, one.keepalive, one.last_handshake), (first.endpoint, 25, None));
    assert_eq!(addresses(one), HashSet::from(["10.0.0.1/32".to_owned(), "fd00::1/128".to_owned()]));
    let two = peer(&state, &key(2));
    assert_eq!((two.endpoint, two.keepalive), (Some("[2001:db8::1]:6000".parse().unwrap()), 0));
    assert_eq!(addresses(two), HashSet::from(["0.0.0.0/0".to_owned(), "::/0".to_owned()]));
    let shown = run("wg", &["show", name, "dump"]);
    assert!(shown.lines().next().unwrap().ends_with("\t40123\t0x5151"), "{shown}");
    assert!(shown.contains("192.0.2.1:5000\t10.0.0.1/32,fd00::1/128\t0\t") && shown.contains("\t25\n"), "{shown}");
    assert!(run("wg", &["show", name, "preshared-keys"]).contains("A4QHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="));

    // changes leave the rest alone
    let change = |peers: Vec<PeerConfig>| DeviceConfig { peers, ..Default::default() };
    let more =
        PeerConfig { public_key: key(1), allowed_ips: vec!["10.9.0.0/16".parse().unwrap()], ..Default::default() };
    wireguard.configure(name, &change(vec![more.clone()])).unwrap();
    let state = wireguard.state(name).unwrap();
    assert_eq!(state.listen_port, 40123);
    let one = peer(&state, &key(1));
    assert_eq!((one.allowed_ips.len(), one.keepalive, one.endpoint), (3, 25, first.endpoint));
    wireguard
        .configure(name, &change(vec![PeerConfig { replace_allowed_ips: true, keepalive: Some(0), ..more }]))
        .unwrap();
    let state = wireguard.state(name).unwrap();
    assert_eq!(addresses(peer(&state, &key(1))), HashSet::from(["10.9.0.0/16".to_owned()]));
    assert_eq!(peer(&state, &key(1)).keepalive, 0);
    // only if it exists; then out with the second
    let absent = PeerConfig { public_key: key(3), update_only: true, keepalive: Some(5), ..Default::default() };
    let gone = PeerConfig { public_key: key(2), remove: true, ..Default::default() };
    wireguard.configure(name, &change(vec![absent, gone])).unwrap();
    let state = wireguard.state(name).unwrap();
    assert_eq!(state.peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>(), [key(1)]);

    // more peers than one message holds, one of them with more allowed IPs than one message holds
    let mut peers: Vec<PeerConfig> = (100..400)
        .map(|n| PeerConfig {
            public_key: key(n),
            preshared_key: Some(Secret(key(n))),
            endpoint: Some(format!("192.0.2.7:{n}").parse().unwrap()),
            keepalive: Some(n),
            allowed_ips: vec![
                format!("10.{}.{}.1/32", n / 250, n % 250).parse().unwrap(),
                format!("fd00::{n}/128").parse().unwrap(),
            ],
            ..Default::default()
        })
        .collect();
    let large: Vec<_> = (0..2000u32).map(|n| format!("172.16.{}.{}/32", n / 250, n % 250).parse().unwrap()).collect();
    peers[150].allowed_ips = large.clone();
    peers[150].replace_allowed_ips = true;
    let many = DeviceConfig { replace_peers: true, fwmark: rebinds.then_some(0), peers, ..Default::default() };
    wireguard.configure(name, &many).unwrap();
    let state = wireguard.state(name).unwrap();
    assert_eq!((state.fwmark, state.peers.len()), (if rebinds { 0 } else { 0x5151 }, 300));
    for wanted in &many.peers {
        let found = peer(&state, &wanted.public_key);
        assert_eq!((found.endpoint, Some(found.keepalive)), (wanted.endpoint, wanted.keepalive));
        assert_eq!(addresses(found), wanted.allowed_ips.iter().map(ToString::to_string).collect());
    }
    assert_eq!(run("wg", &["show", name, "peers"]).lines().count(), 300);
    wireguard.configure(name, &DeviceConfig { replace_peers: true, ..Default::default() }).unwrap();
    assert_eq!(wireguard.state(name).unwrap().peers, []);
}

#[test]
fn the_kernel_back_end_does_all_of_it() {
    in_namespace(|| {
        if !os::kernel_wireguard().unwrap() {
            println!("SKIP: kernel WireGuard");
            return;
        }
        let name = "h1kernel";
        let mut host = os::host().unwrap();
        host.create_wireguard_link(name).unwrap();
        let link = host.link(name).unwrap().unwrap();
        assert_eq!((link.kind.as_deref(), link.up, link.alias.as_deref()), (Some("wireguard"), false, Some(OUR_ALIAS)));
        assert_eq!(host.create_wireguard_link(name).unwrap_err().errno(), Some(libc::EEXIST));
        host.bring_up(name, 1420).unwrap();
        let mut wireguard = os::wireguard(&Backend::Kernel).unwrap();
        exercise(&mut *wireguard, name, true);
        // the kernel holds the port: no process to name
        assert_eq!(os::port_holder(40123), None);
        assert!(matches!(wireguard.state("lo"), Err(Error::Unexpected { .. })));
        let error = wireguard.configure("h1none", &DeviceConfig::default()).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV));
        assert!(error.to_string().starts_with("cannot configure WireGuard on h1none: "), "{error}");
        // a taken port is refused by number
        let socket = std::net::UdpSocket::bind("0.0.0.0:40124").unwrap();
        let taken = DeviceConfig { listen_port: Some(40124), ..Default::default() };
        assert_eq!(wireguard.configure(name, &taken).unwrap_err().errno(), Some(libc::EADDRINUSE));
        drop(socket);
        host.delete_link(name).unwrap();
        assert_eq!(wireguard.state(name).unwrap_err().errno(), Some(libc::ENODEV));
    });
}

/// Starts `script` in a shell that first waits for our byte.
fn hold(script: &str, log: Option<File>) -> HeldDevice {
    let arguments = ["-c".to_owned(), format!("read -r go || exit 9; {script}")].map(OsString::from);
    let envs = [("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1"), ("WG_PROCESS_FOREGROUND", "1")];
    let envs = envs.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    spawn_held(Path::new("/bin/sh"), &arguments, &envs, log).unwrap()
}

/// Ends the device of a test that failed: it would keep the namespace.
struct Ending(ProcessId);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = terminate(&self.0, Duration::ZERO);
    }
}

/// The command of a userspace device named NAME; another one by environment, for example the bundled one:
/// `PEERVPN_TEST_DEVICE='target/debug/peervpn __userspace-device NAME </etc/hostname'`.
fn device_command(name: &str) -> String {
    let command = std::env::var("PEERVPN_TEST_DEVICE").unwrap_or_else(|_| "wireguard-go -f NAME".to_owned());
    command.replace("NAME", name)
}

/// Waits for a condition that must come true soon.
fn soon(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("peervpn-h1-{name}-{}", std::process::id()));
    files::private_dir(&path).unwrap();
    path
}

#[test]
fn the_userspace_back_end_does_all_of_it() {
    in_namespace(|| {
        if Command::new("wireguard-go").arg("--version").output().is_err() || !os::tun_available() {
            println!("SKIP: wireguard-go and TUN");
            return;
        }
        let name = format!("h1u{}", std::process::id());
        assert_eq!(uapi_owner(&name), None);
        assert!(remove_uapi_socket(&name).unwrap());
        let device = hold(&format!("exec {}", device_command(&name)), None);
        let id = device.id.clone();
        let _ending = Ending(id.clone());
        assert!(alive(&id));
        let error = wait_uapi(&name, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), Some(std::io::ErrorKind::TimedOut));
        device.release().unwrap();
        wait_uapi(&name, Duration::from_secs(10)).unwrap();
        assert_eq!(uapi_owner(&name).as_ref(), Some(&id));
        assert!(!remove_uapi_socket(&name).unwrap(), "it has an owner");
        let mut host = os::host().unwrap();
        host.mark_link(&name).unwrap();
        host.bring_up(&name, 1420).unwrap();
        let mut wireguard = os::wireguard(&Backend::Userspace).unwrap();
        // gotatun 0.10 binds its socket anew for another port or fwmark; now and then that fails or ends the process
        let rebinds = std::env::var_os("PEERVPN_TEST_DEVICE").is_none();
        exercise(&mut *wireguard, &name, rebinds);
        assert_eq!(os::port_holder(40123).unwrap().pid, id.pid);
        if rebinds {
            // a taken port is refused by number
            let socket = std::net::UdpSocket::bind("0.0.0.0:40124").unwrap();
            let taken = DeviceConfig { listen_port: Some(40124), ..Default::default() };
            assert_eq!(wireguard.configure(&name, &taken).unwrap_err().errno(), Some(libc::EADDRINUSE));
            drop(socket);
        }
        // killed, it leaves its socket behind
        terminate(&id, Duration::ZERO).unwrap();
        assert!(!alive(&id));
        assert_eq!(uapi_owner(&name), None);
        assert!(remove_uapi_socket(&name).unwrap());
        assert!(!Path::new(&format!("/var/run/wireguard/{name}.sock")).exists());
        assert_eq!(wireguard.state(&name).unwrap_err().kind(), Some(std::io::ErrorKind::NotFound));
        soon("the link goes with the process", || os::host().unwrap().link(&name).unwrap().is_none());
    });
}

#[test]
fn a_held_program_does_nothing_before_its_byte_and_nothing_without_it() {
    let scratch = scratch("held");
    let witness = scratch.join("ran");
    let device = hold(&format!("echo > {}", witness.display()), None);
    let id = device.id.clone();
    std::thread::sleep(Duration::from_millis(100));
    assert!(alive(&id) && !witness.exists());
    drop(device);
    soon("it ends when we are gone", || process_id(id.pid).as_ref() != Some(&id));
    assert!(!witness.exists());
    let device = hold(&format!("echo > {}", witness.display()), None);
    let id = device.id.clone();
    device.release().unwrap();
    // reaped too: a zombie would still have its identity
    soon("it runs and is reaped", || process_id(id.pid).as_ref() != Some(&id));
    assert!(witness.exists());
    let error = spawn_held(&scratch.join("none"), &[], &[], None).unwrap_err();
    assert_eq!(error.kind(), Some(std::io::ErrorKind::NotFound));
    std::fs::remove_dir_all(scratch).unwrap();
}

#[test]
fn a_started_program_gets_a_session_a_plain_environment_and_no_descriptor() {
    let scratch = scratch("clean");
    let log = scratch.join("log");
    let path = std::ffi::CString::new("/dev/null").unwrap();
    // SAFETY: a valid C string; the descriptor is deliberately inheritable and closed below.
    let open = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY) };
    assert!(open > 2);
    // only the shell's own words: a program in between would open descriptors of its own
    let script = format!(
        "for n in 0 1 2 {open}; do [ -e /proc/$$/fd/$n ] && echo fd $n; done; echo $$; export -p; pwd; umask; \
         read -r stat < /proc/$$/stat; echo $stat"
    );
    let device = hold(&script, Some(File::create(&log).unwrap()));
    let id = device.id.clone();
    device.release().unwrap();
    soon("it ends", || process_id(id.pid).as_ref() != Some(&id));
    // SAFETY: opened above, used by nobody else.
    unsafe { libc::close(open) };
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["fd 0", "fd 1", "fd 2", &id.pid.to_string()], "{text}");
    let exported = |line: &&&str| line.starts_with("export ");
    assert!(std::env::vars_os().count() > 4, "an environment that could leak");
    assert!(lines.iter().filter(exported).count() <= 4, "PATH, PWD and the two given: {text}");
    assert!(text.contains("export PATH=") && text.contains("export WG_PROCESS_FOREGROUND='1'"), "{text}");
    assert!(text.contains("\n/\n0077\n"), "{text}");
    // fields 5 and 6 of proc_pid_stat(5): process group and session
    let stat: Vec<&str> = lines.last().unwrap().split(' ').collect();
    assert_eq!((stat[4], stat[5]), (lines[3], lines[3]), "{text}");
    std::fs::remove_dir_all(scratch).unwrap();
}

/// Whether it runs: a zombie does not; proc_pid_stat(5).
fn alive(id: &ProcessId) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", id.pid)).unwrap_or_default();
    process_id(id.pid).as_ref() == Some(id) && !stat.contains(") Z ")
}

#[test]
fn a_process_that_ignores_sigterm_is_killed_after_its_grace() {
    let stubborn = hold("trap '' TERM; echo ready; while :; do read -r more || sleep 1; done", None);
    let id = stubborn.id.clone();
    stubborn.release().unwrap();
    // until the trap stands: SigIgn of proc_pid_status(5), bit 14 for signal 15
    soon("it ignores SIGTERM", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", id.pid)).unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        u64::from_str_radix(ignored.trim(), 16).unwrap() & 1 << 14 != 0
    });
    let started = Instant::now();
    terminate(&id, Duration::from_millis(300)).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(!alive(&id));
    soon("it is reaped", || process_id(id.pid).as_ref() != Some(&id));
    terminate(&id, Duration::from_secs(9)).unwrap();

    let meek = hold("while :; do sleep 1; done", None);
    let id = meek.id.clone();
    meek.release().unwrap();
    let started = Instant::now();
    terminate(&id, Duration::from_secs(30)).unwrap();
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(!alive(&id));
}
