//! What a later version of a module takes beyond the one before it, where that is no permission: of the machine, of its callers, of methods. Pure.

use super::{Auth, Limits, Manifest, Method, Rate, Route};

impl Manifest {
    /// What this takes beyond `before`, one text each; nothing where that was weighed already. Permissions are told apart by
    /// [`super::Grants::beyond`].
    #[must_use]
    pub fn raised(&self, before: &Self) -> Vec<String> {
        let mut raised = raised_limits(&self.limits, &before.limits);
        for route in &self.routes {
            let known = before.routes.iter().find(|known| serves_the_same(known, route));
            match known {
                Some(known) => raised.extend(raised_route(route, known)),
                // Routes for peers are permissions.
                None if route.auth == Auth::Peer => {}
                None => raised.push(format!("{} is new", name(route))),
            }
        }
        for method in &self.methods {
            if !before.methods.contains(method) {
                raised.push(format!("the method {} is new", method.name));
            }
        }
        raised
    }
}

fn raised_limits(now: &Limits, before: &Limits) -> Vec<String> {
    let limits = [
        ("memory_megabytes", now.memory_megabytes, before.memory_megabytes),
        ("cpu_percent", now.cpu_percent, before.cpu_percent),
        ("tasks", now.tasks, before.tasks),
        ("descriptors", now.descriptors, before.descriptors),
        ("start_seconds", now.start_seconds, before.start_seconds),
        ("stop_seconds", now.stop_seconds, before.stop_seconds),
    ];
    let raised = limits.into_iter().filter(|(_, now, before)| now > before);
    raised.map(|(name, now, before)| format!("limits.{name} from {before} to {now}")).collect()
}

fn serves_the_same(one: &Route, other: &Route) -> bool {
    (one.auth, one.method, one.path.shape()) == (other.auth, other.method, other.path.shape())
}

fn raised_route(now: &Route, before: &Route) -> Vec<String> {
    let mut raised = Vec::new();
    if now.body_bytes > before.body_bytes {
        raised.push(format!("{}: body_bytes from {} to {}", name(now), before.body_bytes, now.body_bytes));
    }
    let looser = |now: Rate, before: Rate| now.per_second > before.per_second || now.burst > before.burst;
    let is_looser = match (now.rate, before.rate) {
        (Some(now), Some(before)) => looser(now, before),
        (None, before) => before.is_some(),
        (Some(_), None) => false,
    };
    if is_looser {
        raised.push(format!("{}: a looser rate", name(now)));
    }
    raised
}

/// As the operator knows it: with whose calls it takes.
fn name(route: &Route) -> String {
    let whose = match route.auth {
        Auth::Peer => "peers",
        Auth::Operator => "the operator",
        Auth::Module => "modules",
    };
    let method = match route.method {
        Method::Get => "GET",
        Method::Post => "POST",
    };
    format!("{method} {} of {whose}", route.path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const METHOD: &str = "[[method]]\nname = \"epsilon\"\nkdf = \"hkdf\"\naead = \"aes-256-gcm\"\nhash = \"sha512\"\ntransforms = [\"mask\"]";

    fn manifest(rest: &str) -> Manifest {
        let head = "id = \"m\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"d\"\n";
        Manifest::parse("openred.toml", &format!("{head}{rest}")).unwrap()
    }

    fn route(auth: &str, path: &str, more: &str) -> String {
        format!("[[route]]\nmethod = \"POST\"\npath = \"{path}\"\nauth = \"{auth}\"\n{more}\n")
    }

    #[test]
    fn each_limit_route_rate_and_method_beyond_is_named() {
        let cases: [(&str, &str, &str); 12] = [
            (
                "[limits]\nmemory_megabytes = 64",
                "[limits]\nmemory_megabytes = 65",
                "limits.memory_megabytes from 64 to 65",
            ),
            ("", "[limits]\ncpu_percent = 101", "limits.cpu_percent"),
            ("", "[limits]\ntasks = 33", "limits.tasks"),
            ("", "[limits]\ndescriptors = 257", "limits.descriptors"),
            ("", "[limits]\nstart_seconds = 31", "limits.start_seconds"),
            ("", "[limits]\nstop_seconds = 11", "limits.stop_seconds"),
            ("", &route("operator", "/a", ""), "POST /a of the operator is new"),
            ("", &route("module", "/a", ""), "POST /a of modules is new"),
            (
                &route("peer", "/a/{b}", "body_bytes = 1"),
                &route("peer", "/a/{c}", "body_bytes = 2"),
                "POST /a/{c} of peers: body_bytes from 1 to 2",
            ),
            (
                &route("peer", "/a", "rate = { per_second = 1, burst = 2 }"),
                &route("peer", "/a", "rate = { per_second = 1, burst = 3 }"),
                "a looser rate",
            ),
            (&route("peer", "/a", "rate = { per_second = 1, burst = 2 }"), &route("peer", "/a", ""), "a looser rate"),
            ("", METHOD, "the method epsilon is new"),
        ];
        for (before, now, named) in cases {
            let (before, now) = (manifest(before), manifest(now));
            let raised = now.raised(&before);
            assert!(raised.len() == 1 && raised[0].contains(named), "{named}: {raised:?}");
            assert!(now.raised(&now).is_empty() && before.raised(&before).is_empty());
            assert!(before.raised(&now).is_empty(), "less is not more: {named}");
        }
        let peers = manifest(&route("peer", "/a", ""));
        assert!(peers.raised(&manifest("")).is_empty(), "that is a permission");
    }
}
