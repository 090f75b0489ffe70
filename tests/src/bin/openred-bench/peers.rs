//! Reads what a run of the peers printed, and sets ours beside it.
//!
//! A figure's line is `NAME n=… med=…us p90=… p99=…us … rate=…/s …` or, for bulk, `NAME … MiB/s=…`; a line
//! `# WHO …` names whose figures follow.

use std::collections::BTreeMap;

use super::figures::{Figures, say};

/// `peer figure` → value.
pub(crate) type PeerFigures = BTreeMap<String, f64>;

/// Parses a run's output; of a figure that was measured twice the better value is kept, to be fair to the peer.
pub(crate) fn parse(text: &str) -> PeerFigures {
    let mut figures = PeerFigures::new();
    let mut who = String::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            who = owner(comment).unwrap_or(who);
            continue;
        }
        let Some(name) = line.split_whitespace().next() else { continue };
        for (key, higher_is_better) in [("med=", false), ("p99=", false), ("rate=", true), ("MiB/s=", true)] {
            let Some(value) = value(line, key) else { continue };
            let entry = figures.entry(format!("{who} {name} {key}")).or_insert(value);
            if (value > *entry) == higher_is_better {
                *entry = value;
            }
        }
    }
    figures
}

fn owner(comment: &str) -> Option<String> {
    let program = comment.split_whitespace().next()?;
    Some(match program {
        "bench_iroh" => "iroh".to_owned(),
        "bench_reqresp" => "libp2p-reqresp".to_owned(),
        "libp2p" if comment.contains("/quic") => "libp2p-quic".to_owned(),
        "libp2p" | "bench_libp2p" => "libp2p-tcp".to_owned(),
        "iroh-blobs" => "iroh-blobs".to_owned(),
        other => other.to_owned(),
    })
}

fn value(line: &str, key: &str) -> Option<f64> {
    let text = line.split_whitespace().find_map(|word| word.strip_prefix(key))?;
    text.trim_end_matches("us").trim_end_matches("/s").parse().ok()
}

/// Prints each row of the budget as ours / peer, with the first release's bound and the goal.
pub(crate) fn print_ratios(ours: &Figures, peers: &PeerFigures) {
    say(&format!(
        "\n{:<44} {:>10} {:>10} {:>7}  {:<8} {}",
        "ratio to the peer", "ours", "peer", "ratio", "first", "goal"
    ));
    let rows = [
        ("connect + first reply, p50", "connect_first_reply", "libp2p-tcp fresh:500 med=", "≤ 3", "≤ 1.0"),
        ("handshakes/s at 8 dialers", "handshake_rate_8", "libp2p-reqresp rate:8:4 rate=", "≥ 0.3", "≥ 1.0"),
        ("256 B request, p50", "request_256", "iroh rr:1:5000 med=", "≤ 2.5", "≤ 0.7"),
        ("256 B requests/s at 64 in flight", "request_rate_64", "iroh rr:64:20000 rate=", "", "≥ 40 k/s"),
        ("bulk in one session", "bulk", "iroh bulk:1024 MiB/s=", "≥ 0.7", "≥ 2"),
        ("file, store to store on disk, verified", "file", "iroh-blobs file:1024 MiB/s=", "≥ 1", "≥ 2"),
    ];
    for (what, name, peer, first, goal) in rows {
        let Some(figure) = ours.get(name) else { continue };
        let (theirs, ratio) = match peers.get(peer) {
            Some(value) => (format!("{value:.1}"), format!("{:.2}", figure.median / value)),
            None => ("not run".to_owned(), "–".to_owned()),
        };
        say(&format!("{what:<44} {:>10.1} {theirs:>10} {ratio:>7}  {first:<8} {goal}", figure.median));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::parse;

    #[test]
    fn reads_owners_values_and_keeps_the_better_of_two() {
        let text = "# bench_iroh idle RSS 1 kB, load 0\nfresh:500  n=500 med=2000.5us p90=1us p99=9.0us rate=10/s\n\
                    bulk:1024 bytes=1 MiB/s=200.0\nbulk:1024 bytes=1 MiB/s=300.0\n# libp2p /ip4/127.0.0.1/udp/1/quic-v1\nfresh:500 med=1.0us\n";
        let figures = parse(text);
        assert_eq!(figures["iroh fresh:500 med="], 2000.5);
        assert_eq!(figures["iroh bulk:1024 MiB/s="], 300.0);
        assert_eq!(figures["libp2p-quic fresh:500 med="], 1.0);
    }
}
