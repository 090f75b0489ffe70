//! Files between linked nodes, named by the BLAKE3 hash of their content and verified piece by piece while they arrive.
//!
//! The way of a file: the operator's `POST /share/{to}/{name}` streams it into a blob while it is hashed; its hash is its id. The peer's
//! operator asks `POST /fetch/{peer}/{id}`: this side takes the description (`GET /meta/{id}`), the hashes of the pieces
//! (`GET /pieces/{id}`, which must combine to the id) and then the pieces (`GET /range/{id}/{from}/{length}`), several at a
//! time, each verified before it counts. A transfer that was cut short goes on with every piece that is on the disk and
//! still has its hash.
//!
//! Files: [`tree`] is the arithmetic of pieces and hashes, [`share`] what this node offers, [`serve`] the peer's routes, [`fetch`] the
//! receiving side, [`attach`] what modules may ask, [`readers`] who may read, [`offers`] lists for peers, [`link`] and [`door`] links that let in whoever holds them, [`tries`] the bound
//! on wrong ones, [`document`] the JSON.
//!
//! It does not encrypt (sessions do), and opens no file: blobs are the host's.
#![forbid(unsafe_code)]

mod attach;
mod document;
mod door;
mod error;
mod fetch;
mod link;
mod names;
mod offers;
mod readers;
mod serve;
mod settings;
mod share;
mod transfer;
mod tree;
mod tries;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use openred_module::{Context, Event, Module, ModuleError, NodeId, Routes};
use tokio::sync::Semaphore;

pub use document::{Attached, Audience, Meta, Offer, Offers, Progress, ShareView, Shares, TransferView, Transfers};
pub use door::{LinkOrder, LinkView, Links, MadeLink};
pub use fetch::ByLink;
pub use link::LinkName;
pub use tree::{FILE_LIMIT, FileId, PIECE};

/// The module. All that must survive is in the host's store; this holds which transfers run.
#[derive(Default)]
pub struct Files {
    /// Files that are written now, so that no two write the same blob, and which of them by a transfer.
    running: Mutex<HashMap<FileId, transfer::Work>>,
    /// Which peers content is fetched of now, and how many answers of each may be read at the same time.
    fetched_of: Mutex<HashMap<NodeId, Weak<Semaphore>>>,
    /// Held while a link is made.
    making: futures_util::lock::Mutex<()>,
    /// What peers have tried of late.
    tries: Mutex<tries::Tries>,
    /// Goes up when somebody may read less than before: what is being read then asks again.
    revision: AtomicU64,
}

impl Files {
    /// Who may read what has changed.
    pub(crate) fn changed(&self) {
        self.revision.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }
}

#[openred_module::module]
impl Module for Files {
    fn routes(routes: &mut Routes<Self>) {
        routes.post("/share/{to}/{name}", Self::share);
        routes.get("/shares", Self::shares);
        routes.post("/audience/{id}", Self::set_audience);
        routes.post("/unshare/{id}", Self::unshare);
        routes.post("/attach/{peer}/{id}", Self::attach);
        routes.post("/fetch/{peer}/{id}", Self::fetch);
        routes.get("/read/{id}", Self::read);
        routes.get("/transfers", Self::transfers);
        routes.post("/remove/{id}", Self::remove);
        routes.get("/shares/{after}", Self::shares);
        routes.post("/admit/{id}/{peer}", Self::admit);
        routes.post("/exclude/{id}/{peer}", Self::exclude);
        routes.get("/offered/{peer}/{after}", Self::offered);
        routes.post("/link/{id}", Self::make_link);
        routes.get("/links", Self::links);
        routes.post("/revoke/{link}", Self::revoke);
        routes.post("/fetch-link", Self::fetch_link);
        routes.get("/meta/{id}", Self::meta);
        routes.get("/pieces/{id}", Self::pieces);
        routes.get("/range/{id}/{from}/{length}", Self::range);
        routes.get("/offers/{after}", Self::offers);
        routes.post("/redeem/{id}", Self::redeem);
        routes.get("/by/{ticket}/meta/{id}", Self::meta);
        routes.get("/by/{ticket}/pieces/{id}", Self::pieces);
        routes.get("/by/{ticket}/range/{id}/{from}/{length}", Self::range);
    }

    async fn start(self: Arc<Self>, context: Context) -> Result<(), ModuleError> {
        share::drop_unfinished(&context).await?;
        door::sweep(&context).await?;
        Ok(())
    }

    async fn event(self: Arc<Self>, _: Context, event: Event) {
        if let Event::IdentitiesChanged(_) | Event::PeerForgotten(_) = event {
            self.changed();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    #[test]
    fn the_manifest_lets_pass_what_the_code_takes() {
        let manifest =
            openred_module::manifest::Manifest::parse("openred.toml", include_str!("../openred.toml")).unwrap();
        let share = manifest.routes.iter().find(|route| route.path.as_str() == "/share/{to}/{name}").unwrap();
        assert_eq!(share.body_bytes, super::FILE_LIMIT);
    }
}
