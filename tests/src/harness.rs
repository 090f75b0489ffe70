//! Starts the real programs in a fresh folder, talks to them as an operator would, and stops them by process id.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::light;
use crate::tap::Tap;

/// How long anything local may take before it counts as failed; generous, because a loaded machine is no defect.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at a condition, at least.
const LOOK: Duration = Duration::from_millis(25);
/// And at most, for a look that takes long itself.
const PAUSE: Duration = Duration::from_millis(250);

/// Where the programs are: `OPENRED_BIN_DIR`, or the folder above the running test's.
///
/// # Errors
/// When `openred` is not there: build first.
pub fn binaries() -> Result<PathBuf> {
    let folder = match std::env::var_os("OPENRED_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let own = std::env::current_exe()?;
            let folder = own.parent().context("a program has a folder")?;
            if folder.ends_with("deps") { folder.parent().context("deps has a parent")? } else { folder }.to_owned()
        }
    };
    ensure!(
        folder.join("openred").exists(),
        "{} is not built; run `cargo build --workspace` first",
        folder.join("openred").display()
    );
    Ok(folder)
}

/// A node's programs.
const PROGRAMS: [&str; 10] = [
    "openred",
    "cryptod",
    "cryptod-vault",
    "cryptod-unseal",
    "noded",
    "openred-launch",
    "openred-messaging",
    "openred-files",
    "openred-monitor",
    "openred-auth",
];

/// Lays a node's programs out in a new folder, with another in the place of the one of this name.
///
/// # Errors
/// When that is not possible.
pub fn lay_out(folder: &Path, replaced: &str, other: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for name in PROGRAMS {
        let source = if name == replaced { other.to_owned() } else { binaries()?.join(name) };
        let place = folder.join(name);
        // By a process of its own: a child that another test forks meanwhile would inherit our writing descriptor, and a
        // program open for writing cannot be started.
        if fs::hard_link(&source, &place).is_err() {
            ensure!(Command::new("cp").arg(&source).arg(&place).status()?.success(), "copying {name}");
        }
    }
    Ok(())
}

/// Whether this process is root; the uid tests and the memory search run only in that half of the suite.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Below the range out of which Linux takes ports for outgoing connections, so that none takes that of a node which is down for a moment.
const PORTS: Range<u32> = 20_000..32_000;

/// A loopback port that was free a moment ago. One process is given none twice before it was given all of them.
///
/// # Errors
/// When none is.
pub fn free_port() -> Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Programs that run beside each other begin at other places.
    let begin = std::process::id().wrapping_mul(257);
    for _ in PORTS {
        let number = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let port = u16::try_from(PORTS.start + number)?;
        if let Ok(free) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(free.local_addr()?);
        }
    }
    bail!("no free port on 127.0.0.1 from {} up to {}: end what listens there", PORTS.start, PORTS.end)
}

/// Looks at `condition` until it yields, at most [`PATIENCE`].
///
/// # Errors
/// Names `what` did not come, with the last thing that `condition` said against it.
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_up_to(PATIENCE, what, condition)
}

/// As [`wait_for`], for what a node does so seldom that [`PATIENCE`] is hardly longer.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_up_to<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + patience;
    let mut last = anyhow!("it never looked");
    loop {
        let begun = Instant::now();
        if begun >= end {
            break;
        }
        match condition() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => last = anyhow!("not yet"),
            Err(error) => last = error,
        }
        // A look that starts a program takes its time from what is waited for: twice as long passes without one.
        thread::sleep((begun.elapsed() * 2).clamp(LOOK, PAUSE));
    }
    Err(last.context(format!("waited {} s in vain for {what}", patience.as_secs())))
}

/// What a command-line program answered.
#[derive(Debug)]
pub struct Answer {
    /// Exit code; 128 + signal when it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// Demands exit code 0.
    ///
    /// # Errors
    /// Both outputs, when it was another.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.code == 0, "exit code {}\n{}{}", self.code, self.stdout, self.stderr);
        Ok(self)
    }

    /// Demands exit code 0 and reads standard output's last line (or all of it) as JSON.
    ///
    /// # Errors
    /// When it failed or is no JSON.
    pub fn json(self) -> Result<Value> {
        let answer = self.ok()?;
        let last = answer.stdout.trim().lines().last().unwrap_or_default();
        serde_json::from_str(&answer.stdout)
            .or_else(|_| serde_json::from_str(last))
            .with_context(|| format!("no JSON: {}", answer.stdout))
    }
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started.
pub fn run(program: &Path, arguments: &[&str]) -> Result<Answer> {
    let output = Command::new(program)
        .args(arguments)
        .env_remove("OPENRED_HOME")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    Ok(Answer {
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A long-running program; killed by its own process id when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program` with its output in `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, arguments: &[&str], log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = Command::new(program)
            .args(arguments)
            .env_remove("OPENRED_HOME")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it ended, and how.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        Ok(self.child.try_wait()?.map(code))
    }

    /// What it printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks it to drain (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self) -> Result<i32> {
        self.signal(Signal::SIGTERM)?;
        wait_for("the end after SIGTERM", || self.ended()).with_context(|| self.output())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal_pid(self.pid(), signal)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.signal(Signal::SIGTERM);
            for _ in 0..200 {
                if let Ok(Some(_)) = self.child.try_wait() {
                    return;
                }
                thread::sleep(LOOK);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Sends a signal to one process that a test started.
///
/// # Errors
/// When it is gone.
pub fn signal_pid(pid: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
}

/// A directory in its own home.
#[derive(Debug)]
pub struct Directory {
    program: PathBuf,
    /// Its home folder.
    pub home: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its did:key.
    pub id: String,
    daemon: Option<Daemon>,
}

impl Directory {
    /// Makes its key and configuration. `origin` is the public origin that requests are signed for.
    ///
    /// # Errors
    /// When `directory init` fails.
    pub fn init(home: &Path, listen: SocketAddr, origin: &str) -> Result<Self> {
        let program = binaries()?.join("directory");
        let home_text = home.to_string_lossy().into_owned();
        let made = run(
            &program,
            &["--json", "--home", &home_text, "init", "--listen", &listen.to_string(), "--origin", origin],
        )?
        .json()?;
        let address = made["address"].as_str().context("directory init prints did@url")?;
        let id = address.split('@').next().unwrap_or_default().to_owned();
        Ok(Self { program, home: home.to_owned(), listen, id, daemon: None })
    }

    /// Starts it and waits until its port answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn up(&mut self) -> Result<()> {
        let home = self.home.to_string_lossy().into_owned();
        let mut daemon = Daemon::start(&self.program, &["--home", &home, "serve"], &self.home.join("serve.log"))?;
        wait_for("the directory's port", || {
            if let Some(code) = daemon.ended()? {
                bail!("the directory ended with {code}: {}", daemon.output());
            }
            Ok(std::net::TcpStream::connect(self.listen).ok())
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("the directory is not running")?.pid())
    }

    /// Runs an admin command against it.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn cli(&self, arguments: &[&str]) -> Result<Answer> {
        let home = self.home.to_string_lossy().into_owned();
        run(&self.program, &[&["--json", "--home", &home], arguments].concat())
    }

    /// Stops it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn down(&mut self) -> Result<()> {
        self.daemon.take().map_or(Ok(()), |daemon| daemon.stop().map(|_| ()))
    }
}

/// A node in its own home.
#[derive(Debug)]
pub struct Node {
    program: PathBuf,
    /// Its home folder.
    pub home: PathBuf,
    /// Its peer-to-peer address.
    pub listen: SocketAddr,
    /// Its did:key.
    pub id: String,
    daemon: Option<Daemon>,
}

impl Node {
    /// Makes a node named `name` below `folder` that uses `directory` (`did@url`). `extra` is appended to its
    /// configuration; as root each node takes its own range of uids from `uid_base`.
    ///
    /// # Errors
    /// When `openred init` fails.
    pub fn init(folder: &Path, name: &str, directory: &str, uid_base: u32, extra: &str) -> Result<Self> {
        Self::init_at(folder, name, directory, uid_base, extra, free_port()?)
    }

    /// The same with a keystore that opens at once ([`light`]).
    ///
    /// # Errors
    /// When `openred init` fails.
    pub fn init_light(folder: &Path, name: &str, directory: &str, uid_base: u32, extra: &str) -> Result<Self> {
        let identity = age::x25519::Identity::generate();
        let to = ["--recipient", &identity.to_public().to_string()];
        let node = Self::make(folder, name, directory, uid_base, extra, free_port()?, &to)?;
        let place = node.home.join("keystore.age");
        let words = fs::read_to_string(passphrase(&node))?;
        let sealed = light::to_passphrase(&fs::read(&place)?, &identity, words.trim_end())?;
        fs::write(place, sealed)?;
        Ok(node)
    }

    /// As [`Node::init`], at an address that the caller chose.
    ///
    /// # Errors
    /// When `openred init` fails.
    pub fn init_at(
        folder: &Path,
        name: &str,
        directory: &str,
        uid_base: u32,
        extra: &str,
        listen: SocketAddr,
    ) -> Result<Self> {
        Self::make(folder, name, directory, uid_base, extra, listen, &[])
    }

    /// `sealed`: how the keystore is sealed, if not with the passphrase.
    fn make(
        folder: &Path,
        name: &str,
        directory: &str,
        uid_base: u32,
        extra: &str,
        listen: SocketAddr,
        sealed: &[&str],
    ) -> Result<Self> {
        let program = binaries()?.join("openred");
        let home = folder.join(name);
        let passphrase = folder.join(format!("{name}.passphrase"));
        fs::write(&passphrase, format!("passphrase of {name}\n"))?;
        fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600))?;
        let (home_text, passphrase) = (home.to_string_lossy().into_owned(), passphrase.to_string_lossy().into_owned());
        let listen_text = listen.to_string();
        let mut arguments = vec!["--json", "--home", &home_text, "init", "--name", name, "--listen", &listen_text];
        match sealed {
            [] => arguments.extend(["--passphrase-file", &passphrase]),
            _ => arguments.extend(sealed),
        }
        if !directory.is_empty() {
            arguments.extend(["--directory", directory]);
        }
        let made = run(&program, &arguments)?.json()?;
        let id = made["node_id"].as_str().context("openred init prints the node id")?.to_owned();
        let config = home.join("openred.toml");
        let uid = if is_root() { format!("uid_base = {uid_base}\n") } else { String::new() };
        let text = format!("{uid}{}\n{extra}\n", fs::read_to_string(&config)?);
        fs::write(&config, text)?;
        Ok(Self { program, home, listen, id, daemon: None })
    }

    /// Puts a recording proxy in front of its peer-to-peer port, which its card then names. To be called before its first start.
    ///
    /// # Errors
    /// When the proxy or the configuration cannot be had.
    pub fn tapped(&self) -> Result<Tap> {
        let tap = Tap::start(self.listen)?;
        let config = self.home.join("openred.toml");
        let text = fs::read_to_string(&config)?;
        fs::write(&config, format!("endpoints = [\"http://{}\"]\n{text}", tap.address()))?;
        Ok(tap)
    }

    /// Takes the node's programs from another folder, from the next start on.
    pub fn run_from(&mut self, folder: &Path) {
        self.program = folder.join("openred");
    }

    /// Starts it and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it does not come up; with its log.
    pub fn up(&mut self) -> Result<()> {
        self.start(true, "ready")
    }

    /// Starts it and waits until its processes are ready, whatever `noded` says of itself.
    ///
    /// # Errors
    /// When they do not come up; with the log.
    pub fn up_without_answers(&mut self) -> Result<()> {
        self.start(false, "ready")
    }

    /// The same where an alarm is known from the beginning.
    ///
    /// # Errors
    /// When they do not come up; with the log.
    pub fn up_degraded(&mut self) -> Result<()> {
        self.start(false, "degraded")
    }

    fn start(&mut self, answers: bool, state: &str) -> Result<()> {
        let home = self.home.to_string_lossy().into_owned();
        let passphrase = format!("{home}.passphrase");
        let log = self.home.with_extension("log");
        let arguments = ["--home", &home, "up", "--passphrase-file", &passphrase];
        let mut daemon = Daemon::start(&self.program, &arguments, &log)?;
        wait_for("the node to be ready", || {
            if let Some(code) = daemon.ended()? {
                bail!("the node ended with {code}: {}", daemon.output());
            }
            let answer = self.cli(&["status"])?;
            let status: Value = if answers { answer.json()? } else { serde_json::from_str(answer.stdout.trim())? };
            Ok((status["supervisor"]["state"] == state).then_some(()))
        })
        .with_context(|| daemon.output())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Runs an operator's command with `--json`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn cli(&self, arguments: &[&str]) -> Result<Answer> {
        let home = self.home.to_string_lossy().into_owned();
        run(&self.program, &[&["--json", "--home", &home], arguments].concat())
    }

    /// Starts an operator's command and yields its standard output line by line.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn stream(&self, arguments: &[&str]) -> Result<(Child, impl Iterator<Item = String> + use<>)> {
        let mut child = Command::new(&self.program)
            .args(["--json", "--home"])
            .arg(&self.home)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("standard output is piped")?;
        Ok((child, BufReader::new(output).lines().map_while(std::io::Result::ok)))
    }

    /// The process id of one of its children: `front`, `vault`, `noded`.
    ///
    /// # Errors
    /// When status does not name it.
    pub fn child_pid(&self, name: &str) -> Result<u32> {
        let status = self.cli(&["status"])?;
        let status: Value = serde_json::from_str(status.stdout.trim())?;
        let processes = status["supervisor"]["processes"].as_array().context("status lists processes")?;
        let process = processes.iter().find(|process| process["name"] == name);
        let pid = process.and_then(|process| process["pid"].as_u64()).filter(|pid| *pid > 0);
        Ok(u32::try_from(pid.with_context(|| format!("status names no {name}: {status}"))?)?)
    }

    /// The supervisor, while it runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("the node is not running")
    }

    /// Stops it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn down(&mut self) -> Result<()> {
        self.daemon.take().map_or(Ok(()), |daemon| daemon.stop().map(|_| ()))
    }
}

/// What a command refused: its exit code, and the code of the error that it said last.
///
/// # Panics
/// When it said none: a test that asks for a refusal has failed then.
#[must_use]
pub fn refusal(answer: &Answer) -> (i32, String) {
    let line = answer.stderr.lines().rev().find(|line| line.contains("openred.error/1"));
    let body: Option<serde_json::Value> = line.and_then(|line| serde_json::from_str(line).ok());
    match body.as_ref().and_then(|body| body["code"].as_str()) {
        Some(code) => (answer.code, code.to_owned()),
        None => panic!("no refusal: {answer:?}"),
    }
}

/// The file with a node's passphrase, as [`Node::init`] leaves it.
#[must_use]
pub fn passphrase(node: &Node) -> String {
    format!("{}.passphrase", node.home.display())
}
