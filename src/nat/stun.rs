//! STUN Binding requests and answers (RFC 8489, RFC 5780), the few attributes PeerVPN uses. `stun-rs` does the
//! encoding; the checks around it are ours: bounded size, exact length, Binding answers only, a sane address.

use std::net::SocketAddr;

use stun_rs::attributes::discovery::{ChangeRequest, ChangeRequestFlags, OtherAddress, ResponseOrigin, ResponsePort};
use stun_rs::attributes::stun::{ErrorCode, MappedAddress, XorMappedAddress};
use stun_rs::methods::BINDING;
use stun_rs::{MESSAGE_HEADER_SIZE, MessageClass, MessageDecoder, MessageEncoder, StunMessage, StunMessageBuilder};

/// Magic cookie at byte 4 of every STUN message, RFC 8489 §5.
pub const MAGIC_COOKIE: u32 = 0x2112_A442;

/// Longest answer looked at, bytes: RFC 8489 §6.1 keeps messages under the path MTU.
pub const MAX_MESSAGE: usize = 1500;

/// 96 bits that tie an answer to its request; uniformly random, or anyone could forge answers (RFC 8489 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId(pub [u8; 12]);

/// What a Binding request asks beyond "which address do you see?".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Options {
    /// CHANGE-REQUEST with "change IP": answer from the other address (RFC 5780 §7.2).
    pub change_ip: bool,
    /// CHANGE-REQUEST with "change port": answer from the other port.
    pub change_port: bool,
    /// RESPONSE-PORT: answer to this port of ours instead of the request's source (RFC 5780 §7.5).
    pub response_port: Option<u16>,
}

/// An answer to a Binding request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The request's transaction ID.
    pub id: TransactionId,
    /// What it says.
    pub body: Body,
}

/// Success or error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A Binding success response.
    Success(Success),
    /// A Binding error response with its code (RFC 8489 §14.8): 420 means an attribute the server doesn't know.
    Error(u16),
}

/// A Binding success response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Success {
    /// Our reflexive address: XOR-MAPPED-ADDRESS, or MAPPED-ADDRESS where an old server sends only that.
    pub mapped: SocketAddr,
    /// OTHER-ADDRESS (RFC 5780 §7.4): the server has a second address and port and honours CHANGE-REQUEST.
    pub other: Option<SocketAddr>,
    /// RESPONSE-ORIGIN (RFC 5780 §7.3): where the server thinks it answered from.
    pub origin: Option<SocketAddr>,
}

/// Bytes that are no answer to a Binding request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too short, too long, or its length field doesn't fit.
    #[error("a datagram of {0} bytes is no STUN message")]
    Length(usize),
    /// Wrong magic cookie or malformed.
    #[error("malformed STUN message: {0}")]
    Malformed(String),
    /// A STUN message, but no answer to a Binding request.
    #[error("no answer to a STUN Binding request")]
    NotAnAnswer,
    /// A success without a usable reflexive address, or an error without a code.
    #[error("a STUN answer without {0}")]
    Missing(&'static str),
}

/// Encodes a Binding request.
pub fn request(id: TransactionId, options: Options) -> Vec<u8> {
    let mut message =
        StunMessageBuilder::new(BINDING, MessageClass::Request).with_transaction_id(stun_rs::TransactionId::from(id.0));
    use ChangeRequestFlags::{ChangeIp, ChangePort};
    let flags = match (options.change_ip, options.change_port) {
        (true, true) => Some(ChangeIp | ChangePort),
        (true, false) => Some(ChangeIp.into()),
        (false, true) => Some(ChangePort.into()),
        (false, false) => None,
    };
    if flags.is_some() {
        message = message.with_attribute(ChangeRequest::new(flags));
    }
    if let Some(port) = options.response_port {
        message = message.with_attribute(ResponsePort::from(port));
    }
    // header 20, CHANGE-REQUEST 8, RESPONSE-PORT 8: always fits
    let mut buffer = [0; 64];
    let length = MessageEncoder::default().encode(&mut buffer, &message.build()).expect("36 bytes fit into 64");
    buffer[..length].to_vec()
}

/// The transaction ID of something that looks like a STUN message: long enough and with the magic cookie.
pub fn transaction_id(bytes: &[u8]) -> Option<TransactionId> {
    (bytes.get(4..8)? == MAGIC_COOKIE.to_be_bytes()).then_some(())?;
    Some(TransactionId(bytes.get(8..MESSAGE_HEADER_SIZE)?.try_into().ok()?))
}

/// Decodes an answer to a Binding request. Never panics, whatever the bytes.
pub fn decode(bytes: &[u8]) -> Result<Response, DecodeError> {
    let length = bytes.len();
    if !(MESSAGE_HEADER_SIZE..=MAX_MESSAGE).contains(&length) || !length.is_multiple_of(4) {
        return Err(DecodeError::Length(length));
    }
    let (message, used) =
        MessageDecoder::default().decode(bytes).map_err(|error| DecodeError::Malformed(error.to_string()))?;
    if used != length {
        return Err(DecodeError::Length(length));
    }
    let id = TransactionId(*message.transaction_id().as_bytes());
    if message.method() != BINDING {
        return Err(DecodeError::NotAnAnswer);
    }
    let body = match message.class() {
        MessageClass::SuccessResponse => Body::Success(success(&message)?),
        MessageClass::ErrorResponse => Body::Error(error_code(&message).ok_or(DecodeError::Missing("an error code"))?),
        MessageClass::Request | MessageClass::Indication => return Err(DecodeError::NotAnAnswer),
    };
    Ok(Response { id, body })
}

fn success(message: &StunMessage) -> Result<Success, DecodeError> {
    let xor =
        message.get::<XorMappedAddress>().and_then(|a| a.as_xor_mapped_address().ok()).map(|a| a.socket_address());
    let plain = || message.get::<MappedAddress>().and_then(|a| a.as_mapped_address().ok()).map(|a| a.socket_address());
    let mapped = xor.or_else(plain).copied().and_then(usable).ok_or(DecodeError::Missing("a reflexive address"))?;
    let other = message.get::<OtherAddress>().and_then(|a| a.as_other_address().ok()).map(|a| *a.socket_address());
    let origin = message.get::<ResponseOrigin>().and_then(|a| a.as_response_origin().ok()).map(|a| *a.socket_address());
    Ok(Success { mapped, other: other.and_then(usable), origin: origin.and_then(usable) })
}

fn error_code(message: &StunMessage) -> Option<u16> {
    Some(message.get::<ErrorCode>()?.as_error_code().ok()?.error_code().error_code())
}

/// An address that a host can have; `None` for what only a broken or hostile server sends.
fn usable(address: SocketAddr) -> Option<SocketAddr> {
    let ip = address.ip();
    let mapped_v4 = matches!(ip, std::net::IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    (address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !mapped_v4).then_some(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: TransactionId = TransactionId([7; 12]);

    /// RFC 5769 §2.2, SOFTWARE and XOR-MAPPED-ADDRESS of the sample IPv4 response, without its integrity attributes.
    const SAMPLE: &[u8] = &[
        0x01, 0x01, 0x00, 0x1c, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87,
        0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76, 0x65, 0x63, 0x74, 0x6f, 0x72, 0x20,
        0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43,
    ];

    pub(crate) fn answer(mapped: &str, other: Option<&str>) -> Vec<u8> {
        let mut message = StunMessageBuilder::new(BINDING, MessageClass::SuccessResponse)
            .with_transaction_id(stun_rs::TransactionId::from(ID.0))
            .with_attribute(XorMappedAddress::from(mapped.parse::<SocketAddr>().unwrap()));
        if let Some(other) = other {
            message = message.with_attribute(OtherAddress::from(other.parse::<SocketAddr>().unwrap()));
        }
        let mut buffer = [0; 200];
        let length = MessageEncoder::default().encode(&mut buffer, &message.build()).unwrap();
        buffer[..length].to_vec()
    }

    #[test]
    fn a_request_is_encoded_as_the_rfcs_draw_it() {
        let plain = request(ID, Options::default());
        let mut expected = vec![0x00, 0x01, 0x00, 0x00, 0x21, 0x12, 0xa4, 0x42];
        expected.extend([7; 12]);
        assert_eq!(plain, expected);
        let full = request(ID, Options { change_ip: true, change_port: true, response_port: Some(0x1234) });
        assert_eq!(full[2..4], [0, 16]);
        assert_eq!(full[20..], [0x00, 0x03, 0, 4, 0, 0, 0, 6, 0x00, 0x27, 0, 2, 0x12, 0x34, 0, 0]);
        let port = request(ID, Options { change_port: true, ..Options::default() });
        assert_eq!(port[20..], [0x00, 0x03, 0, 4, 0, 0, 0, 2]);
        let ip = request(ID, Options { change_ip: true, ..Options::default() });
        assert_eq!(ip[20..], [0x00, 0x03, 0, 4, 0, 0, 0, 4]);
    }

    #[test]
    fn the_rfc_5769_sample_answer_is_understood() {
        let response = decode(SAMPLE).unwrap();
        let Body::Success(success) = response.body else { panic!("{response:?}") };
        assert_eq!(success.mapped, "192.0.2.1:32853".parse().unwrap());
        assert_eq!(transaction_id(SAMPLE), Some(response.id));
    }

    #[test]
    fn other_address_and_v6_are_understood() {
        let response = decode(&answer("[2001:db8::1]:4000", Some("[2001:db8::2]:3479"))).unwrap();
        assert_eq!(
            response,
            Response {
                id: ID,
                body: Body::Success(Success {
                    mapped: "[2001:db8::1]:4000".parse().unwrap(),
                    other: Some("[2001:db8::2]:3479".parse().unwrap()),
                    origin: None,
                }),
            }
        );
    }

    #[test]
    fn an_error_answer_gives_its_code() {
        let mut bytes = vec![0x01, 0x11, 0x00, 0x08, 0x21, 0x12, 0xa4, 0x42];
        bytes.extend([7; 12]);
        bytes.extend([0x00, 0x09, 0x00, 0x04, 0, 0, 4, 20]);
        assert_eq!(decode(&bytes), Ok(Response { id: ID, body: Body::Error(420) }));
    }

    #[test]
    fn what_is_no_sane_answer_is_refused() {
        assert_eq!(decode(&request(ID, Options::default())), Err(DecodeError::NotAnAnswer));
        assert_eq!(decode(&SAMPLE[..19]), Err(DecodeError::Length(19)));
        assert_eq!(decode(&[0; 1504]), Err(DecodeError::Length(1504)));
        let mut trailing = SAMPLE.to_vec();
        trailing.extend([0; 4]);
        assert_eq!(decode(&trailing), Err(DecodeError::Length(52)));
        let mut cookie = SAMPLE.to_vec();
        cookie[4] ^= 1;
        assert!(matches!(decode(&cookie), Err(DecodeError::Malformed(_))));
        for bad in ["0.0.0.0:1", "192.0.2.1:0", "224.0.0.1:5", "[::ffff:192.0.2.1]:5"] {
            assert_eq!(decode(&answer(bad, None)), Err(DecodeError::Missing("a reflexive address")), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..1600)) {
            let _ = decode(&bytes);
            let _ = transaction_id(&bytes);
        }

        #[test]
        fn no_attributes_make_it_panic(
            kind in prop_oneof![Just([1u8, 1u8]), Just([1, 0x11]), any::<[u8; 2]>()],
            attributes in prop::collection::vec((
                prop_oneof![
                    prop::sample::select(vec![
                        0x0001u16, 0x0003, 0x0006, 0x0008, 0x0009, 0x000a, 0x0014, 0x0015, 0x001c, 0x001d, 0x001e,
                        0x0020, 0x0026, 0x0027, 0x8002, 0x8003, 0x8022, 0x8023, 0x8028, 0x802b, 0x802c,
                    ]),
                    any::<u16>(),
                ],
                prop::collection::vec(any::<u8>(), 0..40),
                prop_oneof![4 => Just(0u16), 1 => any::<u16>()],
            ), 0..8),
        ) {
            let mut body = Vec::new();
            for (kind, value, lie) in &attributes {
                body.extend(kind.to_be_bytes());
                body.extend((value.len() as u16 ^ lie).to_be_bytes());
                body.extend(value);
                body.resize(body.len().next_multiple_of(4), 0);
            }
            let mut bytes = kind.to_vec();
            bytes.extend((body.len() as u16).to_be_bytes());
            bytes.extend(MAGIC_COOKIE.to_be_bytes());
            bytes.extend([7; 12]);
            bytes.extend(body);
            let _ = decode(&bytes);
        }

        #[test]
        fn a_bit_flipped_or_cut_sample_never_panics(at in 0..48usize, mask in 1..=255u8, keep in 0..=48usize) {
            let mut bytes = SAMPLE.to_vec();
            bytes[at] ^= mask;
            let _ = decode(&bytes[..keep]);
            if let Ok(response) = decode(&bytes) {
                prop_assert_eq!(Some(response.id), transaction_id(&bytes));
            }
        }
    }
}
