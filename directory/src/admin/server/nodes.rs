//! Nodes as the operator sees them.

use std::collections::HashMap;

use openred_proto::id::{NodeId, UnixMillis};

use super::{Answered, Server, log, node_id};
use crate::admin::{Answer, NodeLine, NodeList, Refusal, State};
use crate::store::{Held, Query};

/// Nodes on one page.
const LIST: usize = 1000;

impl Server {
    pub(super) fn nodes(
        &mut self,
        state: Option<State>,
        listed: bool,
        sector: Option<String>,
        after: Option<&str>,
        limit: usize,
    ) -> Answered {
        let bans = self.banned()?;
        let after = after.map(node_id).transpose()?;
        let limit = limit.clamp(1, LIST);
        let now = self.directory.now();
        if state == Some(State::Banned) {
            let mut ids: Vec<NodeId> =
                bans.keys().copied().filter(|id| after.is_none_or(|after| *id > after)).collect();
            ids.sort_unstable();
            let next = ids.get(limit - 1).filter(|_| ids.len() > limit).map(ToString::to_string);
            ids.truncate(limit);
            let mut line = |id: &NodeId| {
                let held = self.held(id)?;
                Ok(self.line(now, *id, held.as_ref(), bans.get(id)))
            };
            let nodes = ids.iter().map(&mut line).collect::<std::result::Result<_, Refusal>>()?;
            return Ok(Answer::Nodes(NodeList { nodes, next }));
        }
        let lease_began = now.minus(self.directory.lease);
        let query = Query {
            wants_listing: listed,
            quarantined_only: state == Some(State::Quarantined),
            seen_since: (state == Some(State::Fresh)).then_some(lease_began),
            seen_before: (state == Some(State::Away)).then_some(lease_began),
            sector,
            after,
            limit,
            ..Query::default()
        };
        let page = self.store.page(&query).map_err(log)?;
        let nodes = page.held.iter().map(|held| self.line(now, held.node, Some(held), bans.get(&held.node))).collect();
        Ok(Answer::Nodes(NodeList { nodes, next: page.next.map(|next| next.to_string()) }))
    }

    pub(super) fn show(&mut self, node: &str) -> Answered {
        let id = node_id(node)?;
        let (held, bans) = (self.held(&id)?, self.banned()?);
        if held.is_none() && !bans.contains_key(&id) {
            return Err(Refusal::UnknownNode);
        }
        let line = self.line(self.directory.now(), id, held.as_ref(), bans.get(&id));
        Ok(Answer::Node(Box::new(line)))
    }

    /// Banned nodes, with the reasons.
    fn banned(&mut self) -> std::result::Result<HashMap<NodeId, String>, Refusal> {
        let bans = self.store.bans().map_err(log)?;
        Ok(bans.nodes.into_iter().map(|ban| (ban.who, ban.reason)).collect())
    }

    fn line(&self, now: UnixMillis, id: NodeId, held: Option<&Held>, ban: Option<&String>) -> NodeLine {
        let lease = self.directory.lease;
        let state = match held {
            _ if ban.is_some() => "banned",
            Some(held) if held.expires_at <= now => "ended",
            Some(held) if held.quarantined => "quarantined",
            Some(held) if held.last_seen.plus(lease) < now => "away",
            Some(_) => "fresh",
            None => "unknown",
        };
        let seconds = |from: UnixMillis, to: UnixMillis| to.0.saturating_sub(from.0) / 1000;
        NodeLine {
            node: id.to_string(),
            state: state.to_owned(),
            listed: held.is_some_and(|held| held.listed),
            sector: held.map(|held| held.sector.clone()).unwrap_or_default(),
            sequence: held.map_or(0, |held| held.sequence),
            seen_seconds_ago: held.map(|held| seconds(held.last_seen, now)),
            known_for_seconds: held.map(|held| seconds(held.first_seen, now)),
            ends_in_seconds: held.map(|held| seconds(now, held.expires_at)),
            evidence: held.map_or(0, |held| held.evidence),
            ban_reason: ban.cloned(),
        }
    }
}
