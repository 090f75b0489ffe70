//! The page for Prometheus (text exposition, 0.0.4). Labels are names of processes, layers, modules, states and codes: each comes from a list
//! that the node itself has, so there are never more series than those lists are long. No peer, address or text becomes one.

use std::fmt::{Display, Write as _};

use openred_module::NodeStatus;

use crate::graph::{Graph, State};

/// Writes families one after the other.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{}\"", if place == 0 { '{' } else { ',' }, escaped(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// As a label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The page.
pub(crate) fn page(status: &NodeStatus) -> String {
    let mut page = Page(String::new());
    let health = match Graph::of(status).state {
        State::Ok => 0,
        State::Warning => 1,
        State::Unknown => 2,
        State::Error => 3,
    };
    page.single("openred_health", "gauge", "0 well, 1 warning, 2 unknown, 3 error.", health);
    page.single("openred_start_time_seconds", "gauge", "When noded was started.", seconds(status.started_at));
    let seen = status.seen_at.map_or(0.0, seconds);
    page.single("openred_seen_time_seconds", "gauge", "When the cages were last looked at; 0: they were not.", seen);
    page.single("openred_sessions", "gauge", "Sessions that are open.", status.sessions);
    let operations = status.key_operations;
    page.single("openred_key_operations_total", "counter", "Operations of the key process.", operations);
    page.family("openred_links", "gauge", "Links by state.");
    status.links.iter().for_each(|at| page.sample("openred_links", &[("state", &at.state)], at.links));
    directories(&mut page, status);
    page.family("openred_module_up", "gauge", "Whether a module runs, or sleeps until the next call starts it.");
    for module in &status.modules {
        let up = !module.version.is_empty() || module.state == "asleep";
        page.sample("openred_module_up", &[("module", &module.id)], u8::from(up));
    }
    page.family("openred_condition", "gauge", "Conditions that hold; their codes are in docs/errors.md.");
    for condition in &status.conditions {
        page.sample("openred_condition", &[("code", &condition.code), ("severity", &condition.severity)], 1);
    }
    processes(&mut page, status);
    page.0
}

fn directories(page: &mut Page, status: &NodeStatus) {
    page.family("openred_directories", "gauge", "Directories by state.");
    for state in ["registered", "unreachable", "refused", "starting"] {
        let count = status.directories.iter().filter(|at| at.state == state).count();
        page.sample("openred_directories", &[("state", state)], count);
    }
}

fn processes(page: &mut Page, status: &NodeStatus) {
    page.family("openred_process_up", "gauge", "Whether a process is ready.");
    for process in &status.processes {
        page.sample("openred_process_up", &[("process", &process.name)], u8::from(process.state == "ready"));
    }
    page.family("openred_process_restarts_total", "counter", "How often a process was started again.");
    for process in &status.processes {
        page.sample("openred_process_restarts_total", &[("process", &process.name)], process.restarts);
    }
    page.family("openred_layer_on", "gauge", "Whether a layer of a process's cage is as it must be.");
    for process in &status.processes {
        let mut layers: Vec<(&str, bool)> = Vec::new();
        for layer in &process.layers {
            // One series a name: what is seen now and what was seen at the start may share it.
            match layers.iter_mut().find(|(name, _)| *name == layer.name) {
                Some((_, on)) => *on &= layer.on,
                None => layers.push((&layer.name, layer.on)),
            }
        }
        for (name, on) in layers {
            page.sample("openred_layer_on", &[("process", &process.name), ("layer", name)], u8::from(on));
        }
    }
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use openred_module::{ConditionState, LayerState, LinkCount, ModuleState, ProcessState};

    use super::*;

    fn status() -> NodeStatus {
        let layer = |on| LayerState { name: "seccomp".into(), on, detail: String::from("secret detail") };
        let process = ProcessState {
            name: "module a\"b\\c\nd".into(),
            state: "ready".into(),
            restarts: 2,
            since: 1,
            layers: vec![layer(true), layer(false)],
        };
        let module =
            |state: &str| ModuleState { id: format!("m-{state}"), version: String::new(), state: state.into() };
        let condition = ConditionState {
            code: "link.mismatch".into(),
            severity: "error".into(),
            detail: "did:key:zPeer".into(),
            depends_on: Vec::new(),
            since: 1,
        };
        NodeStatus {
            started_at: 1500,
            links: vec![LinkCount { state: "active".into(), links: 3 }],
            modules: ["away", "asleep"].map(module).into(),
            conditions: vec![condition],
            processes: vec![process],
            seen_at: Some(2000),
            ..NodeStatus::default()
        }
    }

    #[test]
    fn the_page_is_well_formed_and_each_series_is_there_once() {
        let page = page(&status());
        assert!(page.contains("openred_start_time_seconds 1.5\n"));
        assert!(page.contains("openred_links{state=\"active\"} 3\n"));
        assert!(page.contains("openred_module_up{module=\"m-away\"} 0\n"));
        assert!(page.contains("openred_module_up{module=\"m-asleep\"} 1\n"));
        assert!(page.contains("openred_layer_on{process=\"module a\\\"b\\\\c\\nd\",layer=\"seccomp\"} 0\n"), "{page}");
        let (mut series, mut families) = (BTreeSet::new(), BTreeSet::new());
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_default();
                assert!(matches!(kind, "gauge" | "counter") && families.insert(name.to_owned()), "{line}");
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').unwrap_or_default();
                assert!(value.parse::<f64>().is_ok() && series.insert(name.to_owned()), "{line}");
                let family = name.split('{').next().unwrap_or_default();
                assert!(families.contains(family), "{line} stands before its family");
            }
        }
    }

    #[test]
    fn no_peer_and_no_detail_is_on_it() {
        let page = page(&status());
        assert!(!page.contains("did:key") && !page.contains("secret detail"), "{page}");
    }
}
