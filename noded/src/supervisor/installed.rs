//! Installed modules as the supervisor knows them: read and checked from their files at every change, told to `noded` in a file of
//! its own, changed on the operator's word, and each change noted for the audit trail.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openred_module::manifest::{Grants, Manifest, PermissionName};
use openred_policy::limits::Limits;
use openred_proto::audit::Event;

use super::keystore::Fresh;
use super::{Context, now, owed, places};
use crate::cli::{Exit, Failure};
use crate::config::NodeConfig;
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
    /// How long `noded` has for its last words with it.
    pub(crate) stop: Duration,
    /// What it may read of the machine.
    pub(crate) reads: Vec<PathBuf>,
    /// Names that it may connect to: `noded` looks them up when it starts.
    pub(crate) names: BTreeSet<String>,
    /// Why it is not started, if it is not.
    pub(crate) refused: Option<String>,
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

impl Known {
    fn new(manifest: &Manifest, program: Program, slot: u32, config: &NodeConfig) -> Self {
        let limits = config.modules.limits(manifest.limits);
        let stop = Duration::from_secs(manifest.limits.stop_seconds.into());
        let id = interned(manifest.id.as_str());
        let (reads, names, granted) = Default::default();
        Self { id, program, slot, limits, stop, reads, names, refused: None, turn: 0, granted }
    }

    /// Whether `noded` is told of the difference: it is not of limits and of paths.
    pub(crate) fn is_another_to_noded(&self, before: &Self) -> bool {
        (self.turn, &self.granted, &self.program) != (before.turn, &before.granted, &before.program)
    }

    /// The same with what it was granted.
    fn granted(self, granted: &Grants, turn: u32) -> Self {
        let entries = |name| granted.get(name).map(|granted| granted.entries()).unwrap_or_default();
        let is_name = |to: &&str| to.parse::<std::net::SocketAddr>().is_err();
        let names = entries(PermissionName::NetEgress).into_iter().filter(is_name).map(str::to_owned).collect();
        Self { turn, reads: reads(&entries(PermissionName::FsRead)), names, granted: granted.texts(), ..self }
    }

    fn built_in(module: &BuiltIn, config: &NodeConfig) -> Self {
        Self::new(module.manifest(), Program::Beside(module.program), module.slot, config)
    }
}

/// The granted paths, without those that lie in another of them.
fn reads(granted: &[&str]) -> Vec<PathBuf> {
    let inside = |path: &str| granted.iter().any(|other| *other != path && Path::new(path).starts_with(other));
    granted.iter().filter(|path| !inside(path)).map(PathBuf::from).collect()
}

/// Refuses a path that a module cannot be shown, or must not be.
fn check_reads(home: &Home, reads: &[PathBuf]) -> Result<(), Failure> {
    let own = home.path().canonicalize().unwrap_or_else(|_| home.path().to_owned());
    for path in reads {
        let refuse = |what: &str| {
            let what = format!("fs.read of {}: {what}", path.display());
            let way_out = "approve the module without it (`--only`), or mend the path";
            Err(Failure::new(Exit::Denied, "package.path", what, way_out))
        };
        if path.starts_with(&own) || own.starts_with(path) {
            return refuse("it holds this node's own files, or is one of them");
        }
        match path.canonicalize() {
            // Whoever may write a folder on the way would choose what is read.
            Ok(real) if real != *path => return refuse("a symbolic link is on the way"),
            Ok(_) => {}
            Err(error) => return refuse(&error.to_string()),
        }
    }
    Ok(())
}

/// A module's settings, as `noded` hands them over.
fn settings(manifest: &Manifest, config: &NodeConfig) -> Result<String, Failure> {
    config.settings_of(manifest).map_err(|wrong| {
        let what = format!("`module.{}.{}` in the configuration: {}", manifest.id, wrong.key, wrong.what);
        let way_out = "`openred check` shows the line; change it, then send the node SIGHUP";
        Failure::new(Exit::BadConfiguration, "module.settings", what, way_out)
    })
}

/// Those that may run, as their files say now; `noded` can read the same from here on. One that cannot be believed does not run, and
/// is named by a condition.
pub(crate) fn look(context: &Context) -> Vec<Known> {
    let packages = Packages::of(&context.home);
    let config = context.settings.current();
    let mut file = Installed::default();
    let mut all: Vec<Known> = Vec::new();
    for module in &BUILT_IN {
        let mut known = Known::built_in(module, &config);
        let said = note(context, module.id, "change its settings", settings(module.manifest(), &config));
        match said {
            Ok(settings) => drop(file.settings.insert(module.id.to_owned(), settings)),
            Err(failure) => known.refused = Some(failure.what),
        }
        all.push(known);
    }
    let ceiling = config.modules.ceiling();
    let read = || -> Result<_, Failure> { Ok((packages.all()?, packages.forgotten()?)) };
    let (installed, forgotten) = read().unwrap_or_else(|failure| {
        tracing::error!("the installed modules cannot be read: {failure}");
        Default::default()
    });
    file.forget = forgotten.iter().map(ToString::to_string).collect();
    for module in &installed {
        let help = "install it again, or remove it with `openred module remove`";
        let candidate = candidate(context, &packages, module, &ceiling);
        if let Ok(Some((verified, granted, settings))) = note(context, module.id.as_str(), help, candidate) {
            let (slot, turn) = (module.record.slot, module.record.turn);
            let program = Program::Installed { place: verified.program(), digest: verified.digest.0 };
            let known = Known::new(&verified.manifest, program, slot, &config);
            all.push(known.granted(&granted, turn));
            file.modules.push(Module { manifest: verified.text, granted: granted.texts(), turn, settings });
        }
    }
    if let Err(failure) = tell(context, &file) {
        tracing::error!("noded is not told of the installed modules: {failure}");
    }
    all
}

/// Why a module does not run, if it does not, is a condition until it does.
fn note<T>(context: &Context, id: &str, help: &str, outcome: Result<T, Failure>) -> Result<T, Failure> {
    let code = format!("module.{id}.refused");
    match &outcome {
        Ok(_) => context.starter.board.clear(&code),
        Err(failure) => {
            tracing::error!("the module {id} does not run: {failure}");
            context.starter.board.report(Event::ModuleRefused);
            let help = if failure.way_out.is_empty() { help } else { &failure.way_out };
            context.starter.board.alarm(&code, failure.what.clone(), help, now());
        }
    }
    outcome
}

fn candidate(
    context: &Context,
    packages: &Packages,
    module: &packages::Installed,
    ceiling: &Grants,
) -> Result<Option<(Verified, Grants, String)>, Failure> {
    let Some(version) = module.record.active.as_ref().filter(|_| module.record.enabled) else { return Ok(None) };
    let verified = packages.version(module, version)?;
    let granted = Packages::effective(module, &verified.manifest, ceiling)?;
    let settings = settings(&verified.manifest, &context.settings.current())?;
    let read = granted.get(PermissionName::FsRead).map(|granted| granted.entries()).unwrap_or_default();
    check_reads(&context.home, &reads(&read))?;
    Ok(Some((verified, granted, settings)))
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
