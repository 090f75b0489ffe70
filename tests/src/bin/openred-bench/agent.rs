//! OpenSSH's agent with one Ed25519 key, asked over its socket as `ssh` asks it: what an operator would compare a key process with.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use openred_tests::harness::wait_for;

/// Message numbers of the agent's protocol.
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES: u8 = 12;
const SIGN: u8 = 13;
const SIGNED: u8 = 14;
/// Connections at once where the rate counts; more bring nothing.
const CONNECTIONS: usize = 8;
/// About as much as an HTTP request's signature base.
const DATA: [u8; 256] = [7; 256];

/// A running agent.
pub(crate) struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    /// Starts it in `folder`, which is made, with a key of its own.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        std::fs::create_dir(folder)?;
        let (key, socket) = (folder.join("key"), folder.join("s"));
        let quiet = |program: &str| {
            let mut command = Command::new(program);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let made = quiet("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        ensure!(made.context("ssh-keygen: install openssh-client")?.success(), "ssh-keygen failed");
        let child = quiet("ssh-agent").arg("-D").arg("-a").arg(&socket).spawn()?;
        let agent = Self { child, socket };
        wait_for("the agent's socket", || Ok(UnixStream::connect(&agent.socket).ok()))?;
        let added = quiet("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &agent.socket).status()?;
        ensure!(added.success(), "ssh-add failed");
        Ok(agent)
    }

    /// Microseconds of signatures one after the other.
    pub(crate) fn one_by_one(&self, count: u32) -> Result<Vec<f64>> {
        let mut connection = Connection::new(&self.socket)?;
        let mut one = || -> Result<f64> {
            let begun = Instant::now();
            connection.sign()?;
            Ok(begun.elapsed().as_nanos() as f64 / 1e3)
        };
        (0..count).map(|_| one()).collect()
    }

    /// Signatures a second over several connections at once, in several runs.
    pub(crate) fn rates(&self, count: u32, runs: usize) -> Result<Vec<f64>> {
        (0..runs).map(|_| self.rate(count / CONNECTIONS as u32)).collect()
    }

    fn rate(&self, each: u32) -> Result<f64> {
        let connections: Vec<_> = (0..CONNECTIONS).map(|_| Connection::new(&self.socket)).collect::<Result<_>>()?;
        let begun = Instant::now();
        let callers = connections
            .into_iter()
            .map(|mut connection| std::thread::spawn(move || (0..each).try_for_each(|_| connection.sign())));
        // All of them are under way before the first is waited for.
        for caller in callers.collect::<Vec<_>>() {
            caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
        }
        Ok(f64::from(each) * CONNECTIONS as f64 / begun.elapsed().as_secs_f64())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Connection {
    stream: UnixStream,
    request: Vec<u8>,
}

impl Connection {
    fn new(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let answer = ask(&mut stream, &[0, 0, 0, 1, REQUEST_IDENTITIES])?;
        // Kind, number of keys, then the first key with its length before it.
        ensure!(answer.first() == Some(&IDENTITIES), "the agent lists no keys");
        let length = answer.get(5..9).context("a key")?;
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let key = answer.get(9..9 + length).context("a key")?;
        let text = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
        let request = text(&[&[SIGN][..], &text(key), &text(&DATA), &[0; 4]].concat());
        Ok(Self { stream, request })
    }

    fn sign(&mut self) -> Result<()> {
        let answer = ask(&mut self.stream, &self.request)?;
        ensure!(answer.first() == Some(&SIGNED), "the agent did not sign");
        Ok(())
    }
}

fn ask(stream: &mut UnixStream, request: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}
