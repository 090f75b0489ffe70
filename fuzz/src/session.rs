//! What an open session reads: heads, and sealed streams that come in pieces of any size, changed on the way.

use openred_proto::checked::session::{Accept, RequestHead, ResponseHead, StreamKind};

use crate::corpus::numbered;

pub(crate) fn session(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    let again = match which % 5 {
        0 => RequestHead::decode(rest).map(|head| head.encode()),
        1 => ResponseHead::decode(rest).map(|head| head.encode()),
        2 => Accept::decode(rest).map(|accept| accept.encode()),
        3 => StreamKind::from_byte(rest.first().copied().unwrap_or_default()).map(|_| rest.to_vec()),
        _ => return openred_node::fuzzing::session(rest),
    };
    if let Ok(again) = again {
        assert_eq!(again, rest, "a head has one encoding");
    }
}

pub(crate) fn corpus() -> Vec<(String, Vec<u8>)> {
    let request = RequestHead {
        module: "files".into(),
        method: "GET".into(),
        path: "/blob/1?from=4096".into(),
        content_type: "application/octet-stream".into(),
        length: Some(4096),
        deadline_millis: 5000,
        idempotency_key: vec![1; 16],
        from: 0,
    };
    let response = ResponseHead { status: 206, content_type: "text/plain".into(), length: Some(0) };
    let accept = Accept { refusal: 0, match_proof: vec![2; 32], audited: true };
    let after = |which: u8, bytes: &[u8]| [&[which], bytes].concat();
    // A stream: what is changed (none, then a place), sizes of the pieces, and the body.
    let stream = |script: &[u8], body: usize| [&[4], script, &vec![0x61; body][..]].concat();
    numbered([
        after(0, &request.encode()),
        after(0, &RequestHead { path: "/".into(), ..RequestHead::default() }.encode()),
        after(1, &response.encode()),
        after(2, &accept.encode()),
        after(3, &[2]),
        stream(&[0, 0, 0, 0, 7, 200], 300),
        stream(&[1, 40, 0, 1, 255, 1], 100),
        stream(&[2, 9, 0, 2, 1, 1], 3),
        stream(&[3, 0, 1, 3, 64, 64], 1000),
    ])
}
