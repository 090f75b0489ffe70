//! A run from its beginning to its verdict.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::counter::Counter;
use super::crew::{Crew, Member, held};
use super::faults::Faults;
use super::ledger::{Ledger, SENDERS};
use super::place;
use super::plan::{Chance, Options, plan};
use super::report::{Report, say};
use super::watch::{Watch, conditions, left_over};

/// How long links, answers, conditions and inboxes may take to come right when trouble is over. Messages for a peer that was away are
/// tried again after five minutes at most, and links are offered anew as fast.
const CALM: Duration = Duration::from_secs(420);
/// How often the condition of all is looked at then.
const LOOK: Duration = Duration::from_secs(2);
/// Longest complaint that is kept: some end with a whole log.
const COMPLAINT: usize = 600;
/// How often it says how far it is.
const SAY: Duration = Duration::from_secs(60);

/// Asked to end early.
static ENDED: AtomicBool = AtomicBool::new(false);

/// The time of a run: when trouble began, and when it is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    begun: Instant,
    over: Instant,
}

impl Clock {
    fn new(seconds: u64) -> Self {
        let begun = Instant::now();
        Self { begun, over: begun + Duration::from_secs(seconds) }
    }

    /// Seconds since trouble began.
    pub(crate) fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Whether trouble is over.
    pub(crate) fn is_over(&self) -> bool {
        is_ended() || Instant::now() >= self.over
    }

    /// Sleeps, not past the end.
    pub(crate) fn nap(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() && Instant::now() < until {
            std::thread::sleep((until - Instant::now()).min(Duration::from_millis(200)));
        }
    }

    /// Sleeps until this long after the beginning.
    pub(crate) fn nap_until(&self, time: Duration) {
        self.nap((self.begun + time).saturating_duration_since(Instant::now()));
    }
}

/// Calls `heard` whenever this process is asked to end (SIGINT, SIGTERM), which does not end it by itself any more. By handlers: what a
/// process blocks, the programs that it starts would block, too.
pub(crate) fn on_signals(heard: impl Fn() + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => heard(),
                    _ = terminate.recv() => heard(),
                }
            }
        });
    });
    Ok(())
}

/// Everything; whether nothing was violated.
pub(crate) fn run(options: &Options) -> Result<bool> {
    on_signals(|| ENDED.store(true, Ordering::Relaxed))?;
    fs::create_dir_all(&options.out)?;
    let out = options.out.canonicalize()?;
    say(&format!(
        "soak: seed {}, {} nodes, links of {} s, {} s of trouble (one in {} s), {} messages a second",
        options.seed, options.nodes, options.life, options.seconds, options.every, options.rate
    ));
    let began = Instant::now();
    place::prepare()?;
    let crew = Crew::raise(options)?;
    let ran = soak(options, &crew, began, &out);
    for member in &crew.members {
        // What they said is wanted most when it went wrong.
        let _ = fs::create_dir_all(out.join("logs"));
        let _ = fs::copy(member.log(), out.join("logs").join(format!("{}.log", member.name)));
    }
    let _ = fs::copy(std::path::Path::new(place::FOLDER).join("directory/serve.log"), out.join("logs/directory.log"));
    ran
}

fn soak(options: &Options, crew: &Crew, began: Instant, out: &std::path::Path) -> Result<bool> {
    crew.link()?;
    let waited = calm(Instant::now() + CALM, "every pair linked", || unlinked(crew));
    waited.context("before any trouble")?;
    say(&format!("  {:>6.0} s  everybody is up, every pair linked", began.elapsed().as_secs_f64()));
    let plan = plan(options);
    let (ledger, faults, watch) = (Ledger::default(), Faults::default(), Watch::default());
    let counter = Counter::new(crew);
    let violations = Mutex::new(Vec::new());
    let complain = |what: String| {
        let what: String = what.chars().take(COMPLAINT).collect();
        say(&format!("  VIOLATED: {what}"));
        held(&violations).push(what);
    };
    let mut seconds = BTreeMap::from([("start", began.elapsed().as_secs_f64())]);
    let clock = Clock::new(options.seconds);
    let done = AtomicBool::new(false);
    let settled = std::thread::scope(|threads| {
        threads.spawn(|| watch.keep(crew, &clock, &faults, || done.load(Ordering::Relaxed), complain));
        threads.spawn(|| tell(&clock, &faults));
        let speakers: Vec<_> = (0..SENDERS)
            .map(|number| {
                let chance = Chance::new(options.seed, 100 + number as u64);
                let (ledger, clock) = (&ledger, &clock);
                threads.spawn(move || ledger.speak(crew, clock, chance, options.rate, complain))
            })
            .collect();
        let counts = threads.spawn(|| {
            counter.count(crew, &clock, Chance::new(options.seed, 99), options.rate, complain);
        });
        faults.make(crew, &clock, &plan, complain);
        clock.nap_until(Duration::from_secs(options.seconds));
        speakers.into_iter().for_each(|speaker| drop(speaker.join()));
        drop(counts.join());
        seconds.insert("trouble", clock.seconds());
        let settled = settle(crew, complain);
        seconds.insert("until all was well", clock.seconds());
        done.store(true, Ordering::Relaxed);
        settled
    });
    let messages = ledger.settle(crew, CALM)?;
    let mut report = Report {
        options,
        whole: !is_ended(),
        seconds,
        pairs: crew.pairs().count(),
        pairs_linked: crew.pairs().count() - settled,
        links: links(crew),
        messages,
        counted: counter.settle(crew, CALM),
        modules_started_again: restarts(crew),
        released: held(&watch.released).clone(),
        faults: counted(&faults),
        started_again: held(&faults.restarts).clone(),
        weather: &crew.weather.did,
        alarms: held(&watch.alarms).clone(),
        memory: watch.lives(),
        violations: Vec::new(),
        plan: &plan,
    };
    held(&violations).drain(..).for_each(|what| report.violated(what));
    stop(crew, &mut report);
    judge(crew, &mut report);
    report.print();
    report.write(out)?;
    say(&format!("  report: {}", out.join("report.json").display()));
    Ok(report.violations.is_empty())
}

/// Troubles by kind: made, and how many of them found nothing to strike.
fn counted(faults: &Faults) -> BTreeMap<&'static str, [usize; 2]> {
    let mut kinds = BTreeMap::<&'static str, [usize; 2]>::new();
    for struck in held(&faults.struck).iter() {
        let [made, missed] = kinds.entry(struck.fault.name()).or_default();
        *made += 1;
        *missed += usize::from(!struck.hit);
    }
    kinds
}

/// Says now and then how far it is.
fn tell(clock: &Clock, faults: &Faults) {
    while !clock.is_over() {
        clock.nap(SAY);
        say(&format!("  {:>6.0} s  {} troubles", clock.seconds(), held(&faults.struck).len()));
    }
}

/// Whether it was asked to end early.
pub(crate) fn is_ended() -> bool {
    ENDED.load(Ordering::Relaxed)
}

/// Looks until `condition` finds nothing amiss, not longer than until `end`.
fn calm(end: Instant, what: &str, condition: impl Fn() -> Result<()>) -> Result<()> {
    loop {
        let found = condition();
        if found.is_ok() || Instant::now() >= end || is_ended() {
            return found.with_context(|| format!("waited in vain for: {what}"));
        }
        std::thread::sleep(LOOK);
    }
}

fn unlinked(crew: &Crew) -> Result<()> {
    let missing = crew.unlinked()?;
    ensure!(missing.is_empty(), "not linked: {}", missing.join(" "));
    Ok(())
}

/// After the trouble: every pair linked and answering both ways, and no alarm left. How many pairs are not linked.
fn settle(crew: &Crew, complain: impl Fn(String)) -> usize {
    // One time for all of it: what does not come right holds up nobody else.
    let end = Instant::now() + CALM;
    let linked = calm(end, "every pair linked", || unlinked(crew));
    linked.unwrap_or_else(|error| complain(format!("{error:#}")));
    let answers = |one: &Member, other: &Member| {
        calm(end, "an answer", || one.cli(&["peers", "ping", &other.id, "--count", "1"])?.ok().map(|_| ()))
            .with_context(|| format!("{} asks {}", one.name, other.name))
    };
    for (one, other) in crew.pairs() {
        let both = answers(one, other).and_then(|()| answers(other, one));
        both.unwrap_or_else(|error| complain(format!("{error:#}")));
    }
    for member in &crew.members {
        let quiet = calm(end, "no condition and every layer", || {
            let found = conditions(&member.status()?);
            ensure!(found.is_empty(), "{}: {found:?}", member.name);
            member.cli(&["doctor"])?.ok().with_context(|| member.name.clone()).map(|_| ())
        });
        quiet.unwrap_or_else(|error| complain(format!("{error:#}")));
    }
    crew.unlinked().map_or(usize::MAX, |missing| missing.len()).min(crew.pairs().count())
}

/// What the trails say of links.
fn links(crew: &Crew) -> BTreeMap<&'static str, u64> {
    let mut links = BTreeMap::new();
    for (what, event) in [
        ("links issued", "\"link.issued\""),
        ("links accepted", "\"link.accepted\""),
        ("renewals issued", "\"link.renewal_issued\""),
        ("renewals accepted", "\"link.renewal_accepted\""),
    ] {
        links.insert(what, 0);
        for member in &crew.members {
            if let Ok(trail) = member.cli(&["audit", "export"]) {
                *links.entry(what).or_default() += trail.stdout.matches(event).count() as u64;
            }
        }
    }
    links
}

/// How often supervisors have started each module again since they were started themselves.
fn restarts(crew: &Crew) -> BTreeMap<String, u64> {
    let mut restarts = BTreeMap::new();
    for status in crew.members.iter().filter_map(|member| member.status().ok()) {
        for process in status["supervisor"]["processes"].as_array().into_iter().flatten() {
            if let Some(module) = process["name"].as_str().and_then(|name| name.strip_prefix("module ")) {
                *restarts.entry(module.to_owned()).or_default() += process["restarts"].as_u64().unwrap_or(0);
            }
        }
    }
    restarts
}

/// Stops everybody; nothing may be left.
fn stop(crew: &Crew, report: &mut Report<'_>) {
    for member in &crew.members {
        if let Err(error) = held(&member.node).down() {
            report.violated(format!("{} does not stop: {error:#}", member.name));
        }
    }
    if let Err(error) = held(&crew.guide.directory).down() {
        report.violated(format!("the directory does not stop: {error:#}"));
    }
    let end = Instant::now() + Duration::from_secs(10);
    let mut left = left_over();
    while !left.is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(200));
        left = left_over();
    }
    for process in left {
        report.violated(format!("left over: {process}"));
    }
}

fn judge(crew: &Crew, report: &mut Report<'_>) {
    let messages = &report.messages;
    let mut found = Vec::new();
    for (what, which) in [
        ("lost", &messages.lost),
        ("came twice", &messages.doubled),
        ("out of order", &messages.out_of_order),
        ("not what was sent", &messages.strange),
    ] {
        found.extend(which.iter().map(|message| format!("message {what}: {message}")));
    }
    if messages.acknowledged == 0 {
        found.push(String::from("no message was acknowledged: nothing was shown"));
    }
    found.extend(report.counted.wrong.iter().map(|wrong| format!("installed module: {wrong}")));
    if report.counted.acknowledged == 0 {
        found.push(String::from("the installed module acknowledged nothing: nothing was shown"));
    }
    if report.pairs_linked < report.pairs {
        found.push(format!("{} pairs are not linked", report.pairs - report.pairs_linked));
    }
    for life in report.memory.iter().filter(|life| life.grew) {
        found.push(format!("{} of {} grew by {:.0} KiB a minute", life.process, life.of, life.own_kib_per_minute));
    }
    if !report.whole {
        found.push(String::from("it was ended before its time"));
    }
    for member in &crew.members {
        let log = fs::read_to_string(member.log()).unwrap_or_default();
        for line in log.lines().filter(|line| line.contains("panicked") || line.contains("SIGSYS")) {
            found.push(format!("{}: {line}", member.name));
        }
    }
    found.into_iter().for_each(|what| report.violated(what));
}
