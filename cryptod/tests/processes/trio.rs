//! One node's key process as its supervisor starts it: unsealer, vault, front, each with its exact descriptors, each seen from
//! outside before it is believed.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use openred_policy::barrier::{Host, Stage};
use openred_policy::observe::{self, Baseline, Expected};
use openred_policy::socket::{ProcessId, stream_pair};
use openred_policy::spawn::{Child, Exit, SpawnSpec, spawn};
use openred_policy::{Identity, Role};
use openred_proto::cryptod::cryptod_client::CryptodClient;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::unseal::{Order, Word};
use tonic::transport::{Channel, Endpoint};
use zeroize::Zeroizing;

/// Longest wait for a stage; only a defect takes this long.
const STAGE: Duration = Duration::from_secs(60);

/// Where the programs are and as whom they run.
#[derive(Clone, Copy)]
pub(crate) struct World<'a> {
    pub(crate) programs: &'a Path,
    /// As root: the uid of the front; vault and unsealer have the two above it.
    pub(crate) uid_base: Option<u32>,
}

impl World<'_> {
    fn identity(&self, offset: u32) -> Option<Identity> {
        self.uid_base.map(|base| Identity { uid: base + offset, gid: base + offset })
    }

    fn start(&self, role: Role, program: &str, argument: Option<&str>, descriptors: Vec<OwnedFd>) -> Started {
        let identity = self.identity(match role {
            Role::Front => 0,
            Role::Vault => 1,
            _ => 3,
        });
        let own = Baseline::of_this_process().unwrap();
        let (host, barrier) = Host::pair().unwrap();
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let mut spec = SpawnSpec::new(self.programs.join(program)).unwrap().identity(identity).unwrap();
        if let Some(argument) = argument {
            spec = spec.argument(argument).unwrap();
        }
        for standard in [null.as_fd(), null.as_fd(), std::io::stderr().as_fd(), barrier.as_fd()] {
            spec = spec.descriptor(standard).unwrap();
        }
        for descriptor in &descriptors {
            spec = spec.descriptor(descriptor).unwrap();
        }
        let child = spawn(spec).unwrap();
        drop((barrier, descriptors));
        assert_eq!(host.next(STAGE).unwrap(), Stage::Namespaced, "{role}");
        let namespaces = observe::namespaces(child.pid()).unwrap();
        host.go().unwrap();
        Started { role, child, host, namespaces: Some(namespaces), own, identity, word: None }
    }
}

/// A child that has gone through the barrier.
pub(crate) struct Started {
    pub(crate) role: Role,
    pub(crate) child: Child,
    pub(crate) host: Host,
    namespaces: Option<observe::Namespaces>,
    own: Baseline,
    identity: Option<Identity>,
    /// Of an unsealer whose word nobody asks for: held, or giving it fails.
    word: Option<PipeReader>,
}

impl Started {
    /// Waits until it is confined, and compares what is seen of it with the manifest.
    pub(crate) fn confined(&mut self) {
        let stage = self.host.next(STAGE).unwrap();
        assert!(matches!(stage, Stage::Confined { .. }), "{}: {stage:?}", self.role);
        let seen = observe::observe(self.child.pid(), self.namespaces.take().unwrap()).unwrap();
        let expected = Expected { identity: self.identity, kept: Vec::new() };
        for layer in observe::compare(self.role, &seen, &self.own, &expected) {
            assert!(layer.ok, "{}: {layer:?}", self.role);
        }
        assert!(seen.usable_interfaces().is_empty(), "{}", self.role);
    }

    pub(crate) fn ready(&mut self) {
        assert_eq!(self.host.next(STAGE).unwrap(), Stage::Ready, "{}", self.role);
    }

    /// The reason it gave for giving up.
    pub(crate) fn failure(&mut self) -> String {
        match self.host.next(STAGE).unwrap() {
            Stage::Failed { reason } => reason,
            stage => panic!("{}: {stage:?}", self.role),
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        self.child.wait().unwrap().unwrap()
    }
}

/// The unsealer's word, to its end.
pub(crate) fn said(mut word: PipeReader) -> Word {
    let mut bytes = Vec::new();
    word.read_to_end(&mut bytes).unwrap();
    Word::decode(&bytes).unwrap()
}

/// One node's folder.
pub(crate) struct Home<'a> {
    pub(crate) world: World<'a>,
    pub(crate) folder: PathBuf,
}

impl<'a> Home<'a> {
    pub(crate) fn new(world: World<'a>, folder: PathBuf) -> Self {
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { world, folder }
    }

    /// Makes the keystore; returns the node id that the unsealer reported.
    pub(crate) fn create(&self, passphrase: &[u8]) -> NodeId {
        let nothing = File::open("/dev/null").unwrap();
        let file = File::create(self.folder.join("keystore.age")).unwrap();
        let (unsealer, word) = self.unsealer("create", nothing, passphrase, file.into());
        assert_eq!(unsealer.exit(), Exit::Code(0));
        match said(word) {
            Word::Keystore(about) => about.node,
            other => panic!("{other:?}"),
        }
    }

    /// Starts the unsealer on the keystore; returns it and the pipe that it hands the secrets to.
    pub(crate) fn unseal(&self, passphrase: &[u8]) -> (Started, OwnedFd) {
        let (mut unsealer, secrets, word) = self.unseal_and_hear(passphrase);
        unsealer.word = Some(word);
        (unsealer, secrets)
    }

    /// The same, with the end on which it gives its word.
    pub(crate) fn unseal_and_hear(&self, passphrase: &[u8]) -> (Started, OwnedFd, PipeReader) {
        let file = File::open(self.folder.join("keystore.age")).unwrap();
        let (secrets_read, secrets_write) = std::io::pipe().unwrap();
        let (unsealer, word) = self.unsealer("open", file, passphrase, secrets_write.into());
        (unsealer, secrets_read.into(), word)
    }

    /// The passphrase is given only once the cage was seen.
    fn unsealer(&self, mode: &str, file: File, passphrase: &[u8], output: OwnedFd) -> (Started, PipeReader) {
        let ((read, mut write), (word, word_end)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        let descriptors = vec![file.into(), read.into(), output, word_end.into()];
        let mut unsealer = self.world.start(Role::Unseal, "cryptod-unseal", Some(mode), descriptors);
        unsealer.confined();
        unsealer.ready();
        let order = Order::with_secret(Zeroizing::new(passphrase.to_vec()), UnixMillis(1));
        write.write_all(&order.encode().unwrap()).unwrap();
        (unsealer, word)
    }

    fn file(&self, name: &str) -> File {
        let path = self.folder.join(name);
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    /// Starts a vault on `secrets`; returns it with the front's and the operator's other ends.
    pub(crate) fn vault(&self, secrets: OwnedFd) -> (Started, OwnedFd, UnixStream) {
        let ((front, vault_front), (operator, vault_operator)) = (stream_pair().unwrap(), stream_pair().unwrap());
        let [first, second] = ["audit.a", "audit.b"].map(|name| self.file(name));
        let descriptors =
            vec![vault_front, vault_operator, self.file("state").into(), secrets, first.into(), second.into()];
        let vault = self.world.start(Role::Vault, "cryptod-vault", None, descriptors);
        (vault, front, operator.into())
    }

    /// Starts everything, for this process.
    pub(crate) fn start(&self, passphrase: &[u8]) -> Trio {
        let trio = self.start_for(nix::unistd::geteuid().as_raw(), passphrase);
        trio.admit(ProcessId::this().unwrap());
        trio
    }

    /// Starts everything, for callers with the uid `caller`; as an ordinary user it says nothing.
    pub(crate) fn start_for(&self, caller: u32, passphrase: &[u8]) -> Trio {
        let (unsealer, secrets) = self.unseal(passphrase);
        let (mut vault, front_end, operator) = self.vault(secrets);
        let socket = self.folder.join("cryptod.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        if let Some(identity) = self.world.identity(2) {
            chown(&socket, Some(identity.uid), Some(identity.gid)).unwrap();
        }
        let caller = self.world.uid_base.map(|_| caller.to_string());
        let mut front = self.world.start(Role::Front, "cryptod", caller.as_deref(), vec![listener.into(), front_end]);
        for child in [&mut vault, &mut front] {
            child.confined();
            child.ready();
        }
        assert_eq!(unsealer.exit(), Exit::Code(0));
        Trio { vault, front, operator, socket }
    }
}

/// Starts this program as another process, which knocks at `socket`; its exit code says what came of it ([`crate::knock`]). It waits
/// until it is let go.
pub(crate) fn knocker(socket: &Path) -> (Child, File) {
    let (wait, go) = std::io::pipe().unwrap();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let spec = SpawnSpec::new(std::env::current_exe().unwrap()).unwrap();
    let spec = spec.argument("knock").unwrap().argument(socket).unwrap();
    let spec = spec.descriptor(&wait).unwrap().descriptor(&null).unwrap().descriptor(std::io::stderr()).unwrap();
    (spawn(spec).unwrap(), File::from(OwnedFd::from(go)))
}

/// A running key process.
pub(crate) struct Trio {
    pub(crate) vault: Started,
    pub(crate) front: Started,
    pub(crate) operator: UnixStream,
    pub(crate) socket: PathBuf,
}

impl Trio {
    /// Names the process that may connect, as the supervisor does.
    pub(crate) fn admit(&self, process: ProcessId) {
        self.front.host.admission().unwrap().admit(process).unwrap();
    }

    /// A client, as `noded` makes one.
    pub(crate) async fn client(&self) -> CryptodClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket.display())).unwrap();
        CryptodClient::new(endpoint.connect().await.unwrap())
    }

    /// Both have ended; how.
    pub(crate) fn ends(self) -> (Exit, Exit) {
        (self.vault.exit(), self.front.exit())
    }
}
