//! Signing, sealing and calls of other modules over the real socket.

use super::*;
use crate::{CallError, HostError, verify};

impl Probe {
    /// Everything in the module's own domain, with what must fail.
    pub(super) async fn domain(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        let statement = context.sign("words.v1", "it rains").await?;
        assert_eq!(context.sign("Words", "it rains").await, Err(HostError::BadDomain));
        let long = vec![0; crate::SEAL_LIMIT + 1];
        assert_eq!(context.sign("words", long).await, Err(HostError::TooLarge { limit: crate::SEAL_LIMIT }));
        let sealed = context.seal("one", "a secret").await?;
        assert_eq!(context.unseal("one", sealed.clone()).await?, "a secret");
        assert_eq!(context.unseal("two", sealed).await, Err(HostError::NotSealed));
        let call = |module| context.call_module(module, PeerRequest::get("/whoami"));
        assert_eq!(call("absent").await.map(drop), Err(CallError::NoModule));
        assert_eq!(call("probe").await.map(drop), Err(CallError::Cycle));
        let answer = call("beside").await.map_err(ModuleError::from)?;
        assert_eq!(answer.body.collect(100).await?, "probe");
        Ok(Response::new(Status::Ok, "", Body::whole(statement)))
    }
}

/// A module that says who calls it.
struct Beside;

#[async_trait]
impl Module for Beside {
    fn manifest(&self) -> Manifest {
        Manifest { id: "beside", version: "1.0.0", summary: "for tests" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.module(Method::Get, "/whoami", 0, Self::whoami);
    }
}

impl Beside {
    async fn whoami(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        let Caller::Module(name) = request.caller else { return Err(ModuleError::not_found("nobody", "nobody")) };
        Ok(Response::new(Status::Ok, "", Body::whole(Bytes::copy_from_slice(name.as_str().as_bytes()))))
    }
}

#[test]
fn a_module_signs_seals_and_calls_over_its_second_connection() {
    run(async {
        let node = Node::new().await;
        let beside = TestHost::start(2, Beside).await;
        node.host.beside(&beside);
        let (attached, _pipe) = node.attach(Probe::default()).await;
        let response = attached.dispatch(post("/domain", Body::empty())).await;
        assert_eq!(response.status, Status::Ok);
        let statement = response.body.collect(1000).await.unwrap();
        let signer = node.host.signer();
        assert!(verify(&statement, &signer, "probe", "words.v1", b"it rains").is_ok());
        assert!(verify(&statement, &signer, "probe", "words.v1", b"it shines").is_err());
        assert!(verify(&statement, &signer, "beside", "words.v1", b"it rains").is_err());
        assert!(verify(&statement, &node.host.id(), "probe", "words.v1", b"it rains").is_err());
    });
}
