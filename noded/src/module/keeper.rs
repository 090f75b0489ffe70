//! Keeps the modules' lives: begins those of the table at the start, and follows what the operator installs, changes and removes.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openred_module::manifest::PermissionName;
use openred_module::remote::Attached;
use openred_proto::modules::Ask;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{self, JoinSet};
use tokio::time::timeout;

use super::built_in::BUILT_IN;
use super::callee::Callee;
use super::installed::{Reading, SettingsOf};
use super::lives::{Life, Troubles};
use super::supervisor::Supervisor;
use super::swaps::Nudge;
use super::{Loaded, Modules, Sockets, Wanted, installed};
use crate::health::Health;
use crate::keys::CryptodClient;

/// How long the node waits at its start for the modules that come with it; one that takes longer comes later.
const FIRST: Duration = Duration::from_secs(20);
/// After a change could not be followed, it is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Wishes about swaps that wait until what is installed was looked at.
const NUDGES: usize = 16;

/// Where what is installed stands, and who has the keys of modules' rows.
pub(crate) struct Source {
    pub(crate) place: PathBuf,
    pub(crate) keys: CryptodClient,
}

struct Keeper {
    modules: Arc<Modules>,
    supervisor: Arc<Supervisor>,
    troubles: Arc<Troubles>,
    lives: JoinSet<()>,
    /// Whose lives were ended here.
    ended: BTreeSet<&'static str>,
    /// Modules that were taken out and come to their ends, each in a task: nothing is done about one before it is gone.
    ends: JoinSet<()>,
    ending: HashMap<task::Id, &'static str>,
    source: Source,
    idle: Option<Duration>,
}

/// The modules that come with the node: each has what it asks for.
pub(crate) fn built_in() -> Vec<Wanted> {
    let wanted = BUILT_IN.iter().map(|module| {
        let manifest = module.manifest();
        Wanted { id: module.id, manifest: Arc::new(manifest.clone()), granted: manifest.asks(), turn: 0 }
    });
    wanted.collect()
}

impl Modules {
    /// Has every module started, and waits for a while until those that come with the node serve; one that does not is named by a
    /// condition, and tried again. What keeps them running ends with `tasks`.
    /// One that nobody calls for `idle`, if that is said, is ended, and started by the next call; it is not started before the first. What a
    /// manifest says of that counts for its module.
    pub(crate) async fn start(
        self: &Arc<Self>,
        sockets: Sockets,
        source: Source,
        idle: Option<Duration>,
        health: &Arc<Health>,
        tasks: &mut JoinSet<()>,
    ) {
        tasks.spawn(Arc::clone(&self.door).serve(sockets.listener));
        tasks.spawn(Arc::clone(&self.used).keep());
        let supervisor = Supervisor::start(sockets.supervisor, tasks);
        self.parts.view.through(Arc::clone(&supervisor));
        for loopback in sockets.loopback {
            tasks.spawn(loopback.serve(Arc::clone(self)));
        }
        let troubles = Troubles::new(Arc::clone(health));
        let modules = Arc::clone(self);
        let (nudges, nudged) = mpsc::channel(NUDGES);
        // Once, here.
        let _ = self.nudges.set(nudges);
        let (lives, ends, ended, ending) = Default::default();
        let mut keeper = Keeper { modules, supervisor, troubles, lives, ended, ends, ending, source, idle };
        // What cannot be read is read again soon, and said then.
        self.hand_over(installed::read(&keeper.source.place).map(|read| read.settings).unwrap_or_default());
        let mut first = Vec::new();
        for loaded in self.all() {
            if let Some(hears) = keeper.begin(&loaded)
                && BUILT_IN.iter().any(|module| module.id == loaded.id)
            {
                first.push((loaded.id, hears));
            }
        }
        let all = async {
            for (id, hears) in first {
                if timeout(FIRST, hears).await.is_err() {
                    tracing::warn!(module = id, "the node goes on without waiting for it any longer");
                }
            }
        };
        all.await;
        tasks.spawn(keeper.follow(nudged));
    }
}

impl Keeper {
    /// Begins a module's life; hears of its first attempt.
    fn begin(&mut self, loaded: &Arc<Loaded>) -> Option<oneshot::Receiver<()>> {
        #[cfg_attr(not(test), expect(irrefutable_let_patterns, reason = "only tests link modules"))]
        let Callee::Process(slot) = &loaded.callee else { return None };
        let wanted = loaded.wanted.as_ref()?;
        let comes_with_us = BUILT_IN.iter().any(|module| module.id == loaded.id);
        let life = Life {
            id: loaded.id,
            comes_with_us,
            wanted: wanted.clone(),
            anew: self.ended.contains(loaded.id),
            hosts: loaded.hosts.clone(),
            // What watches the node is needed while nobody calls.
            idle: self.idle.filter(|_| !wanted.granted.has(PermissionName::NodeStatus)),
            slot: Arc::clone(slot),
            meter: Arc::clone(&loaded.meter),
            door: Arc::clone(&self.modules.door),
            supervisor: Arc::clone(&self.supervisor),
            troubles: Arc::clone(&self.troubles),
            methods: self.modules.methods.clone(),
            shown: Arc::clone(&loaded.life.shown),
            modules: Arc::clone(&self.modules),
        };
        let (attempted, hears) = oneshot::channel();
        let life = self.lives.spawn(life.run(attempted, loaded.life.open()));
        *loaded.life.abort.lock().unwrap_or_else(PoisonError::into_inner) = Some(life);
        Some(hears)
    }

    /// Follows every change; never returns.
    async fn follow(mut self, mut nudged: mpsc::Receiver<Nudge>) {
        let mut nudge: Option<Nudge> = None;
        // What changed while this process started is seen now.
        loop {
            while let Err(error) = self.look().await {
                tracing::warn!("the installed modules are not as they shall be: {error}; tried again");
                tokio::time::sleep(AGAIN).await;
            }
            // Behind what was installed for it.
            nudge.into_iter().for_each(|nudge| self.modules.pass(nudge));
            nudge = tokio::select! {
                () = self.supervisor.changed() => None,
                Some(_) = self.lives.join_next() => None,
                Some(gone) = self.ends.join_next_with_id() => {
                    self.ending.remove(&gone.map_or_else(|error| error.id(), |(id, ())| id));
                    None
                }
                nudge = nudged.recv() => nudge,
            };
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        let read = installed::read(&self.source.place).map_err(|error| error.to_string())?;
        let Reading { wanted, earlier, forget, unread, settings } = read;
        *self.modules.earlier.write().unwrap_or_else(PoisonError::into_inner) = earlier;
        self.modules.expected.write().unwrap_or_else(PoisonError::into_inner).clone_from(&wanted);
        self.modules.hand_over(settings);
        let mut leave = Vec::new();
        for loaded in self.modules.all() {
            if self.leaves(&loaded, &wanted)? {
                leave.push(loaded);
            }
        }
        for loaded in &leave {
            self.take_out(loaded);
        }
        for id in forget.into_iter().filter(|id| self.is_gone(id)) {
            self.modules.forget(id).await?;
            self.supervisor.ask(Ask::Forgotten { module: id.to_owned() }).await;
        }
        for wanted in wanted.iter().filter(|wanted| self.is_gone(wanted.id)).cloned().collect::<Vec<_>>() {
            let key = self.source.keys.store_key(wanted.id).await.map_err(|error| error.to_string())?;
            let (id, version) = (wanted.id, wanted.manifest.version.clone());
            let loaded = self.modules.load(wanted, &key);
            self.begin(&loaded);
            tracing::info!(module = id, %version, "installed");
        }
        self.modules.set_granted_hooks();
        if let Some(methods) = &self.modules.methods {
            let ours = BUILT_IN.iter().map(|module| module.id);
            let installed: Vec<&str> = ours.chain(wanted.iter().map(|wanted| wanted.id)).chain(unread).collect();
            methods.load(&installed).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Whether nothing of that name is here, nor on its way out.
    fn is_gone(&self, id: &str) -> bool {
        self.modules.get(id).is_none() && self.ending.values().all(|ending| *ending != id)
    }

    /// Whether a module of the table is to go, now that these are wanted; one of which another version is wanted is asked to swap.
    fn leaves(&self, loaded: &Arc<Loaded>, wanted: &[Wanted]) -> Result<bool, String> {
        if BUILT_IN.iter().any(|module| module.id == loaded.id) {
            return Ok(false);
        }
        let wanted = wanted.iter().find(|wanted| wanted.id == loaded.id);
        match (wanted, &loaded.wanted) {
            (Some(wanted), Some(has)) if wanted == has => {
                loaded.life.asked_nothing();
                Ok(false)
            }
            // Another version takes its place while it is called.
            (Some(wanted), Some(has)) if wanted.manifest.version != has.manifest.version => {
                if loaded.life.ask(wanted) {
                    Ok(false)
                } else {
                    Err(format!("{} is busy", loaded.id))
                }
            }
            // The operator has it started anew, or another has come of the same version.
            _ => Ok(true),
        }
    }

    /// Takes a module out of the table: it is not called any more. It comes to its end by itself and holds no other up.
    fn take_out(&mut self, loaded: &Arc<Loaded>) {
        self.ended.insert(loaded.id);
        self.modules.loaded.write().unwrap_or_else(PoisonError::into_inner).remove(loaded.id);
        if let Some(life) = loaded.life.abort.lock().unwrap_or_else(PoisonError::into_inner).take() {
            life.abort();
        }
        let attached = match &loaded.callee {
            Callee::Process(slot) => slot.leave(),
            #[cfg(test)]
            Callee::Linked(..) => None,
        };
        let (modules, supervisor, troubles) =
            (Arc::clone(&self.modules), Arc::clone(&self.supervisor), Arc::clone(&self.troubles));
        let end = end(modules, supervisor, troubles, Arc::clone(loaded), attached);
        let task = self.ends.spawn(end);
        self.ending.insert(task.id(), loaded.id);
    }
}

/// Lets a module that was taken out end what it does, as long as its manifest says, has its process ended, and what of its answers is still read here.
pub(super) async fn end(
    modules: Arc<Modules>,
    supervisor: Arc<Supervisor>,
    troubles: Arc<Troubles>,
    loaded: Arc<Loaded>,
    attached: Option<Arc<Attached>>,
) {
    if let Some((attached, wanted)) = attached.zip(loaded.wanted.as_ref()) {
        attached.drain(Duration::from_secs(wanted.manifest.limits.stop_seconds.into())).await;
    }
    loaded.hosts.taken_out.store(true, Ordering::Relaxed);
    modules.hush(loaded.id);
    troubles.clear(loaded.id);
    supervisor.ask(Ask::Stop { module: loaded.id.to_owned(), generation: 0 }).await;
    tracing::info!(module = loaded.id, "taken out");
}

impl Modules {
    /// Gives each module its settings; those that run hear of what has changed.
    fn hand_over(&self, settings: SettingsOf) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        for loaded in self.all() {
            let Some(wanted) = &loaded.wanted else { continue };
            let said = self.settings_of(wanted);
            loaded.settings.send_if_modified(|known| std::mem::replace(known, said.clone()) != said);
        }
    }

    /// Forgets what a module that is gone has asked for, and what it has told the operator.
    pub(super) fn hush(&self, id: &'static str) {
        self.timers.forget(id);
        self.space.forget(id);
        self.parts.view.alert(id, None, &self.parts.health);
    }

    /// Deletes all that a module keeps here.
    async fn forget(&self, id: &'static str) -> Result<(), String> {
        self.parts.store.forget_rows(id).await.map_err(|error| error.to_string())?;
        self.parts.disk.forget(id).await.map_err(|error| error.to_string())?;
        self.used.forget(id);
        Ok(())
    }
}
