//! Who may ask for what: role × operation, as one table, and the class under which an operation is counted.

use openred_proto::vault::{Request, Role};

/// Operations that share a quota and a set of roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Says who the node is. Everybody.
    Describe,
    /// Signs a card, an HTTP request, or that a session was opened. Node.
    Sign,
    /// Signs what a module states: apart from the node's own signatures, which no module shall use up. Node.
    SignModule,
    /// Issues, opens or takes an offer: HPKE and signatures. Node.
    Offer,
    /// One phase of a handshake. Node.
    Handshake,
    /// The beginning of one without a link, on either side: whom strangers may ask for has a rate of its own. Node.
    Direct,
    /// Opens or ends a row: symmetric work. Node.
    Row,
    /// Derives a store key or takes a method: modules ask for theirs at their start. Symmetric work too, but each time a record in the trail, which nothing
    /// else would bound: whoever asks without end fills the disk with it. Node.
    Store,
    /// Says what belongs in the audit trail. Node.
    Report,
    /// Locks the vault, rotates keys, and asks and says what the audit trail needs. Operator.
    Control,
}

impl Class {
    /// Every class, in the order of the quotas.
    pub(crate) const ALL: [Class; 10] = [
        Class::Describe,
        Class::Sign,
        Class::SignModule,
        Class::Offer,
        Class::Handshake,
        Class::Direct,
        Class::Row,
        Class::Store,
        Class::Report,
        Class::Control,
    ];

    /// The class of a request. No wildcard arm: a new operation has to be placed here.
    pub(crate) const fn of(request: &Request) -> Self {
        match request {
            Request::Describe => Class::Describe,
            Request::SignCard { .. } | Request::SignHttp(_) | Request::SignSession { .. } => Class::Sign,
            Request::SignModule { .. } => Class::SignModule,
            Request::IssueLink { .. }
            | Request::InspectOffer(_)
            | Request::AcceptOffer(_)
            | Request::RenewLink { .. }
            | Request::InspectRenewal(_)
            | Request::AcceptRenewal(_) => Class::Offer,
            Request::StartHandshake { .. }
            | Request::AnswerHandshake { .. }
            | Request::FinishHandshake { .. }
            | Request::CompleteHandshake { .. }
            | Request::AbandonHandshake { .. } => Class::Handshake,
            Request::StartDirect { .. } | Request::AnswerDirect { .. } => Class::Direct,
            Request::LinkKeys { .. }
            | Request::RevokeLink { .. }
            | Request::ListLinks { .. }
            | Request::ListMethods
            | Request::ValidateMatch { .. } => Class::Row,
            Request::StoreKey { .. }
            | Request::SealKey { .. }
            | Request::RegisterMethod { .. }
            | Request::RetireMethod { .. } => Class::Store,
            Request::Report { .. } => Class::Report,
            Request::Note { .. }
            | Request::AuditStatus
            | Request::AuditFiled { .. }
            | Request::AuditSubject { .. }
            | Request::Rotate { .. }
            | Request::Lock => Class::Control,
        }
    }

    /// Whether `role` may ask for operations of this class.
    pub(crate) const fn is_for(self, role: Role) -> bool {
        match self {
            Class::Describe => true,
            Class::Sign
            | Class::SignModule
            | Class::Offer
            | Class::Handshake
            | Class::Direct
            | Class::Row
            | Class::Store
            | Class::Report => matches!(role, Role::Node),
            Class::Control => matches!(role, Role::Operator),
        }
    }
}
