//! Copies of incoming UDP packets by `/dev/bpf`, bpf(4): one device an interface, behind a filter. Interfaces come and
//! go; a route socket beside the devices tells, and then they are looked at anew. Our own tunnels are left out: what
//! comes by them is inner traffic. pf's `in` rules do not keep a packet from being seen.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use socket2::Socket;

use super::{queue, sys, watch};
use crate::bpf::{Instruction, Payload};
use crate::datagram;
use crate::macos_formats::capture::{LinkType, frames};
use crate::{Host as _, Result};

/// As many `/dev/bpf` are tried; the kernel makes them as they are asked for (`debug.bpf_maxdevices`).
const DEVICES: u32 = 256;
/// Each device has two of these, in bytes.
const BUFFER: u32 = 32 << 10;
/// Packets kept for the caller.
const WAITING: usize = 256;

/// `struct bpf_program` of `net/bpf.h`.
#[repr(C)]
struct BpfProgram {
    length: libc::c_uint,
    instructions: *const Instruction,
}

/// `struct bpf_stat`.
#[repr(C)]
#[derive(Default)]
struct BpfStat {
    received: libc::c_uint,
    dropped: libc::c_uint,
}

const _: () = assert!(size_of::<BpfProgram>() == 16 && size_of::<BpfStat>() == 8);

/// One interface's.
#[derive(Debug)]
struct Device {
    file: File,
    /// The system's name of the interface.
    interface: String,
    index: u32,
    link: LinkType,
}

/// What changes while a tap is read.
#[derive(Debug)]
struct State {
    devices: Vec<Device>,
    /// Read, and not handed out yet.
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    buffer: Vec<u8>,
    /// Counted by devices that are closed.
    dropped: u64,
}

/// Copies of packets for one port.
pub(super) struct Tap {
    queue: OwnedFd,
    routes: Socket,
    port: u16,
    wanted: &'static Payload,
    state: Mutex<State>,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("port", &self.port).finish_non_exhaustive()
    }
}

fn open_device() -> io::Result<File> {
    let mut last = io::ErrorKind::NotFound.into();
    for number in 0..DEVICES {
        let path = format!("/dev/bpf{number}");
        match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path) {
            Ok(file) => return Ok(file),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

/// `None` for an interface whose packets are not IP packets behind a header that we know.
fn attach(interface: &str, index: u32, port: u16, wanted: &Payload) -> io::Result<Option<Device>> {
    let file = open_device()?;
    let fd = file.as_raw_fd();
    let mut length = BUFFER;
    let mut request = sys::ifreq(interface);
    let (mut seen, mut at_once, mut number) = (0u32, 1u32, 0u32);
    // SAFETY: each request reads and writes what `net/bpf.h` says: an ifreq for BIOCSETIF, else an unsigned int.
    unsafe {
        sys::ioctl(fd, libc::BIOCSBLEN, &mut length)?;
        sys::ioctl(fd, libc::BIOCSETIF, &mut request)?;
        sys::ioctl(fd, libc::BIOCGDLT, &mut number)?;
        sys::ioctl(fd, sys::BIOCSSEESENT, &mut seen)?;
        sys::ioctl(fd, libc::BIOCIMMEDIATE, &mut at_once)?;
    }
    let Some(link) = LinkType::from_number(number) else { return Ok(None) };
    let program = link.filter(port, wanted);
    let mut program = BpfProgram { length: program.len() as libc::c_uint, instructions: program.as_slice().as_ptr() };
    // last: it also throws away what came before it
    // SAFETY: the request reads a bpf_program whose instructions live through the call.
    unsafe { sys::ioctl(fd, libc::BIOCSETF, &mut program)? };
    Ok(Some(Device { file, interface: interface.to_owned(), index, link }))
}

impl Device {
    fn dropped(&self) -> u64 {
        let mut statistics = BpfStat::default();
        // SAFETY: the request writes one bpf_stat.
        match unsafe { sys::ioctl(self.file.as_raw_fd(), libc::BIOCGSTATS, &mut statistics) } {
            Ok(()) => u64::from(statistics.dropped),
            Err(_) => 0,
        }
    }
}

impl Tap {
    /// Opens it on every interface that is up. Needs root.
    pub(super) fn open(port: u16, wanted: &'static Payload) -> io::Result<Self> {
        let queue = queue::new()?;
        let routes = watch::route_socket()?;
        queue::readable(&queue, routes.as_raw_fd())?;
        let state =
            State { devices: Vec::new(), waiting: VecDeque::new(), buffer: vec![0; BUFFER as usize], dropped: 0 };
        let tap = Tap { queue, routes, port, wanted, state: Mutex::new(state) };
        tap.look_at_interfaces(&mut tap.lock())?;
        Ok(tap)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Attaches to those that have come, lets those that have gone go.
    fn look_at_interfaces(&self, state: &mut State) -> io::Result<()> {
        let links = super::host().and_then(|mut host| host.links()).map_err(io::Error::other)?;
        let ups: Vec<(String, u32)> = links
            .into_iter()
            .filter(|link| link.up && link.alias.is_none())
            .map(|link| (link.name, link.index))
            .collect();
        let State { devices, dropped, .. } = state;
        devices.retain(|device| {
            let there = ups.iter().any(|(name, index)| *name == device.interface && *index == device.index);
            if !there {
                *dropped += device.dropped();
            }
            there
        });
        let mut refused = None;
        for (interface, index) in ups {
            if devices.iter().any(|device| device.interface == interface) {
                continue;
            }
            match attach(&interface, index, self.port, self.wanted) {
                Ok(Some(device)) => {
                    queue::readable(&self.queue, device.file.as_raw_fd())?;
                    devices.push(device);
                }
                Ok(None) => {}
                // it has gone already, or is of a kind that nobody can look at
                Err(e) => {
                    tracing::debug!(iface = interface, error = %e, "no packets are copied from this interface");
                    refused = Some(e);
                }
            }
        }
        match refused {
            Some(error) if devices.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads what devices have, until nothing is ready or enough waits.
    fn fill(&self, state: &mut State) -> io::Result<()> {
        while state.waiting.len() < WAITING {
            let ready = queue::ready(&self.queue)?;
            if ready.is_empty() {
                return Ok(());
            }
            for fd in ready {
                if fd == self.routes.as_raw_fd() as usize {
                    if watch::drain(&self.routes) {
                        self.look_at_interfaces(state)?;
                    }
                } else {
                    state.read(fd as RawFd);
                }
            }
        }
        Ok(())
    }

    /// The next copy: where it came from, and its UDP payload inside `buf`. `None`: nothing waits.
    pub(super) fn recv<'a>(&self, buf: &'a mut [u8]) -> io::Result<Option<(SocketAddr, &'a [u8])>> {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            self.fill(&mut state)?;
        }
        let Some((source, payload)) = state.waiting.pop_front() else { return Ok(None) };
        let length = payload.len().min(buf.len());
        buf[..length].copy_from_slice(&payload[..length]);
        Ok(Some((source, &buf[..length])))
    }

    /// How many copies the kernel had no room for.
    pub(super) fn dropped(&self) -> u64 {
        let state = self.lock();
        state.dropped + state.devices.iter().map(Device::dropped).sum::<u64>()
    }
}

impl State {
    /// Reads one device; one that fails has lost its interface, and is let go.
    fn read(&mut self, fd: RawFd) {
        let Some(at) = self.devices.iter().position(|device| device.file.as_raw_fd() == fd) else { return };
        let device = &self.devices[at];
        match (&device.file).read(&mut self.buffer) {
            Ok(length) => {
                for frame in frames(&self.buffer[..length]) {
                    if let Some((family, packet)) = device.link.packet(frame)
                        && let Some((source, payload)) = datagram::parse(family, packet, device.index)
                    {
                        self.waiting.push_back((source, packet[payload].to_vec()));
                    }
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => {
                tracing::debug!(iface = device.interface, error = %e, "no more packets from this interface");
                self.dropped += device.dropped();
                self.devices.remove(at);
            }
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.queue.as_raw_fd()
    }
}

/// The interface that has an address, by index.
pub(super) fn interface_of(address: std::net::IpAddr) -> Result<Option<u32>> {
    let addresses = super::host()?.addresses()?;
    Ok(addresses.into_iter().find(|found| found.address.ip() == address).map(|found| found.ifindex))
}
