//! What a service manager is told (sd_notify): `READY=1`, `STOPPING=1`, a line of status. Without one, a line of text.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says `message` to the manager that started this process, if one did. A manager that is gone is nobody's fault.
pub(crate) fn notify(message: &str) -> bool {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return false };
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&place),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address));
    sent.is_ok()
}
