//! The setting of the module `monitor`: where this machine's Prometheus reads it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{BadValue, text};

/// `[monitor]`: the page for Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MonitorConfig {
    /// Where it is served on this machine; nothing: nowhere.
    #[serde(with = "text::address")]
    pub listen: Option<SocketAddr>,
}

impl MonitorConfig {
    pub(super) fn check(&self) -> Result<(), BadValue> {
        let why = "not an address of this machine's loopback with a port from 1024 up, such as 127.0.0.1:7692";
        if is_served_here(self.listen) { Ok(()) } else { Err(BadValue { key: "monitor.listen", why }) }
    }
}

/// Whether nobody reaches it from elsewhere, and no service of the system is in its place.
pub(super) fn is_served_here(listen: Option<SocketAddr>) -> bool {
    listen.is_none_or(|address| address.ip().is_loopback() && address.port() >= 1024)
}

#[cfg(test)]
mod tests {
    use super::super::NodeConfig;
    use super::*;

    #[test]
    fn the_page_is_for_this_machine_alone() {
        let checked = |address: &str| {
            let monitor = MonitorConfig { listen: address.parse().ok() };
            NodeConfig { monitor, ..NodeConfig::default() }.check().map_err(|bad| bad.key)
        };
        for address in ["0.0.0.0:7692", "192.0.2.1:7692", "[::]:7692", "127.0.0.1:80", "127.0.0.1:0"] {
            assert_eq!(checked(address), Err("monitor.listen"), "{address}");
        }
        assert_eq!(checked("[::1]:7692"), Ok(()));
    }
}
