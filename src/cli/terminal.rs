//! stdout and stderr. A reader that went away ends the output, never the node.

use std::io::{self, IsTerminal as _, Write};

use super::{Context, render};
use crate::node::event::{Event, Output};

/// Shows events to the person, or with `--json` to a script.
pub(super) struct Terminal<'a> {
    context: &'a Context,
}

impl<'a> Terminal<'a> {
    /// To stdout and stderr.
    pub(super) fn new(context: &'a Context) -> Self {
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
    // of its own stdout writes a kilobyte at a time
    let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    write(&mut out).and_then(|()| out.flush()).is_ok()
}

/// Writes to stderr in one piece, so that lines of several processes do not mix.
pub(super) fn to_stderr(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
    let mut text = Vec::new();
    let _ = write(&mut text).and_then(|()| io::stderr().lock().write_all(&text));
}
