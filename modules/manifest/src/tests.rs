//! Manifests good and bad: each bad one with what its refusal must name.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

const LEAST: &str = "id = \"m\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"d\"\n";

const FULL: &str = r#"
id = "guard"
version = "1.2.3-rc.1"
abi = { oldest = 1, newest = 2 }
program = "guard"
sha256 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
description = "Looks at what comes"

[[route]]
method = "POST"
path = "/ask/{peer}/now"
auth = "peer"
body_bytes = 1024
rate = { per_second = 5, burst = 10 }

[[route]]
method = "GET"
path = "/ask/{peer}/now"
auth = "module"

[[hook]]
id = "count"
reason = "counting calls"
point = "inbound"
class = "transform"
before = ["other/first", "files"]
match = { modules = ["messaging"], method = "POST", path = "/deliver", content_type = "application/" }
fields = ["peer", "path", "body"]
changes = ["body"]
timeout_millis = 80
on_failure = "open"

[permissions]
kv.quota = { megabytes = 16, reason = "counts" }
peer.send = { reason = "asking back" }
module.call = { modules = ["files", "messaging"], reason = "r" }
sign.domain = { reason = "r" }
seal = { reason = "r" }
net.egress = { to = ["api.example.com:443", "[2001:db8::1]:80"], reason = "r" }
fs.read = { paths = ["/etc/hosts"], reason = "r" }
http.listen = { address = "127.0.0.1:9464", reason = "r" }
node.status = { reason = "r" }

[limits]
memory_megabytes = 32
idle_seconds = 60

[config.days]
type = "integer"
default = 30
least = 1
most = 365
help = "How long counts are kept"

[config.mode]
type = "text"
one_of = ["strict", "kind"]
help = "What happens to strangers"

[audit]
blocked = "a call was refused"

[[method]]
name = "epsilon"
kdf = "hkdf"
aead = "aes-256-gcm"
hash = "sha512"
transforms = ["permute", "mask"]
"#;

fn refused(text: &str) -> String {
    Manifest::parse("openred.toml", text).map(drop).unwrap_err().to_string()
}

#[test]
fn all_of_a_manifest_is_read() {
    let manifest = Manifest::parse("openred.toml", FULL).unwrap();
    assert_eq!((manifest.id.as_str(), manifest.version.as_str()), ("guard", "1.2.3-rc.1"));
    assert_eq!(manifest.abi.common(1, 1), Some(1));
    assert_eq!(manifest.abi.common(3, 4), None);
    assert_eq!(manifest.routes[0].entry(), "POST /ask/{peer}/now");
    assert_eq!(manifest.hooks[0].on_failure(), OnFailure::Open);
    assert_eq!(manifest.limits, Limits { memory_megabytes: 32, idle_seconds: 60, ..Limits::default() });
    assert_eq!(manifest.methods[0].transforms, [Transform::Permute, Transform::Mask]);
    let asked: Vec<String> = manifest.asked().iter().map(|asked| asked.permission.to_string()).collect();
    let wanted = [
        "kv.quota 16 MB",
        "peer.send",
        "route.peer POST /ask/{peer}/now",
        "hook count inbound transform sees body+path+peer changes body of messaging method POST path \"/deliver\" \
         type \"application/\" before files+other/first opens",
        "module.call files, messaging",
        "sign.domain",
        "seal",
        "net.egress [2001:db8::1]:80, api.example.com:443",
        "fs.read /etc/hosts",
        "http.listen 127.0.0.1:9464",
        "node.status",
    ];
    assert_eq!(asked, wanted);
    let filter = &manifest.hooks[0].matches;
    assert_eq!((filter.method, filter.path.as_deref()), (Some(Method::Post), Some("/deliver")));
}

#[test]
fn the_built_in_modules_manifests_are_read() {
    let messaging = include_str!("../../messaging/openred.toml");
    let files = include_str!("../../files/openred.toml");
    for (file, text) in [("messaging/openred.toml", messaging), ("files/openred.toml", files)] {
        let manifest = Manifest::parse(file, text).unwrap();
        assert_eq!(manifest.version.as_str(), env!("CARGO_PKG_VERSION"), "{file}");
    }
}

/// Text that is put behind the least manifest (or, from `@`, instead of it), and what the complaint names.
const BAD: &[(&str, &[&str])] = &[
    ("@", &["missing key", "id"]),
    ("colour = \"red\"", &[":5:1:", "unknown key `colour`"]),
    ("verison = \"1\"", &["did you mean `version`"]),
    ("@id = \"M\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"d\"", &[":1:6:", "id:", "use 1 to 32 of a-z"]),
    ("@id = \"openred\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"d\"", &["id:", "not `openred`"]),
    ("@id = \"m\"\nversion = \"1.0\"\nprogram = \"m\"\ndescription = \"d\"", &["version:", "MAJOR.MINOR.PATCH"]),
    ("@id = \"m\"\nversion = \"1.0.0\"\nprogram = \"../m\"\ndescription = \"d\"", &["program:", "no path"]),
    ("@id = \"m\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"a\\nb\"", &["description:", "line break"]),
    ("@id = \"m\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"a\u{202e}b\"", &["description:", "printable"]),
    ("sha256 = \"00\"", &["sha256:", "openred module sign"]),
    ("abi = { oldest = 2, newest = 1 }", &["abi:", "`oldest`"]),
    ("[[route]]\nmethod = \"PUT\"\npath = \"/\"\nauth = \"peer\"", &["route[0].method:", "GET"]),
    ("[[route]]\nmethod = \"GET\"\npath = \"x\"\nauth = \"peer\"", &["route[0].path:", "/word/{name}"]),
    ("[[route]]\nmethod = \"GET\"\npath = \"/{a}/{a}\"\nauth = \"peer\"", &["route[0].path:", "once"]),
    ("[[route]]\nmethod = \"GET\"\npath = \"/a\"\nauth = \"anyone\"", &["unknown value `anyone`", "operator"]),
    ("[[route]]\nmethod = \"GET\"\npath = \"/a\"", &["missing key `auth`"]),
    (
        "[[route]]\nmethod = \"GET\"\npath = \"/{a}\"\nauth = \"peer\"\n[[route]]\nmethod = \"GET\"\npath = \"/{b}\"\nauth = \"peer\"",
        &[":11:8:", "route[1].path:", "take one of the two out"],
    ),
    (
        "[[route]]\nmethod = \"GET\"\npath = \"/a\"\nauth = \"operator\"\nrate = { per_second = 1, burst = 1 }",
        &["route[0].rate:", "leave it out"],
    ),
    (
        "[[route]]\nmethod = \"GET\"\npath = \"/a\"\nauth = \"peer\"\nrate = { per_second = 0, burst = 1 }",
        &["route[0].rate.per_second:", "1 to"],
    ),
    (
        "[[route]]\nmethod = \"GET\"\npath = \"/a\"\nauth = \"peer\"\nbody_bytes = 1099511627777",
        &["route[0].body_bytes:", "at most"],
    ),
    ("[[hook]]\nid = \"h\"\npoint = \"inbound\"\nclass = \"observe\"", &["missing key `reason`"]),
    ("[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"sideways\"\nclass = \"observe\"", &["unknown value `sideways`"]),
    (
        "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"observe\"\nchanges = [\"body\"]",
        &["hook[0].changes:", "transform"],
    ),
    (
        "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"transform\"\nfields = [\"peer\"]\nchanges = [\"peer\"]",
        &["hook[0].changes[0]:", "no hook changes this here", "path, content_type, body"],
    ),
    (
        "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"operator\"\nclass = \"authz\"\nfields = [\"path\", \"peer\"]",
        &["hook[0].fields[1]:", "no such field"],
    ),
    (
        "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"transform\"\nchanges = [\"body\"]",
        &["hook[0].changes[0]:", "`fields`"],
    ),
    (
        "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"authz\"\non_failure = \"open\"",
        &["hook[0].on_failure:", "close"],
    ),
    (
        "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"authz\"\ntimeout_millis = 1000",
        &["hook[0].timeout_millis:", "50 to 100"],
    ),
    (
        "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"authz\"\nafter = [\"m/h\"]",
        &["hook[0].after[0]:", "itself"],
    ),
    (
        "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"authz\"\nafter = [\"m/g\"]",
        &["hook[0].after[0]:", "no such hook"],
    ),
    (
        "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"authz\"\nmatch = { peers = [\"bob\"] }",
        &["hook[0].match.peers", "did:key"],
    ),
    (
        "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"authz\"\nmatch = { path = \"deliver\" }",
        &["hook[0].match.path:", "beginning with /"],
    ),
    ("[permissions]\nkv.quota = { megabytes = 1 }", &["missing key `reason`"]),
    ("[permissions]\nkv.quota = { megabytes = 0, reason = \"r\" }", &["permissions.kv.quota.megabytes:", "1 to"]),
    ("[permissions]\nkv.quota = { megabytes = 1, reason = \"\" }", &["permissions.kv.quota.reason:", "1 to 200"]),
    ("[permissions]\nroot = { reason = \"r\" }", &["unknown key `root`"]),
    ("[permissions]\nnet.ingress = { reason = \"r\" }", &["unknown key `ingress`", "egress"]),
    ("[permissions]\nnet.egress = { to = [\"*:443\"], reason = \"r\" }", &["permissions.net.egress.to", "no pattern"]),
    ("[permissions]\nnet.egress = { to = [\"10.0.0.999:1\"], reason = \"r\" }", &["permissions.net.egress.to"]),
    ("[permissions]\nnet.egress = { to = [], reason = \"r\" }", &["net.egress", "1 to 32"]),
    ("[permissions]\nfs.read = { paths = [\"/etc/../root\"], reason = \"r\" }", &["permissions.fs.read.paths"]),
    ("[permissions]\nfs.read = { paths = [\"/proc/1\"], reason = \"r\" }", &["permissions.fs.read.paths", "/proc"]),
    ("[permissions]\nfs.read = { paths = [\"/etc/\"], reason = \"r\" }", &["permissions.fs.read.paths"]),
    ("[permissions]\nfs.read = { paths = [\"/\"], reason = \"r\" }", &["permissions.fs.read.paths"]),
    (
        "[permissions]\nfs.read = { paths = [\"/ab/cd\"], reason = \"r\" }",
        &["permissions.fs.read.paths", "three bytes"],
    ),
    (
        "[permissions]\nhttp.listen = { address = \"0.0.0.0:8080\", reason = \"r\" }",
        &["http.listen.address", "127.0.0.1"],
    ),
    ("[limits]\nmemory_megabytes = 1", &["limits.memory_megabytes:", "8 to 65536"]),
    ("[limits]\nmemory = 64", &["unknown key `memory`", "memory_megabytes"]),
    ("[limits]\ntasks = -1", &["limits.tasks:"]),
    ("[limits]\nidle_seconds = 29", &["limits.idle_seconds:", "30 to 86400"]),
    ("[config.a]\ntype = \"bool\"\ndefault = 1\nhelp = \"h\"", &["config.a", "use true or false"]),
    ("[config.a]\ntype = \"integer\"\ndefault = 9\nmost = 8\nhelp = \"h\"", &["config.a", "to 8"]),
    ("[config.a]\ntype = \"integer\"\nleast = 9\nmost = 8\nhelp = \"h\"", &["config.a", "turn them round"]),
    ("[config.a]\ntype = \"text\"\nleast = 9\nhelp = \"h\"", &["config.a", "leave it out"]),
    ("[config.a]\ntype = \"text\"\nmost = 0\nhelp = \"h\"", &["config.a", "4096"]),
    ("[config.\"A b\"]\ntype = \"text\"\nhelp = \"h\"", &["not a name"]),
    ("[audit]\nblocked = 1", &["audit.blocked:"]),
    (
        "[[method]]\nname = \"e\"\nkdf = \"hkdf\"\naead = \"rot13\"\nhash = \"sha512\"\ntransforms = [\"mask\"]",
        &["unknown value `rot13`", "aes-256-gcm"],
    ),
    (
        "[[method]]\nname = \"e\"\nkdf = \"hkdf\"\naead = \"aes-256-gcm\"\nhash = \"sha512\"\ntransforms = [\"mask\", \"mask\"]",
        &["method[0].transforms:", "each once"],
    ),
];

#[test]
fn each_bad_manifest_is_refused_with_its_place_and_the_way_out() {
    for (text, names) in BAD {
        let text = text.strip_prefix('@').map_or_else(|| format!("{LEAST}{text}\n"), str::to_owned);
        let refusal = refused(&text);
        assert!(refusal.starts_with("openred.toml:"), "{text}\n{refusal}");
        for name in *names {
            assert!(refusal.contains(name), "{name} is not in the refusal of\n{text}\n{refusal}");
        }
    }
}

#[test]
fn lists_have_bounds() {
    let route = |number: usize| format!("[[route]]\nmethod = \"GET\"\npath = \"/r{number}\"\nauth = \"peer\"\n");
    let routes = |count: usize| LEAST.to_owned() + &(0..count).map(route).collect::<String>();
    Manifest::parse("x", &routes(ROUTES)).unwrap();
    assert!(refused(&routes(ROUTES + 1)).contains("route: 65 are too many; have at most 64"));
    let to = |count: usize| (0..count).map(|number| format!("\"h{number}.example:1\",")).collect::<String>();
    let egress =
        |count: usize| format!("{LEAST}[permissions]\nnet.egress = {{ to = [{}], reason = \"r\" }}\n", to(count));
    Manifest::parse("x", &egress(ENTRIES)).unwrap();
    assert!(refused(&egress(ENTRIES + 1)).contains("permissions"));
}

#[test]
fn settings_are_the_operators_over_the_defaults() {
    let manifest = Manifest::parse("openred.toml", FULL).unwrap();
    let settings = manifest.configure("guard.toml", "mode = \"kind\"").unwrap();
    assert_eq!(settings.to_string(), "days = 30\nmode = \"kind\"\n");
    let refused = |text: &str| manifest.configure("guard.toml", text).unwrap_err().to_string();
    assert!(refused("").contains("mode: has no default and is not set; use one of strict, kind"));
    assert!(
        refused("mode = \"kind\"\ndays = 0").starts_with("guard.toml:2:8: days: not a value of it; use a whole number")
    );
    assert!(
        refused("mode = \"kind\"\nday = 1").contains("day: this module has no such setting; known here: days, mode")
    );
}

#[test]
fn what_is_had_is_what_is_asked_granted_and_not_ruled_out() {
    let asks = Manifest::parse("openred.toml", FULL).unwrap().asks();
    let granted = Grants::parse([
        "kv.quota=64",
        "peer.send",
        "net.egress=api.example.com:443",
        "module.call=auth",
        "blob.quota=9",
    ]);
    let ceiling = Grants::parse(["kv.quota=8", "net.egress", "module.call"]).unwrap();
    let had = asks.meet(&granted.unwrap()).meet(&ceiling);
    assert_eq!(had.texts(), ["kv.quota=8", "net.egress=api.example.com:443"]);
    assert_eq!(Grants::parse(had.texts().iter().map(String::as_str)).unwrap(), had);
    assert!(had.includes(PermissionName::NetEgress, "api.example.com:443"));
    assert!(!had.includes(PermissionName::NetEgress, "other.example:443") && !had.has(PermissionName::PeerSend));
    for bad in ["all", "kv.quota=", "kv.quota=0", "kv.quota=x", "peer.send=1", "net.egress=*:1", "fs.read=etc", ""] {
        assert!(Grants::parse([bad]).is_err(), "{bad}");
    }
}

#[test]
fn what_goes_beyond_is_told_from_what_does_not() {
    let grants = |texts: &[&str]| Grants::parse(texts.iter().copied()).unwrap();
    let known = grants(&["kv.quota=16", "net.egress=a.example:1", "net.egress=b.example:1"]);
    let beyond =
        |texts: &[&str]| -> Vec<String> { grants(texts).beyond(&known).iter().map(ToString::to_string).collect() };
    assert!(beyond(&["kv.quota=8", "net.egress=b.example:1"]).is_empty());
    assert_eq!(beyond(&["kv.quota=17", "peer.send"]), ["kv.quota 17 MB", "peer.send"]);
    assert_eq!(beyond(&["net.egress=a.example:1", "net.egress=c.example:1"]), ["net.egress a.example:1, c.example:1"]);
    assert_eq!(grants(&["kv.quota=1", "kv.quota=3", "kv.quota=2"]).texts(), ["kv.quota=3"]);
    assert_eq!(grants(&["hook=a inbound observe", "hook"]).texts(), ["hook"]);
}

#[test]
fn a_hook_that_differs_in_anything_that_is_weighed_is_another_grant() {
    let peer = |byte| openred_proto::id::NodeId::from_bytes([byte; 32]).to_string();
    let (one, two) = (peer(1), peer(2));
    let asks = |class: &str, more: &str| {
        let hook = format!("[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"{class}\"\n{more}\n");
        Manifest::parse("openred.toml", &format!("{LEAST}{hook}")).unwrap().asks()
    };
    let matches = |text: &str| format!("match = {{ {text} }}");
    let with = [
        String::new(),
        matches("modules = [\"greet\"]"),
        matches("modules = [\"greet\", \"files\"]"),
        matches("method = \"GET\""),
        matches("method = \"POST\""),
        matches("path = \"/a\""),
        matches("path = \"/a\\\" type \\\"text/\""),
        matches("path = \"/a\", content_type = \"text/\""),
        matches("content_type = \"text/\""),
        matches(&format!("peers = [\"{one}\"]")),
        matches(&format!("peers = [\"{one}\", \"{two}\"]")),
        String::from("before = [\"other\"]"),
        String::from("after = [\"other\"]"),
        String::from("after = [\"other/gate\"]"),
        String::from("on_failure = \"open\""),
        String::from("fields = [\"body\"]"),
        String::from("fields = [\"body\"]\nchanges = [\"body\"]"),
    ];
    for (place, own) in with.iter().enumerate() {
        let own_asks = asks("transform", own);
        let texts = own_asks.texts();
        assert_eq!(Grants::parse(texts.iter().map(String::as_str)).unwrap(), own_asks, "{own}");
        for (other_place, other) in with.iter().enumerate() {
            let beyond = own_asks.beyond(&asks("transform", other)).len();
            assert_eq!(beyond, usize::from(place != other_place), "{own:?} beside {other:?}");
        }
    }
    let order = |peers: &str| asks("observe", &matches(&format!("peers = [{peers}]")));
    assert_eq!(order(&format!("\"{one}\", \"{two}\"")), order(&format!("\"{two}\", \"{one}\"")));
    assert_eq!(asks("observe", "timeout_millis = 100"), asks("observe", ""), "a time-out is bounded anyway");
}

#[test]
fn the_longest_hook_is_a_grant_that_is_read_back() {
    let names = |of: &dyn Fn(usize) -> String| (0..ENTRIES).map(of).collect::<Vec<_>>().join(", ");
    let long = |number: usize, length: usize| format!("a{number:0>rest$}", rest = length - 1);
    let hooks = names(&|number| format!("\"{}/{}\"", long(number, 32), long(number, 64)));
    let peers = names(&|number| {
        let byte = u8::try_from(number).unwrap();
        format!("\"{}\"", openred_proto::id::NodeId::from_bytes([byte; 32]))
    });
    let modules = names(&|number| format!("\"{}\"", long(number, 32)));
    let odd = "\\u200b".repeat(85);
    let text = format!(
        "{LEAST}[[hook]]\nid = \"{}\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"observe\"\nbefore = [{hooks}]\n\
         after = [{hooks}]\nmatch = {{ modules = [{modules}], peers = [{peers}], path = \"/{odd}\", content_type = \"{odd}\" }}\n",
        long(0, 64)
    );
    let asks = Manifest::parse("openred.toml", &text).unwrap().asks();
    assert_eq!(Grants::parse(asks.texts().iter().map(String::as_str)).unwrap(), asks);
}

#[test]
fn versions_and_patterns_compare() {
    let version = |text: &str| text.parse::<Version>().unwrap();
    assert!(version("1.10.0").is_newer_than(&version("1.9.9")));
    assert!(!version("1.0.0-rc.1").is_newer_than(&version("1.0.0")));
    for (one, other, is_build) in [
        ("1.0.0", "1.0.0", true),
        ("1.0.0+dev.1", "1.0.0", true),
        ("1.0.0+a.dev.1", "1.0.0+a", true),
        ("1.0.0", "1.0.0+dev.1", false),
        ("1.0.0+ab", "1.0.0+a", false),
        ("1.0.0-rc.1", "1.0.0", false),
        ("1.0.0-rc.1.2", "1.0.0-rc.1", false),
    ] {
        assert_eq!(version(one).is_build_of(&version(other)), is_build, "{one} {other}");
    }
    assert!("1.0.0/..".parse::<Version>().is_err());
    let pattern: Pattern = "/a/{b}".parse().unwrap();
    assert!(pattern.matches("/a/x"));
    for miss in ["/a/", "/a", "/a/x/", "/b/x", "a/x"] {
        assert!(!pattern.matches(miss), "{miss}");
    }
}
