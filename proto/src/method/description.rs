//! What a module says of a method of its own: which vetted primitives, in which order, under which labels. Data, never code: the key
//! process holds it against the table here and derives links with it as with its own (PROTOCOL 3, docs/decisions/0033).
//!
//! In: canonical bytes, from a module by way of its node. Out: a [`Method`]'s suite and what replaces its transform and key
//! derivation, as [`Vetted`]; or by name which property is below the floor. The floor is alpha: whatever a description says, its links
//! have 256-bit keys, 128-bit tags, X-Wing and ML-KEM-768 beside X25519, and a key of its own for each purpose.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Method;
use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::MethodId;
use crate::limits::TAG_BYTES;

/// The version that this build writes and reads.
pub const VERSION: u64 = 1;
/// Longest description.
pub const DESCRIPTION_BYTES: usize = 256;
/// Longest name of a method within its module, and longest label of a purpose.
pub const LABEL_BYTES: usize = 32;
/// Methods of one module.
pub const PER_MODULE: usize = 4;
/// Transforms of one method: each kind once.
pub const TRANSFORMS: usize = 4;
/// What a link derives keys for: psk, tag, mac1.
pub const PURPOSES: usize = 3;
/// Shortest epoch: an hour, as of the `hourly` schedule.
pub const EPOCH_MIN: Duration = Duration::from_secs(3600);
/// Longest: a week. A method that cannot be left for longer is no agility.
pub const EPOCH_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Items of a list that is decoded, so that "too many" can be said by name.
const LISTED: usize = 8;

const WHAT: &str = "method description";

/// A description as its module wrote it: well-formed, and of any strength. Primitives are numbers of the table in docs/protocol.md
/// section 3; a number that is not in it is decoded and refused by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodDescription {
    /// Its name within its module.
    pub name: String,
    /// Key agreement; 1 is X25519.
    pub agreement: u64,
    /// The post-quantum part of offers and of each handshake; 1 is X-Wing and ML-KEM-768.
    pub post_quantum: u64,
    /// 1 ChaCha20-Poly1305, 2 AES-GCM.
    pub aead: u64,
    /// Bits of its keys.
    pub key_bits: u64,
    /// Bits of its tags.
    pub tag_bits: u64,
    /// Hash of the handshake: 1 BLAKE2s, 2 SHA-256, 3 SHA-512, 4 BLAKE2b.
    pub hash: u64,
    /// Derivation of a link's keys: 1 HKDF-SHA-256, 2 HKDF-SHA-512.
    pub kdf: u64,
    /// The token transform, step by step: 1 mask, 2 rotation, 3 permutation, 4 Feistel network.
    pub transforms: Vec<u8>,
    /// Labels of the keys of psk, tag and mac1, in this order.
    pub purposes: Vec<String>,
    /// How long one of its epochs lasts, in seconds.
    pub epoch_seconds: u64,
}

/// One step of a token transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// Exclusive or with a mask.
    Mask,
    /// Rotation by bits.
    Rotation,
    /// Permutation of bytes.
    Permutation,
    /// A Feistel network of four rounds.
    Feistel,
}

impl Step {
    fn from_number(number: u8) -> Option<Self> {
        [Self::Mask, Self::Rotation, Self::Permutation, Self::Feistel].get(usize::from(number.checked_sub(1)?)).copied()
    }

    /// Its name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mask => "mask",
            Self::Rotation => "rotation",
            Self::Permutation => "permutation",
            Self::Feistel => "feistel",
        }
    }
}

/// What derives a link's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kdf {
    /// HKDF with SHA-256.
    HkdfSha256,
    /// HKDF with SHA-512.
    HkdfSha512,
}

/// A description that holds the floor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vetted {
    /// Its id.
    pub id: MethodId,
    /// Its name within its module.
    pub name: String,
    /// The suite of its handshakes and sessions, which has a static key in every vault.
    pub suite: Method,
    /// What derives its links' keys.
    pub kdf: Kdf,
    /// Its token transform.
    pub steps: Vec<Step>,
    /// Labels of the keys of psk, tag and mac1.
    pub purposes: [String; PURPOSES],
    /// How long one of its epochs lasts.
    pub epoch: Duration,
}

/// Which property of a description is below the floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Weakness {
    /// No key agreement that the vault knows.
    #[error("key agreement: only X25519 (1) is vetted")]
    Agreement,
    /// The post-quantum part is missing, or another.
    #[error("post-quantum part: X-Wing with ML-KEM-768 (1) must be there")]
    PostQuantum,
    /// No such AEAD.
    #[error("AEAD: only ChaCha20-Poly1305 (1) and AES-GCM (2) are vetted")]
    Aead,
    /// Keys that are too short.
    #[error("key length: it must be 256 bits")]
    KeyLength,
    /// Tags that are too short.
    #[error("tag length: it must be 128 bits")]
    TagLength,
    /// No such hash.
    #[error("hash: only BLAKE2s (1), SHA-256 (2), SHA-512 (3) and BLAKE2b (4) are vetted")]
    Hash,
    /// AEAD and hash that no vault has a static key for.
    #[error(
        "suite: no method of every node joins this AEAD with this hash (BLAKE2s and SHA-512 go with ChaCha20-Poly1305, the others with AES-GCM)"
    )]
    Suite,
    /// No such key derivation.
    #[error("key derivation: only HKDF-SHA-256 (1) and HKDF-SHA-512 (2) are vetted")]
    Kdf,
    /// A transform that there is not, or none at all.
    #[error("transform: one to four of mask (1), rotation (2), permutation (3) and Feistel network (4)")]
    Transform,
    /// One twice, where the second may undo the first.
    #[error("transform: each kind at most once")]
    TransformRepeated,
    /// More than there are.
    #[error("transform: at most four")]
    TooManyTransforms,
    /// Not one label for each purpose.
    #[error("purposes: psk, tag and mac1 each need a label of 1 to 32 of a-z, 0-9, `-`")]
    Purposes,
    /// One key for two purposes.
    #[error("purposes: one key would serve two of them; give each its own label")]
    PurposeReused,
    /// An epoch that is too short or too long.
    #[error("schedule: an epoch lasts from an hour to seven days")]
    Schedule,
    /// No name.
    #[error("name: 1 to 32 of a-z, 0-9, `-`")]
    Name,
}

impl Weakness {
    /// All of them.
    pub const ALL: [Weakness; 15] = [
        Weakness::Agreement,
        Weakness::PostQuantum,
        Weakness::Aead,
        Weakness::KeyLength,
        Weakness::TagLength,
        Weakness::Hash,
        Weakness::Suite,
        Weakness::Kdf,
        Weakness::Transform,
        Weakness::TransformRepeated,
        Weakness::TooManyTransforms,
        Weakness::Purposes,
        Weakness::PurposeReused,
        Weakness::Schedule,
        Weakness::Name,
    ];
}

impl MethodDescription {
    /// Alpha, as a description: what an author begins with, and the floor itself.
    #[must_use]
    pub fn floor(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            agreement: 1,
            post_quantum: 1,
            aead: 1,
            key_bits: 256,
            tag_bits: 128,
            hash: 1,
            kdf: 1,
            transforms: vec![1],
            purposes: ["psk", "tag", "mac1"].map(str::to_owned).to_vec(),
            epoch_seconds: EPOCH_MIN.as_secs(),
        }
    }

    /// Its canonical bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::new()
            .number(1, VERSION)
            .bytes(2, self.name.as_bytes())
            .number(3, self.agreement)
            .number(4, self.post_quantum)
            .number(5, self.aead)
            .number(6, self.key_bits)
            .number(7, self.tag_bits)
            .number(8, self.hash)
            .number(9, self.kdf)
            .bytes(10, &self.transforms);
        let purposes = self.purposes.iter().fold(writer, |writer, label| writer.item(11, label.as_bytes()));
        purposes.number(12, self.epoch_seconds).finish()
    }

    /// Reads canonical bytes. Whether it holds the floor is [`MethodDescription::vet`]'s to say.
    ///
    /// # Errors
    /// Too long, malformed, or of a version not spoken here.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > DESCRIPTION_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: DESCRIPTION_BYTES });
        }
        let mut reader = Reader::new(WHAT, bytes);
        if reader.number(1)? != VERSION {
            return Err(WireError::Unsupported { what: WHAT });
        }
        let description = Self {
            name: reader.text(2, DESCRIPTION_BYTES)?.to_owned(),
            agreement: reader.number(3)?,
            post_quantum: reader.number(4)?,
            aead: reader.number(5)?,
            key_bits: reader.number(6)?,
            tag_bits: reader.number(7)?,
            hash: reader.number(8)?,
            kdf: reader.number(9)?,
            transforms: reader.bytes(10, DESCRIPTION_BYTES)?.to_vec(),
            purposes: labels(&mut reader)?,
            epoch_seconds: reader.number(12)?,
        };
        reader.finish()?;
        Ok(description)
    }

    /// Its id: what peers know it by.
    #[must_use]
    pub fn id(&self) -> MethodId {
        use sha2::Digest as _;
        let digest: [u8; 32] = sha2::Sha256::digest(self.encode()).into();
        MethodId::from_bytes(std::array::from_fn(|place| digest[place]))
    }

    /// Holds it against the table.
    ///
    /// # Errors
    /// The first property that is below the floor.
    pub fn vet(&self) -> std::result::Result<Vetted, Weakness> {
        if !is_label(&self.name) {
            return Err(Weakness::Name);
        }
        let suite = self.suite()?;
        let kdf = match self.kdf {
            1 => Kdf::HkdfSha256,
            2 => Kdf::HkdfSha512,
            _ => return Err(Weakness::Kdf),
        };
        let steps = self.steps()?;
        let purposes: [String; PURPOSES] = self.purposes.clone().try_into().map_err(|_| Weakness::Purposes)?;
        if !purposes.iter().all(|label| is_label(label)) {
            return Err(Weakness::Purposes);
        }
        if (1..PURPOSES).any(|place| purposes[..place].contains(&purposes[place])) {
            return Err(Weakness::PurposeReused);
        }
        let epoch = Duration::from_secs(self.epoch_seconds);
        if !(EPOCH_MIN..=EPOCH_MAX).contains(&epoch) {
            return Err(Weakness::Schedule);
        }
        Ok(Vetted { id: self.id(), name: self.name.clone(), suite, kdf, steps, purposes, epoch })
    }

    fn suite(&self) -> std::result::Result<Method, Weakness> {
        if self.agreement != 1 {
            return Err(Weakness::Agreement);
        }
        if self.post_quantum != 1 {
            return Err(Weakness::PostQuantum);
        }
        if !matches!(self.aead, 1 | 2) {
            return Err(Weakness::Aead);
        }
        if self.key_bits != 256 {
            return Err(Weakness::KeyLength);
        }
        if self.tag_bits != 8 * TAG_BYTES as u64 {
            return Err(Weakness::TagLength);
        }
        match (self.aead, self.hash) {
            (1, 1) => Ok(Method::Alpha),
            (2, 2) => Ok(Method::Beta),
            (1, 3) => Ok(Method::Gamma),
            (2, 4) => Ok(Method::Delta),
            (_, 1..=4) => Err(Weakness::Suite),
            _ => Err(Weakness::Hash),
        }
    }

    fn steps(&self) -> std::result::Result<Vec<Step>, Weakness> {
        if self.transforms.len() > TRANSFORMS {
            return Err(Weakness::TooManyTransforms);
        }
        let steps: Option<Vec<Step>> = self.transforms.iter().map(|number| Step::from_number(*number)).collect();
        let steps = steps.filter(|steps| !steps.is_empty()).ok_or(Weakness::Transform)?;
        if (1..steps.len()).any(|place| steps[..place].contains(&steps[place])) {
            return Err(Weakness::TransformRepeated);
        }
        Ok(steps)
    }
}

fn labels(reader: &mut Reader<'_>) -> Result<Vec<String>> {
    let items = reader.items(11, LISTED, DESCRIPTION_BYTES)?;
    let text = |item| std::str::from_utf8(item).map(str::to_owned);
    items
        .into_iter()
        .map(text)
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| reader.malformed("text is not UTF-8"))
}

/// Whether this may be a name or a label: 1 to 32 of a-z, 0-9, `-`.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=LABEL_BYTES).contains(&text.len()) && text.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_floor_holds_and_each_property_below_it_is_named() {
        let floor = || MethodDescription::floor("omega");
        assert_eq!(floor().vet().unwrap().suite, Method::Alpha);
        let labels = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
        let weak = [
            (MethodDescription { agreement: 0, ..floor() }, Weakness::Agreement),
            (MethodDescription { post_quantum: 0, ..floor() }, Weakness::PostQuantum),
            (MethodDescription { aead: 3, ..floor() }, Weakness::Aead),
            (MethodDescription { key_bits: 128, ..floor() }, Weakness::KeyLength),
            (MethodDescription { tag_bits: 64, ..floor() }, Weakness::TagLength),
            (MethodDescription { hash: 5, ..floor() }, Weakness::Hash),
            (MethodDescription { hash: 2, ..floor() }, Weakness::Suite),
            (MethodDescription { kdf: 9, ..floor() }, Weakness::Kdf),
            (MethodDescription { transforms: vec![], ..floor() }, Weakness::Transform),
            (MethodDescription { transforms: vec![1, 5], ..floor() }, Weakness::Transform),
            (MethodDescription { transforms: vec![2, 2], ..floor() }, Weakness::TransformRepeated),
            (MethodDescription { transforms: vec![1, 2, 3, 4, 1], ..floor() }, Weakness::TooManyTransforms),
            (MethodDescription { purposes: labels(&["psk", "tag"]), ..floor() }, Weakness::Purposes),
            (MethodDescription { purposes: labels(&["psk", "tag", "Mac"]), ..floor() }, Weakness::Purposes),
            (MethodDescription { purposes: labels(&["psk", "tag", "psk"]), ..floor() }, Weakness::PurposeReused),
            (MethodDescription { epoch_seconds: 3599, ..floor() }, Weakness::Schedule),
            (MethodDescription { epoch_seconds: 7 * 86_400 + 1, ..floor() }, Weakness::Schedule),
            (MethodDescription { name: "a b".into(), ..floor() }, Weakness::Name),
        ];
        for (description, weakness) in &weak {
            assert_eq!(MethodDescription::decode(&description.encode()).unwrap().vet(), Err(*weakness));
        }
        assert!(Weakness::ALL.iter().all(|weakness| weak.iter().any(|(_, named)| named == weakness)));
    }

    fn any_description() -> impl Strategy<Value = MethodDescription> {
        let primitives = (0_u64..4, 0_u64..3, 0_u64..4, prop::sample::select(vec![0_u64, 64, 128, 256, 512]), 0_u64..6);
        let rest = (0_u64..4, prop::collection::vec(0_u8..6, 0..6), prop::collection::vec("[a-z-]{1,33}", 0..5));
        (primitives, rest, prop::sample::select(vec![64_u64, 128, 256]), 0_u64..900_000, "[a-z]{0,33}").prop_map(
            |(
                (agreement, post_quantum, aead, key_bits, hash),
                (kdf, transforms, purposes),
                tag_bits,
                seconds,
                name,
            )| {
                let epoch_seconds = seconds;
                let (agreement, post_quantum) = (agreement.min(1), post_quantum.min(1));
                MethodDescription {
                    name,
                    agreement,
                    post_quantum,
                    aead,
                    key_bits,
                    tag_bits,
                    hash,
                    kdf,
                    transforms,
                    purposes,
                    epoch_seconds,
                }
            },
        )
    }

    proptest! {
        /// One value, one encoding; and what is vetted has every property of the floor.
        #[test]
        fn canonical_and_never_below_the_floor(description in any_description()) {
            let bytes = description.encode();
            prop_assume!(bytes.len() <= DESCRIPTION_BYTES);
            prop_assert_eq!(&MethodDescription::decode(&bytes).unwrap(), &description);
            if let Ok(vetted) = description.vet() {
                prop_assert_eq!((description.agreement, description.post_quantum), (1, 1));
                prop_assert_eq!((description.key_bits, description.tag_bits), (256, 128));
                prop_assert_eq!(vetted.suite.is_aes(), description.aead == 2);
                let labels: std::collections::BTreeSet<&String> = vetted.purposes.iter().collect();
                prop_assert_eq!(labels.len(), PURPOSES);
                prop_assert!((EPOCH_MIN..=EPOCH_MAX).contains(&vetted.epoch));
            }
        }

        #[test]
        fn whatever_is_read_is_written_alike(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(description) = MethodDescription::decode(&bytes) {
                prop_assert_eq!(description.encode(), bytes);
            }
        }
    }
}
