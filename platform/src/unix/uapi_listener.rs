//! Where a userspace WireGuard device is spoken to: a socket where wg(8) looks for it.
//!
//! Peers that get a persistent keepalive are to be called at once, as with the kernel's WireGuard. gotatun 0.10.2 sees
//! four times a second only that there is something to send to them, so requests are overheard.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::Sender;
use zeroize::{Zeroize as _, Zeroizing};

use super::uapi::parse_hex;

/// Where wg(8) looks for UAPI sockets.
const SOCKETS: &str = "/var/run/wireguard";
/// Bytes of an answer that are sent at once.
const AT_ONCE: usize = 16 << 10;
/// Peers to call after one request: where many are set, the handshakes are what takes time.
const CALLED: usize = 16;
/// Longest line that is looked at: a name and the 64 digits of a key.
const LINE: usize = 96;

/// The device's end.
#[derive(Debug)]
pub struct UapiListener(tokio::net::UnixListener);

impl UapiListener {
    /// Listens for an interface of ours whose device the system calls `device`; a socket that is there is a dead
    /// device's.
    pub fn bind(interface: &str, device: &str) -> io::Result<UapiListener> {
        super::names::remember(interface, device)?;
        let path = Path::new(SOCKETS).join(format!("{device}.sock"));
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir_all(SOCKETS)?;
        tokio::net::UnixListener::bind(path).map(UapiListener)
    }

    /// The next connection, blocking. Whom a request gives a persistent keepalive is told to `called`, by public key, once
    /// it is answered; what finds no room there is left out. Can be dropped and called again at any time.
    pub async fn accept(&mut self, called: &Sender<Vec<[u8; 32]>>) -> io::Result<UapiStream> {
        let (stream, _) = self.0.accept().await?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(UapiStream::new(stream, called.clone()))
    }
}

/// A connection to the device. gotatun 0.10.2 writes its answers in pieces of some bytes; they are sent when it reads on,
/// or is done.
#[derive(Debug)]
pub struct UapiStream {
    stream: UnixStream,
    /// May hold keys. Never more than its first capacity, so that no copy is left.
    unsent: Mutex<Zeroizing<Vec<u8>>>,
    request: Mutex<Request>,
    called: Sender<Vec<[u8; 32]>>,
}

impl UapiStream {
    fn new(stream: UnixStream, called: Sender<Vec<[u8; 32]>>) -> UapiStream {
        let unsent = Mutex::new(Zeroizing::new(Vec::with_capacity(AT_ONCE)));
        UapiStream { stream, unsent, request: Mutex::default(), called }
    }

    fn request(&self) -> MutexGuard<'_, Request> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsent(&self) -> MutexGuard<'_, Zeroizing<Vec<u8>>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, unsent: &mut Vec<u8>) -> io::Result<()> {
        let sent = (&self.stream).write_all(unsent);
        unsent.clear();
        sent
    }
}

impl Read for &UapiStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // also if nobody reads the answer, the peers are set
        let sent = self.flush();
        let called = self.request().answered();
        if !called.is_empty() {
            let _ = self.called.try_send(called);
        }
        sent?;
        let length = (&self.stream).read(buffer)?;
        self.request().hear(&buffer[..length]);
        Ok(length)
    }
}

impl Write for &UapiStream {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let mut unsent = self.unsent();
        if unsent.len() + piece.len() > AT_ONCE {
            self.send(&mut unsent)?;
        }
        let piece = &piece[..piece.len().min(AT_ONCE)];
        unsent.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send(&mut self.unsent())
    }
}

impl Drop for UapiStream {
    fn drop(&mut self) {
        let _ = (&*self).flush();
    }
}

/// What has come of a request so far; <https://www.wireguard.com/xplatform/>.
#[derive(Debug)]
struct Request {
    /// Beginning of the line under way, never more than its first capacity. May be that of a secret key.
    line: Zeroizing<Vec<u8>>,
    peer: Option<[u8; 32]>,
    called: Vec<[u8; 32]>,
    /// So many of them are of requests that have come whole.
    whole: usize,
}

impl Default for Request {
    fn default() -> Self {
        Request { line: Zeroizing::new(Vec::with_capacity(LINE)), peer: None, called: Vec::new(), whole: 0 }
    }
}

impl Request {
    /// Whom to call, of what has come whole.
    fn answered(&mut self) -> Vec<[u8; 32]> {
        self.called.drain(..std::mem::take(&mut self.whole)).collect()
    }

    fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    self.end_line();
                    self.line.zeroize();
                }
                _ if self.line.len() < LINE => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::str::from_utf8(&self.line).unwrap_or_default();
        match line.split_once('=') {
            Some(("public_key", digits)) => self.peer = parse_hex(digits).map(|key| *key),
            Some(("persistent_keepalive_interval", seconds)) if seconds != "0" && self.called.len() < CALLED => {
                self.called.extend(self.peer.take());
            }
            None if line.is_empty() => (self.peer, self.whole) = (None, self.called.len()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;

    /// The device's end and the asker's, and whom the device is told to call.
    fn connection() -> (UapiStream, UnixStream, Receiver<Vec<[u8; 32]>>) {
        let (device, asker) = UnixStream::pair().unwrap();
        let (called, told) = channel(8);
        (UapiStream::new(device, called), asker, told)
    }

    /// Whom the device is told to call by requests that it reads in pieces of that many bytes.
    fn told(requests: &str, piece: usize) -> Vec<Vec<[u8; 32]>> {
        let (device, mut asker, mut told) = connection();
        asker.write_all(requests.as_bytes()).unwrap();
        asker.shutdown(std::net::Shutdown::Write).unwrap();
        let (mut heard, mut buffer) = (Vec::new(), vec![0; piece]);
        while let length @ 1.. = (&device).read(&mut buffer).unwrap() {
            heard.extend_from_slice(&buffer[..length]);
        }
        assert_eq!(heard, requests.as_bytes(), "all of it goes on to the device");
        assert_eq!(device.request().line.capacity(), LINE, "no copy of a key is left behind");
        std::iter::from_fn(|| told.try_recv().ok()).collect()
    }

    fn digits(number: u8) -> String {
        format!("{number:02x}").repeat(32)
    }

    #[test]
    fn an_answer_in_pieces_is_sent_as_one() {
        let (device, mut asker, _told) = connection();
        asker.set_nonblocking(true).unwrap();
        let mut received = [0; 64];
        for piece in ["listen_port=", "51820", "\n", "errno=0\n\n"] {
            (&device).write_all(piece.as_bytes()).unwrap();
            assert_eq!(asker.read(&mut received).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        asker.write_all(b"get=1\n\n").unwrap();
        assert_eq!((&device).read(&mut received).unwrap(), 7);
        let length = asker.read(&mut received).unwrap();
        assert_eq!(&received[..length], b"listen_port=51820\nerrno=0\n\n");
        (&device).write_all(b"errno=0\n\n").unwrap();
        drop(device);
        assert_eq!(asker.read(&mut received).unwrap(), 9);
    }

    #[test]
    fn a_long_answer_is_sent_whole_and_held_in_part() {
        let (device, mut asker, _told) = connection();
        let long: Vec<u8> = (0..AT_ONCE * 5 / 2).map(|byte| byte as u8).collect();
        let expected = long.clone();
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            asker.read_to_end(&mut received).unwrap();
            received
        });
        for piece in long.chunks(AT_ONCE + 700) {
            (&device).write_all(piece).unwrap();
            let unsent = device.unsent();
            assert!(unsent.len() <= AT_ONCE && unsent.capacity() == AT_ONCE, "{} bytes", unsent.len());
        }
        drop(device);
        assert!(reader.join().unwrap() == expected);
    }

    #[test]
    fn who_gets_a_keepalive_is_called() {
        let (a, b, c) = (digits(0xa1), digits(0xb2), digits(0xc3));
        let request = format!(
            "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={a}\npersistent_keepalive_interval=25\n\
             allowed_ip=10.0.0.1/32\npublic_key={b}\nremove=true\npublic_key={c}\nendpoint=192.0.2.1:7\n\
             persistent_keepalive_interval=0\n\nget=1\n\nset=1\npublic_key={c}\npersistent_keepalive_interval=1\n\n",
            digits(0x11)
        );
        // at once where the pieces end with the requests; both together where they come together
        assert_eq!(told(&request, 4096), [vec![[0xa1; 32], [0xc3; 32]]]);
        assert_eq!(told(&request, 1), [vec![[0xa1; 32]], vec![[0xc3; 32]]]);
        assert_eq!(
            told(&request, request.len() - 1),
            [vec![[0xa1; 32]], vec![[0xc3; 32]]],
            "one that is not whole waits"
        );
        assert_eq!(told(&request, 7).concat(), [[0xa1; 32], [0xc3; 32]]);
    }

    #[test]
    fn what_is_no_whole_request_calls_nobody() {
        let a = digits(0xa1);
        for request in [
            "\n\n".to_owned(),
            format!("set=1\npublic_key={a}\npersistent_keepalive_interval=25\n"),
            format!("set=1\npublic_key={}\npersistent_keepalive_interval=25\n\n", &a[1..]),
            format!("set=1\npublic_key={}é\npersistent_keepalive_interval=25\n\n", &a[2..]),
            "set=1\npersistent_keepalive_interval=25\n\n".to_owned(),
            format!("set=1\nprivate_key={}\npublic_key={a}\n\n", "x".repeat(10 * LINE)),
        ] {
            assert_eq!(told(&request, 16), Vec::<Vec<[u8; 32]>>::new(), "{request}");
        }
        let many: String =
            (0..64).map(|n| format!("public_key={}\npersistent_keepalive_interval=5\n", digits(n))).collect();
        assert_eq!(told(&format!("set=1\n{many}\n"), 512).concat().len(), CALLED);
    }
}
