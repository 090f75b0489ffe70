//! A whole node on kernels that lack one layer each: it ends with that layer's name, nobody ever reaches its key process, nobody is told
//! its passphrase, and the next vault records what was seen from outside.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openred_policy::LayerName;
use openred_policy::probe::shim::{Lack, NO_FILTER, SHIMS, Shim};
use openred_policy::{Role, Uid};
use openred_tests::harness::{Daemon, Node, binaries, is_root, lay_out, passphrase, wait_for};
use serde_json::Value;

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 62_760;
/// Between two looks at a place.
const LOOK: Duration = Duration::from_millis(1);
/// The unsealer, with a copy of its order (descriptor 5) in a file that gets its final name at the order's end.
const OVERHEARD: &str = r#"#!/bin/bash
exec 5< <(exec 3>&- 4>&- 6>&- 7>&-; tee "$0.heard" <&5; mv "$0.heard" "$0.order")
exec "$0.true" "$@"
"#;

/// One kernel for each layer that the key process needs, of those that leave the supervisor's own work alone: it switches core dumps off,
/// closes its memory and has its children die with it by the same calls.
fn kernels() -> Vec<Shim> {
    let own = if is_root() { Uid::Separate } else { Uid::Shared };
    let mut found: Vec<Shim> = Vec::new();
    for shim in SHIMS {
        let (_, layer, role, form, lack) = shim;
        let is_the_supervisors = matches!(layer, LayerName::CoreDumps | LayerName::NotDumpable | LayerName::Barrier);
        let fits = *role == Role::Vault && form.is_none_or(|form| form == own) && matches!(lack, Lack::Call(..));
        if fits && !is_the_supervisors && found.iter().all(|(_, other, ..)| other != layer) {
            found.push(*shim);
        }
    }
    found
}

/// Sets what it holds when it goes, also by a panic: who waits for that would wait for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `act`; whether anything was at `place` at any time meanwhile.
fn appeared(place: &Path, act: impl FnOnce()) -> bool {
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let watching = threads.spawn(|| {
            let mut seen = false;
            while !over.load(Ordering::Relaxed) {
                seen |= place.exists();
                std::thread::sleep(LOOK);
            }
            seen
        });
        let ends = Over(&over);
        act();
        drop(ends);
        watching.join().unwrap()
    })
}

struct Stage {
    node: Node,
    top: PathBuf,
    programs: PathBuf,
}

impl Stage {
    fn new(folder: &Path) -> Self {
        let top = folder.canonicalize().unwrap();
        let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
        let mut node = Node::init(&top, "node", nowhere, UID_BASE, "").unwrap();
        let (programs, script) = (top.join("programs"), top.join("overheard"));
        fs::write(&script, OVERHEARD).unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        lay_out(&programs, "cryptod-unseal", &script).unwrap();
        let unseal = binaries().unwrap().join("cryptod-unseal");
        std::os::unix::fs::symlink(unseal, programs.join("cryptod-unseal.true")).unwrap();
        // What ends the start is the key process, and not `noded`, which would have it killed in the middle.
        fs::rename(programs.join("noded"), programs.join("noded.true")).unwrap();
        fs::write(programs.join("noded"), "#!/bin/sh\nexec sleep 600\n").unwrap();
        fs::set_permissions(programs.join("noded"), Permissions::from_mode(0o755)).unwrap();
        node.run_from(&programs);
        Self { node, top, programs }
    }

    /// What the unsealer was told, all of it.
    fn order(&self) -> Vec<u8> {
        let place = self.programs.join("cryptod-unseal.order");
        wait_for("the order's end", || Ok(place.exists().then_some(()))).unwrap();
        let order = fs::read(&place).unwrap();
        fs::remove_file(&place).unwrap();
        order
    }

    /// Starts the node without what `shim` takes away; its exit code and what it said.
    fn up_without(&self, shim: &str) -> (i32, String) {
        let (program, home) = (self.programs.join("openred"), self.node.home.display().to_string());
        let program = program.display().to_string();
        let secret = passphrase(&self.node);
        let words = [shim, &program, "--home", &home, "up", "--passphrase-file", &secret];
        let log = self.top.join(format!("{shim}.log"));
        let mut daemon = Daemon::start(&binaries().unwrap().join("openred-without"), &words, &log).unwrap();
        let code = wait_for("the start's end", || daemon.ended()).unwrap();
        (code, daemon.output())
    }
}

#[test]
fn iso_a_node_without_a_layer_is_never_reachable_and_no_passphrase_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut stage = Stage::new(folder.path());
    let socket = stage.node.home.join("run/cryptod/cryptod.sock");
    let kernels = kernels();
    assert!(kernels.len() >= 10, "{kernels:?}");
    for (shim, layer, ..) in kernels.into_iter().chain([NO_FILTER]) {
        let mut ended = (0, String::new());
        assert!(!appeared(&socket, || ended = stage.up_without(shim)), "{shim}: the key process could be reached");
        let (code, said) = ended;
        assert!(code != 0 && said.contains(&format!(" {layer}: ")), "{shim}: exit code {code}: {said}");
        // The arena is the vault's alone: the unsealer is in a whole cage.
        let told = stage.order();
        assert!(told.is_empty() || layer == LayerName::Arena, "{shim}: {} bytes", told.len());
    }
    fs::rename(stage.programs.join("noded.true"), stage.programs.join("noded")).unwrap();
    // The control: on this kernel the same look finds the socket, and the passphrase in the order.
    let seen = appeared(&socket, || stage.node.up().unwrap());
    assert!(seen, "the control");
    let (order, secret) = (stage.order(), b"passphrase of node");
    assert!(order.windows(secret.len()).any(|window| window == secret), "the control");
    // What only a look from outside could see is in the trail, by the first vault that there was.
    wait_for("the record", || {
        let records = stage.node.cli(&["audit", "export"])?.ok()?.stdout;
        let records = records.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        Ok(records.iter().any(|record| record["event"] == "process.layer").then_some(()))
    })
    .unwrap();
    stage.node.down().unwrap();
}
