//! Steps 3 and 5: uid and gid, resource limits, capabilities, securebits, MDWE, `no_new_privs`, dumpability.

use std::collections::HashSet;

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, getgroups, getppid, getresgid, getresuid, setgroups, setresgid, setresuid};

use crate::confine::Identity;
use crate::error::{Error, Result};
use crate::layer::{Layer, LayerName};
use crate::role::Role;
use crate::sys;

/// Highest capability number that is asked for; the kernel ends the list earlier with EINVAL.
const CAPABILITIES: u64 = 64;

fn capability_error(call: &'static str) -> impl Fn(caps::errors::CapsError) -> Error {
    move |_| Error::LocalKernel { layer: LayerName::Capabilities, call, source: std::io::Error::last_os_error() }
}

fn set_own(permitted: &[Capability]) -> Result<()> {
    let wanted: HashSet<Capability> = permitted.iter().copied().collect();
    // Effective first: it must stay within permitted.
    let held = caps::read(None, CapSet::Permitted).map_err(capability_error("capget"))?;
    if wanted.is_subset(&held) {
        caps::set(None, CapSet::Effective, &wanted).map_err(capability_error("capset"))?;
    }
    caps::set(None, CapSet::Permitted, &wanted).map_err(capability_error("capset"))
}

/// Changes to `identity` for good and proves that root does not come back. Only `CAP_SETPCAP` survives, because emptying
/// the bounding set needs it; [`drop_capabilities`] takes it too.
pub(crate) fn change_identity(identity: Identity) -> Result<Layer> {
    let failed = |call| Error::kernel(LayerName::Uid, call);
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_own(&[Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_SETPCAP])?;
    prctl::set_keepcaps(true).map_err(failed("prctl"))?;
    setgroups(&[]).map_err(failed("setgroups"))?;
    setresgid(gid, gid, gid).map_err(failed("setresgid"))?;
    setresuid(uid, uid, uid).map_err(failed("setresuid"))?;
    prctl::set_keepcaps(false).map_err(failed("prctl"))?;
    set_own(&[Capability::CAP_SETPCAP])?;
    prove_identity(uid, gid)?;
    Ok(Layer::new(LayerName::Uid, identity.to_string(), format!("{uid}:{gid}")).detail("root does not come back"))
}

fn prove_identity(uid: Uid, gid: Gid) -> Result<()> {
    let failed = |call| Error::kernel(LayerName::Uid, call);
    let users = getresuid().map_err(failed("getresuid"))?;
    let groups = getresgid().map_err(failed("getresgid"))?;
    let all_changed = [users.real, users.effective, users.saved].iter().all(|id| *id == uid)
        && [groups.real, groups.effective, groups.saved].iter().all(|id| *id == gid)
        && getgroups().map_err(failed("getgroups"))?.is_empty();
    let root = (Uid::from_raw(0), Gid::from_raw(0));
    let refused = setresuid(root.0, root.0, root.0) == Err(Errno::EPERM)
        && setresgid(root.1, root.1, root.1) == Err(Errno::EPERM)
        && setgroups(&[root.1]) == Err(Errno::EPERM);
    if all_changed && refused { Ok(()) } else { Err(Error::LocalRootReturned { uid: uid.as_raw() }) }
}

/// Sets the parent-death signal anew: the kernel forgets it at a change of uid. `parent` is who the parent was before that; in
/// a PID namespace it may be process 1 itself, so no number says by itself that the supervisor has died. The directory
/// has no supervisor to die with.
pub(crate) fn die_with_parent(role: Role, parent: Pid) -> Result<()> {
    if role == Role::Directory {
        return Ok(());
    }
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(Error::kernel(LayerName::Barrier, "prctl"))?;
    // Died between the two: then somebody else is the parent now, and no signal will come.
    if getppid() == parent { Ok(()) } else { Err(Error::PeerGone) }
}

/// A resource, and its name in `/proc/<pid>/limits`.
type Named = (Resource, &'static str);

const FILE_SIZE: Named = (Resource::RLIMIT_FSIZE, "Max file size");
const PROCESSES: Named = (Resource::RLIMIT_NPROC, "Max processes");
const OPEN_FILES: Named = (Resource::RLIMIT_NOFILE, "Max open files");
const MESSAGES: Named = (Resource::RLIMIT_MSGQUEUE, "Max msgqueue size");

/// The limits of a role: resource and the most it may have. Log lines go to a pipe, which RLIMIT_FSIZE does not cover.
fn limits_of(role: Role) -> &'static [(Named, u64)] {
    const MIB: u64 = 1 << 20;
    match role {
        // No new descriptors but accepted connections, no files, no processes.
        Role::Front => &[(FILE_SIZE, 0), (PROCESSES, 0), (OPEN_FILES, 256), (MESSAGES, 0)],
        // Its state file has two slots of a few MiB.
        Role::Vault => &[(FILE_SIZE, 64 * MIB), (PROCESSES, 0), (OPEN_FILES, 16), (MESSAGES, 0)],
        // The keystore is a few KiB; age asks for 128 MiB of memory at most twice.
        Role::Unseal => &[(FILE_SIZE, MIB), (PROCESSES, 0), (OPEN_FILES, 16), (MESSAGES, 0)],
        // Connections need descriptors; threads of the same uid are counted over the host, so no process limit here: the
        // filter has no fork.
        Role::Noded => &[(OPEN_FILES, 16_384), (MESSAGES, 0)],
        // Each node that waits for offers has a connection open.
        Role::Directory => &[(OPEN_FILES, 65_536), (MESSAGES, 0)],
        // The copy from which a foreign program is started has a high number. What it may take of all else is said at its start
        // (`limits`), and may be less of these, never more.
        Role::Module => &[(OPEN_FILES, 1024), (MESSAGES, 0)],
        Role::Supervisor => &[],
    }
}

/// The most that a role may have of each resource, by its name in `/proc/<pid>/limits`; no dumps in any role.
pub(crate) fn limits_seen(role: Role) -> impl Iterator<Item = (&'static str, u64)> {
    limits_of(role).iter().map(|((_, name), most)| (*name, *most)).chain([("Max core file size", 0)])
}

pub(crate) fn limits(role: Role) -> Result<Layer> {
    let read = |resource| getrlimit(resource).map_err(Error::kernel(LayerName::Limits, "getrlimit"));
    let mut held = 0;
    for ((resource, _), most) in limits_of(role) {
        let most = read(*resource)?.1.min(*most);
        setrlimit(*resource, most, most).map_err(Error::kernel(LayerName::Limits, "setrlimit"))?;
        held += usize::from(read(*resource)? == (most, most));
    }
    Ok(Layer::new(LayerName::Limits, format!("{} set", limits_of(role).len()), format!("{held} set")))
}

/// Lowers a limit further, for good.
pub(crate) fn lower(resource: Resource, most: u64) -> Result<()> {
    let held = getrlimit(resource).map_err(Error::kernel(LayerName::Resources, "getrlimit"))?.1.min(most);
    setrlimit(resource, held, held).map_err(Error::kernel(LayerName::Resources, "setrlimit"))
}

/// Empties the bounding set, locks securebits, then empties the other four sets.
pub(crate) fn drop_capabilities() -> Result<Layer> {
    let failed = |call| Error::io(LayerName::Capabilities, call);
    for number in 0..CAPABILITIES {
        match sys::prctl(libc::PR_CAPBSET_DROP, number, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            result => result.map_err(failed("prctl(PR_CAPBSET_DROP)"))?,
        };
    }
    // Every bit and its lock, but for KEEP_CAPS, which is locked as off.
    let bits = (libc::SECBIT_NOROOT | libc::SECBIT_NO_SETUID_FIXUP | libc::SECBIT_NO_CAP_AMBIENT_RAISE) as u64;
    let locks = (libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED) as u64;
    sys::prctl(libc::PR_SET_SECUREBITS, bits | locks, 0).map_err(failed("prctl(PR_SET_SECUREBITS)"))?;
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)
        .map_err(failed("prctl(PR_CAP_AMBIENT)"))?;
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(capability_error("capset"))?;
    }
    let mut left = 0;
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted, CapSet::Bounding, CapSet::Ambient] {
        left += caps::read(None, set).map_err(capability_error("capget"))?.len();
    }
    let seen = sys::prctl(libc::PR_GET_SECUREBITS, 0, 0).map_err(failed("prctl(PR_GET_SECUREBITS)"))?;
    let locked = if seen as u64 == bits | locks { "locked" } else { "open" };
    Ok(Layer::new(
        LayerName::Capabilities,
        "0 in five sets, securebits locked",
        format!("{left} in five sets, securebits {locked}"),
    ))
}

/// `PR_SET_MDWE`: no mapping gains the right to execute.
pub(crate) fn no_executable_memory() -> Result<Layer> {
    const REFUSE_EXEC_GAIN: u64 = 1;
    sys::prctl(libc::PR_SET_MDWE, REFUSE_EXEC_GAIN, 0)
        .map_err(Error::io(LayerName::MemoryExec, "prctl(PR_SET_MDWE)"))?;
    let seen = sys::prctl(libc::PR_GET_MDWE, 0, 0).map_err(Error::io(LayerName::MemoryExec, "prctl(PR_GET_MDWE)"))?;
    Ok(Layer::new(
        LayerName::MemoryExec,
        "refused",
        if seen as u64 == REFUSE_EXEC_GAIN { "refused" } else { "allowed" },
    ))
}

pub(crate) fn no_new_privileges() -> Result<Layer> {
    let failed = |call| Error::kernel(LayerName::NoNewPrivs, call);
    prctl::set_no_new_privs().map_err(failed("prctl"))?;
    let seen = if prctl::get_no_new_privs().map_err(failed("prctl"))? { "set" } else { "not set" };
    Ok(Layer::new(LayerName::NoNewPrivs, "set", seen))
}

/// For good: no filter of ours lets `prctl` set it again.
pub(crate) fn not_dumpable() -> Result<Layer> {
    let failed = |call| Error::kernel(LayerName::NotDumpable, call);
    prctl::set_dumpable(false).map_err(failed("prctl"))?;
    let seen = if prctl::get_dumpable().map_err(failed("prctl"))? { "dumpable" } else { "not dumpable" };
    Ok(Layer::new(LayerName::NotDumpable, "not dumpable", seen))
}
