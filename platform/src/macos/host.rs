//! [`Host`] over ioctls, routing messages and sysctl(3); pf by pfctl(8), DNS by scutil(8).
//!
//! macOS has no policy rules and no fwmarks. A route look-up with a mark means: beside our tunnels, as WireGuard's outer
//! packets go. It is answered from the routing table without our own routes; the source address is what the kernel would
//! choose for a socket bound to that interface.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use ipnetwork::IpNetwork;
use socket2::{Domain, Protocol, Socket, Type};

use super::{dns, names, pf, process, sys};
use crate::firewall::Firewall;
use crate::macos_formats::route::{self, Entry, Request};
use crate::nft as model;
use crate::nft::foreign::{Place, SeenChain};
use crate::types::*;
use crate::{Error, Host, OUR_ALIAS, OUR_PROTOCOL, Result};

/// There is one table; it has Linux's number for its main one.
const TABLE: u32 = 254;
/// `IN6_IFF_NODAD` of `netinet6/in6_var.h`: no duplicate address detection.
const IN6_IFF_NODAD: libc::c_int = 0x20;
/// `ND6_INFINITE_LIFETIME` of `netinet6/nd6.h`.
const FOREVER: u32 = u32::MAX;
/// What stands for nft, which macOS has not.
const PF: &str = "pf is used instead";

/// The network stack.
#[derive(Debug)]
pub struct SystemHost {
    seq: u32,
}

/// Opens the network stack; changes nothing.
pub fn host() -> Result<SystemHost> {
    Ok(SystemHost { seq: 0 })
}

/// Sets `IP_BOUND_IF` or `IPV6_BOUND_IF`: the socket uses that interface's routes, whatever the others say.
pub(super) fn bind_to_interface(socket: &impl AsRawFd, family: Family, index: u32) -> io::Result<()> {
    let (level, option) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_BOUND_IF),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_BOUND_IF),
    };
    let index = index as libc::c_int;
    // SAFETY: the option takes an int, which lives through the call.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const index).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The source address that a datagram to `to` would get by an interface. Nothing is sent.
fn source_by(index: u32, to: IpAddr) -> io::Result<IpAddr> {
    let unspecified = Family::of(&to).default_prefix().ip();
    let socket = UdpSocket::bind(SocketAddr::new(unspecified, 0))?;
    bind_to_interface(&socket, Family::of(&to), index)?;
    // RFC 863, discard
    socket.connect(SocketAddr::new(to, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// One entry of getifaddrs(3).
struct Found {
    name: String,
    flags: u32,
    what: What,
}

enum What {
    Link { index: u32, mtu: u32 },
    Address(IpNetwork),
}

/// Every interface and address, by the system's names.
fn interfaces() -> io::Result<Vec<Found>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs writes one pointer, to a list that freeifaddrs below gives back.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = first;
    while !next.is_null() {
        // SAFETY: the list is valid until it is freed, and nobody writes to it.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: names are C strings, and live as long as the list.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
        // SAFETY: an address is a sockaddr of the length and family that it names itself.
        let what = unsafe { read_entry(entry) };
        found.extend(what.map(|what| Found { name, flags: entry.ifa_flags, what }));
    }
    // SAFETY: the list that getifaddrs made; nothing of it is used any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// # Safety
/// The pointers of `entry` must be those of a getifaddrs(3) list that is still there.
unsafe fn read_entry(entry: &libc::ifaddrs) -> Option<What> {
    // SAFETY: the caller's promise; families say which structure it is, and masks are as long as addresses or shorter,
    // in memory that the list owns.
    unsafe {
        match libc::c_int::from((*entry.ifa_addr).sa_family) {
            libc::AF_LINK => {
                let link = entry.ifa_addr.cast::<libc::sockaddr_dl>().read_unaligned();
                let mtu = match entry.ifa_data.is_null() {
                    true => 0,
                    false => entry.ifa_data.cast::<libc::if_data>().read_unaligned().ifi_mtu,
                };
                Some(What::Link { index: u32::from(link.sdl_index), mtu })
            }
            libc::AF_INET => {
                let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                let mask = match entry.ifa_netmask.is_null() {
                    true => u32::MAX,
                    false => entry.ifa_netmask.cast::<libc::sockaddr_in>().read_unaligned().sin_addr.s_addr,
                };
                let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
                let prefix = u32::from_be_bytes(mask.to_ne_bytes()).leading_ones() as u8;
                IpNetwork::new(ip.into(), prefix).ok().map(What::Address)
            }
            libc::AF_INET6 => {
                let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                let mask = match entry.ifa_netmask.is_null() {
                    true => [0xff; 16],
                    false => entry.ifa_netmask.cast::<libc::sockaddr_in6>().read_unaligned().sin6_addr.s6_addr,
                };
                let mut ip = address.sin6_addr.s6_addr;
                if Ipv6Addr::from(ip).is_unicast_link_local() {
                    // older systems leave the interface inside
                    (ip[2], ip[3]) = (0, 0);
                }
                let prefix = u128::from_be_bytes(mask).leading_ones() as u8;
                IpNetwork::new(Ipv6Addr::from(ip).into(), prefix).ok().map(What::Address)
            }
            _ => None,
        }
    }
}

fn sockaddr_in(address: Ipv4Addr) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_len: size_of::<libc::sockaddr_in>() as u8,
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    }
}

fn sockaddr_in6(address: Ipv6Addr) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_len: size_of::<libc::sockaddr_in6>() as u8,
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: address.octets() },
        sin6_scope_id: 0,
    }
}

/// `sockaddr` and `sockaddr_in` have the same size and alignment or less.
fn as_sockaddr(address: libc::sockaddr_in) -> libc::sockaddr {
    // SAFETY: both are plain bytes of the same length (16, held by `asserts` and libc).
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

/// Adds an address; ifconfig(8) `alias`, its other end being itself.
fn new_address(real: &str, address: IpNetwork) -> io::Result<()> {
    match (address.ip(), address.mask()) {
        (IpAddr::V4(ip), IpAddr::V4(mask)) => {
            let socket = sys::control(Domain::IPV4)?;
            // SAFETY: all zeros is a valid ifaliasreq.
            let mut request: libc::ifaliasreq = unsafe { zeroed() };
            request.ifra_name = sys::if_name(real);
            request.ifra_addr = as_sockaddr(sockaddr_in(ip));
            request.ifra_broadaddr = as_sockaddr(sockaddr_in(ip));
            request.ifra_mask = as_sockaddr(sockaddr_in(mask));
            // SAFETY: the request reads one ifaliasreq.
            unsafe { sys::ioctl(socket.as_raw_fd(), sys::SIOCAIFADDR, &mut request) }
        }
        (IpAddr::V6(ip), IpAddr::V6(mask)) => {
            let socket = sys::control(Domain::IPV6)?;
            // SAFETY: all zeros is a valid in6_aliasreq: no destination.
            let mut request: sys::In6AliasReq = unsafe { zeroed() };
            request.name = sys::if_name(real);
            request.address = sockaddr_in6(ip);
            request.mask = sockaddr_in6(mask);
            request.flags = IN6_IFF_NODAD;
            request.lifetime.ia6t_vltime = FOREVER;
            request.lifetime.ia6t_pltime = FOREVER;
            // SAFETY: the request reads one in6_aliasreq.
            unsafe { sys::ioctl(socket.as_raw_fd(), sys::SIOCAIFADDR_IN6, &mut request) }
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// A route in the words of route(8).
fn describe(route: &Route) -> String {
    let gateway = route.gateway.map_or(String::new(), |gateway| format!(" via {gateway}"));
    let oif = route.oif.as_deref().map_or(String::new(), |oif| format!(" by {oif}"));
    format!("{}{gateway}{oif}", route.destination)
}

fn no_nft<T>(what: &'static str) -> Result<T> {
    Err(Error::Unsupported { what, instead: PF })
}

impl SystemHost {
    fn entries(&self) -> Result<Vec<Entry>> {
        sys::route_dump().map(|dump| route::entries(&dump)).map_err(|e| Error::system("list routes", e))
    }

    /// Names by index, ours where they are ours.
    fn names(&mut self) -> Result<HashMap<u32, String>> {
        Ok(self.links()?.into_iter().map(|link| (link.index, link.name)).collect())
    }

    fn index_of(&self, operation: &str, name: &str) -> Result<u32> {
        names::check(operation, name)?;
        names::index(&names::real(name))
            .ok_or_else(|| Error::system(operation, io::Error::from_raw_os_error(libc::ENXIO)))
    }

    /// Writes a request to a route socket; route(4): a refusal is the error of write(2).
    fn request(&mut self, kind: u8, route: &Route) -> Result<()> {
        let verb = if kind == route::ADD { "add" } else { "delete" };
        let operation = format!("{verb} route {}", describe(route));
        let (reject, index) = match (route.kind, &route.oif) {
            (RouteKind::Unicast, Some(oif)) => (false, self.index_of(&operation, oif)?),
            // it has to lie somewhere
            (RouteKind::Unreachable, _) => (true, self.index_of(&operation, "lo0")?),
            _ => return Err(Error::Unsupported { what: "this kind of route", instead: "name its interface" }),
        };
        self.seq = self.seq.wrapping_add(1);
        let request =
            Request { kind, destination: route.destination, gateway: route.gateway, index, reject, seq: self.seq };
        let mut message = request.encode();
        if let Some(mtu) = route.mtu {
            message = route::with_mtu(message, mtu);
        }
        let write = || -> io::Result<()> {
            let socket = Socket::new(Domain::from(libc::PF_ROUTE), Type::RAW, Some(Protocol::from(0)))?;
            // answers come to every route socket; nobody reads them here
            socket.shutdown(std::net::Shutdown::Read)?;
            match socket.send(&message) {
                Ok(sent) if sent == message.len() => Ok(()),
                Ok(_) => Err(io::ErrorKind::WriteZero.into()),
                Err(e) => Err(e),
            }
        };
        write().map_err(|e| Error::system(operation, e))
    }
}

impl Host for SystemHost {
    fn links(&mut self) -> Result<Vec<Link>> {
        let ours = names::ours();
        let found = interfaces().map_err(|e| Error::system("list interfaces", e))?;
        let link = |found: Found| {
            let What::Link { index, mtu } = found.what else { return None };
            let own = ours.iter().find(|(_, real)| *real == found.name).map(|(own, _)| own.clone());
            Some(Link {
                index,
                kind: found.name.starts_with("utun").then(|| "utun".to_owned()),
                up: found.flags & libc::IFF_UP as u32 != 0,
                loopback: found.flags & libc::IFF_LOOPBACK as u32 != 0,
                mtu,
                alias: own.is_some().then(|| OUR_ALIAS.to_owned()),
                name: own.unwrap_or(found.name),
            })
        };
        Ok(found.into_iter().filter_map(link).collect())
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    fn create_wireguard_link(&mut self, _name: &str) -> Result<()> {
        Err(Error::Unsupported {
            what: "WireGuard in the kernel",
            instead: "take the userspace device: --backend userspace",
        })
    }

    /// A utun goes with its process, so that is what ends.
    fn delete_link(&mut self, name: &str) -> Result<()> {
        if self.link(name)?.is_none() {
            return Ok(());
        }
        match process::uapi_owner(name) {
            Some(id) => {
                process::terminate(&id, std::time::Duration::from_secs(2))?;
                names::forget(name)
            }
            None => Err(Error::Unsupported { what: "removing an interface", instead: "end the program that made it" }),
        }
    }

    /// The file that names it is the mark; whoever made the link has written it.
    fn mark_link(&mut self, name: &str) -> Result<()> {
        match names::utun_of(name) {
            Some(_) => Ok(()),
            None => Err(Error::Unexpected {
                operation: format!("mark interface {name}"),
                detail: format!("no device has written its name to {}", names::file(name).display()),
            }),
        }
    }

    fn bring_up(&mut self, name: &str, mtu: u32) -> Result<()> {
        let operation = format!("bring up interface {name} with MTU {mtu}");
        names::check(&operation, name)?;
        sys::bring_up(&names::real(name), mtu).map_err(|e| Error::system(operation, e))
    }

    fn addresses(&mut self) -> Result<Vec<Address>> {
        let found = interfaces().map_err(|e| Error::system("list addresses", e))?;
        let index: HashMap<String, u32> = found
            .iter()
            .filter_map(|f| match f.what {
                What::Link { index, .. } => Some((f.name.clone(), index)),
                What::Address(_) => None,
            })
            .collect();
        let address = |found: &Found| match found.what {
            What::Address(address) => Some(Address { ifindex: *index.get(&found.name)?, address }),
            What::Link { .. } => None,
        };
        Ok(found.iter().filter_map(address).collect())
    }

    fn add_address(&mut self, link: &str, address: IpNetwork) -> Result<()> {
        let operation = format!("add address {address} to {link}");
        names::check(&operation, link)?;
        new_address(&names::real(link), address).map_err(|e| Error::system(operation, e))
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        let names = self.names()?;
        let route = |entry: Entry| Route {
            table: TABLE,
            destination: entry.destination,
            kind: if entry.rejects() { RouteKind::Unreachable } else { RouteKind::Unicast },
            oif: names.get(&entry.index).cloned(),
            gateway: entry.gateway,
            metric: None,
            protocol: if entry.ours() { OUR_PROTOCOL } else { 0 },
            mtu: entry.mtu,
        };
        Ok(self.entries()?.into_iter().map(route).collect())
    }

    fn add_route(&mut self, route: &Route) -> Result<()> {
        self.request(route::ADD, route)
    }

    fn add_routes(&mut self, routes: &[Route]) -> Result<()> {
        routes.iter().try_for_each(|route| self.add_route(route))
    }

    fn delete_route(&mut self, route: &Route) -> Result<()> {
        // the kernel looks at destination and mask only: the one that is there must be ours, wherever it leads by now; by
        // another tunnel of ours it is that node's
        let tunnels = names::ours();
        let others =
            |oif: &Option<String>| *oif != route.oif && tunnels.iter().any(|(name, _)| oif.as_ref() == Some(name));
        let same = |there: &Route| {
            (there.destination, there.protocol) == (route.destination, route.protocol) && !others(&there.oif)
        };
        let Some(there) = self.routes()?.into_iter().find(same) else { return Ok(()) };
        match self.request(route::DELETE, &there) {
            Err(e) if matches!(e.errno(), Some(libc::ESRCH | libc::ENOENT | libc::ENXIO)) => Ok(()),
            other => other,
        }
    }

    fn rules(&mut self) -> Result<Vec<Rule>> {
        Ok(Vec::new())
    }

    fn add_rule(&mut self, _rule: &Rule) -> Result<()> {
        Err(Error::Unsupported { what: "policy rules", instead: "two routes of half the address space each" })
    }

    fn delete_rule(&mut self, _rule: &Rule) -> Result<()> {
        Ok(())
    }

    fn route_lookup(&mut self, destination: IpAddr, mark: u32) -> Result<Option<RouteLookup>> {
        let links = self.links()?;
        let entries = self.entries()?;
        let tunnels: Vec<u32> = links.iter().filter(|l| l.alias.is_some()).map(|l| l.index).collect();
        let usable = |entry: &Entry| mark == 0 || (!entry.ours() && !tunnels.contains(&entry.index));
        let Some(entry) = route::best(&entries, destination, usable) else { return Ok(None) };
        let operation = format!("look up the route to {destination}");
        let Some(link) = links.into_iter().find(|link| link.index == entry.index) else {
            return Err(Error::Unexpected { operation, detail: format!("no interface has index {}", entry.index) });
        };
        let source = match source_by(entry.index, destination) {
            Ok(source) => source,
            Err(error) => {
                // the kernel gives none to a socket bound to the interface: the first address that fits, if there is one
                tracing::debug!(%error, op = %operation, iface = link.name, "no source address by the kernel's choice");
                let fits = |found: &Address| {
                    let address = found.address.ip();
                    let usable = match address {
                        IpAddr::V4(_) => true,
                        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
                    };
                    found.ifindex == entry.index && Family::of(&address) == Family::of(&destination) && usable
                };
                match self.addresses()?.into_iter().find(fits) {
                    Some(found) => found.address.ip(),
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(RouteLookup {
            ifindex: entry.index,
            interface: link.name,
            source,
            gateway: entry.gateway,
            mtu: entry.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
            table: TABLE,
        }))
    }

    /// The settings that macOS has are named with dots there: `net/inet/ip/forwarding`.
    fn sysctl(&mut self, key: &str) -> Result<Option<String>> {
        let name = key.replace('/', ".");
        let value = sys::number(&name).map_err(|e| Error::system(format!("read sysctl {name}"), e))?;
        Ok(value.map(|value| value.to_string()))
    }

    fn set_sysctl(&mut self, key: &str, value: &str) -> Result<()> {
        let name = key.replace('/', ".");
        let operation = format!("set sysctl {name} to {value}");
        let number =
            value.parse().map_err(|_| Error::system(&operation, io::Error::from(io::ErrorKind::InvalidInput)))?;
        sys::set_number(&name, number).map_err(|e| Error::system(operation, e))
    }

    fn ipv6(&mut self) -> Result<bool> {
        Ok(Socket::new(Domain::IPV6, Type::DGRAM, None).is_ok())
    }

    fn boot_id(&mut self) -> Result<String> {
        let name = "kern.bootsessionuuid";
        let found = sys::text(name).map_err(|e| Error::system(format!("read sysctl {name}"), e))?;
        Ok(found.unwrap_or_default())
    }

    fn replace_firewall(&mut self, firewall: &Firewall) -> Result<()> {
        match firewall {
            Firewall::Pf(anchor) => pf::load(anchor),
            _ => no_nft("another system's packet filter"),
        }
    }

    fn firewall_stands(&mut self, firewall: &Firewall) -> Result<bool> {
        match firewall {
            Firewall::Pf(anchor) => pf::stands(anchor),
            _ => Ok(false),
        }
    }

    fn firewall_rules(&mut self, name: &str) -> Result<Vec<String>> {
        Ok(pf::rules(name))
    }

    fn delete_firewall(&mut self, name: &str) -> Result<()> {
        pf::delete(name)
    }

    fn delete_marked(&mut self) -> Result<()> {
        // the one, whatever becomes of the other
        let firewall = pf::delete_all();
        dns::remove_all().and(firewall)
    }

    fn set_dns(&mut self, interface: &str, servers: &[IpAddr]) -> Result<()> {
        dns::set(interface, servers)
    }

    fn dns(&mut self, interface: &str) -> Result<Vec<IpAddr>> {
        dns::servers(interface)
    }

    fn unset_dns(&mut self, interface: &str) -> Result<()> {
        dns::remove(interface)
    }

    fn seen_chains(&mut self) -> Result<Vec<SeenChain>> {
        Ok(Vec::new())
    }

    fn insert_rules(&mut self, _place: &Place, _rules: &[model::Rule]) -> Result<()> {
        no_nft("another program's nftables chain")
    }

    fn delete_commented(&mut self, _place: &Place, _comment: &str) -> Result<()> {
        Ok(())
    }
}
