//! The operator's settings, `[module.files]`: what the manifest declares under `[config]`, read when it is used, so that a change counts
//! from the next call on.

/// See `openred.toml`.
#[openred_module::config]
pub(crate) struct Settings;
