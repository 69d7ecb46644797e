//! The program under test, started at a site, its events read from stdout.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::record;
use crate::topology::Site;

/// The binary: `PEERVPN_BIN`, else the one that cargo built for these tests.
pub fn binary() -> PathBuf {
    std::env::var_os("PEERVPN_BIN").map_or_else(|| env!("CARGO_BIN_EXE_peervpn").into(), PathBuf::from)
}

/// A running `exit` or `connect`.
pub struct Node {
    name: String,
    child: Child,
    events: Receiver<Value>,
    log: Arc<Mutex<String>>,
    readers: [std::thread::JoinHandle<()>; 2],
}

/// What a finished command said.
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Site {
    /// `peervpn ARGS` at this site with state and run directories of the site's own.
    pub fn peervpn(&self, args: &[&str]) -> Command {
        let program = binary();
        let mut words = self.under.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]);
        let mut command = self.host.command(words.next().expect("the binary at least"));
        command
            .args(words)
            .arg("--state-dir")
            .arg(self.dir.join("state"))
            .arg("--run-dir")
            .arg(self.dir.join("run"))
            .args(args)
            .env_remove("WG_USERSPACE_IMPLEMENTATION")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs a short command (`status`, `down`, `recover` …) to its end.
    pub fn run(&self, args: &[&str]) -> Finished {
        let child = self.peervpn(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|e| panic!("start {}: {e}", binary().display()));
        let stdout = drain(child.stdout.take().expect("piped"));
        let stderr = drain(child.stderr.take().expect("piped"));
        let status = wait(&mut child, record::patience(30));
        let finished = Finished {
            code: status.and_then(|s| s.code()),
            stdout: stdout.join().expect("no panic"),
            stderr: stderr.join().expect("no panic"),
        };
        assert!(status.is_some(), "peervpn {} did not end\n{}", args.join(" "), finished.all());
        finished
    }

    /// Runs a short command that must succeed.
    pub fn run_ok(&self, args: &[&str]) -> Finished {
        let finished = self.run(args);
        assert_eq!(finished.code, Some(0), "peervpn {}\n{}", args.join(" "), finished.all());
        finished
    }

    /// Starts `peervpn exit ARGS` with what every lab node is given.
    pub fn exit(&self, args: &[&str]) -> Node {
        self.node("exit", None, args)
    }

    /// Starts `peervpn connect TARGET ARGS` likewise.
    pub fn connect(&self, target: &str, args: &[&str]) -> Node {
        let timeout = record::patience(15).as_secs().to_string();
        let bound = ["--timeout", timeout.as_str()];
        let bound = if args.contains(&"--timeout") { &[] } else { &bound[..] };
        self.node("connect", None, &[&[target], bound, args].concat())
    }

    /// Starts `peervpn connect ARGS`, the target among them or read from a file.
    pub fn connect_with(&self, args: &[&str]) -> Node {
        let timeout = record::patience(15).as_secs().to_string();
        let bound = ["--timeout", timeout.as_str()];
        let bound = if args.contains(&"--timeout") { &[] } else { &bound[..] };
        self.node("connect", None, &[bound, args].concat())
    }

    /// Starts `peervpn connect - ARGS` and gives it this line on its standard input.
    pub fn connect_reading(&self, line: &str, args: &[&str]) -> Node {
        self.node("connect", Some(line), &[&["-"], args].concat())
    }

    fn node(&self, mode: &str, input: Option<&str>, args: &[&str]) -> Node {
        let mut all = vec![mode, "--json", "-v", "--backend", record::backend()];
        if !args.iter().any(|arg| arg.starts_with("--stun-server") || *arg == "--no-stun") {
            all.extend(["--stun-server", "192.0.2.3:3478"]);
            if self.host6.is_some() {
                all.extend(["--stun-server", "[2001:db8:ff::3]:3478"]);
            }
        }
        all.extend(args);
        let mut child = self
            .peervpn(&all)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("start {}: {e}", binary().display()));
        if let (Some(line), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(line.as_bytes()).expect("the node reads its standard input");
        }
        let log = Arc::new(Mutex::new(format!("$ peervpn {}\n", all.join(" "))));
        let (send, events) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let kept = log.clone();
        let answers = std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                note(&kept, "1> ", &line);
                let event = serde_json::from_str(&line)
                    .unwrap_or_else(|e| serde_json::json!({"event": "garbage", "line": line, "error": e.to_string()}));
                if send.send(event).is_err() {
                    return;
                }
            }
        });
        let kept = log.clone();
        let remarks = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                note(&kept, "2> ", &line);
            }
        });
        Node { name: format!("{mode} at {}", self.host.name), child, events, log, readers: [answers, remarks] }
    }
}

fn note(log: &Mutex<String>, stream: &str, line: &str) {
    let mut log = log.lock().expect("no panic under this lock");
    log.push_str(stream);
    log.push_str(line);
    log.push('\n');
}

fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("our child") {
            return Some(status);
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Finished {
    /// Both streams, for a failure's message.
    pub fn all(&self) -> String {
        format!("exit status {:?}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

impl Node {
    /// Waits for an event of this name; others before it are passed over, but an end of the node or a line that is no
    /// event fails the test.
    #[track_caller]
    pub fn event(&mut self, name: &str) -> Value {
        self.event_within(name, record::patience(20))
    }

    /// The same with a bound of its own.
    #[track_caller]
    pub fn event_within(&mut self, name: &str, limit: Duration) -> Value {
        self.try_event(name, limit)
            .unwrap_or_else(|why| panic!("{}: no {name} event: {why}\n{}", self.name, self.log()))
    }

    /// The event, or why it did not come.
    pub fn try_event(&mut self, name: &str, limit: Duration) -> Result<Value, String> {
        self.any_event(&[name], limit)
    }

    /// The first event of one of these names, or why none came.
    pub fn any_event(&mut self, names: &[&str], limit: Duration) -> Result<Value, String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) if names.iter().any(|name| event["event"] == *name) => return Ok(event),
                Ok(event) if event["event"] == "garbage" => return Err(format!("not a JSON event: {}", event["line"])),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err(format!("none within {limit:?}")),
                Err(RecvTimeoutError::Disconnected) => return Err("the node ended".to_owned()),
            }
        }
    }

    /// Its process ID.
    #[allow(dead_code, reason = "the crash tests attach to it")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// kill -9 of the node alone, reaped.
    pub fn kill(&mut self) {
        self.child.kill().expect("our child");
        let status = self.child.wait().expect("our child");
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{} had ended before: {}", self.name, self.log());
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    /// Waits for the end; its exit status (`None` in the inside after a signal).
    pub fn wait(&mut self) -> Option<i32> {
        let limit = record::patience(30);
        match wait(&mut self.child, limit) {
            Some(status) => {
                // its last words may still be under way; a device process that held a stream would keep it open
                let deadline = Instant::now() + Duration::from_secs(2);
                while Instant::now() < deadline && self.readers.iter().any(|reader| !reader.is_finished()) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                status.code()
            }
            None => panic!("{} did not end within {limit:?}\n{}", self.name, self.log()),
        }
    }

    /// Stops it with a signal and checks that it says and returns success.
    #[track_caller]
    pub fn stop(&mut self, signal: i32) {
        self.signal(signal);
        self.stopped();
    }

    /// Checks that the node ends, says that the host is restored, and returns 0.
    #[track_caller]
    pub fn stopped(&mut self) {
        let stopped = self.event("stopped");
        assert_eq!(stopped["host"], "restored", "{}\n{}", self.name, self.log());
        assert_eq!(self.wait(), Some(0), "{}\n{}", self.name, self.log());
    }

    /// Everything it said so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic under this lock").clone()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.log());
        }
    }
}

/// A number of a process, of its main thread where threads differ; proc_pid_status(5).
pub fn process_number(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let field = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    field.and_then(|field| field.split_whitespace().next()?.parse().ok()).expect("a number")
}
