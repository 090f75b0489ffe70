//! The cage: what each process of a node may do, as data, and the code that applies it.
//!
//! A process starts with everything its parent had and gives it up in a fixed order. The typestate
//! [`Unconfined`] → [`Separated`] → [`Restricted`] → [`Confined`] makes that order the only one that compiles; each step
//! consumes the one before. Policy is data beside this code: `seccomp/*.json` (one allow-list a role, a reason on every
//! rule, compiled by `build.rs`) and `manifest/*.toml` (what a supervisor must see from outside). Nothing turns a
//! layer off: every failure is fatal and names the layer, the reason and the way out.
//!
//! This crate holds the only `unsafe` code of the project (`sys.rs`). It reads no configuration and no environment but
//! [`Identity::from_env`] and a service manager's ([`notify`]), and it logs nothing: what happened comes back as a [`LayerReport`].
//!
//! # One thread until [`Restricted`]
//!
//! Namespaces, Landlock and capabilities cover the calling thread only, so [`Unconfined::separate`] refuses when a second
//! thread exists. Build the (current-thread) runtime, register signals, make sockets non-blocking and touch every lazy path
//! after [`Separated::restrict`] and before [`Restricted::seal`].
//!
//! # A child of the supervisor (front, vault, unseal, noded)
//!
//! ```no_run
//! use openred_policy::{Cage, Descriptors, Identity, Role, Unconfined};
//! fn main() -> Result<(), openred_policy::Error> {
//!     let mut start = Unconfined::enter(Role::Front, Descriptors::Exactly(&[0, 1, 2, 3, 4, 5]))?;
//!     let barrier = start.barrier(3)?;
//!     let listener = start.take(4)?; // std::os::unix::net::UnixListener::from(listener)
//!     let vault = start.take(5)?;
//!     let separated = start.separate(&Cage::new(Role::Front, Identity::from_env()?))?;
//!     barrier.namespaced()?; // stops until the supervisor has noted our namespaces
//!     let restricted = separated.restrict()?;
//!     // ... runtime, signals, non-blocking sockets, first clock and random read ...
//!     let confined = restricted.seal()?;
//!     barrier.confined(confined.report())?;
//!     barrier.ready()?;
//!     // ... serve(listener, vault) ...
//!     # drop((listener, vault));
//!     openred_policy::exit(0)
//! }
//! ```
//!
//! The vault adds the arena, reads and writes through `std::fs::File` made from its descriptors (`UnixStream` would use
//! `recvfrom` and `sendto`, which its filter has not), waits with [`poll::wait`], and leaves through [`exit`]:
//!
//! ```
//! #[global_allocator]
//! static ARENA: openred_policy::arena::Arena = openred_policy::arena::Arena::new();
//! # fn main() {}
//! ```
//!
//! A process with an arena cannot start others: the arena is not copied by a fork.
//!
//! `noded` keeps the network and sees what it needs under the same path as outside:
//!
//! ```no_run
//! # use openred_policy::{Cage, Identity, KeptPath, Role};
//! # fn cage(state: &std::path::Path, sockets: &std::path::Path) -> Result<Cage, openred_policy::Error> {
//! Ok(Cage::new(Role::Noded, Identity::from_env()?)
//!     .keep(KeptPath::writable(state))
//!     .keep(KeptPath::readable(sockets))) // `cryptod.sock` inside: connecting needs no write right on the mount
//! # }
//! ```
//!
//! The directory is a program of its own without a supervisor: `enter(Role::Directory, Descriptors::CloseOthers(&[0, 1, 2]))`,
//! then it opens its listener, certificate and database, then `separate`, `restrict`, `seal`; no barrier.
//!
//! # A foreign program
//!
//! [`launch::Launch`] starts `openred-launch`, which confines itself as [`Role::Module`] and then becomes the program.
//!
//! # The supervisor
//!
//! [`spawn::spawn`] with an exact descriptor table, [`barrier::Host`] for the other end of descriptor 3,
//! [`observe::namespaces`] while the child stands at the barrier, then [`observe::observe`] and [`observe::compare`]
//! once it reported `confined`. Spawn from a thread that lives as long as the supervisor: a child dies with the
//! *thread* that started it.

pub mod arena;
pub mod barrier;
mod confine;
mod error;
mod landlock;
pub mod launch;
mod layer;
pub mod limits;
pub mod manifest;
mod namespaces;
pub mod notify;
pub mod observe;
mod panic;
pub mod poll;
mod privileges;
#[doc(hidden)]
pub mod probe;
mod role;
mod seccomp;
mod self_check;
pub mod socket;
pub mod spawn;
mod sys;

pub use confine::{Cage, Confined, Identity, KeptPath, Restricted, Separated, Unconfined};
pub use error::{Error, Result};
pub use layer::{Layer, LayerName, LayerReport};
pub use role::{Role, Uid};
pub use seccomp::{allowed_names, syscalls_allowed, syscalls_in_service};
pub use self_check::Descriptors;

/// Gives memory that is free, and that the allocator would keep, back to the kernel.
///
/// With one malloc heap for all threads (step 2) a single small block at its end keeps everything below it in this process, for as long as that block
/// lives: after a rush a daemon would be as large as in its midst. To be called now and then, by whoever runs for long; it takes
/// a few milliseconds when there is much. Needs `madvise` and `brk`, which each filter allows whose process may grow.
pub fn give_back_memory() {
    sys::trim_heap();
}

/// Ends the process at once with `code`: the arena, where there is one, is cleared; then `exit_group` and nothing else.
///
/// A normal return from `main` unmaps the signal stack and runs exit handlers, which the vault's filter has no rule for.
/// Buffered output is lost; daemons have none.
pub fn exit(code: i32) -> ! {
    sys::end(&([0; panic::LINE], 0, Some(code)));
    sys::exit_now(code)
}
