//! The module `monitor` on a real node: graph, figures and alerts, over the operator's commands and over real HTTP, with what a hostile program
//! on the same machine sends.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::sync_channel;

use anyhow::ensure;
use nix::sys::ptrace;
use nix::unistd::Pid;
use openred_tests::harness::{Node, PATIENCE, free_port, is_root, wait_for};
use openred_tests::world::{World, status};
use serde_json::Value;

/// A node whose page is served.
fn served(world: &World) -> (Node, SocketAddr) {
    let address = free_port().unwrap();
    let mut node = world.init("alice", &format!("[monitor]\nlisten = \"{address}\"\n")).unwrap();
    node.up().unwrap();
    openred_tests::world::registered(&node).unwrap();
    (node, address)
}

fn dialled(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What comes back for these bytes until the other side ends.
fn sent(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = dialled(address);
    // Who refuses may do so before all of it has gone.
    let _ = stream.write_all(bytes);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

fn get(address: SocketAddr, path: &str, host: &str) -> String {
    sent(address, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
}

fn page(address: SocketAddr) -> String {
    get(address, "/metrics", &address.to_string())
}

/// The node's condition of this code, if it holds.
fn condition(node: &Node, code: &str) -> Option<Value> {
    let status = status(node).unwrap();
    let conditions = status["node"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["code"] == code)
}

#[test]
fn the_graph_the_figures_and_health_agree() {
    let world = World::start().unwrap();
    let (node, address) = served(&world);
    // A look is told again for two seconds, and the first was made while the node was being started.
    let graph = wait_for("a node that is well", || {
        let graph = node.cli(&["monitor", "graph"])?.json()?;
        ensure!(graph["state"] == "ok", "{graph}");
        Ok(Some(graph))
    });
    let graph = graph.unwrap();
    let ids: Vec<&str> = graph["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect();
    for id in ["node", "process:vault", "process:noded", "process:module monitor", "module:files", "supervisor"] {
        assert!(ids.contains(&id), "{id} is not among {ids:?}");
    }
    assert!(ids.iter().filter(|id| id.starts_with("layer:vault/")).count() >= 10, "{ids:?}");
    assert!(ids.iter().any(|id| id.starts_with("directory:http")));
    let page = page(address);
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("text/plain; version=0.0.4"), "{page}");
    for line in
        ["openred_health 0", "openred_process_up{process=\"vault\"} 1", "openred_module_up{module=\"monitor\"} 1"]
    {
        assert!(page.lines().any(|own| own == line), "{line} is not in {page}");
    }
    assert!(!page.contains("openred_layer_on{process=\"vault\",layer=\"seccomp\"} 0") && !page.contains("did:key"));
    let printed = node.cli(&["monitor", "metrics"]).unwrap().json().unwrap();
    assert!(printed["page"].as_str().unwrap().contains("openred_process_up{process=\"vault\"} 1"));
    let health = get(address, "/health", &format!("localhost:{}", address.port()));
    assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("{\"state\":\"ok\"}"), "{health}");
    assert_eq!(node.cli(&["monitor", "alerts"]).unwrap().json().unwrap()["alerts"], Value::Array(Vec::new()));
}

#[test]
fn it_serves_nobody_unless_told_and_is_refused_where_all_could_reach_it() {
    let world = World::start().unwrap();
    let mut node = world.init("alice", "").unwrap();
    node.up().unwrap();
    assert_eq!(node.cli(&["monitor", "graph"]).unwrap().json().unwrap()["v"], 1);
    node.down().unwrap();
    for address in ["0.0.0.0:7692", "127.0.0.1:80", "nonsense"] {
        let set = format!("monitor.listen={address}");
        let refused = node.cli(&["--set", &set, "config", "show"]).unwrap();
        assert_eq!(refused.code, 78, "{address}: {}{}", refused.stdout, refused.stderr);
    }
}

#[test]
fn other_names_other_paths_and_garbage_get_nothing() {
    let world = World::start().unwrap();
    let (node, address) = served(&world);
    let own = address.to_string();
    for host in ["evil.example", "evil.example:80", "127.0.0.1", "a@127.0.0.1", ""] {
        assert!(get(address, "/metrics", host).starts_with("HTTP/1.1 421"), "{host}");
    }
    for path in ["/", "/graph", "/alerts", "/metrics/", "/../metrics", "//metrics"] {
        assert!(get(address, path, &own).starts_with("HTTP/1.1 404"), "{path}");
    }
    let head = |line: &str| format!("{line} HTTP/1.1\r\nHost: {own}\r\nConnection: close\r\n");
    let posted = sent(address, format!("{}Content-Length: 5\r\n\r\nhello", head("POST /metrics")).as_bytes());
    assert!(posted.starts_with("HTTP/1.1 405"), "{posted}");
    let long = sent(address, format!("{}X: {}\r\n\r\n", head("GET /metrics"), "x".repeat(100_000)).as_bytes());
    assert!(long.is_empty() || long.starts_with("HTTP/1.1 431"), "{long}");
    for garbage in
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0; 5000], b"\r\n\r\n\r\n"]
    {
        let mut stream = dialled(address);
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(!String::from_utf8_lossy(&said).contains(" 200 "), "{garbage:?}");
    }
    assert!(page(address).starts_with("HTTP/1.1 200"));
    assert_eq!(node.cli(&["monitor", "graph"]).unwrap().code, 0, "and the module goes on");
}

#[test]
fn heads_that_do_not_come_are_ended_and_more_connections_than_places_too() {
    let world = World::start().unwrap();
    let (_node, address) = served(&world);
    let mut slow: Vec<TcpStream> = (0..40).map(|_| dialled(address)).collect();
    for stream in &mut slow {
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHo");
    }
    // All of them end although their clients do not: those beyond the places at once, the others when their time is over.
    for mut stream in slow {
        let mut said = Vec::new();
        match stream.read_to_end(&mut said) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        assert!(!String::from_utf8_lossy(&said).contains(" 200 "));
    }
    wait_for("places", || Ok(page(address).starts_with("HTTP/1.1 200").then_some(()))).unwrap();
}

#[test]
fn iso_a_layer_that_goes_off_is_an_alert_until_it_is_on_again() {
    let world = World::start().unwrap();
    let (mut node, address) = served(&world);
    assert!(condition(&node, "module.alert").is_none(), "the control");
    let vault = Pid::from_raw(i32::try_from(node.child_pid("vault").unwrap()).unwrap());
    let (hold, held) = sync_channel::<()>(1);
    let (done, seized) = sync_channel(1);
    let tracer = std::thread::spawn(move || {
        done.send(ptrace::seize(vault, ptrace::Options::empty())).unwrap();
        // Its end is the end of the trace.
        let _ = held.recv();
    });
    if !is_root() {
        assert_eq!(seized.recv().unwrap(), Err(nix::Error::EPERM), "the user's other programs do not get there");
        drop(hold);
        return tracer.join().unwrap();
    }
    seized.recv().unwrap().unwrap();
    wait_for("the alert", || Ok(condition(&node, "module.alert"))).unwrap();
    let alert = condition(&node, "module.alert").unwrap();
    assert_eq!(alert["severity"], "error");
    assert!(alert["detail"].as_str().unwrap().contains("vault lacks the layer untraced"), "{alert}");
    let graph = node.cli(&["monitor", "graph"]).unwrap();
    assert_eq!(graph.code, 3);
    let graph: Value = serde_json::from_str(graph.stdout.trim()).unwrap();
    assert_eq!(graph["state"], "error");
    assert!(page(address).contains("openred_layer_on{process=\"vault\",layer=\"untraced\"} 0"));
    assert!(get(address, "/health", &address.to_string()).starts_with("HTTP/1.1 503"));
    drop(hold);
    tracer.join().unwrap();
    wait_for("its end", || Ok(condition(&node, "module.alert").is_none().then_some(()))).unwrap();
    let alerts = node.cli(&["monitor", "alerts"]).unwrap().json().unwrap();
    assert!(alerts["alerts"][0]["until"].is_u64(), "{alerts}");
    let log = node.daemon().unwrap().output();
    assert!(log.contains("vault/untraced") && log.contains("module.alert"), "{log}");
}
