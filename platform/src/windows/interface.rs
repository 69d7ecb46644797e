//! Links and addresses by IP Helper (`netioapi.h`), and the forms in which it takes and gives addresses.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use windows_sys::Win32::Foundation::{
    ERROR_FILE_NOT_FOUND, ERROR_INVALID_NAME, ERROR_INVALID_PARAMETER, ERROR_NOT_FOUND, ERROR_OBJECT_ALREADY_EXISTS,
};
use windows_sys::Win32::NetworkManagement::IpHelper::*;
use windows_sys::Win32::NetworkManagement::Ndis::{IfOperStatusUp, NET_LUID_LH};
use windows_sys::Win32::Networking::WinSock::{AF_INET, AF_INET6, AF_UNSPEC, IpDadStatePreferred, SOCKADDR_INET};
use windows_sys::Win32::System::Registry::{HKEY_LOCAL_MACHINE, KEY_READ};
use windows_sys::core::GUID;

use super::registry;
use super::text::{narrow, wide};
use crate::types::*;
use crate::{Error, OUR_ALIAS, Result, wireguard_nt};

/// `TunnelType` of our adapters; WireGuardNT makes their description of it.
pub(super) const TUNNEL_TYPE: &str = "PeerVPN";
/// That description. A second adapter's has ` #2` after it.
const DESCRIPTION: &str = "PeerVPN Tunnel";
/// `FilterInterface` in `InterfaceAndOperStatusFlags`: a filter driver's view of a link, not a link.
const FILTER_INTERFACE: u8 = 1 << 1;
/// Interface metric of our link: asked before every other one.
const METRIC: u32 = 0;
/// Where IPv6 is switched off, and the bit that does so for every link but loopback and Teredo's kind; "Guidance for
/// configuring IPv6 in Windows".
const V6_SETTINGS: &str = r"SYSTEM\CurrentControlSet\Services\Tcpip6\Parameters";
const NOT_ON_LINKS: u32 = 0x10;
/// How long a new link may take to get a family, and the pause between two looks.
const SETTLING: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
/// Smallest MTU of IPv6, RFC 8200 §5; Windows refuses less for it.
const V6_MTU: u32 = 1280;

/// An answer of IP Helper.
pub(super) fn check(operation: impl FnOnce() -> String, answer: u32) -> Result<()> {
    if answer == 0 { Ok(()) } else { Err(refused(operation(), answer)) }
}

pub(super) fn refused(operation: String, answer: u32) -> Error {
    Error::system(operation, io::Error::from_raw_os_error(answer as i32))
}

/// `AF_INET` or `AF_INET6`.
pub(super) fn af(family: Family) -> u16 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

/// An address with port 0.
pub(super) fn sockaddr(address: IpAddr) -> SOCKADDR_INET {
    let bytes = wireguard_nt::sockaddr(SocketAddr::new(address, 0));
    // SAFETY: both are plain bytes of the same size and layout (wireguard_nt asserts that of SOCKADDR_INET).
    unsafe { std::mem::transmute::<[u8; 28], SOCKADDR_INET>(bytes) }
}

/// The address, if one is set.
pub(super) fn address(sockaddr: &SOCKADDR_INET) -> Option<IpAddr> {
    // SAFETY: any SOCKADDR_INET is 28 bytes; the unset ones of a v4 address are zero in what IP Helper gives and in ours.
    let bytes = unsafe { std::mem::transmute::<SOCKADDR_INET, [u8; 28]>(*sockaddr) };
    wireguard_nt::address(&bytes).map(|address| address.ip())
}

/// A table that IP Helper allocated.
pub(super) struct Table<T>(pub(super) *mut T);

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: allocated by IP Helper, freed once.
        unsafe { FreeMibTable(self.0.cast()) };
    }
}

/// A link as IP Helper describes it, with what [`Link`] has no place for.
pub(super) struct Entry {
    pub(super) link: Link,
    pub(super) luid: u64,
    pub(super) guid: GUID,
}

fn entry(row: &MIB_IF_ROW2) -> Entry {
    let description = narrow(&row.Description);
    let ours = description.starts_with(DESCRIPTION);
    let wireguard = ours || description.starts_with("WireGuard Tunnel");
    Entry {
        link: Link {
            index: row.InterfaceIndex,
            name: narrow(&row.Alias),
            kind: Some(if wireguard { "wireguard".to_owned() } else { description }),
            up: row.OperStatus == IfOperStatusUp,
            loopback: row.Type == IF_TYPE_SOFTWARE_LOOPBACK,
            mtu: row.Mtu,
            alias: ours.then(|| OUR_ALIAS.to_owned()),
        },
        // SAFETY: every part of the union is 64 bits.
        luid: unsafe { row.InterfaceLuid.Value },
        guid: row.InterfaceGuid,
    }
}

/// Every link.
pub(super) fn entries() -> Result<Vec<Entry>> {
    let mut table = null_mut();
    // SAFETY: the table is written on success.
    check(|| "list links".to_owned(), unsafe { GetIfTable2(&raw mut table) })?;
    let table = Table(table);
    // SAFETY: the table holds `NumEntries` rows, and lives until it is dropped.
    let rows =
        unsafe { std::slice::from_raw_parts((&raw const (*table.0).Table).cast(), (*table.0).NumEntries as usize) };
    Ok(rows
        .iter()
        .filter(|row: &&MIB_IF_ROW2| row.InterfaceAndOperStatusFlags._bitfield & FILTER_INTERFACE == 0)
        .map(entry)
        .collect())
}

/// One link by name.
pub(super) fn find(name: &str) -> Result<Option<Entry>> {
    let Some(luid) = luid(name)? else { return Ok(None) };
    let mut row = MIB_IF_ROW2 { InterfaceLuid: NET_LUID_LH { Value: luid }, ..Default::default() };
    // SAFETY: the row names a link, and is filled in.
    match unsafe { GetIfEntry2(&raw mut row) } {
        0 => Ok(Some(entry(&row))),
        ERROR_FILE_NOT_FOUND | ERROR_NOT_FOUND => Ok(None),
        answer => Err(refused(format!("look up link {name}"), answer)),
    }
}

/// One that must be there.
pub(super) fn expect(operation: &str, name: &str) -> Result<Entry> {
    find(name)?.ok_or_else(|| {
        Error::system(operation, io::Error::new(io::ErrorKind::NotFound, format!("there is no link {name}")))
    })
}

/// The number by which filters and routes know a link.
pub(super) fn luid(name: &str) -> Result<Option<u64>> {
    let alias = wide(name);
    let mut luid = NET_LUID_LH { Value: 0 };
    // SAFETY: the name ends with zero; the number is written on success.
    match unsafe { ConvertInterfaceAliasToLuid(alias.as_ptr(), &raw mut luid) } {
        // SAFETY: every part of the union is 64 bits.
        0 => Ok(Some(unsafe { luid.Value })),
        // what it says of a name that no link has
        ERROR_INVALID_PARAMETER | ERROR_INVALID_NAME | ERROR_FILE_NOT_FOUND | ERROR_NOT_FOUND => Ok(None),
        answer => Err(refused(format!("look up link {name}"), answer)),
    }
}

/// Every address of every link.
pub(super) fn addresses() -> Result<Vec<Address>> {
    let mut table = null_mut();
    // SAFETY: the table is written on success.
    check(|| "list addresses".to_owned(), unsafe { GetUnicastIpAddressTable(AF_UNSPEC, &raw mut table) })?;
    let table = Table(table);
    // SAFETY: the table holds `NumEntries` rows, and lives until it is dropped.
    let rows: &[MIB_UNICASTIPADDRESS_ROW] =
        unsafe { std::slice::from_raw_parts((&raw const (*table.0).Table).cast(), (*table.0).NumEntries as usize) };
    let address = |row: &MIB_UNICASTIPADDRESS_ROW| {
        let prefix = IpNetwork::new(address(&row.Address)?, row.OnLinkPrefixLength).ok()?;
        Some(Address { ifindex: row.InterfaceIndex, address: prefix })
    };
    Ok(rows.iter().filter_map(address).collect())
}

/// Adds an address that is valid at once: nobody else has it, so there is nothing to detect.
pub(super) fn add_address(link: &str, prefix: IpNetwork) -> Result<()> {
    let operation = format!("add address {prefix} to {link}");
    let entry = expect(&operation, link)?;
    settled(&operation, entry.luid, Family::of(&prefix.ip()))?;
    let mut row = MIB_UNICASTIPADDRESS_ROW::default();
    // SAFETY: the row is ours; this sets every field to its default.
    unsafe { InitializeUnicastIpAddressEntry(&raw mut row) };
    row.InterfaceLuid.Value = entry.luid;
    row.Address = sockaddr(prefix.ip());
    row.OnLinkPrefixLength = prefix.prefix();
    row.DadState = IpDadStatePreferred;
    // SAFETY: the row is complete.
    match unsafe { CreateUnicastIpAddressEntry(&raw const row) } {
        // SAFETY: the row names link and address, and is filled in.
        ERROR_OBJECT_ALREADY_EXISTS => match unsafe { GetUnicastIpAddressEntry(&raw mut row) } {
            ERROR_FILE_NOT_FOUND | ERROR_NOT_FOUND => {
                Err(Error::system(operation, io::Error::new(io::ErrorKind::AddrInUse, "another link has it")))
            }
            answer => check(|| operation, answer),
        },
        answer => check(|| operation, answer),
    }
}

/// Whether this system has IPv6, and new links get it.
pub(super) fn ipv6() -> Result<bool> {
    // the loopback has it unless it was taken out of the whole system, also where all other links are to be without
    let Some(loopback) = entries()?.into_iter().find(|entry| entry.link.loopback) else { return Ok(false) };
    let settings = registry::open(HKEY_LOCAL_MACHINE, V6_SETTINGS, KEY_READ)?;
    let without = settings.and_then(|settings| settings.number("DisabledComponents")).unwrap_or(0);
    Ok(without & NOT_ON_LINKS == 0 && family_entry(loopback.luid, Family::V6)?.is_some())
}

/// A link's settings for one family; `None` if it does not have that family.
pub(super) fn family_entry(luid: u64, family: Family) -> Result<Option<MIB_IPINTERFACE_ROW>> {
    let mut row = MIB_IPINTERFACE_ROW { Family: af(family), ..Default::default() };
    row.InterfaceLuid.Value = luid;
    // SAFETY: the row names link and family, and is filled in.
    match unsafe { GetIpInterfaceEntry(&raw mut row) } {
        0 => Ok(Some(row)),
        ERROR_FILE_NOT_FOUND | ERROR_NOT_FOUND => Ok(None),
        answer => Err(refused("read a link's settings".to_owned(), answer)),
    }
}

/// The same of a link that is to have that family; a new one gets it a little later.
fn settled(operation: &str, luid: u64, family: Family) -> Result<MIB_IPINTERFACE_ROW> {
    let started = Instant::now();
    loop {
        if let Some(row) = family_entry(luid, family)? {
            return Ok(row);
        }
        if started.elapsed() >= SETTLING {
            let why = match family {
                Family::V4 => "Windows gives it no IPv4",
                Family::V6 => "Windows gives it no IPv6",
            };
            return Err(Error::system(operation, io::Error::new(io::ErrorKind::TimedOut, why)));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Sets MTU and metric of a tunnel link, for each family that this system has: no router is looked for there, and no address
/// checked for others who have it.
pub(super) fn tune(link: &str, mtu: u32) -> Result<()> {
    let operation = format!("set the MTU of {link} to {mtu}");
    let entry = expect(&operation, link)?;
    let families = if ipv6()? { &Family::BOTH[..] } else { &[Family::V4] };
    for family in families.iter().copied() {
        let mut row = settled(&operation, entry.luid, family)?;
        row.NlMtu = if family == Family::V6 { mtu.max(V6_MTU) } else { mtu };
        row.UseAutomaticMetric = false;
        row.Metric = METRIC;
        row.DadTransmits = 0;
        row.RouterDiscoveryBehavior = windows_sys::Win32::Networking::WinSock::RouterDiscoveryDisabled;
        // what GetIpInterfaceEntry gives for IPv4 is refused by SetIpInterfaceEntry; its documentation asks for 0
        row.SitePrefixLength = 0;
        // SAFETY: the row was filled in by the system.
        check(|| operation.clone(), unsafe { SetIpInterfaceEntry(&raw mut row) })?;
    }
    Ok(())
}
