//! The setting of the module `auth`: where this machine's browser or programs reach the operator's API.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::monitor::is_served_here;
use super::{BadValue, MonitorConfig, text};

/// `[auth]`: the operator's API over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// Where it is served on this machine; nothing: nowhere.
    #[serde(with = "text::address")]
    pub listen: Option<SocketAddr>,
}

impl AuthConfig {
    pub(super) fn check(&self, monitor: &MonitorConfig) -> Result<(), BadValue> {
        let bad = |why| Err(BadValue { key: "auth.listen", why });
        if !is_served_here(self.listen) {
            return bad("not an address of this machine's loopback with a port from 1024 up, such as 127.0.0.1:7693");
        }
        if self.listen.is_some() && self.listen == monitor.listen {
            return bad("the same as `monitor.listen`");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::NodeConfig;
    use super::*;

    #[test]
    fn the_api_is_for_this_machine_alone_and_has_an_address_of_its_own() {
        let checked = |auth: &str, monitor: &str| {
            let (auth, monitor) =
                (AuthConfig { listen: auth.parse().ok() }, MonitorConfig { listen: monitor.parse().ok() });
            NodeConfig { auth, monitor, ..NodeConfig::default() }.check().map_err(|bad| bad.key)
        };
        for address in ["0.0.0.0:7693", "192.0.2.1:7693", "[::]:7693", "127.0.0.1:443", "127.0.0.1:0"] {
            assert_eq!(checked(address, ""), Err("auth.listen"), "{address}");
        }
        assert_eq!(checked("127.0.0.1:7693", "127.0.0.1:7693"), Err("auth.listen"));
        assert_eq!(checked("[::1]:7693", "127.0.0.1:7693"), Ok(()));
    }
}
