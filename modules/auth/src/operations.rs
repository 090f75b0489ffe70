//! The operations that the API has: which they are, which of them change nothing, and their requests and replies as JSON.
//!
//! Their types are those of the admin socket, read from its contract's own description, so that the two cannot come apart. What a client sends
//! is read here, in the module's cage; the node gets protobuf. What is not in the table below does not exist here, and what this
//! module was not granted (`node.operate`, one entry each) its node refuses.

use std::sync::LazyLock;

use bytes::Bytes;
use openred_module::OPERATIONS;
use prost_reflect::prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MethodDescriptor, SerializeOptions, ServiceDescriptor,
};
use serde_json::Value;

const SERVICE: &str = "openred.admin.v1.Node";

/// Every operation, and whether it changes nothing. `CallModule` has paths of its own; `CopyDatabase` leaves a file on the machine for who is
/// there, and which program a module is (`SwapModule`) is decided there, too: neither is here.
pub(crate) const ALL: [(&str, bool); 21] = [
    ("GetStatus", true),
    ("RequestLink", false),
    ("AcceptLink", false),
    ("ListLinks", true),
    ("ShowLink", true),
    ("RevokeLink", false),
    ("RefuseOffer", false),
    ("ContactPeer", false),
    ("ConfirmContact", false),
    ("DropContact", false),
    ("SyncLinks", false),
    ("ListProofs", true),
    ("ListMethods", true),
    ("DecideMethod", false),
    ("ListHooks", true),
    ("ListPeers", true),
    ("ShowPeer", true),
    ("ForgetPeer", false),
    ("DecidePeer", false),
    ("Ping", false),
    ("ListGenerations", true),
];

static NODE: LazyLock<ServiceDescriptor> = LazyLock::new(|| {
    let pool =
        DescriptorPool::decode(OPERATIONS).expect("the contract's description was written while it was compiled");
    pool.get_service_by_name(SERVICE).expect("it describes this service")
});

/// One of them.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) changes_nothing: bool,
    method: MethodDescriptor,
}

/// The operation of this name.
pub(crate) fn find(name: &str) -> Option<Operation> {
    all().find(|operation| operation.name == name)
}

pub(crate) fn all() -> impl Iterator<Item = Operation> {
    ALL.iter().filter_map(|(name, changes_nothing)| {
        let method = NODE.methods().find(|method| method.name() == *name)?;
        Some(Operation { name, changes_nothing: *changes_nothing, method })
    })
}

impl Operation {
    pub(crate) fn method(&self) -> &MethodDescriptor {
        &self.method
    }

    /// A request's JSON as its message; what it has wrong, in a line.
    pub(crate) fn request(&self, json: &[u8]) -> Result<Bytes, String> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let options = DeserializeOptions::new().deny_unknown_fields(true);
        let message = DynamicMessage::deserialize_with_options(self.method.input(), &mut reader, &options);
        let message = message.and_then(|message| reader.end().map(|()| message));
        message.map(|message| message.encode_to_vec().into()).map_err(|error| error.to_string())
    }

    /// A reply as JSON, with every field, numbers as numbers.
    pub(crate) fn reply(&self, message: Bytes) -> Option<Value> {
        let options = SerializeOptions::new()
            .stringify_64_bit_integers(false)
            .use_proto_field_name(true)
            .skip_default_fields(false);
        let message = DynamicMessage::decode(self.method.output(), message).ok()?;
        message.serialize_with_options(serde_json::value::Serializer, &options).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_module::manifest::{Manifest, PermissionName};

    use super::*;

    #[test]
    fn every_operation_of_the_socket_is_here_or_has_a_reason_not_to_be() {
        let elsewhere = ["CallModule", "CopyDatabase", "SwapModule"];
        for method in NODE.methods() {
            let here = ALL.iter().any(|(name, _)| *name == method.name());
            assert!(here != elsewhere.contains(&method.name()), "{}", method.name());
        }
        assert_eq!(all().count(), ALL.len());
    }

    #[test]
    fn the_manifest_asks_for_these_and_no_others() {
        let manifest = Manifest::parse("openred.toml", include_str!("../openred.toml")).unwrap();
        let asks = manifest.asks();
        let mut asked = asks.get(PermissionName::NodeOperate).unwrap().entries();
        let mut here: Vec<&str> = ALL.iter().map(|(name, _)| *name).chain(["CallModule"]).collect();
        asked.sort_unstable();
        here.sort_unstable();
        assert_eq!(asked, here);
    }

    #[test]
    fn what_changes_nothing_says_so_by_its_name() {
        for (name, changes_nothing) in ALL {
            let reads = ["Get", "List", "Show"].iter().any(|word| name.starts_with(word));
            assert_eq!(reads, changes_nothing, "{name}");
        }
    }

    #[test]
    fn requests_are_read_strictly_and_replies_have_every_field() {
        let list = find("ListLinks").unwrap();
        assert_eq!(list.request(b"{\"all\":true}").unwrap(), [8, 1].as_slice());
        assert_eq!(list.request(b"{}").unwrap().len(), 0);
        for bad in ["", "[]", "{\"all\":1}", "{\"everything\":true}", "{} {}", "{\"all\":true", "null", "\u{0}"] {
            assert!(list.request(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(list.reply(Bytes::new()).unwrap(), serde_json::json!({ "links": [], "contacts": [] }));
        let status = find("GetStatus").unwrap();
        assert_eq!(status.reply(Bytes::from_static(&[40, 7])).unwrap()["started_at"], 7);
        assert!(status.reply(Bytes::from_static(&[255])).is_none());
        assert!(find("CopyDatabase").is_none() && find("getStatus").is_none() && find("").is_none());
    }
}
