//! Settings whose text is richer than TOML's own types: node ids and directory addresses. They are parsed here once;
//! past this file only checked values travel.

use std::fmt;
use std::str::FromStr;

use openred_proto::id::NodeId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

/// A directory: whose key signs its receipts, and where it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryAddress {
    /// The directory's id; a receipt by any other key is refused.
    pub id: NodeId,
    /// Its public origin, without a path: what signed requests name as their target.
    pub origin: String,
    host: String,
    port: u16,
    tls: bool,
}

impl DirectoryAddress {
    /// Host name or IP literal (without brackets).
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is spoken to over TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }
}

/// Why a directory's address was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDirectory {
    /// No `@` between id and URL.
    #[error("expected did:key:…@https://host[:port]")]
    Shape,
    /// The part before `@`.
    #[error("the part before `@` is not a did:key of an Ed25519 key")]
    Id,
    /// The part after `@`.
    #[error("the part after `@` is not an http or https URL of a host alone (no user, path, query or fragment)")]
    Url,
    /// Plain HTTP over a network.
    #[error("plain http is for loopback only; use https")]
    Plain,
}

impl FromStr for DirectoryAddress {
    type Err = BadDirectory;

    fn from_str(text: &str) -> Result<Self, BadDirectory> {
        let (id, url) = text.split_once('@').ok_or(BadDirectory::Shape)?;
        let id = id.parse().map_err(|_| BadDirectory::Id)?;
        let url = Url::parse(url).map_err(|_| BadDirectory::Url)?;
        let bare = url.username().is_empty()
            && url.password().is_none()
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none();
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(BadDirectory::Url),
        };
        let host = url.host().filter(|_| bare).ok_or(BadDirectory::Url)?;
        if !tls && !is_loopback(&host) {
            return Err(BadDirectory::Plain);
        }
        let port = url.port_or_known_default().ok_or(BadDirectory::Url)?;
        let host = host.to_string().trim_matches(['[', ']']).to_owned();
        Ok(Self { id, origin: url.origin().ascii_serialization(), host, port, tls })
    }
}

fn is_loopback(host: &url::Host<&str>) -> bool {
    match host {
        url::Host::Domain(name) => *name == "localhost",
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    }
}

impl fmt::Display for DirectoryAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.origin)
    }
}

impl Serialize for DirectoryAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DirectoryAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An address, or no text for none.
pub(super) mod address {
    use super::{Deserialize, Deserializer, Serializer};
    use std::net::SocketAddr;

    pub(in crate::config) fn serialize<S: Serializer>(
        address: &Option<SocketAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_str(""),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| serde::de::Error::custom("expected ADDRESS:PORT, such as 127.0.0.1:7692"))
    }
}

/// Node ids as did:key text.
pub(super) mod node_ids {
    use super::{Deserialize, Deserializer, NodeId, Serializer};

    pub(in crate::config) fn serialize<S: Serializer>(ids: &[NodeId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(ToString::to_string))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NodeId>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let parse = |(place, text): (usize, &String)| {
            let wrong = |_| {
                serde::de::Error::custom(format!("number {} of the list is no did:key of a node: {text:?}", place + 1))
            };
            text.parse().map_err(wrong)
        };
        texts.iter().enumerate().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn directory_addresses() {
        let id = NodeId::from_bytes([5; 32]);
        let parse = |url: &str| format!("{id}@{url}").parse::<DirectoryAddress>();
        let address = parse("https://directory.example:8443/").unwrap();
        assert_eq!((address.host(), address.port(), address.is_tls()), ("directory.example", 8443, true));
        assert_eq!(address.to_string(), format!("{id}@https://directory.example:8443"));
        let address = parse("http://[::1]:7700").unwrap();
        assert_eq!((address.host(), address.port(), address.origin.as_str()), ("::1", 7700, "http://[::1]:7700"));
        assert_eq!(parse("http://192.0.2.1:7700"), Err(BadDirectory::Plain));
        for bad in ["https://u@host", "https://host/path", "https://host?x", "ftp://host", "host", ""] {
            assert_eq!(parse(bad), Err(BadDirectory::Url), "{bad}");
        }
        assert_eq!("https://host".parse::<DirectoryAddress>(), Err(BadDirectory::Shape));
        assert_eq!("did:web:x@https://host".parse::<DirectoryAddress>(), Err(BadDirectory::Id));
    }
}
