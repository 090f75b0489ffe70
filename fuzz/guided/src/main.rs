//! One program for all targets of `openred_fuzz`: libFuzzer drives the one that `OPENRED_FUZZ_TARGET` names.
#![no_main]

use std::sync::OnceLock;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn named() -> fn(&[u8]) {
    let name = std::env::var("OPENRED_FUZZ_TARGET").unwrap_or_default();
    openred_fuzz::target(&name).map(|target| target.run).expect("OPENRED_FUZZ_TARGET names no target")
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET.get_or_init(named)(bytes));
