//! Step 3: namespaces of its own and a root directory that holds only what the process keeps.
//!
//! As root the mount, network, IPC, UTS and cgroup namespaces are unshared directly; an ordinary user first gets a user
//! namespace in which his one uid and gid are mapped to themselves. `noded` and the directory keep the network.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{chdir, getegid, geteuid, pivot_root};

use crate::confine::KeptPath;
use crate::error::{Error, Result};
use crate::layer::{Layer, LayerName};
use crate::role::{Role, Uid};
use crate::{socket, sys};

/// Directories on which the new root may be mounted while the old one is still there; the first that exists.
const SCAFFOLDS: [&str; 4] = ["/tmp", "/run", "/mnt", "/proc"];

const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NO_DEV: u64 = libc::MOUNT_ATTR_NODEV;
const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;

pub(crate) fn separate(role: Role, uid: Uid) -> Result<Vec<Layer>> {
    let mut flags =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWCGROUP;
    let mut names = String::from("mnt ipc uts cgroup");
    if !role.keeps_network() {
        flags |= CloneFlags::CLONE_NEWNET;
        names.push_str(" net");
    }
    let mut layers = Vec::with_capacity(2);
    if uid == Uid::Shared {
        layers.push(user_namespace()?);
    }
    unshare(flags).map_err(Error::kernel(LayerName::Namespaces, "unshare"))?;
    layers.push(Layer::new(LayerName::Namespaces, names.clone(), names));
    Ok(layers)
}

fn user_namespace() -> Result<Layer> {
    let (uid, gid) = (geteuid(), getegid());
    let failed = Error::kernel(LayerName::UserNamespace, "unshare");
    // The maps belong to root when the process is not dumpable, as it is when its program file may not be read.
    prctl::set_dumpable(true).map_err(Error::kernel(LayerName::UserNamespace, "prctl"))?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(failed)?;
    let write = |file: &str, text: String| {
        fs::write(file, text).map_err(Error::io(LayerName::UserNamespace, "write the id maps"))
    };
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    Ok(Layer::new(LayerName::UserNamespace, "own, one uid", "own, one uid"))
}

/// Replaces the root by an empty read-only tmpfs with the kept paths mounted into it.
pub(crate) fn empty_root(kept: &[KeptPath]) -> Result<Layer> {
    let failed = |call| Error::kernel(LayerName::EmptyRoot, call);
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed("make mounts private"))?;
    // Detached copies first: the scaffold may cover the paths.
    let mounts = kept.iter().map(detach).collect::<Result<Vec<_>>>()?;
    let scaffold = SCAFFOLDS.into_iter().find(|path| Path::new(path).is_dir()).unwrap_or("/");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("openred"), scaffold, Some("tmpfs"), flags, Some("mode=0755,size=64k,nr_inodes=1024"))
        .map_err(failed("mount tmpfs"))?;
    chdir(scaffold).map_err(failed("chdir"))?;
    for (path, mount) in kept.iter().zip(&mounts) {
        attach(path, mount)?;
    }
    pivot_root(".", ".").map_err(failed("pivot_root"))?;
    // The old root now lies over the new one at `.`; taking it off leaves the new one.
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("umount2"))?;
    chdir("/").map_err(failed("chdir"))?;
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, "/", none, read_only, none).map_err(failed("remount read-only"))?;
    let seen = entries("/")?;
    let mut expected: Vec<String> = kept.iter().filter_map(|kept| first_component(kept.inside())).collect();
    expected.sort();
    expected.dedup();
    Ok(Layer::new(LayerName::EmptyRoot, format!("{expected:?}"), format!("{seen:?}")))
}

fn entries(directory: &str) -> Result<Vec<String>> {
    let failed = Error::io(LayerName::EmptyRoot, "read the new root");
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(&failed)? {
        names.push(entry.map_err(&failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn first_component(path: &Path) -> Option<String> {
    path.components().find_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    })
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::MisuseText)
}

fn detach(kept: &KeptPath) -> Result<OwnedFd> {
    let failed = |call| Error::io(LayerName::EmptyRoot, call);
    let found = socket::open_place(&kept.path, kept.links).map_err(failed("open of a kept path"))?;
    let mount = sys::clone_mount(found.as_fd()).map_err(failed("open_tree of a kept path"))?;
    let read_only = if kept.writable { 0 } else { READ_ONLY };
    let no_exec = if kept.executable { 0 } else { NO_EXEC };
    sys::set_mount_attributes(mount.as_fd(), NO_SUID | NO_DEV | no_exec | read_only)
        .map_err(failed("mount_setattr"))?;
    Ok(mount)
}

/// Mounts a kept path below the working directory, which is the new root.
fn attach(kept: &KeptPath, mount: &OwnedFd) -> Result<()> {
    let failed = |call| Error::io(LayerName::EmptyRoot, call);
    let inside: PathBuf = kept.inside().components().filter(|part| matches!(part, Component::Normal(_))).collect();
    // By the descriptor: the scaffold may cover the path.
    let kind = fstat(mount).map_err(Error::kernel(LayerName::EmptyRoot, "fstat of a kept path"))?.st_mode;
    let kind = SFlag::from_bits_truncate(kind) & SFlag::S_IFMT;
    let directory = kind == SFlag::S_IFDIR;
    if !directory && kind != SFlag::S_IFREG {
        // A socket could be connected to, a FIFO or a device is somebody's other end: nothing that is only read.
        return Err(failed("a kept path that is neither a file nor a folder")(io::ErrorKind::InvalidInput.into()));
    }
    let parents = if directory { Some(inside.as_path()) } else { inside.parent() };
    make_directories(parents.unwrap_or(Path::new("")))?;
    if !directory {
        fs::File::create(&inside).map_err(failed("create a mount point"))?;
    }
    sys::attach_mount(mount.as_fd(), &c_path(&inside)?).map_err(failed("move_mount"))
}

/// Makes each missing directory of `path`, searchable by the later uid whatever the umask is.
fn make_directories(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let failed = Error::io(LayerName::EmptyRoot, "make a mount point");
    let mut so_far = PathBuf::new();
    for part in path.components() {
        so_far.push(part);
        if !so_far.exists() {
            fs::create_dir(&so_far).map_err(&failed)?;
            fs::set_permissions(&so_far, fs::Permissions::from_mode(0o755)).map_err(&failed)?;
        }
    }
    Ok(())
}
