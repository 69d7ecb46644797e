//! Port-mapping protocols found at a real gateway: miniupnpd.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use peervpn::nat::verdict::CanBeExit;
use peervpn::node::nattest::{Options, PortMapping, Report, measure};

use crate::topology::{Lab, Nat, Plan, STUN4};
use crate::{block_on, found, lab_runs};

/// What the daemon tells as the router's external address. It refuses the lab's own ones, which are reserved for
/// documentation, so the lab looks as if a second NAT were behind the router's.
const EXTERNAL: &str = "192.1.2.3";

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// miniupnpd on the exit site's router.
fn miniupnpd(lab: &Lab, pmp_and_pcp: bool, upnp: bool) -> Daemon {
    let router = lab.exit.router.as_ref().expect("a NAT");
    let yes = |on| if on { "yes" } else { "no" };
    let config = lab.exit.dir.join(format!("miniupnpd-{pmp_and_pcp}-{upnp}.conf"));
    let lease = lab.exit.dir.join("leases");
    let text = format!(
        "ext_ifname=eth0\next_ip={}\nlistening_ip=lan0\nhttp_port=0\nenable_natpmp={}\nenable_upnp={}\n\
         secure_mode=yes\nsystem_uptime=yes\nuuid=00000000-0000-4000-8000-000000000001\nlease_file={}\n\
         allow 1024-65535 0.0.0.0/0 1024-65535\n",
        EXTERNAL,
        yes(pmp_and_pcp),
        yes(upnp),
        lease.display()
    );
    std::fs::write(&config, text).expect("write the configuration");
    let mut command = router.command("miniupnpd");
    command.arg("-d").arg("-f").arg(&config).arg("-P").arg(lab.exit.dir.join("miniupnpd.pid"));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Daemon(child.expect("start miniupnpd"))
}

fn test(lab: &Lab) -> Report {
    let options = Options { servers: STUN4.map(|ip| format!("{ip}:3478")).to_vec(), port: None, lifetime: false };
    lab.exit.host.run(|| block_on(measure(&options, &mut |_| ()))).expect("servers have addresses")
}

#[test]
fn each_protocol_is_found_and_counts_unless_a_second_nat_is_behind() {
    if !lab_runs() {
        return;
    }
    if !found("miniupnpd") {
        eprintln!("SKIP: miniupnpd");
        return;
    }
    let lab = Lab::new(Plan::v4_only(Nat::PortRestricted), &[]);
    for (pmp_and_pcp, upnp) in [(true, true), (true, false), (false, true)] {
        let _daemon = miniupnpd(&lab, pmp_and_pcp, upnp);
        let wanted = PortMapping { pcp: pmp_and_pcp, nat_pmp: pmp_and_pcp, upnp };
        // the daemon needs a moment to open its sockets
        let start = Instant::now();
        let report = loop {
            let report = test(&lab);
            if report.port_mapping == wanted || start.elapsed() > Duration::from_secs(10) {
                break report;
            }
        };
        assert_eq!(report.port_mapping, wanted);
        let ipv4 = report.ipv4.expect("v4");
        // NAT-PMP tells the external address, which isn't the one the servers see: a mapping there leads nowhere
        assert_eq!(ipv4.cgn, pmp_and_pcp.then_some(true));
        let expected = if pmp_and_pcp { CanBeExit::WithHelp } else { CanBeExit::WithPortMapping };
        assert_eq!(report.can_be_exit, expected, "{:?}", report.explanation);
        assert!(report.elapsed_ms <= 1200, "{}", report.elapsed_ms);
    }
}
