//! A transaction: messages between `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`, sent in one write on a socket of
//! its own, whose send buffer is made large enough for it.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use netlink_bindings::builtin::Nlmsghdr;
use netlink_bindings::utils::align;
use socket2::{Domain, Protocol, Socket, Type};

use super::header;
use crate::{Error, Result};

/// Room for one answer: a refused message comes back whole, netlink(7) `NLMSG_ERROR`.
const ANSWER_MAX: usize = 64 * 1024;

/// What a socket buffer's bookkeeping may take beside the data.
const SEND_OVERHEAD: usize = 4096;

/// Messages collected for one transaction.
///
/// Only the last one asks for an acknowledgement. The kernel answers after the whole batch, a failed commit first, then
/// each refused message in order; so the first answer decides, and acknowledgements can't fill the receive buffer.
pub(super) struct Batch {
    operation: String,
    buf: Vec<u8>,
    /// What each message is about, the batch's own begin and end included; its index is its sequence number.
    steps: Vec<String>,
    last_header: usize,
}

impl Batch {
    /// Starts a batch; `operation` is for the error message.
    pub(super) fn new(operation: String) -> Self {
        let mut batch = Batch { operation, buf: Vec::new(), steps: Vec::new(), last_header: 0 };
        batch.border(libc::NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Appends an nf_tables message of family `inet`; `step` tells in an error message what it is about.
    pub(super) fn push(
        &mut self,
        message: i32,
        flags: i32,
        step: impl Into<String>,
        attributes: impl FnOnce(&mut Vec<u8>),
    ) {
        self.message(libc::NFNL_SUBSYS_NFTABLES << 8 | message, flags, libc::NFPROTO_INET, 0, step.into(), attributes);
    }

    /// The same of another family.
    pub(super) fn push_of(
        &mut self,
        family: i32,
        message: i32,
        flags: i32,
        step: impl Into<String>,
        attributes: impl FnOnce(&mut Vec<u8>),
    ) {
        self.message(libc::NFNL_SUBSYS_NFTABLES << 8 | message, flags, family, 0, step.into(), attributes);
    }

    fn border(&mut self, message: i32) {
        self.message(message, 0, libc::AF_UNSPEC, libc::NFNL_SUBSYS_NFTABLES, "commit".to_owned(), |_| {});
    }

    fn message(
        &mut self,
        kind: i32,
        flags: i32,
        family: i32,
        resource: i32,
        step: String,
        attributes: impl FnOnce(&mut Vec<u8>),
    ) {
        self.last_header = self.buf.len();
        let mut message = Nlmsghdr::new();
        message.r#type = kind as u16;
        message.flags = (flags | libc::NLM_F_REQUEST) as u16;
        message.seq = self.steps.len() as u32;
        self.steps.push(step);
        self.buf.extend_from_slice(message.as_slice());
        self.buf.extend_from_slice(header(family as u8, resource as u16).as_slice());
        attributes(&mut self.buf);
        align(&mut self.buf);
        message.len = (self.buf.len() - self.last_header) as u32;
        self.rewrite_last_header(&message);
    }

    fn rewrite_last_header(&mut self, message: &Nlmsghdr) {
        self.buf[self.last_header..self.last_header + Nlmsghdr::len()].copy_from_slice(message.as_slice());
    }

    /// Sends the batch and waits for the kernel's answer.
    pub(super) fn send(mut self) -> Result<()> {
        let mut last = Nlmsghdr::new_from_slice(&self.buf[self.last_header..self.last_header + Nlmsghdr::len()])
            .expect("a whole header was written there");
        last.flags |= libc::NLM_F_ACK as u16;
        self.rewrite_last_header(&last);
        self.border(libc::NFNL_MSG_BATCH_END);

        let (step, error) = match self.exchange() {
            Ok(Answer { error: 0, .. }) => return Ok(()),
            Ok(Answer { seq, error }) => (self.steps.get(seq as usize), io::Error::from_raw_os_error(error)),
            Err(error) => (None, error),
        };
        let step = step.map(|step| format!(" ({step})")).unwrap_or_default();
        Err(Error::system(format!("{}{step}", self.operation), error))
    }

    /// One write, one answer.
    fn exchange(&self) -> io::Result<Answer> {
        let mut socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW.cloexec(),
            Some(Protocol::from(libc::NETLINK_NETFILTER)),
        )?;
        let wanted = self.buf.len() + SEND_OVERHEAD;
        if socket.send_buffer_size()? < wanted {
            force_send_buffer(&socket, wanted)?;
        }
        let sent = retry(|| socket.write(&self.buf))?;
        if sent != self.buf.len() {
            return Err(io::Error::other(format!("{sent} of {} bytes sent", self.buf.len())));
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
}

/// The kernel's verdict on a message.
struct Answer {
    /// Which message.
    seq: u32,
    /// Error number, 0 for an acknowledgement.
    error: i32,
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

/// Beyond the system's limit, socket(7) `SO_SNDBUFFORCE`.
fn force_send_buffer(socket: &Socket, size: usize) -> io::Result<()> {
    let size = size as libc::c_int;
    // SAFETY: the option's value is a C int, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
