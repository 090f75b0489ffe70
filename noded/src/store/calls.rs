//! The store's calls as the rest of the node makes them: typed, asynchronous, each one job on the store's thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use openred_module::{Batch, Committed, Scan, ScanPage};
use openred_proto::checked::succession::{Contradiction, Lineage};
use openred_proto::id::{LinkId, NodeId, UnixMillis};

use rusqlite::{Connection, OptionalExtension as _};

use super::{
    Carried, KnownPeer, Pen, Result, RowSeal, Store, StoreError, Word, links, peers, proofs, rows, states, successions,
};
use crate::link::methods::Methods;
use crate::link::queue::{self, Request};
use crate::link::state::Link;
use crate::p2p::ports::SignedSession;

impl Store {
    /// Says whose state this is, and takes over that of an identity that `node` goes on for. A state that is another node's
    /// gives that node's id and stays as it is.
    pub(crate) async fn bind_to(&self, node: NodeId, earlier: Vec<NodeId>, now: UnixMillis) -> Result<Option<NodeId>> {
        self.call(move |connection| successions::bind(connection, &node, &earlier, now)).await
    }

    /// Every succession of a peer that is in force.
    pub(crate) async fn successions(&self) -> Result<Vec<(NodeId, NodeId)>> {
        self.call(successions::all).await
    }

    /// Gives a node the yes that the configuration has for an earlier identity of it.
    pub(crate) async fn carry(&self, earlier: NodeId, node: NodeId, now: UnixMillis) -> Result<()> {
        self.call(move |connection| successions::carry(connection, &earlier, &node, now).map(drop)).await
    }

    /// Nodes whose carried approval was withdrawn and whose links are still to end.
    pub(crate) async fn withdrawn(&self) -> Result<Vec<NodeId>> {
        self.call(successions::withdrawn).await
    }

    /// The links of such a node have ended.
    pub(crate) async fn forget_withdrawn(&self, peer: NodeId) -> Result<()> {
        self.call(move |connection| successions::forget_withdrawn(connection, &peer)).await
    }

    /// Follows the verified lineage of a node's card.
    pub(crate) async fn follow(
        &self,
        node: NodeId,
        lineage: Lineage,
        now: UnixMillis,
    ) -> Result<std::result::Result<Carried, Contradiction>> {
        self.call(move |connection| successions::follow(connection, &node, &lineage, now)).await
    }

    /// Peers that are to be offered a link anew, since when.
    pub(crate) async fn to_reoffer(&self) -> Result<Vec<(NodeId, UnixMillis)>> {
        self.call(successions::to_reoffer).await
    }

    /// A link was offered anew, or it is given up.
    pub(crate) async fn reoffered(&self, peer: NodeId) -> Result<()> {
        self.call(move |connection| successions::reoffered(connection, &peer)).await
    }

    /// Every link, ended ones included.
    pub(crate) async fn links(&self) -> Result<Vec<Link>> {
        self.call(links::all).await
    }

    /// Writes links, new or changed, in one transaction.
    pub(crate) async fn put_links(&self, changed: Vec<Link>) -> Result<()> {
        self.call(move |connection| changed.iter().try_for_each(|link| links::put(connection, link))).await
    }

    /// Writes links that handshakes ran over, and when their peers were seen, in one transaction.
    pub(crate) async fn used(&self, changed: Vec<Link>, seen: BTreeMap<NodeId, UnixMillis>) -> Result<()> {
        let write = move |connection: &Connection| {
            changed.iter().try_for_each(|link| links::put(connection, link))?;
            seen.iter().try_for_each(|(node, at)| peers::seen(connection, node, *at))
        };
        self.call(write).await
    }

    /// Writes links that have run out, and owes their peer another where the operator has said yes to it, or the policy `admits` it.
    pub(crate) async fn put_lapsed(
        &self,
        lapsed: Vec<Link>,
        peer: NodeId,
        admits: bool,
        now: UnixMillis,
    ) -> Result<()> {
        let put = move |connection: &Connection| {
            lapsed.iter().try_for_each(|link| links::put(connection, link))?;
            successions::owe(connection, &peer, admits, now)
        };
        self.call(put).await
    }

    /// What the operator has decided about methods.
    pub(crate) async fn decided_methods(&self) -> Result<Methods> {
        self.call(|connection| {
            let sql = "SELECT value FROM meta WHERE name = 'methods'";
            let kept: Option<Vec<u8>> = connection.query_row(sql, [], |row| row.get(0)).optional()?;
            kept.map_or(Ok(Methods::default()), |bytes| Methods::decode(&bytes).ok_or(StoreError::Damaged("meta")))
        })
        .await
    }

    /// Keeps it.
    pub(crate) async fn decide_methods(&self, methods: Methods) -> Result<()> {
        self.call(move |connection| {
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('methods', ?1)", [methods.encode()])?;
            Ok(())
        })
        .await
    }

    /// Links that the operator has asked for, and that wait for a directory.
    pub(crate) async fn requests(&self) -> Result<Vec<Request>> {
        self.call(|connection| {
            let sql = "SELECT value FROM meta WHERE name = 'requests'";
            let kept: Option<Vec<u8>> = connection.query_row(sql, [], |row| row.get(0)).optional()?;
            kept.map_or(Ok(Vec::new()), |bytes| queue::decode(&bytes).ok_or(StoreError::Damaged("meta")))
        })
        .await
    }

    /// Keeps these and no others.
    pub(crate) async fn keep_requests(&self, requests: Vec<Request>) -> Result<()> {
        self.call(move |connection| {
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('requests', ?1)", [queue::encode(&requests)])?;
            Ok(())
        })
        .await
    }

    /// Keeps what both sides of a session signed.
    pub(crate) async fn put_proof(&self, signed: SignedSession) -> Result<()> {
        self.call(move |connection| proofs::put(connection, &signed)).await
    }

    /// What both sides of sessions with `peer` signed, newest first.
    pub(crate) async fn proofs(&self, peer: NodeId) -> Result<Vec<SignedSession>> {
        self.call(move |connection| proofs::of_peer(connection, &peer)).await
    }

    /// Drops a link for good.
    pub(crate) async fn purge_link(&self, link: LinkId) -> Result<()> {
        self.call(move |connection| links::purge(connection, &link)).await
    }

    /// Drops nodes that were known once, and not since `before`.
    pub(crate) async fn purge_peers(&self, before: UnixMillis) -> Result<Vec<NodeId>> {
        self.call(move |connection| peers::purge(connection, before)).await
    }

    /// What is known of a peer.
    pub(crate) async fn peer(&self, node: NodeId) -> Result<Option<KnownPeer>> {
        self.call(move |connection| peers::get(connection, &node)).await
    }

    /// Every peer.
    pub(crate) async fn peers(&self) -> Result<Vec<KnownPeer>> {
        self.call(peers::all).await
    }

    /// Keeps a verified card, unless a newer one is known.
    pub(crate) async fn keep_card(
        &self,
        node: NodeId,
        card: Bytes,
        sequence: u64,
        now: UnixMillis,
    ) -> Result<(u64, Bytes)> {
        self.call(move |connection| peers::keep_card(connection, &node, &card, sequence, now)).await
    }

    /// Notes that a directory gave a card with this sequence.
    pub(crate) async fn list_card(&self, node: NodeId, sequence: u64) -> Result<()> {
        self.call(move |connection| peers::list(connection, &node, sequence)).await
    }

    /// The operator's yes to a peer.
    pub(crate) async fn approve(&self, node: NodeId, now: UnixMillis) -> Result<()> {
        let approve = move |connection: &Connection| {
            successions::spoken(connection, &node)?;
            peers::approve(connection, &node, now)
        };
        self.call(approve).await
    }

    /// Takes the operator's yes back.
    pub(crate) async fn disapprove(&self, node: NodeId) -> Result<()> {
        let disapprove = move |connection: &Connection| {
            successions::spoken(connection, &node)?;
            successions::reoffered(connection, &node)?;
            peers::disapprove(connection, &node)
        };
        self.call(disapprove).await
    }

    /// The operator's no to a peer; with it end the offers of either side, `ended`, and what it was owed.
    pub(crate) async fn deny(&self, node: NodeId, ended: Vec<Link>, now: UnixMillis) -> Result<()> {
        let deny = move |connection: &Connection| {
            successions::spoken(connection, &node)?;
            successions::reoffered(connection, &node)?;
            ended.iter().try_for_each(|link| links::put(connection, link))?;
            peers::deny(connection, &node, now)
        };
        self.call(deny).await
    }

    /// The operator's word on a peer.
    pub(crate) async fn word(&self, node: NodeId) -> Result<Word> {
        Ok(self.peer(node).await?.map_or(Word::None, |peer| peer.word()))
    }

    /// Drops a peer's card and the operator's word on it; the sequence of its newest card stays.
    pub(crate) async fn forget_peer(&self, node: NodeId) -> Result<()> {
        let forget = move |connection: &Connection| {
            successions::forget(connection, &node)?;
            peers::forget(connection, &node)
        };
        self.call(forget).await
    }

    /// One row of a module.
    pub(crate) async fn row(&self, seal: Arc<RowSeal>, key: Bytes) -> Result<Option<Bytes>> {
        self.call(move |connection| rows::get(connection, &seal, &key)).await
    }

    /// A batch of a module's rows, checked by the caller, that leads to no more than `most` bytes of them.
    pub(crate) async fn apply(&self, pen: Arc<Pen>, batch: Batch, most: Option<u64>) -> Result<Committed> {
        self.call(move |connection| pen.apply(connection, &batch, most)).await
    }

    /// What is kept of a module's generations, if it was ever swapped.
    pub(crate) async fn module_record(&self, module: &'static str) -> Result<Option<Vec<u8>>> {
        self.call(move |connection| states::record(connection, module)).await
    }

    /// Keeps it, with the epoch of the one writer, and forgets the rows of all states but these.
    pub(crate) async fn save_module(
        &self,
        module: &'static str,
        epoch: u64,
        record: Vec<u8>,
        states: Vec<u64>,
    ) -> Result<()> {
        self.call(move |connection| states::save(connection, module, epoch, &record, &states)).await
    }

    /// Copies a state's rows to another, in place of what is there; how many.
    pub(crate) async fn copy_state(&self, module: &'static str, from: u64, to: u64) -> Result<usize> {
        self.call(move |connection| states::copy(connection, module, from, to)).await
    }

    /// Deletes all rows of a module, and what is kept of its generations.
    pub(crate) async fn forget_rows(&self, module: &'static str) -> Result<()> {
        self.call(move |connection| states::forget(connection, module)).await
    }

    /// Rows of a module by prefix.
    pub(crate) async fn scan(&self, seal: Arc<RowSeal>, scan: Scan) -> Result<ScanPage> {
        self.call(move |connection| rows::scan(connection, &seal, &scan)).await
    }
}
