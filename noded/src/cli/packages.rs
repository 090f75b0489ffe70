//! `openred module …`: installed modules, what they ask for, what they may do, and what they did of it.
//!
//! What changes goes to the supervisor while the node runs, and is done here, under the home's lock, while it does not. What is shown
//! is read from the home's own files, and means the same in both cases.

mod review;
mod swaps;

use std::io::Write as _;
use std::path::Path;

use openred_module::manifest::{Manifest, ModuleId, Start};
use openred_proto::admin::ModuleChange;
use openred_proto::id::NodeId;
use serde_json::{Value, json};

use super::arguments::Module;
use super::author;
use super::client::{block_on, request, supervisor};
use super::module::Route;
use super::output::{Output, table, wrap};
use super::{Exit, Failure, Invocation, configuration, logs};
use crate::module::BUILT_IN;
use crate::module::installed::interned;
use crate::packages::{Installed, MANIFEST, Order, Packages, PublisherKey, SIGNATURE, Verified, write_package};
use review::{Lines, lines};

/// Carries one out.
pub(crate) fn module(invocation: &Invocation, command: Module) -> Result<Exit, Failure> {
    let packages = Packages::of(&invocation.home);
    match command {
        Module::Install { path, publisher, approve } => install(invocation, &packages, &path, publisher, approve),
        Module::Approve { module, only, shown: seen } => {
            let seen = seen.map_or_else(|| running(&packages, &module), Ok)?;
            grant(invocation, &packages, module, only, seen)
        }
        Module::Enable { module } => {
            change(invocation, &Order::Enable(module.clone()))?;
            shown(invocation, &packages, &module)
        }
        Module::Disable { module } => {
            change(invocation, &Order::Disable(module.clone()))?;
            shown(invocation, &packages, &module)
        }
        Module::Remove { module, keep_data } => {
            change(invocation, &Order::Remove { module: module.clone(), keep_data })?;
            let state = if keep_data { "its state stays" } else { "its state is deleted" };
            invocation.output.line(format!("{module} is removed; {state}"));
            let body = json!({ "id": module.as_str(), "state": "removed", "data_kept": keep_data });
            invocation.output.document("openred.module/1", &body);
            Ok(Exit::Ok)
        }
        Module::Swap { module, path, to: None, approve } => {
            swaps::swap(invocation, &packages, &module, path.as_deref(), approve)
        }
        Module::Swap { module, to: Some(version), .. } => swaps::to(invocation, &packages, &module, &version),
        Module::Rollback { module, snapshot } => swaps::roll_back(invocation, &module, snapshot),
        Module::Generations { module } => swaps::generations(invocation, module.as_ref()),
        Module::List => list(invocation, &packages),
        Module::Show { module } => shown(invocation, &packages, &module),
        Module::Audit { module } => audit(invocation, &packages, module.as_ref()),
        Module::New { module, sdk } => author::new(&invocation.output, &module, sdk.as_deref()),
        Module::Dev { node } => author::dev(invocation, node),
        Module::Call { dev, module, method, path, data, content_type, cost } => {
            let invocation = if dev { &author::on_dev_node(invocation)? } else { invocation };
            let method = if method == "GET" { "GET" } else { "POST" };
            let route = Route { module: interned(module.as_str()), method, path };
            block_on(call(invocation, route, data, &content_type, cost))
        }
        Module::Logs { module, lines, follow } => block_on(logs::logs(invocation, module, lines, follow)),
        Module::Release { module } => block_on(logs::release(invocation, module)),
        Module::Trust { publisher } => {
            change(invocation, &Order::Trust(publisher))?;
            trusted(&invocation.output, &packages)
        }
        Module::Distrust { publisher } => {
            change(invocation, &Order::Distrust(publisher))?;
            distrusted(&invocation.output, &packages, &publisher)
        }
        Module::Trusted => trusted(&invocation.output, &packages),
        Module::Key { file } => {
            let file = std::path::absolute(&file).map_err(|error| Failure::local(file.display(), &error))?;
            let id = PublisherKey::generate(&file)?.id();
            invocation.output.line(format!("{}: the key of {id}", file.display()));
            invocation.output.document("openred.module-key/1", &json!({ "publisher": id.to_string() }));
            Ok(Exit::Ok)
        }
        Module::Sign { manifest, program, key, out } => sign(&invocation.output, &manifest, &program, &key, &out),
    }
}

async fn call(
    invocation: &Invocation,
    route: Route,
    data: String,
    content_type: &str,
    cost: bool,
) -> Result<Exit, Failure> {
    let kind = if data.is_empty() { "" } else { content_type };
    let mut answer = super::module::open(invocation, route, kind, std::io::Cursor::new(data.into_bytes())).await?;
    if cost {
        // A reader that went away wants no more.
        let _ = writeln!(std::io::stderr(), "Server-Timing: {}", answer.timing());
    }
    let mut stdout = std::io::stdout();
    while let Some(piece) = answer.next().await? {
        // A reader that went away wants no more.
        if stdout.write_all(&piece).is_err() {
            break;
        }
    }
    invocation.output.line("");
    Ok(Exit::Ok)
}

/// By the supervisor if there is one, else here.
fn change(invocation: &Invocation, order: &Order) -> Result<(), Failure> {
    if !invocation.home.path().is_dir() {
        let what = format!("{}: no node lives here", invocation.home.path().display());
        let way_out = "make one with `openred init`, or name another place with --home";
        return Err(Failure::new(Exit::NotFound, "home.missing", what, way_out));
    }
    let asked: ModuleChange = order.into();
    let running = block_on(async {
        match supervisor(invocation).await {
            Ok(mut supervisor) => supervisor.change_modules(request(asked)).await.map(|_| true).map_err(Failure::from),
            Err(failure) if failure.code == "node.down" => Ok(false),
            Err(failure) => Err(failure),
        }
    })?;
    if running { Ok(()) } else { crate::supervisor::change_modules(&invocation.home, order) }
}

fn install(
    invocation: &Invocation,
    packages: &Packages,
    path: &Path,
    publisher: Option<NodeId>,
    approve: bool,
) -> Result<Exit, Failure> {
    let staged = packages.stage(path)?;
    let id = packages.staged_id(&staged);
    let granted = approve.then(|| packages.staged(&staged));
    let changed = change(invocation, &Order::Install { staged: staged.clone(), publisher });
    packages.drop_staged(&staged);
    changed?;
    match granted {
        // This package, and none that has come meanwhile.
        Some(granted) => grant(invocation, packages, id?, Vec::new(), granted?.shown()),
        None => shown(invocation, packages, &id?),
    }
}

fn grant(
    invocation: &Invocation,
    packages: &Packages,
    module: ModuleId,
    only: Vec<String>,
    seen: String,
) -> Result<Exit, Failure> {
    change(invocation, &Order::Approve { module: module.clone(), only, shown: seen })?;
    shown(invocation, packages, &module)
}

/// What runs was weighed when it came; what waits is to be named by whoever has looked at it, as it may be another since.
fn running(packages: &Packages, id: &ModuleId) -> Result<String, Failure> {
    let installed = packages.need(id)?;
    if let Some(waiting) = &installed.record.staged {
        let what = format!("{id} {waiting} waits, and you do not say that you have looked at it");
        let way_out = format!("`openred module show {id}` shows what it asks for, and the whole command");
        return Err(Failure::new(Exit::Usage, "package.unseen", what, way_out));
    }
    Ok(newest(packages, &installed)?.shown())
}

/// The command that grants what was shown.
fn approval(verified: &Verified) -> String {
    format!("openred module approve {} --shown {}", verified.manifest.id, verified.shown())
}

/// The version that waits, or the one that runs.
fn newest(packages: &Packages, installed: &Installed) -> Result<Verified, Failure> {
    let version = installed.record.staged.as_ref().or(installed.record.active.as_ref());
    let version = version.ok_or_else(|| {
        let what = format!("{} has no version", installed.id);
        Failure::new(Exit::Failed, "package.malformed", what, format!("`openred module remove {}`", installed.id))
    })?;
    packages.version(installed, version)
}

fn state(installed: &Installed) -> String {
    match (&installed.record.active, &installed.record.staged) {
        (_, Some(staged)) => format!("{staged} waits for approval"),
        (Some(_), None) if installed.record.enabled => String::from("enabled"),
        _ => String::from("disabled"),
    }
}

fn list(invocation: &Invocation, packages: &Packages) -> Result<Exit, Failure> {
    let mut rows = vec![["MODULE", "VERSION", "STATE", "PUBLISHER"].map(String::from).to_vec()];
    let mut documents = Vec::new();
    for module in &BUILT_IN {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        documents.push(json!({ "id": module.id, "version": version, "state": "built in", "publisher": Value::Null }));
        rows.push(vec![module.id.to_owned(), version, String::from("built in"), String::from("-")]);
    }
    for (id, installed) in packages.each()? {
        let read = installed.and_then(|installed| Ok((summary(&installed)?, installed)));
        let (document, row) = match read {
            Ok((document, installed)) => {
                let version = installed.record.active.as_ref().map_or_else(|| String::from("-"), ToString::to_string);
                (document, vec![id.to_string(), version, state(&installed), installed.record.publisher()?.to_string()])
            }
            Err(failure) => {
                let document = json!({ "id": id.as_str(), "state": "unreadable", "why": failure.what });
                (document, vec![id.to_string(), String::from("-"), String::from("unreadable"), String::from("-")])
            }
        };
        documents.push(document);
        rows.push(row);
    }
    table(&rows).iter().for_each(|line| invocation.output.line(line));
    invocation.output.document("openred.modules/1", &json!({ "modules": documents }));
    Ok(Exit::Ok)
}

fn summary(installed: &Installed) -> Result<Value, Failure> {
    Ok(json!({
        "id": installed.id.as_str(),
        "version": installed.record.active,
        "waiting": installed.record.staged,
        "enabled": installed.record.enabled,
        "state": state(installed),
        "publisher": installed.record.publisher()?.to_string(),
    }))
}

/// What a built-in module has: all that it asks for.
fn built_in(id: &ModuleId) -> Option<&'static Manifest> {
    BUILT_IN.iter().find(|module| module.id == id.as_str()).map(|module| module.manifest())
}

/// The manifest of a module that comes with the node or is installed here: of the version that runs.
pub(crate) fn manifest_of(invocation: &Invocation, id: &str) -> Option<Manifest> {
    let id: ModuleId = id.parse().ok()?;
    if let Some(manifest) = built_in(&id) {
        return Some(manifest.clone());
    }
    let packages = Packages::of(&invocation.home);
    let installed = packages.get(&id).ok()??;
    let version = installed.record.active.as_ref().or(installed.record.staged.as_ref())?;
    packages.version(&installed, version).ok().map(|verified| verified.manifest)
}

fn shown(invocation: &Invocation, packages: &Packages, id: &ModuleId) -> Result<Exit, Failure> {
    let output = &invocation.output;
    if let Some(manifest) = built_in(id) {
        let all = lines(manifest, Some(&manifest.asks()), None);
        output.line(format!("{id} {}: {}", manifest.version, manifest.description));
        output.line("comes with the node, and has all that it asks for");
        print(output, &all);
        let body = json!({ "id": id.as_str(), "version": manifest.version, "state": "built in", "permissions": all });
        output.document("openred.module/1", &body);
        return Ok(Exit::Ok);
    }
    let installed = packages.need(id)?;
    let verified = newest(packages, &installed)?;
    let manifest = &verified.manifest;
    let granted = installed.granted.as_ref().map(crate::packages::Granted::grants).transpose()?;
    let all = lines(manifest, granted.as_ref(), None);
    output.line(format!("{id} {}: {}", manifest.version, manifest.description));
    output.line(format!("signed by {}", verified.publisher));
    let way_out = match &installed.record {
        record if record.staged.is_some() => format!("; this grants what follows: {}", approval(&verified)),
        record if record.enabled => String::new(),
        _ => format!("; `openred module enable {id}` lets it run"),
    };
    wrap(&format!("{}{way_out}", state(&installed)), 2).iter().for_each(|line| output.line(line));
    let more = if installed.record.staged.is_some() { packages.beyond(&installed, &verified)? } else { Vec::new() };
    if let Some(before) = installed.record.active.as_ref().filter(|_| !more.is_empty()) {
        wrap(&format!("more than {before}: {}", more.join("; ")), 2).iter().for_each(|line| output.line(line));
    }
    print(output, &all);
    let limits = configuration::resolved_if_any(invocation)?.modules.limits(manifest.limits);
    let memory = limits.memory >> 20;
    let of_the_machine = format!(
        "of the machine at most {memory} MB of memory, {} % of a processor, {} tasks, {} open files",
        limits.cpu, limits.tasks, limits.descriptors
    );
    wrap(&of_the_machine, 2).iter().for_each(|line| output.line(line));
    let mut body = summary(&installed)?;
    body["limits"] = json!({
        "memory_megabytes": memory, "cpu_percent": limits.cpu, "tasks": limits.tasks, "descriptors": limits.descriptors,
    });
    body["start"] = json!(if manifest.start == Start::Lazy { "lazy" } else { "eager" });
    body["description"] = json!(manifest.description);
    body["shown"] = json!(verified.shown());
    body["more"] = json!(more);
    body["permissions"] = json!(all);
    output.document("openred.module/1", &body);
    Ok(Exit::Ok)
}

fn print(output: &Output, all: &[Lines]) {
    if all.is_empty() {
        output.line("asks for nothing");
    }
    for line in all {
        output.line("");
        let granted = match (&line.granted, line.used) {
            (Some(granted), _) if *granted == line.asked => String::from(" (granted)"),
            (Some(granted), _) => format!(" (granted: {granted})"),
            (None, _) => String::from(" (not granted)"),
        };
        wrap(&format!("{}{granted}", line.asked), 4).iter().for_each(|line| output.line(line));
        wrap(&format!("    may {}", line.meaning), 8).iter().for_each(|line| output.line(line));
        wrap(&format!("    because: {}", line.reasons.join("; ")), 8).iter().for_each(|line| output.line(line));
    }
    output.line("");
}

fn audit(invocation: &Invocation, packages: &Packages, only: Option<&ModuleId>) -> Result<Exit, Failure> {
    let used = review::used(&invocation.home)?;
    let mut rows = vec![["MODULE", "PERMISSION", "GRANTED", "USED"].map(String::from).to_vec()];
    let mut documents = Vec::new();
    let mut add = |id: &str, all: &[Lines]| {
        for line in all {
            let granted = line.granted.as_ref().map_or("no", |_| "yes").to_owned();
            rows.push(vec![id.to_owned(), line.name.clone(), granted, line.used.unwrap_or(0).to_string()]);
        }
        documents.push(json!({ "id": id, "permissions": all }));
    };
    for module in BUILT_IN.iter().filter(|module| only.is_none_or(|only| only.as_str() == module.id)) {
        let manifest = module.manifest();
        add(module.id, &lines(manifest, Some(&manifest.asks()), used.get(module.id)));
    }
    match only {
        Some(id) if built_in(id).is_none() => drop(packages.need(id)?),
        _ => {}
    }
    for (id, installed) in packages.each()?.into_iter().filter(|(id, _)| only.is_none_or(|only| only == id)) {
        let read = installed.and_then(|installed| {
            let granted = installed.granted.as_ref().map(crate::packages::Granted::grants).transpose()?;
            Ok(lines(&newest(packages, &installed)?.manifest, granted.as_ref(), used.get(id.as_str())))
        });
        match read {
            Ok(all) => add(id.as_str(), &all),
            // Asked for alone it is an error; among others it hides none of them.
            Err(failure) if only.is_some() => return Err(failure),
            Err(failure) => invocation.output.line(format!("{id} is left out: {failure}")),
        }
    }
    table(&rows).iter().for_each(|line| invocation.output.line(line));
    invocation.output.document("openred.module-audit/1", &json!({ "modules": documents }));
    Ok(Exit::Ok)
}

fn trusted(output: &Output, packages: &Packages) -> Result<Exit, Failure> {
    let trusted: Vec<String> = packages.trusted()?.iter().map(ToString::to_string).collect();
    trusted.iter().for_each(|publisher| output.line(publisher));
    if trusted.is_empty() {
        output.line("no publisher is trusted");
    }
    output.document("openred.module-trust/1", &json!({ "trusted": trusted }));
    Ok(Exit::Ok)
}

/// What is installed stays, and runs on: that is said.
fn distrusted(output: &Output, packages: &Packages, publisher: &NodeId) -> Result<Exit, Failure> {
    let signed = |(id, installed): (ModuleId, Result<Installed, Failure>)| {
        installed.and_then(|installed| installed.record.publisher()).is_ok_and(|of| of == *publisher).then_some(id)
    };
    for id in packages.each()?.into_iter().filter_map(signed) {
        output.line(format!("{id} is signed with that key and stays as it is; its upgrades are refused"));
        output.line(format!("  `openred module remove {id}` removes it, `openred module disable {id}` ends it"));
    }
    trusted(output, packages)
}

/// The digest goes in as the first line: a key before every table, whatever the manifest has.
fn bound(text: &str, digest: &str) -> String {
    let others = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("sha256 ") && !line.trim_start().starts_with("sha256="));
    let rest: String = others.map(|line| format!("{line}\n")).collect();
    format!("sha256 = \"{digest}\"\n{rest}")
}

fn sign(output: &Output, manifest: &Path, program: &Path, key: &Path, out: &Path) -> Result<Exit, Failure> {
    let read = |place: &Path| std::fs::read(place).map_err(|error| Failure::local(place.display(), &error));
    let text = String::from_utf8(read(manifest)?)
        .map_err(|_| Failure::usage(format!("{}: not UTF-8 text", manifest.display()), "write it anew as UTF-8"))?;
    // Before anything is signed: the complaint names the author's own file.
    let parse = |text: &str| {
        let parsed = Manifest::parse(&manifest.display().to_string(), text);
        parsed.map_err(|error| Failure::new(Exit::Usage, "package.manifest", error.to_string(), ""))
    };
    parse(&text)?;
    let content = read(program)?;
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&content));
    let text = bound(&text, &digest);
    let parsed = parse(&text)?;
    let key = PublisherKey::read(key)?;
    let signature = key.sign(&text).text();
    let files =
        [(MANIFEST, text.as_bytes()), (SIGNATURE, signature.as_bytes()), (parsed.program.as_str(), &content[..])];
    write_package(out, files)?;
    output.line(format!("{}: {} {}, signed by {}", out.display(), parsed.id, parsed.version, key.id()));
    let body = json!({
        "id": parsed.id.as_str(), "version": parsed.version, "publisher": key.id().to_string(), "sha256": digest,
    });
    output.document("openred.module-package/1", &body);
    Ok(Exit::Ok)
}
