//! What must not work, and what must survive it: a killed vault, wrong passphrases, damaged files, garbage on each socket.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use openred_policy::socket::ProcessId;
use openred_policy::spawn::Exit;
use openred_proto::cryptod as rpc;
use openred_proto::limits::FRAME_BYTES;
use openred_proto::unseal::{Refused, Word};
use openred_proto::vault::{Frame, Reply, Request, decode_frame, encode_frame};
use tonic::Code;

use super::trio::{Trio, World, knocker, said};
use crate::{CLOSED, SERVED, block_on, home};

async fn describes(trio: &Trio) {
    trio.client().await.describe(rpc::DescribeRequest {}).await.unwrap();
}

pub(crate) fn killed_vault(world: &World<'_>, place: &Path) {
    let (home, _) = home(world, place, "alice");
    let trio = home.start(b"p");
    block_on(async {
        let mut client = trio.client().await;
        client.describe(rpc::DescribeRequest {}).await.unwrap();
        trio.vault.child.signal(Signal::SIGKILL).unwrap();
        let refused = client.describe(rpc::DescribeRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    });
    assert_eq!(trio.ends(), (Exit::Signal(9), Exit::Code(1)));
    // What the supervisor does next.
    block_on(describes(&home.start(b"p")));
}

pub(crate) fn lock(world: &World<'_>, place: &Path) {
    let (home, _) = home(world, place, "alice");
    let mut trio = home.start(b"p");
    trio.operator.write_all(&encode_frame(&Frame { id: 5, body: Request::Lock }).unwrap()).unwrap();
    let mut length = [0; 4];
    trio.operator.read_exact(&mut length).unwrap();
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    trio.operator.read_exact(&mut body).unwrap();
    assert!(matches!(decode_frame(&body).unwrap(), Frame { id: 5, body: Reply::Done }));
    assert_eq!(trio.ends(), (Exit::Code(8), Exit::Code(1)));
}

pub(crate) fn wrong_passphrase(world: &World<'_>, place: &Path) {
    let (home, _) = home(world, place, "alice");
    for (passphrase, says) in [(&b"q"[..], "the passphrase does not open it"), (b"", "the passphrase is empty")] {
        let (mut unsealer, secrets) = home.unseal(passphrase);
        let reason = unsealer.failure();
        assert!(reason.contains(says) && reason.lines().count() == 1, "{reason}");
        assert_eq!(unsealer.exit(), Exit::Code(5));
        let (mut vault, _front, _operator) = home.vault(secrets);
        let reason = vault.failure();
        assert!(reason.contains("no secrets came from the unsealer"), "{reason}");
        assert_eq!(vault.exit(), Exit::Code(1));
    }
}

pub(crate) fn damaged_keystore(world: &World<'_>, place: &Path) {
    let (home, _) = home(world, place, "alice");
    let keystore = home.folder.join("keystore.age");
    let whole = fs::read(&keystore).unwrap();
    for damaged in [&whole[..whole.len() - 1], b"", b"age-encryption.org/v1\njunk", &[0; 20_000]] {
        fs::write(&keystore, damaged).unwrap();
        let (mut unsealer, _secrets, word) = home.unseal_and_hear(b"p");
        let reason = unsealer.failure();
        assert!(reason.contains("damaged or no keystore"), "{reason}");
        assert_eq!(unsealer.exit(), Exit::Code(1));
        assert_eq!(said(word), Word::Refused(Refused::Damaged));
    }
}

/// Writes `bytes` and waits for the other side to close, or to stay open while it waits for more.
fn throw(socket: &Path, bytes: &[u8]) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    // A side that has closed already refuses the rest: that is an answer too.
    let _ = stream.write_all(bytes);
    let _ = stream.read_to_end(&mut Vec::new());
}

pub(crate) fn garbage_on_the_front(world: &World<'_>, place: &Path) {
    let (home, _) = home(world, place, "alice");
    let trio = home.start(b"p");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let oversized_frame = [&preface[..], &[0xff; 9]].concat();
    let truncated = &preface[..10];
    for bytes in [&[0; 4096][..], b"GET / HTTP/1.1\r\n\r\n", &oversized_frame, truncated, &[0xff; 200_000]] {
        throw(&trio.socket, bytes);
    }
    block_on(async {
        let mut client = trio.client().await;
        // Longer than a message, longer than a field, and no field at all.
        let too_long = rpc::LinkRow { row: vec![0; 64 * 1024].into() };
        let refused = client.start_handshake(too_long).await.unwrap_err();
        assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused}");
        for row in [Vec::new(), vec![0; FRAME_BYTES - 100]] {
            let refused = client.start_handshake(rpc::LinkRow { row: row.into() }).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        }
        let no_such = rpc::LinkName { link_id: vec![1; 16].into() };
        assert_eq!(client.revoke_link(no_such).await.unwrap_err().code(), Code::NotFound);
        // A caller that goes on with it loses the connection, and only that.
        let mut last = Code::Ok;
        for _ in 0..40 {
            last = client.get_link_keys(rpc::LinkRow { row: vec![].into() }).await.unwrap_err().code();
        }
        assert_ne!(last, Code::Ok);
        describes(&trio).await;
    });
    // More connections than there are places: the newest are closed, the service goes on once they leave.
    let crowd: Vec<_> = (0..32).map(|_| UnixStream::connect(&trio.socket).unwrap()).collect();
    drop(crowd);
    block_on(async {
        // It takes its time to see that they left.
        let end = Instant::now() + Duration::from_secs(30);
        let mut answered = false;
        while !answered && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if let Ok(mut client) =
                rpc::cryptod_client::CryptodClient::connect(format!("unix://{}", trio.socket.display())).await
            {
                answered = client.describe(rpc::DescribeRequest {}).await.is_ok();
            }
        }
        assert!(answered);
    });
}

pub(crate) fn garbage_on_the_vault(world: &World<'_>, place: &Path) {
    let (home, _) = home(world, place, "alice");
    let oversized = u32::MAX.to_le_bytes().to_vec();
    let malformed = [&4_u32.to_le_bytes()[..], &[0xff; 4]].concat();
    let out_of_role = encode_frame(&Frame { id: 1, body: Request::Lock }).unwrap();
    for bytes in [oversized, malformed, out_of_role] {
        let (unsealer, secrets) = home.unseal(b"p");
        let (mut vault, front, _operator) = home.vault(secrets);
        vault.confined();
        vault.ready();
        UnixStream::from(front).write_all(&bytes).unwrap();
        assert_eq!(vault.exit(), Exit::Code(5), "a front that misbehaves ends the pair");
        assert_eq!(unsealer.exit(), Exit::Code(0));
    }
}

/// As root: who comes with another uid than the named one is closed before a byte is read, and takes nobody's place.
pub(crate) fn foreign_caller(world: &World<'_>, place: &Path) {
    let (home, _) = home(world, place, "alice");
    let own = nix::unistd::geteuid().as_raw();
    let trio = home.start_for(own + 1, b"p");
    trio.admit(ProcessId::this().unwrap());
    if world.uid_base.is_none() {
        // Every uid from outside reads as 65534 there: the listener's place and the process decide.
        block_on(describes(&trio));
        return;
    }
    for _ in 0..64 {
        let mut stream = UnixStream::connect(&trio.socket).unwrap();
        let mut answer = Vec::new();
        // A server that went on would say its settings first, and wait.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let read = stream.read_to_end(&mut answer);
        assert!(read.is_ok() && answer.is_empty(), "{read:?} {answer:?}");
    }
    drop(trio);
    block_on(describes(&home.start(b"p")));
}

/// A second process of the same uid is not the one that was named: closed before a byte is read, in both forms of the cage. Named, it
/// is served, and its predecessor is not any more.
pub(crate) fn strange_process(world: &World<'_>, place: &Path) {
    let (home, _) = home(world, place, "alice");
    let trio = home.start_for(nix::unistd::geteuid().as_raw(), b"p");
    let knocks = |named: bool| {
        let (child, mut go) = knocker(&trio.socket);
        if named {
            trio.admit(ProcessId::of_other(&child).unwrap());
        }
        go.write_all(b"g").unwrap();
        child.wait().unwrap().unwrap()
    };
    assert_eq!(knocks(false), Exit::Code(CLOSED), "nobody was named yet");
    trio.admit(ProcessId::this().unwrap());
    block_on(describes(&trio));
    for _ in 0..64 {
        assert_eq!(knocks(false), Exit::Code(CLOSED), "another process of the same uid");
    }
    block_on(describes(&trio));
    assert_eq!(knocks(true), Exit::Code(SERVED), "the control: it is the same one, named");
    assert_eq!(knocks(true), Exit::Code(SERVED), "and the next, as after a restart");
    // Who was named before is a stranger now.
    let mut stream = UnixStream::connect(&trio.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let read = stream.read_to_end(&mut Vec::new());
    assert!(matches!(read, Ok(0)), "{read:?}");
}
