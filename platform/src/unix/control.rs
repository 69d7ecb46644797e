//! The control socket of a node: `RUN_DIR/INTERFACE.sock`, mode 0600 in a directory of mode 0700.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result, files};

/// One connection; reads and writes in the event loop.
pub type Stream = tokio::net::UnixStream;

/// The node's end.
#[derive(Debug)]
pub struct Listener(tokio::net::UnixListener);

/// What others find the node's end by; removed when dropped.
#[derive(Debug)]
pub struct Entry(PathBuf);

/// The socket's path.
fn path(run_dir: &Path, interface: &str) -> PathBuf {
    run_dir.join(format!("{interface}.sock"))
}

impl Listener {
    /// Listens. The caller holds the interface's journal, so a socket that is there is a dead node's.
    pub fn bind(run_dir: &Path, interface: &str) -> Result<(Listener, Entry)> {
        // ours alone from its first moment, because of the directory
        files::private_dir(run_dir)?;
        let path = path(run_dir, interface);
        let bind = || {
            let _ = std::fs::remove_file(&path);
            let socket = tokio::net::UnixListener::bind(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            Ok(socket)
        };
        let socket =
            bind().map_err(|error: io::Error| Error::system(format!("listen on {}", path.display()), error))?;
        Ok((Listener(socket), Entry(path)))
    }

    /// The next connection. Can be dropped and called again at any time.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        self.0.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Bytes read at once: what a node says of thousands of peers takes megabytes.
const LONG: usize = 64 << 10;

/// Asks a node: sends one line, hands on the line that it answers (at most `max` bytes of it) piece by piece as it comes,
/// and waits no longer than `limit` for the next one. An error of `take` is ours.
pub fn ask(
    run_dir: &Path,
    interface: &str,
    line: &[u8],
    max: u64,
    limit: Duration,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut stream = UnixStream::connect(path(run_dir, interface))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(line)?;
    let mut answer = io::BufReader::with_capacity(LONG, stream.take(max));
    loop {
        let piece = match answer.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let end = piece.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let length = end.unwrap_or(piece.len());
        if length == 0 {
            return Ok(());
        }
        take(&piece[..length])?;
        answer.consume(length);
        if end.is_some() {
            return Ok(());
        }
    }
}

/// Interfaces that have a control socket, a dead node's among them; sorted.
pub fn listed(run_dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(run_dir) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok()?.strip_suffix(".sock").map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// Interfaces whose node answers, sorted.
pub fn running(run_dir: &Path) -> Vec<String> {
    let mut names = listed(run_dir);
    names.retain(|name| UnixStream::connect(path(run_dir, name)).is_ok());
    names
}

/// Removes what a dead node was found by.
pub fn forget(run_dir: &Path, interface: &str) {
    let _ = std::fs::remove_file(path(run_dir, interface));
}
