//! Whom the front lets in: the `noded` that was started last. It is named to the front that serves, and to each later one before
//! that can be reached; and always before it goes past its own barrier, so that it never comes too early.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use openred_policy::barrier::Admission;
use openred_policy::socket::ProcessId;
use openred_policy::spawn::Child;

/// The two that have to know of each other.
#[derive(Default)]
pub(super) struct Callers(Mutex<Held>);

#[derive(Default)]
struct Held {
    noded: Option<ProcessId>,
    front: Option<Admission>,
}

impl Callers {
    /// A `noded` was started.
    pub(super) fn noded(&self, child: &Child) -> io::Result<()> {
        let mut held = self.held();
        held.noded = Some(ProcessId::of_other(child)?);
        held.tell()
    }

    /// A front is ready.
    pub(super) fn front(&self, front: Admission) -> io::Result<()> {
        let mut held = self.held();
        held.front = Some(front);
        held.tell()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn tell(&mut self) -> io::Result<()> {
        let Some((noded, front)) = self.noded.zip(self.front.as_ref()) else { return Ok(()) };
        match front.admit(noded) {
            // It has ended; the next one is told when it is ready.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.front = None;
                Ok(())
            }
            told => told,
        }
    }
}
