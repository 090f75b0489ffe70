//! What the front turns away without asking the vault, told to the audit trail: calls that are not in the contract, messages that
//! cannot be read or have a field of a wrong length, connections that speak another protocol or break that of HTTP/2 (`outgoing`).
//!
//! A correct `noded` makes none of these. They are counted here, and the vault is given the count at most [`REPORTS_PER_SECOND`]
//! times a second; what it does not take is kept for the next time. Calls over a rate or a deadline are none of them: those are
//! load, and are refused for it. In: responses on their way out, first and last words of connections. Out: reports to the vault.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use openred_proto::audit::Event;
use openred_proto::refusal::REFUSAL_HEADER;
use openred_proto::vault::{Reply, Request};
use tokio::sync::Notify;
use tonic::codegen::http::{Response, StatusCode};
use tonic::{Code, Status};

use super::link::{Unanswered, VaultLink};
use super::places::Places;

/// As many as the trail lists: a report more would only be counted there.
const REPORTS_PER_SECOND: u32 = 10;
/// How a connection of HTTP/2 begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What was turned away and is not reported yet.
#[derive(Debug, Default)]
pub(super) struct Refused {
    count: AtomicU32,
    some: Notify,
}

impl Refused {
    pub(super) fn add(&self, count: u32) {
        // Saturates: a count that began again at zero would hide what it counts.
        let _ = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(old.saturating_add(count)));
        self.some.notify_one();
    }

    #[cfg(test)]
    pub(super) fn counted(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Looks at a response, and passes it on.
    pub(super) fn see<B>(&self, response: Response<B>) -> Response<B> {
        // What the vault refused carries the refusal's code, and the vault has recorded it.
        let is_ours = !response.headers().contains_key(REFUSAL_HEADER);
        let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
        if response.status() != StatusCode::OK || (is_ours && breaks_contract(code)) {
            self.add(1);
        }
        response
    }

    /// Looks at what a stream answers, or ends with.
    pub(super) fn see_status(&self, status: &Status) {
        if !status.metadata().contains_key(REFUSAL_HEADER) && breaks_contract(status.code()) {
            self.add(1);
        }
    }

    /// Reports to the vault, until that is gone.
    pub(super) async fn report(&self, vault: &VaultLink) {
        let places = Places::of_caller();
        loop {
            self.some.notified().await;
            let count = self.count.swap(0, Ordering::Relaxed);
            let report = Request::Report { event: Event::CallRefused.number(), count };
            match vault.ask(&places, report).await {
                Ok(Reply::Done) => {}
                Err(Unanswered::Gone) => return,
                // Over a quota, or the trail is full: later.
                Ok(_) | Err(_) => self.add(count),
            }
            tokio::time::sleep(Duration::from_secs(1) / REPORTS_PER_SECOND).await;
        }
    }
}

const fn breaks_contract(code: Code) -> bool {
    matches!(code, Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented | Code::Internal)
}

/// Hears how a connection begins: what is no HTTP/2 is counted, and not read on.
#[derive(Debug)]
pub(super) struct Greeting {
    heard: usize,
    refused: Arc<Refused>,
}

impl Greeting {
    pub(super) const fn new(refused: Arc<Refused>) -> Self {
        Self { heard: 0, refused }
    }

    /// The connection's next bytes; false when they are another protocol's.
    pub(super) fn is_ours(&mut self, bytes: &[u8]) -> bool {
        let wanted = &PREFACE[self.heard..];
        let length = wanted.len().min(bytes.len());
        let is_ours = wanted[..length] == bytes[..length];
        if is_ours {
            self.heard += length;
        } else {
            self.refused.add(1);
        }
        is_ours
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tonic::codegen::http::HeaderValue;

    use super::*;

    fn response(status: &Status) -> Response<()> {
        let mut response = Response::new(());
        status.add_header(response.headers_mut()).unwrap();
        response
    }

    #[test]
    fn what_breaks_the_contract_is_counted_and_what_the_vault_recorded_is_not() {
        let refused = Refused::default();
        let seen = || refused.counted();
        for code in [Code::Ok, Code::ResourceExhausted, Code::Unavailable, Code::DeadlineExceeded, Code::NotFound] {
            refused.see(response(&Status::new(code, "")));
            assert_eq!(seen(), 0, "{code:?}");
        }
        let mut vaults = response(&Status::invalid_argument(""));
        vaults.headers_mut().insert(REFUSAL_HEADER, HeaderValue::from_static("malformed"));
        refused.see(vaults);
        assert_eq!(seen(), 0, "the vault has its own record of it");
        for (step, code) in
            [Code::InvalidArgument, Code::OutOfRange, Code::Unimplemented, Code::Internal].into_iter().enumerate()
        {
            refused.see(response(&Status::new(code, "")));
            assert_eq!(seen(), step as u32 + 1, "{code:?}");
        }
        let mut other = Response::new(());
        *other.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        refused.see(other);
        assert_eq!(seen(), 5);
        refused.add(u32::MAX);
        assert_eq!(seen(), u32::MAX, "a flood does not begin again at nothing");
    }

    #[test]
    fn a_connection_begins_as_http_2_or_is_counted() {
        let refused = Arc::new(Refused::default());
        let greeting = || Greeting::new(Arc::clone(&refused));
        let mut slow = greeting();
        assert!(PREFACE.chunks(5).all(|piece| slow.is_ours(piece)) && slow.is_ours(b"any frame at all"));
        assert!(greeting().is_ours(&[PREFACE, b"and more"].concat()));
        assert_eq!(refused.counted(), 0);
        for other in [&b"GET / HTTP/1.1\r\n"[..], &[9, 0, 0, 0, 1], b"PRI * HTTP/2.0\r\n\r\nXM"] {
            assert!(!greeting().is_ours(other));
        }
        assert_eq!(refused.counted(), 3);
    }
}
