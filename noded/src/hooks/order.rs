//! In which order the hooks of a point are asked: by class; inside a class by what they say of each other, then by the operator's list,
//! then by name. A cycle is no order, and is named with its path. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use openred_module::Class;

use super::spec::Spec;

/// A hook's place, and why it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// In the list that was ordered.
    pub(crate) index: usize,
    pub(crate) reason: Reason,
}

/// Why a hook stands where it does among those of its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Behind this one, as one of the two says; the last of those that it waits for.
    After(String),
    /// At this place of the operator's list, from 1.
    Listed(usize),
    /// By its name.
    Name,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(name) => write!(f, "after {name}"),
            Self::Listed(place) => write!(f, "list {place}"),
            Self::Name => f.write_str("name"),
        }
    }
}

/// Hooks that each want to stand before the next, and the last before the first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Cycle(pub(crate) Vec<String>);

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0.first().map_or("", String::as_str);
        write!(f, "{} → {first}: each stands before the next", self.0.join(" → "))
    }
}

/// Who stands before whom, by index.
type Edges = BTreeMap<usize, BTreeSet<usize>>;

/// The order of `hooks`, which are all of one point. What a hook says of one that is not there says nothing.
pub(crate) fn order(hooks: &[&Spec], listed: &[String]) -> Result<Vec<Place>, Cycle> {
    let edges = edges(hooks);
    // Against the classes no hook stands before another.
    for (before, behind) in
        edges.iter().flat_map(|(before, behind)| behind.iter().map(move |behind| (*before, *behind)))
    {
        if hooks[before].class > hooks[behind].class {
            return Err(Cycle(vec![hooks[before].name(), hooks[behind].name()]));
        }
    }
    let mut places = Vec::with_capacity(hooks.len());
    for class in Class::ALL {
        order_class(hooks, class, &edges, listed, &mut places)?;
    }
    Ok(places)
}

fn edges(hooks: &[&Spec]) -> Edges {
    let mut edges = Edges::new();
    let named = |name: &String, own: usize| {
        let name = name.clone();
        (0..hooks.len()).filter(move |other| *other != own && hooks[*other].is_called(&name))
    };
    for (own, hook) in hooks.iter().enumerate() {
        for behind in hook.before.iter().flat_map(|name| named(name, own)) {
            edges.entry(own).or_default().insert(behind);
        }
        for before in hook.after.iter().flat_map(|name| named(name, own)) {
            edges.entry(before).or_default().insert(own);
        }
    }
    edges
}

fn order_class(
    hooks: &[&Spec],
    class: Class,
    edges: &Edges,
    listed: &[String],
    places: &mut Vec<Place>,
) -> Result<(), Cycle> {
    let is_of = |index: &usize| hooks[*index].class == class;
    let rank = |index: usize| listed.iter().position(|name| hooks[index].is_called(name)).unwrap_or(usize::MAX);
    let key = |index: usize| (rank(index), hooks[index].name(), index);
    let mut waits: BTreeMap<usize, usize> = (0..hooks.len()).filter(is_of).map(|index| (index, 0)).collect();
    for behind in edges.iter().filter(|(before, _)| is_of(before)).flat_map(|(_, behind)| behind) {
        waits.entry(*behind).and_modify(|count| *count += 1);
    }
    let mut ready: BTreeSet<_> = waits.iter().filter(|(_, count)| **count == 0).map(|(index, _)| key(*index)).collect();
    let mut last: BTreeMap<usize, usize> = BTreeMap::new();
    while let Some((rank, _, index)) = ready.pop_first() {
        waits.remove(&index);
        let reason = match (last.get(&index), rank) {
            (Some(before), _) => Reason::After(hooks[*before].name()),
            (None, usize::MAX) => Reason::Name,
            (None, rank) => Reason::Listed(rank + 1),
        };
        places.push(Place { index, reason });
        for behind in edges.get(&index).into_iter().flatten() {
            let Some(count) = waits.get_mut(behind) else { continue };
            *count -= 1;
            last.insert(*behind, index);
            if *count == 0 {
                ready.insert(key(*behind));
            }
        }
    }
    match waits.keys().find_map(|start| cycle(*start, edges, &waits)) {
        Some(path) => Err(Cycle(path.into_iter().map(|index| hooks[index].name()).collect())),
        None => Ok(()),
    }
}

/// The shortest way from `start` back to itself among those that are left.
fn cycle(start: usize, edges: &Edges, left: &BTreeMap<usize, usize>) -> Option<Vec<usize>> {
    let mut came: BTreeMap<usize, usize> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for next in edges.get(&at).into_iter().flatten().copied().filter(|next| left.contains_key(next)) {
            if next == start {
                let mut path: Vec<usize> = std::iter::successors(Some(at), |at| came.get(at).copied()).collect();
                path.reverse();
                return Some(path);
            }
            if next != start && !came.contains_key(&next) {
                came.insert(next, at);
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::super::spec::tests::spec;
    use super::*;

    fn hook(name: &str, class: Class, before: &[&str], after: &[&str]) -> Spec {
        let (module, id) = name.split_once('/').unwrap();
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Spec { before: own(before), after: own(after), ..spec(module, id, class) }
    }

    fn ordered(hooks: &[Spec], listed: &[&str]) -> Result<Vec<(String, String)>, String> {
        let refs: Vec<&Spec> = hooks.iter().collect();
        let listed: Vec<String> = listed.iter().map(|name| (*name).to_owned()).collect();
        let places = order(&refs, &listed).map_err(|cycle| cycle.to_string())?;
        Ok(places.into_iter().map(|place| (hooks[place.index].name(), place.reason.to_string())).collect())
    }

    fn names(order: &[(String, String)]) -> Vec<&str> {
        order.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn class_then_each_other_then_the_list_then_the_name() {
        use Class::{Authn, Authz, Observe, Transform};
        let hooks = [
            hook("z/watch", Observe, &[], &[]),
            hook("c/late", Authz, &[], &["b/gate"]),
            hook("b/gate", Authz, &[], &[]),
            hook("a/gate", Authz, &[], &[]),
            hook("y/change", Transform, &["x"], &["nobody/here"]),
            hook("x/change", Transform, &[], &[]),
            hook("w/who", Authn, &[], &[]),
        ];
        let order = ordered(&hooks, &["b", "c/late"]).unwrap();
        let names = names(&order);
        assert_eq!(names, ["w/who", "b/gate", "c/late", "a/gate", "y/change", "x/change", "z/watch"]);
        let reasons: Vec<&str> = order.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(reasons, ["name", "list 1", "after b/gate", "name", "name", "after y/change", "name"]);
    }

    #[test]
    fn a_cycle_is_refused_with_its_path() {
        use Class::{Authn, Authz};
        let round = [
            hook("a/x", Authz, &["b/y"], &[]),
            hook("b/y", Authz, &[], &[]),
            hook("c/z", Authz, &["a/x"], &["b"]),
            hook("d/behind", Authz, &[], &["c/z"]),
        ];
        assert_eq!(ordered(&round, &[]).unwrap_err(), "a/x → b/y → c/z → a/x: each stands before the next");
        let against = [hook("a/who", Authn, &[], &["b/may"]), hook("b/may", Authz, &[], &[])];
        assert_eq!(ordered(&against, &[]).unwrap_err(), "b/may → a/who → b/may: each stands before the next");
        let two = [hook("a/x", Authz, &["a/y"], &["a/y"]), hook("a/y", Authz, &[], &[])];
        assert_eq!(ordered(&two, &[]).unwrap_err(), "a/x → a/y → a/x: each stands before the next");
        let itself = [hook("a/x", Authz, &["a"], &["a/x"])];
        assert!(ordered(&itself, &[]).is_ok(), "of itself a hook says nothing");
    }

    proptest! {
        #[test]
        fn any_order_keeps_every_word_and_any_cycle_is_one(
            words in prop::collection::vec((0_usize..8, 0_usize..8, any::<bool>()), 0..12),
            classes in prop::collection::vec(0_usize..4, 8),
            listed in prop::collection::vec(0_usize..8, 0..4),
            turn in 0_usize..8,
        ) {
            let mut hooks: Vec<Spec> =
                (0..8).map(|number| hook(&format!("m{number}/h"), Class::ALL[classes[number]], &[], &[])).collect();
            for (own, other, before) in &words {
                let name = format!("m{other}/h");
                if *before { hooks[*own].before.push(name) } else { hooks[*own].after.push(name) }
            }
            let listed: Vec<String> = listed.iter().map(|number| format!("m{number}")).collect();
            let refs: Vec<&Spec> = hooks.iter().collect();
            // Whether `one` says, or is said, to stand before `other`.
            let stands = |one: &Spec, other: &Spec| {
                one.before.contains(&other.name()) || other.after.contains(&one.name()) || one.class < other.class
            };
            match order(&refs, &listed) {
                Ok(places) => {
                    prop_assert_eq!(places.iter().map(|place| place.index).collect::<BTreeSet<_>>().len(), hooks.len());
                    for (at, place) in places.iter().enumerate() {
                        for earlier in &places[..at] {
                            let (one, other) = (&hooks[earlier.index], &hooks[place.index]);
                            prop_assert!(!stands(other, one), "{} stands behind {}", other.name(), one.name());
                        }
                    }
                    // The order does not depend on the order in which modules were installed.
                    let mut turned = refs.clone();
                    turned.rotate_left(turn);
                    let again = order(&turned, &listed).unwrap();
                    let names = |list: &[&Spec], places: &[Place]| -> Vec<String> {
                        places.iter().map(|place| list[place.index].name()).collect()
                    };
                    prop_assert_eq!(names(&refs, &places), names(&turned, &again));
                }
                Err(Cycle(path)) => {
                    prop_assert!(path.len() >= 2);
                    let find = |name: &String| hooks.iter().find(|hook| hook.name() == *name).unwrap();
                    for (at, name) in path.iter().enumerate() {
                        let next = find(&path[(at + 1) % path.len()]);
                        prop_assert!(stands(find(name), next), "{name} does not stand before {}", next.name());
                    }
                }
            }
        }
    }
}
