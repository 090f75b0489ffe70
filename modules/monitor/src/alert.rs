//! Alerts: a layer of a cage that is off is told the operator until it is on again, and what was told is kept.

use std::collections::{BTreeMap, BTreeSet};

use openred_module::{AuditEvent, Context, HostError, ModuleError, NodeStatus, UnixMillis};
use serde::{Deserialize, Serialize};

/// Version of the document.
const VERSION: u32 = 1;
/// The row that holds them.
const ROW: &str = "alerts";
/// As many are kept, those that stand first.
const KEPT: usize = 64;
/// Longest text that the operator is shown in `status`, in bytes.
const TEXT: usize = 900;

/// A layer that is or was off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Whose cage.
    pub process: String,
    /// Which layer.
    pub layer: String,
    /// What was expected and what was there, when it was first seen.
    pub detail: String,
    /// When it was first seen.
    pub since: UnixMillis,
    /// When it was seen to be over; nothing: it stands.
    pub until: Option<UnixMillis>,
}

/// All that are kept, the newest last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alerts {
    /// Version of this document.
    pub v: u32,
    /// See above.
    pub alerts: Vec<Alert>,
}

/// Those that are kept.
pub(crate) async fn kept(context: &Context) -> Result<Alerts, HostError> {
    let kept: Option<Alerts> = context.get_json(ROW).await?;
    Ok(kept.unwrap_or(Alerts { v: VERSION, alerts: Vec::new() }))
}

/// Looks, notes what changed, and tells the operator what stands.
pub(crate) async fn look(context: &Context) -> Result<(), ModuleError> {
    let status = context.node_status().await?;
    let before = kept(context).await?;
    let Some(at) = status.seen_at else { return Ok(()) };
    let mut after = before.clone();
    let (raised, cleared) = after.change(&off(&status), &unseen(&status), at);
    // The operator first: what cannot be written down is to be seen all the same.
    context.alert(after.text()).await?;
    for (layers, outcome) in [(&raised, "raised"), (&cleared, "cleared")] {
        for layer in layers {
            tracing::warn!(layer, outcome, "a layer of a cage");
            context.audit(AuditEvent { code: "layer-off", peer: None, outcome });
        }
    }
    if after != before {
        context.put_json(ROW, &after).await?;
    }
    Ok(())
}

/// Layers that are off: process and name, with what was seen.
fn off(status: &NodeStatus) -> BTreeMap<(String, String), String> {
    let layers = status.processes.iter().flat_map(|process| process.layers.iter().map(move |layer| (process, layer)));
    let is_off = layers.filter(|(_, layer)| !layer.on);
    is_off.map(|(process, layer)| ((process.name.clone(), layer.name.clone()), layer.detail.clone())).collect()
}

/// Processes that are to be there and have no layer to look at: started anew, ended, locked. Of those nothing is known.
fn unseen(status: &NodeStatus) -> BTreeSet<&str> {
    let bare = status.processes.iter().filter(|process| process.layers.is_empty());
    bare.map(|process| process.name.as_str()).collect()
}

impl Alerts {
    /// Takes what is off now, and of what nothing is known: an alert of such a process stands. What is new and what is over, by name.
    fn change(
        &mut self,
        off: &BTreeMap<(String, String), String>,
        unseen: &BTreeSet<&str>,
        at: UnixMillis,
    ) -> (Vec<String>, Vec<String>) {
        let (mut raised, mut cleared) = (Vec::new(), Vec::new());
        let is_of = |alert: &Alert, (process, layer): &(String, String)| {
            alert.until.is_none() && alert.process == *process && alert.layer == *layer
        };
        for alert in self.alerts.iter_mut().filter(|alert| alert.until.is_none()) {
            let is_off = off.contains_key(&(alert.process.clone(), alert.layer.clone()));
            if !is_off && !unseen.contains(alert.process.as_str()) {
                alert.until = Some(at);
                cleared.push(format!("{}/{}", alert.process, alert.layer));
            }
        }
        for (place, detail) in off {
            if self.alerts.iter().any(|alert| is_of(alert, place)) {
                continue;
            }
            let (process, layer) = place.clone();
            raised.push(format!("{process}/{layer}"));
            self.alerts.push(Alert { process, layer, detail: detail.clone(), since: at, until: None });
        }
        while self.alerts.len() > KEPT {
            let over = self.alerts.iter().position(|alert| alert.until.is_some());
            self.alerts.remove(over.unwrap_or(0));
        }
        (raised, cleared)
    }

    /// What stands, for the operator's eyes.
    fn text(&self) -> Option<String> {
        let stands = self.alerts.iter().filter(|alert| alert.until.is_none());
        let lines: Vec<String> = stands
            .map(|alert| format!("{} lacks the layer {}: {}", alert.process, alert.layer, alert.detail))
            .collect();
        if lines.is_empty() {
            return None;
        }
        let mut text: String =
            lines.join("; ").chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        text.truncate(text.floor_char_boundary(TEXT));
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_stand_are_kept_and_the_rest_is_bounded() {
        let mut alerts = Alerts { v: VERSION, alerts: Vec::new() };
        let layer = |name: String| BTreeMap::from([((String::from("vault"), name), String::from("x"))]);
        let standing = layer("stands".into());
        let none = BTreeSet::new();
        assert_eq!(alerts.change(&standing, &none, 1), (vec![String::from("vault/stands")], Vec::new()));
        for number in 0..200 {
            let mut off = standing.clone();
            off.extend(layer(format!("l{number}")));
            alerts.change(&off, &none, 2 + number);
        }
        assert_eq!(alerts.alerts.len(), KEPT);
        assert_eq!((alerts.alerts[0].layer.as_str(), alerts.alerts[0].until), ("stands", None));
        let (raised, cleared) = alerts.change(&BTreeMap::new(), &none, 500);
        assert_eq!((raised.len(), cleared.len()), (0, 2));
        assert_eq!(alerts.text(), None);
        // The same again is another alert.
        assert_eq!(alerts.change(&standing, &none, 501).0.len(), 1);
    }

    #[test]
    fn a_process_that_is_away_does_not_end_its_alert() {
        use openred_module::{LayerState, ProcessState};
        let mut alerts = Alerts { v: VERSION, alerts: Vec::new() };
        let with = |layers: Vec<bool>| {
            let layer = |on| LayerState { name: "seccomp".into(), on, detail: String::new() };
            let process = ProcessState {
                name: "module probe".into(),
                state: "starting".into(),
                restarts: 1,
                since: 1,
                layers: layers.into_iter().map(layer).collect(),
            };
            NodeStatus { processes: vec![process], ..NodeStatus::default() }
        };
        let mut look = |status: &NodeStatus| {
            let (raised, cleared) = alerts.change(&off(status), &unseen(status), 1);
            (raised.len(), cleared.len())
        };
        assert_eq!(look(&with(vec![false])), (1, 0));
        // It ends, and is started anew: nobody has seen the layer on.
        assert_eq!(look(&with(vec![])), (0, 0));
        assert_eq!(look(&with(vec![false])), (0, 0), "the same alert");
        assert_eq!(look(&with(vec![])), (0, 0));
        assert_eq!(look(&with(vec![true])), (0, 1));
        // And one that is gone for good takes its alert along.
        assert_eq!(look(&with(vec![false])), (1, 0));
        assert_eq!(look(&NodeStatus::default()), (0, 1));
    }

    #[test]
    fn a_text_is_one_line_that_fits() {
        let detail = "é\n".repeat(2000);
        let off = BTreeMap::from([((String::from("vault"), String::from("limits")), detail)]);
        let mut alerts = Alerts { v: VERSION, alerts: Vec::new() };
        alerts.change(&off, &BTreeSet::new(), 1);
        let text = alerts.text().unwrap_or_default();
        assert!(text.starts_with("vault lacks the layer limits") && text.len() <= TEXT && !text.contains('\n'));
    }
}
