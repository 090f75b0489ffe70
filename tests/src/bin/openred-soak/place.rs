//! Where a node of the soak lives: a network namespace on a bridge, and a mount namespace in which its clock can be stepped.
//!
//! Threads enter a place and start programs from there. All is made inside the driver's own namespaces, so nothing reaches the machine.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use openred_tests::harness::run;

/// Everything of a run is below it: a file system in memory, which goes with the namespace.
pub(crate) const FOLDER: &str = "/run/soak";
/// What the preloaded clock maps; over it each place mounts the file of its own step.
const CLOCK: &str = "/run/soak/clock";
/// The bridge that joins all, and the one to which half of them is moved when the network is split.
const BRIDGES: [&str; 2] = ["soak0", "soak1"];
/// Files of `/etc` that programs look at.
const ETC: [&str; 6] = ["ld.so.cache", "passwd", "group", "nsswitch.conf", "hosts", "localtime"];

/// Runs `ip` with these words.
fn ip(words: &str) -> Result<()> {
    let words: Vec<&str> = words.split(' ').collect();
    run(Path::new("ip"), &words)?.ok().with_context(|| format!("ip {}", words.join(" "))).map(|_| ())
}

fn on<T: ?Sized + nix::NixPath>(source: &T, target: &Path, flags: MsFlags) -> Result<()> {
    let kind = if flags.contains(MsFlags::MS_BIND) { None } else { Some("tmpfs") };
    mount(Some(source), target, kind, flags, None::<&str>).with_context(|| format!("mounting {}", target.display()))
}

/// Makes the folder, the bridges, and the clock that every program started from here on reads.
pub(crate) fn prepare() -> Result<()> {
    on("tmpfs", Path::new("/run"), MsFlags::empty())?;
    let folder = Path::new(FOLDER);
    fs::create_dir(folder)?;
    // Others of the node's uids must get through.
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    ip("link set lo up")?;
    for bridge in BRIDGES {
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("link set {bridge} up"))?;
    }
    fs::write(CLOCK, 0_i64.to_ne_bytes())?;
    let shim = folder.join("clock.so");
    compile(&shim)?;
    let etc = folder.join("etc");
    fs::create_dir(&etc)?;
    for name in ETC {
        // Not every machine has each of them.
        let _ = fs::copy(Path::new("/etc").join(name), etc.join(name));
    }
    fs::write(etc.join("ld.so.preload"), format!("{}\n", shim.display()))?;
    on(&etc, Path::new("/etc"), MsFlags::MS_BIND)
}

fn compile(to: &Path) -> Result<()> {
    let mut compiler = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-x", "c", "-", "-o"])
        .arg(to)
        .arg(format!("-DCLOCK_FILE=\"{CLOCK}\""))
        .stdin(Stdio::piped())
        .spawn()
        .context("starting cc (package gcc)")?;
    compiler.stdin.take().context("standard input is piped")?.write_all(include_bytes!("clock.c"))?;
    ensure!(compiler.wait()?.success(), "cc did not compile the clock");
    Ok(())
}

/// One place.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its address on the bridge.
    pub(crate) address: Ipv4Addr,
    /// Its network namespace, which lives as long as this.
    net: File,
    clock: File,
    clock_path: PathBuf,
    port: String,
}

impl Place {
    /// Makes the place of this number, 1 to 250, on the bridge.
    pub(crate) fn make(number: u8) -> Result<Self> {
        let address = Ipv4Addr::new(10, 77, 0, number);
        let port = format!("port{number}");
        let (own, name) = (std::process::id(), port.clone());
        let net = on_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            ip("link set lo up")?;
            ip(&format!("link add eth0 type veth peer name {name} netns {own}"))?;
            ip(&format!("address add {address}/24 dev eth0"))?;
            ip("link set eth0 up")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        })?;
        let clock_path = Path::new(FOLDER).join(format!("clock-{number}"));
        fs::write(&clock_path, 0_i64.to_ne_bytes())?;
        let clock = File::options().write(true).open(&clock_path)?;
        let place = Self { address, net, clock, clock_path, port };
        place.join(0)?;
        place.cable(true)?;
        Ok(place)
    }

    /// Runs `work` on a thread in this place. Programs that it starts stay here.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            setns(&self.net, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
            unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
            on(&self.clock_path, Path::new(CLOCK), MsFlags::MS_BIND)?;
            work()
        })
    }

    /// An address here.
    pub(crate) const fn at(&self, port: u16) -> std::net::SocketAddr {
        std::net::SocketAddr::new(IpAddr::V4(self.address), port)
    }

    /// Plugs it in or out.
    pub(crate) fn cable(&self, plugged: bool) -> Result<()> {
        ip(&format!("link set {} {}", self.port, if plugged { "up" } else { "down" }))
    }

    /// Joins it to one side of a split network: 0, where everybody is, or 1.
    pub(crate) fn join(&self, side: usize) -> Result<()> {
        ip(&format!("link set {} master {}", self.port, BRIDGES[side]))
    }

    /// Sets how far its wall clock is off.
    pub(crate) fn step(&self, seconds: i64) -> Result<()> {
        Ok(self.clock.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }
}

/// Runs `work` on a thread of its own, whose namespaces go with it.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|threads| threads.spawn(work).join()).map_err(|_| anyhow!("a thread of the soak panicked"))?
}
