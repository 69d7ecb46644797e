//! The lab: the real binary between real NATs, a real STUN server and a web server, in network namespaces.
//!
//! `cargo test --test lab` runs it on the back end that `PEERVPN_TEST_BACKEND` names (`kernel` or `userspace`); without
//! it, on the kernel's WireGuard if there is one, else on the userspace device. `tests/vm/lab` brings a kernel that has
//! it. Needs root and the packages of `tests/install-deps.sh`. Each test makes its own namespaces, so they run side by
//! side. `PEERVPN_BIN` names another binary, `PEERVPN_LAB_RESULTS` another directory for the results.

mod costs;
mod count;
mod dialogue;
mod dns;
mod forge;
mod grid;
mod host_unchanged;
mod isolation;
mod itself;
mod joining;
mod joining_invites;
mod keeper;
mod leaks;
mod machine;
mod matrix;
mod neighbours;
mod net;
mod node;
mod other_tunnel;
mod portmap;
mod privileges;
mod punching;
mod record;
mod roaming;
mod service;
mod snapshot;
mod ssh;
mod stock_clients;
mod strangers;
mod topology;
mod units;
mod wire;

use serde_json::Value;

use node::Node;
use topology::{Lab, Site};

/// An exit that lets everyone in, and the event that says it is ready.
fn open_exit(lab: &Lab, args: &[&str]) -> (Node, Value) {
    let mut exit = lab.exit.exit(&[&["--accept", "any"], args].concat());
    let ready = exit.event("ready");
    (exit, ready)
}

/// A peer that connects to `ready`'s connect string, waited for.
fn join(site: &Site, ready: &Value, args: &[&str]) -> (Node, Value) {
    let mut peer = site.connect(text(ready, "connect"), args);
    let connected = peer.event("connected");
    (peer, connected)
}

/// A field of an event that must be a string.
#[track_caller]
fn text<'a>(event: &'a Value, field: &str) -> &'a str {
    event[field].as_str().unwrap_or_else(|| panic!("no {field} in {event}"))
}

/// A field that must be a list of strings.
#[track_caller]
fn texts(event: &Value, field: &str) -> Vec<String> {
    let list = event[field].as_array().unwrap_or_else(|| panic!("no list {field} in {event}"));
    list.iter().map(|item| item.as_str().unwrap_or_else(|| panic!("{field} in {event}")).to_owned()).collect()
}

/// Asserts that a request from `site` arrives at the web server with the exit's address, in both families where the
/// exit has both.
#[track_caller]
fn assert_leaves_through_exit(lab: &Lab, site: &Site) {
    for web in topology::WEB {
        if let Some(expected) = lab.exit.public(web) {
            match site.whoami(web) {
                Ok(seen) => assert_eq!(seen, expected, "the request to {web} arrived from another address"),
                Err(why) => panic!("no answer from {web} through the exit: {why}"),
            }
        }
    }
}

/// Asserts that a request from `site` arrives with the site's own address.
#[track_caller]
fn assert_leaves_directly(site: &Site) {
    for web in topology::WEB {
        if let Some(expected) = site.public(web) {
            match site.whoami(web) {
                Ok(seen) => assert_eq!(seen, expected, "the request to {web} arrived from another address"),
                Err(why) => panic!("no answer from {web}: {why}"),
            }
        }
    }
}
