//! `openred peers …`: thin over the node's admin service; the figures of `ping` are computed here.

use openred_proto::admin::{DecidePeerRequest, ListPeersRequest, Peer, PeerSelector, PingReport, PingRequest};
use serde_json::json;

use super::arguments::{self, Ping};
use super::client::{node, request};
use super::output::{Output, bytes, moment, now, table};
use super::{Exit, Failure, Invocation, one_line};

pub(crate) async fn peers(invocation: &Invocation, command: arguments::Peers) -> Result<Exit, Failure> {
    use arguments::Peers as Word;
    let mut node = node(invocation).await?;
    let peer = match command {
        Word::Ping(options) => return ping(invocation, node, options).await,
        Word::List => {
            let peers = node.list_peers(request(ListPeersRequest {})).await?.into_inner();
            list(&invocation.output, &peers.peers);
            invocation.output.document("openred.peers/1", &peers);
            return Ok(Exit::Ok);
        }
        Word::Show { peer } => node.show_peer(request(PeerSelector { peer })).await?,
        Word::Allow { peer } => node.decide_peer(request(DecidePeerRequest { peer, allow: true })).await?,
        Word::Deny { peer } => node.decide_peer(request(DecidePeerRequest { peer, allow: false })).await?,
        Word::Forget { peer } => node.forget_peer(request(PeerSelector { peer })).await?,
    };
    let peer = peer.into_inner();
    show(&invocation.output, &peer);
    invocation.output.document("openred.peer/1", &peer);
    Ok(Exit::Ok)
}

fn list(output: &Output, peers: &[Peer]) {
    if peers.is_empty() {
        output.line("no peers; offer a link with `openred link request DID`");
        return;
    }
    let now = now();
    let mut rows = vec![["PEER", "LINK", "SEEN"].map(String::from).to_vec()];
    rows.extend(peers.iter().map(|peer| {
        let seen = if peer.session { String::from("connected") } else { moment(peer.last_seen, now) };
        vec![peer.node_id.clone(), peer.link_state.clone(), seen]
    }));
    for line in table(&rows) {
        output.line(line);
    }
}

fn show(output: &Output, peer: &Peer) {
    let now = now();
    let mut rows = vec![
        ("peer", peer.node_id.clone()),
        // The name is the peer's own word.
        ("says it is", one_line(&peer.name)),
        ("sector", one_line(&peer.sector)),
        ("link", peer.link_state.clone()),
        ("its offers", decision(peer)),
        ("session", if peer.session { String::from("open") } else { String::from("none") }),
        ("last seen", moment(peer.last_seen, now)),
        ("card", format!("number {}, ends {}", peer.card_sequence, moment(peer.card_expires_at, now))),
        ("waiting", format!("{} messages", peer.queued)),
    ];
    rows.extend(peer.endpoints.iter().map(|endpoint| ("endpoint", one_line(endpoint))));
    rows.retain(|(_, value)| !value.is_empty());
    for (name, value) in rows {
        output.line(format!("{name:<12} {value}"));
    }
}

/// What becomes of a peer's offers by the operator's word; nothing where the policy decides.
fn decision(peer: &Peer) -> String {
    let lives = matches!(peer.link_state.as_str(), "pending" | "active" | "renewing");
    match peer.decision.as_str() {
        "denied" if lives => String::from("denied; the link lives on until `openred link revoke`"),
        said => said.to_owned(),
    }
}

type Node = openred_proto::admin::node_client::NodeClient<tonic::transport::Channel>;

async fn ping(invocation: &Invocation, mut node: Node, options: Ping) -> Result<Exit, Failure> {
    let question = PingRequest {
        peer: options.peer,
        // A bulk measurement is one response, whatever a plain one counts by default.
        count: if options.bulk.is_some() { 1 } else { options.count },
        concurrency: options.concurrency,
        size: options.size,
        fresh: options.fresh,
        bulk_bytes: options.bulk.unwrap_or(0),
        module: options.module.unwrap_or_default(),
    };
    // No deadline: a million requests take their time; each has its own in the node.
    let mut reports = node.ping(question).await?.into_inner();
    let mut last = PingReport::default();
    while let Some(report) = reports.message().await? {
        last = report;
    }
    answer(&invocation.output, &last, options.bulk.is_some());
    match (last.sent.saturating_sub(last.failed), last.failed) {
        (_, 0) => Ok(Exit::Ok),
        (0, _) => Err(Failure::new(Exit::Failed, "peer.unreachable", one_line(&last.error), "")),
        _ => Ok(Exit::Partial),
    }
}

fn answer(output: &Output, report: &PingReport, bulk: bool) {
    let mut micros = report.micros.clone();
    micros.sort_unstable();
    let at = |share: f64| {
        let rank = (micros.len() as f64 * share).ceil() as usize;
        micros.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    };
    let seconds = report.total_micros as f64 / 1e6;
    let answered = report.sent.saturating_sub(report.failed);
    let rate = if seconds > 0.0 { f64::from(answered) / seconds } else { 0.0 };
    let body = json!({
        "sent": report.sent, "failed": report.failed, "median_us": at(0.5), "p99_us": at(0.99),
        "min_us": at(0.0), "max_us": at(1.0), "total_us": report.total_micros, "rate": rate,
        "bytes": report.bytes, "error": report.error, "mutual_link": report.mutual_link,
    });
    output.document("openred.ping/1", &body);
    if bulk {
        let speed = if seconds > 0.0 { report.bytes as f64 / seconds } else { 0.0 };
        output.line(format!("{} in {seconds:.2} s: {}/s", bytes(report.bytes), bytes(speed as u64)));
        return;
    }
    let millis = |micros: u64| micros as f64 / 1000.0;
    output.line(format!("{} sent, {} failed, {rate:.0} per second", report.sent, report.failed));
    if !micros.is_empty() {
        output.line(format!(
            "fastest {:.2} ms, median {:.2} ms, p99 {:.2} ms, slowest {:.2} ms",
            millis(at(0.0)),
            millis(at(0.5)),
            millis(at(0.99)),
            millis(at(1.0))
        ));
    }
    if !report.mutual_link.is_empty() {
        output.line(format!("mutual link {}", report.mutual_link));
    }
}
