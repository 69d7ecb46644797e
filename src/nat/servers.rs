//! The STUN servers asked when the configuration names none.

/// Public STUN servers as `HOST:PORT`, of different operators so that no single one can mislead or be down for all.
///
/// Asked side by side: a dead one costs no time. The test machines have no way to any of them, so this list is by
/// reputation; the tests use servers of their own. The first five are large anycast or long-standing services that
/// answer plain Binding requests over v4, most also over v6; the rest are run with two addresses and are asked with
/// CHANGE-REQUEST (RFC 5780 §7.2) by `nattest`, which trusts OTHER-ADDRESS in their answers and not this comment.
pub const DEFAULT: &[&str] = &[
    "stun.cloudflare.com:3478",
    "stun.l.google.com:19302",
    "stun.nextcloud.com:443",
    "stun.sipgate.net:3478",
    "global.stun.twilio.com:3478",
    "stunserver2025.stunprotocol.org:3478",
    "stun.voip.blackberry.com:3478",
    "stun.freeswitch.org:3478",
];

/// [`DEFAULT`] as owned strings, as the configuration holds them.
pub fn default() -> Vec<String> {
    DEFAULT.iter().map(|&server| server.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn every_default_is_a_name_and_a_port_and_operators_differ() {
        let mut operators = HashSet::new();
        for server in super::DEFAULT {
            let (host, port) = server.rsplit_once(':').expect("HOST:PORT");
            assert!(port.parse::<u16>().is_ok_and(|port| port > 0), "{server}");
            let labels: Vec<&str> = host.split('.').collect();
            assert!(operators.insert(labels[labels.len() - 2]), "{server}: a second one of the same operator");
        }
        assert!(operators.len() >= 5);
    }
}
