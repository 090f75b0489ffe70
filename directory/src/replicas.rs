//! Directories of one identity on one database (docs/directory.md, «Scale out»; decision 0058): what waits at one waits at all, so that a
//! node may come to any of them. Cards, bans and nonces are in the database; offers and receipts are in memory alone, and go from one to
//! another over core NATS, which keeps nothing.
//!
//! An item is taken once every other replica that is there has it, or has had its time; whoever takes it asks them. A word that is lost is
//! made good when what waits is compared: when a replica comes, and now and then. [`message`] says what is told, [`seal`] keeps it from
//! others, [`nats`] and [`link`] carry it, [`hear`] takes it in, [`leave`] comes at the end.

mod hear;
mod leave;
pub mod link;
pub mod message;
pub mod nats;
pub mod seal;
pub mod target;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openred_proto::id::{NodeId, UnixMillis};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::error::{Error, Result};
use crate::limits::{ANSWER_TIME, BEAT_LOST, CUT_STREAMS, ECHO_LOST, LETTERS};
use crate::metrics::Counter;
use crate::route::{Fresh, Key, Refused, key_of};
use crate::state::Directory;
use message::{Answer, Copied, RunId, Word};
use seal::Keys;

/// Whom a word is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Every replica.
    All,
    /// One run of one.
    One(RunId),
}

/// Words on their way out.
pub type Outbox = mpsc::Receiver<(To, Word)>;

/// This replica among the others.
pub struct Replicas {
    /// Its name in the settings.
    pub name: String,
    /// Its number in the database: the last bits of the ids that it gives.
    pub number: u16,
    pub(crate) run: RunId,
    pub(crate) keys: Keys,
    outbox: mpsc::Sender<(To, Word)>,
    state: Mutex<State>,
    asks: AtomicU64,
    /// The mailboxes have news for the others.
    pub(crate) news: Arc<Notify>,
    /// Another has changed something in the database.
    pub(crate) changed: Notify,
    moved: watch::Sender<u64>,
    /// Items that came from others.
    pub copied: Counter,
    /// Letters that no replica sealed, or that are too old or out of order.
    pub refused: Counter,
}

impl std::fmt::Debug for Replicas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replicas({} {})", self.name, self.number)
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) runs: HashMap<RunId, Run>,
    waiting: HashMap<u64, Waiting>,
    /// Letters that this run has sealed.
    pub(crate) count: u64,
    /// The last of its own letters that came back, and when; the time goes with the connection.
    pub(crate) echoed: u64,
    pub(crate) echo: Option<Instant>,
    pub(crate) last_echo: Option<Instant>,
    /// The streams that stood when it was cut off were ended.
    moved: bool,
    /// Another run with this one's number was heard of.
    pub(crate) twin: Option<Instant>,
    /// Items that others asked for, whether some of them are on their way, and when the last were.
    pub(crate) handed: u64,
    pub(crate) serving: bool,
    pub(crate) served: Option<Instant>,
}

/// Another run, of another replica or of this one.
pub(crate) struct Run {
    pub(crate) name: String,
    /// The last of its letters.
    pub(crate) count: u64,
    pub(crate) heard: Instant,
    /// It did not answer, or said that it goes.
    pub(crate) lost: bool,
}

impl Run {
    pub(crate) fn is_live(&self) -> bool {
        !self.lost && self.heard.elapsed() <= BEAT_LOST
    }
}

/// A question that not all have answered.
struct Waiting {
    open: HashSet<RunId>,
    heard: Heard,
    tell: oneshot::Sender<Heard>,
}

/// What became of an item at the other replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Heard {
    asked: usize,
    taken: usize,
    full: usize,
    /// It waits where its recipient reads.
    read: bool,
    /// Its recipient reads where it has no room.
    full_where_read: bool,
}

/// Why an item was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// No room.
    Full(Refused),
    /// The recipient does not read here, and the others do not hear this replica.
    CutOff,
}

/// How this replica is among the others, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its name.
    pub name: String,
    /// Whether it hears itself over NATS.
    pub connected: bool,
    /// The others that are there.
    pub others: Vec<Other>,
}

/// Another replica that is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Other {
    /// Its name.
    pub name: String,
    /// Seconds since it was heard of.
    pub heard_seconds_ago: u64,
}

impl Heard {
    /// Whether an item may be said to wait for its recipient.
    fn judge(self, read_here: bool) -> std::result::Result<(), NotTaken> {
        match self {
            _ if read_here => Ok(()),
            Heard { read: true, .. } | Heard { asked: 0, .. } => Ok(()),
            Heard { full_where_read: true, .. } => Err(NotTaken::Full(Refused::MailboxFull)),
            Heard { taken: 1.., .. } => Ok(()),
            Heard { full: 1.., .. } => Err(NotTaken::Full(Refused::MailboxFull)),
            _ => Err(NotTaken::CutOff),
        }
    }
}

impl Replicas {
    /// This replica, and the words that it wants to say.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new(name: &str, number: u16, keys: Keys) -> Result<(Arc<Self>, Outbox)> {
        let (outbox, words) = mpsc::channel(LETTERS);
        let mut run = [0; 16];
        getrandom::fill(&mut run).map_err(|_| Error::LocalRuntime(std::io::ErrorKind::Unsupported.into()))?;
        let replicas = Self {
            name: name.to_owned(),
            number,
            run,
            keys,
            outbox,
            state: Mutex::default(),
            asks: AtomicU64::new(0),
            news: Arc::default(),
            changed: Notify::new(),
            moved: watch::Sender::new(0),
            copied: Counter::default(),
            refused: Counter::default(),
        };
        Ok((Arc::new(replicas), words))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something to the others. What there is no room for is not said: they compare what waits, and look for changes by themselves.
    pub(crate) fn say(&self, to: To, word: Word) -> bool {
        self.outbox.try_send((to, word)).is_ok()
    }

    /// Whether what it says is heard: its own words come back.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state().echo.is_some_and(|echo| echo.elapsed() <= ECHO_LOST)
    }

    /// Whether another running replica has this one's name.
    #[must_use]
    pub fn has_twin(&self) -> bool {
        self.state().twin.is_some_and(|twin| twin.elapsed() <= BEAT_LOST)
    }

    /// How it is, for operators.
    #[must_use]
    pub fn view(&self) -> View {
        let connected = self.is_up();
        let state = self.state();
        let live = state.runs.values().filter(|run| run.is_live());
        let other = |run: &Run| Other { name: run.name.clone(), heard_seconds_ago: run.heard.elapsed().as_secs() };
        let mut others: Vec<_> = live.map(other).collect();
        others.sort();
        View { name: self.name.clone(), connected, others }
    }

    /// The connection is gone.
    pub(crate) fn cut(&self) {
        self.state().echo = None;
    }

    /// Follows when streams are to end because this replica has been cut off.
    pub(crate) fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Ends the streams that stood when this replica was cut off, once it has been so for long.
    pub(crate) fn end_streams_if_cut(&self) {
        let up = self.is_up();
        let mut state = self.state();
        let long = state.last_echo.is_some_and(|echo| echo.elapsed() > CUT_STREAMS);
        let now = !up && long && !state.moved;
        state.moved = !up && (state.moved || now);
        drop(state);
        if now {
            tracing::warn!(
                "cut off from the other replicas: open streams are ended, so that their nodes may go to another"
            );
            self.moved.send_modify(|times| *times += 1);
        }
    }

    /// Takes an item for all replicas.
    pub(crate) async fn deposit(
        &self,
        directory: &Directory,
        now: UnixMillis,
        recipient: NodeId,
        fresh: Fresh,
    ) -> std::result::Result<(), NotTaken> {
        let Fresh { kind, from, token_id, payload, until } = fresh;
        let key = key_of(&recipient, kind, &from, &token_id);
        let (read_here, held) = {
            let mut mailboxes = directory.mailboxes();
            let read_here = mailboxes.is_read(&recipient);
            if !read_here && !self.is_up() {
                return Err(NotTaken::CutOff);
            }
            let held = mailboxes.holds(&recipient, &key);
            mailboxes.deposit(now, recipient, kind, from, token_id, payload.clone()).map_err(NotTaken::Full)?;
            (read_here, held)
        };
        if !self.is_up() {
            return Ok(());
        }
        let (payload, until) = (Bytes::into(payload), until.0);
        let copied = Copied { recipient, kind, from, token_id, payload, until, sent: true, ask: None };
        let heard = self.ask(copied).await;
        let judged = heard.judge(read_here || directory.mailboxes().is_read(&recipient));
        if judged.is_err() && !held {
            // Where another has it and could not say so it may still be delivered: it is the same offer when it is sent again.
            directory.mailboxes().take_back(&recipient, &key);
        }
        judged
    }

    /// Sends an item to all and waits for what becomes of it there.
    async fn ask(&self, mut copied: Copied) -> Heard {
        let number = self.asks.fetch_add(1, Ordering::Relaxed);
        let (tell, answered) = oneshot::channel();
        let open: HashSet<RunId> = {
            let mut state = self.state();
            let open: HashSet<_> = state.runs.iter().filter(|(_, run)| run.is_live()).map(|(id, _)| *id).collect();
            if !open.is_empty() {
                copied.ask = Some(number);
                let heard = Heard { asked: open.len(), ..Heard::default() };
                state.waiting.insert(number, Waiting { open: open.clone(), heard, tell });
            }
            open
        };
        // Removed whatever ends the wait, also a caller who goes away.
        let _question = Question { replicas: self, number };
        let asked = copied.ask.is_some();
        if !self.say(To::All, Word::Item(Box::new(copied))) {
            return Heard { asked: open.len().max(1), ..Heard::default() };
        }
        if !asked {
            return Heard::default();
        }
        if let Ok(Ok(heard)) = tokio::time::timeout(ANSWER_TIME, answered).await {
            return heard;
        }
        let mut state = self.state();
        let Some(waiting) = state.waiting.remove(&number) else { return Heard::default() };
        // Not waited for again until it is heard of.
        for run in &waiting.open {
            if let Some(run) = state.runs.get_mut(run) {
                run.lost = true;
            }
        }
        if waiting.heard.taken + waiting.heard.full == 0 {
            // Either all of them have ended or this one is cut off: its next beat tells.
            state.echo = None;
        }
        waiting.heard
    }

    /// A replica has answered a question.
    pub(crate) fn answered(&self, run: &RunId, number: u64, answer: Answer) {
        let mut state = self.state();
        let Some(waiting) = state.waiting.get_mut(&number) else { return };
        if !waiting.open.remove(run) {
            return;
        }
        let heard = &mut waiting.heard;
        heard.taken += usize::from(answer.taken);
        heard.full += usize::from(!answer.taken);
        heard.read |= answer.taken && answer.reads;
        heard.full_where_read |= !answer.taken && answer.reads;
        // Where it is read is known at once; the others have their copy by the same letter.
        if (waiting.open.is_empty() || heard.read)
            && let Some(waiting) = state.waiting.remove(&number)
        {
            // A caller that went away needs no answer.
            let _ = waiting.tell.send(waiting.heard);
        }
    }

    /// A run goes: nobody waits for it.
    pub(crate) fn gone(&self, run: &RunId) {
        let mut state = self.state();
        if let Some(run) = state.runs.get_mut(run) {
            run.lost = true;
        }
    }
}

/// A question while somebody waits for its answers.
struct Question<'a> {
    replicas: &'a Replicas,
    number: u64,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.replicas.state().waiting.remove(&self.number);
    }
}

/// What waits at all replicas, in letters.
pub(crate) fn have(keys: &[Key]) -> impl Iterator<Item = Word> {
    keys.chunks(crate::limits::LETTER_ENTRIES).map(|keys| Word::Have(keys.to_vec()))
}

/// How old a letter may be, in either direction.
pub(crate) fn is_timely(now: UnixMillis, at: u64) -> bool {
    Duration::from_millis(now.0.abs_diff(at)) <= crate::limits::LETTER_AGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_waits_where_its_recipient_can_have_it_or_is_refused_by_name() {
        let heard = |asked, taken, full, read, full_where_read| Heard { asked, taken, full, read, full_where_read };
        let full = Err(NotTaken::Full(Refused::MailboxFull));
        for (heard, expected) in [
            (heard(0, 0, 0, false, false), Ok(())),
            (heard(2, 2, 0, false, false), Ok(())),
            (heard(2, 1, 0, false, false), Ok(())),
            (heard(2, 1, 1, false, false), Ok(())),
            (heard(2, 1, 1, true, false), Ok(())),
            (heard(2, 1, 1, false, true), full),
            (heard(2, 0, 1, false, false), full),
            (heard(2, 0, 0, false, false), Err(NotTaken::CutOff)),
        ] {
            assert_eq!(heard.judge(false), expected, "{heard:?}");
            assert_eq!(heard.judge(true), Ok(()), "{heard:?}");
        }
    }
}
