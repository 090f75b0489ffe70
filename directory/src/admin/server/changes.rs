//! What the operator changes: bans, approvals, removals, invites. Durable before it is answered and before it takes effect in
//! memory, so that what was confirmed outlives the process.

use std::net::IpAddr;

use ipnet::IpNet;
use openred_proto::admission::Invite;
use openred_proto::id::NodeId;

use super::{Answered, Server, log, node_id};
use crate::admin::{Answer, BanLine, BanList, History, InviteList, InviteView, Refusal};
use crate::limits::{INVITE_LIFE, INVITE_USES, INVITES};
use crate::store::decision::{Author, Change, InviteLine};

/// Longest reason or note that is kept.
const REMARK_BYTES: usize = 200;
/// Entries of the history on one page.
const ENTRIES: usize = 1000;
/// Shortest prefixes that can be banned, IPv4 and IPv6: a slip of the finger must not refuse everybody.
const SHORTEST_PREFIX: (u8, u8) = (8, 16);

/// Whom a ban is about.
enum Target {
    Node(NodeId),
    Prefix(IpNet),
}

impl Target {
    fn parse(text: &str) -> Result<Self, Refusal> {
        if text.starts_with("did:") {
            return node_id(text).map(Self::Node);
        }
        let address = || text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
        let prefix = text.parse::<IpNet>().or_else(|_| address()).map_err(|_| Refusal::BadTarget)?.trunc();
        let shortest = if prefix.addr().is_ipv4() { SHORTEST_PREFIX.0 } else { SHORTEST_PREFIX.1 };
        if prefix.prefix_len() < shortest { Err(Refusal::PrefixTooShort) } else { Ok(Self::Prefix(prefix)) }
    }
}

/// One line, not too long.
fn remark(mut text: String) -> String {
    text.retain(|character| !character.is_control());
    text.truncate(text.floor_char_boundary(REMARK_BYTES));
    text
}

fn done(what: impl ToString, done: &str) -> Answered {
    Ok(Answer::Done { what: what.to_string(), done: done.to_owned() })
}

impl Server {
    /// A node can be banned before it ever comes.
    pub(super) fn ban(&mut self, author: Author, who: &str, reason: String) -> Answered {
        let (reason, (nodes, prefixes)) = (remark(reason), self.directory.room_for_bans());
        let (target, change, room) = match Target::parse(who)? {
            Target::Node(node) => (Target::Node(node), Change::Ban(node, reason), nodes),
            Target::Prefix(prefix) => (Target::Prefix(prefix), Change::BanPrefix(prefix, reason), prefixes),
        };
        if room == 0 {
            return Err(Refusal::TooManyBans);
        }
        if !self.change(author, change)? {
            return Err(Refusal::AlreadyBanned);
        }
        match target {
            Target::Node(node) => {
                self.directory.ban(node);
                done(node, "banned")
            }
            Target::Prefix(prefix) => {
                self.directory.ban_prefix(prefix);
                done(prefix, "banned")
            }
        }
    }

    pub(super) fn unban(&mut self, author: Author, who: &str) -> Answered {
        let target = Target::parse(who)?;
        let change = match &target {
            Target::Node(node) => Change::Unban(*node),
            Target::Prefix(prefix) => Change::UnbanPrefix(*prefix),
        };
        if !self.change(author, change)? {
            return Err(Refusal::NotBanned);
        }
        match target {
            Target::Node(node) => {
                self.directory.unban(&node);
                done(node, "unbanned")
            }
            Target::Prefix(prefix) => {
                self.directory.unban_prefix(&prefix);
                done(prefix, "unbanned")
            }
        }
    }

    pub(super) fn bans(&mut self) -> Answered {
        let (now, bans) = (self.directory.now(), self.store.bans().map_err(log)?);
        let line = |who: String, at: u64, reason: &str| BanLine {
            who,
            for_seconds: now.0.saturating_sub(at) / 1000,
            reason: reason.to_owned(),
        };
        let prefixes = bans.prefixes.iter().map(|ban| line(ban.who.to_string(), ban.at.0, &ban.reason));
        let nodes = bans.nodes.iter().map(|ban| line(ban.who.to_string(), ban.at.0, &ban.reason));
        Ok(Answer::Bans(BanList { bans: prefixes.chain(nodes).collect() }))
    }

    /// A node can be approved before it ever comes.
    pub(super) fn approve(&mut self, author: Author, node: &str) -> Answered {
        let id = node_id(node)?;
        if !self.change(author, Change::Approve(id))? {
            return Err(Refusal::AlreadyIn);
        }
        done(id, "approved")
    }

    pub(super) fn remove(&mut self, author: Author, node: &str) -> Answered {
        let id = node_id(node)?;
        if !self.change(author, Change::Remove(id))? {
            return Err(Refusal::UnknownNode);
        }
        self.directory.mailboxes().evict(&id);
        done(id, "removed")
    }

    pub(super) fn invite(&mut self, author: Author, uses: u32, life_seconds: u64, note: String) -> Answered {
        if !(1..=INVITE_USES).contains(&uses) || !(1..=INVITE_LIFE.as_secs()).contains(&life_seconds) {
            return Err(Refusal::BadInvite);
        }
        if self.store.invites().map_err(log)?.len() >= INVITES {
            return Err(Refusal::TooManyInvites);
        }
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).map_err(|_| Refusal::Store)?;
        let invite = Invite::new(&self.directory.identity.id(), secret);
        let line = InviteLine {
            hash: invite.hash(),
            uses,
            used: 0,
            made_at: author.at.0,
            not_after: author.at.0.saturating_add(life_seconds.saturating_mul(1000)),
            revoked: false,
            note: remark(note),
        };
        let view = InviteView::new(&line, author.at);
        self.change(author, Change::Invite(line))?;
        Ok(Answer::Invited { invite: invite.to_string(), line: view })
    }

    pub(super) fn invites(&mut self) -> Answered {
        let (now, invites) = (self.directory.now(), self.store.invites().map_err(log)?);
        Ok(Answer::Invites(InviteList { invites: invites.iter().map(|invite| InviteView::new(invite, now)).collect() }))
    }

    pub(super) fn revoke(&mut self, author: Author, name: &str) -> Answered {
        let invites = self.store.invites().map_err(log)?;
        let mut named = invites.iter().filter(|invite| !name.is_empty() && invite.name().starts_with(name));
        let (Some(invite), None) = (named.next(), named.next()) else { return Err(Refusal::UnknownInvite) };
        if !self.change(author, Change::Revoke(invite.hash))? {
            return Err(Refusal::AlreadyRevoked);
        }
        done(invite.name(), "revoked")
    }

    pub(super) fn history(&mut self, before: Option<u64>, limit: usize) -> Answered {
        let limit = limit.clamp(1, ENTRIES);
        let entries = self.store.history(before, limit).map_err(log)?;
        let next = entries.last().map(|last| last.number).filter(|last| entries.len() == limit && *last > 1);
        Ok(Answer::History(History { entries, next }))
    }
}
