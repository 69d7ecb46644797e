//! [`Host`] over rtnetlink(7) and procfs: links and addresses here, routes and rules in `route.rs`, the firewall in
//! `nft.rs`.

use std::ffi::CStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use netlink_bindings::{rt_addr, rt_link};
use netlink_socket2::{NetlinkSocket, ReplyError};

use super::{nft, sysctl};
use crate::firewall::Firewall;
use crate::nft::foreign::{Place, SeenChain};
use crate::nft::{self as model, Table};
use crate::types::*;
use crate::{Error, Host, OUR_ALIAS, Result};

/// Longest interface name in bytes: `IFNAMSIZ` less the terminating zero, netdevice(7).
const NAME_MAX: usize = 15;

type Reply<T> = std::result::Result<T, ReplyError>;

/// The network stack of the namespace that the creating thread was in.
pub struct NetlinkHost {
    /// Keeps one socket a netlink protocol open (route, netfilter, generic).
    pub(super) sock: NetlinkSocket,
}

/// Opens the network stack; changes nothing.
pub fn host() -> Result<NetlinkHost> {
    let mut host = NetlinkHost { sock: NetlinkSocket::new() };
    // the route socket is opened by the first request, and belongs to the namespace of the thread that opens it
    host.link("lo")?;
    Ok(host)
}

/// Turns the kernel's answer into an error that keeps its number; the kernel's own words go to the log.
pub(super) fn refused(operation: impl Into<String>, error: impl Into<ReplyError>) -> Error {
    let (operation, error) = (operation.into(), error.into());
    tracing::debug!(op = %operation, error = %error, "netlink");
    Error::system(operation, std::io::Error::from(error))
}

/// The error number of a refusal.
pub(super) fn errno_of(error: &ReplyError) -> Option<i32> {
    error.as_io_error().raw_os_error()
}

/// An interface name that the kernel takes.
pub(super) fn check(operation: &str, name: &str) -> Result<()> {
    check_name(operation, name).map(drop)
}

/// The same, as bytes.
pub(super) fn check_name<'a>(operation: &str, name: &'a str) -> Result<&'a [u8]> {
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    if name.is_empty() || name.len() > NAME_MAX || name == "." || name == ".." || name.contains(odd) {
        let why = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not an interface name");
        return Err(Error::system(operation, why));
    }
    Ok(name.as_bytes())
}

/// `AF_INET` or `AF_INET6`.
pub(super) fn af(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

fn text(value: &CStr) -> String {
    value.to_string_lossy().into_owned()
}

fn link_from(header: &rt_link::Ifinfomsg, attrs: rt_link::IterableLinkAttrs<'_>) -> Link {
    let mut link = Link {
        index: header.ifi_index as u32,
        name: String::new(),
        kind: None,
        up: header.ifi_flags & libc::IFF_UP as u32 != 0,
        loopback: header.ifi_flags & libc::IFF_LOOPBACK as u32 != 0,
        mtu: 0,
        alias: None,
    };
    for attr in attrs {
        match attr {
            Ok(rt_link::LinkAttrs::Ifname(name)) => link.name = text(name),
            Ok(rt_link::LinkAttrs::Mtu(mtu)) => link.mtu = mtu,
            Ok(rt_link::LinkAttrs::Ifalias(alias)) => link.alias = Some(text(alias)),
            Ok(rt_link::LinkAttrs::Linkinfo(info)) => link.kind = info.get_kind().ok().map(text),
            // attributes of other drivers that the bindings cannot read don't matter here
            _ => {}
        }
    }
    link
}

impl NetlinkHost {
    /// The index of a link that must be there.
    pub(super) fn index_of(&mut self, operation: &str, name: &str) -> Result<u32> {
        match self.link(name)? {
            Some(link) => Ok(link.index),
            None => Err(Error::system(operation, std::io::Error::from_raw_os_error(libc::ENODEV))),
        }
    }

    fn dump_links(&mut self) -> Reply<Vec<Link>> {
        let mut request = rt_link::Request::new().op_getlink_dump(&rt_link::Ifinfomsg::new());
        // half of a link's answer
        request.encode().push_ext_mask(rt_link::RtextFilter::SkipStats as u32);
        let mut replies = self.sock.request(&request)?;
        let mut links = Vec::new();
        while let Some(reply) = replies.recv() {
            let (header, attrs) = reply?;
            links.push(link_from(&header, attrs));
        }
        Ok(links)
    }

    fn get_link(&mut self, name: &str) -> Reply<Link> {
        let mut request = rt_link::Request::new().op_getlink_do(&rt_link::Ifinfomsg::new());
        request.encode().push_ifname_bytes(name.as_bytes()).push_ext_mask(rt_link::RtextFilter::SkipStats as u32);
        self.one_link(&request)
    }

    /// The link with this index, which must be there.
    pub(super) fn get_link_at(&mut self, index: u32) -> Reply<Link> {
        let header = rt_link::Ifinfomsg { ifi_index: index as i32, ..Default::default() };
        let mut request = rt_link::Request::new().op_getlink_do(&header);
        request.encode().push_ext_mask(rt_link::RtextFilter::SkipStats as u32);
        self.one_link(&request)
    }

    fn one_link(&mut self, request: &rt_link::OpGetlinkDo<'_>) -> Reply<Link> {
        let mut replies = self.sock.request(request)?;
        let link = replies.recv_one().map(|(header, attrs)| link_from(&header, attrs))?;
        // the acknowledgement follows the answer
        replies.recv_ack()?;
        Ok(link)
    }

    fn new_wireguard_link(&mut self, name: &[u8]) -> Reply<()> {
        let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&rt_link::Ifinfomsg::new());
        request.encode().push_ifname_bytes(name).nested_linkinfo().push_kind(c"wireguard");
        self.sock.request(&request)?.recv_ack()
    }

    fn set_alias(&mut self, name: &[u8]) -> Reply<()> {
        let mut request = rt_link::Request::new().op_setlink_do(&rt_link::Ifinfomsg::new());
        request.encode().push_ifname_bytes(name).push_ifalias_bytes(OUR_ALIAS.as_bytes());
        self.sock.request(&request)?.recv_ack()
    }

    fn set_up(&mut self, name: &[u8], mtu: u32) -> Reply<()> {
        let header = rt_link::Ifinfomsg {
            ifi_flags: libc::IFF_UP as u32,
            ifi_change: libc::IFF_UP as u32,
            ..Default::default()
        };
        let mut request = rt_link::Request::new().op_setlink_do(&header);
        request.encode().push_ifname_bytes(name).push_mtu(mtu);
        self.sock.request(&request)?.recv_ack()
    }

    fn dump_addresses(&mut self) -> Reply<Vec<Address>> {
        let request = rt_addr::Request::new().op_getaddr_dump(&rt_addr::Ifaddrmsg::new());
        let mut replies = self.sock.request(&request)?;
        let mut addresses = Vec::new();
        while let Some(reply) = replies.recv() {
            let (header, attrs) = reply?;
            // on a point-to-point link IFA_ADDRESS is the other side; rtnetlink(7)
            let Ok(address) = attrs.get_local().or_else(|_| attrs.get_address()) else { continue };
            if let Ok(address) = IpNetwork::new(address, header.ifa_prefixlen) {
                addresses.push(Address { ifindex: header.ifa_index, address });
            }
        }
        Ok(addresses)
    }

    fn new_address(&mut self, index: u32, address: IpNetwork) -> Reply<()> {
        let full = if address.is_ipv4() { 32 } else { 128 };
        let mut flags = 0;
        if address.prefix() == full {
            flags |= rt_addr::IfaFlags::Noprefixroute as u32;
        }
        if address.is_ipv6() {
            flags |= rt_addr::IfaFlags::Nodad as u32;
        }
        let header = rt_addr::Ifaddrmsg {
            ifa_family: af(Family::of(&address.ip())),
            ifa_prefixlen: address.prefix(),
            ifa_index: index,
            ..Default::default()
        };
        let mut request = rt_addr::Request::new().set_create().set_excl().op_newaddr_do(&header);
        request.encode().push_local(address.ip()).push_address(address.ip()).push_flags(flags);
        self.sock.request(&request)?.recv_ack()
    }
}

/// What nftables can take.
fn table_of(firewall: &Firewall) -> Result<&Table> {
    match firewall {
        Firewall::Nft(table) => Ok(table),
        _ => Err(Error::Unsupported {
            what: "another system's packet filter",
            instead: "use this command on that system",
        }),
    }
}

impl NetlinkHost {
    /// Replaces our table of that name by this one, atomically.
    pub fn replace_table(&mut self, table: &Table) -> Result<()> {
        nft::replace_table(table)
    }

    /// Each chain of the table of that name with its number of rules, in order; `None` if there is no such table.
    pub fn table_shape(&mut self, name: &str) -> Result<Option<Vec<(String, usize)>>> {
        nft::table_shape(&mut self.sock, name)
    }

    /// Deletes our table. One that is already gone is no error.
    pub fn delete_table(&mut self, name: &str) -> Result<()> {
        nft::delete_table(name)
    }
}

impl Host for NetlinkHost {
    fn links(&mut self) -> Result<Vec<Link>> {
        self.dump_links().map_err(|e| refused("list links", e))
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let operation = format!("look up link {name}");
        if check_name(&operation, name).is_err() {
            return Ok(None);
        }
        match self.get_link(name) {
            Ok(link) => Ok(Some(link)),
            Err(e) if errno_of(&e) == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(refused(operation, e)),
        }
    }

    fn create_wireguard_link(&mut self, name: &str) -> Result<()> {
        let operation = format!("create WireGuard link {name}");
        let bytes = check_name(&operation, name)?;
        self.new_wireguard_link(bytes).map_err(|e| refused(&operation, e))?;
        // the kernel ignores IFLA_IFALIAS in the request that creates a link
        if let Err(e) = self.set_alias(bytes) {
            let error = refused(format!("mark link {name}"), e);
            self.delete_link(name)?;
            return Err(error);
        }
        Ok(())
    }

    fn delete_link(&mut self, name: &str) -> Result<()> {
        let operation = format!("delete link {name}");
        let bytes = check_name(&operation, name)?;
        let mut request = rt_link::Request::new().op_dellink_do(&rt_link::Ifinfomsg::new());
        request.encode().push_ifname_bytes(bytes);
        match self.sock.request(&request).map_err(ReplyError::from).and_then(|mut r| r.recv_ack()) {
            Err(e) if errno_of(&e) != Some(libc::ENODEV) => Err(refused(operation, e)),
            _ => Ok(()),
        }
    }

    fn mark_link(&mut self, name: &str) -> Result<()> {
        let operation = format!("mark link {name}");
        let bytes = check_name(&operation, name)?;
        self.set_alias(bytes).map_err(|e| refused(operation, e))
    }

    fn bring_up(&mut self, name: &str, mtu: u32) -> Result<()> {
        let operation = format!("bring up link {name} with MTU {mtu}");
        let bytes = check_name(&operation, name)?;
        self.set_up(bytes, mtu).map_err(|e| refused(operation, e))
    }

    fn addresses(&mut self) -> Result<Vec<Address>> {
        self.dump_addresses().map_err(|e| refused("list addresses", e))
    }

    fn add_address(&mut self, link: &str, address: IpNetwork) -> Result<()> {
        let operation = format!("add address {address} to {link}");
        let index = self.index_of(&operation, link)?;
        self.new_address(index, address).map_err(|e| refused(operation, e))
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        self.list_routes()
    }

    fn add_route(&mut self, route: &Route) -> Result<()> {
        self.add_one_route(route)
    }

    fn add_routes(&mut self, routes: &[Route]) -> Result<()> {
        self.add_many_routes(routes)
    }

    fn delete_route(&mut self, route: &Route) -> Result<()> {
        self.delete_one_route(route)
    }

    fn rules(&mut self) -> Result<Vec<Rule>> {
        self.list_rules()
    }

    fn add_rule(&mut self, rule: &Rule) -> Result<()> {
        self.add_one_rule(rule)
    }

    fn delete_rule(&mut self, rule: &Rule) -> Result<()> {
        self.delete_one_rule(rule)
    }

    fn route_lookup(&mut self, destination: IpAddr, mark: u32) -> Result<Option<RouteLookup>> {
        self.look_up(destination, mark)
    }

    fn sysctl(&mut self, key: &str) -> Result<Option<String>> {
        sysctl::read(key)
    }

    fn set_sysctl(&mut self, key: &str, value: &str) -> Result<()> {
        sysctl::write(key, value)
    }

    fn ipv6(&mut self) -> Result<bool> {
        Ok(self.sysctl("net/ipv6/conf/default/disable_ipv6")?.as_deref() == Some("0"))
    }

    fn boot_id(&mut self) -> Result<String> {
        Ok(self.sysctl("kernel/random/boot_id")?.unwrap_or_default())
    }

    fn namespace(&mut self) -> Result<Option<u64>> {
        Ok(super::process::namespace(Path::new("/proc/thread-self/ns/net")))
    }

    fn way_into(&mut self, namespace: u64) -> Result<Option<PathBuf>> {
        Ok(super::process::way_into(namespace))
    }

    fn replace_firewall(&mut self, firewall: &Firewall) -> Result<()> {
        self.replace_table(table_of(firewall)?)
    }

    fn firewall_stands(&mut self, firewall: &Firewall) -> Result<bool> {
        let table = table_of(firewall)?;
        Ok(self.table_shape(&table.name)? == Some(table.shape()))
    }

    fn delete_firewall(&mut self, name: &str) -> Result<()> {
        self.delete_table(name)
    }

    fn seen_chains(&mut self) -> Result<Vec<SeenChain>> {
        nft::seen_chains(&mut self.sock)
    }

    fn insert_rules(&mut self, place: &Place, rules: &[model::Rule]) -> Result<()> {
        nft::insert_rules(place, rules)
    }

    fn delete_commented(&mut self, place: &Place, comment: &str) -> Result<()> {
        nft::delete_commented(&mut self.sock, place, comment)
    }
}
