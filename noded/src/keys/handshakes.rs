//! The phases of handshakes over one stream to the front, which stays open: a call is a message with a number, and what comes back with that
//! number is its answer. Opened with the first call, and again by the next one whenever it has ended.
//!
//! In: phases. Out: their outcomes, or why there is none. A call that nobody waits for any more leaves nothing here; what the key process
//! does for it is done, as of any call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openred_proto::cryptod as wire;
use openred_proto::cryptod::cryptod_client::CryptodClient as Generated;
use openred_proto::cryptod::handshake_answer::Outcome;
use openred_proto::cryptod::handshake_call::Phase;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::{DEADLINE, KeysError, failure, present, refusal};

/// Calls that wait for the connection to take them; further ones wait before it.
const UNSENT: usize = 64;

/// The stream, if there is one.
#[derive(Clone, Debug)]
pub(super) struct Handshakes {
    client: Generated<Channel>,
    line: Arc<Mutex<Option<Line>>>,
}

/// One stream.
#[derive(Clone, Debug)]
struct Line {
    calls: mpsc::Sender<wire::HandshakeCall>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Who waits for an answer, by number: one entry a caller that still waits.
#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    callers: HashMap<u64, oneshot::Sender<Option<Outcome>>>,
    ended: Option<Ended>,
}

/// How a stream came to its end.
#[derive(Clone, Copy, Debug)]
struct Ended {
    why: KeysError,
    /// It never came about: no call on it was heard, as far as can be known. What was heard all the same is a phase that the key
    /// process has been through, and refuses.
    unheard: bool,
}

impl Ended {
    /// Of a call that was not sent.
    const UNHEARD: Self = Self { why: KeysError::Away, unheard: true };
    /// Of a call that may have been heard.
    const HEARD: Self = Self { why: KeysError::Away, unheard: false };
}

/// A call's entry, which goes with the one who waits.
struct Place {
    number: u64,
    waiting: Arc<Mutex<Waiting>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.waiting).callers.remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handshakes {
    pub(super) fn new(client: Generated<Channel>) -> Self {
        Self { client, line: Arc::default() }
    }

    /// Has the key process go through a phase. Calls are sent in the order in which they were made.
    pub(super) async fn ask(&self, phase: Phase) -> Result<Outcome, KeysError> {
        let outcome = tokio::time::timeout(DEADLINE, self.converse(phase)).await.unwrap_or(Err(KeysError::Slow));
        match outcome? {
            Outcome::Refused(wire::CallRefused { code, refusal: refused }) => {
                let refused = Some(refused.as_str()).filter(|refused| !refused.is_empty());
                Err(refusal(refused, Code::from_i32(code.cast_signed())))
            }
            outcome => Ok(outcome),
        }
    }

    /// A call that nobody heard is made once more: after the front was restarted, the connection finds out by a call that it is broken.
    async fn converse(&self, phase: Phase) -> Result<Outcome, KeysError> {
        let again = phase.clone();
        match self.line().call(phase).await {
            Ok(outcome) => outcome,
            Err(Ended { unheard: false, why }) => Err(why),
            Err(_) => self.line().call(again).await.unwrap_or_else(|ended| Err(ended.why)),
        }
    }

    /// Calls that wait for an answer.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        lock(&self.line).as_ref().map_or(0, |line| lock(&line.waiting).callers.len())
    }

    /// The open stream, or a new one.
    fn line(&self) -> Line {
        let mut current = lock(&self.line);
        match current.as_ref().filter(|line| line.is_open()) {
            Some(line) => line.clone(),
            None => current.insert(Line::open(self.client.clone())).clone(),
        }
    }
}

impl Line {
    fn open(mut client: Generated<Channel>) -> Self {
        let (calls, unsent) = mpsc::channel(UNSENT);
        let waiting = Arc::<Mutex<Waiting>>::default();
        let callers = Arc::clone(&waiting);
        tokio::spawn(async move {
            let ended = match client.handshakes(ReceiverStream::new(unsent)).await {
                Ok(answers) => Ended { why: hand_out(answers.into_inner(), &callers).await, unheard: false },
                Err(status) => Ended { why: failure(&status), unheard: true },
            };
            let mut waiting = lock(&callers);
            waiting.ended = Some(ended);
            // With that, every one of them has its answer.
            waiting.callers.clear();
        });
        Self { calls, waiting }
    }

    fn is_open(&self) -> bool {
        !self.calls.is_closed() && lock(&self.waiting).ended.is_none()
    }

    async fn call(&self, phase: Phase) -> Result<Result<Outcome, KeysError>, Ended> {
        let (caller, answered) = oneshot::channel();
        let place = self.place(caller)?;
        let call = wire::HandshakeCall { number: place.number, phase: Some(phase) };
        self.calls.send(call).await.map_err(|_| Ended::UNHEARD)?;
        match answered.await {
            Ok(outcome) => Ok(present("handshake answer", outcome).map_err(KeysError::from)),
            Err(_) => Err(lock(&self.waiting).ended.unwrap_or(Ended::HEARD)),
        }
    }

    fn place(&self, caller: oneshot::Sender<Option<Outcome>>) -> Result<Place, Ended> {
        let mut waiting = lock(&self.waiting);
        if waiting.ended.is_some() {
            return Err(Ended::UNHEARD);
        }
        waiting.last += 1;
        let number = waiting.last;
        waiting.callers.insert(number, caller);
        Ok(Place { number, waiting: Arc::clone(&self.waiting) })
    }
}

/// Hands out answers as they come; returns why no more will.
async fn hand_out(mut answers: Streaming<wire::HandshakeAnswer>, callers: &Mutex<Waiting>) -> KeysError {
    loop {
        let answer = match answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return KeysError::Away,
            Err(status) => return failure(&status),
        };
        // Nobody waits for one whose caller has left.
        if let Some(caller) = lock(callers).callers.remove(&answer.number) {
            let _ = caller.send(answer.outcome);
        }
    }
}
