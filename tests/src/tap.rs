//! A recording TCP proxy: passes bytes on unchanged and keeps what the client side sent.
//!
//! It stands in front of a directory, so that what the directory received can be searched afterwards, and it can be shut
//! to play an unreachable directory.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result};

/// Bytes kept at most: a demonstration sends a directory well under one mebibyte.
const RECORD_BYTES: usize = 64 << 20;
/// Bytes moved per read.
const BUFFER_BYTES: usize = 16 * 1024;

/// A running proxy; it ends with the process.
#[derive(Debug)]
pub struct Tap {
    address: SocketAddr,
    record: Arc<Mutex<Vec<u8>>>,
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
        let record = Arc::new(Mutex::new(Vec::new()));
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
    #[must_use]
    pub fn received(&self) -> Vec<u8> {
        self.record.lock().map(|record| record.clone()).unwrap_or_default()
    }

    /// Opens or shuts the way for new connections.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }
}

fn pass(client: TcpStream, target: SocketAddr, record: &Arc<Mutex<Vec<u8>>>) {
    let Ok(server) = TcpStream::connect(target) else { return };
    let (Ok(client_back), Ok(server_back)) = (client.try_clone(), server.try_clone()) else { return };
    let back = thread::spawn(move || copy(server_back, client_back, |_| ()));
    copy(client, server, |bytes| {
        if let Ok(mut record) = record.lock()
            && record.len() + bytes.len() <= RECORD_BYTES
        {
            record.extend_from_slice(bytes);
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
