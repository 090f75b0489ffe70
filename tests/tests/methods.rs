//! Methods that modules describe, and what modules sign, seal and ask of each other, with the real programs: two nodes whose files module is
//! another (`openred-omega`), in its cage.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use openred_proto::admin::node_client::NodeClient;
use openred_proto::admin::{ModuleRequestFrame, ModuleRequestHead};
use openred_tests::harness::{Node, binaries, lay_out, wait_for};
use openred_tests::world::{World, inbox, registered, status};
use serde_json::Value;
use tonic::transport::Endpoint;

const OMEGA: &str = "files/omega";

/// A folder of programs whose files module is the tests' own.
fn programs(world: &World) -> PathBuf {
    let folder = world.path().join("programs");
    lay_out(&folder, "openred-files", &binaries().unwrap().join("openred-omega")).unwrap();
    folder
}

fn node(world: &World, name: &str, programs: &std::path::Path) -> Node {
    let mut node = world.init(name, "[links]\nincoming = \"open\"\n").unwrap();
    node.run_from(programs);
    // The refused method is a warning in its status.
    node.up_without_answers().unwrap();
    registered(&node).unwrap();
    node
}

fn method(node: &Node, name: &str) -> Result<Value> {
    let list = node.cli(&["method", "list"])?.json()?;
    let methods = list["methods"].as_array().context("method list prints methods")?;
    methods.iter().find(|method| method["name"] == name).cloned().with_context(|| format!("no {name} in {list}"))
}

fn decide(node: &Node, word: &str, method: &str) {
    node.cli(&["method", word, method]).unwrap().ok().unwrap();
}

/// The newest link with a peer, as this node has it.
fn newest(node: &Node, peer: &Node) -> Result<Value> {
    let list = node.cli(&["link", "list"])?.json()?;
    let links = list["links"].as_array().context("link list prints links")?;
    let mut of_peer = links.iter().filter(|link| link["peer"] == peer.id.as_str());
    of_peer.next_back().cloned().context("no link")
}

/// Waits until both sides use one link with this method.
fn both_use(one: &Node, other: &Node, method: &str) {
    wait_for("a link with the method that both use", || {
        let (mine, theirs) = (newest(one, other)?, newest(other, one)?);
        ensure!(mine["link_id"] == theirs["link_id"], "{mine} {theirs}");
        ensure!(mine["state"] == "active" && theirs["state"] == "active", "{mine} {theirs}");
        ensure!(mine["method"] == method && theirs["method"] == method, "{mine} {theirs}");
        Ok(Some(()))
    })
    .unwrap();
}

/// A call of an operator route of the module.
fn operator(node: &Node, path: &str, body: &str) -> Result<(u32, String)> {
    let socket = node.home.join("run/admin/admin.sock");
    let head = ModuleRequestHead {
        module: "files".into(),
        method: "POST".into(),
        path: path.into(),
        content_type: "text/plain".into(),
        idempotency_key: vec![7; 16].into(),
    };
    let frame = ModuleRequestFrame { head: Some(head), body: body.to_owned().into() };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://node").connect_with_connector(connector).await?;
        let frames = tokio_stream::iter([frame]);
        let mut answer = NodeClient::new(channel).call_module(frames).await?.into_inner();
        let first = answer.message().await?.context("an answer")?;
        let (head, mut text) = (first.head.context("a head")?, first.body.to_vec());
        while let Some(frame) = answer.message().await? {
            text.extend_from_slice(&frame.body);
        }
        Ok((head.status, String::from_utf8(text)?))
    })
}

#[test]
fn two_nodes_use_a_modules_method_until_one_does_without() {
    let world = World::start().unwrap();
    let programs = programs(&world);
    let (mut alice, bob) = (node(&world, "alice", &programs), node(&world, "bob", &programs));
    for node in [&alice, &bob] {
        let omega = wait_for("the method", || method(node, OMEGA).map(Some)).unwrap();
        assert_eq!((&omega["allowed"], &omega["module"]), (&false.into(), &"files".into()), "off until it is allowed");
        assert_eq!(omega["transform"], "feistel, rotation");
        // What is too weak is named, and not there.
        assert!(method(node, "files/brittle").is_err());
        let conditions = status(node).unwrap()["node"]["conditions"].clone();
        let named = conditions.as_array().unwrap().iter().find(|condition| condition["code"] == "method.refused");
        let detail = named.unwrap()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("files") && detail.contains("method-tag-length"), "{detail}");
    }
    // Nothing in common but the module's method.
    for (node, others) in [(&alice, ["beta", "gamma", "delta"]), (&bob, ["alpha", "gamma", "delta"])] {
        decide(node, "allow", OMEGA);
        others.into_iter().for_each(|other| decide(node, "disable", other));
    }
    wait_for("a link, once the cards say so", || {
        let asked = alice.cli(&["link", "request", &bob.id])?;
        let link = newest(&alice, &bob).with_context(|| format!("{asked:?}"))?;
        if link["method"] != OMEGA {
            // Offered by a card from before: Bob leaves it.
            alice.cli(&["link", "revoke", link["link_id"].as_str().context("an id")?])?.ok()?;
        }
        Ok((link["method"] == OMEGA).then_some(()))
    })
    .unwrap();
    both_use(&alice, &bob, OMEGA);
    alice.cli(&["send", &bob.id, "under omega"]).unwrap().ok().unwrap();
    wait_for("the message", || Ok((inbox(&bob)? == ["under omega"]).then_some(()))).unwrap();

    // Bob does without it: the link is renewed with what both allow now.
    decide(&bob, "allow", "alpha");
    decide(&bob, "disable", OMEGA);
    both_use(&alice, &bob, "alpha");
    bob.cli(&["send", &alice.id, "under alpha"]).unwrap().ok().unwrap();
    wait_for("the message", || Ok((inbox(&alice)? == ["under alpha"]).then_some(()))).unwrap();
    let trail = alice.cli(&["audit", "export"]).unwrap().ok().unwrap().stdout;
    assert!(trail.contains("method.registered"), "{trail}");

    // Its module is gone: the method is retired, whatever the operator had said.
    alice.down().unwrap();
    alice.run_from(&binaries().unwrap());
    alice.up().unwrap();
    wait_for("the method's retirement", || {
        let omega = method(&alice, OMEGA)?;
        Ok((omega["retired"] == true && omega["allowed"] == false).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_caged_module_signs_seals_and_calls_others() {
    let world = World::start().unwrap();
    let programs = programs(&world);
    let (alice, bob) = (node(&world, "alice", &programs), node(&world, "bob", &programs));
    openred_tests::world::link(&alice, &bob).unwrap();
    let told = operator(&alice, &format!("/tell/{}", bob.id), "that it rains").unwrap();
    assert_eq!(told, (200, "heard that it rains".into()));
    assert_eq!(operator(&alice, "/seal", "a secret of the module's").unwrap(), (200, "sealed".into()));
    assert_eq!(operator(&alice, "/call/messaging", "").unwrap().1, "answered 404", "it has no route for modules");
    assert_eq!(operator(&alice, "/call/files", "").unwrap().1, "Cycle");
    assert_eq!(operator(&alice, "/call/absent", "").unwrap().1, "NoModule");
    let trail = alice.cli(&["audit", "export"]).unwrap().ok().unwrap().stdout;
    assert!(trail.contains("module.signed") && trail.contains("seal_key.given"), "{trail}");
}
