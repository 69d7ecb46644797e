//! Admission as two people see it: the exit's operator on a terminal, the other one on theirs.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::record::{self, patience};
use crate::topology::{Lab, Nat, Site};
use crate::{assert_leaves_through_exit, lab_tests, text};

/// A program on a terminal of its own, and everything that stood on its screen.
struct Screen {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<String>>,
}

impl Screen {
    fn exit(site: &Site, args: &[&str]) -> Screen {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: two descriptors to write to; no name, settings or size.
        let opened = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(opened, 0, "a terminal: {}", std::io::Error::last_os_error());
        // SAFETY: openpty has just given us both.
        let (master, slave) = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let all = [&["exit", "--backend", record::backend(), "--no-stun", "--no-portmap"], args].concat();
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let child = site.peervpn(&all).stdin(end()).stdout(end()).stderr(end()).spawn().expect("start peervpn");
        let keyboard = File::from(master);
        let mut screen = keyboard.try_clone().expect("a descriptor");
        let shown = Arc::new(Mutex::new(String::new()));
        let kept = shown.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // it ends with an error when the last program has closed the terminal
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                kept.lock().expect("no panic").push_str(&String::from_utf8_lossy(&buffer[..length]).replace('\r', ""));
            }
        });
        Screen { child, keyboard, shown }
    }

    fn shown(&self) -> String {
        self.shown.lock().expect("no panic").clone()
    }

    /// Waits until this stands on the screen, behind the first `from` bytes; where it ends.
    #[track_caller]
    fn wait_for(&self, what: &str, from: usize) -> usize {
        let deadline = Instant::now() + patience(20);
        loop {
            let shown = self.shown();
            if let Some(at) = shown[from..].find(what) {
                return from + at + what.len();
            }
            assert!(Instant::now() < deadline, "{what:?} does not appear:\n{shown}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn type_in(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").expect("somebody reads");
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

lab_tests! {
    /// One question for each newcomer, one at a time; both screens show the same peer ID.
    fn the_operator_is_asked_on_the_terminal() {
        let lab = Lab::without_stun(Nat::Open, &[Nat::PortRestricted.into(), Nat::PortRestricted.into()]);
        let mut exit = Screen::exit(&lab.exit, &[]);
        let ready = exit.wait_for("Ctrl-C stops the exit", 0);
        let shown = exit.shown();
        let target = shown.split("peervpn connect \"").nth(1).and_then(|rest| rest.split('"').next());
        let target = target.unwrap_or_else(|| panic!("no connect string:\n{shown}")).to_owned();

        let mut first = lab.peer().connect(&target, &["--no-stun", "--timeout", "60"]);
        let asked = exit.wait_for("[y/n] ", ready);
        let question = exit.shown()[ready..asked].to_owned();
        let id = question.split("let ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a peer ID").to_owned();
        assert!(question.contains(&lab.peer().public4.to_string()), "{question}");

        // a second one waits for the first answer
        let mut second = lab.peers[1].connect(&target, &["--no-stun", "--timeout", "40"]);
        let deadline = Instant::now() + patience(20);
        let waiting = || lab.exit.run_ok(&["peers", "pending", "--json"]).stdout.matches("public_key").count();
        while waiting() < 2 {
            assert!(Instant::now() < deadline, "the second one is not heard");
        }
        exit.type_in("perhaps");
        let again = exit.wait_for("please answer y or n", asked);
        exit.type_in("y");
        let let_in = exit.wait_for("is in (accepted)", again);
        let connected = first.event("connected");
        let own: serde_json::Value = serde_json::from_str(&lab.peer().run_ok(&["info", "--json"]).stdout).expect("JSON");
        assert_eq!(text(&own, "peer_id"), id, "{connected}");
        assert_leaves_through_exit(&lab, lab.peer());
        let asked = exit.wait_for("[y/n] ", let_in);
        exit.type_in("n");
        exit.wait_for("was not let in", asked);
        second.signal(libc::SIGINT);
        second.wait();
        assert!(!exit.shown().contains("waits for admission"), "{}", exit.shown());
        // the one that is in was not disturbed
        assert_leaves_through_exit(&lab, lab.peer());
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::kill(exit.child.id() as i32, libc::SIGINT) };
        exit.wait_for("Stopped. Host: restored", asked);
        println!("{}", exit.shown());
        first.kill();
    }
}
