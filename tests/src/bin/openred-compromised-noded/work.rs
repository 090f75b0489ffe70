//! Honest work in bulk, as much as the key process takes: what memory is searched behind.

use std::io::{Read, Write};

use anyhow::{Context, Result, anyhow};
use openred_proto::cryptod as rpc;

use super::front::Front;
use super::honest::{Honest, row_request, shake, start_and_finish};
use super::report::Report;

/// Operations of a handshake in each of the two roles, and what belongs to it: two and a match, two, one for the row.
const A_ROUND: u64 = 6;

/// Keeps what comes on standard input, says so, and waits for the end of it.
pub(crate) fn hold() -> std::io::Result<()> {
    let (mut length, mut input) = ([0; 4], std::io::stdin());
    input.read_exact(&mut length)?;
    let mut held = vec![0; u32::from_le_bytes(length) as usize];
    input.read_exact(&mut held)?;
    std::io::stdout().write_all(b"held\n")?;
    input.read_to_end(&mut Vec::new())?;
    drop(std::hint::black_box(held));
    Ok(())
}

/// Uses the keys at least `count` times.
pub(crate) fn all(front: &mut Front, report: &mut Report, count: u64) -> Result<()> {
    let mut honest = Honest::begin(front, report)?;
    let before = operations(front)?;
    for _ in 0..count.div_ceil(A_ROUND) {
        shake(front, &mut honest.one, &honest.link)?;
        start_and_finish(front, &mut honest.one, &honest.link)?;
        let row = row_request(&honest.link.row);
        let keys = front.call(|mut keys| async move { keys.get_link_keys(row).await });
        keys.map_err(|refused| anyhow!("request keys: {}", refused.text))?;
    }
    report.worked(operations(front)? - before, &honest)?;
    // The peers' vaults stay: the same code in ordinary memory, for a search to find.
    std::mem::forget(honest);
    Ok(())
}

fn operations(front: &mut Front) -> Result<u64> {
    let described = front.call(|mut keys| async move { keys.describe(rpc::DescribeRequest {}).await });
    Ok(described.ok().context("who the node is")?.operations)
}
