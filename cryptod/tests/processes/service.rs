//! What the key process is for, over its real sockets: signatures, links, handshakes, and a state that outlives it.

use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use openred_proto::checked::card::Card;
use openred_proto::cryptod as rpc;
use openred_proto::cryptod::cryptod_client::CryptodClient;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{NodeId, UnixMillis};
use tonic::transport::Channel;

use super::trio::World;
use crate::{block_on, home};

pub(crate) const DIRECTORY: NodeId = NodeId::from_bytes([9; 32]);
pub(crate) const ALL_METHODS: u32 = 0b1111;
/// Handshakes run to report a figure; enough to level out the scheduler.
const HANDSHAKES: u32 = 20;

pub(crate) type Client = CryptodClient<Channel>;

fn now() -> UnixMillis {
    UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

pub(crate) async fn card(client: &mut Client) -> rpc::SignedCard {
    let request = rpc::SignCardRequest {
        endpoints: vec!["http://127.0.0.1:4000".to_owned()],
        name: "alice".to_owned(),
        suites: ALL_METHODS,
        life_seconds: 3600,
        ..Default::default()
    };
    client.sign_card(request).await.unwrap().into_inner()
}

pub(crate) fn signatures(world: &World<'_>, place: &Path) {
    let (home, node) = home(world, place, "alice");
    let trio = home.start(b"p");
    block_on(async {
        let mut client = trio.client().await;
        let described = client.describe(rpc::DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(described.node_id, &node.as_bytes()[..]);

        let signed = card(&mut client).await;
        let card = Card::verify(&signed.statement, now()).unwrap();
        assert_eq!((card.node_id, card.sequence), (node, signed.sequence));

        let (digest, uri) = ([3; 32], "https://directory.example/api/v3/nodes/register");
        let request = rpc::SignHttpRequest {
            method: "POST".to_owned(),
            target_uri: uri.to_owned(),
            content_sha256: digest.to_vec().into(),
            created: now().seconds(),
            nonce: vec![4; 16].into(),
        };
        let signed = client.sign_http(request).await.unwrap().into_inner();
        let input = SignatureInput::from_headers("POST", uri, digest, &signed.signature_input).unwrap();
        assert_eq!(input.key_id, node);
        input.verify(&signed.signature_header).unwrap();
        let other = SignatureInput::from_headers("PUT", uri, digest, &signed.signature_input).unwrap();
        assert!(other.verify(&signed.signature_header).is_err(), "another method is another request");
        report_round_trip(&mut client).await;
    });
}

/// What front and vault add to a call that does next to nothing.
async fn report_round_trip(client: &mut Client) {
    let begun = Instant::now();
    for _ in 0..50 {
        client.describe(rpc::DescribeRequest {}).await.unwrap();
    }
    println!("  describe: {} µs a call (client, front and vault, unpinned)", begun.elapsed().as_micros() / 50);
}

/// A link from alice to bob, as the two `noded`s would make it; returns both sealed rows.
async fn link(alice: &mut Client, bob: &mut Client, parties: [NodeId; 2]) -> [prost::bytes::Bytes; 2] {
    let issue = rpc::IssueLinkRequest {
        peer: parties[1].as_bytes().to_vec().into(),
        card: card(bob).await.statement,
        directory: DIRECTORY.as_bytes().to_vec().into(),
        allowed: ALL_METHODS,
        schedule: 0,
        life_seconds: 3600,
    };
    let issued = alice.issue_link(issue).await.unwrap().into_inner();
    let offer = rpc::ReceivedOffer {
        offer: issued.offer,
        sender: parties[0].as_bytes().to_vec().into(),
        directory: DIRECTORY.as_bytes().to_vec().into(),
        allowed: ALL_METHODS,
    };
    let accepted = bob.accept_offer(offer).await.unwrap().into_inner();
    assert_eq!(issued.keys.unwrap().outgoing_tag, accepted.keys.unwrap().incoming_tag);
    [issued.row, accepted.row]
}

async fn shake(alice: &mut Client, bob: &mut Client, rows: &[prost::bytes::Bytes; 2]) -> [rpc::SessionGrant; 2] {
    let started = alice.start_handshake(rpc::LinkRow { row: rows[0].clone() }).await.unwrap().into_inner();
    let answer =
        rpc::AnswerHandshakeRequest { row: rows[1].clone(), noise: started.noise, directory_head: vec![7; 32].into() };
    let answered = bob.answer_handshake(answer).await.unwrap().into_inner();
    let finish = rpc::ContinueHandshakeRequest {
        handshake: started.handshake,
        noise: answered.noise,
        directory_head: Default::default(),
    };
    let finished = alice.finish_handshake(finish).await.unwrap().into_inner();
    let complete = rpc::ContinueHandshakeRequest {
        handshake: answered.handshake,
        noise: finished.noise,
        directory_head: Default::default(),
    };
    let completed = bob.complete_handshake(complete).await.unwrap().into_inner();
    [finished.grant.unwrap(), completed]
}

pub(crate) fn link_and_handshake(world: &World<'_>, place: &Path) {
    let ((alice_home, alice_id), (bob_home, bob_id)) = (home(world, place, "alice"), home(world, place, "bob"));
    let (alice_trio, bob_trio) = (alice_home.start(b"p"), bob_home.start(b"p"));
    block_on(async {
        let (mut alice, mut bob) = (alice_trio.client().await, bob_trio.client().await);
        let rows = link(&mut alice, &mut bob, [alice_id, bob_id]).await;
        let [one, other] = shake(&mut alice, &mut bob, &rows).await;
        assert_eq!((&one.send, &one.receive), (&other.receive, &other.send));
        assert_eq!((&one.hash, &one.mutual_link), (&other.hash, &other.mutual_link));
        assert_eq!((&one.peer[..], &other.peer[..]), (&bob_id.as_bytes()[..], &alice_id.as_bytes()[..]));
        for (client, row, theirs) in [(&mut alice, &rows[0], &other), (&mut bob, &rows[1], &one)] {
            let check = |proof: &prost::bytes::Bytes| rpc::ValidateMatchRequest {
                row: row.clone(),
                hash: theirs.hash.clone(),
                proof: proof.clone(),
            };
            assert!(client.validate_match(check(&theirs.match_proof)).await.unwrap().into_inner().matched);
            assert!(!client.validate_match(check(&theirs.hash)).await.unwrap().into_inner().matched);
        }
        let begun = Instant::now();
        for _ in 0..HANDSHAKES {
            shake(&mut alice, &mut bob, &rows).await;
        }
        println!(
            "  handshake: {} µs, both key processes, unpinned",
            begun.elapsed().as_micros() / u128::from(HANDSHAKES)
        );
    });
}

pub(crate) fn restart(world: &World<'_>, place: &Path) {
    let (home, node) = home(world, place, "alice");
    let mut last = 0;
    for _ in 0..2 {
        let trio = home.start(b"p");
        block_on(async {
            let mut client = trio.client().await;
            let signed = card(&mut client).await;
            assert_eq!(Card::verify(&signed.statement, now()).unwrap().node_id, node);
            assert!(signed.sequence > last, "a sequence is never given twice");
            last = signed.sequence;
        });
        drop(trio.operator);
        assert_eq!(trio.vault.exit().to_string(), "exit code 0", "the vault ends with its supervisor");
        assert_eq!(trio.front.exit().to_string(), "exit code 1", "and the front with the vault");
    }
}
