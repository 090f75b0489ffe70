//! The places of one node's home directory, by name. Paths only: nothing here opens, creates or checks a file.

use std::path::{Path, PathBuf};

use openred_policy::KeptPath;
use openred_policy::launch::DOOR_SOCKET;

/// Longest home: `run/cryptod/cryptod.sock` must fit into a socket address of 107 bytes, inside the cage as well, where no
/// shorter name for the same place exists.
pub(crate) const HOME_BYTES: usize = 80;

/// What the resolver reads; those that exist stay visible to `noded`, which asks it inside its cage.
const RESOLVER: [&str; 4] = ["/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/gai.conf"];

/// A node's home directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home(PathBuf);

impl Home {
    /// A home at `path`, which must be absolute.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where a node lives when nobody says: `/var/lib/openred` for root, else below the user's data directory.
    pub(crate) fn default_path(root: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
        if root {
            return Some(PathBuf::from("/var/lib/openred"));
        }
        let data = variable("XDG_DATA_HOME").filter(|path| path.is_absolute());
        data.or_else(|| variable("HOME").map(|home| home.join(".local/share"))).map(|data| data.join("openred"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("openred.toml")
    }

    /// The sealed identity.
    pub(crate) fn keystore(&self) -> PathBuf {
        self.0.join("keystore.age")
    }

    /// What `noded` keeps.
    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// `noded`'s database.
    pub(crate) fn database(&self) -> PathBuf {
        self.state().join(crate::store::FILE)
    }

    /// Its log, which is there while the node runs, and after it was killed.
    pub(crate) fn database_log(&self) -> PathBuf {
        self.state().join(format!("{}-wal", crate::store::FILE))
    }

    /// The modules' files.
    pub(crate) fn blobs(&self) -> PathBuf {
        self.state().join("blobs")
    }

    /// The folder of the vault's state file.
    pub(crate) fn vault(&self) -> PathBuf {
        self.0.join("vault")
    }

    /// The vault's two-slot state file.
    pub(crate) fn vault_state(&self) -> PathBuf {
        self.vault().join("state")
    }

    /// The audit trail.
    pub(crate) fn audit(&self) -> PathBuf {
        self.0.join("audit")
    }

    /// The two segments that the vault writes.
    pub(crate) fn audit_segments(&self) -> [PathBuf; 2] {
        ["a.segment", "b.segment"].map(|name| self.audit().join(name))
    }

    /// Closed segments, by number.
    pub(crate) fn audit_filed(&self) -> PathBuf {
        self.audit().join("filed")
    }

    /// The operator's word that the trail that was there is lost; the next start takes it.
    pub(crate) fn audit_anew(&self) -> PathBuf {
        self.audit().join("begin-anew")
    }

    /// What the trail is owed: seen while no vault could record it.
    pub(crate) fn audit_owed(&self) -> PathBuf {
        self.audit().join("owed")
    }

    /// Sockets and the lock.
    pub(crate) fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Held by the one supervisor of this home.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run().join("lock")
    }

    /// Sockets that nobody may reach yet; only the supervisor enters.
    pub(crate) fn pending(&self) -> PathBuf {
        self.run().join("pending")
    }

    /// The supervisor's socket.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.run().join("control.sock")
    }

    /// Only the operator enters.
    pub(crate) fn admin(&self) -> PathBuf {
        self.run().join("admin")
    }

    /// `noded`'s socket for the operator.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.admin().join("admin.sock")
    }

    /// Only `noded` enters.
    pub(crate) fn cryptod(&self) -> PathBuf {
        self.run().join("cryptod")
    }

    /// Only modules enter, each by its cage: the folder above is closed to their uids.
    pub(crate) fn modules(&self) -> PathBuf {
        self.run().join("modules")
    }

    /// Programs of modules' generations that may be needed again, a folder each module.
    pub(crate) fn kept_programs(&self) -> PathBuf {
        self.path().join("programs")
    }

    /// `noded`'s socket for modules.
    pub(crate) fn module_socket(&self) -> PathBuf {
        self.modules().join(DOOR_SOCKET)
    }

    /// The installed modules; only the operator enters.
    pub(crate) fn packages(&self) -> PathBuf {
        self.0.join("modules")
    }

    /// What `noded` is told of them: in a folder that it reads and cannot write.
    pub(crate) fn installed(&self) -> PathBuf {
        self.cryptod().join("modules.json")
    }

    /// The paths that a built-in module keeps in its cage.
    pub(crate) fn module_keeps(&self) -> Vec<KeptPath> {
        let mut kept = vec![KeptPath::door(&self.modules())];
        kept.extend(openred_policy::launch::runtime());
        kept
    }

    /// The paths that `noded` keeps in its cage: it confines itself to these, and the supervisor expects exactly these.
    pub(crate) fn noded_keeps(&self) -> Vec<KeptPath> {
        let mut kept = vec![KeptPath::writable(&self.state()), KeptPath::readable(&self.cryptod())];
        kept.extend(RESOLVER.iter().map(Path::new).filter(|path| path.is_file()).map(KeptPath::readable));
        kept
    }

    /// The front's socket for `noded`.
    pub(crate) fn cryptod_socket(&self) -> PathBuf {
        self.cryptod().join("cryptod.sock")
    }
}

#[cfg(test)]
impl Home {
    /// An empty one for a test, with the folder that goes with it.
    pub(crate) fn scratch() -> (tempfile::TempDir, Self) {
        let folder = tempfile::tempdir().expect("a folder for a test");
        let home = Self::new(folder.path().canonicalize().expect("a folder that was just made"));
        (folder, home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_of_the_longest_home_fits_its_address() {
        let home = Home::new(PathBuf::from(format!("/{}", "h".repeat(HOME_BYTES - 1))));
        let sockets = [home.control_socket(), home.admin_socket(), home.cryptod_socket(), home.module_socket()];
        for socket in sockets.into_iter().chain([home.pending().join("cryptod")]) {
            assert!(socket.as_os_str().len() < 108, "{}", socket.display());
        }
    }

    #[test]
    fn default_place() {
        let variable = |name: &str| (name == "HOME").then(|| PathBuf::from("/home/u"));
        assert_eq!(Home::default_path(true, variable), Some(PathBuf::from("/var/lib/openred")));
        assert_eq!(Home::default_path(false, variable), Some(PathBuf::from("/home/u/.local/share/openred")));
        let relative = |name: &str| (name == "XDG_DATA_HOME").then(|| PathBuf::from("data"));
        assert_eq!(Home::default_path(false, relative), None);
    }
}
