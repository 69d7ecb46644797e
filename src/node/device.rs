//! The userspace WireGuard device, a process of its own: `peervpn` started again under a hidden subcommand. It waits on
//! its standard input for the node's word that it is in the journal, then becomes the bundled device (the `gotatun`
//! crate) or the program it was told. Its UAPI socket is where wg(8) looks for it.

mod rest;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gotatun::device::uapi::UapiServer;
use gotatun::device::{Device, DeviceBuilder, DeviceTransports};
use gotatun::tun::tun_async_device::TunDevice;
use peervpn_platform::os::{self, launch};
use peervpn_platform::types::Capability;

use super::control::not_accepted;
use crate::error::{Failure, Words};
use rest::{Activity, Sockets};

/// Bytes that the device's UDP sockets hold each way, or as many as net.core.{r,w}mem_max lets: a burst is not lost while
/// its threads wait for a processor. As much as gotatun's own program asks for.
const SOCKET_BUFFER: usize = 7 << 20;
/// Requests whose peers wait to be called. gotatun calls those that find no room a little later.
const REQUESTS: usize = 16;
/// How long an initiation may take to leave.
const SENT: Duration = Duration::from_millis(20);

/// The hidden subcommand's name.
pub const SUBCOMMAND: &str = "__userspace-device";

/// Waits for the word to go, then runs the device until it is told to end, or its link is gone.
pub fn run(interface: &str, program: Option<&Path>) -> Result<(), Failure> {
    if !launch::wait_release() {
        // the node died before it had journaled us: nothing was done
        return Ok(());
    }
    // a port below 1024 is bound when the node says so; the TUN device and marks are network configuration
    if let Err(error) = os::confine(&[Capability::NetAdmin, Capability::NetBindService]) {
        tracing::warn!(%error, "the device keeps its privileges");
    }
    match program {
        Some(program) => {
            // both spellings of "stay in the foreground" and "keep your privileges" that the known programs read;
            // boringtun 0.7 takes no 1
            let mut envs = vec![("WG_SUDO", "true"), ("WG_PROCESS_FOREGROUND", "1"), ("LOG_LEVEL", "error")];
            let (name, more) = os::for_device(interface)?;
            envs.extend(more.iter().map(|(key, value)| (key.as_str(), value.as_str())));
            let error = launch::exec(program, &["-f", &name], &envs);
            Err(Failure::new(
                format!("cannot start {}: {error}", program.display()),
                "name another program with --backend userspace=PROGRAM, or take the bundled device: --backend userspace",
            ))
        }
        None => bundled(interface),
    }
}

#[inline(never)] // 100 kB of stack, which the short commands would touch, too
fn bundled(interface: &str) -> Result<(), Failure> {
    // the device encrypts on several threads, unlike the node
    let resting: Arc<OnceLock<Activity>> = Arc::default();
    let activity = resting.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(move || {
            if let Some(activity) = activity.get() {
                activity.before_waiting();
            }
        })
        .build()
        .map_err(|error| failed(&error))?;
    runtime.block_on(async {
        let activity = resting.get_or_init(Activity::begin).clone();
        tokio::spawn(activity.clone().hear());
        let (name, _) = os::for_device(interface)?;
        let tun = TunDevice::from_name(&name).map_err(|error| failed(&error))?;
        let name = tun.name().map_err(|error| failed(&error))?;
        let builder = DeviceBuilder::new().with_udp(Sockets::new(activity.clone(), SOCKET_BUFFER)).with_ip(tun);
        let (client, server) = UapiServer::new();
        let mut device = builder.with_uapi(server).build().await.map_err(|error| failed(&error))?;
        // the socket last: a request that comes while gotatun 0.10.2 builds its device makes it panic
        let mut listener = os::UapiListener::bind(interface, &name).map_err(|error| failed(&error))?;
        let mut stop = os::signals::StopSignals::install()?;
        let (called, mut to_call) = tokio::sync::mpsc::channel(REQUESTS);
        let serve = async |accepted: std::io::Result<_>| match accepted {
            Ok(stream) => {
                activity.told();
                client.clone().wrap_read_write(stream);
            }
            Err(error) => not_accepted(error).await,
        };
        'run: loop {
            let peers = tokio::select! {
                () = device.wait() => break,
                () = stop.recv() => break,
                accepted = listener.accept(&called) => {
                    serve(accepted).await;
                    continue;
                }
                Some(peers) = to_call.recv() => peers,
            };
            let mut calling = std::pin::pin!(call(&device, peers));
            loop {
                tokio::select! {
                    () = &mut calling => break,
                    () = stop.recv() => break 'run,
                    accepted = listener.accept(&called) => serve(accepted).await,
                }
            }
        }
        device.stop().await;
        Ok(())
    })
}

/// Sends each of them an initiation, unless there is a session, or one was sent already.
async fn call<T: DeviceTransports>(device: &Device<T>, peers: Vec<[u8; 32]>) {
    for peer in peers {
        // it ends with the handshake, which need not be waited for; without an endpoint there is nobody to call
        let _ = tokio::time::timeout(SENT, device.force_handshake(&peer.into())).await;
    }
}

fn failed(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("the userspace device failed: {error}"), "peervpn doctor tells what this system lacks")
}

/// The program that `--backend userspace=PROGRAM` or `WG_USERSPACE_IMPLEMENTATION` names, as a path, else the system's
/// usual one if it is there; `None` for the bundled device. Looked for on the search path, then in `vendor/` beside our
/// own program.
pub fn program(named: Option<&str>, environment: Option<&str>) -> Result<Option<PathBuf>, Failure> {
    let find = |name: &str| {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("vendor").join(name)));
        which::which(name).ok().or(beside.filter(|path| path.is_file()))
    };
    let Some(name) = named.or(environment).filter(|name| !name.is_empty()) else {
        return Ok(os::USUAL_DEVICE.and_then(find));
    };
    find(name).map(Some).ok_or_else(|| {
        Failure::new(
            format!("there is no program {name} on the search path or in vendor/"),
            format!("{}, or take the bundled device: --backend userspace", Words::HERE.install(name)),
        )
        .host("unchanged")
    })
}
