//! Waiting with `ppoll`, the only call with which the vault waits. Its time-out is the vault's timer.

use std::io;
use std::time::Duration;

pub use nix::poll::{PollFd, PollFlags};
use nix::sys::time::TimeSpec;

/// Waits until a descriptor is ready, the time is over (`Ok(0)`), or a signal came (`Ok(0)`). `None` waits without end.
pub fn wait(descriptors: &mut [PollFd<'_>], at_most: Option<Duration>) -> io::Result<usize> {
    match nix::poll::ppoll(descriptors, at_most.map(TimeSpec::from_duration), None) {
        Ok(ready) => Ok(ready as usize),
        Err(nix::Error::EINTR) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}
