//! The key process as it is shipped: the three real programs in their cages, spoken to as `noded` and the supervisor do.
//!
//! A program without a test harness, because its other half is itself: as root it runs both forms of the cage, the second as
//! an ordinary user from copies that he can read.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod processes {
    pub(crate) mod bad_input;
    pub(crate) mod floods;
    pub(crate) mod peer;
    pub(crate) mod service;
    pub(crate) mod trio;
}

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use processes::trio::{Home, World};
use processes::{bad_input, floods, service};

/// Uid of the ordinary user.
const ORDINARY: u32 = 61_902;
/// First of the four uids of the caged processes when the supervisor is root.
const UID_BASE: u32 = 61_760;

const PROGRAMS: [(&str, &str); 3] = [
    (env!("CARGO_BIN_EXE_cryptod"), "cryptod"),
    (env!("CARGO_BIN_EXE_cryptod-vault"), "cryptod-vault"),
    (env!("CARGO_BIN_EXE_cryptod-unseal"), "cryptod-unseal"),
];

/// How a process ends that knocked at the front: it was closed before it said a word, or was spoken to.
pub(crate) const CLOSED: i32 = 7;
/// See [`CLOSED`].
pub(crate) const SERVED: i32 = 0;

type Test = fn(&World<'_>, &Path);

const TESTS: [(&str, Test); 14] = [
    ("a_card_and_an_http_request_are_signed", service::signatures),
    ("two_nodes_link_and_shake_hands", service::link_and_handshake),
    ("state_outlives_a_restart", service::restart),
    ("a_killed_vault_takes_the_front_with_it", bad_input::killed_vault),
    ("a_lock_ends_both", bad_input::lock),
    ("a_wrong_passphrase_is_named", bad_input::wrong_passphrase),
    ("a_damaged_keystore_is_named", bad_input::damaged_keystore),
    ("garbage_on_the_front_stops_nobody", bad_input::garbage_on_the_front),
    ("garbage_on_the_vault_ends_it", bad_input::garbage_on_the_vault),
    ("a_foreign_uid_is_closed_before_a_byte_is_read", bad_input::foreign_caller),
    ("another_process_of_the_same_uid_is_closed_unread", bad_input::strange_process),
    ("a_flood_on_one_connection_leaves_room_on_another", floods::flood_of_cheap),
    ("a_flood_of_dear_calls_lets_cheap_ones_pass", floods::flood_of_dear),
    ("of_the_dear_a_bounded_number_waits", floods::many_dear_at_once),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, half, programs] = &arguments[..]
        && half == "half"
    {
        return run_half(&World { programs: Path::new(programs), uid_base: None });
    }
    if let [_, knock, socket] = &arguments[..]
        && knock == "knock"
    {
        std::process::exit(self::knock(Path::new(socket)));
    }
    let place = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for (program, name) in PROGRAMS {
        std::fs::copy(program, place.path().join(name)).unwrap();
    }
    let root = nix::unistd::geteuid().is_root();
    if root {
        run_half(&World { programs: place.path(), uid_base: Some(UID_BASE) });
    }
    ordinary_half(root, place.path());
    println!(
        "test result: ok. {} passed; 0 failed; 0 ignored; in {} forms of the cage",
        TESTS.len(),
        if root { 2 } else { 1 }
    );
}

/// Connects once it is let go, and says nothing: a server that lets it in speaks first.
fn knock(socket: &Path) -> i32 {
    std::io::stdin().read_exact(&mut [0]).unwrap();
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    match stream.read(&mut [0; 64]) {
        Ok(0) => CLOSED,
        Ok(_) => SERVED,
        Err(error) => panic!("{error}"),
    }
}

/// The same tests as an ordinary user.
fn ordinary_half(root: bool, programs: &Path) {
    let this = programs.join("processes");
    std::fs::copy(std::env::current_exe().unwrap(), &this).unwrap();
    let mut command = Command::new(this);
    command.arg("half").arg(programs).current_dir("/").env_remove("TMPDIR");
    if root {
        command.uid(ORDINARY).gid(ORDINARY);
    }
    assert!(command.status().unwrap().success());
}

fn run_half(world: &World<'_>) {
    let form = if world.uid_base.is_some() { "root" } else { "an ordinary user" };
    for (name, test) in TESTS {
        let place = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        test(world, place.path());
        println!("test {name} as {form} ... ok");
    }
}

/// A home in `place` with a keystore behind the passphrase "p".
fn home<'a>(world: &World<'a>, place: &Path, name: &str) -> (Home<'a>, openred_proto::id::NodeId) {
    let home = Home::new(*world, PathBuf::from(place).join(name));
    let node = home.create(b"p\n");
    (home, node)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
