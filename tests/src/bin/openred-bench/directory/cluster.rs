//! A PostgreSQL for the time of a measurement, from Debian's programs: its data on the disk of the output folder, on a socket beside them.
//! As root it runs as `nobody`, because PostgreSQL refuses root. Its settings are its own, as durable as they come.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::User;
use openred_tests::harness::{is_root, signal_pid, wait_for};

const PASSWORD: &str = "not-a-secret";

/// A running server.
pub(crate) struct Cluster {
    child: Child,
    sockets: PathBuf,
    password: PathBuf,
}

/// The newest that is installed.
pub(crate) fn installed() -> Option<PathBuf> {
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let all = fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let newest = all.filter(|path| version(path).is_some()).max_by_key(version)?.join("bin");
    newest.join("initdb").exists().then_some(newest)
}

impl Cluster {
    /// Makes one in `folder`, which is made, and starts it.
    pub(crate) fn start(programs: &Path, folder: &Path) -> Result<Self> {
        let owner = if is_root() { User::from_name("nobody")? } else { None };
        let (data, sockets, password) = (folder.join("data"), folder.join("s"), folder.join("password"));
        for path in [folder, &data, &sockets] {
            fs::create_dir(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        let theirs = sockets.join("password");
        for (path, mode) in [(&password, 0o600), (&theirs, 0o644)] {
            fs::write(path, PASSWORD)?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        if let Some(user) = &owner {
            for path in [&data, &sockets] {
                chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            }
        }
        let command = |name: &str| {
            let mut command = Command::new(programs.join(name));
            if let Some(user) = &owner {
                command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            }
            command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let mut initdb = command("initdb");
        initdb.arg("-D").arg(&data).args(["-U", "openred", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C"]);
        let made = initdb.arg("--pwfile").arg(&theirs).stderr(Stdio::piped()).output().context("starting initdb")?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        fs::remove_file(&theirs)?;
        let mut server = command("postgres");
        server.arg("-D").arg(&data).arg("-k").arg(&sockets).args(["-c", "listen_addresses="]);
        let cluster = Self { child: server.spawn().context("starting postgres")?, sockets, password };
        wait_for("PostgreSQL", || {
            let ready = command("pg_isready").arg("-q").arg("-h").arg(&cluster.sockets).status()?;
            Ok(ready.success().then_some(()))
        })?;
        Ok(cluster)
    }

    /// The server's processes: the one that was started and its children, one for each connection.
    pub(crate) fn processes(&self) -> Result<Vec<i32>> {
        let server = i32::try_from(self.child.id())?;
        let mut all = vec![server];
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            // One that has ended meanwhile is none.
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
            if parent == Some(server) {
                all.push(pid);
            }
        }
        Ok(all)
    }

    /// What a directory has in its configuration for it.
    pub(crate) fn settings(&self) -> String {
        let (sockets, password) = (self.sockets.display(), self.password.display());
        format!("url = \"postgresql://openred@/postgres?host={sockets}\"\npassword_file = \"{password}\"\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGINT: it ends its connections and itself.
        let _ = signal_pid(self.child.id(), Signal::SIGINT);
        let _ = self.child.wait();
    }
}
