//! Connections that modules have the node make: to the destinations of their grants and to no other, a few at a time.
//!
//! Names are those of the grants at this process's start, and their addresses those of then: nothing that a module says has a name looked up, and
//! no answer of a name server counts that comes after the look (DNS rebinding has nothing to turn). An address that a name leads to is not dialled if
//! it belongs to this machine (public ones of its interfaces too) or to a private network; one that was granted as an address is.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::StreamExt as _;
use openred_module::manifest::PermissionName;
use openred_module::{Body, BodyError, DialError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::granted::Granted;
use super::installed;

/// Connections of one module at a time.
const CONNECTIONS: usize = 16;
/// Addresses kept of one name.
const ADDRESSES: usize = 8;
/// How long all names may take that are looked up at the start. It is looked at between two names: one of them takes no longer than the supervisor lets the
/// resolver take (`RES_OPTIONS`). A thread for each, given up after that, would be ended by the filter, and this process with it.
const LOOKS: Duration = Duration::from_secs(5);
/// How long one address may take.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection over which nothing has come for so long is closed.
const QUIET: Duration = Duration::from_secs(600);
/// Bytes that are read at a time.
const PIECE: usize = 16 << 10;

/// Names of grants with their addresses, and the addresses of this machine, as they were at the start.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: HashMap<String, Vec<SocketAddr>>,
    own: HashSet<IpAddr>,
}

impl Names {
    /// Looks up what the installed modules were granted; blocking, for the time before anybody is heard. What does not resolve is left out.
    pub(crate) fn resolve(installed: &Path) -> Self {
        let (mut known, begun) = (HashMap::new(), Instant::now());
        // What cannot be read is read again later, and said then.
        let wanted = installed::read(installed).map(|read| read.wanted).unwrap_or_default();
        for module in &wanted {
            let granted = module.granted.get(PermissionName::NetEgress);
            for to in granted.iter().flat_map(|granted| granted.entries()) {
                if known.contains_key(to) || to.parse::<SocketAddr>().is_ok() || begun.elapsed() > LOOKS {
                    continue;
                }
                if let Ok(addresses) = to.to_socket_addrs() {
                    known.insert(to.to_owned(), addresses.take(ADDRESSES).collect());
                }
            }
        }
        Self { known, own: own_addresses() }
    }

    /// Where a destination is dialled, and whether it was granted as an address.
    fn addresses(&self, to: &str) -> Result<(Vec<SocketAddr>, bool), DialError> {
        if let Ok(address) = to.parse() {
            return Ok((vec![address], true));
        }
        let known = self.known.get(to).ok_or(DialError::Unresolved)?;
        let elsewhere = known.iter().filter(|address| is_public(address.ip()) && !self.is_own(address.ip()));
        let elsewhere: Vec<SocketAddr> = elsewhere.copied().collect();
        if elsewhere.is_empty() { Err(DialError::Private) } else { Ok((elsewhere, false)) }
    }

    /// Whether it is one of this machine's own, however it is written.
    fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address.to_canonical())
    }
}

/// The addresses of this machine's interfaces, public ones too: what listens there may be meant for the machine alone.
fn own_addresses() -> HashSet<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().inspect_err(|error| {
        // Connections to this machine are seen once they are made, too.
        tracing::warn!(%error, "this machine's own addresses are not known");
    });
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    interfaces.into_iter().flatten().filter_map(address).map(|address| address.to_canonical()).collect()
}

/// Whether an address is neither this machine's nor a private network's.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    let shared = first == 100 && (64..128).contains(&second);
    let assigned = (first, second, third) == (192, 0, 0);
    let measured = first == 198 && (second == 18 || second == 19);
    !(first == 0
        || first >= 224
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || shared
        || assigned
        || measured)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let [.., high, low] = parts;
    let last = || Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match parts {
        // ::, ::1, and IPv4 in ::/96.
        [0, 0, 0, 0, 0, 0, ..] => false,
        [0, 0, 0, 0, 0, 0xffff, ..] => is_public_v4(last()),
        // NAT64: what it leads to. Its local form, and Teredo, lead anywhere.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(last()),
        [0x64, 0xff9b, ..] | [0x2001, 0, ..] => false,
        // 6to4.
        [0x2002, high, low, ..] => is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))),
        // Unique local, link local, site local, multicast.
        [first, ..] => first & 0xfe00 != 0xfc00 && first & 0xff80 != 0xfe80 && first & 0xff00 != 0xff00,
    }
}

/// One module's way out.
pub(super) struct Egress {
    names: Arc<Names>,
    places: Arc<Semaphore>,
}

/// What sends ends with what reads.
struct Sending(AbortHandle);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Egress {
    pub(super) fn new(names: &Arc<Names>) -> Self {
        Self { names: Arc::clone(names), places: Arc::new(Semaphore::new(CONNECTIONS)) }
    }

    /// Connects, if that is granted. The connection lives as long as the answer.
    pub(super) async fn dial(&self, granted: &Granted, to: &str, sent: Body) -> Result<Body, DialError> {
        if !granted.may_do(PermissionName::NetEgress, to) {
            return Err(DialError::NotGranted);
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| DialError::Busy)?;
        let (addresses, as_address) = self.names.addresses(to)?;
        let stream = reach(&addresses, as_address).await?;
        // What is asked and answered in small pieces must not wait for more; without it all goes on, slower.
        let _ = stream.set_nodelay(true);
        let (from, into) = stream.into_split();
        let sending = Sending(tokio::spawn(send(sent, into)).abort_handle());
        let held = (from, sending, place);
        Ok(Body::stream(futures_util::stream::unfold(Some(held), |held| async {
            let (mut from, sending, place) = held?;
            let mut bytes = BytesMut::with_capacity(PIECE);
            match timeout(QUIET, from.read_buf(&mut bytes)).await {
                Ok(Ok(0)) => None,
                Ok(Ok(_)) => Some((Ok(bytes.freeze()), Some((from, sending, place)))),
                Ok(Err(_)) => Some((Err(BodyError::Failed), None)),
                Err(_) => Some((Err(BodyError::TimedOut), None)),
            }
        })))
    }
}

/// Whether a connection has both its ends on this machine: at an address that has come since the start, or of a range that is this machine's.
fn is_to_itself(stream: &TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(own), Ok(other)) => own.ip().to_canonical() == other.ip().to_canonical(),
        // It has ended already.
        _ => false,
    }
}

/// Connects, to this machine only where that was granted as an address.
async fn reach(addresses: &[SocketAddr], as_address: bool) -> Result<TcpStream, DialError> {
    let stream = connect(addresses).await?;
    if !as_address && is_to_itself(&stream) { Err(DialError::Private) } else { Ok(stream) }
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, DialError> {
    let mut last = DialError::Unreachable;
    for address in addresses {
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(_)) => last = DialError::Unreachable,
            Err(_) => last = DialError::TimedOut,
        }
    }
    Err(last)
}

/// Sends what the module sends; what it broke off ends here too, without an end that the other side could take for one.
async fn send(mut sent: Body, mut into: OwnedWriteHalf) {
    while let Some(piece) = sent.next().await {
        let Ok(bytes) = piece else {
            into.forget();
            return std::future::pending().await;
        };
        if into.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // Dropped, it would say the same.
    let _ = into.shutdown().await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_module::manifest::Grants;

    use super::super::granted::Used;
    use super::*;

    #[test]
    fn this_machine_and_private_networks_are_not_public() {
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2001:0:1::1",
            "2002:a00:1::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_name_leads_where_it_led_at_the_start() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let known = [
            ("a.example:443", vec![at("10.0.0.1:443"), at("1.1.1.1:443")]),
            ("inside.example:443", vec![at("127.0.0.1:443"), at("[::1]:443")]),
        ];
        let known = known.into_iter().map(|(name, addresses)| (name.to_owned(), addresses)).collect();
        let names = Names { known, own: HashSet::new() };
        assert_eq!(names.addresses("a.example:443"), Ok((vec![at("1.1.1.1:443")], false)));
        assert_eq!(names.addresses("inside.example:443"), Err(DialError::Private));
        assert_eq!(names.addresses("later.example:443"), Err(DialError::Unresolved));
        let granted = Ok((vec![at("127.0.0.1:443")], true));
        assert_eq!(names.addresses("127.0.0.1:443"), granted, "granted as an address");
    }

    #[test]
    fn a_public_address_of_this_machine_is_this_machine() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let own = ["203.0.113.7", "2001:db8::7"].map(|text| text.parse().unwrap());
        let known = [
            ("own.example:443", vec![at("203.0.113.7:443"), at("[2001:db8::7]:443"), at("[::ffff:203.0.113.7]:443")]),
            ("both.example:443", vec![at("203.0.113.7:443"), at("203.0.113.8:443")]),
        ];
        let known = known.into_iter().map(|(name, addresses)| (name.to_owned(), addresses)).collect();
        let names = Names { known, own: own.into() };
        assert_eq!(names.addresses("own.example:443"), Err(DialError::Private));
        assert_eq!(names.addresses("both.example:443"), Ok((vec![at("203.0.113.8:443")], false)));
        assert_eq!(names.addresses("203.0.113.7:443"), Ok((vec![at("203.0.113.7:443")], true)));
    }

    #[test]
    fn the_addresses_of_this_machine_are_read_from_the_kernel() {
        let own = Names::resolve(Path::new("/nowhere")).own;
        // Whatever interfaces there are: what the kernel lets a socket have is one of its own.
        for other in ["192.0.2.1:9", "[2001:db8::1]:9", "127.0.0.1:9"] {
            let here = if other.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = std::net::UdpSocket::bind(here);
            // Sends nothing: the kernel says from where it would.
            let Ok(socket) = socket.and_then(|socket| socket.connect(other).map(|()| socket)) else { continue };
            let from = socket.local_addr().unwrap().ip();
            assert!(own.contains(&from), "{from} is not among {own:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_to_this_machine_by_a_name_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = [listener.local_addr().unwrap()];
        assert_eq!(reach(&to, false).await.err(), Some(DialError::Private));
        assert!(reach(&to, true).await.is_ok(), "granted as an address");
    }

    #[tokio::test]
    async fn only_what_is_granted_is_dialled_and_only_so_often() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap().to_string();
        let grant = format!("net.egress={to}");
        let granted = Granted::new("m", Grants::parse([grant.as_str()]).unwrap(), &Used::nowhere());
        let egress = Egress::new(&Arc::default());
        let refused = egress.dial(&granted, "127.0.0.1:1", Body::empty()).await;
        assert_eq!(refused.err(), Some(DialError::NotGranted));
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            held.push(egress.dial(&granted, &to, Body::whole("ask")).await.unwrap());
        }
        assert_eq!(egress.dial(&granted, &to, Body::empty()).await.err(), Some(DialError::Busy));
        // What is sent arrives with its end; what is answered comes back with its own, and frees the place.
        let (mut served, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        served.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"ask");
        served.write_all(b"answer").await.unwrap();
        drop(served);
        let answer = held.remove(0).collect(100).await.unwrap();
        assert_eq!(&answer[..], b"answer");
        assert!(egress.dial(&granted, &to, Body::empty()).await.is_ok());
        // An answer that nobody reads any more closes the connection.
        let (mut served, _) = listener.accept().await.unwrap();
        drop(held);
        let mut rest = Vec::new();
        let _ = served.read_to_end(&mut rest).await;
    }
}
