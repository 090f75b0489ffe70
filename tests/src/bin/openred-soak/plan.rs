//! What a run is to be, and its trouble, drawn from the seed before it begins.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

/// Most nodes: each has a place on the bridge and ten uids.
const NODES: usize = 40;
/// How far clocks are stepped, in seconds: what nobody notices, what makes short links end, and hours within the tolerance. Not on by more
/// than a minute: when such a clock comes back, the trail's last record is ahead of it, and a key process that ends then is not started again until
/// the clock has passed that (docs/audit.md). That is meant, and nothing that passes by itself within a run.
const STEPS: [i64; 8] = [-3600, -600, -90, -20, -5, 5, 20, 50];
/// Kinds of trouble, by name.
const KINDS: usize = 14;
/// The modules that are killed and swapped: one that comes with the node, and one that is installed and stands before every delivery.
pub(crate) const MODULES: [&str; 2] = ["messaging", openred_tests::swap_desk::MODULE];
/// Their processes, as the supervisor names them.
const PROCESSES: [&str; 2] = ["module messaging", "module swapped"];
/// Node 0 is spared from kills, so that its memory is watched over the whole run.
pub(crate) const SPARED: usize = 0;

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Options {
    /// How long trouble is made, in seconds.
    pub(crate) seconds: u64,
    pub(crate) nodes: usize,
    pub(crate) seed: u64,
    /// Mean time between two troubles, in seconds.
    pub(crate) every: f64,
    /// Messages a second, of all senders together.
    pub(crate) rate: f64,
    /// Life of a link, in seconds.
    pub(crate) life: u64,
    pub(crate) out: PathBuf,
}

impl Options {
    /// From the command line.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let out = PathBuf::from("target/soak");
        let mut options = Self { seconds: 3600, nodes: 10, seed: drawn()?, every: 8.0, rate: 4.0, life: 60, out };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value"));
            match word.as_str() {
                "--seconds" => options.seconds = value()?.parse().context("--seconds NUMBER")?,
                "--nodes" => options.nodes = value()?.parse().context("--nodes NUMBER")?,
                "--seed" => options.seed = value()?.parse().context("--seed NUMBER")?,
                "--every" => options.every = value()?.parse().context("--every SECONDS")?,
                "--rate" => options.rate = value()?.parse().context("--rate NUMBER")?,
                "--life" => options.life = value()?.parse().context("--life SECONDS")?,
                "--out" => options.out = PathBuf::from(value()?),
                _ => bail!(
                    "usage: openred-soak [--seconds N] [--nodes N] [--seed N] [--every SECONDS] [--rate N] [--life SECONDS] [--out FOLDER]"
                ),
            }
        }
        ensure!((2..=NODES).contains(&options.nodes), "--nodes: 2 to {NODES}");
        ensure!(
            options.every >= 0.1 && options.rate > 0.0 && options.rate <= 1000.0,
            "--every or --rate is out of range"
        );
        Ok(options)
    }

    /// The same as words, with the seed that was drawn.
    pub(crate) fn to_arguments(&self) -> Result<Vec<String>> {
        let out = self.out.to_str().context("the folder's name is no text")?.to_owned();
        let pairs = [
            ("--seconds", self.seconds.to_string()),
            ("--nodes", self.nodes.to_string()),
            ("--seed", self.seed.to_string()),
            ("--every", self.every.to_string()),
            ("--rate", self.rate.to_string()),
            ("--life", self.life.to_string()),
            ("--out", out),
        ];
        Ok(pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect())
    }
}

fn drawn() -> Result<u64> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).context("the system has randomness")?;
    Ok(u64::from(u32::from_ne_bytes(bytes)))
}

/// Chance, one stream for each who needs some.
#[derive(Debug)]
pub(crate) struct Chance(ChaCha20Rng);

impl Chance {
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        random.set_stream(stream);
        Self(random)
    }

    /// 0 up to, not including, `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.0.next_u64() % end.max(1) as u64).unwrap_or(0)
    }

    /// 0.0 to 1.0.
    pub(crate) fn part(&mut self) -> f64 {
        f64::from(self.0.next_u32()) / f64::from(u32::MAX)
    }

    fn between(&mut self, least: f64, most: f64) -> f64 {
        least + self.part() * (most - least)
    }
}

/// One trouble. Times in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// `kill -9` of one of a node's processes.
    Kill { node: usize, process: &'static str },
    /// `kill -9` of a node's supervisor; it is started again after a while.
    KillSupervisor { node: usize, away: f64 },
    /// SIGTERM, and started again.
    Restart { node: usize, away: f64 },
    /// `kill -9` of the directory.
    KillDirectory { away: f64 },
    /// A node's cable is out.
    Unplug { node: usize, lasts: f64 },
    /// The directory's cable is out.
    UnplugDirectory { lasts: f64 },
    /// The nodes of this mask are on a network of their own; the directory stays with the others.
    Split { mask: u64, lasts: f64 },
    /// A node's wall clock is off.
    Clock { node: usize, seconds: i64, lasts: f64 },
    /// A node's module is swapped for its program as it is, while it is called.
    Swap { node: usize, module: &'static str },
    /// Requests to the nodes behind proxies, and all to the directory, are lost, doubled and held up.
    Foul { lasts: f64 },
}

impl Fault {
    /// Its name in the report.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Kill { process, .. } => process,
            Self::KillSupervisor { .. } => "supervisor",
            Self::Restart { .. } => "restart",
            Self::KillDirectory { .. } => "directory",
            Self::Unplug { .. } => "unplug",
            Self::UnplugDirectory { .. } => "unplug-directory",
            Self::Split { .. } => "split",
            Self::Clock { .. } => "clock",
            Self::Swap { .. } => "swap",
            Self::Foul { .. } => "foul",
        }
    }

    /// Whether a node can notice it.
    pub(crate) const fn concerns(&self, number: usize) -> bool {
        match self {
            Self::Kill { node, .. }
            | Self::KillSupervisor { node, .. }
            | Self::Restart { node, .. }
            | Self::Unplug { node, .. }
            | Self::Swap { node, .. }
            | Self::Clock { node, .. } => *node == number,
            _ => true,
        }
    }

    fn draw(chance: &mut Chance, nodes: usize) -> Self {
        let any = chance.below(nodes);
        let mortal = 1 + chance.below(nodes - 1);
        let lasts = if chance.below(4) == 0 { chance.between(15.0, 40.0) } else { chance.between(2.0, 15.0) };
        let away = chance.between(0.0, 6.0);
        match chance.below(100) {
            0..20 => Self::Kill { node: mortal, process: "noded" },
            20..27 => Self::Kill { node: mortal, process: PROCESSES[chance.below(PROCESSES.len())] },
            27..37 => Self::Kill { node: mortal, process: "vault" },
            37..47 => Self::Kill { node: mortal, process: "front" },
            47..56 => Self::KillSupervisor { node: mortal, away },
            56..61 => Self::Restart { node: mortal, away },
            61..65 => Self::KillDirectory { away },
            65..75 => Self::Unplug { node: any, lasts },
            75..78 => Self::UnplugDirectory { lasts },
            78..83 => Self::Split { mask: mask(chance, nodes), lasts },
            83..90 => Self::Clock { node: any, seconds: STEPS[chance.below(STEPS.len())], lasts },
            90..95 => Self::Swap { node: mortal, module: MODULES[chance.below(MODULES.len())] },
            _ => Self::Foul { lasts },
        }
    }
}

/// Some of the nodes, not none and not all.
fn mask(chance: &mut Chance, nodes: usize) -> u64 {
    let all = (1_u64 << nodes) - 1;
    let drawn = chance.0.next_u64() & all;
    if drawn == 0 || drawn == all { 1 } else { drawn }
}

/// A trouble and its moment, in seconds from when trouble begins.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Planned {
    pub(crate) at: f64,
    pub(crate) fault: Fault,
}

/// All troubles of a run. One of each kind comes first, in an order of its own, and none of these waits so long that the rest of them
/// has no time left: a short run has all of them too, whatever its seed.
pub(crate) fn plan(options: &Options) -> Vec<Planned> {
    let mut chance = Chance::new(options.seed, 0);
    let (mut at, mut plan) = (0.0, Vec::<Planned>::new());
    let mut first: Vec<Fault> = Vec::new();
    while first.len() < KINDS {
        let fault = Fault::draw(&mut chance, options.nodes);
        if first.iter().all(|drawn| drawn.name() != fault.name()) {
            first.push(fault);
        }
    }
    // It is two minutes before nobody feels this one any more: in a short run it comes before the others.
    first.sort_by_key(|fault| matches!(fault, Fault::KillDirectory { .. }));
    loop {
        // Poisson's: close together now and then.
        let gap = -options.every * chance.part().max(1e-3).ln();
        let share = (options.seconds as f64 - at) / (first.len() as f64 + 1.0);
        at += if first.is_empty() { gap } else { gap.min(share) };
        if at >= options.seconds as f64 {
            return plan;
        }
        let fault = first.pop().unwrap_or_else(|| Fault::draw(&mut chance, options.nodes));
        plan.push(Planned { at, fault });
    }
}

/// Seconds as a duration.
pub(crate) fn span(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &str) -> Result<Options> {
        Options::parse(&words.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_seed_draws_the_same_trouble_again_and_another_draws_other() {
        let drawn = |words: &str| format!("{:?}", plan(&options(words).unwrap_or_else(|error| panic!("{error}"))));
        assert_eq!(drawn("--seed 7"), drawn("--seed 7"));
        assert_ne!(drawn("--seed 7"), drawn("--seed 8"));
        let again = options("--seed 7 --nodes 5 --every 2.5").and_then(|options| options.to_arguments());
        let again = again.map(|words| drawn(&words.join(" ")));
        assert_eq!(again.ok(), Some(drawn("--seed 7 --nodes 5 --every 2.5")));
    }

    #[test]
    fn every_kind_of_trouble_comes_and_none_kills_the_spared_node() {
        let Ok(options) = options("--seed 1 --seconds 7200") else { panic!("these are options") };
        let plan = plan(&options);
        let names: std::collections::BTreeSet<_> =
            plan.iter().take(KINDS).map(|planned| planned.fault.name()).collect();
        assert_eq!(names.len(), KINDS);
        assert!(plan.windows(2).all(|two| two[0].at <= two[1].at));
        for planned in &plan {
            let spares = match &planned.fault {
                Fault::Kill { node, .. } | Fault::KillSupervisor { node, .. } | Fault::Restart { node, .. } => {
                    *node != SPARED && *node < options.nodes
                }
                Fault::Split { mask, .. } => *mask > 0 && *mask < (1 << options.nodes) - 1,
                _ => true,
            };
            assert!(spares, "{planned:?}");
        }
    }

    #[test]
    fn a_short_run_draws_each_kind_within_its_time_whatever_its_seed() {
        for seed in 0..200 {
            let words = format!("--seconds 45 --nodes 4 --every 2.5 --seed {seed}");
            let Ok(options) = options(&words) else { panic!("these are options") };
            let plan = plan(&options);
            let names: std::collections::BTreeSet<_> = plan.iter().map(|planned| planned.fault.name()).collect();
            assert_eq!(names.len(), KINDS, "{seed}: {names:?}");
            assert!(plan.iter().all(|planned| planned.at < 45.0), "{seed}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for words in ["--nodes 1", "--nodes 41", "--seconds", "--rate 0", "--every 0", "--frobnicate"] {
            assert!(options(words).is_err(), "{words}");
        }
    }
}
