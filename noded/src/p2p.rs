//! Node to node: the HTTP carrier of handshakes and sessions, both ends, and the pool of open sessions.

pub mod ports;
