//! The words of `openred link`.

use std::path::PathBuf;

use clap::Subcommand;
use openred_proto::limits::{LINK_LIFE_MAX, LINK_LIFE_MIN};

#[derive(Debug, Subcommand)]
pub(crate) enum Link {
    /// Offer a link to a node
    Request {
        /// The node, did:key:…
        #[arg(value_name = "DID")]
        peer: String,
        /// Life of the link, such as 24h, 90m or 30s; as configured if not given
        #[arg(long, value_name = "SPAN", value_parser = life)]
        life: Option<u64>,
        /// Wait at most this many seconds for the other side
        #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=600))]
        wait: u64,
    },
    /// Link with a node by its address, without a directory
    ///
    /// Both nodes show the same words unless somebody is between them: compare them
    /// by voice. Without a terminal, --yes or --words the contact is held open for
    /// ten minutes; `openred link accept DID` goes on with it.
    Direct {
        /// http://ADDRESS:PORT, with #did:key:… where the node's id is known
        #[arg(value_name = "URL")]
        url: String,
        /// The node that must be there
        #[arg(long, value_name = "DID")]
        expect: Option<String>,
        /// What the other side shows, read from it
        #[arg(long, visible_alias = "sas", value_name = "WORDS", conflicts_with = "yes")]
        words: Option<String>,
        /// Trust whoever is there
        #[arg(long)]
        yes: bool,
        /// Life of the link, such as 24h, 90m or 30s; as configured if not given
        #[arg(long, value_name = "SPAN", value_parser = life)]
        life: Option<u64>,
        /// Wait at most this many seconds for the other side
        #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=600))]
        wait: u64,
    },
    /// Accept a waiting offer, or a direct contact
    Accept {
        /// The offering node, or the offer's link id
        #[arg(value_name = "DID|LINK")]
        peer: String,
        /// Of a direct contact: what the other side shows
        #[arg(long, visible_alias = "sas", value_name = "WORDS")]
        words: Option<String>,
    },
    /// List the offers that wait for your word
    Offers,
    /// Leave a waiting offer; its sender is told nothing, and may send another
    Refuse {
        /// The offering node, or the offer's link id
        #[arg(value_name = "DID|LINK")]
        offer: String,
    },
    /// List links
    List {
        /// Expired and revoked ones as well
        #[arg(long)]
        all: bool,
    },
    /// Show one link
    Show {
        /// Link id, a prefix of it, or the peer
        #[arg(value_name = "LINK|DID")]
        link: String,
    },
    /// Show what both sides of sessions signed, or verify it
    Proof {
        /// The peer, did:key:…
        #[arg(value_name = "DID", required_unless_present = "verify")]
        peer: Option<String>,
        /// Verify what `openred --json link proof DID` printed; needs no node
        #[arg(long, value_name = "FILE", conflicts_with = "peer")]
        verify: Option<PathBuf>,
    },
    /// Compare links with a peer, and mend what a crash left apart
    Sync {
        /// The peer, did:key:…
        #[arg(value_name = "DID")]
        peer: String,
    },
    /// End all links with a peer; they never open again
    Revoke {
        /// Link id, a prefix of it, or the peer
        #[arg(value_name = "LINK|DID")]
        link: String,
    },
}

/// A link's life in seconds, from a number and its unit.
fn life(text: &str) -> Result<u64, &'static str> {
    let allowed = LINK_LIFE_MIN.as_secs()..=LINK_LIFE_MAX.as_secs();
    super::seconds(text)?.filter(|seconds| allowed.contains(seconds)).ok_or("not between 10s and 30d")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_of_links() {
        assert_eq!(["10s", "90m", "24h", "30d"].map(life), [Ok(10), Ok(5400), Ok(86_400), Ok(2_592_000)]);
        for bad in ["", "24", "9s", "31d", "h", "1.5h", "-1h", "1w", "18446744073709551615d", "24h "] {
            assert!(life(bad).is_err(), "{bad}");
        }
    }
}
