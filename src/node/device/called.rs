//! Whom the device calls at once: peers that get a persistent keepalive, as with the kernel's WireGuard. gotatun 0.10.2
//! sees four times a second only that there is something to send to them, so requests are overheard.

use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gotatun::x25519;
use peervpn_platform::os::UapiStream;
use tokio::sync::mpsc::UnboundedSender;
use zeroize::{Zeroize as _, Zeroizing};

/// No more of one request: where many are set, the handshakes are what takes time.
const AT_MOST: usize = 16;
/// Longest line that is looked at: the name and the 64 digits of a key.
const LINE: usize = 96;

/// A connection to the device that tells whom it has been given to call, once the device has set it. The
/// answer itself may leave later.
pub struct Overheard {
    stream: UapiStream,
    request: Mutex<Request>,
    tell: UnboundedSender<Vec<x25519::PublicKey>>,
}

/// What has come of a request so far; <https://www.wireguard.com/xplatform/>.
struct Request {
    /// Beginning of the line under way, never more than its first capacity. May be that of a secret key.
    line: Zeroizing<Vec<u8>>,
    peer: Option<x25519::PublicKey>,
    to_call: Vec<x25519::PublicKey>,
    whole: bool,
}

impl Overheard {
    /// Tells of what comes by `stream`.
    pub fn new(stream: UapiStream, tell: UnboundedSender<Vec<x25519::PublicKey>>) -> Self {
        Overheard { stream, request: Mutex::new(Request::new()), tell }
    }

    fn request(&self) -> MutexGuard<'_, Request> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Request {
    fn new() -> Self {
        Request { line: Zeroizing::new(Vec::with_capacity(LINE)), peer: None, to_call: Vec::new(), whole: false }
    }

    /// Whom to call, if all of it has come.
    fn answered(&mut self) -> Vec<x25519::PublicKey> {
        if std::mem::take(&mut self.whole) { std::mem::take(&mut self.to_call) } else { Vec::new() }
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
            Some(("public_key", digits)) => self.peer = public_key(digits),
            Some(("persistent_keepalive_interval", seconds)) if seconds != "0" && self.to_call.len() < AT_MOST => {
                self.to_call.extend(self.peer.take());
            }
            None if line.is_empty() => self.whole = true,
            _ => {}
        }
    }
}

fn public_key(digits: &str) -> Option<x25519::PublicKey> {
    let mut key = [0; 32];
    if digits.len() != 2 * key.len() || !digits.is_ascii() {
        return None;
    }
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(key.into())
}

impl Read for &Overheard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // gotatun reads on when it has done what was asked
        let to_call = self.request().answered();
        if !to_call.is_empty() {
            // nobody hears it any more when the device ends
            let _ = self.tell.send(to_call);
        }
        let length = (&self.stream).read(buffer)?;
        self.request().hear(&buffer[..length]);
        Ok(length)
    }
}

impl Write for &Overheard {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        (&self.stream).write(piece)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&self.stream).flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whom the device is told to call by requests that come in pieces of that many bytes.
    fn told(requests: &str, piece: usize) -> Vec<Vec<x25519::PublicKey>> {
        let mut request = Request::new();
        let mut told = Vec::new();
        for bytes in requests.as_bytes().chunks(piece) {
            request.hear(bytes);
            told.push(request.answered());
        }
        assert_eq!(request.line.capacity(), LINE, "no copy of a key is left behind");
        told.retain(|peers| !peers.is_empty());
        told
    }

    fn peer(number: u8) -> x25519::PublicKey {
        [number; 32].into()
    }

    fn digits(number: u8) -> String {
        format!("{number:02x}").repeat(32)
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
        assert_eq!(told(&request, 4096), [vec![peer(0xa1), peer(0xc3)]]);
        assert_eq!(told(&request, 1), [vec![peer(0xa1)], vec![peer(0xc3)]]);
        assert_eq!(told(&request, 7).concat(), [peer(0xa1), peer(0xc3)]);
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
            assert_eq!(told(&request, 16), Vec::<Vec<_>>::new(), "{request}");
        }
        let many: String =
            (0..=255).map(|n| format!("public_key={}\npersistent_keepalive_interval=5\n", digits(n))).collect();
        assert_eq!(told(&format!("set=1\n{many}\n"), 512).concat().len(), AT_MOST);
    }
}
