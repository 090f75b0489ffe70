//! Link tokens (PROTOCOL 4): how a link is issued and accepted, the transforms of its two tokens, and what is derived from
//! the secret behind them. Sans-IO throughout: time, randomness and memory are arguments.

pub mod accept;
pub mod derive;
pub mod issue;
pub mod transform;

#[cfg(test)]
mod tests;
