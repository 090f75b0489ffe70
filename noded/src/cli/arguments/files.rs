//! Words of `openred share`, `openred fetch` and `openred files`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Longest life of a link to a file: a year.
const LINK_SECONDS: u64 = 366 * 86_400;

#[derive(Debug, Args)]
pub(crate) struct Share {
    /// The file
    pub(crate) path: PathBuf,
    /// Only for this node; without it, for every linked node
    #[arg(long, value_name = "DID")]
    pub(crate) to: Option<String>,
    /// For nobody by name (but --to), and print a link: whoever holds it may
    /// fetch the file, from a node that is linked with this one
    #[arg(long)]
    pub(crate) link: bool,
    /// How long the link holds, such as 24h, 90m or 30s; as configured if not
    /// given
    #[arg(long, requires = "link", value_name = "SPAN", value_parser = life)]
    pub(crate) expires: Option<u64>,
    /// How many fetches the link is for; as configured if not given
    #[arg(long, requires = "link", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// The node that shares it, did:key:…; or a link to the file, `-` reads it
    /// from standard input
    #[arg(value_name = "DID|LINK")]
    pub(crate) from: String,
    /// The file's id, where a node is named
    pub(crate) id: Option<String>,
    /// Where to write it; without it the file stays in the node
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,
    /// Replace what has that name already
    #[arg(long, requires = "out")]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Files {
    /// List the files that a node shares with this one, or without it those
    /// that this node shares, and with whom
    List {
        /// The node, did:key:…
        #[arg(value_name = "DID")]
        peer: Option<String>,
    },
    /// Let one more node fetch a shared file
    Allow {
        /// The file's id
        id: String,
        /// The node, did:key:…; or all: every linked node
        #[arg(value_name = "DID|all")]
        peer: String,
    },
    /// Let a node fetch a shared file no more; what it fetches now ends
    Deny {
        /// The file's id
        id: String,
        /// The node, did:key:…; or all: only the named ones stay
        #[arg(value_name = "DID|all")]
        peer: String,
    },
    /// Stop sharing a file; who fetches it now is cut off, and its links end
    Stop {
        /// The file's id
        id: String,
    },
    /// Make one more link to a shared file
    Link {
        /// The file's id
        id: String,
        /// How long it holds, such as 24h, 90m or 30s; as configured if not
        /// given
        #[arg(long, value_name = "SPAN", value_parser = life)]
        expires: Option<u64>,
        /// How many fetches it is for; as configured if not given
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
        count: Option<u64>,
    },
    /// List the links that hold, and how often each was used
    Links,
    /// Take a link back; who fetches by it now is cut off
    Revoke {
        /// The link's name, as `openred files links` shows it
        link: String,
    },
}

/// A link's life in seconds, from a number and its unit.
fn life(text: &str) -> Result<u64, &'static str> {
    super::seconds(text)?.filter(|seconds| (1..=LINK_SECONDS).contains(seconds)).ok_or("not between 1s and 366d")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_of_links_to_files() {
        assert_eq!(["1s", "24h", "366d"].map(life), [Ok(1), Ok(86_400), Ok(LINK_SECONDS)]);
        for bad in ["", "0s", "367d", "24", "h", "18446744073709551615d"] {
            assert!(life(bad).is_err(), "{bad}");
        }
    }
}
