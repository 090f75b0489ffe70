//! Compiles the `.proto` contracts in pure Rust (protox), so that no `protoc` is needed on a fresh machine.

#![allow(clippy::print_stdout, reason = "cargo reads directives from standard output")]

use std::error::Error;

const CONTRACTS: [&str; 4] = [
    "openred/cryptod/v1/cryptod.proto",
    "openred/admin/v1/admin.proto",
    "openred/module/v1/module.proto",
    "openred/wire/v1/wire.proto",
];

/// Messages that the operator's command line prints as JSON; their field names are part of its versioned schemas.
const PRINTED: [&str; 29] = [
    "Hooks",
    "HookPoint",
    "Hook",
    "Condition",
    "NodeStatus",
    "DirectoryStatus",
    "DirectoryEvidence",
    "Links",
    "Contact",
    "SyncedLinks",
    "SessionProofs",
    "SessionProof",
    "Methods",
    "Method",
    "Link",
    "Peers",
    "Peer",
    "PingReport",
    "SupervisorStatus",
    "Process",
    "DoctorReport",
    "Layer",
    "KeyStatus",
    "SuccessionWord",
    "Trail",
    "ModuleStatus",
    "ModuleLogLine",
    "ModuleGenerations",
    "ModuleGeneration",
];

fn main() -> Result<(), Box<dyn Error>> {
    for contract in CONTRACTS {
        println!("cargo::rerun-if-changed={contract}");
    }
    if std::env::var_os("CARGO_FEATURE_GRPC").is_none() {
        return Ok(());
    }
    let descriptors = protox::compile(CONTRACTS, ["."])?;
    // The operator's operations as they are described, with their comments: for who serves them in another form.
    let mut described = protox::Compiler::new(["."])?;
    described.include_source_info(true).open_file("openred/admin/v1/admin.proto")?;
    let place = std::path::Path::new(&std::env::var("OUT_DIR")?).join("admin.descriptors");
    std::fs::write(place, described.encode_file_descriptor_set())?;
    let mut builder = tonic_prost_build::configure().bytes(".");
    for message in PRINTED {
        builder = builder.type_attribute(format!("openred.admin.v1.{message}"), "#[derive(serde::Serialize)]");
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
