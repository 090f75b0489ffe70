//! A proxy between two nodes that reads their HTTP, keeps what was sent, and loses, holds or repeats messages as it is told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

use crate::p2p::HANDSHAKE_PATH;

/// What a node answers to all that it refuses.
const REFUSAL: &[u8] = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// What a message is, by its path and first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Finalize,
    Session,
}

/// What becomes of a message. (VERIFY and ACCEPT are the answers to REQUEST and FINALIZE.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The connection breaks before it arrives.
    LoseMessage,
    /// It arrives, and the connection breaks before the answer does.
    LoseAnswer,
    /// It never arrives, and nobody says so.
    HoldMessage,
    /// It arrives; the answer never does, and nobody says so.
    HoldAnswer,
    /// It arrives, and a refusal comes back in the place of its answer.
    Refuse,
    /// It arrives twice at once; the answers are compared.
    Twice,
    /// It arrives once another message is waiting at [`Proxy::meeting`], too.
    Meet,
}

/// Passes on what it is not told to treat otherwise. Ends with its runtime.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    target: Mutex<SocketAddr>,
    fates: Mutex<VecDeque<(Kind, Fate)>>,
    sent: Mutex<Vec<(Kind, Vec<u8>)>>,
    alike: Mutex<Vec<bool>>,
    /// Where messages wait for each other; shared by the proxies of both ways.
    meeting: Arc<Barrier>,
}

impl Proxy {
    pub(super) async fn start(target: SocketAddr) -> Arc<Self> {
        Self::start_meeting(target, Arc::new(Barrier::new(1))).await
    }

    pub(super) async fn start_meeting(target: SocketAddr, meeting: Arc<Barrier>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Arc::new(Self {
            address,
            target: Mutex::new(target),
            fates: Mutex::default(),
            sent: Mutex::default(),
            alike: Mutex::default(),
            meeting,
        });
        let passing = Arc::clone(&proxy);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let passing = Arc::clone(&passing);
                tokio::spawn(async move { passing.pass(client).await });
            }
        });
        proxy
    }

    /// What becomes of the next message of a kind; of several, one after the other.
    pub(super) fn next(&self, kind: Kind, fate: Fate) {
        self.fates.lock().unwrap().push_back((kind, fate));
    }

    /// From now on another node is there.
    pub(super) fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }

    /// What was sent of one kind, in order.
    pub(super) fn sent(&self, kind: Kind) -> Vec<Vec<u8>> {
        let sent = self.sent.lock().unwrap();
        sent.iter().filter(|(of, _)| *of == kind).map(|(_, body)| body.clone()).collect()
    }

    /// Of each message that arrived twice, whether the two answers were the same.
    pub(super) fn alike(&self) -> Vec<bool> {
        self.alike.lock().unwrap().clone()
    }

    fn fate(&self, kind: Kind) -> Option<Fate> {
        let mut fates = self.fates.lock().unwrap();
        let place = fates.iter().position(|(of, _)| *of == kind)?;
        fates.remove(place).map(|(_, fate)| fate)
    }

    /// One message a connection: an answer says that it is the last.
    async fn pass(&self, mut client: TcpStream) {
        let Some((head, body)) = read_message(&mut client).await else { return };
        let kind = match body.first() {
            Some(0x0a) if head.contains(HANDSHAKE_PATH) => Kind::Request,
            _ if head.contains(HANDSHAKE_PATH) => Kind::Finalize,
            _ => Kind::Session,
        };
        self.sent.lock().unwrap().push((kind, body.clone()));
        let fate = self.fate(kind);
        let message = [head.replacen("\r\n", "\r\nconnection: close\r\n", 1).as_bytes(), &body].concat();
        let answer = match fate {
            Some(Fate::LoseMessage) => return,
            Some(Fate::HoldMessage) => return until_gone(client).await,
            Some(Fate::Twice) => {
                let (one, other) = tokio::join!(self.exchange(&message), self.exchange(&message));
                self.alike.lock().unwrap().push(one == other);
                other
            }
            Some(Fate::Meet) => {
                self.meeting.wait().await;
                self.exchange(&message).await
            }
            _ => self.exchange(&message).await,
        };
        match fate {
            Some(Fate::LoseAnswer) => {}
            Some(Fate::HoldAnswer) => until_gone(client).await,
            Some(Fate::Refuse) => drop(client.write_all(REFUSAL).await),
            _ => drop(client.write_all(&answer).await),
        }
    }

    async fn exchange(&self, message: &[u8]) -> Vec<u8> {
        let target = *self.target.lock().unwrap();
        let mut server = TcpStream::connect(target).await.unwrap();
        let mut answer = Vec::new();
        let _ = server.write_all(message).await;
        let _ = server.read_to_end(&mut answer).await;
        answer
    }
}

/// Head and body of a request with a length; none when the client goes away first.
async fn read_message(client: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            let head = String::from_utf8(bytes).unwrap();
            let length = head.to_lowercase().split("content-length:").nth(1)?.lines().next()?.trim().parse().unwrap();
            let mut body = body;
            while body.len() < length {
                if client.read_buf(&mut body).await.ok()? == 0 {
                    return None;
                }
            }
            return Some((head, body));
        }
        if client.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

async fn until_gone(mut client: TcpStream) {
    let _ = client.read(&mut [0]).await;
}
