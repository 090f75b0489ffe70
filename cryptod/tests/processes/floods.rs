//! One who asks without end, beside one who asks now and then. All of what is asked is real work, which the vault does: a flood of what it
//! refuses at a glance would show nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use openred_proto::cryptod as rpc;
use openred_proto::limits::HALF_OPEN_PER_LINK;
use openred_proto::refusal::REFUSAL_HEADER;
use openred_proto::vault::Refusal;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::peer::{offer, rows};
use super::service::Client;
use super::trio::World;
use crate::{block_on, home};

/// Calls of who asks now and then; far under the quota of descriptions.
const ROUNDS: usize = 50;
/// Callers of a flood: many times the places that one connection has.
const FLOODING: usize = 256;
/// Links, each with as many half-open handshakes as it may have: several times the places of dear calls.
const LINKS: usize = 16;
/// Dear calls at once, above the 256 of one connection that may wait.
const AT_ONCE: usize = 300;
/// Of those, what the quota of offers lets through at once; one was used by the control.
const OFFERS: usize = 190;

/// What a flood came to so far.
#[derive(Default)]
struct Flood {
    served: AtomicUsize,
    stop: AtomicBool,
}

/// The vault has more of these to do than the operator lets it: an answer of its own, not a failure.
fn is_quota(status: &Status) -> bool {
    let code = status.metadata().get(REFUSAL_HEADER).and_then(|code| code.to_str().ok());
    code == Some(Refusal::Quota.code())
}

impl Flood {
    /// Asks one after the other until it is stopped; how often it was served. What is over the quota is not counted.
    fn begin<F: Future<Output = Result<(), Status>> + Send + 'static>(
        self: &Arc<Self>,
        mut one: impl FnMut() -> F + Send + 'static,
    ) -> JoinHandle<usize> {
        let flood = Arc::clone(self);
        tokio::spawn(async move {
            let mut served = 0;
            while !flood.stop.load(Ordering::Relaxed) {
                match one().await {
                    Ok(()) => {
                        served += 1;
                        flood.served.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(status) => assert!(is_quota(&status), "{status}"),
                }
            }
            served
        })
    }

    /// Lets others ask in the middle of it: each is served, and so is the flood meanwhile, every caller of it.
    async fn beside(&self, others: &mut [Client], flooding: Vec<JoinHandle<usize>>) {
        while self.served.load(Ordering::Relaxed) < flooding.len() {
            tokio::task::yield_now().await;
        }
        let before = self.served.load(Ordering::Relaxed);
        for round in 0..ROUNDS {
            for other in &mut *others {
                let described = other.describe(rpc::DescribeRequest {}).await;
                assert!(described.is_ok(), "round {round}: {described:?}");
            }
        }
        let meanwhile = self.served.load(Ordering::Relaxed) - before;
        assert!(meanwhile > 0, "the flood was at work all the time");
        self.stop.store(true, Ordering::Relaxed);
        for caller in flooding {
            assert!(caller.await.unwrap() > 0, "who floods is served too, in his turn");
        }
    }
}

/// A connection that asks for what is cheap without end, and another that asks now and then: both are served, also what the new
/// connection asks before it was told how much it may.
pub(crate) fn flood_of_cheap(world: &World<'_>, place: &Path) {
    let (home, node) = home(world, place, "alice");
    let trio = home.start(b"p");
    block_on(async {
        let mut other = trio.client().await;
        let row = rows(&mut other, node, 1).await.remove(0);
        let flood = Arc::new(Flood::default());
        // On a connection that has not asked for anything yet.
        let fresh = trio.client().await;
        let calls = (0..FLOODING).map(|_| {
            let (client, row) = (fresh.clone(), row.clone());
            flood.begin(move || {
                let (mut client, row) = (client.clone(), row.clone());
                async move { client.get_link_keys(rpc::LinkRow { row }).await.map(drop) }
            })
        });
        let calls = calls.collect();
        flood.beside(&mut [other], calls).await;
    });
}

/// Handshakes without end, each of them begun in earnest; what is cheap passes them, on the same connection and on another.
pub(crate) fn flood_of_dear(world: &World<'_>, place: &Path) {
    let (home, node) = home(world, place, "alice");
    let trio = home.start(b"p");
    block_on(async {
        let (mut flooding, other) = (trio.client().await, trio.client().await);
        let rows = rows(&mut flooding, node, LINKS).await;
        let flood = Arc::new(Flood::default());
        let calls = (0..LINKS * HALF_OPEN_PER_LINK).map(|call| {
            let (client, row) = (flooding.clone(), rows[call % LINKS].clone());
            flood.begin(move || {
                let (mut client, row) = (client.clone(), row.clone());
                async move {
                    let handshake = client.start_handshake(rpc::LinkRow { row }).await?.into_inner().handshake;
                    // Or the link has no room for the next.
                    while let Err(status) =
                        client.abandon_handshake(rpc::HandshakeName { handshake: handshake.clone() }).await
                    {
                        assert!(is_quota(&status), "{status}");
                    }
                    Ok(())
                }
            })
        });
        let calls = calls.collect();
        flood.beside(&mut [flooding.clone(), other], calls).await;
    });
}

/// Of dear calls on one connection a bounded number waits, and is served; the rest is told so at once, and costs the vault nothing.
pub(crate) fn many_dear_at_once(world: &World<'_>, place: &Path) {
    let (home, node) = home(world, place, "alice");
    let trio = home.start(b"p");
    block_on(async {
        let mut client = trio.client().await;
        let offer = offer(&mut client, node).await;
        client.inspect_offer(offer.clone()).await.unwrap();
        let calls: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let (mut client, offer) = (client.clone(), offer.clone());
                tokio::spawn(async move { client.inspect_offer(offer).await.map(drop) })
            })
            .collect();
        let (mut served, mut over_quota, mut turned_away) = (0, 0, 0);
        for call in calls {
            match call.await.unwrap() {
                Ok(()) => served += 1,
                Err(status) if is_quota(&status) => over_quota += 1,
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                    turned_away += 1;
                }
            }
        }
        assert!(served >= OFFERS, "{served} offers were opened");
        assert!(served + over_quota >= 256 && turned_away > 0, "{served}, {over_quota} and {turned_away}");
    });
}
