//! The words of hooks: where one stands, what it is for, and what of a call it may be shown. The node's chain and the module's handlers
//! speak of calls in these words.

use serde::Deserialize;

/// Where a hook stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// A linked peer's request, before the module that it is for has it.
    Inbound,
    /// The answer to it, before the peer has it.
    InboundResponse,
    /// A request of this node's operator.
    Operator,
    /// The answer to it.
    OperatorResponse,
    /// A request of a module of this node to a peer, before it leaves.
    Outbound,
    /// The peer's answer, before the module has it.
    OutboundResponse,
}

impl Point {
    /// All of them, in the order of a call.
    pub const ALL: [Self; 6] = [
        Self::Inbound,
        Self::InboundResponse,
        Self::Operator,
        Self::OperatorResponse,
        Self::Outbound,
        Self::OutboundResponse,
    ];

    /// Its name in manifests and lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::InboundResponse => "inbound_response",
            Self::Operator => "operator",
            Self::OperatorResponse => "operator_response",
            Self::Outbound => "outbound",
            Self::OutboundResponse => "outbound_response",
        }
    }

    /// Whether it is an answer that stands here.
    pub fn is_response(self) -> bool {
        matches!(self, Self::InboundResponse | Self::OperatorResponse | Self::OutboundResponse)
    }

    /// What can be shown of a call here.
    pub fn shows(self) -> Fields {
        let mut fields = Fields::ALL;
        if !self.is_response() {
            fields = fields.without(Field::Status);
        }
        if matches!(self, Self::Operator | Self::OperatorResponse) {
            fields = fields.without(Field::Peer);
        }
        fields
    }

    /// What a hook of class transform may change here, of what it declares.
    pub fn changes(self) -> Fields {
        let own = if self.is_response() { Field::Status } else { Field::Path };
        [own, Field::ContentType, Field::Body].into_iter().collect()
    }
}

/// What a hook is for. Classes are asked in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookClass {
    /// Says whether the caller is who he should be. Closed when it fails.
    Authn,
    /// Says whether the call may be made. Closed when it fails.
    Authz,
    /// May change declared fields. Closed when it fails, unless declared otherwise.
    Transform,
    /// Is told, beside the call's way; can change and hold up nothing.
    Observe,
}

impl HookClass {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::Authn, Self::Authz, Self::Transform, Self::Observe];

    /// Its name in manifests and lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Authn => "authn",
            Self::Authz => "authz",
            Self::Transform => "transform",
            Self::Observe => "observe",
        }
    }
}

/// A part of a call that a hook may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// Whose route is called, or who calls a peer.
    Module,
    /// GET or POST.
    Method,
    /// The path inside the module.
    Path,
    /// The other node.
    Peer,
    /// The media type of the body.
    ContentType,
    /// The length that was said.
    Length,
    /// The status of an answer.
    Status,
    /// The body, as far as it fits 32 KiB.
    Body,
}

impl Field {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Module, Self::Method, Self::Path, Self::Peer, Self::ContentType, Self::Length, Self::Status, Self::Body];

    /// Its name in manifests and lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Method => "method",
            Self::Path => "path",
            Self::Peer => "peer",
            Self::ContentType => "content_type",
            Self::Length => "length",
            Self::Status => "status",
            Self::Body => "body",
        }
    }
}

/// A set of fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fields(u8);

impl Fields {
    /// Every field.
    pub const ALL: Self = Self(u8::MAX);

    /// Whether it is in the set.
    pub fn has(self, field: Field) -> bool {
        self.0 & (1 << field as u8) != 0
    }

    /// The set with one more.
    #[must_use]
    pub fn with(self, field: Field) -> Self {
        Self(self.0 | 1 << field as u8)
    }

    /// The set without one.
    #[must_use]
    pub fn without(self, field: Field) -> Self {
        Self(self.0 & !(1 << field as u8))
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its fields, in their order.
    pub fn iter(self) -> impl Iterator<Item = Field> {
        Field::ALL.into_iter().filter(move |field| self.has(*field))
    }
}

impl FromIterator<Field> for Fields {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        fields.into_iter().fold(Self::default(), Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_shows_what_its_calls_have_and_lets_less_be_changed() {
        for point in Point::ALL {
            assert_eq!(point.shows().and(point.changes()), point.changes());
            assert_eq!(point.shows().has(Field::Status), point.is_response());
            assert!(!point.changes().has(Field::Peer) && !point.changes().has(Field::Module));
        }
        assert!(!Point::Operator.shows().has(Field::Peer));
        let two: Fields = [Field::Body, Field::Path].into_iter().collect();
        assert_eq!(two.iter().collect::<Vec<_>>(), [Field::Path, Field::Body]);
        assert!(two.without(Field::Path).without(Field::Body).is_empty());
    }
}
