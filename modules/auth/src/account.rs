//! Who may use the API, and after how many wrong attempts nobody may for a while. Everything here is a function of a row and the time.

use openred_module::{Table, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::password::Hashed;
use crate::totp::Totp;

/// Wrong attempts in a row before the first pause.
const FREE: u32 = 5;
/// The first pause; each further wrong attempt doubles it.
const FIRST: u64 = 60_000;
/// The longest.
const LONGEST: u64 = 3_600_000;
/// Most users.
pub(crate) const MOST: usize = 32;
/// Longest name.
const NAME: usize = 32;

/// By name.
pub(crate) static ACCOUNTS: Table<String, Account> = Table::new("user");

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// All that the API has.
    #[default]
    Operator,
    /// Look, and change nothing.
    Viewer,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) role: Role,
    pub(crate) password: Hashed,
    pub(crate) totp: Totp,
    pub(crate) created_at: UnixMillis,
    /// Attempts in a row that were not right. Counted before they are judged, so that ending the module in the middle wins nothing.
    pub(crate) failures: u32,
    pub(crate) locked_until: UnixMillis,
}

impl Account {
    pub(crate) fn new(role: Role, password: Hashed, totp: Totp, now: UnixMillis) -> Self {
        Self { role, password, totp, created_at: now, failures: 0, locked_until: 0 }
    }

    /// Whether it is paused. A clock that was set back does not pause it for longer than the longest pause.
    pub(crate) fn is_locked(&self, now: UnixMillis) -> bool {
        now < self.locked_until && self.locked_until - now <= LONGEST
    }

    /// With one more attempt that is not right so far.
    pub(crate) fn attempted(mut self, now: UnixMillis) -> Self {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FREE {
            let doubled = FIRST.saturating_mul(1 << (self.failures - FREE).min(16));
            self.locked_until = now + doubled.min(LONGEST);
        }
        self
    }

    /// Nothing was wrong.
    pub(crate) fn forgiven(mut self) -> Self {
        (self.failures, self.locked_until) = (0, 0);
        self
    }
}

/// Whether it can be a user's name.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    (1..=NAME).contains(&name.len())
        && name.bytes().all(allowed)
        && name.bytes().any(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account::new(Role::Operator, Hashed::nobody(), Totp::new([[1; 16]; 2]), 7)
    }

    #[test]
    fn pauses_grow_and_end() {
        let (mut account, mut now) = (account(), 100 * LONGEST);
        for _ in 1..FREE {
            account = account.attempted(now);
            assert!(!account.is_locked(now));
        }
        let mut pauses = Vec::new();
        for _ in 0..9 {
            account = account.attempted(now);
            assert!(account.is_locked(now));
            pauses.push((account.locked_until - now) / 1000);
            now = account.locked_until;
            assert!(!account.is_locked(now), "its end");
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
        assert!(!account.clone().forgiven().is_locked(now - 1));
        assert!(!account.is_locked(now - 10 * LONGEST), "a clock that was set back");
        account.failures = u32::MAX;
        assert_eq!(account.attempted(0).locked_until, LONGEST);
    }

    #[test]
    fn names_are_plain() {
        assert!(is_name("ada") && is_name("ada.l-1_x") && is_name(&"a".repeat(NAME)));
        for bad in ["", "Ada", "a b", "a/b", "é", "..", "-", "a\n", &"a".repeat(NAME + 1)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
