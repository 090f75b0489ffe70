//! Packages on a real disk: made, taken in, refused, interrupted.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use openred_proto::admin::ModuleChange;
use tempfile::TempDir;

use super::*;
use crate::home::Home;

const ASKS: &str = "kv.quota = { megabytes = 1, reason = \"r\" }\n";

struct Desk {
    folder: TempDir,
    key: PublisherKey,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = PublisherKey::generate(&folder.path().canonicalize().unwrap().join("key")).unwrap();
        Self { folder, key }
    }

    fn package(&self, out: &str, id: &str, version: &str, rest: &str) -> PathBuf {
        let program = format!("program of {version}");
        let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(program.as_bytes()));
        let text = format!(
            "sha256 = \"{digest}\"\nid = \"{id}\"\nversion = \"{version}\"\nprogram = \"p\"\ndescription = \"d\"\n{rest}"
        );
        let signature = self.key.sign(&text).text();
        let out = self.folder.path().join(out);
        if out.exists() {
            fs::remove_dir_all(&out).unwrap();
        }
        write_package(
            &out,
            [(MANIFEST, text.as_bytes()), (SIGNATURE, signature.as_bytes()), ("p", program.as_bytes())],
        )
        .unwrap();
        out
    }
}

struct Bench {
    _folder: TempDir,
    home: Home,
    packages: Packages,
    desk: Desk,
}

impl Bench {
    fn new() -> Self {
        let (folder, home) = Home::scratch();
        let (packages, desk) = (Packages::of(&home), Desk::new());
        packages.change(&Order::Trust(desk.key.id())).unwrap();
        Self { _folder: folder, home, packages, desk }
    }

    fn install(&self, package: &Path) -> Result<(), Failure> {
        let staged = self.packages.stage(package)?;
        let done = self.packages.change(&Order::Install { staged: staged.clone(), publisher: None });
        self.packages.drop_staged(&staged);
        done
    }

    /// As whoever has looked at it a moment ago.
    fn approve(&self, module: &str, only: &[&str]) -> Result<(), Failure> {
        let only = only.iter().map(|only| (*only).to_owned()).collect();
        self.packages.change(&Order::Approve { module: id(module), only, shown: self.seen(module) })
    }

    fn seen(&self, module: &str) -> String {
        let installed = self.packages.need(&id(module)).unwrap();
        let version = installed.record.staged.as_ref().or(installed.record.active.as_ref()).unwrap();
        self.packages.version(&installed, version).unwrap().shown()
    }

    fn active(&self, module: &str) -> String {
        self.packages.need(&id(module)).unwrap().record.active.unwrap().to_string()
    }

    fn add(&self, id: &str, version: &str, permissions: &str) -> Result<(), Failure> {
        let package =
            self.desk.package(&format!("{id}-{version}"), id, version, &format!("[permissions]\n{permissions}"));
        self.install(&package)
    }

    fn refused(&self, id: &str, version: &str, rest: &str) -> String {
        let package = self.desk.package(&format!("{id}-{version}-{}", rest.len()), id, version, rest);
        self.install(&package).unwrap_err().code
    }
}

fn id(text: &str) -> ModuleId {
    text.parse().unwrap()
}

#[test]
fn what_is_granted_is_what_was_reviewed_and_more_waits() {
    let bench = Bench::new();
    let packages = &bench.packages;
    bench.add("m", "1.0.0", ASKS).unwrap();
    let installed = packages.need(&id("m")).unwrap();
    assert_eq!((installed.record.enabled, &installed.record.active, &installed.granted), (false, &None, &None));
    assert_eq!(packages.change(&Order::Enable(id("m"))).unwrap_err().code, "package.waiting");
    bench.approve("m", &[]).unwrap();
    bench.add("m", "1.1.0", "kv.quota = { megabytes = 1, reason = \"another\" }\n").unwrap();
    let installed = packages.need(&id("m")).unwrap();
    assert_eq!(installed.record.active.as_ref().unwrap().as_str(), "1.1.0", "it asks for nothing more");
    bench.add("m", "1.2.0", "kv.quota = { megabytes = 2, reason = \"more\" }\n").unwrap();
    let installed = packages.need(&id("m")).unwrap();
    let (active, staged) = (installed.record.active.clone().unwrap(), installed.record.staged.clone().unwrap());
    assert_eq!((active.as_str(), staged.as_str()), ("1.1.0", "1.2.0"));
    let verified = packages.version(&installed, &staged).unwrap();
    let effective = |ceiling: &Grants| Packages::effective(&installed, &verified.manifest, ceiling).unwrap().texts();
    assert_eq!(effective(&Grants::all()), ["kv.quota=1"], "as it was granted");
    assert!(effective(&Grants::default()).is_empty(), "as the configuration allows");
    bench.approve("m", &["kv.quota=9"]).unwrap();
    assert_eq!(packages.need(&id("m")).unwrap().granted.unwrap().granted, ["kv.quota=2"]);
    let only = |text: &str| bench.approve("m", &[text]).unwrap_err().code;
    assert_eq!((only("peer.send"), only("everything")), ("package.grant".into(), "package.grant".into()));
    let here = || names(&bench.home.packages().join("m")).unwrap();
    assert_eq!(here(), ["1.0.0", "1.1.0", "1.2.0", "grants.toml", "state.toml"], "until nobody goes back to them");
    // A swap that did not last; only of what is installed still.
    assert!(!packages.settle(&id("m"), "1.1.0", "1.0.0", 7).unwrap());
    assert!(packages.settle(&id("m"), "1.2.0", "1.1.0", 7).unwrap());
    let record = packages.need(&id("m")).unwrap().record;
    assert_eq!((record.active.as_ref().unwrap().as_str(), record.turn), ("1.1.0", 7));
    assert_eq!(here(), ["1.0.0", "1.1.0", "grants.toml", "state.toml"]);
    packages.keep(&id("m"), &["1.1.0".to_owned()]).unwrap();
    assert_eq!(here(), ["1.1.0", "grants.toml", "state.toml"]);
    bench.add("m", "1.2.0", "").unwrap();
    assert_ne!(packages.need(&id("m")).unwrap().record.turn, 7, "installed again it is another");
}

#[test]
fn what_is_taken_old_foreign_or_of_another_contract_is_refused() {
    let bench = Bench::new();
    bench.add("m", "1.0.0", ASKS).unwrap();
    bench.approve("m", &[]).unwrap();
    assert_eq!(bench.refused("m", "1.0.0", ""), "package.older");
    assert_eq!(bench.refused("files", "1.0.0", ""), "package.taken");
    assert_eq!(bench.refused("n", "1.0.0", "abi = { oldest = 90, newest = 91 }\n"), "package.abi");
    let listens = "[permissions]\nhttp.listen = { address = \"127.0.0.1:9000\", reason = \"r\" }\n";
    bench.install(&bench.desk.package("l", "l", "1.0.0", listens)).unwrap();
    assert_eq!(bench.refused("k", "1.0.0", listens), "package.taken");
    let hook = |name: &str, other: &str| {
        format!(
            "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"observe\"\nbefore = [\"{other}/h\"]\n# {name}\n"
        )
    };
    bench.install(&bench.desk.package("h1", "h1", "1.0.0", &hook("h1", "h2"))).unwrap();
    bench.approve("h1", &[]).unwrap();
    assert_eq!(bench.refused("h2", "1.0.0", &hook("h2", "h1")), "package.cycle");
    let other = Desk::new();
    let foreign = other.package("m", "m", "2.0.0", "");
    assert_eq!(bench.install(&foreign).unwrap_err().code, "package.publisher");
    bench.packages.change(&Order::Trust(other.key.id())).unwrap();
    assert_eq!(bench.install(&foreign).unwrap_err().code, "package.publisher", "a module keeps its publisher");
    bench.packages.change(&Order::Distrust(bench.desk.key.id())).unwrap();
    assert_eq!(bench.refused("n", "1.0.0", ""), "package.publisher");
    // Its upgrades too: the key may be lost.
    assert_eq!(bench.add("m", "1.0.1", ASKS).unwrap_err().code, "package.publisher");
    assert_eq!(bench.packages.change(&Order::Distrust(bench.desk.key.id())).unwrap_err().code, "package.trust");
    assert_eq!(bench.packages.trusted().unwrap(), [other.key.id()]);
    bench.packages.change(&Order::Trust(bench.desk.key.id())).unwrap();
    bench.add("m", "1.0.1", ASKS).unwrap();
}

#[test]
fn a_key_that_was_named_for_one_module_is_distrusted_like_any_other() {
    let (bench, other) = (Bench::new(), Desk::new());
    let take = |package: &Path, publisher| {
        let staged = bench.packages.stage(package).unwrap();
        bench.packages.change(&Order::Install { staged, publisher })
    };
    let distrust = || bench.packages.change(&Order::Distrust(other.key.id()));
    assert_eq!(distrust().unwrap_err().code, "package.trust", "nobody knows it");
    take(&other.package("one", "m", "1.0.0", ""), Some(other.key.id())).unwrap();
    bench.approve("m", &[]).unwrap();
    distrust().unwrap();
    let next = other.package("two", "m", "1.0.1", "");
    assert_eq!(take(&next, None).unwrap_err().code, "package.publisher");
    take(&next, Some(other.key.id())).unwrap();
    assert_eq!(bench.active("m"), "1.0.1", "by the operator's word");
}

#[test]
fn an_approval_is_of_what_was_shown() {
    let bench = Bench::new();
    bench.add("m", "2.0.0", ASKS).unwrap();
    let seen = bench.seen("m");
    assert!(seen.starts_with("2.0.0:"));
    let approve =
        |shown: &str| bench.packages.change(&Order::Approve { module: id("m"), only: vec![], shown: shown.to_owned() });
    // Another version has come, or the same one with another manifest.
    bench.add("m", "2.1.0", "kv.quota = { megabytes = 9, reason = \"r\" }\n").unwrap();
    assert_eq!(approve(&seen).unwrap_err().code, "package.changed");
    let again = bench.desk.package("again", "m", "2.0.0", "[permissions]\npeer.send = { reason = \"r\" }\n");
    bench.install(&again).unwrap();
    assert_eq!(approve(&seen).unwrap_err().code, "package.changed");
    assert_eq!(approve("").unwrap_err().code, "package.changed");
    assert_eq!(bench.packages.need(&id("m")).unwrap().granted, None, "nothing of it was granted");
    approve(&bench.seen("m")).unwrap();
    assert_eq!(bench.packages.need(&id("m")).unwrap().granted.unwrap().granted, ["peer.send"]);
}

#[test]
fn an_upgrade_that_takes_more_of_the_machine_or_shows_itself_more_calls_waits() {
    let bench = Bench::new();
    let hook = |of: &str| {
        let point =
            "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"observe\"\nfields = [\"body\"]\n";
        format!("{point}match = {{ {of} }}\n")
    };
    let manifest = |of: &str, memory: u32| format!("{}[limits]\nmemory_megabytes = {memory}\n", hook(of));
    let take = |version: &str, rest: &str| bench.install(&bench.desk.package(version, "m", version, rest));
    take("1.0.0", &manifest("modules = [\"greet\"]", 64)).unwrap();
    bench.approve("m", &[]).unwrap();
    take("1.0.1", &manifest("modules = [\"greet\"]", 32)).unwrap();
    assert_eq!(bench.active("m"), "1.0.1", "less is not asked about");
    let waits = |version: &str, rest: &str, named: &str| {
        take(version, rest).unwrap();
        let installed = bench.packages.need(&id("m")).unwrap();
        let staged = installed.record.staged.clone().unwrap();
        assert_eq!((staged.as_str(), bench.active("m").as_str()), (version, "1.0.1"));
        let more = bench.packages.beyond(&installed, &bench.packages.version(&installed, &staged).unwrap()).unwrap();
        assert!(more.len() == 1 && more[0].contains(named), "{more:?}");
    };
    waits("1.0.2", &manifest("modules = [\"greet\"]", 64), "limits.memory_megabytes from 32 to 64");
    waits("1.0.3", &manifest("", 32), "hook h inbound observe sees body");
    waits("1.0.4", &manifest("modules = [\"greet\", \"files\"]", 32), "of files+greet");
}

#[test]
fn hooks_without_an_order_do_not_pass_by_way_of_staging() {
    let bench = Bench::new();
    let hook = |other: &str| {
        format!(
            "[[hook]]\nid = \"h\"\nreason = \"r\"\npoint = \"inbound\"\nclass = \"observe\"\nbefore = [\"{other}/h\"]\n"
        )
    };
    // Both wait: neither stands in the other's way yet.
    for (own, other) in [("h1", "h2"), ("h2", "h1")] {
        bench.install(&bench.desk.package(own, own, "1.0.0", &hook(other))).unwrap();
    }
    bench.approve("h1", &[]).unwrap();
    assert_eq!(bench.approve("h2", &[]).unwrap_err().code, "package.cycle");
    assert_eq!(bench.packages.need(&id("h2")).unwrap().granted, None);
    bench.packages.change(&Order::Enable(id("h1"))).unwrap();
    // However two came to be active: none is enabled.
    let place = bench.home.packages().join("h2/state.toml");
    let text = fs::read_to_string(&place).unwrap();
    fs::write(&place, text.replace("staged = ", "active = ")).unwrap();
    assert_eq!(bench.packages.change(&Order::Enable(id("h2"))).unwrap_err().code, "package.cycle");
}

#[test]
fn a_version_of_another_publisher_waits_beside_the_one_that_runs() {
    let (bench, other) = (Bench::new(), Desk::new());
    bench.add("m", "1.0.0", ASKS).unwrap();
    bench.approve("m", &[]).unwrap();
    bench.add("m", "1.0.1", ASKS).unwrap();
    let more = "[permissions]\npeer.send = { reason = \"r\" }\n";
    let package = other.package("theirs", "m", "2.0.0", more);
    let staged = bench.packages.stage(&package).unwrap();
    bench.packages.change(&Order::Install { staged, publisher: Some(other.key.id()) }).unwrap();
    let believed = |versions: &[&str]| {
        let installed = bench.packages.need(&id("m")).unwrap();
        for version in versions {
            bench.packages.version(&installed, &version.parse().unwrap()).unwrap();
        }
        installed.record.publisher().unwrap()
    };
    assert_eq!(bench.active("m"), "1.0.1");
    assert_eq!(believed(&["1.0.0", "1.0.1", "2.0.0"]), bench.desk.key.id(), "until it is approved");
    bench.approve("m", &[]).unwrap();
    assert_eq!(bench.active("m"), "2.0.0");
    assert_eq!(believed(&["1.0.0", "1.0.1", "2.0.0"]), other.key.id());
    // Back with the version goes the module to its publisher.
    assert!(bench.packages.settle(&id("m"), "2.0.0", "1.0.1", 3).unwrap());
    assert_eq!(believed(&["1.0.0", "1.0.1"]), bench.desk.key.id());
    let text = fs::read_to_string(bench.home.packages().join("m/state.toml")).unwrap();
    assert!(!text.contains("2.0.0"), "of what is gone nothing is kept: {text}");
}

#[test]
fn all_that_a_manifest_can_ask_for_is_read_back_and_a_damaged_record_is_its_modules_alone() {
    let bench = Bench::new();
    let names = |count: usize, of: &dyn Fn(usize) -> String| {
        (0..count).map(|number| format!("\"{}\"", of(number))).collect::<Vec<_>>().join(", ")
    };
    let segments = |number: usize, parts: usize| -> String { (0..parts).map(|_| format!("/a{number:0>15}")).collect() };
    let routes: String = (0..64)
        .map(|number| format!("[[route]]\nmethod = \"GET\"\npath = \"{}\"\nauth = \"peer\"\n", segments(number, 15)))
        .collect();
    let hosts = names(32, &|number| format!("{0}.{0}.{0}.a{number}.example:443", "a".repeat(62)));
    let paths = names(32, &|number| segments(number, 15));
    let modules = names(32, &|number| format!("a{number:0>31}"));
    let rest = format!(
        "{routes}[permissions]\nnet.egress = {{ to = [{hosts}], reason = \"r\" }}\n\
         fs.read = {{ paths = [{paths}], reason = \"r\" }}\nmodule.call = {{ modules = [{modules}], reason = \"r\" }}\n"
    );
    bench.install(&bench.desk.package("fat", "fat", "1.0.0", &rest)).unwrap();
    bench.approve("fat", &[]).unwrap();
    let grants = bench.home.packages().join("fat/grants.toml");
    assert!(fs::metadata(&grants).unwrap().len() > 65_536, "longer than any other text that is read");
    let granted = bench.packages.need(&id("fat")).unwrap().granted.unwrap();
    assert_eq!((granted.asked.len(), granted.granted.len()), (160, 160));
    // Damaged, it is named; the others are there, and it can be removed.
    bench.add("thin", "1.0.0", ASKS).unwrap();
    let damage = [("grants.toml", "no grants"), ("state.toml", "no record"), ("state.toml", "")];
    for (number, (file, content)) in damage.into_iter().enumerate() {
        fs::write(bench.home.packages().join("fat").join(file), content).unwrap();
        let each = bench.packages.each().unwrap();
        let read: Vec<_> = each.iter().map(|(id, read)| (id.as_str(), read.is_ok())).collect();
        assert_eq!(read, [("fat", false), ("thin", true)], "{file}");
        assert!(each[0].1.as_ref().unwrap_err().way_out.contains("module remove fat"));
        assert_eq!(bench.refused("new", "1.0.0", ""), "package.malformed", "its uid is not known, so none is given");
        bench.add("thin", &format!("1.0.{}", number + 1), ASKS).unwrap();
        bench.approve("thin", &[]).unwrap();
    }
    bench.packages.change(&Order::Remove { module: id("fat"), keep_data: false }).unwrap();
    bench.install(&bench.desk.package("new", "new", "1.0.0", "")).unwrap();
    let code =
        |name: &str| bench.packages.change(&Order::Remove { module: id(name), keep_data: true }).unwrap_err().code;
    assert_eq!((code("fat"), code("files")), ("package.unknown".into(), "package.unknown".into()));
    // What could not be read back is not written.
    let long = vec!["x".repeat(record::RECORD_BYTES)];
    let granted = Granted { version: "1.0.0".parse().unwrap(), asked: long, granted: vec![] };
    let place = bench.home.packages().join("thin/grants.toml");
    let before = fs::read(&place).unwrap();
    assert_eq!(record::write(&place, &granted).unwrap_err().code, "package.malformed");
    assert_eq!(fs::read(&place).unwrap(), before);
}

#[test]
fn a_change_that_was_cut_short_is_done_or_not_done() {
    let bench = Bench::new();
    let folder = bench.home.packages();
    let package = bench.desk.package("p", "m", "1.0.0", "");
    // Killed after it was staged.
    let staged = bench.packages.stage(&package).unwrap();
    assert!(folder.join(&staged).is_dir() && bench.packages.each().unwrap().is_empty());
    bench.packages.tidy();
    assert!(!folder.join(&staged).exists());
    // Killed after the version had its place, before anything referred to it.
    fs::create_dir_all(folder.join("m/1.0.0")).unwrap();
    fs::write(folder.join("m/1.0.0/openred.toml"), "half").unwrap();
    assert!(bench.packages.each().unwrap().is_empty());
    bench.install(&package).unwrap();
    let installed = bench.packages.need(&id("m")).unwrap();
    bench.packages.version(&installed, installed.record.staged.as_ref().unwrap()).unwrap().check_program().unwrap();
    // Killed in the middle of a removal.
    fs::rename(folder.join("m"), folder.join(".gone-00")).unwrap();
    assert!(bench.packages.each().unwrap().is_empty());
    bench.packages.tidy();
    assert_eq!(names(&folder).unwrap(), ["trusted.keys"]);
    bench.install(&package).unwrap();
    bench.packages.change(&Order::Remove { module: id("m"), keep_data: false }).unwrap();
    assert_eq!(bench.packages.forgotten().unwrap(), [id("m")]);
    assert!(bench.packages.forget_done(&id("m")).unwrap() && !bench.packages.forget_done(&id("m")).unwrap());
    assert!(bench.packages.forgotten().unwrap().is_empty());
}

#[test]
fn a_tar_is_as_good_as_a_folder_and_holds_nothing_else() {
    let bench = Bench::new();
    let tar = bench.desk.package("p.tar", "m", "1.0.0", "");
    bench.install(&tar).unwrap();
    let mut bytes = fs::read(&tar).unwrap();
    fs::write(&tar, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(bench.install(&tar).unwrap_err().code, "package.malformed", "cut");
    bytes.truncate(bytes.len() - 1024);
    bytes.extend_from_slice(&crate::archive::tar::header("more", 0, 0));
    bytes.extend_from_slice(&[0; 1024]);
    fs::write(&tar, &bytes).unwrap();
    assert_eq!(bench.install(&tar).unwrap_err().code, "package.malformed", "a fourth file");
    fs::write(&tar, vec![1; 4096]).unwrap();
    assert_eq!(bench.install(&tar).unwrap_err().code, "package.malformed", "no tar");
}

#[test]
fn modules_have_slots_of_their_own_and_there_is_an_end_to_them() {
    let bench = Bench::new();
    let mut slots = BTreeSet::new();
    for number in 0..INSTALLED {
        let name = format!("m{number}");
        bench.install(&bench.desk.package(&name, &name, "1.0.0", "")).unwrap();
        slots.insert(bench.packages.need(&id(&name)).unwrap().record.slot);
    }
    assert_eq!(slots.len(), INSTALLED);
    assert!(slots.iter().all(|slot| (8..64).contains(slot)));
    assert_eq!(bench.refused("one-more", "1.0.0", ""), "package.many");
}

#[test]
fn orders_cross_the_socket_whole() {
    let publisher = Desk::new().key.id();
    let orders = [
        Order::Install { staged: "s".into(), publisher: Some(publisher) },
        Order::Install { staged: "s".into(), publisher: None },
        Order::Approve { module: id("m"), only: vec!["peer.send".into()], shown: "1.0.0:00".into() },
        Order::Enable(id("m")),
        Order::Disable(id("m")),
        Order::Remove { module: id("m"), keep_data: true },
        Order::Trust(publisher),
        Order::Distrust(publisher),
    ];
    for order in orders {
        assert_eq!(Order::try_from(ModuleChange::from(&order)).unwrap(), order);
    }
    let unseen = ModuleChange { operation: "approve".into(), module: "m".into(), ..ModuleChange::default() };
    assert!(Order::try_from(unseen).is_err(), "it says not of what");
    for operation in ["", "approve", "trust", "install-all"] {
        let change = ModuleChange { operation: operation.into(), ..ModuleChange::default() };
        assert!(Order::try_from(change).is_err(), "{operation}");
    }
}
