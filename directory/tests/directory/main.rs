//! Tests of the directory: its API in-process, hostile bytes over real sockets, and the real program in its cage.
#![allow(clippy::unwrap_used, reason = "tests")]

mod admission;
mod apart;
mod broker;
mod cluster;
mod costs;
mod disk;
mod fixture;
mod floods;
mod hostile;
mod log;
mod logs;
mod lookup;
mod mirror;
mod nodes;
mod operator;
mod process;
mod recovery;
mod reload;
mod render;
mod replicas;
mod service;
mod shared;
mod signature;
mod stores;
mod successions;
mod tokens;
