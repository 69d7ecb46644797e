//! Which port-mapping protocols a gateway speaks, asked without creating anything: PCP ANNOUNCE (RFC 6887 §14.1),
//! NAT-PMP's external address request (RFC 6886 §3.2), an SSDP search for an Internet gateway (UPnP Device Architecture
//! 1.1 §1.3.2). Requests and answers only; the mapping itself is another part's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where PCP and NAT-PMP servers listen; RFC 6887 §19.1, RFC 6886 §3.
pub const PORT: u16 = 5351;
/// Where SSDP listens, and its v4 group; UPnP Device Architecture 1.1 §1.1.2.
pub const SSDP_PORT: u16 = 1900;
/// See [`SSDP_PORT`].
pub const SSDP_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);

/// A PCP ANNOUNCE request from `client`, the source address it is sent with.
pub fn pcp_announce(client: IpAddr) -> [u8; 24] {
    let mut request = [0; 24];
    request[0] = 2; // version; opcode 0 is ANNOUNCE, lifetime 0
    let client = match client {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    request[8..].copy_from_slice(&Ipv6Addr::octets(&client));
    request
}

/// Whether this answers a PCP ANNOUNCE: version 2, response bit, opcode 0, result SUCCESS (RFC 6887 §7.2).
pub fn is_pcp(answer: &[u8]) -> bool {
    (24..=1100).contains(&answer.len()) && answer[..2] == [2, 0x80] && answer[3] == 0
}

/// A NAT-PMP external address request.
pub const NAT_PMP_REQUEST: [u8; 2] = [0, 0];

/// The gateway's external address from a NAT-PMP answer: version 0, opcode 128, result 0 (RFC 6886 §3.2). The inner
/// `None` is a gateway that has none at the moment (result 3, network failure).
pub fn nat_pmp(answer: &[u8]) -> Option<Option<Ipv4Addr>> {
    let answer: &[u8; 12] = answer.get(..12)?.try_into().ok().filter(|_| answer.len() == 12)?;
    if answer[..2] != [0, 128] {
        return None;
    }
    match u16::from_be_bytes([answer[2], answer[3]]) {
        0 => Some(Some(Ipv4Addr::new(answer[8], answer[9], answer[10], answer[11]))),
        3 => Some(None),
        _ => None,
    }
}

/// An SSDP search for Internet gateways to this host and port, which answer within a second.
pub fn ssdp_search(to: IpAddr) -> String {
    let host = match to {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {host}:{SSDP_PORT}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
         ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
    )
}

/// Whether this is an Internet gateway's answer to [`ssdp_search`] (version 2 of the device answers for version 1, too).
pub fn is_internet_gateway(answer: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(&answer[..answer.len().min(2048)]) else { return false };
    let mut lines = text.lines();
    let ok = lines.next().is_some_and(|status| status.starts_with("HTTP/1.") && status.contains(" 200 "));
    ok && lines.take_while(|line| !line.is_empty()).any(|line| {
        let Some((name, value)) = line.split_once(':') else { return false };
        name.trim().eq_ignore_ascii_case("st")
            && value.trim().starts_with("urn:schemas-upnp-org:device:InternetGatewayDevice:")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pcp_announce_is_drawn_as_in_the_rfc() {
        let request = pcp_announce("192.0.2.7".parse().unwrap());
        assert_eq!(request[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(request[8..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7]);
        let mut answer = [0; 24];
        answer[..2].copy_from_slice(&[2, 0x80]);
        assert!(is_pcp(&answer) && !is_pcp(&request) && !is_pcp(&answer[..23]));
        answer[3] = 1; // UNSUPP_VERSION
        assert!(!is_pcp(&answer));
    }

    #[test]
    fn nat_pmp_tells_the_external_address() {
        let answer = [0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 9];
        assert_eq!(nat_pmp(&answer), Some(Some(Ipv4Addr::new(203, 0, 113, 9))));
        assert_eq!(nat_pmp(&[0, 128, 0, 3, 0, 0, 0, 9, 0, 0, 0, 0]), Some(None));
        assert_eq!(nat_pmp(&[0, 128, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0]), None);
        assert_eq!(nat_pmp(&answer[..11]), None);
    }

    #[test]
    fn only_an_internet_gateways_answer_counts() {
        let answer = "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
                      st: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: http://192.168.1.1/x\r\n\r\n";
        assert!(is_internet_gateway(answer.as_bytes()));
        assert!(!is_internet_gateway(answer.replace("InternetGatewayDevice", "MediaServer").as_bytes()));
        assert!(!is_internet_gateway(answer.replace("200", "404").as_bytes()));
        assert!(ssdp_search(SSDP_GROUP.into()).contains("HOST: 239.255.255.250:1900\r\n"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_them_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = (is_pcp(&bytes), nat_pmp(&bytes), is_internet_gateway(&bytes));
        }
    }
}
