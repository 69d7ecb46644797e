//! The UDP payloads that packet taps look for, on every system.

use crate::bpf::Payload;

/// Length of a handshake initiation in bytes; WireGuard paper §5.4.2.
pub(crate) const INITIATION_LEN: u16 = 148;

/// Message types, WireGuard paper §5.4, each as the payload's first four bytes in network order.
const INITIATION: u32 = 0x0100_0000;
const RESPONSE: u32 = 0x0200_0000;
const DATA: u32 = 0x0400_0000;

/// Handshake initiations, whole.
pub(crate) const INITIATIONS: Payload =
    Payload { length: Some(INITIATION_LEN), word_at: 0, words: &[INITIATION], snap: INITIATION_LEN as u32 };

/// The beginnings of WireGuard messages: a sign that something came, not its content.
pub(crate) const WAKEUPS: Payload = Payload { length: None, word_at: 0, words: &[INITIATION, RESPONSE, DATA], snap: 4 };

/// STUN messages by their magic cookie, RFC 8489 §5; those we look at are no longer.
pub(crate) const STUN: Payload = Payload { length: None, word_at: 4, words: &[stun::MAGIC_COOKIE], snap: 1500 };

/// What a filter knows of them; RFC 8489.
pub(crate) mod stun {
    /// §5.
    pub(crate) const MAGIC_COOKIE: u32 = 0x2112_a442;
    /// Bytes, §5.
    pub(crate) const HEADER: u32 = 20;
    /// Binding success response, §5 and §18.2.
    pub(crate) const SUCCESS: u32 = 0x0101;
    /// §14.2.
    pub(crate) const XOR_MAPPED_ADDRESS: u32 = 0x0020;
    /// Attributes looked at for it: servers put it first, or behind a few that tell about themselves.
    pub(crate) const ATTRIBUTES: usize = 8;
}
