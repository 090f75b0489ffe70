//! How the node is, for modules that may know: its own half, the supervisor's, and what such a module says that the operator has to see.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use openred_module::{ConditionState, HostError, ModuleState, NodeStatus, OperateError};

use super::Modules;
use super::supervisor::Supervisor;
use crate::clock;
use crate::health::{Condition, Health};

/// The node's own half: what it says of links, sessions and directories.
pub(crate) trait NodeView: Send + Sync {
    /// Everything but modules, conditions and processes.
    fn own_half(&self) -> NodeStatus;
}

/// The operator's operations.
#[async_trait]
pub(crate) trait Operate: Send + Sync {
    /// Carries one out, as for the operator.
    async fn operate(&self, operation: &str, request: Bytes) -> Result<Bytes, OperateError>;
}

/// See the file's head. Its sources are set once, when they are there.
#[derive(Default)]
pub(crate) struct View {
    node: OnceLock<Weak<dyn NodeView>>,
    modules: OnceLock<Weak<Modules>>,
    supervisor: OnceLock<Arc<Supervisor>>,
    operations: OnceLock<Arc<dyn Operate>>,
    alerts: Mutex<BTreeMap<&'static str, String>>,
}

impl View {
    /// What is looked at. A second word is none.
    pub(crate) fn of(&self, node: Weak<dyn NodeView>, modules: Weak<Modules>) {
        let _ = self.node.set(node);
        let _ = self.modules.set(modules);
    }

    pub(super) fn through(&self, supervisor: Arc<Supervisor>) {
        let _ = self.supervisor.set(supervisor);
    }

    pub(super) fn operate_by(&self, operations: Arc<dyn Operate>) {
        let _ = self.operations.set(operations);
    }

    /// Carries out an operation of the operator. What the module may do is its host's to say, before.
    pub(super) async fn operate(&self, operation: &str, request: Bytes) -> Result<Bytes, OperateError> {
        match self.operations.get() {
            Some(operations) => operations.operate(operation, request).await,
            None => Err(HostError::ShuttingDown.into()),
        }
    }

    /// Both halves; without the supervisor's where it does not answer.
    pub(super) async fn status(&self, health: &Health) -> Result<NodeStatus, HostError> {
        let node = self.node.get().and_then(Weak::upgrade).ok_or(HostError::ShuttingDown)?;
        let mut status = node.own_half();
        let modules = self.modules.get().and_then(Weak::upgrade);
        status.modules = modules.map(|modules| modules.states()).unwrap_or_default();
        let condition = |condition: openred_proto::admin::Condition| ConditionState {
            code: condition.code,
            severity: condition.severity,
            detail: condition.detail,
            depends_on: condition.depends_on,
            since: condition.since,
        };
        status.conditions = health.report().into_iter().map(condition).collect();
        if let Some(supervisor) = self.supervisor.get()
            && let Some((at, processes)) = supervisor.look().await
        {
            (status.seen_at, status.processes) = (Some(at), processes);
        }
        Ok(status)
    }

    /// What a module says that the operator has to see, or that it is over.
    pub(super) fn alert(&self, module: &'static str, detail: Option<String>, health: &Health) {
        let mut alerts = self.alerts.lock().unwrap_or_else(PoisonError::into_inner);
        match detail {
            Some(detail) => alerts.insert(module, detail),
            None => alerts.remove(module),
        };
        let details: Vec<String> = alerts.iter().map(|(module, detail)| format!("{module}: {detail}")).collect();
        if details.is_empty() {
            health.clear(Condition::ModuleAlert);
        } else {
            health.raise(Condition::ModuleAlert, clock::now(), details.join("; "));
        }
    }
}

impl Modules {
    /// Ids, versions and how each is; those that do not run now have no version.
    pub(crate) fn states(&self) -> Vec<ModuleState> {
        let state = |module: &Arc<super::Loaded>| {
            let (state, version) = module.callee.state();
            ModuleState { id: module.id.to_owned(), version: version.unwrap_or_default(), state: state.to_owned() }
        };
        self.all().iter().map(state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_stand_until_their_module_takes_them_back() {
        let (view, health) = (View::default(), Health::default());
        view.alert("monitor", Some("a layer is off".to_owned()), &health);
        view.alert("another", Some("x".to_owned()), &health);
        let report = health.report();
        assert_eq!((report.len(), report[0].code.as_str()), (1, "module.alert"));
        assert_eq!(report[0].detail, "another: x; monitor: a layer is off");
        view.alert("another", None, &health);
        view.alert("monitor", None, &health);
        assert!(health.report().is_empty());
    }
}
