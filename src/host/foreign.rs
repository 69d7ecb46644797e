//! Where another program's firewall would drop what an exit forwards, and the rules that let it through: nft(8) lets a
//! packet pass a hook only if every base chain on it accepts.

use peervpn_platform::nft::foreign::{Place, Position, SeenChain, SeenRule, Verdict};
use peervpn_platform::nft::{Match, Rule, Statement};

/// Docker's chain for rules of others, which its own chain asks first
/// (<https://docs.docker.com/engine/network/packet-filtering-firewalls/>).
const DOCKER_USER: &str = "DOCKER-USER";
/// How deep jumps are followed; the kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;
/// Every rule of ours in a foreign chain has a comment that begins so.
pub const MARK: &str = "peervpn:";

/// Lists below `/proc/net` of the tables of legacy iptables, which nftables does not show, and their command.
pub const LEGACY: [(&str, &str); 2] =
    [("ip_tables_names", "iptables-legacy"), ("ip6_tables_names", "ip6tables-legacy")];

/// What a person types where a legacy table drops what the node on that interface forwards.
pub fn legacy_mend(command: &str, interface: &str) -> String {
    format!("{command} -I FORWARD -i {interface} -j ACCEPT; {command} -I FORWARD -o {interface} -j ACCEPT")
}

/// The comment of the rules of the node on that interface.
pub fn comment(interface: &str) -> String {
    format!("{MARK}{interface}")
}

/// The rules: what comes from the tunnel and what goes into it. Which of it may pass, our own table says.
pub fn rules(interface: &str) -> [Rule; 2] {
    let name = interface.to_owned();
    [Match::Iif { name: name.clone(), not: false }, Match::Oif { name, not: false }].map(|through| Rule {
        matches: vec![through],
        statements: vec![Statement::Counter, Statement::Accept],
        comment: Some(comment(interface)),
    })
}

/// Places for [`rules`] in chains that would drop every packet that none of their rules accepts; those that hold them
/// already are left out. As late as possible, so that what a chain drops on purpose stays dropped: before the rule that
/// drops all, else at the end of a chain whose policy is to drop; but in Docker's chain for that where there is one.
pub fn places(chains: &[SeenChain], interface: &str) -> Vec<Place> {
    let comment = comment(interface);
    let mut places: Vec<Place> = Vec::new();
    for chain in chains.iter().filter(|chain| chain.forwards && !ours(chain)) {
        let position = match end(chains, chain, DEPTH) {
            Some(End::Drops(rule)) => Position::Before(rule.handle),
            None if chain.drops => Position::Last,
            _ => continue,
        };
        let user = chains.iter().find(|other| {
            other.family == chain.family
                && other.table == chain.table
                && other.name == DOCKER_USER
                && jumps(chain, other)
        });
        let (chain, position) = user.map_or((chain, position), |user| (user, Position::First));
        let place = Place { family: chain.family, table: chain.table.clone(), chain: chain.name.clone(), position };
        let there = chain.rules.iter().filter(|rule| rule.comment.as_deref() == Some(&comment)).count();
        if there < rules(interface).len() && !places.iter().any(|known| known.is(chain)) {
            places.push(place);
        }
    }
    places
}

/// Places of our rules, of whatever interface: what a recovery without a journal looks for.
pub fn marked(chains: &[SeenChain]) -> Vec<(Place, String)> {
    let mut found: Vec<(Place, String)> = Vec::new();
    for chain in chains.iter().filter(|chain| !ours(chain)) {
        for comment in chain.rules.iter().filter_map(|rule| rule.comment.clone()).filter(|c| c.starts_with(MARK)) {
            let place = Place {
                family: chain.family,
                table: chain.table.clone(),
                chain: chain.name.clone(),
                position: Position::First,
            };
            if !found.contains(&(place.clone(), comment.clone())) {
                found.push((place, comment));
            }
        }
    }
    found
}

/// Whether both rules are in a place.
pub fn there(chains: &[SeenChain], place: &Place, interface: &str) -> bool {
    let comment = comment(interface);
    let count = |chain: &SeenChain| chain.rules.iter().filter(|rule| rule.comment.as_deref() == Some(&comment)).count();
    chains.iter().any(|chain| place.is(chain) && count(chain) >= rules(interface).len())
}

/// Tables of nodes, this one's and others'.
fn ours(chain: &SeenChain) -> bool {
    chain.table == "peervpn" || chain.table.starts_with("peervpn-")
}

fn jumps(chain: &SeenChain, to: &SeenChain) -> bool {
    chain.rules.iter().any(|rule| rule.always == Some(Verdict::Jump(to.name.clone())))
}

enum End<'a> {
    /// This rule drops all that comes to it.
    Drops(&'a SeenRule),
    /// A rule before any such accepts all.
    Accepts,
}

/// How a chain ends for a packet that no rule with a condition has stopped; `None`: it comes to the chain's end.
fn end<'a>(chains: &[SeenChain], chain: &'a SeenChain, depth: usize) -> Option<End<'a>> {
    for rule in &chain.rules {
        match &rule.always {
            Some(Verdict::Drop) => return Some(End::Drops(rule)),
            Some(Verdict::Accept) => return Some(End::Accepts),
            Some(Verdict::Jump(name)) if depth > 0 => {
                let to =
                    chains.iter().find(|to| (to.family, &to.table, &to.name) == (chain.family, &chain.table, name));
                match to.and_then(|to| end(chains, to, depth - 1)) {
                    Some(End::Drops(_)) => return Some(End::Drops(rule)),
                    Some(End::Accepts) => return Some(End::Accepts),
                    None => {}
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use peervpn_platform::nft::foreign::TableFamily;

    fn chain(table: &str, name: &str, base: Option<bool>, rules: &[Option<Verdict>]) -> SeenChain {
        let rules = (1..).zip(rules).map(|(n, always)| SeenRule { handle: n, comment: None, always: always.clone() });
        SeenChain {
            family: TableFamily::Ip,
            table: table.to_owned(),
            name: name.to_owned(),
            forwards: base.is_some(),
            receives: false,
            drops: base == Some(true),
            rules: rules.collect(),
        }
    }

    fn jump(name: &str) -> Option<Verdict> {
        Some(Verdict::Jump(name.to_owned()))
    }

    fn found(chains: &[SeenChain]) -> Vec<(String, Position)> {
        places(chains, "peervpn0").into_iter().map(|place| (place.chain, place.position)).collect()
    }

    #[test]
    fn a_chain_that_lets_all_pass_needs_nothing() {
        let free = chain("filter", "FORWARD", Some(false), &[None, None]);
        let accepts = chain("filter", "other", Some(true), &[None, Some(Verdict::Accept), Some(Verdict::Drop)]);
        let own = chain("peervpn", "forwarding", Some(true), &[Some(Verdict::Drop)]);
        let unhooked = chain("filter", "drops", None, &[Some(Verdict::Drop)]);
        assert_eq!(found(&[free, accepts, own, unhooked]), []);
    }

    #[test]
    fn as_late_as_possible_but_before_the_drop() {
        let policy = chain("filter", "FORWARD", Some(true), &[None, jump("empty"), None]);
        let empty = chain("filter", "empty", None, &[]);
        assert_eq!(found(&[policy, empty]), [("FORWARD".to_owned(), Position::Last)]);
        let rejects = chain("filter", "FORWARD", Some(false), &[None, jump("deep"), None]);
        let deep = chain("filter", "deep", None, &[None, jump("deeper")]);
        let deeper = chain("filter", "deeper", None, &[Some(Verdict::Drop)]);
        assert_eq!(found(&[rejects, deep, deeper]), [("FORWARD".to_owned(), Position::Before(2))]);
    }

    #[test]
    fn a_loop_of_jumps_ends() {
        let a = chain("filter", "FORWARD", Some(true), &[jump("b")]);
        let b = chain("filter", "b", None, &[jump("b")]);
        assert_eq!(found(&[a, b]), [("FORWARD".to_owned(), Position::Last)]);
    }

    #[test]
    fn dockers_own_place_is_taken_and_what_is_there_is_not_added_again() {
        let forward = chain("filter", "FORWARD", Some(true), &[jump(DOCKER_USER), None]);
        let mut user = chain("filter", DOCKER_USER, None, &[None]);
        let expected = [(DOCKER_USER.to_owned(), Position::First)];
        assert_eq!(found(&[forward.clone(), user.clone()]), expected);
        for handle in [7, 8] {
            assert_eq!(found(&[forward.clone(), user.clone()]), expected, "one of two is not enough");
            user.rules.insert(0, SeenRule { handle, comment: Some("peervpn:peervpn0".to_owned()), always: None });
        }
        assert_eq!(found(&[forward.clone(), user.clone()]), []);
        let all = marked(&[forward, user]);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].0.chain.as_str(), all[0].1.as_str()), (DOCKER_USER, "peervpn:peervpn0"));
    }
}
