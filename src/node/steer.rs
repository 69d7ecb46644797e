//! What sends a connected node's traffic into the tunnel: routes in a table of their own and the policy rules that lead
//! there. Looked after while the node runs: another tunnel may come around ours, or put its rules before ours.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use peervpn_platform::Host as _;
use peervpn_platform::os;
use peervpn_platform::types::{Family, Route, RouteKind, System};

use super::apply::Applier;
use super::event::{Event, Output};
use super::guard::Guard;
use super::{PROBES, carrier, roam};
use crate::config::ConnectOptions;
use crate::error::{Failure, Words};
use crate::host::{Change, Numbers, numbers, sysctls};
use crate::tunnel::routes;

/// How often another program may go in front of us before we leave it there.
const TURNS: u32 = 20;
/// After this long without such a turn, they count anew.
const CALM: Duration = Duration::from_secs(60);

/// A connected node's routes and rules.
pub struct Steering {
    interface: String,
    numbers: Numbers,
    allowed: Vec<IpNetwork>,
    exclude: Vec<IpNetwork>,
    exit: Vec<IpAddr>,
    no_lan: bool,
    carriers: Vec<u32>,
    turns: Turns,
    /// The traffic goes elsewhere, and that was said.
    past: bool,
}

impl Steering {
    /// Nothing is changed yet. `carriers`: see [`carrier::marks`].
    pub fn new(
        interface: &str,
        options: &ConnectOptions,
        numbers: Numbers,
        allowed: &[IpNetwork],
        exit: &[IpAddr],
        carriers: Vec<u32>,
    ) -> Steering {
        Steering {
            interface: interface.to_owned(),
            numbers,
            allowed: allowed.to_vec(),
            exclude: options.exclude.clone(),
            exit: exit.to_vec(),
            no_lan: options.no_lan,
            carriers,
            turns: Turns::default(),
            past: false,
        }
    }

    fn wanted(&self) -> routes::Wanted<'_> {
        routes::Wanted {
            interface: &self.interface,
            numbers: self.numbers,
            allowed: &self.allowed,
            exclude: &self.exclude,
            exit: &self.exit,
            no_lan: self.no_lan,
            carriers: &self.carriers,
        }
    }

    /// Firewall, settings, routes, rules: from here on this host's traffic goes through the exit. The caller reads it back.
    pub fn take_over(&self, endpoint: IpAddr, applier: &mut Applier, guard: &Guard) -> Result<(), Failure> {
        applier.will_close(guard.closes());
        match os::SYSTEM {
            System::Linux => self.by_rules(applier, guard)?,
            system => self.in_one_table(system, endpoint, applier, guard)?,
        }
        match self.past(applier)? {
            // another program's rule before ours would take the traffic past the tunnel: say so instead of leaking
            Some(way) => Err(Failure::new(
                format!("another program's routes send traffic past the tunnel: {way}"),
                Words::HERE.routes_past(),
            )),
            None => Ok(()),
        }
    }

    /// With policy routing: a table of our own, and rules that lead there.
    fn by_rules(&self, applier: &mut Applier, guard: &Guard) -> Result<(), Failure> {
        let host = &mut applier.host;
        let mut changes = vec![guard.change()?];
        let links = host.links()?;
        changes.extend(sysctls::connect(links.iter().map(|l| l.name.as_str()), |key| host.sysctl(key).ok().flatten()));
        let (ours, others): (Vec<_>, Vec<_>) =
            routes::routes(&self.wanted()).into_iter().partition(|route| route.kind == RouteKind::Unicast);
        applier.add_own_routes(ours)?;
        changes.extend(others.into_iter().map(Change::Route));
        changes.extend(routes::rules(&self.wanted()).into_iter().map(Change::Rule));
        applier.make_all(changes)
    }

    /// Without: what must keep its way first, then our routes beside the host's own.
    fn in_one_table(
        &self,
        system: System,
        endpoint: IpAddr,
        applier: &mut Applier,
        guard: &Guard,
    ) -> Result<(), Failure> {
        let routes = self.single(system, endpoint, applier)?;
        let (ours, others): (Vec<_>, Vec<_>) =
            routes.into_iter().partition(|route| route.oif.as_deref() == Some(self.interface.as_str()));
        let changes = std::iter::once(guard.change()?).chain(others.into_iter().map(Change::Route));
        applier.make_all(changes.collect())?;
        Ok(applier.add_own_routes(ours)?)
    }

    /// The routes for now, where there is one table.
    fn single(&self, system: System, endpoint: IpAddr, applier: &mut Applier) -> Result<Vec<Route>, Failure> {
        let mut way = |to: IpAddr| -> Result<_, Failure> {
            let way = applier.host.route_lookup(to, self.numbers.fwmark)?;
            Ok(way.filter(|way| way.interface != self.interface))
        };
        let mut beside = Vec::new();
        for probe in PROBES {
            beside.extend(way(probe)?.map(|way| (Family::of(&probe), way)));
        }
        let outer = match system {
            // WireGuardNT finds its way past its own adapter by itself
            System::Windows => None,
            // on the link, its route is the more specific one anyway
            _ => way(endpoint)?.filter(|way| way.gateway.is_some()).map(|_| endpoint),
        };
        Ok(routes::single(&self.wanted(), &beside, outer.as_slice()))
    }

    /// Where a packet to the internet goes that should go into the tunnel and does not.
    fn past(&self, applier: &mut Applier) -> Result<Option<String>, Failure> {
        for probe in PROBES {
            if !self.allowed.iter().any(|p| p.prefix() == 0 && p.contains(probe))
                || self.exclude.iter().any(|p| p.contains(probe))
            {
                continue;
            }
            let way = applier.host.route_lookup(probe, 0)?;
            if way.as_ref().is_none_or(|way| way.interface != self.interface) {
                let whose = way.map_or("nowhere".to_owned(), |w| format!("to {} (table {})", w.interface, w.table));
                return Ok(Some(format!("{probe} goes {whose}")));
            }
        }
        Ok(None)
    }

    /// Rules or routes have changed: follows the tunnels around ours, and goes in front of another program's rules that
    /// have come before ours.
    pub fn look_after(
        &mut self,
        endpoint: IpAddr,
        applier: &mut Applier,
        guard: &mut Guard,
        out: &mut dyn Output,
    ) -> Result<(), Failure> {
        if os::SYSTEM == System::Macos
            && roam::way(&mut applier.host, endpoint, self.numbers.fwmark, &self.interface).is_some()
        {
            // another gateway, or another endpoint
            let routes = self.single(os::SYSTEM, endpoint, applier)?;
            let beside = |route: &Route| route.oif.as_deref() != Some(self.interface.as_str());
            applier.replace_routes(routes.into_iter().filter(beside).collect())?;
        }
        let carriers = carrier::marks(&mut applier.host, endpoint, self.numbers.fwmark, &self.interface);
        let around = carriers != self.carriers;
        if around {
            tracing::info!(?carriers, "the tunnels around ours have changed");
            self.carriers = carriers;
            guard.set_carriers(&self.carriers);
            applier.make(guard.change()?)?;
        }
        let mut past = self.past(applier)?;
        let before = self.numbers.priority;
        if past.is_some() && os::SYSTEM == System::Linux && self.turns.take() {
            let rules = applier.host.rules()?;
            self.numbers.priority = numbers::priority(&rules).unwrap_or(before);
        }
        let moved = self.numbers.priority != before;
        if around || moved {
            applier.replace_rules(routes::rules(&self.wanted()))?;
            past = self.past(applier)?;
        }
        match &past {
            None if moved => out.event(&Event::Warning(
                "another program put its policy rules before ours; ours are in front again".to_owned(),
            )),
            Some(way) if !self.past => out.event(&Event::Warning(format!(
                "another program's routes send traffic past the tunnel: {way}; {}. To end it: {}",
                if guard.closes() { "the kill switch stops it" } else { "there is no kill switch to stop it" },
                Words::HERE.routes_past()
            ))),
            _ => {}
        }
        self.past = past.is_some();
        Ok(())
    }
}

/// How often we have gone in front of another program's rules of late.
#[derive(Debug, Default)]
pub struct Turns {
    count: u32,
    last: Option<Instant>,
}

impl Turns {
    /// Counts one more; whether it may be taken.
    pub fn take(&mut self) -> bool {
        let now = Instant::now();
        if self.last.is_none_or(|last| now.saturating_duration_since(last) > CALM) {
            self.count = 0;
        }
        self.last = Some(now);
        self.count += 1;
        self.count <= TURNS
    }
}
