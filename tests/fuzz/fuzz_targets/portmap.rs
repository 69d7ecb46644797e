//! What a gateway answers to port-mapping requests: PCP, NAT-PMP, SSDP, HTTP, device descriptions, SOAP.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use peervpn::nat::portmap::{http, nat_pmp, pcp, upnp, xml};

const MAPPING: pcp::Mapping = pcp::Mapping { client: Ipv4Addr::new(192, 168, 1, 2), port: 51820, nonce: [0; 12] };

fuzz_target!(|bytes: &[u8]| {
    if let Some(Ok(granted)) = pcp::answer(bytes, &MAPPING) {
        assert!(granted.lifetime.is_zero() || granted.external.port() != 0);
        assert!(granted.lifetime.as_secs() <= 86400);
    }
    if let Some(Ok(granted)) = nat_pmp::answer(bytes, 51820) {
        assert!(granted.lifetime.is_zero() || granted.external_port != 0);
    }
    let from = upnp::Url { server: "192.168.1.1:5000".parse().unwrap(), path: "/".to_owned() };
    if let Some(url) = upnp::location(bytes) {
        assert!(url.path.starts_with('/') && url.path.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    for closed in [false, true] {
        if let Ok(Some(answer)) = http::answer(bytes, closed) {
            assert!(answer.body.len() <= bytes.len());
            let _ = upnp::external_address(&answer);
            let _ = upnp::entry(&answer);
            if let Err(fault) = upnp::done(&answer) {
                assert!(fault.to_string().chars().count() < 120 && !fault.to_string().contains('\x1b'));
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(xml::tokens(text).count() <= 2 * text.len());
        for service in upnp::services(text, &from) {
            assert!(service.control.server.ip() == from.server.ip());
            let request = String::from_utf8(upnp::delete(&service, 1)).unwrap();
            // nothing that a router wrote gets a line of its own in our request
            assert!(request.split("\r\n\r\n").next().unwrap().lines().count() == 7);
        }
    }
});
