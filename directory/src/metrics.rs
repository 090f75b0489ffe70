//! Counters of this process, read by `/metrics` (Prometheus text) and by `directory status`. Counts only: no address, id or
//! name ever becomes a label.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::api::system::Condition;
use crate::mirror::MirrorView;

/// All of them. Relaxed is enough: each stands for itself.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests answered, by class of status (index 2 = 2xx).
    answers: [AtomicU64; 6],
    /// Cards stored or refreshed.
    pub registrations: Counter,
    /// Offers taken.
    pub offers: Counter,
    /// Receipts passed on.
    pub receipts: Counter,
    /// Connections accepted.
    pub connections: Counter,
    /// Connections closed at once because too many were open.
    pub connections_refused: Counter,
    /// Connections open now.
    pub connections_open: Counter,
    /// Streams and long polls open now.
    pub streams_open: Counter,
}

/// What a replica adds to the text.
#[must_use]
pub fn of_replicas(connected: bool, others: usize, copied: u64, refused: u64) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in [
        ("replica_connected", "gauge", "Whether this replica hears itself over NATS.", u64::from(connected)),
        ("replicas_heard", "gauge", "Other replicas that are there.", others as u64),
        ("replica_items_total", "counter", "Offers and receipts taken from other replicas.", copied),
        (
            "replica_letters_refused_total",
            "counter",
            "Letters that no replica sealed, or that came late or twice.",
            refused,
        ),
    ] {
        let name = format!("openred_directory_{name}");
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    text
}

/// One number.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less, for gauges.
    pub fn subtract(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metrics {
    /// Counts an answer.
    pub fn answered(&self, status: u16) {
        if let Some(class) = self.answers.get(usize::from(status / 100)) {
            class.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Answers of a class (2 = 2xx).
    #[must_use]
    pub fn answers(&self, class: usize) -> u64 {
        self.answers.get(class).map_or(0, |answers| answers.load(Ordering::Relaxed))
    }

    /// The Prometheus text format, with gauges that are known elsewhere.
    #[must_use]
    pub fn text(&self, waiting: usize, uptime_seconds: u64) -> String {
        let mut text = String::new();
        let mut line = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        line(
            "openred_directory_registrations_total",
            "counter",
            "Cards stored or refreshed.",
            self.registrations.get(),
        );
        line("openred_directory_offers_total", "counter", "Offers taken for a recipient.", self.offers.get());
        line("openred_directory_receipts_total", "counter", "Receipts passed to issuers.", self.receipts.get());
        line("openred_directory_connections_total", "counter", "Connections accepted.", self.connections.get());
        let refused = self.connections_refused.get();
        line("openred_directory_connections_refused_total", "counter", "Connections over the cap.", refused);
        line("openred_directory_connections", "gauge", "Connections open.", self.connections_open.get());
        line("openred_directory_streams", "gauge", "Streams and long polls open.", self.streams_open.get());
        line("openred_directory_items_waiting", "gauge", "Offers and receipts in memory.", waiting as u64);
        line("openred_directory_uptime_seconds", "gauge", "Seconds since start.", uptime_seconds);
        text.push_str("# HELP openred_directory_answers_total Answers by class of status.\n");
        text.push_str("# TYPE openred_directory_answers_total counter\n");
        for class in 2..=5 {
            let _ = writeln!(text, "openred_directory_answers_total{{class=\"{class}xx\"}} {}", self.answers(class));
        }
        text
    }
}

/// The conditions that are not in order, as a node's own page has them.
#[must_use]
pub fn of_conditions(conditions: &[Condition]) -> String {
    let name = "openred_directory_condition";
    let mut text = format!("# HELP {name} Conditions that are not in order.\n# TYPE {name} gauge\n");
    for condition in conditions.iter().filter(|condition| !condition.ok) {
        let _ = writeln!(text, "{name}{{code=\"{}\",severity=\"{}\"}} 1", condition.code, condition.severity);
    }
    text
}

/// What a mirror adds: how far it is behind.
#[must_use]
pub fn mirror_text(view: &MirrorView, conditions: &[Condition]) -> String {
    let mut text = String::new();
    let mut line = |name: &str, help: &str, value: u64| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    };
    line("openred_directory_mirror_entries", "Entries of the mirrored log that are here.", view.entries);
    line("openred_directory_mirror_upstream_entries", "Entries of the newest head seen.", view.upstream_entries);
    if let Some(ago) = view.current_seconds_ago {
        line("openred_directory_mirror_current_seconds", "Seconds since nothing was missing.", ago);
    }
    let of_mirror = |condition: &&Condition| !condition.ok && condition.code.starts_with("upstream.");
    let wrong = conditions.iter().filter(of_mirror).count() as u64;
    line("openred_directory_mirror_conditions", "Conditions of the mirror that are not in order.", wrong);
    text
}
