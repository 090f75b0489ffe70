//! Every reader of bytes that somebody else wrote, as a plain function of bytes, and what drives it.
//!
//! A target gets any bytes at all and must come back; what must hold besides is asserted in it. Three things drive the same
//! functions: the suite (`tests/smoke.rs`: the corpus and a few seconds of mutations), `openred-fuzz run` (the same for
//! longer), and libFuzzer with coverage (`guided/`, a workspace of its own, through `scripts/fuzz`). In: bytes of the corpus
//! (`corpus/TARGET/`), of the driver, or of libFuzzer. Out: nothing, or a panic that names what did not hold.
#![forbid(unsafe_code)]
// A target states what must hold by panicking.
#![allow(clippy::unwrap_used, reason = "a panic is how a target reports")]

mod audit;
pub mod corpus;
pub mod driver;
mod files;
mod front;
mod log;
mod modules;
mod operations;
mod oracle;
mod records;
mod replicas;
mod session;

/// One reader.
#[derive(Clone, Copy)]
pub struct Target {
    /// As `scripts/fuzz` and the corpus call it.
    pub name: &'static str,
    /// What it gives the bytes to.
    pub reads: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Longest input that is worth trying: a little over the longest that the reader takes.
    pub longest: usize,
    /// Real inputs, to begin from.
    pub corpus: fn() -> Vec<(String, Vec<u8>)>,
}

/// All of them.
pub const TARGETS: [Target; 17] = [
    Target {
        name: "statements",
        reads: "signed statements, as they come and newly signed: cards, certificates, receipts",
        run: records::statements,
        longest: 4200,
        corpus: records::corpus::statements,
    },
    Target {
        name: "offers",
        reads: "link offers: the clear part, the sealed header, the padded body",
        run: records::offers,
        longest: 3600,
        corpus: records::corpus::offers,
    },
    Target {
        name: "handshake",
        reads: "messages of the handshake and their payloads",
        run: records::handshake,
        longest: 3200,
        corpus: records::corpus::handshake,
    },
    Target {
        name: "http-signature",
        reads: "the two headers of a signed request to a directory",
        run: records::http_signature,
        longest: 1024,
        corpus: records::corpus::http_signature,
    },
    Target {
        name: "log",
        reads: "signed heads of a directory's log, lists of them, proofs; cards sealed in a crowd",
        run: log::log,
        longest: 2400,
        corpus: log::corpus,
    },
    Target {
        name: "replicas",
        reads: "what a NATS server says, letters between a directory's replicas, lists of them at a directory",
        run: replicas::replicas,
        longest: 2400,
        corpus: replicas::corpus,
    },
    Target {
        name: "session",
        reads: "heads, and sealed streams in an open session, in pieces",
        run: session::session,
        longest: 4096,
        corpus: session::corpus,
    },
    Target {
        name: "config",
        reads: "openred.toml and directory.toml",
        run: files::config,
        longest: 4096,
        corpus: files::corpus::config,
    },
    Target {
        name: "keystore",
        reads: "a keystore file, and a payload inside one that opens",
        run: files::keystore,
        longest: 2048,
        corpus: files::corpus::keystore,
    },
    Target {
        name: "state",
        reads: "the vault's state file, and records inside slots that open",
        run: files::state,
        longest: 4200,
        corpus: files::corpus::state,
    },
    Target {
        name: "audit-verify",
        reads: "segments of an audit trail offline, and checkpoints that were kept",
        run: audit::verify,
        longest: 4200,
        corpus: audit::corpus::verify,
    },
    Target {
        name: "audit-start",
        reads: "the audit trail as the vault's start finds it",
        run: audit::start,
        longest: 2100,
        corpus: audit::corpus::start,
    },
    Target {
        name: "front",
        reads: "gRPC calls through the generated service: raw bytes, and messages of the contract",
        run: front::calls,
        longest: 8192,
        corpus: front::corpus,
    },
    Target {
        name: "vault-frames",
        reads: "frames at the vault, of both roles, and replies at the front",
        run: operations::frames,
        longest: 8300,
        corpus: operations::corpus::frames,
    },
    Target {
        name: "vault-operations",
        reads: "lists of operations on two vaults that link and shake hands",
        run: operations::list,
        longest: 512,
        corpus: operations::corpus::lists,
    },
    Target {
        name: "messaging",
        reads: "messages and receipts of peers, and their answers to a delivery, at the module",
        run: modules::messaging::messaging,
        longest: 2048,
        corpus: modules::messaging::corpus,
    },
    Target {
        name: "files",
        reads: "paths that peers ask for, secrets of links, answers to a fetch and lists, texts of links, at the module",
        run: modules::files::files,
        longest: 2048,
        corpus: modules::files::corpus,
    },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
