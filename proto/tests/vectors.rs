//! `proto/vectors/wire/`: what nodes send, as another implementation computed it from the document (`tests/interop/vectors.py`), right
//! and wrong. And `proto/vectors/README.md`: each message of the wire has vectors of both kinds.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use openred_proto::checked::card::Card;
use openred_proto::checked::handshake::{RequestPayload, SenderPayload};
use openred_proto::checked::module_word::ModuleWord;
use openred_proto::checked::receipt::Receipt;
use openred_proto::checked::session::{Accept, RequestHead, ResponseHead};
use openred_proto::checked::static_certificate::StaticCertificate;
use openred_proto::checked::succession::Succession;
use openred_proto::error::{Result, WireError};
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::log::head::Head;
use openred_proto::log::heads::Heads;
use openred_proto::log::{Hash, entry, tree};
use openred_proto::method::description::MethodDescription;
use openred_proto::vault::Refusal;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn cases(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let file: Value = serde_json::from_str(&text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

fn bytes(case: &Value, name: &str) -> Vec<u8> {
    hex::decode(case[name].as_str().unwrap()).unwrap()
}

/// Each case of a file: what is right is read, and written alike where `read` writes it; what is wrong is refused.
fn hold(file: &str, read: impl Fn(&Value, &[u8]) -> Result<Option<Vec<u8>>>) {
    let (mut right, mut wrong) = (0, 0);
    for case in cases(&folder().join("wire").join(file)) {
        let bytes = bytes(&case, "bytes");
        match (case["accept"].as_bool().unwrap(), read(&case, &bytes)) {
            (true, Ok(written)) => {
                right += 1;
                assert!(written.is_none_or(|written| written == bytes), "{file}: {}: written otherwise", case["why"]);
            }
            (false, Err(_)) => wrong += 1,
            (true, Err(error)) => panic!("{file}: {}: {error}", case["why"]),
            (false, Ok(_)) => panic!("{file}: {}: taken", case["why"]),
        }
    }
    assert!(wrong > right && right > 1, "{file}: more wrong ones than right ones");
}

fn now(case: &Value) -> UnixMillis {
    UnixMillis(case["now"].as_u64().unwrap())
}

#[test]
fn what_is_signed() {
    hold("card.json", |case, bytes| Card::verify(bytes, now(case)).map(|_| None));
    hold("static-certificate.json", |case, bytes| StaticCertificate::verify(bytes, now(case)).map(|_| None));
    hold("succession.json", |_, bytes| Succession::verify(bytes).map(|_| None));
    hold("receipt.json", |case, statement| {
        let signer = NodeId::from_bytes(bytes(case, "signer").try_into().unwrap());
        Receipt::verify(statement, &signer).map(|_| None)
    });
}

#[test]
fn what_modules_state() {
    hold("module-word.json", |case, statement| {
        let signer = NodeId::from_bytes(bytes(case, "signer").try_into().unwrap());
        let text = |name: &str| case[name].as_str().unwrap();
        ModuleWord::verify(statement, &signer, text("module"), text("domain"), &bytes(case, "body")).map(|_| None)
    });
}

/// What is below the floor decodes, and is refused by the name that the case says.
#[test]
fn what_modules_say_of_methods() {
    hold("method-description.json", |case, bytes| {
        let description = MethodDescription::decode(bytes)?;
        match (description.vet(), case["weak"].as_str()) {
            (Ok(vetted), None) => {
                assert_eq!(Some(vetted.id.to_string().as_str()), case["id"].as_str(), "{}", case["why"]);
                Ok(Some(description.encode()))
            }
            (Err(weakness), Some(named)) => {
                assert_eq!(Refusal::WeakMethod(weakness).code(), named, "{}", case["why"]);
                Err(WireError::Unsupported { what: "method" })
            }
            (vetted, named) => panic!("{}: {vetted:?}, not {named:?}", case["why"]),
        }
    });
}

#[test]
fn what_is_inside_noise_and_sessions() {
    hold("payloads.json", |case, bytes| match case["phase"].as_str().unwrap() {
        "REQUEST" => RequestPayload::decode(bytes).map(|payload| Some(payload.encode())),
        "VERIFY" => SenderPayload::decode_verify(bytes).map(|payload| Some(payload.encode())),
        _ => SenderPayload::decode_finalize(bytes).map(|payload| Some(payload.encode())),
    });
    hold("heads.json", |case, bytes| match case["head"].as_str().unwrap() {
        "request" => RequestHead::decode(bytes).map(|head| Some(head.encode())),
        "response" => ResponseHead::decode(bytes).map(|head| Some(head.encode())),
        _ => Accept::decode(bytes).map(|accept| Some(accept.encode())),
    });
}

fn number(case: &Value, name: &str) -> u64 {
    case[name].as_u64().unwrap()
}

fn hash(case: &Value, name: &str) -> Hash {
    bytes(case, name).try_into().unwrap()
}

#[test]
fn what_directories_sign_and_prove_of_their_logs() {
    hold("log-head.json", |case, note| {
        let directory = NodeId::from_bytes(hash(case, "directory"));
        let head = Head::verify(note, &directory)?;
        assert_eq!(head, Head { directory, size: number(case, "size"), root: hash(case, "root") });
        Ok(None)
    });
    hold("log-proof.json", |case, proof| {
        let proof: Vec<Hash> = proof.chunks(32).map(|hash| hash.try_into().unwrap()).collect();
        if case["proof"] == "consistency" {
            let (old, new) = (number(case, "old"), number(case, "new"));
            return tree::verify_consistency(old, new, &hash(case, "old_root"), &hash(case, "new_root"), &proof)
                .map(|()| None);
        }
        if case.get("card").is_some() {
            let salt = case.get("salt").map(|_| bytes(case, "salt").try_into().unwrap());
            assert_eq!(entry(&bytes(case, "card"), salt.as_ref()), hash(case, "entry"), "{}", case["why"]);
        }
        let leaf = tree::leaf_hash(&bytes(case, "entry"));
        tree::verify_inclusion(number(case, "index"), number(case, "size"), &leaf, &proof, &hash(case, "root"))
            .map(|()| None)
    });
    hold("directory-heads.json", |_, bytes| Heads::decode(bytes).map(|heads| Some(heads.encode())));
}

#[test]
fn what_directories_are_asked() {
    use sha2::Digest as _;
    let all = cases(&folder().join("wire/http-signature.json"));
    assert!(all.iter().filter(|case| case["accept"] == false).count() > all.len() / 2);
    for case in all {
        let text = |name: &str| case[name].as_str().unwrap();
        let digest = sha2::Sha256::digest(bytes(&case, "body")).into();
        let input = SignatureInput::from_headers(text("method"), text("target_uri"), digest, text("signature_input"));
        // The digest's own header is the caller's to compare: it is in the base as what the body's is.
        let verified = input.and_then(|input| {
            assert!(case["accept"] == false || input.content_digest() == text("content_digest"));
            input.verify(text("signature"))
        });
        assert_eq!(verified.is_ok(), case["accept"] == true, "{}: {verified:?}", case["why"]);
    }
}

/// The table of `vectors/README.md`: message, files.
fn rows() -> Vec<(String, Vec<String>)> {
    let text = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|row| row.split_once("` |"));
    rows.map(|(message, rest)| {
        let files = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (message.to_owned(), files)
    })
    .collect()
}

#[test]
fn every_message_of_the_wire_has_right_and_wrong_vectors() {
    let wire = std::fs::read_to_string(folder().join("../openred/wire/v1/wire.proto")).unwrap();
    let messages = wire.lines().filter_map(|line| line.strip_prefix("message ")?.split(' ').next());
    let messages: BTreeSet<&str> = messages.collect();
    assert!(messages.len() > 10, "{messages:?}");
    let rows = rows();
    for message in messages {
        let row = rows.iter().find(|(named, _)| named == message);
        assert!(row.is_some(), "proto/vectors/README.md says of no file that it has vectors of {message}");
    }
    for (message, files) in rows {
        let all: Vec<Value> = files.iter().flat_map(|file| cases(&folder().join(file))).collect();
        assert!(!all.is_empty(), "{message}: no cases");
        // Files of one kind say so by their name.
        let named = |kind: &str| files.iter().any(|file| file.ends_with(&format!("{kind}.json")));
        let has = |kind: bool| all.iter().any(|case| case["accept"] == kind);
        assert!(has(true) || named("accept"), "{message}: nothing right");
        assert!(has(false) || named("reject"), "{message}: nothing wrong");
    }
}
