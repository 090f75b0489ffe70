//! The children's words: lines from their pipes, cut at a bound, named by process, written by a thread of its own.
//!
//! A terminal or collector that stops reading must not stop the supervisor: the queue is bounded, and lines that find it
//! full are counted and dropped. The supervisor's own log goes the same way.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::journal::Words;
use crate::cli::one_line;
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
        let text = String::from_utf8_lossy(line);
        let whole = match self.format {
            LogFormat::Json => {
                // What a child writes is its word, and whose word it is is ours: an object of its own is read and named, so that it can
                // bring no second `process`; what is none is text.
                let read = serde_json::from_str(&text);
                let mut object: Map<String, Value> =
                    read.unwrap_or_else(|_| Map::from_iter([(String::from("message"), Value::from(&*text))]));
                object.insert(String::from("process"), Value::from(name));
                Value::from(object).to_string()
            }
            // A child repeats what peers sent: nothing of it may act on the operator's terminal.
            LogFormat::Human => format!("{name:<6} {}", one_line(&text)),
        };
        self.put((whole + "\n").into_bytes());
    }

    /// Passes on what a child writes, until it ends.
    pub(crate) async fn forward(self, name: &'static str, from: OwnedFd) {
        follow(from, |line| self.named(name, line)).await;
    }

    /// The same for a module, whose lines are kept as well and bounded in their rate.
    pub(crate) async fn forward_module(self, name: &'static str, words: Arc<Words>, from: OwnedFd) {
        let take = |line: &[u8]| {
            let lines = words.take(line, super::now(), Instant::now());
            lines.iter().for_each(|line| self.named(name, line.as_bytes()));
        };
        follow(from, take).await;
    }
}

/// Reads lines until nobody can write any more.
async fn follow(from: OwnedFd, mut emit: impl FnMut(&[u8])) {
    let Ok(mut from) = pipe::Receiver::from_owned_fd(from) else { return };
    let mut splitter = Splitter::default();
    let mut chunk = vec![0; LINE];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        splitter.feed(&chunk[..count], &mut emit);
    }
    splitter.end(emit);
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
        let (lines, queue) = sync_channel(8);
        let log = |format| Log { lines: lines.clone(), dropped: Arc::default(), format };
        log(LogFormat::Human).named("noded", b"a\x1b[2Jb");
        // As UTF-8 and as the byte alone: control sequences of eight bits.
        log(LogFormat::Human).named("noded", b"a\xc2\x9b2J\x9b2Jb");
        log(LogFormat::Json).named("noded", b"{\"level\":\"INFO\"}");
        log(LogFormat::Json).named("vault", b"panic \"x\"");
        let written: Vec<String> = queue.try_iter().map(|line| String::from_utf8_lossy(&line).into_owned()).collect();
        assert_eq!(
            written,
            [
                "noded  a [2Jb\n",
                "noded  a 2J\u{fffd}2Jb\n",
                "{\"level\":\"INFO\",\"process\":\"noded\"}\n",
                "{\"message\":\"panic \\\"x\\\"\",\"process\":\"vault\"}\n",
            ]
        );
    }

    #[test]
    fn no_process_speaks_in_anothers_name() {
        let (lines, queue) = sync_channel(8);
        let log = Log { lines, dropped: Arc::default(), format: LogFormat::Json };
        let forged = [
            r#"{"process":"vault","level":"ERROR"}"#,
            r#"{"level":"ERROR","process":"vault","process":"up"}"#,
            r#"{"level":"ERROR"},{"process":"vault"}"#,
            r#"{"a":1}{"process":"vault"}"#,
            r#"{"process":"vault""#,
            r#"["process"]"#,
        ];
        forged.iter().for_each(|line| log.named("noded", line.as_bytes()));
        let written: Vec<String> = queue.try_iter().map(|line| String::from_utf8_lossy(&line).into_owned()).collect();
        assert_eq!(written.len(), forged.len());
        for (line, forged) in written.iter().zip(forged) {
            let read: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(read["process"], "noded", "{line}");
            assert_eq!(line.matches("\"process\":").count(), 1, "{line}");
            assert!(read["level"] == "ERROR" || read["message"] == forged, "{line}");
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (lines, _queue) = sync_channel(1);
        let log = Log { lines, dropped: Arc::default(), format: LogFormat::Human };
        (0..3).for_each(|_| log.put(Vec::new()));
        assert_eq!(log.dropped.load(Ordering::Relaxed), 2);
    }
}
