//! The home directory as the supervisor prepares it: lock, folders with their owners, state files, sockets.
//!
//! Everything is opened here, without following symbolic links, and handed to the children as descriptors.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg, OFlag};
use openred_policy::Identity;
use openred_policy::socket::open_no_symlinks;

use super::restore::{clear, finish, is_pending};
use crate::cli::{Exit, Failure};
use crate::config::NodeConfig;
use crate::home::Home;

/// Entries of `state/` whose owner is corrected when the node's uids changed; a tree deeper or larger is refused.
const OWNED: usize = 100_000;

/// As root: who each process becomes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Identities {
    pub(crate) front: Option<Identity>,
    pub(crate) vault: Option<Identity>,
    pub(crate) noded: Option<Identity>,
    pub(crate) unseal: Option<Identity>,
    /// As root: the first module's.
    base: Option<u32>,
}

/// Uids of the node's own processes; the modules' come behind them.
const OWN: u32 = 4;

impl Identities {
    /// Consecutive ids from `base` as root: four for the node, then one a module; nothing for an ordinary user.
    pub(crate) fn new(base: u32) -> Self {
        if !nix::unistd::geteuid().is_root() {
            return Self::default();
        }
        let identity = |step| Some(Identity { uid: base + step, gid: base + step });
        let base = Some(base + OWN);
        Self { front: identity(0), vault: identity(1), noded: identity(2), unseal: identity(3), base }
    }

    /// Of the module in this slot.
    pub(crate) fn module(&self, slot: u32) -> Option<Identity> {
        self.base.map(|base| Identity { uid: base + slot, gid: base + slot })
    }
}

/// The prepared home.
pub(crate) struct Places {
    /// Held until the end.
    pub(crate) _lock: Flock<File>,
    /// `noded`'s state directory.
    pub(crate) state: File,
    /// The vault's state file.
    pub(crate) vault_state: File,
    /// The peer-to-peer listener; it outlives `noded`, so that connections wait out a restart.
    pub(crate) peers: TcpListener,
    /// What the module `monitor` is served on, if the operator wants that.
    pub(crate) monitor: Option<TcpListener>,
    /// What the module `auth` is served on, if the operator wants that.
    pub(crate) auth: Option<TcpListener>,
}

/// Locks the home, makes what is missing, opens what is passed on.
pub(crate) fn prepare(home: &Home, config: &NodeConfig, identities: &Identities) -> Result<Places, Failure> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| Failure::local(path.display(), &error)
    };
    if !home.keystore().exists() && !is_pending(home) {
        let what = format!("{}: no keystore", home.path().display());
        return Err(Failure::new(Exit::NotFound, "keystore.missing", what, "make a node with `openred init`"));
    }
    for folder in [home.path().to_owned(), home.run()] {
        make_private(&folder).map_err(failed(&folder))?;
    }
    let lock = lock(home)?;
    for folder in [home.pending(), home.admin(), home.cryptod(), home.modules(), home.state(), home.vault()] {
        make_private(&folder).map_err(failed(&folder))?;
    }
    for socket in [home.control_socket(), home.admin_socket(), home.cryptod_socket(), home.module_socket()] {
        remove(&socket).map_err(failed(&socket))?;
    }
    if let Some(noded) = identities.noded {
        own_tree(&home.state(), noded).map_err(failed(&home.state()))?;
        // Only `noded` (and root) enters: its name for the front's socket is its authority.
        lchown(home.cryptod(), Some(noded.uid), Some(noded.gid)).map_err(failed(&home.cryptod()))?;
        // Each module has another uid, and sees this folder in its cage alone: `run` above it is the supervisor's.
        let modules = home.modules();
        fs::set_permissions(&modules, Permissions::from_mode(0o711)).map_err(failed(&modules))?;
    }
    let state = home.state();
    let state = open_no_symlinks(&state, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0).map_err(failed(&state))?;
    let vault_state = home.vault_state();
    let vault_state =
        open_no_symlinks(&vault_state, OFlag::O_RDWR | OFlag::O_CREAT, 0o600).map_err(failed(&vault_state))?;
    let peers = listener(config.listen, "listen")?;
    let monitor = config.monitor.listen.map(|address| listener(address, "monitor.listen")).transpose()?;
    let auth = config.auth.listen.map(|address| listener(address, "auth.listen")).transpose()?;
    Ok(Places { _lock: lock, state, vault_state, peers, monitor, auth })
}

/// Listens where the setting `key` says.
fn listener(address: SocketAddr, key: &str) -> Result<TcpListener, Failure> {
    let bound = TcpListener::bind(address).and_then(|bound| bound.set_nonblocking(true).map(|()| bound));
    bound.map_err(|error| {
        let failure = Failure::local(format!("cannot listen on {address}"), &error);
        let way_out = format!("change `{key}` in the configuration");
        failure.way_out(match error.kind() {
            ErrorKind::AddrInUse => format!("another program listens there: end it, or {way_out}"),
            ErrorKind::AddrNotAvailable => format!("this machine has no such address: {way_out}"),
            _ => way_out,
        })
    })
}

/// Takes the home for this process: no node runs in it while the lock is held. An exchange that was cut short is
/// carried to its end, and what is left of one that did not come to its moment is removed where nothing can be lost with it.
pub(crate) fn lock(home: &Home) -> Result<Flock<File>, Failure> {
    let lock = lock_alone(home)?;
    finish(home, |_| ())?;
    clear(home)?;
    Ok(lock)
}

/// The lock alone.
pub(super) fn lock_alone(home: &Home) -> Result<Flock<File>, Failure> {
    let path = home.lock();
    if home.path().is_dir() {
        // A node that never ran has no such folder yet.
        make_private(&home.run()).map_err(|error| Failure::local(home.run().display(), &error))?;
    }
    let file = open_no_symlinks(&path, OFlag::O_RDWR | OFlag::O_CREAT, 0o600);
    let file = file.map_err(|error| Failure::local(path.display(), &error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::Error::EWOULDBLOCK => {
            let what = format!("a node already runs in {}", home.path().display());
            Failure::new(Exit::Conflict, "home.locked", what, "`openred status` shows it; stop it first")
        }
        other => Failure::local(path.display(), &other.into()),
    })
}

/// A directory that only its owner enters; one that exists must be a real directory and becomes so.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(path)?;
            if !found.is_dir() {
                return Err(io::Error::from(ErrorKind::NotADirectory));
            }
            if found.mode() & 0o077 != 0 {
                fs::set_permissions(path, Permissions::from_mode(0o700))?;
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives a tree to `identity`, links themselves and not what they point at. Only the top is looked at when it is right.
fn own_tree(top: &Path, identity: Identity) -> io::Result<()> {
    if fs::symlink_metadata(top)?.uid() == identity.uid {
        return Ok(());
    }
    let mut waiting = vec![top.to_owned()];
    let mut inside = Vec::new();
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if inside.len() + waiting.len() >= OWNED {
                return Err(io::Error::from(ErrorKind::FileTooLarge));
            }
            match entry.file_type()?.is_dir() {
                true => waiting.push(entry.path()),
                false => inside.push(entry.path()),
            }
        }
        inside.push(folder);
    }
    // The top comes last in effect: an interrupted change is taken up again at the next start.
    inside.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    inside.iter().try_for_each(|path| lchown(path, Some(identity.uid), Some(identity.gid)))
}

/// A socket that nobody can reach yet: it lies where only the supervisor enters.
pub(crate) fn pending_listener(home: &Home, name: &str, owner: Option<Identity>) -> io::Result<UnixListener> {
    let path = home.pending().join(name);
    remove(&path)?;
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    if let Some(owner) = owner {
        lchown(&path, Some(owner.uid), Some(owner.gid))?;
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The socket for modules. As root each has a uid of its own: who may reach it is a matter of the folder.
pub(crate) fn module_listener(home: &Home, identities: &Identities) -> io::Result<UnixListener> {
    let listener = pending_listener(home, "module", None)?;
    if identities.noded.is_some() {
        fs::set_permissions(home.pending().join("module"), Permissions::from_mode(0o666))?;
    }
    Ok(listener)
}

/// Makes a pending socket reachable, at once and whole.
pub(crate) fn publish(home: &Home, name: &str, place: &Path) -> io::Result<()> {
    fs::rename(home.pending().join(name), place)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn config() -> NodeConfig {
        NodeConfig { listen: "127.0.0.1:0".parse().unwrap(), ..NodeConfig::default() }
    }

    #[test]
    fn a_second_supervisor_is_refused_and_a_taken_port_is_named() {
        let (_folder, home) = Home::scratch();
        let none = Identities::default();
        assert_eq!(prepare(&home, &config(), &none).err().map(|failure| failure.exit), Some(Exit::NotFound));
        fs::write(home.keystore(), "x").unwrap();
        let first = prepare(&home, &config(), &none).unwrap();
        let second = prepare(&home, &config(), &none).err().unwrap();
        assert_eq!((second.exit, second.code.as_str()), (Exit::Conflict, "home.locked"));
        let listen = first.peers.local_addr().unwrap();
        drop(first._lock);
        let port = prepare(&home, &NodeConfig { listen, ..config() }, &none).err().unwrap();
        assert_eq!(port.exit, Exit::Conflict);
        assert!(port.to_string().contains(&listen.to_string()), "{port}");
    }

    #[test]
    fn folders_are_private_and_links_are_refused() {
        let (_folder, home) = Home::scratch();
        fs::write(home.keystore(), "x").unwrap();
        fs::create_dir(home.run()).unwrap();
        fs::set_permissions(home.run(), Permissions::from_mode(0o755)).unwrap();
        prepare(&home, &config(), &Identities::default()).unwrap();
        assert_eq!(fs::metadata(home.run()).unwrap().mode() & 0o777, 0o700);
        fs::remove_dir(home.state()).unwrap();
        std::os::unix::fs::symlink("/tmp", home.state()).unwrap();
        assert!(prepare(&home, &config(), &Identities::default()).is_err());
        fs::remove_file(home.state()).unwrap();
        fs::remove_file(home.vault_state()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", home.vault_state()).unwrap();
        assert!(prepare(&home, &config(), &Identities::default()).is_err());
    }

    #[test]
    fn a_socket_is_reachable_only_once_published() {
        let (_folder, home) = Home::scratch();
        fs::write(home.keystore(), "x").unwrap();
        let _places = prepare(&home, &config(), &Identities::default()).unwrap();
        let _listener = pending_listener(&home, "admin", None).unwrap();
        assert!(std::os::unix::net::UnixStream::connect(home.admin_socket()).is_err());
        publish(&home, "admin", &home.admin_socket()).unwrap();
        std::os::unix::net::UnixStream::connect(home.admin_socket()).unwrap();
    }
}
