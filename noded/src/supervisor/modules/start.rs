//! The start of one module's program: its pipe of values, its limits, its cage.

use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use openred_policy::KeptPath;
use openred_policy::limits::Held;

use crate::config::LogFormat;
use crate::supervisor::Context;
use crate::supervisor::child::{Caged, Fault, ModulePlan, start_module};
use crate::supervisor::installed::{Known, Program};

/// What was started.
pub(super) struct Begun {
    pub(super) child: Caged,
    /// Where it reads its values.
    pub(super) values: std::fs::File,
    pub(super) held: Arc<Held>,
}

/// Starts a module's program; the end of its pipe of values.
pub(super) async fn begin(context: &Context, module: Known) -> Result<Begun, Fault> {
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
    let place = match &module.program {
        Program::Beside(name) => context.starter.programs.join(name),
        Program::Installed { place, .. } => place.clone(),
    };
    let program = std::fs::metadata(&place);
    let held = program.and_then(|program| context.starter.ways.hold(module.id, module.limits, program.len()));
    let held = Arc::new(held.map_err(|source| Fault::Setup { role, what: "a group for its limits", source })?);
    let mut kept = context.home.module_keeps();
    kept.extend(module.reads.iter().map(|path| KeptPath::readable(path)));
    let plan = ModulePlan {
        name: module.id,
        program: place,
        digest: match module.program {
            Program::Beside(_) => None,
            Program::Installed { digest, .. } => Some(digest),
        },
        arguments: vec![context.home.module_socket().into_os_string()],
        variables: vec![("OPENRED_LOG", level), ("OPENRED_LOG_FORMAT", format), ("RUST_BACKTRACE", "0")],
        identity: context.identities.module(module.slot),
        kept,
        input,
        held: Arc::clone(&held),
    };
    let child = start_module(&context.starter, plan).await?;
    Ok(Begun { child, values: values.into(), held })
}
