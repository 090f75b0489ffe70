//! A module swapped for another version of itself while it is called.
//!
//! Each process of a module is a *generation*: a number that is never used twice, the version that it runs, and which rows it works on.
//! One is active: calls go to it and it alone may write. What is durable of that is the record (`record`), written with the store's
//! epoch of the module in one transaction; the order of steps is the machine's (`machine`), which does nothing itself.

mod drive;
mod machine;
mod record;
#[cfg(test)]
mod tests;
mod wish;

pub(super) use drive::{Drive, Live};
pub(super) use record::Generation;
pub(super) use wish::{Board, Done, Wish};
pub(crate) use wish::{Shown, Want};
