//! Hook calls and their answers, to the contract's types and back. What a module answers is held against what it may.

use bytes::Bytes;
use openred_proto::module as wire;
use openred_proto::module::hook_reply::Verdict as Said;

use super::convert::{node_id, of_method, of_node, to_method};
use super::{CONTENT_TYPE_BYTES, NAME_BYTES};
use crate::error::{ModuleError, Status};
use crate::hook::{
    Denial, Fields, HOOK_BODY, HOOK_DETAIL, HOOK_PATH, HookRequest, HookResponse, Mutation, Point, Verdict,
};

/// What an answer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct May {
    /// Fields that it may change.
    pub(crate) change: Fields,
    /// Whether it may end the call: respond or deny.
    pub(crate) end: bool,
}

fn of_point(point: Point) -> wire::HookPoint {
    match point {
        Point::Inbound => wire::HookPoint::Inbound,
        Point::InboundResponse => wire::HookPoint::InboundResponse,
        Point::Operator => wire::HookPoint::Operator,
        Point::OperatorResponse => wire::HookPoint::OperatorResponse,
        Point::Outbound => wire::HookPoint::Outbound,
        Point::OutboundResponse => wire::HookPoint::OutboundResponse,
    }
}

fn to_point(point: i32) -> Option<Point> {
    Some(match wire::HookPoint::try_from(point).ok()? {
        wire::HookPoint::Unspecified => return None,
        wire::HookPoint::Inbound => Point::Inbound,
        wire::HookPoint::InboundResponse => Point::InboundResponse,
        wire::HookPoint::Operator => Point::Operator,
        wire::HookPoint::OperatorResponse => Point::OperatorResponse,
        wire::HookPoint::Outbound => Point::Outbound,
        wire::HookPoint::OutboundResponse => Point::OutboundResponse,
    })
}

pub(crate) fn of_hook(call: u64, hook: String, millis: u32, request: HookRequest) -> wire::HookCall {
    wire::HookCall {
        call,
        hook,
        point: of_point(request.point).into(),
        millis,
        peer: request.peer.map(of_node).unwrap_or_default(),
        module: request.module.unwrap_or_default(),
        method: request.method.map_or(0, of_method),
        path: request.path,
        content_type: request.content_type,
        length: request.length,
        body: request.body,
        truncated: request.truncated,
        status: request.status.map_or(0, u32::from),
    }
}

/// The hook's id and what it is shown.
pub(crate) fn to_hook(call: wire::HookCall) -> Option<(String, HookRequest)> {
    let peer = if call.peer.is_empty() { None } else { Some(node_id(&call.peer)?) };
    let method = if call.method == 0 { None } else { Some(to_method(call.method)?) };
    let request = HookRequest {
        point: to_point(call.point)?,
        module: (!call.module.is_empty()).then_some(call.module),
        method,
        path: call.path,
        peer,
        content_type: call.content_type,
        length: call.length,
        status: if call.status == 0 { None } else { Some(u16::try_from(call.status).ok()?) },
        body: call.body,
        truncated: call.truncated,
    };
    Some((call.hook, request))
}

/// A module's answer to its node. What would not fit a frame is a failure here, and not a frame that ends the attachment.
pub(crate) fn of_verdict(call: u64, answer: Result<Verdict, ModuleError>) -> wire::HookReply {
    let failed = |code: &str| Said::Failed(wire::HookFailed { code: code.to_owned() });
    let verdict = match answer {
        Ok(Verdict::Continue) => Said::Continue(wire::Continue {}),
        Ok(Verdict::Mutate(changes)) => Said::Mutate(wire::Mutate {
            path: changes.path,
            content_type: changes.content_type,
            body: changes.body,
            status: changes.status.map(|status| u32::from(status.code())),
        }),
        Ok(Verdict::Respond(HookResponse { status, content_type, body })) => {
            Said::Respond(wire::Respond { status: u32::from(status.code()), content_type, body })
        }
        Ok(Verdict::Deny(Denial { code, .. })) if !is_code(&code) => failed("bad-code"),
        Ok(Verdict::Deny(Denial { code, mut detail })) => {
            detail.truncate(detail.floor_char_boundary(HOOK_DETAIL));
            Said::Deny(wire::Deny { code, detail })
        }
        Err(error) => failed(error.code),
    };
    let body = match &verdict {
        Said::Mutate(changes) => changes.body.as_ref().map_or(0, Bytes::len),
        Said::Respond(response) => response.body.len(),
        _ => 0,
    };
    let verdict = if body > HOOK_BODY { failed("body-too-long") } else { verdict };
    wire::HookReply { call, verdict: Some(verdict) }
}

fn status(number: u32) -> Option<Status> {
    u16::try_from(number).ok().filter(|status| (200..600).contains(status)).map(Status::from_code)
}

fn is_type(content_type: &str) -> bool {
    content_type.len() <= CONTENT_TYPE_BYTES && content_type.bytes().all(|byte| (32..127).contains(&byte))
}

fn is_path(path: &str) -> bool {
    path.len() <= HOOK_PATH && path.starts_with('/') && path.bytes().all(|byte| byte > 32 && byte != 127)
}

/// A word of a module: kebab case.
fn is_code(code: &str) -> bool {
    !code.is_empty()
        && code.len() <= NAME_BYTES
        && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// What a module answered, if it may answer that: otherwise `None`. Inside, the code of a failure that it admits.
pub(crate) fn to_verdict(reply: wire::HookReply, may: May) -> Option<Result<Verdict, String>> {
    Some(Ok(match reply.verdict? {
        Said::Continue(_) => Verdict::Continue,
        Said::Mutate(changes) => Verdict::Mutate(to_mutation(changes, may)?),
        Said::Respond(wire::Respond { status: number, content_type, body }) => {
            let fits = may.end && is_type(&content_type) && body.len() <= HOOK_BODY;
            Verdict::Respond(HookResponse { status: status(number).filter(|_| fits)?, content_type, body })
        }
        Said::Deny(wire::Deny { code, detail }) => {
            let fits = may.end && is_code(&code) && detail.len() <= HOOK_DETAIL;
            fits.then_some(Verdict::Deny(Denial { code, detail }))?
        }
        Said::Failed(wire::HookFailed { code }) => return is_code(&code).then_some(Err(code)),
    }))
}

fn to_mutation(changes: wire::Mutate, may: May) -> Option<Mutation> {
    let mutation = Mutation {
        path: changes.path,
        content_type: changes.content_type,
        body: changes.body,
        status: match changes.status {
            Some(number) => Some(status(number)?),
            None => None,
        },
    };
    let fits = mutation.fields().and(may.change) == mutation.fields()
        && mutation.path.as_deref().is_none_or(is_path)
        && mutation.content_type.as_deref().is_none_or(is_type)
        && mutation.body.as_ref().is_none_or(|body| body.len() <= HOOK_BODY);
    // One that changes nothing would be Continue; a hook that may change nothing has no such word.
    (fits && !may.change.is_empty()).then_some(mutation)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::hook::Field;
    use crate::message::Method;

    const ALL: May = May { change: Fields::ALL, end: true };

    fn back(verdict: Verdict, may: May) -> Option<Verdict> {
        to_verdict(of_verdict(1, Ok(verdict)), may).map(Result::unwrap)
    }

    #[test]
    fn calls_and_verdicts_come_back_as_themselves() {
        let peer = openred_proto::id::NodeId::from_bytes([9; 32]);
        for point in Point::ALL {
            let full = HookRequest {
                module: Some("messaging".into()),
                method: Some(Method::Post),
                path: Some("/deliver".into()),
                peer: Some(peer),
                content_type: Some("text/plain".into()),
                length: Some(3),
                status: Some(200),
                body: Some(Bytes::from_static(b"abc")),
                truncated: true,
                ..HookRequest::new(point)
            };
            for request in [full, HookRequest::new(point)] {
                let call = of_hook(7, "gate".into(), 50, request.clone());
                assert_eq!(to_hook(call), Some(("gate".into(), request)));
            }
        }
        let changes = Mutation { path: Some("/other".into()), body: Some(Bytes::new()), ..Mutation::default() };
        let response = HookResponse { status: Status::Accepted, content_type: "a/b".into(), body: "c".into() };
        for verdict in [
            Verdict::Continue,
            Verdict::Mutate(changes),
            Verdict::Respond(response),
            Verdict::deny("not-today", "It is Sunday."),
        ] {
            assert_eq!(back(verdict.clone(), ALL), Some(verdict));
        }
        let failed = of_verdict(1, Err(ModuleError::bad_request("bad-json", "x")));
        assert_eq!(to_verdict(failed, ALL), Some(Err("bad-json".into())));
    }

    #[test]
    fn what_was_not_declared_or_does_not_fit_is_no_verdict() {
        let change = |field| May { change: Fields::default().with(field), end: true };
        let path = || Verdict::Mutate(Mutation { path: Some("/a".into()), ..Mutation::default() });
        assert_eq!(back(path(), change(Field::Path)), Some(path()));
        assert_eq!(back(path(), change(Field::Body)), None);
        assert_eq!(back(Verdict::Mutate(Mutation::default()), May { change: Fields::default(), end: true }), None);
        let observer = May { change: Fields::default(), end: false };
        assert_eq!(back(Verdict::deny("no", "no"), observer), None);
        assert_eq!(back(Verdict::Continue, observer), Some(Verdict::Continue));
        for bad in ["", "relative", "/a b", "/a\n", &format!("/{}", "x".repeat(HOOK_PATH))] {
            let verdict = Verdict::Mutate(Mutation { path: Some(bad.into()), ..Mutation::default() });
            assert_eq!(back(verdict, ALL), None, "{bad:?}");
        }
        let said = |verdict| to_verdict(wire::HookReply { call: 1, verdict }, ALL);
        for (code, detail) in [("", ""), ("Upper", ""), ("a b", ""), ("ok", &*"x".repeat(HOOK_DETAIL + 1))] {
            let deny = wire::Deny { code: code.into(), detail: detail.into() };
            assert_eq!(said(Some(Said::Deny(deny))), None, "{code:?}");
        }
        assert_eq!(said(None), None);
        let long = Bytes::from(vec![0; HOOK_BODY + 1]);
        let respond = |status, body| Some(Said::Respond(wire::Respond { status, content_type: "".into(), body }));
        for (number, body) in [(199, Bytes::new()), (600, Bytes::new()), (65_736, Bytes::new()), (200, long.clone())] {
            assert_eq!(said(respond(number, body)), None, "{number}");
        }
        assert_eq!(said(Some(Said::Mutate(wire::Mutate { body: Some(long.clone()), ..Default::default() }))), None);
        // The module's own end does not let it come so far.
        let answer = Verdict::Respond(HookResponse { status: Status::Ok, content_type: String::new(), body: long });
        assert_eq!(to_verdict(of_verdict(1, Ok(answer)), ALL), Some(Err("body-too-long".into())));
        let denial = Verdict::deny("No!", "");
        assert_eq!(to_verdict(of_verdict(1, Ok(denial)), ALL), Some(Err("bad-code".into())));
        let wordy = back(Verdict::deny("no", &"é".repeat(HOOK_DETAIL)), ALL);
        assert_eq!(wordy, Some(Verdict::deny("no", &"é".repeat(HOOK_DETAIL / 2))));
    }
}
