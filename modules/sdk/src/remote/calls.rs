//! The calls that run in one attachment, and the judgement of every frame that the module sends. A table: it waits for nothing, and
//! knows no time but the rounds of its pings.

use std::collections::HashMap;
use std::sync::Arc;

use openred_proto::module as wire;
use openred_proto::module::ModuleFrame;
use openred_proto::module::module_frame::Kind as FromModule;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::fault::Fault;
use crate::body::{Body, BodyError};
use crate::hook::Verdict;
use crate::message::Response;
use crate::wire::convert;
use crate::wire::flow::{Budget, Inbox, Reading, ended};
use crate::wire::hooks::{May, to_verdict};
use crate::wire::{CALLS, DETAIL_BYTES, NAME_BYTES};

/// Rounds of pings in which a cancelled call must have ended.
const ROUNDS: u32 = 2;

/// Answers to what was asked beside calls.
pub(super) type Answer = Result<(), (String, String)>;

/// A call that was made, as its caller waits for it.
pub(super) struct Made {
    pub(super) call: u64,
    pub(super) budget: Arc<Budget>,
    pub(super) reply: oneshot::Receiver<Option<Response>>,
}

struct Running {
    waits: Waits,
    /// The modules that wait for it, and until when.
    origin: Origin,
    budget: Arc<Budget>,
    inbox: Arc<Inbox>,
    /// Rounds since it was cancelled.
    cancelled: Option<u32>,
    sender: Option<AbortHandle>,
}

impl Running {
    fn stop(&self) {
        if let Some(sender) = &self.sender {
            sender.abort();
        }
    }
}

/// A hook's answer, or the code of the failure that the module admits.
pub(super) type Decided = Result<Verdict, String>;

/// An answer and who waits for it.
pub(super) enum Delivery {
    Response(oneshot::Sender<Option<Response>>, Response),
    Verdict(oneshot::Sender<Decided>, Decided),
}

impl Delivery {
    pub(super) fn hand_on(self) {
        // A caller that has gone drops it, and the body's end says so.
        match self {
            Self::Response(waits, response) => drop(waits.send(Some(response))),
            Self::Verdict(waits, decided) => drop(waits.send(decided)),
        }
    }
}

/// The modules that wait for each other up to a call, and when the first of those that wait stops.
type Origin = (Vec<String>, Option<u64>);

enum Waits {
    /// A call for its head, with the credit's way back for its body.
    Head(oneshot::Sender<Option<Response>>, Arc<dyn Reading>),
    /// A call for the rest of its body.
    Rest,
    /// An event for its end.
    Event(oneshot::Sender<Option<Response>>),
    /// A hook for its verdict, and what that may be.
    Verdict(oneshot::Sender<Decided>, May),
}

/// The table.
#[derive(Default)]
pub(super) struct Calls {
    running: HashMap<u64, Running>,
    last: u64,
    /// What the module was asked to do and has not answered: it is asked one thing at a time.
    asked: Option<oneshot::Sender<Answer>>,
    /// The ping that it has not answered.
    pinged: Option<u64>,
    pings: u64,
    /// That ping went out beside the rounds, since the last one.
    beside: bool,
    /// Who waits for the module to answer a ping.
    ponged: Vec<oneshot::Sender<()>>,
    drained: Option<oneshot::Sender<()>>,
    /// Whether the module may answer with ranges of its blobs.
    ranges: bool,
}

impl Calls {
    /// One for a module that may answer with ranges of its blobs, or not.
    pub(super) fn with_ranges(ranges: bool) -> Self {
        Self { ranges, ..Self::default() }
    }

    /// Takes a place; none while as many calls run as the contract allows.
    pub(super) fn begin(&mut self, reading: impl FnOnce(u64) -> Arc<dyn Reading>) -> Option<Made> {
        self.add(|call, reply| Waits::Head(reply, reading(call)))
    }

    /// The same for an event.
    pub(super) fn begin_event(&mut self) -> Option<Made> {
        self.add(|_, ended| Waits::Event(ended))
    }

    /// The same for a hook: its number, and where its verdict comes.
    pub(super) fn begin_hook(&mut self, may: May) -> Option<(u64, oneshot::Receiver<Decided>)> {
        let (sender, decided) = oneshot::channel();
        let (call, _) = self.place(|_| Waits::Verdict(sender, may))?;
        Some((call, decided))
    }

    /// Who waits for a call, and until when.
    pub(super) fn set_origin(&mut self, call: u64, via: Vec<String>, deadline: Option<u64>) {
        if let Some(running) = self.running.get_mut(&call) {
            running.origin = (via, deadline);
        }
    }

    /// The same of a call that runs and is not cancelled.
    pub(super) fn origin(&self, call: u64) -> Option<Origin> {
        self.running.get(&call).filter(|running| running.cancelled.is_none()).map(|running| running.origin.clone())
    }

    fn add(&mut self, waits: impl FnOnce(u64, oneshot::Sender<Option<Response>>) -> Waits) -> Option<Made> {
        let (sender, reply) = oneshot::channel();
        let (call, budget) = self.place(|call| waits(call, sender))?;
        Some(Made { call, budget, reply })
    }

    fn place(&mut self, waits: impl FnOnce(u64) -> Waits) -> Option<(u64, Arc<Budget>)> {
        if self.running.len() >= CALLS {
            return None;
        }
        self.last += 1;
        let (call, budget) = (self.last, Budget::new());
        let waits = waits(call);
        let running = Running {
            waits,
            origin: Origin::default(),
            budget: Arc::clone(&budget),
            inbox: Inbox::new(),
            cancelled: None,
            sender: None,
        };
        self.running.insert(call, running);
        Some((call, budget))
    }

    /// Nobody waits for this call any more: true if the module has to be told. It keeps its place until the module has ended it.
    pub(super) fn cancel(&mut self, call: u64) -> bool {
        let Some(running) = self.running.get_mut(&call) else { return false };
        running.budget.close();
        running.stop();
        running.inbox.fail(BodyError::TimedOut);
        running.cancelled.replace(0).is_none()
    }

    /// The call has ended: nothing more of it is sent.
    fn forget(&mut self, call: u64) {
        if let Some(running) = self.running.remove(&call) {
            running.budget.close();
            running.stop();
        }
    }

    /// Its request's body is sent by this task, which ends with the call.
    pub(super) fn sent_by(&mut self, call: u64, task: AbortHandle) {
        match self.running.get_mut(&call) {
            Some(running) if running.cancelled.is_none() => running.sender = Some(task),
            _ => task.abort(),
        }
    }

    /// The module is asked something; false while it owes another answer.
    pub(super) fn ask(&mut self) -> Option<oneshot::Receiver<Answer>> {
        // One whose asker has gone may be replaced: its answer would come out of turn, and end the attachment.
        if self.asked.is_some() {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        self.asked = Some(sender);
        Some(answer)
    }

    /// Hears when the last call has ended.
    pub(super) fn drain(&mut self) -> oneshot::Receiver<()> {
        let (sender, drained) = oneshot::channel();
        self.drained = Some(sender);
        drained
    }

    /// One more round: the number of the next ping.
    pub(super) fn round(&mut self) -> Result<Option<u64>, Fault> {
        if self.pinged.is_some() && !std::mem::take(&mut self.beside) {
            return Err(Fault::Silent);
        }
        for running in self.running.values_mut() {
            if let Some(rounds) = &mut running.cancelled {
                *rounds += 1;
                if *rounds > ROUNDS {
                    return Err(Fault::IgnoresCancel);
                }
            }
        }
        if self.pinged.is_some() {
            // It was asked a moment ago, beside the rounds, and has until the next.
            return Ok(None);
        }
        self.pings += 1;
        self.pinged = Some(self.pings);
        Ok(self.pinged)
    }

    /// A ping beside the rounds, unless one is on its way: its number then, and who hears of the answer.
    pub(super) fn ping(&mut self) -> (Option<u64>, oneshot::Receiver<()>) {
        let (sender, answered) = oneshot::channel();
        self.ponged.push(sender);
        if self.pinged.is_some() {
            return (None, answered);
        }
        self.pings += 1;
        (self.pinged, self.beside) = (Some(self.pings), true);
        (self.pinged, answered)
    }

    /// Calls that the module has not ended.
    pub(super) fn count(&self) -> usize {
        self.running.len()
    }

    /// Judges one frame of the module. What comes back is to be handed on once the table is free: its caller may have gone.
    pub(super) fn handle(&mut self, frame: ModuleFrame) -> Result<Option<Delivery>, Fault> {
        match frame.kind.ok_or(Fault::Garbage)? {
            FromModule::Reply(reply) => self.reply(reply).map(Some),
            FromModule::HookReply(reply) => self.verdict(reply).map(Some),
            other => self.handle_other(other).map(|()| None),
        }
    }

    fn handle_other(&mut self, frame: FromModule) -> Result<(), Fault> {
        match frame {
            FromModule::Chunk(chunk) => self.chunk(chunk),
            FromModule::Credit(credit) => Ok(self.one(credit.call)?.budget.add(credit.bytes)?),
            FromModule::Cancelled(cancelled) => match self.one(cancelled.call)?.cancelled {
                Some(_) => {
                    self.forget(cancelled.call);
                    Ok(())
                }
                None => Err(Fault::OutOfTurn),
            },
            FromModule::EventDone(done) => self.event_done(done.call),
            FromModule::Pong(pong) => match self.pinged.take() {
                Some(number) if number == pong.number => {
                    self.beside = false;
                    // Nobody may wait for it any more.
                    for waits in self.ponged.drain(..) {
                        let _ = waits.send(());
                    }
                    Ok(())
                }
                _ => Err(Fault::OutOfTurn),
            },
            FromModule::Configured(_) | FromModule::Migrated(_) | FromModule::Activated(_) => self.answered(Ok(())),
            FromModule::Failed(failed) => {
                let short = failed.code.len() <= NAME_BYTES && failed.detail.len() <= DETAIL_BYTES;
                let said = if short { (failed.code, failed.detail) } else { Default::default() };
                self.answered(Err(said))
            }
            FromModule::Drained(_) => match self.drained.take() {
                Some(waits) => {
                    // Nobody may wait for it any more.
                    let _ = waits.send(());
                    Ok(())
                }
                None => Err(Fault::OutOfTurn),
            },
            FromModule::Hello(_) | FromModule::Reply(_) | FromModule::HookReply(_) => Err(Fault::OutOfTurn),
        }
    }

    fn one(&mut self, call: u64) -> Result<&mut Running, Fault> {
        let known = call != 0 && call <= self.last;
        self.running.get_mut(&call).ok_or(if known { Fault::SecondAnswer } else { Fault::UnknownCall })
    }

    fn answered(&mut self, answer: Answer) -> Result<(), Fault> {
        let asked = self.asked.take().ok_or(Fault::OutOfTurn)?;
        // Nobody may wait for it any more.
        drop(asked.send(answer));
        Ok(())
    }

    fn reply(&mut self, reply: wire::Reply) -> Result<Delivery, Fault> {
        let running = self.one(reply.call)?;
        let (head, reading) = match std::mem::replace(&mut running.waits, Waits::Rest) {
            Waits::Head(head, reading) => (head, reading),
            Waits::Rest => return Err(Fault::SecondAnswer),
            Waits::Event(_) | Waits::Verdict(..) => return Err(Fault::OutOfTurn),
        };
        let end = ended(reply.end, 0)?;
        let last = end.is_some();
        // Judged before there is a body: one that was dropped here would want the table, which is held, to say that its reader has gone.
        let response = convert::to_response(reply.status, reply.content_type, reply.length, Body::empty());
        let response = response.ok_or(Fault::BadHead)?;
        let body = if end == Some(Ok(())) {
            // Counted like any other piece.
            running.inbox.take(reply.body.clone(), end, true)?;
            Body::whole(reply.body)
        } else {
            running.inbox.take(reply.body, end, true)?;
            running.inbox.body(reading)
        };
        if last {
            self.forget(reply.call);
        }
        Ok(Delivery::Response(head, Response { body, ..response }))
    }

    fn verdict(&mut self, reply: wire::HookReply) -> Result<Delivery, Fault> {
        let call = reply.call;
        let Waits::Verdict(_, may) = self.one(call)?.waits else { return Err(Fault::OutOfTurn) };
        let decided = to_verdict(reply, may).ok_or(Fault::BadVerdict)?;
        match self.running.remove(&call) {
            Some(Running { waits: Waits::Verdict(waits, _), .. }) => Ok(Delivery::Verdict(waits, decided)),
            _ => Err(Fault::OutOfTurn),
        }
    }

    fn chunk(&mut self, chunk: wire::Chunk) -> Result<(), Fault> {
        let ranges = self.ranges;
        let running = self.one(chunk.call)?;
        if !matches!(running.waits, Waits::Rest) {
            return Err(Fault::OutOfTurn);
        }
        if let Some(range) = &chunk.range {
            let alone = ranges && chunk.body.is_empty() && chunk.end == i32::from(wire::End::More);
            let range = convert::to_range(range).filter(|_| alone).ok_or(Fault::BadBody)?;
            return Ok(running.inbox.take_range(range)?);
        }
        let end = ended(chunk.end, chunk.limit)?;
        let last = end.is_some();
        running.inbox.take(chunk.body, end, false)?;
        if last {
            self.forget(chunk.call);
        }
        Ok(())
    }

    fn event_done(&mut self, call: u64) -> Result<(), Fault> {
        let running = self.one(call)?;
        if !matches!(running.waits, Waits::Event(_)) {
            return Err(Fault::OutOfTurn);
        }
        if let Some(Running { waits: Waits::Event(done), .. }) = self.running.remove(&call) {
            drop(done.send(None));
        }
        Ok(())
    }

    /// Ends everything: the attachment is over.
    pub(super) fn end(&mut self) {
        for (_, running) in self.running.drain() {
            running.budget.close();
            running.stop();
            running.inbox.fail(BodyError::Failed);
        }
        // What waits sees that its sender is gone.
        self.asked = None;
        self.drained = None;
        self.ponged.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;

    use super::*;
    use crate::wire::CONTENT_TYPE_BYTES;

    struct Unread;

    impl Reading for Unread {
        fn read(&self, _: u32) {}
        fn left(&self) {}
    }

    /// Notes that its reader has gone.
    #[derive(Default)]
    struct Left(AtomicBool);

    impl Reading for Left {
        fn read(&self, _: u32) {}
        fn left(&self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_head_that_is_none_leaves_no_body_to_be_dropped_with_the_table_held() {
        let long = "x".repeat(CONTENT_TYPE_BYTES + 1);
        for (status, content_type) in [(7, ""), (600, ""), (200, "a\nb"), (200, long.as_str())] {
            for end in [wire::End::More, wire::End::Failed, wire::End::Done] {
                let (mut calls, reading) = (Calls::default(), Arc::new(Left::default()));
                let made = calls.begin(|_| Arc::clone(&reading) as _).unwrap();
                let body = Bytes::from_static(b"x");
                let (call, content_type) = (made.call, content_type.to_owned());
                let reply = wire::Reply { call, status, content_type, length: None, body, end: end.into() };
                assert_eq!(say(&mut calls, FromModule::Reply(reply)), Err(Fault::BadHead), "{status} {end:?}");
                assert!(!reading.0.load(Ordering::Relaxed), "{status} {end:?}");
                assert!(made.reply.blocking_recv().is_err(), "its caller hears that there is no answer");
            }
        }
    }

    fn say(calls: &mut Calls, kind: FromModule) -> Result<(), Fault> {
        calls.handle(ModuleFrame { kind: Some(kind) }).map(drop)
    }

    #[test]
    fn a_cancelled_call_keeps_its_place_until_the_module_has_ended_it() {
        let mut calls = Calls::default();
        let made: Vec<Made> = std::iter::from_fn(|| calls.begin(|_| Arc::new(Unread))).collect();
        assert_eq!(made.len(), CALLS);
        assert!(calls.cancel(1) && !calls.cancel(1), "told once");
        assert!(calls.begin_event().is_none());
        say(&mut calls, FromModule::Cancelled(wire::Cancelled { call: 1 })).unwrap();
        assert!(calls.begin_event().is_some());
        assert!(calls.cancel(2));
        // The answer was on its way when the call was cancelled.
        say(&mut calls, FromModule::Reply(wire::Reply { call: 2, status: 200, end: 1, ..Default::default() })).unwrap();
        assert!(!calls.cancel(2), "it has ended");
    }

    #[test]
    fn silence_and_calls_that_do_not_end_are_faults() {
        let mut calls = Calls::default();
        assert_eq!(calls.round(), Ok(Some(1)));
        assert_eq!(calls.round(), Err(Fault::Silent));
        // One that was asked just before the round has until the next.
        let mut calls = Calls::default();
        assert_eq!(calls.ping().0, Some(1));
        assert_eq!((calls.ping().0, calls.round()), (None, Ok(None)));
        assert_eq!(calls.round(), Err(Fault::Silent));
        let mut calls = Calls::default();
        let made = calls.begin(|_| Arc::new(Unread)).unwrap();
        calls.cancel(made.call);
        for number in 1..=u64::from(ROUNDS) {
            assert_eq!(calls.round(), Ok(Some(number)));
            say(&mut calls, FromModule::Pong(wire::Pong { number })).unwrap();
        }
        assert_eq!(calls.round(), Err(Fault::IgnoresCancel));
    }

    #[test]
    fn a_frame_of_nothing_is_garbage_and_nothing_is_asked_twice_at_once() {
        let mut calls = Calls::default();
        assert_eq!(calls.handle(ModuleFrame { kind: None }).map(drop), Err(Fault::Garbage));
        let answer = calls.ask().unwrap();
        assert!(calls.ask().is_none());
        let failed = wire::Failed { code: "x".repeat(NAME_BYTES + 1), detail: String::new() };
        say(&mut calls, FromModule::Failed(failed)).unwrap();
        assert_eq!(answer.blocking_recv().unwrap(), Err(Default::default()), "too long to be repeated");
        assert!(calls.ask().is_some());
    }
}
