//! `noded`: the node's network side in its cage; see `openred_node::daemon` for what each step does.
//!
//! Started by the supervisor alone, as `noded HOME`, with exactly these descriptors: 0 and 1 nothing, 2 log, 3 barrier,
//! 4 listener for peers, 5 listener for the operator, 6 state directory, 7 configuration, 8 listener for modules, 9 the
//! channel on which the supervisor is asked for them, 10 the listener that serves the monitor and 11 that of the
//! operator's API, or nothing.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use anyhow::Context as _;
use openred_node::daemon::{ModuleSockets, Outside, Prepared, failed};
use openred_policy::barrier::Barrier;
use openred_policy::{Cage, Descriptors, Identity, Role, Unconfined};

fn main() {
    let mut barrier = None;
    let code = match run(&mut barrier) {
        Ok(()) => 0,
        Err(error) => failed(barrier.as_ref(), &error),
    };
    openred_policy::exit(code)
}

fn run(slot: &mut Option<Barrier>) -> anyhow::Result<()> {
    let home = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .context("noded is started by `openred up`, with the node's home")?;
    // Exactly what the supervisor gave; one descriptor more or less is fatal.
    let mut inherited = Unconfined::enter(Role::Noded, Descriptors::Exactly(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]))?;
    let barrier = slot.insert(inherited.barrier(3)?);
    let (peers, operator) = (TcpListener::from(inherited.take(4)?), UnixListener::from(inherited.take(5)?));
    // The state directory was opened by the supervisor without following links; held so that it stays the one mounted here.
    let _state = inherited.take(6)?;
    let (listener, supervisor) = (UnixListener::from(inherited.take(8)?), UnixStream::from(inherited.take(9)?));
    let modules = ModuleSockets { listener, supervisor, monitor: inherited.take(10)?, auth: inherited.take(11)? };
    // Certificates lie outside the cage: read first, before anybody can be heard.
    let outside = Outside::read(home, inherited.take(7)?)?;
    outside.start_log();
    // Namespaces, the kept paths and uid, while the supervisor may still look; it notes them and lets this go on.
    let cage = outside.keeps().into_iter().fold(Cage::new(Role::Noded, Identity::from_env()?), Cage::keep);
    let separated = inherited.separate(&cage)?;
    barrier.namespaced()?;
    let restricted = separated.restrict()?;
    // Names, files, threads, signals and the runtime: whatever starts now inherits the limits, and the filter covers all of it.
    let prepared = Prepared::open(outside)?;
    let confined = restricted.seal()?;
    barrier.confined(confined.report())?;
    // Ready is said once peers and the operator are served; a supervisor that is gone takes this process with it.
    prepared.serve(peers, operator, modules, || barrier.ready().unwrap_or_default())?;
    Ok(())
}
