//! One replica after the other is restarted while offers flow: issuers come to each in turn and go to the next where nobody listens, where they
//! are refused, or where no answer comes; recipients whose stream ends come to the next with the last id that they have. Restarting
//! is a thread's of its own, for it waits for processes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_util::future::try_join_all;
use openred_proto::checked::offer::Offer;
use openred_tests::harness::PATIENCE;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use super::super::drive::Answers;
use super::super::{Served, latency, one};
use super::{Crowd, Size, World, code, meet};
use crate::bench::figures::{Better, Figures, say};

/// Issuers that send one offer after the other.
const ISSUERS: usize = 4;
/// An issuer that was refused, or a recipient whom nobody let in, comes to the next replica after this.
const RETRY: Duration = Duration::from_millis(10);
/// Longer than a replica waits for the others.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Between two looks at what the others have done.
const LOOK: Duration = Duration::from_millis(10);
/// Longest head of an answer.
const HEAD_BYTES: usize = 16 * 1024;

/// Restarts replicas while offers flow. `first`: the first of the recipients; the others follow.
pub(super) fn measure(runtime: &Runtime, world: &mut World, first: usize, figures: &mut Figures) -> Result<()> {
    let addresses = world.served.iter().map(|served| served.door.address).collect();
    let (crowd, size, origin) = (&world.crowd, world.size, world.origin.as_str());
    let flow = Flow { crowd, origin, addresses, size, first, passed: RefCell::default(), over: Cell::new(false) };
    let served = &mut world.served;
    let (begin, begun) = sync_channel(1);
    let (flowed, restarted) = std::thread::scope(|scope| {
        let rolling = scope.spawn(move || {
            begun.recv().context("no offers flow")?;
            roll(served, size.restarts)
        });
        let flowed = runtime.block_on(flow.run(begin, || rolling.is_finished()));
        (flowed, rolling.join())
    });
    flowed?;
    let restarted = restarted.map_err(|_| anyhow!("the thread that restarts has ended"))??;
    figures.add_runs("roll_restart", "ms", Better::Lower, restarted);
    flow.passed.into_inner().figures(figures)
}

/// Restarts so many, one after the other: each has ended, is there again and is heard by all before the next has its turn. Milliseconds of each.
fn roll(served: &mut [Served], restarts: usize) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    for number in 0..restarts {
        let begun = Instant::now();
        served[number].directory.down()?;
        served[number].directory.up()?;
        meet(served)?;
        took.push(millis(begun));
    }
    Ok(took)
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Offers on their way.
struct Flow<'a> {
    crowd: &'a Crowd,
    origin: &'a str,
    addresses: Vec<SocketAddr>,
    size: Size,
    first: usize,
    passed: RefCell<Passed>,
    /// No more offers are sent.
    over: Cell<bool>,
}

/// What has come to pass.
#[derive(Default)]
struct Passed {
    /// Offers that were begun.
    number: usize,
    /// By what identifies it.
    offers: HashMap<String, Sent>,
    /// Recipients that have had a stream.
    readers: usize,
    /// Milliseconds from the end of a recipient's stream to its next.
    gaps: Vec<f64>,
    /// Answers that were refusals, by what they are called.
    refused: BTreeMap<String, u64>,
    /// Tries that met nobody, that had no answer, and offers that were shown once more.
    met_nobody: u64,
    unanswered: u64,
    shown_again: u64,
}

/// An offer.
struct Sent {
    begun: Instant,
    taken: bool,
    /// Milliseconds until its recipient had it.
    came: Option<f64>,
}

impl Passed {
    /// Offers that were taken and have not come.
    fn missing(&self) -> usize {
        self.offers.values().filter(|sent| sent.taken && sent.came.is_none()).count()
    }

    /// A recipient is shown an offer.
    fn shown(&mut self, token: &str) {
        // One that nobody here sent waits from before.
        let Some(sent) = self.offers.get_mut(token) else { return };
        match sent.came {
            None => sent.came = Some(millis(sent.begun)),
            Some(_) => self.shown_again += 1,
        }
    }

    fn figures(self, figures: &mut Figures) -> Result<()> {
        let (missing, refused) = (self.missing(), self.refused.values().sum::<u64>());
        let took: Vec<f64> = self.offers.values().filter_map(|sent| sent.came).collect();
        one(figures, "roll_offer_longest", "ms", took.iter().copied().fold(0.0, f64::max));
        latency(figures, "roll_offer", "ms", took)?;
        one(figures, "roll_offers", "", self.offers.values().filter(|sent| sent.taken).count() as f64);
        figures.add_runs("roll_gap", "ms", Better::Lower, self.gaps);
        let counts = [
            ("roll_refused", refused),
            ("roll_met_nobody", self.met_nobody),
            ("roll_unanswered", self.unanswered),
            ("roll_shown_again", self.shown_again),
            ("roll_lost", missing as u64),
        ];
        for (name, count) in counts {
            one(figures, name, "", count as f64);
        }
        if refused > 0 {
            say(&format!("refused during the restarts, and taken at another replica or later: {:?}", self.refused));
        }
        ensure!(missing == 0, "{missing} offers that were taken never came");
        Ok(())
    }
}

/// What became of one try.
enum Try {
    Taken,
    Refused(String),
    Unanswered,
    MetNobody,
}

impl Flow<'_> {
    /// Lets offers flow until the restarts are over and all that was taken has come, or has had its time.
    async fn run(&self, begin: SyncSender<()>, restarted: impl Fn() -> bool) -> Result<()> {
        let recipients = self.size.recipients;
        let read = try_join_all((0..recipients).map(|number| self.read(number)));
        let sent = async {
            ensure!(self.until(|| self.passed.borrow().readers == recipients).await, "a recipient has no stream");
            begin.send(())?;
            let restarts = async {
                while !restarted() {
                    sleep(LOOK).await;
                }
                self.over.set(true);
                Ok(())
            };
            tokio::try_join!(restarts, try_join_all((0..ISSUERS).map(|_| self.issue())))?;
            // What is missing then is lost: a figure, and a failure.
            self.until(|| self.passed.borrow().missing() == 0).await;
            Ok(())
        };
        tokio::select! {
            ended = read => ended.and_then(|_| bail!("the recipients have ended")),
            sent = sent => sent,
        }
    }

    /// Whether this comes true in time.
    async fn until(&self, come: impl Fn() -> bool) -> bool {
        let begun = Instant::now();
        while !come() && begun.elapsed() < PATIENCE {
            sleep(LOOK).await;
        }
        come()
    }

    /// One offer after the other, from nodes that take turns, for recipients that take turns.
    async fn issue(&self) -> Result<()> {
        while !self.over.get() {
            let number = {
                let mut passed = self.passed.borrow_mut();
                passed.number += 1;
                passed.number
            };
            let recipients = self.size.recipients;
            let to = self.first + number % recipients;
            // All that are no recipients, from the next one on.
            let nodes = self.size.nodes;
            let from = (self.first + recipients + number / recipients % (nodes - recipients)) % nodes;
            self.deliver(number, from, to).await?;
            sleep(Duration::from_millis(self.size.pause)).await;
        }
        Ok(())
    }

    /// Sends an offer to one replica after the other until one takes it.
    async fn deliver(&self, number: usize, from: usize, to: usize) -> Result<()> {
        let offer = self.crowd.seal(from, to)?;
        let token = hex::encode(Offer::token_id(&offer));
        let begun = Instant::now();
        self.passed.borrow_mut().offers.insert(token.clone(), Sent { begun, taken: false, came: None });
        for turn in number.. {
            let tried = self.attempt(self.addresses[turn % self.addresses.len()], from, &offer).await?;
            let last = {
                let mut passed = self.passed.borrow_mut();
                match tried {
                    Try::Taken => {
                        passed.offers.get_mut(&token).context("it was sent")?.taken = true;
                        return Ok(());
                    }
                    Try::Refused(code) => {
                        *passed.refused.entry(code.clone()).or_default() += 1;
                        code
                    }
                    Try::Unanswered => {
                        passed.unanswered += 1;
                        "no answer came".to_owned()
                    }
                    Try::MetNobody => {
                        passed.met_nobody += 1;
                        "nobody listens".to_owned()
                    }
                }
            };
            ensure!(begun.elapsed() < PATIENCE, "no replica takes an offer: {last}");
            sleep(RETRY).await;
        }
        Ok(())
    }

    /// One try, on a connection of its own.
    async fn attempt(&self, at: SocketAddr, from: usize, offer: &[u8]) -> Result<Try> {
        let request = self.crowd.send(self.origin, from, offer)?;
        let Ok(mut stream) = TcpStream::connect(at).await else { return Ok(Try::MetNobody) };
        let answered = async {
            stream.set_nodelay(true)?;
            stream.write_all(&request).await?;
            Answers::default().answer(&mut stream).await
        };
        match timeout(ANSWER_TIME, answered).await {
            Ok(Ok((200, _))) => Ok(Try::Taken),
            Ok(Ok((_, problem))) => Ok(Try::Refused(code(&problem)?)),
            Ok(Err(_)) | Err(_) => Ok(Try::Unanswered),
        }
    }

    /// A recipient: reads its stream, and where that ends goes to the next replica.
    async fn read(&self, number: usize) -> Result<()> {
        let (mut after, mut without) = (0, None);
        for turn in number.. {
            let at = self.addresses[turn % self.addresses.len()];
            let Some(mut events) = self.open(at, self.first + number, after).await? else {
                sleep(RETRY).await;
                continue;
            };
            {
                let mut passed = self.passed.borrow_mut();
                match without {
                    None => passed.readers += 1,
                    Some(since) => passed.gaps.push(millis(since)),
                }
            }
            while let Some((id, token)) = events.next().await? {
                after = id;
                self.passed.borrow_mut().shown(&token);
            }
            without = Some(Instant::now());
        }
        Ok(())
    }

    /// A stream, unless nobody is there or it is refused.
    async fn open(&self, at: SocketAddr, who: usize, after: u64) -> Result<Option<Events>> {
        let request = self.crowd.receive(self.origin, who, after)?;
        let Ok(mut stream) = TcpStream::connect(at).await else { return Ok(None) };
        let mut read = Vec::new();
        let head = async {
            stream.write_all(&request).await.ok()?;
            loop {
                if let Some(end) = find(&read, b"\r\n\r\n") {
                    return Some(end + 4);
                }
                if stream.read_buf(&mut read).await.ok()? == 0 || read.len() > HEAD_BYTES {
                    return None;
                }
            }
        };
        let Ok(Some(end)) = timeout(ANSWER_TIME, head).await else { return Ok(None) };
        if read.starts_with(b"HTTP/1.1 200") {
            return Ok(Some(Events { stream, read: read.split_off(end), text: Vec::new() }));
        }
        if let Ok(Ok((_, problem))) = timeout(ANSWER_TIME, Answers::begun(read).answer(&mut stream)).await {
            *self.passed.borrow_mut().refused.entry(code(&problem)?).or_default() += 1;
        }
        Ok(None)
    }
}

/// A recipient's stream: events in chunks.
struct Events {
    stream: TcpStream,
    read: Vec<u8>,
    text: Vec<u8>,
}

impl Events {
    /// The next item's id and what identifies its offer; none at the end, however it comes.
    async fn next(&mut self) -> Result<Option<(u64, String)>> {
        loop {
            while let Some(event) = cut(&mut self.text) {
                if let Some(item) = item(&event)? {
                    return Ok(Some(item));
                }
            }
            match chunk(&mut self.read)? {
                Some(chunk) if chunk.is_empty() => return Ok(None),
                Some(chunk) => self.text.extend(chunk),
                None if matches!(self.stream.read_buf(&mut self.read).await, Ok(0) | Err(_)) => return Ok(None),
                None => {}
            }
        }
    }
}

fn find(bytes: &[u8], end: &[u8]) -> Option<usize> {
    bytes.windows(end.len()).position(|part| part == end)
}

/// Takes the first event off.
fn cut(text: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = find(text, b"\n\n")? + 2;
    Some(text.drain(..end).collect())
}

/// Takes the first chunk off, if it is there whole.
fn chunk(read: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let Some(line) = find(read, b"\r\n") else { return Ok(None) };
    let length = usize::from_str_radix(std::str::from_utf8(&read[..line])?, 16)?;
    let (begin, end) = (line + 2, line + 2 + length);
    if read.len() < end + 2 {
        return Ok(None);
    }
    let chunk = read[begin..end].to_vec();
    read.drain(..end + 2);
    Ok(Some(chunk))
}

/// Id and token of an event; none of a comment.
fn item(event: &[u8]) -> Result<Option<(u64, String)>> {
    let event = std::str::from_utf8(event)?;
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
    let Some((id, data)) = field("id: ").zip(field("data: ")) else { return Ok(None) };
    let data: Value = serde_json::from_str(data)?;
    let token = data["token"].as_str().context("an item names its offer")?;
    Ok(Some((id.parse()?, token.to_owned())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn events_are_found_in_chunks() {
        let event = "event: offer\nid: 7\ndata: {\"token\":\"ab\"}\n\n";
        let all = format!(":\n\n{event}{event}");
        let (first, second) = all.split_at(20);
        let sent = format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len());
        // However it is cut on its way.
        for cut_at in 0..sent.len() {
            let (mut read, mut text, mut items, mut ended) = (Vec::new(), Vec::new(), Vec::new(), false);
            for part in [&sent[..cut_at], &sent[cut_at..]] {
                read.extend_from_slice(part.as_bytes());
                while let Some(chunk) = chunk(&mut read).unwrap() {
                    ended |= chunk.is_empty();
                    text.extend(chunk);
                }
                while let Some(event) = cut(&mut text) {
                    items.extend(item(&event).unwrap());
                }
            }
            assert_eq!(items, [(7, "ab".to_owned()), (7, "ab".to_owned())], "cut at {cut_at}");
            assert!(ended);
        }
    }
}
