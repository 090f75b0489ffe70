//! `openred monitor …`: thin over the module `monitor`.

use openred_monitor::{Alerts, Graph, Kind, Node, State};
use serde_json::json;

use super::arguments::Monitor;
use super::module::{Route, call, open};
use super::output::{Output, Tone, moment, now, wrap};
use super::{Exit, Failure, Invocation, one_line};

const MODULE: &str = "monitor";
/// Longest page of figures: all series of a node, many times over.
const PAGE_BYTES: usize = 1 << 20;

fn route(path: &str) -> Route {
    Route { module: MODULE, method: "GET", path: path.to_owned() }
}

pub(crate) async fn monitor(invocation: &Invocation, command: Monitor) -> Result<Exit, Failure> {
    match command {
        Monitor::Graph { all } => graph(invocation, all).await,
        Monitor::Metrics => metrics(invocation).await,
        Monitor::Alerts => alerts(invocation).await,
    }
}

async fn graph(invocation: &Invocation, all: bool) -> Result<Exit, Failure> {
    let graph: Graph = call(invocation, route("/graph"), None::<&()>).await?;
    invocation.output.document("openred.monitor-graph/1", &graph);
    let is_shown = |node: &&Node| all || node.kind != Kind::Layer || node.state != State::Ok;
    graph.nodes.iter().rev().filter(is_shown).for_each(|node| show(&invocation.output, node, all));
    Ok(if graph.state <= State::Warning { Exit::Ok } else { Exit::Degraded })
}

fn show(output: &Output, node: &Node, all: bool) {
    let (tone, state) = match node.state {
        State::Ok => (Tone::Good, "ok     "),
        State::Warning => (Tone::Warning, "warning"),
        State::Unknown => (Tone::Warning, "unknown"),
        State::Error => (Tone::Bad, "error  "),
    };
    let line = format!("{}  {}", output.paint(tone, state), one_line(&node.id));
    let reason = if node.reason.is_empty() { String::new() } else { format!("  {}", one_line(&node.reason)) };
    wrap(&format!("{line}{reason}"), 11).iter().for_each(|line| output.line(line));
    let needs: Vec<&str> =
        node.depends_on.iter().filter(|id| all || !id.starts_with("layer:")).map(String::as_str).collect();
    if !needs.is_empty() {
        let needs = one_line(&format!("needs {}", needs.join(", ")));
        wrap(&format!("           {needs}"), 11).iter().for_each(|line| output.line(line));
    }
}

async fn metrics(invocation: &Invocation) -> Result<Exit, Failure> {
    let mut answer = open(invocation, route("/metrics"), "", std::io::Cursor::new(Vec::new())).await?;
    let mut page = Vec::new();
    while let Some(piece) = answer.next().await? {
        page.extend_from_slice(&piece);
        if page.len() > PAGE_BYTES {
            return Err(Failure::new(Exit::Failed, "bug", "the page of figures does not end", "restart the node"));
        }
    }
    let page = String::from_utf8_lossy(&page);
    invocation.output.document("openred.monitor-metrics/1", &json!({ "page": page }));
    // As a scraper reads it: each line as it is.
    page.lines().for_each(|line| invocation.output.line(one_line(line)));
    Ok(Exit::Ok)
}

async fn alerts(invocation: &Invocation) -> Result<Exit, Failure> {
    let alerts: Alerts = call(invocation, route("/alerts"), None::<&()>).await?;
    invocation.output.document("openred.monitor-alerts/1", &alerts);
    let (output, now) = (&invocation.output, now());
    for alert in &alerts.alerts {
        let until =
            alert.until.map_or_else(|| String::from("it stands"), |until| format!("over {}", moment(until, now)));
        let tone = if alert.until.is_none() { Tone::Bad } else { Tone::Good };
        let layer = one_line(&format!("{}/{}", alert.process, alert.layer));
        output.line(format!("{layer}  {}, {}", moment(alert.since, now), output.paint(tone, &until)));
        wrap(&format!("  {}", one_line(&alert.detail)), 2).iter().for_each(|line| output.line(line));
    }
    if alerts.alerts.is_empty() {
        output.line("no layer was seen off");
    }
    let stands = alerts.alerts.iter().any(|alert| alert.until.is_none());
    Ok(if stands { Exit::Degraded } else { Exit::Ok })
}
