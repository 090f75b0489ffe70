//! Every state that a machine can reach, breadth first: for tests that hold protocol code to its properties under every order of
//! events. The shortest way to a broken property is what a failure shows.
//!
//! Of our own and small, because what is asked here is more than that no bad state is reached: from *each* state a fair run must
//! lead to a good end ([`Machine::check`] runs it), also where ways meet again or go round, which the checkers at hand do not promise.

use std::collections::{HashSet, VecDeque};
use std::fmt::{Display, Formatter};

/// What is searched.
pub(crate) trait Machine {
    /// All that decides what can happen next.
    type State: Clone;
    /// One event.
    type Action: Clone + Display;

    /// Where it begins.
    fn start(&self) -> Self::State;
    /// What may happen in `state`.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;
    /// What `action` makes of it. One that changes nothing is found out by its key.
    fn step(&self, state: &Self::State, action: &Self::Action) -> Self::State;
    /// Equal for states that are the same, and for no others.
    fn key(&self, state: &Self::State) -> [u8; 16];
    /// What must hold in every state; the name of what does not.
    fn check(&self, state: &Self::State) -> Result<(), String>;
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    pub(crate) depth: usize,
}

impl Display for Explored {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} states, {} steps, {} deep", self.states, self.steps, self.depth)
    }
}

/// A property that does not hold, and the shortest way there.
#[derive(Debug)]
pub(crate) struct Broken<A> {
    pub(crate) property: String,
    pub(crate) way: Vec<A>,
}

impl<A: Display> Display for Broken<A> {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.property)?;
        self.way.iter().enumerate().try_for_each(|(number, action)| write!(out, "\n  {}. {action}", number + 1))
    }
}

impl<A: Display> Broken<A> {
    /// The way in one line.
    pub(crate) fn told(&self) -> String {
        if self.way.is_empty() {
            return "at the beginning".to_owned();
        }
        self.way.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

/// Whether more is to be searched than there is time for in each run of the suite.
pub(crate) fn is_deep() -> bool {
    std::env::var_os("OPENRED_SEARCH").is_some_and(|value| value == "deep")
}

/// Looks at all of it.
///
/// # Errors
/// The first property that does not hold.
///
/// # Panics
/// When there are more than `most` states: then the machine's own bounds are not what its test believes, and memory has one.
pub(crate) fn explore<M: Machine>(machine: &M, most: usize) -> Result<Explored, Broken<M::Action>> {
    let start = machine.start();
    let mut seen = HashSet::from([machine.key(&start)]);
    // How each state was reached: from which one, by what, and how deep it lies.
    let mut reached: Vec<(usize, Option<M::Action>, usize)> = vec![(0, None, 0)];
    let mut next = VecDeque::from([(0, start)]);
    let (mut steps, mut depth) = (0, 0);
    while let Some((number, state)) = next.pop_front() {
        if let Err(property) = machine.check(&state) {
            return Err(Broken { property, way: way_to(&reached, number) });
        }
        depth = reached[number].2;
        for action in machine.actions(&state) {
            steps += 1;
            let after = machine.step(&state, &action);
            if seen.insert(machine.key(&after)) {
                assert!(seen.len() <= most, "more than {most} states");
                next.push_back((reached.len(), after));
                reached.push((number, Some(action), depth + 1));
            }
        }
    }
    Ok(Explored { states: seen.len(), steps, depth })
}

/// One long list of events: each number picks one of those that may happen. Holds every state on the way to its properties.
///
/// # Errors
/// The first property that does not hold, and the way there.
pub(crate) fn wander<M: Machine>(machine: &M, choices: &[u16]) -> Result<(), Broken<M::Action>> {
    let mut state = machine.start();
    let mut way = Vec::new();
    for choice in choices {
        let actions = machine.actions(&state);
        let Some(action) = actions.get(usize::from(*choice) % actions.len().max(1)) else { return Ok(()) };
        state = machine.step(&state, action);
        way.push(action.clone());
        if let Err(property) = machine.check(&state) {
            return Err(Broken { property, way });
        }
    }
    Ok(())
}

fn way_to<A: Clone>(reached: &[(usize, Option<A>, usize)], mut number: usize) -> Vec<A> {
    let mut way = Vec::new();
    while let (from, Some(action), _) = &reached[number] {
        way.push(action.clone());
        number = *from;
    }
    way.reverse();
    way
}
