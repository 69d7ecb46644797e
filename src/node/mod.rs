//! The running node, exit or connect: one event loop on one thread that joins the pure modules to the operating system.
//!
//! - [`exit`], [`connect`]: the two kinds of node, from the first check to the last undo.
//! - [`apply`]: host changes through the journal; [`undo`]: taking them back; [`recover`]: what a killed node left.
//! - [`portmap`]: port mapping on the gateway.
//! - [`approach`]: how a connecting node gets at the exit; [`redeem`]: its first time, by an invite.
//! - [`steer`]: what sends a connected node's traffic into the tunnel; [`guard`]: what holds it there; [`carrier`]:
//!   other tunnels around ours.
//! - [`dns`]: how this host's programs, or peers, come to their answers.
//! - [`control`]: the control socket; [`event`]: what the person or script is told.
//! - [`state`]: identity key and peers file; [`device`]: the userspace device's own process; [`stun`], [`mapping`]: STUN on our port, before and after WireGuard
//!   has it.
//! - [`alarm`]: sleeping without waking on the way.

mod alarm;
pub mod apply;
mod approach;
mod carrier;
pub mod connect;
pub mod control;
pub mod device;
mod dns;
pub mod doctor;
pub mod event;
pub mod exit;
#[cfg(test)]
mod fake;
mod guard;
pub mod info;
pub mod invite;
pub mod mapping;
pub mod nattest;
pub mod offline;
pub mod portmap;
pub mod recover;
mod redeem;
pub mod roam;
pub mod service;
mod settle;
pub mod state;
mod steer;
pub mod stun;
pub mod system_service;
mod undo;

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use peervpn_platform::os::signals::StopSignals;
use peervpn_platform::os::{self, process};
pub use peervpn_platform::os::{confine_thread, output, places};
use peervpn_platform::types::{Backend, DeviceConfig, ProcessId};
use peervpn_platform::{Host, OUR_ALIAS, WireGuard, files};

use apply::Applier;
use control::{Request, Response};
use event::{Event, Output};
use undo::Leftovers;

use crate::config::{BackendChoice, NodeOptions, Places};
use crate::error::{Failure, Status, Words};
use crate::host::Change;
use crate::key::PrivateKey;

/// Time for the userspace device to open its UAPI socket: process start on a slow machine.
const DEVICE_START: Duration = Duration::from_secs(5);

/// The kernel's `main` table, `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;

/// Public addresses that are only ever asked about in the local routing table; nothing is sent to them.
pub const PROBES: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111)),
];

/// What both kinds of node stand on once the checks have passed: nothing is changed on the host yet.
struct Ground {
    applier: Applier,
    key: PrivateKey,
    interface: String,
    backend: Backend,
    /// Program of the userspace back end; `None` is the bundled device.
    program: Option<std::path::PathBuf>,
}

impl Ground {
    /// Checks everything that can be checked without changing the host, and puts back what a killed node left. From here
    /// on the node can be asked, and stopped.
    fn prepare(
        options: &NodeOptions,
        places: &Places,
        mode: &'static str,
        out: &mut dyn Output,
    ) -> Result<(Ground, control::Server), Failure> {
        if !os::privileged() {
            return Err(not_root(mode));
        }
        files::private_dir(&places.state_dir).map_err(apply::unwritable)?;
        let (backend, program) = choose_backend(&options.backend)?;
        let key = state::key_or_new(places)?;
        let mut applier = Applier::open(places, &options.interface, mode, out)?;
        let interface = options.interface.clone();
        if let Some(link) = applier.host.link(&interface)? {
            let ours = link.alias.as_deref() == Some(OUR_ALIAS);
            let hint = if ours {
                "peervpn recover removes what a killed node left".to_owned()
            } else {
                Words::HERE.name_taken(&interface)
            };
            let whose = if ours { "from another node" } else { "and is not ours" };
            let failure = Failure::new(format!("the interface {interface} exists already {whose}"), hint);
            return Err(applier.undo_after(failure));
        }
        match control::Server::bind(places, &interface) {
            Ok(server) => Ok((Ground { applier, key, interface, backend, program }, server)),
            Err(failure) => Err(applier.undo_after(failure)),
        }
    }

    /// Creates the device: link, WireGuard settings, addresses; up when it returns.
    fn create_device(
        &mut self,
        config: &DeviceConfig,
        addresses: &[IpAddr],
        mtu: u32,
    ) -> Result<Box<dyn WireGuard>, Failure> {
        let mut wireguard = os::wireguard(&self.backend)?;
        let mut device = None;
        match self.backend {
            Backend::Kernel => {
                // the driver switches it off for the whole host when its link comes up (drivers/net/wireguard/device.c,
                // wg_open); recorded first, so that the undo puts it back
                let key = "net/ipv4/conf/all/send_redirects".to_owned();
                let redirects = Change::Sysctl { key, value: "0".to_owned(), beside: Vec::new() };
                self.applier.make_all(vec![redirects, Change::Link { name: self.interface.clone() }])?;
            }
            Backend::Userspace => device = Some(self.start_device()?),
        }
        if self.applier.mode() == "exit" && !self.applier.ipv6 {
            // peers may have IPv6: on a link that has none it would be swallowed instead of refused
            let key = format!("net/ipv6/conf/{}/disable_ipv6", self.interface);
            if self.applier.host.sysctl(&key)?.is_some() {
                self.applier.host.set_sysctl(&key, "0")?;
                self.applier.ipv6 = true;
            }
        }
        let addresses: Vec<IpNetwork> =
            addresses.iter().filter(|a| a.is_ipv4() || self.applier.ipv6).map(|a| IpNetwork::from(*a)).collect();
        let mut up = apply::bring_up(&mut self.applier.host, &mut *wireguard, &self.interface, config, &addresses, mtu);
        if let (Err(error), Some(id)) = (&up, device)
            && (matches!(error, peervpn_platform::Error::Unexpected { .. })
                || error.kind() == Some(std::io::ErrorKind::InvalidInput))
        {
            // gotatun 0.10 gives its tasks 5 s to hand the link over when key and port come, then panics: on a machine
            // that is busy enough, the device hangs up; or it says EINVAL, whatever it was that failed
            tracing::warn!(%error, "the userspace device failed: another one takes its place");
            undo::device(&mut self.applier.host, &id, &self.interface)?;
            self.start_device()?;
            up = apply::bring_up(&mut self.applier.host, &mut *wireguard, &self.interface, config, &addresses, mtu);
        }
        up?;
        Ok(wireguard)
    }

    fn start_device(&mut self) -> Result<ProcessId, Failure> {
        if let Some(owner) = process::uapi_owner(&self.interface) {
            return Err(Failure::new(
                format!("a userspace WireGuard device named {} runs already (process {})", self.interface, owner.pid),
                "choose another name with --interface NAME",
            ));
        }
        let exe = std::env::current_exe().map_err(|error| {
            Failure::new(format!("cannot find our own program: {error}"), "start it by its full path")
        })?;
        let mut args: Vec<std::ffi::OsString> = vec![device::SUBCOMMAND.into(), self.interface.clone().into()];
        if let Some(program) = &self.program {
            args.extend(["--program".into(), program.into()]);
        }
        let held = process::spawn_held(&exe, &args, &[], None)?;
        let id = held.id.clone();
        self.applier.adopt_process(id.clone())?;
        held.release()?;
        process::wait_uapi(&self.interface, DEVICE_START).map_err(|error| {
            Failure::new(
                format!("the userspace device of {} did not start: {}", self.interface, crate::error::chain(&error)),
                "choose another back end with --backend; -v shows more",
            )
        })?;
        self.applier.host.mark_link(&self.interface)?;
        Ok(id)
    }
}

/// Which back end, and the program of a userspace one.
fn choose_backend(choice: &BackendChoice) -> Result<(Backend, Option<std::path::PathBuf>), Failure> {
    let environment = std::env::var("WG_USERSPACE_IMPLEMENTATION").ok();
    let lacking = |(what, mend): (&str, &str)| Failure::new(what, mend).host("unchanged");
    let userspace = |named: Option<&str>| -> Result<_, Failure> {
        if !os::tun_available() {
            return Err(lacking(Words::HERE.no_userspace()));
        }
        Ok((Backend::Userspace, device::program(named, environment.as_deref())?))
    };
    match choice {
        BackendChoice::Userspace(named) => userspace(named.as_deref()),
        BackendChoice::Auto if os::kernel_wireguard()? => Ok((Backend::Kernel, None)),
        BackendChoice::Auto if os::tun_available() => userspace(None),
        BackendChoice::Auto => Err(lacking(Words::HERE.no_back_end())),
        BackendChoice::Kernel if os::kernel_wireguard()? => Ok((Backend::Kernel, None)),
        BackendChoice::Kernel => Err(lacking(Words::HERE.no_kernel())),
    }
}

/// Hides an argument of ours from the system's list of processes; whether that was possible.
pub fn conceal_argument(argument: &str) -> bool {
    process::conceal_argument(argument)
}

/// Refuses a configuration file that nobody named and that others may have put there.
pub fn check_config(file: &std::path::Path) -> Result<(), Failure> {
    files::check_place(file).map_err(|error| {
        Failure::new(crate::error::chain(&error), "look at it, then name it with --config FILE, or remove it")
            .host("unchanged")
    })
}

/// Whether this process may do what a node does.
pub fn privileged() -> bool {
    os::privileged()
}

/// The commands that change the host need an administrator.
pub fn not_root(command: &str) -> Failure {
    let rest = if command == "recover" { "" } else { " …" };
    let (who, hint) = (Words::HERE.administrator(), Words::HERE.elevated(&format!("{command}{rest}")));
    Failure::new(format!("peervpn {command} configures the network and needs {who}"), hint).host("unchanged")
}

/// Runs a node to its end on one thread. Name look-ups that still hang do not hold up the end.
fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(os::confine_thread)
        .build()
        .map_err(|error| {
            Failure::new(format!("cannot start the event loop: {error}"), "free some file descriptors or memory")
        })?;
    let output = runtime.block_on(async {
        tokio::spawn(settle::keep_alive());
        future.await
    });
    runtime.shutdown_background();
    Ok(output)
}

/// What bringing a node up came to.
enum Started<T> {
    Up(Result<T, Failure>),
    /// It was to stop before: by a signal, or by this request, to be answered when the host is put back.
    Stopped(Option<control::Asked>),
}

/// Brings a node up, unless a signal or `down` comes first. Whoever asks for anything else is told to wait.
async fn start<T>(
    interface: &str,
    up: impl Future<Output = Result<T, Failure>>,
    server: &mut control::Server,
    signals: &mut StopSignals,
) -> Started<T> {
    let mut up = std::pin::pin!(up);
    loop {
        tokio::select! {
            biased;
            () = signals.recv() => return Started::Stopped(None),
            asked = server.next() => match asked.request {
                Request::Down => return Started::Stopped(Some(asked)),
                _ => asked.reply(control::failed(Failure::new(
                    format!("the node on {interface} is still starting"),
                    format!(
                        "wait until it says that it is ready or connected; {} stops it",
                        Words::HERE.ours(&format!("down --interface {interface}"))
                    ),
                ))),
            },
            up = &mut up => return Started::Up(up),
        }
    }
}

/// A node's end: puts the host back, answers who asked for it, says what is left, and makes it the exit status.
async fn end<H: Host>(
    applier: Applier<H>,
    asked: Option<control::Asked>,
    mut server: control::Server,
    out: &mut dyn Output,
) -> Result<(), Failure> {
    server.close();
    let left = applier.undo_all();
    if let Some(asked) = asked {
        asked.reply(Response::Stopped { host: left.describe(), restored: left.none() });
        server.finish().await;
    }
    stopped(&left, out)
}

/// The same for a node that failed.
fn fail(applier: Applier, server: control::Server, failure: Failure) -> Failure {
    drop(server);
    applier.undo_after(failure)
}

fn stopped(left: &Leftovers, out: &mut dyn Output) -> Result<(), Failure> {
    os::notify("STOPPING=1");
    out.event(&Event::Stopped { host: left.describe() });
    if left.none() {
        return Ok(());
    }
    Err(Failure {
        message: "the host could not be fully put back".to_owned(),
        host: Some(left.describe()),
        hint: Some("peervpn recover tries again".to_owned()),
        status: Status::NotRestored,
    })
}

/// The route to an exit's tunnel address. It lies on our link and goes with it.
fn exit_route(interface: &str, exit: IpAddr) -> peervpn_platform::types::Route {
    peervpn_platform::types::Route {
        table: MAIN_TABLE,
        destination: IpNetwork::from(exit),
        kind: peervpn_platform::types::RouteKind::Unicast,
        oif: Some(interface.to_owned()),
        gateway: None,
        metric: None,
        protocol: peervpn_platform::OUR_PROTOCOL,
        mtu: None,
    }
}

/// A listen port that is taken, with its holder where the system tells.
fn port_in_use(port: u16) -> Failure {
    let holder = os::port_holder(port).map_or(String::new(), |h| format!(" by {} (process {})", h.program, h.pid));
    Failure::new(
        format!("the UDP port {port} is in use{holder}"),
        "choose another one with --port N, or stop that program",
    )
}
