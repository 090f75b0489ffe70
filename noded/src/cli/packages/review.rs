//! What a module asks for, permission by permission, for the operator who decides and for the one who looks back.

use std::collections::BTreeMap;

use openred_module::manifest::{Grants, Manifest, PermissionName};
use serde::Serialize;

use crate::cli::Failure;
use crate::home::Home;
use crate::module::USED;

/// How often a module used each permission.
pub(super) type Used = BTreeMap<String, u64>;

/// One permission of a module.
#[derive(Debug, Serialize)]
pub(super) struct Lines {
    pub(super) name: String,
    /// As the manifest has it.
    pub(super) asked: String,
    /// What of it is granted.
    pub(super) granted: Option<String>,
    pub(super) meaning: &'static str,
    /// In the author's words.
    pub(super) reasons: Vec<String>,
    pub(super) used: Option<u64>,
}

/// All that a manifest asks for.
pub(super) fn lines(manifest: &Manifest, granted: Option<&Grants>, used: Option<&Used>) -> Vec<Lines> {
    let (asked, asks) = (manifest.asked(), manifest.asks());
    let line = |name: PermissionName| {
        let permission = asks.get(name)?;
        let mut reasons: Vec<String> = Vec::new();
        for asked in asked.iter().filter(|asked| asked.permission.name() == name) {
            let reason = asked.reason.to_string();
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        let has = granted.and_then(|granted| granted.get(name)?.meet(permission));
        Some(Lines {
            name: name.to_string(),
            asked: permission.to_string(),
            granted: has.map(|has| has.to_string()),
            meaning: name.meaning(),
            reasons,
            used: used.map(|used| used.get(name.name()).copied().unwrap_or(0)),
        })
    };
    PermissionName::ALL.into_iter().filter_map(line).collect()
}

/// What the node has counted, by module and permission.
pub(super) fn used(home: &Home) -> Result<BTreeMap<String, Used>, Failure> {
    let place = home.state().join(USED);
    match std::fs::read(&place) {
        Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(Failure::local(place.display(), &error)),
    }
}
