//! `directory nodes …`, `invite …`, `history`, `stats`: one ask each, printed.

use clap::Subcommand;

use super::{print, render};
use crate::admin::{Answer, Ask, State, client};
use crate::config::Loaded;
use crate::error::{Error, Result};

#[derive(Debug, Subcommand)]
pub(super) enum Nodes {
    /// List nodes, in the order of their ids.
    List {
        /// Only those in this state.
        #[arg(long, value_enum)]
        state: Option<State>,
        /// Only those that chose to be listed.
        #[arg(long)]
        listed: bool,
        /// Only this sector.
        #[arg(long)]
        sector: Option<String>,
        /// Only after this node.
        #[arg(long, value_name = "DID")]
        after: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show one node.
    Show {
        /// Its did:key.
        node: String,
    },
    /// Let a node in, or out of quarantine; it need not have come yet.
    Approve {
        /// Its did:key.
        node: String,
    },
    /// Refuse a node, known or not, or whoever calls from these addresses.
    Ban {
        /// A did:key, an address, or a prefix (192.0.2.0/24).
        who: String,
        /// Why; only operators see it.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Lift a ban.
    Unban {
        /// What was banned.
        who: String,
    },
    /// List bans, of addresses too.
    Bans,
    /// Drop a node's card. It may come again with a newer one: to keep it out, ban it.
    Remove {
        /// Its did:key.
        node: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Invite {
    /// Make an invite. Its text is shown this once.
    Create {
        /// Nodes that may come by it.
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// Days that it is good.
        #[arg(long, default_value_t = 7)]
        days: u64,
        /// For whom; only operators see it.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// List invites.
    List,
    /// Take an invite back. Nodes that came by it stay.
    Revoke {
        /// Its name, or the beginning of it.
        invite: String,
    },
}

pub(super) fn nodes(loaded: &Loaded, command: Nodes, json: bool) -> Result<()> {
    let ask = match command {
        Nodes::List { state, listed, sector, after, limit } => Ask::Nodes { state, listed, sector, after, limit },
        Nodes::Show { node } => Ask::Show { node },
        Nodes::Approve { node } => Ask::Approve { node },
        Nodes::Ban { who, reason } => Ask::Ban { who, reason },
        Nodes::Unban { who } => Ask::Unban { who },
        Nodes::Bans => Ask::Bans,
        Nodes::Remove { node } => Ask::Remove { node },
    };
    ask_and_print(loaded, &ask, json)
}

pub(super) fn invite(loaded: &Loaded, command: Invite, json: bool) -> Result<()> {
    let ask = match command {
        Invite::Create { uses, days, note } => Ask::Invite { uses, life_seconds: days.saturating_mul(86_400), note },
        Invite::List => Ask::Invites,
        Invite::Revoke { invite } => Ask::Revoke { invite },
    };
    ask_and_print(loaded, &ask, json)
}

pub(super) fn history(loaded: &Loaded, before: Option<u64>, limit: usize, json: bool) -> Result<()> {
    ask_and_print(loaded, &Ask::History { before, limit }, json)
}

pub(super) fn stats(loaded: &Loaded, json: bool) -> Result<()> {
    ask_and_print(loaded, &Ask::Stats, json)
}

fn ask_and_print(loaded: &Loaded, ask: &Ask, json: bool) -> Result<()> {
    print(&match client::ask(&loaded.home.socket(), ask)? {
        Answer::Nodes(list) => render::nodes(&list, json),
        Answer::Node(node) => render::node(&node, json),
        Answer::Done { what, done } => render::done(&what, &done, json),
        Answer::Bans(list) => render::bans(&list, json),
        Answer::Invited { invite, line } => render::invited(&invite, &line, json),
        Answer::Invites(list) => render::invites(&list, json),
        Answer::History(history) => render::history(&history, json),
        Answer::Stats(stats) => render::stats(&stats, json),
        _ => return Err(Error::PeerMalformed),
    })
}
