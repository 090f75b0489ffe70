//! `openred module dev`: builds the project of the current folder, installs it on a node, and does so again whenever a file is saved.
//!
//! The node is a throw-away one, made for this run in a temporary folder and removed with it, unless the operator's own is named. Everything else is as for
//! any module: a package that is signed (with a key of this run), installed, granted what its manifest asks for, and run in its cage. The next build is a
//! version of its own, which takes the place of the last one by a swap, with its state. A build that fails, or is not taken, leaves the last good one running.
//! What was on the operator's node before this run is left alone.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::node::Node;
use super::project::Project;
use super::session::Session;
use crate::cli::{Exit, Failure, Invocation};

/// Between two looks at the signal to end.
const LOOK: Duration = Duration::from_millis(200);
/// Editors save in several steps: what follows within this time belongs to it.
const SETTLED: Duration = Duration::from_millis(200);
/// Saves that wait; more are the same to us.
const SAVES: usize = 16;

/// Whether SIGINT, SIGTERM or SIGHUP has come.
static END: AtomicBool = AtomicBool::new(false);

/// Runs until a signal comes.
pub(crate) fn dev(invocation: &Invocation, own_node: bool) -> Result<Exit, Failure> {
    let project = Project::here()?;
    let manifest = project.manifest()?;
    listen_to_signals()?;
    let (saved, saves) = sync_channel(SAVES);
    let watcher = watch(&project, saved)?;
    let claim = project.claim()?;
    // Before anything is made that would have to be removed.
    let mut program = project.build(manifest.program.as_str());
    if ends() {
        return Ok(Exit::Ok);
    }
    let node = if own_node { Node::own(invocation)? } else { Node::throw_away(invocation.output)? };
    let mut session = Session::new(invocation, project, node, manifest)?;
    session.note_node(&claim)?;
    loop {
        match program.and_then(|program| session.replace(&program)) {
            Ok(()) => session.tell(),
            // The signal to end has reached cargo and what this program asked as well.
            Err(_) if ends() => break,
            Err(failure) => invocation.output.failure(&failure),
        }
        if !next_save(&saves, &mut session)? {
            break;
        }
        program = session.rebuild();
    }
    drop(watcher);
    session.end();
    Ok(Exit::Ok)
}

fn listen_to_signals() -> Result<(), Failure> {
    // A runtime of its own on a thread of its own: everything else here waits in turn.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("the signals", &error))?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hang_up)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
            else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            END.store(true, Ordering::SeqCst);
        });
    });
    Ok(())
}

pub(super) fn ends() -> bool {
    END.load(Ordering::SeqCst)
}

/// Watches the project but for what cargo and git write.
fn watch(project: &Project, saved: std::sync::mpsc::SyncSender<()>) -> Result<RecommendedWatcher, Failure> {
    let folder = project.folder.clone();
    let is_source = move |path: &PathBuf| {
        let inside = path.strip_prefix(&folder).unwrap_or(path);
        let first = inside.components().next().map(|part| part.as_os_str().to_owned());
        first.is_some_and(|first| !["target", ".git", "Cargo.lock"].iter().any(|other| first == *other))
    };
    let failed = |error: notify::Error| {
        Failure::new(Exit::Failed, "local", format!("{}: {error}", project.folder.display()), "")
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        let changes = event.kind.is_modify() || event.kind.is_create() || event.kind.is_remove();
        if changes && event.paths.iter().any(&is_source) {
            // A queue that is full says it already.
            let _ = saved.try_send(());
        }
    })
    .map_err(failed)?;
    watcher.watch(&project.folder, RecursiveMode::Recursive).map_err(failed)?;
    Ok(watcher)
}

/// Waits for the next save; false when it is time to end.
fn next_save(saves: &Receiver<()>, session: &mut Session<'_>) -> Result<bool, Failure> {
    loop {
        if ends() {
            return Ok(false);
        }
        session.node.is_there()?;
        match saves.recv_timeout(LOOK) {
            Ok(()) => {
                while saves.recv_timeout(SETTLED).is_ok() {}
                return Ok(true);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        }
    }
}
