//! Hooks of an installed module in a real node: each class with a hook that denies, hangs, fails, answers twice, answers garbage or ends its process;
//! what closes and what opens, the time of one and of all, the breaker, too many questions at once, what `openred hooks` shows, and
//! installs that are refused for their order. Meanwhile everything else goes on.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use openred_proto::admin::node_client::NodeClient;
use openred_proto::admin::{ModuleRequestFrame, ModuleRequestHead};
use openred_tests::desk::{Desk, module, refused, text};
use openred_tests::harness::{Node, binaries, signal_pid, wait_for};
use openred_tests::hostile::call;
use openred_tests::world::{World, status};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

/// Its hooks: id, class, more of the manifest, and the calls that it stands before.
const HOOKS: [(&str, &str, &str, &str); 10] = [
    ("authn", "authn", "", CLOSED),
    ("authz", "authz", "", CLOSED),
    ("shut", "transform", "", CLOSED),
    ("open", "transform", "on_failure = \"open\"", OPEN),
    ("watch", "observe", "", OPEN),
    ("slow-1", "transform", "on_failure = \"open\"\nbefore = [\"guard/last\"]", SLOW),
    ("slow-2", "transform", "on_failure = \"open\"\nbefore = [\"guard/last\"]", SLOW),
    ("slow-3", "transform", "on_failure = \"open\"\nbefore = [\"guard/last\"]", SLOW),
    ("last", "transform", "", SLOW),
    ("flood", "authz", "", FLOOD),
];
const CLOSED: &str = "/conversations";
const OPEN: &str = "/inbox";
const SLOW: &str = "/outbox";
/// Of no module: what passes is not found.
const FLOOD: &str = "/flood";

fn manifest(id: &str, hooks: &str) -> String {
    format!(
        "id = \"{id}\"\nversion = \"1.0.0\"\nprogram = \"guard\"\ndescription = \"Stands in the way\"\n
[[route]]\nmethod = \"GET\"\npath = \"/acts\"\nauth = \"operator\"\n{hooks}"
    )
}

fn guard() -> String {
    let (mut hooks, mut settings) = (String::new(), String::new());
    for (id, class, more, path) in HOOKS {
        let modules = if path == FLOOD { "\"messaging\", \"files\"" } else { "\"messaging\"" };
        hooks += &format!(
            "\n[[hook]]\nid = \"{id}\"\npoint = \"operator\"\nclass = \"{class}\"\nreason = \"r\"\ntimeout_millis = 100\n{more}
match = {{ modules = [{modules}], path = \"{path}\" }}\n"
        );
        let acts = "\"pass\", \"deny\", \"hang\", \"fail\", \"twice\", \"garbage\", \"abort\"";
        settings += &format!(
            "\n[config.{id}]\ntype = \"text\"\none_of = [{acts}]\ndefault = \"pass\"\nhelp = \"what it does\"\n"
        );
    }
    manifest("guard", &(hooks + &settings))
}

struct Stage {
    node: Node,
    noded: u32,
    world: World,
}

impl Stage {
    fn new() -> (Self, Desk) {
        let world = World::without_directory().unwrap();
        let node = world.alone("alice", "\n[module.guard]\n").unwrap();
        let desk = Desk::new(&world.path().join("desk")).unwrap();
        let package = desk.pack(&guard(), &binaries().unwrap().join("openred-guard-module"), "").unwrap();
        let install = ["install", &text(&package), "--publisher", &desk.publisher, "--approve"];
        module(&node, &install).unwrap();
        let noded = node.child_pid("noded").unwrap();
        let mut stage = Self { node, noded, world };
        stage.become_so(&[]);
        (stage, desk)
    }

    /// Has its hooks do this from now on, all others pass.
    fn become_so(&mut self, acts: &[(&str, &str)]) {
        let place = self.node.home.join("openred.toml");
        let before = fs::read_to_string(&place).unwrap();
        let kept = &before[..before.find("[module.guard]").unwrap()];
        let said: String = acts.iter().map(|(hook, act)| format!("{hook} = \"{act}\"\n")).collect();
        fs::write(&place, format!("{kept}[module.guard]\n{said}")).unwrap();
        signal_pid(self.node.daemon().unwrap().pid(), Signal::SIGHUP).unwrap();
        wait_for(&format!("{acts:?}"), || {
            // What it did before may have put it under quarantine.
            self.node.cli(&["module", "release", "guard"])?;
            let (status, body) = call(&self.node.home, "guard", "/acts")?;
            let now: toml::Table = body.parse().with_context(|| format!("{status} {body}"))?;
            let wanted: BTreeMap<&str, &str> = acts.iter().copied().collect();
            let is_so = |(hook, act): (&String, &toml::Value)| {
                act.as_str() == Some(wanted.get(hook.as_str()).copied().unwrap_or("pass"))
            };
            ensure!(now.len() == HOOKS.len() && now.iter().all(is_so), "{body}");
            Ok(Some(()))
        })
        .unwrap();
    }

    fn call(&self, path: &str) -> (u32, String) {
        call(&self.node.home, "messaging", path).unwrap()
    }

    /// What no hook stands before answers, and the node's own process is the one that it was.
    fn others_are_well(&self) {
        assert_eq!(call(&self.node.home, "files", "/shares").unwrap().0, 200);
        assert_eq!(self.node.child_pid("noded").unwrap(), self.noded);
    }

    /// As `openred hooks` shows it.
    fn shown(&self, id: &str) -> Result<Value> {
        let hooks = self.node.cli(&["hooks"])?.json()?;
        let points = hooks["points"].as_array().context("no points")?;
        let all = points.iter().filter_map(|point| point["hooks"].as_array()).flatten();
        let hook = all.into_iter().find(|hook| hook["module"] == "guard" && hook["id"] == id);
        hook.cloned().with_context(|| format!("no {id} in {hooks}"))
    }
}

#[test]
fn a_hook_that_fails_closes_or_opens_by_its_class_and_harms_nothing_else() {
    let (mut stage, _desk) = Stage::new();
    for path in [CLOSED, OPEN, SLOW] {
        assert_eq!(stage.call(path).0, 200, "{path}");
    }
    let closed = [
        ("hang", 504, "hook-timed-out"),
        ("fail", 503, "hook-failed"),
        ("deny", 403, "hook-denied"),
        ("garbage", 503, "hook-failed"),
        ("abort", 503, "hook-failed"),
    ];
    for hook in ["authn", "authz", "shut"] {
        for (act, status, code) in closed {
            stage.become_so(&[(hook, act)]);
            let (said, body) = stage.call(CLOSED);
            assert!(said == status && body.contains(code), "{hook} {act}: {said} {body}");
            assert!(body.contains(&format!("guard/{hook}")), "the blame has a name: {body}");
            stage.others_are_well();
        }
    }
    // What an answer waited for stands beside it.
    stage.become_so(&[]);
    let said = stage.node.cli(&["module", "call", "messaging", "GET", CLOSED, "--cost"]).unwrap().ok().unwrap();
    let timing = said.stderr.lines().find(|line| line.starts_with("Server-Timing: ")).unwrap();
    for name in ["guard.authn;dur=", "guard.authz;dur=", "guard.shut;dur=", "messaging;dur="] {
        assert!(timing.contains(name), "{timing}");
    }
    // Of two answers the first counts; the second ends the attachment by name. It is the last of its module's before the call.
    stage.become_so(&[("shut", "twice")]);
    assert_eq!(stage.call(CLOSED).0, 200);
    wait_for("the fault's name", || {
        let logged = stage.node.daemon()?.output();
        Ok(logged.contains("answered a call twice").then_some(()))
    })
    .unwrap();
    for hook in ["open", "watch"] {
        for act in ["hang", "fail", "garbage", "abort"] {
            stage.become_so(&[(hook, act)]);
            assert_eq!(stage.call(OPEN).0, 200, "{hook} {act}");
            stage.others_are_well();
        }
    }
    // Its process ends whenever it is told of a call: once it stays down, closed hooks stay closed, and say why.
    wait_for("the quarantine", || {
        stage.call(OPEN);
        let named = status(&stage.node)?["node"]["conditions"].to_string();
        Ok(named.contains("module.quarantined").then_some(()))
    })
    .unwrap();
    let (said, body) = stage.call(CLOSED);
    assert!(said == 503 && body.contains("hook-failed") && body.contains("guard/authn"), "{said} {body}");
    stage.become_so(&[]);
    wait_for("its return", || Ok((stage.call(CLOSED).0 == 200).then_some(()))).unwrap();
}

#[test]
fn all_hooks_of_a_call_have_a_time_and_one_that_fails_again_and_again_is_left_alone() {
    let (mut stage, _desk) = Stage::new();
    stage.become_so(&[("slow-1", "hang"), ("slow-2", "hang"), ("slow-3", "hang")]);
    let (said, body) = stage.call(SLOW);
    assert_eq!(said, 504, "{body}");
    assert!(body.contains("250 ms for all hooks were over before guard/last had decided"), "{body}");
    assert_eq!(stage.shown("last").unwrap()["last_failure"], "budget");
    // Five failures in a row: it is not waited for any more, and that is shown.
    stage.become_so(&[("authz", "fail")]);
    wait_for("the breaker", || {
        let (_, body) = stage.call(CLOSED);
        Ok(body.contains("it failed too often and is left alone for a while").then_some(()))
    })
    .unwrap();
    let shown = stage.shown("authz").unwrap();
    assert_ne!(shown["breaker"], "closed", "{shown}");
    assert!(shown["failed"].as_u64() >= Some(5) && shown["on_failure"] == "close", "{shown}");
    let named = status(&stage.node).unwrap()["node"]["conditions"].to_string();
    assert!(named.contains("hook.off") && named.contains("guard/authz"), "{named}");
    stage.others_are_well();
    stage.become_so(&[]);
    wait_for("its return", || Ok((stage.call(CLOSED).0 == 200).then_some(()))).unwrap();
    assert_eq!(stage.shown("authz").unwrap()["breaker"], "closed");
}

#[test]
fn a_hook_that_is_asked_too_much_at_once_says_so() {
    let (mut stage, _desk) = Stage::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = stage.node.home.join("run/admin/admin.sock");
    let place = format!("unix://{}", socket.display());
    let connect = |_| {
        let endpoint = Endpoint::from_shared(place.clone()).unwrap();
        async move { endpoint.connect().await }
    };
    let channels: Vec<Channel> =
        runtime.block_on(join_all((0..4).map(connect))).into_iter().map(Result::unwrap).collect();
    let mut seen = false;
    // A machine that is too slow to ask enough at once within the time of one question tries again.
    for _ in 0..10 {
        stage.become_so(&[("flood", "hang")]);
        // Each module has places for 32 calls of the operator; the hook, which is asked about both, has 32 in all.
        let calls = (0..64).map(|number: usize| one(channels[number % 4].clone(), ["messaging", "files"][number % 2]));
        let bodies = runtime.block_on(join_all(calls));
        seen = bodies.iter().any(|body| body.contains("it is asked too much at once"));
        stage.others_are_well();
        stage.become_so(&[]);
        wait_for("its return", || Ok((stage.call(FLOOD).0 == 404).then_some(()))).unwrap();
        if seen {
            break;
        }
    }
    assert!(seen);
}

async fn one(channel: Channel, module: &str) -> String {
    let head = ModuleRequestHead {
        module: module.to_owned(),
        method: "GET".to_owned(),
        path: FLOOD.to_owned(),
        ..ModuleRequestHead::default()
    };
    let frame = ModuleRequestFrame { head: Some(head), ..ModuleRequestFrame::default() };
    let mut frames = NodeClient::new(channel).call_module(tokio_stream::once(frame)).await.unwrap().into_inner();
    let mut body = Vec::new();
    while let Ok(Some(frame)) = frames.message().await {
        body.extend_from_slice(&frame.body);
    }
    String::from_utf8_lossy(&body).into_owned()
}

#[test]
fn an_install_whose_hooks_have_no_order_or_whose_name_is_taken_is_refused() {
    let (stage, desk) = Stage::new();
    let program = binaries().unwrap().join("openred-guard-module");
    let hook = |id: &str, more: &str| {
        format!(
            "\n[[hook]]\nid = \"{id}\"\npoint = \"operator\"\nclass = \"transform\"\nreason = \"r\"\n{more}\nmatch = {{ modules = [\"files\"] }}\n"
        )
    };
    let order = "before = [\"guard/slow-1\"]\nafter = [\"guard/last\"]";
    let package = desk.pack(&manifest("cycle", &hook("turn", order)), &program, "").unwrap();
    let install = ["install", &text(&package), "--publisher", &desk.publisher];
    let said = refused(&stage.node, &install, "package.cycle");
    for name in ["cycle/turn", "guard/slow-1", "guard/last"] {
        assert!(said.stderr.contains(name), "{}", said.stderr);
    }
    let package = desk.pack(&manifest("files", ""), &program, "").unwrap();
    let said = refused(&stage.node, &["install", &text(&package), "--publisher", &desk.publisher], "package.taken");
    assert!(said.stderr.contains("files"), "{}", said.stderr);
    // One that stands in an order is added to it, and gone with its module.
    let package = desk.pack(&manifest("other", &hook("late", "after = [\"guard/last\"]")), &program, "").unwrap();
    module(&stage.node, &["install", &text(&package), "--publisher", &desk.publisher, "--approve"]).unwrap();
    let names = || -> Result<Vec<String>> {
        let hooks = stage.node.cli(&["hooks"])?.json()?;
        let points = hooks["points"].as_array().cloned().unwrap_or_default();
        let all = points.into_iter().filter_map(|point| point["hooks"].as_array().cloned()).flatten();
        Ok(all.map(|hook| format!("{}/{}", hook["module"], hook["id"]).replace('"', "")).collect())
    };
    wait_for("the hook in its place", || {
        let names = names()?;
        let place = |wanted: &str| names.iter().position(|name| name == wanted);
        Ok((place("other/late").is_some() && place("guard/last") < place("other/late")).then_some(()))
    })
    .unwrap();
    // Disabled, its calls pass again: `other` is another program than it says, and its hook closed them, while it is started once more by its time.
    let closed = call(&stage.node.home, "files", "/shares").unwrap();
    assert!(matches!(closed.0, 503 | 504), "{closed:?}");
    module(&stage.node, &["disable", "other"]).unwrap();
    wait_for("its leave", || Ok((!names()?.contains(&"other/late".to_owned())).then_some(()))).unwrap();
    stage.others_are_well();
    drop(stage.world);
}
