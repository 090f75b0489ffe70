//! What a module of a test host connects to: destinations that the test answers for, as many at a time as at a real node, and what goes wrong with them.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::TestHost;
use super::fault::corrupted;
use super::node::Node;
use crate::body::{Body, BodyError};
use crate::network::DialError;

/// Connections at a time, as at a node.
const CONNECTIONS: usize = 16;
/// How long a node waits for a destination to answer, in milliseconds.
const CONNECT_MILLIS: u64 = 10_000;
/// How long it keeps a connection over which nothing comes.
const QUIET_MILLIS: u64 = 600_000;

/// What goes wrong with one connection of [`crate::Context::dial`]. They are used up in order, one a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFault {
    /// This one goes well.
    None,
    /// There is no connection, for this reason.
    Refuse(DialError),
    /// The destination accepts so many milliseconds later: this node's clock has moved on by then, and after ten seconds it is
    /// [`DialError::TimedOut`].
    Late(u64),
    /// The other side ends the connection after so many bytes, as if that were all.
    EndAfter(u64),
    /// The connection breaks after so many bytes: [`BodyError::Failed`].
    BreakAfter(u64),
    /// After so many bytes nothing comes any more: ten minutes later the node gives up with [`BodyError::TimedOut`].
    StallAfter(u64),
    /// One bit of what comes is flipped in the byte at this offset.
    Corrupt(u64),
}

/// A destination: what it answers to what it is sent.
type Serve = Arc<dyn Fn(Body) -> Body + Send + Sync>;

/// What `State` keeps for this file.
pub(super) struct Egress {
    destinations: Vec<(String, Serve)>,
    pub(super) faults: VecDeque<DialFault>,
    dials: u64,
    places: Arc<Semaphore>,
    /// Ends what is open.
    ends: watch::Sender<u64>,
}

impl Default for Egress {
    fn default() -> Self {
        let (destinations, faults, dials) = Default::default();
        let (places, ends) = (Arc::new(Semaphore::new(CONNECTIONS)), watch::Sender::new(0));
        Self { destinations, faults, dials, places, ends }
    }
}

impl Egress {
    /// The node ends, and its connections with it.
    pub(super) fn end_all(&mut self) {
        self.places = Arc::new(Semaphore::new(CONNECTIONS));
        self.ends.send_modify(|ends| *ends += 1);
    }
}

impl TestHost {
    /// Grants `net.egress` to this destination, written as the module writes it, and answers there: what the module sends goes in, what it hears comes out, both as
    /// they are pulled. No socket is opened, and no name looked up. A destination that is named again is answered anew.
    ///
    /// ```
    /// use openred_module::{Body, DialError, DialFault, TestHost};
    ///
    /// # use openred_module::{Manifest, Module, Routes};
    /// # struct Quiet;
    /// # impl Module for Quiet {
    /// #     fn manifest(&self) -> Manifest { Manifest { id: "quiet", version: "1.0.0", summary: "" } }
    /// #     fn routes(_: &mut Routes<Self>) {}
    /// # }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let host = TestHost::start(1, Quiet).await;
    /// let dial = async |to: &str| host.context().dial(to, Body::whole("ping")).await;
    /// assert_eq!(dial("api.example:443").await.err(), Some(DialError::NotGranted));
    ///
    /// // What is sent comes back.
    /// host.grant_egress("api.example:443", |sent| sent);
    /// assert_eq!(&dial("api.example:443").await.unwrap().collect(100).await.unwrap()[..], b"ping");
    ///
    /// host.dial_faults([DialFault::Refuse(DialError::Unreachable), DialFault::EndAfter(2)]);
    /// assert_eq!(dial("api.example:443").await.err(), Some(DialError::Unreachable));
    /// assert_eq!(&dial("api.example:443").await.unwrap().collect(100).await.unwrap()[..], b"pi");
    /// # }
    /// ```
    pub fn grant_egress(&self, to: &str, serve: impl Fn(Body) -> Body + Send + Sync + 'static) {
        let mut state = self.node.state();
        state.egress.destinations.retain(|(known, _)| known != to);
        state.egress.destinations.push((to.to_owned(), Arc::new(serve)));
    }

    /// Queues faults for the coming connections of the module to destinations that it was granted.
    pub fn dial_faults(&self, faults: impl IntoIterator<Item = DialFault>) {
        self.node.state().egress.faults.extend(faults);
    }

    /// Connections that the module has had tried, to destinations that it was granted.
    pub fn dials(&self) -> u64 {
        self.node.state().egress.dials
    }
}

impl Node {
    /// Connects, if that is granted.
    pub(super) async fn dial_here(&self, to: &str, sent: Body) -> Result<Body, DialError> {
        let (serve, fault, held) = self.begin_dial(to)?;
        // Lets other tasks in between, as a real connection does.
        tokio::task::yield_now().await;
        let answer = serve(sent);
        let answer = match fault {
            DialFault::EndAfter(most) => cut(answer, most, None, Weak::new()),
            DialFault::BreakAfter(most) => cut(answer, most, Some(BodyError::Failed), Weak::new()),
            DialFault::StallAfter(most) => cut(answer, most, Some(BodyError::TimedOut), self.this()),
            DialFault::Corrupt(at) => corrupted(answer, at),
            DialFault::None | DialFault::Refuse(_) | DialFault::Late(_) => answer,
        };
        Ok(held_open(answer, held))
    }

    fn begin_dial(&self, to: &str) -> Result<(Serve, DialFault, Held), DialError> {
        let mut state = self.state();
        let known = state.egress.destinations.iter().find(|(known, _)| known == to);
        let serve = known.filter(|_| !state.beside.refused).map(|(_, serve)| Arc::clone(serve));
        let serve = serve.ok_or(DialError::NotGranted)?;
        state.egress.dials += 1;
        let place = Arc::clone(&state.egress.places).try_acquire_owned().map_err(|_| DialError::Busy)?;
        if state.offline {
            return Err(DialError::Unreachable);
        }
        let fault = state.egress.faults.pop_front().unwrap_or(DialFault::None);
        match fault {
            DialFault::Refuse(error) => return Err(error),
            DialFault::Late(millis) => {
                state.now += millis.min(CONNECT_MILLIS);
                if millis > CONNECT_MILLIS {
                    return Err(DialError::TimedOut);
                }
            }
            _ => {}
        }
        let ends = state.egress.ends.subscribe();
        Ok((serve, fault, Held { ends, _place: place }))
    }
}

/// What an open connection has of its node.
struct Held {
    ends: watch::Receiver<u64>,
    _place: OwnedSemaphorePermit,
}

/// The answer until the node ends, with its place.
fn held_open(answer: Body, held: Held) -> Body {
    Body::stream(unfold(Some((answer, held)), |open| async {
        let (mut answer, mut held) = open?;
        tokio::select! {
            biased;
            // The node is in its callers' hands: without it nobody would ask.
            _ = held.ends.changed() => Some((Err(BodyError::Failed), None)),
            item = answer.next() => match item? {
                Ok(bytes) => Some((Ok(bytes), Some((answer, held)))),
                Err(error) => Some((Err(error), None)),
            },
        }
    }))
}

/// No more than so many bytes of it, and then this; `late` waits for that until nobody does any more.
fn cut(answer: Body, most: u64, end: Option<BodyError>, late: Weak<Node>) -> Body {
    Body::stream(unfold(Some((answer, most, late)), move |open| async move {
        let (mut answer, left, late) = open?;
        if left == 0 {
            if let Some(node) = late.upgrade() {
                node.state().now += QUIET_MILLIS;
            }
            return end.map(|error| (Err(error), None));
        }
        let bytes: Bytes = match answer.next().await? {
            Ok(bytes) => bytes,
            Err(error) => return Some((Err(error), None)),
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        Some((Ok(bytes.slice(..most)), Some((answer, left - most as u64, late))))
    }))
}
