//! The commands' end of the admin socket.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Answer, Ask};
use crate::error::{Error, Result};
use crate::limits::{ADMIN_BYTES, ADMIN_TIME};

/// Asks the directory whose socket this is.
///
/// # Errors
/// Nobody answers, the answer cannot be read, or it is a refusal.
pub fn ask(socket: &Path, ask: &Ask) -> Result<Answer> {
    let away = |_| Error::PeerAway { socket: socket.to_owned() };
    let mut stream = match UnixStream::connect(socket) {
        Err(source) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(Error::LocalFile { action: "connect to", path: socket.to_owned(), source });
        }
        connected => connected.map_err(away)?,
    };
    stream.set_read_timeout(Some(ADMIN_TIME)).map_err(away)?;
    let mut line = serde_json::to_vec(ask).map_err(|_| Error::PeerMalformed)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(away)?;
    let mut answer = String::new();
    let read = BufReader::new(stream.take(ADMIN_BYTES as u64)).read_line(&mut answer);
    read.map_err(|_| Error::PeerMalformed)?;
    match serde_json::from_str(&answer).map_err(|_| Error::PeerMalformed)? {
        Answer::Refused(refusal) => Err(Error::PeerRefused(refusal)),
        answer => Ok(answer),
    }
}

/// Whether somebody answers.
#[must_use]
pub fn is_running(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}
