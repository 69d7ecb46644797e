//! resolvconf(8), openresolv's or Debian's: the one that writes `/etc/resolv.conf` out of what DHCP clients and VPNs give
//! it. It has no interface but its command.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::types::{Resolvconf, ResolvconfKind};
use crate::{Error, Result};

/// As much of the script as is looked at, in bytes; openresolv's has 30 kB.
const MAX_SCRIPT: u64 = 256 << 10;
/// Where it may be; nothing of our environment is used.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The resolvconf of this host; none if it is systemd-resolved's imitation, which [`super::resolved`] speaks to itself.
pub fn find() -> Option<Resolvconf> {
    let program = PATH.split(':').map(|dir| Path::new(dir).join("resolvconf")).find(|path| path.is_file())?;
    if program.canonicalize().is_ok_and(|real| real.file_name().is_some_and(|name| name == "resolvectl")) {
        return None;
    }
    // both are shell scripts; asking one for its version would start a program on hosts where it is not even in charge
    let mut script = Vec::new();
    std::fs::File::open(&program).ok()?.take(MAX_SCRIPT).read_to_end(&mut script).ok()?;
    let kind = match script.to_ascii_lowercase().windows(10).any(|word| word == b"openresolv") {
        true => ResolvconfKind::Openresolv,
        false => ResolvconfKind::Debian,
    };
    Some(Resolvconf { program, kind })
}

/// Gives it a record; where it can, as the only one that counts, ahead of all others.
pub fn add(resolvconf: &Resolvconf, record: &str, text: &str) -> Result<()> {
    let mut args = vec!["-a", record];
    if resolvconf.kind == ResolvconfKind::Openresolv {
        // metric 0, exclusive: openresolv's resolvconf(8)
        args.extend(["-m", "0", "-x"]);
    }
    run(&resolvconf.program, &args, text)
}

/// Takes a record back. One that is not there is no error.
pub fn remove(resolvconf: &Resolvconf, record: &str) -> Result<()> {
    let mut args = vec!["-d", record];
    if resolvconf.kind == ResolvconfKind::Openresolv {
        args.push("-f");
    }
    run(&resolvconf.program, &args, "")
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", PATH).current_dir("/");
    command
}

fn run(program: &Path, args: &[&str], input: &str) -> Result<()> {
    let operation = format!("run {} {}", program.display(), args.join(" "));
    let start = || -> io::Result<std::process::Output> {
        let mut child =
            command(program).args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let written = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?.write_all(input.as_bytes());
        let output = child.wait_with_output()?;
        // one that did not read its input says why itself
        if output.status.success() { written.map(|()| output) } else { Ok(output) }
    };
    let output = start().map_err(|e| Error::system(&operation, e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::system(operation, io::Error::other(format!("{}: {said}", output.status))))
}
