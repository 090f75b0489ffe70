//! A NATS server for the time of a measurement, from Debian's package: on a port of loopback that it chooses itself, without JetStream, its
//! settings as they come.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Where Debian has it, and who builds it puts it.
const PLACES: [&str; 3] = ["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"];

/// A running server.
pub(super) struct Broker {
    child: Child,
    port: u16,
}

impl Broker {
    /// Starts it and waits until it is ready.
    pub(super) fn start() -> Result<Self> {
        let program = PLACES.into_iter().find(|place| Path::new(place).exists());
        let program = program.context("nats-server is not installed; as root: apt-get install nats-server")?;
        // It is told to end with the thread that started it, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", program, "-a", "127.0.0.1", "-p", "-1"]).env_clear().current_dir("/");
        command.env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting setpriv")?;
        let stderr = child.stderr.take().context("the server has a log")?;
        let (mut broker, mut said) = (Self { child, port: 0 }, Vec::new());
        let mut lines = BufReader::new(stderr).lines().map_while(std::result::Result::ok);
        for line in lines.by_ref() {
            if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                broker.port = address.rsplit_once(':').context("an address has a port")?.1.trim().parse()?;
            }
            if line.contains("Server is ready") {
                // Read on, so that it never waits for us.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(broker);
            }
            said.push(line);
        }
        bail!("nats-server has ended: {}", said.join("\n"))
    }

    /// Its process: `setpriv` has become it.
    pub(super) fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.child.id())?)
    }

    /// Where replicas find it.
    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
