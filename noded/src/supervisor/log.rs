//! The children's words: lines from their pipes, cut at a bound, named by process, written by a thread of its own.
//!
//! A terminal or collector that stops reading must not stop the supervisor: the queue is bounded, and lines that find it
//! full are counted and dropped. The supervisor's own log goes the same way.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::config::LogFormat;

/// Longest line that is passed on; the rest of a longer one is cut.
const LINE: usize = 4096;
/// Lines that wait for a slow reader: at most 4 MiB.
const QUEUE: usize = 1024;

/// Where lines go. Clones share one writer.
#[derive(Clone)]
pub(crate) struct Log {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    format: LogFormat,
}

/// The end of the thread that writes.
pub(crate) struct Writer(Receiver<()>);

/// Asks the writer to end after all that was queued before: the global `tracing` subscriber keeps a sender for ever.
const END: &[u8] = b"";

impl Log {
    /// A log on standard error.
    pub(crate) fn start(format: LogFormat) -> (Self, Writer) {
        let (lines, queue) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&dropped);
        let (done, end) = sync_channel(1);
        std::thread::spawn(move || {
            write_all(&queue, &count);
            let _ = done.send(());
        });
        (Self { lines, dropped, format }, Writer(end))
    }

    /// Nothing more will be put.
    pub(crate) fn end(&self) {
        self.put(END.to_vec());
    }

    fn put(&self, line: Vec<u8>) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One line of the process `name`.
    fn named(&self, name: &str, line: &[u8]) {
        let mut whole = Vec::with_capacity(name.len() + line.len() + 16);
        match (self.format, line.strip_prefix(b"{")) {
            (LogFormat::Json, Some(fields)) => {
                whole.extend_from_slice(format!("{{\"process\":\"{name}\",").as_bytes());
                whole.extend_from_slice(fields);
            }
            (LogFormat::Json, None) => {
                let text = String::from_utf8_lossy(line);
                whole.extend_from_slice(serde_json::json!({ "process": name, "message": text }).to_string().as_bytes());
            }
            (LogFormat::Human, _) => {
                whole.extend_from_slice(format!("{name:<6} ").as_bytes());
                // A child repeats what peers sent: nothing of it may act on the operator's terminal.
                whole.extend(line.iter().map(|byte| if byte.is_ascii_control() { b' ' } else { *byte }));
            }
        }
        whole.push(b'\n');
        self.put(whole);
    }

    /// Passes on what a child writes, until it ends.
    pub(crate) async fn forward(self, name: &'static str, from: OwnedFd) {
        let Ok(mut from) = pipe::Receiver::from_owned_fd(from) else { return };
        let mut splitter = Splitter::default();
        let mut chunk = vec![0; LINE];
        while let Ok(count @ 1..) = from.read(&mut chunk).await {
            splitter.feed(&chunk[..count], |line| self.named(name, line));
        }
        splitter.end(|line| self.named(name, line));
    }
}

impl Writer {
    /// Waits until what was queued is written, but for a reader that has stopped only so long.
    pub(crate) fn finish_within(&self, most: Duration) {
        let _ = self.0.recv_timeout(most);
    }
}

fn write_all(queue: &Receiver<Vec<u8>>, dropped: &AtomicU64) {
    while let Ok(line) = queue.recv() {
        let mut out = io::stderr().lock();
        let missing = dropped.swap(0, Ordering::Relaxed);
        if missing > 0 {
            let _ = writeln!(out, "log: {missing} lines were dropped, the reader is too slow");
        }
        if line == END {
            return;
        }
        let _ = out.write_all(&line);
    }
}

/// The supervisor's own lines, from `tracing`.
impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = Own<'a>;

    fn make_writer(&'a self) -> Own<'a> {
        Own(self, Vec::new())
    }
}

/// One event of the supervisor.
pub(crate) struct Own<'a>(&'a Log, Vec<u8>);

impl Write for Own<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        if !self.1.is_empty() {
            self.0.named("up", self.1.trim_ascii_end());
        }
    }
}

/// Cuts a stream into lines of at most [`LINE`] bytes.
#[derive(Default)]
struct Splitter {
    line: Vec<u8>,
    /// The rest of a line that was too long is skipped.
    skipping: bool,
}

impl Splitter {
    fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(&[u8])) {
        for byte in bytes {
            if *byte == b'\n' {
                if !self.skipping {
                    emit(&self.line);
                }
                self.line.clear();
                self.skipping = false;
            } else if !self.skipping {
                self.line.push(*byte);
                if self.line.len() == LINE {
                    emit(&self.line);
                    self.skipping = true;
                }
            }
        }
    }

    fn end(&mut self, mut emit: impl FnMut(&[u8])) {
        if !self.line.is_empty() && !self.skipping {
            emit(&self.line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded() {
        let mut lines = Vec::new();
        let mut splitter = Splitter::default();
        splitter.feed(b"one\ntw", |line| lines.push(line.len()));
        splitter.feed(b"o\n", |line| lines.push(line.len()));
        splitter.feed(&vec![b'x'; 3 * LINE], |line| lines.push(line.len()));
        splitter.feed(b"\nlast", |line| lines.push(line.len()));
        splitter.end(|line| lines.push(line.len()));
        assert_eq!(lines, [3, 3, LINE, 4]);
    }

    #[test]
    fn a_line_names_its_process_and_holds_no_control_characters() {
        let (lines, queue) = sync_channel(4);
        let log = |format| Log { lines: lines.clone(), dropped: Arc::default(), format };
        log(LogFormat::Human).named("noded", b"a\x1b[2Jb");
        log(LogFormat::Json).named("noded", b"{\"level\":\"INFO\"}");
        log(LogFormat::Json).named("vault", b"panic \"x\"");
        let written: Vec<String> = queue.try_iter().map(|line| String::from_utf8_lossy(&line).into_owned()).collect();
        assert_eq!(
            written,
            [
                "noded  a [2Jb\n",
                "{\"process\":\"noded\",\"level\":\"INFO\"}\n",
                "{\"message\":\"panic \\\"x\\\"\",\"process\":\"vault\"}\n",
            ]
        );
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (lines, _queue) = sync_channel(1);
        let log = Log { lines, dropped: Arc::default(), format: LogFormat::Human };
        (0..3).for_each(|_| log.put(Vec::new()));
        assert_eq!(log.dropped.load(Ordering::Relaxed), 2);
    }
}
