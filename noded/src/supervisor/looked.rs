//! What the supervisor tells `noded` of the processes and their cages, out of the same look that `doctor` shows: states and layers, no more.

use openred_proto::admin::DoctorReport;
use openred_proto::modules::{REASON_BYTES, Told, encode, reason};

/// What a look may be long, so that the channel takes it at once; beyond it layers that are off are told without what was seen.
const DETAILS: usize = 48 * 1024;

/// A look as frames.
pub(super) fn told(report: &DoctorReport, at: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for process in &report.processes {
        let told = Told::Process {
            name: reason(&process.name),
            state: process.state.clone(),
            restarts: process.restarts,
            since: process.since,
        };
        tell(&mut bytes, &told);
        for layer in report.layers.iter().filter(|layer| layer.process == process.name) {
            let detail = match layer.ok || bytes.len() > DETAILS {
                true => String::new(),
                false => {
                    let mut seen = format!("expected {}, seen {}", layer.expected, layer.seen);
                    seen.truncate(seen.floor_char_boundary(REASON_BYTES));
                    reason(&seen)
                }
            };
            tell(&mut bytes, &Told::Layer { name: layer.name.clone(), on: layer.ok, detail });
        }
    }
    tell(&mut bytes, &Told::Looked { at });
    bytes
}

fn tell(bytes: &mut Vec<u8>, told: &Told) {
    // Bounded above: each fits a frame.
    if let Ok(frame) = encode(told) {
        bytes.extend_from_slice(&frame);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_proto::admin::{Layer, Process};
    use openred_proto::modules::decode;

    use super::*;

    #[test]
    fn each_process_is_told_with_its_layers_and_the_end_with_the_time() {
        let process =
            |name: &str| Process { name: name.to_owned(), state: String::from("ready"), ..Process::default() };
        let layer = |process: &str, ok, seen: String| Layer {
            process: process.to_owned(),
            name: String::from("limits"),
            expected: "x".repeat(4000),
            seen,
            ok,
            ..Layer::default()
        };
        let report = DoctorReport {
            processes: vec![process("front"), process("module files")],
            layers: vec![layer("module files", false, "é".repeat(4000)), layer("front", true, String::new())],
            ..DoctorReport::default()
        };
        let bytes = told(&report, 7);
        let (mut rest, mut words) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let (word, used) = decode::<Told>(rest).unwrap();
            words.push(word);
            rest = &rest[used..];
        }
        assert_eq!(words.len(), 5, "{words:?}");
        assert!(matches!(&words[1], Told::Layer { on: true, detail, .. } if detail.is_empty()));
        assert!(matches!(&words[3], Told::Layer { on: false, detail, .. } if detail.starts_with("expected x")));
        assert_eq!(words[4], Told::Looked { at: 7 });
    }
}
