//! The health graph: what the node is made of, how each part is, and what it depends on. A part is as bad as the worst that it needs.

use std::collections::{BTreeMap, BTreeSet};

use openred_module::{ConditionState, DirectoryState, ModuleState, NodeStatus, ProcessState, UnixMillis};
use serde::{Deserialize, Serialize};

/// Version of the document.
pub(crate) const VERSION: u32 = 1;
/// The id of the whole node.
const NODE: &str = "node";
/// The id of the supervisor, which is where processes are seen from.
const SUPERVISOR: &str = "supervisor";

/// How a part is, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warning,
    /// Nobody could look.
    Unknown,
    /// It does not do what it is there for, or is not safe.
    Error,
}

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The whole.
    Node,
    /// A process.
    Process,
    /// A layer of a process's cage.
    Layer,
    /// A directory.
    Directory,
    /// All links of one state.
    Links,
    /// A module.
    Module,
    /// A condition that holds.
    Condition,
}

/// A part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Unlike any other's.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// How it is, with all that it depends on.
    pub state: State,
    /// Why, in a sentence; of a part that is well, what there is to say of it, or nothing.
    pub reason: String,
    /// Since when, where that is known.
    pub since: Option<UnixMillis>,
    /// Ids of what it needs.
    pub depends_on: Vec<String>,
}

/// The graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graph {
    /// Version of this document.
    pub v: u32,
    /// How the node is.
    pub state: State,
    /// When the processes were looked at from outside; nothing: they were not.
    pub seen_at: Option<UnixMillis>,
    /// Its parts.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// Of a status.
    #[must_use]
    pub fn of(status: &NodeStatus) -> Self {
        let mut nodes = vec![supervisor(status)];
        status.processes.iter().for_each(|process| add_process(&mut nodes, process));
        nodes.extend(status.directories.iter().map(directory));
        let counts = status.links.iter().map(|count| (&count.state, count.links));
        nodes.extend(counts.map(|(state, links)| {
            let needs = present(status, &["noded", "front"]);
            part(&format!("links:{state}"), Kind::Links, State::Ok, format!("{links}"), None, needs)
        }));
        nodes.extend(status.modules.iter().map(|at| module(status, at)));
        nodes.extend(status.conditions.iter().map(|at| condition(status, at)));
        let all = nodes.iter().filter(|node| node.kind != Kind::Layer).map(|node| node.id.clone()).collect();
        nodes.push(part(NODE, Kind::Node, State::Ok, String::new(), Some(status.started_at), all));
        settle(&mut nodes);
        let state = nodes.last().map_or(State::Unknown, |node| node.state);
        Self { v: VERSION, state, seen_at: status.seen_at, nodes }
    }
}

fn part(
    id: &str,
    kind: Kind,
    state: State,
    reason: String,
    since: Option<UnixMillis>,
    depends_on: Vec<String>,
) -> Node {
    Node { id: id.to_owned(), kind, state, reason, since, depends_on }
}

fn process_id(name: &str) -> String {
    format!("process:{name}")
}

/// Ids of those of these processes that there are.
fn present(status: &NodeStatus, names: &[&str]) -> Vec<String> {
    let is_there = |name: &&&str| status.processes.iter().any(|process| process.name == **name);
    names.iter().filter(is_there).map(|name| process_id(name)).collect()
}

fn supervisor(status: &NodeStatus) -> Node {
    let (state, reason) = match status.seen_at {
        Some(_) => (State::Ok, String::new()),
        None => (State::Unknown, String::from("it did not say in time how the processes are")),
    };
    part(SUPERVISOR, Kind::Process, state, reason, status.seen_at, Vec::new())
}

/// A process and the layers of its cage.
fn add_process(nodes: &mut Vec<Node>, process: &ProcessState) {
    let (state, reason) = match process.state.as_str() {
        "ready" | "done" => (State::Ok, String::new()),
        "locked" => (State::Warning, String::from("the operator locked the keys")),
        "down" => (State::Error, String::from("it does not run")),
        other => (State::Warning, format!("it is {other}")),
    };
    let mut needs: Vec<String> = Vec::new();
    for layer in &process.layers {
        let id = format!("layer:{}/{}", process.name, layer.name);
        // What is seen now and what was seen at the start may have one name: the worse counts.
        if let Some(known) = nodes.iter_mut().find(|node| node.id == id) {
            if !layer.on {
                (known.state, known.reason) = (State::Error, layer.detail.clone());
            }
            continue;
        }
        let state = if layer.on { State::Ok } else { State::Error };
        nodes.push(part(&id, Kind::Layer, state, layer.detail.clone(), None, Vec::new()));
        needs.push(id);
    }
    needs.push(SUPERVISOR.to_owned());
    // The front is nothing without the vault, and `noded` can open no session without the front.
    match process.name.as_str() {
        "front" => needs.push(process_id("vault")),
        "noded" => needs.push(process_id("front")),
        _ => {}
    }
    nodes.push(part(&process_id(&process.name), Kind::Process, state, reason, Some(process.since), needs));
}

fn directory(at: &DirectoryState) -> Node {
    let state = match at.state.as_str() {
        "registered" => State::Ok,
        // Linked peers stay reachable without any.
        _ => State::Warning,
    };
    let reason = match at.detail.as_str() {
        "" => at.state.clone(),
        detail => format!("{}: {detail}", at.state),
    };
    part(&format!("directory:{}", at.url), Kind::Directory, state, reason, Some(at.since), Vec::new())
}

fn module(status: &NodeStatus, at: &ModuleState) -> Node {
    let process = format!("module {}", at.id);
    let (state, reason) = match (at.state.as_str(), at.version.as_str()) {
        // Nobody needs it.
        ("asleep", _) => (State::Ok, String::from("it sleeps; the next call starts it")),
        ("starting", "") => (State::Warning, String::from("it is being started")),
        (_, "") => (State::Error, String::from("it does not run now")),
        (_, version) => (State::Ok, version.to_owned()),
    };
    part(&format!("module:{}", at.id), Kind::Module, state, reason, None, present(status, &[&process, "noded"]))
}

fn condition(status: &NodeStatus, at: &ConditionState) -> Node {
    let state = if at.severity == "error" { State::Error } else { State::Warning };
    let holds = |code: &&String| status.conditions.iter().any(|other| other.code == **code && other.code != at.code);
    let causes = at.depends_on.iter().filter(holds).map(|code| format!("condition:{code}")).collect();
    part(&format!("condition:{}", at.code), Kind::Condition, state, at.detail.clone(), Some(at.since), causes)
}

/// Makes each part as bad as the worst that it needs, directly or through others, and says which that is.
fn settle(nodes: &mut [Node]) {
    let own: BTreeMap<String, (State, Vec<String>)> =
        nodes.iter().map(|node| (node.id.clone(), (node.state, node.depends_on.clone()))).collect();
    for node in nodes {
        let mut seen = BTreeSet::from([node.id.clone()]);
        let mut waiting = node.depends_on.clone();
        let (mut worst, mut cause) = (node.state, None);
        while let Some(id) = waiting.pop() {
            let Some((state, needs)) = own.get(&id) else { continue };
            if !seen.insert(id.clone()) {
                continue;
            }
            if *state > worst {
                (worst, cause) = (*state, Some(id));
            }
            waiting.extend(needs.iter().cloned());
        }
        node.depends_on.retain(|id| own.contains_key(id));
        if let Some(cause) = cause {
            (node.state, node.reason) = (worst, format!("because of {cause}"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_module::{LayerState, LinkCount};

    use super::*;

    fn process(name: &str, state: &str, off: &[&str]) -> ProcessState {
        let layer = |name: &str| LayerState {
            name: name.to_owned(),
            on: !off.contains(&name),
            detail: if off.contains(&name) { String::from("expected a, seen b") } else { String::new() },
        };
        let layers = ["seccomp", "landlock", "seccomp"].map(layer).into();
        ProcessState { name: name.to_owned(), state: state.to_owned(), restarts: 0, since: 5, layers }
    }

    fn status(off: &[&str]) -> NodeStatus {
        NodeStatus {
            started_at: 1,
            links: vec![LinkCount { state: "active".into(), links: 3 }],
            modules: vec![ModuleState { id: "files".into(), version: "0.1.0".into(), state: "serving".into() }],
            processes: vec![
                process("front", "ready", &[]),
                process("vault", "ready", off),
                process("noded", "ready", &[]),
                process("module files", "ready", &[]),
            ],
            seen_at: Some(9),
            ..NodeStatus::default()
        }
    }

    fn state(graph: &Graph, id: &str) -> (State, String) {
        let node = graph.nodes.iter().find(|node| node.id == id).unwrap();
        (node.state, node.reason.clone())
    }

    #[test]
    fn a_node_without_fault_is_well_in_all_its_parts() {
        let graph = Graph::of(&status(&[]));
        assert_eq!(graph.state, State::Ok);
        assert!(graph.nodes.iter().all(|node| node.state == State::Ok), "{graph:?}");
        let known: Vec<&str> = graph.nodes.iter().map(|node| node.id.as_str()).collect();
        assert_eq!(known.len(), known.iter().collect::<BTreeSet<_>>().len(), "each id once");
        assert!(graph.nodes.iter().flat_map(|node| &node.depends_on).all(|id| known.contains(&id.as_str())));
    }

    #[test]
    fn a_layer_that_is_off_is_an_error_of_all_that_stands_on_it() {
        let graph = Graph::of(&status(&["landlock"]));
        assert_eq!(state(&graph, "layer:vault/landlock"), (State::Error, "expected a, seen b".into()));
        for id in ["process:vault", "process:front", "process:noded", "links:active", "module:files", "node"] {
            let (state, reason) = state(&graph, id);
            assert_eq!((state, reason.as_str()), (State::Error, "because of layer:vault/landlock"), "{id}");
        }
        assert_eq!(state(&graph, "process:module files").0, State::Ok);
        assert_eq!(state(&graph, "layer:vault/seccomp").0, State::Ok);
    }

    #[test]
    fn conditions_name_their_cause_and_a_circle_ends() {
        let condition = |code: &str, severity: &str, needs: &str| ConditionState {
            code: code.into(),
            severity: severity.into(),
            detail: String::from("x"),
            depends_on: vec![needs.into()],
            since: 1,
        };
        let conditions = vec![condition("a.b", "warning", "c.d"), condition("c.d", "error", "a.b")];
        let graph = Graph::of(&NodeStatus { conditions, ..status(&[]) });
        assert_eq!(state(&graph, "condition:a.b"), (State::Error, "because of condition:c.d".into()));
        assert_eq!(state(&graph, "condition:c.d"), (State::Error, "x".into()));
        assert_eq!(graph.state, State::Error);
    }

    #[test]
    fn a_module_that_sleeps_is_well_and_one_that_is_away_is_not() {
        let with = |word: &str| {
            let modules = vec![ModuleState { id: "files".into(), version: String::new(), state: word.into() }];
            let graph = Graph::of(&NodeStatus { modules, ..status(&[]) });
            (graph.state, state(&graph, "module:files").0)
        };
        assert_eq!(with("asleep"), (State::Ok, State::Ok));
        assert_eq!(with("starting"), (State::Warning, State::Warning));
        for word in ["away", "quarantined", ""] {
            assert_eq!(with(word), (State::Error, State::Error), "{word}");
        }
    }

    #[test]
    fn what_nobody_saw_is_unknown_and_not_well() {
        let graph = Graph::of(&NodeStatus { processes: Vec::new(), seen_at: None, ..status(&[]) });
        assert_eq!((graph.state, state(&graph, "supervisor").0), (State::Unknown, State::Unknown));
    }
}
