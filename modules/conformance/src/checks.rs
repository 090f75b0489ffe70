//! All checks, in the order in which an author would want to hear of them.

mod bodies;
mod calls;
mod life;
mod limits;

use anyhow::Result;
use futures_util::future::BoxFuture;

use crate::subject::Subject;

/// One check.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) demand: &'static str,
    pub(crate) run: for<'a> fn(&'a Subject) -> BoxFuture<'a, Result<()>>,
}

macro_rules! checks {
    ($($name:literal $demand:literal $function:path;)*) => {
        &[$(Check { name: $name, demand: $demand, run: |subject| Box::pin($function(subject)) }),*]
    };
}

pub(crate) const ALL: &[Check] = checks! {
    "attach" "attaches from its cage, as what its manifest says" life::attach;
    "version" "refuses a node that speaks none of its versions, and attaches to the next" life::version;
    "wrong-value" "is let in by the right value after a wrong one" life::wrong_value;
    "start-twice" "is started a second time and goes on" life::start_twice;
    "next-node" "goes on under the node's next process" life::next_node;
    "node-gone" "waits when the node's process ends, and serves the next" life::node_gone;
    "ping" "answers a ping, also with every place taken" life::ping;
    "strange-frames" "ignores frames that it does not know or that come too late" life::strange_frames;
    "events" "deals with every event, of peers and timers that it does not know" life::events;
    "routes" "serves every route of its manifest" calls::routes;
    "other-callers" "serves a route to nobody but whom it is for" calls::other_callers;
    "unknown-route" "refuses a path that it does not have, of any length" calls::unknown_route;
    "wrong-method" "refuses a route's other method" calls::wrong_method;
    "body-too-long" "refuses a longer body than the route's, declared or not" bodies::too_long;
    "body-cut" "survives a body that breaks off" bodies::cut;
    "credit" "sends no more than it was granted, and grants what it reads" bodies::credit;
    "cancel" "ends a call that is given up" bodies::cancel;
    "deadline" "ends a call whose deadline has passed" calls::deadline;
    "drain" "says when its last call has ended" life::drain;
    "limits" "serves within the limits of its manifest" limits::within;
    "limits-hold" "is ended or refused when it takes more of the machine than that" limits::hold;
    "shutdown" "ends well when it is told to" life::shutdown;
    "pipe-end" "ends when no supervisor is left" life::pipe_end;
};
