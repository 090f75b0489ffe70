//! One start of a module's program: its pipe of values, its limits, its cage.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use openred_policy::KeptPath;
use openred_policy::launch::DOOR;
use openred_policy::limits::Held;

use crate::config::LogFormat;
use crate::supervisor::Context;
use crate::supervisor::child::{Caged, Fault, ModulePlan, start_module};
use crate::supervisor::installed::{Program, Runnable};
use crate::supervisor::programs::Programs;

/// What is to be started.
pub(super) struct Wanted {
    pub(super) id: &'static str,
    /// As the board has it.
    pub(super) label: String,
    pub(super) slot: u32,
    pub(super) generation: u64,
    /// Which kept program, of a module that comes with the node.
    pub(super) program: u64,
    pub(super) runnable: Runnable,
}

/// What was started.
pub(super) struct Begun {
    pub(super) child: Caged,
    /// The end of its pipe of values.
    pub(super) values: File,
    pub(super) program: File,
    pub(super) held: Arc<Held>,
}

/// Which program could not be opened, and what to do about it.
fn missing(context: &Context, id: &str, runnable: &Runnable, source: io::Error) -> Fault {
    let (place, way_out) = match &runnable.program {
        Program::Beside(name) => {
            (context.starter.programs.join(name), String::from("install OpenRed's programs again, all of them"))
        }
        Program::Installed { place, .. } => (
            place.clone(),
            format!(
                "put it back; or `openred module remove {id} --keep-data`, then install the package again: its state stays"
            ),
        ),
    };
    Fault::Program { role: openred_policy::Role::Module, place, way_out, source }
}

/// Starts a module's program.
pub(super) async fn begin(context: &Context, wanted: Wanted) -> Result<Begun, Fault> {
    let Wanted { id, label, slot, generation, program, runnable } = wanted;
    let role = openred_policy::Role::Module;
    let setup = |errno: nix::Error| Fault::Setup { role, what: "its pipe", source: errno.into() };
    let (input, values) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(setup)?;
    // A module that does not read must not hold the supervisor up.
    fcntl(&values, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(setup)?;
    let (level, format) = context.settings.log();
    let format = match format {
        LogFormat::Human => "human",
        LogFormat::Json => "json",
    };
    let programs = Programs { installed: &context.starter.programs, kept: context.home.kept_programs() };
    let (name, file, digest) = match &runnable.program {
        Program::Beside(name) => ((*name).into(), programs.open(id, name, program), None),
        Program::Installed { place, digest } => {
            (place.file_name().unwrap_or_default().to_owned(), File::open(place), Some(*digest))
        }
    };
    let file = file.map_err(|source| missing(context, id, &runnable, source))?;
    let program = file.try_clone().map_err(|source| Fault::Setup { role, what: "its program", source })?;
    // Two generations run at once, each with limits of its own.
    let group = format!("{id}.{generation}");
    let held = file.metadata().and_then(|file| context.starter.ways.hold(&group, runnable.limits, file.len()));
    let held = Arc::new(held.map_err(|source| Fault::Setup { role, what: "a group for its limits", source })?);
    let mut kept = context.home.module_keeps();
    kept.extend(runnable.reads.iter().map(|path| KeptPath::granted(path)));
    let plan = ModulePlan {
        name: id,
        label,
        program: name,
        file,
        digest,
        arguments: vec![DOOR.into()],
        variables: vec![("OPENRED_LOG", level), ("OPENRED_LOG_FORMAT", format), ("RUST_BACKTRACE", "0")],
        identity: context.identities.module(slot),
        kept,
        input,
        held: Arc::clone(&held),
    };
    let child = start_module(&context.starter, plan).await?;
    Ok(Begun { child, values: values.into(), program, held })
}
