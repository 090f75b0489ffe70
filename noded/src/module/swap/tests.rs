//! Every swap with a kill of each process, or a failure, at each of its steps, in a world of values: after it, one generation is active and
//! works, nothing that was acknowledged is lost, and nothing is left over.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, VecDeque};

use super::machine::{Action, Event, LEAVING, Machine, PROBATION_MILLIS, Refused};
use super::record::Record;

/// What happens at one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    Nothing,
    KillNoded,
    KillAll,
    KillActive,
    KillNext,
    Fails,
}

const MISHAPS: [Mishap; 5] = [Mishap::KillNoded, Mishap::KillAll, Mishap::KillActive, Mishap::KillNext, Mishap::Fails];

/// What outlives `noded`: the store and the processes.
#[derive(Default)]
struct World {
    record: Record,
    /// Writes by state.
    rows: BTreeMap<u64, Vec<u64>>,
    processes: Vec<u64>,
    acknowledged: Vec<u64>,
    programs: BTreeMap<u64, String>,
    /// A version that migrates writes a mark first.
    migrates: bool,
}

/// `noded`'s memory.
struct Driver {
    machine: Machine,
    queue: VecDeque<Action>,
    routed: Option<(u64, u64)>,
    held: bool,
    written: bool,
    leaving: Vec<u64>,
    /// The version that comes with the node.
    installed: &'static str,
}

impl World {
    fn new(migrates: bool) -> Self {
        Self { rows: BTreeMap::from([(0, vec![])]), migrates, ..Self::default() }
    }

    /// A write of a generation with its epoch, as the store judges it.
    fn write(&mut self, state: u64, epoch: u64) -> bool {
        if epoch != self.record.epoch {
            return false;
        }
        let number = self.acknowledged.len() as u64 + 1;
        self.rows.get_mut(&state).expect("the active state is there").push(number);
        self.acknowledged.push(number);
        true
    }

    fn save(&mut self, record: Record) {
        self.record = record;
        let states = self.record.states();
        self.rows.retain(|state, _| states.contains(state));
    }

    fn start(&mut self) -> Driver {
        let (machine, actions) = Machine::restore(self.record.clone());
        let mut driver = Driver {
            machine,
            queue: actions.into(),
            routed: None,
            held: false,
            written: false,
            leaving: Vec::new(),
            installed: "1",
        };
        driver.attach(self);
        driver
    }
}

impl Driver {
    /// The active generation runs, started if need be, and is called.
    fn attach(&mut self, world: &mut World) {
        let record = self.machine.record();
        let active = record.active.number;
        if !world.processes.contains(&active) {
            world.processes.push(active);
        }
        self.routed = Some((active, record.epoch));
        let program = record.active.program;
        let version = world.programs.get(&program).map_or(self.installed, String::as_str);
        self.machine.attached(version, 0);
        self.held = false;
    }

    fn one_call(&mut self, world: &mut World) {
        let Some((number, epoch)) = self.routed else { return };
        if !self.held && world.processes.contains(&number) {
            let state = self.machine.record().active.state;
            assert!(world.write(state, epoch), "a call of the active generation writes");
            self.written = true;
        }
    }

    /// Does one action; its answer.
    fn act(&mut self, world: &mut World, action: Action, fails: bool) -> Option<Event> {
        if fails && !matches!(action, Action::Route { .. } | Action::Drain(_) | Action::Stop(_)) {
            return Some(Event::Failed("as was asked".into()));
        }
        let event = match action {
            Action::Save(record) => {
                world.save(*record);
                Event::Saved
            }
            Action::Copy { from, to } => {
                let rows = world.rows[&from].clone();
                world.rows.insert(to, rows);
                self.written = false;
                Event::Copied
            }
            Action::Start { next, .. } => {
                world.processes.push(next.number);
                let active = self.machine.record().active.clone();
                world.programs.entry(active.number).or_insert(active.version);
                Event::Attached(world.programs.entry(next.program).or_insert(self.installed.into()).clone())
            }
            Action::Migrate { .. } => match self.machine.record().next.clone() {
                Some(next) if !world.processes.contains(&next.number) => Event::Failed("it ended".into()),
                Some(next) if world.migrates => {
                    world.rows.get_mut(&next.state).unwrap().insert(0, 0);
                    Event::Migrated { changed: true }
                }
                _ => Event::Migrated { changed: false },
            },
            Action::Hold => {
                self.held = true;
                Event::Quiet { written: self.written }
            }
            Action::Begin { number, .. } if !world.processes.contains(&number) => Event::Failed("it ended".into()),
            Action::Begin { number, epoch } => {
                let old = self.routed.unwrap();
                assert!(old.0 == number || !world.write(0, old.1), "a late write is refused");
                assert_eq!(epoch, world.record.epoch);
                Event::Begun
            }
            Action::Route { number, epoch } => {
                assert_eq!(number, self.machine.record().active.number);
                (self.routed, self.held) = (Some((number, epoch)), false);
                if !world.processes.contains(&number) {
                    self.queue.extend(self.machine.active_ended("it ended"));
                    self.attach_unless_replaced(world);
                }
                return None;
            }
            Action::Drain(number) | Action::Stop(number) => {
                self.leaving.push(number);
                return None;
            }
        };
        Some(event)
    }

    fn attach_unless_replaced(&mut self, world: &mut World) {
        if self.machine.doing().is_none() {
            self.attach(world);
        }
    }

    /// Whoever was to go goes.
    fn let_go(&mut self, world: &mut World) {
        for number in std::mem::take(&mut self.leaving) {
            world.processes.retain(|process| *process != number);
            self.queue.extend(self.machine.handle(Event::Left(number), 0));
        }
    }

    /// One action, and a call after it. False when there is nothing to do.
    fn step(&mut self, world: &mut World, mishap: Mishap) -> bool {
        let Some(action) = self.queue.pop_front() else { return false };
        if let Some(event) = self.act(world, action, mishap == Mishap::Fails) {
            let actions = self.machine.handle(event, 0);
            self.queue.extend(actions);
        }
        self.one_call(world);
        true
    }

    fn kill(&mut self, world: &mut World, number: Option<u64>) {
        let Some(number) = number else { return };
        if !world.processes.contains(&number) {
            return;
        }
        world.processes.retain(|process| *process != number);
        if number == self.machine.record().active.number {
            let actions = self.machine.active_ended("killed");
            self.queue.extend(actions);
            self.attach_unless_replaced(world);
        }
    }

    fn rest(&mut self, world: &mut World) {
        while self.step(world, Mishap::Nothing) || !self.leaving.is_empty() {
            if self.queue.is_empty() {
                self.let_go(world);
            }
        }
        let active = self.machine.record().active.number;
        if !world.processes.contains(&active) {
            self.attach(world);
        }
    }
}

/// Runs `wish` with a mishap behind step `at`; false when the run has fewer steps.
fn run(
    world: &mut World,
    wish: impl Fn(&mut Driver) -> Result<Vec<Action>, Refused>,
    at: usize,
    mishap: Mishap,
) -> bool {
    let mut driver = world.start();
    driver.rest(world);
    let actions = wish(&mut driver).unwrap();
    driver.queue.extend(actions);
    let mut steps = 0;
    let mut reached = false;
    loop {
        let fails = if steps == at && mishap == Mishap::Fails { Mishap::Fails } else { Mishap::Nothing };
        if !driver.step(world, fails) {
            break;
        }
        if steps == at {
            reached = true;
            let (active, next) =
                (driver.machine.record().active.number, world.record.next.as_ref().map(|next| next.number));
            match mishap {
                Mishap::KillNoded => driver = world.start(),
                Mishap::KillAll => {
                    world.processes.clear();
                    driver = world.start();
                }
                Mishap::KillActive => driver.kill(world, Some(active)),
                Mishap::KillNext => driver.kill(world, next),
                Mishap::Nothing | Mishap::Fails => {}
            }
        }
        steps += 1;
    }
    driver.rest(world);
    driver.one_call(world);
    if mishap == Mishap::Fails {
        // What the store did not take in the end (what to forget) is taken at the next start.
        driver = world.start();
        driver.rest(world);
        driver.one_call(world);
    }
    check(world, &driver);
    reached
}

fn check(world: &World, driver: &Driver) {
    let record = driver.machine.record();
    assert_eq!(driver.machine.doing(), None);
    assert_eq!(world.processes, [record.active.number], "exactly one runs");
    assert_eq!(driver.routed, Some((record.active.number, world.record.epoch)), "and it is called, and may write");
    let durable = &world.record;
    let told = |record: &Record| (record.active.number, record.active.state, record.active.program, record.epoch);
    assert_eq!(told(durable), told(record));
    let kept: Vec<&u64> =
        [Some(record.active.state), record.aside].into_iter().flatten().flat_map(|state| &world.rows[&state]).collect();
    for write in &world.acknowledged {
        assert!(kept.contains(&write), "the write {write} is lost: {record:?}");
    }
    let active = &world.rows[&record.active.state];
    assert_eq!(active.iter().filter(|write| **write > 0).count(), {
        let mut once: Vec<_> = active.iter().filter(|write| **write > 0).collect();
        once.sort_unstable();
        once.dedup();
        once.len()
    });
    assert_eq!(world.rows.keys().copied().collect::<Vec<_>>(), record.states(), "no rows are left over");
}

fn swap(to: &'static str) -> impl Fn(&mut Driver) -> Result<Vec<Action>, Refused> {
    move |driver| {
        driver.installed = to;
        driver.machine.swap("", 0)
    }
}

#[test]
fn a_kill_or_a_failure_at_each_step_ends_with_one_generation_and_every_write() {
    for migrates in [false, true] {
        for mishap in MISHAPS {
            for at in 0.. {
                let mut world = World::new(migrates);
                let reached = run(&mut world, swap("2"), at, mishap);
                // And what comes after it goes as it should.
                run(&mut world, swap("3"), usize::MAX, Mishap::Nothing);
                assert_eq!(world.record.active.version, "3", "{migrates} {mishap:?} {at}");
                if !reached {
                    assert!(at > 6, "a swap has more steps");
                    break;
                }
            }
        }
    }
}

#[test]
fn the_same_on_the_way_back() {
    for migrates in [false, true] {
        for snapshot in [false, true] {
            for mishap in MISHAPS {
                for at in 0.. {
                    let mut world = World::new(migrates);
                    run(&mut world, swap("2"), usize::MAX, Mishap::Nothing);
                    if snapshot && !migrates {
                        // The rows of before are asked for: what was written since is put aside.
                        let probation = world.record.probation.clone().unwrap();
                        assert!(probation.snapshot.is_some());
                    }
                    let reached = run(&mut world, |driver| driver.machine.roll_back(snapshot), at, mishap);
                    if !reached {
                        assert_eq!(world.record.active.version, "1");
                        assert_eq!(world.record.aside.is_some(), migrates || snapshot);
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn one_that_ends_in_its_probation_is_rolled_back_and_one_that_has_finished_it_is_not() {
    let mut world = World::new(false);
    run(&mut world, swap("2"), usize::MAX, Mishap::Nothing);
    run(&mut world, swap("3"), usize::MAX, Mishap::Nothing);
    let mut driver = world.start();
    driver.rest(&mut world);
    let active = driver.machine.record().active.number;
    driver.kill(&mut world, Some(active));
    driver.rest(&mut world);
    driver.one_call(&mut world);
    check(&world, &driver);
    assert_eq!(world.record.active.version, "1", "version 2 had not finished its own");
    assert!(world.record.outcome.starts_with("3 was rolled back in its probation: killed"), "{}", world.record.outcome);
    run(&mut world, swap("2"), usize::MAX, Mishap::Nothing);
    let mut driver = world.start();
    assert_eq!(driver.machine.handle_timeout(PROBATION_MILLIS - 1), []);
    driver.installed = "2";
    let until = driver.machine.poll_timeout().unwrap();
    driver.queue.extend(driver.machine.handle_timeout(until));
    driver.rest(&mut world);
    let active = driver.machine.record().active.number;
    driver.kill(&mut world, Some(active));
    driver.rest(&mut world);
    check(&world, &driver);
    assert_eq!((world.record.active.version.as_str(), world.record.active.number), ("2", active), "started again");
    assert_eq!(driver.machine.roll_back(false), Err(Refused::NothingBefore));
}

#[test]
fn four_leave_at_once_and_the_next_swap_waits() {
    let mut world = World::new(false);
    let mut driver = world.start();
    driver.rest(&mut world);
    for version in ["2", "3", "4", "5"] {
        let actions = swap(version)(&mut driver).unwrap();
        driver.queue.extend(actions);
        while driver.step(&mut world, Mishap::Nothing) {}
    }
    assert_eq!(driver.machine.record().leaving.len(), LEAVING);
    assert_eq!(swap("6")(&mut driver).unwrap(), []);
    assert_eq!(driver.machine.doing(), Some("waiting"));
    assert_eq!(swap("6")(&mut driver), Err(Refused::UnderWay));
    driver.one_call(&mut world);
    driver.rest(&mut world);
    check(&world, &driver);
    assert_eq!(world.record.active.version, "6");
}

#[test]
fn a_rollback_from_one_that_has_ended_waits_for_nobody() {
    let mut world = World::new(false);
    let mut driver = world.start();
    driver.rest(&mut world);
    for version in ["2", "3", "4", "5"] {
        let actions = swap(version)(&mut driver).unwrap();
        driver.queue.extend(actions);
        while driver.step(&mut world, Mishap::Nothing) {}
    }
    assert_eq!(swap("6")(&mut driver).unwrap(), []);
    let actions = driver.machine.active_ended("it has gone");
    assert!(matches!(actions[..], [Action::Save(_)]), "{actions:?}");
    assert_eq!(driver.machine.doing(), Some("copying"));
    assert_eq!(driver.machine.record().next.as_ref().unwrap().version, "1");
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let mut world = World::new(true);
    run(&mut world, swap("2"), usize::MAX, Mishap::Nothing);
    assert_eq!(Record::decode(&world.record.encode()).unwrap(), world.record);
    assert_eq!(Record::decode(b"{}"), None);
}
