//! Succession: an identity's signed word that another node id goes on in its place, or that it takes that word back.
//!
//! A node's *lineage* is the chain of such words that ends at its present identity; it stands in the card, so that whoever
//! knew an earlier identity can follow it without trusting who hands the card over. In: signed statements. Out: who became
//! whom. When a word was heard first, and so whether it may still be taken back, the reader of the chain keeps.

use crate::checked::statement::{self, Unverified};
use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::{NodeId, UnixMillis};
use crate::label::Label;
use crate::limits::{LINEAGE, SEQUENCE_AHEAD, SUCCESSION_BYTES, TAKE_BACK};

const WHAT: &str = "succession";

/// What is said of the other node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Step {
    /// It goes on in the signer's place.
    Succeed = 1,
    /// The signer goes on itself: its earlier word for the other is void.
    TakeBack = 2,
}

/// One word, as its signer gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Succession {
    /// What is said.
    pub step: Step,
    /// Who signs.
    pub old: NodeId,
    /// Whom it is about.
    pub new: NodeId,
    /// Order among the signer's words; Unix milliseconds or one more than its last.
    pub sequence: u64,
}

impl Succession {
    /// The payload to sign.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .number(1, self.step as u64)
            .bytes(2, self.old.as_bytes())
            .bytes(3, self.new.as_bytes())
            .number(4, self.sequence)
            .finish()
    }

    /// The signed statement from its parts: what the one who holds the old key does after it has signed.
    #[must_use]
    pub fn signed(&self, signature: &[u8; 64]) -> Vec<u8> {
        statement::encode(&self.encode(), &self.old, signature)
    }

    /// Verifies and decodes one statement.
    ///
    /// # Errors
    /// Too long, malformed, bad signature, or signed by another than the old identity.
    pub fn verify(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > SUCCESSION_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: SUCCESSION_BYTES });
        }
        let statement = Unverified::decode(WHAT, bytes)?.verify(Label::Succession, WHAT)?;
        let mut reader = Reader::new(WHAT, statement.payload());
        let step = match reader.number(1)? {
            1 => Step::Succeed,
            2 => Step::TakeBack,
            _ => return Err(reader.malformed("neither a succession nor its taking back")),
        };
        let (old, new) = (NodeId::from_bytes(reader.array(2)?), NodeId::from_bytes(reader.array(3)?));
        let word = Self { step, old, new, sequence: reader.number(4)? };
        if word.old == word.new {
            return Err(reader.malformed("a node cannot succeed itself"));
        }
        if word.old != statement.signer() {
            return Err(WireError::WrongSigner { what: WHAT });
        }
        reader.finish()?;
        Ok(word)
    }

    /// Who stood for the node before this word, and after it.
    const fn ends(&self) -> (NodeId, NodeId) {
        match self.step {
            Step::Succeed => (self.old, self.new),
            Step::TakeBack => (self.new, self.old),
        }
    }
}

/// The verified words that lead to one identity, oldest first; empty for a node that never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    words: Vec<(Vec<u8>, Succession)>,
}

impl Lineage {
    /// Verifies statements that are to lead to `node`.
    ///
    /// # Errors
    /// As [`Succession::verify`]; more than [`LINEAGE`] of them, or no chain that ends at `node`.
    pub fn verify<'a>(items: impl IntoIterator<Item = &'a [u8]>, node: NodeId) -> Result<Self> {
        let mut words = Vec::new();
        for item in items {
            if words.len() == LINEAGE {
                return Err(WireError::TooLong { what: "lineage", limit: LINEAGE });
            }
            words.push((item.to_vec(), Succession::verify(item)?));
        }
        let lineage = Self { words };
        let broken = WireError::Malformed { what: "lineage", why: "its words are no chain that ends at this node" };
        let mut before: Option<&Succession> = None;
        for step in lineage.steps() {
            let goes_on = before.is_none_or(|before| before.ends().1 == step.ends().0);
            // Who takes a word back in a lineage has spoken it there, unless that was forgotten at its beginning. Else two who
            // agree would lead their readers to a third, who has said nothing, and away again.
            let is_own = before.is_none_or(|before| step.step == Step::Succeed || step.takes_back(before));
            if !goes_on || !is_own {
                return Err(broken);
            }
            before = Some(step);
        }
        match before {
            Some(last) if last.ends().1 != node => Err(broken),
            _ => Ok(lineage),
        }
    }

    /// Checks the words' sequences against the reader's clock.
    ///
    /// # Errors
    /// Malformed when one is over 2 h ahead (PROTOCOL 1).
    pub fn check_times(&self, now: UnixMillis) -> Result<()> {
        match self.steps().any(|step| step.sequence > now.plus(SEQUENCE_AHEAD).0) {
            true => Err(WireError::Malformed { what: "lineage", why: "a sequence is over 2 h ahead" }),
            false => Ok(()),
        }
    }

    /// The words, oldest first.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &Succession> {
        self.words.iter().map(|(_, word)| word)
    }

    /// The signed statements, oldest first.
    pub fn items(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.words.iter().map(|(bytes, _)| &bytes[..])
    }

    /// Whether there is no word.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The identities that are said to have stood for this node before, each once, oldest first; without the present one. Of
    /// one's own lineage it is so. Of another's, only [`Lineage::follow`] says whose standing may be carried over: a word of
    /// taking back names an identity that may have consented to nothing.
    #[must_use]
    pub fn earlier(&self) -> Vec<NodeId> {
        let now = self.words.last().map(|(_, word)| word.ends().1);
        let mut earlier = Vec::new();
        for step in self.steps() {
            let (from, _) = step.ends();
            if Some(from) != now && !earlier.contains(&from) {
                earlier.push(from);
            }
        }
        earlier
    }

    /// The next sequence of whoever signs the next word.
    #[must_use]
    pub fn next_sequence(&self, now: UnixMillis) -> u64 {
        self.steps().map(|step| step.sequence.saturating_add(1)).max().unwrap_or(0).max(now.0)
    }

    /// This lineage with one word more; of more than fit, the oldest goes.
    ///
    /// # Errors
    /// When the word does not go on where the lineage ends.
    pub fn with(&self, bytes: Vec<u8>) -> Result<Self> {
        let word = Succession::verify(&bytes)?;
        let (_, node) = word.ends();
        let first = (self.words.len() + 1).saturating_sub(LINEAGE);
        Self::verify(self.items().skip(first).chain([&bytes[..]]), node)
    }
}

/// What a reader remembers of an identity's last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Whom the word was about.
    pub new: NodeId,
    /// The word's sequence.
    pub sequence: u64,
    /// When this reader heard of it first, by its own clock.
    pub heard_at: UnixMillis,
    /// The word was taken back.
    pub taken_back: bool,
}

/// Why a lineage is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Two successors of one identity.
    #[error("its earlier identity has named another successor before")]
    Another,
    /// The word that it rests on was taken back.
    #[error("its earlier identity has taken its word for it back")]
    TakenBack,
    /// Taken back after the window.
    #[error("a succession was taken back after its 72 hours")]
    TooLate,
}

/// What a reader does about a lineage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// What to remember, by who spoke.
    pub changes: Vec<(NodeId, Heard)>,
    /// Whose standing the present identity has, by their own word; oldest first.
    pub earlier: Vec<NodeId>,
    /// Whose successor, named and now taken back, has no standing of theirs any more.
    pub taken_back: Vec<(NodeId, NodeId)>,
}

impl Lineage {
    /// Holds this lineage against what the reader heard before; `heard` answers for one identity. Nothing is changed.
    ///
    /// # Errors
    /// A [`Contradiction`]: then nothing of the lineage counts.
    pub fn follow(
        &self,
        heard: impl Fn(&NodeId) -> Option<Heard>,
        now: UnixMillis,
    ) -> std::result::Result<Followed, Contradiction> {
        let mut followed = Followed::default();
        for (place, word) in self.steps().enumerate() {
            let earlier = followed.changes.iter().rev().find(|(old, _)| *old == word.old).map(|(_, heard)| *heard);
            let held = earlier.or_else(|| heard(&word.old));
            let news = match word.step {
                Step::Succeed => {
                    let is_void = self.steps().skip(place).any(|later| later.takes_back(word));
                    followed.earlier.push(word.old);
                    word.named(held, is_void, now)?
                }
                Step::TakeBack => {
                    // Who led to the one that speaks again still does; whoever led elsewhere does not lead here.
                    let back = followed.earlier.iter().position(|earlier| *earlier == word.old).unwrap_or(0);
                    followed.earlier.truncate(back);
                    let news = word.taken(held, now)?;
                    followed.taken_back.extend(news.map(|_| (word.old, word.new)));
                    news
                }
            };
            followed.changes.extend(news.map(|news| (word.old, news)));
        }
        Ok(followed)
    }
}

impl Succession {
    fn takes_back(&self, earlier: &Self) -> bool {
        self.step == Step::TakeBack && (self.old, self.new) == (earlier.old, earlier.new)
    }

    /// What is new in a word for a successor; `is_void`: the same lineage takes it back.
    fn named(
        &self,
        held: Option<Heard>,
        is_void: bool,
        now: UnixMillis,
    ) -> std::result::Result<Option<Heard>, Contradiction> {
        let news = Heard { new: self.new, sequence: self.sequence, heard_at: now, taken_back: false };
        match held {
            None => Ok(Some(news)),
            // Another one, after the first was taken back; never the same: its old word could be dated as late as one likes.
            Some(held) if held.taken_back && held.new != self.new && self.sequence > held.sequence => Ok(Some(news)),
            Some(held) if held.new == self.new && !held.taken_back => Ok(None),
            Some(_) if is_void => Ok(None),
            Some(held) if held.taken_back => Err(Contradiction::TakenBack),
            Some(_) => Err(Contradiction::Another),
        }
    }

    /// What is new in a word that takes another back.
    fn taken(&self, held: Option<Heard>, now: UnixMillis) -> std::result::Result<Option<Heard>, Contradiction> {
        let sequence = held.map_or(0, |held| held.sequence).max(self.sequence);
        let news = Heard { new: self.new, sequence, heard_at: now, taken_back: true };
        match held {
            Some(held) if held.new != self.new || held.taken_back => Ok(None),
            Some(held) if now > held.heard_at.plus(TAKE_BACK) => Err(Contradiction::TooLate),
            _ => Ok(Some(news)),
        }
    }
}

#[cfg(test)]
#[path = "succession_tests.rs"]
mod tests;
