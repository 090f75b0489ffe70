//! The stable code of each of the key process's refusals, as its front sends it in a gRPC header and docs/errors.md lists it.

use crate::vault::{Capacity, Refusal, StatementFault};

/// The header of a refused call that carries [`Refusal::code`].
pub const REFUSAL_HEADER: &str = "openred-refusal";

const CODES: [(Refusal, &str); 25] = [
    (Refusal::Malformed, "malformed"),
    (Refusal::NotAllowed, "not-allowed"),
    (Refusal::Quota, "quota"),
    (Refusal::Capacity(Capacity::Links), "capacity-links"),
    (Refusal::Capacity(Capacity::HalfOpen), "capacity-half-open"),
    (Refusal::Capacity(Capacity::Memory), "capacity-memory"),
    (Refusal::Capacity(Capacity::Prekeys), "capacity-prekeys"),
    (Refusal::PeerStatement(StatementFault::Malformed), "statement-malformed"),
    (Refusal::PeerStatement(StatementFault::BadSignature), "statement-signature"),
    (Refusal::PeerStatement(StatementFault::WrongSigner), "statement-signer"),
    (Refusal::PeerStatement(StatementFault::Expired), "statement-expired"),
    (Refusal::PeerStatement(StatementFault::NotYetValid), "statement-early"),
    (Refusal::OfferForOther, "offer-for-other"),
    (Refusal::OfferSender, "offer-sender"),
    (Refusal::UnknownPrekey, "unknown-prekey"),
    (Refusal::OfferSealed, "offer-sealed"),
    (Refusal::Replay, "replay"),
    (Refusal::NoCommonMethod, "no-common-method"),
    (Refusal::RowSealed, "row-sealed"),
    (Refusal::LinkGone, "link-gone"),
    (Refusal::LinkExpired, "link-expired"),
    (Refusal::HandshakeGone, "handshake-gone"),
    (Refusal::HandshakeFailed, "handshake-failed"),
    (Refusal::StateLost, "state-lost"),
    (Refusal::Bug, "bug"),
];

impl Refusal {
    /// The stable code.
    #[must_use]
    pub fn code(self) -> &'static str {
        CODES.iter().find(|(refusal, _)| *refusal == self).map_or("bug", |(_, code)| code)
    }

    /// From its stable code.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        CODES.iter().find(|(_, known)| *known == code).map(|(refusal, _)| *refusal)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn each_refusal_has_a_code_of_its_own() {
        for (refusal, code) in CODES {
            assert_eq!(refusal.code(), code);
            assert_eq!(Refusal::from_code(code).unwrap(), refusal);
        }
        assert_eq!(Refusal::from_code("nonsense"), None);
    }
}
