//! `openred method …`: thin over the node's admin service.

use openred_proto::admin::{DecideMethodRequest, ListMethodsRequest, Methods};

use super::arguments::Method;
use super::client::{node, request};
use super::output::{Output, Tone, table};
use super::{Exit, Failure, Invocation};

pub(crate) async fn method(invocation: &Invocation, command: Method) -> Result<Exit, Failure> {
    let mut node = node(invocation).await?;
    let decide = |method, allow, schedule| request(DecideMethodRequest { method, allow, schedule });
    let methods = match command {
        Method::List => node.list_methods(request(ListMethodsRequest {})).await?,
        Method::Allow { method } => node.decide_method(decide(method, true, String::new())).await?,
        Method::Disable { method } => node.decide_method(decide(method, false, String::new())).await?,
        Method::Schedule { schedule } => node.decide_method(decide(String::new(), false, schedule)).await?,
    };
    let methods = methods.into_inner();
    show(&invocation.output, &methods);
    invocation.output.document("openred.methods/1", &methods);
    Ok(Exit::Ok)
}

fn show(output: &Output, methods: &Methods) {
    let mut rows = vec![["METHOD", "SUITE", "LINKS", "STATE"].map(String::from).to_vec()];
    rows.extend(methods.methods.iter().map(|method| {
        let (tone, state) = match method {
            method if method.allowed => (Tone::Good, "allowed"),
            method if method.retired => (Tone::Bad, "retired: its module is gone"),
            method if !method.configured => (Tone::Bad, "left out by the configuration"),
            _ => (Tone::Bad, "disabled"),
        };
        vec![method.name.clone(), method.suite.clone(), method.links.to_string(), output.paint(tone, state)]
    }));
    for line in table(&rows) {
        output.line(line);
    }
    let origin = if methods.schedule == methods.configured_schedule {
        String::new()
    } else {
        format!(" (the configuration says {})", methods.configured_schedule)
    };
    output.line(format!("schedule: {}{origin}", methods.schedule));
}
