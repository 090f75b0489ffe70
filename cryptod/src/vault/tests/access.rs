//! Role × operation, garbage, quotas, and that no operation takes bare bytes.

use openred_proto::audit::SLOTS;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{HandshakeId, LinkId, MethodId};
use openred_proto::method::Method;
use openred_proto::vault::{ShortKey, encode_frame};
use proptest::prelude::*;

use super::*;
use crate::vault::quota::Rate;

/// One request of every operation.
fn every_request(node: NodeId) -> Vec<Request> {
    let offer = || ReceivedOffer { offer: vec![1; 40], sender: node, directory: DIRECTORY, allowed: MethodSet::ALL };
    let (handshake, noise, row) = (HandshakeId::from_bytes([1; 16]), vec![2; 40], vec![3; 97]);
    vec![
        Request::Describe,
        Request::SignCard { fields: CardFields::default(), suites: MethodSet::ALL, life: DAY },
        sign_http(node),
        Request::IssueLink {
            peer: NodeId::from_bytes([9; 32]),
            card: vec![4; 40],
            directory: DIRECTORY,
            allowed: MethodSet::ALL,
            schedule: Schedule::Daily,
            life: DAY,
        },
        Request::InspectOffer(offer()),
        Request::AcceptOffer(offer()),
        Request::RenewLink {
            row: row.clone(),
            card: vec![4; 40],
            directory: DIRECTORY,
            allowed: MethodSet::ALL,
            schedule: Schedule::Daily,
            life: DAY,
        },
        Request::InspectRenewal(ReceivedRenewal { received: offer(), row: row.clone() }),
        Request::AcceptRenewal(ReceivedRenewal { received: offer(), row: row.clone() }),
        Request::ListLinks { after: LinkId::from_bytes([0; 16]) },
        Request::LinkKeys { row: row.clone() },
        Request::RevokeLink { link: LinkId::from_bytes([5; 16]) },
        Request::StartHandshake { row: row.clone() },
        Request::AnswerHandshake { row: row.clone(), noise: noise.clone(), directory_head: Vec::new() },
        Request::FinishHandshake { handshake, noise: noise.clone(), directory_head: Vec::new() },
        Request::StartDirect { method: Method::Alpha, peer: NodeId::from_bytes([9; 32]) },
        Request::AnswerDirect { method: Method::Delta, noise: noise.clone(), directory_head: Vec::new() },
        Request::CompleteHandshake { handshake, noise },
        Request::AbandonHandshake { handshake },
        Request::SignSession { handshake },
        Request::ValidateMatch { row, hash: [0; 32], proof: [0; 32] },
        Request::StoreKey { purpose: "messaging".into() },
        Request::SealKey { module: "messaging".into() },
        Request::RegisterMethod { module: "messaging".into(), description: vec![1] },
        Request::RetireMethod { method: MethodId::from_bytes([1; 16]) },
        Request::ListMethods,
        Request::SignModule { module: "messaging".into(), domain: "words".into(), digest: [1; 32], length: 1 },
        Request::Rotate { what: ShortKey::Prekey },
        Request::Report { event: Event::SessionForged.number(), count: 1 },
        Request::Note { event: Event::ProcessDied.number(), count: 1 },
        Request::AuditStatus,
        Request::AuditFiled { segment: 1 },
        Request::AuditSubject { peer: node },
        Request::Lock,
    ]
}

#[test]
fn the_table_of_roles_and_operations() {
    let name = |request: &Request| format!("{request:?}").split([' ', '(', '{']).next().unwrap().to_owned();
    for role in [Role::Node, Role::Operator] {
        for request in every_request(Node::new(1).id()) {
            let (mut node, name) = (Node::new(1), name(&request));
            let is_operators =
                ["Note", "AuditStatus", "AuditFiled", "AuditSubject", "Rotate", "Lock"].contains(&name.as_str());
            let outcome = node.vault.handle(NOW, &mut node.random, role, Frame { id: 3, body: request });
            let allowed = match role {
                Role::Node => !is_operators,
                Role::Operator => is_operators || name == "Describe",
            };
            // Nothing waits to be filed here, which is another refusal, and ends no connection.
            let refused = matches!(outcome.reply.body, Reply::Refused(Refusal::NotAllowed)) && name != "AuditFiled";
            assert_eq!((refused || outcome.hang_up, outcome.hang_up), (!allowed, !allowed), "{role:?} {name}");
        }
    }
}

#[test]
fn no_operation_signs_or_opens_bytes_as_they_are() {
    // Whatever bytes a caller puts where bytes go: what comes back signed verifies only as what it is.
    let mut node = Node::new(1);
    let canary = b"openred/1/link\0attack at dawn".to_vec();
    let tries = [
        Request::IssueLink {
            peer: NodeId::from_bytes([9; 32]),
            card: canary.clone(),
            directory: DIRECTORY,
            allowed: MethodSet::ALL,
            schedule: Schedule::Daily,
            life: DAY,
        },
        Request::InspectOffer(ReceivedOffer { offer: canary.clone(), ..received(&Node::new(2), &[]) }),
        Request::AcceptOffer(ReceivedOffer { offer: canary.clone(), ..received(&Node::new(2), &[]) }),
        Request::LinkKeys { row: canary.clone() },
        Request::StartHandshake { row: canary.clone() },
        Request::AnswerHandshake { row: canary.clone(), noise: canary.clone(), directory_head: Vec::new() },
        Request::ValidateMatch { row: canary.clone(), hash: [0; 32], proof: [0; 32] },
        Request::StoreKey { purpose: "../messaging".into() },
        Request::StoreKey { purpose: String::new() },
        Request::SealKey { module: "../messaging".into() },
        Request::RegisterMethod { module: "messaging".into(), description: canary },
        Request::SignModule { module: "a\0b".into(), domain: "words".into(), digest: [1; 32], length: 1 },
        Request::SignModule { module: "a".into(), domain: String::new(), digest: [1; 32], length: 1 },
    ];
    for request in tries {
        node.refusal(request);
    }
}

#[test]
fn an_http_signature_is_no_card_and_a_card_no_http_signature() {
    use openred_proto::checked::card::Card;
    use openred_proto::checked::statement;
    use openred_proto::label::Label;
    let mut node = Node::new(1);
    let id = node.id();
    // The card's own signed bytes as the request's target: the base begins with 0x22 and so can be no statement.
    let input = SignatureInput {
        method: "POST".into(),
        target_uri: "openred/1/card".into(),
        content_sha256: [0; 32],
        created: NOW.seconds(),
        nonce: [0; 16],
        key_id: id,
    };
    let signature: [u8; 64] = match node.ask(Request::SignHttp(input.clone())) {
        Reply::Signature(bytes) => bytes.try_into().unwrap(),
        other => panic!("{other:?}"),
    };
    let forged = statement::encode(&input.base(), &id, &signature);
    for label in Label::ALL {
        let unverified = statement::Unverified::decode("test", &forged).unwrap();
        assert!(unverified.verify(label, "test").is_err(), "{label:?}");
    }
    assert!(Card::verify(&forged, NOW).is_err());
    assert!(Card::verify(&node.card(), NOW).is_ok());
}

#[test]
fn http_signatures_cannot_be_laid_in() {
    use openred_proto::limits::CLOCK_GRACE;
    use openred_proto::vault::StatementFault;
    let mut node = Node::new(1);
    let key_id = node.id();
    let sign = |created: UnixMillis| {
        Request::SignHttp(SignatureInput {
            method: "POST".into(),
            target_uri: "https://directory.example/api/v3/nodes/register".into(),
            content_sha256: [0; 32],
            created: created.seconds(),
            nonce: [0; 16],
            key_id,
        })
    };
    let (ahead, behind) = (CLOCK_GRACE + Duration::from_secs(1), CLOCK_GRACE + Duration::from_secs(2));
    let refused = |fault| Refusal::PeerStatement(fault);
    assert_eq!(node.refusal(sign(NOW.plus(ahead))), refused(StatementFault::NotYetValid));
    assert_eq!(node.refusal(sign(NOW.plus(DAY * 365))), refused(StatementFault::NotYetValid));
    assert_eq!(node.refusal(sign(NOW.minus(behind))), refused(StatementFault::Expired));
    // Two hours off is what a node and its directory may differ by.
    for created in [NOW, NOW.plus(Duration::from_secs(7200)), NOW.minus(Duration::from_secs(7200))] {
        assert!(matches!(node.ask(sign(created)), Reply::Signature(_)));
    }
}

#[test]
fn what_no_peer_would_take_is_not_signed() {
    let mut node = Node::new(1);
    let sign = |fields, life| Request::SignCard { fields, suites: MethodSet::ALL, life };
    let endpoint = |text: &str| CardFields { endpoints: vec![text.into()], ..CardFields::default() };
    let long = |length: usize| CardFields { name: "x".repeat(length), ..CardFields::default() };
    let refused = [
        sign(endpoint("ftp://host"), DAY),
        sign(endpoint("http://user@host"), DAY),
        sign(CardFields { endpoints: vec!["http://h".into(); 9], ..CardFields::default() }, DAY),
        sign(long(64), DAY),
        sign(CardFields { name: "a\nb".into(), ..CardFields::default() }, DAY),
        sign(CardFields::default(), Duration::from_secs(8 * 86_400 + 1)),
        sign(CardFields::default(), Duration::ZERO),
        Request::SignCard { fields: CardFields::default(), suites: MethodSet::EMPTY, life: DAY },
    ];
    for request in refused {
        let text = format!("{request:?}");
        assert!(matches!(node.refusal(request), Refusal::PeerStatement(_) | Refusal::NotAllowed), "{text}");
    }
}

#[test]
fn a_quota_refuses_and_refills() {
    let mut node = Node::new(1);
    let purpose = || Request::StoreKey { purpose: "files".into() };
    let burst = Rates::default().store.burst;
    for _ in 0..burst {
        assert!(matches!(node.ask(purpose()), Reply::StoreKey(_)));
    }
    assert_eq!(node.refusal(purpose()), Refusal::Quota);
    assert_eq!(node.operations(), u64::from(burst), "a refused request is no operation");
    node.now = node.now.plus(Duration::from_secs(1));
    assert!(matches!(node.ask(purpose()), Reply::StoreKey(_)));
}

/// What is recorded each time and costs the caller nothing is given seldom: a day of asking without end does not fill three segments.
#[test]
fn store_keys_cannot_fill_the_trail() {
    let mut node = Node::new(1);
    let purpose = || Request::StoreKey { purpose: "files".into() };
    let Rate { burst, per_second } = Rates::default().store;
    assert!(u64::from(burst) + 86_400 * u64::from(per_second) < 3 * SLOTS as u64);
    (0..burst).for_each(|_| assert!(matches!(node.ask(purpose()), Reply::StoreKey(_))));
    for _ in 0..3 {
        node.now = node.now.plus(Duration::from_secs(1));
        (0..per_second).for_each(|_| assert!(matches!(node.ask(purpose()), Reply::StoreKey(_))));
        assert_eq!(node.refusal(purpose()), Refusal::Quota);
    }
    // What links need has its own.
    assert!(matches!(node.ask(Request::ListLinks { after: LinkId::from_bytes([0; 16]) }), Reply::Links(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_garbage_frame_is_survived(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20), operator: bool) {
        let mut node = Node::new(1);
        let role = if operator { Role::Operator } else { Role::Node };
        for body in frames {
            let outcome = node.vault.handle_frame(NOW, &mut node.random, role, &body);
            if matches!(outcome.reply.body, Reply::Refused(Refusal::Malformed)) {
                prop_assert!(outcome.hang_up);
            }
            prop_assume!(!outcome.ended);
        }
        let described = matches!(node.ask(Request::Describe), Reply::Described { .. });
        prop_assert!(described);
    }

    #[test]
    fn any_change_to_a_good_frame_is_survived(which in 0_usize..17, place: usize, value: u8, cut: usize) {
        let mut node = Node::new(1);
        let id = node.id();
        let request = every_request(id).swap_remove(which);
        let mut frame = encode_frame(&Frame { id: 1, body: request }).unwrap().split_off(4);
        let place = place % frame.len();
        frame[place] = value;
        frame.truncate(frame.len() - cut % frame.len());
        let _ = node.vault.handle_frame(NOW, &mut node.random, Role::Node, &frame);
        node.commit();
        let described = matches!(node.ask(Request::Describe), Reply::Described { .. });
        prop_assert!(described);
    }
}

#[test]
fn every_operation_has_a_request_in_the_table() {
    // What the decoder knows is what there is: a new operation cannot slip past these tests, nor past a class of its own.
    // Below 128 a kind is one byte; longer ways to write the same number are read as well.
    let known = (0..128_u8).filter(|kind| {
        let frame = [&[*kind][..], &[0; 4096]].concat();
        postcard::take_from_bytes::<Request>(&frame).is_ok()
    });
    let listed = every_request(DIRECTORY).into_iter().map(|request| postcard::to_allocvec(&request).unwrap()[0]);
    assert_eq!(known.collect::<std::collections::BTreeSet<_>>(), listed.collect());
    let classes: std::collections::BTreeSet<_> = every_request(DIRECTORY).iter().map(Class::of).collect();
    assert_eq!(classes.len(), Class::ALL.len());
    assert_eq!(every_request(DIRECTORY).len(), 34);
}

#[test]
fn nothing_but_its_end_is_answered_by_a_vault_that_was_locked() {
    for request in every_request(Node::new(1).id()) {
        let mut node = Node::new(1);
        node.vault.handle(NOW, &mut node.random, Role::Operator, Frame { id: 1, body: Request::Lock });
        let role = if Class::of(&request).is_for(Role::Node) { Role::Node } else { Role::Operator };
        let outcome = node.vault.handle(NOW, &mut node.random, role, Frame { id: 2, body: request });
        let body = outcome.reply.body;
        assert!(matches!(body, Reply::Done | Reply::Refused(Refusal::StateLost)), "{body:?}");
    }
}
