//! systemd-resolved over the system bus: org.freedesktop.resolve1(5). Settings belong to a link and go with it.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustbus::connection::Timeout;
use rustbus::message_builder::{MarshalledMessage, MessageBuilder, MessageType};
use rustbus::wire::errors::MarshalError;
use rustbus::wire::unmarshal::traits::Variant;
use rustbus::{RpcConn, wire::ObjectPath};

use crate::{Error, Result};

/// A call is answered from memory.
const LIMIT: Duration = Duration::from_secs(5);
const SERVICE: &str = "org.freedesktop.resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";

/// Whether it runs, in our network namespace. It is never started by asking.
pub fn running() -> bool {
    let ask = || -> Result<bool> {
        let mut bus = Bus::open()?;
        let call = MessageBuilder::new()
            .call("NameHasOwner")
            .on("/org/freedesktop/DBus")
            .with_interface("org.freedesktop.DBus")
            .at("org.freedesktop.DBus");
        let answer =
            bus.ask("ask the system bus for systemd-resolved", call.build(), |call| call.body.push_param(SERVICE))?;
        if !answer.body.parser().get().unwrap_or(false) {
            return Ok(false);
        }
        let call = MessageBuilder::new()
            .call("GetConnectionUnixProcessID")
            .on("/org/freedesktop/DBus")
            .with_interface("org.freedesktop.DBus")
            .at("org.freedesktop.DBus");
        let answer =
            bus.ask("ask the system bus for its process", call.build(), |call| call.body.push_param(SERVICE))?;
        let process = answer.body.parser().get::<u32>().unwrap_or_default();
        // the bus may be that of the host around our network namespace, whose link numbers mean other links
        let namespace =
            |process: &str| std::fs::metadata(format!("/proc/{process}/ns/net")).map(|found| found.ino()).ok();
        Ok(match (namespace("self"), namespace(&process.to_string())) {
            (Some(ours), Some(its)) => ours == its,
            _ => true,
        })
    };
    ask().unwrap_or_else(|error| {
        tracing::debug!(%error, "system bus");
        false
    })
}

/// Sends every query to these servers by that link, and forgets what was answered before. What the link says about
/// DNSSEC stays; without DNS over TLS where `plain`, since an exit's resolver speaks none.
pub fn set(ifindex: u32, servers: &[IpAddr], plain: bool) -> Result<()> {
    let mut bus = Bus::open()?;
    let index = ifindex as i32;
    let list: Vec<(i32, Vec<u8>)> = servers.iter().map(|server| (family(server), octets(server))).collect();
    bus.manager("SetLinkDNS", |call| call.body.push_param2(index, &list[..]))?;
    // the root domain as a routing domain: this link is asked for every name; systemd-resolved(8) "protocols and routing"
    bus.manager("SetLinkDomains", |call| call.body.push_param2(index, &[(".", true)][..]))?;
    bus.manager("SetLinkDefaultRoute", |call| call.body.push_param2(index, true))?;
    if plain && let Err(error) = bus.manager("SetLinkDNSOverTLS", |call| call.body.push_param2(index, "no")) {
        // older than 239
        tracing::debug!(%error, "DNS over TLS stays as it is");
    }
    bus.manager("FlushCaches", |_| Ok(())).map(drop)
}

/// The servers of a link, for read-back.
pub fn servers(ifindex: u32) -> Result<Vec<IpAddr>> {
    let mut bus = Bus::open()?;
    let operation = "read a link's servers from systemd-resolved";
    let odd = |detail: &str| Error::Unexpected { operation: operation.to_owned(), detail: detail.to_owned() };
    let answer = bus.manager("GetLink", |call| call.body.push_param(ifindex as i32))?;
    let path = answer.body.parser().get::<ObjectPath<&str>>().map_err(|_| odd("no link object"))?;
    let call = MessageBuilder::new()
        .call("Get")
        .on(path.as_ref().to_owned())
        .with_interface("org.freedesktop.DBus.Properties")
        .at(SERVICE);
    let answer =
        bus.ask(operation, call.build(), |call| call.body.push_param2("org.freedesktop.resolve1.Link", "DNS"))?;
    let variant = answer.body.parser().get::<Variant>().map_err(|_| odd("no property"))?;
    let list = variant.get::<Vec<(i32, Vec<u8>)>>().map_err(|_| odd("no list of addresses"))?;
    Ok(list.into_iter().filter_map(|(_, bytes)| address(&bytes)).collect())
}

/// Takes back what [`set`] said about a link. No error if it has gone, or systemd-resolved has.
pub fn revert(ifindex: u32) -> Result<()> {
    if !running() {
        return Ok(());
    }
    let mut bus = Bus::open()?;
    bus.manager("RevertLink", |call| call.body.push_param(ifindex as i32))?;
    bus.manager("FlushCaches", |_| Ok(())).map(drop)
}

struct Bus(RpcConn);

impl Bus {
    fn open() -> Result<Bus> {
        let failed = |e: rustbus::connection::Error| {
            Error::system("connect to the system bus", std::io::Error::other(format!("{e:?}")))
        };
        Ok(Bus(RpcConn::system_conn(Timeout::Duration(LIMIT)).map_err(failed)?))
    }

    /// Calls a method of the manager object.
    fn manager(
        &mut self,
        method: &str,
        params: impl FnOnce(&mut MarshalledMessage) -> std::result::Result<(), MarshalError>,
    ) -> Result<MarshalledMessage> {
        let call =
            MessageBuilder::new().call(method).on("/org/freedesktop/resolve1").with_interface(MANAGER).at(SERVICE);
        self.ask(&format!("tell systemd-resolved {method}"), call.build(), params)
    }

    fn ask(
        &mut self,
        operation: &str,
        mut call: MarshalledMessage,
        params: impl FnOnce(&mut MarshalledMessage) -> std::result::Result<(), MarshalError>,
    ) -> Result<MarshalledMessage> {
        let failed = |detail: String| Error::system(operation, std::io::Error::other(detail));
        params(&mut call).map_err(|e| failed(format!("{e:?}")))?;
        let serial = self
            .0
            .send_message(&mut call)
            .and_then(|sending| sending.write_all().map_err(rustbus::connection::ll_conn::force_finish_on_error))
            .map_err(|e| failed(format!("{e:?}")))?;
        let answer = self.0.wait_response(serial, Timeout::Duration(LIMIT)).map_err(|e| failed(format!("{e:?}")))?;
        if answer.typ == MessageType::Error {
            let said = answer.body.parser().get::<&str>().unwrap_or_default().to_owned();
            let name = answer.dynheader.error_name.clone().unwrap_or_default();
            return Err(failed(if said.is_empty() { name } else { said }));
        }
        Ok(answer)
    }
}

fn family(address: &IpAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}
