//! A running node's stdout and stderr: a reader that stalls (a full pipe, a terminal stopped with Ctrl-S) holds up its
//! lane, not the node. From the first time that one would, a thread of its own writes there.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::node::{confine_thread, output};

/// So many bytes wait for a reader; then the oldest lines are lost, since the newest say how things stand.
const ROOM: usize = 256 << 10;
/// A reader who is there has taken a line by then. So long the node waits for it, once, and what goes to the other lane
/// stays behind it.
const PROMPT: Duration = Duration::from_millis(200);
/// The last lines get so long.
const LAST: Duration = Duration::from_secs(1);
/// A writing thread needs little.
const STACK: usize = 64 << 10;

pub(super) static STDOUT: Lane = Lane::new(Stream::Stdout);
pub(super) static STDERR: Lane = Lane::new(Stream::Stderr);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// stdio(3).
    fn descriptor(self) -> i32 {
        match self {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        }
    }

    /// At once, as far as the reader lets us.
    fn write(self, text: &[u8]) -> io::Result<()> {
        match self {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(text).and_then(|()| out.flush())
            }
            Stream::Stderr => io::stderr().lock().write_all(text),
        }
    }
}

/// One of the two streams.
pub(super) struct Lane {
    stream: Stream,
    queue: Mutex<Queue>,
    moved: Condvar,
}

struct Queue {
    waiting: VecDeque<Vec<u8>>,
    /// Of those that wait.
    bytes: usize,
    /// One is being written.
    writing: bool,
    /// Nobody waits for the reader until everything is written.
    behind: bool,
    lost: u64,
    /// The lane is used.
    open: bool,
    /// The thread is there.
    thread: bool,
}

impl Lane {
    const fn new(stream: Stream) -> Lane {
        let waiting = VecDeque::new();
        let queue = Queue { waiting, bytes: 0, writing: false, behind: false, lost: 0, open: false, thread: false };
        Lane { stream, queue: Mutex::new(queue), moved: Condvar::new() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on what is [`put`](Lane::put) waits for no reader.
    pub(super) fn open(&self) {
        self.queue().open = true;
    }

    /// Whether it is used.
    pub(super) fn is_open(&self) -> bool {
        self.queue().open
    }

    /// Writes the text if it is taken at once, else gives it to the thread.
    pub(super) fn put(&'static self, text: Vec<u8>) {
        let mut queue = self.queue();
        if !queue.thread && (output::takes(self.stream.descriptor(), text.len()) || !self.start(&mut queue)) {
            // a reader that went away ends the output, never the node
            let _ = self.stream.write(&text);
            return;
        }
        queue.push(text);
        self.moved.notify_all();
        if !queue.behind {
            queue = self.wait(queue, PROMPT);
            queue.behind = queue.busy();
        }
    }

    /// Without a thread (no more of them) it is written as before.
    fn start(&'static self, queue: &mut Queue) -> bool {
        let thread = std::thread::Builder::new().name("lane".to_owned()).stack_size(STACK);
        queue.thread = thread.spawn(|| self.carry()).is_ok();
        queue.thread
    }

    /// Before the process ends: waits for the last lines.
    pub(super) fn finish(&self) {
        drop(self.wait(self.queue(), LAST));
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>, limit: Duration) -> MutexGuard<'a, Queue> {
        let waited = self.moved.wait_timeout_while(queue, limit, |queue| queue.busy());
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The thread's work.
    fn carry(&self) {
        confine_thread();
        let mut queue = self.queue();
        loop {
            let Some(text) = queue.pop() else {
                (queue.writing, queue.behind) = (false, false);
                self.moved.notify_all();
                let lost = std::mem::take(&mut queue.lost);
                if lost > 0 {
                    drop(queue);
                    self.tell(lost);
                    queue = self.queue();
                }
                if queue.waiting.is_empty() {
                    queue = self.moved.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                continue;
            };
            queue.writing = true;
            drop(queue);
            let _ = self.stream.write(&text);
            queue = self.queue();
        }
    }

    /// Says what was lost, now that someone reads again.
    fn tell(&self, lost: u64) {
        let name = if self.stream == Stream::Stdout { "stdout" } else { "stderr" };
        let text = format!("warning: {lost} messages are lost: nobody read {name}\n").into_bytes();
        if self.stream == Stream::Stdout && STDERR.is_open() {
            STDERR.put(text);
        } else {
            let _ = Stream::Stderr.write(&text);
        }
    }
}

impl Queue {
    fn busy(&self) -> bool {
        self.writing || !self.waiting.is_empty()
    }

    fn push(&mut self, text: Vec<u8>) {
        self.bytes += text.len();
        self.waiting.push_back(text);
        while self.bytes > ROOM && self.pop().is_some() {
            self.lost += 1;
        }
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let text = self.waiting.pop_front()?;
        self.bytes -= text.len();
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept() {
        let lane = Lane::new(Stream::Stdout);
        let mut queue = lane.queue();
        for number in 0..ROOM / 64 + 10 {
            queue.push(format!("{number:63}\n").into_bytes());
        }
        assert_eq!((queue.lost, queue.bytes), (10, ROOM));
        assert_eq!(queue.pop(), Some(format!("{:63}\n", 10).into_bytes()));
        assert_eq!(queue.bytes, ROOM - 64);
    }
}
