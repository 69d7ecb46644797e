//! ioctl(2) requests on interfaces, and sysctl(3).

use std::ffi::{CString, c_ulong, c_void};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{Domain, Socket, Type};

/// `sys/sockio.h`, `netinet6/in6_var.h`: not in libc.
pub(super) const SIOCSIFFLAGS: c_ulong = iow(b'i', 16, size_of::<libc::ifreq>());
pub(super) const SIOCGIFFLAGS: c_ulong = iowr(b'i', 17, size_of::<libc::ifreq>());
pub(super) const SIOCSIFMTU: c_ulong = iow(b'i', 52, size_of::<libc::ifreq>());
pub(super) const SIOCAIFADDR: c_ulong = iow(b'i', 26, size_of::<libc::ifaliasreq>());
pub(super) const SIOCAIFADDR_IN6: c_ulong = iow(b'i', 26, size_of::<In6AliasReq>());
/// `net/bpf.h`.
pub(super) const BIOCSSEESENT: c_ulong = iow(b'B', 119, size_of::<u32>());
/// `net/pfvar.h`: gives a token.
pub(super) const DIOCSTARTREF: c_ulong = ior(b'D', 8, size_of::<u64>());

/// `sys/ioccom.h`: direction, length of the parameter, group, number.
const fn ioc(direction: c_ulong, group: u8, number: u8, length: usize) -> c_ulong {
    direction | (length as c_ulong & 0x1fff) << 16 | (group as c_ulong) << 8 | number as c_ulong
}
const fn ior(group: u8, number: u8, length: usize) -> c_ulong {
    ioc(0x4000_0000, group, number, length)
}
const fn iow(group: u8, number: u8, length: usize) -> c_ulong {
    ioc(0x8000_0000, group, number, length)
}
const fn iowr(group: u8, number: u8, length: usize) -> c_ulong {
    ioc(0xc000_0000, group, number, length)
}

/// `struct in6_aliasreq` of `netinet6/in6_var.h`.
#[repr(C)]
pub(super) struct In6AliasReq {
    pub(super) name: [libc::c_char; libc::IFNAMSIZ],
    pub(super) address: libc::sockaddr_in6,
    pub(super) destination: libc::sockaddr_in6,
    pub(super) mask: libc::sockaddr_in6,
    pub(super) flags: libc::c_int,
    pub(super) lifetime: libc::in6_addrlifetime,
}

/// Any socket of a family, to ask the kernel about interfaces.
pub(super) fn control(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::DGRAM, None)
}

/// # Safety
/// `request` must be one that reads and writes no more than a `T`.
pub(super) unsafe fn ioctl<T>(fd: RawFd, request: c_ulong, parameter: &mut T) -> io::Result<()> {
    loop {
        // SAFETY: the caller's promise; the parameter lives through the call.
        if unsafe { libc::ioctl(fd, request, std::ptr::from_mut(parameter).cast::<c_void>()) } >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => {}
            e => return Err(e),
        }
    }
}

/// An interface's name as requests carry it; the caller has checked its length.
pub(super) fn if_name(name: &str) -> [libc::c_char; libc::IFNAMSIZ] {
    let mut field = [0; libc::IFNAMSIZ];
    for (to, from) in field.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    field
}

/// A request about an interface.
pub(super) fn ifreq(name: &str) -> libc::ifreq {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    request.ifr_name = if_name(name);
    request
}

/// Sets an interface's MTU and brings it up.
pub(super) fn bring_up(name: &str, mtu: u32) -> io::Result<()> {
    let socket = control(Domain::IPV4)?;
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_mtu = mtu as libc::c_int;
    // SAFETY: these three requests read and write one ifreq.
    unsafe { ioctl(socket.as_raw_fd(), SIOCSIFMTU, &mut request) }?;
    let mut request = ifreq(name);
    // SAFETY: as above.
    unsafe { ioctl(socket.as_raw_fd(), SIOCGIFFLAGS, &mut request) }?;
    // SAFETY: the kernel has just written the flags; they are integers.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: as above.
    unsafe { ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, &mut request) }
}

/// A setting by its name in dotted form, as bytes; `None` if the kernel has none of that name.
fn by_name(name: &str) -> io::Result<Option<Vec<u8>>> {
    let name = CString::new(name)?;
    let mut bytes = vec![0u8; 256];
    let mut length = bytes.len();
    // SAFETY: the kernel writes at most `length` bytes into `bytes`; nothing is set.
    let status = unsafe {
        libc::sysctlbyname(name.as_ptr(), bytes.as_mut_ptr().cast(), &raw mut length, std::ptr::null_mut(), 0)
    };
    if status == 0 {
        bytes.truncate(length);
        return Ok(Some(bytes));
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::NotFound => Ok(None),
        e => Err(e),
    }
}

/// A setting that is a number.
pub(super) fn number(name: &str) -> io::Result<Option<i32>> {
    by_name(name)?
        .map(|bytes| {
            <[u8; 4]>::try_from(bytes)
                .map(i32::from_ne_bytes)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no number of 32 bits"))
        })
        .transpose()
}

/// A setting that is text.
pub(super) fn text(name: &str) -> io::Result<Option<String>> {
    Ok(by_name(name)?.map(|bytes| String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()))
}

/// Writes a setting that is a number.
pub(super) fn set_number(name: &str, value: i32) -> io::Result<()> {
    let name = CString::new(name)?;
    let mut value = value;
    // SAFETY: the kernel reads four bytes of `value`; nothing is read back.
    let status = unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw mut value).cast(),
            size_of::<i32>(),
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The routing table, `NET_RT_DUMP` of sysctl(3).
pub(super) fn route_dump() -> io::Result<Vec<u8>> {
    let mut name = [libc::CTL_NET, libc::PF_ROUTE, 0, 0, libc::NET_RT_DUMP, 0];
    loop {
        let mut length = 0;
        // SAFETY: with no buffer the kernel only says how much it would write.
        let status = unsafe {
            libc::sysctl(
                name.as_mut_ptr(),
                name.len() as libc::c_uint,
                std::ptr::null_mut(),
                &raw mut length,
                std::ptr::null_mut(),
                0,
            )
        };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
        // routes may come in between
        length += length / 4 + 1024;
        let mut dump = vec![0; length];
        // SAFETY: the kernel writes at most `length` bytes into `dump`.
        let status = unsafe {
            libc::sysctl(
                name.as_mut_ptr(),
                name.len() as libc::c_uint,
                dump.as_mut_ptr().cast(),
                &raw mut length,
                std::ptr::null_mut(),
                0,
            )
        };
        if status == 0 {
            dump.truncate(length);
            return Ok(dump);
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENOMEM) => {}
            e => return Err(e),
        }
    }
}
