//! The front: gRPC for `noded`, frames to the vault; see `openred_cryptod::front`.
//!
//! Started by the supervisor alone, with exactly these descriptors: 0 and 1 nothing, 2 log, 3 barrier, 4 listener, 5 vault. As
//! root its one argument is the uid that may connect.
#![forbid(unsafe_code)]

use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::Context;
use openred_cryptod::front::Callers;
use openred_policy::barrier::Barrier;
use openred_policy::{Cage, Descriptors, Identity, Role, Unconfined};
use tokio::runtime::Builder;

fn main() {
    let mut barrier = None;
    let code = run(&mut barrier).unwrap_or_else(|error| openred_cryptod::report::failed(barrier.as_ref(), &error));
    openred_policy::exit(code)
}

fn run(slot: &mut Option<Barrier>) -> anyhow::Result<i32> {
    // Exactly what the supervisor gave; one descriptor more or less is fatal.
    let mut inherited = Unconfined::enter(Role::Front, Descriptors::Exactly(&[0, 1, 2, 3, 4, 5]))?;
    let barrier = slot.insert(inherited.barrier(3)?);
    let (listener, vault) = (UnixListener::from(inherited.take(4)?), UnixStream::from(inherited.take(5)?));
    // Namespaces, empty root and uid, while the supervisor may still look; it notes them and lets this go on.
    let identity = Identity::from_env()?;
    let uid = caller(identity.is_some())?;
    let separated = inherited.separate(&Cage::new(Role::Front, identity))?;
    barrier.namespaced()?;
    let restricted = separated.restrict()?;
    // Everything that makes a descriptor, before the filter: the runtime's epoll and wake-up, non-blocking sockets.
    openred_cryptod::report::log_to_standard_error();
    listener.set_nonblocking(true).context("front: making the listener non-blocking")?;
    vault.set_nonblocking(true).context("front: making the vault's socket non-blocking")?;
    // One thread: two are slower on two cores, and Landlock covers only this one.
    let runtime = Builder::new_current_thread().enable_io().enable_time().build().context("front: the runtime")?;
    let entered = runtime.enter();
    let listener = tokio::net::UnixListener::from_std(listener).context("front: watching the listener")?;
    let vault = tokio::net::UnixStream::from_std(vault).context("front: watching the vault")?;
    drop(entered);
    let callers = Callers::named(uid, barrier.callers()?);
    let confined = restricted.seal()?;
    barrier.confined(confined.report())?;
    // Ready is said once the vault has answered; a supervisor that is gone by then takes this process with it.
    let ready = || barrier.ready().unwrap_or_default();
    runtime.block_on(openred_cryptod::front::serve(listener, vault, callers, ready))?;
    Ok(0)
}

/// The uid of `noded`. An ordinary user's processes share one, and from inside a user namespace every other reads alike.
fn caller(root: bool) -> anyhow::Result<Option<u32>> {
    if !root {
        return Ok(None);
    }
    let named = std::env::args().nth(1).context("front: nobody named the uid that may connect")?;
    Ok(Some(named.parse().context("front: the uid that may connect is no number")?))
}
