//! A module's settings: declared by its manifest, set by the operator, checked by the manifest's own reader.

use serde::de::DeserializeOwned;

use crate::error::{ModuleError, Status};
use crate::manifest::Manifest;

/// Where the operator's settings are said to stand.
const FILE: &str = "settings";

/// A struct with a field for each setting of the manifest. Written by the attribute `config`, by nobody else.
pub trait Config: DeserializeOwned {
    /// The manifest that declares them.
    const MANIFEST: &'static str;

    /// What the operator says in `text` (TOML), and the defaults for the rest.
    ///
    /// # Errors
    /// `bad-settings`: one that the module does not have, a value that it does not take, or one that is wanted and not said.
    fn read(text: &str) -> Result<Self, ModuleError> {
        let bad = |why: String| ModuleError::new(Status::Conflict, "bad-settings", why);
        let manifest = Manifest::parse("openred.toml", Self::MANIFEST).map_err(|error| bad(error.to_string()))?;
        let table = manifest.configure(FILE, text).map_err(|error| bad(error.to_string()))?;
        table.try_into().map_err(|error: toml::de::Error| bad(error.to_string()))
    }
}
