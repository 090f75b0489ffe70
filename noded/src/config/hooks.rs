//! `[hooks]`: the operator's order of modules' hooks.

use openred_proto::modules::MODULE_ID_BYTES;
use serde::{Deserialize, Serialize};

use super::{BadValue, has_twice};

/// Hooks and modules in `hooks.order`.
const HOOKS_ORDERED: usize = 64;

/// `[hooks]`: in which order modules are asked about calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HooksConfig {
    /// Hooks (`MODULE/HOOK`) or modules, the first first. Holds inside a class, where the hooks themselves say nothing of each other.
    pub order: Vec<String>,
}

impl HooksConfig {
    pub(super) fn check(&self) -> Result<(), BadValue> {
        let why = if self.order.len() > HOOKS_ORDERED {
            "more than 64"
        } else if has_twice(&self.order) {
            "names a hook twice"
        } else if !self.order.iter().all(|name| is_hook(name)) {
            "not MODULE/HOOK or MODULE; `openred hooks` names them"
        } else {
            return Ok(());
        };
        Err(BadValue { key: "hooks.order", why })
    }
}

/// `MODULE` or `MODULE/HOOK`.
fn is_hook(name: &str) -> bool {
    let is_word = |word: &str| {
        (1..=MODULE_ID_BYTES).contains(&word.len())
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    name.split('/').count() <= 2 && name.split('/').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_hooks_and_modules_once() {
        let checked =
            |order: &[&str]| HooksConfig { order: order.iter().map(|name| (*name).to_owned()).collect() }.check();
        assert_eq!(checked(&["guard/gate", "spam"]), Ok(()));
        for bad in ["", "Guard", "guard/", "a/b/c", "a b"] {
            assert_eq!(checked(&[bad]).map_err(|bad| bad.key), Err("hooks.order"), "{bad}");
        }
        assert!(checked(&["a", "a"]).is_err() && checked(&["a"; 65]).is_err());
    }
}
