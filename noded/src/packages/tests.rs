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
    packages.change(&Order::Approve { module: id("m"), only: vec![] }).unwrap();
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
    packages.change(&Order::Approve { module: id("m"), only: vec!["kv.quota=9".into()] }).unwrap();
    assert_eq!(packages.need(&id("m")).unwrap().granted.unwrap().granted, ["kv.quota=2"]);
    let only =
        |text: &str| packages.change(&Order::Approve { module: id("m"), only: vec![text.into()] }).unwrap_err().code;
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
    bench.packages.change(&Order::Approve { module: id("m"), only: vec![] }).unwrap();
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
    bench.packages.change(&Order::Approve { module: id("h1"), only: vec![] }).unwrap();
    assert_eq!(bench.refused("h2", "1.0.0", &hook("h2", "h1")), "package.cycle");
    let other = Desk::new();
    let foreign = other.package("m", "m", "2.0.0", "");
    assert_eq!(bench.install(&foreign).unwrap_err().code, "package.publisher");
    bench.packages.change(&Order::Trust(other.key.id())).unwrap();
    assert_eq!(bench.install(&foreign).unwrap_err().code, "package.publisher", "a module keeps its publisher");
    bench.packages.change(&Order::Distrust(bench.desk.key.id())).unwrap();
    assert_eq!(bench.refused("n", "1.0.0", ""), "package.publisher");
    bench.add("m", "1.0.1", ASKS).unwrap();
    assert_eq!(bench.packages.change(&Order::Distrust(bench.desk.key.id())).unwrap_err().code, "package.trust");
}

#[test]
fn a_change_that_was_cut_short_is_done_or_not_done() {
    let bench = Bench::new();
    let folder = bench.home.packages();
    let package = bench.desk.package("p", "m", "1.0.0", "");
    // Killed after it was staged.
    let staged = bench.packages.stage(&package).unwrap();
    assert!(folder.join(&staged).is_dir() && bench.packages.all().unwrap().is_empty());
    bench.packages.tidy();
    assert!(!folder.join(&staged).exists());
    // Killed after the version had its place, before anything referred to it.
    fs::create_dir_all(folder.join("m/1.0.0")).unwrap();
    fs::write(folder.join("m/1.0.0/openred.toml"), "half").unwrap();
    assert!(bench.packages.all().unwrap().is_empty());
    bench.install(&package).unwrap();
    let installed = bench.packages.need(&id("m")).unwrap();
    bench.packages.version(&installed, installed.record.staged.as_ref().unwrap()).unwrap().check_program().unwrap();
    // Killed in the middle of a removal.
    fs::rename(folder.join("m"), folder.join(".gone-00")).unwrap();
    assert!(bench.packages.all().unwrap().is_empty());
    bench.packages.tidy();
    assert_eq!(names(&folder).unwrap(), ["trusted.keys"]);
    bench.install(&package).unwrap();
    bench.packages.change(&Order::Remove { module: id("m"), keep_data: false }).unwrap();
    assert_eq!(bench.packages.forgotten().unwrap(), [id("m")]);
    bench.packages.forget_done(&id("m")).unwrap();
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
        Order::Approve { module: id("m"), only: vec!["peer.send".into()] },
        Order::Enable(id("m")),
        Order::Disable(id("m")),
        Order::Remove { module: id("m"), keep_data: true },
        Order::Trust(publisher),
        Order::Distrust(publisher),
    ];
    for order in orders {
        assert_eq!(Order::try_from(ModuleChange::from(&order)).unwrap(), order);
    }
    for operation in ["", "approve", "trust", "install-all"] {
        let change = ModuleChange { operation: operation.into(), ..ModuleChange::default() };
        assert!(Order::try_from(change).is_err(), "{operation}");
    }
}
