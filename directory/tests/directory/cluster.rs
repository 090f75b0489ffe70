//! A PostgreSQL of this test program's own, from Debian's programs: in a temporary folder, on a socket in it, never the system's. It runs
//! as the user of the tests; root's is run as `nobody`, because PostgreSQL refuses root. It ends with whoever holds it last.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use openred_directory::store::postgres::{PostgresStore, Target};

const PASSWORD: &str = "not-a-secret";
/// Longer than any of this takes on a machine under load.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster of databases and its server.
pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    server: Mutex<Option<Server>>,
    made: AtomicU32,
    /// Where it listens on loopback, with TLS; 0: nowhere.
    port: AtomicU16,
}

/// The server, and who tells that it has ended.
struct Server {
    process: Pid,
    ended: Receiver<()>,
}

/// The newest of the installed versions.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed (scripts/test does it)");
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest = versions.map(|entry| entry.unwrap().path()).filter(|path| version(path).is_some()).max_by_key(version);
    newest.expect("a version of PostgreSQL").join("bin").join(name)
}

/// Who runs the server, where it is not the user of the tests.
fn other_user() -> Option<User> {
    geteuid().is_root().then(|| User::from_name("nobody").unwrap().expect("Debian has a user `nobody`"))
}

/// As the server's user.
fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    if let Some(user) = other_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Cluster {
    /// One that the tests of this program share.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Self::new());
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    /// One of its own, for a test that ends its server.
    pub(crate) fn new() -> Self {
        Self::make(false)
    }

    /// One of its own that listens on loopback too, as `localhost`.
    pub(crate) fn with_tls() -> Self {
        Self::make(true)
    }

    fn make(tls: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        open(folder.path(), 0o755);
        let cluster =
            Self { folder, server: Mutex::default(), made: AtomicU32::new(0), port: AtomicU16::new(u16::from(tls)) };
        let password = cluster.password_file();
        std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
        open(&password, 0o600);
        for path in [cluster.sockets(), cluster.folder.path().join("data")] {
            std::fs::create_dir(&path).unwrap();
            open(&path, 0o755);
            if let Some(user) = other_user() {
                std::os::unix::fs::chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
        }
        // initdb reads the password as the server's user.
        let theirs = cluster.sockets().join("password");
        std::fs::write(&theirs, PASSWORD).unwrap();
        open(&theirs, 0o644);
        let mut initdb = command("initdb");
        initdb.arg("-D").arg(cluster.folder.path().join("data")).args(["-U", "openred", "-A", "scram-sha-256"]);
        initdb.arg("--pwfile").arg(&theirs).args(["-E", "UTF8", "--locale=C", "--no-sync"]);
        let made = initdb.stderr(Stdio::piped()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        std::fs::remove_file(&theirs).unwrap();
        if tls {
            cluster.keep_certificate();
        }
        cluster.start();
        cluster
    }

    /// Where the server wants its certificate; the key for nobody else.
    fn keep_certificate(&self) {
        let files = [
            ("server.crt", &include_bytes!("tls/localhost.pem")[..]),
            ("server.key", &include_bytes!("tls/localhost.key")[..]),
        ];
        for (name, bytes) in files {
            let path = self.folder.path().join("data").join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            if let Some(user) = other_user() {
                std::os::unix::fs::chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
        }
    }

    /// The port on loopback.
    pub(crate) fn port(&self) -> u16 {
        self.port.load(Ordering::SeqCst)
    }

    fn sockets(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// The file with the password, for the user of the tests.
    pub(crate) fn password_file(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    pub(crate) fn password(&self) -> &'static str {
        PASSWORD
    }

    /// Starts the server and waits until it lets somebody in.
    pub(crate) fn start(&self) {
        let since = Instant::now();
        loop {
            let server = self.spawn();
            while server.ended.try_recv().is_err() {
                if self.try_batch("postgres", "SELECT 1").is_ok() {
                    *self.server.lock().unwrap() = Some(server);
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            // What is left of a server that was killed keeps the next one out for a moment.
            assert!(since.elapsed() < PATIENCE, "the server does not come up");
        }
    }

    fn spawn(&self) -> Server {
        let (data, sockets) = (self.folder.path().join("data"), self.sockets());
        if self.port() > 0 {
            // One that is free now; if it is taken meanwhile, the server ends and the next one gets another.
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            self.port.store(free, Ordering::SeqCst);
        }
        let port = self.port();
        let ((tell, pid), (over, ended)) = (sync_channel(1), sync_channel(1));
        // From a thread that outlives the server: it is told to end when the thread that started it does.
        std::thread::spawn(move || {
            let postgres = program("postgres");
            let mut command = Command::new("setpriv");
            if let Some(user) = other_user() {
                let ids = [format!("--reuid={}", user.uid), format!("--regid={}", user.gid)];
                command.args(ids).arg("--clear-groups");
            }
            command.args(["--pdeathsig", "QUIT"]).arg(postgres).arg("-D").arg(data).arg("-k").arg(sockets);
            // Small, and as durable as any.
            for setting in ["shared_buffers=16MB", "max_connections=160", "max_wal_size=64MB"] {
                command.args(["-c", setting]);
            }
            let port_text = port.to_string();
            command.args(match port {
                0 => vec!["-c", "listen_addresses="],
                _ => vec!["-c", "listen_addresses=127.0.0.1", "-c", "ssl=on", "-p", &port_text],
            });
            command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            tell.send(Pid::from_raw(i32::try_from(child.id()).unwrap())).unwrap();
            let _ = child.wait();
            let _ = over.send(());
        });
        Server { process: pid.recv().unwrap(), ended }
    }

    /// Ends the server and waits until it is gone.
    pub(crate) fn end(&self, signal: Signal) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(server) = server else { return };
        let others = children(server.process);
        let _ = kill(server.process, signal);
        let _ = server.ended.recv();
        // Who serves a connection notices a little later that his parent was killed.
        for other in others {
            if signal == Signal::SIGKILL && parent(other).is_some() {
                let _ = kill(other, signal);
            }
            wait_for("a child of the server ends", || parent(other).is_none());
        }
    }

    /// A new, empty database; its URL, without the password.
    pub(crate) fn database(&self) -> String {
        let name = format!("d{}", self.made.fetch_add(1, Ordering::Relaxed));
        self.try_batch("postgres", &format!("CREATE DATABASE {name}")).unwrap();
        self.url(&name, &self.sockets())
    }

    /// Of a database, by the socket in a folder.
    pub(crate) fn url(&self, name: &str, sockets: &Path) -> String {
        format!("postgresql://openred@/{name}?host={}", sockets.display())
    }

    /// The socket's path.
    pub(crate) fn socket(&self) -> PathBuf {
        self.sockets().join(".s.PGSQL.5432")
    }

    pub(crate) fn target(&self, url: &str) -> Target {
        Target::open(url, &self.password_file(), Path::new("")).unwrap()
    }

    /// A store in a database that has this version's tables.
    pub(crate) fn open(&self, url: &str) -> PostgresStore {
        PostgresStore::migrate(&self.target(url), false).unwrap();
        PostgresStore::open(&self.target(url)).unwrap()
    }

    /// Runs statements in a database as an operator would.
    pub(crate) fn batch(&self, url: &str, sql: &str) {
        let name = url.split(['/', '?']).nth(3).unwrap();
        self.try_batch(name, sql).unwrap();
    }

    pub(crate) fn try_batch(&self, database: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(self.sockets())
            .port(if self.port() > 0 { self.port() } else { 5432 })
            .user("openred")
            .password(PASSWORD)
            .dbname(database);
        runtime.block_on(async {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
            let driver = tokio::spawn(connection);
            let done = client.batch_execute(sql).await;
            drop(client);
            let _ = driver.await;
            done
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end(Signal::SIGQUIT);
    }
}

/// The parent of a process that has not ended.
fn parent(process: Pid) -> Option<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z" && state != "X").then_some(Pid::from_raw(parent))
}

pub(crate) fn children(of: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().map_while(Result::ok);
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
    processes.filter(|process| parent(*process) == Some(of)).collect()
}

/// Waits for something that another process does.
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
