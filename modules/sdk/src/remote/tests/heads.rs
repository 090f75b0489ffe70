//! Answers whose heads are none, with a body to come behind them.
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::*;
use crate::wire::CONTENT_TYPE_BYTES;

/// A test ends once.
const ENDS: usize = 1;

/// Runs a test in a thread of its own: one in which a thread waits for itself fails, where it would not end.
fn run_beside(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = std::sync::mpsc::sync_channel(ENDS);
    let running = std::thread::spawn(move || {
        test();
        // Nobody waits any more for what took too long.
        let _ = done.send(());
    });
    match ended.recv_timeout(Duration::from_secs(300)) {
        Err(RecvTimeoutError::Timeout) => panic!("a frame stopped the thread that read it"),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => running.join().unwrap(),
    }
}

#[test]
fn a_head_that_is_none_stops_nobody_whatever_shall_come_behind_it() {
    let long = "x".repeat(CONTENT_TYPE_BYTES + 1);
    let heads = [(7, String::new()), (600, String::new()), (200, "two\nlines".to_owned()), (200, long)];
    run_beside(move || {
        run(async {
            let node = Node::new().await;
            let (other, _pipe) = node.attach(Probe::default()).await;
            for (status, content_type) in heads {
                let expected = node.expect([5; 32]);
                let (bare, attached) = tokio::join!(Bare::dial(&node, [5; 32]), expected.attached());
                let (mut bare, attached) = (bare.unwrap(), attached.unwrap());
                let (end, length, body) = (End::More.into(), None, Bytes::from_static(b"x"));
                let module = async {
                    let call = bare.call().await;
                    bare.say(FromModule::Reply(wire::Reply { call, status, content_type, length, body, end })).await;
                };
                let (answer, ()) = tokio::join!(attached.dispatch(get("/x")), module);
                assert_eq!((attached.ended().await, answer.status), (Fault::BadHead, Status::Unavailable), "{status}");
                assert_eq!(said(other.dispatch(post("/echo", Body::whole("x"))).await).await.1, "x");
            }
        });
    });
}
