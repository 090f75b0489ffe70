//! A request or an answer on its way through a point: what can be shown of it, and what a transform changes.

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use openred_module::{Body, Field, Fields, HOOK_BODY, Method, Mutation, Status};
use openred_proto::id::NodeId;

use super::spec::{Seen, Shown};

/// See the file's head. Of an answer, the first four are its request's.
pub(super) struct Passing {
    pub(super) module: String,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) peer: Option<NodeId>,
    pub(super) content_type: String,
    pub(super) length: Option<u64>,
    /// Of an answer.
    pub(super) status: Option<Status>,
    pub(super) body: Body,
    /// Its body's beginning, once it was wanted.
    pub(super) shown: Option<Shown>,
}

impl Passing {
    pub(super) fn seen(&self) -> Seen<'_> {
        Seen {
            module: &self.module,
            method: self.method,
            path: &self.path,
            peer: self.peer,
            content_type: &self.content_type,
            length: self.length,
            status: self.status.map(Status::code),
        }
    }

    /// Reads the beginning of the body, as far as a hook may be shown it; the body is whole afterwards as it was. Waits for whoever sends it.
    pub(super) async fn show_body(&mut self) {
        if self.shown.is_some() {
            return;
        }
        let mut body = std::mem::replace(&mut self.body, Body::empty());
        let (mut pieces, mut bytes, mut end) = (Vec::new(), 0, None);
        while bytes <= HOOK_BODY && end.is_none() {
            match body.next().await {
                Some(Ok(piece)) => {
                    bytes += piece.len();
                    pieces.push(piece);
                }
                Some(Err(error)) => end = Some(Some(error)),
                None => end = Some(None),
            }
        }
        let all = join(&pieces);
        let (ended, failed) = (end.is_some(), end.flatten());
        let truncated = all.len() > HOOK_BODY || !ended || failed.is_some();
        self.shown = Some(Shown { bytes: all.slice(..all.len().min(HOOK_BODY)), truncated });
        self.body = match failed {
            Some(error) => Body::stream(stream::iter([Ok(all), Err(error)])),
            None if ended => Body::whole(all),
            None => Body::stream(stream::iter(pieces.into_iter().map(Ok)).chain(body)),
        };
    }

    /// Applies what a hook changed, and says what that was.
    pub(super) fn change(&mut self, mutation: Mutation) -> Fields {
        let mut fields = mutation.fields();
        let Mutation { path, content_type, body, status } = mutation;
        if let Some(path) = path {
            self.path = path;
        }
        if let Some(content_type) = content_type {
            self.content_type = content_type;
        }
        if let Some(body) = body {
            self.length = Some(body.len() as u64);
            fields = fields.with(Field::Length);
            self.shown = Some(Shown { bytes: body.clone(), truncated: false });
            self.body = Body::whole(body);
        }
        if let Some(status) = status {
            self.status = Some(status);
        }
        fields
    }
}

fn join(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => {
            let mut all = BytesMut::new();
            many.iter().for_each(|piece| all.extend_from_slice(piece));
            all.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_module::BodyError;
    use proptest::prelude::*;

    use super::*;

    fn passing(body: Body) -> Passing {
        Passing {
            module: "messaging".into(),
            method: Method::Post,
            path: "/x".into(),
            peer: None,
            content_type: String::new(),
            length: None,
            status: None,
            body,
            shown: None,
        }
    }

    proptest! {
        #[test]
        fn a_body_that_was_shown_is_as_it_was(
            lengths in prop::collection::vec(0_usize..20_000, 0..6),
            fails in any::<bool>(),
        ) {
            let pieces: Vec<Bytes> =
                lengths.iter().enumerate().map(|(number, length)| Bytes::from(vec![number as u8; *length])).collect();
            let whole: Vec<u8> = pieces.iter().flatten().copied().collect();
            let mut items: Vec<Result<Bytes, BodyError>> = pieces.into_iter().map(Ok).collect();
            if fails {
                items.push(Err(BodyError::TimedOut));
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut passing = passing(Body::stream(stream::iter(items)));
                passing.show_body().await;
                passing.show_body().await;
                let shown = passing.shown.clone().unwrap();
                assert_eq!(shown.bytes, whole[..whole.len().min(HOOK_BODY)]);
                assert_eq!(shown.truncated, fails || whole.len() > HOOK_BODY);
                let read = passing.body.collect(1 << 20).await;
                if fails { assert_eq!(read, Err(BodyError::TimedOut)) } else { assert_eq!(read.unwrap(), whole) }
            });
        }
    }
}
