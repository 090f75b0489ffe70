//! Every unsafe operation of the project: one system call or one promise to the allocator a function, each with the
//! precondition that makes it sound. No policy here: callers decide what is asked, this file only asks it.

#![allow(unsafe_code, reason = "the one file of the project that may")]

use std::alloc::{GlobalAlloc, Layout};
use std::arch::asm;
use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_void};
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{NonNull, null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow};
use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;

use crate::arena::{Arena, CAPACITY, GUARD, KEYS, Mapped, STACK};
use crate::spawn::Exit;

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

// ---------------------------------------------------------------- descriptors

/// Takes ownership of an inherited descriptor.
pub(crate) fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the caller (the descriptor table) found `number` open at start and hands each number out once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Closes every descriptor from `first` to `last`. Only for numbers that nothing in this process owns yet.
pub(crate) fn close_range(first: c_uint, last: c_uint) -> io::Result<()> {
    // SAFETY: passes integers only; called at start, when no owner of these numbers exists in this process.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// `openat2` with the kernel's own resolution rules.
pub(crate) fn openat2(dir: BorrowedFd<'_>, path: &CStr, flags: c_int, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    // SAFETY: `open_how` is plain integers, for which all zeroes is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags as u64;
    how.mode = u64::from(mode);
    how.resolve = resolve;
    // SAFETY: `path` is NUL-terminated, `how` lives across the call and its true size is passed.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), &raw const how, size_of::<libc::open_how>())
    })?;
    Ok(own(fd as RawFd))
}

/// A pidfd for the process at the other end of an AF_UNIX socket (`SO_PEERPIDFD`).
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERPIDFD);
    let mut fd: c_int = -1;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of `fd`, which outlives the call.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut fd).cast(), &raw mut length) };
    check(c_long::from(result))?;
    Ok(own(fd))
}

/// The inode of what a descriptor names. By the call itself: the C library's `fstat` may look a path up.
pub(crate) fn inode(descriptor: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: `stat` is plain integers, for which all zeroes is a valid value.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `stat` of its own layout, which libc's is on this architecture, and `found` outlives the call.
    check(unsafe { libc::syscall(libc::SYS_fstat, descriptor.as_raw_fd(), &raw mut found) })?;
    Ok(found.st_ino)
}

// ---------------------------------------------------------------- mounts

/// A detached copy of the mount under an open path (`open_tree` with `OPEN_TREE_CLONE`).
pub(crate) fn clone_mount(place: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as c_uint;
    // SAFETY: the empty path is NUL-terminated; the rest are integers.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), c"".as_ptr(), flags) })?;
    Ok(own(fd as RawFd))
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Adds mount attributes (`MOUNT_ATTR_…`) to a detached mount.
pub(crate) fn set_mount_attributes(mount: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    let attributes = MountAttributes { set, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the empty path is NUL-terminated; `attributes` has the kernel's layout and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })
    .map(drop)
}

/// Attaches a detached mount at `target`, which is relative to the working directory.
pub(crate) fn attach_mount(mount: BorrowedFd<'_>, target: &CStr) -> io::Result<()> {
    const FROM_EMPTY_PATH: c_uint = 4; // MOVE_MOUNT_F_EMPTY_PATH
    // SAFETY: both paths are NUL-terminated; the rest are integers.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            FROM_EMPTY_PATH,
        )
    })
    .map(drop)
}

// ---------------------------------------------------------------- the process itself

/// `prctl` for options whose arguments are integers.
pub(crate) fn prctl(option: c_int, first: u64, second: u64) -> io::Result<c_int> {
    // SAFETY: callers use options of which every argument is an integer (capability bounding set, ambient set,
    // securebits, MDWE); unused arguments are 0 as the kernel demands.
    let result = unsafe { libc::prctl(option, first, second, 0u64, 0u64) };
    check(c_long::from(result)).map(|value| value as c_int)
}

/// glibc: one heap for all threads. Further heaps open a file under load, which no filter of ours allows.
pub(crate) fn one_malloc_arena() -> bool {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets an integer parameter; called before a second thread exists.
    return unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 1;
    #[cfg(not(target_env = "gnu"))]
    true
}

/// glibc: gives free pages back to the kernel, wherever in the heap they lie; by itself it gives back those at its end alone.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer; the allocator locks its heap and touches nothing that is in use.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Ends the process with `exit_group`.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::_exit(code) }
}

/// Gives fatal signals back to the kernel, so that a fault under the filter ends in its own signal and not in SIGSYS.
pub(crate) fn default_fault_signals() -> io::Result<()> {
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT] {
        default_signal(signal)?;
    }
    Ok(())
}

fn default_signal(signal: c_int) -> io::Result<()> {
    // SAFETY: `sigaction` is plain data, for which all zeroes is valid: SIG_DFL, empty mask, no flags.
    let action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: sets a disposition that holds no pointer; the old one is not asked for.
    check(c_long::from(unsafe { libc::sigaction(signal, &raw const action, null_mut()) })).map(drop)
}

/// Runs `act` in a forked child, which ends with its result as exit code, and says how it ended. For probes that may end the
/// process. Where there is an arena `act` must not touch the heap: an arena is shared with the child, or empty there.
pub(crate) fn in_child(act: impl FnOnce() -> c_int) -> io::Result<Exit> {
    // SAFETY: called while this process has one thread, so the child may run any code; it ends in `exit_now`.
    let pid = check(c_long::from(unsafe { libc::fork() }))?;
    if pid == 0 {
        exit_now(act());
    }
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call; `pid` is our own child, which nobody else waits for.
        match check(c_long::from(unsafe { libc::waitpid(pid as c_int, &raw mut status, 0) })) {
            Ok(_) if libc::WIFEXITED(status) => return Ok(Exit::Code(libc::WEXITSTATUS(status))),
            Ok(_) => return Ok(Exit::Signal(libc::WTERMSIG(status))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

// ---------------------------------------------------------------- starting a child

/// All that a new child needs, made before the fork: after it nothing may allocate. Where there is an arena there is no fork.
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a CStr,
    pub(crate) arguments: &'a [CString],
    pub(crate) environment: &'a [CString],
    /// Sources of descriptors 0..n, all above the table's length.
    pub(crate) table: &'a [RawFd],
    /// Where the child writes its errno if it reaches no new program; above the table's length, close-on-exec.
    pub(crate) failure: RawFd,
}

#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([null()]).collect()
}

/// Forks and executes. Returns the process id and its pidfd.
pub(crate) fn launch(plan: &Launch<'_>) -> io::Result<(i32, OwnedFd)> {
    let (arguments, environment) = (pointers(plan.arguments), pointers(plan.environment));
    let mut pidfd: c_int = -1;
    let clone = CloneArguments {
        // Not CLONE_VM. CLONE_VFORK only stops this thread until the new program runs.
        flags: (libc::CLONE_PIDFD | libc::CLONE_VFORK) as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArguments::default()
    };
    let parent = std::process::id() as c_int;
    // A handler of ours must not run in the child before `exec`.
    let old = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: no CLONE_VM, so the child has its own copy of memory; it calls only async-signal-safe functions until
    // `execve`. `clone` and `pidfd` outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const clone, size_of::<CloneArguments>()) };
    if pid == 0 {
        let errno = become_program(plan, &arguments, &environment, parent);
        // SAFETY: writes four bytes of a local; the number is where `become_program` put the pipe.
        unsafe { libc::write(plan.table.len() as c_int, (&raw const errno).cast::<c_void>(), size_of::<c_int>()) };
        exit_now(127);
    }
    let result = check(pid);
    old.thread_set_mask()?;
    Ok((result? as i32, own(pidfd)))
}

/// In the child: returns only on failure, with the errno. No allocation, no lock.
fn become_program(
    plan: &Launch<'_>,
    arguments: &[*const c_char],
    environment: &[*const c_char],
    parent: c_int,
) -> c_int {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    let last = plan.table.len() as c_int;
    // SAFETY: integers only.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0u64, 0u64, 0u64) } < 0 {
        return errno();
    }
    // SAFETY: takes no argument. The parent may have died before the line above.
    if unsafe { libc::getppid() } != parent {
        return libc::ESRCH;
    }
    for signal in 1..=64 {
        let _ = default_signal(signal); // KILL, STOP and glibc's own two refuse, and need not be changed.
    }
    // SAFETY: a zeroed signal set is the empty set on Linux.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is a valid set.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, null_mut()) };
    // SAFETY: integers only; sources lie above `last`, so no source is overwritten before it is copied.
    if unsafe { libc::dup3(plan.failure, last, libc::O_CLOEXEC) } < 0 {
        return errno();
    }
    for (number, source) in plan.table.iter().enumerate() {
        // SAFETY: as above.
        if unsafe { libc::dup2(*source, number as c_int) } < 0 {
            return errno();
        }
    }
    if let Err(error) = close_range(last as c_uint + 1, c_uint::MAX) {
        return error.raw_os_error().unwrap_or(libc::EIO);
    }
    // SAFETY: program, argument and environment arrays are NUL-terminated and live in this copy of memory.
    unsafe { libc::execve(plan.program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    errno()
}

/// Sends a signal to exactly the process that the pidfd names.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    // SAFETY: no siginfo is passed; the rest are integers.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null::<c_void>(), 0) })
        .map(drop)
}

// ---------------------------------------------------------------- the arena

/// The state behind [`Arena`]: a spin lock, the allocator, and whether memory was claimed.
pub(crate) struct Heap {
    locked: AtomicBool,
    inner: UnsafeCell<Inner>,
}

struct Inner {
    talc: Talc<Manual, DefaultBinning>,
    mapped: bool,
}

// SAFETY: `inner` is reached only between `lock` and `unlock`.
unsafe impl Sync for Heap {}

impl Heap {
    pub(crate) const fn new() -> Self {
        let inner = UnsafeCell::new(Inner { talc: Talc::new(Manual), mapped: false });
        Self { locked: AtomicBool::new(false), inner }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        while self.locked.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::hint::spin_loop();
        }
        // SAFETY: the lock is held, so this is the only reference; `act` cannot allocate through this heap again.
        let result = act(unsafe { &mut *self.inner.get() });
        self.locked.store(false, Ordering::Release);
        result
    }
}

/// Maps the arena between two guard pages. Its first part is secret memory, as much of it as the limit on locked memory
/// allows (from [`KEYS`] on); the rest, if any, is ordinary memory that is left out of dumps. Without secret memory as much of the
/// start as may be is locked (SANDBOX, step 7). Returns the base and what the kernel gave.
fn map_arena() -> Option<(NonNull<u8>, Mapped)> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory.
    let area = unsafe { libc::mmap(null_mut(), CAPACITY + 2 * GUARD, libc::PROT_NONE, flags, -1, 0) };
    if area == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: GUARD is smaller than the area.
    let base = unsafe { area.cast::<u8>().add(GUARD) };
    let parts = || (0..4).map(|step| CAPACITY >> step).chain([KEYS]);
    let secret = parts().find(|length| map_secret(base, *length)).unwrap_or(0);
    // SAFETY: `secret` is at most CAPACITY.
    map_plain(unsafe { base.add(secret) }, CAPACITY - secret)?;
    let locked = if secret == 0 { parts().find(|length| lock(base, *length)).unwrap_or(0) } else { 0 };
    // SAFETY: seals the area that was mapped here; nothing unmaps or re-protects it later. A kernel without mseal refuses.
    let sealed = unsafe { libc::syscall(libc::SYS_mseal, area, CAPACITY + 2 * GUARD, 0) } == 0;
    NonNull::new(base).map(|base| (base, Mapped { secret, locked, sealed }))
}

/// Keeps `length` bytes out of the swap.
fn lock(base: *mut u8, length: usize) -> bool {
    // SAFETY: memory that `map_arena` has mapped; locking changes none of its bytes.
    unsafe { libc::mlock(base.cast(), length) == 0 }
}

fn map_secret(base: *mut u8, length: usize) -> bool {
    // SAFETY: integer argument.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if fd < 0 {
        return false;
    }
    let fd = own(fd as RawFd);
    // SAFETY: integers only.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), length as libc::off_t) } < 0 {
        return false;
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: `base..base+length` lies inside the area that the caller reserved and that nothing uses yet.
    let result = unsafe { libc::mmap(base.cast(), length, protection, flags, fd.as_raw_fd(), 0) };
    result != libc::MAP_FAILED
}

fn map_plain(base: *mut u8, length: usize) -> Option<()> {
    if length == 0 {
        return Some(());
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: as in `map_secret`; where that failed the reserved pages are still there.
    if unsafe { libc::mmap(base.cast(), length, protection, flags, -1, 0) } == libc::MAP_FAILED {
        return None;
    }
    for advice in [libc::MADV_DONTDUMP, libc::MADV_WIPEONFORK] {
        // SAFETY: advice on memory mapped above.
        unsafe { libc::madvise(base.cast(), length, advice) };
    }
    Some(())
}

// SAFETY: blocks come from talc, which hands out disjoint memory of the asked layout; a failed claim or a full arena
// yields null, as the trait demands; the lock makes it usable from any thread.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = self.heap.with(|inner| {
            if !inner.mapped {
                let (base, mapped) = map_arena()?;
                inner.mapped = true;
                // SAFETY: the stack takes the mapping's start; STACK is less than CAPACITY.
                let heap = unsafe { base.as_ptr().add(STACK) };
                // SAFETY: the rest of the mapping's CAPACITY bytes, ours alone, and never unmapped.
                unsafe { inner.talc.claim(heap, CAPACITY - STACK) }?;
                BASE.store(base.as_ptr(), Ordering::Relaxed);
                crate::arena::note_mapped(mapped);
            }
            // SAFETY: the trait's caller promises a layout of non-zero size.
            unsafe { inner.talc.allocate(layout) }
        });
        match block {
            Some(block) => {
                crate::arena::note_taken(layout.size());
                TOP.fetch_max(block.as_ptr() as usize + layout.size(), Ordering::Relaxed);
                block.as_ptr()
            }
            None => null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the trait's caller promises that `block` came from `alloc` with this layout and is not used again.
        // Cleared, so that a freed secret does not outlive its owner.
        unsafe { block.write_bytes(0, layout.size()) };
        // SAFETY: as above.
        self.heap.with(|inner| unsafe { inner.talc.deallocate(block, layout) });
        crate::arena::note_given_back(layout.size());
    }
}

// ---------------------------------------------------------------- the arena's stack, and its end

/// Where the arena lies; null where there is none.
static BASE: AtomicPtr<u8> = AtomicPtr::new(null_mut());
/// End of the highest block that was ever given out: nothing lies above it.
static TOP: AtomicUsize = AtomicUsize::new(0);
static ON_STACK: AtomicBool = AtomicBool::new(false);

/// Calls `run(with)` on the stack that ends at `top`.
///
/// # Safety
/// `top` is the aligned end of memory that nothing else uses, and `with` what `run` wants. `run` does not unwind.
unsafe fn call_on(top: *mut u8, run: extern "C" fn(*mut c_void), with: *mut c_void) {
    // SAFETY: r12 to r14 outlive a call in this ABI, so the old stack comes back; all that a call may change is said to change.
    unsafe {
        asm!("mov r12, rsp", "mov rsp, r13", "call r14", "mov rsp, r12",
            in("r13") top, in("r14") run, in("rdi") with, out("r12") _, clobber_abi("C"))
    }
}

/// Runs `act` on the arena's stack, which grows into the guard page at its start; on this one where there is no arena, or it runs
/// there already. A process must not fork meanwhile: the stack is shared with the child, or empty there.
pub(crate) fn on_stack<T, A: FnOnce() -> T>(act: A) -> T {
    extern "C" fn enter<T, A: FnOnce() -> T>(call: *mut c_void) {
        // SAFETY: `on_stack` passes its own `call`, which nothing else uses meanwhile.
        let (act, result) = unsafe { &mut *call.cast::<(Option<A>, Option<T>)>() };
        *result = act.take().map(|act| act());
    }
    let base = BASE.load(Ordering::Relaxed);
    if base.is_null() || ON_STACK.swap(true, Ordering::Relaxed) {
        return act();
    }
    let mut call = (Some(act), None);
    // SAFETY: STACK is less than the arena's length.
    let top = unsafe { base.add(STACK) };
    // SAFETY: the arena is aligned to pages and its first STACK bytes are this stack's; only one caller comes here at a time.
    unsafe { call_on(top, enter::<T, A>, (&raw mut call).cast()) };
    ON_STACK.store(false, Ordering::Relaxed);
    // `enter` has put it there: it does not come back without.
    call.1.unwrap_or_else(|| exit_now(1))
}

/// How a process with an arena ends: a line to descriptor 2, up to its length; a code, or SIGABRT.
pub(crate) type Ending = ([u8; crate::panic::LINE], usize, Option<c_int>);

/// That, and the stack to do it on, both outside the arena; the stack's end is that of the whole.
#[repr(C, align(16))]
struct Last {
    ending: UnsafeCell<Ending>,
    stack: UnsafeCell<[u8; LAST_STACK]>,
}

const LAST_STACK: usize = 16 * 1024;
const _: () = assert!(offset_of!(Last, stack) >= offset_of!(Last, ending) + size_of::<Ending>());

// SAFETY: reached only in `end`, which does not return, from the one thread that a process with an arena has.
unsafe impl Sync for Last {}

static LAST: Last =
    Last { ending: UnsafeCell::new(([0; crate::panic::LINE], 0, None)), stack: UnsafeCell::new([0; LAST_STACK]) };

/// Clears the arena with its stack, then says the line (whoever reads it may be slow), then ends; comes back where there is no arena.
pub(crate) fn end(ending: &Ending) {
    if BASE.load(Ordering::Relaxed).is_null() {
        return;
    }
    // SAFETY: see `Sync` above.
    unsafe { *LAST.ending.get() = *ending };
    let top = LAST.stack.get().wrapping_add(1).map_addr(|address| address & !15);
    // SAFETY: the end of the static is this stack's alone; `last_steps` wants nothing and does not return.
    unsafe { call_on(top.cast(), last_steps, null_mut()) };
}

extern "C" fn last_steps(_: *mut c_void) {
    let base = BASE.load(Ordering::Relaxed);
    // Up to the highest block: above it no page was ever touched.
    let length = TOP.load(Ordering::Relaxed).saturating_sub(base as usize).clamp(STACK, CAPACITY);
    // SAFETY: inside the arena; whoever still has a reference into it does not run again.
    unsafe { base.write_bytes(0, length) };
    // SAFETY: written before, and by nobody after.
    let (line, length, code) = unsafe { &*LAST.ending.get() };
    // SAFETY: writes bytes that outlive the call.
    unsafe { libc::write(2, line.as_ptr().cast(), (*length).min(line.len())) };
    code.map_or_else(|| std::process::abort(), |code| exit_now(code))
}

/// The byte at `place` in the arena now, for probes: read each time anew, because it lives. None behind what was ever in use.
pub(crate) fn arena_byte(place: usize) -> Option<u8> {
    let base = BASE.load(Ordering::Relaxed);
    let is_used = !base.is_null() && place < TOP.load(Ordering::Relaxed).saturating_sub(base as usize).min(CAPACITY);
    // SAFETY: within the mapping, which stays for good; a plain byte takes any value, and no reference to it is made.
    is_used.then(|| unsafe { base.wrapping_add(place).read_volatile() })
}

// ---------------------------------------------------------------- probes

/// A raw system call with integer arguments only, for probes from inside the cage. Returns the errno on refusal.
pub(crate) fn attempt(number: c_long, arguments: [u64; 6]) -> Result<c_long, c_int> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: `probe` passes integers and null pointers only; a call that changes a mapping names one that the probe made for it
    // and that nothing else uses.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(result) }
}

/// Makes one system call and ends the process: exit code 0, or the errno of the kernel's refusal. Nothing of the program runs
/// after the call, so that a call which forks, or comes back on another stack, does no harm. `interrupt`: by `int 0x80`, as an
/// i386 program does.
pub(crate) fn attempt_and_exit(interrupt: bool, number: u64, arguments: [u64; 6]) -> ! {
    let [a, b, c, d, e, f] = arguments;
    // What rt_sigreturn takes for a signal frame: all zeroes end in SIGSEGV, what lies on a real stack could go on anywhere.
    let mut frame = [0u64; 512];
    let stack = &raw mut frame[256];
    if interrupt {
        // SAFETY: does not return, so clobbers nothing; the stack pointer stays inside `frame`; the kernel checks all arguments.
        unsafe {
            asm!("mov rsp, r10", "mov rbx, r8", "mov rbp, r9", "int 0x80", "movsxd rax, eax",
                "xor edi, edi", "test rax, rax", "cmovs edi, eax", "neg edi", "mov eax, 231", "syscall", "ud2",
                in("rax") number, in("r8") a, in("rcx") b, in("rdx") c, in("rsi") d, in("rdi") e, in("r9") f,
                in("r10") stack, options(noreturn))
        }
    }
    // SAFETY: as above.
    unsafe {
        asm!("mov rsp, rcx", "syscall",
            "xor edi, edi", "test rax, rax", "cmovs edi, eax", "neg edi", "mov eax, 231", "syscall", "ud2",
            in("rax") number, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            in("rcx") stack, options(noreturn))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests call the allocator as the runtime does")]
    use super::*;
    use crate::arena::{Kind, kind, secret_bytes, taken};

    #[test]
    fn a_full_arena_returns_null_and_recovers() {
        static ARENA: Arena = Arena::new();
        // SAFETY: no layout here is empty.
        let take = |layout| unsafe { ARENA.alloc(layout) };
        // SAFETY: each pointer comes from `take` with the same layout, and is given back once.
        let give = |pointer, layout| unsafe { ARENA.dealloc(pointer, layout) };
        let (small, block) = (Layout::from_size_align(32, 16).unwrap(), Layout::from_size_align(1 << 20, 16).unwrap());
        let (early, next) = (take(small), take(small));
        // Blocks come from the secret end first: that is where keys, which are loaded at start, must lie.
        assert!(early < next, "{early:?} {next:?}");
        assert!(secret_bytes() > 0);
        [early, next].into_iter().for_each(|pointer| give(pointer, small));
        let blocks: Vec<_> = std::iter::repeat_with(|| take(block)).take_while(|pointer| !pointer.is_null()).collect();
        assert!((20..=CAPACITY >> 20).contains(&blocks.len()), "{} blocks", blocks.len());
        assert_ne!(kind(), Kind::None);
        blocks.into_iter().for_each(|pointer| give(pointer, block));
        let again = NonNull::new(take(block)).unwrap().as_ptr();
        // SAFETY: one byte of a block of a mebibyte.
        assert_eq!(unsafe { again.read() }, 0);
        give(again, block);
        assert_eq!(taken(), 0);
    }
}
