//! NAT-PMP's mapping of a UDP port; RFC 6886 §3.3. The external address comes by another request, `gateway::nat_pmp`.

use std::time::Duration;

use super::{Refusal, lifetime};

/// Opcode "map UDP", and its answer's; RFC 6886 §3.3.
const MAP_UDP: u8 = 1;
const ANSWER: u8 = 128 + MAP_UDP;

/// A mapping as granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Port at the gateway's external address.
    pub external_port: u16,
    /// How long it lasts.
    pub lifetime: Duration,
    /// Seconds since the gateway's mapping table was new; falls when it was lost.
    pub epoch: u32,
}

/// A request for `lifetime`. With none it is a deletion, and the external port must be 0 (§3.4).
pub fn request(port: u16, suggested: u16, lifetime: Duration) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[1] = MAP_UDP;
    bytes[4..6].copy_from_slice(&port.to_be_bytes());
    bytes[6..8].copy_from_slice(&suggested.to_be_bytes());
    bytes[8..].copy_from_slice(&(lifetime.as_secs() as u32).to_be_bytes());
    bytes
}

/// Reads an answer: `None` where it does not answer a request for `port`. A grant to a deletion has no lifetime.
pub fn answer(bytes: &[u8], port: u16) -> Option<Result<Granted, Refusal>> {
    if bytes.len() < 8 || bytes[..2] != [0, ANSWER] {
        return None;
    }
    let short = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    match short(2)? {
        0 => {}
        // §3.5; an error may be cut short, and then says no port
        code if short(8).is_none_or(|mapped| mapped == port) => return Some(Err(refusal(code))),
        _ => return None,
    }
    let granted = Granted { external_port: short(10)?, lifetime: lifetime(word(12)?), epoch: word(4)? };
    if bytes.len() != 16 || short(8)? != port {
        return None;
    }
    if granted.external_port == 0 && !granted.lifetime.is_zero() {
        return Some(Err(Refusal("granted no port".to_owned())));
    }
    Some(Ok(granted))
}

fn refusal(code: u16) -> Refusal {
    Refusal(match code {
        1 => "unsupported version".to_owned(),
        2 => "not authorized".to_owned(),
        3 => "network failure: the gateway has no external address".to_owned(),
        4 => "out of resources".to_owned(),
        5 => "unsupported opcode".to_owned(),
        other => format!("result {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn request_and_answer_are_drawn_as_in_the_rfc() {
        let bytes = request(51820, 51820, Duration::from_secs(7200));
        assert_eq!(bytes, [0, 1, 0, 0, 0xca, 0x6c, 0xca, 0x6c, 0, 0, 0x1c, 0x20]);
        assert_eq!(request(51820, 0, Duration::ZERO)[6..], [0; 6]);
        let served = [0, 129, 0, 0, 0, 0, 0, 77, 0xca, 0x6c, 0x0f, 0xa0, 0, 0, 0, 120];
        let granted = answer(&served, 51820).unwrap().unwrap();
        assert_eq!(granted, Granted { external_port: 4000, lifetime: Duration::from_secs(120), epoch: 77 });
        assert_eq!(answer(&served, 51821), None);
        assert_eq!(answer(&served[..15], 51820), None);
        let refused = |code| answer(&[0, 129, 0, code, 0, 0, 0, 77, 0xca, 0x6c, 0, 0, 0, 0, 0, 0], 51820);
        assert_eq!(refused(2), Some(Err(Refusal("not authorized".into()))));
        assert_eq!(answer(&[0, 129, 0, 2, 0, 0, 0, 77], 51820), Some(Err(Refusal("not authorized".into()))));
        assert_eq!(
            answer(&[0, 129, 0, 0, 0, 0, 0, 77, 0xca, 0x6c, 0, 0, 0, 0, 0, 9], 51820),
            Some(Err(Refusal("granted no port".into())))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = answer(&bytes, 7);
            if bytes.len() > 1 {
                bytes[..2].copy_from_slice(&[0, 129]);
                let _ = answer(&bytes, 7);
            }
        }
    }
}
