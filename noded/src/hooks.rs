//! Middleware: hooks of modules, asked around the calls of this node.
//!
//! Which hooks there are comes from the modules' manifests (`spec`); in which order they stand, and that they have one, is `order`'s; what
//! becomes of a call by what a hook says or does not say is `decide`'s, and nobody else's. These, `breaker` and `budget` are pure. `chain`
//! asks the modules, through [`Askable`], around requests of peers, of the operator and to peers, and their answers. It believes them no
//! more than the judgement in the module's attachment lets through.

mod breaker;
mod budget;
mod chain;
mod decide;
mod entry;
mod order;
mod passing;
mod spec;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use openred_module::remote::HookAsk;
use openred_module::{Point, Verdict};
use openred_proto::admin;

use crate::clock;
use crate::health::{Condition, Health};
pub(crate) use chain::{Chain, Costs};
pub(crate) use decide::Failure;
use entry::Entry;
pub(crate) use order::{Cycle, order};
pub(crate) use spec::Spec;

/// Whom a hook's question goes to.
#[async_trait::async_trait]
pub(crate) trait Askable: Send + Sync {
    /// Asks; never waits for a place.
    async fn ask(&self, ask: HookAsk) -> Result<Verdict, Failure>;

    /// What has to be waited for before it is asked, and is no fault of its: another version is taking its place at this moment.
    fn held(&self) -> Option<BoxFuture<'_, ()>> {
        None
    }
}

/// The hooks of a point, in their order; or why they have none.
type Ordered = Result<Vec<Arc<Entry>>, Cycle>;

/// All hooks at one moment: a call keeps the one that it began with.
struct Table([Ordered; Point::ALL.len()]);

impl Default for Table {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Ok(Vec::new())))
    }
}

impl Table {
    fn at(&self, point: Point) -> &Ordered {
        &self.0[point as usize]
    }
}

/// Hooks that are left alone for now: one condition of the node.
pub(crate) struct Troubles {
    health: Arc<Health>,
    off: Mutex<BTreeSet<String>>,
}

impl Troubles {
    fn change(&self, change: impl FnOnce(&mut BTreeSet<String>)) {
        let mut off = self.off.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut off);
        if off.is_empty() {
            self.health.clear(Condition::HookOff);
        } else {
            let names: Vec<&str> = off.iter().map(String::as_str).collect();
            self.health.raise(Condition::HookOff, clock::now(), names.join(", "));
        }
    }
}

/// See the file's head.
pub(crate) struct Hooks {
    table: Mutex<Arc<Table>>,
    troubles: Arc<Troubles>,
}

impl Hooks {
    /// None yet.
    pub(crate) fn new(health: &Arc<Health>) -> Arc<Self> {
        let troubles = Arc::new(Troubles { health: Arc::clone(health), off: Mutex::default() });
        Arc::new(Self { table: Mutex::default(), troubles })
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on these hooks are asked, in the order that they and the operator's list say. A hook that was there before, and is declared as
    /// it was, keeps its figures and its breaker. Where they have no order, no call passes the point until they have one.
    pub(crate) fn set(&self, hooks: Vec<(Spec, Arc<dyn Askable>)>, listed: &[String]) {
        let before = self.table();
        let at = |point: Point| -> Ordered {
            let of_point: Vec<_> = hooks.iter().filter(|(spec, _)| spec.point == point).collect();
            let specs: Vec<&Spec> = of_point.iter().map(|(spec, _)| spec).collect();
            let places = order(&specs, listed).inspect_err(|cycle| {
                tracing::error!(point = point.name(), "the hooks have no order, and no call passes: {cycle}");
            })?;
            let entry = |place: order::Place| {
                let (spec, asked) = of_point[place.index];
                let known =
                    before.at(point).as_ref().ok().and_then(|known| known.iter().find(|entry| entry.spec == *spec));
                let standing = known.map(|entry| Arc::clone(&entry.standing)).unwrap_or_default();
                let (spec, asked, troubles) = (spec.clone(), Arc::clone(asked), Arc::clone(&self.troubles));
                Arc::new(Entry { spec, reason: place.reason, asked, standing, troubles })
            };
            Ok(places.into_iter().map(entry).collect())
        };
        let table = Arc::new(Table(Point::ALL.map(at)));
        let entries = table.0.iter().filter_map(|ordered| ordered.as_ref().ok()).flatten();
        let off: BTreeSet<String> = entries.filter(|entry| entry.is_off()).map(|entry| entry.spec.name()).collect();
        *self.table.lock().unwrap_or_else(PoisonError::into_inner) = table;
        self.troubles.change(|named| *named = off);
    }

    /// Begins the way of one call. `own`: the module whose call it is, whose own hooks are not asked about it.
    pub(crate) fn chain(&self, own: Option<&str>) -> Chain {
        Chain::new(self.table(), own)
    }

    /// The chains as the operator sees them.
    pub(crate) fn report(&self) -> admin::Hooks {
        let table = self.table();
        let points = Point::ALL.into_iter().map(|point| {
            let (hooks, cycle) = match table.at(point) {
                Ok(entries) => (entries.iter().map(|entry| entry.report()).collect(), String::new()),
                Err(cycle) => (Vec::new(), cycle.to_string()),
            };
            admin::HookPoint { point: point.name().to_owned(), hooks, cycle }
        });
        admin::Hooks { points: points.collect() }
    }
}
