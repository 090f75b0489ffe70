//! `#[module]`: the trait's implementation with what its manifest says.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, ImplItem, ItemImpl, parse2};

use crate::manifest::Read;

/// What the attribute writes itself.
const WRITTEN: [&str; 2] = ["manifest", "manifest_text"];

pub(crate) fn expand(
    arguments: &TokenStream,
    item: TokenStream,
    read: impl FnOnce() -> syn::Result<Read>,
) -> syn::Result<TokenStream> {
    if !arguments.is_empty() {
        return Err(Error::new_spanned(
            arguments,
            "#[module] takes no arguments; what a module is stands in openred.toml",
        ));
    }
    let mut block: ItemImpl = parse2(item)?;
    let is_module = block
        .trait_
        .as_ref()
        .is_some_and(|(_, path, _)| path.segments.last().is_some_and(|segment| segment.ident == "Module"));
    if !is_module {
        return Err(Error::new_spanned(&block.self_ty, "#[module] stands on `impl Module for …`"));
    }
    for item in &block.items {
        if let ImplItem::Fn(function) = item
            && WRITTEN.iter().any(|name| function.sig.ident == name)
        {
            return Err(Error::new_spanned(&function.sig.ident, "#[module] writes this itself, out of openred.toml"));
        }
    }
    let read = read()?;
    let (id, version) = (read.manifest.id.as_str(), read.manifest.version.to_string());
    let (summary, text) = (read.manifest.description.to_string(), read.text());
    let cargo = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    if cargo != version {
        let what = format!("openred.toml says version {version}, Cargo.toml {cargo}; make them the same");
        return Err(Error::new(proc_macro2::Span::call_site(), what));
    }
    block.items.push(syn::parse_quote! {
        fn manifest(&self) -> ::openred_module::Manifest {
            ::openred_module::Manifest { id: #id, version: #version, summary: #summary }
        }
    });
    block.items.push(syn::parse_quote! {
        fn manifest_text() -> ::core::option::Option<&'static str> {
            ::core::option::Option::Some(#text)
        }
    });
    Ok(quote! {
        #[::openred_module::async_trait]
        #block
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn manifest(text: &str) -> impl FnOnce() -> syn::Result<Read> {
        let text = text.to_owned();
        move || Read::parse("/project/openred.toml".to_owned(), &text)
    }

    fn good(version: &str) -> String {
        format!("id = \"greet\"\nversion = \"{version}\"\nprogram = \"greet\"\ndescription = \"Greets\"\n")
    }

    fn refused(item: TokenStream, text: &str) -> String {
        expand(&TokenStream::new(), item, manifest(text)).unwrap_err().to_string()
    }

    #[test]
    fn the_manifest_becomes_what_the_module_says_of_itself() {
        let item = quote!(impl Module for Greeter { fn routes(_: &mut Routes<Self>) {} });
        let text = good(env!("CARGO_PKG_VERSION"));
        let code = expand(&TokenStream::new(), item, manifest(&text)).unwrap().to_string();
        for part in
            ["async_trait", "id : \"greet\"", "summary : \"Greets\"", "include_str ! (\"/project/openred.toml\")"]
        {
            assert!(code.contains(part), "{part}: {code}");
        }
    }

    #[test]
    fn what_would_be_refused_at_install_does_not_compile() {
        let item = || quote!(impl Module for Greeter {});
        let unknown = format!("{}colour = \"red\"\n", good("0.1.0"));
        let said = refused(item(), &unknown);
        assert!(said.contains("openred.toml:5") && said.contains("colour"), "{said}");
        let said = refused(item(), &good("7.0.0"));
        assert!(said.contains("7.0.0") && said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    }

    #[test]
    fn the_attribute_in_another_place_is_refused() {
        assert!(refused(quote!(impl Greeter {}), &good("0.1.0")).contains("impl Module for"));
        let own = quote!(impl Module for Greeter { fn manifest(&self) -> Manifest { todo!() } });
        assert!(refused(own, &good("0.1.0")).contains("writes this itself"));
        let said = expand(&quote!(id = "x"), quote!(impl Module for Greeter {}), manifest(&good("0.1.0"))).unwrap_err();
        assert!(said.to_string().contains("takes no arguments"));
    }
}
