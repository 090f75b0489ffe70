//! Memory that is free goes back to the kernel, also from the midst of the heap. A program of its own: nothing else allocates meanwhile.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::hint::black_box;

/// Blocks of a rush: below what the allocator would map by itself.
const BLOCK: usize = 60 << 10;
/// How many of them: 15 MiB.
const BLOCKS: usize = 256;

/// What no file lies behind of this process's memory, in KiB.
fn held() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn what_a_rush_took_goes_back_although_its_last_block_stays() {
    let rush: Vec<Vec<u8>> = (0..BLOCKS).map(|number| black_box(vec![number as u8 | 1; BLOCK])).collect();
    let last = black_box(Box::new([1_u8; 4096]));
    let (all, most) = (held(), BLOCK * BLOCKS / 1024);
    drop(rush);
    let kept = held();
    assert!(all - kept.min(all) < most / 4, "the allocator gave {} KiB back by itself: this shows nothing", all - kept);
    openred_policy::give_back_memory();
    let left = held();
    assert!(kept - left.min(kept) > most / 4 * 3, "{all} KiB, {kept} KiB freed, {left} KiB given back");
    assert_eq!(last[17], 1, "what is in use is as it was");
}
