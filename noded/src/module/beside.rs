//! Calls of one module by another: how deep, never in a circle, no longer than whoever waits.
//!
//! In: a request and the chain of modules that wait for it, as the attachments have it. Out: the other module's answer. What was granted is the caller's
//! host to say.
//!
//! The chain is what a module says of itself as far as it may say that nobody waits: a call outside of any is one that modules make of their own accord
//! (at their start, for a timer), and nothing tells it from one that belongs to a call. So depth and circles catch mistakes. Modules that lie
//! about it go round in a circle until the 16 places that each has for the others are taken, which are theirs.

use std::time::Duration;

use openred_module::{CallError, Caller, DEPTH, ModuleName, PeerRequest, Request, Response, Within};
use tokio::time::timeout;

use super::{CALL_TIME, Modules};
use crate::clock;

/// Whether the last module of `via` may call `module`.
fn judge(via: &[String], module: &str) -> Result<(), CallError> {
    if via.iter().any(|waiting| waiting == module) {
        return Err(CallError::Cycle);
    }
    if via.len() >= DEPTH { Err(CallError::TooDeep) } else { Ok(()) }
}

impl Modules {
    /// A call of `module` by the module `from`.
    ///
    /// # Errors
    /// [`CallError`] where there is no answer.
    pub(super) async fn call_beside(
        &self,
        from: &str,
        within: Within,
        module: &str,
        request: PeerRequest,
    ) -> Result<Response, CallError> {
        judge(&within.via, module)?;
        let caller = Caller::Module(ModuleName::new(from).ok_or(CallError::NotGranted)?);
        let target = self.get(module).ok_or(CallError::NoModule)?;
        // One that sleeps is started by the call.
        if target.callee.is_down() {
            return Err(CallError::NoModule);
        }
        let place = target.places.call(caller).ok_or(CallError::Busy)?;
        let deadline = request.deadline.into_iter().chain(within.deadline).min();
        let left = deadline.map_or(CALL_TIME, |at| Duration::from_millis(at.saturating_sub(clock::now().0)));
        let mut call =
            Request::new(caller, request.method, request.path).with_body(&request.content_type, request.body);
        (call.length, call.idempotency_key, call.via) = (request.length, request.idempotency_key, within.via);
        call.deadline = Some(deadline.unwrap_or_else(|| clock::now().plus(CALL_TIME).0));
        let call = match &target.gates {
            Some(gates) => match gates.pass(call) {
                Ok((call, _)) => call,
                Err(refused) => return Ok(refused.into()),
            },
            None => call,
        };
        let answered = timeout(left.min(CALL_TIME), target.callee.dispatch(call)).await;
        answered.map(|response| place.until_read(response)).map_err(|_| CallError::TimedOut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_deep_and_never_in_a_circle() {
        let chain = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(judge(&chain(&["a"]), "b"), Ok(()));
        assert_eq!(judge(&chain(&["a", "b", "c"]), "d"), Ok(()));
        assert_eq!(judge(&chain(&["a", "b", "c", "d"]), "e"), Err(CallError::TooDeep));
        assert_eq!(judge(&chain(&["a", "b", "c"]), "a"), Err(CallError::Cycle));
        assert_eq!(judge(&chain(&["a"]), "a"), Err(CallError::Cycle), "itself");
    }
}
