//! The unsealer for commands that work without a running node, and for a thread of a running one's supervisor: its cage, its
//! log, and a runtime for as long as it takes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openred_policy::Identity;
use openred_policy::observe::Baseline;
use openred_proto::unseal::{About, Order};
use tokio::runtime::Runtime;

use super::board::Board;
use super::child::Starter;
use super::errand::{self, Errand};
use super::log::{Log, Writer};
use super::places::Identities;
use super::{StartFailure, now, null, programs, settle};
use crate::cli::Failure;
use crate::config::LogFormat;
use crate::home::Home;

/// Runs errands one after the other.
pub(crate) struct Workshop {
    starter: Starter,
    identity: Option<Identity>,
    runtime: Runtime,
    writer: Option<Writer>,
}

impl Workshop {
    /// For the node in `home`; as root the unsealer has the node's fourth uid.
    pub(crate) fn open(home: &Home, uid_base: u32) -> Result<Self, Failure> {
        settle()?;
        let (log, writer) = Log::start(LogFormat::Human);
        let board = Arc::new(Board::new(Baseline::of_this_process()?, home.path().display().to_string(), now()));
        let starter = Starter { programs: programs()?, null: null()?, board, log, callers: Default::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::local("starting the runtime", &error))?;
        Ok(Self { starter, identity: Identities::new(uid_base).unseal, runtime, writer: Some(writer) })
    }

    /// For a thread of a running supervisor, whose log and board it shares.
    pub(super) fn beside(starter: Starter, identity: Option<Identity>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { starter, identity, runtime, writer: None })
    }

    /// Runs the unsealer to its end.
    pub(crate) fn run(
        &self,
        errand: Errand,
        order: impl FnOnce() -> Result<Order, Failure>,
    ) -> Result<Option<About>, StartFailure> {
        self.run_within(errand, order, None)
    }

    /// The same; once it goes past its barrier it has `limit` for its work, and is ended then.
    pub(super) fn run_within(
        &self,
        errand: Errand,
        order: impl FnOnce() -> Result<Order, Failure>,
        limit: Option<Duration>,
    ) -> Result<Option<About>, StartFailure> {
        self.runtime.block_on(errand::run_within(&self.starter, self.identity, errand, order, limit))
    }

    /// `/dev/null`, for an errand without input.
    pub(crate) fn nothing(&self) -> Result<std::os::fd::OwnedFd, Failure> {
        let nothing = self.starter.null.try_clone().map_err(|error| Failure::local("/dev/null", &error))?;
        Ok(nothing.into())
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.starter.log.end();
            writer.finish_within(Duration::from_secs(2));
        }
    }
}
