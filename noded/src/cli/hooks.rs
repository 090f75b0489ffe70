//! `openred hooks`: the chains that calls pass, drawn point by point.

use openred_proto::admin::{Hook, HookPoint, Hooks, ListHooksRequest};

use super::client::{node, request};
use super::output::{Output, Tone, table};
use super::{Exit, Failure, Invocation};

pub(crate) async fn hooks(invocation: &Invocation) -> Result<Exit, Failure> {
    let hooks = node(invocation).await?.list_hooks(request(ListHooksRequest {})).await?.into_inner();
    show(&invocation.output, &hooks);
    invocation.output.document("openred.hooks/1", &hooks);
    Ok(Exit::Ok)
}

/// From where to where a point's calls go.
fn ends(point: &str) -> (&'static str, &'static str) {
    match point {
        "inbound" => ("peer", "module"),
        "inbound_response" => ("module", "peer"),
        "operator" => ("operator", "module"),
        "operator_response" => ("module", "operator"),
        "outbound" => ("module", "peer"),
        _ => ("peer", "module"),
    }
}

fn show(output: &Output, hooks: &Hooks) {
    let mut any = false;
    for point in hooks.points.iter().filter(|point| !point.hooks.is_empty() || !point.cycle.is_empty()) {
        if any {
            output.line("");
        }
        any = true;
        show_point(output, point);
    }
    if !any {
        output.line("no module has a hook: calls pass as they come");
    }
}

fn show_point(output: &Output, point: &HookPoint) {
    let (from, to) = ends(&point.point);
    if !point.cycle.is_empty() {
        output.line(format!(
            "{}: {}",
            point.point,
            output.paint(Tone::Bad, &format!("no call passes: {}", point.cycle))
        ));
        return;
    }
    let deciding = point.hooks.iter().filter(|hook| hook.class != "observe").map(name);
    let way: Vec<String> = std::iter::once(from.to_owned()).chain(deciding).chain([to.to_owned()]).collect();
    let observers: Vec<String> = point.hooks.iter().filter(|hook| hook.class == "observe").map(name).collect();
    let beside = if observers.is_empty() { String::new() } else { format!("  (told: {})", observers.join(", ")) };
    output.line(format!("{}: {}{beside}", point.point, way.join(" → ")));
    let head = ["", "CLASS", "HOOK", "PLACE", "MATCH", "SHOWN", "TIMEOUT", "FAILURE", "STATE", "CALLS", "MEAN"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(point.hooks.iter().map(|hook| row(output, hook)));
    for line in table(&rows) {
        output.line(line);
    }
}

fn name(hook: &Hook) -> String {
    format!("{}/{}", hook.module, hook.id)
}

fn row(output: &Output, hook: &Hook) -> Vec<String> {
    let list = |names: &[String]| if names.is_empty() { "nothing".to_owned() } else { names.join(",") };
    let tone = if hook.breaker == "closed" { Tone::Good } else { Tone::Bad };
    let state = if hook.breaker == "closed" { "asked" } else { "left alone" };
    let failed = match hook.failed {
        0 => String::new(),
        failed => format!(" ({failed} failed, last {})", hook.last_failure),
    };
    vec![
        String::new(),
        hook.class.clone(),
        name(hook),
        hook.because.clone(),
        if hook.r#match.is_empty() { "all".to_owned() } else { hook.r#match.clone() },
        list(&hook.fields),
        format!("{} ms", hook.timeout_millis),
        format!("{}s", hook.on_failure),
        output.paint(tone, state),
        format!("{}{failed}", hook.calls),
        format!("{:.0} µs", hook.mean_micros),
    ]
}
