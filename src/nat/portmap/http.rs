//! Just enough HTTP/1.1 to talk to a router's UPnP service: one request a connection, one answer; RFC 9112.

use std::net::SocketAddrV4;

/// Longest answer in bytes; a device description is a few kilobytes.
pub const MAX_ANSWER: usize = 64 << 10;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

/// The bytes do not make an HTTP answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an HTTP answer")]
pub struct Malformed;

/// A GET request.
pub fn get(server: SocketAddrV4, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: peervpn\r\nConnection: close\r\n\r\n").into_bytes()
}

/// A SOAP call; `action` is `SERVICE#NAME` (UPnP Device Architecture 1.1 §3.1.1).
pub fn soap(server: SocketAddrV4, path: &str, action: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: peervpn\r\nConnection: close\r\n\
         Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"{action}\"\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Reads what has come so far: `None` where more is to come. `closed`: the server has closed the connection.
pub fn answer(bytes: &[u8], closed: bool) -> Result<Option<Answer>, Malformed> {
    let unfinished = || if closed { Err(Malformed) } else { Ok(None) };
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return unfinished() };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| Malformed)?;
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    if !words.next().unwrap_or_default().starts_with("HTTP/1.") {
        return Err(Malformed);
    }
    let status: u16 = words.next().and_then(|code| code.parse().ok()).ok_or(Malformed)?;
    let (mut length, mut chunked) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>().map_err(|_| Malformed)?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.trim().eq_ignore_ascii_case("chunked");
        }
    }
    let body = match length {
        _ if chunked => match unchunk(body)? {
            Some(body) => body,
            None => return unfinished(),
        },
        Some(length) => match body.get(..length) {
            Some(body) => body.to_vec(),
            None => return unfinished(),
        },
        None if closed => body.to_vec(),
        None => return Ok(None),
    };
    Ok(Some(Answer { status, body }))
}

/// Puts chunks together (RFC 9112 §7.1); `None` where the last has not come.
fn unchunk(mut rest: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&rest[..end]).map_err(|_| Malformed)?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).ok().filter(|size| *size <= MAX_ANSWER).ok_or(Malformed)?;
        if size == 0 {
            return Ok(Some(body));
        }
        rest = &rest[end + 2..];
        let (Some(chunk), Some(next)) = (rest.get(..size), rest.get(size + 2..)) else { return Ok(None) };
        body.extend_from_slice(chunk);
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(text: &str, closed: bool) -> Result<Option<String>, Malformed> {
        Ok(answer(text.as_bytes(), closed)?.map(|answer| String::from_utf8(answer.body).unwrap()))
    }

    #[test]
    fn a_body_ends_by_length_by_chunks_or_by_closing() {
        let counted = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(body(counted, false), Ok(Some("abc".into())));
        assert_eq!(body(&counted[..counted.len() - 1], false), Ok(None));
        assert_eq!(body(&counted[..counted.len() - 1], true), Err(Malformed));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(body(chunked, false), Ok(Some("abc".into())));
        assert_eq!(body(&chunked[..chunked.len() - 8], false), Ok(None));
        let open = "HTTP/1.0 500 no\r\nServer: x\r\n\r\nabc";
        assert_eq!(body(open, false), Ok(None));
        assert_eq!(answer(open.as_bytes(), true), Ok(Some(Answer { status: 500, body: b"abc".to_vec() })));
        assert_eq!(body("SSH-2.0\r\n\r\n", false), Err(Malformed));
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", false), Err(Malformed));
    }

    #[test]
    fn a_request_says_where_it_goes() {
        let text = String::from_utf8(soap("192.168.1.1:5000".parse().unwrap(), "/ctl", "urn:x#Do", "<a/>")).unwrap();
        assert!(text.starts_with("POST /ctl HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n"), "{text}");
        assert!(
            text.contains("SOAPAction: \"urn:x#Do\"\r\n") && text.ends_with("Content-Length: 4\r\n\r\n<a/>"),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in prop::collection::vec(any::<u8>(), 0..60), closed: bool) {
            let _ = answer(&tail, closed);
            let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            bytes.extend(tail);
            let _ = answer(&bytes, closed);
        }
    }
}
