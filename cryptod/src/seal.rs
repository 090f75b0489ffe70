//! Link rows: a link token sealed for `noded`'s database (PROTOCOL 4).
//!
//! `row = layout version (1) || link id (16) || row version (8) || nonce (24) || XChaCha20-Poly1305(token)`. Associated
//! data: node, link id, peer, row version, sealing epoch, as the vault remembers them, not as the row says. So a row that was
//! changed, moved to another link or peer, copied to another node, kept from an earlier version or restored from before a new
//! epoch does not open. In: tokens from `link/issue` and `link/accept`; out: tokens for one handshake or check.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use openred_proto::concat::concat;
use openred_proto::id::{LinkId, NodeId};
use openred_proto::label::derive;
use openred_proto::limits::TAG_BYTES;
use openred_proto::secret::Secret;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::link::transform::TOKEN_BYTES;

const LAYOUT: u8 = 1;
const NONCE_BYTES: usize = 24;
const HEAD_BYTES: usize = 1 + 16 + 8;
/// Bytes of a sealed row.
pub const ROW_BYTES: usize = HEAD_BYTES + NONCE_BYTES + TOKEN_BYTES + TAG_BYTES;
// What a frame may carry is decided in the contract.
const _: () = assert!(ROW_BYTES == openred_proto::limits::LINK_ROW_BYTES);

/// What a row is bound to.
#[derive(Clone, Copy, Debug)]
pub struct RowBinding {
    /// This node.
    pub node: NodeId,
    /// The link.
    pub link: LinkId,
    /// The other party.
    pub peer: NodeId,
    /// The only version that opens.
    pub version: u64,
    /// The sealing epoch.
    pub epoch: u64,
}

impl RowBinding {
    fn associated(&self) -> Vec<u8> {
        let (version, epoch) = (self.version.to_be_bytes(), self.epoch.to_be_bytes());
        concat(&[derive::ROW, self.node.as_bytes(), self.link.as_bytes(), self.peer.as_bytes(), &version, &epoch])
    }
}

/// Seals a token.
///
/// # Errors
/// [`Error::Bug`]: 32 bytes are never too long.
pub fn seal_row(
    key: &Secret<32>,
    binding: &RowBinding,
    token: &Secret<TOKEN_BYTES>,
    random: &mut impl CryptoRng,
) -> Result<Vec<u8>> {
    let mut nonce = [0; NONCE_BYTES];
    random.fill_bytes(&mut nonce);
    let payload = Payload { msg: token.expose(), aad: &binding.associated() };
    let sealed = XChaCha20Poly1305::new(&(*key.expose()).into()).encrypt(&XNonce::from(nonce), payload);
    let sealed = sealed.map_err(|_| Error::Bug("a token is too long to seal"))?;
    let mut row = Vec::with_capacity(ROW_BYTES);
    row.push(LAYOUT);
    row.extend_from_slice(binding.link.as_bytes());
    row.extend_from_slice(&binding.version.to_be_bytes());
    row.extend_from_slice(&nonce);
    row.extend_from_slice(&sealed);
    Ok(row)
}

/// The link that a row says it is of: where to look for its binding, nothing to rely on.
///
/// # Errors
/// [`Error::LocalRowSealed`] when it is no row.
pub fn claimed_link(row: &[u8]) -> Result<LinkId> {
    let (head, _) = row.split_first_chunk::<HEAD_BYTES>().ok_or(Error::LocalRowSealed)?;
    if row.len() != ROW_BYTES || head[0] != LAYOUT {
        return Err(Error::LocalRowSealed);
    }
    Ok(LinkId::from_bytes(std::array::from_fn(|place| head[place + 1])))
}

/// Opens a row under what the vault remembers of its link.
///
/// # Errors
/// [`Error::LocalRowSealed`].
pub fn open_row(key: &Secret<32>, binding: &RowBinding, row: &[u8]) -> Result<Secret<TOKEN_BYTES>> {
    let version: [u8; 8] =
        row.get(17..HEAD_BYTES).and_then(|bytes| bytes.try_into().ok()).ok_or(Error::LocalRowSealed)?;
    if claimed_link(row)? != binding.link || u64::from_be_bytes(version) != binding.version {
        return Err(Error::LocalRowSealed);
    }
    let (nonce, sealed) = row[HEAD_BYTES..].split_first_chunk::<NONCE_BYTES>().ok_or(Error::LocalRowSealed)?;
    let payload = Payload { msg: sealed, aad: &binding.associated() };
    let token = XChaCha20Poly1305::new(&(*key.expose()).into()).decrypt(&XNonce::from(*nonce), payload);
    let token = Zeroizing::new(token.map_err(|_| Error::LocalRowSealed)?);
    Ok(Secret::new(token.as_slice().try_into().map_err(|_| Error::LocalRowSealed)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::testing::random;

    const KEY: Secret<32> = Secret::new([1; 32]);

    fn binding() -> RowBinding {
        RowBinding {
            node: NodeId::from_bytes([2; 32]),
            link: LinkId::from_bytes([3; 16]),
            peer: NodeId::from_bytes([4; 32]),
            version: 5,
            epoch: 6,
        }
    }

    #[test]
    fn a_row_opens_only_under_what_it_was_sealed_for() {
        let row = seal_row(&KEY, &binding(), &Secret::new([9; 32]), &mut random(1)).unwrap();
        assert_eq!(row.len(), ROW_BYTES);
        assert_eq!(*open_row(&KEY, &binding(), &row).unwrap().expose(), [9; 32]);
        let others = [
            RowBinding { node: NodeId::from_bytes([8; 32]), ..binding() },
            RowBinding { link: LinkId::from_bytes([8; 16]), ..binding() },
            RowBinding { peer: NodeId::from_bytes([8; 32]), ..binding() },
            RowBinding { version: 4, ..binding() },
            RowBinding { version: 6, ..binding() },
            RowBinding { epoch: 7, ..binding() },
        ];
        for other in others {
            assert_eq!(open_row(&KEY, &other, &row), Err(Error::LocalRowSealed), "{other:?}");
        }
        assert_eq!(open_row(&Secret::new([7; 32]), &binding(), &row), Err(Error::LocalRowSealed));
    }

    #[test]
    fn every_changed_bit_and_every_length_is_refused() {
        let row = seal_row(&KEY, &binding(), &Secret::new([9; 32]), &mut random(1)).unwrap();
        for bit in 0..row.len() * 8 {
            let mut changed = row.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open_row(&KEY, &binding(), &changed), Err(Error::LocalRowSealed), "bit {bit}");
        }
        for length in 0..row.len() {
            assert_eq!(open_row(&KEY, &binding(), &row[..length]), Err(Error::LocalRowSealed));
        }
        assert_eq!(open_row(&KEY, &binding(), &[&row[..], &[0]].concat()), Err(Error::LocalRowSealed));
    }
}
