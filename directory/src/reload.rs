//! SIGHUP: certificate and key, the log's level and the mirrors that are let in are read again. What does not hold up is named in the log,
//! and all that held goes on.
//!
//! The process that serves sees no file but its state (docs/sandbox.md), so another one reads: it is started before the cage, with the
//! rights that the start had, and waits at the other end of a socket pair ([`answer`]). It says one byte once it can be asked; one byte asks it to
//! read what the start read, by the rules of the start. It takes no other word, so whoever has broken into the process that serves gets settings
//! and, where it speaks TLS, certificate and key as they are now (decision 0071). It ends when the socket closes.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
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
use zeroize::Zeroizing;

use crate::config::{Level, Loaded};
use crate::error::{Error, Result};
use crate::logging::LogLevel;
use crate::state::Directory;
use crate::tls::{PEM_BYTES, Pem, Tls};

/// Settings that are read again.
const READ_AGAIN: [&str; 4] = ["tls.certificate", "tls.key", "log.level", "mirror.allow"];
/// What the reader is asked with.
const ASK: u8 = b'r';
/// What it says once it can be asked.
const READY: u8 = b'!';
/// Longest answer: a PEM file and the settings, as JSON; a key follows it.
const ANSWER_BYTES: usize = 2 * 1024 * 1024;
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
    /// Whether a certificate is named.
    certificate: bool,
    /// What the files hold, for who speaks TLS.
    tls: Option<Pem>,
}

/// Starts the reader, while files can be reached; the near end of its socket. It is told once whether TLS is spoken: who does not speak it
/// is never handed a key.
///
/// # Errors
/// The system starts no process.
pub fn start(loaded: &Loaded, tls: bool) -> Result<UnixStream> {
    let (near, far) = UnixStream::pair().map_err(Error::LocalRuntime)?;
    let mut command = Command::new("/proc/self/exe");
    let (file, home) = &loaded.asked;
    for (flag, path) in [("--config", file), ("--home", home)] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    command.arg(COMMAND);
    if tls {
        command.arg("--tls");
    }
    // It is not waited for: it ends after this process, or is missed as soon as it has ended.
    let reader = command.stdin(Stdio::from(OwnedFd::from(far))).stdout(Stdio::null()).spawn();
    reader.map_err(Error::LocalRuntime)?;
    Ok(near)
}

/// Waits until the reader can be asked: from then on no SIGHUP ends it.
///
/// # Errors
/// It has ended, or does not come up.
pub fn await_ready(mut reader: &UnixStream) -> Result<()> {
    let mut word = [0];
    let said = reader.set_read_timeout(Some(ANSWER_TIME)).and_then(|()| reader.read_exact(&mut word));
    if said.is_ok() && word == [READY] {
        return Ok(());
    }
    let why = "the process that reads the configuration at SIGHUP ended at once, or did not come up in time";
    Err(Error::LocalRuntime(std::io::Error::other(why)))
}

/// The command by which the reader is started; people have no use for it.
pub const COMMAND: &str = "read-again";

/// The reader: answers until nobody is there to ask.
///
/// # Errors
/// It was started by hand, or the system refuses what it gives up.
pub fn answer(tls: bool, read: impl Fn() -> Result<Loaded>) -> Result<()> {
    let _unconfined = Unconfined::enter(Role::Directory, Descriptors::CloseOthers(&[0, 1, 2]))?;
    let refused = |errno: nix::Error| Error::LocalRuntime(errno.into());
    set_no_new_privs().map_err(refused)?;
    set_dumpable(false).map_err(refused)?;
    // Who sends SIGHUP to all processes of a unit or of a terminal does not mean that this one is to end.
    SigSet::from(Signal::SIGHUP).thread_block().map_err(refused)?;
    // It reads, and neither writes nor starts anything.
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0).map_err(refused)?;
    setrlimit(Resource::RLIMIT_NPROC, 0, 0).map_err(refused)?;
    // Not by way of the standard streams, whose buffers would keep what went through them.
    let mut asker = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(Error::LocalRuntime)?);
    match asker.write_all(&[READY]) {
        // What was to ask did not come up, and has said why.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
        said => said.map_err(Error::LocalRuntime)?,
    }
    let mut ask = [0];
    while asker.read_exact(&mut ask).is_ok() && ask == [ASK] {
        let answer = match read().and_then(|loaded| found(&loaded, tls)) {
            Ok(found) => Answer::Found(Box::new(found)),
            Err(error) => Answer::Refused(error.to_string()),
        };
        if tell(&mut asker, &answer).is_err() {
            break;
        }
    }
    Ok(())
}

/// The answer as JSON behind its length; then the key behind its own, empty where there is none.
fn tell(asker: &mut UnixStream, answer: &Answer) -> std::io::Result<()> {
    let text = serde_json::to_vec(answer)?;
    let key: &[u8] = match answer {
        Answer::Found(found) => found.tls.as_ref().map_or(&[], |pem| &pem.key),
        Answer::Refused(_) => &[],
    };
    for part in [&text, key] {
        asker.write_all(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes())?;
        asker.write_all(part)?;
    }
    Ok(())
}

/// Reads what a reload would take. Whether certificate and key fit is for who takes them to say: here they would be held twice.
fn found(loaded: &Loaded, tls: bool) -> Result<Found> {
    let config = &loaded.config;
    let settings = loaded.source.settings(config).unwrap_or_default();
    Ok(Found {
        settings,
        level: config.log.level,
        mirrors: config.mirror.allow.get_ref().clone(),
        certificate: !config.tls.certificate.get_ref().as_os_str().is_empty(),
        tls: if tls { Pem::read(&config.tls)? } else { None },
    })
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

/// A part of the answer, into a place of its size: what grows leaves copies behind.
async fn part(reader: &mut tokio::net::UnixStream, most: usize) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let length = reader.read_u32().await? as usize;
    if length > most {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut part = Zeroizing::new(vec![0; length]);
    reader.read_exact(&mut part).await?;
    Ok(part)
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
            let text = part(&mut reader, ANSWER_BYTES).await?;
            let key = part(&mut reader, PEM_BYTES).await?;
            let mut answer = serde_json::from_slice(&text)?;
            if let Answer::Found(found) = &mut answer
                && let Some(pem) = &mut found.tls
            {
                pem.key = key;
            }
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(ANSWER_TIME, asked).await.ok()?.ok()?;
        self.reader = Some(reader);
        Some(answer)
    }

    fn take(&self, found: Found) -> Result<()> {
        let Found { settings, level, mirrors, certificate, tls } = found;
        let mut held = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether it speaks TLS at all is settled with its listener.
        let speaks = certificate == self.tls.is_some();
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
