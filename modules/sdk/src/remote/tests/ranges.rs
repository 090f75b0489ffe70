//! Answers that lie in the module's blobs: read by the node, never by the module.
use super::*;
use crate::wire::flow::{Budget, Piece, Pieces};
use crate::wire::{RANGE_BYTES, RANGE_CREDIT};
use crate::{BlobName, BlobRange};

/// Longer than what is read ahead of a reader.
const BLOB: usize = 3 << 20;

fn name(name: &str) -> BlobName {
    BlobName::new(name).unwrap()
}

fn content() -> Vec<u8> {
    (0..BLOB).map(|at| (at % 253) as u8).collect()
}

async fn write(node: &Node, blob: &str, at: usize, bytes: &[u8]) {
    for (number, chunk) in bytes.chunks(crate::BLOB_CHUNK).enumerate() {
        let at = at + number * crate::BLOB_CHUNK;
        node.host.context().blob_write(&name(blob), at as u64, Bytes::copy_from_slice(chunk)).await.unwrap();
    }
}

impl Probe {
    /// What the body says, a line each: name, offset, length.
    pub(super) async fn ranges(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let said = request.body.collect(1 << 16).await?;
        let range = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            BlobRange { name: name(words[0]), offset: words[1].parse().unwrap(), length: words[2].parse().unwrap() }
        };
        let ranges: Vec<_> = String::from_utf8_lossy(&said).lines().map(|line| Ok(range(line))).collect();
        Ok(Response::new(Status::Ok, "", Body::ranges(&context, futures_util::stream::iter(ranges))))
    }
}

async fn asked(attached: &Attached, ranges: String) -> Body {
    let answer = attached.dispatch(post("/ranges", Body::whole(ranges))).await;
    assert_eq!(answer.status, Status::Ok);
    answer.body
}

#[test]
fn ranges_of_any_number_and_length_are_the_body() {
    run(async {
        let node = Node::new().await;
        let bytes = content();
        write(&node, "a", 0, &bytes).await;
        write(&node, "b", 0, b"second").await;
        let (attached, _pipe) = node.attach(Probe::default()).await;
        let whole = asked(&attached, format!("a 0 {BLOB}")).await;
        assert_eq!(whole.collect(BLOB).await.unwrap(), bytes);
        let parts: Vec<String> = (0..100).map(|number| format!("a {} 10", number * 1000)).collect();
        let expected: Vec<u8> = (0..100).flat_map(|number| bytes[number * 1000..][..10].to_vec()).collect();
        assert_eq!(asked(&attached, parts.join("\n")).await.collect(BLOB).await.unwrap(), expected);
        let mixed = format!("b 0 0\nb 3 3\na {} 1\nb 0 6", BLOB - 1);
        let end = [b"ond", &bytes[BLOB - 1..], b"second"].concat();
        assert_eq!(asked(&attached, mixed).await.collect(BLOB).await.unwrap(), end);
        assert_eq!(asked(&attached, "b 0 0".into()).await.collect(1).await.unwrap(), "");
        while attached.running() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn what_is_not_there_fails_the_body_and_ends_the_call_and_nothing_else() {
    run(async {
        let node = Node::new().await;
        write(&node, "a", 0, b"short").await;
        let (attached, _pipe) = node.attach(Probe::default()).await;
        let far = u64::MAX - 5;
        let beyond = format!("a {far} 6");
        for ranges in ["a 0 6", "a 5 1", "none 0 1", "a 0 5\na 4 2", &format!("a {far} 5"), &beyond] {
            // More would follow.
            let more = format!("{ranges}\n{}", "a 0 5\n".repeat(50));
            for ranges in [ranges.to_owned(), more] {
                let body = asked(&attached, ranges.clone()).await;
                assert_eq!(body.collect(1000).await, Err(BodyError::Failed), "{ranges}");
            }
        }
        while attached.running() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(said(attached.dispatch(post("/echo", Body::whole("x"))).await).await.1, "x");
    });
}

#[test]
fn a_blob_that_is_removed_while_it_is_read_is_an_error_and_no_short_body() {
    run(async {
        let node = Node::new().await;
        write(&node, "a", 0, &content()).await;
        let (attached, _pipe) = node.attach(Probe::default()).await;
        let mut body = asked(&attached, format!("a 0 {BLOB}")).await;
        body.next().await.unwrap().unwrap();
        node.host.context().blob_delete(&name("a")).await.unwrap();
        assert_eq!(body.collect(BLOB).await, Err(BodyError::Failed));
    });
}

#[test]
fn nothing_is_read_for_a_reader_who_does_not_read_and_who_leaves_ends_the_call() {
    run(async {
        let node = Node::new().await;
        write(&node, "a", 0, &content()).await;
        let (attached, _pipe) = node.attach(Probe::default()).await;
        let pieces: Vec<String> = (0..3).map(|number| format!("a {} {}", number << 20, 1 << 20)).collect();
        let mut body = asked(&attached, pieces.join("\n")).await;
        let first = body.next().await.unwrap().unwrap();
        // What is written now, far behind what was read, is what comes: it was not read before.
        write(&node, "a", 1 << 20, &[0xff; 2 << 20]).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let mut all = first.to_vec();
        all.extend_from_slice(&body.collect(BLOB).await.unwrap());
        assert_eq!(all, [&content()[..1 << 20], &[0xff; 2 << 20]].concat());
        let mut left = asked(&attached, format!("{}\n", pieces.join("\n")).repeat(10)).await;
        left.next().await.unwrap().unwrap();
        drop(left);
        while attached.running() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

fn range(call: u64, blob: &str, offset: u64, length: u64) -> FromModule {
    let range = Some(wire::BlobRange { name: blob.into(), offset, length });
    FromModule::Chunk(wire::Chunk { call, range, ..Default::default() })
}

impl Bare {
    async fn dial_ranges(node: &Node, features: &[&str]) -> Self {
        let features = features.iter().map(|name| (*name).to_owned()).collect();
        let (mut bare, ticket) = Self::first(node, wire::Hello { features, ..hello(PROOF) }).await.unwrap();
        bare.host.open(wire::OpenRequest { ticket }).await.unwrap();
        bare
    }
}

#[test]
fn what_was_handed_over_is_read_whatever_becomes_of_the_module() {
    run(async {
        let node = Node::new().await;
        let bytes = content();
        write(&node, "a", 0, &bytes).await;
        let half = BLOB as u64 / 2;
        for ends in [true, false] {
            let expected = node.expect(PROOF);
            let mut bare = Bare::dial_ranges(&node, &["ranges"]).await;
            let attached = expected.attached().await.unwrap();
            let module = async {
                let call = bare.call().await;
                bare.say(reply(call, b"", End::More)).await;
                bare.say(range(call, "a", 0, half)).await;
                bare.say(range(call, "a", half, half)).await;
                if ends {
                    bare.say(chunk(call, 0, End::Done)).await;
                }
            };
            let (answer, ()) = tokio::join!(attached.dispatch(get("/x")), module);
            let mut body = answer.body;
            let mut got = body.next().await.unwrap().unwrap().to_vec();
            // Its process ends, in whatever way; and the node forgets it.
            drop(bare);
            assert_eq!(attached.ended().await, Fault::Gone);
            drop(attached);
            let mut outcome = Ok(());
            while let Some(item) = body.next().await {
                match item {
                    Ok(bytes) => got.extend_from_slice(&bytes),
                    Err(error) => outcome = Err(error),
                }
            }
            assert_eq!(got, bytes);
            assert_eq!(outcome, if ends { Ok(()) } else { Err(BodyError::Failed) });
        }
    });
}

#[test]
fn ranges_out_of_contract_end_the_attachment() {
    run(async {
        let node = Node::new().await;
        write(&node, "a", 0, &content()).await;
        let with = |change: fn(&mut wire::Chunk)| {
            move |call| {
                let FromModule::Chunk(mut chunk) = range(call, "a", 0, 1) else { unreachable!() };
                change(&mut chunk);
                FromModule::Chunk(chunk)
            }
        };
        type Make = Box<dyn Fn(u64) -> FromModule>;
        let cases: [(&[&str], Fault, Make); 9] = [
            // It never named the feature.
            (&["hooks"], Fault::BadBody, Box::new(|call| range(call, "a", 0, 1))),
            // Blobs of another module have no names here.
            (&["ranges"], Fault::BadBody, Box::new(|call| range(call, "../messaging/a", 0, 1))),
            (&["ranges"], Fault::BadBody, Box::new(|call| range(call, "", 0, 1))),
            (&["ranges"], Fault::BadBody, Box::new(|call| range(call, "a", 0, 0))),
            (&["ranges"], Fault::BadBody, Box::new(|call| range(call, "a", u64::MAX, 1))),
            (&["ranges"], Fault::BadBody, Box::new(|call| range(call, "a", 0, RANGE_BYTES + 1))),
            (&["ranges"], Fault::BadBody, Box::new(with(|chunk| chunk.body = Bytes::from_static(b"x")))),
            (&["ranges"], Fault::BadBody, Box::new(with(|chunk| chunk.end = End::Done.into()))),
            // Two are all that may wait, since nobody reads.
            (&["ranges"], Fault::Overrun, Box::new(|call| range(call, "a", 0, 1))),
        ];
        for (number, (features, fault, make)) in cases.into_iter().enumerate() {
            let expected = node.expect(PROOF);
            let mut bare = Bare::dial_ranges(&node, features).await;
            let attached = expected.attached().await.unwrap();
            let module = async {
                let call = bare.call().await;
                bare.say(reply(call, b"", End::More)).await;
                let times = if fault == Fault::Overrun { 1 + CREDIT / RANGE_CREDIT } else { 1 };
                for _ in 0..times {
                    bare.say(make(call)).await;
                }
            };
            let (answer, ()) = tokio::join!(attached.dispatch(get("/x")), module);
            assert_eq!(attached.ended().await, fault, "{number}");
            drop(answer);
        }
    });
}

#[test]
fn under_a_node_without_the_feature_the_module_reads_its_blob() {
    run(async {
        let node = Node::new().await;
        let bytes = content();
        write(&node, "a", 0, &bytes).await;
        for ranges in [false, true] {
            let part = BlobRange { name: name("a"), offset: 7, length: 100_000 };
            let body = Body::ranges(&node.host.context(), futures_util::stream::iter([Ok(part.clone())]));
            let mut pieces = Pieces::new(body).with_ranges(ranges);
            let (budget, mut read, mut named) = (Budget::new(), Vec::new(), Vec::new());
            loop {
                let piece = pieces.next(&budget).await.unwrap();
                read.extend_from_slice(&piece.bytes);
                named.extend(piece.range);
                if piece.end == End::Done {
                    break;
                }
            }
            match ranges {
                true => assert_eq!((read.as_slice(), named), (&[][..], vec![part])),
                false => assert_eq!((read.as_slice(), named), (&bytes[7..100_007], vec![])),
            }
        }
    });
}

/// A body's ranges as they go out, each with its place and its length, and its end.
async fn sent(ranges: Vec<BlobRange>) -> (Vec<(u64, u64)>, End) {
    let host = TestHost::start(1, Probe::default()).await;
    let body = Body::ranges(&host.context(), futures_util::stream::iter(ranges.into_iter().map(Ok)));
    let (mut pieces, mut sent) = (Pieces::new(body).with_ranges(true), Vec::new());
    loop {
        // A budget of its own for each: nothing is read here.
        let Piece { range, end, .. } = pieces.next(&Budget::new()).await.unwrap();
        sent.extend(range.map(|range| (range.offset, range.length)));
        if end != End::More {
            return (sent, end);
        }
    }
}

#[test]
fn a_range_that_is_too_long_for_a_piece_goes_in_several() {
    run(async {
        let part = |offset, length| BlobRange { name: name("a"), offset, length };
        let (ranges, end) = sent(vec![part(5, 2 * RANGE_BYTES + 1), part(0, RANGE_BYTES), part(9, 0)]).await;
        let cut = [(5, RANGE_BYTES), (5 + RANGE_BYTES, RANGE_BYTES), (5 + 2 * RANGE_BYTES, 1), (0, RANGE_BYTES)];
        assert_eq!((ranges.as_slice(), end), (&cut[..], End::Done));
        let (ranges, end) = sent(vec![part(0, 1), part(u64::MAX - 5, 6), part(0, 1)]).await;
        assert_eq!((ranges.as_slice(), end), (&[(0, 1)][..], End::Failed), "its end is no number");
        assert_eq!(sent(vec![part(u64::MAX - 5, 5)]).await.0, [(u64::MAX - 5, 5)]);
    });
}

#[test]
fn a_body_of_one_range_that_goes_in_several_is_whole() {
    run(async {
        let node = Node::new().await;
        let end = 2 * RANGE_BYTES;
        // A hole, and a little behind it.
        write(&node, "a", usize::try_from(end).unwrap(), b"the end").await;
        let (attached, _pipe) = node.attach(Probe::default()).await;
        let mut body = asked(&attached, format!("a 1 {}", end + 6)).await;
        let (mut count, mut last) = (0, Bytes::new());
        while let Some(bytes) = body.next().await {
            last = bytes.unwrap();
            count += last.len() as u64;
        }
        assert_eq!((count, last), (end + 6, Bytes::from_static(b"he end")), "the last piece is the last range");
    });
}
