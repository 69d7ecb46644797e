//! A host that is reached by SSH stays reachable: a real sshd behind `connect`, its sessions held over coming and going.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::node::Node;
use crate::topology::{Lab, Nat, Site};
use crate::{assert_leaves_directly, assert_leaves_through_exit, join, lab_tests, open_exit};

/// A process that ends with the test.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn keygen(file: &Path) {
    let done = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file).status();
    assert!(done.expect("run ssh-keygen").success());
}

/// sshd at a site, and the arguments of an `ssh` that may log in.
fn sshd(site: &Site) -> (Held, Vec<String>) {
    let (host_key, user_key) = (site.dir.join("host_key"), site.dir.join("user_key"));
    keygen(&host_key);
    keygen(&user_key);
    let config = site.dir.join("sshd_config");
    let text = format!(
        "Port 22\nHostKey {}\nAuthorizedKeysFile {}.pub\nPidFile none\nStrictModes no\nUsePAM no\n\
         PermitRootLogin prohibit-password\nUseDNS no\n",
        host_key.display(),
        user_key.display()
    );
    std::fs::write(&config, text).expect("write sshd_config");
    std::fs::create_dir_all("/run/sshd").expect("sshd's directory");
    let mut command = site.host.command("/usr/sbin/sshd");
    command.arg("-D").arg("-f").arg(&config).stdin(Stdio::null()).stderr(Stdio::null());
    let daemon = Held(command.spawn().expect("start sshd"));
    let identity = user_key.to_string_lossy().into_owned();
    let target = format!("root@{}", site.public4);
    let options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5"];
    let mut args: Vec<String> = ["-T", "-F", "none", "-i", &identity].map(str::to_owned).to_vec();
    args.extend(options.into_iter().flat_map(|option| ["-o".to_owned(), option.to_owned()]));
    args.extend([target, "cat".to_owned()]);
    (daemon, args)
}

/// A session that echoes lines.
struct Session {
    _ssh: Held,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Session {
    #[track_caller]
    fn open(lab: &Lab, args: &[String]) -> Session {
        let deadline = std::time::Instant::now() + crate::record::patience(15);
        loop {
            let mut command = lab.internet.command("ssh");
            command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut ssh = command.spawn().expect("start ssh");
            let (to, from) = (ssh.stdin.take().expect("piped"), BufReader::new(ssh.stdout.take().expect("piped")));
            let mut session = Session { _ssh: Held(ssh), to, from };
            if session.try_echo("hello") {
                return session;
            }
            // sshd may not listen yet
            assert!(std::time::Instant::now() < deadline, "no SSH session");
        }
    }

    fn try_echo(&mut self, word: &str) -> bool {
        let mut line = String::new();
        writeln!(self.to, "{word}").is_ok() && self.from.read_line(&mut line).is_ok() && line.trim_end() == word
    }

    #[track_caller]
    fn echo(&mut self, word: &str) {
        assert!(self.try_echo(word), "the SSH session did not survive: {word}");
    }
}

lab_tests! {
    fn ssh_sessions_survive_connect_and_disconnect("sshd", "ssh", "ssh-keygen") {
        let lab = Lab::new(Nat::FullCone, &[Nat::Open.into()]);
        let (_daemon, args) = sshd(lab.peer());
        let mut before = Session::open(&lab, &args);
        let (mut exit, ready) = open_exit(&lab, &[]);
        for round in 0..2 {
            let (mut peer, _): (Node, _) = join(lab.peer(), &ready, &[]);
            assert_leaves_through_exit(&lab, lab.peer());
            before.echo(&format!("older than the tunnel, round {round}"));
            let mut during = Session::open(&lab, &args);
            during.echo("opened while connected");
            peer.stop(libc::SIGINT);
            assert_leaves_directly(lab.peer());
            before.echo(&format!("after the tunnel, round {round}"));
            during.echo("outlives the tunnel");
        }
        exit.stop(libc::SIGINT);
    }
}
