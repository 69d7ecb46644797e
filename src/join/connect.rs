//! Connect strings: `PUBKEY@ENDPOINT[,ENDPOINT…]`, the line an exit prints and a peer pastes.
//!
//! An endpoint is `IPv4:port`, `[IPv6]:port` or `name:port`. What is printed reads back as the same value.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Hint, Status};
use crate::key::{KeyError, PublicKey};

/// Most endpoints in one connect string.
pub const MAX_ENDPOINTS: usize = 16;
/// Longest connect string, in bytes: a key and [`MAX_ENDPOINTS`] names of the greatest length, rounded down.
pub const MAX_LENGTH: usize = 4096;
/// Longest host name in bytes; RFC 1035 §2.3.4 in text form.
const MAX_NAME: usize = 253;
/// Longest label of a name in bytes; RFC 1035 §2.3.4.
const MAX_LABEL: usize = 63;
/// Longest part of wrong input that an error repeats, in characters.
const MAX_QUOTE: usize = 80;

/// The host part of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// An address; an IPv4-mapped IPv6 address is kept as IPv4.
    Ip(IpAddr),
    /// A name to resolve, as written.
    Name(String),
}

/// An outer UDP address and port, the host possibly still a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Host.
    pub host: Host,
    /// UDP port, never 0.
    pub port: u16,
}

impl Endpoint {
    /// The socket address, unless the host is a name.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match &self.host {
            Host::Ip(ip) => Some(SocketAddr::new(*ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Endpoint { host: Host::Ip(address.ip().to_canonical()), port: address.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => write!(f, "{}", SocketAddr::new(*ip, self.port)),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no endpoint. Operands are cut to a bounded length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Nothing there.
    #[error("the endpoint is empty")]
    Empty,
    /// More than a name can take.
    #[error("the endpoint is {0} bytes long, at most {max} are possible", max = MAX_NAME + 6)]
    TooLong(usize),
    /// An IPv6 address without brackets.
    #[error("endpoint {0}: an IPv6 address needs brackets")]
    Unbracketed(String),
    /// `[` without `]`.
    #[error("endpoint {0}: the bracket is not closed")]
    BracketOpen(String),
    /// What is between the brackets is no IPv6 address.
    #[error("endpoint {0}: not an IPv6 address between the brackets")]
    Ipv6(String),
    /// An IPv6 address with a zone.
    #[error("endpoint {0}: an address with a zone means something on one machine only")]
    Zone(String),
    /// Only digits and dots, but no IPv4 address.
    #[error("endpoint {0}: not an IPv4 address")]
    Ipv4(String),
    /// An address that no packet can be sent to.
    #[error("endpoint {0}: no single host has this address")]
    Unusable(String),
    /// Nothing before the colon.
    #[error("endpoint {0}: the host name is empty")]
    EmptyName(String),
    /// A name that DNS cannot hold.
    #[error("endpoint {text}: {reason}")]
    Name {
        /// The endpoint as written.
        text: String,
        /// What is wrong with the name.
        reason: NameError,
    },
    /// No port.
    #[error("endpoint {0}: the port is missing")]
    PortMissing(String),
    /// Port 0.
    #[error("endpoint {0}: port 0 cannot be sent to")]
    PortZero(String),
    /// A port above 65535.
    #[error("endpoint {0}: the port is greater than 65535")]
    PortTooBig(String),
    /// A port that is no number.
    #[error("endpoint {0}: the port is not a number")]
    Port(String),
}

/// What is wrong with a host name; RFC 1123 §2.1 with the underscore that real zones use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A character that a host name cannot have.
    #[error("{0:?} cannot be in a host name")]
    Character(char),
    /// Two dots in a row, or one in front.
    #[error("the host name has an empty part")]
    EmptyLabel,
    /// A part of more than 63 bytes.
    #[error("a part of the host name is longer than {MAX_LABEL} bytes")]
    LongLabel,
    /// A part that begins or ends with a hyphen.
    #[error("a part of the host name begins or ends with a hyphen")]
    Hyphen,
    /// More than 253 bytes.
    #[error("the host name is longer than {MAX_NAME} bytes")]
    Long,
}

impl Hint for EndpointError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            EndpointError::Unbracketed(_) | EndpointError::BracketOpen(_) => {
                "write it as [2001:db8::1]:51820".to_owned()
            }
            EndpointError::Zone(_) => "give the IPv6 address without the zone, or another address".to_owned(),
            EndpointError::Unusable(_) => "give the address under which others reach the machine".to_owned(),
            EndpointError::PortMissing(text) => format!("append the port: {text}:51820"),
            EndpointError::PortZero(_) | EndpointError::PortTooBig(_) | EndpointError::Port(_) => {
                "a port is a number from 1 to 65535".to_owned()
            }
            EndpointError::Name { reason: NameError::Character(character), .. } if !character.is_ascii() => {
                "write the name in its xn-- form".to_owned()
            }
            _ => "an endpoint is 203.0.113.20:51820, [2001:db8::1]:51820 or name.example:51820".to_owned(),
        })
    }
    fn status(&self) -> Status {
        Status::Usage
    }
}

fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(MAX_QUOTE).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_QUOTE).is_some() {
        quoted.push('…');
    }
    quoted
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        // name, colon, five digits
        if text.len() > MAX_NAME + 6 {
            return Err(EndpointError::TooLong(text.len()));
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (inside, after) = rest.split_once(']').ok_or_else(|| EndpointError::BracketOpen(quote(text)))?;
            if inside.contains('%') {
                return Err(EndpointError::Zone(quote(text)));
            }
            let ip: Ipv6Addr = inside.parse().map_err(|_| EndpointError::Ipv6(quote(text)))?;
            let port = match after.strip_prefix(':') {
                Some(port) => parse_port(port, text)?,
                None if after.is_empty() => return Err(EndpointError::PortMissing(quote(text))),
                None => return Err(EndpointError::Port(quote(text))),
            };
            return from_ip(IpAddr::V6(ip).to_canonical(), port, text);
        }
        if text.matches(':').count() > 1 {
            return Err(EndpointError::Unbracketed(quote(text)));
        }
        let (host, port) = text.split_once(':').ok_or_else(|| match text.parse::<Ipv4Addr>() {
            Err(_) if looks_like_ipv4(text) => EndpointError::Ipv4(quote(text)),
            _ => EndpointError::PortMissing(quote(text)),
        })?;
        if host.is_empty() {
            return Err(EndpointError::EmptyName(quote(text)));
        }
        if looks_like_ipv4(host) {
            let ip: Ipv4Addr = host.parse().map_err(|_| EndpointError::Ipv4(quote(text)))?;
            return from_ip(IpAddr::V4(ip), parse_port(port, text)?, text);
        }
        check_name(host).map_err(|reason| EndpointError::Name { text: quote(text), reason })?;
        Ok(Endpoint { host: Host::Name(host.to_owned()), port: parse_port(port, text)? })
    }
}

/// A name whose last part is a number is an IPv4 address or a mistake, never a name: no top-level domain is a number.
fn looks_like_ipv4(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
}

fn from_ip(ip: IpAddr, port: u16, text: &str) -> Result<Endpoint, EndpointError> {
    let unusable = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    if unusable {
        return Err(EndpointError::Unusable(quote(text)));
    }
    Ok(Endpoint { host: Host::Ip(ip), port })
}

fn parse_port(port: &str, text: &str) -> Result<u16, EndpointError> {
    if port.is_empty() {
        return Err(EndpointError::PortMissing(quote(text.trim_end_matches(':'))));
    }
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(EndpointError::Port(quote(text)));
    }
    match port.parse::<u16>() {
        Ok(0) => Err(EndpointError::PortZero(quote(text))),
        Ok(port) => Ok(port),
        Err(_) => Err(EndpointError::PortTooBig(quote(text))),
    }
}

fn check_name(name: &str) -> Result<(), NameError> {
    if let Some(character) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
        return Err(NameError::Character(character));
    }
    if name.len() > MAX_NAME {
        return Err(NameError::Long);
    }
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        if label.is_empty() {
            return Err(NameError::EmptyLabel);
        }
        if label.len() > MAX_LABEL {
            return Err(NameError::LongLabel);
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(NameError::Hyphen);
        }
    }
    Ok(())
}

/// Who the exit is and where it can be reached, best endpoint first. Not a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectString {
    /// The exit's static public key.
    pub key: PublicKey,
    /// 1 to [`MAX_ENDPOINTS`] endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A text that is no connect string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectStringError {
    /// Nothing there.
    #[error("the connect string is empty")]
    Empty,
    /// More than [`MAX_LENGTH`].
    #[error("the connect string is {0} bytes long, at most {MAX_LENGTH} are possible")]
    TooLong(usize),
    /// A key and nothing behind it.
    #[error("the connect string ends after the key")]
    OnlyKey,
    /// No `@`.
    #[error("the connect string has no @ between key and endpoint")]
    NoAt,
    /// The key is none.
    #[error("bad key before the @")]
    Key(#[source] KeyError),
    /// Too many endpoints.
    #[error("the connect string has {0} endpoints, at most {MAX_ENDPOINTS} are possible")]
    TooManyEndpoints(usize),
    /// An endpoint is none.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl Hint for ConnectStringError {
    fn hint(&self) -> Option<String> {
        match self {
            ConnectStringError::Key(error) => error.hint(),
            ConnectStringError::Endpoint(EndpointError::Empty) => {
                Some("behind the @ and between commas stands an endpoint such as 203.0.113.20:51820".to_owned())
            }
            ConnectStringError::Endpoint(error) => error.hint(),
            ConnectStringError::TooManyEndpoints(_) => Some("leave out the endpoints that matter least".to_owned()),
            ConnectStringError::OnlyKey => Some("append @ and the exit's endpoint: KEY@203.0.113.20:51820".to_owned()),
            _ => Some("copy the whole connect string that `peervpn exit` printed: KEY@203.0.113.20:51820".to_owned()),
        }
    }
    fn status(&self) -> Status {
        Status::Usage
    }
}

impl fmt::Display for ConnectString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.key)?;
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{endpoint}")?;
        }
        Ok(())
    }
}

impl FromStr for ConnectString {
    type Err = ConnectStringError;

    /// White space around the whole is ignored, as copying from a terminal leaves it.
    fn from_str(text: &str) -> Result<Self, ConnectStringError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ConnectStringError::Empty);
        }
        if text.len() > MAX_LENGTH {
            return Err(ConnectStringError::TooLong(text.len()));
        }
        let Some((key, endpoints)) = text.split_once('@') else {
            return Err(match text.parse::<PublicKey>() {
                Ok(_) => ConnectStringError::OnlyKey,
                Err(_) => ConnectStringError::NoAt,
            });
        };
        let key = key.parse().map_err(ConnectStringError::Key)?;
        let count = endpoints.split(',').count();
        if count > MAX_ENDPOINTS {
            return Err(ConnectStringError::TooManyEndpoints(count));
        }
        let endpoints = endpoints.split(',').map(Endpoint::from_str).collect::<Result<_, _>>()?;
        Ok(ConnectString { key, endpoints })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn what_is_printed_reads_back() {
        for endpoints in [
            "203.0.113.20:51820",
            "[2001:db8::1]:1",
            "exit.example:65535",
            "exit.example.:51820",
            "a_b.xn--bcher-kva.example:51820",
            "203.0.113.20:51820,[2001:db8::1]:51820,exit.example:51820",
        ] {
            let text = format!("{KEY}@{endpoints}");
            let parsed: ConnectString = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
            assert_eq!(format!(" {text}\n").parse(), Ok(parsed));
        }
    }

    #[test]
    fn a_mapped_address_is_kept_as_ipv4() {
        let endpoint: Endpoint = "[::ffff:203.0.113.20]:51820".parse().unwrap();
        assert_eq!(endpoint.to_string(), "203.0.113.20:51820");
        assert_eq!(endpoint.socket_addr(), Some("203.0.113.20:51820".parse().unwrap()));
        assert_eq!(Endpoint::from("[::ffff:203.0.113.20]:51820".parse::<SocketAddr>().unwrap()), endpoint);
        assert_eq!("exit.example:1".parse::<Endpoint>().unwrap().socket_addr(), None);
    }

    #[test]
    fn each_bad_endpoint_is_named() {
        let long_label = format!("{}.example:1", "a".repeat(64));
        let long_name = format!("{}:1", "a.".repeat(127).trim_end_matches('.'));
        for (text, message, hint) in [
            ("", "the endpoint is empty", "an endpoint is"),
            ("2001:db8::1", "endpoint 2001:db8::1: an IPv6 address needs brackets", "write it as ["),
            ("2001:db8::1:51820", "endpoint 2001:db8::1:51820: an IPv6 address needs brackets", "write it as ["),
            ("[2001:db8::1:5", "endpoint [2001:db8::1:5: the bracket is not closed", "write it as ["),
            ("[2001:db8::g]:5", "endpoint [2001:db8::g]:5: not an IPv6 address between the brackets", "an endpoint is"),
            ("[203.0.113.1]:5", "endpoint [203.0.113.1]:5: not an IPv6 address between the brackets", "an endpoint is"),
            ("[fe80::1%eth0]:5", "endpoint [fe80::1%eth0]:5: an address with a zone means something on", "give the"),
            ("[2001:db8::1]", "endpoint [2001:db8::1]: the port is missing", "append the port: [2001:db8::1]:51820"),
            ("[2001:db8::1]51820", "endpoint [2001:db8::1]51820: the port is not a number", "a port is"),
            ("203.0.113.300:5", "endpoint 203.0.113.300:5: not an IPv4 address", "an endpoint is"),
            ("203.0.113:5", "endpoint 203.0.113:5: not an IPv4 address", "an endpoint is"),
            ("1.2.3.4.:5", "endpoint 1.2.3.4.:5: not an IPv4 address", "an endpoint is"),
            ("51820", "endpoint 51820: not an IPv4 address", "an endpoint is"),
            ("203.0.113.20", "endpoint 203.0.113.20: the port is missing", "append the port: 203.0.113.20:51820"),
            ("exit.example", "endpoint exit.example: the port is missing", "append the port: exit.example:51820"),
            ("exit.example:", "endpoint exit.example: the port is missing", "append the port: exit.example:51820"),
            ("0.0.0.0:5", "endpoint 0.0.0.0:5: no single host has this address", "give the address under"),
            ("[::]:5", "endpoint [::]:5: no single host has this address", "give the address under"),
            ("[ff02::1]:5", "endpoint [ff02::1]:5: no single host has this address", "give the address under"),
            ("255.255.255.255:5", "endpoint 255.255.255.255:5: no single host has", "give the address under"),
            (":51820", "endpoint :51820: the host name is empty", "an endpoint is"),
            ("exit.example:0", "endpoint exit.example:0: port 0 cannot be sent to", "a port is a number from 1"),
            ("exit.example:65536", "endpoint exit.example:65536: the port is greater than 65535", "a port is"),
            ("exit.example:99999999999", "endpoint exit.example:99999999999: the port is greater", "a port is"),
            ("exit.example:+5", "endpoint exit.example:+5: the port is not a number", "a port is"),
            ("exit.example:http", "endpoint exit.example:http: the port is not a number", "a port is"),
            ("ex it:5", "endpoint ex it:5: ' ' cannot be in a host name", "an endpoint is"),
            ("bücher.example:5", "endpoint bücher.example:5: 'ü' cannot be in a host name", "write the name in"),
            ("a\u{1b}[31m:5", "endpoint a\\u{1b}[31m:5: '\\u{1b}' cannot be in a host name", "an endpoint is"),
            ("a..b:5", "endpoint a..b:5: the host name has an empty part", "an endpoint is"),
            (".:5", "endpoint .:5: the host name has an empty part", "an endpoint is"),
            ("-a.b:5", "endpoint -a.b:5: a part of the host name begins or ends with a hyphen", "an endpoint is"),
            (&long_label, "endpoint aaaaa", "an endpoint is"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text);
            assert!(error.to_string().starts_with(message), "{text}: {error}");
            assert!(error.hint().unwrap().starts_with(hint), "{text}: {:?}", error.hint());
            assert_eq!(error.status(), Status::Usage);
        }
        assert!(long_name.parse::<Endpoint>().is_ok(), "253 bytes are allowed");
        assert!(format!("a{long_name}").parse::<Endpoint>().unwrap_err().to_string().contains("longer"));
        assert_eq!("a".repeat(300).parse::<Endpoint>(), Err(EndpointError::TooLong(300)));
    }

    #[test]
    fn each_bad_connect_string_is_named() {
        let many = format!("{KEY}@{}", ["a:1"; 17].join(","));
        let long = format!("{KEY}@{}", "a".repeat(MAX_LENGTH));
        for (text, message, hint) in [
            ("  ", "the connect string is empty", "copy the whole"),
            (KEY, "the connect string ends after the key", "append @"),
            ("203.0.113.20:51820", "the connect string has no @ between key and endpoint", "copy the whole"),
            ("@a:1", "bad key before the @: a key has 44 characters, this has 0", "copy the whole"),
            ("short@a:1", "bad key before the @: a key has 44 characters, this has 5", "copy the whole"),
            (&format!("{KEY}@"), "the endpoint is empty", "behind the @"),
            (&format!("{KEY}@a:1,"), "the endpoint is empty", "behind the @"),
            (&format!("{KEY}@a:1, b:1"), "endpoint  b:1: ' ' cannot be in a host name", "an endpoint is"),
            (&format!("{KEY}@a@b:1"), "endpoint a@b:1: '@' cannot be in a host name", "an endpoint is"),
            (&many, "the connect string has 17 endpoints, at most 16 are possible", "leave out"),
            (&long, "the connect string is 4141 bytes long, at most 4096 are possible", "copy the whole"),
        ] {
            let error = text.parse::<ConnectString>().expect_err(text);
            let failure = Failure::from(error);
            assert_eq!(failure.message, message);
            assert!(failure.hint.as_deref().unwrap().starts_with(hint), "{text}: {:?}", failure.hint);
            assert_eq!(failure.status, Status::Usage);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_reads_back(text in "\\PC{0,60}|[0-9a-f:.\\[\\]%,@-]{0,60}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                proptest::prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
            }
            if let Ok(parsed) = format!("{KEY}@{text}").parse::<ConnectString>() {
                proptest::prop_assert_eq!(parsed.to_string().parse::<ConnectString>(), Ok(parsed));
            }
        }
    }
}
