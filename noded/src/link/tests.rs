//! Tests of the link rules.
