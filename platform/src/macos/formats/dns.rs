//! The dynamic store of SystemConfiguration as scutil(8) speaks of it: a network service of ours that has nothing but DNS
//! servers. With the empty match domain they are asked for every name. The store is in memory: a reboot forgets it.

use std::fmt::Write as _;
use std::net::IpAddr;

/// Ours begin so.
const OURS: &str = "peervpn-";

/// Around a service's name in its key.
const KEY: (&str, &str) = ("State:/Network/Service/", "/DNS");

/// The key of a service.
fn key(service: &str) -> String {
    format!("{}{service}{}", KEY.0, KEY.1)
}

/// The name of our service for an interface.
pub fn service(interface: &str) -> String {
    format!("{OURS}{interface}")
}

/// What makes programs ask these servers.
pub fn set(service: &str, servers: &[IpAddr]) -> String {
    let mut text = "d.init\nd.add ServerAddresses *".to_owned();
    for server in servers {
        let _ = write!(text, " {server}");
    }
    let _ = write!(text, "\nd.add SupplementalMatchDomains * \"\"\nset {}\nquit\n", key(service));
    text
}

/// What takes that back, and asks whether it is gone: of a refusal scutil's exit status says nothing. [`servers`] reads
/// the answer.
pub fn remove(service: &str) -> String {
    format!("remove {}\n{}", key(service), show(service))
}

/// What asks for every service of ours; [`services`] reads the answer.
pub fn list() -> String {
    format!("list {}\nquit\n", key(&format!("{OURS}[^/]+")))
}

/// The services of an answer to [`list`]: `subKey [N] = KEY` a line.
pub fn services(answer: &str) -> Vec<&str> {
    let keys = answer.lines().filter_map(|line| line.split_once(" = ")).map(|(_, key)| key);
    keys.filter_map(|key| key.strip_prefix(KEY.0)?.strip_suffix(KEY.1)).filter(|name| name.starts_with(OURS)).collect()
}

/// What asks for a service's servers; [`servers`] reads the answer.
pub fn show(service: &str) -> String {
    format!("show {}\nquit\n", key(service))
}

/// The servers of an answer to [`show`]; none if there is no such key.
pub fn servers(answer: &str) -> Vec<IpAddr> {
    let mut inside = false;
    let mut servers = Vec::new();
    for line in answer.lines().map(str::trim) {
        if line.starts_with("ServerAddresses") {
            inside = true;
        } else if line == "}" {
            inside = false;
        } else if let (true, Some((_, value))) = (inside, line.split_once(" : ")) {
            servers.extend(value.parse::<IpAddr>());
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scutil_is_told() {
        let servers = ["10.1.2.3".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(
            set(&service("peervpn0"), &servers),
            "d.init\nd.add ServerAddresses * 10.1.2.3 fd00::1\nd.add SupplementalMatchDomains * \"\"\n\
             set State:/Network/Service/peervpn-peervpn0/DNS\nquit\n"
        );
        assert_eq!(
            remove("peervpn-peervpn0"),
            "remove State:/Network/Service/peervpn-peervpn0/DNS\nshow State:/Network/Service/peervpn-peervpn0/DNS\n\
             quit\n"
        );
        assert_eq!(list(), "list State:/Network/Service/peervpn-[^/]+/DNS\nquit\n");
    }

    #[test]
    fn what_scutil_answers() {
        let answer = "<dictionary> {\n  ServerAddresses : <array> {\n    0 : 10.1.2.3\n    1 : fd00::1\n  }\n  \
                      SupplementalMatchDomains : <array> {\n    0 : \n  }\n}\n";
        let found: Vec<String> = servers(answer).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.1.2.3", "fd00::1"]);
        assert_eq!(servers("  No such key\n"), Vec::<IpAddr>::new());
        let listed = "  subKey [0] = State:/Network/Service/peervpn-office/DNS\n  \
                      subKey [1] = State:/Network/Service/peervpn-office/IPv4\n  \
                      subKey [2] = State:/Network/Service/other/DNS\n";
        assert_eq!(services(listed), ["peervpn-office"]);
        assert_eq!(services("  no keys.\n"), Vec::<&str>::new());
    }
}
