//! Bytes of the state's records: fixed layouts, big-endian, zero-padded to the record's size. Nothing here seals or writes.
//!
//! These bytes come only out of authenticated slots, so a decoding failure is a defect or a file of another version, never
//! an attacker's input; still nothing panics on them.

use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::method::{Method, PLACES, Place};
use openred_proto::secret::Secret;
use zeroize::Zeroizing;

use super::{LINKS_PER_PEER, LinkRecord, NodeState, PeerRecord, StaticRecord, TOUCHED, Window};
use crate::audit;
use crate::error::{Error, Result};
use crate::link::transform::Side;
use crate::prekey::{PREKEYS, PrekeyRecord, Prekeys};
use crate::registered::{MethodRecord, Methods};

/// Version of both layouts: 3 has the methods of modules in its header, and a link's among its flags.
const VERSION: u8 = 3;
/// The version before: 2 has the place of the audit trail in its header.
const BEFORE_METHODS: u8 = 2;
/// The version before, of a node that has no trail yet.
const BEFORE_AUDIT: u8 = 1;

/// Where a link's flags hold the place of its registered method; zero is none.
const PLACE_SHIFT: u8 = 4;

/// What the header says besides the node's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Number of the commit that wrote this header.
    pub(super) commit: u64,
    /// Digest over (index, commit) of every record.
    pub(super) digest: [u8; 16],
    /// Records that this commit wrote.
    pub(super) touched: Vec<u16>,
}

/// Writes fixed-size fields one after the other.
#[derive(Default)]
struct Out(Zeroizing<Vec<u8>>);

impl Out {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn byte(&mut self, byte: u8) -> &mut Self {
        self.bytes(&[byte])
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_be_bytes())
    }

    /// Behind its length.
    fn text(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes(&(bytes.len() as u16).to_be_bytes()).bytes(bytes)
    }

    /// Pads to `size`; a layout that outgrew its record is a defect.
    fn padded(mut self, size: usize) -> Result<Zeroizing<Vec<u8>>> {
        if self.0.len() > size {
            return Err(Error::Bug("a state record outgrew its place"));
        }
        self.0.resize(size, 0);
        Ok(self.0)
    }
}

/// Reads fixed-size fields one after the other.
struct In<'a>(&'a [u8]);

impl In<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Error::LocalStateForeign)?;
        self.0 = rest;
        Ok(*field)
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn millis(&mut self) -> Result<UnixMillis> {
        self.number().map(UnixMillis)
    }

    /// Bytes behind their length.
    fn text(&mut self) -> Result<Vec<u8>> {
        let length = usize::from(u16::from_be_bytes(self.array()?));
        let (text, rest) = self.0.split_at_checked(length).ok_or(Error::LocalStateForeign)?;
        self.0 = rest;
        Ok(text.to_vec())
    }

    /// A count, at most `most`.
    fn count(&mut self, most: usize) -> Result<usize> {
        let count = usize::from(self.byte()?);
        if count > most { Err(Error::LocalStateForeign) } else { Ok(count) }
    }

    /// The layout's version, one that this build reads.
    fn version(&mut self) -> Result<u8> {
        match self.byte()? {
            version @ (BEFORE_AUDIT | BEFORE_METHODS | VERSION) => Ok(version),
            _ => Err(Error::LocalStateForeign),
        }
    }
}

fn method(byte: u8) -> Result<Method> {
    Method::from_number(u64::from(byte)).map_err(|_| Error::LocalStateForeign)
}

pub(super) fn encode_header(head: &Head, node: &NodeState, size: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut out = Out::default();
    out.byte(VERSION).number(head.commit).bytes(&head.digest);
    out.byte(u8::try_from(head.touched.len()).map_err(|_| Error::Bug("a commit touched too many records"))?);
    for index in &head.touched {
        out.bytes(&index.to_be_bytes());
    }
    out.number(node.sealing_epoch).number(node.last_sequence).number(node.card_sequence);
    let prekeys: Vec<_> = node.prekeys.records().collect();
    out.byte(prekeys.len() as u8);
    for prekey in prekeys {
        out.bytes(prekey.seed.expose()).number(prekey.created.0).number(prekey.superseded.0);
    }
    out.byte(node.statics.len() as u8);
    for key in &node.statics {
        out.byte(key.method as u8).bytes(key.secret.expose()).number(key.not_before.0).number(key.not_after.0);
    }
    let audit = &node.audit;
    out.number(audit.segment).byte(audit.file).number(u64::from(audit.slot)).number(audit.sequence);
    out.bytes(&audit.hash).number(audit.waiting).number(node.told);
    out.byte(node.methods.records().len() as u8);
    for method in node.methods.records() {
        out.byte(method.place.number()).byte(u8::from(method.retired)).number(method.epoch);
        out.text(method.module.as_bytes()).text(&method.description);
    }
    out.padded(size)
}

pub(super) fn decode_header(bytes: &[u8]) -> Result<(Head, NodeState)> {
    let mut fields = In(bytes);
    let version = fields.version()?;
    let mut head = Head { commit: fields.number()?, digest: fields.array()?, touched: Vec::new() };
    for _ in 0..fields.count(TOUCHED)? {
        head.touched.push(u16::from_be_bytes(fields.array()?));
    }
    let (sealing_epoch, last_sequence, card_sequence) = (fields.number()?, fields.number()?, fields.number()?);
    let mut prekeys = Vec::new();
    for _ in 0..fields.count(PREKEYS)? {
        let seed = Secret::new(fields.array()?);
        prekeys.push(PrekeyRecord { seed, created: fields.millis()?, superseded: fields.millis()? });
    }
    let mut statics = Vec::new();
    for _ in 0..fields.count(Method::ALL.len())? {
        let (method, secret) = (method(fields.byte()?)?, Secret::new(fields.array()?));
        statics.push(StaticRecord { method, secret, not_before: fields.millis()?, not_after: fields.millis()? });
    }
    let prekeys = Prekeys::from_records(prekeys)?;
    let audit = if version == BEFORE_AUDIT { audit::Head::default() } else { audit_head(&mut fields)? };
    // A state from before there was such a word has the zeros of its padding here.
    let told = if version == BEFORE_AUDIT { 0 } else { fields.number()? };
    let methods = if version < VERSION { Methods::default() } else { methods(&mut fields)? };
    Ok((head, NodeState { sealing_epoch, last_sequence, card_sequence, prekeys, statics, audit, told, methods }))
}

fn methods(fields: &mut In<'_>) -> Result<Methods> {
    let mut records = Vec::new();
    for _ in 0..fields.count(PLACES)? {
        let place = Place::from_number(fields.byte()?.into()).map_err(|_| Error::LocalStateForeign)?;
        let (retired, epoch) = (fields.byte()? != 0, fields.number()?);
        let module = String::from_utf8(fields.text()?).map_err(|_| Error::LocalStateForeign)?;
        let record = MethodRecord::new(place, module, fields.text()?, epoch, retired);
        records.push(record.map_err(|_| Error::LocalStateForeign)?);
    }
    Ok(Methods::from_records(records))
}

fn audit_head(fields: &mut In<'_>) -> Result<audit::Head> {
    let head = audit::Head {
        segment: fields.number()?,
        file: fields.byte()?,
        slot: u32::try_from(fields.number()?).map_err(|_| Error::LocalStateForeign)?,
        sequence: fields.number()?,
        hash: fields.array()?,
        waiting: fields.number()?,
    };
    if head.file > 1 { Err(Error::LocalStateForeign) } else { Ok(head) }
}

pub(super) fn encode_peer(commit: u64, record: &PeerRecord, size: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut out = Out::default();
    out.byte(VERSION).number(commit).bytes(record.peer.as_bytes());
    out.number(record.heard.top).number(record.heard.seen).number(record.keep_until.0);
    for link in &record.links {
        match link {
            Some(link) => encode_link(&mut out, link),
            None => {
                out.byte(0);
            }
        }
    }
    out.padded(size)
}

fn encode_link(out: &mut Out, link: &LinkRecord) {
    out.byte(link.side.number()).bytes(link.link.as_bytes()).byte(link.method as u8).number(link.epoch);
    out.number(link.not_before.0).number(link.not_after.0).number(link.row_version);
    let registered = link.registered.map_or(0, Place::number);
    out.byte(u8::from(link.revoked) | u8::from(link.proven) << 1 | registered << PLACE_SHIFT);
    out.number(link.timestamp_in).number(link.timestamp_out).number(link.operations);
    out.bytes(&link.token_id).number(link.decided_at.0);
}

pub(super) fn decode_peer(bytes: &[u8]) -> Result<(u64, PeerRecord)> {
    let mut fields = In(bytes);
    fields.version()?;
    let commit = fields.number()?;
    let mut record = PeerRecord {
        peer: NodeId::from_bytes(fields.array()?),
        heard: Window { top: fields.number()?, seen: fields.number()? },
        keep_until: fields.millis()?,
        links: [const { None }; LINKS_PER_PEER],
    };
    for place in &mut record.links {
        *place = decode_link(&mut fields)?;
    }
    Ok((commit, record))
}

fn decode_link(fields: &mut In<'_>) -> Result<Option<LinkRecord>> {
    let side = fields.byte()?;
    if side == 0 {
        return Ok(None);
    }
    let side = Side::from_number(side).ok_or(Error::LocalStateForeign)?;
    let (link, method, epoch) = (LinkId::from_bytes(fields.array()?), method(fields.byte()?)?, fields.number()?);
    let (not_before, not_after, row_version) = (fields.millis()?, fields.millis()?, fields.number()?);
    let flags = fields.byte()?;
    let (timestamp_in, timestamp_out) = (fields.number()?, fields.number()?);
    let registered = match flags >> PLACE_SHIFT {
        0 => None,
        number => Some(Place::from_number(number.into()).map_err(|_| Error::LocalStateForeign)?),
    };
    Ok(Some(LinkRecord {
        link,
        side,
        method,
        registered,
        epoch,
        not_before,
        not_after,
        row_version,
        revoked: flags & 1 != 0,
        proven: flags & 2 != 0,
        timestamp_in,
        timestamp_out,
        timestamp_sent: timestamp_out,
        operations: fields.number()?,
        token_id: fields.array()?,
        decided_at: fields.millis()?,
    }))
}
