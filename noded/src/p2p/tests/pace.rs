//! A carrier between two nodes that a test slows down, stops or cuts, and what the kernel holds for it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How bytes of one direction pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    Free,
    Stopped,
    /// One after the other, each after such a pause.
    Bytes(Duration),
    /// The connection ends.
    Cut,
}

/// The way to one node; each direction of each connection passes its first bytes freely.
pub(super) struct Pacer {
    pub(super) address: SocketAddr,
    /// Towards the node.
    pub(super) there: watch::Sender<Pace>,
    /// Back from it.
    pub(super) back: watch::Sender<Pace>,
}

impl Pacer {
    /// A pacer before `node`; of each direction of a connection `spared` bytes pass at full speed.
    pub(super) async fn to(node: SocketAddr, spared: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (there, back) = (watch::Sender::new(Pace::Free), watch::Sender::new(Pace::Free));
        let (to_node, from_node) = (there.subscribe(), back.subscribe());
        tokio::spawn(async move {
            while let Ok((mut inward, _)) = listener.accept().await {
                let (to_node, from_node) = (to_node.clone(), from_node.clone());
                tokio::spawn(async move {
                    let Ok(mut outward) = TcpStream::connect(node).await else { return };
                    let ((inward_read, inward_write), (outward_read, outward_write)) =
                        (inward.split(), outward.split());
                    tokio::select! {
                        () = pass(inward_read, outward_write, to_node, spared) => {}
                        () = pass(outward_read, inward_write, from_node, spared) => {}
                    }
                });
            }
        });
        Self { address, there, back }
    }
}

async fn pass(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut pace: watch::Receiver<Pace>, spared: u64) {
    let (mut buffer, mut passed) = (vec![0; 16 * 1024], 0);
    loop {
        let mut most = buffer.len();
        if passed >= spared {
            let now = *pace.borrow_and_update();
            match now {
                Pace::Free => {}
                Pace::Stopped => match pace.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                Pace::Bytes(pause) => {
                    tokio::time::sleep(pause).await;
                    most = 1;
                }
                Pace::Cut => return,
            }
        }
        let read = match from.read(&mut buffer[..most]).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        // It may have been stopped while nothing came.
        while passed >= spared && matches!(*pace.borrow_and_update(), Pace::Stopped) {
            if pace.changed().await.is_err() {
                return;
            }
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        passed += read as u64;
    }
}

/// Bytes that the kernel holds for connections with this port at either end: sent and not read yet.
pub(super) fn in_kernel(port: u16) -> u64 {
    const LISTENING: &str = "0A";
    let port = format!("{port:04X}");
    let ends_here = |address: &str| address.rsplit(':').next() == Some(&port[..]);
    let queued = |line: &str| -> u64 {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, local, remote, state, queues, ..] = fields[..] else { return 0 };
        if state == LISTENING || !(ends_here(local) || ends_here(remote)) {
            return 0;
        }
        queues.split(':').map(|queue| u64::from_str_radix(queue, 16).unwrap()).sum()
    };
    fs::read_to_string("/proc/net/tcp").unwrap().lines().skip(1).map(queued).sum()
}
