//! The vault's loop: one thread, two callers, its state and its trail. It moves bytes; what a request means is [`Vault`]'s.
//!
//! Each turn waits with `ppoll`, reads what is ready, handles every cheap request and some dear ones, makes all changes durable with
//! as few writes as they need and one fdatasync a changed file, and only then replies. Where a cheap one is among them the turn has
//! one dear one at most; it looks for new requests after each dear one, and ends the turn when a cheap one has come: that waits for
//! one dear operation, however many are asked. A write or fdatasync that fails is final: the keys go, everybody is told, and the process ends (a later fdatasync could claim success for bytes that were lost). The time-out of `ppoll` is
//! the timer. When either caller is gone, or the front misbehaves, the vault ends: front and vault are replaced together.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openred_policy::arena;
use openred_policy::poll::{self, PollFd, PollFlags};
use openred_proto::audit::Event;
use openred_proto::id::UnixMillis;
use openred_proto::limits::FRAME_BYTES;
use openred_proto::vault::{Capacity, Frame, Lane, Refusal, Reply, Request, Role};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use zeroize::Zeroizing;

use super::Vault;
use super::channel::{Channel, Lost};

/// Half-open handshakes are ended, and keys rotated, at least this often.
const TICK: Duration = Duration::from_secs(1);
/// Cheap requests handled before the other side gets its turn: as many as the front lets be in flight.
const CHEAP_A_TURN: usize = 64;
/// Dear requests handled before what they changed is made durable and answered: one fdatasync weighs little beside so many.
const DEAR_A_TURN: usize = 8;
/// Turns after which the generator is seeded anew.
const TURNS_A_SEED: u32 = 1024;
/// Below this much free memory nothing is taken on: a turn's frames, replies and one offer's keys.
pub const MEMORY_KEPT: usize = 64 * FRAME_BYTES + 512 * 1024;

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The front closed its end.
    FrontGone,
    /// The supervisor closed its end.
    OperatorGone,
    /// The operator locked the vault.
    Locked,
    /// A caller sent what is no frame or no request, or asked out of its role.
    Misbehaved,
    /// State could not be made durable.
    StateLost,
    /// Waiting or drawing randomness failed.
    System,
}

impl End {
    /// Exit code (OPERATIONS): 8 locked; an end because somebody left is none of the vault's failures.
    #[must_use]
    pub const fn exit_code(self) -> i32 {
        match self {
            End::FrontGone | End::OperatorGone => 0,
            End::Locked => 8,
            End::Misbehaved => 5,
            End::StateLost | End::System => 1,
        }
    }
}

/// The vault's time: milliseconds of the system clock, which the vDSO serves.
#[must_use]
pub fn clock() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The vault's generator, seeded by the kernel.
///
/// # Errors
/// When the kernel gives no randomness.
pub fn generator() -> std::io::Result<ChaCha20Rng> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(ChaCha20Rng::from_seed(*seed))
}

/// What the vault writes.
pub struct Files {
    /// Its state.
    pub state: File,
    /// The two segments of the audit trail.
    pub trail: [File; 2],
}

/// One of the vault's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Its state.
    State,
    /// A segment of the audit trail.
    Trail(usize),
}

/// How what changed is made durable: in service by [`Files`]; a test counts on the way to them.
pub trait Disk {
    /// Writes all of it.
    ///
    /// # Errors
    /// The system's.
    fn write(&self, which: Which, bytes: &[u8], offset: u64) -> std::io::Result<()>;

    /// Returns once what was written is durable.
    ///
    /// # Errors
    /// The system's.
    fn sync(&self, which: Which) -> std::io::Result<()>;
}

impl Files {
    const fn of(&self, which: Which) -> &File {
        match which {
            Which::State => &self.state,
            Which::Trail(file) => &self.trail[file],
        }
    }
}

impl Disk for Files {
    fn write(&self, which: Which, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.of(which).write_all_at(bytes, offset)
    }

    fn sync(&self, which: Which) -> std::io::Result<()> {
        self.of(which).sync_data()
    }
}

/// The loop with its descriptors.
pub struct Server<D: Disk = Files> {
    vault: Vault,
    channels: [Channel; 2],
    files: D,
    random: ChaCha20Rng,
    turns: u32,
    ticked: UnixMillis,
    /// A write or fdatasync has failed: nothing is made durable any more.
    lost: bool,
}

impl<D: Disk> Server<D> {
    /// Takes the descriptors over: the front's and the operator's stream sockets and the files.
    ///
    /// # Errors
    /// When a socket cannot be made non-blocking, or the first commit (a new node's keys) cannot be made durable.
    pub fn new(
        vault: Vault,
        front: OwnedFd,
        operator: OwnedFd,
        files: D,
        random: ChaCha20Rng,
    ) -> std::io::Result<Self> {
        let channels = [Channel::new(Role::Node, front)?, Channel::new(Role::Operator, operator)?];
        let mut server = Self { vault, channels, files, random, turns: 0, ticked: clock(), lost: false };
        server.commit()?;
        Ok(server)
    }

    /// Serves until something ends it; the keys are gone then.
    pub fn serve(&mut self) -> End {
        loop {
            if let Err(end) = self.turn(TICK) {
                self.finish(end);
                return end;
            }
        }
    }

    /// The trail's last word, as far as it can still be written, and the end of the keys.
    fn finish(&mut self, end: End) {
        if !matches!(end, End::StateLost | End::Locked) {
            self.vault.close(clock(), Event::Stopped);
            let _ = self.commit();
        }
        self.vault.lose();
    }

    /// One turn: wait, read, handle, commit, reply.
    fn turn(&mut self, at_most: Duration) -> Result<(), End> {
        let heard = self.wait(at_most);
        self.renew_generator()?;
        let now = clock();
        let mut replies = Vec::new();
        let handled = self.handle_ready(now, &mut replies);
        let due = now.0.abs_diff(self.ticked.0) >= TICK.as_millis() as u64;
        if due {
            self.ticked = now;
            // A key that cannot be made shows in the requests that need it.
            let _ = self.vault.handle_timeout(now, &mut self.random);
        }
        let durable = self.commit();
        if durable.is_err() {
            for (_, reply) in &mut replies {
                reply.body = Reply::Refused(Refusal::StateLost);
            }
        }
        for (channel, reply) in replies {
            self.channels[channel].queue(&reply);
        }
        let mut flushed = Ok(());
        for index in 0..self.channels.len() {
            flushed = flushed.and(self.channels[index].flush().map_err(|lost| self.end(index, lost)));
        }
        // The gravest reason first: that a caller who misbehaved has also left says less.
        durable.map_err(|_| End::StateLost).and(heard).and(handled).and(flushed)
    }

    fn wait(&mut self, at_most: Duration) -> Result<(), End> {
        // A request that is here already, left over from a full turn, is no reason to wait.
        let at_most = if self.channels.iter().any(Channel::has_request) { Duration::ZERO } else { at_most };
        let mut waits = self.channels.each_ref().map(|channel| PollFd::new(channel.as_fd(), channel.interest()));
        poll::wait(&mut waits, Some(at_most)).map_err(|_| End::System)?;
        let ready = waits.map(|wait| wait.revents().unwrap_or(PollFlags::empty()));
        let readable = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        for (index, flags) in ready.into_iter().enumerate() {
            if flags.intersects(readable) {
                self.take_in(index)?;
            }
        }
        Ok(())
    }

    fn take_in(&mut self, index: usize) -> Result<(), End> {
        self.channels[index].take_in().map_err(|lost| self.end(index, lost))
    }

    /// Handles what waits, in turn; the reason to end, if one comes up, is kept until the replies are out.
    fn handle_ready(&mut self, now: UnixMillis, replies: &mut Vec<(usize, Frame<Reply>)>) -> Result<(), End> {
        // What is cheap and handled is not answered before it is durable: that, too, waits for one dear one at most.
        let most = if self.handle_cheap(now, replies)? > 0 { 1 } else { DEAR_A_TURN };
        for _ in 0..most {
            let mut handled = 0;
            for index in 0..self.channels.len() {
                handled += self.handle_lane(now, index, Lane::Dear, 1, replies)?;
            }
            if handled == 0 {
                break;
            }
            for index in 0..self.channels.len() {
                self.take_in(index)?;
            }
            if self.handle_cheap(now, replies)? > 0 {
                break;
            }
        }
        Ok(())
    }

    fn handle_cheap(&mut self, now: UnixMillis, replies: &mut Vec<(usize, Frame<Reply>)>) -> Result<usize, End> {
        let mut handled = 0;
        for index in 0..self.channels.len() {
            handled += self.handle_lane(now, index, Lane::Cheap, CHEAP_A_TURN, replies)?;
        }
        Ok(handled)
    }

    /// Handles at most `at_most` requests of one side's lane; how many there were.
    fn handle_lane(
        &mut self,
        now: UnixMillis,
        index: usize,
        lane: Lane,
        at_most: usize,
        replies: &mut Vec<(usize, Frame<Reply>)>,
    ) -> Result<usize, End> {
        for handled in 0..at_most {
            let next = self.channels[index].next_request(lane).map_err(|lost| self.end(index, lost))?;
            let Some(request) = next else { return Ok(handled) };
            if self.vault.must_commit() {
                self.commit().map_err(|_| End::StateLost)?;
            }
            self.handle_one(now, index, request, replies)?;
        }
        Ok(at_most)
    }

    fn handle_one(
        &mut self,
        now: UnixMillis,
        index: usize,
        request: Frame<Request>,
        replies: &mut Vec<(usize, Frame<Reply>)>,
    ) -> Result<(), End> {
        let role = self.channels[index].role;
        if arena::kind() != arena::Kind::None && arena::left() < MEMORY_KEPT && role == Role::Node {
            let body = Reply::Refused(Refusal::Capacity(Capacity::Memory));
            replies.push((index, Frame { id: request.id, body }));
            return Ok(());
        }
        let outcome = self.vault.handle(now, &mut self.random, role, request);
        replies.push((index, outcome.reply));
        match (outcome.ended, outcome.hang_up) {
            (true, _) => Err(End::Locked),
            (false, true) => Err(End::Misbehaved),
            (false, false) => Ok(()),
        }
    }

    /// Makes every change so far durable: the writes, then one fdatasync. Fails once and for all.
    fn commit(&mut self) -> std::io::Result<()> {
        let committed = if self.lost { Err(std::io::ErrorKind::Other.into()) } else { self.write_changes() };
        if committed.is_err() {
            self.lost = true;
            self.vault.lose();
        }
        committed
    }

    fn write_changes(&mut self) -> std::io::Result<()> {
        let changes = self.vault.commit(&mut self.random).map_err(std::io::Error::other)?;
        // The trail first: what the state says of it is then never ahead of it.
        for write in &changes.trail {
            self.files.write(Which::Trail(write.file), &write.bytes, write.offset)?;
            self.files.sync(Which::Trail(write.file))?;
        }
        for write in &changes.state {
            self.files.write(Which::State, &write.bytes, write.offset)?;
        }
        if changes.state.is_empty() { Ok(()) } else { self.files.sync(Which::State) }
    }

    fn renew_generator(&mut self) -> Result<(), End> {
        self.turns += 1;
        if self.turns >= TURNS_A_SEED {
            self.turns = 0;
            self.random = generator().map_err(|_| End::System)?;
        }
        Ok(())
    }

    fn end(&mut self, channel: usize, lost: Lost) -> End {
        match (lost, self.channels[channel].role) {
            (Lost::Misframed, _) => End::Misbehaved,
            (Lost::Malformed, _) => {
                self.vault.malformed(clock());
                End::Misbehaved
            }
            (Lost::Gone, Role::Node) => End::FrontGone,
            (Lost::Gone, Role::Operator) => End::OperatorGone,
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
