//! `openred module swap|rollback|generations`: another version of a module, while it is called, and back.

use std::path::Path;
use std::time::Duration;

use openred_module::manifest::{ModuleId, Version};
use openred_proto::admin::{ListGenerationsRequest, ModuleGeneration, ModuleGenerations, SwapModuleRequest};

use crate::cli::client::{block_on, node, request};
use crate::cli::output::{Output, Tone, moment, now, table};
use crate::cli::{Exit, Failure, Invocation, one_line};
use crate::packages::{Installed, Order, Packages};

/// A swap waits for a start, a migration and its callers, each of which has a limit of its own.
const SWAP: Duration = Duration::from_secs(240);

/// To a package's version, or the program as it is now.
pub(super) fn swap(
    invocation: &Invocation,
    packages: &Packages,
    module: &ModuleId,
    path: Option<&Path>,
    approve: bool,
) -> Result<Exit, Failure> {
    let mut version = String::new();
    if let Some(path) = path {
        // There must be one that is called: of a node that does not run, `install` is enough.
        block_on(node(invocation))?;
        packages.need(module)?;
        version = install(invocation, packages, module, path, approve)?.to_string();
    }
    ask(invocation, SwapModuleRequest { module: module.to_string(), version, ..SwapModuleRequest::default() })
}

/// Takes the package in, unless it asks for more than was granted and that is not granted with it.
fn install(
    invocation: &Invocation,
    packages: &Packages,
    module: &ModuleId,
    path: &Path,
    approve: bool,
) -> Result<Version, Failure> {
    let staged = packages.stage(path)?;
    let found = packages.staged(&staged);
    let changed = found.and_then(|found| {
        if found.manifest.id != *module {
            let what = format!("{} is a package of {}, not of {module}", path.display(), found.manifest.id);
            return Err(Failure::usage(what, "name the module that it is of"));
        }
        super::change(invocation, &Order::Install { staged: staged.clone(), publisher: None })?;
        Ok(found)
    });
    packages.drop_staged(&staged);
    let found = changed?;
    let (installed, version) = (packages.need(module)?, found.manifest.version.clone());
    if installed.record.staged.as_ref() == Some(&version) {
        if !approve {
            return Err(waiting(packages, &installed, &version));
        }
        // This package, and none that has come meanwhile.
        let (module, only) = (module.clone(), Vec::new());
        super::change(invocation, &Order::Approve { module, only, shown: found.shown() })?;
    }
    Ok(version)
}

/// Why a version that waits is not swapped to.
fn waiting(packages: &Packages, installed: &Installed, version: &Version) -> Failure {
    let id = &installed.id;
    let read = || -> Result<(String, Vec<String>), Failure> {
        let verified = packages.version(installed, version)?;
        Ok((super::approval(&verified), packages.beyond(installed, &verified)?))
    };
    let (approval, more) = match read() {
        Ok(read) => read,
        Err(failure) => return failure,
    };
    let what = match &installed.record.active {
        None => format!("{id} {version} was not approved"),
        Some(before) => format!("{id} {version} asks for more than {before}: {}; {before} goes on", more.join(", ")),
    };
    Failure::new(Exit::Conflict, "package.waiting", what, format!("`{approval}` grants that and swaps"))
}

/// To a version that is here.
pub(super) fn to(
    invocation: &Invocation,
    packages: &Packages,
    module: &ModuleId,
    version: &Version,
) -> Result<Exit, Failure> {
    if let Some(installed) = packages.get(module)?
        && installed.record.staged.as_ref() == Some(version)
    {
        return Err(waiting(packages, &installed, version));
    }
    let shown = block_on(list(invocation, module.as_str()))?;
    let named = |shown: &&ModuleGeneration| shown.module == module.as_str();
    let shown = shown.modules.iter().find(named).ok_or_else(|| unknown(module))?;
    let back = match version.as_str() {
        same if same == shown.version => false,
        before if before == shown.rollback_to => true,
        other => {
            let what = format!("{module} {other} is not here");
            let way_out =
                format!("`openred module generations {module}` names what is; a package is taken in by its path");
            return Err(Failure::new(Exit::NotFound, "package.version", what, way_out));
        }
    };
    ask(invocation, SwapModuleRequest { module: module.to_string(), back, ..SwapModuleRequest::default() })
}

fn unknown(module: &ModuleId) -> Failure {
    let what = format!("there is no module {module}");
    Failure::new(Exit::NotFound, "module.unknown", what, "`openred module list` names those there are")
}

/// Back to the last that finished its probation.
pub(super) fn roll_back(invocation: &Invocation, module: &ModuleId, snapshot: bool) -> Result<Exit, Failure> {
    let module = module.to_string();
    ask(invocation, SwapModuleRequest { module, back: true, snapshot, ..SwapModuleRequest::default() })
}

/// What there is.
pub(super) fn generations(invocation: &Invocation, module: Option<&ModuleId>) -> Result<Exit, Failure> {
    let shown = block_on(list(invocation, module.map(ModuleId::as_str).unwrap_or_default()))?;
    match module {
        Some(module) if shown.modules.is_empty() => Err(unknown(module)),
        _ => Ok(print(&invocation.output, &shown)),
    }
}

async fn list(invocation: &Invocation, module: &str) -> Result<ModuleGenerations, Failure> {
    let asked = request(ListGenerationsRequest { module: module.to_owned() });
    Ok(node(invocation).await?.list_generations(asked).await?.into_inner())
}

fn ask(invocation: &Invocation, asked: SwapModuleRequest) -> Result<Exit, Failure> {
    let shown = block_on(async {
        let mut asked = request(asked);
        asked.set_timeout(SWAP);
        Ok::<_, Failure>(node(invocation).await?.swap_module(asked).await?.into_inner())
    })?;
    Ok(print(&invocation.output, &shown))
}

fn print(output: &Output, generations: &ModuleGenerations) -> Exit {
    let head = ["MODULE", "GENERATION", "VERSION", "EPOCH", "PROBATION", "LEAVING"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(generations.modules.iter().map(|module| {
        let probation = match module.probation_until {
            0 => output.paint(Tone::Good, "finished"),
            until => format!("until {}", moment(until, now())),
        };
        vec![
            module.module.clone(),
            module.generation.to_string(),
            one_line(&module.version),
            module.epoch.to_string(),
            probation,
            module.leaving.len().to_string(),
        ]
    }));
    table(&rows).iter().for_each(|line| output.line(line));
    for module in &generations.modules {
        if !module.doing.is_empty() {
            output.line(format!("{}: a swap is under way ({})", module.module, module.doing));
        }
        if !module.outcome.is_empty() {
            output.line(format!("{}: {}", module.module, one_line(&module.outcome)));
        }
        if module.set_aside {
            output.line(format!(
                "{}: the rows of the version that was left are kept until a later one has finished its probation",
                module.module
            ));
        }
    }
    output.document("openred.module-generations/1", generations);
    Exit::Ok
}
