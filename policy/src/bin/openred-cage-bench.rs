//! Measures what the cage costs: a system call with and without the filter, alternating, and the time from the start of a child to
//! its report that it is confined. Started by `scripts/bench cage`. Not installed.
//!
//! `openred-cage-bench BLOCKS CALLS` prints one JSON object: samples by name, a call in nanoseconds and a cage in milliseconds.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use openred_policy::probe::cost::{self, Call};
use openred_policy::spawn::{SpawnSpec, spawn};
use openred_policy::{Cage, Descriptors, Error, Identity, LayerName, Role, Uid, Unconfined, barrier};

/// Uid of a child when this runs as root.
const CAGED: u32 = 61_770;
/// The longest that a child may take for one stage.
const STAGE: Duration = Duration::from_secs(30);
/// The first child loads the program from disk.
const WARM_UP: usize = 1;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "caged", role] => named(role).map_or(Ok(()), caged),
        [_, blocks, calls] => match (blocks.parse(), calls.parse()) {
            (Ok(blocks), Ok(calls)) => measure(blocks, calls),
            _ => return ExitCode::from(64),
        },
        _ => return ExitCode::from(64),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn named(name: &str) -> Option<Role> {
    Role::CAGED.into_iter().find(|role| role.name() == name)
}

fn measure(blocks: usize, calls: u32) -> Result<(), Error> {
    let failed = |source| Error::LocalKernel { layer: LayerName::Seccomp, call: "fork", source };
    let mut samples: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut add = |name: String, sample| samples.entry(name).or_default().push(sample);
    for (call, kind) in [(Call::Plain, "plain"), (Call::Checked, "checked")] {
        for _ in 0..blocks {
            let of = |role| {
                cost::of_calls(role, call, calls).map(|time| time.as_nanos() as f64 / f64::from(calls)).map_err(failed)
            };
            for role in Role::CAGED {
                let (without, with) = (of(None)?, of(Some(role))?);
                add(format!("call_{kind}"), without);
                add(format!("call_{kind}_{role}"), with);
                add(format!("filter_{kind}_{role}"), with - without);
            }
        }
    }
    for role in [Role::Front, Role::Noded] {
        for _ in 0..WARM_UP {
            set_up(role)?;
        }
        for _ in 0..blocks {
            add(format!("set_up_{role}"), set_up(role)?.as_secs_f64() * 1e3);
        }
    }
    let text = serde_json::to_string(&samples).map_err(|_| Error::PeerMalformed)?;
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

/// From the start of a child to its report.
fn set_up(role: Role) -> Result<Duration, Error> {
    let failed = |source| Error::LocalKernel { layer: LayerName::Spawn, call: "prepare", source };
    let identity = (Uid::of_this_process() == Uid::Separate).then_some(Identity { uid: CAGED, gid: CAGED });
    let (host, far) = barrier::Host::pair()?;
    let null = std::fs::File::open("/dev/null").map_err(failed)?;
    let spec = SpawnSpec::new(std::env::current_exe().map_err(failed)?)?.identity(identity)?;
    let spec = spec.argument("caged")?.argument(role.name())?;
    let spec = spec.descriptor(&null)?.descriptor(&null)?.descriptor(std::io::stderr())?.descriptor(&far)?;
    let start = Instant::now();
    let child = spawn(spec)?;
    drop(far);
    let time = loop {
        match host.next(STAGE)? {
            barrier::Stage::Namespaced => host.go()?,
            barrier::Stage::Confined { .. } => break start.elapsed(),
            _ => return Err(Error::PeerMalformed),
        }
    };
    child.wait()?;
    Ok(time)
}

fn caged(role: Role) -> Result<(), Error> {
    let mut start = Unconfined::enter(role, Descriptors::Exactly(&[0, 1, 2, 3]))?;
    let barrier = start.barrier(3)?;
    let confined = (|| {
        let separated = start.separate(&Cage::new(role, Identity::from_env()?))?;
        barrier.namespaced()?;
        separated.restrict()?.seal()
    })()
    .inspect_err(|error| barrier.failed(error))?;
    barrier.confined(confined.report())?;
    openred_policy::exit(0)
}
