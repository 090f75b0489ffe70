//! One node's key process without a node: unsealer, vault and front in their cages, started with exactly what `openred up` gives them,
//! by this process in the supervisor's place. For measurements: the shipped programs, asked by the process that measures.

use std::fs::{self, File, OpenOptions};
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use openred_policy::barrier::{Host, Stage};
use openred_policy::socket::{ProcessId, stream_pair};
use openred_policy::spawn::{Child, Exit, SpawnSpec, spawn};
use openred_policy::{Identity, Role};
use openred_proto::audit::SEGMENT_BYTES;
use openred_proto::cryptod::cryptod_client::CryptodClient;
use openred_proto::id::UnixMillis;
use openred_proto::unseal::{Order, Word};
use tonic::transport::{Channel, Endpoint};
use zeroize::Zeroizing;

use crate::harness::{binaries, is_root};

/// Longest wait for a stage; only a defect takes this long.
const STAGE: Duration = Duration::from_secs(60);
/// As root: the uid of the front; those of vault and unsealer follow as in a node's range.
const UID_BASE: u32 = 61_920;
const PASSPHRASE: &[u8] = b"measured, not kept";

/// A child with the supervisor's end of its barrier.
struct Caged {
    child: Child,
    host: Host,
}

impl Caged {
    fn start(role: Role, program: &str, arguments: &[String], descriptors: Vec<OwnedFd>) -> Result<Self> {
        let step = match role {
            Role::Front => 0,
            Role::Vault => 1,
            _ => 3,
        };
        let uid = UID_BASE + step;
        let identity = is_root().then_some(Identity { uid, gid: uid });
        let (host, barrier) = Host::pair()?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let mut spec = SpawnSpec::new(binaries()?.join(program))?.identity(identity)?;
        for argument in arguments {
            spec = spec.argument(argument)?;
        }
        for standard in [null.as_fd(), null.as_fd(), std::io::stderr().as_fd(), barrier.as_fd()] {
            spec = spec.descriptor(standard)?;
        }
        let spec = descriptors.iter().try_fold(spec, SpawnSpec::descriptor)?;
        let caged = Self { child: spawn(spec)?, host };
        ensure!(caged.host.next(STAGE)? == Stage::Namespaced, "{role}: another word than `namespaced`");
        caged.host.go()?;
        Ok(caged)
    }

    fn ready(&self) -> Result<()> {
        loop {
            match self.host.next(STAGE)? {
                Stage::Ready => return Ok(()),
                Stage::Failed { reason } => bail!(reason),
                _ => {}
            }
        }
    }
}

impl Drop for Caged {
    fn drop(&mut self) {
        let _ = self.child.signal(nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Vault and front; they end with it.
pub struct KeyProcess {
    vault: Caged,
    front: Option<Caged>,
    socket: PathBuf,
    _operator: UnixStream,
}

impl KeyProcess {
    /// Starts vault and front in `folder`, which is made, with an identity of its own; `orders` as the supervisor words them.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn start(folder: &Path, orders: &[String]) -> Result<Self> {
        let (vault, front_end, operator) = vault(folder, orders)?;
        let socket = folder.join("cryptod.sock");
        let listener = UnixListener::bind(&socket)?;
        let uid: Vec<String> = is_root().then(|| nix::unistd::geteuid().to_string()).into_iter().collect();
        let front = Caged::start(Role::Front, "cryptod", &uid, vec![listener.into(), front_end])?;
        vault.ready().and_then(|()| front.ready())?;
        front.host.admission()?.admit(ProcessId::this()?)?;
        Ok(Self { vault, front: Some(front), socket, _operator: operator })
    }

    /// Starts the vault alone, for who asks it in the front's place.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn start_vault(folder: &Path, orders: &[String]) -> Result<(Self, UnixStream)> {
        let (vault, front_end, operator) = vault(folder, orders)?;
        vault.ready()?;
        Ok((Self { vault, front: None, socket: PathBuf::new(), _operator: operator }, front_end.into()))
    }

    /// A connection to the front, as `noded` makes one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn client(&self) -> Result<CryptodClient<Channel>> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket.display()))?;
        Ok(CryptodClient::new(endpoint.connect().await?))
    }

    /// Process ids: vault, and front if there is one.
    #[must_use]
    pub fn pids(&self) -> (i32, Option<i32>) {
        (self.vault.child.pid(), self.front.as_ref().map(|front| front.child.pid()))
    }
}

fn file(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?)
}

/// A vault with fresh state and preallocated segments of zeros; with it the front's and the operator's ends.
fn vault(folder: &Path, orders: &[String]) -> Result<(Caged, OwnedFd, UnixStream)> {
    fs::create_dir(folder).with_context(|| format!("making {}", folder.display()))?;
    let keystore = folder.join("keystore.age");
    unseal("create", File::open("/dev/null")?, File::create(&keystore)?.into())?;
    let (secrets, secrets_end) = std::io::pipe()?;
    let segments = ["audit.a", "audit.b"].map(|name| -> Result<OwnedFd> {
        let segment = folder.join(name);
        fs::write(&segment, vec![0; SEGMENT_BYTES])?;
        let segment = file(&segment)?;
        segment.sync_all()?;
        Ok(segment.into())
    });
    let [first, second] = segments;
    let ((front, vault_front), (operator, vault_operator)) = (stream_pair()?, stream_pair()?);
    let descriptors =
        vec![vault_front, vault_operator, file(&folder.join("state"))?.into(), secrets.into(), first?, second?];
    let vault = Caged::start(Role::Vault, "cryptod-vault", orders, descriptors)?;
    unseal("open", File::open(&keystore)?, secrets_end.into())?;
    Ok((vault, front, operator.into()))
}

/// Runs the unsealer to its end.
fn unseal(mode: &str, input: File, output: OwnedFd) -> Result<()> {
    let ((order_read, mut order), (word, word_end)) = (std::io::pipe()?, std::io::pipe()?);
    let descriptors = vec![input.into(), order_read.into(), output, word_end.into()];
    let unsealer = Caged::start(Role::Unseal, "cryptod-unseal", &[mode.to_owned()], descriptors)?;
    unsealer.ready()?;
    order.write_all(&Order::with_secret(Zeroizing::new(PASSPHRASE.to_vec()), UnixMillis(1)).encode()?)?;
    drop(order);
    said(word)?;
    ensure!(unsealer.child.wait()? == Some(Exit::Code(0)), "the unsealer failed");
    Ok(())
}

fn said(mut word: PipeReader) -> Result<()> {
    let mut bytes = Vec::new();
    word.read_to_end(&mut bytes)?;
    match Word::decode(&bytes)? {
        Word::Keystore(_) => Ok(()),
        other => bail!("the unsealer said {other:?}"),
    }
}
