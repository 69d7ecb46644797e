//! Where a userspace WireGuard device is spoken to: a socket where wg(8) looks for it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

/// Where wg(8) looks for UAPI sockets.
const SOCKETS: &str = "/var/run/wireguard";
/// Bytes of an answer that are sent at once.
const AT_ONCE: usize = 16 << 10;

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

    /// The next connection, blocking. Can be dropped and called again at any time.
    pub async fn accept(&mut self) -> io::Result<UapiStream> {
        let (stream, _) = self.0.accept().await?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(UapiStream::new(stream))
    }
}

/// A connection to the device. gotatun 0.10.2 writes its answers in pieces of some bytes; they are sent when it reads on,
/// or is done.
#[derive(Debug)]
pub struct UapiStream {
    stream: UnixStream,
    /// May hold keys. Never more than its first capacity, so that no copy is left.
    unsent: Mutex<Zeroizing<Vec<u8>>>,
}

impl UapiStream {
    fn new(stream: UnixStream) -> UapiStream {
        UapiStream { stream, unsent: Mutex::new(Zeroizing::new(Vec::with_capacity(AT_ONCE))) }
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
        self.flush()?;
        (&self.stream).read(buffer)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_pieces_is_sent_as_one() {
        let (device, mut asker) = UnixStream::pair().unwrap();
        asker.set_nonblocking(true).unwrap();
        let device = UapiStream::new(device);
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
        let (device, mut asker) = UnixStream::pair().unwrap();
        let device = UapiStream::new(device);
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
}
