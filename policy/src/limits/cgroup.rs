//! Groups of the kernel: where this supervisor may make some, and one per program and hierarchy.
//!
//! Version 2 has one hierarchy, in which a group with limits below it holds no process itself (cgroups(7), "no internal processes"): the supervisor
//! moves into a leaf beside the programs' groups, if nobody else is in its group. Version 1 has a hierarchy a controller. In either,
//! groups are made below the supervisor's own, never elsewhere, so that whoever limits the supervisor limits them too.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{Limits, Resource, Way};

/// The leaf into which a supervisor moves.
const OWN_LEAF: &str = "supervisor";
/// The period over which the processor's share is counted, in microseconds.
const PERIOD: u64 = 100_000;
/// Groups that one of the same name may have left behind: as many as a node has modules, and their predecessors.
const LEFT: usize = 1024;
/// Groups of one program that can be there at once.
const AT_ONCE: usize = 32;

/// Controllers and what they hold.
const CONTROLLERS: [(&str, Resource); 3] =
    [("memory", Resource::Memory), ("cpu", Resource::Cpu), ("pids", Resource::Tasks)];

/// A folder in which this process may make groups, and what they can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    folder: PathBuf,
    holds: Vec<Resource>,
    version: Way,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<Place>);

impl Places {
    pub(super) fn find(node: &str) -> Self {
        let digest = Sha256::digest(node.as_bytes());
        let name = format!("openred-{}", digest[..6].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (mounts, own) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
        let mut places = Vec::from_iter(unified(&mounts, &own).and_then(|(folder, root)| two(&folder, root, &name)));
        let missing = CONTROLLERS.into_iter().filter(|(_, resource)| {
            let held = |place: &Place| place.holds.contains(resource);
            !places.iter().any(held)
        });
        let more: Vec<Place> = missing
            .filter_map(|(controller, resource)| one(&controlled(&mounts, &own, controller)?, resource, &name))
            .collect();
        places.extend(more);
        Self(places)
    }

    pub(super) fn way(&self, resource: Resource) -> Option<Way> {
        self.0.iter().find(|place| place.holds.contains(&resource)).map(|place| place.version)
    }

    /// A group in each place, with its limits set.
    pub(super) fn make(&self, name: &str, limits: &Limits) -> io::Result<Vec<Group>> {
        self.0.iter().map(|place| Group::make(place, name, limits)).collect()
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // Those of programs are gone with them; a folder that still holds one is removed by the next start of this node.
        self.0.iter().for_each(|place| drop(fs::remove_dir(&place.folder)));
    }
}

/// Where `file system` is mounted: the mount's root in it, and the place. With `option`, only one whose own options name it.
fn mounted<'a>(mounts: &'a str, kind: &str, option: Option<&str>) -> Option<(&'a str, &'a str)> {
    mounts.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let (mut front, mut back) = (front.split(' ').skip(3), back.split(' '));
        let found = back.next()? == kind
            && option.is_none_or(|option| back.nth(1).is_some_and(|all| all.split(',').any(|one| one == option)));
        if found { Some((front.next()?, front.next()?)) } else { None }
    })
}

/// The folder of a process's own group, where the mount shows it.
fn folder((root, place): (&str, &str), own: &str) -> Option<PathBuf> {
    let below = if root == "/" { own } else { own.strip_prefix(root)? };
    let below = below.trim_start_matches('/');
    // Outside of the cgroup namespace: not to be reached.
    if below.split('/').any(|part| part == "..") { None } else { Some(Path::new(place).join(below)) }
}

/// The own group in the one hierarchy of version 2, and whether it is the hierarchy's root.
fn unified(mounts: &str, own: &str) -> Option<(PathBuf, bool)> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    folder(mounted(mounts, "cgroup2", None)?, path).map(|folder| (folder, path == "/"))
}

/// The own group in a controller's hierarchy of version 1.
fn controlled(mounts: &str, own: &str, controller: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|one| one == controller).then_some(path)
    })?;
    folder(mounted(mounts, "cgroup", Some(controller))?, path)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // Not created where it is missing: what looks like files is the kernel's.
    File::options().write(true).open(path)?.write_all(text.as_bytes())
}

fn words(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// A place of version 2 below this process's group, if that can be had.
fn two(own: &Path, is_root: bool, name: &str) -> Option<Place> {
    let top = if own.file_name().is_some_and(|last| last == OWN_LEAF) { own.parent()? } else { own };
    let there = words(&top.join("cgroup.controllers"));
    let wanted: Vec<_> = CONTROLLERS.into_iter().filter(|(one, _)| there.iter().any(|held| held == one)).collect();
    if wanted.is_empty() {
        return None;
    }
    if top == own && !is_root {
        leave(own).ok()?;
    }
    let folder = top.join(name);
    clean(&folder);
    fs::create_dir_all(&folder).ok()?;
    let holds: Vec<Resource> = wanted
        .into_iter()
        .filter(|(controller, _)| allow(top, controller).and_then(|()| allow(&folder, controller)).is_ok())
        .map(|(_, resource)| resource)
        .collect();
    if holds.is_empty() {
        let _ = fs::remove_dir(&folder);
        return None;
    }
    Some(Place { folder, holds, version: Way::CgroupV2 })
}

/// Has a group's members limited by a controller.
fn allow(group: &Path, controller: &str) -> io::Result<()> {
    write(&group.join("cgroup.subtree_control"), &format!("+{controller}"))
}

/// Moves this process into a leaf of its group, if nobody else is in that.
fn leave(own: &Path) -> io::Result<()> {
    let this = std::process::id().to_string();
    if words(&own.join("cgroup.procs")) != [this.clone()] {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let leaf = own.join(OWN_LEAF);
    fs::create_dir_all(&leaf)?;
    write(&leaf.join("cgroup.procs"), &this)
}

/// A place of version 1 below this process's group of one controller, if that can be had.
fn one(own: &Path, resource: Resource, name: &str) -> Option<Place> {
    let folder = own.join(name);
    clean(&folder);
    fs::create_dir_all(&folder).ok()?;
    let place = Place { folder, holds: vec![resource], version: Way::CgroupV1 };
    // A folder of the right name is not yet a group.
    let file = limit_file(place.version, resource)?;
    place.folder.join(file).exists().then_some(place)
}

/// Removes groups that a supervisor left behind which was killed; whoever was in them has died with it.
fn clean(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.take(LEFT).flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn limit_file(version: Way, resource: Resource) -> Option<&'static str> {
    match (version, resource) {
        (Way::CgroupV2, Resource::Memory) => Some("memory.max"),
        (Way::CgroupV2, Resource::Cpu) => Some("cpu.max"),
        (Way::CgroupV1, Resource::Memory) => Some("memory.limit_in_bytes"),
        (Way::CgroupV1, Resource::Cpu) => Some("cpu.cfs_quota_us"),
        (Way::CgroupV1 | Way::CgroupV2, Resource::Tasks) => Some("pids.max"),
        _ => None,
    }
}

/// Makes a folder for one program. The kernel keeps one of that name while somebody is in it: a process that was killed and is
/// still on its way out, or an older generation of the program. Then it gets the next number.
fn vacant(place: &Path, name: &str) -> io::Result<PathBuf> {
    let mut folder = place.join(name);
    for number in 2..=AT_ONCE {
        let _ = fs::remove_dir(&folder);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| folder),
        }
        folder = place.join(format!("{name}-{number}"));
    }
    fs::create_dir(&folder).map(|()| folder)
}

/// One program's group in one hierarchy. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Group {
    folder: PathBuf,
    holds: Vec<Resource>,
    version: Way,
}

impl Group {
    fn make(place: &Place, name: &str, limits: &Limits) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", place.folder.display()));
        let folder = vacant(&place.folder, name).map_err(named)?;
        let group = Self { folder, holds: place.holds.clone(), version: place.version };
        place.holds.iter().try_for_each(|resource| group.limit(*resource, limits))?;
        Ok(group)
    }

    fn limit(&self, resource: Resource, limits: &Limits) -> io::Result<()> {
        let set = |file: &str, text: String| write(&self.folder.join(file), &text);
        let quota = u64::from(limits.cpu) * PERIOD / 100;
        match (self.version, resource) {
            (Way::CgroupV2, Resource::Memory) => {
                set("memory.max", limits.memory.to_string())?;
                // Kernels without swap have no such file.
                let _ = set("memory.swap.max", String::from("0"));
                set("memory.oom.group", String::from("1"))
            }
            (Way::CgroupV1, Resource::Memory) => {
                set("memory.limit_in_bytes", limits.memory.to_string())?;
                let _ = set("memory.memsw.limit_in_bytes", limits.memory.to_string());
                Ok(())
            }
            (Way::CgroupV2, Resource::Cpu) => set("cpu.max", format!("{quota} {PERIOD}")),
            (Way::CgroupV1, Resource::Cpu) => {
                set("cpu.cfs_period_us", PERIOD.to_string())?;
                set("cpu.cfs_quota_us", quota.to_string())
            }
            _ => set("pids.max", limits.tasks.to_string()),
        }
    }

    pub(super) fn enter(&self, pid: i32) -> io::Result<()> {
        write(&self.folder.join("cgroup.procs"), &pid.to_string())
    }

    /// The limit as the kernel has it, in the unit of [`Limits`], if it holds this resource for `pid`.
    pub(super) fn read(&self, resource: Resource, pid: i32) -> Option<u64> {
        if !self.holds.contains(&resource) || !words(&self.folder.join("cgroup.procs")).contains(&pid.to_string()) {
            return None;
        }
        let file = self.folder.join(limit_file(self.version, resource)?);
        let most: u64 = words(&file).first()?.parse().ok()?;
        Some(if resource == Resource::Cpu { most * 100 / PERIOD } else { most })
    }

    fn count(&self, file: &str, field: &str) -> Option<u64> {
        let text = fs::read_to_string(self.folder.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(' ')?.trim().parse().ok())
    }

    pub(super) fn killed_for_memory(&self) -> bool {
        let file = if self.version == Way::CgroupV2 { "memory.events" } else { "memory.oom_control" };
        self.holds.contains(&Resource::Memory) && self.count(file, "oom_kill").is_some_and(|count| count > 0)
    }

    pub(super) fn refused(&self, resource: Resource) -> Option<u64> {
        if !self.holds.contains(&resource) {
            return None;
        }
        match resource {
            Resource::Tasks => self.count("pids.events", "max"),
            Resource::Cpu => self.count("cpu.stat", "nr_throttled"),
            _ => None,
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Refused while its last process is on its way out; the next start of this program, or of this node, removes it then.
        let _ = fs::remove_dir(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 /docker/a /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const OWN: &str = "4:memory:/docker/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/x\n0::/system.slice/openred.service\n";

    #[test]
    fn the_own_groups_are_found_where_they_are_mounted() {
        let place = |controller| controlled(MOUNTS, OWN, controller);
        assert_eq!(place("cpu").unwrap(), Path::new("/sys/fs/cgroup/cpu"));
        assert_eq!(place("memory").unwrap(), Path::new("/sys/fs/cgroup/memory/b"));
        assert_eq!(place("pids"), None);
        let (folder, root) = unified(MOUNTS, OWN).unwrap();
        assert_eq!((folder.to_str().unwrap(), root), ("/sys/fs/cgroup/unified/system.slice/openred.service", false));
        assert!(unified(MOUNTS, "0::/\n").unwrap().1);
        assert_eq!(unified(MOUNTS, "0::/../outside\n"), None, "above the namespace's own");
        assert_eq!(unified("", OWN), None);
    }

    #[test]
    fn a_group_that_somebody_is_still_in_does_not_keep_the_next_one_from_its_own() {
        let place = tempfile::tempdir().unwrap();
        let taken = |name: &str| fs::write(place.path().join(name).join("somebody"), "").unwrap();
        let folder = vacant(place.path(), "files").unwrap();
        assert_eq!(folder, place.path().join("files"));
        assert_eq!(vacant(place.path(), "files").unwrap(), folder, "nobody is in it");
        taken("files");
        let second = vacant(place.path(), "files").unwrap();
        assert_eq!(second, place.path().join("files-2"));
        taken("files-2");
        fs::remove_file(folder.join("somebody")).unwrap();
        assert_eq!(vacant(place.path(), "files").unwrap(), folder, "he has left");
        assert_eq!(vacant(&place.path().join("no"), "files").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_group_is_not_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(one(folder.path(), Resource::Memory, "openred-0"), None);
        assert_eq!(two(folder.path(), false, "openred-0"), None);
        fs::write(folder.path().join("cgroup.controllers"), "memory pids").unwrap();
        fs::write(folder.path().join("cgroup.procs"), "1\n2\n").unwrap();
        assert_eq!(two(folder.path(), false, "openred-0"), None, "others are in the same group");
    }
}
