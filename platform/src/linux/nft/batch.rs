//! A transaction: messages between `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`, sent in one write.

use std::io;

use netlink_bindings::builtin::Nlmsghdr;
use netlink_bindings::utils::align;

use super::super::exchange::{Answer, exchange};
use super::header;
use crate::{Error, Result};

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
    /// How many sets it makes; the kernel knows them by their number until they have a name.
    pub(super) sets: u32,
}

impl Batch {
    /// Starts a batch; `operation` is for the error message.
    pub(super) fn new(operation: String) -> Self {
        let mut batch = Batch { operation, buf: Vec::new(), steps: Vec::new(), last_header: 0, sets: 0 };
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

        let (step, error) = match exchange(libc::NETLINK_NETFILTER, &self.buf) {
            Ok(Answer { error: 0, .. }) => return Ok(()),
            Ok(Answer { seq, error }) => (self.steps.get(seq as usize), io::Error::from_raw_os_error(error)),
            Err(error) => (None, error),
        };
        let step = step.map(|step| format!(" ({step})")).unwrap_or_default();
        Err(Error::system(format!("{}{step}", self.operation), error))
    }
}
