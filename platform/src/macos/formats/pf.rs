//! What pfctl(8) of macOS says about pf.

/// A reference that keeps pf enabled; pf is disabled with the last one. Others' are theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The process that took it; it may be long gone.
    pub pid: u32,
    /// The program's name.
    pub program: String,
    /// What releases it.
    pub token: u64,
}

/// The references of `pfctl -s References`: a heading, then `PID NAME TOKEN N days HH:MM:SS` a line. Names may have
/// spaces, so fields count from the end. Lines that are not of that form are left out.
pub fn references(text: &str) -> Vec<Reference> {
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (pid, rest) = fields.split_first()?;
            let (name, [token, _, _, _]) = rest.split_last_chunk()?;
            Some(Reference { pid: pid.parse().ok()?, program: name.join(" "), token: token.parse().ok()? })
        })
        .collect()
}

/// The anchors of ours among those of `pfctl -a com.apple -s Anchors`: a path a line, indented. Named like the tables of
/// Linux' nodes.
pub fn anchors(text: &str) -> Vec<&str> {
    let ours = |name: &&str| *name == "peervpn" || (name.starts_with("peervpn-") && !name.contains('/'));
    text.lines().filter_map(|line| line.trim().strip_prefix("com.apple/")).filter(ours).collect()
}

/// Whether rules in an anchor below `com.apple` count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    /// The main rules ask them.
    There,
    /// They do not: nobody loaded `/etc/pf.conf`, or it was changed.
    Missing,
    /// They do, but a rule before decides first.
    Behind(String),
}

/// From the main rules, `pfctl -s rules` (or `-s nat`, with `anchor` = `nat-anchor`). macOS's `/etc/pf.conf` has
/// `anchor "com.apple/*"`, and launchd loads it at every boot.
pub fn hook(rules: &str, anchor: &str) -> Hook {
    let wanted = format!("{anchor} \"com.apple/*\"");
    for line in rules.lines().map(str::trim) {
        if line.starts_with(&wanted) {
            return Hook::There;
        }
        // another anchor's own rules may be quick as well, but those are for its own traffic
        if line.split_whitespace().any(|word| word == "quick") {
            return match rules.lines().any(|line| line.trim().starts_with(&wanted)) {
                true => Hook::Behind(line.to_owned()),
                false => Hook::Missing,
            };
        }
    }
    Hook::Missing
}

/// Whether pf is enabled, from `pfctl -s info`.
pub fn enabled(info: &str) -> bool {
    info.lines().any(|line| line.trim_start().starts_with("Status: Enabled"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_from_the_end() {
        let text = "TOKENS:\n\
                    PID      Process Name                 TOKEN                    TIMESTAMP\n\
                    618      socketfilterfw               9813589183660731843      0 days 00:03:31\n\
                    4711     peervpn                      15053025338191571182     12 days 00:00:00\n\
                    90       some helper                  7                        0 days 00:00:01\n";
        let found = references(text);
        assert_eq!(found.len(), 3);
        assert_eq!((found[1].pid, found[1].program.as_str()), (4711, "peervpn"));
        assert_eq!(found[1].token, 15_053_025_338_191_571_182);
        assert_eq!((found[2].program.as_str(), found[2].token), ("some helper", 7));
        assert_eq!(references("No pf starter references held\n"), []);
        assert_eq!(references(""), []);
    }

    #[test]
    fn anchors_of_ours_are_told_from_others() {
        let text = "  com.apple/200.AirDrop\n  com.apple/250.ApplicationFirewall\n  com.apple/peervpn\n  \
                    com.apple/peervpn-office\n  com.apple/peervpnx\n  com.apple/peervpn-a/b\n  peervpn\n";
        assert_eq!(anchors(text), ["peervpn", "peervpn-office"]);
        assert_eq!(anchors("Anchor 'com.apple' not found.\n"), Vec::<&str>::new());
    }

    #[test]
    fn the_stock_rules_ask_us_and_others_may_not() {
        let stock = "scrub-anchor \"com.apple/*\" all fragment reassemble\nanchor \"com.apple/*\" all\n";
        assert_eq!(hook(stock, "anchor"), Hook::There);
        assert_eq!(hook("nat-anchor \"com.apple/*\" all\nrdr-anchor \"com.apple/*\" all\n", "nat-anchor"), Hook::There);
        assert_eq!(hook(stock, "scrub-anchor"), Hook::There);
        assert_eq!(hook("anchor \"com.apple/*\" all\n", "scrub-anchor"), Hook::Missing);
        assert_eq!(hook(stock, "nat-anchor"), Hook::Missing);
        assert_eq!(hook("", "anchor"), Hook::Missing);
        assert_eq!(hook("pass all flags S/SA keep state\n", "anchor"), Hook::Missing);
        let own = format!("block drop in all\npass out quick on en0 all flags S/SA keep state\n{stock}");
        assert_eq!(hook(&own, "anchor"), Hook::Behind("pass out quick on en0 all flags S/SA keep state".into()));
        assert_eq!(hook("pass out quick all\n", "anchor"), Hook::Missing);
    }

    #[test]
    fn enabled_or_not() {
        assert!(enabled("Status: Enabled for 0 days 00:02:03           Debug: Urgent\n"));
        assert!(!enabled("Status: Disabled                              Debug: Urgent\n"));
    }
}
