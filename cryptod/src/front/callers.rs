//! Who may connect: the process that the supervisor named last, and as root the uid that it gave that process.
//!
//! In: what the kernel says of who connected, and the supervisor's word, which lies in the barrier's queue before the process that it
//! names can have connected. Out: yes, or why not. It reads nothing of what the caller says.

use std::sync::{Mutex, MutexGuard, PoisonError};

use openred_policy::barrier::Callers as Feed;
use openred_policy::socket::ProcessId;
use tokio::net::UnixStream;

/// Who may connect.
pub struct Callers {
    /// As root; an ordinary user's processes share one, and from inside a user namespace every other reads alike.
    uid: Option<u32>,
    named: Mutex<Named>,
}

struct Named {
    feed: Option<Feed>,
    process: Option<ProcessId>,
}

/// Why somebody may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stranger {
    /// Its uid is not `noded`'s, or the kernel does not say.
    #[error("it comes from another uid than noded's")]
    Uid,
    /// It is another process, or one that is gone.
    #[error("it comes from another process than the noded that was started")]
    Process,
    /// The supervisor has named nobody.
    #[error("no noded was started yet")]
    Nobody,
}

impl Callers {
    /// Whom the supervisor names through `feed`, and as root with this `uid`.
    #[must_use]
    pub const fn named(uid: Option<u32>, feed: Feed) -> Self {
        Self { uid, named: Mutex::new(Named { feed: Some(feed), process: None }) }
    }

    /// This process alone, for who has the front and its caller in one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn this_process() -> std::io::Result<Self> {
        Ok(Self { uid: None, named: Mutex::new(Named { feed: None, process: Some(ProcessId::this()?) }) })
    }

    /// Takes in what the supervisor has said; its messages must not pile up while nobody connects.
    pub(super) fn hear(&self) -> Option<ProcessId> {
        let mut named = self.lock();
        named.process = named.feed.as_ref().and_then(Feed::next).or(named.process);
        named.process
    }

    /// Whether who connected may.
    pub(super) fn who_is(&self, stream: &UnixStream) -> Result<(), Stranger> {
        if self.uid.is_some_and(|uid| !stream.peer_cred().is_ok_and(|peer| peer.uid() == uid)) {
            return Err(Stranger::Uid);
        }
        let named = self.hear().ok_or(Stranger::Nobody)?;
        if ProcessId::of_peer(stream).is_ok_and(|process| process == named) { Ok(()) } else { Err(Stranger::Process) }
    }

    fn lock(&self) -> MutexGuard<'_, Named> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn another_uid_another_process_and_nobody_are_told_apart() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let own = nix::unistd::geteuid().as_raw();
        let mut callers = Callers::this_process().unwrap();
        assert_eq!(callers.who_is(&stream), Ok(()));
        callers.uid = Some(own);
        assert_eq!(callers.who_is(&stream), Ok(()));
        callers.uid = Some(own + 1);
        assert_eq!(callers.who_is(&stream), Err(Stranger::Uid));
        callers.uid = None;
        callers.lock().process = Some(ProcessId::from_bytes([1; 8]));
        assert_eq!(callers.who_is(&stream), Err(Stranger::Process));
        callers.lock().process = None;
        assert_eq!(callers.who_is(&stream), Err(Stranger::Nobody));
    }
}
