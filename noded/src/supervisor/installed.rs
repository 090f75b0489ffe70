//! Installed modules as the supervisor knows them: read and checked from their files at every change, told to `noded` in a file of
//! its own, changed on the operator's word, and each change noted for the audit trail.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openred_module::manifest::{Grants, Manifest, PermissionName, Version};
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
    /// The version that shall run first, then those that may be gone back to.
    pub(crate) versions: Vec<Runnable>,
    pub(crate) slot: u32,
    /// How long `noded` has for its last words with it.
    pub(crate) stop: Duration,
    /// Names that it may connect to: `noded` looks them up when it starts.
    pub(crate) names: BTreeSet<String>,
    /// Why it is not started, if it is not.
    pub(crate) refused: Option<String>,
    /// Another one when it shall be started anew.
    turn: u32,
    granted: Vec<String>,
}

/// A version that may be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runnable {
    /// Empty for a module that comes with the node.
    pub(crate) version: String,
    pub(crate) program: Program,
    pub(crate) limits: Limits,
    /// What it may read of the machine.
    pub(crate) reads: Vec<PathBuf>,
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
    fn new(id: &str, slot: u32, turn: u32) -> Self {
        let (versions, stop, names, refused, granted) = Default::default();
        Self { id: interned(id), versions, slot, stop, names, refused, turn, granted }
    }

    /// The version of that name.
    pub(crate) fn version(&self, version: &str) -> Option<&Runnable> {
        self.versions.iter().find(|known| known.version == version)
    }

    /// What shall run.
    fn first(&self) -> (&str, Option<&Program>) {
        self.versions.first().map_or(("", None), |first| (&first.version, Some(&first.program)))
    }

    /// Whether the operator has changed what shall run: not only what may be gone back to.
    pub(crate) fn is_changed(&self, before: &Self) -> bool {
        let what = |known: &Self| (known.turn, known.granted.clone(), known.versions.first().cloned(), known.stop);
        what(self) != what(before) || self.refused != before.refused
    }

    /// Whether it is the same version, and of that what `noded` is told: limits and paths are not.
    pub(crate) fn is_another_to_noded(&self, before: &Self) -> bool {
        (self.turn, &self.granted, self.first()) != (before.turn, &before.granted, before.first())
    }

    /// Whether the operator has looked at it: another version shall run, or the same one anew. What holds all modules, such as a limit or the
    /// ceiling, says nothing of this one.
    pub(crate) fn is_looked_at(&self, before: &Self) -> bool {
        (self.turn, self.first().0) != (before.turn, before.first().0)
    }

    /// Whether another version shall run: that takes the place of the one before while it is called.
    pub(crate) fn is_another_version(&self, before: &Self) -> bool {
        self.first().0 != before.first().0
    }

    /// One more version that may be started, with what it was granted: the first is the one that shall run.
    fn add(&mut self, version: &str, (manifest, granted): (&Manifest, &Grants), program: Program, config: &NodeConfig) {
        let entries = |name| granted.get(name).map(|granted| granted.entries()).unwrap_or_default();
        let is_name = |to: &&str| to.parse::<std::net::SocketAddr>().is_err();
        self.names.extend(entries(PermissionName::NetEgress).into_iter().filter(is_name).map(str::to_owned));
        if self.versions.is_empty() {
            self.stop = Duration::from_secs(manifest.limits.stop_seconds.into());
            self.granted = if version.is_empty() { Vec::new() } else { granted.texts() };
        }
        let (version, limits) = (version.to_owned(), config.modules.limits(manifest.limits));
        let reads = reads(&entries(PermissionName::FsRead));
        self.versions.push(Runnable { version, program, limits, reads });
    }

    pub(super) fn built_in(module: &BuiltIn, config: &NodeConfig) -> Self {
        let mut known = Self::new(module.id, module.slot, 0);
        known.add("", (module.manifest(), &Grants::default()), Program::Beside(module.program), config);
        known
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
            Ok(_) if !(path.is_file() || path.is_dir()) => return refuse("it is neither a file nor a folder"),
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
    let read = || -> Result<_, Failure> { Ok((packages.each()?, packages.forgotten()?)) };
    let (installed, forgotten) = read().unwrap_or_else(|failure| {
        tracing::error!("the installed modules cannot be read: {failure}");
        Default::default()
    });
    file.forget = forgotten.iter().map(ToString::to_string).collect();
    for (id, module) in installed {
        // Not before `noded` has deleted what the one before it kept: that goes by its name, and would go from under this one.
        if forgotten.contains(&id) {
            continue;
        }
        let help = "install it again, or remove it with `openred module remove`";
        let first = module.and_then(|module| Ok((candidate(context, &packages, &module, &ceiling)?, module)));
        let Ok((Some(first), module)) = note(context, id.as_str(), help, first) else { continue };
        let mut known = Known::new(module.id.as_str(), module.record.slot, module.record.turn);
        let mut add = |(verified, granted, settings): Candidate| {
            let program = Program::Installed { place: verified.program(), digest: verified.digest.0 };
            let manifest = &verified.manifest;
            known.add(manifest.version.as_str(), (manifest, &granted), program, &config);
            let (id, turn) = (id.to_string(), module.record.turn);
            Module { id, manifest: verified.text, granted: granted.texts(), turn, settings }
        };
        file.modules.push(add(first));
        // One that cannot be believed is none that may be gone back to.
        let earlier =
            module.record.earlier.iter().map(|version| version_of(context, &packages, &module, version, &ceiling));
        file.earlier.extend(earlier.filter_map(Result::ok).map(add));
        all.push(known);
    }
    if let Err(failure) = tell(context, file) {
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

/// A version that may run, what it may do, and its settings.
type Candidate = (Verified, Grants, String);

fn candidate(
    context: &Context,
    packages: &Packages,
    module: &packages::Installed,
    ceiling: &Grants,
) -> Result<Option<Candidate>, Failure> {
    let Some(version) = module.record.active.as_ref().filter(|_| module.record.enabled) else { return Ok(None) };
    version_of(context, packages, module, version, ceiling).map(Some)
}

fn version_of(
    context: &Context,
    packages: &Packages,
    module: &packages::Installed,
    version: &Version,
    ceiling: &Grants,
) -> Result<Candidate, Failure> {
    let verified = packages.version(module, version)?;
    let granted = Packages::effective(module, &verified.manifest, ceiling)?;
    let settings = settings(&verified.manifest, &context.settings.current())?;
    let read = granted.get(PermissionName::FsRead).map(|granted| granted.entries()).unwrap_or_default();
    check_reads(&context.home, &reads(&read))?;
    Ok((verified, granted, settings))
}

fn tell(context: &Context, file: Installed) -> Result<(), Failure> {
    let place = context.home.installed();
    let failed = |error: std::io::Error| Failure::local(place.display(), &error);
    let bytes = file.written().map_err(failed)?;
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
    if let (Ok(()), Order::Remove { module, .. }) = (&changed, order) {
        context.starter.board.clear(&format!("module.{module}.refused"));
    }
    changed
}

/// A swap did not last; true if the version before it runs from now on.
pub(super) fn settle(context: &Context, module: &str, from: &str, to: &str, turn: u32) -> bool {
    let Ok(id) = module.parse() else { return false };
    match Packages::of(&context.home).settle(&id, from, to, turn) {
        Ok(true) => {
            tracing::warn!("the module {id} goes on with {to}: {from} did not take its place");
            true
        }
        Ok(false) => false,
        Err(failure) => {
            tracing::error!("{failure}");
            false
        }
    }
}

/// Versions that nobody goes back to any more are removed.
pub(super) fn keep(context: &Context, module: &str, versions: &[String]) {
    let Ok(id) = module.parse() else { return };
    if let Err(failure) = Packages::of(&context.home).keep(&id, versions) {
        tracing::error!("{failure}");
    }
}

/// The state of a module that was removed is deleted; true if that was waited for: another of its name may run from now on, and `noded` is to be
/// told that nothing of it is to be deleted any more.
pub(super) fn forgotten(context: &Context, module: &str) -> bool {
    let Ok(id) = module.parse() else { return false };
    Packages::of(&context.home).forget_done(&id).unwrap_or_else(|failure| {
        tracing::error!("{failure}");
        false
    })
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
