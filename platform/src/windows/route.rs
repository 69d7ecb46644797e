//! Routes by IP Helper (`netioapi.h`). Windows has one table a family, and no policy rules.
//!
//! A route carries no mark of its owner. Ours have a metric that nothing else uses, so that recovery without a journal
//! finds them; the metric decides between routes to the same prefix only, and we add none where there is one already.

use std::net::IpAddr;
use std::ptr::{null, null_mut};

use ipnetwork::IpNetwork;
use windows_sys::Win32::Foundation::{
    ERROR_FILE_NOT_FOUND, ERROR_HOST_UNREACHABLE, ERROR_NETWORK_UNREACHABLE, ERROR_NOT_FOUND,
};
use windows_sys::Win32::NetworkManagement::IpHelper::*;
use windows_sys::Win32::NetworkManagement::Ndis::NET_LUID_LH;
use windows_sys::Win32::Networking::WinSock::{MIB_IPPROTO_NETMGMT, SOCKADDR_INET};

use super::interface::{self, Entry, Table, af, check, refused, sockaddr};
use crate::types::*;
use crate::{Error, OUR_PROTOCOL, Result};

/// The one table, under the number that Linux' `main` has.
const MAIN: u32 = 254;
/// Metric of our routes, our mark.
const OUR_METRIC: u32 = 5180;
/// `MIB_IPPROTO_NETMGMT`: set by a program.
const BY_PROGRAM: i32 = MIB_IPPROTO_NETMGMT;

fn describe(route: &Route) -> String {
    let via = route.gateway.map_or(String::new(), |gateway| format!(" via {gateway}"));
    format!("{}{via} on {}", route.destination, route.oif.as_deref().unwrap_or("no link"))
}

fn rows(family: Family) -> Result<Vec<MIB_IPFORWARD_ROW2>> {
    let mut table = null_mut();
    // SAFETY: the table is written on success.
    match unsafe { GetIpForwardTable2(af(family), &raw mut table) } {
        // this host does not have that family
        ERROR_NOT_FOUND | ERROR_FILE_NOT_FOUND => return Ok(Vec::new()),
        answer => check(|| "list routes".to_owned(), answer)?,
    }
    let table = Table(table);
    // SAFETY: the table holds `NumEntries` rows, and lives until it is dropped.
    let rows =
        unsafe { std::slice::from_raw_parts((&raw const (*table.0).Table).cast(), (*table.0).NumEntries as usize) };
    Ok(rows.to_vec())
}

fn destination(row: &MIB_IPFORWARD_ROW2) -> Option<IpNetwork> {
    IpNetwork::new(interface::address(&row.DestinationPrefix.Prefix)?, row.DestinationPrefix.PrefixLength).ok()
}

fn gateway(next_hop: &SOCKADDR_INET) -> Option<IpAddr> {
    interface::address(next_hop).filter(|address| !address.is_unspecified())
}

fn luid(row: &MIB_IPFORWARD_ROW2) -> u64 {
    // SAFETY: every part of the union is 64 bits.
    unsafe { row.InterfaceLuid.Value }
}

/// Every route to another host.
pub(super) fn list() -> Result<Vec<Route>> {
    let links = interface::entries()?;
    let mut routes = Vec::new();
    for family in Family::BOTH {
        for row in rows(family)?.iter().filter(|row| !row.Loopback) {
            let Some(destination) = destination(row) else { continue };
            let oif = links.iter().find(|entry| entry.luid == luid(row)).map(|entry| entry.link.name.clone());
            let ours = row.Protocol == BY_PROGRAM && row.Metric == OUR_METRIC;
            routes.push(Route {
                table: MAIN,
                destination,
                kind: RouteKind::Unicast,
                oif,
                gateway: gateway(&row.NextHop),
                metric: Some(row.Metric),
                protocol: if ours { OUR_PROTOCOL } else { u8::try_from(row.Protocol).unwrap_or(0) },
                mtu: None,
            });
        }
    }
    Ok(routes)
}

/// The route as IP Helper takes it; `None` if its link is not there.
fn row(operation: &str, route: &Route) -> Result<Option<MIB_IPFORWARD_ROW2>> {
    if route.kind != RouteKind::Unicast || route.mtu.is_some() || route.table != MAIN {
        return Err(Error::Unsupported {
            what: "a route that refuses, has an MTU or lies in a table of its own",
            instead: "leave it to the filters, the link's MTU and the one table",
        });
    }
    let Some(oif) = &route.oif else {
        return Err(Error::system(
            operation,
            std::io::Error::new(std::io::ErrorKind::InvalidInput, "it names no link"),
        ));
    };
    let Some(entry) = interface::find(oif)? else { return Ok(None) };
    let unspecified = Family::of(&route.destination.network()).default_prefix().ip();
    let mut row = MIB_IPFORWARD_ROW2::default();
    // SAFETY: the row is ours; this sets every field to its default.
    unsafe { InitializeIpForwardEntry(&raw mut row) };
    row.InterfaceLuid.Value = entry.luid;
    row.DestinationPrefix.Prefix = sockaddr(route.destination.network());
    row.DestinationPrefix.PrefixLength = route.destination.prefix();
    row.NextHop = sockaddr(route.gateway.unwrap_or(unspecified));
    row.Protocol = BY_PROGRAM;
    row.Metric = if route.protocol == OUR_PROTOCOL { OUR_METRIC } else { route.metric.unwrap_or(0) };
    Ok(Some(row))
}

pub(super) fn add(route: &Route) -> Result<()> {
    let operation = format!("add route {}", describe(route));
    let Some(row) = row(&operation, route)? else {
        return interface::expect(&operation, route.oif.as_deref().unwrap_or_default()).map(drop);
    };
    // SAFETY: the row is complete.
    check(|| operation, unsafe { CreateIpForwardEntry2(&raw const row) })
}

/// One that is not there, or whose metric is not ours, is left alone.
pub(super) fn delete(route: &Route) -> Result<()> {
    let operation = format!("delete route {}", describe(route));
    let Some(row) = row(&operation, route)? else { return Ok(()) };
    let family = Family::of(&route.destination.network());
    // DeleteIpForwardEntry2 looks at link, prefix and next hop only
    let there = rows(family)?.iter().any(|other| {
        luid(other) == luid(&row)
            && destination(other) == destination(&row)
            && gateway(&other.NextHop) == gateway(&row.NextHop)
            && other.Metric == row.Metric
    });
    if !there {
        return Ok(());
    }
    // SAFETY: the row is complete.
    match unsafe { DeleteIpForwardEntry2(&raw const row) } {
        ERROR_NOT_FOUND | ERROR_FILE_NOT_FOUND => Ok(()),
        answer => check(|| operation, answer),
    }
}

/// How a packet to `destination` would leave.
pub(super) fn look_up(destination: IpAddr) -> Result<Option<RouteLookup>> {
    ask(&interface::entries()?, destination, None)
}

/// How an outer packet would: WireGuardNT takes the best way that is not its own adapter's.
pub(super) fn look_up_outer(destination: IpAddr) -> Result<Option<RouteLookup>> {
    let links = interface::entries()?;
    match best_beside_tunnels(&links, destination)? {
        Some(luid) => ask(&links, destination, Some(luid)),
        None => Ok(None),
    }
}

/// The system's answer, `by` this link only if one is given.
fn ask(links: &[Entry], destination: IpAddr, by: Option<u64>) -> Result<Option<RouteLookup>> {
    let (to, mut row, mut source) = (sockaddr(destination), MIB_IPFORWARD_ROW2::default(), SOCKADDR_INET::default());
    let luid = by.map(|luid| NET_LUID_LH { Value: luid });
    let only = luid.as_ref().map_or(null(), |luid| &raw const *luid);
    // SAFETY: every pointer is null where that means "any", or lives through the call; row and source are written.
    match unsafe { GetBestRoute2(only, 0, null(), &raw const to, 0, &raw mut row, &raw mut source) } {
        ERROR_NOT_FOUND | ERROR_FILE_NOT_FOUND | ERROR_NETWORK_UNREACHABLE | ERROR_HOST_UNREACHABLE => return Ok(None),
        answer => check(|| format!("look up the route to {destination}"), answer)?,
    }
    let Some(entry) = links.iter().find(|entry| entry.link.index == row.InterfaceIndex) else {
        return Err(refused(format!("look up the route to {destination}"), ERROR_NOT_FOUND));
    };
    let family = Family::of(&destination);
    let mtu = interface::family_entry(entry.luid, family)?.map_or(entry.link.mtu, |row| row.NlMtu);
    Ok(Some(RouteLookup {
        ifindex: row.InterfaceIndex,
        interface: entry.link.name.clone(),
        source: interface::address(&source).unwrap_or(family.default_prefix().ip()),
        gateway: gateway(&row.NextHop),
        mtu,
        table: MAIN,
    }))
}

/// The link of the longest prefix, then of the lowest metric, among those that are up and none of ours; so does
/// WireGuardNT choose (its `driver/socket.c`).
fn best_beside_tunnels(links: &[Entry], destination: IpAddr) -> Result<Option<u64>> {
    let family = Family::of(&destination);
    let mut best: Option<((u8, std::cmp::Reverse<u32>), u64)> = None;
    for row in rows(family)? {
        let beside = |entry: &&Entry| entry.luid == luid(&row) && entry.link.up && entry.link.alias.is_none();
        let Some(entry) = links.iter().find(beside) else { continue };
        let Some(prefix) = self::destination(&row).filter(|prefix| prefix.contains(destination)) else { continue };
        let Some(settings) = interface::family_entry(entry.luid, family)? else { continue };
        let rank = (prefix.prefix(), std::cmp::Reverse(row.Metric.saturating_add(settings.Metric)));
        if best.as_ref().is_none_or(|(than, _)| rank > *than) {
            best = Some((rank, entry.luid));
        }
    }
    Ok(best.map(|(_, luid)| luid))
}
