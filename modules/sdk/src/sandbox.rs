//! A module's real program in its real cage, in a test and without a node.
//!
//! The program is started through `openred-launch` as a node would start it (same role, same layers, each checked from outside), dials the same
//! door, and is called through the same attachment; behind the door stands a [`TestHost`], so that state, links, timers and faults are those of every other
//! test. What a module does when it is linked into a test and what it does in its cage differ in what the kernel refuses, and this shows it.
//!
//! ```no_run
//! # async fn test() -> Result<(), openred_module::SandboxError> {
//! use openred_module::{PeerRequest, SandboxHost, Status};
//!
//! // In a test of the package `greet`: env!("CARGO_BIN_EXE_greet")
//! let host = SandboxHost::start(1, "greet", "target/debug/greet").await?;
//! let answer = host.operator(PeerRequest::get("/greeted")).await;
//! assert_eq!(answer.status, Status::Ok);
//! host.stop().await?;
//! # Ok(())
//! # }
//! ```

mod process;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openred_policy::launch::DOOR_SOCKET;
use openred_policy::limits::{Limits, Resource};
use openred_policy::spawn::Exit;
use openred_policy::{KeptPath, Layer};
use openred_proto::secret::Secret;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::ModuleError;
use crate::remote::{Attached, Door, Fault, PROOF_BYTES};
use crate::test_host::TestHost;
use process::{Plan, Process};

/// The longest that a program may take for one step on a loaded machine.
const STEP: Duration = Duration::from_secs(60);
/// Which programs lie beside `openred`.
const LAUNCHER: &str = "openred-launch";

/// Why there is no module in its cage.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// `openred-launch` is not here.
    #[error(
        "openred-launch is not found; install OpenRed, so that `openred` is in PATH, or name the folder of its programs in OPENRED_BIN_DIR"
    )]
    NoLauncher,
    /// A file or socket of the test's own.
    #[error("{what}: {source}")]
    Local {
        /// What it was.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// The cage cannot be had.
    #[error("the cage: {0}")]
    Cage(#[from] openred_policy::Error),
    /// The launcher gave up.
    #[error("the launcher: {0}")]
    Refused(String),
    /// A layer of the cage is not what it must be.
    #[error("the cage's layer {0} is off")]
    Layer(String),
    /// The program does not attach.
    #[error("the program did not do in time what it must; it said: {0}")]
    Silent(String),
    /// It ended, or was ended.
    #[error("the program ended ({0}); it said: {1}")]
    Ended(String, String),
    /// It broke the contract.
    #[error("{0}")]
    Fault(Fault),
    /// Its start refused.
    #[error("{0}")]
    NotStarted(ModuleError),
}

/// A module in its cage, with a [`TestHost`] as its node. Dropped, it ends the program.
pub struct SandboxHost {
    host: TestHost,
    door: Arc<Door>,
    serving: JoinHandle<()>,
    module: String,
    program: PathBuf,
    launcher: PathBuf,
    folder: tempfile::TempDir,
    limits: Option<Limits>,
    process: Option<Process>,
    attached: Mutex<Option<Arc<Attached>>>,
}

impl SandboxHost {
    /// The program `program` as the module `module` in its cage, attached and started, on a node whose id is 32 times `seed`.
    ///
    /// # Errors
    /// What is missing for the cage, or what the program did wrong, with its last words.
    pub async fn start(seed: u8, module: &str, program: impl AsRef<Path>) -> Result<Self, SandboxError> {
        let mut host = Self::prepare(seed, module, program)?;
        host.launch().await?;
        let attached = host.attach().await?;
        attached.start().await.map_err(SandboxError::NotStarted)?;
        Ok(host)
    }

    /// The node alone: for tests of how a program begins.
    ///
    /// # Errors
    /// What is missing for the cage.
    pub fn prepare(seed: u8, module: &str, program: impl AsRef<Path>) -> Result<Self, SandboxError> {
        let host = TestHost::without_module(seed);
        let door = Door::new(host.id());
        Self::behind(host, door, module, program.as_ref())
    }

    /// The same behind a door that the test made: one that speaks other versions of the contract, say.
    ///
    /// # Errors
    /// What is missing for the cage.
    pub fn prepare_behind(door: Arc<Door>, module: &str, program: impl AsRef<Path>) -> Result<Self, SandboxError> {
        Self::behind(TestHost::without_module(1), door, module, program.as_ref())
    }

    fn behind(host: TestHost, door: Arc<Door>, module: &str, program: &Path) -> Result<Self, SandboxError> {
        let local = |what: &str| {
            let what = what.to_owned();
            move |source| SandboxError::Local { what, source }
        };
        let launcher = launcher().ok_or(SandboxError::NoLauncher)?;
        let program = std::path::absolute(program).map_err(local("the program's path"))?;
        let folder = tempfile::Builder::new().prefix("openred-sandbox.").tempdir().map_err(local("a folder"))?;
        let socket = folder.path().join(DOOR_SOCKET);
        let listener = UnixListener::bind(&socket).map_err(local("the module socket"))?;
        // The program may have a uid of its own; what it must bring is its proof.
        for (path, mode) in [(folder.path(), 0o755), (socket.as_path(), 0o666)] {
            fs::set_permissions(path, Permissions::from_mode(mode)).map_err(local("the module socket"))?;
        }
        // The module's process reads the real clock, so its node's begins there.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        host.set_clock(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let serving = tokio::spawn(Arc::clone(&door).serve(listener));
        let module = module.to_owned();
        let (limits, process, attached) = (None, None, Mutex::default());
        Ok(Self { host, door, serving, module, program, launcher, folder, limits, process, attached })
    }

    /// Holds the program to these limits from its next start on, by resource limits and by looking, as a node does where it has no groups.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// The limit that the program broke, for which it was killed.
    pub fn broke(&self) -> Option<Resource> {
        self.process.as_ref().and_then(Process::broke)
    }

    /// Starts the program in its cage; one that runs is ended first.
    ///
    /// # Errors
    /// Why it is not in its cage.
    pub async fn launch(&mut self) -> Result<(), SandboxError> {
        self.kill().await;
        let mut kept = vec![KeptPath::door(self.folder.path())];
        kept.extend(openred_policy::launch::runtime());
        let plan = Plan {
            launcher: self.launcher.clone(),
            program: self.program.clone(),
            name: self.module.clone(),
            kept,
            limits: self.limits,
        };
        self.process = Some(Process::start(plan).await?);
        Ok(())
    }

    /// Gives the program a value and waits until it has attached with it: at first, and again as if the node's process had been replaced.
    ///
    /// # Errors
    /// What the program did wrong, with its last words.
    pub async fn attach(&self) -> Result<Arc<Attached>, SandboxError> {
        let process = self.process.as_ref().ok_or_else(|| SandboxError::Silent("it was not started".to_owned()))?;
        let mut proof = [0; PROOF_BYTES];
        getrandom::fill(&mut proof).expect("the kernel's generator answers since the machine was started");
        let expected = self.door.expect(&self.module, Secret::new(proof), self.host.context());
        if let Err(error) = self.give(&proof) {
            // A pipe that nobody reads any more: the program has ended, or is about to, and what it said is worth more than the pipe.
            let exit = self.ended().await;
            return Err(exit.map_or(error, |exit| SandboxError::Ended(exit.to_string(), process.log())));
        }
        let attached = tokio::select! {
            attached = timeout(STEP, expected.attached()) => attached,
            exit = process.ended() => return Err(SandboxError::Ended(exit.to_string(), process.log())),
        };
        let attached = attached.map_err(|_| SandboxError::Silent(process.log()))?.map_err(SandboxError::Fault)?;
        let attached = Arc::new(attached);
        let settings = self.host.context().settings();
        if !settings.is_empty() {
            attached.configure(settings).await.map_err(SandboxError::NotStarted)?;
        }
        *self.attached.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&attached));
        self.host.serve_by(Arc::clone(&attached));
        Ok(attached)
    }

    /// Writes bytes to the program's descriptor 0, where it reads the values with which it proves itself: [`Self::attach`] gives it a right one.
    ///
    /// # Errors
    /// A program that does not run.
    pub fn give(&self, value: &[u8]) -> Result<(), SandboxError> {
        let given = self.process.as_ref().map(|process| process.give(value));
        let given = given.unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()));
        given.map_err(|source| SandboxError::Local { what: "the program's pipe".to_owned(), source })
    }

    /// The node's end of the attachment, for what [`TestHost`] does not offer.
    pub fn attached(&self) -> Option<Arc<Attached>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The layers of the cage, as they were seen from outside.
    pub fn layers(&self) -> &[Layer] {
        self.process.as_ref().map_or(&[], Process::layers)
    }

    /// What the program wrote to its log so far.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Ends the program at once, as `kill -9`, and waits for that. [`Self::launch`] begins anew; state is kept.
    pub async fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
            process.ended().await;
        }
    }

    /// No more values will come, as when the supervisor has gone.
    pub fn close_pipe(&self) {
        if let Some(process) = &self.process {
            process.close_pipe();
        }
    }

    /// Waits for the program's end, for as long as a program may take for a step.
    pub async fn ended(&self) -> Option<Exit> {
        let process = self.process.as_ref()?;
        timeout(STEP, process.ended()).await.ok()
    }

    /// Tells the program to end, and waits for it.
    ///
    /// # Errors
    /// One that does not end, or not well.
    pub async fn stop(mut self) -> Result<(), SandboxError> {
        if let Some(attached) = self.attached() {
            attached.shut_down();
        }
        let exit = self.ended().await;
        let log = self.log();
        self.kill().await;
        match exit {
            Some(Exit::Code(0)) => Ok(()),
            Some(exit) => Err(SandboxError::Ended(exit.to_string(), log)),
            None => Err(SandboxError::Silent(log)),
        }
    }
}

impl std::ops::Deref for SandboxHost {
    type Target = TestHost;

    fn deref(&self) -> &TestHost {
        &self.host
    }
}

impl Drop for SandboxHost {
    fn drop(&mut self) {
        self.serving.abort();
        if let Some(process) = &self.process {
            process.kill();
        }
    }
}

/// `openred-launch`: in the folder that OPENRED_BIN_DIR names, beside the running program, or beside the `openred` of PATH.
fn launcher() -> Option<PathBuf> {
    let named = std::env::var_os("OPENRED_BIN_DIR").map(PathBuf::from);
    let own = std::env::current_exe().ok();
    let beside = own.iter().flat_map(|own| own.ancestors().skip(1).take(2)).map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).filter_map(|folder| {
        let openred = fs::canonicalize(folder.join("openred")).ok()?;
        Some(openred.parent()?.to_owned())
    });
    let mut folders = named.into_iter().chain(beside).chain(installed);
    folders.find_map(|folder| std::path::absolute(folder.join(LAUNCHER)).ok().filter(|launcher| launcher.is_file()))
}
