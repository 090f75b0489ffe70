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

/// The roles, and last a role's list with what it needs besides in a certain configuration.
const LISTS: [&str; 7] = ["front", "vault", "unseal", "noded", "directory", "module", "directory-database"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=seccomp");
    let target = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    assert!(target == "x86_64", "the allow-lists name x86-64 system calls; add lists for {target} first");
    let mut source = String::from("// Made by build.rs from seccomp/*.json.\n");
    for name in LISTS {
        let mut policy = read(name);
        if let Some(base) = policy.extends.take() {
            policy = lists::joined(read(&base), policy).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        write_role(&mut source, name, &policy);
    }
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("filters.rs"), source).expect("OUT_DIR is writable");
}

fn read(name: &str) -> Policy {
    let path = format!("seccomp/{name}.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let policy = lists::parse(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert!(policy.role == name, "{path}: the role is `{}`", policy.role);
    policy
}

fn write_role(source: &mut String, path: &str, policy: &Policy) {
    let programs = lists::programs(policy).unwrap_or_else(|error| panic!("{path}: {error}"));
    let names: BTreeSet<&str> = policy.allow.iter().map(|rule| rule.call.as_str()).collect();
    let service = policy.allow.iter().filter(|rule| rule.when == When::Service).count();
    let name = policy.role.to_uppercase().replace('-', "_");
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
