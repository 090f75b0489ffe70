//! The stable code of each of the key process's refusals, as its front sends it in a gRPC header and docs/errors.md lists it, and
//! its stable number, as the audit trail holds it.

use crate::method::description::Weakness;
use crate::vault::{Capacity, Refusal, StatementFault};

/// The header of a refused call that carries [`Refusal::code`].
pub const REFUSAL_HEADER: &str = "openred-refusal";

/// What a record of the audit trail holds for a match proof that is wrong: answered, not refused.
pub const NO_MATCH: u8 = 1;

const CODES: [(Refusal, &str, u8); 48] = [
    (Refusal::Malformed, "malformed", 2),
    (Refusal::NotAllowed, "not-allowed", 3),
    (Refusal::Quota, "quota", 4),
    (Refusal::Capacity(Capacity::Links), "capacity-links", 5),
    (Refusal::Capacity(Capacity::HalfOpen), "capacity-half-open", 6),
    (Refusal::Capacity(Capacity::Memory), "capacity-memory", 7),
    (Refusal::PeerStatement(StatementFault::Malformed), "statement-malformed", 8),
    (Refusal::PeerStatement(StatementFault::BadSignature), "statement-signature", 9),
    (Refusal::PeerStatement(StatementFault::WrongSigner), "statement-signer", 10),
    (Refusal::PeerStatement(StatementFault::Expired), "statement-expired", 11),
    (Refusal::PeerStatement(StatementFault::NotYetValid), "statement-early", 12),
    (Refusal::OfferForOther, "offer-for-other", 13),
    (Refusal::OfferSender, "offer-sender", 14),
    (Refusal::UnknownPrekey, "unknown-prekey", 15),
    (Refusal::OfferSealed, "offer-sealed", 16),
    (Refusal::Replay, "replay", 17),
    (Refusal::NoCommonMethod, "no-common-method", 18),
    (Refusal::RowSealed, "row-sealed", 19),
    (Refusal::LinkGone, "link-gone", 20),
    (Refusal::LinkExpired, "link-expired", 21),
    (Refusal::HandshakeGone, "handshake-gone", 22),
    (Refusal::HandshakeFailed, "handshake-failed", 23),
    (Refusal::StateLost, "state-lost", 24),
    (Refusal::Bug, "bug", 25),
    (Refusal::AuditFull, "audit-full", 26),
    (Refusal::Capacity(Capacity::Prekeys), "capacity-prekeys", 27),
    (Refusal::Downgrade, "downgrade", 28),
    (Refusal::DirectDowngrade, "direct-downgrade", 29),
    (Refusal::Capacity(Capacity::Methods), "capacity-methods", 30),
    (Refusal::Capacity(Capacity::MethodsOfModule), "capacity-methods-of-module", 31),
    (Refusal::MethodMalformed, "method-malformed", 32),
    (Refusal::MethodTaken, "method-taken", 33),
    (Refusal::MethodGone, "method-gone", 34),
    (Refusal::WeakMethod(Weakness::Agreement), "method-agreement", 35),
    (Refusal::WeakMethod(Weakness::PostQuantum), "method-post-quantum", 36),
    (Refusal::WeakMethod(Weakness::Aead), "method-aead", 37),
    (Refusal::WeakMethod(Weakness::KeyLength), "method-key-length", 38),
    (Refusal::WeakMethod(Weakness::TagLength), "method-tag-length", 39),
    (Refusal::WeakMethod(Weakness::Hash), "method-hash", 40),
    (Refusal::WeakMethod(Weakness::Suite), "method-suite", 41),
    (Refusal::WeakMethod(Weakness::Kdf), "method-kdf", 42),
    (Refusal::WeakMethod(Weakness::Transform), "method-transform", 43),
    (Refusal::WeakMethod(Weakness::TransformRepeated), "method-transform-repeated", 44),
    (Refusal::WeakMethod(Weakness::TooManyTransforms), "method-too-many-transforms", 45),
    (Refusal::WeakMethod(Weakness::Purposes), "method-purposes", 46),
    (Refusal::WeakMethod(Weakness::PurposeReused), "method-purpose-reused", 47),
    (Refusal::WeakMethod(Weakness::Schedule), "method-schedule", 48),
    (Refusal::WeakMethod(Weakness::Name), "method-name", 49),
];

impl Refusal {
    /// The stable code.
    #[must_use]
    pub fn code(self) -> &'static str {
        CODES.iter().find(|(refusal, ..)| *refusal == self).map_or("bug", |(_, code, _)| code)
    }

    /// From its stable code.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        CODES.iter().find(|(_, known, _)| *known == code).map(|(refusal, ..)| *refusal)
    }

    /// Its number in the audit trail; zero is success and [`NO_MATCH`] a wrong proof.
    #[must_use]
    pub fn number(self) -> u8 {
        CODES.iter().find(|(refusal, ..)| *refusal == self).map_or(u8::MAX, |(.., number)| *number)
    }
}

/// The name of an outcome in the audit trail; none for a number that this build does not know.
#[must_use]
pub fn outcome_name(outcome: u8) -> Option<&'static str> {
    match outcome {
        0 => Some("ok"),
        NO_MATCH => Some("no-match"),
        _ => CODES.iter().find(|(.., number)| *number == outcome).map(|(_, code, _)| *code),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn each_refusal_has_a_code_of_its_own() {
        for (refusal, code, number) in CODES {
            assert_eq!((refusal.code(), refusal.number()), (code, number));
            assert_eq!(outcome_name(number), Some(code));
            assert_eq!(Refusal::from_code(code).unwrap(), refusal);
        }
        assert_eq!(Refusal::from_code("nonsense"), None);
        assert_eq!((outcome_name(0), outcome_name(NO_MATCH), outcome_name(255)), (Some("ok"), Some("no-match"), None));
    }
}
