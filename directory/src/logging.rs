//! The log: lines on the standard error, for people or as JSON, from a level on that can be changed while the directory serves.

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use crate::config::{Format, Level, Log};

/// Changes the lowest level that is written.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<LevelFilter, Registry>);

impl LogLevel {
    /// From now on.
    pub(crate) fn set(&self, level: Level) {
        // It fails where the subscriber is gone, and then nothing is written.
        let _ = self.0.modify(|filter| *filter = filter_of(level));
    }
}

/// Begins to write the log as the settings say.
#[must_use]
pub fn to_stderr(log: &Log) -> LogLevel {
    let (filter, level) = reload::Layer::new(filter_of(log.level));
    let lines = || tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    // A second subscriber (a test's) stays.
    let _ = match log.format {
        Format::Human => registry.with(lines()).try_init(),
        Format::Json => registry.with(lines().json()).try_init(),
    };
    LogLevel(level)
}

fn filter_of(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    }
}
