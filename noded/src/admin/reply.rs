//! Answers to the operator: links, peers and failures in the admin contract's words.

use std::collections::HashMap;

use openred_proto::admin::{self, ModuleGeneration, ModuleGenerations};
use openred_proto::checked::card::Card;
use openred_proto::checked::session_proof::SessionProof;
use openred_proto::id::NodeId;
use openred_proto::method::{Method, Place};
use openred_proto::vault::Refusal;
use tonic::{Code, Status};

use crate::clock;
use crate::directory::DirectoryError;
use crate::keys::KeysError;
use crate::link::methods::BadDecision;
use crate::link::queue::{QUEUED, Request};
use crate::link::renewal::renewal_at;
use crate::link::state::{Link, LinkState};
use crate::link::{LinkError, words};
use crate::module::{Shown, SwapError};
use crate::node::Node;
use crate::p2p::PingOutcome;
use crate::p2p::ports::SignedSession;
use crate::store::{KnownPeer, StoreError, Word};

/// Header that carries the stable code (docs/errors.md).
pub(super) const CODE_HEADER: &str = "openred-code";

pub(super) fn link_status(node: &Node, link: &Link) -> admin::Link {
    let summary = &link.summary;
    admin::Link {
        link_id: summary.link.to_string(),
        peer: summary.peer.to_string(),
        state: link.state.name().to_owned(),
        issuer: summary.issuer,
        method: node.links.method_name(summary),
        epoch: summary.epoch,
        not_before: summary.not_before.0,
        not_after: summary.not_after.0,
        created_at: link.created_at.0,
        mutual_link: link.mutual_link.map(hex::encode).unwrap_or_default(),
        mutual_words: link.mutual_link.as_ref().map(words::words).unwrap_or_default(),
        r#match: link.matched.name().to_owned(),
        matched_at: link.matched_at.0,
        last_handshake_at: link.handshake_at.0,
        detail: link.reason.text().to_owned(),
        renews_at: if matches!(link.state, LinkState::Pending | LinkState::Active) { renewal_at(link).0 } else { 0 },
        renews: link.renews.map(|renewed| renewed.to_string()).unwrap_or_default(),
        waits_until: link.waits_until().map_or(0, |end| end.0),
        signed_sessions: 0,
        signed_at: 0,
    }
}

/// A link that was asked for and that no directory has answered about yet: there is nothing of it but this.
pub(super) fn queued_status(request: &Request) -> admin::Link {
    let why = request.why.map_or_else(String::new, |why| format!("{why}; "));
    admin::Link {
        peer: request.peer.to_string(),
        state: QUEUED.to_owned(),
        issuer: true,
        not_after: request.ends().0,
        created_at: request.asked_at.0,
        detail: format!("{why}it is asked for again until then"),
        ..admin::Link::default()
    }
}

/// The same of one that the operator has taken back.
pub(super) fn withdrawn_status(request: &Request) -> admin::Link {
    let detail = String::from("withdrawn before a directory answered; nothing was sent");
    admin::Link { state: LinkState::Revoked.name().to_owned(), detail, not_after: 0, ..queued_status(request) }
}

/// Who began is read from the signatures; what does not verify was not kept, and is left out.
pub(super) fn session_proof(signed: &SignedSession) -> Option<admin::SessionProof> {
    let proof = SessionProof::verify(&signed.initiator, &signed.responder).ok()?;
    Some(admin::SessionProof {
        initiator: proof.initiator.to_string(),
        responder: proof.responder.to_string(),
        hash: hex::encode(proof.hash),
        signed_at: signed.at.0,
        initiator_statement: hex::encode(&signed.initiator),
        responder_statement: hex::encode(&signed.responder),
        link_id: signed.link.to_string(),
    })
}

pub(super) fn methods_status(node: &Node) -> admin::Methods {
    let (links, allowed, decided) = (node.links.all(), node.links.allowed_methods(), node.links.methods());
    let configured = node.config.links.method_set();
    let live = |suite: Method, place: Option<Place>| {
        let is_it = |link: &&Link| (link.summary.method, link.summary.registered) == (suite, place);
        let count = links.iter().filter(|link| link.state.is_live()).filter(is_it).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let method = |method: Method| admin::Method {
        name: method.name().to_owned(),
        suite: method.suite().to_owned(),
        configured: configured.contains(method),
        disabled: decided.is_disabled(method),
        allowed: allowed.contains(method),
        links: live(method, None),
        ..admin::Method::default()
    };
    let of_modules = node.links.described().into_iter().map(|method| admin::Method {
        name: method.name(),
        suite: method.vetted.suite.suite().to_owned(),
        configured: true,
        disabled: !decided.is_allowed(method.place),
        allowed: allowed.contains_place(method.place),
        links: live(method.vetted.suite, Some(method.place)),
        module: method.module.clone(),
        id: method.vetted.id.to_string(),
        transform: method.vetted.steps.iter().map(|step| step.name()).collect::<Vec<_>>().join(", "),
        epoch_seconds: method.vetted.epoch.as_secs(),
        retired: method.retired,
    });
    admin::Methods {
        methods: Method::ALL.into_iter().map(method).chain(of_modules).collect(),
        schedule: node.links.schedule().name().to_owned(),
        configured_schedule: node.config.links.schedule.name().to_owned(),
    }
}

pub(super) fn peer_status(
    node: &Node,
    peer: NodeId,
    known: Option<&KnownPeer>,
    queued: &HashMap<String, u64>,
) -> admin::Peer {
    // Kept cards were verified when they came; one that has ended since shows nothing.
    let card = known.and_then(|known| Card::verify(&known.card, clock::now()).ok());
    let fields = card.as_ref().map(|card| card.fields.clone()).unwrap_or_default();
    admin::Peer {
        node_id: peer.to_string(),
        name: fields.name,
        endpoints: fields.endpoints,
        sector: fields.sector,
        card_sequence: known.map_or(0, |known| known.sequence),
        card_expires_at: card.map_or(0, |card| card.expires_at.0),
        link_state: node.links.state_of(&peer).to_owned(),
        session: node.network.has_session(&peer),
        last_seen: known.map_or(0, |known| known.seen_at.0),
        queued: queued.get(&peer.to_string()).copied().unwrap_or_default(),
        decision: known.map_or("", |known| decision(known.word())).to_owned(),
    }
}

const fn decision(word: Word) -> &'static str {
    match word {
        Word::None => "",
        Word::Yes => "allowed",
        Word::No => "denied",
    }
}

pub(super) fn ping_report(outcome: PingOutcome) -> admin::PingReport {
    admin::PingReport {
        sent: outcome.sent,
        failed: outcome.failed,
        micros: outcome.micros,
        total_micros: outcome.total_micros,
        bytes: outcome.bytes,
        error: outcome.error.map(|error| error.to_string()).unwrap_or_default(),
        mutual_link: outcome.mutual_link.map(hex::encode).unwrap_or_default(),
    }
}

pub(super) fn not_found(code: &'static str, text: &str) -> Status {
    status(Code::NotFound, code, text)
}

pub(super) fn invalid(code: &'static str, text: &str) -> Status {
    status(Code::InvalidArgument, code, text)
}

pub(super) fn conflict(code: &'static str, text: &str) -> Status {
    status(Code::FailedPrecondition, code, text)
}

pub(super) fn lost(code: &'static str, text: &str) -> Status {
    status(Code::DataLoss, code, text)
}

/// A failure about links in the operator's words, with its stable code.
pub(super) fn refuse(error: &LinkError) -> Status {
    let (kind, code) = match error {
        LinkError::WithItself => (Code::InvalidArgument, "link.with-itself"),
        LinkError::Succeeded => (Code::FailedPrecondition, "link.succeeded"),
        LinkError::NotFound => (Code::NotFound, "link.unknown"),
        LinkError::Ambiguous => (Code::InvalidArgument, "link.ambiguous"),
        LinkError::Method(BadDecision::NoModule) => (Code::NotFound, "method.unknown"),
        LinkError::Method(BadDecision::NotConfigured) => (Code::FailedPrecondition, "method.not-configured"),
        LinkError::Method(BadDecision::Last) => (Code::FailedPrecondition, "method.last"),
        LinkError::Unreachable => (Code::Unavailable, "peer.unreachable"),
        LinkError::Linked => (Code::FailedPrecondition, "link.exists"),
        LinkError::Withdrawn => (Code::FailedPrecondition, "link.withdrawn"),
        LinkError::QueueFull => (Code::ResourceExhausted, "link.queue-full"),
        LinkError::WrongState(_) => (Code::FailedPrecondition, "link.state"),
        LinkError::Keys(error) => keys(error),
        LinkError::Store(error) => store(error),
        LinkError::Directory(error) => directory(error),
    };
    status(kind, code, &error.to_string())
}

pub(super) const fn keys(error: &KeysError) -> (Code, &'static str) {
    match error {
        KeysError::Away => (Code::Unavailable, "cryptod.away"),
        KeysError::Slow => (Code::DeadlineExceeded, "cryptod.slow"),
        KeysError::Refused(Refusal::NoCommonMethod) => (Code::FailedPrecondition, "link.no-common-method"),
        KeysError::Refused(Refusal::Quota | Refusal::Capacity(_)) => (Code::ResourceExhausted, "cryptod.capacity"),
        KeysError::Refused(_) | KeysError::RefusedOtherwise(_) => (Code::FailedPrecondition, "cryptod.refused"),
        KeysError::BadAnswer(_) => (Code::Internal, "cryptod.bad-answer"),
    }
}

const fn store(error: &StoreError) -> (Code, &'static str) {
    match error {
        StoreError::Full => (Code::ResourceExhausted, "store.full"),
        StoreError::Closed => (Code::Unavailable, "node.stopping"),
        _ => (Code::Internal, "store.failed"),
    }
}

pub(super) fn swap_refused(error: &SwapError) -> Status {
    let (kind, code) = match error {
        SwapError::Unknown => (Code::NotFound, "module.unknown"),
        SwapError::Stopping => (Code::Unavailable, "node.stopping"),
        SwapError::Busy => (Code::ResourceExhausted, "module.busy"),
        SwapError::Ended => (Code::Aborted, "module.ended"),
        SwapError::NotDone(_) => (Code::FailedPrecondition, "module.not-swapped"),
    };
    status(kind, code, &error.to_string())
}

/// The generations of one module, or of all.
pub(super) fn generations(shown: Vec<(&'static str, Shown)>, module: &str) -> ModuleGenerations {
    let wanted = shown.into_iter().filter(|(id, _)| module.is_empty() || module == *id);
    let modules = wanted.map(|(id, Shown { record, doing })| ModuleGeneration {
        module: id.to_owned(),
        generation: record.active.number,
        version: record.active.version,
        epoch: record.epoch,
        doing: doing.unwrap_or_default().to_owned(),
        leaving: record.leaving,
        probation_until: record.probation.as_ref().map_or(0, |probation| probation.until),
        rollback_to: record.probation.map_or_else(String::new, |probation| probation.good.version),
        set_aside: record.aside.is_some(),
        outcome: record.outcome,
    });
    ModuleGenerations { modules: modules.collect() }
}

const fn directory(error: &DirectoryError) -> (Code, &'static str) {
    match error {
        DirectoryError::None => (Code::FailedPrecondition, "directory.none"),
        DirectoryError::UnknownNode | DirectoryError::Behind => (Code::NotFound, "directory.unknown-node"),
        DirectoryError::Unreachable | DirectoryError::Unresolved => (Code::Unavailable, "directory.unreachable"),
        DirectoryError::Slow => (Code::DeadlineExceeded, "directory.slow"),
        DirectoryError::Refused(_)
        | DirectoryError::PrefixWide
        | DirectoryError::Mirror
        | DirectoryError::Unregistered
        | DirectoryError::WorkWanted(_)
        | DirectoryError::InviteWanted
        | DirectoryError::Quarantined => (Code::PermissionDenied, "directory.refused"),
        DirectoryError::BadAnswer(_) | DirectoryError::Rollback | DirectoryError::Equivocation => {
            (Code::FailedPrecondition, "directory.dishonest")
        }
        DirectoryError::Succeeded => (Code::FailedPrecondition, "directory.succeeded"),
        DirectoryError::Keys(error) => keys(error),
        DirectoryError::Store(error) => store(error),
    }
}

pub(super) fn status(kind: Code, code: &'static str, text: &str) -> Status {
    let mut status = Status::new(kind, text);
    status.metadata_mut().insert(CODE_HEADER, tonic::metadata::MetadataValue::from_static(code));
    status
}
