//! Which methods this node allows, and what picks one: the configuration, what the operator has decided since, which can only
//! narrow it, and methods of modules, each off until he allows it. Sans-IO; the store keeps [`Methods::encode`].

use std::time::Duration;

use openred_proto::id::{MethodId, UnixMillis};
use openred_proto::method::{Method, MethodSet, PLACES, Place, Schedule};

use super::state::{EndReason, Link, LinkState};

/// An epoch of the hourly schedule: a method that was retired is in use no longer than this.
pub(crate) const EPOCH: Duration = Duration::from_secs(3600);

/// First byte of the stored form: 2 has decisions about methods of modules behind the rest.
const LAYOUT: u8 = 2;
/// Without them.
const BEFORE_MODULES: u8 = 1;
const BUILT_IN_BYTES: usize = 3 + 8 * Method::ALL.len();
/// Id, flags, and since when it is not allowed.
const DECISION_BYTES: usize = 16 + 1 + 8;
const BYTES: usize = BUILT_IN_BYTES + PLACES * DECISION_BYTES;
const ALLOWED: u8 = 1;
const PRESENT: u8 = 2;

/// What stands at one place, and what the operator has said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registered {
    /// What his word is about: a place may be taken by another method later.
    method: MethodId,
    /// He has allowed it.
    allowed: bool,
    /// Its module is there.
    present: bool,
    /// Zero for one that is in use.
    retired_at: UnixMillis,
}

const NOBODY: Registered =
    Registered { method: MethodId::from_bytes([0; 16]), allowed: false, present: false, retired_at: UnixMillis(0) };

impl Registered {
    const fn is_in_use(&self) -> bool {
        self.allowed && self.present
    }

    /// Retired now, if it is not in use any more.
    const fn settled(mut self, now: UnixMillis) -> Self {
        if self.is_in_use() {
            self.retired_at = UnixMillis(0);
        } else if self.retired_at.0 == 0 {
            self.retired_at = now;
        }
        self
    }
}

/// The operator's decisions, and since when each method is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Methods {
    disabled: MethodSet,
    schedule: Option<Schedule>,
    /// In the order of [`Method::ALL`]; zero for one that is allowed.
    retired_at: [UnixMillis; Method::ALL.len()],
    /// In the order of the places.
    registered: [Registered; PLACES],
}

impl Default for Methods {
    fn default() -> Self {
        Self {
            disabled: MethodSet::EMPTY,
            schedule: None,
            retired_at: [UnixMillis(0); Method::ALL.len()],
            registered: [NOBODY; PLACES],
        }
    }
}

/// Why a decision was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadDecision {
    /// A decision cannot allow more than the file.
    #[error("`links.methods` in the configuration leaves this method out; allow it there")]
    NotConfigured,
    /// Nobody has registered it.
    #[error("no module has registered this method; `openred method list` shows those that have one")]
    NoModule,
    /// No link could be made or renewed.
    #[error("it is the last method that is allowed; allow another one first")]
    Last,
}

impl Methods {
    /// What is allowed of the `configured` methods, and of those of modules.
    pub(crate) fn allowed(&self, configured: MethodSet) -> MethodSet {
        let built_in = configured.iter().filter(|method| !self.disabled.contains(*method)).collect();
        let in_use = Place::all().zip(&self.registered).filter(|(_, registered)| registered.is_in_use());
        in_use.fold(built_in, |set: MethodSet, (place, _)| set.with_place(place))
    }

    /// Whether the operator has allowed the method that stands at `place`.
    pub(crate) fn is_allowed(&self, place: Place) -> bool {
        self.at(place).allowed
    }

    const fn at(&self, place: Place) -> Registered {
        self.registered[place.number() as usize - 1]
    }

    /// With what the key process says of methods of modules: place, id, and whether the module is there. His word stays with
    /// the method that it was about, and what is not there any more is retired now.
    pub(crate) fn heard(mut self, table: &[(Place, MethodId, bool)], now: UnixMillis) -> Self {
        for (place, registered) in Place::all().zip(&mut self.registered) {
            let found = table.iter().find(|(known, ..)| *known == place);
            match found {
                Some((_, method, present)) if *method == registered.method => registered.present = *present,
                Some((_, method, present)) => *registered = Registered { method: *method, present: *present, ..NOBODY },
                None => registered.present = false,
            }
            *registered = registered.settled(now);
        }
        self
    }

    /// With the method at `place` allowed, or not any more.
    pub(crate) fn with_registered(mut self, place: Place, allow: bool, now: UnixMillis) -> Self {
        let registered = &mut self.registered[place.number() as usize - 1];
        registered.allowed = allow;
        *registered = registered.settled(now);
        self
    }

    /// Whether the operator has disabled it.
    pub(crate) const fn is_disabled(&self, method: Method) -> bool {
        self.disabled.contains(method)
    }

    /// The schedule in force.
    pub(crate) fn schedule(&self, configured: Schedule) -> Schedule {
        self.schedule.unwrap_or(configured)
    }

    /// The schedule that the operator has chosen, if he has.
    pub(crate) const fn decided_schedule(&self) -> Option<Schedule> {
        self.schedule
    }

    /// With one method allowed again, or disabled.
    ///
    /// # Errors
    /// [`BadDecision`].
    pub(crate) fn with(
        mut self,
        method: Method,
        allow: bool,
        configured: MethodSet,
        now: UnixMillis,
    ) -> Result<Self, BadDecision> {
        if allow && !configured.contains(method) {
            return Err(BadDecision::NotConfigured);
        }
        let others = self.disabled.iter().filter(|other| *other != method);
        self.disabled = others.chain((!allow).then_some(method)).collect();
        if self.allowed(configured).built_in().is_empty() {
            return Err(BadDecision::Last);
        }
        Ok(self.settled(configured, now))
    }

    /// With another schedule than the configured one.
    pub(crate) const fn scheduled(mut self, schedule: Schedule) -> Self {
        self.schedule = Some(schedule);
        self
    }

    /// Held against the configuration: what is not allowed from now on has been retired now. A file that leaves nothing that the
    /// operator's decisions allow goes before them.
    pub(crate) fn settled(mut self, configured: MethodSet, now: UnixMillis) -> Self {
        if self.allowed(configured).built_in().is_empty() {
            self.disabled = MethodSet::EMPTY;
        }
        let allowed = self.allowed(configured);
        for (method, retired_at) in Method::ALL.into_iter().zip(&mut self.retired_at) {
            match retired_at.0 {
                _ if allowed.contains(method) => *retired_at = UnixMillis(0),
                0 => *retired_at = now,
                _ => {}
            }
        }
        self
    }

    /// The end of a link whose method is not allowed any more; none while there is time to renew it with another. A link that
    /// nobody has accepted yet has none.
    pub(crate) fn ended(&self, link: &Link, now: UnixMillis) -> Option<Link> {
        let retired_at = match link.summary.registered {
            Some(place) => self.at(place).retired_at,
            None => self.retired_at[Method::ALL.iter().position(|method| *method == link.summary.method)?],
        };
        let is_over = match link.state {
            LinkState::Offered => true,
            LinkState::Pending | LinkState::Active | LinkState::Renewing => now >= retired_at.plus(EPOCH),
            LinkState::Waiting | LinkState::Expired | LinkState::Revoked => false,
        };
        if retired_at.0 == 0 || !is_over {
            return None;
        }
        link.clone().ended(EndReason::MethodRetired, now).ok()
    }

    /// The stored form.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let schedule = match self.schedule {
            None => 0,
            Some(Schedule::Hourly) => 1,
            Some(Schedule::Daily) => 2,
            Some(Schedule::Seeded) => 3,
        };
        let times = self.retired_at.iter().flat_map(|at| at.0.to_be_bytes());
        let built_in = [LAYOUT, self.disabled.bits() as u8, schedule].into_iter().chain(times);
        let registered = self.registered.iter().flat_map(|registered| {
            let flags = if registered.allowed { ALLOWED } else { 0 } | if registered.present { PRESENT } else { 0 };
            let id = registered.method.as_bytes().iter().copied();
            id.chain([flags]).chain(registered.retired_at.0.to_be_bytes()).collect::<Vec<u8>>()
        });
        built_in.chain(registered).collect()
    }

    /// From the stored form.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let known = matches!((bytes.first()?, bytes.len()), (&BEFORE_MODULES, BUILT_IN_BYTES) | (&LAYOUT, BYTES));
        let (bytes, decisions) = bytes.split_at_checked(BUILT_IN_BYTES).filter(|_| known)?;
        let schedule = match bytes[2] {
            0 => None,
            1 => Some(Schedule::Hourly),
            2 => Some(Schedule::Daily),
            3 => Some(Schedule::Seeded),
            _ => return None,
        };
        let mut retired_at = [UnixMillis(0); Method::ALL.len()];
        for (at, time) in retired_at.iter_mut().zip(bytes[3..].chunks_exact(8)) {
            *at = UnixMillis(u64::from_be_bytes(time.try_into().ok()?));
        }
        let mut registered = [NOBODY; PLACES];
        for (known, bytes) in registered.iter_mut().zip(decisions.chunks_exact(DECISION_BYTES)) {
            let (id, rest) = bytes.split_first_chunk::<16>()?;
            let (flags, at) = rest.split_first()?;
            *known = Registered {
                method: MethodId::from_bytes(*id),
                allowed: flags & ALLOWED != 0,
                present: flags & PRESENT != 0,
                retired_at: UnixMillis(u64::from_be_bytes(at.try_into().ok()?)),
            };
        }
        Some(Self { disabled: MethodSet::from_bits(bytes[1].into()).ok()?, schedule, retired_at, registered })
    }
}
