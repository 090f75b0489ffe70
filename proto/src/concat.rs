//! Length-prefixed concatenation: the one way in which several fields become bytes to hash, derive from or sign.
//!
//! Each part is preceded by its length as four bytes, big-endian, so no two lists of parts give the same bytes
//! (PROTOCOL, "All concatenations below are length-prefixed").

/// Joins `parts`, each behind its length (u32, big-endian).
///
/// # Panics
/// Never for parts under 4 GiB; every caller's parts are capped far below.
#[must_use]
pub fn concat(parts: &[&[u8]]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
    for part in parts {
        let length = u32::try_from(part.len()).expect("parts are capped by limits.rs, far below 4 GiB");
        joined.extend_from_slice(&length.to_be_bytes());
        joined.extend_from_slice(part);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::concat;

    #[test]
    fn moving_a_boundary_changes_the_bytes() {
        assert_ne!(concat(&[b"ab", b"c"]), concat(&[b"a", b"bc"]));
        assert_ne!(concat(&[b"ab"]), concat(&[b"ab", b""]));
        assert_eq!(concat(&[b"a"]), [0, 0, 0, 1, b'a']);
    }
}
