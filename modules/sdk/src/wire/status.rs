//! The node's state on the wire and back. Texts come from the node alone, so nothing is checked here but their presence.

use openred_proto::module as wire;

use crate::status::{ConditionState, DirectoryState, LayerState, LinkCount, ModuleState, NodeStatus, ProcessState};

pub(crate) fn of_status(status: NodeStatus) -> wire::NodeStatusReply {
    let directory =
        |at: DirectoryState| wire::DirectoryState { url: at.url, state: at.state, detail: at.detail, since: at.since };
    let condition = |at: ConditionState| wire::ConditionState {
        code: at.code,
        severity: at.severity,
        detail: at.detail,
        depends_on: at.depends_on,
        since: at.since,
    };
    let layer = |at: LayerState| wire::LayerState { name: at.name, on: at.on, detail: at.detail };
    let process = |at: ProcessState| wire::ProcessState {
        name: at.name,
        state: at.state,
        restarts: at.restarts,
        since: at.since,
        layers: at.layers.into_iter().map(layer).collect(),
    };
    wire::NodeStatusReply {
        started_at: status.started_at,
        links: status.links.into_iter().map(|at| wire::LinkCount { state: at.state, links: at.links }).collect(),
        sessions: status.sessions,
        key_operations: status.key_operations,
        directories: status.directories.into_iter().map(directory).collect(),
        modules: status.modules.into_iter().map(of_module).collect(),
        conditions: status.conditions.into_iter().map(condition).collect(),
        processes: status.processes.into_iter().map(process).collect(),
        seen_at: status.seen_at.unwrap_or(0),
    }
}

pub(crate) fn to_status(reply: wire::NodeStatusReply) -> NodeStatus {
    let directory =
        |at: wire::DirectoryState| DirectoryState { url: at.url, state: at.state, detail: at.detail, since: at.since };
    let condition = |at: wire::ConditionState| ConditionState {
        code: at.code,
        severity: at.severity,
        detail: at.detail,
        depends_on: at.depends_on,
        since: at.since,
    };
    let layer = |at: wire::LayerState| LayerState { name: at.name, on: at.on, detail: at.detail };
    let process = |at: wire::ProcessState| ProcessState {
        name: at.name,
        state: at.state,
        restarts: at.restarts,
        since: at.since,
        layers: at.layers.into_iter().map(layer).collect(),
    };
    NodeStatus {
        started_at: reply.started_at,
        links: reply.links.into_iter().map(|at| LinkCount { state: at.state, links: at.links }).collect(),
        sessions: reply.sessions,
        key_operations: reply.key_operations,
        directories: reply.directories.into_iter().map(directory).collect(),
        modules: reply.modules.into_iter().map(to_module).collect(),
        conditions: reply.conditions.into_iter().map(condition).collect(),
        processes: reply.processes.into_iter().map(process).collect(),
        seen_at: (reply.seen_at > 0).then_some(reply.seen_at),
    }
}

fn of_module(ModuleState { id, version, state }: ModuleState) -> wire::ModuleState {
    wire::ModuleState { id, version, state }
}

fn to_module(wire::ModuleState { id, version, state }: wire::ModuleState) -> ModuleState {
    ModuleState { id, version, state }
}
