//! How the three programs speak: one line when a start fails, and the front's log lines. Nothing else is printed.

use openred_policy::barrier::Barrier;

use crate::unseal::Failure;

/// Tells the supervisor and the log why this process gives up; returns the exit code: 1, or a passphrase's. The line names
/// layer or part, reason and way out, as the error's text does; causes follow it.
#[must_use]
#[allow(clippy::print_stderr, reason = "the one line that a failed start leaves; descriptor 2 is the log's pipe")]
pub fn failed(barrier: Option<&Barrier>, error: &anyhow::Error) -> i32 {
    let line = Line(format!("{error:#}").replace('\n', " "));
    if let Some(barrier) = barrier {
        barrier.failed(&line);
    }
    eprintln!("{line}");
    error.downcast_ref::<Failure>().map_or(1, Failure::exit_code)
}

/// An error chain as one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Line(String);

/// Sends log lines to descriptor 2, at `info` and above, without colour. For the front; the vault and the unsealer do not log.
pub fn log_to_standard_error() {
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .compact()
        .try_init();
}
