//! The node on which `openred module dev` runs a module: a throw-away one, or the operator's own; and what is asked of it, which is what an operator
//! may ask, by other runs of this program.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::dev::ends;
use super::folder::Folder;
use crate::cli::output::Output;
use crate::cli::{Exit, Failure, Invocation};

/// The throw-away node's home in the folder of its run.
pub(super) const HOME: &str = "node";
/// How long a node or a module may take to be ready.
const READY: Duration = Duration::from_secs(120);
/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(200);
/// As root: uids that no other node of this machine is likely to have, a range for each of 256 runs.
const UIDS: u32 = 700_000;
const UIDS_EACH: u32 = 100;

/// The node on which the module runs, and the folder of this run.
pub(super) struct Node {
    pub(super) home: PathBuf,
    run: Folder,
    /// The throw-away node's supervisor.
    supervisor: Option<Child>,
}

impl Node {
    fn folder(output: Output) -> Result<Folder, Failure> {
        let (run, left) = Folder::make()?;
        for left in left {
            output.aside(&format!("removed {}, which a run that was killed had left", left.display()));
        }
        Ok(run)
    }

    /// In the folder of this run.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        self.run.path().join(name)
    }

    /// Whether it is there for this run alone.
    pub(super) fn is_throw_away(&self) -> bool {
        self.supervisor.is_some()
    }

    /// The operator's own node, which must run.
    pub(super) fn own(invocation: &Invocation) -> Result<Self, Failure> {
        let run = Self::folder(invocation.output)?;
        let node = Self { home: invocation.home.path().to_owned(), run, supervisor: None };
        node.ask(&["status"])?;
        Ok(node)
    }

    /// Makes one, and starts it.
    pub(super) fn throw_away(output: Output) -> Result<Self, Failure> {
        let run = Self::folder(output)?;
        let mut node = Self { home: run.path().join(HOME), run, supervisor: None };
        let passphrase = node.place("passphrase");
        let local = |error| Failure::local(passphrase.display(), &error);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&passphrase);
        file.and_then(|mut file| file.write_all(b"a throw-away node's\n")).map_err(local)?;
        let text = passphrase.display().to_string();
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let listen = port.map_err(|error| Failure::local("a loopback port", &error))?.to_string();
        // Only root's node uses them.
        let uids = (UIDS + UIDS_EACH * u32::from(random()?[0])).to_string();
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
                // Whatever is in a line: a log that nobody reads holds its node up.
                for line in BufReader::new(log).split(b'\n').map_while(Result::ok) {
                    output.aside(&format!("  | {}", String::from_utf8_lossy(&line)));
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
    pub(super) fn ask(&self, words: &[&str]) -> Result<Value, Failure> {
        let named =
            |failure: Failure| Failure { what: format!("openred {}: {}", words.join(" "), failure.what), ..failure };
        self.answer(words).map_err(named)
    }

    /// The same; a refusal in the node's own words.
    pub(super) fn answer(&self, words: &[&str]) -> Result<Value, Failure> {
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
        Err(Failure::new(Exit::Failed, code, what.trim(), way_out))
    }

    /// Looks at its status until it is as wanted.
    pub(super) fn wait_for(&mut self, what: &str, ready: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
        let mut last = Value::Null;
        let found = self.wait(|node| {
            // Whatever its conditions are, which its exit code tells.
            let answer = node.command(&["status"]).stdin(Stdio::null()).output();
            let status = answer.ok().and_then(|answer| last_document(&answer.stdout))?;
            last = status["node"]["conditions"].clone();
            ready(&status).then_some(status)
        })?;
        found.ok_or_else(|| {
            let what = format!("{what} is not ready after {} s; the node says: {last}", READY.as_secs());
            Failure::new(Exit::TimeOut, "local", what, "see the log above")
        })
    }

    /// Looks until there is something; nothing when the time is over, or this run's.
    pub(super) fn wait<T>(&mut self, mut look: impl FnMut(&Self) -> Option<T>) -> Result<Option<T>, Failure> {
        let begun = Instant::now();
        while begun.elapsed() < READY && !ends() {
            self.is_there()?;
            if let Some(found) = look(self) {
                return Ok(Some(found));
            }
            std::thread::sleep(LOOK);
        }
        Ok(None)
    }

    /// That the throw-away node has not ended by itself.
    pub(super) fn is_there(&mut self) -> Result<(), Failure> {
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
    }
}

pub(super) fn random() -> Result<[u8; 6], Failure> {
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
