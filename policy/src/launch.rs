//! Foreign programs: started by `openred-launch`, which puts itself into a cage and then becomes the program. The program need
//! not know of it, and cannot be trusted to confine itself.
//!
//! [`Launch`] is the supervisor's side: it starts the launcher with the program's descriptor and the digest that it must have. The
//! launcher copies the program to a sealed memory file while it checks the digest, so that what runs is what was checked;
//! confines itself as [`Role::Module`]; and executes the copy by its descriptor, which closes with that. Nobody but the owner
//! may read the copy, and even he may not: so the kernel keeps the process closed to its own uid (not dumpable). A script is
//! no program: name its interpreter.
//!
//! The program has the descriptors that it was given, the arguments and variables that it was given, its kept paths and its
//! runtime (loader, libraries), and nothing else: no network, no other process. Of what it may read and execute, it may write
//! nothing; of what it may write, it may execute nothing. Should it put a file of its runtime at the copy's number and
//! execute that, then it is in the same cage.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::execveat;
use sha2::{Digest as _, Sha256};

use crate::confine::{Cage, Identity, KeptPath, Unconfined};
use crate::error::{Error, Result};
use crate::layer::LayerName;
use crate::limits::{Held, Rlimited, parse_rlimit};
use crate::role::Role;
use crate::self_check::Descriptors;
use crate::spawn::{Child, MAX_DESCRIPTORS, SpawnSpec, spawn};
use crate::{barrier, privileges, socket, sys};

/// Largest program: above every runtime that is one file. It is held in memory once.
pub const MOST: u64 = 256 << 20;

/// The descriptor from which the program is executed. The filter allows this number alone; above every table that is passed.
pub(crate) const PROGRAM: RawFd = 120;

/// The folder of [`KeptPath::door`] in the program's root.
pub(crate) const DOOR_FOLDER: &str = "@";

/// The name of the socket in that folder, outside as inside.
pub const DOOR_SOCKET: &str = "s";

/// The one socket that the program may connect to, as it names it: its working directory is its root, and it cannot change that. The kernel
/// reads no more of an address than its length says, and the filter allows `connect` with the length of this path alone. So no socket that
/// lies in a folder which the program may read is within its reach: every path to one has more bytes (see [`NAME_BYTES`]).
pub const DOOR: &str = "@/s";

/// At least so many bytes has the first name of a path that a foreign program is granted.
pub const NAME_BYTES: usize = 3;

/// SHA-256 of a program's file.
pub type Digest = [u8; 32];

/// Where a distribution's loader and its libraries are, those of them that exist.
const RUNTIME: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

/// Bytes that are copied at a time.
const STEP: usize = 1 << 16;

// ---------------------------------------------------------------- the supervisor's side

/// A foreign program to start, and with what.
#[derive(Debug)]
pub struct Launch {
    spec: SpawnSpec,
    program: OwnedFd,
    digest: Digest,
    given: usize,
    rlimits: Vec<Rlimited>,
    kept: Vec<KeptPath>,
    variables: Vec<OsString>,
    arguments: Vec<OsString>,
}

impl Launch {
    /// Starts `program` through `launcher` (the path of `openred-launch`) if its SHA-256 is `digest`. `name` is its argument 0; its
    /// environment is empty.
    pub fn new(launcher: &Path, program: impl AsFd, digest: Digest, name: impl AsRef<OsStr>) -> Result<Self> {
        let program = program.as_fd().try_clone_to_owned().map_err(Error::io(LayerName::Spawn, "fcntl"))?;
        let arguments = vec![name.as_ref().to_owned()];
        let spec = SpawnSpec::new(launcher)?;
        let (kept, variables) = (Vec::new(), Vec::new());
        Ok(Self { spec, program, digest, given: 0, rlimits: Vec::new(), kept, variables, arguments })
    }

    /// Adds an argument of the program.
    #[must_use]
    pub fn argument(mut self, text: impl AsRef<OsStr>) -> Self {
        self.arguments.push(text.as_ref().to_owned());
        self
    }

    /// Adds a variable of the program's environment. The launcher itself does not see it as one.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push(format!("{name}={value}").into());
        self
    }

    /// Gives the program the next descriptor number, counted from 0; the first three are needed. The source stays open here.
    pub fn descriptor(mut self, source: impl AsFd) -> Result<Self> {
        if self.given + 2 >= MAX_DESCRIPTORS {
            return Err(Error::MisuseTable); // barrier and program come behind
        }
        self.spec = self.spec.descriptor(source)?;
        self.given += 1;
        Ok(self)
    }

    /// Lets the program see a path: [`KeptPath::runtime`] for what it executes, [`KeptPath::granted`] for what it reads (one that is readable
    /// is taken as granted), [`KeptPath::door`] for whom it calls, the others for its state.
    #[must_use]
    pub fn keep(mut self, path: KeptPath) -> Self {
        self.kept.push(path);
        self
    }

    /// Holds the program to limits. What of it is the kernel's groups' matter, [`Held::enter`] does.
    #[must_use]
    pub fn limits(mut self, held: &Held) -> Self {
        self.rlimits = held.rlimits();
        self
    }

    /// As root: the uid and gid that the program gets.
    pub fn identity(mut self, identity: Option<Identity>) -> Result<Self> {
        self.spec = self.spec.identity(identity)?;
        Ok(self)
    }

    /// The paths that it keeps, for [`crate::observe::Expected`].
    #[must_use]
    pub fn kept(&self) -> &[KeptPath] {
        &self.kept
    }

    /// Starts it. The barrier's stages are those of any child but for `ready`: the end of the barrier ([`Error::PeerGone`]) after
    /// `confined` says that the program runs. The rule of [`spawn`] on threads holds.
    pub fn start(self) -> Result<(Child, barrier::Host)> {
        if self.given < 3 {
            return Err(Error::MisuseTable);
        }
        let (host, far) = barrier::Host::pair()?;
        let mut spec = self.spec.descriptor(&far)?.descriptor(&self.program)?;
        spec = spec.argument(hexadecimal(&self.digest))?.argument(self.given.to_string())?;
        for kept in &self.kept {
            let option = match (kept.writable, kept.executable) {
                (true, _) => "--state",
                (false, true) => "--runtime",
                (false, false) if kept.is_door() => "--door",
                (false, false) => "--read",
            };
            spec = spec.argument(option)?.argument(&kept.path)?;
        }
        for (name, _, most) in &self.rlimits {
            spec = spec.argument("--limit")?.argument(format!("{name}={most}"))?;
        }
        for variable in &self.variables {
            spec = spec.argument("--variable")?.argument(variable)?;
        }
        spec = spec.argument("--")?;
        for argument in &self.arguments {
            spec = spec.argument(argument)?;
        }
        spawn(spec).map(|child| (child, host))
    }
}

/// What a program that is linked against the distribution's libraries needs of them.
#[must_use]
pub fn runtime() -> Vec<KeptPath> {
    RUNTIME.map(Path::new).into_iter().filter(|place| place.is_dir()).map(KeptPath::runtime).collect()
}

/// SHA-256 of a file's content, for [`Launch::new`].
pub fn digest_of(file: &File) -> std::io::Result<Digest> {
    let (mut file, mut hash, mut buffer) = (file, Sha256::new(), vec![0; STEP]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&buffer[..length]),
        }
    }
}

fn hexadecimal(digest: &Digest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

// ---------------------------------------------------------------- the launcher's side

/// What the launcher was told on its command line.
struct Plan {
    digest: String,
    given: RawFd,
    rlimits: Vec<Rlimited>,
    kept: Vec<KeptPath>,
    variables: Vec<CString>,
    arguments: Vec<CString>,
}

impl Plan {
    fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self> {
        let mut next = || words.next().ok_or(Error::MisuseText);
        let digest = next()?.into_string().map_err(|_| Error::MisuseText)?;
        let given = next()?.to_str().and_then(|text| text.parse().ok()).ok_or(Error::MisuseTable)?;
        let text = |word: OsString| CString::new(word.as_bytes()).map_err(|_| Error::MisuseText);
        let (mut rlimits, mut kept, mut variables) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            match next()?.to_str() {
                Some("--state") => kept.push(KeptPath::writable(&PathBuf::from(next()?))),
                Some("--runtime") => kept.push(KeptPath::runtime(&PathBuf::from(next()?))),
                Some("--read") => kept.push(KeptPath::granted(&PathBuf::from(next()?))),
                Some("--door") => kept.push(KeptPath::door(&PathBuf::from(next()?))),
                Some("--limit") => {
                    let limit = next()?;
                    rlimits.push(limit.to_str().and_then(parse_rlimit).ok_or(Error::MisuseText)?);
                }
                Some("--variable") => variables.push(text(next()?)?),
                Some("--") => break,
                _ => return Err(Error::MisuseText),
            }
        }
        let arguments = words.map(text).collect::<Result<Vec<_>>>()?;
        Ok(Self { digest, given, rlimits, kept, variables, arguments })
    }
}

/// Confines this process and becomes the program. Comes back only with the reason why not, which the supervisor has been told too.
pub fn become_program(words: impl Iterator<Item = OsString>) -> Result<Infallible> {
    let plan = Plan::parse(words)?;
    let numbers: Vec<RawFd> = (0..plan.given + 2).collect();
    let mut start = Unconfined::enter(Role::Module, Descriptors::Exactly(&numbers))?;
    let barrier = start.barrier(plan.given)?;
    let source = start.take(plan.given + 1)?;
    run(start, &barrier, source, &plan).inspect_err(|error| barrier.failed(error))
}

fn run(start: Unconfined, barrier: &barrier::Barrier, source: OwnedFd, plan: &Plan) -> Result<Infallible> {
    let program = checked_copy(source.into(), &plan.digest)?;
    let cage = Cage::new(Role::Module, Identity::from_env()?);
    let separated = start.separate(&plan.kept.iter().cloned().fold(cage, Cage::keep))?;
    barrier.namespaced()?;
    let restricted = separated.restrict()?;
    // Behind the role's own, which are wider, and before the filter, which lets none be set.
    plan.rlimits.iter().try_for_each(|(_, resource, most)| privileges::lower(*resource, *most))?;
    let confined = restricted.seal()?;
    barrier.confined(confined.report())?;
    match execveat(&program, c"", &plan.arguments, &plan.variables, AtFlags::AT_EMPTY_PATH) {
        Err(Errno::ENOENT) => Err(Error::LocalProgram { fault: "a script, or a loader that is not in its runtime" }),
        Err(errno) => Err(Error::kernel(LayerName::Spawn, "execveat")(errno)),
    }
}

/// Copies the program to a memory file that nobody can change or read, at the number that the filter allows, if it has the digest.
fn checked_copy(mut source: File, digest: &str) -> Result<OwnedFd> {
    let failed = |call| Error::kernel(LayerName::Spawn, call);
    let io = |call| Error::io(LayerName::Spawn, call);
    const EXECUTABLE: MFdFlags = MFdFlags::from_bits_retain(libc::MFD_EXEC);
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | EXECUTABLE;
    let mut copy = File::from(memfd_create(c"program", flags).map_err(failed("memfd_create"))?);
    let (mut hash, mut buffer, mut total) = (Sha256::new(), vec![0; STEP], 0u64);
    loop {
        let length = source.read(&mut buffer).map_err(io("read the program"))?;
        if length == 0 {
            break;
        }
        total += length as u64;
        if total > MOST {
            return Err(Error::LocalProgram { fault: "too large" });
        }
        hash.update(&buffer[..length]);
        copy.write_all(&buffer[..length]).map_err(io("copy the program"))?;
    }
    if hexadecimal(&hash.finalize().into()) != digest {
        return Err(Error::LocalProgram { fault: "its digest is another" });
    }
    // Opened anew for reading: what is open for writing is not executed.
    let reading = File::open(format!("/proc/self/fd/{}", copy.as_raw_fd())).map_err(io("open the copy"))?;
    copy.set_permissions(Permissions::from_mode(0o111)).map_err(io("fchmod"))?;
    socket::seal(&copy).map_err(failed("fcntl(F_ADD_SEALS)"))?;
    drop(copy);
    let number = fcntl(&reading, FcntlArg::F_DUPFD_CLOEXEC(PROGRAM)).map_err(failed("fcntl(F_DUPFD_CLOEXEC)"))?;
    let program = sys::own(number);
    if number == PROGRAM { Ok(program) } else { Err(Error::MisuseTable) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn plan(words: &[&str]) -> Result<Plan> {
        Plan::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn a_command_line_is_read_and_garbage_is_refused() {
        let kept = ["--state", "/s", "--runtime", "/lib", "--read", "/r", "--door", "/d"];
        let rest = ["--variable", "A=b", "--", "x", "--", "y"];
        let found = plan(&[&["ab", "3"][..], &kept[..], &rest[..]].concat()).unwrap();
        assert_eq!((found.digest.as_str(), found.given), ("ab", 3));
        let (state, lib, read, door) = (Path::new("/s"), Path::new("/lib"), Path::new("/r"), Path::new("/d"));
        let kept = [KeptPath::writable(state), KeptPath::runtime(lib), KeptPath::granted(read), KeptPath::door(door)];
        assert_eq!(found.kept, kept);
        assert_eq!(found.kept[3].inside().join(DOOR_SOCKET), Path::new("/").join(DOOR));
        assert_eq!(found.variables, [CString::new("A=b").unwrap()]);
        assert_eq!(found.arguments, ["x", "--", "y"].map(|text| CString::new(text).unwrap()));
        for words in [
            &["ab"][..],
            &["ab", "x"],
            &["ab", "3"],
            &["ab", "3", "--state"],
            &["ab", "3", "--all", "--"],
            &["ab", "3", "--limit", "core=1", "--"],
        ] {
            assert!(plan(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn a_program_with_another_digest_is_refused() {
        let file = File::open("/bin/true").unwrap();
        let digest = hexadecimal(&digest_of(&file).unwrap());
        let copy = checked_copy(File::open("/bin/true").unwrap(), &digest).unwrap();
        assert_eq!(copy.as_raw_fd(), PROGRAM);
        drop(copy);
        let refused = checked_copy(File::open("/bin/cat").unwrap(), &digest).unwrap_err();
        assert!(refused.to_string().starts_with("program: its digest is another"), "{refused}");
    }
}
