//! SIGHUP: certificate and key, the log's level and the mirrors that are let in are read again. What does not hold up is named in the log,
//! and all that held goes on.
//!
//! The process that serves sees no file but its state (docs/sandbox.md), so another one reads: it is started before the cage, with the
//! rights that the start had, and waits at the other end of a socket pair ([`answer`]). One byte asks it to read what the start read, by the
//! rules of the start; it takes no other word, so whoever has broken into the process that serves gets settings, certificate and key as they
//! are now (decision 0071). It ends when the socket closes.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use openred_policy::{Descriptors, Role, Unconfined};
use openred_proto::config::Setting;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix;

use crate::config::{Level, Loaded};
use crate::error::{Error, Result};
use crate::logging::LogLevel;
use crate::state::Directory;
use crate::tls::{Pem, Tls};

/// Settings that are read again.
const READ_AGAIN: [&str; 4] = ["tls.certificate", "tls.key", "log.level", "mirror.allow"];
/// What the reader is asked with.
const ASK: u8 = b'r';
/// Longest answer: two PEM files and the settings, as JSON.
const ANSWER_BYTES: u32 = 2 * 1024 * 1024;
/// So long the reader may take: disks wake, networks mount.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Whether a setting takes effect at SIGHUP.
#[must_use]
pub fn is_read_again(key: &str) -> bool {
    READ_AGAIN.contains(&key)
}

/// The keys whose values differ.
#[must_use]
pub fn changed<'a>(held: &[Setting], found: &'a [Setting]) -> Vec<&'a str> {
    let differs = |found: &&Setting| held.iter().all(|held| held.key != found.key || held.value != found.value);
    found.iter().filter(differs).map(|found| found.key.as_str()).collect()
}

/// What the reader found: what can be taken, or why nothing is.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Found(Box<Found>),
    Refused(String),
}

/// Settings that hold up.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    settings: Vec<Setting>,
    level: Level,
    mirrors: Vec<String>,
    tls: Option<Pem>,
}

/// Starts the reader, while files can be reached; the near end of its socket.
///
/// # Errors
/// The system starts no process.
pub fn start(loaded: &Loaded) -> Result<UnixStream> {
    let (near, far) = UnixStream::pair().map_err(Error::LocalRuntime)?;
    let far = OwnedFd::from(far);
    let also = far.try_clone().map_err(Error::LocalRuntime)?;
    let mut command = Command::new("/proc/self/exe");
    let (file, home) = &loaded.asked;
    for (flag, path) in [("--config", file), ("--home", home)] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    // It is not waited for: it ends after this process, or is missed at the next SIGHUP.
    let reader = command.arg(COMMAND).stdin(Stdio::from(far)).stdout(Stdio::from(also)).spawn();
    reader.map_err(Error::LocalRuntime)?;
    Ok(near)
}

/// The command by which the reader is started; people have no use for it.
pub const COMMAND: &str = "read-again";

/// The reader: answers until nobody is there to ask.
///
/// # Errors
/// It was started by hand, or the system refuses what it gives up.
pub fn answer(read: impl Fn() -> Result<Loaded>) -> Result<()> {
    let _unconfined = Unconfined::enter(Role::Directory, Descriptors::CloseOthers(&[0, 1, 2]))?;
    let refused = |errno: nix::Error| Error::LocalRuntime(errno.into());
    set_no_new_privs().map_err(refused)?;
    set_dumpable(false).map_err(refused)?;
    // Who sends SIGHUP to all processes of a unit or of a terminal does not mean that this one is to end.
    SigSet::from(Signal::SIGHUP).thread_block().map_err(refused)?;
    // It reads, and neither writes nor starts anything.
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0).map_err(refused)?;
    setrlimit(Resource::RLIMIT_NPROC, 0, 0).map_err(refused)?;
    let (mut asks, mut answers) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut ask = [0];
    while asks.read_exact(&mut ask).is_ok() && ask == [ASK] {
        let answer = match read().and_then(|loaded| found(&loaded)) {
            Ok(found) => Answer::Found(Box::new(found)),
            Err(error) => Answer::Refused(error.to_string()),
        };
        let text = serde_json::to_vec(&answer).map_err(|error| Error::LocalRuntime(error.into()))?;
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
        let told = answers.write_all(&length).and_then(|()| answers.write_all(&text)).and_then(|()| answers.flush());
        if told.is_err() {
            break;
        }
    }
    Ok(())
}

/// Checks what a reload would take, as the start does.
fn found(loaded: &Loaded) -> Result<Found> {
    let tls = Pem::read(&loaded.config.tls)?;
    tls.as_ref().map(Pem::acceptor).transpose()?;
    let config = &loaded.config;
    let settings = loaded.source.settings(config).unwrap_or_default();
    Ok(Found { settings, level: config.log.level, mirrors: config.mirror.allow.get_ref().clone(), tls })
}

/// Returns when the reader says something that it was not asked for, which is its end; never where there is none.
async fn ends(reader: Option<&tokio::net::UnixStream>) {
    let Some(reader) = reader else { return std::future::pending().await };
    // What was read to its end may count as readable once more: only a look tells.
    while reader.readable().await.is_ok() {
        if !reader.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            return;
        }
    }
}

/// What SIGHUP changes in the process that serves.
pub(crate) struct Reload {
    pub(crate) directory: Arc<Directory>,
    /// Where the reader is asked.
    pub(crate) reader: Option<tokio::net::UnixStream>,
    pub(crate) level: LogLevel,
    pub(crate) tls: Option<Tls>,
    /// The settings that hold.
    pub(crate) settings: Arc<Mutex<Vec<Setting>>>,
}

impl Reload {
    /// At each SIGHUP. That the reader has ended is known at once, not only when a certificate is to be renewed.
    pub(crate) async fn run(mut self, mut hangup: unix::Signal) {
        loop {
            tokio::select! {
                came = hangup.recv() => if came.is_none() { return },
                () = ends(self.reader.as_ref()) => self.reader = None,
            }
            let taken = match self.ask().await {
                Some(Answer::Found(found)) => self.take(*found).map_err(|error| error.to_string()),
                Some(Answer::Refused(why)) => Err(why),
                None => Err("the process that reads the configuration for this one has ended, or took too long: restart, for SIGHUP changes nothing any more".to_owned()),
            };
            self.directory.standing.note_settings(taken.is_err());
            if let Err(why) = taken {
                tracing::error!("SIGHUP: {why}; everything stays as it was");
            }
        }
    }

    /// None once the reader is gone, or was too slow to be asked again: what it says late would pass for the next answer.
    async fn ask(&mut self) -> Option<Answer> {
        let mut reader = self.reader.take()?;
        let asked = async {
            reader.write_all(&[ASK]).await?;
            let length = reader.read_u32().await?;
            if length > ANSWER_BYTES {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            let mut text = Vec::new();
            (&mut reader).take(u64::from(length)).read_to_end(&mut text).await?;
            serde_json::from_slice(&text).map_err(std::io::Error::from)
        };
        let answer = tokio::time::timeout(ANSWER_TIME, asked).await.ok()?.ok()?;
        self.reader = Some(reader);
        Some(answer)
    }

    fn take(&self, found: Found) -> Result<()> {
        let Found { settings, level, mirrors, tls } = found;
        let mut held = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether it speaks TLS at all is settled with its listener.
        let speaks = tls.is_some() == self.tls.is_some();
        let takes = |key: &str| is_read_again(key) && (speaks || !key.starts_with("tls."));
        if let (Some(ours), Some(pem)) = (&self.tls, &tls) {
            ours.replace(pem.acceptor()?);
        }
        self.level.set(level);
        self.directory.let_mirrors_in(&mirrors);
        let (now, later): (Vec<&str>, Vec<&str>) = changed(&held, &settings).into_iter().partition(|key| takes(key));
        let (now, later) = (now.join(", "), later.join(", "));
        if !later.is_empty() {
            tracing::warn!(settings = later, "SIGHUP: these change only when the directory is restarted");
        }
        for found in settings.into_iter().filter(|found| takes(&found.key)) {
            held.iter_mut().filter(|held| held.key == found.key).for_each(|held| *held = found.clone());
        }
        tracing::info!(changed = now, certificate = speaks && tls.is_some(), "SIGHUP: read again");
        Ok(())
    }
}
