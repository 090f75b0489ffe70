//! `openred status --watch` and `openred top`: the same look again and again. `top` adds what each process costs, which this command reads of
//! the kernel itself (`/proc/PID`): nobody is asked to measure itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};
use openred_proto::admin::{ModuleStatus, NodeStatus, Process, SupervisorStatus};
use serde::Serialize;

use super::arguments::Watching;
use super::links::tone;
use super::output::{now, span, table};
use super::status::{self, Seen};
use super::{Exit, Failure, Invocation, one_line};

/// The first shares of `top` are taken over this long.
const FIRST: Duration = Duration::from_millis(500);

/// Looks as often as was asked. A look that fails ends the first time, and is shown from then on: a node that is restarted comes back.
pub(crate) async fn status(invocation: &Invocation, options: &Watching) -> Result<Exit, Failure> {
    let mut looks = Looks::new(options);
    let mut exit = Exit::Ok;
    while looks.next().await {
        match status::look(invocation).await {
            Ok(seen) => {
                invocation.output.clear();
                exit = status::show(invocation, &seen);
            }
            Err(failure) => exit = away(invocation, &looks, failure)?,
        }
    }
    Ok(exit)
}

/// Processor time, memory and threads of each process, and what the node does.
pub(crate) async fn top(invocation: &Invocation, options: &Watching) -> Result<Exit, Failure> {
    let (mut looks, mut before) = (Looks::new(options), None);
    let mut exit = Exit::Ok;
    while looks.next().await {
        match sample(invocation).await {
            Ok(first) if before.is_none() => {
                before = Some(first);
                // Shares need two looks; the first pair is close, so that something is shown soon.
                tokio::time::sleep(FIRST).await;
                looks.again();
            }
            Ok(sample) => {
                invocation.output.clear();
                exit = show(invocation, before.as_ref(), &sample);
                before = Some(sample);
            }
            Err(failure) => exit = away(invocation, &looks, failure)?,
        }
    }
    Ok(exit)
}

fn away(invocation: &Invocation, looks: &Looks, failure: Failure) -> Result<Exit, Failure> {
    if looks.is_first() {
        return Err(failure);
    }
    invocation.output.clear();
    let exit = failure.exit;
    invocation.output.failure(&failure);
    Ok(exit)
}

/// When to look.
struct Looks {
    every: Duration,
    left: Option<u64>,
    taken: u64,
    due: Instant,
}

impl Looks {
    fn new(options: &Watching) -> Self {
        Self { every: Duration::from_secs(options.every), left: options.count, taken: 0, due: Instant::now() }
    }

    /// Waits until the next is due; false when there is none.
    async fn next(&mut self) -> bool {
        if self.left.is_some_and(|left| self.taken >= left) {
            return false;
        }
        tokio::time::sleep_until(self.due.into()).await;
        self.due = Instant::now() + self.every;
        self.taken += 1;
        true
    }

    /// The last one did not count.
    fn again(&mut self) {
        self.taken -= 1;
        self.due = Instant::now();
    }

    fn is_first(&self) -> bool {
        self.taken <= 1
    }
}

/// One look of `top`.
struct Sample {
    at: Instant,
    seen: Seen,
    costs: BTreeMap<u32, Cost>,
}

async fn sample(invocation: &Invocation) -> Result<Sample, Failure> {
    let seen = status::look(invocation).await?;
    let costs = seen.processes.processes.iter().filter_map(|process| Some((process.pid, Cost::read(process.pid)?)));
    let costs = costs.collect();
    Ok(Sample { at: Instant::now(), seen, costs })
}

/// What a process has used, as its line in `/proc/PID/stat` says it (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    /// Clock ticks on a processor, in user and kernel.
    ticks: u64,
    threads: u64,
    /// Resident pages.
    pages: u64,
}

impl Cost {
    /// Of a process that is there, and may be looked at.
    fn read(pid: u32) -> Option<Self> {
        if pid == 0 {
            return None;
        }
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name in the second field may hold spaces and parentheses; what is counted comes behind its last one.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
        // The third field is the first of these.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self { ticks: number(14)? + number(15)?, threads: number(20)?, pages: number(24)? })
    }
}

/// A process as `top` shows it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    pid: u32,
    state: &'a str,
    restarts: u32,
    /// Of one processor since the last look; more than 1 with several threads. Absent for one that came since.
    cpu: Option<f64>,
    resident_bytes: Option<u64>,
    threads: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    at: u64,
    state: &'a str,
    processes: Vec<Row<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Node>,
    /// What each module's calls cost since the node's start.
    modules: &'a [ModuleStatus],
    conditions: Vec<&'a str>,
}

#[derive(Debug, Serialize)]
struct Node {
    links: u32,
    sessions: u32,
    /// Operations of the key process for this node since it started, and a second since the last look.
    key_operations: u64,
    key_operations_per_second: Option<f64>,
}

fn show(invocation: &Invocation, before: Option<&Sample>, sample: &Sample) -> Exit {
    let Seen { processes, node, missing } = &sample.seen;
    let passed = before.map(|before| sample.at.duration_since(before.at).as_secs_f64()).filter(|passed| *passed > 0.0);
    let rows: Vec<Row<'_>> =
        processes.processes.iter().map(|process| row(process, before.zip(passed), sample)).collect();
    let node_row = node.as_ref().map(|node| node_row(node, before.zip(passed)));
    let conditions = processes.conditions.iter().chain(node.iter().flat_map(|node| &node.conditions));
    let conditions: Vec<&str> =
        conditions.filter(|condition| condition.severity != "ok").map(|condition| condition.code.as_str()).collect();
    let modules = node.as_ref().map_or(&[][..], |node| &node.module_status);
    people(invocation, processes, &rows, node_row.as_ref(), modules, &conditions);
    if let Some(failure) = missing {
        invocation.output.line(format!("noded: {failure}"));
    }
    let document =
        Document { at: now(), state: &processes.state, processes: rows, node: node_row, modules, conditions };
    invocation.output.document("openred.top/1", &document);
    status::exit(&sample.seen)
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn row<'a>(process: &'a Process, before: Option<(&Sample, f64)>, sample: &Sample) -> Row<'a> {
    let cost = sample.costs.get(&process.pid);
    let unit = |name| sysconf(name).ok().flatten().and_then(|unit| u64::try_from(unit).ok()).filter(|unit| *unit > 0);
    let share = || {
        let (before, passed) = before?;
        let used = cost?.ticks.checked_sub(before.costs.get(&process.pid)?.ticks)?;
        Some(used as f64 / unit(SysconfVar::CLK_TCK)? as f64 / passed)
    };
    Row {
        name: &process.name,
        pid: process.pid,
        state: &process.state,
        restarts: process.restarts,
        cpu: share(),
        resident_bytes: cost.and_then(|cost| Some(cost.pages * unit(SysconfVar::PAGE_SIZE)?)),
        threads: cost.map(|cost| cost.threads),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn node_row(node: &NodeStatus, before: Option<(&Sample, f64)>) -> Node {
    let rate = before.and_then(|(before, passed)| {
        let earlier = before.seen.node.as_ref().filter(|earlier| earlier.started_at == node.started_at)?;
        let more = node.cryptod_operations.checked_sub(earlier.cryptod_operations)?;
        Some(more as f64 / passed)
    });
    Node {
        links: node.links,
        sessions: node.sessions,
        key_operations: node.cryptod_operations,
        key_operations_per_second: rate,
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn people(
    invocation: &Invocation,
    processes: &SupervisorStatus,
    rows: &[Row<'_>],
    node: Option<&Node>,
    modules: &[ModuleStatus],
    conditions: &[&str],
) {
    let output = &invocation.output;
    let state = output.paint(tone(&processes.state), &processes.state);
    output.line(format!("{state}, up {}", span(now().saturating_sub(processes.started_at))));
    if let Some(node) = node {
        let rate = node.key_operations_per_second.map_or(String::from("-"), |rate| format!("{rate:.1}"));
        output.line(format!("{} links, {} sessions, {rate} key operations/s", node.links, node.sessions));
    }
    output.line("");
    let mut lines =
        vec![["PROCESS", "PID", "STATE", "CPU %", "RSS MB", "THREADS", "RESTARTS"].map(String::from).to_vec()];
    let dash = || String::from("-");
    lines.extend(rows.iter().map(|row| {
        vec![
            one_line(row.name),
            if row.pid == 0 { dash() } else { row.pid.to_string() },
            row.state.to_owned(),
            row.cpu.map_or_else(dash, |cpu| format!("{:.1}", cpu * 100.0)),
            row.resident_bytes.map_or_else(dash, |bytes| format!("{:.1}", bytes as f64 / 1e6)),
            row.threads.map_or_else(dash, |threads| threads.to_string()),
            row.restarts.to_string(),
        ]
    }));
    table(&lines).iter().for_each(|line| output.line(line));
    if !modules.is_empty() {
        output.line("");
        module_table(modules).iter().for_each(|line| output.line(line));
    }
    if !conditions.is_empty() {
        output.line(format!("\n{} (see `openred status`)", conditions.join(", ")));
    }
}

/// What modules' calls cost.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn module_table(modules: &[ModuleStatus]) -> Vec<String> {
    let heads = ["MODULE", "STATE", "CALLS", "ERRORS", "REFUSED", "P50 MS", "P99 MS", "STARTS"];
    let mut lines = vec![heads.map(String::from).to_vec()];
    let millis = |micros: u64| format!("{:.1}", micros as f64 / 1e3);
    lines.extend(modules.iter().map(|module| {
        let numbers = [module.calls, module.errors, module.refused].map(|count| count.to_string());
        let times = [millis(module.p50_micros), millis(module.p99_micros), module.starts.to_string()];
        [one_line(&module.id), one_line(&module.state)].into_iter().chain(numbers).chain(times).collect()
    }));
    table(&lines)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_cost_is_read_behind_any_name() {
        let rest = "S 1 1 1 0 -1 4194560 1 0 0 0 70 30 0 0 20 0 5 0 1 1000 256 18446744073709551615 1 1";
        let cost = Some(Cost { ticks: 100, threads: 5, pages: 256 });
        assert_eq!(Cost::parse(&format!("7 (noded) {rest}")), cost);
        assert_eq!(Cost::parse(&format!("7 (a) 9 (b) {rest}")), cost);
        for broken in ["", "7 (noded", "7 (noded) S 1", "7 (noded) S x x x x x x x x x x x x x x x x x x x x x x"] {
            assert_eq!(Cost::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn this_process_costs_something() {
        let cost = Cost::read(std::process::id()).unwrap();
        assert!(cost.threads >= 1 && cost.pages > 0);
        assert_eq!(Cost::read(0), None);
    }

    #[tokio::test]
    async fn looks_end_when_they_were_counted() {
        let mut looks = Looks::new(&Watching { every: 0, count: Some(2) });
        assert!(looks.next().await && looks.is_first());
        looks.again();
        assert!(looks.next().await && looks.next().await);
        assert!(!looks.is_first() && !looks.next().await);
    }
}
