//! The control socket (on Windows a named pipe) as a node and its askers use it, and what wakes an event loop.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use peervpn_platform::os::control::{self, Entry, Listener};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};

const MAX: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(20);

/// A run directory of the test's own, and an interface name that no other test has.
fn place(name: &str) -> (PathBuf, String) {
    let interface = format!("{name}{}", std::process::id());
    let dir = std::env::temp_dir().join(format!("peervpn-control-{interface}"));
    (dir, interface)
}

/// All of the answer.
fn ask(dir: &Path, interface: &str, line: &[u8], max: u64, limit: Duration) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    control::ask(dir, interface, line, max, limit, &mut |piece| {
        answer.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(answer)
}

fn in_loop<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Answers each request with `echo ` and itself, until it is `stop`.
async fn serve(mut listener: Listener, entry: Entry) {
    loop {
        let stream = listener.accept().await.unwrap();
        let (read, mut write) = tokio::io::split(stream);
        let mut line = String::new();
        tokio::io::BufReader::new(read).read_line(&mut line).await.unwrap();
        // whoever only looks whether somebody listens says nothing
        if line.is_empty() {
            continue;
        }
        write.write_all(format!("echo {line}").as_bytes()).await.unwrap();
        write.shutdown().await.unwrap();
        if line == "stop\n" {
            drop(entry);
            return;
        }
    }
}

#[test]
fn askers_find_a_node_and_get_their_answers() {
    let (dir, interface) = place("t");
    assert!(control::running(&dir).is_empty());
    let nobody = ask(&dir, &interface, b"x\n", MAX, LIMIT).unwrap_err();
    assert_eq!(nobody.kind(), io::ErrorKind::NotFound, "{nobody}");

    let (ready, started) = std::sync::mpsc::channel();
    let node = std::thread::spawn({
        let (dir, interface) = (dir.clone(), interface.clone());
        move || {
            in_loop(async {
                let (listener, entry) = Listener::bind(&dir, &interface).unwrap();
                ready.send(()).unwrap();
                serve(listener, entry).await;
            });
        }
    });
    started.recv().unwrap();
    assert_eq!(control::running(&dir), std::slice::from_ref(&interface));
    // several at once, one of them longer than a pipe's buffer
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (dir, interface) = (&dir, &interface);
            scope.spawn(move || {
                let long = format!("{n}{}\n", "x".repeat(if n == 0 { 60_000 } else { n }));
                let answer = ask(dir, interface, long.as_bytes(), MAX, LIMIT).unwrap();
                assert_eq!(String::from_utf8(answer).unwrap(), format!("echo {long}"));
            });
        }
    });
    // no more of an answer is read than was asked for
    assert_eq!(ask(&dir, &interface, b"bounded\n", 7, LIMIT).unwrap(), b"echo bo");
    // and none once nobody wants it
    let unwanted = control::ask(&dir, &interface, b"x\n", MAX, LIMIT, &mut |_| Err(io::ErrorKind::BrokenPipe.into()));
    assert_eq!(unwanted.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(ask(&dir, &interface, b"stop\n", MAX, LIMIT).unwrap(), b"echo stop\n");
    node.join().unwrap();
    assert!(control::running(&dir).is_empty());

    // the name is free again, whatever the last node left
    in_loop(async { drop(Listener::bind(&dir, &interface).unwrap()) });
    control::forget(&dir, &interface);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A pipe takes so much, then whoever writes waits.
#[cfg(windows)]
#[test]
fn a_node_that_reads_nothing_is_not_waited_for() {
    let (dir, interface) = place("r");
    in_loop(async {
        let (listener, entry) = Listener::bind(&dir, &interface).unwrap();
        let long = vec![b'x'; 4 << 20];
        let limit = Duration::from_millis(200);
        let asker = std::thread::spawn({
            let (dir, interface) = (dir.clone(), interface.clone());
            move || control::ask(&dir, &interface, &long, MAX, limit, &mut |_| Ok(()))
        });
        let error = tokio::task::spawn_blocking(|| asker.join().unwrap()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
        drop((listener, entry));
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_silent_node_is_not_waited_for() {
    let (dir, interface) = place("s");
    in_loop(async {
        let (mut listener, entry) = Listener::bind(&dir, &interface).unwrap();
        let asker = std::thread::spawn({
            let (dir, interface) = (dir.clone(), interface.clone());
            move || ask(&dir, &interface, b"hello\n", MAX, Duration::from_millis(200))
        });
        let stream = listener.accept().await.unwrap();
        let error = tokio::task::spawn_blocking(|| asker.join().unwrap()).await.unwrap().unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        drop(stream);
        drop(entry);
    });
    std::fs::remove_dir_all(&dir).unwrap();
}
