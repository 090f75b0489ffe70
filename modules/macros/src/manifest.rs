//! The author's manifest, as it stands while the module is compiled.

use std::path::PathBuf;

use openred_manifest::Manifest;
use proc_macro2::{Span, TokenStream};
use quote::quote;

/// Its file, beside Cargo.toml.
const FILE: &str = "openred.toml";

/// A manifest and where it was read.
pub(crate) struct Read {
    pub(crate) manifest: Manifest,
    path: String,
}

impl Read {
    /// Reads it for the crate that is compiled now.
    pub(crate) fn beside_cargo() -> syn::Result<Self> {
        let refuse = |what: String| syn::Error::new(Span::call_site(), what);
        let folder = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let path = folder.ok_or_else(|| refuse(format!("{FILE}: cargo does not say where it would be")))?.join(FILE);
        let path = path.to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).map_err(|error| {
            refuse(format!("{path}: {error}; a module has its manifest there, see docs/modules.md"))
        })?;
        Self::parse(path, &text)
    }

    /// Reads a manifest's text.
    pub(crate) fn parse(path: String, text: &str) -> syn::Result<Self> {
        let manifest = Manifest::parse(&path, text);
        let manifest = manifest.map_err(|error| syn::Error::new(Span::call_site(), error.to_string()))?;
        Ok(Self { manifest, path })
    }

    /// The text as a literal of the crate, which is compiled anew when it changes.
    pub(crate) fn text(&self) -> TokenStream {
        let path = &self.path;
        quote!(::core::include_str!(#path))
    }
}
