//! stdout and stderr, as far as the standard library does not know them.

/// Whether so many bytes can be written to stdout (1) or stderr (2) now, without a wait for the reader: where poll(2) says
/// so, up to `PIPE_BUF`; pipe(7). A stopped terminal takes none.
pub fn takes(descriptor: i32, bytes: usize) -> bool {
    let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLOUT, revents: 0 };
    // SAFETY: `poll` is one pollfd and lives through the call.
    bytes <= libc::PIPE_BUF && unsafe { libc::poll(&raw mut poll, 1, 0) } == 1
}
