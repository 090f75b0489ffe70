//! The module on the node of `openred module dev`: how each build takes the place of the one before it, and what is left when the run ends.
//!
//! A first build is installed; each that follows is a version of its own (`+dev.N` behind the manifest's, which is a build's name in SemVer) and takes over by
//! `module swap`, so that migrations are rehearsed and calls go on as at an operator's upgrade. What was installed or kept by the node before this run is
//! none of it: it is refused by name, and never removed. Whose a module is, its publisher says: the key is this run's.

use std::fs::{self, File};
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use openred_module::manifest::{Auth, Manifest, Method, ModuleId, Version};
use serde::Deserialize;
use serde_json::Value;

use super::node::Node;
use super::project::{MANIFEST, NODE, Project};
use crate::cli::{Exit, Failure, Invocation};
use crate::home::Home;
use crate::packages::Packages;

/// See the file's head.
pub(super) struct Session<'a> {
    invocation: &'a Invocation,
    project: Project,
    pub(super) node: Node,
    manifest: Manifest,
    /// What took its place last.
    runs: Option<Runs>,
    /// Builds that were to take a place.
    builds: u64,
    /// What this run has put on the node.
    ours: Vec<ModuleId>,
}

struct Runs {
    build: Build,
    /// As the manifest says.
    base: Version,
    /// As it was installed.
    version: Version,
}

#[derive(PartialEq, Eq)]
struct Build {
    id: ModuleId,
    manifest: String,
    program: blake3::Hash,
}

impl<'a> Session<'a> {
    /// Nothing is installed yet; refused where the operator's node has a module of that name.
    pub(super) fn new(
        invocation: &'a Invocation,
        project: Project,
        node: Node,
        manifest: Manifest,
    ) -> Result<Self, Failure> {
        let (runs, builds, ours) = Default::default();
        let session = Self { invocation, project, node, manifest, runs, builds, ours };
        match session.installed(&session.manifest.id)? {
            Some(_) => Err(foreign(&session.manifest.id)),
            None => session.refuse_kept().map(|()| session),
        }
    }

    /// Where `openred module call --dev` finds the node.
    pub(super) fn note_node(&self, mut claim: &File) -> Result<(), Failure> {
        let noted = claim.set_len(0).and_then(|()| claim.write_all(self.node.home.display().to_string().as_bytes()));
        noted.map_err(|error| Failure::local(self.project.folder.join(NODE).display(), &error))
    }

    pub(super) fn rebuild(&mut self) -> Result<PathBuf, Failure> {
        self.manifest = self.project.manifest()?;
        self.project.build(self.manifest.program.as_str())
    }

    /// Puts this build in the place of the last one, if it is another one.
    pub(super) fn replace(&mut self, program: &Path) -> Result<(), Failure> {
        let read = |place: &Path| fs::read(place).map_err(|error| Failure::local(place.display(), &error));
        let manifest = String::from_utf8_lossy(&read(&self.project.folder.join(MANIFEST))?).into_owned();
        let build = Build { id: self.manifest.id.clone(), manifest, program: blake3::hash(&read(program)?) };
        if self.runs.as_ref().is_none_or(|runs| runs.build != build) {
            self.put(build, program)?;
        }
        // One that is ended while nobody calls is started by its first call.
        if self.manifest.limits.idle_seconds > 0 {
            return Ok(());
        }
        let id = self.manifest.id.as_str();
        let name = format!("module {id}");
        let is = |status: &Value, state: &str| {
            let processes = status["supervisor"]["processes"].as_array();
            processes.is_some_and(|all| {
                all.iter().any(|process| process["name"] == name.as_str() && process["state"] == state)
            })
        };
        let settled = |status: &Value| is(status, "ready") || is(status, "quarantined");
        let status = self.node.wait_for(&format!("the module {id}"), settled)?;
        if is(&status, "ready") {
            return Ok(());
        }
        let what = format!("{id} ends again and again, and is not started any more");
        Err(Failure::new(Exit::Failed, "local", what, "its last words are above; mend it and save"))
    }

    fn put(&mut self, build: Build, program: &Path) -> Result<(), Failure> {
        if let Some(last) = self.runs.as_ref().filter(|last| last.build.id != build.id) {
            let last = last.build.id.clone();
            // On a throw-away node he may come back to that name.
            self.take_off(&last, self.node.is_throw_away())?;
            self.runs = None;
        }
        let publisher = self.publisher()?;
        let there = self.installed(&build.id)?;
        let last = self.runs.as_ref().filter(|_| there.is_some()).map(|last| (&last.base, &last.version));
        let base = self.manifest.version.clone();
        self.builds += 1;
        let version = match last {
            // Too long a version is no version: it is installed anew then.
            Some((before, _)) if *before == base => named(&base, self.builds).unwrap_or_else(|| base.clone()),
            _ => base.clone(),
        };
        let follows = last.is_some_and(|(_, before)| version.is_newer_than(before));
        let package = self.package(program, &build.manifest, &version)?;
        match there {
            Some(owner) if owner != publisher => return Err(foreign(&build.id)),
            Some(_) if follows => self.swap(&package, &version)?,
            Some(_) => {
                // To an earlier version no upgrade leads.
                self.take_off(&build.id, true)?;
                self.runs = None;
                self.install(&package, &publisher)?;
            }
            None => self.install(&package, &publisher)?,
        }
        self.runs = Some(Runs { build, base, version });
        Ok(())
    }

    /// Who signs for this run.
    fn publisher(&self) -> Result<String, Failure> {
        let (key, named) = (self.node.place("publisher.key"), self.node.place("publisher"));
        let local = |error| Failure::local(named.display(), &error);
        if !named.exists() {
            let made = self.node.ask(&["module", "key", &key.display().to_string()])?;
            fs::write(&named, made["publisher"].as_str().unwrap_or_default()).map_err(local)?;
        }
        fs::read_to_string(&named).map_err(local)
    }

    /// Makes a package of it.
    fn package(&self, program: &Path, manifest: &str, version: &Version) -> Result<String, Failure> {
        let text = |path: &Path| path.display().to_string();
        let (place, package) = (self.node.place(MANIFEST), self.node.place("package"));
        fs::write(&place, with_version(manifest, version)).map_err(|error| Failure::local(place.display(), &error))?;
        let _ = fs::remove_dir_all(&package);
        let (place, program, package) = (text(&place), text(program), text(&package));
        let key = text(&self.node.place("publisher.key"));
        self.node.ask(&["module", "sign", &place, "--program", &program, "--key", &key, "--out", &package])?;
        Ok(package)
    }

    /// Who signed what is installed under that name, if anything is.
    fn installed(&self, id: &ModuleId) -> Result<Option<String>, Failure> {
        let list = self.node.ask(&["module", "list"])?;
        let all = list["modules"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found = all.iter().find(|module| module["id"] == id.as_str());
        Ok(found.map(|module| module["publisher"].as_str().unwrap_or_default().to_owned()))
    }

    /// What one of that name has left there is another's.
    fn refuse_kept(&self) -> Result<(), Failure> {
        let id = &self.manifest.id;
        let home = Home::new(self.node.home.clone());
        if self.node.is_throw_away() || self.ours.contains(id) || !Packages::of(&home).keeps_state(id) {
            return Ok(());
        }
        let what = format!("this node keeps what a {id} has left that was removed with --keep-data");
        let way_out =
            "run `openred module dev` without --node; or install that module again and remove it with its state";
        Err(Failure::new(Exit::Conflict, "package.taken", what, way_out))
    }

    fn install(&mut self, package: &str, publisher: &str) -> Result<(), Failure> {
        self.refuse_kept()?;
        let id = self.manifest.id.clone();
        self.node.ask(&["module", "install", package, "--publisher", publisher, "--approve"])?;
        if !self.ours.contains(&id) {
            self.ours.push(id);
        }
        Ok(())
    }

    /// As an operator's upgrade. What was there goes on where it is not done.
    fn swap(&mut self, package: &str, version: &Version) -> Result<(), Failure> {
        let id = self.manifest.id.as_str();
        let Err(failure) = self.node.answer(&["module", "swap", id, package, "--approve"]) else { return Ok(()) };
        if failure.code == "module.not-swapped" || failure.code.starts_with("package.") {
            return Err(not_taken(id, &failure.what, failure.code.as_str()));
        }
        // The node's process may have been started anew meanwhile, as for a name in `net.egress` that it does not know: the next one does it.
        let ends = self.node.wait(|node| {
            let runs = node.answer(&["module", "generations", id]).ok()?["modules"][0].clone();
            if runs["version"] == version.as_str() {
                return Some(Ok(()));
            }
            let wanted = node.answer(&["module", "show", id]).ok()?["version"] == version.as_str();
            (!wanted).then(|| Err(not_taken(id, runs["outcome"].as_str().unwrap_or_default(), "module.not-swapped")))
        })?;
        ends.unwrap_or(Err(failure))
    }

    /// Takes this run's module off, if that is what is there.
    fn take_off(&self, id: &ModuleId, keep: bool) -> Result<(), Failure> {
        if self.installed(id)?.is_none_or(|owner| self.publisher().ok() != Some(owner)) {
            return Ok(());
        }
        let remove = ["module", "remove", id.as_str(), "--keep-data"];
        self.node.ask(if keep { &remove } else { &remove[..3] }).map(drop)
    }

    /// Says how to call it.
    pub(super) fn tell(&self) {
        let output = &self.invocation.output;
        let id = &self.manifest.id;
        let runs = if self.manifest.limits.idle_seconds > 0 { "runs when it is called" } else { "runs" };
        output.line(format!("{id} {} {runs}; save a file to build it anew, Ctrl-C ends it", self.manifest.version));
        for route in self.manifest.routes.iter().filter(|route| route.auth == Auth::Operator) {
            let (method, body) = match route.method {
                Method::Get => ("GET", ""),
                Method::Post if route.body_bytes > 0 => ("POST", " --data '{…}'"),
                Method::Post => ("POST", ""),
            };
            output.line(format!("    openred module call --dev {id} {method} {}{body}", route.path));
        }
        let body = serde_json::json!({ "id": id.as_str(), "home": self.node.home.display().to_string() });
        output.document("openred.module-dev/1", &body);
    }

    /// Takes what this run has installed off the operator's own node; a throw-away one ends with everything.
    pub(super) fn end(self) {
        let _ = fs::remove_file(self.project.folder.join(NODE));
        if self.node.is_throw_away() {
            return;
        }
        for id in &self.ours {
            if let Err(failure) = self.take_off(id, false) {
                self.invocation.output.failure(&failure);
            }
        }
    }
}

fn foreign(id: &ModuleId) -> Failure {
    let what = format!("this node has a module {id}, which this run of `openred module dev` has not installed");
    let way_out = format!(
        "run `openred module dev` without --node; or, if you mean to replace that one, first `openred module remove {id}`"
    );
    Failure::new(Exit::Conflict, "package.taken", what, way_out)
}

fn not_taken(id: &str, why: &str, code: &str) -> Failure {
    let what = format!("this build of {id} has not taken the place of the one before it, which is as it was: {why}");
    Failure::new(Exit::Failed, code, what, "mend it and save")
}

/// A build of that version, by its number.
fn named(version: &Version, number: u64) -> Option<Version> {
    let separator = if version.as_str().contains('+') { '.' } else { '+' };
    format!("{version}{separator}dev.{number}").parse().ok()
}

/// The manifest with another version in it.
fn with_version(manifest: &str, version: &Version) -> String {
    #[derive(Deserialize)]
    struct Head {
        version: serde_spanned::Spanned<String>,
    }
    let found: Option<Range<usize>> = toml::from_str::<Head>(manifest).ok().map(|head| head.version.span());
    // One without a version is no manifest, and was not read before.
    found.map_or_else(
        || manifest.to_owned(),
        |place| format!("{}\"{version}\"{}", &manifest[..place.start], &manifest[place.end..]),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn each_build_is_a_newer_version_of_the_same_and_the_rest_of_the_manifest_stays() {
        for base in ["0.1.0", "1.0.0-rc.1", "1.0.0+openred.probe"] {
            let base: Version = base.parse().unwrap();
            let [first, later] = [2, 10].map(|number| named(&base, number).unwrap());
            assert!(first.is_newer_than(&base) && later.is_newer_than(&first), "{first} {later}");
            assert!(first.is_build_of(&base) && !base.is_build_of(&first) && !first.is_build_of(&later));
            let manifest = format!(
                "id = \"m\" # version = \"9\"\nversion = '{base}' # here\nprogram = \"m\"\ndescription = \"version\"\n"
            );
            let changed = with_version(&manifest, &first);
            assert_eq!(changed, manifest.replace(&format!("'{base}'"), &format!("\"{first}\"")));
            assert_eq!(Manifest::parse("m", &changed).unwrap().version, first);
        }
        let long: Version = format!("1.0.0+{}", "a".repeat(56)).parse().unwrap();
        assert!(named(&long, 1000).is_none());
    }
}
