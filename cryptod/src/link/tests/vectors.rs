//! The vectors in `proto/vectors/offer/`: offers with everything that a recipient needs to open them, and refused ones with
//! the reason.

use serde_json::Value;

use super::*;
use crate::link::accept::Renewed;
use crate::prekey::PrekeyRecord;
use crate::vectors::{hex_array, hex_bytes, read_vectors};

/// Opens a case's offer as its recipient.
fn open_case(case: &Value) -> Result<super::super::accept::Opened> {
    let id = |name: &str| NodeId::from_bytes(hex_array(&case[name]));
    let record =
        PrekeyRecord { seed: Secret::new(hex_array(&case["prekey_seed"])), created: NOW, superseded: UnixMillis(0) };
    let received = ReceivedOffer {
        offer: hex_bytes(&case["offer"]),
        sender: id("sender"),
        directory: id("directory"),
        allowed: MethodSet::from_bits(case["allowed"].as_u64().unwrap()).unwrap(),
    };
    let recipient = Identity::from_seed(&Secret::new(hex_array(&case["recipient_seed"])));
    let now = UnixMillis(case["now"].as_u64().unwrap());
    let renews = &case["renews"];
    let renewed = renews.is_object().then(|| Renewed {
        link: LinkId::from_bytes(hex_array(&renews["link_id"])),
        peer: NodeId::from_bytes(hex_array(&renews["peer"])),
        base: Secret::new(hex_array(&renews["base"])),
        life: DAY,
    });
    open(
        &recipient.node_id(),
        (&Prekeys::from_records(vec![record]).unwrap(), &Methods::default()),
        &received,
        renewed.as_ref(),
        now,
    )
}

#[test]
fn accept_vectors() {
    for case in read_vectors("offer/accept.json") {
        let opened = open_case(&case).unwrap();
        let number = |name: &str| case[name].as_u64().unwrap();
        let header = SealedHeader {
            link_id: LinkId::from_bytes(hex_array(&case["link_id"])),
            method: case["method"].as_str().unwrap().parse().unwrap(),
            epoch: number("epoch"),
            not_before: UnixMillis(number("not_before")),
            not_after: UnixMillis(number("not_after")),
            sequence: number("sequence"),
            registered: None,
        };
        assert_eq!(opened.header, header);
        assert_eq!(*opened.base.expose(), hex_array(&case["base"]));
        assert_eq!(opened.token_id, hex_array(&case["token_id"]));
    }
}

#[test]
fn reject_vectors() {
    let cases = read_vectors("offer/reject.json");
    assert!(cases.len() > read_vectors("offer/accept.json").len(), "more rejects than accepts");
    for case in cases {
        let refused = open_case(&case).err().unwrap_or_else(|| panic!("accepted: {}", case["why"]));
        assert_eq!(refused.to_string(), case["refused"].as_str().unwrap(), "{}", case["why"]);
    }
}
