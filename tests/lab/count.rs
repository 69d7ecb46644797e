//! Counts packets with nft counters: what happened tells more than how long it took.

use crate::net::Namespace;

/// A handshake initiation: 148 bytes and the UDP header; no other WireGuard packet has that length.
pub const INITIATION: &str = "udp length 156";
/// What a host without a listener answers a datagram with; ICMP type 3 code 3, ICMPv6 type 1 code 4.
pub const PORT_UNREACHABLE: [&str; 2] = [
    "icmp type destination-unreachable icmp code port-unreachable",
    "icmpv6 type destination-unreachable icmpv6 code 4",
];

/// Packets that match nft expressions, on their way into or out of one namespace's own sockets.
pub struct Counts<'a>(&'a Namespace);

impl<'a> Counts<'a> {
    /// Counts from now on; `input` and `output` name their rules. Names are nft identifiers.
    pub fn start(space: &'a Namespace, input: &[(&str, &str)], output: &[(&str, &str)]) -> Counts<'a> {
        let mut script = String::from("table inet counts {\n");
        for (name, _) in input.iter().chain(output) {
            script += &format!("  counter {name} {{ }}\n");
        }
        for (hook, list) in [("input", input), ("output", output)] {
            script += &format!("  chain at_{hook} {{ type filter hook {hook} priority -400;\n");
            for (name, rule) in list {
                script += &format!("    {rule} counter name {name}\n");
            }
            script += "  }\n";
        }
        space.nft(&(script + "}\n"));
        Counts(space)
    }

    /// Packets so far.
    pub fn packets(&self, name: &str) -> u64 {
        let text = self.0.output("nft", &["list", "counter", "inet", "counts", name]);
        let count = text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        count.unwrap_or_else(|| panic!("no count in {text}"))
    }
}
