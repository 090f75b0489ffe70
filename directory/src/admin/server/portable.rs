//! Everything that can be taken elsewhere, out and in. What comes in is believed no more than what a caller of the API sends: a card
//! counts by its signature and the sequence rules, whatever file it stood in.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openred_proto::checked::card::Card;
use openred_proto::error::WireError;
use openred_proto::id::UnixMillis;

use super::{Answered, Server, log};
use crate::admin::{Answer, Imported, Refusal};
use crate::config::Mode;
use crate::error::Result;
use crate::limits::{INVITE_USES, RECORDS};
use crate::store::decision::{Author, Change, Kept};
use crate::store::{CardStore, NewCard, Registration, Terms};

/// A record that was looked at.
enum Checked {
    Card { card: NewCard, last_seen: UnixMillis, quarantined: bool },
    Other(Kept),
    Ended,
    Refused(String),
}

impl Server {
    pub(super) fn export(&mut self, after: Option<&Kept>) -> Answered {
        Ok(Answer::Exported { records: self.store.kept(after, RECORDS).map_err(log)? })
    }

    /// Written down before anything is changed.
    pub(super) fn import_begins(&mut self, author: Author, records: u64) -> Answered {
        self.change(author, Change::Import(records))?;
        Ok(Answer::Done { what: format!("{records} records"), done: "begun".into() })
    }

    pub(super) fn import(&mut self, records: Vec<Kept>) -> Answered {
        if records.len() > RECORDS {
            return Err(Refusal::Malformed);
        }
        let (now, most) = (self.directory.now(), self.directory.nodes);
        let mut checked: Vec<Checked> = records.into_iter().map(|record| check(record, now)).collect();
        self.refuse_bans_without_room(&mut checked);
        let imported = self.directory.store.urgently(move |store| {
            let mut imported = Imported::default();
            for (place, record) in (0..).zip(checked) {
                take(store, now, most, record, place, &mut imported)?;
            }
            Ok(imported)
        });
        let imported = imported.map_err(log)?;
        // Bans take effect in memory: the few that there are once more.
        let bans = self.store.bans().map_err(log)?;
        bans.prefixes.iter().for_each(|ban| self.directory.ban_prefix(ban.who));
        bans.nodes.iter().filter(|ban| !self.directory.is_banned(&ban.who)).for_each(|ban| self.directory.ban(ban.who));
        Ok(Answer::Imported(imported))
    }
}

impl Server {
    /// As many bans as an operator can set, and no more: each is held in memory. One that is here already takes no room.
    fn refuse_bans_without_room(&self, records: &mut [Checked]) {
        let (mut nodes, mut prefixes) = self.directory.room_for_bans();
        for record in records {
            let (known, room) = match record {
                Checked::Other(Kept::Ban { node, .. }) => {
                    (node.parse().is_ok_and(|node| self.directory.is_banned(&node)), &mut nodes)
                }
                Checked::Other(Kept::BanPrefix { prefix, .. }) => {
                    (self.directory.is_banned_prefix(prefix), &mut prefixes)
                }
                _ => continue,
            };
            if known {
                continue;
            }
            match room.checked_sub(1) {
                Some(left) => *room = left,
                None => *record = Checked::Refused(Refusal::TooManyBans.to_string()),
            }
        }
    }
}

fn check(record: Kept, now: UnixMillis) -> Checked {
    match record {
        Kept::Card { node, card, last_seen, quarantined } => {
            let Ok(bytes) = STANDARD.decode(card) else { return Checked::Refused("its card is not base64".into()) };
            match Card::verify(&bytes, now) {
                Err(WireError::OutOfTime { early: false, .. }) => Checked::Ended,
                Err(error) => Checked::Refused(error.to_string()),
                Ok(card) if card.node_id.to_string() != node => Checked::Refused("its card is another node's".into()),
                Ok(card) => {
                    let last_seen = UnixMillis(last_seen.min(now.0));
                    Checked::Card { card: NewCard::new(&card, bytes), last_seen, quarantined }
                }
            }
        }
        Kept::Ban { ref node, .. } | Kept::Admitted { ref node, .. } if super::node_id(node).is_err() => {
            Checked::Refused("its node is no did:key".into())
        }
        Kept::Invite(ref invite) if !(1..=INVITE_USES).contains(&invite.uses) => {
            Checked::Refused("an invite is for 1 to 100,000 nodes".into())
        }
        other => Checked::Other(other),
    }
}

fn take(
    store: &mut dyn CardStore,
    now: UnixMillis,
    most: u64,
    record: Checked,
    place: u64,
    imported: &mut Imported,
) -> Result<()> {
    match record {
        Checked::Ended => imported.ended += 1,
        Checked::Refused(why) => imported.refused.push((place, why)),
        Checked::Other(kept) => match store.restore(&kept)? {
            true => imported.taken += 1,
            false => imported.known += 1,
        },
        Checked::Card { card, last_seen, quarantined } => {
            if store.node(&card.node)?.is_some_and(|held| held.sequence >= card.sequence) {
                imported.known += 1;
                return Ok(());
            }
            let mode = if quarantined { Mode::Approval } else { Mode::Open };
            match store.register(last_seen.min(now), &card, &Terms { mode, ..Terms::open(most) })? {
                Registration::Stored | Registration::Refreshed | Registration::Quarantined => imported.taken += 1,
                Registration::Rollback => imported.known += 1,
                other => imported.refused.push((place, format!("{other:?}"))),
            }
        }
    }
    Ok(())
}
