//! What a module can do wrong, by name. One list, so that every reply goes through the same judgement.

use crate::wire::flow::Broken;

/// Why an attachment ended, or did not begin. Each text is one line, without the module's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// The value was not the one that was drawn for this module, or was used before.
    #[error("it did not prove itself")]
    Unproven,
    /// The first frame was no Hello, came too late, or a part of it was too long.
    #[error("its first frame is no Hello")]
    NoHello,
    /// No version of the contract that both speak.
    #[error("it speaks versions {} to {} of the contract, this node {} to {}", .module.0, .module.1, .node.0, .node.1)]
    Version {
        /// The oldest and the newest that the module speaks.
        module: (u32, u32),
        /// The same of this node.
        node: (u32, u32),
    },
    /// It did not open its second connection in time.
    #[error("it did not open its second connection")]
    HalfOpen,
    /// A frame is longer than the contract allows, or is none.
    #[error("it sent a frame that is none, or too long")]
    Garbage,
    /// A frame for a call that was never made.
    #[error("it answered a call that was never made")]
    UnknownCall,
    /// A second answer, or a frame for a call that it had ended.
    #[error("it answered a call twice")]
    SecondAnswer,
    /// A body before its head, an event's end for a call, an answer to what was not asked.
    #[error("it sent a frame out of turn")]
    OutOfTurn,
    /// A reply whose status or media type is none.
    #[error("it sent a reply whose head is none")]
    BadHead,
    /// A hook's answer that holds what it did not declare or may not say, or that is none.
    #[error("it answered a hook with what that hook may not say")]
    BadVerdict,
    /// More bytes than it was granted.
    #[error("it sent more than it was granted")]
    Overrun,
    /// Empty pieces, or pieces after the end.
    #[error("it sent a body out of contract")]
    BadBody,
    /// More credit than any body needs.
    #[error("it granted more than any body needs")]
    BadCredit,
    /// It did not end a call that was cancelled.
    #[error("it does not end calls that are cancelled")]
    IgnoresCancel,
    /// It did not answer a ping: it hangs, or does not read.
    #[error("it does not answer")]
    Silent,
    /// Its connection closed: the process ended, or wants no more.
    #[error("it has gone")]
    Gone,
    /// The host ended it.
    #[error("it was ended by the node")]
    Ended,
}

impl Fault {
    /// Stable name in kebab case, for logs, conditions and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::NoHello => "no-hello",
            Self::Version { .. } => "version",
            Self::HalfOpen => "half-open",
            Self::Garbage => "garbage",
            Self::UnknownCall => "unknown-call",
            Self::SecondAnswer => "second-answer",
            Self::OutOfTurn => "out-of-turn",
            Self::BadHead => "bad-head",
            Self::BadVerdict => "bad-verdict",
            Self::Overrun => "overrun",
            Self::BadBody => "bad-body",
            Self::BadCredit => "bad-credit",
            Self::IgnoresCancel => "ignores-cancel",
            Self::Silent => "silent",
            Self::Gone => "gone",
            Self::Ended => "ended",
        }
    }

    /// Whether it broke the contract, rather than ended.
    pub fn is_misconduct(self) -> bool {
        !matches!(self, Self::Gone | Self::Ended)
    }
}

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Overrun => Self::Overrun,
            Broken::Empty | Broken::AfterEnd => Self::BadBody,
            Broken::CreditOverflow => Self::BadCredit,
            Broken::Unknown => Self::Garbage,
        }
    }
}
