//! The way of an exit's own outer packets. Peers know it by the addresses that it had at the start; a tunnel with a default
//! route that comes later (wg-quick's) would take the answers along, and they would come from elsewhere. So they keep to
//! the main table for as long as something goes before it. What peers send goes where the host's policy says.

use peervpn_platform::types::{Family, RouteLookup, Rule, System};
use peervpn_platform::{Host as _, OUR_PROTOCOL, os};

use crate::error::Failure;
use crate::host::{Numbers, numbers};
use crate::node::apply::Applier;
use crate::node::steer::Turns;
use crate::node::{MAIN_TABLE, PROBES};

/// What tells them, and where they are led.
pub struct Outer {
    numbers: Numbers,
    /// Those that left by the main table at the start.
    families: Vec<Family>,
    turns: Turns,
    led: bool,
}

impl Outer {
    /// Nothing is changed yet.
    pub fn new(applier: &mut Applier, uplinks: &[(Family, RouteLookup)]) -> Result<Outer, Failure> {
        let host = &mut applier.host;
        let chosen = match os::SYSTEM {
            // the others have no policy routing
            System::Linux => numbers::choose(os::SYSTEM, &host.rules()?, &[]),
            System::Macos | System::Windows => None,
        };
        let of_main = |(family, way): &(Family, RouteLookup)| (way.table == MAIN_TABLE).then_some(*family);
        let families = chosen.map_or(Vec::new(), |_| uplinks.iter().filter_map(of_main).collect());
        let numbers = chosen.filter(|_| !families.is_empty()).unwrap_or(Numbers::NONE);
        Ok(Outer { numbers, families, turns: Turns::default(), led: false })
    }

    /// Which mark they carry; 0 for none.
    pub fn mark(&self) -> u32 {
        self.numbers.fwmark
    }

    /// The mark, while it leads them.
    pub fn led(&self) -> Option<u32> {
        self.led.then_some(self.numbers.fwmark)
    }

    /// Rules or routes have changed. Whether the firewall must follow.
    pub fn look_after(&mut self, applier: &mut Applier) -> Result<bool, Failure> {
        let before = self.led;
        let elsewhere = self.elsewhere(applier, 0)?;
        if elsewhere.is_empty() {
            if self.led {
                applier.replace_rules(Vec::new())?;
                self.led = false;
            }
            return Ok(before);
        }
        // another tunnel puts its rules before all others
        if !self.elsewhere(applier, self.mark())?.is_empty() && self.has_default(applier)? && self.turns.take() {
            let priority = numbers::priority(&applier.host.rules()?).unwrap_or(self.numbers.priority);
            let rule = |family: &Family| Rule {
                family: *family,
                priority,
                fwmark: Some((self.mark(), self.mark())),
                invert: false,
                table: MAIN_TABLE,
                suppress_prefixlen: None,
                protocol: OUR_PROTOCOL,
            };
            let rules = self.families.iter().map(rule).collect();
            applier.replace_rules(rules)?;
            self.led = true;
        }
        Ok(self.led != before)
    }

    /// The families whose packets with that mark leave by another table than the main one.
    fn elsewhere(&self, applier: &mut Applier, mark: u32) -> Result<Vec<Family>, Failure> {
        let mut families = Vec::new();
        for probe in PROBES {
            let family = Family::of(&probe);
            if self.families.contains(&family)
                && applier.host.route_lookup(probe, mark)?.is_some_and(|way| way.table != MAIN_TABLE)
            {
                families.push(family);
            }
        }
        Ok(families)
    }

    /// Whether the main table leads to the internet at all.
    fn has_default(&self, applier: &mut Applier) -> Result<bool, Failure> {
        let routes = applier.host.routes()?;
        Ok(routes.iter().any(|route| route.table == MAIN_TABLE && route.destination.prefix() == 0))
    }
}
