//! What is looked at while trouble is made: alarms, memory, and processes that nobody looks after.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::Serialize;

use super::crew::{Crew, Member, held};
use super::faults::{Faults, Struck};
use super::place::FOLDER;
use super::plan::{Fault, MODULES};
use super::run::Clock;

/// How often everything is looked at.
const EVERY: Duration = Duration::from_secs(5);
/// How long after a trouble an alarm may still stand that it explains, in seconds: restarts are spaced by up to half a minute.
const GRACE: f64 = 90.0;
/// The same of alarms on the directory: one that was killed is busy for a minute, and nodes try again after up to another.
const DIRECTORY_GRACE: f64 = 150.0;
/// A module has ended three times in ten minutes.
const QUARANTINED: &str = "module.quarantined";
/// A hook has been late again and again: it has a tenth of a second, and the machine belongs to all the nodes.
const LATE: &str = "hook.off";
/// Processes that a supervisor starts, as the kernel names them.
const CHILDREN: [&str; 4] = ["noded", "cryptod", "cryptod-vault", "cryptod-unseal"];
/// Processes whose memory is watched.
const WATCHED: [&str; 5] = ["openred", "noded", "cryptod", "cryptod-vault", "directory"];
/// A life's beginning does not count, in seconds: it fills its caches then.
const WARM_UP: f64 = 60.0;
/// Shorter lives say nothing on growth, in seconds.
const JUDGED: f64 = 300.0;
/// How much of its own memory a process may come to in the second half of its life, by the line through it, in KiB and in parts of what it had
/// then: the allocator's reserves. What fills once, as SQLite's cache, has done so before; what still rises would do so for ever.
const GROWTH: (f64, f64) = (1024.0, 0.02);

/// One process of the namespace.
#[derive(Debug)]
struct Process {
    pid: i32,
    parent: i32,
    name: String,
    is_dead: bool,
}

fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (start, rest) = stat.rsplit_once(')')?;
    let name = start.split_once('(')?.1.to_owned();
    let mut words = rest.split_whitespace();
    let is_dead = words.next()? == "Z";
    Some(Process { pid, parent: words.next()?.parse().ok()?, name, is_dead })
}

/// One look at a process, in KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// In seconds.
    at: f64,
    /// Proportional set size: pages that others share count in part.
    pss: f64,
    /// What of it no file lies behind: heap and stacks. The rest are pages of programs, which grow as code is used for the first time, and as
    /// others that shared them end.
    own: f64,
}

impl Sample {
    fn of(pid: i32, at: f64) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok();
        Some(Self { at, pss: field("Pss:")?, own: field("Pss_Anon:")? })
    }
}

/// The home that a supervisor or directory was given.
fn home(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let home = text.split('\0').find_map(|word| word.strip_prefix(FOLDER))?;
    Some(home.trim_matches('/').to_owned())
}

/// The memory of one process, from when it was first seen to when it was last.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Life {
    pub(crate) of: String,
    pub(crate) process: String,
    pub(crate) seconds: f64,
    pub(crate) first_kib: f64,
    pub(crate) last_kib: f64,
    pub(crate) most_kib: f64,
    /// Of the line through what was seen in the second half.
    pub(crate) kib_per_minute: f64,
    /// What of it no file lies behind, and the line through that.
    pub(crate) own_last_kib: f64,
    pub(crate) own_kib_per_minute: f64,
    /// Whether it was long enough to be judged, and grew too much.
    pub(crate) judged: bool,
    pub(crate) grew: bool,
}

/// Which node shows an alarm, and whose troubles explain it.
#[derive(Clone, Copy, Debug)]
struct About {
    by: usize,
    /// Another node that it is about.
    of: Option<usize>,
}

/// An alarm that a node showed.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Alarm {
    pub(crate) seen: usize,
    pub(crate) unprovoked: usize,
}

type Samples = BTreeMap<(String, String, i32), Vec<Sample>>;

/// Everything that was seen.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    samples: Mutex<Samples>,
    pub(crate) alarms: Mutex<BTreeMap<String, Alarm>>,
    /// Modules that were released from quarantine, and how often.
    pub(crate) released: Mutex<BTreeMap<&'static str, usize>>,
    /// Children without a supervisor at the last look.
    lone: Mutex<BTreeSet<i32>>,
}

impl Watch {
    /// Looks until `done`.
    pub(crate) fn keep(
        &self,
        crew: &Crew,
        clock: &Clock,
        faults: &Faults,
        done: impl Fn() -> bool,
        complain: impl Fn(String),
    ) {
        while !done() {
            let begun = Instant::now();
            self.count_processes(clock.seconds(), &complain);
            for (number, member) in crew.members.iter().enumerate() {
                // One that is just being started has no word to say.
                let at = clock.seconds();
                if let Ok(status) = member.status() {
                    for condition in conditions(&status) {
                        let about = crew.members.iter().position(|member| is_about(&condition, &member.id));
                        let told = About { by: number, of: about };
                        self.judge(told, at, &condition, &held(&faults.struck), &complain);
                        if condition.0 == QUARANTINED {
                            self.release(member);
                        }
                    }
                }
            }
            std::thread::sleep(EVERY.saturating_sub(begun.elapsed()));
        }
    }

    /// As its operator would: whichever of its modules is down for good is started again.
    fn release(&self, member: &Member) {
        for module in MODULES {
            if member.cli(&["module", "release", module]).is_ok_and(|answer| answer.code == 0) {
                *held(&self.released).entry(module).or_default() += 1;
            }
        }
    }

    fn judge(
        &self,
        told: About,
        at: f64,
        (code, detail): &(String, String),
        struck: &[Struck],
        complain: &impl Fn(String),
    ) {
        let provoked = struck.iter().any(|struck| {
            let grace = if code.starts_with("directory.") { DIRECTORY_GRACE } else { GRACE };
            let over = struck.to.map_or(f64::INFINITY, |to| to + grace);
            let explained = match told.of {
                // The peer was down, cut off, or without its keys, for as long as four offers take.
                Some(peer) => struck.fault.concerns(peer),
                None => struck.fault.concerns(told.by) && explains(&struck.fault, code),
            };
            explained && at >= struck.from - 1.0 && at <= over
        });
        let mut alarms = held(&self.alarms);
        let alarm = alarms.entry(code.clone()).or_default();
        alarm.seen += 1;
        if !provoked && code != LATE {
            alarm.unprovoked += 1;
            let number = told.by;
            complain(format!("n{number} shows {code} at {at:.0} s, which nothing provoked: {detail}"));
        }
    }

    fn count_processes(&self, at: f64, complain: &impl Fn(String)) {
        let own = i32::try_from(std::process::id()).unwrap_or(1);
        let all = processes();
        let mut alone = BTreeSet::new();
        let mut samples = held(&self.samples);
        for process in &all {
            let is_child = CHILDREN.contains(&process.name.as_str());
            if is_child && process.parent == own {
                if process.is_dead {
                    // Its supervisor was killed: whoever comes first in the namespace buries it.
                    let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
                } else {
                    alone.insert(process.pid);
                }
            }
            let keeper = if is_child { process.parent } else { process.pid };
            let is_mine = all.iter().any(|other| other.pid == keeper && other.parent == own);
            if is_mine
                && WATCHED.contains(&process.name.as_str())
                && let (Some(home), Some(sample)) = (home(keeper), Sample::of(process.pid, at))
            {
                samples.entry((home, process.name.clone(), process.pid)).or_default().push(sample);
            }
        }
        let mut before = held(&self.lone);
        for pid in alone.intersection(&before) {
            complain(format!("process {pid} outlived its supervisor by seconds"));
        }
        *before = alone;
    }

    /// What each process's memory did.
    pub(crate) fn lives(&self) -> Vec<Life> {
        held(&self.samples).iter().map(|((of, process, _), samples)| life(of, process, samples)).collect()
    }
}

/// After everything was stopped: what still runs beside this process.
pub(crate) fn left_over() -> Vec<String> {
    let own = i32::try_from(std::process::id()).unwrap_or(1);
    let others = processes().into_iter().filter(|process| process.pid != own && !process.is_dead);
    others.map(|process| format!("{} ({})", process.name, process.pid)).collect()
}

/// Codes and details of what a status complains of.
pub(crate) fn conditions(status: &serde_json::Value) -> Vec<(String, String)> {
    let both = ["supervisor", "node"].into_iter().filter_map(|who| status[who]["conditions"].as_array());
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    both.flatten().map(|condition| (text(&condition["code"]), text(&condition["detail"]))).collect()
}

/// Whether it is a doubt of the directory because of this node, which answers no offer. Details name the end of an id.
fn is_about((code, detail): &(String, String), id: &str) -> bool {
    let end = id.get(id.len().saturating_sub(8)..).unwrap_or(id);
    code == "directory.doubtful" && detail.contains(&format!("…{end}: unanswered"))
}

/// Whether a trouble of this kind may raise this alarm.
fn explains(fault: &Fault, code: &str) -> bool {
    match code {
        "process.noded.away" => matches!(fault, Fault::Kill { process: "noded", .. }),
        "process.vault.away" | "process.front.away" | "cryptod.away" => {
            matches!(fault, Fault::Kill { process: "vault" | "front", .. })
        }
        "module.down" => match fault {
            Fault::Kill { process, .. } => process.starts_with("module "),
            Fault::Swap { .. } => true,
            _ => false,
        },
        QUARANTINED => matches!(fault, Fault::Kill { process, .. } if process.starts_with("module ")),
        "directory.unreachable" => !matches!(fault, Fault::Kill { .. }),
        "directory.refused" => matches!(fault, Fault::KillDirectory { .. } | Fault::Clock { .. }),
        // No key is used while the clock stands more than a minute before what was recorded.
        "process.vault.start" => matches!(fault, Fault::Clock { seconds: ..-60, .. }),
        "clock.off" => matches!(fault, Fault::Clock { .. }),
        _ => false,
    }
}

fn life(of: &str, process: &str, samples: &[Sample]) -> Life {
    let (begun, last) = (samples.first().map_or(0.0, |first| first.at), samples.last().copied().unwrap_or_default());
    let ended = last.at;
    let from = begun + WARM_UP.max((ended - begun) / 2.0);
    let half: Vec<Sample> = samples.iter().copied().filter(|sample| sample.at >= from).collect();
    let watched = if half.len() > 2 { &half[..] } else { samples };
    let first = watched.first().copied().unwrap_or_default();
    let of_own = slope(watched, |sample| sample.own);
    let rise = of_own * (ended - first.at);
    let judged = ended - begun >= JUDGED;
    Life {
        of: of.to_owned(),
        process: process.to_owned(),
        seconds: ended - begun,
        first_kib: first.pss,
        last_kib: last.pss,
        most_kib: samples.iter().fold(0.0, |most, sample| most.max(sample.pss)),
        kib_per_minute: slope(watched, |sample| sample.pss) * 60.0,
        own_last_kib: last.own,
        own_kib_per_minute: of_own * 60.0,
        judged,
        grew: judged && rise > GROWTH.0 + GROWTH.1 * first.own,
    }
}

/// Least squares: how much a second.
fn slope(samples: &[Sample], of: fn(&Sample) -> f64) -> f64 {
    let count = samples.len().max(1) as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (middle, level) = (mean(|sample| sample.at), mean(of));
    let spread: f64 = samples.iter().map(|sample| (sample.at - middle).powi(2)).sum();
    let together: f64 = samples.iter().map(|sample| (sample.at - middle) * (of(sample) - level)).sum();
    if spread > 0.0 { together / spread } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(minutes: usize, kib: impl Fn(f64) -> f64) -> Life {
        let sample = |at| Sample { at, pss: kib(at), own: kib(at) / 2.0 };
        let samples: Vec<Sample> = (0..minutes * 12).map(|number| number as f64 * 5.0).map(sample).collect();
        life("n0", "noded", &samples)
    }

    #[test]
    fn memory_that_grows_is_told_from_memory_that_sways() {
        let swaying = watched(30, |at| 20_000.0 + 800.0 * (at / 40.0).sin());
        assert!(swaying.judged && !swaying.grew, "{swaying:?}");
        let growing = watched(30, |at| 20_000.0 + 5.0 * at);
        assert!(growing.grew && (growing.kib_per_minute - 300.0).abs() < 1.0, "{growing:?}");
        assert!((growing.own_kib_per_minute - 150.0).abs() < 1.0, "{growing:?}");
        let filling = watched(30, |at| 10_000.0 + 20_000.0 * (at / WARM_UP).min(1.0));
        assert!(!filling.grew, "caches fill at the beginning: {filling:?}");
        let settling = watched(60, |at| 5_000.0 + 10_000.0 * (at / 1500.0).min(1.0));
        assert!(!settling.grew, "what fills slowly, and once: {settling:?}");
        let leaking = watched(60, |at| 10_000.0 + 1.4 * at);
        assert!(leaking.grew, "a small process that would have twice as much after two hours: {leaking:?}");
        let files = life(
            "n0",
            "noded",
            &(0..720)
                .map(|number| f64::from(number) * 5.0)
                .map(|at| Sample { at, pss: 9_000.0 + 5.0 * at, own: 4_000.0 })
                .collect::<Vec<_>>(),
        );
        assert!(!files.grew, "pages of files come and go as the kernel pleases: {files:?}");
        let brief = watched(2, |at| 20_000.0 + 500.0 * at);
        assert!(!brief.judged && !brief.grew, "{brief:?}");
    }

    #[test]
    fn what_a_process_holds_by_itself_is_told_from_files() {
        let here = Sample::of(i32::try_from(std::process::id()).unwrap_or_default(), 3.0).unwrap_or_default();
        assert!(here.own > 0.0 && here.own < here.pss, "{here:?}");
    }

    #[test]
    fn an_alarm_is_explained_by_its_own_trouble_alone() {
        let (watch, complaints) = (Watch::default(), Mutex::new(Vec::new()));
        let killed = Struck { fault: Fault::Kill { node: 2, process: "vault" }, from: 10.0, to: Some(10.1), hit: true };
        let told = |told, at, code: &str| {
            held(&complaints).clear();
            watch.judge(told, at, &(code.to_owned(), String::new()), std::slice::from_ref(&killed), &|what| {
                held(&complaints).push(what);
            });
            held(&complaints).len()
        };
        let look = |by, at, code: &str| told(About { by, of: None }, at, code);
        assert_eq!(look(2, 12.0, "cryptod.away"), 0);
        assert_eq!(look(2, 9.5, "process.vault.away"), 0, "the look began before the trouble was noted");
        assert_eq!(look(1, 12.0, "cryptod.away"), 1, "another node");
        assert_eq!(look(2, 5.0, "cryptod.away"), 1, "before it");
        assert_eq!(look(2, 10.2 + GRACE, "cryptod.away"), 1, "long after it");
        assert_eq!(look(2, 12.0, "process.vault.filter"), 1, "nothing provokes this");
        assert_eq!(held(&watch.alarms)["cryptod.away"].seen, 4);
        assert_eq!(told(About { by: 0, of: Some(2) }, 12.0, "directory.doubtful"), 0, "the peer was without its vault");
        assert_eq!(told(About { by: 2, of: Some(1) }, 12.0, "directory.doubtful"), 1, "nothing befell the peer");
        assert_eq!(look(2, 12.0, "directory.doubtful"), 1, "of nobody");
        let silent = ("directory.doubtful".to_owned(), "D, about …i2fSb5BZ: unanswered: it signed".to_owned());
        assert!(is_about(&silent, "did:key:z6Mkfmi2fSb5BZ") && !is_about(&silent, "did:key:z6Mkfmi2fSb5BA"));
    }
}
