//! stdout and stderr. A reader that went away ends the output, never the node; nor does one that stalls.

use std::io::{self, IsTerminal as _, Write};

use super::lane::{STDERR, STDOUT};
use super::{Context, render};
use crate::node::event::{Event, Output};

/// Shows events to the person, or with `--json` to a script.
pub(super) struct Terminal<'a> {
    context: &'a Context,
}

impl<'a> Terminal<'a> {
    /// To stdout and stderr, which from here on no one waits for.
    pub(super) fn new(context: &'a Context) -> Self {
        STDOUT.open();
        STDERR.open();
        Terminal { context }
    }
}

impl Output for Terminal<'_> {
    fn event(&mut self, event: &Event) {
        if self.context.json && !event.for_people() {
            to_stdout(|out| render::json(out, event));
        } else if !self.context.json || matches!(event, Event::Warning(_)) {
            to_stdout(|out| render::answer(out, event, self.context.stdout));
            to_stderr(|err| render::progress(err, event, self.context.stderr));
        }
    }

    fn interactive(&self) -> bool {
        !self.context.json && io::stdin().is_terminal() && io::stderr().is_terminal()
    }
}

/// Writes to stdout at once; false if it could not (a closed pipe, a full disk): there is no one left to tell then.
pub(super) fn to_stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> bool {
    if STDOUT.is_open() {
        let mut text = Vec::new();
        return write(&mut text).map(|()| STDOUT.put(text)).is_ok();
    }
    // of its own stdout writes a kilobyte at a time
    let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    write(&mut out).and_then(|()| out.flush()).is_ok()
}

/// Writes to stderr in one piece, so that lines of several processes do not mix.
pub(super) fn to_stderr(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
    let mut text = Vec::new();
    let _ = write(&mut text).and_then(|()| {
        if STDERR.is_open() {
            STDERR.put(text);
            Ok(())
        } else {
            io::stderr().lock().write_all(&text)
        }
    });
}

/// Before the process ends: a reader gets a second for what is still to be written.
pub(super) fn finish() {
    STDOUT.finish();
    STDERR.finish();
}

/// stderr as the log's lines go there.
pub(super) struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        to_stderr(|err| err.write_all(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
