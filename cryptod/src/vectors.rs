//! Reads the vector files in `proto/vectors/` for tests. Each file is an object with a `source` (where the values come
//! from) and `cases`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::Value;

/// The cases of one file; a file without cases or source is a defect.
pub(crate) fn read_vectors(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/vectors").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(file["source"].as_str().is_some_and(|source| !source.is_empty()), "{name} names no source");
    let cases = file["cases"].as_array().unwrap_or_else(|| panic!("{name} has no cases")).clone();
    assert!(!cases.is_empty(), "{name} has no cases");
    cases
}

pub(crate) fn hex_bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

pub(crate) fn hex_array<const N: usize>(value: &Value) -> [u8; N] {
    hex_bytes(value).try_into().unwrap()
}
