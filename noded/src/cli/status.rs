//! `openred status` and `openred doctor`: what the supervisor sees of the processes, and what the node says of itself.

use std::time::Duration;

use openred_proto::admin::{
    Condition, DoctorReport, DoctorRequest, NodeStatus, Process, StatusRequest, SupervisorStatus,
};
use serde_json::json;

use super::client::{node, request, supervisor};
use super::links::tone;
use super::output::{Output, Tone, moment, now, span, table, wrap};
use super::{Exit, Failure, Invocation, one_line};

/// How long `noded` may take for its half: one that hangs, or wants to, does not keep back what the supervisor says of it.
const NODE: Duration = Duration::from_secs(5);

/// Both halves of a look; the node's may be missing while `noded` restarts, and then why.
pub(super) struct Seen {
    pub(super) processes: SupervisorStatus,
    pub(super) node: Option<NodeStatus>,
    pub(super) missing: Option<Failure>,
}

pub(crate) async fn status(invocation: &Invocation) -> Result<Exit, Failure> {
    Ok(show(invocation, &look(invocation).await?))
}

/// Asks both.
pub(super) async fn look(invocation: &Invocation) -> Result<Seen, Failure> {
    let processes = supervisor(invocation).await?.get_status(request(StatusRequest {})).await?.into_inner();
    let half = async { Ok(node(invocation).await?.get_status(request(StatusRequest {})).await?) };
    let node = tokio::time::timeout(NODE, half).await.unwrap_or_else(|_| {
        let what = format!("noded did not answer within {} s", NODE.as_secs());
        Err(Failure::new(Exit::TimeOut, "node.away", what, "the supervisor's log holds its last words"))
    });
    let (node, missing) = match node {
        Ok(answer) => (Some(answer.into_inner()), None),
        Err(failure) => (None, Some(failure)),
    };
    Ok(Seen { processes, node, missing })
}

/// Both halves in one answer.
pub(super) fn show(invocation: &Invocation, seen: &Seen) -> Exit {
    let Seen { processes, node, missing } = seen;
    let error = missing.as_ref().map(ToString::to_string);
    invocation
        .output
        .document("openred.status/1", &json!({ "supervisor": processes, "node": node, "node_error": error }));
    people(&invocation.output, processes, node.as_ref());
    if let Some(failure) = missing {
        invocation.output.line(format!("noded: {failure}"));
    }
    exit(seen)
}

/// What a look comes to.
pub(super) fn exit(seen: &Seen) -> Exit {
    let Seen { processes, node, .. } = seen;
    let conditions = processes.conditions.iter().chain(node.iter().flat_map(|node| &node.conditions));
    let errors = conditions.filter(|condition| condition.severity == "error").count();
    let whole = processes.state == "ready" && node.is_some() && errors == 0;
    match processes.state.as_str() {
        "locked" => Exit::Locked,
        _ if whole => Exit::Ok,
        _ => Exit::Degraded,
    }
}

fn people(output: &Output, processes: &SupervisorStatus, node: Option<&NodeStatus>) {
    let now = now();
    if let Some(node) = node {
        let name = if node.name.is_empty() { String::new() } else { format!("  {}", one_line(&node.name)) };
        output.line(format!("{}{name}", node.node_id));
    }
    let state = output.paint(tone(&processes.state), &processes.state);
    output.line(format!("{state}, up {}, uid: {}", span(now.saturating_sub(processes.started_at)), processes.uid));
    output.line("");
    let mut rows = vec![["PROCESS", "PID", "STATE", "SINCE", "RESTARTS", "LAST EXIT"].map(String::from).to_vec()];
    rows.extend(processes.processes.iter().map(|process| process_row(process, now)));
    table(&rows).iter().for_each(|line| output.line(line));
    wrap(&format!("modules' limits: {}", processes.limits), 2).iter().for_each(|line| output.line(line));
    if let Some(node) = node {
        output.line("");
        output.line(format!("{} links, {} waiting, {} sessions", node.links, node.pending, node.sessions));
        for directory in &node.directories {
            let state = output.paint(tone(&directory.state), &directory.state);
            output.line(format!("directory {}  {state}", directory.url));
            if !directory.detail.is_empty() {
                output.line(format!("  {}", one_line(&directory.detail)));
            }
            if directory.log_checked_at > 0 {
                let checked = moment(directory.log_checked_at, now);
                output.line(format!("  log: {} cards, checked {checked}", directory.log_size));
            }
            for evidence in &directory.evidence {
                let at = moment(evidence.at, now);
                output.line(format!("  caught: {} ({at}); --json has both signed statements", one_line(&evidence.lie)));
            }
        }
    }
    for condition in processes.conditions.iter().chain(node.iter().flat_map(|node| &node.conditions)) {
        condition_lines(output, condition, now);
    }
}

fn process_row(process: &Process, now: u64) -> Vec<String> {
    let pid = if process.pid == 0 { String::from("-") } else { process.pid.to_string() };
    let (since, restarts) = (moment(process.since, now), process.restarts.to_string());
    vec![process.name.clone(), pid, process.state.clone(), since, restarts, process.last_exit.clone()]
}

fn condition_lines(output: &Output, condition: &Condition, now: u64) {
    let tone = match condition.severity.as_str() {
        "ok" => return,
        "error" => Tone::Bad,
        _ => Tone::Warning,
    };
    let severity = output.paint(tone, &condition.severity);
    output.line(format!("\n{severity}: {} ({})", condition.code, moment(condition.since, now)));
    for text in [&condition.detail, &condition.help] {
        if !text.is_empty() {
            wrap(&format!("  {}", one_line(text)), 2).iter().for_each(|line| output.line(line));
        }
    }
}

/// Every layer of every process as seen from outside; exit 3 when one is off. What else stands is named as in `status`, whose exit code
/// it is.
pub(crate) async fn doctor(invocation: &Invocation) -> Result<Exit, Failure> {
    let report = supervisor(invocation).await?.doctor(request(DoctorRequest {})).await?.into_inner();
    invocation.output.document("openred.doctor/1", &report);
    diagnosis(&invocation.output, &report);
    Ok(if report.ok { Exit::Ok } else { Exit::Degraded })
}

fn diagnosis(output: &Output, report: &DoctorReport) {
    for process in &report.processes {
        let interfaces = match process.network_interfaces.as_slice() {
            [] => String::from("no network"),
            some => format!("network: {}", some.join(" ")),
        };
        let calls = process.syscalls_allowed;
        output.line(format!("{} (pid {}): {calls} system calls allowed, {interfaces}", process.name, process.pid));
        for layer in report.layers.iter().filter(|layer| layer.process == process.name) {
            let mark = if layer.ok { output.paint(Tone::Good, "ok ") } else { output.paint(Tone::Bad, "OFF") };
            let seen = if layer.seen.is_empty() { String::from("-") } else { one_line(&layer.seen) };
            let line = format!("  {mark} {:<14} {:<8} {seen}", layer.name, layer.when);
            wrap(&line, 30).iter().for_each(|line| output.line(line));
            if layer.name == "resources" {
                wrap(&format!("{:30}{}", "", layer.detail), 30).iter().for_each(|line| output.line(line));
            }
            if !layer.ok {
                wrap(&format!("      expected {}", one_line(&layer.expected)), 30)
                    .iter()
                    .for_each(|line| output.line(line));
            }
        }
        output.line("");
    }
    output.line(match report.uid.as_str() {
        "shared" => "uid: shared (an ordinary user's processes have one uid on the host)",
        _ => "uid: separate",
    });
    let off = report.layers.iter().filter(|layer| !layer.ok).count();
    output.line(match off {
        0 if report.ok => String::from("every layer is in place"),
        0 => String::from("a process is not running; `openred status` says which"),
        off => format!("{off} layers are off"),
    });
    report.conditions.iter().for_each(|condition| condition_lines(output, condition, now()));
}
