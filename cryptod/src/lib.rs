//! Everything that needs a secret key, and nothing else.
#![forbid(unsafe_code)]

mod handshake;
