//! What a module of a test host signs, seals and asks of modules beside it. Signatures are real, under a key that belongs to the host's
//! seed; a sealed body is kept here and handed out under a name, so that nothing can be made of its bytes.

use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use openred_proto::checked::module_word::{ModuleWord, is_domain};
use openred_proto::checked::statement;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::label::{Label, signed_bytes};

use super::TestHost;
use super::node::Node;
use crate::context::Context;
use crate::host::{CONTEXT_LIMIT, CallError, DEPTH, Host as _, HostError, SEAL_LIMIT, Within};
use crate::message::{Caller, ModuleName, PeerRequest, Request, Response};

/// A call that runs: the modules that wait for it, and when the first of them stops.
type Running = (Vec<String>, Option<u64>);

/// What `State` keeps for this file.
#[derive(Default)]
pub(super) struct Beside {
    /// Modules of this node that this one may call.
    modules: Vec<(String, Arc<Node>)>,
    running: Vec<(u64, Running)>,
    calls: u64,
    sealed: Vec<(Bytes, Bytes, Bytes)>,
    pub(super) refused: bool,
}

/// A call that is over when this is dropped.
pub(super) struct Call {
    node: Arc<Node>,
    pub(super) call: u64,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.node.state().beside.running.retain(|(call, _)| *call != self.call);
    }
}

impl TestHost {
    /// Puts another host's module beside this one's, on the same node: this one may call it.
    ///
    /// # Panics
    /// If the other has no module.
    pub fn beside(&self, other: &Self) {
        let name = other.node.module_id().expect("a started host has a module");
        self.node.state().beside.modules.push((name, Arc::clone(&other.node)));
    }

    /// Whom [`crate::verify`] is to be asked about for what this host's module has signed: the host's own id is made up, and has no key.
    pub fn signer(&self) -> NodeId {
        NodeId::from_bytes(self.node.key().verifying_key().to_bytes())
    }

    /// From now on signing, sealing, calls of other modules and connections are not granted.
    pub fn withdraw_grants(&self) {
        self.node.state().beside.refused = true;
    }
}

impl Node {
    fn key(&self) -> SigningKey {
        SigningKey::from_bytes(self.id.as_bytes())
    }

    fn module_id(&self) -> Option<String> {
        self.callee().map(|callee| callee.module().to_owned())
    }

    fn granted(&self) -> Result<String, HostError> {
        if self.state().beside.refused {
            Err(HostError::NotGranted)
        } else {
            self.module_id().ok_or(HostError::Storage)
        }
    }

    /// Remembers who waits for a call while it runs.
    pub(super) fn begin(self: &Arc<Self>, request: &Request) -> Call {
        let mut state = self.state();
        state.beside.calls += 1;
        let call = state.beside.calls;
        state.beside.running.push((call, (request.via.clone(), request.deadline)));
        Call { node: Arc::clone(self), call }
    }

    /// What the module holds while it serves a call.
    pub(super) fn context_of(self: &Arc<Self>, call: u64) -> Context {
        Context::new(Arc::clone(self) as _).within(call)
    }

    pub(super) fn sign_here(&self, domain: &str, body: &[u8]) -> Result<Bytes, HostError> {
        use sha2::Digest as _;
        let module = self.granted()?;
        if !is_domain(domain) {
            return Err(HostError::BadDomain);
        }
        let word = ModuleWord {
            module,
            domain: domain.to_owned(),
            digest: sha2::Sha256::digest(body).into(),
            length: body.len() as u64,
            at: UnixMillis(self.now()),
        };
        let (key, payload) = (self.key(), word.encode());
        let signature = key.sign(&signed_bytes(Label::Module, &payload)).to_bytes();
        let signer = NodeId::from_bytes(key.verifying_key().to_bytes());
        Ok(statement::encode(&payload, &signer, &signature).into())
    }

    pub(super) fn seal_here(&self, context: Bytes, body: Bytes) -> Result<Bytes, HostError> {
        self.granted()?;
        if body.len() > SEAL_LIMIT {
            return Err(HostError::TooLarge { limit: SEAL_LIMIT });
        }
        if context.len() > CONTEXT_LIMIT {
            return Err(HostError::TooLarge { limit: CONTEXT_LIMIT });
        }
        let name = Bytes::copy_from_slice(&self.unique_id());
        self.state().beside.sealed.push((name.clone(), context, body));
        Ok(name)
    }

    pub(super) fn unseal_here(&self, context: &Bytes, sealed: &Bytes) -> Result<Bytes, HostError> {
        self.granted()?;
        let state = self.state();
        let found = state.beside.sealed.iter().find(|(name, bound, _)| name == sealed && bound == context);
        found.map(|(.., body)| body.clone()).ok_or(HostError::NotSealed)
    }

    /// As the operator, whoever waits for it: a module beside this one, never itself.
    pub(super) async fn operator_beside(&self, module: &str, request: PeerRequest) -> Result<Response, CallError> {
        if self.state().operations.is_none() {
            return Err(CallError::NotGranted);
        }
        let target = {
            let state = self.state();
            let target = state.beside.modules.iter().find(|(name, _)| name == module);
            target.map(|(_, target)| Arc::clone(target)).ok_or(CallError::NoModule)?
        };
        Ok(target.dispatch(Request { caller: Caller::Operator, ..request.into_request(self.id) }).await)
    }

    pub(super) async fn call_beside(
        &self,
        within: Within,
        module: &str,
        request: PeerRequest,
    ) -> Result<Response, CallError> {
        let own = self.granted().map_err(|_| CallError::NotGranted)?;
        let name = ModuleName::new(&own).ok_or(CallError::NotGranted)?;
        let (target, (via, deadline)) = {
            let state = self.state();
            let origin = match within.call {
                // A real attachment has named them.
                _ if !within.via.is_empty() => (within.via, within.deadline),
                0 => (vec![own], None),
                call => {
                    let running = state.beside.running.iter().find(|(running, _)| *running == call);
                    let (mut via, deadline) = running.map(|(_, origin)| origin.clone()).ok_or(CallError::Ended)?;
                    via.push(own);
                    (via, deadline)
                }
            };
            let target = state.beside.modules.iter().find(|(name, _)| name == module);
            (target.map(|(_, target)| Arc::clone(target)), origin)
        };
        if via.iter().any(|waiting| waiting == module) {
            return Err(CallError::Cycle);
        }
        if via.len() >= DEPTH {
            return Err(CallError::TooDeep);
        }
        let target = target.ok_or(CallError::NoModule)?;
        let mut request = Request { caller: Caller::Module(name), via, ..request.into_request(self.id) };
        request.deadline = request.deadline.into_iter().chain(deadline).min();
        if request.deadline.is_some_and(|deadline| deadline <= self.now()) {
            return Err(CallError::TimedOut);
        }
        Ok(target.dispatch(request).await)
    }
}
