//! The stream to the vault: calls multiplexed by id, as many as there are [`places`](super::places), each with a deadline.
//!
//! One task writes, one reads, so that neither side can block the other for good. A call that has run out of time keeps its
//! place until the vault answers: the bound is on what the vault is asked, not on who still listens. Bytes of replies are
//! wiped once decoded. The stream is watched for bytes to read alone: watched for room to write as well, each request that the vault
//! takes would wake this process for nothing. Anything that is no frame ends the stream: it can only be a fault.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as Stream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openred_proto::error::WireError;
use openred_proto::limits::FRAME_BYTES;
use openred_proto::vault::{Frame, Reply, Request, decode_frame, encode_frame, split_frame};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use zeroize::{Zeroize, Zeroizing};

use super::places::{CHEAP, DEAR, Places};

/// Requests that the vault may have before it.
const IN_FLIGHT: usize = CHEAP + DEAR;
/// A call that is not answered in this time, waiting for a place included, fails; the vault needs about a millisecond.
const DEADLINE: Duration = Duration::from_secs(5);
/// The first answer may take as long as a passphrase takes to be typed and stretched.
const FIRST_DEADLINE: Duration = Duration::from_secs(600);
/// A vault that has as much before it as the socket holds is given this long before it is offered more.
const FULL: Duration = Duration::from_millis(1);
/// Bytes read at once: a few of the longest frames.
const READ_BYTES: usize = 4 * (FRAME_BYTES + 4);

/// Why a call got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// The vault is gone.
    Gone,
    /// The request is longer than a frame.
    TooLong,
    /// The deadline passed.
    Late,
}

/// A handle on the stream; clones share it.
#[derive(Clone)]
pub(super) struct VaultLink {
    calls: Arc<Mutex<Calls>>,
    places: Arc<Places>,
    outgoing: mpsc::Sender<Zeroizing<Vec<u8>>>,
    gone: watch::Receiver<bool>,
}

/// Calls that wait for a reply. `None` once the vault is gone.
struct Calls {
    next: u64,
    waiting: Option<HashMap<u64, Waiting>>,
}

/// One of them: whom to tell, and the places that it holds until the vault has answered.
struct Waiting {
    answer: oneshot::Sender<Reply>,
    _places: [Option<OwnedSemaphorePermit>; 2],
}

fn lock(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    // One thread: nobody can have panicked while holding it and left this running.
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VaultLink {
    /// Starts the two tasks on the current runtime.
    pub(super) fn start(stream: UnixStream) -> Self {
        let calls = Arc::new(Mutex::new(Calls { next: 1, waiting: Some(HashMap::with_capacity(IN_FLIGHT)) }));
        let (outgoing, queue) = mpsc::channel(IN_FLIGHT);
        let (say_gone, gone) = watch::channel(false);
        let places = Arc::new(Places::of_vault());
        let (for_reader, for_writer) =
            ((Arc::clone(&calls), Arc::clone(&places)), (Arc::clone(&calls), Arc::clone(&places)));
        // One that cannot be watched is gone.
        let stream = watch_for_bytes(stream).ok().map(Arc::new);
        let reading = stream.clone();
        let also_say_gone = say_gone.clone();
        tokio::spawn(async move {
            let (calls, places) = for_reader;
            if let Some(stream) = reading {
                read_replies(&stream, &calls).await;
            }
            end(&calls, &places, &say_gone);
        });
        tokio::spawn(async move {
            let (calls, places) = for_writer;
            if let Some(stream) = stream {
                write_requests(stream.get_ref(), queue).await;
                // Nobody asks any more: the vault sees the end, and so does the reader once it has left.
                let _ = stream.get_ref().shutdown(Shutdown::Write);
            }
            end(&calls, &places, &also_say_gone);
        });
        Self { calls, places, outgoing, gone }
    }

    /// Asks the vault on behalf of a caller, within his places and the vault's.
    pub(super) async fn ask(&self, caller: &Places, request: Request) -> Result<Reply, Unanswered> {
        self.ask_within(DEADLINE, Some(caller), request).await
    }

    /// Asks a vault that may not have its secrets yet.
    pub(super) async fn ask_patiently(&self, request: Request) -> Result<Reply, Unanswered> {
        self.ask_within(FIRST_DEADLINE, None, request).await
    }

    async fn ask_within(
        &self,
        deadline: Duration,
        caller: Option<&Places>,
        request: Request,
    ) -> Result<Reply, Unanswered> {
        let answered = tokio::time::timeout(deadline, self.converse(caller, request));
        answered.await.unwrap_or(Err(Unanswered::Late))
    }

    async fn converse(&self, caller: Option<&Places>, request: Request) -> Result<Reply, Unanswered> {
        let lane = request.lane();
        // The caller's own first: who has used his up does not stand in the way of others.
        let own = match caller {
            Some(caller) => caller.take(lane).await,
            None => None,
        };
        let vaults = self.places.take(lane).await.ok_or(Unanswered::Gone)?;
        let (answer, answered) = oneshot::channel();
        let id = self.place(Waiting { answer, _places: [own, Some(vaults)] })?;
        let Ok(frame) = encode_frame(&Frame { id, body: request }) else {
            lock(&self.calls).waiting.as_mut().map(|waiting| waiting.remove(&id));
            return Err(Unanswered::TooLong);
        };
        // The queue is as long as the table: there is always room, unless the writer has ended.
        self.outgoing.try_send(Zeroizing::new(frame)).map_err(|_| Unanswered::Gone)?;
        answered.await.map_err(|_| Unanswered::Gone)
    }

    fn place(&self, call: Waiting) -> Result<u64, Unanswered> {
        let mut calls = lock(&self.calls);
        let id = calls.next;
        // Never more than IN_FLIGHT: each holds a place.
        calls.waiting.as_mut().ok_or(Unanswered::Gone)?.insert(id, call);
        calls.next += 1;
        Ok(id)
    }

    /// Resolves once the vault is gone.
    pub(super) fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut gone = self.gone.clone();
        async move {
            let _ = gone.wait_for(|gone| *gone).await;
        }
    }
}

fn end(calls: &Mutex<Calls>, places: &Places, say_gone: &watch::Sender<bool>) {
    // Who waits for a place is answered by this, and who waits for the vault by dropping the senders.
    places.close();
    lock(calls).waiting = None;
    say_gone.send_replace(true);
}

#[allow(deprecated, reason = "it owns one descriptor for life and always names it; the successor needs unsafe code")]
fn watch_for_bytes(stream: UnixStream) -> io::Result<AsyncFd<Stream>> {
    AsyncFd::with_interest(stream.into_std()?, Interest::READABLE)
}

async fn write_requests(mut stream: &Stream, mut queue: mpsc::Receiver<Zeroizing<Vec<u8>>>) {
    while let Some(mut frames) = queue.recv().await {
        // What piled up meanwhile goes in one write: the vault then commits it in one group.
        while let Ok(mut more) = queue.try_recv() {
            frames.append(&mut more);
        }
        let mut rest = frames.as_slice();
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(FULL).await,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// Reads once, when there is something; nothing at the end.
async fn read_some(stream: &AsyncFd<Stream>, buffer: &mut [u8]) -> Option<usize> {
    loop {
        let mut ready = stream.readable().await.ok()?;
        match ready.try_io(|stream| stream.get_ref().read(buffer)) {
            Ok(Ok(0)) => return None,
            Ok(Ok(count)) => {
                // Less than there was room for: that was all, and the next look would only find that out.
                if count < buffer.len() {
                    ready.clear_ready();
                }
                return Some(count);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(_)) => return None,
            Err(_) => {}
        }
    }
}

async fn read_replies(stream: &AsyncFd<Stream>, calls: &Mutex<Calls>) {
    let mut buffer = Zeroizing::new(vec![0; READ_BYTES]);
    let mut filled = 0;
    loop {
        match read_some(stream, &mut buffer[filled..]).await {
            Some(count) => filled += count,
            None => return,
        }
        let Ok(used) = deliver(&buffer[..filled], calls) else {
            tracing::error!("the vault sent what is no reply");
            return;
        };
        buffer.copy_within(used..filled, 0);
        buffer[filled - used..filled].zeroize();
        filled -= used;
    }
}

/// Hands out every whole reply in `bytes`; returns how many bytes they took.
fn deliver(bytes: &[u8], calls: &Mutex<Calls>) -> Result<usize, WireError> {
    let mut used = 0;
    loop {
        let (body, taken) = match split_frame(&bytes[used..]) {
            Ok(frame) => frame,
            Err(WireError::Incomplete { .. }) => return Ok(used),
            Err(error) => return Err(error),
        };
        let reply: Frame<Reply> = decode_frame(body)?;
        used += taken;
        let waiting = lock(calls).waiting.as_mut().and_then(|waiting| waiting.remove(&reply.id));
        // A caller that has left drops the reply, and with it what is secret in it.
        let answer = waiting.ok_or(WireError::Malformed { what: "vault reply", why: "nobody asked for it" })?;
        let _ = answer.answer.send(reply.body);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_proto::vault::Refusal;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;

    fn pair() -> (VaultLink, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (VaultLink::start(near), far)
    }

    async fn next_id(vault: &mut UnixStream) -> u64 {
        let mut length = [0; 4];
        vault.read_exact(&mut length).await.unwrap();
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        vault.read_exact(&mut body).await.unwrap();
        decode_frame::<Request>(&body).unwrap().id
    }

    async fn reply(vault: &mut UnixStream, id: u64, body: Reply) {
        vault.write_all(&encode_frame(&Frame { id, body }).unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn replies_out_of_order_find_their_callers() {
        let (link, mut vault) = pair();
        let ask = |request| {
            let link = link.clone();
            tokio::spawn(async move { link.ask(&Places::of_caller(), request).await })
        };
        let (first, second) = (ask(Request::Describe), ask(Request::Lock));
        let (one, two) = (next_id(&mut vault).await, next_id(&mut vault).await);
        reply(&mut vault, two, Reply::Done).await;
        reply(&mut vault, one, Reply::Refused(Refusal::Quota)).await;
        assert!(matches!(second.await.unwrap(), Ok(Reply::Done)));
        assert!(matches!(first.await.unwrap(), Ok(Reply::Refused(Refusal::Quota))));
    }

    /// Asks in the background.
    fn begin(link: &VaultLink, caller: &Arc<Places>, request: Request) -> JoinHandle<Result<Reply, Unanswered>> {
        let (link, caller) = (link.clone(), Arc::clone(caller));
        tokio::spawn(async move { link.ask(&caller, request).await })
    }

    fn dear() -> Request {
        Request::StartHandshake { row: vec![1; 97] }
    }

    /// Lets every task go on as far as it can.
    async fn settle() {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }

    fn before_the_vault(link: &VaultLink) -> usize {
        lock(&link.calls).waiting.as_ref().unwrap().len()
    }

    #[tokio::test]
    async fn the_table_is_bounded_and_a_vault_that_leaves_answers_all() {
        let (link, vault) = pair();
        let callers: Vec<_> = (0..4).map(|_| Arc::new(Places::of_caller())).collect();
        let calls: Vec<_> = (0..4 * IN_FLIGHT)
            .map(|call| {
                let request = if call / 4 % 2 == 0 { Request::Describe } else { dear() };
                begin(&link, &callers[call % 4], request)
            })
            .collect();
        settle().await;
        assert_eq!(before_the_vault(&link), IN_FLIGHT, "the others wait their turn");
        drop(vault);
        for call in calls {
            assert!(matches!(call.await.unwrap(), Err(Unanswered::Gone)));
        }
        link.gone().await;
        assert!(matches!(link.ask(&callers[0], Request::Describe).await, Err(Unanswered::Gone)));
    }

    #[tokio::test]
    async fn one_who_floods_leaves_places_of_both_lanes_to_another() {
        let (link, _vault) = pair();
        let (flooding, other) = (Arc::new(Places::of_caller()), Arc::new(Places::of_caller()));
        let _flood: Vec<_> = (0..300).map(|_| begin(&link, &flooding, dear())).collect();
        settle().await;
        assert_eq!(before_the_vault(&link), DEAR / 2);
        let _also: Vec<_> = (0..300).map(|_| begin(&link, &flooding, Request::Describe)).collect();
        settle().await;
        assert_eq!(before_the_vault(&link), (DEAR + CHEAP) / 2, "what is cheap has places of its own");
        let _others = [begin(&link, &other, dear()), begin(&link, &other, Request::Describe)];
        settle().await;
        assert_eq!(before_the_vault(&link), (DEAR + CHEAP) / 2 + 2, "and so has somebody else");
    }

    #[tokio::test]
    async fn a_place_is_free_again_once_the_vault_has_answered_and_not_before() {
        let (link, mut vault) = pair();
        let caller = Arc::new(Places::of_caller());
        let calls: Vec<_> = (0..DEAR / 2 + 1).map(|_| begin(&link, &caller, dear())).collect();
        settle().await;
        // Who leaves keeps his place: the vault works on it all the same.
        calls[0].abort();
        settle().await;
        assert_eq!(before_the_vault(&link), DEAR / 2);
        let first = next_id(&mut vault).await;
        for _ in 1..DEAR / 2 {
            next_id(&mut vault).await;
        }
        reply(&mut vault, first, Reply::Done).await;
        let last = next_id(&mut vault).await;
        reply(&mut vault, last, Reply::Done).await;
        assert!(matches!(calls.into_iter().last().unwrap().await.unwrap(), Ok(Reply::Done)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_call_fails_and_its_reply_is_dropped() {
        let (link, mut vault) = pair();
        assert!(matches!(link.ask(&Places::of_caller(), Request::Describe).await, Err(Unanswered::Late)));
        let id = next_id(&mut vault).await;
        reply(&mut vault, id, Reply::Done).await;
        let next = link.clone();
        let call = tokio::spawn(async move { next.ask(&Places::of_caller(), Request::Lock).await });
        let id = next_id(&mut vault).await;
        reply(&mut vault, id, Reply::Done).await;
        assert!(matches!(call.await.unwrap(), Ok(Reply::Done)));
    }

    #[tokio::test]
    async fn a_vault_that_reads_late_gets_every_request_whole() {
        let (link, mut vault) = pair();
        let callers = [Arc::new(Places::of_caller()), Arc::new(Places::of_caller())];
        // More than a socket holds, and each frame longer than half of what its reader takes at once.
        let offer = || openred_proto::vault::ReceivedOffer {
            offer: vec![1; openred_proto::limits::OFFER_BYTES],
            sender: openred_proto::id::NodeId::from_bytes([1; 32]),
            directory: openred_proto::id::NodeId::from_bytes([2; 32]),
            allowed: openred_proto::method::MethodSet::ALL,
        };
        let calls: Vec<_> =
            (0..10 * DEAR).map(|call| begin(&link, &callers[call % 2], Request::InspectOffer(offer()))).collect();
        settle().await;
        for _ in 0..calls.len() {
            let id = next_id(&mut vault).await;
            reply(&mut vault, id, Reply::Done).await;
        }
        for call in calls {
            assert!(matches!(call.await.unwrap(), Ok(Reply::Done)));
        }
    }

    #[tokio::test]
    async fn what_is_no_reply_ends_the_link() {
        for garbage in
            [&[0xff; 64][..], &[1, 0, 0, 0, 0xff], &encode_frame(&Frame { id: 77, body: Reply::Done }).unwrap()]
        {
            let (link, mut vault) = pair();
            vault.write_all(garbage).await.unwrap();
            link.gone().await;
        }
    }

    #[tokio::test]
    async fn a_request_over_a_frame_never_leaves() {
        let (link, _vault) = pair();
        let request = Request::StartHandshake { row: vec![0; FRAME_BYTES + 1] };
        assert!(matches!(link.ask(&Places::of_caller(), request).await, Err(Unanswered::TooLong)));
        assert_eq!(lock(&link.calls).waiting.as_ref().unwrap().len(), 0);
    }
}
