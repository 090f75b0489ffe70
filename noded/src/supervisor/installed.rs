//! Installed modules as the supervisor knows them: read and checked from their files at every change, told to `noded` in a file of
//! its own, changed on the operator's word, and each change noted for the audit trail.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use openred_module::manifest::Grants;
use openred_policy::limits::Limits;
use openred_proto::audit::Event;

use super::keystore::Fresh;
use super::{Context, now, owed, places};
use crate::cli::Failure;
use crate::home::Home;
use crate::module::installed::{Installed, Module, interned};
use crate::module::{BUILT_IN, BuiltIn};
use crate::packages::{self, Order, Packages, Verified};

/// A module that may be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) id: &'static str,
    pub(crate) program: Program,
    pub(crate) slot: u32,
    pub(crate) limits: Limits,
    /// Another one when it shall be started anew.
    turn: u32,
    granted: Vec<String>,
}

/// Where its program is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Beside this one.
    Beside(&'static str),
    /// Installed: it runs only if this is its SHA-256.
    Installed { place: PathBuf, digest: [u8; 32] },
}

impl From<&BuiltIn> for Known {
    fn from(module: &BuiltIn) -> Self {
        let program = Program::Beside(module.program);
        Self { id: module.id, program, slot: module.slot, limits: module.limits, turn: 0, granted: Vec::new() }
    }
}

fn known(verified: &Verified, slot: u32, turn: u32, granted: Vec<String>) -> Known {
    let asked = verified.manifest.limits;
    let limits = Limits {
        memory: u64::from(asked.memory_megabytes) << 20,
        cpu: asked.cpu_percent,
        tasks: asked.tasks,
        descriptors: asked.descriptors,
    };
    let program = Program::Installed { place: verified.program(), digest: verified.digest.0 };
    Known { id: interned(verified.manifest.id.as_str()), program, slot, limits, turn, granted }
}

/// Those that may run, as their files say now; `noded` can read the same from here on. One that cannot be believed does not run, and
/// is named by a condition.
pub(crate) fn look(context: &Context) -> Vec<Known> {
    let packages = Packages::of(&context.home);
    let mut all: Vec<Known> = BUILT_IN.iter().map(Known::from).collect();
    let mut file = Installed::default();
    let ceiling = context.settings.ceiling();
    let read = || -> Result<_, Failure> { Ok((packages.all()?, packages.forgotten()?)) };
    let (installed, forgotten) = read().unwrap_or_else(|failure| {
        tracing::error!("the installed modules cannot be read: {failure}");
        Default::default()
    });
    file.forget = forgotten.iter().map(ToString::to_string).collect();
    for module in &installed {
        let code = format!("module.{}.refused", module.id);
        match candidate(&packages, module, &ceiling) {
            Ok(Some((verified, granted))) => {
                context.starter.board.clear(&code);
                let (slot, turn, texts) = (module.record.slot, module.record.turn, granted.texts());
                let entry = Module { manifest: verified.text.clone(), granted: texts.clone(), turn };
                file.modules.push(entry);
                all.push(known(&verified, slot, turn, texts));
            }
            Ok(None) => context.starter.board.clear(&code),
            Err(failure) => {
                tracing::error!("the module {} does not run: {failure}", module.id);
                context.starter.board.report(Event::ModuleRefused);
                let help = "install it again, or remove it with `openred module remove`";
                context.starter.board.alarm(&code, failure.to_string(), help, now());
            }
        }
    }
    if let Err(failure) = tell(context, &file) {
        tracing::error!("noded is not told of the installed modules: {failure}");
    }
    all
}

fn candidate(
    packages: &Packages,
    module: &packages::Installed,
    ceiling: &Grants,
) -> Result<Option<(Verified, Grants)>, Failure> {
    let Some(version) = module.record.active.as_ref().filter(|_| module.record.enabled) else { return Ok(None) };
    let verified = packages.version(module, version)?;
    let granted = Packages::effective(module, &verified.manifest, ceiling)?;
    Ok(Some((verified, granted)))
}

fn tell(context: &Context, file: &Installed) -> Result<(), Failure> {
    let place = context.home.installed();
    let failed = |error: std::io::Error| Failure::local(place.display(), &error);
    let bytes = serde_json::to_vec(file).map_err(|error| failed(error.into()))?;
    let mut fresh = Fresh::begin(&place)?;
    fresh.file.write_all(&bytes).map_err(failed)?;
    if let Some(noded) = context.identities.noded {
        // Its folder is `noded`'s alone; in its cage it can write neither.
        fresh.file.set_permissions(Permissions::from_mode(0o400)).map_err(failed)?;
        std::os::unix::fs::fchown(&fresh.file, Some(noded.uid), Some(noded.gid)).map_err(failed)?;
    }
    fresh.finish(true, |_| ())
}

/// One change while the node runs.
pub(super) fn change(context: &Context, order: &Order) -> Result<(), Failure> {
    let changed = Packages::of(&context.home).change(order);
    let event = noted(order, &changed);
    context.starter.board.report(event);
    changed
}

/// The state of a module that was removed is deleted.
pub(super) fn forgotten(context: &Context, module: &str) {
    let Ok(id) = module.parse() else { return };
    if let Err(failure) = Packages::of(&context.home).forget_done(&id) {
        tracing::error!("{failure}");
    }
}

fn noted(order: &Order, changed: &Result<(), Failure>) -> Event {
    match changed {
        Ok(()) => {
            tracing::info!("{} by the operator", order.event().name());
            order.event()
        }
        Err(failure) => {
            tracing::warn!("a change of modules was refused: {failure}");
            Event::ModuleRefused
        }
    }
}

/// One change of a home whose node does not run. The trail is owed it.
pub(crate) fn change_modules(home: &Home, order: &Order) -> Result<(), Failure> {
    let _lock = places::lock(home)?;
    let changed = Packages::of(home).change(order);
    let event = match &changed {
        Ok(()) => order.event(),
        Err(_) => Event::ModuleRefused,
    };
    let mut events = owed::kept(home);
    match events.iter_mut().find(|(known, _)| *known == event) {
        Some((_, count)) => *count = count.saturating_add(1),
        None => events.push((event, 1)),
    }
    places::make_private(&home.audit()).map_err(|error| Failure::local(home.audit().display(), &error))?;
    owed::keep(home, &events)?;
    changed
}

/// Removes what changes that were cut short have left; only before anything is served.
pub(super) fn tidy(home: &Home) {
    Packages::of(home).tidy();
}
