//! Userspace WireGuard devices, each a process of its own that answers the configuration protocol on
//! `/var/run/wireguard/NAME.sock` (<https://www.wireguard.com/xplatform/#configuration-protocol>), so that `wg` can
//! read it too.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, Zeroizing};

use super::names;
use super::process::{peer, process_id};
use crate::types::*;
use crate::{Error, Result, WireGuard};

/// Where wg(8) looks for the sockets.
const DIRECTORY: &str = "/var/run/wireguard";
/// How long the device may keep silent.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How much longer for each peer that it is told: a key exchange on a slow processor.
const PER_PEER: Duration = Duration::from_millis(5);
/// How long a whole exchange may take, but for [`PER_PEER`].
const DEADLINE: Duration = Duration::from_secs(8);
/// Longest answer taken, in bytes: some 100,000 allowed IPs.
const ANSWER: usize = 4 << 20;
/// Pause between two tries in [`wait_uapi`].
const PAUSE: Duration = Duration::from_millis(5);

/// A device's socket: by the name that the system has given it.
fn path(interface: &str) -> Result<PathBuf> {
    names::check(&format!("reach the userspace device {interface}"), interface)?;
    Ok(PathBuf::from(DIRECTORY).join(format!("{}.sock", names::real(interface))))
}

fn connect(path: &std::path::Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // the write timeout also bounds connect(2) on a full backlog; unix(7), socket(7)
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Sends a request that tells about so many peers, and reads the answer up to the empty line that ends it (or the end of
/// the stream).
fn exchange(interface: &str, request: &str, peers: usize) -> Result<Zeroizing<Vec<u8>>> {
    let path = path(interface)?;
    let operation = format!("ask the userspace device {interface}");
    let longer = PER_PEER.saturating_mul(u32::try_from(peers).unwrap_or(u32::MAX));
    let talk = || -> io::Result<Zeroizing<Vec<u8>>> {
        let mut socket = connect(&path)?;
        socket.set_read_timeout(Some(TIMEOUT + longer))?;
        socket.write_all(request.as_bytes())?;
        let started = Instant::now();
        let mut answer = Zeroizing::new(Vec::with_capacity(4096));
        let mut chunk = Zeroizing::new([0; 4096]);
        loop {
            let count = match socket.read(&mut chunk[..]) {
                Ok(count) => count,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                Err(e) => return Err(e),
            };
            grow(&mut answer, &chunk[..count]);
            if count == 0 || answer.ends_with(b"\n\n") {
                return Ok(answer);
            }
            if answer.len() > ANSWER {
                return Err(io::Error::new(ErrorKind::InvalidData, "the answer is too long"));
            }
            if started.elapsed() > DEADLINE + longer {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    };
    talk().map_err(|e| Error::system(operation, e))
}

/// Appends without leaving a copy behind when the buffer must grow: the answer may carry the private key.
fn grow(buffer: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    if buffer.len() + more.len() > buffer.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(2 * (buffer.len() + more.len())));
        larger.extend_from_slice(buffer);
        std::mem::swap(buffer, &mut larger);
    }
    buffer.extend_from_slice(more);
}

fn push_hex(text: &mut String, key: &str, bytes: &[u8; 32]) {
    text.push_str(key);
    text.push('=');
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
    text.push('\n');
}

pub(super) fn parse_hex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let mut key = Zeroizing::new([0; 32]);
    for (byte, digits) in key.iter_mut().zip(text.chunks(2)) {
        let high = char::from(digits[0]).to_digit(16)?;
        let low = char::from(digits[1]).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(key)
}

/// A whole set request, the empty line that ends it included.
fn set_request(config: &DeviceConfig) -> Zeroizing<String> {
    let peers: usize = config.peers.iter().map(|peer| 400 + 64 * peer.allowed_ips.len()).sum();
    // room for all of it, so that no copy of a key is left by a growing buffer
    let mut text = Zeroizing::new(String::with_capacity(512 + peers));
    text.push_str("set=1\n");
    if let Some(key) = &config.private_key {
        push_hex(&mut text, "private_key", &key.0);
    }
    if let Some(port) = config.listen_port {
        let _ = writeln!(text, "listen_port={port}");
    }
    if let Some(mark) = config.fwmark {
        let _ = writeln!(text, "fwmark={mark}");
    }
    if config.replace_peers {
        text.push_str("replace_peers=true\n");
    }
    for peer in &config.peers {
        push_hex(&mut text, "public_key", &peer.public_key);
        if peer.remove {
            text.push_str("remove=true\n");
            continue;
        }
        if peer.update_only {
            text.push_str("update_only=true\n");
        }
        if let Some(key) = &peer.preshared_key {
            push_hex(&mut text, "preshared_key", &key.0);
        }
        if let Some(endpoint) = peer.endpoint {
            let _ = writeln!(text, "endpoint={endpoint}");
        }
        if let Some(keepalive) = peer.keepalive {
            let _ = writeln!(text, "persistent_keepalive_interval={keepalive}");
        }
        if peer.replace_allowed_ips {
            text.push_str("replace_allowed_ips=true\n");
        }
        for ip in &peer.allowed_ips {
            let _ = writeln!(text, "allowed_ip={}/{}", ip.network(), ip.prefix());
        }
    }
    text.push('\n');
    text
}

/// Reads an answer. `operation` names the request in errors.
fn parse(operation: &str, answer: &[u8]) -> Result<DeviceState> {
    let odd = |detail: String| Error::Unexpected { operation: operation.to_owned(), detail };
    let text = std::str::from_utf8(answer).map_err(|_| odd("it is no text".to_owned()))?;
    let mut state = DeviceState { public_key: None, listen_port: 0, fwmark: 0, peers: Vec::new() };
    let mut errno = None;
    let (mut seconds, mut nanoseconds) = (0, 0);
    for line in text.lines().take_while(|line| !line.is_empty()) {
        let Some((key, value)) = line.split_once('=') else { return Err(odd("a line without `=`".to_owned())) };
        // the value of an unknown or a secret key must not get into an error
        let bad = || odd(format!("cannot read the value of {key}"));
        let number = || value.parse::<u64>().map_err(|_| bad());
        match (key, state.peers.last_mut()) {
            ("private_key", _) => {
                let mut secret = parse_hex(value).ok_or_else(bad)?;
                if *secret != [0; 32] {
                    let private = StaticSecret::from(*secret);
                    state.public_key = Some(x25519_dalek::PublicKey::from(&private).to_bytes());
                    secret.zeroize();
                }
            }
            ("listen_port", _) => state.listen_port = value.parse().map_err(|_| bad())?,
            ("fwmark", _) => state.fwmark = value.parse().map_err(|_| bad())?,
            // a device that runs on a broken request says the same in either sign
            ("errno", _) => errno = Some(value.parse::<i32>().map_err(|_| bad())?),
            ("public_key", _) => {
                (seconds, nanoseconds) = (0, 0);
                state.peers.push(PeerState {
                    public_key: *parse_hex(value).ok_or_else(bad)?,
                    endpoint: None,
                    keepalive: 0,
                    last_handshake: None,
                    rx_bytes: 0,
                    tx_bytes: 0,
                    allowed_ips: Vec::new(),
                });
            }
            ("endpoint", Some(peer)) => peer.endpoint = Some(value.parse().map_err(|_| bad())?),
            ("persistent_keepalive_interval", Some(peer)) => peer.keepalive = value.parse().map_err(|_| bad())?,
            ("last_handshake_time_sec" | "last_handshake_time_nsec", Some(peer)) => {
                if key.ends_with("_nsec") {
                    nanoseconds = value.parse().map_err(|_| bad())?;
                } else {
                    seconds = number()?;
                }
                let since = Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds);
                peer.last_handshake = (!since.is_zero()).then_some(since);
            }
            ("rx_bytes", Some(peer)) => peer.rx_bytes = number()?,
            ("tx_bytes", Some(peer)) => peer.tx_bytes = number()?,
            ("allowed_ip", Some(peer)) => peer.allowed_ips.push(value.parse().map_err(|_| bad())?),
            // keys of later protocol versions
            _ => {}
        }
    }
    match errno {
        Some(0) => Ok(state),
        // wireguard-go writes the error number negated
        Some(number) => Err(Error::system(operation, io::Error::from_raw_os_error(number.saturating_abs()))),
        // gotatun closes the connection on a request that it cannot read
        None => Err(odd("the device closed the connection without an answer".to_owned())),
    }
}

/// Userspace WireGuard devices of this machine.
///
/// What the bundled device (gotatun 0.10) does differently from wireguard-go, seen in its source and in tests: another
/// listen port or fwmark on a device that has one already makes it bind anew, which now and then is refused with
/// `EINVAL` or ends its process, so give key, port and fwmark together, once, and start another device to change them;
/// any change to a peer that is there starts that peer's session anew; a peer before the private key panics it.
#[derive(Debug, Default)]
pub struct UapiWireGuard {}

impl UapiWireGuard {
    /// Opens nothing: each exchange has a connection of its own.
    pub fn new() -> Self {
        UapiWireGuard {}
    }
}

impl WireGuard for UapiWireGuard {
    fn configure(&mut self, interface: &str, config: &DeviceConfig) -> Result<()> {
        let answer = exchange(interface, &set_request(config), config.peers.len())?;
        parse(&format!("configure the userspace device {interface}"), &answer).map(|_| ())
    }

    fn state(&mut self, interface: &str) -> Result<DeviceState> {
        let answer = exchange(interface, "get=1\n\n", 0)?;
        parse(&format!("read the userspace device {interface}"), &answer)
    }
}

/// The process that listens on an interface's UAPI socket. `None` if nothing listens, or the process that called
/// listen(2) is gone (a device that daemonised after it: start devices in the foreground).
pub fn uapi_owner(interface: &str) -> Option<ProcessId> {
    process_id(peer(&connect(&path(interface).ok()?).ok()?)?)
}

/// Removes the UAPI socket that a dead device left behind. `true`: there is none any more; `false`: something listens
/// on it, and it stays.
pub fn remove_uapi_socket(interface: &str) -> Result<bool> {
    let path = path(interface)?;
    let operation = format!("remove {}", path.display());
    match std::fs::symlink_metadata(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return names::forget(interface).map(|()| true),
        Err(e) => return Err(Error::system(operation, e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::Unexpected { operation, detail: "it is no socket".to_owned() });
        }
        Ok(_) => {}
    }
    match connect(&path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::system(operation, e)),
            _ => names::forget(interface).map(|()| true),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => names::forget(interface).map(|()| true),
        // connected, or too busy to take us: either way it has an owner
        _ => Ok(false),
    }
}

/// Waits until an interface's userspace device answers a request; `ErrorKind::TimedOut` when it doesn't in time.
pub fn wait_uapi(interface: &str, timeout: Duration) -> Result<()> {
    let started = Instant::now();
    loop {
        match UapiWireGuard::new().state(interface) {
            Ok(_) => return Ok(()),
            Err(e) if started.elapsed() >= timeout => {
                tracing::debug!(iface = interface, error = %e, "no answer from the userspace device");
                let why = io::Error::new(ErrorKind::TimedOut, format!("no answer within {timeout:?}"));
                return Err(Error::system(format!("reach the userspace device {interface}"), why));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_request_is_the_text_of_the_protocol() {
        let config = DeviceConfig {
            private_key: Some(Secret([0xab; 32])),
            listen_port: Some(51820),
            fwmark: Some(0x50),
            replace_peers: true,
            peers: vec![
                PeerConfig {
                    public_key: [1; 32],
                    update_only: true,
                    preshared_key: Some(Secret([0x0f; 32])),
                    endpoint: Some("[2001:db8::1]:1".parse().unwrap()),
                    keepalive: Some(25),
                    replace_allowed_ips: true,
                    allowed_ips: vec!["10.1.2.3/24".parse().unwrap(), "::/0".parse().unwrap()],
                    ..Default::default()
                },
                PeerConfig { public_key: [2; 32], remove: true, keepalive: Some(1), ..Default::default() },
            ],
        };
        let expected = format!(
            "set=1\nprivate_key={}\nlisten_port=51820\nfwmark=80\nreplace_peers=true\n\
             public_key={}\nupdate_only=true\npreshared_key={}\nendpoint=[2001:db8::1]:1\n\
             persistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=10.1.2.0/24\nallowed_ip=::/0\n\
             public_key={}\nremove=true\n\n",
            "ab".repeat(32),
            "01".repeat(32),
            "0f".repeat(32),
            "02".repeat(32),
        );
        assert_eq!(*set_request(&config), expected);
    }

    #[test]
    fn a_device_that_is_told_of_many_peers_may_think_longer() {
        let interface = "pvslow0";
        let path = path(interface).unwrap();
        let _ = std::fs::create_dir_all(DIRECTORY);
        let _ = std::fs::remove_file(&path);
        let Ok(listener) = std::os::unix::net::UnixListener::bind(&path) else {
            return eprintln!("SKIP: root, for {DIRECTORY}");
        };
        let device = std::thread::spawn(move || {
            let (mut asker, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\n\n") {
                let mut some = [0; 4096];
                let count = asker.read(&mut some).unwrap();
                assert_ne!(count, 0);
                asked.extend_from_slice(&some[..count]);
            }
            std::thread::sleep(TIMEOUT + Duration::from_millis(300));
            asker.write_all(b"errno=0\n\n").unwrap();
        });
        let peers = vec![PeerConfig { remove: true, ..Default::default() }; 2000];
        let told = UapiWireGuard::new().configure(interface, &DeviceConfig { peers, ..Default::default() });
        let _ = std::fs::remove_file(&path);
        told.unwrap();
        device.join().unwrap();
    }

    #[test]
    fn answers_of_both_kinds_of_device_are_read() {
        let answer = format!(
            "private_key={}\nlisten_port=7\nfwmark=80\npublic_key={}\npreshared_key=\nendpoint=192.0.2.1:5\n\
             last_handshake_time_sec=3\nlast_handshake_time_nsec=4\ntx_bytes=5\nrx_bytes=6\n\
             persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nprotocol_version=1\n\
             public_key={}\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\nerrno=0\n\n",
            "11".repeat(32),
            "03".repeat(32),
            "04".repeat(32),
        );
        let state = parse("read", answer.as_bytes()).unwrap();
        // what `wg pubkey` of wireguard-tools 1.0 makes of it
        let public = "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13";
        assert_eq!(state.public_key, parse_hex(public).map(|key| *key));
        assert_eq!((state.listen_port, state.fwmark, state.peers.len()), (7, 80, 2));
        let peer = &state.peers[0];
        assert_eq!(peer.last_handshake, Some(Duration::new(3, 4)));
        assert_eq!((peer.tx_bytes, peer.rx_bytes, peer.keepalive), (5, 6, 25));
        assert_eq!(peer.allowed_ips, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(state.peers[1].last_handshake, None);
    }

    #[test]
    fn refusals_and_broken_answers_are_errors_without_secrets() {
        assert_eq!(parse("set", b"errno=-98\n\n").unwrap_err().errno(), Some(libc::EADDRINUSE));
        assert_eq!(parse("set", b"errno=22\n\n").unwrap_err().errno(), Some(libc::EINVAL));
        for answer in ["", "listen_port=1\n", "nonsense\n\n", "private_key=beef\nerrno=0\n\n", "errno=x\n\n"] {
            let error = parse("set", answer.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::Unexpected { .. }), "{answer:?}: {error}");
            assert!(!error.to_string().contains("beef"));
        }
        assert!(parse("set", b"\xff\xff=\n\n").is_err());
    }
}
