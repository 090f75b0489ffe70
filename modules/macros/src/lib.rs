//! The attributes of `openred-module`. They read `openred.toml` beside the author's Cargo.toml while the module is compiled, with the one
//! reader that installer and node use, so that what would be refused at install does not compile.
//!
//! Authors use them through `openred_module`, where they are described.
#![forbid(unsafe_code)]

mod manifest;
mod module;
mod settings;

use manifest::Read;
use proc_macro::TokenStream;

/// On `impl Module for …`: see `openred_module::module`.
#[proc_macro_attribute]
pub fn module(arguments: TokenStream, item: TokenStream) -> TokenStream {
    module::expand(&arguments.into(), item.into(), Read::beside_cargo)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// On `struct …;`: see `openred_module::config`.
#[proc_macro_attribute]
pub fn config(arguments: TokenStream, item: TokenStream) -> TokenStream {
    settings::expand(&arguments.into(), item.into(), Read::beside_cargo)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
