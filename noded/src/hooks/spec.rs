//! A hook as its module's manifest declares it, and the calls that it is chosen for. Pure: the filter is looked at here, in the node, so
//! that a module is not asked about calls that are none of its business.

use std::time::Duration;

use openred_module::manifest::{Hook, HookName, OnFailure};
use openred_module::{Class, Field, Fields, HookRequest, Method, Point};
use openred_proto::id::NodeId;

/// Shortest and longest time that a hook may take; what is declared is brought between them.
pub(crate) const TIMEOUT_LEAST: Duration = Duration::from_millis(50);
/// See [`TIMEOUT_LEAST`].
pub(crate) const TIMEOUT_MOST: Duration = Duration::from_millis(100);

/// See the file's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) module: String,
    pub(crate) id: String,
    pub(crate) point: Point,
    pub(crate) class: Class,
    /// Hooks (`MODULE/HOOK`) or modules whose hooks of this class it stands before.
    pub(crate) before: Vec<String>,
    /// The same, behind.
    pub(crate) after: Vec<String>,
    pub(crate) filter: Filter,
    /// What it is shown.
    pub(crate) fields: Fields,
    /// What it may change.
    pub(crate) changes: Fields,
    pub(crate) timeout: Duration,
    /// Of a transform: whether a call goes on where it fails.
    pub(crate) opens: bool,
}

impl Spec {
    /// What the manifest of `module` says.
    pub(crate) fn of(module: &str, hook: &Hook) -> Self {
        let names = |names: &[HookName]| names.iter().map(ToString::to_string).collect();
        Self {
            module: module.to_owned(),
            id: hook.id.to_string(),
            point: hook.point,
            class: hook.class,
            before: names(&hook.before),
            after: names(&hook.after),
            filter: Filter {
                modules: hook.matches.modules.iter().map(ToString::to_string).collect(),
                method: hook.matches.method,
                path: hook.matches.path.clone(),
                peers: hook.matches.peers.clone(),
                content_type: hook.matches.content_type.clone(),
            },
            fields: hook.fields.iter().copied().collect(),
            changes: hook.changes.iter().copied().collect(),
            timeout: Duration::from_millis(u64::from(hook.timeout_millis)),
            opens: hook.on_failure() == OnFailure::Open,
        }
    }

    /// As other manifests and the operator's list name it.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.module, self.id)
    }

    /// Whether `name` means it: itself, or all hooks of its module.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        match name.split_once('/') {
            Some((module, id)) => module == self.module && id == self.id,
            None => name == self.module,
        }
    }

    /// Whether a call goes on where the hook fails. Who decides about callers does not open, whatever the manifest says.
    pub(crate) fn opens(&self) -> bool {
        match self.class {
            Class::Authn | Class::Authz => false,
            Class::Transform => self.opens,
            Class::Observe => true,
        }
    }

    /// How long it is waited for.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout.clamp(TIMEOUT_LEAST, TIMEOUT_MOST)
    }

    /// What it is shown of a call: of what this point has, what it declares.
    pub(crate) fn shown(&self, call: &Seen<'_>, body: Option<&Shown>) -> HookRequest {
        let fields = self.fields.and(self.point.shows());
        let has = |field| fields.has(field);
        let body = body.filter(|_| has(Field::Body));
        HookRequest {
            point: self.point,
            module: has(Field::Module).then(|| call.module.to_owned()),
            method: Some(call.method).filter(|_| has(Field::Method)),
            path: has(Field::Path).then(|| call.path.to_owned()),
            peer: call.peer.filter(|_| has(Field::Peer)),
            content_type: has(Field::ContentType).then(|| call.content_type.to_owned()),
            length: call.length.filter(|_| has(Field::Length)),
            status: call.status.filter(|_| has(Field::Status)),
            body: body.map(|body| body.bytes.clone()),
            truncated: body.is_some_and(|body| body.truncated),
        }
    }

    /// Whether it has to judge a call again of which these fields were changed: it is shown one of them, or is chosen by one.
    pub(crate) fn judges(&self, changed: Fields) -> bool {
        let mut looks = self.fields;
        if self.filter.path.is_some() {
            looks = looks.with(Field::Path);
        }
        if self.filter.content_type.is_some() {
            looks = looks.with(Field::ContentType);
        }
        // A length follows its body.
        let changed = if changed.has(Field::Body) { changed.with(Field::Length) } else { changed };
        !looks.and(changed).is_empty()
    }
}

/// The beginning of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) bytes: bytes::Bytes,
    pub(crate) truncated: bool,
}

/// A call as a point sees it. Of an answer, module, method, path and peer are those of its request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) module: &'a str,
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) peer: Option<NodeId>,
    pub(crate) content_type: &'a str,
    pub(crate) length: Option<u64>,
    pub(crate) status: Option<u16>,
}

/// Which calls a hook is asked about: what is said must fit, what is not said fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) modules: Vec<String>,
    pub(crate) method: Option<Method>,
    /// With `{name}` segments: the whole path has this shape. Without: it begins so.
    pub(crate) path: Option<String>,
    pub(crate) peers: Vec<NodeId>,
    /// The media type begins so.
    pub(crate) content_type: Option<String>,
}

impl Filter {
    /// Whether a call fits.
    pub(crate) fn fits(&self, call: &Seen<'_>) -> bool {
        (self.modules.is_empty() || self.modules.iter().any(|module| module == call.module))
            && self.method.is_none_or(|method| method == call.method)
            && self.path.as_deref().is_none_or(|wanted| fits_path(wanted, call.path))
            && (self.peers.is_empty() || call.peer.is_some_and(|peer| self.peers.contains(&peer)))
            && self.content_type.as_deref().is_none_or(|wanted| call.content_type.starts_with(wanted))
    }

    /// In one line, for the operator; empty if every call fits.
    pub(crate) fn text(&self) -> String {
        let mut parts = Vec::new();
        if !self.modules.is_empty() {
            parts.push(self.modules.join("|"));
        }
        parts.extend(self.method.map(|method| method_name(method).to_owned()));
        parts.extend(self.path.as_ref().map(|path| if path.contains('{') { path.clone() } else { format!("{path}*") }));
        parts.extend(self.content_type.as_ref().map(|start| format!("{start}*")));
        match self.peers.as_slice() {
            [] => {}
            [peer] => parts.push(format!("peer {peer}")),
            peers => parts.push(format!("{} peers", peers.len())),
        }
        parts.join(" ")
    }
}

/// As it is written.
pub(crate) fn method_name(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Post => "POST",
    }
}

/// As routes compare paths: byte by byte, a `{name}` for one segment that is not empty.
fn fits_path(wanted: &str, path: &str) -> bool {
    let is_name = |part: &str| part.starts_with('{') && part.ends_with('}');
    if !wanted.split('/').any(is_name) {
        return path.starts_with(wanted);
    }
    let (mut wanted, mut given) = (wanted.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(want), Some(have)) if is_name(want) && !have.is_empty() || want == have => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A hook that is shown all and chosen for all.
    pub(crate) fn spec(module: &str, id: &str, class: Class) -> Spec {
        Spec {
            module: module.to_owned(),
            id: id.to_owned(),
            point: Point::Inbound,
            class,
            before: Vec::new(),
            after: Vec::new(),
            filter: Filter::default(),
            fields: Fields::ALL,
            changes: Fields::default(),
            timeout: TIMEOUT_LEAST,
            opens: false,
        }
    }

    fn seen<'a>(path: &'a str, peer: Option<NodeId>) -> Seen<'a> {
        Seen {
            module: "messaging",
            method: Method::Post,
            path,
            peer,
            content_type: "application/json",
            length: Some(2),
            status: None,
        }
    }

    #[test]
    fn what_is_said_must_fit_and_what_is_not_said_fits() {
        let peer = NodeId::from_bytes([1; 32]);
        let fits = |filter: Filter, path| filter.fits(&seen(path, Some(peer)));
        let path = |path: &str| Filter { path: Some(path.to_owned()), ..Filter::default() };
        assert!(fits(Filter::default(), "/x"));
        assert!(fits(path("/deliver"), "/deliver") && fits(path("/deliver"), "/delivery"), "a beginning");
        assert!(!fits(path("/deliver"), "/x/deliver") && !fits(path("/deliver"), "/Deliver"));
        assert!(fits(path("/send/{peer}"), "/send/a") && !fits(path("/send/{peer}"), "/send/a/b"));
        assert!(!fits(path("/send/{peer}"), "/send/") && !fits(path("/send/{peer}"), "/send"));
        assert!(fits(Filter { modules: vec!["files".into(), "messaging".into()], ..Filter::default() }, "/x"));
        assert!(!fits(Filter { modules: vec!["files".into()], ..Filter::default() }, "/x"));
        assert!(!fits(Filter { method: Some(Method::Get), ..Filter::default() }, "/x"));
        assert!(fits(Filter { content_type: Some("application/".into()), ..Filter::default() }, "/x"));
        assert!(!fits(Filter { content_type: Some("text/".into()), ..Filter::default() }, "/x"));
        let one = Filter { peers: vec![peer], ..Filter::default() };
        assert!(one.fits(&seen("/x", Some(peer))) && !one.fits(&seen("/x", None)), "the operator is no peer");
        let all = Filter { method: Some(Method::Post), modules: vec!["m".into()], ..path("/a") };
        assert_eq!((all.text().as_str(), Filter::default().text().as_str()), ("m POST /a*", ""));
    }

    #[test]
    fn only_declared_fields_are_shown() {
        let body = Shown { bytes: "{}".into(), truncated: true };
        let peer = Some(NodeId::from_bytes([1; 32]));
        for wanted in Field::ALL {
            let mut hook = spec("guard", "gate", Class::Authz);
            hook.fields = Fields::default().with(wanted);
            let shown = hook.shown(&seen("/x", peer), Some(&body));
            let has = [
                (Field::Module, shown.module.is_some()),
                (Field::Method, shown.method.is_some()),
                (Field::Path, shown.path.is_some()),
                (Field::Peer, shown.peer.is_some()),
                (Field::ContentType, shown.content_type.is_some()),
                (Field::Length, shown.length.is_some()),
                (Field::Status, shown.status.is_some()),
                (Field::Body, shown.body.is_some()),
            ];
            for (field, is_shown) in has {
                // A request has no status.
                assert_eq!(is_shown, field == wanted && field != Field::Status, "{wanted:?}: {field:?}");
            }
            assert_eq!(shown.truncated, wanted == Field::Body);
        }
    }

    #[test]
    fn a_changed_call_is_judged_by_those_who_look_at_what_changed() {
        let mut hook = spec("guard", "gate", Class::Authz);
        hook.fields = Fields::default().with(Field::Peer).with(Field::Length);
        let changed = |field| Fields::default().with(field);
        assert!(!hook.judges(changed(Field::Path)) && hook.judges(changed(Field::Body)), "its length");
        hook.filter.path = Some("/x".into());
        assert!(hook.judges(changed(Field::Path)) && !hook.judges(changed(Field::ContentType)));
        hook.filter.content_type = Some("text/".into());
        assert!(hook.judges(changed(Field::ContentType)));
        assert!(!hook.judges(Fields::default()));
    }
}
