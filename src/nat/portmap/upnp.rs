//! UPnP IGD: finding the gateway's connection service and the four actions that a mapping takes; UPnP Device
//! Architecture 1.1 §1.3.3, §2.3 and §3.1, WANIPConnection:1 §2.4.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::xml::{self, Token, escape};
use super::{http, lifetime};

/// Description of our mappings, by which we know them again.
pub const DESCRIPTION: &str = "PeerVPN";

/// Services that map ports, in the order of preference; the second version answers calls of the first, too, but not
/// everywhere.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// Longest path taken from a router.
const MAX_PATH: usize = 512;

/// Where an HTTP resource is. Routers name themselves by address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// Host and port.
    pub server: SocketAddrV4,
    /// Path with its query: starts with `/`, printable ASCII only.
    pub path: String,
}

/// A service that maps ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Where its actions are called.
    pub control: Url,
    /// Its type.
    pub kind: String,
}

/// Why an action was not carried out: `errorCode` and `errorDescription` of UPnP Device Architecture 1.1 §3.1.2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error {code} {}", .description.as_str())]
pub struct Fault {
    /// Code; 0 where the answer is none.
    pub code: u16,
    /// In the router's words.
    pub description: String,
}

impl Fault {
    /// The action names no mapping (NoSuchEntryInArray).
    pub const NO_SUCH_ENTRY: u16 = 714;
    /// Another host has that external port (ConflictInMappingEntry).
    pub const CONFLICT: u16 = 718;
    /// Only mappings without an end are supported.
    pub const ONLY_PERMANENT: u16 = 725;
}

/// The mapping of an external port as the gateway tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it leads.
    pub client: Option<Ipv4Addr>,
    /// To which port.
    pub port: Option<u16>,
    /// Whose it is.
    pub description: String,
    /// How long it lasts; zero for ever.
    pub lifetime: Duration,
}

/// The device description's address in a search answer; `http` and a literal v4 address only.
pub fn location(answer: &[u8]) -> Option<Url> {
    let text = std::str::from_utf8(answer).ok()?;
    let lines = text.lines().skip(1).take_while(|line| !line.is_empty());
    let mut headers = lines.filter_map(|line| line.split_once(':'));
    let (_, url) = headers.find(|(name, _)| name.trim().eq_ignore_ascii_case("location"))?;
    absolute(url.trim())
}

fn absolute(url: &str) -> Option<Url> {
    let scheme = url.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"))?;
    let rest = &url[scheme.len()..];
    let (server, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let server = server.parse().or_else(|_| server.parse().map(|ip| SocketAddrV4::new(ip, 80))).ok()?;
    Some(Url { server, path: clean(path)? })
}

/// A path that can stand in a request line.
fn clean(path: &str) -> Option<String> {
    let fits = path.len() <= MAX_PATH && path.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
}

/// The services that map ports in a device description found at `from`, best first. Those on another host than the
/// description are left out: we talk to nobody but the gateway.
pub fn services(description: &str, from: &Url) -> Vec<Service> {
    let base = xml::text_of(description, "URLBase").and_then(|base| absolute(&base));
    let base = base.filter(|base| base.server.ip() == from.server.ip()).unwrap_or_else(|| from.clone());
    let mut found = Vec::new();
    let (mut element, mut kind, mut control) = ("", String::new(), String::new());
    for token in xml::tokens(description) {
        match token {
            Token::Open("service") => (kind, control) = (String::new(), String::new()),
            Token::Open(name) => element = name,
            Token::Text(text) if element == "serviceType" => kind = text.into_owned(),
            Token::Text(text) if element == "controlURL" => control = text.into_owned(),
            Token::Text(_) => {}
            Token::Close("service") => {
                let rank = SERVICES.iter().position(|known| *known == kind);
                let url = absolute(&control)
                    .or_else(|| Some(Url { server: base.server, path: clean(&control)? }))
                    .filter(|url| url.server.ip() == from.server.ip() && !control.is_empty());
                if let (Some(rank), Some(control)) = (rank, url) {
                    found.push((rank, Service { control, kind: std::mem::take(&mut kind) }));
                }
            }
            Token::Close(_) => element = "",
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, service)| service).collect()
}

/// An action with its arguments, as an HTTP request.
fn call(service: &Service, action: &str, arguments: &[(&str, &str)]) -> Vec<u8> {
    let kind = escape(&service.kind);
    let arguments: String =
        arguments.iter().map(|(name, value)| format!("<{name}>{}</{name}>", escape(value))).collect();
    let body = format!(
        "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{kind}\">\
         {arguments}</u:{action}></s:Body></s:Envelope>\r\n"
    );
    http::soap(service.control.server, &service.control.path, &format!("{}#{action}", service.kind), &body)
}

/// Asks for the external address; [`external_address`] reads the answer.
pub fn get_external_address(service: &Service) -> Vec<u8> {
    call(service, "GetExternalIPAddress", &[])
}

/// Asks who has an external UDP port; [`entry`] reads the answer.
pub fn get_entry(service: &Service, external_port: u16) -> Vec<u8> {
    call(
        service,
        "GetSpecificPortMappingEntry",
        &[("NewRemoteHost", ""), ("NewExternalPort", &external_port.to_string()), ("NewProtocol", "UDP")],
    )
}

/// Maps an external UDP port to ours; a lease of zero never ends.
pub fn add(service: &Service, external_port: u16, client: Ipv4Addr, port: u16, lease: Duration) -> Vec<u8> {
    // the order is that of the service's description, and some routers insist on it
    call(
        service,
        "AddPortMapping",
        &[
            ("NewRemoteHost", ""),
            ("NewExternalPort", &external_port.to_string()),
            ("NewProtocol", "UDP"),
            ("NewInternalPort", &port.to_string()),
            ("NewInternalClient", &client.to_string()),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", DESCRIPTION),
            ("NewLeaseDuration", &lease.as_secs().to_string()),
        ],
    )
}

/// Deletes the mapping of an external UDP port.
pub fn delete(service: &Service, external_port: u16) -> Vec<u8> {
    call(
        service,
        "DeletePortMapping",
        &[("NewRemoteHost", ""), ("NewExternalPort", &external_port.to_string()), ("NewProtocol", "UDP")],
    )
}

/// Whether an action was carried out, and the answer's text.
pub fn done(answer: &http::Answer) -> Result<String, Fault> {
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    if answer.status == 200 {
        return Ok(text);
    }
    let code = xml::text_of(&text, "errorCode").and_then(|code| code.parse().ok()).unwrap_or(0);
    let description = match xml::text_of(&text, "errorDescription") {
        // goes to a terminal: nothing but printable text of a bounded length
        Some(said) => said.chars().filter(|c| !c.is_control()).take(80).collect(),
        None => format!("HTTP status {}", answer.status),
    };
    Err(Fault { code, description })
}

/// The external address, where the gateway has one.
pub fn external_address(answer: &http::Answer) -> Result<Option<Ipv4Addr>, Fault> {
    let text = done(answer)?;
    let address = xml::text_of(&text, "NewExternalIPAddress").and_then(|ip| ip.parse().ok());
    Ok(address.filter(|ip: &Ipv4Addr| !ip.is_unspecified()))
}

/// A mapping as it stands.
pub fn entry(answer: &http::Answer) -> Result<Entry, Fault> {
    let text = done(answer)?;
    let field = |name| xml::text_of(&text, name).unwrap_or_default();
    Ok(Entry {
        client: field("NewInternalClient").parse().ok(),
        port: field("NewInternalPort").parse().ok(),
        description: field("NewPortMappingDescription").into_owned(),
        lifetime: lifetime(field("NewLeaseDuration").parse().unwrap_or(0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEVICE: &str = "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device>\
        <serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>\
        <controlURL>/ctl/L3F</controlURL></service></serviceList><deviceList><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType><controlURL>http://192.168.1.1:5000/ppp?a=1&amp;b\
        </controlURL></service><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
        <SCPDURL>/WANIPCn.xml</SCPDURL><controlURL>ctl/IPConn</controlURL></service></serviceList></device>\
        </deviceList></device></root>";

    fn at() -> Url {
        location(b"HTTP/1.1 200 OK\r\nST: x\r\nLocation: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n").unwrap()
    }

    fn answered(status: u16, body: &str) -> http::Answer {
        http::Answer { status, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn the_gateways_services_are_found_best_first() {
        let found = services(DEVICE, &at());
        let paths: Vec<_> = found.iter().map(|service| service.control.path.as_str()).collect();
        assert_eq!(paths, ["/ctl/IPConn", "/ppp?a=1&b"]);
        assert_eq!(found[0].kind, SERVICES[1]);
        let elsewhere = DEVICE.replace("http://192.168.1.1:5000", "http://192.0.2.1:5000");
        assert_eq!(services(&elsewhere, &at()).len(), 1, "another host's service is not called");
        let based = DEVICE.replace("<device>", "<URLBase>http://192.168.1.1:6000/</URLBase><device>");
        assert_eq!(services(&based, &at())[0].control.server.port(), 6000);
        let based = DEVICE.replace("<device>", "<URLBase>http://192.0.2.1:6000/</URLBase><device>");
        assert_eq!(services(&based, &at())[0].control.server, at().server);
    }

    #[test]
    fn only_plain_addresses_are_followed() {
        let location = |url: &str| location(format!("HTTP/1.1 200 OK\r\nLOCATION: {url}\r\n\r\n").as_bytes());
        assert_eq!(location("http://192.168.1.1").unwrap().path, "/");
        assert_eq!(location("HTTP://192.168.1.1/x").unwrap().server.port(), 80);
        for no in [
            "https://192.168.1.1/x",
            "http://router.lan/x",
            "http://[::1]/x",
            "http://192.168.1.1/a b",
            "http://",
            "/x",
        ] {
            assert_eq!(location(no), None, "{no}");
        }
    }

    #[test]
    fn actions_and_answers() {
        let service = &services(DEVICE, &at())[0];
        let text = String::from_utf8(add(service, 4000, Ipv4Addr::new(192, 168, 1, 2), 51820, Duration::from_secs(60)));
        let text = text.unwrap();
        assert!(
            text.contains("SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\""),
            "{text}"
        );
        assert!(text.contains("<NewExternalPort>4000</NewExternalPort>") && text.contains("<NewLeaseDuration>60<"));

        let address = answered(200, "<NewExternalIPAddress>203.0.113.20</NewExternalIPAddress>");
        assert_eq!(external_address(&address), Ok(Some(Ipv4Addr::new(203, 0, 113, 20))));
        assert_eq!(external_address(&answered(200, "<NewExternalIPAddress/>")), Ok(None));
        let fault =
            "<s:Fault><detail><UPnPError><errorCode>718</errorCode><errorDescription>Conflict\x07</errorDescription>";
        let fault = done(&answered(500, fault)).unwrap_err();
        assert_eq!((fault.code, fault.to_string().as_str()), (Fault::CONFLICT, "error 718 Conflict"));
        assert_eq!(done(&answered(404, "")).unwrap_err().to_string(), "error 0 HTTP status 404");
        let entry = entry(&answered(
            200,
            "<u:R><NewInternalPort>51820</NewInternalPort><NewInternalClient>192.168.1.2</NewInternalClient>\
             <NewEnabled>1</NewEnabled><NewPortMappingDescription>PeerVPN</NewPortMappingDescription>\
             <NewLeaseDuration>59</NewLeaseDuration></u:R>",
        ));
        let entry = entry.unwrap();
        assert_eq!((entry.client, entry.port), (Some(Ipv4Addr::new(192, 168, 1, 2)), Some(51820)));
        assert_eq!((entry.description.as_str(), entry.lifetime), (DESCRIPTION, Duration::from_secs(59)));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(<(/)?(service|serviceType|controlURL|URLBase)>|http://|192.168.1.1|[:/a-z<é ]){0,30}") {
            let _ = location(format!("HTTP/1.1 200 OK\r\nLOCATION: {text}\r\n\r\n").as_bytes());
            for service in services(&text, &at()) {
                prop_assert!(service.control.server.ip() == at().server.ip());
            }
        }
    }
}
