//! Which fwmark, routing table and rule priorities are free on this host.

use peervpn_platform::OUR_PROTOCOL;
use peervpn_platform::types::{Route, Rule, System};

/// Numbers for policy routing that nothing on the host uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// One bit; WireGuard's outer packets carry it. Matched as `mark/mark`, so that others may set other bits.
    pub fwmark: u32,
    /// Routing table.
    pub table: u32,
    /// Priority of our first rule; the second one follows it.
    pub priority: u32,
}

/// First table asked for; the port's number, as wg-quick does, so that people recognise it.
const FIRST_TABLE: u32 = 51820;
/// After Tailscale's rules (5210–5270), so that its own addresses keep working; before `main` (32766).
const FIRST_PRIORITY: u32 = 5300;
/// Priority of the kernel's own rule for the `main` table.
const MAIN_PRIORITY: u32 = 32766;

/// The kernel's `default`, `main` and `local` tables, `RT_TABLE_*`.
const KERNELS: std::ops::RangeInclusive<u32> = 253..=255;

impl Numbers {
    /// Where there is no policy routing: no mark, the one table.
    pub const NONE: Numbers = Numbers { fwmark: 0, table: 254, priority: 0 };
    /// The same, with a mark that only the platform's route look-up knows: beside our tunnels (macOS).
    pub const BESIDE: Numbers = Numbers { fwmark: 1, ..Numbers::NONE };
}

/// Chooses numbers for that system; `None` if a host has used up all of them (32 marks, 27,000 priorities).
pub fn choose(system: System, rules: &[Rule], routes: &[Route]) -> Option<Numbers> {
    match system {
        System::Linux => {}
        System::Macos => return Some(Numbers::BESIDE),
        System::Windows => return Some(Numbers::NONE),
    }
    // from the top: the low bits are what mwan3, kube-proxy and hand-written rules take
    let fwmark = (8..30).rev().map(|bit| 1u32 << bit).find(|mark| {
        rules
            .iter()
            .filter_map(|rule| rule.fwmark)
            .all(|(value, mask)| value & mark == 0 && (mask == u32::MAX || mask & mark == 0))
    })?;
    let table = (FIRST_TABLE..FIRST_TABLE + 10_000)
        .find(|table| routes.iter().all(|r| r.table != *table) && rules.iter().all(|r| r.table != *table))?;
    Some(Numbers { fwmark, table, priority: priority(rules)? })
}

/// A free priority, and one after it, before the rules of another full tunnel: wg-quick puts its own before all others
/// that it finds, ours among them.
pub fn priority(rules: &[Rule]) -> Option<u32> {
    // all but the outer packets of that tunnel: what wg-quick(8), NetworkManager and Mullvad's app write
    let takes_all = |rule: &&Rule| {
        rule.protocol != OUR_PROTOCOL
            && rule.invert
            && rule.fwmark.is_some()
            && rule.table != 0
            && !KERNELS.contains(&rule.table)
    };
    let limit = rules.iter().filter(takes_all).map(|rule| rule.priority).min().unwrap_or(MAIN_PRIORITY);
    let taken = |priority: u32| rules.iter().any(|rule| rule.priority == priority);
    let free = |p: &u32| !taken(*p) && !taken(p + 1);
    (FIRST_PRIORITY..limit.saturating_sub(1)).find(free).or_else(|| (1..limit.saturating_sub(1)).rev().find(free))
}

#[cfg(test)]
mod tests {
    use super::*;
    use peervpn_platform::types::Family;

    fn rule(priority: u32, fwmark: Option<(u32, u32)>, table: u32) -> Rule {
        Rule { family: Family::V4, priority, fwmark, invert: false, table, suppress_prefixlen: None, protocol: 0 }
    }

    #[test]
    fn an_empty_host_gets_the_first_numbers() {
        let main = [rule(0, None, 255), rule(32766, None, 254), rule(32767, None, 253)];
        assert_eq!(choose(System::Linux, &main, &[]), Some(Numbers { fwmark: 1 << 29, table: 51820, priority: 5300 }));
    }

    #[test]
    fn wg_quick_tailscale_and_mwan3_keep_theirs() {
        let others = [
            rule(32765, Some((0xca6c, u32::MAX)), 51820),
            rule(5210, Some((0x80000, 0xff0000)), 254),
            rule(5300, Some((1 << 29, 1 << 29)), 100),
            rule(2001, Some((0x100, 0x3f00)), 1),
        ];
        let numbers = choose(System::Linux, &others, &[]).unwrap();
        assert_eq!(numbers, Numbers { fwmark: 1 << 28, table: 51821, priority: 5301 });
    }

    #[test]
    fn another_full_tunnel_in_front_is_overtaken() {
        let not = |priority, mark, table| Rule { invert: true, ..rule(priority, Some((mark, u32::MAX)), table) };
        let quick = [rule(5298, None, 254), not(5299, 0xca6d, 51821), rule(5300, None, 254), rule(5301, None, 51820)];
        assert_eq!(priority(&quick), Some(5296));
        let behind = [rule(32764, None, 254), not(32765, 0xca6c, 51820)];
        assert_eq!(priority(&behind), Some(5300));
        let own = Rule { protocol: OUR_PROTOCOL, ..not(5301, 1 << 29, 51820) };
        assert_eq!(priority(&[own]), Some(5302), "another node of ours keeps its place");
        assert_eq!(priority(&[not(2, 1, 51820)]), None);
    }

    #[test]
    fn a_full_host_is_said_not_guessed() {
        let all: Vec<Rule> = vec![rule(1, Some((0, 0x3fff_ff00)), 1)];
        assert_eq!(choose(System::Linux, &all, &[]), None);
    }
}
