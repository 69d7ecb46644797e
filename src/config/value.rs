//! One function a kind of value, used for flags and for keys of the file alike. Each takes the text as typed and
//! returns the value, or what was expected instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::{Accept, BackendChoice, Dns};

/// What was expected instead.
pub type Expected = String;

/// A port, 1 to 65535.
pub fn port(text: &str) -> Result<u16, Expected> {
    digits(text)
        .and_then(|text| text.parse().ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| "a port is a number from 1 to 65535".to_owned())
}

/// An interface name as Linux takes it (`dev_valid_name` in net/core/dev.c: under 16 bytes, no `/`, `:` or white
/// space, not `.` or `..`), and not `all` or `default`, which name no interface in sysctls, nor with a `%`, which the
/// kernel takes for a pattern.
pub fn interface(text: &str) -> Result<String, Expected> {
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if (1..=15).contains(&text.len()) && !text.contains(bad) && !matches!(text, "." | ".." | "all" | "default") {
        Ok(text.to_owned())
    } else {
        Err("an interface name has 1 to 15 bytes, without '/', ':', '%' and spaces, and is not '.', '..', 'all' or \
             'default'"
            .to_owned())
    }
}

/// A tunnel MTU in bytes; IPv6 needs 1280 (RFC 8200 §5).
pub fn mtu(text: &str) -> Result<u32, Expected> {
    digits(text)
        .and_then(|text| text.parse().ok())
        .filter(|mtu| (1280..=65535).contains(mtu))
        .ok_or_else(|| "an MTU is a number of bytes from 1280 to 65535".to_owned())
}

/// A whole number from 1 to 1000.
pub fn count(text: &str) -> Result<u32, Expected> {
    digits(text)
        .and_then(|text| text.parse().ok())
        .filter(|count| (1..=1000).contains(count))
        .ok_or_else(|| "expected a number from 1 to 1000".to_owned())
}

/// A duration of at least a second and at most a year: `15`, `15s`, `5m`, `24h`, `7d`.
pub fn duration(text: &str) -> Result<Duration, Expected> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let seconds = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 1,
    };
    digits(number)
        .and_then(|number| number.parse::<u64>().ok()?.checked_mul(seconds))
        .filter(|seconds| (1..=365 * 86_400).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| {
            "a duration is a number of seconds, or a number with s, m, h or d, from 1s to 365d: 15, 15s, 24h".to_owned()
        })
}

/// An IPv4 or IPv6 prefix; a bare address is one address. Host bits are cleared, as wg(8) does.
pub fn cidr(text: &str) -> Result<IpNetwork, Expected> {
    let expected = || "expected a prefix such as 192.0.2.0/24 or 2001:db8::/32".to_owned();
    // `ipnetwork` also takes a netmask after the slash and shortened addresses, and no one expects those here
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address = IpAddr::from_str(address).map_err(|_| expected())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        Some(length) => digits(length).and_then(|length| length.parse().ok()).ok_or_else(expected)?,
        None => longest,
    };
    let network = IpNetwork::new(address, length).map_err(|_| {
        format!("a prefix length of {} is at most {longest}", if longest == 32 { "IPv4" } else { "IPv6" })
    })?;
    Ok(IpNetwork::new(network.network(), length).expect("the length was taken above"))
}

/// `HOST:PORT`: `IPv4:port`, `[IPv6]:port` or `name:port`; checked for shape, not resolved.
pub fn host_port(text: &str) -> Result<String, Expected> {
    let expected = || "expected HOST:PORT: 192.0.2.1:51820, [2001:db8::1]:51820 or name:51820".to_owned();
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("an IPv6 address stands in brackets here: [{text}]:PORT"));
    }
    let (host, port_text) = text.rsplit_once(':').ok_or_else(expected)?;
    port(port_text)?;
    let good = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => host.parse::<Ipv4Addr>().is_ok() || name(host),
    };
    if good { Ok(text.to_owned()) } else { Err(expected()) }
}

/// A host name (RFC 1123 §2.1, with `_` as the DNS allows it). One that looks like an IPv4 address is none.
fn name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    text.len() <= 253 && text.split('.').all(label) && !last_is_number
}

/// `ask`, `any` or `none`.
pub fn accept(text: &str) -> Result<Accept, Expected> {
    match text {
        "ask" => Ok(Accept::Ask),
        "any" => Ok(Accept::Any),
        "none" => Ok(Accept::None),
        _ => Err("expected ask, any or none".to_owned()),
    }
}

/// `auto`, `kernel`, `userspace` or `userspace=PROGRAM`.
pub fn backend(text: &str) -> Result<BackendChoice, Expected> {
    match text.split_once('=') {
        None if text == "auto" => Ok(BackendChoice::Auto),
        None if text == "kernel" => Ok(BackendChoice::Kernel),
        None if text == "userspace" => Ok(BackendChoice::Userspace(None)),
        Some(("userspace", program)) if !program.is_empty() => Ok(BackendChoice::Userspace(Some(program.to_owned()))),
        _ => Err("expected auto, kernel, userspace or userspace=PROGRAM".to_owned()),
    }
}

/// The text, if it is all digits: `parse` would also take a sign.
fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

/// `--dns`: `exit` or `system` (the exit's own resolver), `none`, or servers, comma-separated.
pub fn dns(text: &str) -> Result<Dns, Expected> {
    match text {
        "exit" | "system" => return Ok(Dns::Exit),
        "none" => return Ok(Dns::None),
        _ => {}
    }
    let server = |item: &str| item.trim().parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast());
    let servers: Option<Vec<IpAddr>> = text.split(',').map(server).collect();
    match servers {
        Some(servers) if servers.len() <= 8 => Ok(Dns::Servers(servers)),
        Some(_) => Err("eight servers at most".to_owned()),
        None => Err("DNS is exit (system on the exit itself), none, or IP addresses separated by commas".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!(port("51820"), Ok(51820));
        for bad in ["0", "65536", "-1", "+1", "", "http", " 1", "1 "] {
            assert!(port(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn interface_names() {
        for good in ["peervpn0", "a", "fifteen-bytes-x", "wg.1"] {
            assert!(interface(good).is_ok(), "{good:?}");
        }
        for bad in ["", "sixteen-bytes-xx", "a/b", "a b", "a:b", "a%d", ".", "..", "all", "default", "a\tb", "a\u{7f}"]
        {
            assert!(interface(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(mtu("1280"), Ok(1280));
        assert_eq!(mtu("65535"), Ok(65535));
        assert!(mtu("1279").is_err() && mtu("65536").is_err());
        assert!(count("1").is_ok() && count("0").is_err() && count("1001").is_err());
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("15", 15), ("15s", 15), ("5m", 300), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text:?}");
        }
        for bad in ["", "s", "0", "-1", "1.5", "15 s", "1w", "99999999999999999999", "366d", "307445734561825861m"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn prefixes() {
        let show = |text| cidr(text).unwrap().to_string();
        assert_eq!(show("10.1.2.3/8"), "10.0.0.0/8");
        assert_eq!(show("192.0.2.7"), "192.0.2.7/32");
        assert_eq!(show("2001:db8::1/32"), "2001:db8::/32");
        assert_eq!(show("::/0"), "::/0");
        for bad in
            ["", "10/8", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "10.0.0.0/255.0.0.0", "example.org", "10.0.0.0/"]
        {
            assert!(cidr(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn endpoints() {
        for good in ["192.0.2.1:1", "[2001:db8::1]:51820", "home.example.org:51820", "a_b.example.:1", "localhost:9"] {
            assert!(host_port(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "192.0.2.1",
            "host",
            ":1",
            "192.0.2.256:1",
            "1.2.3:4",
            "[192.0.2.1]:1",
            "[::1:1",
            "a b:1",
            "-a:1",
            "h:0",
        ] {
            assert!(host_port(bad).is_err(), "{bad:?}");
        }
        assert!(host_port("2001:db8::1").unwrap_err().contains("[2001:db8::1]:PORT"));
    }

    #[test]
    fn name_servers() {
        assert_eq!(dns("exit"), Ok(Dns::Exit));
        assert_eq!(dns("system"), Ok(Dns::Exit));
        assert_eq!(dns("none"), Ok(Dns::None));
        let servers = Dns::Servers(vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()]);
        assert_eq!(dns("192.0.2.53, 2001:db8::53"), Ok(servers));
        for bad in ["", "Exit", "192.0.2.53,", "dns.example", "0.0.0.0", "192.0.2.53:53", "192.0.2.53,none"] {
            assert!(dns(bad).is_err(), "{bad:?}");
        }
        assert!(dns(&["::1"; 9].join(",")).is_err());
    }

    #[test]
    fn choices() {
        assert_eq!(accept("any"), Ok(Accept::Any));
        assert!(accept("Any").is_err());
        assert_eq!(backend("userspace=wireguard-go"), Ok(BackendChoice::Userspace(Some("wireguard-go".into()))));
        for bad in ["userspace=", "kernel=x", "", "user"] {
            assert!(backend(bad).is_err(), "{bad:?}");
        }
    }
}
