//! A recording TCP proxy: passes bytes on unchanged and keeps what the client side sent.
//!
//! It stands in front of a directory, so that what the directory received can be searched afterwards, and it can be shut
//! to play an unreachable directory. A recording that is not whole is an error, never a short one.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

/// Bytes kept at most: a demonstration sends a directory well under one mebibyte.
const RECORD_BYTES: usize = 64 << 20;
/// Bytes moved per read.
const BUFFER_BYTES: usize = 16 * 1024;

/// What was sent.
#[derive(Debug)]
struct Record {
    bytes: Vec<u8>,
    /// Whether all of it was kept.
    whole: bool,
}

/// A running proxy; it ends with the process.
#[derive(Debug)]
pub struct Tap {
    address: SocketAddr,
    record: Arc<Mutex<Record>>,
    open: Arc<AtomicBool>,
}

impl Tap {
    /// Listens on a free loopback port and passes every connection on to `target`.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("no loopback port for the recording proxy")?;
        let address = listener.local_addr()?;
        let record = Arc::new(Mutex::new(Record { bytes: Vec::new(), whole: true }));
        let open = Arc::new(AtomicBool::new(true));
        let (kept, gate) = (record.clone(), open.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if !gate.load(Ordering::Relaxed) {
                    continue;
                }
                let kept = kept.clone();
                thread::spawn(move || pass(client, target, &kept));
            }
        });
        Ok(Self { address, record, open })
    }

    /// Where clients connect.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything that clients sent so far.
    ///
    /// # Errors
    /// When something of it was not kept.
    pub fn received(&self) -> Result<Vec<u8>> {
        let record = self.record.lock().map_err(|_| anyhow!("a thread of the recording proxy panicked"))?;
        ensure!(record.whole, "more than {RECORD_BYTES} bytes were sent: the recording is not whole");
        Ok(record.bytes.clone())
    }

    /// Opens or shuts the way for new connections.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }
}

fn pass(client: TcpStream, target: SocketAddr, record: &Arc<Mutex<Record>>) {
    let Ok(server) = TcpStream::connect(target) else { return };
    let (Ok(client_back), Ok(server_back)) = (client.try_clone(), server.try_clone()) else { return };
    let back = thread::spawn(move || copy(server_back, client_back, |_| ()));
    copy(client, server, |bytes| {
        // Only after a panic is the lock poisoned, and then `received` says so.
        if let Ok(mut record) = record.lock() {
            record.whole &= record.bytes.len() + bytes.len() <= RECORD_BYTES;
            if record.whole {
                record.bytes.extend_from_slice(bytes);
            }
        }
    });
    let _ = back.join();
}

fn copy(mut from: TcpStream, mut to: TcpStream, mut keep: impl FnMut(&[u8])) {
    let mut buffer = [0; BUFFER_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        keep(&buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_recording_is_whole_or_an_error() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let tap = Tap::start(target.local_addr().unwrap()).unwrap();
        let mut client = TcpStream::connect(tap.address()).unwrap();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut arrived = Vec::new();
        target.accept().unwrap().0.read_to_end(&mut arrived).unwrap();
        assert_eq!((arrived.as_slice(), tap.received().unwrap().as_slice()), (&b"hello"[..], &b"hello"[..]));
        tap.record.lock().unwrap().bytes.resize(RECORD_BYTES - 2, 0);
        let mut client = TcpStream::connect(tap.address()).unwrap();
        client.write_all(b"xyz").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        target.accept().unwrap().0.read_to_end(&mut arrived).unwrap();
        assert!(tap.received().unwrap_err().to_string().contains("not whole"));
    }
}
