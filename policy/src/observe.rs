//! Step 9: what a supervisor sees of a process from outside, compared with its manifest. Nothing here asks the process.
//!
//! Namespaces are noted at the barrier, while the process is still dumpable; all else is read after it said `confined`.
//! As an ordinary user `status`, `mountinfo`, `task/*/status` and `net/*` of a non-dumpable child can be read, `ns/*`
//! cannot, which is why they are noted early.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::confine::{Identity, KeptPath};
use crate::error::{Error, Result};
use crate::layer::{Layer, LayerName};
use crate::manifest::{Interfaces, Manifest};
use crate::privileges;
use crate::role::{Role, Uid};
use crate::seccomp;
use crate::self_check::status_field;

const NAMESPACES: [&str; 6] = ["user", "mnt", "net", "ipc", "uts", "cgroup"];

/// Most tasks that are looked at: above every manifest's number.
const MAX_TASKS: usize = 256;

/// The namespaces of a process: name and inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces(BTreeMap<String, u64>);

/// Notes the namespaces of `pid`. For a child: between its `namespaced` and the go-ahead.
pub fn namespaces(pid: i32) -> Result<Namespaces> {
    let mut found = BTreeMap::new();
    for name in NAMESPACES {
        let link =
            fs::read_link(format!("/proc/{pid}/ns/{name}")).map_err(Error::io(LayerName::Namespaces, "read ns"))?;
        let inode = link.to_str().and_then(|text| text.split_once('[')?.1.strip_suffix(']')?.parse().ok());
        found.insert(name.to_owned(), inode.ok_or(Error::LocalProc { layer: LayerName::Namespaces, field: "ns" })?);
    }
    Ok(Namespaces(found))
}

/// The supervisor's own state, against which a child is compared.
#[derive(Clone, Debug)]
pub struct Baseline {
    namespaces: Namespaces,
    filters: usize,
    uid: Uid,
    ids: String,
}

impl Baseline {
    /// Reads it.
    pub fn of_this_process() -> Result<Self> {
        let own = std::process::id() as i32;
        let status = read(own, "status", LayerName::Seccomp)?;
        let user = nix::unistd::geteuid();
        Ok(Self {
            namespaces: namespaces(own)?,
            filters: status_field(&status, "Seccomp_filters").and_then(|text| text.parse().ok()).unwrap_or(0),
            uid: Uid::of_this_process(),
            ids: ids(&user.to_string()),
        })
    }
}

/// The four ids of a status line (real, effective, saved, file system) when all are `id`.
fn ids(id: &str) -> String {
    [id; 4].join("\t")
}

/// One mount that a process sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, in the process's own root.
    pub inside: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// Options of the mount, such as `ro,nosuid,nodev,noexec`.
    pub options: String,
}

/// What was seen of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Observation {
    /// Its process id.
    pub pid: i32,
    /// `/proc/<pid>/status`.
    pub status: String,
    /// The same of each task.
    pub tasks: Vec<String>,
    /// Its mounts.
    pub mounts: Vec<Mount>,
    /// Interfaces in `/proc/<pid>/net/dev`.
    pub interfaces: Vec<String>,
    /// Whether any of them has an address.
    pub addresses: bool,
    /// `/proc/<pid>/limits`.
    pub limits: String,
    /// Noted at the barrier.
    pub namespaces: Namespaces,
    /// Who owns the files under `/proc/<pid>`: root once the process is not dumpable, else the process's own uid.
    pub proc_owner: u32,
}

impl Observation {
    /// The interfaces beside a `lo` that is down: empty for a process without network.
    #[must_use]
    pub fn usable_interfaces(&self) -> Vec<&str> {
        let lo_is_down = !self.addresses;
        self.interfaces.iter().map(String::as_str).filter(|name| !(*name == "lo" && lo_is_down)).collect()
    }
}

fn read(pid: i32, file: &str, layer: LayerName) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(Error::io(layer, "read /proc of a child"))
}

/// Looks at `pid`, a child that is alive or not yet reaped.
pub fn observe(pid: i32, namespaces: Namespaces) -> Result<Observation> {
    let failed = Error::io(LayerName::Threads, "read task");
    let mut tasks = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).map_err(&failed)?.take(MAX_TASKS) {
        match fs::read_to_string(task.map_err(&failed)?.path().join("status")) {
            Ok(text) => tasks.push(text),
            // A thread that ended in between.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound) || error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let devices = read(pid, "net/dev", LayerName::Interfaces)?;
    let interfaces =
        devices.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
    // An interface that is up has addresses: `lo` gets its own as soon as it is up. IPv6 may be missing from the kernel.
    let routes = read(pid, "net/fib_trie", LayerName::Interfaces)?;
    let addresses = !routes.trim().is_empty()
        || read(pid, "net/if_inet6", LayerName::Interfaces).is_ok_and(|text| !text.is_empty());
    Ok(Observation {
        pid,
        status: read(pid, "status", LayerName::Threads)?,
        tasks,
        mounts: read(pid, "mountinfo", LayerName::Mounts)?.lines().filter_map(mount).collect(),
        interfaces,
        addresses,
        limits: read(pid, "limits", LayerName::Limits)?,
        namespaces,
        proc_owner: fs::metadata(format!("/proc/{pid}/status")).map_err(&failed)?.uid(),
    })
}

/// One line of mountinfo: `id parent device root inside options … - kind source super`.
fn mount(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(4);
    let inside =
        front.next()?.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    Some(Mount {
        inside: PathBuf::from(inside),
        options: front.next()?.to_owned(),
        kind: back.split(' ').next()?.to_owned(),
    })
}

/// What the caller knows about one child beyond its role.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// As root: the uid it was given.
    pub identity: Option<Identity>,
    /// The paths it keeps.
    pub kept: Vec<KeptPath>,
}

/// Compares what was seen with the role's manifest: one line a layer. Start-up fails when any line is not `ok`.
#[must_use]
pub fn compare(role: Role, seen: &Observation, own: &Baseline, expected: &Expected) -> Vec<Layer> {
    let Some(manifest) = Manifest::of(role) else { return Vec::new() };
    vec![
        namespace_layer(&manifest, seen, own),
        mount_layer(&manifest, seen, expected),
        uid_layer(seen, own, expected),
        interface_layer(&manifest, seen, own),
        limit_layer(role, seen),
        status_layer(LayerName::Capabilities, "Cap", &manifest, seen),
        status_layer(LayerName::NoNewPrivs, "NoNewPrivs", &manifest, seen),
        Layer::new(LayerName::NotDumpable, "proc files owned by 0", format!("proc files owned by {}", seen.proc_owner)),
        status_layer(LayerName::Untraced, "TracerPid", &manifest, seen),
        filter_layer(role, &manifest, seen, own),
        thread_layer(&manifest, seen),
    ]
}

fn namespace_layer(manifest: &Manifest, seen: &Observation, own: &Baseline) -> Layer {
    let mut wanted: Vec<&str> = manifest.own_namespaces.iter().map(String::as_str).collect();
    if own.uid == Uid::Shared {
        wanted.push("user");
    }
    wanted.sort_unstable();
    let differs = |name: &str| seen.namespaces.0.get(name) != own.namespaces.0.get(name);
    let mut found: Vec<&str> = NAMESPACES.into_iter().filter(|name| differs(name)).collect();
    found.sort_unstable();
    Layer::new(LayerName::Namespaces, wanted.join(" "), found.join(" "))
}

fn mount_layer(manifest: &Manifest, seen: &Observation, expected: &Expected) -> Layer {
    let kept: &[KeptPath] = if manifest.keeps_paths { &expected.kept } else { &[] };
    let mut wanted = vec!["/ ro tmpfs".to_owned()];
    wanted.extend(kept.iter().map(|kept| {
        let mode = if kept.writable { "rw" } else { "ro" };
        format!("{} {mode} {}", kept.inside().display(), if kept.executable { "runtime" } else { "noexec" })
    }));
    let mut found: Vec<String> = seen.mounts.iter().map(mount_text).collect();
    wanted.sort();
    found.sort();
    Layer::new(LayerName::Mounts, wanted.join(", "), found.join(", "))
}

fn mount_text(mount: &Mount) -> String {
    let has = |option: &str| mount.options.split(',').any(|found| found == option);
    let mode = if has("ro") { "ro" } else { "rw" };
    let kind = match (has("nosuid") && has("nodev"), has("noexec"), mount.inside == Path::new("/")) {
        (true, true, true) => mount.kind.as_str(),
        (true, true, false) => "noexec",
        (true, false, false) => "runtime",
        _ => "exec",
    };
    format!("{} {mode} {kind}", mount.inside.display())
}

fn uid_layer(seen: &Observation, own: &Baseline, expected: &Expected) -> Layer {
    let field = |name| status_field(&seen.status, name).unwrap_or("").to_owned();
    match (own.uid, expected.identity) {
        (Uid::Separate, Some(identity)) => {
            let wanted = format!("{} / {} / no groups", ids(&identity.uid.to_string()), ids(&identity.gid.to_string()));
            let groups = if field("Groups").is_empty() { "no groups".to_owned() } else { field("Groups") };
            Layer::new(LayerName::Uid, wanted, format!("{} / {} / {groups}", field("Uid"), field("Gid")))
        }
        (Uid::Separate, None) => Layer::new(LayerName::Uid, "an identity other than root", field("Uid")),
        (Uid::Shared, _) => Layer::new(LayerName::Uid, own.ids.clone(), field("Uid"))
            .detail("uid: shared (this user's other processes differ from it only by the other layers)"),
    }
}

fn interface_layer(manifest: &Manifest, seen: &Observation, own: &Baseline) -> Layer {
    match manifest.interfaces {
        Interfaces::None => Layer::new(
            LayerName::Interfaces,
            "none",
            match seen.usable_interfaces() {
                found if found.is_empty() => "none".to_owned(),
                found => found.join(" "),
            },
        ),
        Interfaces::Host => {
            let same = seen.namespaces.0.get("net") == own.namespaces.0.get("net");
            Layer::new(LayerName::Interfaces, "host", if same { "host" } else { "other" })
        }
    }
}

/// Soft and hard limits: what the role may have at most, or less where the host gives less.
fn limit_layer(role: Role, seen: &Observation) -> Layer {
    let held = |name: &str| -> Vec<String> {
        let line = seen.limits.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or("").split_whitespace().take(2).map(str::to_owned).collect()
    };
    let holds = |name: &str, most: u64| {
        let values = held(name);
        values.len() == 2 && values.iter().all(|value| value.parse::<u64>().is_ok_and(|value| value <= most))
    };
    let text = |name: &str| name.trim_start_matches("Max ").to_owned();
    let wanted = privileges::limits_seen(role).map(|(name, most)| format!("{} {most}", text(name)));
    let found = privileges::limits_seen(role).map(|(name, most)| match holds(name, most) {
        true => format!("{} {most}", text(name)),
        false => format!("{} {}", text(name), held(name).join("/")),
    });
    Layer::new(LayerName::Limits, wanted.collect::<Vec<_>>().join(", "), found.collect::<Vec<_>>().join(", "))
        .detail("at most")
}

/// Fields of the manifest that begin with `prefix`, in the process and in each task.
fn status_layer(name: LayerName, prefix: &str, manifest: &Manifest, seen: &Observation) -> Layer {
    let fields: Vec<(&String, &String)> =
        manifest.status.iter().filter(|(field, _)| field.starts_with(prefix)).collect();
    let text = |pairs: Vec<String>| pairs.join(" ");
    let wanted = text(fields.iter().map(|(field, value)| format!("{field}={value}")).collect());
    let of = |status: &str| {
        text(
            fields.iter().map(|(field, _)| format!("{field}={}", status_field(status, field).unwrap_or("?"))).collect(),
        )
    };
    let odd = seen.tasks.iter().map(|task| of(task)).find(|found| *found != wanted);
    Layer::new(name, wanted.clone(), odd.unwrap_or_else(|| of(&seen.status)))
}

fn filter_layer(role: Role, manifest: &Manifest, seen: &Observation, own: &Baseline) -> Layer {
    let mode = manifest.status.get("Seccomp").map_or("2", String::as_str);
    let wanted = format!("mode {mode}, {} programs", own.filters + seccomp::programs(role));
    let of = |status: &str| {
        let field = |name| status_field(status, name).unwrap_or("?");
        format!("mode {}, {} programs", field("Seccomp"), field("Seccomp_filters"))
    };
    let odd = seen.tasks.iter().map(|task| of(task)).find(|found| *found != wanted);
    Layer::new(LayerName::Seccomp, wanted.clone(), odd.unwrap_or_else(|| of(&seen.status)))
        .detail(format!("{} calls allowed", seccomp::syscalls_allowed(role)))
}

fn thread_layer(manifest: &Manifest, seen: &Observation) -> Layer {
    let count = seen.tasks.len();
    let mut layer = Layer::new(LayerName::Threads, format!("at most {}", manifest.threads_at_most), count.to_string());
    layer.ok = (1..=manifest.threads_at_most).contains(&count);
    layer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// The control of every layer: this test process is in no cage, and each line must say so.
    #[test]
    fn an_uncaged_process_fails_every_layer_of_the_vault() {
        let own = Baseline::of_this_process().unwrap();
        let pid = std::process::id() as i32;
        let seen = observe(pid, namespaces(pid).unwrap()).unwrap();
        assert!(!seen.usable_interfaces().is_empty());
        let expected = Expected { identity: Some(Identity { uid: 61_001, gid: 61_001 }), kept: Vec::new() };
        for layer in compare(Role::Vault, &seen, &own, &expected) {
            let independent = [
                LayerName::Untraced,
                LayerName::Threads,
                LayerName::Capabilities,
                LayerName::Uid,
                LayerName::NotDumpable,
            ];
            assert!(!layer.ok || independent.contains(&layer.name), "{layer:?}");
        }
    }

    #[test]
    fn mountinfo_lines() {
        let line = r"36 35 98:0 /a /mnt\040x rw,nosuid shared:1 - ext4 /dev/root rw,errors=continue";
        let found = mount(line).unwrap();
        assert_eq!(
            (found.inside.to_str().unwrap(), found.kind.as_str(), found.options.as_str()),
            ("/mnt x", "ext4", "rw,nosuid")
        );
        assert_eq!(mount("garbage"), None);
    }
}
