//! The vectors in `proto/vectors/session/stream.json`: session tags, stream keys and sealed chunks, which this side alone computes.
#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::BytesMut;
use openred_proto::checked::session::{Side, StreamKind, StreamName};
use openred_proto::secret::Secret;
use serde_json::Value;

use super::keys::{DirectionKeys, ledger};

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

#[test]
fn tags_keys_and_chunks_are_those_of_the_vectors() {
    let file: Value = serde_json::from_str(include_str!("../../../proto/vectors/session/stream.json")).unwrap();
    let (mut right, mut wrong) = (0, 0);
    for case in file["cases"].as_array().unwrap() {
        let secret = Secret::new(bytes(&case["secret"]).try_into().unwrap());
        let keys = DirectionKeys::new(&secret, case["method"].as_str().unwrap().parse().unwrap());
        let name = StreamName {
            kind: [StreamKind::Accept, StreamKind::Request, StreamKind::Response]
                [case["kind"].as_u64().unwrap() as usize],
            opener: [Side::Initiator, Side::Responder][case["opener"].as_u64().unwrap() as usize],
            number: case["number"].as_u64().unwrap(),
        };
        let (counter, last) = (case["counter"].as_u64().unwrap() as u32, case["last"].as_bool().unwrap());
        let accept = case["accept"].as_bool().unwrap();
        let mut opened = BytesMut::from(&bytes(&case["sealed"])[..]);
        let opens = keys.stream(name).open(counter, last, &mut opened).is_ok() && opened == bytes(&case["plain"])[..];
        assert_eq!(opens, accept, "{case}");
        ledger::take();
        let mut sealed = BytesMut::from(&bytes(&case["plain"])[..]);
        keys.stream(name).seal(counter, last, &mut sealed).unwrap();
        let key = ledger::take()[0].0;
        let tag_holds = keys.tag()[..] == bytes(&case["session_tag"]);
        assert_eq!(
            tag_holds && key[..] == bytes(&case["key"]) && sealed == bytes(&case["sealed"])[..],
            accept,
            "{case}"
        );
        *(if accept { &mut right } else { &mut wrong }) += 1;
    }
    assert!(right > 0 && wrong > right, "more rejects than accepts");
}
