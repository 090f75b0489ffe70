//! The operator's changes. Each is one step that a crash leaves done or not done: what is new is written beside, then renamed or
//! referred to by the one small file that counts.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use openred_module::Point;
use openred_module::manifest::{Grants, ModuleId, PermissionName, Version};
use openred_proto::admin::ModuleChange;
use openred_proto::audit::Event;
use openred_proto::id::NodeId;

use super::record::{self, Granted, Record};
use super::{FIRST_SLOT, FORGET, INSTALLED, Installed, Packages, Verified, check_abi, foreign, malformed, offer};
use crate::cli::{Exit, Failure};
use crate::hooks::{Spec, order};
use crate::module::BUILT_IN;
use crate::supervisor::{make_private, put};

/// What remains of a module on its way out.
const GONE: &str = ".gone-";
/// Before its name: a module that was removed, and whose state was not.
pub(super) const KEPT: &str = ".kept-";

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Takes what was staged in. A first version waits for [`Order::Approve`]; so does one that asks for more than the one before it.
    Install {
        /// Its name among what is staged.
        staged: String,
        /// A publisher to be trusted for this module.
        publisher: Option<NodeId>,
    },
    /// Grants what the waiting version (or, where none waits, the running one) asks for, and lets it run.
    Approve {
        /// Which module.
        module: ModuleId,
        /// Only these of what it asks for; all of it if empty.
        only: Vec<String>,
        /// What the operator was shown ([`Verified::shown`]): nothing else is granted.
        shown: String,
    },
    /// Lets it run, also out of quarantine.
    Enable(ModuleId),
    /// Ends it.
    Disable(ModuleId),
    /// Removes it, and its state unless that is kept.
    Remove {
        /// Which module.
        module: ModuleId,
        /// Its rows and files stay.
        keep_data: bool,
    },
    /// Takes packages of this publisher from now on.
    Trust(NodeId),
    /// Takes no more of them; what is installed stays.
    Distrust(NodeId),
}

impl Order {
    /// What the audit trail calls it.
    pub(crate) const fn event(&self) -> Event {
        match self {
            Self::Install { .. } => Event::ModuleInstalled,
            Self::Approve { .. } => Event::ModuleApproved,
            Self::Enable(_) => Event::ModuleEnabled,
            Self::Disable(_) => Event::ModuleDisabled,
            Self::Remove { .. } => Event::ModuleRemoved,
            Self::Trust(_) | Self::Distrust(_) => Event::ModuleTrust,
        }
    }
}

impl From<&Order> for ModuleChange {
    fn from(order: &Order) -> Self {
        let of = |operation: &str, module: &ModuleId| Self {
            operation: operation.to_owned(),
            module: module.to_string(),
            ..Self::default()
        };
        let by = |operation: &str, publisher: &NodeId| Self {
            operation: operation.to_owned(),
            publisher: publisher.to_string(),
            ..Self::default()
        };
        match order {
            Order::Install { staged, publisher } => Self {
                operation: String::from("install"),
                staged: staged.clone(),
                publisher: publisher.map(|publisher| publisher.to_string()).unwrap_or_default(),
                ..Self::default()
            },
            Order::Approve { module, only, shown } => {
                Self { only: only.clone(), shown: shown.clone(), ..of("approve", module) }
            }
            Order::Enable(module) => of("enable", module),
            Order::Disable(module) => of("disable", module),
            Order::Remove { module, keep_data } => Self { keep_data: *keep_data, ..of("remove", module) },
            Order::Trust(publisher) => by("trust", publisher),
            Order::Distrust(publisher) => by("distrust", publisher),
        }
    }
}

impl TryFrom<ModuleChange> for Order {
    type Error = Failure;

    fn try_from(change: ModuleChange) -> Result<Self, Failure> {
        let usage = |what: &str| Failure::usage(format!("the change names no {what}"), "");
        let module = || change.module.parse::<ModuleId>().map_err(|_| usage("module"));
        let publisher = || change.publisher.parse::<NodeId>().map_err(|_| usage("publisher"));
        Ok(match change.operation.as_str() {
            "install" => {
                let publisher = if change.publisher.is_empty() { None } else { Some(publisher()?) };
                Self::Install { staged: change.staged.clone(), publisher }
            }
            "approve" if change.shown.is_empty() => return Err(usage("version that was shown")),
            "approve" => Self::Approve { module: module()?, only: change.only.clone(), shown: change.shown.clone() },
            "enable" => Self::Enable(module()?),
            "disable" => Self::Disable(module()?),
            "remove" => Self::Remove { module: module()?, keep_data: change.keep_data },
            "trust" => Self::Trust(publisher()?),
            "distrust" => Self::Distrust(publisher()?),
            _ => return Err(usage("operation")),
        })
    }
}

impl Packages {
    /// Carries a change out.
    pub(crate) fn change(&self, order: &Order) -> Result<(), Failure> {
        make_private(&self.folder).map_err(|error| Failure::local(self.folder.display(), &error))?;
        match order {
            Order::Install { staged, publisher } => self.install(staged, publisher.as_ref()),
            Order::Approve { module, only, shown } => self.approve(&self.need(module)?, only, shown),
            Order::Enable(module) => self.enable(self.need(module)?),
            Order::Disable(module) => {
                let installed = self.need(module)?;
                self.write(module, &Record { enabled: false, ..installed.record })
            }
            Order::Remove { module, keep_data } => self.remove(module, *keep_data),
            Order::Trust(publisher) => self.trust(publisher),
            Order::Distrust(publisher) => self.distrust(publisher),
        }
    }

    /// Removes what a crash left half-way. Only while nobody else changes anything.
    pub(crate) fn tidy(&self) {
        for name in super::names(&self.folder).unwrap_or_default() {
            if name.starts_with(offer::STAGE) || name.starts_with(GONE) {
                let _ = fs::remove_dir_all(self.folder.join(name));
            }
        }
    }

    fn write(&self, module: &ModuleId, record: &Record) -> Result<(), Failure> {
        record::write_record(&self.module(module).join(record::RECORD), record)
    }

    fn install(&self, staged: &str, publisher: Option<&NodeId>) -> Result<(), Failure> {
        let verified = self.staged(staged)?;
        let id = &verified.manifest.id;
        let installed = self.get(id)?;
        self.check_publisher(&verified, installed.as_ref(), publisher)?;
        self.check_fits(&verified)?;
        let version = verified.manifest.version.clone();
        if let Some(known) = installed.as_ref().and_then(|known| known.record.active.as_ref())
            && !version.is_newer_than(known)
        {
            let what = format!("{id} {known} is installed, and {version} is not newer");
            let way_out = "a newer version takes its place; or remove it first, with --keep-data to keep its state";
            return Err(Failure::new(Exit::Conflict, "package.older", what, way_out));
        }
        let mut record = match &installed {
            Some(known) => known.record.clone(),
            None => Record::new(self.free_slot()?, &verified.publisher),
        };
        self.put_version(&verified, staged)?;
        record.took(&version, &verified.publisher);
        match &installed {
            // Nothing that the operator has not weighed: it takes the place of the one before.
            Some(known)
                if record.active.is_some() && known.granted.is_some() && self.beyond(known, &verified)?.is_empty() =>
            {
                record.activate(version);
            }
            _ => record.staged = Some(version),
        }
        self.write(id, &record)?;
        self.prune(id, &record);
        Ok(())
    }

    /// What this version asks for, or takes, that the operator has not weighed; what cannot be compared was not weighed.
    pub(crate) fn beyond(&self, installed: &Installed, verified: &Verified) -> Result<Vec<String>, Failure> {
        let asked = installed.granted.as_ref().map(Granted::asked).transpose()?.unwrap_or_default();
        let asks = verified.manifest.asks();
        let mut beyond: Vec<String> = asks.beyond(&asked).into_iter().map(ToString::to_string).collect();
        match installed.record.active.as_ref().map(|version| self.version(installed, version)) {
            Some(Ok(before)) => beyond.extend(verified.manifest.raised(&before.manifest)),
            Some(Err(failure)) => {
                beyond.push(format!("what the version before it took is not known: {}", failure.what))
            }
            None => {}
        }
        Ok(beyond)
    }

    /// Whether it can run beside what is installed.
    fn check_fits(&self, verified: &Verified) -> Result<(), Failure> {
        check_abi(verified.manifest.abi, &verified.manifest.id)?;
        let others = self.others()?;
        self.check_taken(verified, &others)?;
        self.check_order(verified, &others)
    }

    fn check_publisher(
        &self,
        verified: &Verified,
        installed: Option<&Installed>,
        named: Option<&NodeId>,
    ) -> Result<(), Failure> {
        if named == Some(&verified.publisher) {
            return Ok(());
        }
        let keys = self.keys()?;
        match installed {
            // Whoever else is trusted: a module changes hands only by the operator's word.
            Some(known) if known.record.publisher()? != verified.publisher => {
                Err(foreign(&known.id, &verified.publisher))
            }
            Some(known) if keys.distrusted.contains(&verified.publisher) => {
                let what = format!("{} is signed by {}, whom you have distrusted", known.id, verified.publisher);
                let way_out = format!("if you trust that key again: `openred module trust {}`", verified.publisher);
                Err(Failure::new(Exit::Denied, "package.publisher", what, way_out))
            }
            Some(_) => Ok(()),
            None if keys.trusted.contains(&verified.publisher) => Ok(()),
            None => {
                let what =
                    format!("{} is signed by {}, whom you do not trust", verified.manifest.id, verified.publisher);
                let way_out = format!("if that is its publisher's key: `openred module trust {}`", verified.publisher);
                Err(Failure::new(Exit::Denied, "package.publisher", what, way_out))
            }
        }
    }

    /// Refuses what another module has already: its name, an address to listen on, the name of a method.
    fn check_taken(&self, verified: &Verified, others: &[Installed]) -> Result<(), Failure> {
        let own = &verified.manifest;
        let taken = |what: String| {
            let way_out = "remove the other one first, or ask the publisher for another name";
            Err(Failure::new(Exit::Conflict, "package.taken", what, way_out))
        };
        if BUILT_IN.iter().any(|module| module.id == own.id.as_str()) {
            let routes: Vec<String> = own.routes.iter().map(|route| format!("/{}{}", own.id, route.path)).collect();
            return taken(format!("the routes of {} come with the node: {}", own.id, routes.join(", ")));
        }
        for other in others.iter().filter(|other| other.id != own.id) {
            let versions = [&other.record.active, &other.record.staged].into_iter().flatten();
            for version in versions {
                let Ok(known) = self.version(other, version) else { continue };
                let (asked, has) = (own.asks(), known.manifest.asks());
                let both = asked.get(PermissionName::HttpListen).zip(has.get(PermissionName::HttpListen));
                if let Some(address) = both.and_then(|(own, has)| own.meet(has)) {
                    return taken(format!("{} has the address {} already", other.id, address.entries().join(", ")));
                }
                let same = own.methods.iter().find(|own| known.manifest.methods.iter().any(|has| has.name == own.name));
                if let Some(method) = same {
                    return taken(format!("{} describes a method {} already", other.id, method.name));
                }
            }
        }
        Ok(())
    }

    /// Refuses hooks that would have no order among those that are installed.
    fn check_order(&self, verified: &Verified, others: &[Installed]) -> Result<(), Failure> {
        let mut specs: Vec<Spec> = Vec::new();
        for other in others.iter().filter(|other| other.id != verified.manifest.id) {
            let Some(Ok(known)) = other.record.active.as_ref().map(|version| self.version(other, version)) else {
                continue;
            };
            specs.extend(known.manifest.hooks.iter().map(|hook| Spec::of(known.manifest.id.as_str(), hook)));
        }
        let own = &verified.manifest;
        specs.extend(own.hooks.iter().map(|hook| Spec::of(own.id.as_str(), hook)));
        for point in Point::ALL {
            let of_point: Vec<&Spec> = specs.iter().filter(|spec| spec.point == point).collect();
            if let Err(cycle) = order(&of_point, &[]) {
                let what = format!("the hooks of {} would have no order: {cycle}", own.id);
                let way_out = "remove the other module, or ask the publisher to take one `before` or `after` out";
                return Err(Failure::new(Exit::Conflict, "package.cycle", what, way_out));
            }
        }
        Ok(())
    }

    /// Gives a staged package its place.
    fn put_version(&self, verified: &Verified, staged: &str) -> Result<(), Failure> {
        let id = &verified.manifest.id;
        let (module, from) = (self.module(id), self.folder.join(staged));
        let failed = |error: io::Error| Failure::local(module.display(), &error);
        make_private(&module).map_err(failed)?;
        sync(&self.folder).map_err(failed)?;
        let place = module.join(verified.manifest.version.as_str());
        match fs::rename(&from, &place) {
            // One that waits, or was left by a crash: nothing refers to it that this does not replace.
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                self.put_away(&place)?;
                fs::rename(&from, &place)
            }
            renamed => renamed,
        }
        .and_then(|()| sync(&module))
        .map_err(failed)
    }

    /// Takes a folder out of sight at once, then removes it.
    fn put_away(&self, place: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::local(place.display(), &error);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|_| failed(ErrorKind::Other.into()))?;
        let gone = self.folder.join(format!("{GONE}{}", hex::encode(random)));
        fs::rename(place, &gone).and_then(|()| sync(&self.folder)).map_err(failed)?;
        let _ = fs::remove_dir_all(&gone);
        Ok(())
    }

    /// Removes versions that nothing refers to.
    fn prune(&self, id: &ModuleId, record: &Record) {
        for name in super::names(&self.module(id)).unwrap_or_default() {
            let version = name.parse::<Version>().ok();
            if version.is_some_and(|version| record.versions().all(|known| *known != version)) {
                let _ = self.put_away(&self.module(id).join(name));
            }
        }
    }

    fn approve(&self, installed: &Installed, only: &[String], shown: &str) -> Result<(), Failure> {
        let id = &installed.id;
        let version = installed.record.staged.as_ref().or(installed.record.active.as_ref());
        let version = version.ok_or_else(|| malformed(&self.module(id), "it has no version"))?.clone();
        let verified = self.version(installed, &version)?;
        if verified.shown() != shown {
            let what =
                format!("{id} is not what you were shown any more: {version} has come, or its manifest is another");
            let way_out = format!("`openred module show {id}` shows it, and the command that approves it");
            return Err(Failure::new(Exit::Conflict, "package.changed", what, way_out));
        }
        // What came since it was taken in may stand against it.
        self.check_fits(&verified)?;
        let asks = verified.manifest.asks();
        let granted = match only {
            [] => asks.clone(),
            only => {
                let wanted = record::parse(only)?;
                let beyond = wanted.iter().find(|wanted| !asks.has(wanted.name()));
                if let Some(beyond) = beyond {
                    let what = format!("{id} does not ask for {beyond}");
                    return Err(Failure::new(
                        Exit::Usage,
                        "package.grant",
                        what,
                        "`openred module show` lists what it asks for",
                    ));
                }
                asks.meet(&wanted)
            }
        };
        self.grant(id, &version, &asks, &granted)?;
        let mut record = installed.record.clone();
        record.activate(version);
        record.enabled = true;
        self.write(id, &record)?;
        self.prune(id, &record);
        Ok(())
    }

    /// The swap from `to` to `from` did not last; nothing if another version was installed meanwhile.
    pub(crate) fn settle(&self, id: &ModuleId, from: &str, to: &str, turn: u32) -> Result<bool, Failure> {
        let installed = self.need(id)?;
        let mut record = installed.record;
        let to = record.earlier.iter().find(|version| version.as_str() == to).cloned();
        let (Some(to), true) = (to, record.active.as_ref().is_some_and(|active| active.as_str() == from)) else {
            return Ok(false);
        };
        record.go_back(to, turn);
        self.write(id, &record)?;
        self.prune(id, &record);
        Ok(true)
    }

    /// Of the versions that may be gone back to, no others are needed than these.
    pub(crate) fn keep(&self, id: &ModuleId, needed: &[String]) -> Result<(), Failure> {
        let Some(Installed { mut record, .. }) = self.get(id)? else { return Ok(()) };
        let before = record.earlier.len();
        record.earlier.retain(|version| needed.iter().any(|needed| version.as_str() == needed));
        if record.earlier.len() == before {
            return Ok(());
        }
        self.write(id, &record)?;
        self.prune(id, &record);
        Ok(())
    }

    fn grant(&self, id: &ModuleId, version: &Version, asks: &Grants, granted: &Grants) -> Result<(), Failure> {
        let granted = Granted { version: version.clone(), asked: asks.texts(), granted: granted.texts() };
        record::write(&self.module(id).join(record::GRANTS), &granted)
    }

    fn enable(&self, installed: Installed) -> Result<(), Failure> {
        let id = &installed.id;
        let Some(version) = &installed.record.active else {
            let way_out =
                format!("`openred module show {id}` shows what it asks for, and the command that approves it");
            let what = format!("{id} was not approved");
            return Err(Failure::new(Exit::Conflict, "package.waiting", what, way_out));
        };
        self.check_fits(&self.version(&installed, version)?)?;
        let turn = installed.record.turn.wrapping_add(1);
        self.write(id, &Record { enabled: true, turn, ..installed.record })
    }

    fn remove(&self, module: &ModuleId, keep_data: bool) -> Result<(), Failure> {
        // Whatever is in it: one whose record cannot be read is removed like any other.
        if !self.module(module).is_dir() {
            self.need(module)?;
        }
        let kept = self.folder.join(format!("{KEPT}{module}"));
        if keep_data {
            put(&kept, b"", true, |_| ())?;
        } else {
            // First: one that is gone and whose state nobody deletes would hand it to the next of its name.
            put(&self.folder.join(format!("{FORGET}{module}")), b"", true, |_| ())?;
            let _ = fs::remove_file(&kept);
        }
        self.put_away(&self.module(module))
    }

    /// Whether one of that name was removed whose state stays for the next.
    pub(crate) fn keeps_state(&self, module: &ModuleId) -> bool {
        self.folder.join(format!("{KEPT}{module}")).exists()
    }

    /// The least slot that no module has. One that cannot be read has one, too, and nobody knows which.
    fn free_slot(&self) -> Result<u32, Failure> {
        let mut taken = BTreeSet::new();
        for (_, installed) in self.each()? {
            taken.insert(installed?.record.slot);
        }
        let most = FIRST_SLOT + u32::try_from(INSTALLED).unwrap_or(0);
        (FIRST_SLOT..most).find(|slot| !taken.contains(slot)).ok_or_else(|| {
            let what = format!("{INSTALLED} modules are installed already");
            Failure::new(Exit::Conflict, "package.many", what, "remove one first")
        })
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
