//! Routes, policy rules and route look-ups over rtnetlink(7).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_bindings::rt_route::{self, RtmFlag, RtmType, Rtmsg};
use netlink_bindings::rt_rule::{self, FibRuleHdr, FrAct};
use netlink_socket2::ReplyError;

use super::exchange::{Answer, acknowledge_last, exchange};
use super::host::{NetlinkHost, af, errno_of, refused};
use crate::types::*;
use crate::{Error, Result};

/// The kernel's own table; ip-route(8).
const TABLE_LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;
/// `FIB_RULE_INVERT`, linux/fib_rules.h.
const RULE_INVERT: u32 = 2;
/// Metric that the kernel gives an IPv6 route without one: `IP6_RT_PRIO_USER`, net/ipv6.h and ip-route(8).
const V6_DEFAULT_METRIC: u32 = 1024;
/// Requests in one write: about 100 KiB.
const BATCH: usize = 2000;

type Reply<T> = std::result::Result<T, ReplyError>;

/// A route in the words of ip-route(8).
fn describe(route: &Route) -> String {
    let mut text = match route.kind {
        RouteKind::Unicast => route.destination.to_string(),
        RouteKind::Unreachable => format!("unreachable {}", route.destination),
        RouteKind::Other(kind) => format!("type {kind} {}", route.destination),
    };
    if let Some(gateway) = route.gateway {
        text += &format!(" via {gateway}");
    }
    if let Some(oif) = &route.oif {
        text += &format!(" dev {oif}");
    }
    text += &format!(" table {}", route.table);
    if let Some(metric) = route.metric {
        text += &format!(" metric {metric}");
    }
    text
}

/// A rule in the words of ip-rule(8).
fn describe_rule(rule: &Rule) -> String {
    let family = if rule.family == Family::V4 { "IPv4" } else { "IPv6" };
    let mut text = format!("({family}, priority {}, table {}", rule.priority, rule.table);
    if let Some((mark, mask)) = rule.fwmark {
        text += &format!(", {}fwmark {mark:#x}/{mask:#x}", if rule.invert { "not " } else { "" });
    }
    if let Some(length) = rule.suppress_prefixlen {
        text += &format!(", suppress_prefixlength {length}");
    }
    text + ")"
}

/// Table number in the header's one byte; larger ones travel in the attribute alone.
fn short_table(table: u32) -> u8 {
    u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC)
}

fn header_of(route: &Route) -> Rtmsg {
    let on_link = route.kind == RouteKind::Unicast && route.gateway.is_none();
    Rtmsg {
        rtm_family: af(Family::of(&route.destination.ip())),
        rtm_dst_len: route.destination.prefix(),
        rtm_table: short_table(route.table),
        rtm_protocol: route.protocol,
        rtm_scope: if on_link { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE },
        rtm_type: match route.kind {
            RouteKind::Unicast => RtmType::Unicast as u8,
            RouteKind::Unreachable => RtmType::Unreachable as u8,
            RouteKind::Other(kind) => kind,
        },
        ..Default::default()
    }
}

/// The attributes that identify a route; `index` is that of its outgoing link.
fn encode<P: netlink_bindings::traits::Pusher>(
    attrs: rt_route::PushRouteAttrs<P>,
    route: &Route,
    index: Option<u32>,
) -> rt_route::PushRouteAttrs<P> {
    let mut attrs = attrs.push_table(route.table);
    if route.destination.prefix() > 0 {
        attrs = attrs.push_dst(route.destination.network());
    }
    if let Some(index) = index {
        attrs = attrs.push_oif(index);
    }
    if let Some(gateway) = route.gateway {
        attrs = attrs.push_gateway(gateway);
    }
    if let Some(metric) = route.metric {
        attrs = attrs.push_priority(metric);
    }
    attrs
}

fn encode_new<P: netlink_bindings::traits::Pusher>(
    attrs: rt_route::PushRouteAttrs<P>,
    route: &Route,
    index: Option<u32>,
) {
    let attrs = encode(attrs, route, index);
    if let Some(mtu) = route.mtu {
        attrs.nested_metrics().push_mtu(mtu);
    }
}

/// A route, and the index of the link that it leaves by.
fn route_from(header: &Rtmsg, attrs: rt_route::IterableRouteAttrs<'_>) -> Option<(Route, Option<u32>)> {
    let unspecified: IpAddr = match i32::from(header.rtm_family) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut table, mut destination) = (u32::from(header.rtm_table), unspecified);
    let (mut oif, mut gateway, mut metric, mut mtu) = (None, None, None, None);
    for attr in attrs.flatten() {
        match attr {
            rt_route::RouteAttrs::Table(value) => table = value,
            rt_route::RouteAttrs::Dst(value) => destination = value,
            rt_route::RouteAttrs::Oif(value) => oif = Some(value),
            rt_route::RouteAttrs::Gateway(value) => gateway = Some(value),
            rt_route::RouteAttrs::Priority(value) => metric = Some(value),
            rt_route::RouteAttrs::Metrics(values) => mtu = values.get_mtu().ok(),
            _ => {}
        }
    }
    let kind = match header.rtm_type {
        kind if kind == RtmType::Unicast as u8 => RouteKind::Unicast,
        kind if kind == RtmType::Unreachable as u8 => RouteKind::Unreachable,
        kind => RouteKind::Other(kind),
    };
    let cloned = header.rtm_flags & RtmFlag::Cloned as u32 != 0;
    if table == TABLE_LOCAL || cloned {
        return None;
    }
    // the kernel shows an IPv6 unreachable route on `lo`; nobody asked for that
    let oif = if kind == RouteKind::Unreachable { None } else { oif };
    let destination = IpNetwork::new(destination, header.rtm_dst_len).ok()?;
    Some((Route { table, destination, kind, oif: None, gateway, metric, protocol: header.rtm_protocol, mtu }, oif))
}

fn rule_from(family: Family, header: &FibRuleHdr, attrs: rt_rule::IterableFibRuleAttrs<'_>) -> Rule {
    let mut rule = Rule {
        family,
        priority: 0,
        fwmark: None,
        invert: header.flags & RULE_INVERT != 0,
        table: u32::from(header.table),
        suppress_prefixlen: None,
        protocol: 0,
    };
    let (mut mark, mut mask) = (None, None);
    for attr in attrs.flatten() {
        match attr {
            rt_rule::FibRuleAttrs::Priority(value) => rule.priority = value,
            rt_rule::FibRuleAttrs::Table(value) => rule.table = value,
            rt_rule::FibRuleAttrs::Fwmark(value) => mark = Some(value),
            rt_rule::FibRuleAttrs::Fwmask(value) => mask = Some(value),
            // -1 stands for none; fib_rules.c
            rt_rule::FibRuleAttrs::SuppressPrefixlen(value) => {
                rule.suppress_prefixlen = (value != u32::MAX).then_some(value);
            }
            rt_rule::FibRuleAttrs::Protocol(value) => rule.protocol = value,
            _ => {}
        }
    }
    if mark.is_some() || mask.is_some() {
        rule.fwmark = Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX)));
    }
    if header.action != FrAct::ToTbl as u8 {
        rule.table = 0;
    }
    rule
}

fn encode_rule<P: netlink_bindings::traits::Pusher>(attrs: rt_rule::PushFibRuleAttrs<P>, rule: &Rule) {
    let mut attrs = attrs.push_priority(rule.priority).push_table(rule.table).push_protocol(rule.protocol);
    if let Some((mark, mask)) = rule.fwmark {
        attrs = attrs.push_fwmark(mark).push_fwmask(mask);
    }
    if let Some(length) = rule.suppress_prefixlen {
        attrs.push_suppress_prefixlen(length);
    }
}

fn rule_header(rule: &Rule) -> FibRuleHdr {
    FibRuleHdr {
        family: af(rule.family),
        table: short_table(rule.table),
        action: FrAct::ToTbl as u8,
        flags: if rule.invert { RULE_INVERT } else { 0 },
        ..Default::default()
    }
}

impl NetlinkHost {
    fn dump_routes(&mut self, family: Family) -> Reply<Vec<(Route, Option<u32>)>> {
        let header = Rtmsg { rtm_family: af(family), ..Default::default() };
        let request = rt_route::Request::new().op_getroute_dump(&header);
        let mut replies = self.sock.request(&request)?;
        let mut routes = Vec::new();
        while let Some(reply) = replies.recv() {
            let (header, attrs) = reply?;
            routes.extend(route_from(&header, attrs));
        }
        Ok(routes)
    }

    pub(super) fn list_routes(&mut self) -> Result<Vec<Route>> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            found.extend(self.dump_routes(family).map_err(|e| refused("list routes", e))?);
        }
        // few links have routes: ask for those by index instead of for everything about every link
        let mut names: HashMap<u32, String> = HashMap::new();
        let mut routes = Vec::with_capacity(found.len());
        for (mut route, oif) in found {
            if let Some(index) = oif {
                let name = names
                    .entry(index)
                    .or_insert_with(|| self.get_link_at(index).map_or_else(|_| format!("if{index}"), |link| link.name));
                route.oif = Some(name.clone());
            }
            routes.push(route);
        }
        Ok(routes)
    }

    /// Index of the link that a route leaves by; an unreachable route has none.
    fn oif_of(&mut self, operation: &str, route: &Route) -> Result<Option<u32>> {
        match &route.oif {
            Some(oif) if route.kind != RouteKind::Unreachable => self.index_of(operation, oif).map(Some),
            _ => Ok(None),
        }
    }

    fn new_route(&mut self, route: &Route, index: Option<u32>) -> Reply<()> {
        let mut request = rt_route::Request::new().set_create().set_excl().op_newroute_do(&header_of(route));
        encode_new(request.encode(), route, index);
        self.sock.request(&request)?.recv_ack()
    }

    pub(super) fn add_one_route(&mut self, route: &Route) -> Result<()> {
        let operation = format!("add route {}", describe(route));
        let index = self.oif_of(&operation, route)?;
        self.new_route(route, index).map_err(|e| refused(operation, e))
    }

    /// Sends a batch; on refusal tells which of its routes was refused first.
    fn new_routes(batch: &[(&Route, Option<u32>)]) -> std::result::Result<(), (usize, std::io::Error)> {
        let mut chain = rt_route::Chained::new(0);
        for (route, index) in batch {
            let mut request = chain.request().set_create().set_excl().op_newroute_do(&header_of(route));
            encode_new(request.encode(), route, *index);
        }
        let mut chain = chain.finalize();
        acknowledge_last(chain.buf_mut());
        match exchange(libc::NETLINK_ROUTE, chain.buf()) {
            Ok(Answer { error: 0, .. }) => Ok(()),
            Ok(Answer { seq, error }) => Err((seq as usize, std::io::Error::from_raw_os_error(error))),
            Err(error) => Err((0, error)),
        }
    }

    /// A batch is one system call, so the routes after a refused one in its batch may have been added.
    pub(super) fn add_many_routes(&mut self, routes: &[Route]) -> Result<()> {
        let mut indexes: HashMap<&str, u32> = HashMap::new();
        for routes in routes.chunks(BATCH) {
            let mut batch = Vec::with_capacity(routes.len());
            for route in routes {
                let known = route.oif.as_deref().and_then(|oif| indexes.get(oif).copied());
                let index = match known {
                    Some(index) if route.kind != RouteKind::Unreachable => Some(index),
                    _ => self.oif_of(&format!("add route {}", describe(route)), route)?,
                };
                if let (Some(oif), Some(index)) = (&route.oif, index) {
                    indexes.insert(oif, index);
                }
                batch.push((route, index));
            }
            Self::new_routes(&batch).map_err(|(at, error)| {
                Error::system(format!("add route {}", describe(batch[at.min(batch.len() - 1)].0)), error)
            })?;
        }
        Ok(())
    }

    pub(super) fn delete_one_route(&mut self, route: &Route) -> Result<()> {
        let operation = format!("delete route {}", describe(route));
        let index = match self.oif_of(&operation, route) {
            // the routes of a link go with it
            Err(e) if e.errno() == Some(libc::ENODEV) => return Ok(()),
            other => other?,
        };
        let mut exact = route.clone();
        if route.destination.is_ipv6() {
            // without a metric the kernel would delete any; with it there is but one such route in the table
            exact.metric = route.metric.or(Some(V6_DEFAULT_METRIC));
        }
        let mut header = header_of(route);
        // a wildcard in a delete request
        header.rtm_scope = libc::RT_SCOPE_NOWHERE;
        let mut request = rt_route::Request::new().op_delroute_do(&header);
        encode(request.encode(), &exact, index);
        match self.sock.request(&request).map_err(ReplyError::from).and_then(|mut r| r.recv_ack()) {
            Err(e) if !matches!(errno_of(&e), Some(libc::ESRCH | libc::ENOENT | libc::ENODEV)) => {
                Err(refused(operation, e))
            }
            _ => Ok(()),
        }
    }

    fn dump_rules(&mut self, family: Family) -> Reply<Vec<Rule>> {
        let header = FibRuleHdr { family: af(family), ..Default::default() };
        let request = rt_rule::Request::new().op_getrule_dump(&header);
        let mut replies = self.sock.request(&request)?;
        let mut rules = Vec::new();
        while let Some(reply) = replies.recv() {
            let (header, attrs) = reply?;
            rules.push(rule_from(family, &header, attrs));
        }
        Ok(rules)
    }

    pub(super) fn list_rules(&mut self) -> Result<Vec<Rule>> {
        let mut rules = Vec::new();
        for family in Family::BOTH {
            match self.dump_rules(family) {
                Ok(found) => rules.extend(found),
                // a kernel without this family or without policy routing has no rules of it
                Err(e) if matches!(errno_of(&e), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {}
                Err(e) => return Err(refused("list policy rules", e)),
            }
        }
        Ok(rules)
    }

    pub(super) fn add_one_rule(&mut self, rule: &Rule) -> Result<()> {
        let operation = format!("add policy rule {}", describe_rule(rule));
        if rule.table == 0 {
            // the kernel would pick a free table by itself
            let why = std::io::Error::new(std::io::ErrorKind::InvalidInput, "a rule needs a table");
            return Err(Error::system(operation, why));
        }
        let mut request = rt_rule::Request::new().set_create().set_excl().op_newrule_do(&rule_header(rule));
        encode_rule(request.encode(), rule);
        let reply = self.sock.request(&request).map_err(ReplyError::from).and_then(|mut r| r.recv_ack());
        reply.map_err(|e| refused(operation, e))
    }

    pub(super) fn delete_one_rule(&mut self, rule: &Rule) -> Result<()> {
        let operation = format!("delete policy rule {}", describe_rule(rule));
        // the kernel compares only what a request names, and never the inversion
        if !self.dump_rules(rule.family).map_err(|e| refused(&operation, e))?.contains(rule) {
            return Ok(());
        }
        let mut request = rt_rule::Request::new().op_delrule_do(&rule_header(rule));
        encode_rule(request.encode(), rule);
        match self.sock.request(&request).map_err(ReplyError::from).and_then(|mut r| r.recv_ack()) {
            Err(e) if errno_of(&e) != Some(libc::ENOENT) => Err(refused(operation, e)),
            _ => Ok(()),
        }
    }

    fn get_route(&mut self, destination: IpAddr, mark: u32) -> Reply<Found> {
        let header = Rtmsg {
            rtm_family: af(Family::of(&destination)),
            rtm_dst_len: if destination.is_ipv4() { 32 } else { 128 },
            rtm_flags: RtmFlag::LookupTable as u32,
            ..Default::default()
        };
        let mut request = rt_route::Request::new().op_getroute_do(&header);
        request.encode().push_dst(destination);
        if mark != 0 {
            request.encode().push_mark(mark);
        }
        let mut replies = self.sock.request(&request)?;
        let (header, attrs) = replies.recv_one()?;
        let found = Found {
            oif: attrs.get_oif().ok(),
            source: attrs.get_prefsrc().ok(),
            gateway: attrs.get_gateway().ok(),
            mtu: attrs.get_metrics().ok().and_then(|metrics| metrics.get_mtu().ok()),
            table: attrs.get_table().unwrap_or(u32::from(header.rtm_table)),
        };
        replies.recv_ack()?;
        Ok(found)
    }

    pub(super) fn look_up(&mut self, destination: IpAddr, mark: u32) -> Result<Option<RouteLookup>> {
        let operation = format!("look up the route to {destination} with mark {mark:#x}");
        let found = match self.get_route(destination, mark) {
            Ok(found) => found,
            // no route, or one of kind unreachable, prohibit (EACCES) or blackhole (EINVAL); ip-route(8)
            Err(e)
                if matches!(
                    errno_of(&e),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(refused(operation, e)),
        };
        let Some(ifindex) = found.oif else { return Ok(None) };
        let link = self.get_link_at(ifindex).map_err(|e| refused(operation, e))?;
        let unspecified = Family::of(&destination).default_prefix().ip();
        Ok(Some(RouteLookup {
            ifindex,
            interface: link.name,
            source: found.source.unwrap_or(unspecified),
            gateway: found.gateway,
            mtu: found.mtu.unwrap_or(link.mtu),
            table: found.table,
        }))
    }
}

/// What the kernel answered to RTM_GETROUTE.
struct Found {
    oif: Option<u32>,
    source: Option<IpAddr>,
    gateway: Option<IpAddr>,
    mtu: Option<u32>,
    table: u32,
}
