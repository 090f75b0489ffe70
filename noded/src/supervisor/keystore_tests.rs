//! What is refused before the unsealer starts, and a writer that is killed after each of its steps.
#![allow(clippy::unwrap_used, reason = "tests")]
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use openred_cryptod::unseal::{Keystore, envelope::Seal};
use openred_proto::id::UnixMillis;
use openred_proto::unseal::Order;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::super::killed;
use super::*;

const STEPS: [Step; 6] = [Step::Created, Step::Half, Step::Written, Step::Synced, Step::Renamed, Step::Durable];

fn code(place: &Path) -> String {
    open(place).err().unwrap().code
}

#[test]
fn kind_owner_mode_and_length_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let place = folder.join("keystore.age");
    assert_eq!(code(&place), "keystore.missing");
    let write = |content: &[u8], mode: u32| {
        fs::write(&place, content).unwrap();
        fs::set_permissions(&place, Permissions::from_mode(mode)).unwrap();
    };
    write(b"x", 0o600);
    open(&place).unwrap();
    for mode in [0o640, 0o604, 0o620, 0o644] {
        write(b"x", mode);
        assert_eq!(code(&place), "keystore.exposed");
    }
    write(b"", 0o600);
    assert_eq!(code(&place), "keystore.length");
    write(&[0; 16 * 1024 + 1], 0o600);
    assert_eq!(code(&place), "keystore.length");
    write(b"x", 0o600);
    if nix::unistd::geteuid().is_root() {
        chown(&place, Some(61_999), None).unwrap();
        assert_eq!(code(&place), "keystore.foreign");
    }
    fs::remove_file(&place).unwrap();
    fs::create_dir(&place).unwrap();
    assert_eq!(code(&place), "keystore.kind");
    fs::remove_dir(&place).unwrap();
    fs::write(folder.join("real"), "x").unwrap();
    symlink("real", &place).unwrap();
    open(&place).err().unwrap();
    fs::remove_file(&place).unwrap();
    nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(code(&place), "keystore.kind", "and nothing waits for a writer");
}

#[test]
fn nothing_is_replaced_unasked_and_a_failure_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap().join("file");
    put(&place, b"one", false, |_| ()).unwrap();
    assert_eq!(put(&place, b"two", false, |_| ()).err().unwrap().exit, Exit::Conflict);
    assert_eq!(fs::read(&place).unwrap(), b"one");
    put(&place, b"two", true, |_| ()).unwrap();
    assert_eq!(fs::read(&place).unwrap(), b"two");
    assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

fn keystore(secret: &[u8]) -> Vec<u8> {
    let order = Order::with_secret(zeroize::Zeroizing::new(secret.to_vec()), UnixMillis(1));
    let made = Keystore::generate(&mut ChaCha20Rng::from_seed([secret[0]; 32]), order.now);
    made.seal(&Seal::ordered(&order).unwrap()).unwrap().0
}

/// The child: replaces the keystore, says each step, and waits at the one it was told to wait at.
fn replace_and_wait(folder: &Path) -> ! {
    let new = fs::read(folder.join("new")).unwrap();
    put(&folder.join("keystore.age"), &new, true, |step| killed::wait_at(&STEPS, &step)).unwrap();
    unreachable!("killed before");
}

#[test]
fn killed_after_each_step_the_old_or_the_new_keystore_opens() {
    if let Some(folder) = killed::child() {
        replace_and_wait(&folder);
    }
    let (old, new) = (keystore(b"old"), keystore(b"new"));
    for (number, step) in STEPS.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let place = folder.join("keystore.age");
        put(&place, &old, false, |_| ()).unwrap();
        fs::write(folder.join("new"), &new).unwrap();
        let test = "supervisor::keystore::tests::killed_after_each_step_the_old_or_the_new_keystore_opens";
        killed::at(test, &folder, number, &step);
        let is_new = matches!(step, Step::Renamed | Step::Durable);
        let secret: &[u8] = if is_new { b"new" } else { b"old" };
        let mut found = Vec::new();
        io::Read::read_to_end(&mut open(&place).unwrap(), &mut found).unwrap();
        Keystore::open(&found, secret).unwrap_or_else(|failure| panic!("{step:?}: {failure}"));
        // What the killed one left is in nobody's way.
        put(&place, &new, true, |_| ()).unwrap();
        assert!(!folder.join("keystore.age.new").exists(), "{step:?}");
        assert_eq!(fs::read(&place).unwrap(), new);
    }
}
