//! Invites: a slot on an exit as one line of text. The line is a secret: whoever has it can join.
//!
//! # Format, version 1
//!
//! `peervpn1` (the number is the version), then the bytes below in base64url without padding (RFC 4648 §5): letters,
//! digits, `-` and `_` only, so no shell changes the line. White space anywhere in it is ignored, since mail and chat
//! programs break long lines. Numbers are big-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 2 | number of bytes that follow |
//! | 32 | the exit's static public key |
//! | 32 | private half of the slot's key |
//! | 32 | preshared key of slot and exit |
//! | 4 | the slot's address, [`super::address::door`] of the public half |
//! | 8 | when it expires, seconds since 1970 |
//! | 2 | MTU of the tunnel |
//! | 1 | bit 0: reusable; the other bits are 0 |
//! | 1 + … | number of DNS servers, at most 8; of each `4` and 4 bytes, or `6` and 16 bytes |
//! | 1 + … | number of endpoints, 1 to 16, best first; of each `4` and 4 bytes, `6` and 16 bytes, or `0`, a length byte and a name; then 2 bytes port |
//! | 4 | first bytes of SHA-256 over `"peervpn invite v1"` and everything before |
//!
//! The length in front tells a line that was cut from one that was mistyped; the sum at the end finds a changed
//! character but for one in 2³².

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::connect::{Endpoint, Host, MAX_ENDPOINTS};
use crate::error::{Hint, Status};
use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// What every invite begins with; the version follows.
pub const PREFIX: &str = "peervpn";
/// Longest invite in characters: [`MAX_ENDPOINTS`] names of the greatest length.
pub const MAX_LENGTH: usize = 8192;

const VERSION: u32 = 1;
const LABEL: &[u8] = b"peervpn invite v1";
const MAX_DNS: usize = 8;
const REUSABLE: u8 = 1;
/// Length in bytes of what is always there behind the length field, without DNS servers and endpoints.
const FIXED: usize = 32 * 3 + 4 + 8 + 2 + 1 + 1 + 1 + CHECKSUM;
const CHECKSUM: usize = 4;

/// A slot on an exit, with all that is needed to use it.
#[derive(Clone)]
pub struct Invite {
    /// The exit's static public key.
    pub exit: PublicKey,
    /// The slot's key.
    pub key: PrivateKey,
    /// Mixed into the slot's handshakes.
    pub preshared_key: PresharedKey,
    /// The slot's own address.
    pub door: Ipv4Addr,
    /// Seconds since 1970.
    pub expires_at: u64,
    /// MTU of the tunnel in bytes.
    pub mtu: u16,
    /// Any number of peers may use it.
    pub reusable: bool,
    /// DNS servers inside the tunnel.
    pub dns: Vec<IpAddr>,
    /// Where the exit is, best first.
    pub endpoints: Vec<Endpoint>,
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite").field("exit", &self.exit).field("slot", &self.key.public()).finish_non_exhaustive()
    }
}

/// Why an invite can't be used. Never repeats any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// Does not begin like one.
    #[error("this is no invite: an invite begins with {PREFIX}{VERSION}")]
    NotOne,
    /// Of a version to come.
    #[error("the invite was made by a newer peervpn (format {0}, this one knows {VERSION})")]
    Newer(u32),
    /// Shorter than it says.
    #[error("the invite is cut off: it has {have} characters of {need}")]
    Cut {
        /// Characters that are there.
        have: usize,
        /// Characters it had.
        need: usize,
    },
    /// Longer than it says.
    #[error("the invite has {extra} characters too many at its end")]
    Behind {
        /// How many.
        extra: usize,
    },
    /// A character that no invite has.
    #[error("the invite is mistyped: {character:?}, its character {position}, occurs in none")]
    Character {
        /// The character.
        character: char,
        /// Where, counted from 1.
        position: usize,
    },
    /// The sum is wrong.
    #[error("the invite is mistyped: a character of it has changed")]
    Mistyped,
    /// The sum is right but the content is not.
    #[error("the invite makes no sense: {0}")]
    Content(&'static str),
    /// Its time is over.
    #[error("the invite expired {}", ago(*.0))]
    Expired(u64),
    /// Someone has used it.
    #[error("the invite is spent: someone has joined with it")]
    Spent,
    /// The exit has another key.
    #[error("the invite is for another exit")]
    OtherExit,
    /// This machine is the exit it leads to.
    #[error("the invite leads to this very machine")]
    OwnExit,
    /// The key that asks was thrown out.
    #[error("the exit has revoked this machine's key ({0})")]
    Revoked(String),
}

/// A span in words, the largest unit only.
fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

impl Hint for InviteError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            InviteError::NotOne | InviteError::Cut { .. } | InviteError::Behind { .. } => {
                "copy the whole line that `peervpn invite` printed, and nothing else".to_owned()
            }
            InviteError::Newer(_) => "update this peervpn".to_owned(),
            InviteError::Character { .. } | InviteError::Mistyped => {
                "copy it instead of typing it, or scan it: peervpn invite prints one line".to_owned()
            }
            InviteError::Content(_) => "ask the exit's operator for a new one: peervpn invite".to_owned(),
            InviteError::Expired(_) => {
                "ask the exit's operator for a new one: peervpn invite; or set this machine's clock, if it is wrong"
                    .to_owned()
            }
            InviteError::Spent => "ask the exit's operator for another one: peervpn invite".to_owned(),
            InviteError::OtherExit => "ask the operator of this exit for one: peervpn invite".to_owned(),
            InviteError::OwnExit => "use it on the other person's machine".to_owned(),
            InviteError::Revoked(id) => format!("its operator can lift that: peervpn peers accept {id}"),
        })
    }
    fn status(&self) -> Status {
        match self {
            InviteError::Expired(_) | InviteError::Spent | InviteError::OtherExit | InviteError::Revoked(_) => {
                Status::Failed
            }
            _ => Status::Usage,
        }
    }
}

impl Invite {
    /// Whether a text is meant as an invite, be it a broken one, rather than as a connect string.
    pub fn is_meant(text: &str) -> bool {
        text.trim_start().starts_with(PREFIX) && !text.contains('@')
    }

    /// Refuses one whose time is over by this clock, in seconds since 1970.
    pub fn check_time(&self, now: u64) -> Result<(), InviteError> {
        match now.checked_sub(self.expires_at) {
            Some(since) => Err(InviteError::Expired(since)),
            None => Ok(()),
        }
    }

    /// The line; wiped when dropped.
    pub fn encode(&self) -> Zeroizing<String> {
        // room for all at once: a growing buffer would leave copies of the secrets behind
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 + FIXED + MAX_DNS * 17 + MAX_ENDPOINTS * 257));
        bytes.extend([0; 2]);
        bytes.extend(self.exit.0);
        bytes.extend(self.key.secret().0);
        bytes.extend(self.preshared_key.secret().0);
        bytes.extend(self.door.octets());
        bytes.extend(self.expires_at.to_be_bytes());
        bytes.extend(self.mtu.to_be_bytes());
        bytes.push(if self.reusable { REUSABLE } else { 0 });
        let dns = &self.dns[..self.dns.len().min(MAX_DNS)];
        bytes.push(dns.len() as u8);
        dns.iter().for_each(|server| push_ip(&mut bytes, server));
        let endpoints = &self.endpoints[..self.endpoints.len().min(MAX_ENDPOINTS)];
        bytes.push(endpoints.len() as u8);
        for endpoint in endpoints {
            match &endpoint.host {
                Host::Ip(ip) => push_ip(&mut bytes, ip),
                Host::Name(name) => {
                    bytes.extend([0, name.len() as u8]);
                    bytes.extend(name.as_bytes());
                }
            }
            bytes.extend(endpoint.port.to_be_bytes());
        }
        let length = bytes.len() - 2 + CHECKSUM;
        bytes[..2].copy_from_slice(&(length as u16).to_be_bytes());
        let sum = checksum(&bytes);
        bytes.extend(sum);
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 1 + bytes.len() * 4 / 3 + 3));
        text.push_str(&format!("{PREFIX}{VERSION}"));
        URL_SAFE_NO_PAD.encode_string(&*bytes, &mut text);
        text
    }
}

fn push_ip(bytes: &mut Vec<u8>, ip: &IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            bytes.push(4);
            bytes.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            bytes.push(6);
            bytes.extend(v6.octets());
        }
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let sum = Sha256::new().chain_update(LABEL).chain_update(bytes).finalize();
    sum[..CHECKSUM].try_into().expect("four bytes")
}

impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let mut line = Zeroizing::new(String::with_capacity(text.len().min(MAX_LENGTH + 1)));
        line.extend(text.chars().filter(|c| !c.is_whitespace()).take(MAX_LENGTH + 1));
        let rest = line.strip_prefix(PREFIX).ok_or(InviteError::NotOne)?;
        // the version is one digit so far; the first character behind it is never a digit: the length is under 0xd000
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        match rest[..digits].parse::<u32>() {
            Ok(VERSION) => {}
            Ok(version) if version > VERSION => return Err(InviteError::Newer(version)),
            Err(_) if digits > 0 => return Err(InviteError::NotOne),
            Err(_) if rest.is_empty() => return Err(InviteError::Cut { have: line.len(), need: line.len() + 1 }),
            _ => return Err(InviteError::NotOne),
        }
        let body = &rest[digits..];
        let before = PREFIX.len() + digits;
        let stray = |c: &(usize, char)| !(c.1.is_ascii_alphanumeric() || matches!(c.1, '-' | '_'));
        if let Some((index, character)) = body.chars().enumerate().find(stray) {
            return Err(InviteError::Character { character, position: before + index + 1 });
        }
        let head = body.get(..4).ok_or(InviteError::Cut { have: line.len(), need: before + FIXED * 4 / 3 })?;
        let head = URL_SAFE_NO_PAD.decode(head).map_err(|_| InviteError::Mistyped)?;
        let length = 2 + usize::from(u16::from_be_bytes([head[0], head[1]]));
        if length < 2 + FIXED || length.div_ceil(3) * 4 > MAX_LENGTH {
            return Err(InviteError::Mistyped);
        }
        let need = (length * 4).div_ceil(3);
        match body.len() {
            have if have < need => return Err(InviteError::Cut { have: before + have, need: before + need }),
            have if have > need => return Err(InviteError::Behind { extra: have - need }),
            _ => {}
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| InviteError::Mistyped)?);
        let (content, sum) = bytes.split_at(bytes.len() - CHECKSUM);
        if checksum(content) != *sum {
            return Err(InviteError::Mistyped);
        }
        read(&content[2..])
    }
}

/// The content, after the sum has been found right.
fn read(bytes: &[u8]) -> Result<Invite, InviteError> {
    let mut reader = Reader(bytes);
    let exit = PublicKey(reader.array()?);
    let key = PrivateKey::from_bytes(*Zeroizing::new(reader.array()?));
    let preshared_key = PresharedKey::from_bytes(*Zeroizing::new(reader.array()?));
    let door = Ipv4Addr::from(reader.array::<4>()?);
    let expires_at = u64::from_be_bytes(reader.array()?);
    let mtu = u16::from_be_bytes(reader.array()?);
    let [flags] = reader.array()?;
    if flags & !REUSABLE != 0 {
        return Err(InviteError::Content("it has a flag that this peervpn does not know"));
    }
    if !super::address::is_door(door) {
        return Err(InviteError::Content("its address is not link-local"));
    }
    if mtu < 1280 {
        return Err(InviteError::Content("its MTU is less than IPv6 needs"));
    }
    let [count] = reader.array()?;
    if usize::from(count) > MAX_DNS {
        return Err(InviteError::Content("it has too many DNS servers"));
    }
    let mut dns = Vec::new();
    for _ in 0..count {
        let [tag] = reader.array()?;
        dns.push(reader.ip(tag)?.ok_or(InviteError::Content("a DNS server has a name"))?);
    }
    let [count] = reader.array()?;
    if count == 0 || usize::from(count) > MAX_ENDPOINTS {
        return Err(InviteError::Content("it has no endpoint, or too many"));
    }
    let mut endpoints = Vec::new();
    for _ in 0..count {
        let [tag] = reader.array()?;
        let host = match reader.ip(tag)? {
            Some(ip) => match ip {
                IpAddr::V4(v4) => v4.to_string(),
                IpAddr::V6(v6) => format!("[{v6}]"),
            },
            None => {
                let [length] = reader.array()?;
                let name = std::str::from_utf8(reader.take(length.into())?);
                name.map_err(|_| InviteError::Content("an endpoint's name is not text"))?.to_owned()
            }
        };
        let port = u16::from_be_bytes(reader.array()?);
        let endpoint = format!("{host}:{port}").parse();
        endpoints.push(endpoint.map_err(|_| InviteError::Content("one of its endpoints is none"))?);
    }
    if !reader.0.is_empty() {
        return Err(InviteError::Content("something is left over at its end"));
    }
    Ok(Invite { exit, key, preshared_key, door, expires_at, mtu, reusable: flags & REUSABLE != 0, dns, endpoints })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], InviteError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(InviteError::Content("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], InviteError> {
        Ok(self.take(N)?.try_into().expect("as many as asked for"))
    }

    /// An address by its tag; `None` for the tag of a name.
    fn ip(&mut self, tag: u8) -> Result<Option<IpAddr>, InviteError> {
        Ok(match tag {
            4 => Some(Ipv4Addr::from(self.array::<4>()?).into()),
            6 => Some(Ipv6Addr::from(self.array::<16>()?).into()),
            0 => None,
            _ => return Err(InviteError::Content("an address is of no known kind")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::address::door;

    fn invite() -> Invite {
        let key = PrivateKey::from_bytes([7; 32]);
        Invite {
            exit: PublicKey([1; 32]),
            door: door(&key.public()),
            key,
            preshared_key: PresharedKey::from_bytes([9; 32]),
            expires_at: 1_767_312_000,
            mtu: 1420,
            reusable: false,
            dns: vec!["10.3.93.123".parse().unwrap(), "fdd9:205e:e6c4::1".parse().unwrap()],
            endpoints: ["203.0.113.20:51820", "[2001:db8::20]:51820", "home.example.org:7"]
                .map(|endpoint| endpoint.parse().unwrap())
                .to_vec(),
        }
    }

    fn fields(invite: &Invite) -> String {
        let Invite { exit, key, preshared_key, door, expires_at, mtu, reusable, dns, endpoints } = invite;
        let (key, psk) = (key.to_base64(), preshared_key.to_base64());
        let (key, psk) = (key.as_str(), psk.as_str());
        format!("{exit} {key} {psk} {door} {expires_at} {mtu} {reusable} {dns:?} {endpoints:?}")
    }

    #[test]
    fn a_line_reads_back_and_no_shell_touches_it() {
        for invite in [
            invite(),
            Invite { reusable: true, dns: vec![], ..invite() },
            Invite { endpoints: vec![format!("{}:1", ["a"; 126].join(".")).parse().unwrap(); 16], ..invite() },
        ] {
            let line = invite.encode();
            assert!(line.starts_with("peervpn1"));
            assert!(line.len() <= MAX_LENGTH, "{}", line.len());
            assert!(line.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')));
            assert_eq!(fields(&line.parse().unwrap()), fields(&invite));
            let wrapped = format!(" {}\r\n\t{}\n", &line[..70], &line[70..]);
            assert_eq!(fields(&wrapped.parse().unwrap()), fields(&invite));
            assert!(Invite::is_meant(&wrapped));
        }
        assert!(!Invite::is_meant("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=@203.0.113.20:51820"));
        assert!(!Invite::is_meant("peervpn.example.org@203.0.113.20:51820"));
    }

    #[test]
    fn a_cut_line_says_so_wherever_it_is_cut() {
        let line = invite().encode();
        for end in PREFIX.len()..line.len() {
            let error = line[..end].parse::<Invite>().unwrap_err();
            assert!(matches!(error, InviteError::Cut { .. }), "{end}: {error}");
            if end > 12 {
                assert_eq!(error, InviteError::Cut { have: end, need: line.len() });
            }
        }
        assert_eq!(format!("{}xy", *line).parse::<Invite>().unwrap_err(), InviteError::Behind { extra: 2 });
        assert_eq!("peer".parse::<Invite>().unwrap_err(), InviteError::NotOne);
    }

    #[test]
    fn each_mistyped_character_is_found() {
        let line = invite().encode();
        for at in 8..line.len() {
            for typed in ["A", "b", "7", "_"] {
                if line[at..=at] == *typed {
                    continue;
                }
                let mut wrong = line.to_string();
                wrong.replace_range(at..=at, typed);
                let error = wrong.parse::<Invite>().unwrap_err();
                let in_length = at < 11
                    && matches!(
                        error,
                        InviteError::Cut { .. }
                            | InviteError::Behind { .. }
                            | InviteError::Newer(_)
                            | InviteError::NotOne
                    );
                assert!(in_length || error == InviteError::Mistyped, "{at} {typed}: {error}");
            }
            let mut wrong = line.to_string();
            wrong.replace_range(at..=at, "ü");
            let expected = InviteError::Character { character: 'ü', position: at + 1 };
            assert_eq!(wrong.parse::<Invite>().unwrap_err(), expected);
        }
    }

    #[test]
    fn versions_and_times() {
        let line = invite().encode();
        assert_eq!(line.replacen('1', "2", 1).parse::<Invite>().unwrap_err(), InviteError::Newer(2));
        assert_eq!(line.replacen('1', "12", 1).parse::<Invite>().unwrap_err(), InviteError::Newer(12));
        assert_eq!(line.replacen('1', "0", 1).parse::<Invite>().unwrap_err(), InviteError::NotOne);
        let invite = invite();
        assert_eq!(invite.check_time(invite.expires_at - 1), Ok(()));
        let error = invite.check_time(invite.expires_at + 7200).unwrap_err();
        assert_eq!(error.to_string(), "the invite expired 2 h ago");
        assert!(error.hint().unwrap().contains("peervpn invite"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_though_the_sum_is_right() {
        let wrong = [
            Invite { mtu: 1279, ..invite() },
            Invite { door: "10.0.0.1".parse().unwrap(), ..invite() },
            Invite { endpoints: vec![], ..invite() },
            Invite {
                endpoints: vec!["203.0.113.20:1".parse().map(|e| Endpoint { port: 0, ..e }).unwrap()],
                ..invite()
            },
        ];
        for invite in wrong {
            let error = invite.encode().parse::<Invite>().unwrap_err();
            assert!(matches!(error, InviteError::Content(_)), "{error}");
        }
    }

    #[test]
    fn it_never_prints_its_secrets() {
        let invite = invite();
        let shown = format!("{invite:?}");
        for secret in [&invite.key.to_base64()[..8], &invite.preshared_key.to_base64()[..8], "[7, 7", "[9, 9"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(peervpn1)?[A-Za-z0-9_-]{0,400}") {
            let _ = text.parse::<Invite>();
        }
    }
}
