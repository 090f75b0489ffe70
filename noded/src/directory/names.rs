//! Host names of the directories, resolved once at the start: inside the cage (a name server's answer is the first thing that this
//! process hears from outside), before the final filter, which has no datagrams. No peer's word ever makes it look a name up.

use std::collections::HashMap;
use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;

use crate::config::DirectoryAddress;

/// Addresses kept of one name.
const ADDRESSES: usize = 8;

/// Names and their addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResolvedNames(Arc<HashMap<String, Vec<SocketAddr>>>);

/// Resolves the directories' host names; blocking, for the time before the first peer is heard. A name that does not resolve is left out
/// and reported when it is used.
pub(crate) fn resolve_names<'a>(directories: impl Iterator<Item = &'a DirectoryAddress>) -> ResolvedNames {
    let mut names = HashMap::new();
    for directory in directories {
        if directory.host().parse::<IpAddr>().is_ok() {
            continue;
        }
        if let Ok(addresses) = (directory.host(), directory.port()).to_socket_addrs() {
            names.insert(directory.host().to_owned(), addresses.take(ADDRESSES).collect());
        }
    }
    ResolvedNames(Arc::new(names))
}

impl ResolvedNames {
    /// Whether a connection to this host can be tried.
    pub(super) fn knows(&self, host: &str) -> bool {
        host.parse::<IpAddr>().is_ok() || self.0.contains_key(host)
    }
}

impl tower::Service<Name> for ResolvedNames {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let found = self.0.get(name.as_str()).cloned();
        ready(found.map(Vec::into_iter).ok_or_else(|| io::ErrorKind::NotFound.into()))
    }
}
