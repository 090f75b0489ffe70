//! Descriptors handled with the kernel's strict forms: peers of AF_UNIX sockets, sealed memory files, paths without
//! symbolic links, directories made durable. Policy-free; each function is one or two system calls.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair};
use nix::sys::stat::Mode;

use crate::sys;

/// Who is at the other end of an AF_UNIX socket, as the kernel noted when it connected. A uid that this process's user
/// namespace does not map reads as 65534: a second check as root, never the only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id.
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// `SO_PEERCRED`.
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let found = getsockopt(&socket, PeerCredentials)?;
    Ok(Peer { pid: found.pid(), uid: found.uid(), gid: found.gid() })
}

/// One process, by a number that the kernel gives to no other until the machine is started again: the inode of its pidfds. It says
/// who, unlike a process id, which is given anew, and unlike a uid, which many may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId(u64);

impl ProcessId {
    /// Bytes of one.
    pub const BYTES: usize = 8;

    /// Who connected (`SO_PEERPIDFD`): also from inside a user namespace that does not map its uid.
    ///
    /// # Errors
    /// The kernel's; where the process is gone, and on kernels that know no such option.
    pub fn of_peer(socket: impl AsFd) -> io::Result<Self> {
        Self::of(sys::peer_pidfd(socket.as_fd())?)
    }

    /// This process.
    ///
    /// # Errors
    /// The kernel's.
    pub fn this() -> io::Result<Self> {
        Self::of_peer(stream_pair()?.0)
    }

    /// The process of a pidfd that is another one than this process.
    ///
    /// # Errors
    /// `Unsupported` on a kernel that gives all pidfds one inode: it would tell nobody apart.
    pub fn of_other(pidfd: impl AsFd) -> io::Result<Self> {
        let other = Self::of(pidfd)?;
        if other == Self::this()? { Err(io::ErrorKind::Unsupported.into()) } else { Ok(other) }
    }

    fn of(pidfd: impl AsFd) -> io::Result<Self> {
        sys::inode(pidfd.as_fd()).map(Self)
    }

    /// For a message.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0.to_le_bytes()
    }

    /// From a message.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }
}

/// A connected pair of packet sockets (one message a read), for the barrier.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A connected pair of stream sockets, for frames.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A memory file with `content` that nobody can change any more, positioned at its start.
pub fn sealed_file(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let mut file = File::from(memfd_create(name.as_c_str(), flags)?);
    file.write_all(content)?;
    seal(&file)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

/// How often a memory file is sealed anew while the kernel says that it is busy, and the pause before each.
const SEAL_TRIES: u32 = 40;
const SEAL_PAUSE: Duration = Duration::from_millis(5);

/// Makes a memory file's content and length final.
///
/// # Errors
/// The kernel's. "Busy" is one only when it lasts: the kernel says so as well while it has itself taken hold of a page for a moment,
/// to move it or to write it back, and it gives up after less than a tenth of a second.
pub fn seal(file: impl AsFd) -> nix::Result<()> {
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    while_busy(|| fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map(drop))
}

fn while_busy(mut attempt: impl FnMut() -> nix::Result<()>) -> nix::Result<()> {
    for _ in 1..SEAL_TRIES {
        match attempt() {
            Err(Errno::EBUSY) => std::thread::sleep(SEAL_PAUSE),
            done => return done,
        }
    }
    attempt()
}

/// Opens `path` with no symbolic link anywhere in it. `mode` counts only when `flags` create.
pub fn open_no_symlinks(path: &Path, flags: OFlag, mode: u32) -> io::Result<File> {
    open(AT_FDCWD, path, flags, mode, libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS)
}

/// Opens `path` as a place, neither for reading nor for writing; `links`: whether symbolic links are followed.
pub(crate) fn open_place(path: &Path, links: bool) -> io::Result<File> {
    if links {
        // Not openat2, which asks for nothing here and is answered with ENOSYS below a service manager that restricts set-uid bits.
        return Ok(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?.into());
    }
    open_no_symlinks(path, OFlag::O_PATH, 0)
}

/// Opens `path` below `directory`: no symbolic link, and no way out through `..` or an absolute path.
pub fn open_beneath(directory: impl AsFd, path: &Path, flags: OFlag, mode: u32) -> io::Result<File> {
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
    open(directory.as_fd(), path, flags, mode, resolve)
}

fn open(directory: BorrowedFd<'_>, path: &Path, flags: OFlag, mode: u32, resolve: u64) -> io::Result<File> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = flags | OFlag::O_CLOEXEC;
    let mode = if flags.contains(OFlag::O_CREAT) { mode } else { 0 };
    sys::openat2(directory, &path, flags.bits(), mode, resolve).map(File::from)
}

/// Makes names created, renamed or removed in `directory` durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    open_no_symlinks(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn sealed_file_reads_and_refuses_writing() {
        let mut file = File::from(sealed_file("test", b"content").unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert_eq!(file.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn a_file_that_is_busy_is_sealed_once_it_is_not() {
        let busy_for = |times: u32| {
            let mut calls = 0;
            let done = while_busy(|| {
                calls += 1;
                if calls > times { Ok(()) } else { Err(Errno::EBUSY) }
            });
            (done, calls)
        };
        assert_eq!(busy_for(0), (Ok(()), 1));
        assert_eq!(busy_for(SEAL_TRIES - 1), (Ok(()), SEAL_TRIES));
        assert_eq!(busy_for(SEAL_TRIES), (Err(Errno::EBUSY), SEAL_TRIES), "and not for ever");
        assert_eq!(while_busy(|| Err(Errno::EPERM)), Err(Errno::EPERM));
    }

    #[test]
    fn symbolic_links_and_ways_out_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(place.path()).unwrap();
        std::fs::write(real.join("file"), b"x").unwrap();
        symlink("file", real.join("link")).unwrap();
        open_no_symlinks(&real.join("file"), OFlag::O_RDONLY, 0).unwrap();
        let refused = open_no_symlinks(&real.join("link"), OFlag::O_RDONLY, 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ELOOP));
        let directory = File::open(&real).unwrap();
        open_beneath(&directory, Path::new("file"), OFlag::O_RDONLY, 0).unwrap();
        for (path, errno) in [("../etc/passwd", libc::EXDEV), ("/etc/passwd", libc::EXDEV), ("link", libc::ELOOP)] {
            let refused = open_beneath(&directory, Path::new(path), OFlag::O_RDONLY, 0).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(errno), "{path}");
        }
        sync_directory(&real).unwrap();
    }

    #[test]
    fn peer_of_a_pair_is_this_process() {
        let (near, _far) = stream_pair().unwrap();
        assert_eq!(peer(&near).unwrap().pid, std::process::id() as i32);
        assert_eq!(ProcessId::of_peer(&near).unwrap(), ProcessId::this().unwrap());
    }

    #[test]
    fn a_process_is_told_from_every_other() {
        let spawned = || {
            let spec = crate::spawn::SpawnSpec::new("/bin/true").unwrap();
            crate::spawn::spawn(spec).unwrap()
        };
        let (one, two) = (spawned(), spawned());
        let of = |child| ProcessId::of_other(child).unwrap();
        assert_eq!(of(&one), of(&one));
        assert_ne!(of(&one), of(&two));
        // Also one that has ended: its number is nobody's any more.
        let ended = of(&one);
        one.wait().unwrap();
        two.wait().unwrap();
        assert_eq!(of(&one), ended);
        let (near, _far) = stream_pair().unwrap();
        assert!(ProcessId::of_other(sys::peer_pidfd(near.as_fd()).unwrap()).is_err(), "this process is no other");
        assert_eq!(ProcessId::from_bytes(ended.to_bytes()), ended);
    }
}
