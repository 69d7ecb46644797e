//! TCP servers and clients in namespaces, and what became of a connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use peervpn_platform::nft::Table;
use peervpn_platform::os;

use super::lab_net::Namespace;

/// Port of every server here.
pub const PORT: u16 = 8080;

/// How long a client waits for a packet that was dropped; longer than a refusal takes under User-Mode Linux.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether namespaces can be made and these programs are there; says what is missing.
pub fn possible(programs: &[&str]) -> bool {
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIP: needs root to make network namespaces");
        return false;
    }
    for program in programs {
        let started = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if started.is_err() {
            eprintln!("SKIP: {program} is not installed");
            return false;
        }
    }
    true
}

/// Puts this thread into a new, empty network namespace, if that is possible.
pub fn enter_new_namespace(programs: &[&str]) -> bool {
    // SAFETY: no memory is involved; only this thread's network namespace changes.
    possible(programs) && unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0
}

/// Runs a program in this thread's namespace to its end; its stdout.
pub fn run(line: &[&str]) -> String {
    let output = Command::new(line[0]).args(&line[1..]).output().expect("the program starts");
    assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Installs a table there.
pub fn install(namespace: &Namespace, table: &Table) {
    namespace.run(|| os::host().expect("netlink").replace_table(table).expect("the kernel takes it"));
}

/// A server on [`PORT`] of every address of both families; tells each client its address and MSS.
pub struct Server {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(namespace: &Namespace) -> Self {
        let listener = namespace.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).expect("listen"));
        let accepting = listener.try_clone().expect("another handle");
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, client)) = accepting.accept() {
                // a client that is gone by now has its answer in its own error
                let _ = write!(stream, "{} {}", client.ip().to_canonical(), mss(&stream));
            }
        });
        Server { listener, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open; shutting it down ends the accept call.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What became of a connection attempt.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It came about; the server saw it coming from that address.
    From(IpAddr),
    /// An error came back at once.
    Refused,
    /// Nothing came back.
    Silence,
}

/// An attempt, and the MSS that either side was told.
pub struct Attempt {
    pub outcome: Outcome,
    /// (the server's, the client's), in bytes, less the timestamp option.
    pub mss: Option<(u32, u32)>,
}

/// Connects to a [`Server`].
pub fn attempt(from: &Namespace, to: &str, mark: u32) -> Attempt {
    let to = SocketAddr::new(to.parse().expect("an address"), PORT);
    from.run(|| {
        let started = Instant::now();
        let failed = |error: std::io::Error| {
            let silence = matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
            assert!(silence || started.elapsed() < PATIENCE / 2, "refused, but late: {error}");
            Attempt { outcome: if silence { Outcome::Silence } else { Outcome::Refused }, mss: None }
        };
        let mut stream = match marked_connect(to, mark) {
            Ok(stream) => stream,
            Err(error) => return failed(error),
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            Err(error) => failed(error),
            Ok(_) => {
                let (seen, theirs) = answer.split_once(' ').expect("two words");
                let mss = (theirs.parse().expect("a number"), mss(&stream));
                Attempt { outcome: Outcome::From(seen.parse().expect("an address")), mss: Some(mss) }
            }
        }
    })
}

/// Connects to a [`Server`].
pub fn reach(from: &Namespace, to: &str) -> Outcome {
    attempt(from, to, 0).outcome
}

/// `From` with the address as text.
pub fn seen_as(address: &str) -> Outcome {
    Outcome::From(address.parse().expect("an address"))
}

/// `TcpStream::connect_timeout`, with SO_MARK set before.
fn marked_connect(to: SocketAddr, mark: u32) -> std::io::Result<TcpStream> {
    let domain = if to.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

/// `TCP_MAXSEG`, tcp(7).
fn mss(stream: &TcpStream) -> u32 {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: a C int and its size, both alive during the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "TCP_MAXSEG");
    value as u32
}
