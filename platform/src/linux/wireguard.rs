//! The kernel's own WireGuard over generic netlink (`linux/wireguard.h`), and the choice of a back end.

use std::time::Duration;

use ipnetwork::IpNetwork;
use netlink_bindings::{nlctrl, wireguard as wg};
use netlink_socket2::{NetlinkSocket, ReplyError};
use zeroize::Zeroizing;

use super::host::{check_name, errno_of, refused};
use super::uapi::UapiWireGuard;
use crate::types::*;
use crate::{Error, Result, WireGuard};

/// Payload bytes of one request. A refusal echoes the whole request, which must fit the 8 KiB that netlink-socket2
/// reads at once.
const MESSAGE: usize = 7000;
/// Upper bound of a peer's attributes without its allowed IPs: key, preshared key, flags, endpoint, keepalive, nests.
const PEER: usize = 140;
/// Upper bound of one allowed IP's attributes.
const ALLOWED_IP: usize = 48;
/// Allowed IPs in one nested peer.
const ALLOWED_IPS: usize = 100;
/// Room for the device's own attributes.
const DEVICE: usize = 120;

type Reply<T> = std::result::Result<T, ReplyError>;

/// Whether this kernel has WireGuard. Asking for the generic netlink family makes the kernel load the module.
pub fn kernel_wireguard() -> Result<bool> {
    match family(&mut NetlinkSocket::new()) {
        Ok(()) => Ok(true),
        Err(e) if errno_of(&e) == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(refused("ask the kernel for WireGuard", e)),
    }
}

/// Whether a TUN device can be made: `/dev/net/tun` opens. Makes none.
pub fn tun_available() -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok()
}

/// The WireGuard of a back end.
pub fn wireguard(backend: &Backend) -> Result<Box<dyn WireGuard>> {
    Ok(match backend {
        Backend::Kernel => Box::new(KernelWireGuard::new()),
        Backend::Userspace => Box::new(UapiWireGuard::new()),
    })
}

/// Looks the family "wireguard" up.
fn family(sock: &mut NetlinkSocket) -> Reply<()> {
    let mut request = nlctrl::Request::new().op_getfamily_do();
    request.encode().push_family_name(wg::PROTONAME_CSTR);
    let mut replies = sock.request(&request)?;
    while let Some(reply) = replies.recv() {
        reply?;
    }
    Ok(())
}

/// Kernel WireGuard devices of the namespace that the thread of the first request was in.
pub struct KernelWireGuard {
    sock: NetlinkSocket,
}

impl Default for KernelWireGuard {
    fn default() -> Self {
        Self::new()
    }
}

/// A peer, or a part of one that has too many allowed IPs for one message.
struct Part<'a> {
    peer: &'a PeerConfig,
    allowed_ips: &'a [IpNetwork],
    first: bool,
}

impl Part<'_> {
    fn size(&self) -> usize {
        PEER + ALLOWED_IP * self.allowed_ips.len()
    }
}

fn parts(config: &DeviceConfig) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    for peer in &config.peers {
        let (head, mut rest) = peer.allowed_ips.split_at(peer.allowed_ips.len().min(ALLOWED_IPS));
        parts.push(Part { peer, allowed_ips: if peer.remove { &[] } else { head }, first: true });
        while !rest.is_empty() && !peer.remove {
            let (head, tail) = rest.split_at(rest.len().min(ALLOWED_IPS));
            parts.push(Part { peer, allowed_ips: head, first: false });
            rest = tail;
        }
    }
    parts
}

/// How many of `parts` fit a message that already takes `used` bytes; at least one.
fn fitting(parts: &[Part<'_>], mut used: usize) -> usize {
    let mut count = 0;
    for part in parts {
        used += part.size();
        if used > MESSAGE && count > 0 {
            break;
        }
        count += 1;
    }
    count
}

fn encode_part<P: netlink_bindings::traits::Pusher>(entry: wg::PushWgpeer<P>, part: &Part<'_>) -> P {
    let peer = part.peer;
    let mut flags = 0;
    if peer.remove {
        flags |= wg::WgpeerFlags::RemoveMe as u32;
    } else {
        // later parts belong to a peer that the first one made, unless that one was told not to
        if peer.update_only || !part.first {
            flags |= wg::WgpeerFlags::UpdateOnly as u32;
        }
        if peer.replace_allowed_ips && part.first {
            flags |= wg::WgpeerFlags::ReplaceAllowedips as u32;
        }
    }
    let mut entry = entry.push_public_key(&peer.public_key).push_flags(flags);
    if peer.remove {
        return entry.end_nested();
    }
    if part.first {
        if let Some(key) = &peer.preshared_key {
            entry = entry.push_preshared_key(&key.0);
        }
        if let Some(endpoint) = peer.endpoint {
            entry = entry.push_endpoint(endpoint);
        }
        if let Some(keepalive) = peer.keepalive {
            entry = entry.push_persistent_keepalive_interval(keepalive);
        }
    }
    if !part.allowed_ips.is_empty() {
        let mut list = entry.array_allowedips();
        for ip in part.allowed_ips {
            let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            list = list
                .entry_nested()
                .push_family(family as u16)
                .push_ipaddr(ip.network())
                .push_cidr_mask(ip.prefix())
                .end_nested();
        }
        entry = list.end_array();
    }
    entry.end_nested()
}

impl KernelWireGuard {
    /// Opens nothing yet.
    pub fn new() -> Self {
        KernelWireGuard { sock: NetlinkSocket::new() }
    }

    fn send(&mut self, name: &[u8], device: Option<&DeviceConfig>, parts: &[Part<'_>]) -> Reply<()> {
        // with room for the whole message, so that no copy of a key is left by a growing buffer
        let mut buffer = Zeroizing::new(Vec::with_capacity(2 * MESSAGE));
        let mut request = wg::Request::new_with_buf(&mut buffer).op_set_device_do();
        let mut attrs = request.encode().push_ifname_bytes(name);
        if let Some(config) = device {
            if let Some(key) = &config.private_key {
                attrs = attrs.push_private_key(&key.0);
            }
            if config.replace_peers {
                attrs = attrs.push_flags(wg::WgdeviceFlags::ReplacePeers as u32);
            }
            if let Some(port) = config.listen_port {
                attrs = attrs.push_listen_port(port);
            }
            if let Some(mark) = config.fwmark {
                attrs = attrs.push_fwmark(mark);
            }
        }
        if !parts.is_empty() {
            let mut list = attrs.array_peers();
            for part in parts {
                list = encode_part(list.entry_nested(), part);
            }
            list.end_array().end_nested();
        } else {
            attrs.end_nested();
        }
        self.sock.request(&request)?.recv_ack()
    }

    /// The library's receive buffer keeps the last answer, and an answer or a refusal may carry the private key near its
    /// start: have it overwritten by an answer without secrets.
    fn wipe_answers(&mut self) {
        let _ = family(&mut self.sock);
    }

    fn read(&mut self, name: &[u8]) -> Reply<DeviceState> {
        let mut request = wg::Request::new().op_get_device_dump();
        request.encode().push_ifname_bytes(name);
        let mut replies = self.sock.request(&request)?;
        let mut state = DeviceState { public_key: None, listen_port: 0, fwmark: 0, peers: Vec::new() };
        while let Some(reply) = replies.recv() {
            for attr in reply?.flatten() {
                match attr {
                    wg::Wgdevice::PublicKey(key) => state.public_key = key.try_into().ok(),
                    wg::Wgdevice::ListenPort(port) => state.listen_port = port,
                    wg::Wgdevice::Fwmark(mark) => state.fwmark = mark,
                    wg::Wgdevice::Peers(peers) => {
                        for peer in peers.flatten() {
                            read_peer(&mut state.peers, peer);
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(state)
    }
}

/// Adds a peer, or goes on with the last one: a peer whose allowed IPs don't fit a message is repeated in the next with
/// its key and the rest of them (`linux/wireguard.h`, WG_CMD_GET_DEVICE).
fn read_peer(peers: &mut Vec<PeerState>, attrs: wg::IterableWgpeer<'_>) {
    let Some(public_key) = attrs.get_public_key().ok().and_then(|key| key.try_into().ok()) else { return };
    if peers.last().is_none_or(|last| last.public_key != public_key) {
        peers.push(PeerState {
            public_key,
            endpoint: None,
            keepalive: 0,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            allowed_ips: Vec::new(),
        });
    }
    let Some(peer) = peers.last_mut() else { return };
    for attr in attrs.flatten() {
        match attr {
            wg::Wgpeer::Endpoint(endpoint) => peer.endpoint = Some(endpoint),
            wg::Wgpeer::PersistentKeepaliveInterval(seconds) => peer.keepalive = seconds,
            wg::Wgpeer::LastHandshakeTime(time) => {
                let since = Duration::new(time.sec, time.nsec as u32);
                peer.last_handshake = (!since.is_zero()).then_some(since);
            }
            wg::Wgpeer::RxBytes(bytes) => peer.rx_bytes = bytes,
            wg::Wgpeer::TxBytes(bytes) => peer.tx_bytes = bytes,
            wg::Wgpeer::Allowedips(list) => {
                for ip in list.flatten() {
                    let network = ip.get_ipaddr().ok().zip(ip.get_cidr_mask().ok());
                    peer.allowed_ips.extend(network.and_then(|(ip, prefix)| IpNetwork::new(ip, prefix).ok()));
                }
            }
            _ => {}
        }
    }
}

impl WireGuard for KernelWireGuard {
    fn configure(&mut self, interface: &str, config: &DeviceConfig) -> Result<()> {
        let operation = format!("configure WireGuard on {interface}");
        let name = check_name(&operation, interface)?;
        let parts = parts(config);
        let (head, mut rest) = parts.split_at(fitting(&parts, DEVICE));
        let mut outcome = self.send(name, Some(config), head);
        while outcome.is_ok() && !rest.is_empty() {
            let (head, tail) = rest.split_at(fitting(rest, DEVICE));
            outcome = self.send(name, None, head);
            rest = tail;
        }
        // the error holds on to the buffer: take what is needed before wiping
        let outcome = outcome.map_err(|e| refused(operation, e));
        self.wipe_answers();
        outcome
    }

    fn state(&mut self, interface: &str) -> Result<DeviceState> {
        let operation = format!("read WireGuard device {interface}");
        let name = check_name(&operation, interface)?;
        let outcome = self.read(name).map_err(|e| refused(&operation, e));
        self.wipe_answers();
        match outcome {
            Err(Error::System { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Err(Error::Unexpected { operation, detail: "it is no WireGuard device".to_owned() })
            }
            other => other,
        }
    }
}
