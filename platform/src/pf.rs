//! Rules of macOS's packet filter as plain data: pf.conf(5) text in an anchor of ours. `src/host` writes it from a policy,
//! `macos/pf.rs` loads it and sees whether it stands.

/// What stands for the tunnel's interface in the text: the system numbers it when the device is made.
pub const TUNNEL: &str = "$tunnel";

/// A set of rules, loaded all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Its name, below the anchors that macOS's own rules ask.
    pub name: String,
    /// Our name of the tunnel's interface.
    pub interface: String,
    /// One rule a line, in pf's order: scrub, nat and rdr, filters. Lines with `#` are comments.
    pub rules: String,
}

impl Anchor {
    /// How many rules there are: what a read-back should count.
    pub fn count(&self) -> usize {
        self.rules.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count()
    }
}
