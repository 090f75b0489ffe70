//! Keeps the modules' lives: begins those of the table at the start, and follows what the operator installs, changes and removes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openred_module::manifest::PermissionName;
use openred_proto::modules::Ask;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::built_in::BUILT_IN;
use super::callee::Callee;
use super::lives::{Life, Troubles};
use super::supervisor::Supervisor;
use super::{Loaded, Modules, Sockets, Wanted, installed};
use crate::health::Health;
use crate::keys::CryptodClient;

/// How long the node waits at its start for the modules that come with it; one that takes longer comes later.
const FIRST: Duration = Duration::from_secs(20);
/// After a change could not be followed, it is tried again.
const AGAIN: Duration = Duration::from_secs(5);

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
    /// One that nobody calls for `idle`, if that is said, is ended, and started by the next call; it is not started before the first.
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
        let mut keeper =
            Keeper { modules, supervisor, troubles, lives: JoinSet::new(), ended: BTreeSet::new(), source, idle };
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
        tasks.spawn(keeper.follow());
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
            version: (!comes_with_us).then(|| wanted.manifest.version.to_string()),
            anew: self.ended.contains(loaded.id),
            context: loaded.context.clone(),
            // What watches the node is needed while nobody calls.
            idle: self.idle.filter(|_| !wanted.granted.has(PermissionName::NodeStatus)),
            slot: Arc::clone(slot),
            meter: Arc::clone(&loaded.meter),
            door: Arc::clone(&self.modules.door),
            supervisor: Arc::clone(&self.supervisor),
            troubles: Arc::clone(&self.troubles),
            methods: self.modules.methods.clone(),
        };
        let (attempted, hears) = oneshot::channel();
        let life = self.lives.spawn(life.run(attempted));
        *loaded.life.lock().unwrap_or_else(PoisonError::into_inner) = Some(life);
        Some(hears)
    }

    /// Follows every change; never returns.
    async fn follow(mut self) {
        // What changed while this process started is seen now.
        loop {
            while let Err(error) = self.look().await {
                tracing::warn!("the installed modules are not as they shall be: {error}; tried again");
                tokio::time::sleep(AGAIN).await;
            }
            tokio::select! {
                () = self.supervisor.changed() => {}
                Some(_) = self.lives.join_next() => {}
            }
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        let (wanted, forget) = installed::read(&self.source.place).map_err(|error| error.to_string())?;
        for loaded in self.modules.all() {
            let stays = BUILT_IN.iter().any(|module| module.id == loaded.id)
                || wanted.iter().any(|wanted| loaded.wanted.as_ref() == Some(wanted));
            if !stays {
                self.end(&loaded).await;
            }
        }
        for id in forget {
            self.modules.forget(id).await?;
            self.supervisor.ask(Ask::Forgotten { module: id.to_owned() }).await;
        }
        for wanted in wanted {
            if self.modules.get(wanted.id).is_none() {
                let key = self.source.keys.store_key(wanted.id).await.map_err(|error| error.to_string())?;
                let (id, version) = (wanted.id, wanted.manifest.version.clone());
                let loaded = self.modules.load(wanted, &key);
                self.begin(&loaded);
                tracing::info!(module = id, %version, "installed");
            }
        }
        self.modules.set_granted_hooks();
        if let Some(methods) = &self.modules.methods {
            let all = self.modules.all();
            let installed: Vec<&str> = all.iter().map(|module| module.id).collect();
            methods.load(&installed).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Takes a module out of the table and has its process ended.
    async fn end(&mut self, loaded: &Arc<Loaded>) {
        self.ended.insert(loaded.id);
        self.modules.loaded.write().unwrap_or_else(PoisonError::into_inner).remove(loaded.id);
        if let Some(life) = loaded.life.lock().unwrap_or_else(PoisonError::into_inner).take() {
            life.abort();
        }
        #[cfg_attr(not(test), expect(irrefutable_let_patterns, reason = "only tests link modules"))]
        if let Callee::Process(slot) = &loaded.callee {
            slot.away();
        }
        self.modules.timers.forget(loaded.id);
        self.modules.space.module_full(loaded.id, None);
        self.troubles.clear(loaded.id);
        self.supervisor.ask(Ask::Stop { module: loaded.id.to_owned() }).await;
        tracing::info!(module = loaded.id, "taken out");
    }
}

impl Modules {
    /// Deletes all that a module keeps here.
    async fn forget(&self, id: &'static str) -> Result<(), String> {
        self.parts.store.forget_rows(id).await.map_err(|error| error.to_string())?;
        self.parts.disk.forget(id).await.map_err(|error| error.to_string())?;
        self.used.forget(id);
        Ok(())
    }
}
