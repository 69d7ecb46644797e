//! Where a userspace WireGuard device is spoken to: a socket where wg(8) looks for it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Where wg(8) looks for UAPI sockets.
const SOCKETS: &str = "/var/run/wireguard";

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
    pub async fn accept(&mut self) -> io::Result<UnixStream> {
        let (stream, _) = self.0.accept().await?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}
