//! A flood of bad REQUESTs at a node's peer-to-peer port, as fast as one core sends them and reads the answers: a third with a tag that
//! nobody expects, a third with a right tag and a wrong mac1, a third replays of a genuine one.
//!
//! It comes from many addresses, each of which stops before the node loses its patience with it: so the node looks at every REQUEST
//! instead of cutting connections unread. Genuine REQUESTs come from whoever listens on the way of an honest peer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use openred_proto::checked::handshake::{HandshakeRequest, Inbound};

use crate::tap::Tap;

/// REQUESTs of one address: an address is forgiven 256 refusals at once.
const OF_ADDRESS: usize = 150;
/// REQUESTs that are sent before their answers are read.
const AT_ONCE: usize = 50;
/// Longest answer that is read: no VERIFY is longer.
const ANSWER_BYTES: usize = 4096;

/// What was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// With the one refusal.
    pub refused: usize,
    /// With a VERIFY that was given before.
    pub repeated: usize,
}

/// Sends `total` bad REQUESTs to `to`, and returns when all are answered; `tap` is on the way of an honest initiator.
///
/// # Errors
/// When a REQUEST is not answered as one of the two that there are, or the tap has seen no genuine one.
pub fn flood(to: SocketAddr, total: usize, tap: &Tap) -> Result<Answers> {
    let SocketAddr::V4(to) = to else { bail!("{to} is no IPv4 address") };
    let (mut answers, mut sent) = (Answers::default(), 0);
    while sent < total {
        let [.., high, low] = u32::try_from(sent / OF_ADDRESS)?.to_be_bytes();
        let mut stream = BufReader::new(from(Ipv4Addr::new(127, 1, high, low), to.into())?);
        let genuine = last_request(&tap.received()?).context("no genuine REQUEST was seen")?;
        let of_address = OF_ADDRESS.min(total - sent);
        for start in (0..of_address).step_by(AT_ONCE) {
            let numbers = start..of_address.min(start + AT_ONCE);
            let mut bytes = Vec::new();
            for number in numbers.clone() {
                let body = bad(&genuine, sent + number)?.encode();
                write!(bytes, "POST /p2p/handshake HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len())?;
                bytes.extend_from_slice(&body);
            }
            stream.get_mut().write_all(&bytes)?;
            for _ in numbers {
                match answer(&mut stream)? {
                    403 => answers.refused += 1,
                    200 => answers.repeated += 1,
                    other => bail!("a bad REQUEST was answered with {other}"),
                }
            }
        }
        sent += of_address;
    }
    Ok(answers)
}

/// The REQUEST number `number` of the flood.
fn bad(genuine: &HandshakeRequest, number: usize) -> Result<HandshakeRequest> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).context("the system has randomness")?;
    let mut request = genuine.clone();
    match number % 3 {
        0 => request.tag = random,
        1 => request.mac1 = random,
        _ => {}
    }
    Ok(request)
}

/// A connection from an address of this machine.
fn from(source: Ipv4Addr, to: SocketAddr) -> Result<TcpStream> {
    let SocketAddr::V4(to) = to else { bail!("{to} is no IPv4 address") };
    let end = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(end.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(source, 0)))?;
    connect(end.as_raw_fd(), &SockaddrIn::from(to))?;
    let stream = TcpStream::from(end);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads one answer; gives its status.
fn answer(stream: &mut BufReader<TcpStream>) -> Result<u16> {
    let (mut status, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line)? > 0, "the node hung up");
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest.get(..3).context("a status line has a code")?.parse()?;
        } else if let Some(rest) = line.strip_prefix("content-length:") {
            length = rest.trim().parse()?;
        } else if line.is_empty() {
            break;
        }
    }
    ensure!(length <= ANSWER_BYTES, "an answer of {length} bytes");
    stream.read_exact(&mut vec![0; length])?;
    Ok(status)
}

/// The last whole REQUEST among bytes that an initiator sent.
#[must_use]
pub fn last_request(sent: &[u8]) -> Option<HandshakeRequest> {
    const START: &[u8] = b"POST /p2p/handshake ";
    let mut starts: Vec<usize> =
        sent.windows(START.len()).enumerate().filter(|(_, at)| *at == START).map(|(at, _)| at).collect();
    starts.reverse();
    starts.into_iter().find_map(|start| {
        let message = &sent[start..];
        let end = message.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&message[..end]).ok()?.to_ascii_lowercase();
        let length = head.split("content-length:").nth(1)?.lines().next()?.trim().parse::<usize>().ok()?;
        match Inbound::decode(message.get(end..end + length)?) {
            Ok(Inbound::Request(request)) => Some(request),
            _ => None,
        }
    })
}
