//! A machine of its own for a test, as far as a service manager can tell: systemd as process 1 of namespaces that go with it, on a tree of
//! its own with this machine's programs in it, read-only. Takes root. Nothing of it reaches the machine: its cgroup is below one that
//! is made for it, `/proc/sys` and `/sys` are read-only, and its processes end with the first of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::harness::{Answer, binaries, run, signal_pid, wait_for};

/// Makes the tree at `$1` the root and becomes systemd, in the cgroup `$2`. The mounts are those of systemd's own description of a
/// container (CONTAINER_INTERFACE): a private `/dev` with what every program needs, `/run` empty, a cgroup of its own.
const BOOT: &str = r#"
set -eu
echo $$ >"$2/cgroup.procs"
exec unshare --mount --propagation private --pid --fork --kill-child --cgroup --net --uts --ipc bash -c '
    set -eu
    mount --bind "$0" "$0"
    cd "$0"
    for place in usr bin sbin lib lib32 lib64 libx32; do
        [ ! -d "$place" ] || [ -L "$place" ] || { mount --bind "/$place" "$place"; mount -o remount,bind,ro "$place"; }
    done
    mount -t proc proc proc
    mount --bind proc/sys proc/sys
    mount -o remount,bind,ro proc/sys
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs dev
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    for device in null zero full random urandom tty; do
        : >"dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    mount -t tmpfs -o mode=755 tmpfs run
    pivot_root . old
    umount -l /old
    # Or a service'"'"'s credentials, which are mounted beside it, never come into view.
    mount --make-rshared /
    exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --unit=basic.target --log-target=journal --show-status=no
' "$1"
"#;
/// Where the programs of the tree are.
const PREFIX: &str = "/opt/openred";
/// Folders of the tree that are empty, or become mounts.
const FOLDERS: [&str; 14] = [
    "etc",
    "var/lib",
    "var/log",
    "var/tmp",
    "tmp",
    "run",
    "proc",
    "sys",
    "dev",
    "root",
    "home",
    "old",
    "opt",
    "etc/systemd/system",
];

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    first: Child,
    /// The process id of its systemd, seen from here.
    pid: u32,
    cgroup: PathBuf,
    tree: tempfile::TempDir,
}

/// Where the kernel's one hierarchy of cgroups is mounted.
fn cgroups() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut places = mounts.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        (words.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(words[1]))
    });
    places.next().context("no cgroup2 is mounted on this machine: systemd cannot be started for a test")
}

/// The tree: this machine's programs, accounts of its own, OpenRed as `scripts/install` puts it there.
fn plant(tree: &Path) -> Result<()> {
    fs::set_permissions(tree, fs::Permissions::from_mode(0o755))?;
    for folder in FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    for place in ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let here = Path::new("/").join(place);
        match fs::symlink_metadata(&here) {
            Ok(found) if found.is_symlink() => symlink(fs::read_link(&here)?, tree.join(place))?,
            Ok(found) if found.is_dir() => fs::create_dir(tree.join(place))?,
            _ => {}
        }
    }
    for (file, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
        ("group", "root:x:0:\nnogroup:x:65534:\n"),
        ("machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("hostname", "machine\n"),
        ("fstab", ""),
    ] {
        fs::write(tree.join("etc").join(file), text)?;
    }
    // Else systemd brings itself up to date first; and what looks at this machine's devices and accounts is none of the test's.
    for stamp in ["etc/.updated", "var/.updated"] {
        fs::write(tree.join(stamp), "")?;
    }
    for unit in ["systemd-sysusers.service", "systemd-tmpfiles-setup-dev.service", "systemd-udevd.service"] {
        symlink("/dev/null", tree.join("etc/systemd/system").join(unit))?;
    }
    fs::copy("/etc/ld.so.cache", tree.join("etc/ld.so.cache"))?;
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the project's folder")?.join("scripts/install");
    let (root, programs) = (tree.display().to_string(), binaries()?.display().to_string());
    let arguments = ["--destdir", &root, "--prefix", PREFIX, "--binaries", &programs];
    run(&script, &arguments)?.ok()?;
    Ok(())
}

impl Machine {
    /// Starts it in a folder below `place`, which must be on a disk (systemd keeps no key for credentials in memory), and waits until it is up.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot(place: &Path) -> Result<Self> {
        let tree = tempfile::tempdir_in(place)?;
        plant(tree.path())?;
        let cgroup = cgroups()?.join(format!("openred-test-{}-{}", std::process::id(), name(tree.path())));
        fs::create_dir(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;
        let first = Command::new("bash")
            .args(["-c", BOOT, "boot"])
            .args([tree.path(), &cgroup])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(tree.path().join("boot.log"))?)
            .spawn()?;
        let mut machine = Self { first, pid: 0, cgroup, tree };
        machine.pid = wait_for("process 1", || machine.process_1())?;
        wait_for("systemd", || {
            let state = machine.run("systemctl is-system-running")?.stdout;
            match state.trim() {
                "running" => Ok(Some(())),
                "degraded" => bail!("{}", machine.run("systemctl --failed --no-pager --plain")?.stdout),
                _ => Ok(None),
            }
        })
        .with_context(|| machine.log())?;
        Ok(machine)
    }

    /// `unshare` is the process that was started, systemd its one child.
    fn process_1(&mut self) -> Result<Option<u32>> {
        if let Some(status) = self.first.try_wait()? {
            bail!("{status}: {}", fs::read_to_string(self.tree.path().join("boot.log")).unwrap_or_default());
        }
        let own = self.first.id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
        let Some(pid) = children.split_whitespace().next() else { return Ok(None) };
        let is_systemd = fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == "systemd";
        Ok(if is_systemd { Some(pid.parse()?) } else { None })
    }

    /// Runs a shell's script in it, as its root.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, script: &str) -> Result<Answer> {
        let pid = self.pid.to_string();
        let path = format!("PATH={PREFIX}/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let inside = ["env", "-i", &path, "bash", "-c", script];
        run(Path::new("nsenter"), &[&["--target", &pid, "--all", "--"], &inside[..]].concat())
    }

    /// The same, and it must go well; what it printed.
    ///
    /// # Errors
    /// With what it printed and the machine's log, when it does not.
    pub fn ok(&self, script: &str) -> Result<String> {
        let answer = self.run(script)?;
        ensure!(answer.code == 0, "{script}: {answer:?}\n{}", self.log());
        Ok(answer.stdout.trim().to_owned())
    }

    /// One property of a unit.
    ///
    /// # Errors
    /// When systemd does not say.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        self.ok(&format!("systemctl show --property {name} --value {unit}"))
    }

    /// The end of what its processes said.
    #[must_use]
    pub fn log(&self) -> String {
        self.run("journalctl --no-pager --lines 60").map(|answer| answer.stdout).unwrap_or_default()
    }
}

fn name(place: &Path) -> String {
    place.file_name().unwrap_or_default().to_string_lossy().replace('.', "")
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With process 1 the kernel ends all that is in its namespace, and the mounts go.
        if self.pid > 0 {
            let _ = signal_pid(self.pid, Signal::SIGKILL);
        }
        let _ = self.first.wait();
        let _ = wait_for("the machine's end", || Ok(remove_cgroups(&self.cgroup).ok()));
    }
}

/// Cgroups are empty folders once nobody is in them; what looks like files in them is the kernel's.
fn remove_cgroups(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}
