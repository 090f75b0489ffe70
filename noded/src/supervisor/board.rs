//! What the supervisor knows, for `status` and `doctor`: each process's state, its cage as noted at start, and alarms.
//!
//! Written by the lives of the processes, read by the control socket. It decides nothing.

mod modules;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openred_policy::limits::Held;
use openred_policy::observe::{Baseline, Expected, Namespaces, Observation, compare, namespaces, observe};
use openred_policy::{Layer, LayerName, LayerReport, Role, Uid, syscalls_allowed};
use openred_proto::admin;
use openred_proto::audit::Event;
use openred_proto::checked::succession::{Step, Succession};
use openred_proto::unseal::About;
use openred_proto::vault::AuditStatus;

use super::journal::Journal;

/// Filed segments of the trail from which on somebody should look: 1 GiB, for which a node at work takes years.
const FILED_MANY: usize = 256;
/// Names that are read to count them: beside a sealed one lies its hash, and little else belongs there.
const FILED_READ: usize = 4 * FILED_MANY;

/// Alarms that are kept; a node with more of them has been down for long.
const ALARMS: usize = 16;

/// The processes of a node in the order in which they are shown.
pub(crate) const PROCESSES: [Role; 3] = [Role::Front, Role::Vault, Role::Noded];

/// When a layer was seen that is not looked at again.
const START: &str = "at start";

/// Whether a layer is judged by the namespaces that were noted at the barrier.
fn noted(role: Role, layer: &Layer) -> bool {
    layer.name == LayerName::Namespaces || (layer.name == LayerName::Interfaces && role.keeps_network())
}

/// State of the key process while the operator wants no key to be held.
const LOCKED: &str = "locked";
/// State of a module that waits for the operator.
const QUARANTINED: &str = "quarantined";
/// State of a process that is not started again.
const DOWN: &str = "down";

/// What was seen of one process when it was let go, and what is needed to look again.
pub(crate) struct Cage {
    pub(crate) pid: i32,
    pub(crate) namespaces: Namespaces,
    pub(crate) expected: Expected,
    /// From outside.
    pub(crate) layers: Vec<Layer>,
    /// The process's own word, for what cannot be seen from outside.
    pub(crate) report: LayerReport,
    pub(crate) interfaces: Vec<String>,
    /// Of a module: what holds it to its limits.
    pub(crate) held: Option<Arc<Held>>,
}

struct Entry {
    role: Role,
    /// As it is shown: the role's own, or `module NAME`.
    name: String,
    state: &'static str,
    since: u64,
    restarts: u32,
    last_exit: String,
    cage: Option<Cage>,
}

impl Entry {
    fn new(role: Role, name: String, now: u64) -> Self {
        Self { role, name, state: "starting", since: now, restarts: 0, last_exit: String::new(), cage: None }
    }
}

struct Inner {
    entries: Vec<Entry>,
    /// The modules that were ever started. The node is ready without them; `noded` names one that is away.
    modules: Vec<Entry>,
    /// The last unsealer, which has ended.
    unseal: Option<Cage>,
    /// What the keystore said of itself when it was last opened.
    keystore: Option<About>,
    alarms: Vec<admin::Condition>,
    /// The vault's last word on its trail.
    trail: Option<AuditStatus>,
    /// Events for the trail, each once with its count.
    reports: Vec<(Event, u32)>,
    stopping: bool,
    ready_at: u64,
    /// Where a restore leaves what it did not get to put in place.
    unfinished: PathBuf,
    /// Where closed segments of the trail are filed.
    filed: PathBuf,
}

/// The supervisor's knowledge.
pub(crate) struct Board {
    baseline: Baseline,
    home: String,
    started_at: u64,
    /// Which way holds the modules' limits.
    limits: String,
    /// What modules wrote.
    pub(crate) journal: Journal,
    inner: Mutex<Inner>,
}

fn shown(word: &Succession) -> admin::SuccessionWord {
    admin::SuccessionWord {
        step: match word.step {
            Step::Succeed => String::from("succeed"),
            Step::TakeBack => String::from("take-back"),
        },
        old: word.old.to_string(),
        new: word.new.to_string(),
        at: word.sequence,
    }
}

impl Board {
    pub(crate) fn new(baseline: Baseline, home: String, limits: String, now: u64) -> Self {
        let entries = PROCESSES.into_iter().map(|role| Entry::new(role, role.name().to_owned(), now)).collect();
        let inner = Inner {
            entries,
            modules: Vec::new(),
            unseal: None,
            keystore: None,
            alarms: Vec::new(),
            trail: None,
            reports: Vec::new(),
            stopping: false,
            ready_at: 0,
            unfinished: PathBuf::new(),
            filed: PathBuf::new(),
        };
        Self { baseline, home, started_at: now, limits, journal: Journal::default(), inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No code panics while it holds the lock with the board half written.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a process that said `confined`: one line a layer.
    pub(crate) fn look(
        &self,
        role: Role,
        pid: i32,
        namespaces: &Namespaces,
        expected: &Expected,
    ) -> openred_policy::Result<(Observation, Vec<Layer>)> {
        let seen = observe(pid, namespaces.clone())?;
        let layers = compare(role, &seen, &self.baseline, expected);
        Ok((seen, layers))
    }

    /// Notes a process whose cage is as it must be.
    pub(crate) fn caged(&self, role: Role, cage: Cage) {
        let mut inner = self.inner();
        match inner.entries.iter_mut().find(|entry| entry.role == role) {
            Some(entry) => entry.cage = Some(cage),
            None => inner.unseal = Some(cage),
        }
    }

    /// Notes a change of a process's state.
    pub(crate) fn state(&self, role: Role, state: &'static str, now: u64) {
        let mut inner = self.inner();
        if let Some(entry) = inner.entries.iter_mut().find(|entry| entry.role == role) {
            entry.state = state;
            entry.since = now;
        }
        if inner.ready_at == 0 && inner.entries.iter().all(|entry| entry.state == "ready") {
            inner.ready_at = now;
        }
    }

    /// Notes an end. A restart is counted when one follows.
    pub(crate) fn ended(&self, role: Role, how: &str, restarting: bool, now: u64) {
        let mut inner = self.inner();
        if let Some(entry) = inner.entries.iter_mut().find(|entry| entry.role == role) {
            entry.cage = None;
            how.clone_into(&mut entry.last_exit);
            entry.state = if restarting { "restarting" } else { "down" };
            entry.since = now;
            entry.restarts += u32::from(restarting);
        }
    }

    /// Notes what the keystore says of itself.
    pub(crate) fn keystore(&self, about: Option<About>) {
        self.inner().keystore = about;
    }

    /// Notes that a process is away because the operator wants it so.
    pub(crate) fn locked(&self, role: Role, now: u64) {
        let mut inner = self.inner();
        if let Some(entry) = inner.entries.iter_mut().find(|entry| entry.role == role) {
            entry.cage = None;
            if entry.state != LOCKED {
                entry.since = now;
            }
            entry.state = LOCKED;
        }
    }

    /// The keystore and whether its keys are held.
    pub(crate) fn key(&self) -> admin::KeyStatus {
        let inner = self.inner();
        let state = inner.entries.iter().find(|entry| entry.role == Role::Vault).map_or("", |entry| entry.state);
        let about = inner.keystore.as_ref();
        admin::KeyStatus {
            state: if state == "ready" { String::from("open") } else { state.to_owned() },
            node_id: about.map(|about| about.node.to_string()).unwrap_or_default(),
            version: about.map_or(0, |about| about.version),
            created_at: about.map_or(0, |about| about.created.0),
            passphrase: about.is_some_and(|about| about.passphrase),
            recipients: about.map(|about| about.recipients.clone()).unwrap_or_default(),
            lineage: about.map(|about| about.lineage.steps().map(shown).collect()).unwrap_or_default(),
        }
    }

    /// Notes that a start came to nothing: what was seen of the process holds no more.
    pub(crate) fn away(&self, role: Role) {
        if let Some(entry) = self.inner().entries.iter_mut().find(|entry| entry.role == role) {
            entry.cage = None;
        }
    }

    /// Notes something for the audit trail; the next look at the vault takes it there.
    pub(crate) fn report(&self, event: Event) {
        self.report_again(event, 1);
    }

    /// The same for what was noted before, and did not get there.
    pub(crate) fn report_again(&self, event: Event, more: u32) {
        let mut inner = self.inner();
        match inner.reports.iter_mut().find(|(of, _)| *of == event) {
            Some((_, count)) => *count = count.saturating_add(more),
            None => inner.reports.push((event, more)),
        }
    }

    /// What is to be reported, left in place.
    pub(crate) fn reports(&self) -> Vec<(Event, u32)> {
        self.inner().reports.clone()
    }

    /// So many of an event are in the trail now; more may have been noted meanwhile.
    pub(crate) fn reported(&self, event: Event, told: u32) {
        let mut inner = self.inner();
        inner
            .reports
            .iter_mut()
            .filter(|(of, _)| *of == event)
            .for_each(|(_, count)| *count = count.saturating_sub(told));
        inner.reports.retain(|(_, count)| *count > 0);
    }

    /// Notes where the audit trail stands.
    pub(crate) fn trail(&self, status: AuditStatus) {
        self.inner().trail = Some(status);
    }

    /// Raises an alarm; a second one of the same code replaces the first.
    pub(crate) fn alarm(&self, code: &str, detail: String, help: &str, now: u64) {
        let mut inner = self.inner();
        inner.alarms.retain(|alarm| alarm.code != code);
        if inner.alarms.len() < ALARMS {
            inner.alarms.push(admin::Condition {
                code: code.to_owned(),
                severity: String::from("error"),
                detail,
                depends_on: Vec::new(),
                since: now,
                help: help.to_owned(),
            });
        }
    }

    /// Takes an alarm back.
    pub(crate) fn clear(&self, code: &str) {
        self.inner().alarms.retain(|alarm| alarm.code != code);
    }

    /// Names from now on what lies in this place, for as long as it does; what it is now, if it is there.
    pub(crate) fn watch_unfinished(&self, place: PathBuf) -> Option<admin::Condition> {
        let mut inner = self.inner();
        inner.unfinished = place;
        self.unfinished(&inner)
    }

    /// Counts from now on what lies filed in this folder.
    pub(crate) fn watch_filed(&self, folder: PathBuf) {
        self.inner().filed = folder;
    }

    /// Each use of a key is recorded, and what is recorded is kept: a `noded` that is not its own master can fill the disk with it, slowly.
    fn filed_many(&self, inner: &Inner) -> Option<admin::Condition> {
        let is_segment = |name: &str| name.ends_with(".segment") || name.ends_with(".segment.age");
        let entries = fs::read_dir(&inner.filed).ok()?.take(FILED_READ).flatten();
        let count = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_segment)).count();
        (count >= FILED_MANY).then(|| admin::Condition {
            code: String::from("audit.filed-many"),
            severity: String::from("warning"),
            detail: format!("{}: {FILED_MANY} segments of the audit trail or more, 4 MiB each", inner.filed.display()),
            depends_on: Vec::new(),
            since: self.started_at,
            help: String::from(
                "see with `openred audit tail` what the keys are used for; move the oldest ones elsewhere, where `openred audit \
                 verify FILE…` reads them",
            ),
        })
    }

    fn unfinished(&self, inner: &Inner) -> Option<admin::Condition> {
        inner.unfinished.symlink_metadata().is_ok().then(|| admin::Condition {
            code: String::from("restore.unfinished"),
            severity: String::from("warning"),
            detail: format!(
                "{}: left by a restore that was cut off before it changed anything; this node is the one from before",
                inner.unfinished.display()
            ),
            depends_on: Vec::new(),
            since: self.started_at,
            help: String::from("restore the backup again, or delete this folder if the backup is still there"),
        })
    }

    /// What stands now: alarms, processes that are away, locked keys, what a restore has left, a trail that has grown large.
    fn conditions(&self, inner: &Inner) -> Vec<admin::Condition> {
        let mut conditions = inner.alarms.clone();
        conditions.extend(inner.entries.iter().filter(|entry| entry.state == "restarting").map(|entry| {
            admin::Condition {
                code: format!("process.{}.away", entry.role),
                severity: String::from("warning"),
                detail: format!("{} ended ({}) and is being restarted", entry.role, entry.last_exit),
                depends_on: Vec::new(),
                since: entry.since,
                help: String::from("the supervisor's log holds its last words"),
            }
        }));
        conditions.extend(inner.entries.iter().find(|entry| entry.state == LOCKED).map(|entry| admin::Condition {
            code: String::from("keys.locked"),
            severity: String::from("warning"),
            detail: String::from("the operator locked the keys: no process holds one, and what needs one waits"),
            depends_on: Vec::new(),
            since: entry.since,
            help: String::from("`openred key unlock` opens them again"),
        }));
        conditions.extend(self.unfinished(inner));
        conditions.extend(self.filed_many(inner));
        conditions
    }

    pub(crate) fn stopping(&self) {
        self.inner().stopping = true;
    }

    pub(crate) fn status(&self) -> admin::SupervisorStatus {
        let inner = self.inner();
        let all_ready = inner.entries.iter().all(|entry| entry.state == "ready");
        let all_wanted = inner.entries.iter().all(|entry| matches!(entry.state, "ready" | LOCKED));
        let state = match () {
            () if inner.stopping => "stopping",
            () if all_ready && inner.alarms.is_empty() => "ready",
            () if inner.ready_at == 0 => "starting",
            () if all_wanted && inner.alarms.is_empty() => LOCKED,
            () => "degraded",
        };
        let conditions = self.conditions(&inner);
        admin::SupervisorStatus {
            state: state.to_owned(),
            processes: inner.entries.iter().chain(&inner.modules).map(process).collect(),
            conditions,
            uid: Uid::of_this_process().name().to_owned(),
            started_at: self.started_at,
            ready_at: inner.ready_at,
            home: self.home.clone(),
            limits: self.limits.clone(),
            trail: inner.trail.map(|trail| admin::Trail {
                segment: trail.segment,
                slots: trail.slots,
                sequence: trail.sequence,
                hash: hex::encode(trail.hash),
                waiting: trail.waiting.unwrap_or(0),
                full: trail.full,
            }),
        }
    }

    /// Looks at every process now.
    pub(crate) fn doctor(&self) -> admin::DoctorReport {
        let mut inner = self.inner();
        let mut layers = Vec::new();
        let mut ok = true;
        let Inner { entries, modules, .. } = &mut *inner;
        for entry in entries.iter_mut().chain(modules) {
            let is_wanted = !matches!(entry.state, LOCKED | DOWN | QUARANTINED)
                || (entry.state == DOWN && entry.role != Role::Module);
            let Some(cage) = &mut entry.cage else {
                // Where there is to be no process, none can lack a layer.
                ok &= !is_wanted;
                continue;
            };
            // To an ordinary user the kernel shows them only until the process is no longer dumpable.
            let again = namespaces(cage.pid).ok();
            match self.look(entry.role, cage.pid, again.as_ref().unwrap_or(&cage.namespaces), &cage.expected) {
                Ok((seen, now)) => {
                    cage.interfaces = owned(&seen.usable_interfaces());
                    let since = |layer: &Layer| if again.is_none() && noted(entry.role, layer) { START } else { "now" };
                    layers.extend(now.iter().map(|layer| line(&entry.name, layer, since(layer))));
                    let held = cage.held.as_ref().map(|held| held.layer(cage.pid));
                    layers.extend(held.map(|layer| line(&entry.name, &layer, "now")));
                }
                Err(_) => ok = false,
            }
            layers.extend(cage.report.layers.iter().map(|layer| line(&entry.name, layer, START)));
        }
        let mut processes: Vec<admin::Process> = inner.entries.iter().chain(&inner.modules).map(process).collect();
        if let Some(cage) = &inner.unseal {
            layers.extend(cage.layers.iter().map(|layer| line(Role::Unseal.name(), layer, START)));
            let ended =
                Entry { state: "done", ..Entry::new(Role::Unseal, Role::Unseal.name().to_owned(), self.started_at) };
            processes.push(admin::Process { network_interfaces: cage.interfaces.clone(), ..process(&ended) });
        }
        let ok = ok && layers.iter().all(|layer| layer.ok);
        let (uid, conditions) = (Uid::of_this_process().name().to_owned(), self.conditions(&inner));
        admin::DoctorReport { processes, layers, uid, ok, conditions }
    }
}

pub(super) fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn process(entry: &Entry) -> admin::Process {
    let cage = entry.cage.as_ref();
    admin::Process {
        name: entry.name.clone(),
        pid: cage.and_then(|cage| u32::try_from(cage.pid).ok()).unwrap_or(0),
        state: entry.state.to_owned(),
        restarts: entry.restarts,
        last_exit: entry.last_exit.clone(),
        since: entry.since,
        syscalls_allowed: u32::try_from(syscalls_allowed(entry.role)).unwrap_or(u32::MAX),
        network_interfaces: cage.map(|cage| cage.interfaces.clone()).unwrap_or_default(),
    }
}

fn line(process: &str, layer: &Layer, when: &str) -> admin::Layer {
    admin::Layer {
        process: process.to_owned(),
        name: layer.name.to_string(),
        expected: layer.expected.clone(),
        seen: layer.seen.clone(),
        ok: layer.ok,
        when: when.to_owned(),
        detail: layer.detail.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn board() -> Board {
        Board::new(Baseline::of_this_process().unwrap(), String::from("/home"), String::new(), 1)
    }

    #[test]
    fn ready_is_when_all_are_and_no_alarm_stands() {
        let board = board();
        assert_eq!(board.status().state, "starting");
        PROCESSES.into_iter().for_each(|role| board.state(role, "ready", 2));
        assert_eq!((board.status().state.as_str(), board.status().ready_at), ("ready", 2));
        board.ended(Role::Vault, "SIGKILL", true, 3);
        let status = board.status();
        assert_eq!(status.state, "degraded");
        assert_eq!(status.conditions[0].code, "process.vault.away");
        assert_eq!((status.processes[1].last_exit.as_str(), status.processes[1].restarts), ("SIGKILL", 1));
        board.state(Role::Vault, "ready", 4);
        board.alarm("process.noded.filter", String::from("x"), "y", 5);
        assert_eq!((board.status().state.as_str(), board.status().ready_at), ("degraded", 2));
        board.clear("process.noded.filter");
        assert_eq!(board.status().state, "ready");
        board.stopping();
        assert_eq!(board.status().state, "stopping");
    }

    #[test]
    fn locked_is_a_state_of_its_own_and_no_fault() {
        let board = board();
        PROCESSES.into_iter().for_each(|role| board.state(role, "ready", 2));
        assert_eq!(board.key().state, "open");
        [Role::Front, Role::Vault].into_iter().for_each(|role| board.locked(role, 3));
        let status = board.status();
        assert_eq!((status.state.as_str(), board.key().state.as_str()), ("locked", "locked"));
        assert_eq!((status.conditions[0].code.as_str(), status.conditions[0].since), ("keys.locked", 3));
        board.alarm("process.noded.start", String::from("x"), "y", 5);
        assert_eq!(board.status().state, "degraded", "an alarm is not hidden by it");
    }

    #[test]
    fn a_trail_that_has_grown_large_is_named_and_no_alarm() {
        let folder = tempfile::tempdir().unwrap();
        let board = board();
        PROCESSES.into_iter().for_each(|role| board.state(role, "ready", 2));
        let filed = folder.path().join("filed");
        board.watch_filed(filed.clone());
        assert!(board.status().conditions.is_empty(), "before there is a trail");
        fs::create_dir(&filed).unwrap();
        let put = |name: String| fs::write(filed.join(name), "").unwrap();
        (1..FILED_MANY).for_each(|number| put(format!("{number:010}.segment.age")));
        (1..FILED_MANY).for_each(|number| put(format!("{number:010}.sha256")));
        assert!(board.status().conditions.is_empty());
        put(format!("{FILED_MANY:010}.segment"));
        let status = board.status();
        assert_eq!((status.conditions.len(), status.state.as_str()), (1, "ready"));
        assert_eq!(
            (status.conditions[0].code.as_str(), status.conditions[0].severity.as_str()),
            ("audit.filed-many", "warning")
        );
        fs::remove_file(filed.join("0000000001.segment.age")).unwrap();
        assert!(board.status().conditions.is_empty());
    }

    #[test]
    fn modules_are_shown_and_the_node_is_ready_without_them() {
        let board = board();
        PROCESSES.into_iter().for_each(|role| board.state(role, "ready", 2));
        board.module_state("files", "starting", 3);
        assert_eq!(board.status().state, "ready");
        board.module_state("files", "ready", 4);
        board.module_ended("files", "SIGKILL", false, 5);
        board.module_state("files", "starting", 6);
        board.module_ended("files", "SIGKILL", true, 7);
        let shown = board.status().processes.pop().unwrap();
        assert_eq!((shown.name.as_str(), shown.state.as_str()), ("module files", "down"));
        assert_eq!((shown.restarts, shown.last_exit.as_str()), (1, "SIGKILL"), "an end that was asked for is none");
        assert_eq!(board.status().processes.len(), PROCESSES.len() + 1);
    }

    #[test]
    fn alarms_are_bounded_and_a_missing_process_is_not_ok() {
        let board = board();
        (0..2 * ALARMS).for_each(|number| board.alarm(&number.to_string(), String::new(), "", 1));
        assert_eq!(board.status().conditions.len(), ALARMS);
        assert!(!board.doctor().ok);
    }
}
