//! What two nodes tell each other inside a session of the links that they hold with each other (docs/protocol.md section 4): which,
//! where each stands, and the receipts of those that were accepted. It is not signed: the session says who speaks.

use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::LinkId;

const WHAT: &str = "link sync";
/// Links in one list: two live ones, an offer each way, and the last ones that ended, with room.
pub const SYNC_ENTRIES: usize = 16;
/// Longest receipt in it.
pub const SYNC_RECEIPT_BYTES: usize = 512;
/// Receipts in one list: of live links, of which there are two at most.
pub const SYNC_RECEIPTS: usize = 4;
/// Longest list.
pub const SYNC_BYTES: usize = SYNC_ENTRIES * 32 + SYNC_RECEIPTS * SYNC_RECEIPT_BYTES;

/// Where a link stands at whoever says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SyncState {
    /// Issued; no receipt yet.
    Offered = 1,
    /// Its offer waits for the operator.
    Waiting = 2,
    /// In use, or ready for it.
    Live = 3,
    /// Ended.
    Over = 4,
}

impl SyncState {
    const ALL: [Self; 4] = [Self::Offered, Self::Waiting, Self::Live, Self::Over];
}

/// One link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncEntry {
    /// Which.
    pub link: LinkId,
    /// Where it stands.
    pub state: SyncState,
    /// The speaker's receipt, where it accepted the link; else empty. To be verified.
    pub receipt: Vec<u8>,
}

/// One side's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkSync {
    /// At most [`SYNC_ENTRIES`]; what is not over comes before what is.
    pub entries: Vec<SyncEntry>,
}

impl LinkSync {
    /// The bytes to send. What is over the bounds is left out: entries at the end, and receipts.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut receipts = 0;
        let writer = self.entries.iter().take(SYNC_ENTRIES).fold(Writer::new(), |writer, entry| {
            let fits =
                !entry.receipt.is_empty() && entry.receipt.len() <= SYNC_RECEIPT_BYTES && receipts < SYNC_RECEIPTS;
            receipts += usize::from(fits);
            let receipt = if fits { &entry.receipt[..] } else { &[] };
            let entry = Writer::new().bytes(1, entry.link.as_bytes()).number(2, entry.state as u64).bytes(3, receipt);
            writer.item(1, &entry.finish())
        });
        writer.finish()
    }

    /// Reads a list.
    ///
    /// # Errors
    /// Too long, malformed, or one link twice.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > SYNC_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: SYNC_BYTES });
        }
        let mut reader = Reader::new(WHAT, bytes);
        let items = reader.items(1, SYNC_ENTRIES, 32 + SYNC_RECEIPT_BYTES)?;
        reader.finish()?;
        let mut entries: Vec<SyncEntry> = Vec::with_capacity(items.len());
        let mut receipts = 0;
        for item in items {
            let entry = entry(item)?;
            receipts += usize::from(!entry.receipt.is_empty());
            let malformed = |why| WireError::Malformed { what: WHAT, why };
            if entries.iter().any(|known| known.link == entry.link) {
                return Err(malformed("one link twice"));
            }
            if receipts > SYNC_RECEIPTS {
                return Err(malformed("too many receipts"));
            }
            entries.push(entry);
        }
        Ok(Self { entries })
    }
}

fn entry(bytes: &[u8]) -> Result<SyncEntry> {
    let mut reader = Reader::new(WHAT, bytes);
    let link = LinkId::from_bytes(reader.array(1)?);
    let number = reader.number(2)?;
    let state = SyncState::ALL.into_iter().find(|state| *state as u64 == number);
    let state = state.ok_or(WireError::Unsupported { what: "link state" })?;
    let receipt = reader.bytes(3, SYNC_RECEIPT_BYTES)?.to_vec();
    reader.finish()?;
    Ok(SyncEntry { link, state, receipt })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn list(count: u8, receipt: usize) -> LinkSync {
        let entry = |number| SyncEntry {
            link: LinkId::from_bytes([number; 16]),
            state: SyncState::ALL[usize::from(number % 4)],
            receipt: vec![7; receipt],
        };
        LinkSync { entries: (0..count).map(entry).collect() }
    }

    #[test]
    fn a_list_reads_back_and_no_bit_of_it_is_free() {
        for sync in [LinkSync::default(), list(3, 0), list(4, SYNC_RECEIPT_BYTES)] {
            assert_eq!(LinkSync::decode(&sync.encode()).unwrap(), sync);
        }
        let bytes = list(3, 9).encode();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(LinkSync::decode(&changed).ok(), Some(list(3, 9)), "bit {bit}");
        }
        for length in 1..bytes.len() {
            assert_ne!(LinkSync::decode(&bytes[..length]).ok(), Some(list(3, 9)));
        }
    }

    #[test]
    fn bounds_hold_both_ways() {
        let cut = LinkSync::decode(&list(40, SYNC_RECEIPT_BYTES).encode()).unwrap();
        assert_eq!(cut.entries.len(), SYNC_ENTRIES);
        assert_eq!(cut.entries.iter().filter(|entry| !entry.receipt.is_empty()).count(), SYNC_RECEIPTS);
        let long = LinkSync::decode(&list(1, SYNC_RECEIPT_BYTES + 1).encode()).unwrap();
        assert!(long.entries[0].receipt.is_empty(), "no receipt is that long");
        let twice = LinkSync { entries: [list(1, 0).entries, list(1, 0).entries].concat() };
        assert!(LinkSync::decode(&twice.encode()).is_err());
        let item = |state: u64| Writer::new().bytes(1, &[1; 16]).number(2, state).finish();
        let of =
            |items: usize, state| (0..items).fold(Writer::new(), |writer, _| writer.item(1, &item(state))).finish();
        assert!(LinkSync::decode(&of(1, 3)).is_ok());
        for bad in [of(1, 0), of(1, 5), of(SYNC_ENTRIES + 1, 1), vec![0; SYNC_BYTES + 1]] {
            assert!(LinkSync::decode(&bad).is_err());
        }
    }
}
