//! An operator beside the load: asks over the admin socket, one after the other, as the commands do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use openred_directory::admin::{Ask, client};

/// Between two asks: an operator does not fill the socket.
const PAUSE: Duration = Duration::from_millis(5);

/// An operator at work.
pub(crate) struct Operator {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<f64>>>,
}

impl Operator {
    /// Begins: `status`, a look at a node, a ban and its end, in turn.
    pub(crate) fn start(socket: &Path, node: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (socket, stopped) = (socket.to_owned(), Arc::clone(&stop));
        Self { stop, thread: std::thread::spawn(move || ask(&socket, &node, &stopped)) }
    }

    /// Milliseconds of each ask.
    pub(crate) fn end(self) -> Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the operator's thread has ended"))?
    }
}

fn ask(socket: &Path, node: &str, stop: &AtomicBool) -> Result<Vec<f64>> {
    let who = String::from("198.51.100.7");
    let asks = [
        Ask::Status,
        Ask::Show { node: node.to_owned() },
        Ask::Ban { who: who.clone(), reason: String::from("measured") },
        Ask::Unban { who },
    ];
    let mut took = Vec::new();
    for ask in asks.iter().cycle() {
        // Whole rounds, so that no ban is left.
        if stop.load(Ordering::Relaxed) && took.len() % asks.len() == 0 {
            break;
        }
        let begun = Instant::now();
        client::ask(socket, ask)?;
        took.push(begun.elapsed().as_nanos() as f64 / 1e6);
        std::thread::sleep(PAUSE);
    }
    Ok(took)
}

/// Where the socket is.
pub(crate) fn socket(home: &Path) -> PathBuf {
    home.join("admin/admin.sock")
}
