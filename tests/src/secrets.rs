//! What a node keeps to itself, read by a test that has its passphrase: a second reading of keystore and state, independent of the
//! vault's, so that memory can be searched for it.

use std::fs;

use anyhow::{Context, Result, anyhow, ensure};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use ed25519_dalek::SigningKey;
use hkdf::Hkdf;
use openred_cryptod::link::derive::{DirectionKeys, LinkTerms};
use openred_cryptod::link::transform::{Side, Transform};
use openred_cryptod::seal::{RowBinding, open_row};
use openred_cryptod::state::image::HEADER_BYTES;
use openred_cryptod::unseal::Keystore;
use openred_proto::concat::concat;
use openred_proto::id::{LinkId, NodeId};
use openred_proto::label::derive;
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use sha2::{Digest as _, Sha256, Sha512};
use shake::{ExtendableOutput as _, Shake256, Update as _, XofReader as _};

use crate::harness::Node;

/// A secret with its name.
pub type Named = (String, Vec<u8>);

/// What of a link lies in a node's database.
#[derive(Clone, Debug)]
pub struct HeldLink {
    /// Sealed by its vault.
    pub row: Vec<u8>,
    /// The other party.
    pub peer: NodeId,
    /// Whether this node issued it.
    pub issuer: bool,
    /// Number of its method.
    pub method: u64,
    /// The schedule's epoch at issue.
    pub epoch: u64,
}

impl HeldLink {
    /// The one link of a node, which may run.
    ///
    /// # Errors
    /// When there is not one.
    pub fn of(node: &Node) -> Result<Self> {
        // A copy: nobody else's reader belongs into a database that is in use.
        let copy = tempfile::tempdir()?;
        for name in ["node.sqlite", "node.sqlite-wal"] {
            fs::copy(node.home.join("state").join(name), copy.path().join(name))?;
        }
        let database = rusqlite::Connection::open(copy.path().join("node.sqlite"))?;
        let text = "SELECT sealed_row, peer, issuer, method, epoch FROM link WHERE length(sealed_row) > 0";
        let (row, peer, issuer, method, epoch): (Vec<u8>, [u8; 32], bool, i64, i64) =
            database
                .query_row(text, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?;
        let (method, epoch) = (method.cast_unsigned(), epoch.cast_unsigned());
        Ok(Self { row, peer: NodeId::from_bytes(peer), issuer, method, epoch })
    }
}

/// The keys that a vault derives from its storage root.
///
/// # Errors
/// [`Hkdf`]'s, which 32 bytes do not bring about.
pub fn derived_keys(node: NodeId, root: &[u8; 32]) -> Result<Vec<Named>> {
    let purposes = [
        ("state key", derive::STATE),
        ("row key", derive::ROW),
        ("store root", derive::STORE),
        ("audit key", derive::AUDIT),
    ];
    purposes.into_iter().map(|(name, purpose)| Ok((name.to_owned(), derived(node, root, purpose)?.to_vec()))).collect()
}

fn derived(node: NodeId, root: &[u8; 32], purpose: &[u8]) -> Result<[u8; 32]> {
    let mut key = [0; 32];
    let expander = Hkdf::<Sha256>::from_prk(root).map_err(|_| anyhow!("a root of another length"))?;
    let info = concat(&[purpose, node.as_bytes()]);
    expander.expand(&info, &mut key).map_err(|_| anyhow!("a key of another length"))?;
    Ok(key)
}

/// A node's long-term secrets.
pub struct Secrets {
    node: NodeId,
    root: [u8; 32],
    epoch: u64,
    /// Every one of them.
    pub all: Vec<Named>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} secrets of {}", self.all.len(), self.node)
    }
}

/// Takes fixed fields off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take(&mut self, length: usize) -> Result<&[u8]> {
        let (field, rest) = self.0.split_at_checked(length).context("the state's header is laid out in another way")?;
        self.0 = rest;
        Ok(field)
    }

    fn number(&mut self, length: usize) -> Result<u64> {
        Ok(self.take(length)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

impl Secrets {
    /// Reads them from the node's files; the node may run.
    ///
    /// # Errors
    /// When a file does not open or is laid out in another way.
    pub fn of(node: &Node, passphrase: &str) -> Result<Self> {
        let sealed = fs::read(node.home.join("keystore.age"))?;
        let opened =
            Keystore::open(&sealed, passphrase.as_bytes()).map_err(|failure| anyhow!("keystore: {failure:?}"))?;
        let id = opened.0.node_id();
        ensure!(id.to_string() == node.id, "another node's keystore");
        let both = opened.0.into_secrets();
        Self::read(id, both[..32].try_into()?, both[32..].try_into()?, &fs::read(node.home.join("vault/state"))?)
    }

    /// Reads them from the two secrets behind all others and the vault's state, as it is on disk.
    ///
    /// # Errors
    /// When the state does not open or is laid out in another way.
    pub fn read(id: NodeId, seed: [u8; 32], root: [u8; 32], state: &[u8]) -> Result<Self> {
        let mut secrets = Self { node: id, root, epoch: 0, all: Vec::new() };
        secrets.add("identity seed", &seed);
        secrets.add("storage root", &root);
        let expanded = Sha512::digest(seed);
        secrets.add("expanded key, first half", &expanded[..32]);
        secrets.add("expanded key, second half", &expanded[32..]);
        secrets.add("private scalar", &SigningKey::from_bytes(&seed).to_scalar().to_bytes());
        for (name, key) in derived_keys(id, &root)? {
            secrets.add(&name, &key);
        }
        let mut opened = 0;
        for slot in [0, 1] {
            if let Some(header) = secrets.header(state, slot)? {
                secrets.learn(&header)?;
                opened += 1;
            }
        }
        ensure!(opened > 0, "no header of the state opens");
        Ok(secrets)
    }

    fn add(&mut self, name: &str, bytes: &[u8]) {
        if !self.all.iter().any(|(_, known)| known == bytes) {
            self.all.push((name.to_owned(), bytes.to_vec()));
        }
    }

    fn header(&self, file: &[u8], slot: u8) -> Result<Option<Vec<u8>>> {
        let place = usize::from(slot) * HEADER_BYTES..(usize::from(slot) + 1) * HEADER_BYTES;
        let sealed = file.get(place).context("a state file that is too short")?;
        let (nonce, sealed) = sealed.split_first_chunk::<24>().context("a slot that is too short")?;
        let associated = concat(&[derive::STATE, b"header", &[slot]]);
        let payload = Payload { msg: sealed, aad: &associated };
        let cipher = XChaCha20Poly1305::new(&derived(self.node, &self.root, derive::STATE)?.into());
        Ok(cipher.decrypt(&XNonce::from(*nonce), payload).ok())
    }

    /// Prekey seeds and static keys, as `cryptod/src/state/codec.rs` writes them.
    fn learn(&mut self, header: &[u8]) -> Result<()> {
        let mut fields = Fields(header);
        fields.take(1 + 8 + 16)?;
        let touched = fields.number(1)? as usize;
        fields.take(2 * touched)?;
        self.epoch = fields.number(8)?;
        fields.take(8 + 8)?;
        let prekeys = fields.number(1)?;
        for number in 0..prekeys {
            let seed = fields.take(32)?.to_vec();
            fields.take(8 + 8)?;
            self.add(&format!("X-Wing seed of prekey {number}"), &seed);
            // As X-Wing expands it: ML-KEM's two halves, and the X25519 key.
            let (mut hasher, mut expanded) = (Shake256::default(), [0; 96]);
            hasher.update(&seed);
            hasher.finalize_xof().read(&mut expanded);
            for (part, bytes) in ["ML-KEM d", "ML-KEM z", "X25519 key"].into_iter().zip(expanded.chunks_exact(32)) {
                self.add(&format!("{part} of prekey {number}"), bytes);
            }
        }
        let statics = fields.number(1)?;
        for number in 0..statics {
            fields.take(1)?;
            let secret = fields.take(32)?.to_vec();
            fields.take(8 + 8)?;
            self.add(&format!("X25519 static {number}"), &secret);
        }
        ensure!(prekeys > 0 && statics > 0, "a node without prekey or static keys");
        Ok(())
    }

    /// Token, base and pre-shared keys of a link.
    ///
    /// # Errors
    /// When the row does not open.
    pub fn of_link(&self, held: &HeldLink) -> Result<Vec<Named>> {
        let HeldLink { row, peer, issuer, method, epoch } = held;
        let (peer, epoch) = (*peer, *epoch);
        let (link, method) =
            (LinkId::from_bytes(row.get(1..17).context("a row")?.try_into()?), Method::from_number(*method)?);
        let binding = RowBinding { node: self.node, link, peer, version: 1, epoch: self.epoch };
        let token = open_row(&Secret::new(derived(self.node, &self.root, derive::ROW)?), &binding, row)?;
        let (first, second, side) =
            if *issuer { (self.node, peer, Side::Issuer) } else { (peer, self.node, Side::Acceptor) };
        let base = Transform::new(method, &link, &first, &second)?.reconstruct(&token, side);
        let terms = LinkTerms { link, method, epoch };
        let psk = |one, other| DirectionKeys::derive(&base, &terms, one, other).map(|keys| keys.psk.expose().to_vec());
        Ok(vec![
            (String::from("link token"), token.expose().to_vec()),
            (String::from("outgoing PSK"), psk(&self.node, &peer)?),
            (String::from("incoming PSK"), psk(&peer, &self.node)?),
            (String::from("link base"), base.expose().to_vec()),
        ])
    }
}
