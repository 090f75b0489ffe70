//! Rules of a manifest that take more than one key: bounds of lists, what must differ, what must fit together.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::hook::TIMEOUT_MILLIS;
use super::vocabulary::{Field, Fields};
use super::{
    AUDIT_EVENTS, Auth, BODY_BYTES, ENTRIES, HOOKS, Hook, HookClass, Limits, METHODS, Manifest, MethodDescription,
    ROUTES, Route, SETTINGS,
};
use crate::Method;

/// Largest rate and burst.
const RATE: RangeInclusive<u32> = 1..=1_000_000;

/// Shortest time after which a module may be ended that nobody calls, and longest. What ends is started again, and that copies and hashes its program: one
/// that sets itself timers has it done as often as it sleeps.
const IDLE_SECONDS: RangeInclusive<u32> = 30..=86_400;

/// A rule that is broken: at which key, how, and the way out.
pub(super) struct Wrong {
    pub(super) key: String,
    pub(super) what: String,
}

fn wrong<T>(key: impl Into<String>, what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { key: key.into(), what: what.into() })
}

pub(super) fn all(manifest: &Manifest) -> Result<(), Wrong> {
    let abi = manifest.abi;
    if abi.oldest == 0 || abi.oldest > abi.newest {
        return wrong("abi", "not a range; `oldest` is at least 1 and at most `newest`");
    }
    at_most("route", manifest.routes.len(), ROUTES)?;
    at_most("hook", manifest.hooks.len(), HOOKS)?;
    at_most("config", manifest.config.len(), SETTINGS)?;
    at_most("audit", manifest.audit.len(), AUDIT_EVENTS)?;
    at_most("method", manifest.methods.len(), METHODS)?;
    limits(manifest.limits)?;
    routes(&manifest.routes)?;
    hooks(manifest)?;
    methods(&manifest.methods)
}

fn at_most(key: &str, count: usize, most: usize) -> Result<(), Wrong> {
    if count > most { wrong(key, format!("{count} are too many; have at most {most}")) } else { Ok(()) }
}

fn within(key: &str, number: u32, range: RangeInclusive<u32>) -> Result<(), Wrong> {
    if range.contains(&number) {
        return Ok(());
    }
    wrong(key, format!("{number} is out of range; use {} to {}", range.start(), range.end()))
}

fn limits(limits: Limits) -> Result<(), Wrong> {
    within("limits.memory_megabytes", limits.memory_megabytes, 8..=1 << 16)?;
    within("limits.cpu_percent", limits.cpu_percent, 1..=6400)?;
    within("limits.tasks", limits.tasks, 1..=4096)?;
    within("limits.descriptors", limits.descriptors, 16..=65536)?;
    within("limits.start_seconds", limits.start_seconds, 1..=300)?;
    within("limits.stop_seconds", limits.stop_seconds, 1..=60)?;
    // 0: never.
    if limits.idle_seconds == 0 { Ok(()) } else { within("limits.idle_seconds", limits.idle_seconds, IDLE_SECONDS) }
}

fn routes(routes: &[Route]) -> Result<(), Wrong> {
    let mut seen = BTreeSet::new();
    for (number, route) in routes.iter().enumerate() {
        let key = |name: &str| format!("route[{number}].{name}");
        if !seen.insert((route.auth, route.method == Method::Get, route.path.shape())) {
            return wrong(key("path"), "serves the same calls as a route before it; take one of the two out");
        }
        if route.body_bytes > BODY_BYTES {
            return wrong(key("body_bytes"), format!("too long; use at most {BODY_BYTES}"));
        }
        if let Some(rate) = route.rate {
            if route.auth == Auth::Operator {
                return wrong(key("rate"), "the operator is not held to a rate; leave it out");
            }
            within(&key("rate.per_second"), rate.per_second, RATE)?;
            within(&key("rate.burst"), rate.burst, RATE)?;
        }
    }
    Ok(())
}

fn hooks(manifest: &Manifest) -> Result<(), Wrong> {
    let mut seen = BTreeSet::new();
    for (number, hook) in manifest.hooks.iter().enumerate() {
        let key = |name: &str| format!("hook[{number}].{name}");
        if !seen.insert(&hook.id) {
            return wrong(key("id"), "a hook before it has this id; give each its own");
        }
        within(&key("timeout_millis"), hook.timeout_millis, TIMEOUT_MILLIS)?;
        let lists = [
            ("before", hook.before.len()),
            ("after", hook.after.len()),
            ("match.modules", hook.matches.modules.len()),
            ("match.peers", hook.matches.peers.len()),
        ];
        lists.into_iter().try_for_each(|(name, count)| at_most(&key(name), count, ENTRIES))?;
        hook_order(manifest, hook, &key)?;
        hook_fields(hook, &key)?;
    }
    Ok(())
}

fn hook_order(manifest: &Manifest, hook: &Hook, key: &impl Fn(&str) -> String) -> Result<(), Wrong> {
    for (name, others) in [("before", &hook.before), ("after", &hook.after)] {
        for (place, other) in others.iter().enumerate() {
            let key = format!("{}[{place}]", key(name));
            let is_own = other.module == manifest.id;
            if is_own && other.hook.as_ref().is_none_or(|id| *id == hook.id) {
                return wrong(key, "a hook does not come before or after itself; name another");
            }
            if is_own && !manifest.hooks.iter().any(|known| Some(&known.id) == other.hook.as_ref()) {
                return wrong(key, "this module has no such hook; name one that it has");
            }
        }
    }
    for (name, prefix) in [("match.path", &hook.matches.path), ("match.content_type", &hook.matches.content_type)] {
        let begins = name != "match.path" || prefix.as_ref().is_none_or(|prefix| prefix.starts_with('/'));
        if !begins || prefix.as_ref().is_some_and(|prefix| prefix.is_empty() || prefix.len() > 256) {
            return wrong(key(name), "not a prefix; use 1 to 256 bytes, a path's beginning with /");
        }
    }
    Ok(())
}

fn hook_fields(hook: &Hook, key: &impl Fn(&str) -> String) -> Result<(), Wrong> {
    for (name, fields) in [("fields", &hook.fields), ("changes", &hook.changes)] {
        if fields.iter().collect::<BTreeSet<_>>().len() != fields.len() {
            return wrong(key(name), "names a field twice; name each once");
        }
    }
    if !hook.changes.is_empty() && hook.class != HookClass::Transform {
        return wrong(
            key("changes"),
            "only hooks of class `transform` change calls; leave it out, or change the class",
        );
    }
    let names = |fields: Fields| fields.iter().map(Field::name).collect::<Vec<_>>().join(", ");
    let shows = hook.point.shows();
    if let Some(place) = hook.fields.iter().position(|field| !shows.has(*field)) {
        let what = format!("calls have no such field at this point; use {}", names(shows));
        return wrong(format!("{}[{place}]", key("fields")), what);
    }
    let can = hook.point.changes();
    if let Some(place) = hook.changes.iter().position(|field| !can.has(*field)) {
        return wrong(format!("{}[{place}]", key("changes")), format!("no hook changes this here; use {}", names(can)));
    }
    if let Some(place) = hook.changes.iter().position(|field| !hook.fields.contains(field)) {
        return wrong(format!("{}[{place}]", key("changes")), "what a hook changes it has to see; add it to `fields`");
    }
    if hook.on_failure.is_some() && hook.class != HookClass::Transform {
        let what = "only for class `transform`: `authn` and `authz` close, `observe` opens; leave it out";
        return wrong(key("on_failure"), what);
    }
    Ok(())
}

fn methods(methods: &[MethodDescription]) -> Result<(), Wrong> {
    let mut seen = BTreeSet::new();
    for (number, method) in methods.iter().enumerate() {
        let key = |name: &str| format!("method[{number}].{name}");
        if !seen.insert(&method.name) {
            return wrong(key("name"), "a method before it has this name; give each its own");
        }
        let kinds: BTreeSet<_> = method.transforms.iter().collect();
        if method.transforms.is_empty() || kinds.len() != method.transforms.len() {
            return wrong(key("transforms"), "not an order; name one to four transforms, each once");
        }
    }
    Ok(())
}
