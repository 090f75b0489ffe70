//! The rows that decide whether and how a card is taken, asked for by `rules` inside the transaction that takes it.

use openred_proto::checked::succession::Heard;
use openred_proto::id::{NodeId, UnixMillis};

use super::link::Link;
use super::{decisions, successions};
use crate::error::Result;
use crate::store::decision::InviteLine;
use crate::store::rules::{self, Plan};

impl rules::Known for Link {
    fn heard(&mut self, old: &NodeId) -> Result<Option<(Heard, bool)>> {
        successions::heard(self, old)
    }

    fn line_of(&mut self, node: &NodeId) -> Result<Vec<NodeId>> {
        successions::line_of(self, node)
    }

    fn is_admitted(&mut self, node: &NodeId) -> Result<bool> {
        decisions::is_admitted(self, node)
    }

    fn is_banned(&mut self, node: &NodeId) -> Result<bool> {
        decisions::is_banned(self, node)
    }

    fn is_here(&mut self, node: &NodeId) -> Result<bool> {
        decisions::is_here(self, node)
    }

    fn invite(&mut self, hash: &[u8; 32]) -> Result<Option<InviteLine>> {
        decisions::invite(self, hash)
    }

    fn use_invite(&mut self, now: UnixMillis, node: &NodeId, hash: &[u8; 32]) -> Result<()> {
        decisions::use_invite(self, now, node, hash)
    }

    fn keep(&mut self, plan: &Plan) -> Result<u64> {
        successions::keep(self, plan)
    }
}
