//! The tree against its definition, against a tree of RFC 6962's known roots, and against proofs that were bent.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

/// MTH of RFC 6962 §2.1, word for word.
fn naive(entries: &[Vec<u8>]) -> Hash {
    match entries.len() {
        0 => empty_root(),
        1 => leaf_hash(&entries[0]),
        size => {
            let mut middle = 1;
            while middle * 2 < size {
                middle *= 2;
            }
            node_hash(&naive(&entries[..middle]), &naive(&entries[middle..]))
        }
    }
}

/// PATH of RFC 6962 §2.1.1.
fn naive_path(index: usize, entries: &[Vec<u8>]) -> Vec<Hash> {
    if entries.len() == 1 {
        return Vec::new();
    }
    let middle = usize::try_from(split(entries.len() as u64)).unwrap();
    let (left, right) = entries.split_at(middle);
    let (mut path, other) = if index < middle {
        (naive_path(index, left), naive(right))
    } else {
        (naive_path(index - middle, right), naive(left))
    };
    path.push(other);
    path
}

/// SUBPROOF of RFC 6962 §2.1.2.
fn naive_proof(old: usize, entries: &[Vec<u8>], whole: bool) -> Vec<Hash> {
    if old == entries.len() {
        return if whole { Vec::new() } else { vec![naive(entries)] };
    }
    let middle = usize::try_from(split(entries.len() as u64)).unwrap();
    let (left, right) = entries.split_at(middle);
    let (mut proof, other) = if old <= middle {
        (naive_proof(old, left, whole), naive(right))
    } else {
        (naive_proof(old - middle, right, false), naive(left))
    };
    proof.push(other);
    proof
}

/// A log and all that it keeps.
fn grown(entries: &[Vec<u8>]) -> (Frontier, Vec<Hash>) {
    let (mut frontier, mut hashes) = (Frontier::default(), Vec::new());
    for entry in entries {
        assert_eq!(kept(frontier.size()), hashes.len() as u64);
        hashes.extend(frontier.append(entry));
    }
    (frontier, hashes)
}

fn of(hashes: &[Hash]) -> impl FnMut(u64) -> std::result::Result<Hash, Infallible> {
    move |position| Ok(hashes[usize::try_from(position).unwrap()])
}

fn entries(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| number.to_be_bytes()[8 - number % 8..].to_vec()).collect()
}

/// The eight entries of the reference implementation of Certificate Transparency and their roots.
#[test]
fn known_roots() {
    let entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    let entries: Vec<Vec<u8>> = entries.iter().map(|entry| hex::decode(entry).unwrap()).collect();
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    for (size, root) in roots.iter().enumerate() {
        let (frontier, hashes) = grown(&entries[..size]);
        assert_eq!(hex::encode(frontier.root()), *root, "{size}");
        assert_eq!(hex::encode(super::root(size as u64, of(&hashes)).unwrap()), *root);
    }
}

#[test]
fn every_proof_of_every_small_tree_is_the_definitions_and_verifies() {
    let entries = entries(40);
    let (_, hashes) = grown(&entries);
    for size in 1..=entries.len() {
        let (root, new) = (naive(&entries[..size]), size as u64);
        let loaded = Frontier::load(new, of(&hashes)).unwrap();
        assert_eq!((loaded.root(), loaded), (root, grown(&entries[..size]).0));
        for index in 0..size {
            let proof = prove_inclusion(index as u64, new, of(&hashes)).unwrap();
            assert_eq!(proof, naive_path(index, &entries[..size]), "{index} of {size}");
            verify_inclusion(index as u64, new, &leaf_hash(&entries[index]), &proof, &root).unwrap();
        }
        for old in 0..=size {
            let proof = prove_consistency(old as u64, new, of(&hashes)).unwrap();
            let expected = if old == 0 { Vec::new() } else { naive_proof(old, &entries[..size], true) };
            assert_eq!(proof, expected, "{old} of {size}");
            verify_consistency(old as u64, new, &naive(&entries[..old]), &root, &proof).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn no_bent_proof_verifies(size in 1_usize..300, index in 0_usize..300, old in 1_usize..300, bend in 0_usize..6, at in any::<prop::sample::Index>()) {
        let (index, old) = (index % size, 1 + old % size);
        let entries = entries(size);
        let (frontier, hashes) = grown(&entries);
        let root = frontier.root();
        let bent = |proof: &[Hash]| {
            let mut proof = proof.to_vec();
            match bend {
                0 if !proof.is_empty() => { let at = at.index(proof.len()); proof[at][at % 32] ^= 1; }
                1 if !proof.is_empty() => { proof.remove(at.index(proof.len())); }
                // Entries repeat, so that two hashes of a proof may be the same: that would be no bend.
                2 if proof.first() != proof.last() => { let last = proof.len() - 1; proof.swap(0, last); }
                3 => proof.insert(at.index(proof.len() + 1), root),
                4 => proof.extend([[0; 32]; PROOF_HASHES]),
                _ => proof.push([7; 32]),
            }
            proof
        };
        let (place, new, leaf) = (index as u64, size as u64, leaf_hash(&entries[index]));
        let proof = prove_inclusion(place, new, of(&hashes)).unwrap();
        prop_assert!(verify_inclusion(place, new, &leaf, &proof, &root).is_ok());
        prop_assert!(verify_inclusion(place, new, &leaf, &bent(&proof), &root).is_err());
        prop_assert!(verify_inclusion(new, new, &leaf, &proof, &root).is_err());
        prop_assert!(size < 2 || verify_inclusion((place + 1) % new, new, &leaf, &proof, &root).is_err());
        let before = naive(&entries[..old]);
        let proof = prove_consistency(old as u64, new, of(&hashes)).unwrap();
        prop_assert!(verify_consistency(old as u64, new, &before, &root, &proof).is_ok());
        prop_assert!(verify_consistency(old as u64, new, &before, &root, &bent(&proof)).is_err());
        prop_assert!(verify_consistency(old as u64, new, &[1; 32], &root, &proof).is_err());
        prop_assert!(verify_consistency(old as u64, new, &before, &[1; 32], &proof).is_err());
        prop_assert!(verify_consistency(new + 1, new, &before, &root, &proof).is_err());
    }
}
