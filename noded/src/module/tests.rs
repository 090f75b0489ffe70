//! Tests of the module host.
