//! The control pipe of a node, for administrators and the system. Its name lies where only they can make one, so nobody
//! else can sit there and wait for our commands. `RUN_DIR` holds a file for each node that runs, since pipes have no
//! directory that could be moved.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::os::windows::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::net::windows::named_pipe::{NamedPipeServer, ServerOptions};
use windows_sys::Win32::Foundation::{ERROR_FILE_NOT_FOUND, ERROR_NO_DATA, ERROR_PIPE_BUSY};
use windows_sys::Win32::Storage::FileSystem::SECURITY_IDENTIFICATION;
use windows_sys::Win32::System::Pipes::WaitNamedPipeW;

use zeroize::Zeroizing;

use super::security::{self, Descriptor};
use super::text::wide;
use super::{places, private};
use crate::{Error, Result, files};

/// One connection; reads and writes in the event loop.
pub type Stream = NamedPipeServer;

/// The node's end.
#[derive(Debug)]
pub struct Listener {
    /// Waits for the next connection.
    next: NamedPipeServer,
    name: String,
    descriptor: Descriptor,
}

/// What others find the node's end by; removed when dropped.
#[derive(Debug)]
pub struct Entry {
    marker: PathBuf,
    /// Told to the whole machine, see [`nodes`].
    _register: Option<File>,
}

/// How long the end of a node that has just stopped may last.
const LINGER: Duration = Duration::from_secs(1);

/// The pipe's name. Names below `ProtectedPrefix\Administrators` are for administrators to make.
fn name(interface: &str) -> String {
    format!(r"\\.\pipe\ProtectedPrefix\Administrators\PeerVPN\{interface}")
}

/// The file that says that a node was started.
fn marker(run_dir: &Path, interface: &str) -> PathBuf {
    run_dir.join(format!("{interface}.pipe"))
}

/// Where nodes are known to each other, whatever their own directories are.
fn register() -> PathBuf {
    places::path(places::RUN_DIR)
}

/// The end of the names there.
const NODE: &str = ".node";

/// Tells the machine that a node runs: by a file that the system removes when it is closed, so when its node dies, too.
fn tell(register: &Path, interface: &str) -> crate::Result<File> {
    files::private_dir(register)?;
    let path = register.join(format!("{interface}{NODE}"));
    private::open_held(&path).map_err(|error| Error::system(format!("write {}", path.display()), error))
}

/// Interfaces of the nodes that run on this machine, whatever their directories; sorted. A power cut may leave a file,
/// which nobody holds then.
pub(super) fn nodes() -> Vec<String> {
    nodes_of(&register())
}

fn nodes_of(register: &Path) -> Vec<String> {
    let mut names = names(register, NODE);
    names.retain(|interface| private::is_held(&register.join(format!("{interface}{NODE}"))));
    names
}

impl Listener {
    /// Listens. The caller holds the interface's journal, so a marker that is there is a dead node's.
    pub fn bind(run_dir: &Path, interface: &str) -> Result<(Listener, Entry)> {
        files::private_dir(run_dir)?;
        let name = name(interface);
        let listen = || -> io::Result<(NamedPipeServer, Descriptor)> {
            let descriptor = Descriptor::parse(security::OBJECT)?;
            let deadline = Instant::now() + LINGER;
            loop {
                // the first of its name, so that no other program has an end of it
                match instance(&name, &descriptor, true) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied && Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    other => return Ok((other?, descriptor)),
                }
            }
        };
        let (next, descriptor) = listen().map_err(|error| Error::system(format!("listen on {name}"), error))?;
        let marker = marker(run_dir, interface);
        files::write_atomic(&marker, name.as_bytes(), 0o600)?;
        // the directory above is the usual state directory, and private, too
        let register = files::private_dir(&places::path(places::STATE_DIR))
            .and_then(|()| tell(&register(), interface))
            .inspect_err(|error| tracing::warn!(%error, "peervpn recover will not know of this node elsewhere"))
            .ok();
        Ok((Listener { next, name, descriptor }, Entry { marker, _register: register }))
    }

    /// The next connection. Can be dropped and called again at any time.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        loop {
            let connected = self.next.connect().await;
            let fresh = instance(&self.name, &self.descriptor, false)?;
            let stream = std::mem::replace(&mut self.next, fresh);
            match connected {
                // the asker had gone before we looked
                Err(error) if error.raw_os_error() == Some(ERROR_NO_DATA as i32) => {}
                other => return other.map(|()| stream),
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.marker);
    }
}

fn instance(name: &str, descriptor: &Descriptor, first: bool) -> io::Result<NamedPipeServer> {
    let mut options = ServerOptions::new();
    options.first_pipe_instance(first).reject_remote_clients(true);
    let mut attributes = descriptor.attributes();
    // SAFETY: SECURITY_ATTRIBUTES whose descriptor lives through the call.
    unsafe { options.create_with_security_attributes_raw(name, (&raw mut attributes).cast()) }
}

/// Asks a node: sends one line, hands on the line that it answers (at most `max` bytes of it), waits no longer than
/// `limit`. An error of `take` is ours.
pub fn ask(
    _run_dir: &Path,
    interface: &str,
    line: &[u8],
    max: u64,
    limit: Duration,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let name = name(interface);
    let deadline = Instant::now() + limit;
    let mut pipe = loop {
        // the node may know who asks, and no more
        let opened = OpenOptions::new().read(true).write(true).security_qos_flags(SECURITY_IDENTIFICATION).open(&name);
        match opened {
            // between two instances
            Err(error) if error.raw_os_error() == Some(ERROR_PIPE_BUSY as i32) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => break other?,
        }
    };
    let (sender, answer) = mpsc::channel();
    // neither writing to a pipe nor reading from one knows a time limit
    let line = Zeroizing::new(line.to_vec());
    std::thread::spawn(move || {
        let mut ask = || -> io::Result<Vec<u8>> {
            let mut answer = Vec::new();
            pipe.write_all(&line)?;
            io::BufReader::new((&pipe).take(max)).read_until(b'\n', &mut answer)?;
            Ok(answer)
        };
        let _ = sender.send(ask());
    });
    let left = deadline.saturating_duration_since(Instant::now());
    take(&answer.recv_timeout(left).map_err(|_| io::ErrorKind::TimedOut)??)
}

/// Interfaces that have a control pipe, a dead node's among them; sorted.
pub fn listed(run_dir: &Path) -> Vec<String> {
    names(run_dir, ".pipe")
}

/// The files with this end, without it; sorted.
fn names(dir: &Path, end: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok()?.strip_suffix(end).map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// Interfaces whose node answers, sorted.
pub fn running(run_dir: &Path) -> Vec<String> {
    let mut names = listed(run_dir);
    names.retain(|interface| exists(&name(interface)));
    names
}

/// Whether a pipe of that name is there, busy or not.
fn exists(name: &str) -> bool {
    // SAFETY: a string that ends with zero; 1 ms, since 0 would mean the pipe's own default.
    let found = unsafe { WaitNamedPipeW(wide(name).as_ptr(), 1) };
    found != 0 || io::Error::last_os_error().raw_os_error() != Some(ERROR_FILE_NOT_FOUND as i32)
}

/// Removes what a dead node was found by.
pub fn forget(run_dir: &Path, interface: &str) {
    let _ = std::fs::remove_file(marker(run_dir, interface));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Scratch;

    #[test]
    fn an_asker_that_went_away_ends_nothing() {
        use tokio::io::AsyncReadExt as _;

        let scratch = Scratch::new();
        let (dir, interface) = (scratch.0.join("run"), format!("g{}", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut listener, _entry) = Listener::bind(&dir, &interface).unwrap();
            drop(OpenOptions::new().read(true).write(true).open(name(&interface)).unwrap());
            let asker = std::thread::spawn({
                let (dir, interface) = (dir.clone(), interface.clone());
                move || ask(&dir, &interface, b"hello\n", 1 << 10, Duration::from_secs(20), &mut |_| Ok(()))
            });
            let mut line = [0; 6];
            while listener.accept().await.unwrap().read_exact(&mut line).await.is_err() {}
            assert_eq!(&line, b"hello\n");
            // closed without an answer
            let _ = tokio::task::spawn_blocking(|| asker.join().unwrap()).await.unwrap();
        });
    }

    #[test]
    fn the_machine_knows_of_a_node_for_as_long_as_it_lives() {
        let scratch = Scratch::new();
        let register = scratch.0.join("run");
        assert!(nodes_of(&register).is_empty());
        let (one, _two) = (tell(&register, "one").unwrap(), tell(&register, "two").unwrap());
        assert_eq!(nodes_of(&register), ["one", "two"]);
        assert!(tell(&register, "one").is_err(), "there is one of a name");
        drop(one);
        assert_eq!(nodes_of(&register), ["two"]);
        // what a power cut leaves
        std::fs::write(register.join("gone.node"), "").unwrap();
        assert_eq!(nodes_of(&register), ["two"]);
        drop(tell(&register, "gone").unwrap());
        assert!(!register.join("gone.node").exists());
    }
}
