//! `openred module dev`: builds the project of the current folder, installs it on a node, and does so again whenever a file is saved.
//!
//! The node is a throw-away one, made for this run in a temporary folder and removed with it, unless the operator's own is named. Everything else is as for
//! any module: a package that is signed (with a key of this run), installed, granted what its manifest asks for, and run in its cage. A build
//! that fails leaves the last good one running. What the module keeps stays from one build to the next.
//!
//! This program asks other runs of itself for what an operator would do, so nothing here is more than an operator may do.

use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use openred_module::manifest::{Auth, Manifest, Method, ModuleId};
use serde_json::Value;

use super::project::{MANIFEST, NODE, Project};
use crate::cli::output::Output;
use crate::cli::{Exit, Failure, Invocation};

/// How long a node or a module may take to be ready.
const READY: Duration = Duration::from_secs(120);
/// Between two looks at that, and at the signal to end.
const LOOK: Duration = Duration::from_millis(200);
/// Editors save in several steps: what follows within this time belongs to it.
const SETTLED: Duration = Duration::from_millis(200);
/// Saves that wait; more are the same to us.
const SAVES: usize = 16;
/// As root: uids that no other node of this machine is likely to have, a range for each of 256 runs.
const UIDS: u32 = 700_000;
const UIDS_EACH: u32 = 100;

/// Whether SIGINT, SIGTERM or SIGHUP has come.
static END: AtomicBool = AtomicBool::new(false);

/// Runs until a signal comes.
pub(crate) fn dev(invocation: &Invocation, own_node: bool) -> Result<Exit, Failure> {
    let project = Project::here()?;
    let manifest = project.manifest()?;
    listen_to_signals()?;
    let (saved, saves) = sync_channel(SAVES);
    let watcher = watch(&project, saved)?;
    let claim = project.claim()?;
    // Before anything is made that would have to be removed.
    let mut program = project.build(manifest.program.as_str());
    if ends() {
        return Ok(Exit::Ok);
    }
    let node = if own_node { Node::own(invocation)? } else { Node::throw_away(invocation.output)? };
    let mut session = Session { invocation, project, node, manifest, runs: None };
    session.note_node(&claim)?;
    loop {
        match program.and_then(|program| session.replace(&program)) {
            Ok(()) => session.tell(),
            // The signal to end has reached cargo and what this program asked as well.
            Err(_) if ends() => break,
            Err(failure) => invocation.output.failure(&failure),
        }
        if !next_save(&saves, &mut session)? {
            break;
        }
        program = session.rebuild();
    }
    drop(watcher);
    session.end();
    Ok(Exit::Ok)
}

fn listen_to_signals() -> Result<(), Failure> {
    // A runtime of its own on a thread of its own: everything else here waits in turn.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("the signals", &error))?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hang_up)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
            else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            END.store(true, Ordering::SeqCst);
        });
    });
    Ok(())
}

fn ends() -> bool {
    END.load(Ordering::SeqCst)
}

/// Watches the project but for what cargo and git write.
fn watch(project: &Project, saved: std::sync::mpsc::SyncSender<()>) -> Result<RecommendedWatcher, Failure> {
    let folder = project.folder.clone();
    let is_source = move |path: &PathBuf| {
        let inside = path.strip_prefix(&folder).unwrap_or(path);
        let first = inside.components().next().map(|part| part.as_os_str().to_owned());
        first.is_some_and(|first| !["target", ".git", "Cargo.lock"].iter().any(|other| first == *other))
    };
    let failed = |error: notify::Error| {
        Failure::new(Exit::Failed, "local", format!("{}: {error}", project.folder.display()), "")
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        let changes = event.kind.is_modify() || event.kind.is_create() || event.kind.is_remove();
        if changes && event.paths.iter().any(&is_source) {
            // A queue that is full says it already.
            let _ = saved.try_send(());
        }
    })
    .map_err(failed)?;
    watcher.watch(&project.folder, RecursiveMode::Recursive).map_err(failed)?;
    Ok(watcher)
}

/// Waits for the next save; false when it is time to end.
fn next_save(saves: &Receiver<()>, session: &mut Session<'_>) -> Result<bool, Failure> {
    loop {
        if ends() {
            return Ok(false);
        }
        session.node.is_there()?;
        match saves.recv_timeout(LOOK) {
            Ok(()) => {
                while saves.recv_timeout(SETTLED).is_ok() {}
                return Ok(true);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        }
    }
}

// ---------------------------------------------------------------- the node

/// The node on which the module runs, and the folder of this run.
struct Node {
    home: PathBuf,
    run: PathBuf,
    /// The throw-away node's supervisor.
    supervisor: Option<Child>,
}

impl Node {
    fn folder(random: &[u8]) -> Result<PathBuf, Failure> {
        let run = std::env::temp_dir().join(format!("openred-dev.{}", hex::encode(random)));
        fs::create_dir(&run).map_err(|error| Failure::local(run.display(), &error))?;
        // As root, the node's processes have uids of their own and go through it.
        fs::set_permissions(&run, Permissions::from_mode(0o711))
            .map_err(|error| Failure::local(run.display(), &error))?;
        Ok(run)
    }

    /// The operator's own node, which must run.
    fn own(invocation: &Invocation) -> Result<Self, Failure> {
        let run = Self::folder(&random()?)?;
        let node = Self { home: invocation.home.path().to_owned(), run, supervisor: None };
        node.ask(&["status"])?;
        Ok(node)
    }

    /// Makes one, and starts it.
    fn throw_away(output: Output) -> Result<Self, Failure> {
        let random = random()?;
        let run = Self::folder(&random)?;
        let mut node = Self { home: run.join("node"), run, supervisor: None };
        let passphrase = node.run.join("passphrase");
        let local = |error| Failure::local(passphrase.display(), &error);
        fs::write(&passphrase, "a throw-away node's\n").map_err(local)?;
        fs::set_permissions(&passphrase, Permissions::from_mode(0o600)).map_err(local)?;
        let text = passphrase.display().to_string();
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let listen = port.map_err(|error| Failure::local("a loopback port", &error))?.to_string();
        // Only root's node uses them.
        let uids = (UIDS + UIDS_EACH * u32::from(random[0])).to_string();
        let made = ["init", "--name", "dev", "--listen", &listen, "--uid-base", &uids, "--passphrase-file", &text];
        node.ask(&made)?;
        let own = std::process::id().to_string();
        let mut supervisor = node.command(&["up", "--passphrase-file", &text, "--with-parent", &own]);
        // In a process group of its own: the terminal's Ctrl-C is for this program, which then ends the node.
        supervisor.process_group(0);
        let started = supervisor.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut supervisor = started.map_err(|error| Failure::local("openred up", &error))?;
        if let Some(log) = supervisor.stderr.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(log).lines().map_while(Result::ok) {
                    output.aside(&format!("  | {line}"));
                }
            });
        }
        node.supervisor = Some(supervisor);
        node.wait_for("the node", |status| status["supervisor"]["state"] == "ready")?;
        Ok(node)
    }

    /// This program, about that node.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "openred".into()));
        command.arg("--json").arg("--home").arg(&self.home).args(words).env_remove("OPENRED_HOME");
        command
    }

    /// Asks it something, and gives its answer.
    fn ask(&self, words: &[&str]) -> Result<Value, Failure> {
        let asked = self.command(words).stdin(Stdio::null()).output();
        let answer = asked.map_err(|error| Failure::local("openred", &error))?;
        if answer.status.success() {
            return Ok(last_document(&answer.stdout).unwrap_or_default());
        }
        let said = last_document(&answer.stderr).unwrap_or_default();
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        let (code, what, way_out) = (text("code"), text("message"), text("way_out"));
        let what = if what.is_empty() { String::from_utf8_lossy(&answer.stderr).into_owned() } else { what };
        let code = if code.is_empty() { "local" } else { &code };
        Err(Failure::new(Exit::Failed, code, format!("openred {}: {}", words.join(" "), what.trim()), way_out))
    }

    /// Looks at its status until it is as wanted.
    fn wait_for(&mut self, what: &str, ready: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
        let begun = Instant::now();
        let mut last = Value::Null;
        while begun.elapsed() < READY && !ends() {
            self.is_there()?;
            let answer = self.command(&["status"]).stdin(Stdio::null()).output();
            if let Some(status) = answer.ok().and_then(|answer| last_document(&answer.stdout)) {
                if ready(&status) {
                    return Ok(status);
                }
                last = status["node"]["conditions"].clone();
            }
            std::thread::sleep(LOOK);
        }
        let what = format!("{what} is not ready after {} s; the node says: {last}", begun.elapsed().as_secs());
        Err(Failure::new(Exit::TimeOut, "local", what, "see the log above"))
    }

    /// That the throw-away node has not ended by itself.
    fn is_there(&mut self) -> Result<(), Failure> {
        match self.supervisor.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) if !ends() => {
                let what = format!("the throw-away node ended ({status})");
                Err(Failure::new(Exit::Failed, "local", what, "see its log above"))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(supervisor) = &mut self.supervisor {
            // It drains, and its modules end with it.
            let pid = i32::try_from(supervisor.id()).map(Pid::from_raw);
            let _ = pid.map(|pid| kill(pid, Signal::SIGTERM));
            let _ = supervisor.wait();
        }
        let _ = fs::remove_dir_all(&self.run);
    }
}

fn random() -> Result<[u8; 6], Failure> {
    let mut random = [0; 6];
    let drawn = getrandom::fill(&mut random);
    drawn.map_err(|_| Failure::new(Exit::Failed, "local", "the system has no randomness", ""))?;
    Ok(random)
}

fn last_document(bytes: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(bytes);
    serde_json::from_str(text.trim())
        .ok()
        .or_else(|| text.trim().lines().rev().find_map(|line| serde_json::from_str(line).ok()))
}

// ---------------------------------------------------------------- the module on it

struct Session<'a> {
    invocation: &'a Invocation,
    project: Project,
    node: Node,
    manifest: Manifest,
    /// What was installed last.
    runs: Option<Build>,
}

#[derive(PartialEq, Eq)]
struct Build {
    id: ModuleId,
    manifest: String,
    program: blake3::Hash,
}

impl Session<'_> {
    /// Where `openred module call --dev` finds the node.
    fn note_node(&self, mut claim: &File) -> Result<(), Failure> {
        let noted = claim.set_len(0).and_then(|()| claim.write_all(self.node.home.display().to_string().as_bytes()));
        noted.map_err(|error| Failure::local(self.project.folder.join(NODE).display(), &error))
    }

    fn rebuild(&mut self) -> Result<PathBuf, Failure> {
        self.manifest = self.project.manifest()?;
        self.project.build(self.manifest.program.as_str())
    }

    /// Puts this build in the place of the last one, if it is another one.
    fn replace(&mut self, program: &Path) -> Result<(), Failure> {
        let read = |place: &Path| fs::read(place).map_err(|error| Failure::local(place.display(), &error));
        let manifest = String::from_utf8_lossy(&read(&self.project.folder.join(MANIFEST))?).into_owned();
        let build = Build { id: self.manifest.id.clone(), manifest, program: blake3::hash(&read(program)?) };
        if self.runs.as_ref() != Some(&build) {
            let publisher = self.package(program)?;
            self.install(&publisher)?;
            self.runs = Some(build);
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

    fn place(&self) -> PathBuf {
        self.node.run.join("package")
    }

    /// Makes a package of it; who signed it.
    fn package(&self, program: &Path) -> Result<String, Failure> {
        let text = |path: &Path| path.display().to_string();
        let (key, package) = (self.node.run.join("publisher.key"), self.place());
        if !key.exists() {
            self.node.ask(&["module", "key", &text(&key)])?;
        }
        let _ = fs::remove_dir_all(&package);
        let manifest = text(&self.project.folder.join(MANIFEST));
        let (program, key, package) = (text(program), text(&key), text(&package));
        let signed = ["module", "sign", &manifest, "--program", &program, "--key", &key, "--out", &package];
        let signed = self.node.ask(&signed)?;
        Ok(signed["publisher"].as_str().unwrap_or_default().to_owned())
    }

    /// Takes the last one off, which has the same version, and puts the package in its place.
    fn install(&mut self, publisher: &str) -> Result<(), Failure> {
        if let Some(last) = self.runs.take() {
            self.node.ask(&["module", "remove", last.id.as_str(), "--keep-data"])?;
        }
        let package = self.place().display().to_string();
        self.node.ask(&["module", "install", &package, "--publisher", publisher, "--approve"])?;
        Ok(())
    }

    /// Says how to call it.
    fn tell(&self) {
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

    /// Takes the module off the operator's own node; a throw-away one ends with everything.
    fn end(self) {
        let _ = fs::remove_file(self.project.folder.join(NODE));
        if let (None, Some(last)) = (&self.node.supervisor, &self.runs) {
            let removed = self.node.ask(&["module", "remove", last.id.as_str()]);
            if let Err(failure) = removed {
                self.invocation.output.failure(&failure);
            }
        }
    }
}
