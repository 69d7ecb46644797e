//! On every system; those for modes, links and FIFOs are in the system's own module.

use super::*;

/// A fresh directory, removed at the end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("peervpn-files-{}", unique()));
        private_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_atomic_write_replaces_and_leaves_no_temporary_file() {
    let scratch = Scratch::new();
    let path = scratch.0.join("key");
    for content in ["one", "two"] {
        write_atomic(&path, content.as_bytes(), 0o600).unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap().unwrap(), content.as_bytes());
    }
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    // a directory in the way: the old state stays, nothing is left behind
    fs::create_dir(scratch.0.join("dir")).unwrap();
    assert!(write_atomic(&scratch.0.join("dir"), b"x", 0o600).is_err());
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 2);
}

#[test]
fn bounded_reads_refuse_large_files_and_directories() {
    let scratch = Scratch::new();
    assert_eq!(read_bounded(&scratch.0.join("none"), 9).unwrap(), None);
    fs::write(scratch.0.join("big"), "12345").unwrap();
    assert!(read_bounded(&scratch.0.join("big"), 4).is_err());
    assert!(read_bounded(&scratch.0, 9).is_err());
}

#[test]
fn a_log_has_one_owner_at_a_time() {
    let scratch = Scratch::new();
    let path = scratch.0.join("journal");
    let LogOpen::Locked(mut log) = Log::open(&path).unwrap() else { panic!("the log is not ours") };
    assert!(log.is_empty().unwrap());
    log.append(b"one\n").unwrap();
    log.append(b"two\n").unwrap();
    assert_eq!(log.contents().unwrap(), b"one\ntwo\n");
    let LogOpen::Busy(holder) = Log::open(&path).unwrap() else { panic!("two owners") };
    assert!(holder.is_none_or(|holder| holder == std::process::id()));
    drop(log);
    let LogOpen::Locked(mut log) = Log::open(&path).unwrap() else { panic!("the log stayed locked") };
    log.append(b"three\n").unwrap();
    assert_eq!(log.contents().unwrap(), b"one\ntwo\nthree\n");
    assert_eq!(log.len().unwrap(), 14);
    log.remove().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_log_removed_while_others_open_it_is_never_owned_without_a_name() {
    let scratch = Scratch::new();
    let path = scratch.0.join("journal");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut owned = 0;
                while owned < 20 {
                    if let LogOpen::Locked(mut log) = Log::open(&path).unwrap() {
                        assert!(path.exists());
                        assert!(log.is_empty().unwrap(), "another owner's file");
                        log.append(b"x").unwrap();
                        log.remove().unwrap();
                        owned += 1;
                    }
                }
            });
        }
    });
}
