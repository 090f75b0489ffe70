//! Between `noded` and its supervisor: which module shall run. Bounded frames on a socket pair; `noded` decides, the supervisor starts only
//! what it has in its own table. A module that is swapped has several processes, each a generation with a number of its own.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Result, WireError};
use crate::secret::Secret;

/// Longest module id, in bytes.
pub const MODULE_ID_BYTES: usize = 32;
/// Longest reason, in bytes: one line.
pub const REASON_BYTES: usize = 512;
/// Longest body of a frame: the longest reason and an id, and what names them.
pub const FRAME_BYTES: usize = 1024;
/// Its length goes before it.
const LENGTH_BYTES: usize = 2;

const WHAT: &str = "frame about a module";

/// What `noded` asks.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// The module shall run, and prove itself with this value. One that runs is given the value; so a new `noded` takes over
    /// what the one before it had.
    Start {
        /// Its id.
        module: String,
        /// Which of its processes.
        generation: u64,
        /// Of a module that comes with the node: the program that was kept under this number, or is from now on; zero: the one that
        /// lies there now.
        program: u64,
        /// The running generation whose program is kept under its number first; zero: none.
        preserve: u64,
        /// Of an installed module: which version.
        version: String,
        /// Drawn by `noded`, used once.
        value: Secret<32>,
    },
    /// It shall not run; its process is ended.
    Stop {
        /// Its id.
        module: String,
        /// Which of its processes; zero: each.
        generation: u64,
    },
    /// It ended too often: it is not to be started before the operator says so, also where another `noded` asks.
    Quarantine {
        /// Its id.
        module: String,
        /// One line.
        why: String,
    },
    /// What it kept is deleted, as [`Told::Changed`] had it.
    Forgotten {
        /// Its id.
        module: String,
    },
    /// It has attached and started, and is the one that is called.
    Ready {
        /// Its id.
        module: String,
        /// Which of its processes.
        generation: u64,
    },
    /// Of what was kept of it, no more is needed than this.
    Keep {
        /// Its id.
        module: String,
        /// Numbers of kept programs.
        programs: Vec<u64>,
        /// Installed versions.
        versions: Vec<String>,
    },
    /// The swap of an installed module to a version did not last: the one before it is what runs.
    Settle {
        /// Its id.
        module: String,
        /// The version that was left.
        from: String,
        /// The one that runs.
        to: String,
        /// The turn of that.
        turn: u32,
    },
    /// How are the processes and their cages? Answered with [`Told::Process`] for each, [`Told::Layer`] behind it for each of its layers,
    /// and [`Told::Looked`].
    Look,
}

/// What the supervisor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Which modules are installed, or what they may do, has changed.
    Changed,
    /// It cannot be started: not in the table, too often, or its cage is not as it must be.
    Refused {
        /// Its id, as it was asked for.
        module: String,
        /// Which of its processes.
        generation: u64,
        /// One line.
        reason: String,
    },
    /// It is not started before the operator says so.
    Quarantined {
        /// Its id.
        module: String,
        /// Which of its processes.
        generation: u64,
        /// One line.
        why: String,
    },
    /// The operator has said so.
    Released {
        /// Its id.
        module: String,
    },
    /// As was asked, it does not run any more.
    Stopped {
        /// Its id.
        module: String,
        /// Which of its processes; zero: each.
        generation: u64,
    },
    /// Its process has ended by itself.
    Ended {
        /// Its id.
        module: String,
        /// Which of its processes.
        generation: u64,
        /// How, in a few words.
        how: String,
    },
    /// A process, as the supervisor sees it.
    Process {
        /// As in `openred status`.
        name: String,
        /// As there.
        state: String,
        /// How often it was started again.
        restarts: u32,
        /// Unix milliseconds.
        since: u64,
    },
    /// A layer of the process that was told last.
    Layer {
        /// As in `openred doctor`.
        name: String,
        /// Whether it is as it must be.
        on: bool,
        /// Of one that is off: what was expected, and what is there.
        detail: String,
    },
    /// That was all.
    Looked {
        /// When: Unix milliseconds.
        at: u64,
    },
}

impl Ask {
    /// Whom it is about; nobody's id is empty.
    #[must_use]
    pub fn module(&self) -> &str {
        match self {
            Self::Start { module, .. }
            | Self::Stop { module, .. }
            | Self::Quarantine { module, .. }
            | Self::Forgotten { module }
            | Self::Ready { module, .. }
            | Self::Keep { module, .. }
            | Self::Settle { module, .. } => module,
            Self::Look => "",
        }
    }

    /// Which of its processes; zero where it is about the module.
    #[must_use]
    pub fn generation(&self) -> u64 {
        match self {
            Self::Start { generation, .. } | Self::Stop { generation, .. } | Self::Ready { generation, .. } => {
                *generation
            }
            Self::Quarantine { .. } | Self::Forgotten { .. } | Self::Keep { .. } | Self::Settle { .. } | Self::Look => {
                0
            }
        }
    }
}

impl Told {
    /// Whom it is about; nobody's id is empty.
    #[must_use]
    pub fn module(&self) -> &str {
        match self {
            Self::Changed | Self::Process { .. } | Self::Layer { .. } | Self::Looked { .. } => "",
            Self::Refused { module, .. }
            | Self::Quarantined { module, .. }
            | Self::Released { module }
            | Self::Stopped { module, .. }
            | Self::Ended { module, .. } => module,
        }
    }

    /// Which of its processes; zero where it is about the module.
    #[must_use]
    pub fn generation(&self) -> u64 {
        match self {
            Self::Refused { generation, .. }
            | Self::Quarantined { generation, .. }
            | Self::Stopped { generation, .. }
            | Self::Ended { generation, .. } => *generation,
            Self::Changed | Self::Released { .. } | Self::Process { .. } | Self::Layer { .. } | Self::Looked { .. } => {
                0
            }
        }
    }
}

/// A frame's bytes. They may hold a value that proves a module.
///
/// # Errors
/// An id or a reason that is too long.
pub fn encode<T: Serialize>(frame: &T) -> Result<Zeroizing<Vec<u8>>> {
    let too_long = WireError::TooLong { what: WHAT, limit: FRAME_BYTES };
    let mut bytes = Zeroizing::new(vec![0; LENGTH_BYTES + FRAME_BYTES]);
    let length = postcard::to_slice(frame, &mut bytes[LENGTH_BYTES..]).map_err(|_| too_long)?.len();
    bytes[..LENGTH_BYTES].copy_from_slice(&u16::try_from(length).map_err(|_| too_long)?.to_be_bytes());
    bytes.truncate(LENGTH_BYTES + length);
    Ok(bytes)
}

/// The first frame in `bytes` and how many of them it takes.
///
/// # Errors
/// `Incomplete` while more bytes are needed; otherwise they are no frame and never will be.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize)> {
    let incomplete = WireError::Incomplete { what: WHAT };
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or(incomplete)?;
    let length = usize::from(u16::from_be_bytes(*length));
    if length > FRAME_BYTES {
        return Err(WireError::TooLong { what: WHAT, limit: FRAME_BYTES });
    }
    let body = rest.get(..length).ok_or(incomplete)?;
    match postcard::take_from_bytes(body) {
        Ok((frame, [])) => Ok((frame, LENGTH_BYTES + length)),
        _ => Err(WireError::Malformed { what: WHAT, why: "not of the contract" }),
    }
}

/// `text` as one line that fits a frame.
#[must_use]
pub fn reason(text: &str) -> String {
    let mut line: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    while line.len() > REASON_BYTES {
        line.pop();
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn frames_come_back_and_parts_of_them_wait() {
        let ask = Ask::Start {
            module: "m".repeat(MODULE_ID_BYTES),
            generation: u64::MAX,
            program: 1,
            preserve: 0,
            version: "1.0.0".into(),
            value: Secret::new([7; 32]),
        };
        let bytes = encode(&ask).unwrap();
        for cut in 0..bytes.len() {
            let partial = decode::<Ask>(&bytes[..cut]);
            assert!(matches!(partial, Err(WireError::Incomplete { .. })), "{cut}");
        }
        assert_eq!(decode::<Ask>(&bytes).unwrap(), (ask, bytes.len()));
        let told = Told::Refused { module: "m".into(), generation: 1, reason: reason(&"é\n".repeat(REASON_BYTES)) };
        let bytes = encode(&told).unwrap();
        let (again, used) = decode::<Told>(&[&bytes[..], b"next"].concat()).unwrap();
        assert_eq!((again, used), (told, bytes.len()));
    }

    #[test]
    fn what_is_too_long_or_none_is_refused() {
        let long = Told::Ended { module: "m".into(), generation: 1, how: "x".repeat(FRAME_BYTES) };
        assert!(matches!(encode(&long), Err(WireError::TooLong { .. })));
        assert!(matches!(decode::<Ask>(&[0xff, 0xff]), Err(WireError::TooLong { .. })));
        assert!(matches!(decode::<Ask>(&[0, 1, 99]), Err(WireError::Malformed { .. })));
        let mut trailing = encode(&Ask::Stop { module: "m".into(), generation: 1 }).unwrap().to_vec();
        trailing.push(0);
        trailing[1] += 1;
        assert!(matches!(decode::<Ask>(&trailing), Err(WireError::Malformed { .. })));
    }
}
