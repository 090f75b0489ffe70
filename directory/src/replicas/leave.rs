//! How a replica goes: what waits here is told to the others, and what they ask for is sent, before it says goodbye. An offer that came while
//! they were not heard, or had no room, is here alone.

use std::time::{Duration, Instant};

use super::{Replicas, To, have};
use crate::limits::{HAND_OVER_MOST, HAND_OVER_QUIET};
use crate::replicas::message::Word;
use crate::state::Directory;

/// So often it is looked whether somebody still asks.
const LOOK: Duration = Duration::from_millis(20);

impl Replicas {
    /// Tells the other replicas what waits here, and stays for as long as they ask for what they have not, and no longer than it may take.
    pub(crate) async fn hand_over(&self, directory: &Directory) {
        let keys = directory.mailboxes().keys();
        if keys.is_empty() {
            return;
        }
        let (begun, before) = (Instant::now(), self.state().handed);
        let mut done = false;
        if have(&keys).all(|word| self.say(To::All, word)) {
            while !done && self.is_up() && begun.elapsed() < HAND_OVER_MOST {
                tokio::time::sleep(LOOK).await;
                done = self.is_quiet(begun);
            }
        }
        let (waiting, handed) = (keys.len(), self.state().handed - before);
        let others = self.state().runs.values().filter(|run| run.is_live()).count();
        if others == 0 {
            tracing::warn!(waiting, "no other replica is there: what waits here is lost");
        } else if done {
            tracing::info!(waiting, handed, "handed over what other replicas had not");
        } else {
            tracing::warn!(
                waiting,
                handed,
                "ends before other replicas had all that waits here: what they have not is lost"
            );
        }
    }

    /// Whether all that was said has gone through NATS and nobody has asked for anything for a while.
    fn is_quiet(&self, begun: Instant) -> bool {
        let state = self.state();
        let last = state.served.map_or(begun, |served| served.max(begun));
        let all_said = self.outbox.capacity() == self.outbox.max_capacity() && state.echoed >= state.count;
        all_said && !state.serving && last.elapsed() >= HAND_OVER_QUIET
    }

    /// Another asks for so many items that are here: they are on their way until [`Replicas::served`].
    pub(crate) fn serves(&self, items: usize) {
        let mut state = self.state();
        state.handed += items as u64;
        state.serving = true;
    }

    /// What was to be said has been written.
    pub(crate) fn served(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.serving) {
            state.served = Some(Instant::now());
        }
    }

    /// Says goodbye; false where nobody would hear it.
    pub(crate) fn goodbye(&self) -> bool {
        self.say(To::All, Word::Bye)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use bytes::Bytes;
    use openred_proto::id::{NodeId, UnixMillis};

    use super::*;
    use crate::config::Config;
    use crate::identity::Identity;
    use crate::replicas::message::Letter;
    use crate::replicas::seal::Keys;
    use crate::route::Kind;
    use crate::state::Remembered;
    use crate::store::decision::Bans;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{PreviousRun, StoreHandle};

    const NOW: UnixMillis = UnixMillis(1_000_000);

    /// A directory with an offer in it.
    fn directory(folder: &std::path::Path) -> Arc<Directory> {
        let path = folder.join("db");
        let store = SqliteStore::open(&path, 64).unwrap();
        let store = StoreHandle::start(store, [SqliteStore::open_reader(&path).unwrap()]).unwrap();
        let remembered = Remembered { bans: Bans::default(), before: PreviousRun::Never };
        let (identity, clock) = (Identity::from_seed(&[1; 32]), Arc::new(|| NOW));
        let directory = Directory::new(&Config::default(), identity, "http://x".into(), store, remembered, clock);
        let [from, to] = [2, 3].map(|number| NodeId::from_bytes([number; 32]));
        directory.mailboxes().deposit(NOW, to, Kind::Offer, from, [4; 32], Bytes::from_static(b"offer")).unwrap();
        directory
    }

    #[tokio::test]
    async fn who_asks_for_what_waits_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let directory = directory(folder.path());
        let (replicas, mut words) = Replicas::new("a", 1, Keys::derive(&[1; 32])).unwrap();
        // It is heard, however long the test takes.
        replicas.state().echo = Some(Instant::now() + Duration::from_secs(600));
        let letter = |count, word| Letter { run: [9; 16], number: 2, count, at: NOW.0, word };
        let another = async {
            let Some((To::All, Word::Have(keys))) = words.recv().await else { panic!("it does not tell what waits") };
            // Said, and not yet through NATS.
            replicas.state().count = 1;
            tokio::time::sleep(2 * HAND_OVER_QUIET).await;
            replicas.state().echoed = 1;
            let answers = replicas.hear(&directory, letter(1, Word::Want(keys.clone())));
            assert!(answers.iter().any(|(_, word)| matches!(word, Word::Item(_))), "{answers:?}");
            // On its way, and then asked for once more.
            tokio::time::sleep(2 * HAND_OVER_QUIET).await;
            replicas.hear(&directory, letter(2, Word::Want(keys)));
            replicas.served();
        };
        let mut goes = std::pin::pin!(replicas.hand_over(&directory));
        tokio::select! {
            biased;
            () = goes.as_mut() => panic!("it went before it had answered"),
            () = another => {}
        }
        goes.await;
        assert_eq!(replicas.state().handed, 2);
    }

    #[tokio::test]
    async fn nobody_is_waited_for_who_cannot_hear() {
        let folder = tempfile::tempdir().unwrap();
        let directory = directory(folder.path());
        let (replicas, _words) = Replicas::new("a", 1, Keys::derive(&[1; 32])).unwrap();
        replicas.hand_over(&directory).await;
        assert_eq!(replicas.state().handed, 0);
    }
}
