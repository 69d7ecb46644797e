//! The units that `make install` brings, under a real systemd: notification, watchdog, sandbox, restart after SIGKILL,
//! recovery at boot.

use std::time::{Duration, Instant};

use crate::machine::{Machine, missing};
use crate::record::{backend, patience};
use crate::snapshot::assert_unchanged;
use crate::topology::{Lab, Nat, WEB};
use crate::{assert_leaves_directly, assert_leaves_through_exit, join, lab_tests, open_exit, text};

/// The exit, as systemd calls it.
const EXIT: &str = "peervpn-exit.service";
const CONNECT: &str = "peervpn-connect@home.service";

/// Waits for something of the machine's.
#[track_caller]
fn eventually(what: &str, seconds: u64, machine: &Machine, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + patience(seconds);
    while !holds() {
        assert!(Instant::now() < limit, "not within {seconds} s: {what}\n{}", machine.journal());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A main process runs, and it is the `n`th after the first.
#[track_caller]
fn restarted(machine: &Machine, unit: &str, n: u32) {
    eventually(&format!("restart {n} of {unit}"), 30, machine, || {
        machine.property(unit, "NRestarts") == n.to_string() && machine.property(unit, "ActiveState") == "active"
    });
}

/// The sandbox is there: what the process may do, seen from the kernel.
#[track_caller]
fn assert_confined(machine: &Machine, unit: &str) {
    let status = machine.run(&format!("cat /proc/{}/status", machine.property(unit, "MainPID")));
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in\n{status}")).trim().to_owned()
    };
    // CAP_NET_ADMIN and CAP_NET_RAW; capabilities(7)
    assert_eq!((field("CapPrm").as_str(), field("CapEff").as_str()), ("0000000000003000", "0000000000003000"));
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"), "{status}");
}

/// The unit fails and is not started again.
#[track_caller]
fn gives_up(machine: &Machine, unit: &str) {
    assert!(!machine.command(&format!("systemctl start {unit}")).status().expect("start nsenter").success());
    std::thread::sleep(Duration::from_secs(3));
    let ended = ["ExecMainStatus", "NRestarts", "ActiveState"].map(|name| machine.property(unit, name));
    assert_eq!(ended, ["2", "0", "failed"], "{unit}: {}", machine.journal());
}

fn configure(machine: &Machine) {
    let text = format!("no-stun = true\naccept = \"any\"\nbackend = \"{}\"\n", backend());
    machine.write("/etc/peervpn/config.toml", &text);
    for unit in ["peervpn-exit", "peervpn-connect@"] {
        machine.write(&format!("/etc/systemd/system/{unit}.service.d/lab.conf"), "[Service]\nWatchdogSec=4\n");
    }
    machine.run("systemctl daemon-reload");
}

lab_tests! {
    fn the_exit_unit_under_a_real_systemd("make", "nsenter") {
        if let Some(what) = missing() {
            println!("SKIP: {what}");
            return;
        }
        let lab = Lab::without_stun(Nat::Open, &[Nat::PortRestricted.into()]);
        let machine = Machine::new(&lab.exit);
        configure(&machine);
        let before = lab.exit.host.snapshot();
        // returns when READY=1 has come
        machine.run("systemctl start peervpn-exit");
        assert_eq!(machine.property(EXIT, "ActiveState"), "active");
        assert_confined(&machine, EXIT);
        let status: serde_json::Value =
            serde_json::from_str(&machine.run("peervpn status --json")).expect("JSON");
        let ready = serde_json::json!({"connect": format!("{}@{}:51820", text(&status, "public_key"), lab.exit.public4)});
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        assert_leaves_through_exit(&lab, lab.peer());

        let back = || {
            eventually("the peer's traffic goes through the exit again", 60, &machine, || {
                WEB.into_iter().all(|web| lab.peer().whoami(web).ok() == lab.exit.public(web))
            });
        };
        machine.run("systemctl kill -s KILL --kill-who=main peervpn-exit");
        restarted(&machine, EXIT, 1);
        back();
        // a node that hangs says nothing to the watchdog
        machine.run("systemctl kill -s STOP --kill-who=main peervpn-exit");
        restarted(&machine, EXIT, 2);
        back();
        assert!(machine.journal().contains("Watchdog timeout"), "{}", machine.journal());

        machine.run("systemctl stop peervpn-exit");
        assert_eq!(machine.property(EXIT, "Result"), "success", "{}", machine.journal());
        assert_unchanged("after systemctl stop", &before, &lab.exit.host.snapshot());
        peer.stop(libc::SIGTERM);
    }

    fn the_connect_and_recover_units_under_a_real_systemd("make", "nsenter") {
        if let Some(what) = missing() {
            println!("SKIP: {what}");
            return;
        }
        let lab = Lab::without_stun(Nat::Open, &[Nat::PortRestricted.into()]);
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let mut machine = Machine::new(lab.peer());
        configure(&machine);
        machine.write("/etc/peervpn/home.target", text(&ready, "connect"));
        machine.run("chmod 600 /etc/peervpn/home.target");
        let before = lab.peer().host.snapshot();
        let resolver = |machine: &Machine| machine.run("stat -c '%F %a' /etc/resolv.conf; cat /etc/resolv.conf");
        let names = resolver(&machine);
        machine.run("systemctl start peervpn-connect@home");
        assert_confined(&machine, CONNECT);
        assert_leaves_through_exit(&lab, lab.peer());
        assert!(resolver(&machine).contains("peervpn"), "{}", resolver(&machine));
        machine.run("systemctl kill -s KILL --kill-who=main peervpn-connect@home");
        restarted(&machine, CONNECT, 1);
        eventually("the traffic goes through the exit again", 30, &machine, || {
            WEB.into_iter().all(|web| lab.peer().whoami(web).ok() == lab.exit.public(web))
        });
        machine.run("systemctl stop peervpn-connect@home");
        assert_eq!(machine.property(CONNECT, "Result"), "success", "{}", machine.journal());
        assert_unchanged("after systemctl stop", &before, &lab.peer().host.snapshot());
        assert_eq!(resolver(&machine), names);

        // neither wrong usage nor a wrong configuration is tried again
        machine.write("/etc/peervpn/wrong.target", "nonsense");
        gives_up(&machine, "peervpn-connect@wrong.service");
        machine.run("mv /etc/peervpn/config.toml /etc/peervpn/good.toml");
        machine.write("/etc/peervpn/config.toml", "timeout = 0\n");
        gives_up(&machine, CONNECT);
        gives_up(&machine, EXIT);
        machine.run("mv /etc/peervpn/good.toml /etc/peervpn/config.toml");

        // a power cut; the kernel's part of it first stays, which the unit can undo, too, then goes as in a real one
        for reboot in [false, true] {
            machine.run("systemctl start peervpn-connect@home");
            machine.cut();
            if reboot {
                machine.renew_boot();
                let host = &lab.peer().host;
                host.output("sh", &["-c", "nft delete table inet peervpn; ip link delete peervpn0 2>/dev/null; true"]);
                host.output("sh", &["-c", "for f in -4 -6; do ip $f rule flush protocol 80; done"]);
                host.sysctl(&["net/ipv4/conf/all/send_redirects=1"]);
            }
            machine.boot();
            let result = machine.property("peervpn-recover.service", "Result");
            let state = machine.property("peervpn-recover.service", "ExecMainExitTimestampMonotonic");
            assert!(result == "success" && state != "0", "{result} {state}\n{}", machine.journal());
            assert_eq!(resolver(&machine), names, "{}", machine.journal());
            assert_unchanged(&format!("after the boot, reboot: {reboot}"), &before, &lab.peer().host.snapshot());
            assert_eq!(machine.run("ls /var/lib/peervpn/journal"), "");
            assert_leaves_directly(lab.peer());
        }
        exit.stop(libc::SIGTERM);
    }
}
