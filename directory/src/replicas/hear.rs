//! What a replica does with another's letter. Each word is a fact that does no harm when it is heard twice; so a letter that somebody
//! keeps and sends again changes nothing, also where its run is not known yet.

use std::time::{Duration, Instant};

use bytes::Bytes;
use openred_proto::id::UnixMillis;

use super::message::{Answer, Copied, Letter, RunId, Word};
use super::{Replicas, Run, To, have, is_timely};
use crate::limits::{BEAT_LOST, ECHO_LOST, RUNS};
use crate::route::Fresh;
use crate::state::Directory;

/// A run that was not heard of for so long is forgotten; its letters are too old by then.
const FORGOTTEN: Duration = Duration::from_secs(300);

impl Replicas {
    /// Takes a letter in that a replica sealed; what it wants to say to it.
    pub fn hear(&self, directory: &Directory, letter: Letter) -> Vec<(To, Word)> {
        let now = directory.now();
        let Letter { run, number, count, at, word } = letter;
        if run == self.run {
            self.echo(now, count, at);
            return Vec::new();
        }
        let Some(new) = self.is_next(now, run, count, at) else {
            self.refused.add();
            return Vec::new();
        };
        let to = To::One(run);
        let mut answers = Vec::new();
        let mut hello = new;
        match word {
            Word::Beat { name, hello: came } => {
                hello |= came;
                self.named(&run, name, number == self.number && at > directory.started.0 + MILLIS_LOST);
            }
            Word::Bye => self.gone(&run),
            Word::Item(copied) => answers.extend(self.copy(directory, now, *copied).map(|word| (to, word))),
            Word::Answer { ask, answer } => self.answered(&run, ask, answer),
            Word::Have(keys) => {
                let missing = directory.mailboxes().missing(&keys);
                if !missing.is_empty() {
                    answers.push((to, Word::Want(missing)));
                }
            }
            Word::Want(keys) => {
                let found = directory.mailboxes().find(&keys);
                self.serves(found.len());
                answers.extend(found.into_iter().map(|(recipient, item)| {
                    let copied = Copied {
                        recipient,
                        kind: item.kind,
                        from: item.from,
                        token_id: item.token_id,
                        payload: item.payload.into(),
                        until: item.until.0,
                        sent: false,
                        ask: None,
                    };
                    (to, Word::Item(Box::new(copied)))
                }));
            }
            Word::Done(entries) => directory.mailboxes().finish(now, &entries),
            Word::Shown(entries) => directory.mailboxes().seen(&entries),
            Word::Reads { node, at } => directory.mailboxes().read_elsewhere(&node, UnixMillis(at)),
            Word::Changed => self.changed.notify_one(),
        }
        if hello {
            answers.extend(have(&directory.mailboxes().keys()).map(|word| (to, word)));
        }
        answers
    }

    /// One of its own letters comes back: the way is open, unless somebody kept it.
    fn echo(&self, now: UnixMillis, count: u64, at: u64) {
        let mut state = self.state();
        let fresh = now.0.saturating_sub(at) <= ECHO_LOST.as_millis() as u64;
        if count > state.echoed && count <= state.count && fresh {
            state.echoed = count;
            state.echo = Some(Instant::now());
            state.last_echo = state.echo;
        }
    }

    /// Whether a letter comes in time and after all others of its run; then, whether that run is new here.
    fn is_next(&self, now: UnixMillis, id: RunId, count: u64, at: u64) -> Option<bool> {
        if !is_timely(now, at) {
            return None;
        }
        let mut state = self.state();
        if let Some(run) = state.runs.get_mut(&id) {
            let next = count > run.count;
            if next {
                (run.count, run.heard, run.lost) = (count, Instant::now(), false);
            }
            return next.then_some(false);
        }
        state.runs.retain(|_, run| run.heard.elapsed() < FORGOTTEN);
        if state.runs.len() >= RUNS {
            // A replica that ends and begins again and again leaves runs behind: of those that are not there the one that was heard of first goes.
            let gone = state.runs.iter().filter(|(_, run)| !run.is_live()).max_by_key(|(_, run)| run.heard.elapsed());
            let gone = *gone?.0;
            state.runs.remove(&gone);
        }
        let name = String::new();
        state.runs.insert(id, Run { name, count, heard: Instant::now(), lost: false });
        Some(true)
    }

    fn named(&self, run: &RunId, name: String, twin: bool) {
        let mut state = self.state();
        if let Some(run) = state.runs.get_mut(run) {
            run.name = name;
        }
        if twin {
            state.twin = Some(Instant::now());
        }
    }

    fn copy(&self, directory: &Directory, now: UnixMillis, copied: Copied) -> Option<Word> {
        let Copied { recipient, kind, from, token_id, payload, until, sent, ask } = copied;
        let fresh = Fresh { kind, from, token_id, payload: Bytes::from(payload), until: UnixMillis(until) };
        let mut mailboxes = directory.mailboxes();
        let taken = mailboxes.copy(now, recipient, fresh, sent).is_ok();
        let reads = mailboxes.is_read(&recipient);
        drop(mailboxes);
        if taken {
            self.copied.add();
        }
        ask.map(|ask| Word::Answer { ask, answer: Answer { taken, reads } })
    }
}

const MILLIS_LOST: u64 = BEAT_LOST.as_millis() as u64;
