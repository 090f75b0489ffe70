//! Protobuf to requests and back, for methods of modules and what modules sign and seal with. As `convert`; a file of its own.

use openred_proto::checked::module_word::DOMAIN_BYTES;
use openred_proto::cryptod as rpc;
use openred_proto::id::MethodId;
use openred_proto::method::description::DESCRIPTION_BYTES;
use openred_proto::modules::MODULE_ID_BYTES;
use openred_proto::vault::{Reply, Request};

use super::convert::{Checked, array, foreign, refused, text};

pub(super) fn register(message: rpc::RegisterMethodRequest) -> Checked<Request> {
    // The module wrote it, and `noded` only hands it on: what cannot be read is no fault of the caller.
    let description = foreign("description", &message.description, DESCRIPTION_BYTES)?;
    Ok(Request::RegisterMethod { module: text("module", message.module, MODULE_ID_BYTES)?, description })
}

pub(super) fn retire(message: &rpc::MethodName) -> Checked<Request> {
    Ok(Request::RetireMethod { method: MethodId::from_bytes(array("method", &message.method)?) })
}

pub(super) fn sign(message: rpc::SignModuleRequest) -> Checked<Request> {
    Ok(Request::SignModule {
        module: text("module", message.module, MODULE_ID_BYTES)?,
        domain: text("domain", message.domain, DOMAIN_BYTES)?,
        digest: array("digest", &message.digest)?,
        length: message.length,
    })
}

pub(super) fn seal_key(message: rpc::SealKeyRequest) -> Checked<Request> {
    Ok(Request::SealKey { module: text("module", message.module, MODULE_ID_BYTES)? })
}

pub(super) fn place(reply: Reply) -> Checked<rpc::MethodPlace> {
    match reply {
        Reply::MethodRegistered(place) => Ok(rpc::MethodPlace { place: place.number().into() }),
        other => Err(refused(&other)),
    }
}

pub(super) fn listed(reply: Reply) -> Checked<rpc::RegisteredMethods> {
    let Reply::Methods(methods) = reply else { return Err(refused(&reply)) };
    let methods = methods.into_iter().map(|method| rpc::RegisteredMethod {
        place: method.place.number().into(),
        module: method.module,
        description: method.description.into(),
        epoch: method.epoch,
        retired: method.retired,
    });
    Ok(rpc::RegisteredMethods { methods: methods.collect() })
}

pub(super) fn signed(reply: Reply) -> Checked<rpc::SignedModule> {
    match reply {
        Reply::ModuleSigned(statement) => Ok(rpc::SignedModule { statement: statement.into() }),
        other => Err(refused(&other)),
    }
}
