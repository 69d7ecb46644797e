//! The services of the small internet: a web server that answers with the caller's address, coturn, and a TCP port to
//! knock on.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::net::Namespace;
use crate::topology::{STUN4, STUN6};

/// TCP services on port 80 of some addresses; each connection gets its own address back.
pub struct Web {
    stop: Arc<AtomicBool>,
    callers: Arc<Mutex<Vec<IpAddr>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Web {
    /// Listens in `space` on port 80 of every address.
    pub fn start(space: &Namespace, addresses: impl IntoIterator<Item = IpAddr>) -> Web {
        let stop = Arc::new(AtomicBool::new(false));
        let callers = Arc::new(Mutex::new(Vec::new()));
        let threads = addresses
            .into_iter()
            .map(|address| {
                let listener = space.run(|| TcpListener::bind((address, 80)));
                let listener = listener.unwrap_or_else(|e| panic!("listen on [{address}]:80: {e}"));
                listener.set_nonblocking(true).expect("a listener");
                let (stop, callers) = (stop.clone(), callers.clone());
                std::thread::spawn(move || serve(&listener, &stop, &callers))
            })
            .collect();
        Web { stop, callers, threads }
    }

    /// Every caller so far, emptying the list.
    pub fn take_callers(&self) -> Vec<IpAddr> {
        std::mem::take(&mut self.callers.lock().expect("no panic under this lock"))
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool, callers: &Mutex<Vec<IpAddr>>) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, caller)) => {
                callers.lock().expect("no panic under this lock").push(caller.ip());
                let _ = answer(stream, caller.ip());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn answer(mut stream: TcpStream, caller: IpAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut request = [0; 1024];
    let _ = stream.read(&mut request)?;
    let body = caller.to_string();
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// `GET /` from the calling thread's namespace: the address that the server saw.
pub fn get(server: IpAddr, limit: Duration) -> io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(server, 80), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.rsplit("\r\n\r\n").next().unwrap_or_default();
    body.parse().map_err(|_| io::Error::other(format!("the web server answered {answer:?}")))
}

/// A UDP port that swallows what comes, and remembers how much and when the last packet came.
pub struct Sink {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<(u64, Option<Instant>)>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sink {
    /// Listens in `space` on port 9 (discard, RFC 863) of `address`.
    pub fn start(space: &Namespace, address: IpAddr) -> Sink {
        let socket = space.run(|| UdpSocket::bind((address, 9))).unwrap_or_else(|e| panic!("bind [{address}]:9: {e}"));
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket");
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new((0, None))));
        let (stopped, counted) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if socket.recv(&mut [0; 2048]).is_ok() {
                    let mut counted = counted.lock().expect("no panic under this lock");
                    *counted = (counted.0 + 1, Some(Instant::now()));
                }
            }
        });
        Sink { stop, seen, thread: Some(thread) }
    }

    /// Packets so far.
    pub fn count(&self) -> u64 {
        self.seen.lock().expect("no panic under this lock").0
    }

    /// When the last one came.
    pub fn last(&self) -> Option<Instant> {
        self.seen.lock().expect("no panic under this lock").1
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// coturn as an RFC 5780 STUN server on two v4 and two v6 addresses.
pub struct Stun(Vec<Child>);

impl Stun {
    /// Starts it in `space` and waits until it answers.
    pub fn start(space: &Namespace, dir: &Path) -> Stun {
        let pairs: [[IpAddr; 2]; 2] = [STUN4.map(IpAddr::V4), STUN6.map(IpAddr::V6)];
        // one process a family: coturn pairs the addresses of OTHER-ADDRESS by their order
        let children = pairs
            .iter()
            .enumerate()
            .map(|(number, [first, second])| {
                let mut command = space.command("turnserver");
                command
                    .args(["-n", "--no-auth", "--stun-only", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp"])
                    .args(["--log-file", "stdout", "--no-stdout-log", "--relay-threads", "1"])
                    .args(["-p", "3478", "--alt-listening-port=3479"])
                    .arg("--pidfile")
                    .arg(dir.join(format!("turn{number}.pid")))
                    .arg("--userdb")
                    .arg(dir.join(format!("turn{number}.db")))
                    .args(["-L", &first.to_string(), "-L", &second.to_string()])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                command.spawn().unwrap_or_else(|e| panic!("start turnserver: {e}"))
            })
            .collect();
        let stun = Stun(children);
        for address in pairs.iter().flatten() {
            space.run(|| wait_for_answer(SocketAddr::new(*address, 3478)));
        }
        stun
    }
}

impl Drop for Stun {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends binding requests (RFC 8489 §5: type 0x0001, no attributes, magic cookie) until one is answered.
fn wait_for_answer(server: SocketAddr) {
    let own: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(own).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket");
    let mut request = [0; 20];
    request[1] = 1;
    request[4..8].copy_from_slice(&0x2112_A442u32.to_be_bytes());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        // refused until the server listens
        let _ = socket.send_to(&request, server);
        if socket.recv(&mut [0; 512]).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("coturn does not answer on {server}");
}

/// Whether TCP port 80 of `address` can be reached from the calling thread's namespace.
pub fn knock(address: IpAddr, limit: Duration) -> io::Result<()> {
    TcpStream::connect_timeout(&SocketAddr::new(address, 80), limit).map(drop)
}
