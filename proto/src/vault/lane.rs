//! How dear an operation is, which decides in which queue it waits: front and vault keep the two apart, so that whoever asks for
//! much of what is dear does not hold up what is cheap.
//!
//! No wildcard arm: a new operation has to be placed here.

use super::Request;

/// One of the two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Tens of microseconds at most: one signature, or symmetric work.
    Cheap,
    /// Hundreds: key agreement, HPKE, several signatures.
    Dear,
}

impl Request {
    /// The queue of this operation.
    #[must_use]
    pub const fn lane(&self) -> Lane {
        match self {
            Request::IssueLink { .. }
            | Request::InspectOffer(_)
            | Request::AcceptOffer(_)
            | Request::RenewLink { .. }
            | Request::InspectRenewal(_)
            | Request::AcceptRenewal(_)
            | Request::StartHandshake { .. }
            | Request::AnswerHandshake { .. }
            | Request::FinishHandshake { .. }
            | Request::CompleteHandshake { .. }
            | Request::StartDirect { .. }
            | Request::AnswerDirect { .. }
            | Request::Rotate { .. } => Lane::Dear,
            Request::Describe
            | Request::SignCard { .. }
            | Request::SignHttp(_)
            | Request::LinkKeys { .. }
            | Request::RevokeLink { .. }
            | Request::ListLinks { .. }
            | Request::AbandonHandshake { .. }
            | Request::SignSession { .. }
            | Request::ValidateMatch { .. }
            | Request::StoreKey { .. }
            | Request::SealKey { .. }
            | Request::RegisterMethod { .. }
            | Request::RetireMethod { .. }
            | Request::ListMethods
            | Request::SignModule { .. }
            | Request::Report { .. }
            | Request::Note { .. }
            | Request::AuditStatus
            | Request::AuditFiled { .. }
            | Request::AuditSubject { .. }
            | Request::Lock => Lane::Cheap,
        }
    }
}
