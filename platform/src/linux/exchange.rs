//! Many netlink messages in one write, on a socket of its own whose send buffer is made large enough for them. Only the
//! last one asks for an acknowledgement: the kernel answers refused ones in any case, in order, so that the first answer
//! decides, and acknowledgements, which are read one by one, neither take time nor fill the receive buffer.

use std::io::{self, Read, Write};

use netlink_bindings::builtin::Nlmsghdr;
use socket2::{Domain, Protocol, Socket, Type};

use super::sockopt;

/// Room for one answer: a refused message comes back whole, netlink(7) `NLMSG_ERROR`.
const ANSWER_MAX: usize = 64 * 1024;

/// What a socket buffer's bookkeeping may take beside the data.
const SEND_OVERHEAD: usize = 4096;

/// Takes the wish for an acknowledgement from all of these messages but the last one.
pub(super) fn acknowledge_last(messages: &mut [u8]) {
    let mut at = 0;
    while let Some(mut header) = messages.get(at..at + Nlmsghdr::len()).and_then(Nlmsghdr::new_from_slice) {
        // NLMSG_ALIGN, netlink(3)
        let next = at + (header.len as usize).next_multiple_of(4).max(Nlmsghdr::len());
        if next < messages.len() {
            header.flags &= !(libc::NLM_F_ACK as u16);
            messages[at..at + Nlmsghdr::len()].copy_from_slice(header.as_slice());
        }
        at = next;
    }
}

/// One write, one answer.
pub(super) fn exchange(protocol: i32, messages: &[u8]) -> io::Result<Answer> {
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), Some(Protocol::from(protocol)))?;
    let wanted = messages.len() + SEND_OVERHEAD;
    if socket.send_buffer_size()? < wanted {
        // beyond the system's limit, socket(7)
        sockopt::set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(wanted as libc::c_int))?;
    }
    let sent = retry(|| socket.write(messages))?;
    if sent != messages.len() {
        return Err(io::Error::other(format!("{sent} of {} bytes sent", messages.len())));
    }
    // The kernel has carried the batch out and answered by the time the write returns.
    socket.set_nonblocking(true)?;
    let mut answer = vec![0; ANSWER_MAX];
    loop {
        let length = match retry(|| socket.read(&mut answer)) {
            // More refusals than the receive buffer holds: the first of them is still in it.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => retry(|| socket.read(&mut answer))?,
            result => result?,
        };
        if let Some(answer) = Answer::parse(&answer[..length])? {
            return Ok(answer);
        }
    }
}

/// The kernel's verdict on a message.
pub(super) struct Answer {
    /// Which message.
    pub(super) seq: u32,
    /// Error number, 0 for an acknowledgement.
    pub(super) error: i32,
}

impl Answer {
    /// Reads `NLMSG_ERROR`; `None` for any other message.
    fn parse(message: &[u8]) -> io::Result<Option<Self>> {
        let too_short = || io::Error::new(io::ErrorKind::InvalidData, "netlink answer too short");
        let header = Nlmsghdr::new_from_slice(message.get(..Nlmsghdr::len()).ok_or_else(too_short)?);
        let header = header.ok_or_else(too_short)?;
        if i32::from(header.r#type) != libc::NLMSG_ERROR {
            return Ok(None);
        }
        let code = message.get(Nlmsghdr::len()..Nlmsghdr::len() + 4).ok_or_else(too_short)?;
        let code = i32::from_ne_bytes(code.try_into().map_err(|_| too_short())?);
        Ok(Some(Answer { seq: header.seq, error: -code }))
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_message_asks_for_an_acknowledgement() {
        let ack = (libc::NLM_F_ACK | libc::NLM_F_REQUEST) as u16;
        let mut messages = Vec::new();
        for length in [17, 16, 20] {
            let mut header = Nlmsghdr::new();
            (header.len, header.flags) = (length, ack);
            messages.extend_from_slice(header.as_slice());
            messages.resize(messages.len() + (length as usize).next_multiple_of(4) - Nlmsghdr::len(), 0);
        }
        acknowledge_last(&mut messages);
        let flags = |at: usize| Nlmsghdr::new_from_slice(&messages[at..at + Nlmsghdr::len()]).unwrap().flags;
        let quiet = libc::NLM_F_REQUEST as u16;
        assert_eq!([flags(0), flags(20), flags(36)], [quiet, quiet, ack]);
    }
}
