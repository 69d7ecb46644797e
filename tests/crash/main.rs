//! Crashes: SIGKILL at every step that changes something, `recover`, and the host is as it was.
//!
//! The binary carries no hooks for this: strace(1) kills it as it enters its Nth system call of a kind, N counted up
//! until a run survives. Uses the lab's parts, and like the lab runs on the back end that `PEERVPN_TEST_BACKEND` names.
//!
//! `PEERVPN_CRASH_STEP=K` takes every Kth point only (1 by default), `PEERVPN_CRASH_KILLS=N` the number of kills at
//! random times (24 by default), `PEERVPN_CRASH_SEED` their seed.

#[path = "../lab/net.rs"]
#[allow(dead_code)]
mod net;
#[path = "../lab/node.rs"]
#[allow(dead_code)]
mod node;
#[path = "../lab/record.rs"]
#[allow(dead_code)]
mod record;
#[path = "../lab/service.rs"]
#[allow(dead_code)]
mod service;
#[path = "../lab/snapshot.rs"]
#[allow(dead_code)]
mod snapshot;
#[path = "../lab/topology.rs"]
#[allow(dead_code)]
mod topology;

mod journal;
mod matrix;
mod peers;
mod random;
mod redemption;
mod victim;
