//! A publisher's signature over a manifest, and the key that makes it. The manifest binds the program's SHA-256, so one signature
//! covers both.

use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openred_proto::id::NodeId;
use openred_proto::label::{Label, signed_bytes, verify};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{malformed, read_text};
use crate::cli::{Exit, Failure};
use crate::supervisor::put;

/// First word of a publisher's key file.
const KEY: &str = "openred-publisher-key-1";

/// Who signed a manifest, and with what outcome.
#[derive(Debug)]
pub(crate) struct Signature {
    pub(crate) publisher: NodeId,
    signature: [u8; 64],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    publisher: String,
    signature: String,
}

impl Signature {
    pub(super) fn parse(place: &Path, text: &str) -> Result<Self, Failure> {
        let written: Written = toml::from_str(text).map_err(|_| malformed(place, "not a signature's file"))?;
        let publisher = written.publisher.parse().map_err(|_| malformed(place, "`publisher` is no did:key"))?;
        let signature = STANDARD.decode(&written.signature).ok().and_then(|bytes| bytes.try_into().ok());
        let signature = signature.ok_or_else(|| malformed(place, "`signature` is not 64 bytes in base64"))?;
        Ok(Self { publisher, signature })
    }

    pub(super) fn verify(&self, manifest: &str, place: &Path) -> Result<(), Failure> {
        let held = verify(Label::Package, manifest.as_bytes(), &self.publisher, &self.signature, "module's manifest");
        held.map_err(|_| {
            let what = format!("{}: the signature does not hold: not what {} signed", place.display(), self.publisher);
            Failure::new(Exit::Denied, "package.signature", what, "fetch the package again from its publisher")
        })
    }

    /// As it lies in a package.
    pub(crate) fn text(&self) -> String {
        let written = Written { publisher: self.publisher.to_string(), signature: STANDARD.encode(self.signature) };
        toml::to_string(&written).expect("two texts have a TOML form")
    }
}

/// A publisher's secret key. It never comes near a node's own.
pub(crate) struct PublisherKey(Ed25519KeyPair);

impl PublisherKey {
    /// Draws one into a new file that only its owner reads.
    pub(crate) fn generate(place: &Path) -> Result<Self, Failure> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|_| Failure::local("randomness", &std::io::ErrorKind::Other.into()))?;
        let key = Self::of(&seed[..]).ok_or_else(|| malformed(place, "no key"))?;
        let text = Zeroizing::new(format!("{KEY} {}\n", STANDARD.encode(*seed)));
        put(place, text.as_bytes(), false, |_| ())?;
        Ok(key)
    }

    /// Reads it.
    pub(crate) fn read(place: &Path) -> Result<Self, Failure> {
        let text = Zeroizing::new(read_text(place)?);
        let secret = text.trim().strip_prefix(KEY).map(str::trim);
        let seed = secret.and_then(|secret| STANDARD.decode(secret).ok()).map(Zeroizing::new);
        seed.and_then(|seed| Self::of(&seed)).ok_or_else(|| {
            let what = format!("{}: not a publisher's key", place.display());
            Failure::usage(what, "make one with `openred module key FILE`")
        })
    }

    fn of(seed: &[u8]) -> Option<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed).ok().map(Self)
    }

    /// Its public half, as operators trust it.
    pub(crate) fn id(&self) -> NodeId {
        let bytes = self.0.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes");
        NodeId::from_bytes(bytes)
    }

    /// Signs a manifest.
    pub(crate) fn sign(&self, manifest: &str) -> Signature {
        let signature = self.0.sign(&signed_bytes(Label::Package, manifest.as_bytes()));
        let mut bytes = [0; 64];
        let written = (&mut bytes[..]).write_all(signature.as_ref());
        written.expect("an Ed25519 signature has 64 bytes");
        Signature { publisher: self.id(), signature: bytes }
    }
}
