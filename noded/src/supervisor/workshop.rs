//! The unsealer for commands that work without a running node, and for a thread of a running one's supervisor: its cage, its
//! log, and a runtime for as long as it takes.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use openred_policy::Identity;
use openred_policy::limits::Ways;
use openred_policy::observe::Baseline;
use openred_proto::unseal::{About, Order};
use tokio::runtime::Runtime;

use super::board::Board;
use super::child::Starter;
use super::errand::{self, Errand, Limit, Moved};
use super::log::{Log, Writer};
use super::places::Identities;
use super::{StartFailure, now, null, programs, settle};
use crate::cli::{Exit, Failure};
use crate::config::{LogFormat, NodeConfig};
use crate::home::Home;

/// Runs errands one after the other.
pub(crate) struct Workshop {
    starter: Starter,
    identity: Option<Identity>,
    runtime: Runtime,
    writer: Option<Writer>,
    /// How long the unsealer is waited for.
    patience: Duration,
}

impl Workshop {
    /// For the node in `home`; as root the unsealer has the node's fourth uid.
    pub(crate) fn open(home: &Home, config: &NodeConfig) -> Result<Self, Failure> {
        settle()?;
        let (log, writer) = Log::start(LogFormat::Human);
        let (home, ways) = (home.path().display().to_string(), Arc::new(Ways::without_groups()));
        let board = Arc::new(Board::new(Baseline::of_this_process()?, home, ways.to_string(), now()));
        let starter = Starter { programs: programs()?, null: null()?, board, log, ways, callers: Default::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::local("starting the runtime", &error))?;
        let (identity, patience) = (Identities::new(config.uid_base).unseal, config.keys.patience());
        Ok(Self { starter, identity, runtime, writer: Some(writer), patience })
    }

    /// For a thread of a running supervisor, whose log and board it shares.
    pub(super) fn beside(starter: Starter, identity: Option<Identity>, patience: Duration) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { starter, identity, runtime, writer: None, patience })
    }

    /// The same for somebody who runs it beside this.
    pub(super) fn starter(&self) -> io::Result<(Starter, Option<Identity>)> {
        Ok((self.starter.beside()?, self.identity))
    }

    /// Runs the unsealer to its end.
    pub(crate) fn run(
        &self,
        errand: Errand,
        order: impl FnOnce() -> Result<Order, Failure>,
    ) -> Result<Option<About>, StartFailure> {
        self.limited(errand, order, Limit::Whole(self.patience))
    }

    /// The same for a stream of any length: as long as `moved` grows it is waited for.
    pub(super) fn stream(
        &self,
        errand: Errand,
        order: impl FnOnce() -> Result<Order, Failure>,
        moved: &Moved,
    ) -> Result<Option<About>, StartFailure> {
        self.limited(errand, order, Limit::Pause(self.patience, moved))
    }

    fn limited(
        &self,
        errand: Errand,
        order: impl FnOnce() -> Result<Order, Failure>,
        limit: Limit<'_>,
    ) -> Result<Option<About>, StartFailure> {
        self.runtime.block_on(errand::run(&self.starter, self.identity, errand, order, limit))
    }

    /// Opens a file to read it. A pipe that nobody opens to write is waited for no longer than the unsealer.
    pub(super) fn opened(&self, place: &Path) -> Result<File, Failure> {
        let (opened, name) = (sync_channel(1), place.to_owned());
        std::thread::spawn(move || opened.0.send(File::open(name)));
        match opened.1.recv_timeout(self.patience) {
            Ok(file) => file.map_err(|error| Failure::local(place.display(), &error)),
            // The thread ends with the process.
            Err(_) => {
                let seconds = self.patience.as_secs();
                let what = format!("{}: nobody wrote into this pipe within {seconds} s", place.display());
                let way_out = "start what writes into it first, or raise `keys.patience_seconds`";
                Err(Failure::new(Exit::TimeOut, "backup.late", what, way_out))
            }
        }
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
