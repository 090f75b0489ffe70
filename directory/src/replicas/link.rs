//! The connection to NATS: opened, subscribed, read and written by one task, and made again after a loss, with pauses that grow and are
//! never the same for two replicas. What it cannot send is not kept: offers are either heard by the others now or refused by name.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::message::{Letter, Word};
use super::nats::{self, Garbled, Info, Reader, Said};
use super::target::Target;
use super::{Outbox, Replicas, To, have};
use crate::limits::{BEAT, BEAT_LOST, COMPARE, LETTER_BYTES, LETTER_ENTRIES, UNACKNOWLEDGED_TIME};
use crate::state::Directory;

/// A server on the same network answers in milliseconds.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// A server that takes nothing for so long is as good as away.
const WRITE_TIME: Duration = Duration::from_secs(5);
/// The first pause after a failed attempt; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Words that go out in one write.
const BATCH: usize = 64;
/// Our subscriptions: letters to all, letters to this run.
const ALL: u64 = 1;
const ONE: u64 = 2;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Garbled(#[from] Garbled),
    #[error("it does not answer")]
    Silent,
    #[error("it closed the connection")]
    Closed,
    #[error("it refuses: {0}")]
    Refused(String),
    #[error("it speaks TLS alone: set replicas.certificates")]
    WantsTls,
    #[error("it speaks no TLS, and replicas.certificates is set")]
    NoTls,
    #[error("its max_payload is too small: {0} bytes, and letters have up to {LETTER_BYTES}")]
    Small(u64),
    #[error("the system has no randomness")]
    NoRandomness,
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A connection that is open and lets us in.
struct Session<'a> {
    directory: &'a Directory,
    replicas: &'a Replicas,
    wire: Box<dyn Wire>,
    reader: Reader,
    to_us: String,
}

/// Keeps the connection until this replica says goodbye.
pub async fn run(directory: Arc<Directory>, replicas: Arc<Replicas>, mut words: Outbox, target: Target) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut begun = None;
        let lost = match timeout(CONNECT_TIME, open(&target)).await {
            Err(_) => Lost::Silent,
            Ok(Err(lost)) => lost,
            Ok(Ok((wire, reader))) => {
                tracing::info!("connected to NATS");
                begun = Some(Instant::now());
                // What was said while nobody heard is compared now, not told.
                while words.try_recv().is_ok() {}
                let to_us = replicas.keys.to_one(&replicas.run);
                let session = Session { directory: &directory, replicas: &replicas, wire, reader, to_us };
                match session.go_on(&mut words).await {
                    Ok(()) => return,
                    Err(lost) => lost,
                }
            }
        };
        replicas.cut();
        tracing::warn!(why = %lost, "no connection to NATS");
        if begun.is_some_and(|begun| begun.elapsed() > LONGEST_PAUSE) {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// A pause between half of it and the whole: replicas that lost the same server do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    let _ = getrandom::fill(&mut byte);
    pause / 2 + pause / 2 * u32::from(byte[0]) / 255
}

async fn open(target: &Target) -> Result<(Box<dyn Wire>, Reader), Lost> {
    let mut stream = Err(Lost::Silent);
    for address in &target.addresses {
        stream = TcpStream::connect(address).await.map_err(Lost::Io);
        if stream.is_ok() {
            break;
        }
    }
    let stream = stream?;
    stream.set_nodelay(true)?;
    let silence = u32::try_from(UNACKNOWLEDGED_TIME.as_millis()).unwrap_or(u32::MAX);
    // A failure here is the connection ending: the next read says so.
    let _ = setsockopt(&stream, sockopt::TcpUserTimeout, &silence);
    let (mut wire, mut reader): (Box<dyn Wire>, _) = (Box::new(stream), Reader::default());
    let Said::Info(Info { tls_required, max_payload }) = heard(&mut wire, &mut reader).await? else {
        return Err(Garbled.into());
    };
    if max_payload < LETTER_BYTES as u64 {
        return Err(Lost::Small(max_payload));
    }
    match &target.tls {
        None if tls_required => return Err(Lost::WantsTls),
        None => {}
        Some((connector, name)) => {
            // What came in the clear behind its first line is nobody's word.
            reader = Reader::default();
            let secured = connector.connect(name.clone(), wire).await;
            wire = Box::new(secured.map_err(|error| if tls_required { error.into() } else { Lost::NoTls })?);
        }
    }
    let login = target.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
    wire.write_all(&nats::connect(target.tls.is_some(), login)).await?;
    wire.flush().await?;
    loop {
        match heard(&mut wire, &mut reader).await? {
            Said::Pong => return Ok((wire, reader)),
            Said::Refused(why) => return Err(Lost::Refused(why)),
            _ => {}
        }
    }
}

/// The next thing that the server says.
async fn heard(wire: &mut Box<dyn Wire>, reader: &mut Reader) -> Result<Said, Lost> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(said) = reader.said()? {
            return Ok(said);
        }
        match wire.read(&mut buffer).await? {
            0 => return Err(Lost::Closed),
            length => reader.feed(&buffer[..length]),
        }
    }
}

impl Session<'_> {
    /// Speaks and hears until the connection ends, or until this replica has said goodbye.
    async fn go_on(mut self, words: &mut Outbox) -> Result<(), Lost> {
        let mut greeting = nats::subscribe(self.replicas.keys.to_all(), ALL);
        greeting.extend(nats::subscribe(&self.to_us, ONE));
        self.write(&greeting).await?;
        self.say(self.compare(true)).await?;
        let (mut beat, mut compare) = (interval(BEAT), interval(COMPARE));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        compare.reset();
        let begun = Instant::now();
        // Whether its words came back when it last looked; not known before they have once.
        let mut was_up = None;
        let mut buffer = vec![0; LETTER_BYTES];
        loop {
            let said = tokio::select! {
                read = self.wire.read(&mut buffer) => {
                    let length = read?;
                    if length == 0 {
                        return Err(Lost::Closed);
                    }
                    self.reader.feed(&buffer[..length]);
                    self.take_in().await?
                }
                Some(word) = words.recv() => {
                    let more = std::iter::from_fn(|| words.try_recv().ok()).take(BATCH - 1);
                    std::iter::once(word).chain(more).collect()
                }
                () = self.replicas.news.notified() => self.news(),
                _ = compare.tick() => self.compare(false),
                _ = beat.tick() => {
                    // Its own beats come back in each second, or this is no way to the others.
                    let echo = self.replicas.state().echo;
                    if echo.map_or(begun.elapsed(), |echo| echo.elapsed()) > 2 * BEAT_LOST {
                        return Err(Lost::Silent);
                    }
                    let up = self.replicas.is_up();
                    // A way that was gone and is there again under an open connection: what it took meanwhile is here alone.
                    let back = up && was_up == Some(false);
                    was_up = was_up.or(up.then_some(true)).map(|_| up);
                    if back { self.compare(true) } else { vec![(To::All, self.beat(false))] }
                }
            };
            let goes = said.iter().any(|(_, word)| *word == Word::Bye);
            self.say(said).await?;
            self.replicas.served();
            if goes {
                return Ok(());
            }
        }
    }

    /// What waits here, for all to ask for what they miss; with a greeting they are to tell what waits there, too.
    fn compare(&self, hello: bool) -> Vec<(To, Word)> {
        let greeting = hello.then(|| self.beat(true));
        let waiting = self.directory.mailboxes().keys();
        greeting.into_iter().chain(have(&waiting)).map(|word| (To::All, word)).collect()
    }

    fn beat(&self, hello: bool) -> Word {
        Word::Beat { name: self.replicas.name.clone(), hello }
    }

    /// What the mailboxes have to tell.
    fn news(&self) -> Vec<(To, Word)> {
        let news = self.directory.mailboxes().news();
        let done = news.done.chunks(LETTER_ENTRIES).map(|entries| Word::Done(entries.to_vec()));
        let shown = news.shown.chunks(LETTER_ENTRIES).map(|entries| Word::Shown(entries.to_vec()));
        shown.chain(done).map(|word| (To::All, word)).collect()
    }

    /// Takes in what has come; what is to be said to it.
    async fn take_in(&mut self) -> Result<Vec<(To, Word)>, Lost> {
        let mut answers = Vec::new();
        while let Some(said) = self.reader.said()? {
            match said {
                Said::Message(subscription, letter) => {
                    let subject = if subscription == ONE { self.to_us.as_str() } else { self.replicas.keys.to_all() };
                    let opened = self.replicas.keys.open(subject, &letter).and_then(|plain| Letter::decode(&plain));
                    match opened {
                        Some(letter) => answers.extend(self.replicas.hear(self.directory, letter)),
                        None => self.replicas.refused.add(),
                    }
                }
                Said::Ping => self.write(b"PONG\r\n").await?,
                Said::Refused(why) => return Err(Lost::Refused(why)),
                Said::Info(_) | Said::Pong => {}
            }
        }
        Ok(answers)
    }

    /// Seals words and sends them.
    async fn say(&mut self, words: Vec<(To, Word)>) -> Result<(), Lost> {
        let mut bytes = Vec::new();
        for (to, word) in words {
            let count = {
                let mut state = self.replicas.state();
                state.count += 1;
                state.count
            };
            let (run, number, at) = (self.replicas.run, self.replicas.number, self.directory.now().0);
            let letter = Letter { run, number, count, at, word }.encode();
            let keys = &self.replicas.keys;
            let one;
            let subject = match to {
                To::All => keys.to_all(),
                To::One(run) => {
                    one = keys.to_one(&run);
                    &one
                }
            };
            let sealed = keys.seal(subject, &letter).ok_or(Lost::NoRandomness)?;
            nats::publish(&mut bytes, subject, &sealed);
        }
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let written = async {
            self.wire.write_all(bytes).await?;
            self.wire.flush().await
        };
        timeout(WRITE_TIME, written).await.map_err(|_| Lost::Silent)?.map_err(Lost::Io)
    }
}
