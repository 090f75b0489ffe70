//! What is left of the vault's secrets in its memory once it is locked: nothing. This program's allocator is the vault's arena, and
//! it is searched from inside, because nobody else can.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Mutex;

use hkdf::Hkdf;
use openred_cryptod::audit::Trail;
use openred_cryptod::keyring::Keyring;
use openred_cryptod::state::State;
use openred_cryptod::vault::Vault;
use openred_cryptod::vault::quota::Rates;
use openred_policy::arena::Arena;
use openred_policy::probe::memory::in_arena;
use openred_proto::concat::concat;
use openred_proto::id::UnixMillis;
use openred_proto::label::derive;
use openred_proto::vault::{Frame, Reply, Request, Role};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use sha2::Sha256;

#[global_allocator]
static ARENA: Arena = Arena::new();

const NOW: UnixMillis = UnixMillis(1_780_000_000_000);

/// What is searched for, kept outside the arena: the identity's seed, and the keys of state and rows.
static WANTED: Mutex<[[u8; 32]; 3]> = Mutex::new([[0; 32]; 3]);

/// A seed and a root that stand nowhere in the program.
fn secret(at: usize) -> u8 {
    std::hint::black_box(at as u8).wrapping_mul(59) ^ 0x3c
}

fn found() -> [usize; 3] {
    let wanted = *WANTED.lock().unwrap();
    wanted.map(|secret| in_arena(|at| secret[at], secret.len()))
}

#[test]
fn iso_a_locked_vault_leaves_no_secret_in_its_memory() {
    let mut secrets: [u8; 64] = std::array::from_fn(secret);
    let expander = Hkdf::<Sha256>::from_prk(&secrets[32..]).unwrap();
    WANTED.lock().unwrap()[0].copy_from_slice(&secrets[..32]);
    let mut random = ChaCha20Rng::from_seed([1; 32]);
    let keyring = Keyring::from_secrets(&mut secrets);
    for (place, purpose) in [(1, derive::STATE), (2, derive::ROW)] {
        let info = concat(&[purpose, keyring.identity().node_id().as_bytes()]);
        expander.expand(&info, &mut WANTED.lock().unwrap()[place]).unwrap();
    }
    let trail = Trail::fresh(keyring.identity(), NOW).unwrap();
    let mut vault = Vault::open(keyring, State::new(), trail, &Rates::default(), NOW, &mut random).unwrap();
    drop(vault.commit(&mut random).unwrap());
    assert!(found().iter().all(|count| *count > 0), "the control: an open vault has them in its arena: {:?}", found());
    let lock = Frame { id: 1, body: Request::Lock };
    assert!(matches!(vault.handle(NOW, &mut random, Role::Operator, lock).reply.body, Reply::Done));
    drop(vault.commit(&mut random).unwrap());
    // As the loop does when it ends.
    vault.lose();
    assert_eq!(found(), [0; 3]);
}
