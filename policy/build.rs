//! Compiles `seccomp/*.json` to BPF. The build fails when a rule has no reason, names an unknown call, or stands twice.
//!
//! Our files say what is allowed and what is answered with an error; everything else ends the process. seccompiler knows
//! one action a filter, so a role becomes two or more programs: the allow-list, and one for each errno (installed first).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

#[path = "build/lists.rs"]
mod lists;

use lists::{Policy, When};

const ROLES: [&str; 6] = ["front", "vault", "unseal", "noded", "directory", "module"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=seccomp");
    let target = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    assert!(target == "x86_64", "the allow-lists name x86-64 system calls; add lists for {target} first");
    let mut source = String::from("// Made by build.rs from seccomp/*.json.\n");
    for role in ROLES {
        let path = format!("seccomp/{role}.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let policy = lists::parse(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(policy.role == role, "{path}: the role is `{}`", policy.role);
        write_role(&mut source, &path, &policy);
    }
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("filters.rs"), source).expect("OUT_DIR is writable");
}

fn write_role(source: &mut String, path: &str, policy: &Policy) {
    let programs = lists::programs(policy).unwrap_or_else(|error| panic!("{path}: {error}"));
    let names: BTreeSet<&str> = policy.allow.iter().map(|rule| rule.call.as_str()).collect();
    let service = policy.allow.iter().filter(|rule| rule.when == When::Service).count();
    let name = policy.role.to_uppercase();
    let mut text = format!(
        "pub(crate) static {name}: Filter = Filter {{\n    names: &{:?}, service: {service},\n",
        Vec::from_iter(names)
    );
    text.push_str("    programs: &[\n");
    for program in programs {
        let instructions: Vec<_> = program.iter().map(|line| (line.code, line.jt, line.jf, line.k)).collect();
        writeln!(text, "        &{instructions:?},").expect("writing to a String");
    }
    text.push_str("    ],\n};\n");
    source.push_str(&text);
}
