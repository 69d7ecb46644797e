//! What becomes of a journal that cannot be written, is torn, damaged or gone.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::lab_tests;
use crate::node::Finished;
use crate::victim::{Mode, Victim};

const BOTH: [Mode; 2] = [Mode::Exit, Mode::Connect];

/// A small file system over the state directory.
struct Disk(PathBuf);

impl Disk {
    fn new(state: PathBuf) -> Disk {
        fs::create_dir_all(&state).expect("create the state directory");
        mount(&state, 0);
        fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
        Disk(state)
    }

    /// Leaves not a byte.
    fn fill(&self) {
        let filler = fs::write(self.0.join("filler"), vec![0; 1 << 20]);
        assert_eq!(filler.map_err(|e| e.kind()), Err(io::ErrorKind::StorageFull));
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).expect("remove the filler");
    }

    fn read_only(&self, yes: bool) {
        mount(&self.0, libc::MS_REMOUNT | if yes { libc::MS_RDONLY } else { 0 });
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let path = path(&self.0);
        // SAFETY: a live C string.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

fn path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path")
}

fn mount(at: &Path, flags: libc::c_ulong) {
    let (none, at, options) = (c"tmpfs", path(at), c"size=128k");
    // SAFETY: every pointer is a live C string.
    let done = unsafe { libc::mount(none.as_ptr(), at.as_ptr(), none.as_ptr(), flags, options.as_ptr().cast()) };
    assert_eq!(done, 0, "mount: {}", io::Error::last_os_error());
}

/// A start that must fail with this in its last words, the host as before.
#[track_caller]
fn refused(victim: &mut Victim, under: &[String], what: &str, host: &str) {
    let mut node = victim.start(under, &[]);
    let code = node.wait();
    let log = node.log();
    assert_eq!(code, Some(1), "{log}");
    for words in [what, &format!("host: {host}"), "hint: "] {
        assert!(log.contains(words), "no “{words}” in\n{log}");
    }
}

#[track_caller]
fn recover(victim: &Victim, code: i32) -> Finished {
    let finished = victim.site().run(&["recover"]);
    assert_eq!(finished.code, Some(code), "{}", finished.all());
    finished
}

/// Flips a bit in the middle of a line, counted from 0; what the line held.
fn damage(journal: &Path, line: usize) -> String {
    let mut text = fs::read(journal).expect("a journal");
    let start = text.split_inclusive(|b| *b == b'\n').take(line).map(<[u8]>::len).sum::<usize>();
    let length = text[start..].iter().position(|b| *b == b'\n').expect("a whole line");
    let held = String::from_utf8(text[start..start + length].to_vec()).expect("text");
    text[start + length / 2] ^= 1;
    fs::write(journal, text).expect("write the journal");
    held
}

lab_tests! {
    /// A full disk: the node refuses to begin, and what was begun is put back all the same.
    fn full_disk() {
        for mode in BOTH {
            let mut victim = Victim::new(mode);
            let disk = Disk::new(victim.site().dir.join("state"));
            // the identity key is there already
            let mut node = victim.start(&[], &[]);
            node.event(victim.up());
            node.stop(libc::SIGTERM);
            disk.fill();
            refused(&mut victim, &[], "No space left", "unchanged");
            victim.assert_restored("refused on a full disk");
            disk.empty();
            victim.killed();
            disk.fill();
            recover(&victim, 0);
            victim.assert_restored("recovered on a full disk");
        }
    }

    /// The disk fills up at the Nth sync of the journal.
    fn disk_full_between_two_changes("strace") {
        for mode in BOTH {
            let mut victim = Victim::new(mode);
            let mut failures = 0;
            for n in 1..=6 {
                let inject = format!("inject=fdatasync:error=ENOSPC:when={n}");
                let under = ["strace", "-D", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "signal=none", "-e", &inject];
                let under: Vec<String> = under.iter().map(ToString::to_string).collect();
                let mut node = victim.start(&under, &[]);
                if node.try_event(victim.up(), crate::record::patience(20)).is_ok() {
                    node.stop(libc::SIGTERM);
                } else {
                    failures += 1;
                    assert_eq!(node.wait(), Some(1), "{}", node.log());
                    let log = node.log();
                    assert!(log.contains("No space left") && log.contains("hint: make room"), "{log}");
                    assert!(log.contains("host: restored") || log.contains("host: unchanged"), "{log}");
                }
                victim.assert_restored(&format!("no space at sync {n}"));
            }
            assert!(failures >= 2, "only {failures} of the journal's syncs failed the start");
        }
    }

    /// A read-only state directory: the node refuses to begin; `recover` puts the host back and says what it could not do.
    fn read_only_state_directory() {
        for mode in BOTH {
            let mut victim = Victim::new(mode);
            let disk = Disk::new(victim.site().dir.join("state"));
            disk.read_only(true);
            refused(&mut victim, &[], "Read-only file system", "unchanged");
            victim.assert_restored("refused on a read-only disk");
            disk.read_only(false);
            victim.killed();
            disk.read_only(true);
            let said = recover(&victim, 1);
            assert!(said.stderr.contains("host: restored") && said.stderr.contains("journal"), "{}", said.all());
            victim.assert_restored_by_marks("recovered with a read-only journal");
            disk.read_only(false);
            recover(&victim, 0);
            victim.assert_restored("recovered twice");
        }
    }

    /// What a power cut leaves: the last record in part.
    fn torn_journal() {
        for mode in BOTH {
            let mut victim = Victim::new(mode);
            victim.killed();
            let mut text = fs::read(victim.journal()).expect("a journal");
            text.extend_from_slice(b"0123abcd {\"undo\":{\"n\":99,\"undo\":{\"kind\":\"rou");
            fs::write(victim.journal(), text).expect("write the journal");
            let said = recover(&victim, 0);
            assert!(!said.stderr.contains("damaged"), "{}", said.all());
            victim.assert_restored("recovered from a torn journal");
        }
    }

    /// A flipped bit in any one line. What it undid is found by our marks; kernel settings carry none.
    fn damaged_journal() {
        for mode in BOTH {
            let mut victim = Victim::new(mode);
            let mut line = 0;
            loop {
                victim.killed();
                let lines = fs::read_to_string(victim.journal()).expect("a journal").lines().count();
                if line + 1 >= lines {
                    recover(&victim, 0);
                    break;
                }
                let held = damage(&victim.journal(), line);
                let said = recover(&victim, 0);
                let kept = victim.journal().with_extension("damaged");
                assert!(said.stderr.contains("damaged") && kept.exists(), "{}", said.all());
                fs::remove_file(kept).expect("remove the damaged journal");
                if held.contains("\"kind\":\"sysctl\"") {
                    victim.assert_restored_by_marks(&format!("recovered without “{held}”"));
                    // their old values are lost with the line: a host anew
                    victim = Victim::new(mode);
                } else {
                    victim.assert_restored(&format!("recovered without “{held}”"));
                }
                line += 1;
            }
            println!("damaged journal, {mode:?}: each of {line} lines");
        }
    }

    /// No journal at all, or nothing readable in it.
    fn lost_journal() {
        for mode in BOTH {
            let mut victim = Victim::new(mode);
            victim.killed();
            fs::remove_file(victim.journal()).expect("remove the journal");
            let said = recover(&victim, 0);
            assert!(said.stderr.contains("there is no journal") && said.stderr.contains("carry no mark"), "{}", said.all());
            victim.assert_restored_by_marks("recovered without a journal");
            let said = recover(&victim, 0);
            assert!(!said.stderr.contains("there is no journal"), "{}", said.all());
            let mut victim = Victim::new(mode);
            victim.killed();
            fs::write(victim.journal(), "not a journal\n\n\u{0}\n").expect("write the journal");
            recover(&victim, 0);
            victim.assert_restored_by_marks("recovered from an unreadable journal");
        }
    }
}
