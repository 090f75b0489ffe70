//! The way into the cage as a typestate: [`Unconfined`] → [`Separated`] → [`Restricted`] → [`Confined`]. Each step is a
//! straight line of layers in the order of docs/sandbox.md; the layers themselves are in their own files.

use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::unistd::{Pid, getppid};

use crate::barrier::Barrier;
use crate::error::{Error, Result};
use crate::launch::{DOOR_FOLDER, NAME_BYTES};
use crate::layer::{Layer, LayerName, LayerReport};
use crate::role::{Role, Uid};
use crate::self_check::Descriptors;
use crate::{arena, landlock, namespaces, panic, privileges, seccomp, self_check, sys};

/// The uid and gid that a process started as root changes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id, not 0.
    pub uid: u32,
    /// Group id, not 0.
    pub gid: u32,
}

impl Identity {
    /// The variable through which a supervisor passes it.
    pub const VARIABLE: &'static str = "OPENRED_IDENTITY";

    /// Reads `uid:gid` from the environment that the supervisor made; `None` when it is not set.
    pub fn from_env() -> Result<Option<Self>> {
        let Some(text) = std::env::var_os(Self::VARIABLE) else { return Ok(None) };
        let text = text.to_str().ok_or(Error::MisuseIdentityText)?;
        let (uid, gid) = text.split_once(':').ok_or(Error::MisuseIdentityText)?;
        let number = |text: &str| text.parse().ok().filter(|number| *number != 0).ok_or(Error::MisuseIdentityText);
        Ok(Some(Self { uid: number(uid)?, gid: number(gid)? }))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.uid, self.gid)
    }
}

/// A file or directory that stays visible, under the same absolute path as outside (but for [`KeptPath::door`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPath {
    /// Its absolute path outside.
    pub path: PathBuf,
    /// Whether it may be written; if not, the mount is read-only too. Connecting to a socket in it needs no write right.
    pub writable: bool,
    /// Whether what lies in it may be executed: never what may be written, and only for a foreign program.
    pub(crate) executable: bool,
    /// Whether symbolic links on the way are followed.
    pub(crate) links: bool,
    /// Where it is inside.
    inside: PathBuf,
}

impl KeptPath {
    /// May be read and written.
    #[must_use]
    pub fn writable(path: &Path) -> Self {
        Self { writable: true, ..Self::readable(path) }
    }

    /// May be read.
    #[must_use]
    pub fn readable(path: &Path) -> Self {
        let (path, inside) = (path.to_owned(), path.to_owned());
        Self { path, writable: false, executable: false, links: true, inside }
    }

    /// May be read, as somebody who is not this program's user has granted: a symbolic link on the way to it is refused, since whoever may
    /// write the folder that the link is in would choose what is read.
    #[must_use]
    pub fn granted(path: &Path) -> Self {
        Self { links: false, ..Self::readable(path) }
    }

    /// The folder with the one socket that a foreign program may connect to, [`DOOR`](crate::launch::DOOR) inside.
    #[must_use]
    pub fn door(folder: &Path) -> Self {
        Self { inside: Path::new("/").join(DOOR_FOLDER), ..Self::readable(folder) }
    }

    pub(crate) fn is_door(&self) -> bool {
        self.inside != self.path
    }

    /// Its absolute path inside.
    #[must_use]
    pub fn inside(&self) -> &Path {
        &self.inside
    }

    /// May be read and executed: the runtime of a foreign program, such as its loader and libraries. Only [`Role::Module`] may.
    #[must_use]
    pub fn runtime(path: &Path) -> Self {
        Self { executable: true, ..Self::readable(path) }
    }

    /// The files that the resolver needs for host names, those of them that exist.
    #[must_use]
    pub fn resolver() -> Vec<Self> {
        ["/etc/hosts", "/etc/resolv.conf"]
            .map(Path::new)
            .into_iter()
            .filter(|path| path.is_file())
            .map(Self::readable)
            .collect()
    }
}

/// What one process keeps: everything that is not named here is lost.
#[derive(Clone, Debug)]
pub struct Cage {
    pub(crate) role: Role,
    pub(crate) identity: Option<Identity>,
    pub(crate) kept: Vec<KeptPath>,
    pub(crate) connect: Option<Vec<u16>>,
    pub(crate) database: bool,
}

impl Cage {
    /// An empty cage. `identity` is needed as root and ignored for an ordinary user.
    #[must_use]
    pub fn new(role: Role, identity: Option<Identity>) -> Self {
        Self { role, identity, kept: Vec::new(), connect: None, database: false }
    }

    /// Keeps a path. Only `noded`, the directory and a foreign program may.
    #[must_use]
    pub fn keep(mut self, path: KeptPath) -> Self {
        self.kept.push(path);
        self
    }

    /// Whether it keeps a path that its role must not have; such a cage is refused.
    #[must_use]
    pub fn keeps_too_much(&self) -> bool {
        let executable = self.kept.iter().any(|kept| kept.executable);
        // A socket in it could be named by a path as short as the door's.
        let is_short = |kept: &KeptPath| {
            let first = kept.inside().components().nth(1);
            !kept.is_door() && first.is_none_or(|name| name.as_os_str().len() < NAME_BYTES)
        };
        let short = self.role == Role::Module && self.kept.iter().any(is_short);
        (!self.kept.is_empty() && !self.role.keeps_paths()) || (executable && self.role != Role::Module) || short
    }

    /// Lets a directory connect, to its database or to the one that it mirrors: to the sockets in the paths that it keeps, and to the ports of [`Cage::connect_only`].
    #[must_use]
    pub fn with_database(mut self) -> Self {
        self.database = true;
        self
    }

    /// Limits outgoing TCP to these ports (an empty list: none). Without this call any port may be connected to. Landlock sees
    /// plain TCP alone; that nothing else can connect is the filter's part.
    /// Binding a TCP port is refused in every role: listeners are opened before.
    #[must_use]
    pub fn connect_only(mut self, ports: Vec<u16>) -> Self {
        self.connect = Some(ports);
        self
    }
}

/// A process that has confined nothing yet, but has checked what it was started with.
#[derive(Debug)]
pub struct Unconfined {
    role: Role,
    /// The supervisor. Whoever was started by it dies with it until the uid changes, so this is no later parent.
    parent: Pid,
    table: Vec<RawFd>,
    layers: Vec<Layer>,
}

impl Unconfined {
    /// Step 2: refuses a tracer, switches core dumps off, opens a new session, checks the descriptor table.
    pub fn enter(role: Role, descriptors: Descriptors<'_>) -> Result<Self> {
        if role == Role::Supervisor {
            return Err(Error::MisuseRole { role });
        }
        let parent = getppid();
        let mut layers = vec![self_check::untraced()?, self_check::no_core_dumps()?];
        layers.push(self_check::session(role)?);
        let (layer, table) = self_check::descriptors(descriptors)?;
        layers.push(layer);
        layers.push(self_check::clock()?);
        Ok(Self { role, parent, table, layers })
    }

    /// Takes an inherited descriptor out of the table, close-on-exec.
    pub fn take(&mut self, number: RawFd) -> Result<OwnedFd> {
        let place = self.table.iter().position(|entry| *entry == number && number > 2);
        self.table.swap_remove(place.ok_or(Error::MisuseDescriptor { number })?);
        let descriptor = sys::own(number);
        self_check::close_on_exec(&descriptor)?;
        Ok(descriptor)
    }

    /// Takes the barrier out of the table.
    pub fn barrier(&mut self, number: RawFd) -> Result<Barrier> {
        self.take(number).map(Barrier::new)
    }

    /// Step 3: namespaces, the empty root, uid and gid. Needs a process of one thread.
    pub fn separate(mut self, cage: &Cage) -> Result<Separated> {
        if cage.role != self.role || cage.keeps_too_much() {
            return Err(Error::MisuseRole { role: cage.role });
        }
        self_check::one_thread()?;
        let uid = Uid::of_this_process();
        let identity = match (uid, cage.identity) {
            (Uid::Separate, Some(identity)) if identity.uid != 0 && identity.gid != 0 => Some(identity),
            (Uid::Separate, _) => return Err(Error::MisuseIdentity),
            (Uid::Shared, _) => None,
        };
        self.layers.extend(namespaces::separate(self.role, uid)?);
        self.layers.push(namespaces::empty_root(&cage.kept)?);
        self.layers.push(match identity {
            Some(identity) => privileges::change_identity(identity)?,
            None => Layer::new(LayerName::Uid, Uid::Shared.name(), Uid::Shared.name())
                .detail("all processes have this user's uid on the host"),
        });
        privileges::die_with_parent(self.role, self.parent)?;
        all_hold(&self.layers)?;
        Ok(Separated { cage: cage.clone(), uid, layers: self.layers })
    }
}

/// A process in its own namespaces and uid, still dumpable, so that its supervisor can note them (step 4).
#[derive(Debug)]
pub struct Separated {
    cage: Cage,
    uid: Uid,
    layers: Vec<Layer>,
}

impl Separated {
    /// Steps 5 to 7: the panic hook, limits, capabilities, MDWE, `no_new_privs`, Landlock, not dumpable. Secrets come in behind
    /// this, so the hook is there before: a panic between this and [`Restricted::seal`] clears them as well, and prints none.
    pub fn restrict(mut self) -> Result<Restricted> {
        panic::install();
        let role = self.cage.role;
        self.layers.push(privileges::limits(role)?);
        self.layers.push(privileges::drop_capabilities()?);
        self.layers.push(privileges::no_executable_memory()?);
        self.layers.push(privileges::no_new_privileges()?);
        self.layers.push(landlock::restrict(&self.cage)?);
        self.layers.push(privileges::not_dumpable()?);
        all_hold(&self.layers)?;
        Ok(Restricted { role, database: self.cage.database, uid: self.uid, layers: self.layers })
    }
}

/// A process that has given up all but system calls. Threads, the runtime and lazy paths belong here.
#[derive(Debug)]
pub struct Restricted {
    role: Role,
    database: bool,
    uid: Uid,
    layers: Vec<Layer>,
}

impl Restricted {
    /// Step 8: the filter on every thread.
    pub fn seal(mut self) -> Result<Confined> {
        sys::default_fault_signals().map_err(Error::io(LayerName::Seccomp, "sigaction"))?;
        let syscalls_allowed = seccomp::allowed(self.role, self.database);
        self.layers.extend(arena::layer(self.uid));
        all_hold(&self.layers)?;
        self.layers.push(seccomp::install(self.role, self.database)?);
        Ok(Confined { report: LayerReport { role: self.role, layers: self.layers, syscalls_allowed } })
    }
}

/// A layer that the kernel granted and that nevertheless is not there ends the start: nobody goes on in half a cage, also where
/// no supervisor looks (the directory).
fn all_hold(layers: &[Layer]) -> Result<()> {
    match layers.iter().find(|layer| !layer.ok) {
        Some(layer) => Err(Error::LocalLayer(Box::new(layer.clone()))),
        None => Ok(()),
    }
}

/// A process in its cage.
#[derive(Debug)]
pub struct Confined {
    report: LayerReport,
}

impl Confined {
    /// What was applied, layer by layer.
    #[must_use]
    pub fn report(&self) -> &LayerReport {
        &self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_is_not_caged() {
        let refused = Unconfined::enter(Role::Supervisor, Descriptors::Exactly(&[]));
        assert!(matches!(refused, Err(Error::MisuseRole { role: Role::Supervisor })));
    }
}
