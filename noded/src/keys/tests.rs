//! The client against a real front and a real vault's loop, over a real socket: every operation, refusals and absences.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use openred_cryptod::audit::Trail;
use openred_cryptod::keyring::Keyring;
use openred_cryptod::state::State;
use openred_cryptod::vault::Vault;
use openred_cryptod::vault::quota::Rates;
use openred_cryptod::vault::serve::{Files, Server, clock, generator};
use openred_proto::http_signature::SignatureInput;
use tokio::task::JoinHandle;

use super::*;

const DIRECTORY: NodeId = NodeId::from_bytes([0xd1; 32]);
const DAY: Duration = Duration::from_secs(86_400);

/// Front and vault of one node; ended by its `Drop`.
pub(crate) struct Daemon {
    operator: UnixStream,
    front: JoinHandle<()>,
    directory: tempfile::TempDir,
}

impl Daemon {
    /// Listens on `cryptod.sock` in `directory`, as after each start of the two processes.
    fn start(seed: u8, directory: tempfile::TempDir) -> Self {
        let (front, of_vault) = UnixStream::pair().unwrap();
        let (operator, of_supervisor) = UnixStream::pair().unwrap();
        let socket = directory.path().join("cryptod.sock");
        let _ = std::fs::remove_file(&socket);
        let state = tempfile::tempfile().unwrap();
        std::thread::spawn(move || {
            let mut random = generator().unwrap();
            let keyring = Keyring::from_secrets(&mut [seed; 64]);
            let trail = Trail::fresh(keyring.identity(), clock()).unwrap();
            let vault = Vault::open(keyring, State::new(), trail, &Rates::default(), clock(), &mut random).unwrap();
            let files = Files { state, trail: [(); 2].map(|()| tempfile::tempfile().unwrap()) };
            Server::new(vault, of_vault.into(), of_supervisor.into(), files, random).unwrap().serve();
        });
        front.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let front = tokio::net::UnixStream::from_std(front).unwrap();
        let callers = openred_cryptod::front::Callers::this_process().unwrap();
        let front = tokio::spawn(async move {
            let _ = openred_cryptod::front::serve(listener, front, callers, || {}).await;
        });
        Self { operator, front, directory }
    }

    pub(crate) fn client(&self) -> CryptodClient {
        CryptodClient::new(&self.socket(), std::process::id())
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("cryptod.sock")
    }

    /// Both processes end, as when one of them was killed; what remains is the place of the socket.
    async fn end(self) -> tempfile::TempDir {
        drop(self.operator);
        self.front.await.unwrap();
        self.directory
    }
}

pub(crate) fn daemon(seed: u8) -> Daemon {
    Daemon::start(seed, tempfile::tempdir().unwrap())
}

async fn card(client: &CryptodClient) -> SignedCard {
    let fields = CardFields { endpoints: vec!["http://127.0.0.1:4000".into()], ..CardFields::default() };
    client.sign_card(fields, MethodSet::ALL, DAY).await.unwrap()
}

/// A link between two key processes, as offers make it.
async fn link(alice: &CryptodClient, bob: &CryptodClient) -> (IssuedLink, AcceptedLink) {
    let (from, to) = (alice.describe().await.unwrap().node, bob.describe().await.unwrap().node);
    let (card, allowed, schedule) = (card(bob).await.statement, MethodSet::ALL, Schedule::Hourly);
    let link = NewLink { peer: to, card, directory: DIRECTORY, allowed, schedule, life: DAY };
    let issued = alice.issue_link(link).await.unwrap();
    let received = ReceivedOffer { offer: issued.offer.to_vec(), sender: from, directory: DIRECTORY, allowed };
    assert_eq!(bob.inspect_offer(&received).await.unwrap().link, issued.summary.link);
    let accepted = bob.accept_offer(&received).await.unwrap();
    assert_eq!((accepted.summary.peer, accepted.summary.issuer), (from, false));
    (issued, accepted)
}

#[tokio::test]
async fn every_operation_crosses_front_and_vault() {
    let (one, other) = (daemon(1), daemon(2));
    let (alice, bob) = (one.client(), other.client());
    let (issued, accepted) = link(&alice, &bob).await;
    assert_eq!(issued.keys.outgoing, accepted.keys.incoming);
    assert_eq!(alice.link_keys(issued.row.clone()).await.unwrap(), issued.keys);

    let started = alice.start_handshake(issued.row.clone()).await.unwrap();
    let answered = bob.answer_handshake(accepted.row.clone(), started.noise, Bytes::new()).await.unwrap();
    let (noise, ours) = alice.finish_handshake(started.handshake, answered.noise, Bytes::new()).await.unwrap();
    let theirs = bob.complete_handshake(answered.handshake, noise).await.unwrap();
    assert_eq!((&ours.send, ours.hash, ours.mutual_link), (&theirs.receive, theirs.hash, theirs.mutual_link));
    assert!(alice.validate_match(issued.row.clone(), ours.hash, theirs.match_proof).await.unwrap());
    assert!(!alice.validate_match(issued.row.clone(), ours.hash, ours.match_proof).await.unwrap(), "its own");

    let started = alice.start_handshake(issued.row.clone()).await.unwrap();
    alice.abandon_handshake(started.handshake).await.unwrap();
    assert_eq!(alice.store_key("messaging").await.unwrap(), alice.store_key("messaging").await.unwrap());
    assert_ne!(alice.store_key("messaging").await.unwrap(), alice.store_key("files").await.unwrap());

    alice.revoke_link(issued.summary.link).await.unwrap();
    let refused = alice.start_handshake(issued.row).await.unwrap_err();
    assert_eq!(refused, KeysError::Refused(Refusal::LinkGone));
    let refused = bob.answer_handshake(accepted.row, Bytes::from(vec![1; 1300]), Bytes::new()).await.unwrap_err();
    assert!(matches!(refused, KeysError::Refused(_)), "{refused:?}");
}

#[tokio::test]
async fn an_http_signature_verifies_for_the_node_that_describes_itself() {
    let one = daemon(3);
    let client = one.client();
    let node = client.describe().await.unwrap().node;
    let uri = "http://127.0.0.1:9/api/v3/health";
    let created = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let signed = client.sign_http("GET", uri, [7; 32], created, [9; 16]).await.unwrap();
    let input = SignatureInput {
        method: "GET".into(),
        target_uri: uri.into(),
        content_sha256: [7; 32],
        created,
        nonce: [9; 16],
        key_id: node,
    };
    input.verify(&signed.signature).unwrap();
    assert_eq!(signed.signature_input, input.signature_input_header());
    assert_eq!(signed.content_digest, input.content_digest());
}

#[tokio::test]
async fn a_key_process_that_is_away_is_named_and_found_again() {
    let nowhere = CryptodClient::new(Path::new("/nonexistent/cryptod.sock"), std::process::id());
    assert_eq!(nowhere.describe().await.unwrap_err(), KeysError::Away);

    let one = daemon(4);
    let client = one.client();
    let node = client.describe().await.unwrap().node;
    let place = one.end().await;
    for _ in 0..CONNECTIONS {
        assert_eq!(client.describe().await.unwrap_err(), KeysError::Away);
    }
    let _again = Daemon::start(4, place);
    assert_eq!(client.describe().await.unwrap().node, node, "the same client finds the new front");
}

#[tokio::test]
async fn the_stream_of_handshakes_bears_callers_who_leave_many_at_once_and_a_new_front() {
    let (one, other) = (daemon(5), daemon(6));
    let (alice, bob) = (one.client(), other.client());
    let (issued, accepted) = link(&alice, &bob).await;
    // One who leaves before the answer: the others have theirs, and nothing of him is left.
    assert!(alice.start_handshake(issued.row.clone()).now_or_never().is_none());
    let started = alice.start_handshake(issued.row.clone()).await.unwrap();
    assert_eq!(alice.handshakes.waiting(), 0);
    let half_open = alice.describe().await.unwrap().half_open;
    assert_eq!(half_open, 2, "what the key process was asked it has done");
    alice.abandon_handshake(started.handshake).await.unwrap();
    assert_eq!(alice.describe().await.unwrap().half_open, 1);

    // In the order in which they were asked: none is a replay of the next.
    for _ in 0..8 {
        let requests = join_all((0..3).map(|_| alice.start_handshake(issued.row.clone()))).await;
        let requests: Vec<HalfOpen> = requests.into_iter().map(Result::unwrap).collect();
        let head = Bytes::new;
        let answers = join_all(
            requests.iter().map(|request| bob.answer_handshake(accepted.row.clone(), request.noise.clone(), head())),
        );
        for (request, answered) in requests.iter().zip(answers.await) {
            alice.abandon_handshake(request.handshake).await.unwrap();
            bob.abandon_handshake(answered.unwrap().handshake).await.unwrap();
        }
    }

    let place = one.end().await;
    assert_eq!(alice.start_handshake(issued.row.clone()).await.unwrap_err(), KeysError::Away);
    let _again = Daemon::start(5, place);
    let refused = alice.start_handshake(issued.row).await.unwrap_err();
    assert!(
        matches!(refused, KeysError::Refused(_)),
        "the same client finds the new front, whose state is another: {refused:?}"
    );
}

/// A listener of this process is asked for by its process id, and by another's: of the first the server hears, of the other not a byte.
#[tokio::test]
async fn who_did_not_open_the_fronts_listener_is_told_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cryptod.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    for (opened_by, hears) in [(std::process::id(), true), (std::os::unix::process::parent_id(), false)] {
        let client = CryptodClient::new(&socket, opened_by);
        let call = tokio::spawn(async move { client.describe().await });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = [0; 3];
        let count = tokio::io::AsyncReadExt::read(&mut stream, &mut heard).await.unwrap();
        assert_eq!((count > 0, heard == *b"PRI"), (hears, hears), "{count} bytes");
        drop(stream);
        assert!(call.await.unwrap().is_err());
    }
}
