//! `#[config]`: a struct with a field for each setting of the manifest.

use openred_manifest::Kind;
use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Error, Fields, ItemStruct, parse2};

use crate::manifest::Read;

pub(crate) fn expand(
    arguments: &TokenStream,
    item: TokenStream,
    read: impl FnOnce() -> syn::Result<Read>,
) -> syn::Result<TokenStream> {
    if !arguments.is_empty() {
        return Err(Error::new_spanned(arguments, "#[config] takes no arguments; the settings stand in openred.toml"));
    }
    let ItemStruct { attrs, vis, ident, generics, fields, .. } = parse2(item)?;
    if !matches!(fields, Fields::Unit) || !generics.params.is_empty() {
        return Err(Error::new_spanned(&ident, "#[config] stands on a struct without fields: `struct Config;`"));
    }
    let read = read()?;
    let text = read.text();
    let fields = read.manifest.config.iter().map(|(name, setting)| {
        let plain = name.as_str().replace('-', "_");
        let field = match plain.as_str() {
            // Rust takes no raw name for these, either.
            "self" | "super" | "crate" => format_ident!("{plain}_"),
            _ => format_ident!("r#{plain}"),
        };
        let (name, help) = (name.as_str(), setting.help.to_string());
        let kind = match setting.kind {
            Kind::Bool => quote!(bool),
            Kind::Integer { .. } => quote!(i64),
            Kind::Text { .. } => quote!(::std::string::String),
            Kind::List { .. } => quote!(::std::vec::Vec<::std::string::String>),
        };
        quote! {
            #[doc = #help]
            #[serde(rename = #name)]
            pub #field: #kind,
        }
    });
    Ok(quote! {
        #(#attrs)*
        #[derive(Debug, Clone, PartialEq, ::openred_module::serde::Deserialize)]
        #[serde(crate = "::openred_module::serde")]
        #vis struct #ident {
            #(#fields)*
        }

        impl ::openred_module::Config for #ident {
            const MANIFEST: &'static str = #text;
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const MANIFEST: &str = r#"
id = "greet"
version = "1.0.0"
program = "greet"
description = "Greets"

[config]
times = { type = "integer", default = 1, least = 1, most = 9, help = "How often" }
type = { type = "text", default = "plain", help = "A name that Rust keeps for itself" }
loud-peers = { type = "list", default = [], help = "Who likes it loud" }
self = { type = "bool", default = true, help = "Another such name" }
on = { type = "bool", default = true, help = "Whether at all" }
"#;

    fn read() -> syn::Result<Read> {
        Read::parse("/project/openred.toml".to_owned(), MANIFEST)
    }

    #[test]
    fn each_setting_becomes_a_field() {
        let code = expand(
            &TokenStream::new(),
            quote!(
                pub struct Config;
            ),
            read,
        )
        .unwrap()
        .to_string();
        for part in [
            "r#times : i64",
            "r#type : :: std :: string :: String",
            "rename = \"loud-peers\"",
            "self_ : bool",
            "r#on : bool",
            "Who likes",
        ] {
            assert!(code.contains(part), "{part}: {code}");
        }
        syn::parse_str::<syn::File>(&code).unwrap();
    }

    #[test]
    fn a_struct_with_fields_of_its_own_is_refused() {
        let said = expand(
            &TokenStream::new(),
            quote!(
                struct Config {
                    own: u8,
                }
            ),
            read,
        )
        .unwrap_err()
        .to_string();
        assert!(said.contains("without fields"), "{said}");
    }
}
