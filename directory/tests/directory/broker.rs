//! A NATS server of a test's own, from Debian's package: on a port of loopback that it chooses itself, without JetStream. It ends with
//! whoever holds it.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cluster::wait_for;

/// The server.
pub(crate) struct Broker {
    child: Option<Child>,
    port: u16,
    arguments: Vec<String>,
}

fn program() -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(|folder| Path::new(folder).join("nats-server"));
    places.into_iter().find(|path| path.exists()).expect("nats-server is installed (scripts/test does it)")
}

impl Broker {
    /// One that lets everybody in.
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// One with these arguments besides.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let mut broker = Self { child: None, port: 0, arguments };
        assert!(broker.try_start());
        broker
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again where it was.
    pub(crate) fn start(&mut self) {
        wait_for("the NATS server comes up again", || self.try_start());
    }

    /// Holds its port, so that nobody is there.
    pub(crate) fn try_hold(&self) -> Option<TcpListener> {
        TcpListener::bind(("127.0.0.1", self.port)).ok()
    }

    fn try_start(&mut self) -> bool {
        // It is told to end with the thread that started it, which is the test's.
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program()).args(["-a", "127.0.0.1", "-p", &port]);
        command.args(&self.arguments).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        for line in lines.by_ref() {
            if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                self.port = address.rsplit_once(':').unwrap().1.trim().parse().unwrap();
            }
            if line.contains("Server is ready") {
                std::thread::spawn(move || lines.for_each(drop));
                self.child = Some(child);
                return true;
            }
            said.push(line);
        }
        let _ = child.wait();
        assert!(self.port != 0, "{said:?}");
        false
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}
