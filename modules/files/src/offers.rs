//! Lists of what a peer shares with this node, from both sides: a page at a time, each row looked at once.
//!
//! A page ends after so many rows of the sharing node, not after so many that the caller may see: else a caller could have all of them read for
//! nothing. So a cursor may have to stand at a file that the caller may not know of; it is sealed, for that caller alone, and
//! names the same place for as long as the node has its rows. In: rows of shares. Out: `Offers`.

use std::sync::Arc;

use openred_module::{
    Committed, Context, HostError, ModuleError, NodeId, PeerRequest, Request, Response, Scan, Status,
};

use crate::Files;
use crate::document::{Offer, Offers, ShareView, VERSION};
use crate::error::FilesError;
use crate::link::read_hex;
use crate::names;
use crate::readers;
use crate::tree::{FILE_LIMIT, FileId, HASH};

/// Rows that one page looks at.
pub(crate) const PAGE: usize = 200;
/// Longest page that is read of a peer: [`PAGE`] files with the longest names, and room.
const PAGE_BYTES: usize = 512 * 1024;
/// How the first page is asked for.
const START: &str = "start";
/// Bytes of a cursor's tag.
const TAG: usize = 16;
/// Longest cursor of a peer that is handed back to it.
const CURSOR_LIMIT: usize = 128;
/// How long a peer may take to begin an answer.
const HEAD_TIMEOUT: u64 = 30_000;

/// Seals the place where a caller's list goes on. The tag is a function of place and caller, and the pad of the tag (a synthetic nonce, as in
/// RFC 5297), so the same place has the same cursor and two places share no pad.
struct Cursors([u8; HASH]);

impl Cursors {
    /// For one caller.
    async fn of(context: &Context, caller: NodeId) -> Result<Self, HostError> {
        loop {
            if let Some(key) = context.get(names::CURSOR_KEY).await? {
                let key: &[u8; HASH] = key.as_ref().try_into().map_err(|_| HostError::Storage)?;
                return Ok(Self(*blake3::keyed_hash(key, caller.as_bytes()).as_bytes()));
            }
            let fresh = [context.unique_id(), context.unique_id()].concat();
            if context.compare_and_set(names::CURSOR_KEY, None, fresh).await? == Committed::Yes {
                continue;
            }
        }
    }

    fn tag(&self, id: &[u8; HASH]) -> [u8; TAG] {
        let hash = blake3::keyed_hash(&self.0, &[b"tag".as_slice(), id].concat());
        *hash.as_bytes().first_chunk().expect("a hash is longer than a tag")
    }

    fn pad(&self, tag: &[u8; TAG]) -> [u8; HASH] {
        *blake3::keyed_hash(&self.0, &[b"pad".as_slice(), tag].concat()).as_bytes()
    }

    fn seal(&self, id: &FileId) -> String {
        let tag = self.tag(id.as_bytes());
        let sealed: Vec<u8> = id.as_bytes().iter().zip(self.pad(&tag)).map(|(byte, pad)| byte ^ pad).collect();
        hex::encode([tag.as_slice(), &sealed].concat())
    }

    fn open(&self, text: &str) -> Option<FileId> {
        let bytes = read_hex::<{ TAG + HASH }>(text)?;
        let (tag, sealed) = bytes.split_first_chunk::<TAG>()?;
        let pad = self.pad(tag);
        let mut id = [0; HASH];
        id.iter_mut().zip(sealed.iter().zip(pad)).for_each(|(byte, (sealed, pad))| *byte = sealed ^ pad);
        // A caller who has no such cursor learns nothing from the time that this takes: it knows no tag of any place.
        (self.tag(&id) == *tag).then(|| FileId::from_bytes(id))
    }
}

fn bad_cursor() -> ModuleError {
    ModuleError::bad_request("bad-cursor", "not a place in this list; begin anew with `start`")
}

/// The place after which a list of this node's own goes on, as the operator names it.
pub(crate) fn own_place(text: &str) -> Result<Option<FileId>, ModuleError> {
    match text {
        "" | START => Ok(None),
        id => id.parse().map(Some).map_err(|_| bad_cursor()),
    }
}

/// Whether a peer keeps to what a page may be.
fn is_sound(page: &Offers, asked: &str) -> bool {
    let is_file = |offer: &Offer| names::is_file_name(&offer.name) && offer.length <= FILE_LIMIT;
    let is_ordered = page.files.is_sorted_by(|one, next| one.id < next.id);
    page.v == VERSION
        && page.files.len() <= PAGE
        && is_ordered
        && page.files.iter().all(is_file)
        && page.next.as_deref().is_none_or(|next| is_place(next) && next != asked && next != START)
}

/// Whether a peer's cursor can be a part of a path.
fn is_place(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=CURSOR_LIMIT).contains(&text.len()) && text.bytes().all(plain)
}

impl Files {
    /// For a peer: what it may fetch.
    pub(crate) async fn offers(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let peer = request.peer()?;
        let ids = context.identities(peer).await?;
        let cursors = Cursors::of(&context, *ids.first().unwrap_or(&peer)).await?;
        let after = match request.params.get("after") {
            START => None,
            text => Some(cursors.open(text).ok_or_else(bad_cursor)?),
        };
        let scan = Scan::prefix(names::SHARES).after(after.map(|id| names::row(names::SHARES, &id))).limit(PAGE);
        let page = context.scan(scan).await?;
        let mut files = Vec::new();
        for (_, row) in &page.rows {
            let share: ShareView = serde_json::from_slice(row).map_err(|_| HostError::Storage)?;
            if readers::admits(&share.audience, &ids) {
                files.push(Offer { id: share.id, name: share.name, length: share.length });
            }
        }
        let last = page.rows.last().filter(|_| page.more).and_then(|(key, _)| names::file_of(names::SHARES, key));
        Response::json(Status::Ok, &Offers { v: VERSION, files, next: last.map(|id| cursors.seal(&id)) })
    }

    /// For the operator: one page of what a peer shares with this node.
    pub(crate) async fn offered(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let peer: NodeId = request.params.get("peer").parse().map_err(|_| FilesError::BadPeer)?;
        let after = request.params.get("after");
        if !is_place(after) {
            return Err(bad_cursor());
        }
        let mut ask = PeerRequest::get(format!("/offers/{after}"));
        ask.deadline = Some(context.now() + HEAD_TIMEOUT);
        let response = context.peer_request(peer, ask).await.map_err(FilesError::from)?;
        if !response.status.is_success() {
            return Err(FilesError::PeerRefused { status: response.status.code() }.into());
        }
        let page = response.body.collect(PAGE_BYTES).await.map_err(FilesError::from)?;
        let page = serde_json::from_slice::<Offers>(&page).ok().filter(|page| is_sound(page, after));
        Response::json(Status::Ok, &page.ok_or(FilesError::PeerMeta)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_is_its_callers_alone_and_shows_nothing(key: [u8; 32], other: [u8; 32], id: [u8; 32], at in 0_usize..96) {
            prop_assume!(key != other);
            let (cursors, id) = (Cursors(key), FileId::from_bytes(id));
            let text = cursors.seal(&id);
            prop_assert_eq!(&text, &cursors.seal(&id));
            prop_assert!(is_place(&text));
            prop_assert_eq!(cursors.open(&text), Some(id));
            prop_assert_eq!(Cursors(other).open(&text), None);
            let mut changed = text.clone();
            let digit = if &text[at..=at] == "0" { "1" } else { "0" };
            changed.replace_range(at..=at, digit);
            prop_assert_eq!(cursors.open(&changed), None);
        }

        #[test]
        fn any_text_is_no_cursor(text in ".{0,120}") {
            prop_assert_eq!(Cursors([1; 32]).open(&text), None);
        }

        #[test]
        fn any_page_of_a_peer_is_judged_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(page) = serde_json::from_slice::<Offers>(&bytes) {
                is_sound(&page, START);
            }
        }
    }

    #[test]
    fn pages_that_break_a_rule_are_refused() {
        let offer = |seed: u8, name: &str| Offer { id: FileId::from_bytes([seed; 32]), name: name.into(), length: 1 };
        let page = |files: Vec<Offer>, next: Option<&str>| Offers { v: 1, files, next: next.map(str::to_owned) };
        assert!(is_sound(&page(vec![offer(1, "a"), offer(2, "b")], Some("00ff")), START));
        for bad in [
            page(vec![offer(2, "a"), offer(1, "b")], None),
            page(vec![offer(1, "a"), offer(1, "a")], None),
            page(vec![offer(1, "../a")], None),
            page(vec![offer(1, "\u{1b}[2J")], None),
            page(vec![Offer { length: FILE_LIMIT + 1, ..offer(1, "a") }], None),
            page((0..=200).map(|seed| offer(seed, "a")).collect(), None),
            page(vec![], Some("")),
            page(vec![], Some("a/b")),
            page(vec![], Some(START)),
            page(vec![], Some("0a")),
            page(vec![], Some(&"0".repeat(129))),
            Offers { v: 2, ..page(vec![], None) },
        ] {
            assert!(!is_sound(&bad, "0a"), "{bad:?}");
        }
    }
}
