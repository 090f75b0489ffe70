//! What the daemons are built on, under the shipped filters: the runtime, threads, sockets, the resolver and SQLite in the
//! cage of `noded` and of the directory; the runtime on a listener in the cage of front. A program without a test harness, because it
//! is also the child: it starts itself again and reports on standard output. As root it runs both forms of the cage.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use openred_policy::spawn::{SpawnSpec, spawn};
use openred_policy::{Cage, Descriptors, Identity, KeptPath, Restricted, Role, Unconfined, barrier, observe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Uid of the caged process when the supervisor is root.
const CAGED: u32 = 61_751;
/// Uid of the ordinary user's supervisor.
const ORDINARY: u32 = 61_901;
const STAGE: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "caged", role, state] => caged(named(role), Path::new(state)),
        [_, "half"] => half(None),
        _ => {
            let root = nix::unistd::geteuid().is_root();
            if root {
                half(Some(Identity { uid: CAGED, gid: CAGED }));
            }
            ordinary_half(root);
            let forms = if root { 2 } else { 1 };
            println!(
                "test result: ok. {} passed; 0 failed; 0 ignored; 3 roles in {forms} forms of the cage",
                3 * forms
            );
        }
    }
}

fn named(name: &str) -> Role {
    Role::CAGED.into_iter().find(|role| role.name() == name).unwrap()
}

// ---------------------------------------------------------------- outside

/// The same program as an ordinary user, from a place that he can read.
fn ordinary_half(root: bool) {
    let place = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("runtime");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(program);
    command.arg("half").current_dir("/");
    if root {
        command.uid(ORDINARY).gid(ORDINARY);
    }
    assert!(command.status().unwrap().success());
}

fn half(identity: Option<Identity>) {
    for role in [Role::Noded, Role::Directory, Role::Front] {
        let place = tempfile::tempdir_in("/tmp").unwrap();
        if let Some(identity) = identity {
            chown(place.path(), Some(identity.uid), Some(identity.gid)).unwrap();
        }
        run(role, identity, place.path());
        println!("test {role} as {} ... ok", if identity.is_some() { "root" } else { "an ordinary user" });
    }
}

fn run(role: Role, identity: Option<Identity>, state: &Path) {
    let own = observe::Baseline::of_this_process().unwrap();
    let (host, child_barrier) = barrier::Host::pair().unwrap();
    let socket = state.join("front.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut spec = SpawnSpec::new(std::env::current_exe().unwrap()).unwrap().identity(identity).unwrap();
    for argument in ["caged", role.name(), state.to_str().unwrap()] {
        spec = spec.argument(argument).unwrap();
    }
    spec = spec.descriptor(&null).unwrap().descriptor(&null).unwrap().descriptor(std::io::stderr()).unwrap();
    let child = spawn(spec.descriptor(&child_barrier).unwrap().descriptor(&listener).unwrap()).unwrap();
    drop((child_barrier, listener));
    assert_eq!(host.next(STAGE).unwrap(), barrier::Stage::Namespaced);
    let namespaces = observe::namespaces(child.pid()).unwrap();
    host.go().unwrap();
    assert!(matches!(host.next(STAGE).unwrap(), barrier::Stage::Confined { .. }));
    assert_eq!(host.next(STAGE).unwrap(), barrier::Stage::Ready);
    let seen = observe::observe(child.pid(), namespaces).unwrap();
    let expected = observe::Expected { identity, kept: kept(role, state) };
    for layer in observe::compare(role, &seen, &own, &expected) {
        assert!(layer.ok, "{role}: {layer:?}");
    }
    // Four connections, each larger than a socket's buffer; the fifth tells the child to end.
    for size in [1usize, 4_096, 300_000, 1_000_000, 0] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let echo = std::thread::spawn(move || {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).map(|_| text)
        });
        std::io::Write::write_all(&mut stream, &vec![7u8; size]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(echo.join().unwrap().unwrap().len(), size);
    }
    assert_eq!(child.wait().unwrap().unwrap().to_string(), "exit code 0", "{role}");
}

fn kept(role: Role, state: &Path) -> Vec<KeptPath> {
    let mut kept = Vec::new();
    if role.keeps_network() {
        kept.push(KeptPath::writable(state));
        kept.extend(KeptPath::resolver());
    }
    kept
}

// ---------------------------------------------------------------- inside

fn caged(role: Role, state: &Path) {
    let mut start = Unconfined::enter(role, Descriptors::Exactly(&[0, 1, 2, 3, 4])).unwrap();
    let barrier = start.barrier(3).unwrap();
    let listener = UnixListener::from(start.take(4).unwrap());
    let cage = kept(role, state).into_iter().fold(Cage::new(role, Identity::from_env().unwrap()), Cage::keep);
    let separated = start.separate(&cage).unwrap();
    barrier.namespaced().unwrap();
    let restricted = separated.restrict().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(role, restricted, barrier, listener, state.to_owned()));
    openred_policy::exit(0)
}

async fn serve(role: Role, restricted: Restricted, barrier: barrier::Barrier, listener: UnixListener, state: PathBuf) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    let tcp = match role.keeps_network() {
        true => Some(tokio::net::TcpListener::bind("127.0.0.1:0").await), // refused: binding is the supervisor's
        false => None,
    };
    assert!(tcp.is_none_or(|bound| bound.is_err()), "Landlock must refuse to bind");
    let confined = restricted.seal().unwrap();
    barrier.confined(confined.report()).unwrap();
    barrier.ready().unwrap();
    if role == Role::Noded {
        network().await;
    }
    if role.keeps_network() {
        work(&state);
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            connection = listener.accept() => if !echo(connection.unwrap().0).await { return },
        }
    }
}

/// Sends back what comes; false when nothing came.
async fn echo(mut stream: tokio::net::UnixStream) -> bool {
    stream.peer_cred().unwrap();
    let mut text = Vec::new();
    tokio::time::timeout(STAGE, stream.read_to_end(&mut text)).await.unwrap().unwrap();
    stream.write_all(&text).await.unwrap();
    stream.shutdown().await.unwrap();
    !text.is_empty()
}

/// Resolver and connections after the filter; the directory calls nobody.
async fn network() {
    let addresses: Vec<_> = tokio::net::lookup_host(("localhost", 80)).await.unwrap().collect();
    assert!(!addresses.is_empty());
    let refused = tokio::net::TcpStream::connect("127.0.0.1:1").await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Threads and store after the filter.
fn work(state: &Path) {
    let database = state.join("node.sqlite");
    let directory = state.to_owned();
    let work = move || {
        store(&database);
        files(&directory);
    };
    std::thread::Builder::new().name("store".into()).spawn(work).unwrap().join().unwrap();
}

fn files(directory: &Path) {
    let (blob, copy) = (directory.join("blob"), directory.join("copy"));
    std::fs::write(&blob, vec![1u8; 100_000]).unwrap();
    std::fs::copy(&blob, &copy).unwrap();
    std::fs::File::open(&copy).unwrap().sync_all().unwrap();
    std::fs::rename(&blob, directory.join("kept")).unwrap();
    std::fs::File::open(directory).unwrap().sync_all().unwrap();
    std::fs::create_dir_all(directory.join("a/b")).unwrap();
    std::fs::remove_dir_all(directory.join("a")).unwrap();
    std::fs::remove_file(directory.join("kept")).unwrap();
}

fn store(path: &Path) {
    for _ in 0..2 {
        let database = rusqlite::Connection::open(path).unwrap();
        database.pragma_update(None, "journal_mode", "WAL").unwrap();
        database.pragma_update(None, "synchronous", "FULL").unwrap();
        database.busy_timeout(Duration::from_secs(5)).unwrap();
        database.execute_batch("CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b BLOB)").unwrap();
        for row in 0..200 {
            database.execute("INSERT INTO t (b) VALUES (?1)", [vec![row as u8; 5_000]]).unwrap();
        }
        let second = rusqlite::Connection::open(path).unwrap();
        let rows: i64 = second.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert!(rows >= 200);
        database.execute("DELETE FROM t WHERE a % 2 = 0", []).unwrap();
        database.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); VACUUM").unwrap();
    }
}
