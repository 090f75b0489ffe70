//! `directory doctor`: asks the running directory for its health and its cage, and looks at the process from outside too,
//! because a process is not believed about itself.

use openred_policy::Role;
use openred_policy::manifest::Manifest;

use super::render::{self, Finding};
use crate::admin::{Answer, Ask, Doctor, client};
use crate::config::Loaded;
use crate::error::{Error, Result};
use crate::reload;

pub(super) fn run(loaded: &Loaded, json: bool) -> Result<()> {
    let Answer::Doctor(doctor) = client::ask(&loaded.home.socket(), &Ask::Doctor)? else {
        return Err(Error::PeerMalformed);
    };
    let mut findings =
        vec![Finding { name: "configuration".into(), ok: true, detail: loaded.source.file().display().to_string() }];
    findings.push(configuration_in_force(loaded, &doctor));
    findings.extend(doctor.health.conditions.iter().map(|condition| Finding {
        name: condition.code.clone(),
        ok: condition.ok,
        detail: if condition.ok { String::new() } else { render::condition(condition, doctor.health.now) },
    }));
    findings.extend(doctor.cage.layers.iter().map(|layer| Finding {
        name: format!("cage: {}", layer.name),
        ok: layer.ok,
        detail: if layer.detail.is_empty() { layer.seen.clone() } else { format!("{}; {}", layer.seen, layer.detail) },
    }));
    findings.extend(from_outside(doctor.pid));
    super::print(&render::doctor(&findings, json))?;
    if findings.iter().all(|finding| finding.ok) { Ok(()) } else { Err(Error::LocalDegraded) }
}

/// The file may have changed since it was read.
fn configuration_in_force(loaded: &Loaded, doctor: &Doctor) -> Finding {
    let settings = loaded.source.settings(&loaded.config).unwrap_or_default();
    let changed = reload::changed(&doctor.settings, &settings);
    let (by_signal, by_restart): (Vec<&str>, Vec<&str>) =
        changed.into_iter().partition(|key| reload::is_read_again(key));
    let detail = match (by_signal.as_slice(), by_restart.as_slice()) {
        ([], []) => "the running directory has these settings".to_owned(),
        (changed, []) => format!("changed since it was read: {}; send SIGHUP", changed.join(", ")),
        (_, changed) => format!("changed since the start: {}; restart", changed.join(", ")),
    };
    Finding { name: "configuration in force".into(), ok: by_signal.is_empty() && by_restart.is_empty(), detail }
}

/// `/proc/<pid>/status` of every thread against the manifest of the role.
fn from_outside(pid: u32) -> Vec<Finding> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map(|tasks| {
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok()).collect::<Vec<_>>()
    });
    let Ok(tasks) = tasks else {
        let detail = "/proc of the process cannot be read: run this on the same machine as its user or root".into();
        return vec![Finding { name: "seen from outside".into(), ok: false, detail }];
    };
    let mut findings = Vec::new();
    for (field, expected) in Manifest::of(Role::Directory).map(|manifest| manifest.status).unwrap_or_default() {
        let seen: Vec<&str> = tasks.iter().filter_map(|status| value(status, &field)).collect();
        let ok = !seen.is_empty() && seen.len() == tasks.len() && seen.iter().all(|seen| **seen == *expected);
        let detail = format!("{} on {} threads", seen.first().unwrap_or(&"missing"), tasks.len());
        findings.push(Finding { name: format!("outside: {field}"), ok, detail });
    }
    findings
}

fn value<'a>(status: &'a str, field: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::trim)
}
