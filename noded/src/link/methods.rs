//! Which methods this node allows, and what picks one: the configuration, and what the operator has decided since, which can only
//! narrow it. Sans-IO; the store keeps [`Methods::encode`].

use std::time::Duration;

use openred_proto::id::UnixMillis;
use openred_proto::method::{Method, MethodSet, Schedule};

use super::state::{EndReason, Link, LinkState};

/// An epoch of the hourly schedule: a method that was retired is in use no longer than this.
pub(crate) const EPOCH: Duration = Duration::from_secs(3600);

/// First byte of the stored form.
const LAYOUT: u8 = 1;
const BYTES: usize = 3 + 8 * Method::ALL.len();

/// The operator's decisions, and since when each method is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Methods {
    disabled: MethodSet,
    schedule: Option<Schedule>,
    /// In the order of [`Method::ALL`]; zero for one that is allowed.
    retired_at: [UnixMillis; Method::ALL.len()],
}

impl Default for Methods {
    fn default() -> Self {
        Self { disabled: MethodSet::EMPTY, schedule: None, retired_at: [UnixMillis(0); Method::ALL.len()] }
    }
}

/// Why a decision was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadDecision {
    /// A decision cannot allow more than the file.
    #[error("`links.methods` in the configuration leaves this method out; allow it there")]
    NotConfigured,
    /// No link could be made or renewed.
    #[error("it is the last method that is allowed; allow another one first")]
    Last,
}

impl Methods {
    /// What is allowed of the `configured` methods.
    pub(crate) fn allowed(&self, configured: MethodSet) -> MethodSet {
        configured.iter().filter(|method| !self.disabled.contains(*method)).collect()
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
        if self.allowed(configured).is_empty() {
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
        if self.allowed(configured).is_empty() {
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
        let place = Method::ALL.iter().position(|method| *method == link.summary.method)?;
        let retired_at = self.retired_at[place];
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
        [LAYOUT, self.disabled.bits(), schedule].into_iter().chain(times).collect()
    }

    /// From the stored form.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
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
        (bytes[0] == LAYOUT).then_some(())?;
        Some(Self { disabled: MethodSet::from_bits(bytes[1].into()).ok()?, schedule, retired_at })
    }
}
