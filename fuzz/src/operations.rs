//! The vault as a function: single frames of any bytes, and lists of operations on two vaults that link and shake hands.
//!
//! What must hold after each operation: it comes back; it answers the request that was asked; who asks out of his role is
//! refused and hung up on, and nobody else is; the reply fits a frame and has none of the vault's long-term secrets in it; a
//! vault that was locked or lost uses no key again; and two sides that both say "open" have the same session.

use openred_proto::checked::card::CardFields;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{HandshakeId, LinkId, NodeId, UnixMillis};
use openred_proto::method::description::MethodDescription;
use openred_proto::method::{Method, MethodSet, Schedule};
use openred_proto::vault::{
    Frame, ReceivedOffer, ReceivedRenewal, Reply, Request, Role, ShortKey, decode_frame, encode_frame, split_frame,
};

use crate::records::NOW;

mod party;

use party::Party;

/// Operations of one list: enough for two links, their handshakes, and as many mistakes.
const OPERATIONS: usize = 64;
/// Steps that the clock takes: from a millisecond to past the life of everything.
const STEPS: [u64; 8] = [1, 500, 10_001, 60_000, 3_600_000, 86_400_000, 8 * 86_400_000, 40 * 86_400_000];
const DIRECTORY: NodeId = NodeId::from_bytes([0xd1; 32]);

/// The first byte says whose; the rest is one frame at the vault, as it is, and as one at the front.
pub(crate) fn frames(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    if let Ok((body, used)) = split_frame(rest) {
        assert!(body.len() + 4 == used && used <= rest.len());
    }
    if let Ok(frame) = decode_frame::<Reply>(rest) {
        // What was read can be said again, if it is no longer than a frame.
        if let Ok(again) = encode_frame(&frame) {
            let read: Frame<Reply> = decode_frame(&again[4..]).unwrap();
            assert_eq!(format!("{read:?}"), format!("{frame:?}"));
        }
    }
    let role = if which.is_multiple_of(2) { Role::Node } else { Role::Operator };
    let mut party = Party::new(1);
    party.frame(role, rest);
    party.frame(Role::Node, &encode_frame(&Frame { id: 1, body: Request::Describe }).unwrap()[4..]);
}

/// Four bytes an operation: what, who, and two choices; a raw frame takes as many more as its choice says.
pub(crate) fn list(bytes: &[u8]) {
    let mut world = World { parties: [Party::new(1), Party::new(2)], made: Made::default() };
    let mut rest = bytes;
    for _ in 0..OPERATIONS {
        let Some(([what, who, a, b], more)) = rest.split_first_chunk::<4>() else { break };
        rest = more;
        let step = Step { who: usize::from(who % 2), operator: who & 0x40 != 0, alter: who & 0x80 != 0, a: *a, b: *b };
        if what % KINDS == RAW {
            let (frame, after) = rest.split_at(rest.len().min(usize::from(*a)));
            rest = after;
            world.parties[step.who].frame(step.role(), frame);
        } else {
            world.step(what % KINDS, &step);
        }
    }
    world.parties.iter_mut().for_each(Party::commit);
}

const KINDS: u8 = 36;
const RAW: u8 = 22;

struct Step {
    who: usize,
    operator: bool,
    alter: bool,
    a: u8,
    b: u8,
}

impl Step {
    const fn role(&self) -> Role {
        if self.operator { Role::Operator } else { Role::Node }
    }
}

/// What the vaults have given out so far, to be handed in again, anywhere.
#[derive(Default)]
struct Made {
    cards: Vec<Vec<u8>>,
    offers: Vec<Vec<u8>>,
    rows: Vec<Vec<u8>>,
    links: Vec<LinkId>,
    handshakes: Vec<HandshakeId>,
    noises: Vec<Vec<u8>>,
    grants: Vec<party::Grant>,
}

fn nth<T: Clone>(made: &[T], which: u8, otherwise: T) -> T {
    if made.is_empty() { otherwise } else { made[made.len() - 1 - usize::from(which) % made.len()].clone() }
}

struct World {
    parties: [Party; 2],
    made: Made,
}

impl World {
    fn step(&mut self, what: u8, step: &Step) {
        let now = self.parties[step.who].now;
        match what {
            16 => self.parties[step.who].commit(),
            17 => self.parties[step.who].tick(),
            18 => self.parties[step.who].now = UnixMillis(now.0.saturating_add(STEPS[usize::from(step.a % 8)])),
            19 => self.parties[step.who].now = UnixMillis(now.0.saturating_sub(STEPS[usize::from(step.a % 8)])),
            20 => self.parties[step.who].restart(step.a.is_multiple_of(2)),
            21 => self.parties[step.who].lose(),
            23 => self.both_forward(step.a),
            _ => self.ask(what, step),
        }
    }

    fn both_forward(&mut self, a: u8) {
        for party in &mut self.parties {
            party.now = UnixMillis(party.now.0.saturating_add(STEPS[usize::from(a % 8)]));
        }
    }

    fn ask(&mut self, what: u8, step: &Step) {
        let request = self.request(what, step);
        let Some(reply) = self.parties[step.who].ask(step.role(), request) else { return };
        self.made.keep(reply);
    }

    /// The most recent of everything is what a choice of zero takes.
    fn request(&self, what: u8, step: &Step) -> Request {
        let (a, b, made) = (step.a, step.b, &self.made);
        let (own, other) = (self.parties[step.who].node, self.parties[1 - step.who].node);
        let bytes = |pool: &[Vec<u8>], which| {
            let mut bytes = nth(pool, which, vec![which; 97]);
            if step.alter && !bytes.is_empty() {
                let at = usize::from(b) * 7 % bytes.len();
                bytes[at] ^= 1 << (b % 8);
            }
            bytes
        };
        let row = |which| bytes(&made.rows, which);
        let noise = |which| bytes(&made.noises, which);
        let handshake = nth(&made.handshakes, a, HandshakeId::from_bytes([a; 16]));
        let offer = || ReceivedOffer {
            offer: bytes(&made.offers, a),
            sender: if b & 0x40 == 0 { other } else { own },
            directory: DIRECTORY,
            allowed: allowed(b),
        };
        match what {
            0 => Request::Describe,
            1 => sign_card(a, b),
            2 => sign_http(self.parties[step.who].now, own, a, b),
            3 => Request::IssueLink {
                peer: if b & 0x40 == 0 { other } else { own },
                card: bytes(&made.cards, a),
                directory: DIRECTORY,
                allowed: allowed(b),
                schedule: [Schedule::Hourly, Schedule::Daily, Schedule::Seeded][usize::from(b / 16 % 3)],
                life: std::time::Duration::from_millis(STEPS[usize::from(7 - b % 8)]),
            },
            4 => Request::InspectOffer(offer()),
            5 => Request::AcceptOffer(offer()),
            6 => Request::LinkKeys { row: row(a) },
            7 => Request::RevokeLink { link: nth(&made.links, a, LinkId::from_bytes([a; 16])) },
            8 => Request::StartHandshake { row: row(a) },
            9 => {
                Request::AnswerHandshake { row: row(a), noise: noise(b), directory_head: vec![b; usize::from(b % 34)] }
            }
            10 => Request::FinishHandshake {
                handshake,
                noise: noise(b),
                directory_head: vec![b; usize::from((b % 33) & 32)],
            },
            11 => Request::CompleteHandshake { handshake, noise: noise(b) },
            12 => Request::AbandonHandshake { handshake },
            13 => {
                let (hash, proof) = made.grants.last().map_or(([a; 32], [b; 32]), |grant| (grant.hash, grant.proof));
                Request::ValidateMatch { row: row(a), hash, proof: if b == 0 { proof } else { [b; 32] } }
            }
            14 => Request::StoreKey {
                purpose: ["messaging", "files", "", "../x", "A"][usize::from(a % 5)].repeat(1 + usize::from(b / 64)),
            },
            24..=27 => self.renewal(what, step, row(a), offer()),
            28 => Request::SignSession { handshake },
            29 => Request::StartDirect {
                method: Method::ALL[usize::from(b % 4)],
                peer: if b & 0x40 == 0 { other } else { own },
            },
            30 => Request::AnswerDirect {
                method: Method::ALL[usize::from(b % 4)],
                noise: noise(a),
                directory_head: Vec::new(),
            },
            31..=35 => of_modules(what, a, b),
            15 if a & 1 == 0 => Request::Lock,
            _ => Request::Rotate { what: if b & 1 == 0 { ShortKey::Prekey } else { ShortKey::Statics } },
        }
    }

    fn renewal(&self, what: u8, step: &Step, row: Vec<u8>, received: ReceivedOffer) -> Request {
        let (a, b, made) = (step.a, step.b, &self.made);
        let renewed = nth(&made.rows, b, vec![b; 97]);
        match what {
            24 => Request::RenewLink {
                row,
                card: nth(&made.cards, b, vec![b; 97]),
                directory: DIRECTORY,
                allowed: allowed(b),
                schedule: Schedule::Hourly,
                life: std::time::Duration::from_millis(STEPS[usize::from(7 - b % 8)]),
            },
            25 => Request::InspectRenewal(ReceivedRenewal { received, row: renewed }),
            26 => Request::AcceptRenewal(ReceivedRenewal { received, row: renewed }),
            _ => Request::ListLinks { after: nth(&made.links, a, LinkId::from_bytes([a; 16])) },
        }
    }
}

/// Bits as a frame can carry them, of methods that there are and others.
fn allowed(b: u8) -> MethodSet {
    let bits = if b & 0x80 == 0 { b | 1 } else { b };
    let frame = postcard_bits(bits);
    frame.unwrap_or(MethodSet::ALL)
}

/// What modules ask for: methods within the floor and below it, words, keys.
fn of_modules(what: u8, a: u8, b: u8) -> Request {
    let module = ["greet", "files", "", "../x", "A"][usize::from(a % 5)].to_owned();
    let floor = MethodDescription::floor(["omega", "psi", "chi", "phi", "x y"][usize::from(b % 5)]);
    let described = MethodDescription {
        transforms: (0..b / 16 % 7).map(|step| a.wrapping_add(step) % 6).collect(),
        kdf: u64::from(a / 8 % 4),
        tag_bits: if b & 1 == 0 { 128 } else { 64 },
        ..floor
    };
    match what {
        31 => Request::RegisterMethod { module, description: described.encode() },
        32 => Request::RetireMethod { method: described.id() },
        33 => Request::ListMethods,
        34 => {
            let domain = ["words", "", "a.b", "A"][usize::from(b % 4)].to_owned();
            Request::SignModule { module, domain, digest: [a; 32], length: u64::from(b) }
        }
        _ => Request::SealKey { module },
    }
}

/// A method set with these bits, if the frame's decoder would give one.
fn postcard_bits(bits: u8) -> Option<MethodSet> {
    let like = Request::InspectOffer(ReceivedOffer {
        offer: Vec::new(),
        sender: DIRECTORY,
        directory: DIRECTORY,
        allowed: MethodSet::EMPTY,
    });
    let mut bytes = encode_frame(&Frame { id: 0, body: like }).ok()?;
    // The set is the request's last field, and one byte of the frame.
    *bytes.last_mut()? = bits;
    match decode_frame::<Request>(&bytes[4..]).ok()?.body {
        Request::InspectOffer(offer) => Some(offer.allowed),
        _ => None,
    }
}

fn sign_card(a: u8, b: u8) -> Request {
    let endpoint = ["http://192.0.2.7:1", "https://n.example/", "ftp://x", ""][usize::from(a % 4)];
    let fields = CardFields {
        endpoints: vec![endpoint.into(); usize::from(a / 4 % 10)],
        name: "n".repeat(usize::from(b % 70)),
        sector: if a & 0x80 == 0 { String::new() } else { "\n".into() },
        listed: b & 0x80 != 0,
    };
    let life = std::time::Duration::from_millis(STEPS[usize::from(7 - b / 8 % 8)]);
    Request::SignCard { fields, suites: allowed(a), life }
}

fn sign_http(now: UnixMillis, own: NodeId, a: u8, b: u8) -> Request {
    let step = STEPS[usize::from(a % 8)];
    let created = if a & 0x80 == 0 { now.0.saturating_sub(step) } else { now.0.saturating_add(step) } / 1000;
    Request::SignHttp(SignatureInput {
        method: ["GET", "POST", "get", "A B"][usize::from(b % 4)].into(),
        target_uri: "https://d.example/x".repeat(1 + usize::from(b / 4)),
        content_sha256: [a; 32],
        created,
        nonce: [b; 16],
        key_id: if a & 0x40 == 0 { own } else { DIRECTORY },
    })
}

impl Made {
    fn keep(&mut self, reply: Reply) {
        match reply {
            Reply::Card { statement, .. } => self.cards.push(statement),
            Reply::LinkIssued { summary, row, offer, .. } => {
                self.links.push(summary.link);
                self.rows.push(row);
                self.offers.push(offer);
            }
            Reply::LinkAccepted { summary, row, .. } => {
                self.links.push(summary.link);
                self.rows.push(row);
            }
            Reply::HandshakeStarted { handshake, noise } | Reply::HandshakeAnswered { handshake, noise } => {
                self.handshakes.push(handshake);
                self.noises.push(noise);
            }
            Reply::HandshakeFinished { noise, grant } => {
                self.noises.push(noise);
                self.open(party::Grant::from(grant));
            }
            Reply::HandshakeCompleted { grant } => self.open(party::Grant::from(grant)),
            _ => {}
        }
    }

    /// A second grant of one handshake must be the first one's other side.
    fn open(&mut self, grant: party::Grant) {
        if let Some(other) = self.grants.iter().find(|other| other.hash == grant.hash) {
            assert_eq!((grant.send, grant.receive), (other.receive, other.send), "two sides, two sessions");
            assert_eq!((grant.mutual_link, grant.link), (other.mutual_link, other.link));
        }
        self.grants.push(grant);
    }
}

/// Frames of every operation, and lists that get somewhere.
pub(crate) mod corpus {
    use super::*;
    use crate::corpus::numbered;

    pub(crate) fn frames() -> Vec<(String, Vec<u8>)> {
        let node = Party::new(1).node;
        let world = World { parties: [Party::new(1), Party::new(2)], made: Made::default() };
        let step = Step { who: 0, operator: false, alter: false, a: 4, b: 8 };
        let framed = |role: u8, body| [&[role], &encode_frame(&Frame { id: 9, body }).unwrap()[4..]].concat();
        let mut inputs: Vec<_> = (0..16).map(|what| framed(0, world.request(what, &step))).collect();
        inputs.extend([framed(1, Request::Lock), framed(1, Request::Describe), framed(1, sign_http(NOW, node, 0, 1))]);
        let reply = |body| [&[0], &encode_frame(&Frame { id: 9, body }).unwrap()[4..]].concat();
        inputs.push(reply(Reply::Done));
        inputs.push(reply(Reply::Signature(vec![3; 64])));
        inputs.push([&[0][..], &encode_frame(&Frame { id: 1, body: Request::Describe }).unwrap()].concat());
        inputs.extend((24..KINDS).map(|what| framed(0, world.request(what, &step))));
        inputs.push(reply(Reply::Links(vec![LinkId::from_bytes([5; 16]); 3])));
        numbered(inputs)
    }

    /// Alice is 0, Bob is 1.
    pub(crate) fn lists() -> Vec<(String, Vec<u8>)> {
        let link: &[[u8; 4]] = &[[1, 1, 4, 8], [3, 0, 0, 2], [4, 1, 0, 15], [5, 1, 0, 15]];
        let shake: &[[u8; 4]] = &[[8, 0, 1, 0], [9, 1, 0, 0], [10, 0, 1, 0], [11, 1, 0, 0], [13, 0, 1, 0]];
        // Without a link.
        let direct: &[[u8; 4]] = &[[29, 0, 0, 1], [30, 1, 0, 1], [10, 0, 1, 0], [11, 1, 0, 0]];
        // Alice renews by her row, Bob takes it by his.
        let renew: &[[u8; 4]] = &[[24, 0, 1, 2], [25, 1, 0, 7], [26, 1, 0, 7]];
        let lists: [Vec<[u8; 4]>; 10] = [
            [link, shake].concat(),
            [link, &[[16, 0, 0, 0], [16, 1, 0, 0], [20, 0, 1, 0], [20, 1, 1, 0]], shake].concat(),
            [link, &[[6, 0, 1, 0], [7, 1, 0, 0]], shake].concat(),
            [link, link, shake, &[[23, 0, 5, 0]], shake].concat(),
            vec![[2, 0, 0, 1], [14, 0, 0, 0], [0, 0, 0, 0], [15, 0, 0, 0], [15, 0x40, 0, 0], [0, 0, 0, 0]],
            [link, &[[5, 1, 0, 15], [4, 0x81, 0, 3], [8, 0x80, 1, 9], [12, 0, 0, 0]]].concat(),
            [link, &[[17, 0, 0, 0], [23, 0, 6, 0], [17, 1, 0, 0], [21, 0, 0, 0]], shake].concat(),
            vec![[1, 0x40, 0, 8], [1, 0, 4, 8], [18, 0, 6, 0], [1, 0, 4, 8], [19, 0, 7, 0], [1, 0, 4, 8]],
            [link, renew, shake].concat(),
            [link, renew, &[[27, 0, 0, 0], [20, 1, 1, 0], [7, 0, 1, 0], [26, 1, 0, 7]], shake].concat(),
        ];
        let mut inputs: Vec<Vec<u8>> = lists.iter().map(|list| list.concat()).collect();
        inputs.push([&[22, 0, 3, 0, 1, 0, 0][..], &[0, 0, 0, 0]].concat());
        inputs.push(direct.concat());
        numbered(inputs)
    }

    #[cfg(test)]
    mod tests {
        use super::super::*;

        /// The world after a list in which both sides open a session.
        fn opened(list: &[u8]) -> World {
            let mut world = World { parties: [Party::new(1), Party::new(2)], made: Made::default() };
            for operation in list.chunks(4) {
                let who = usize::from(operation[1] % 2);
                let step = Step { who, operator: false, alter: false, a: operation[2], b: operation[3] };
                world.step(operation[0], &step);
            }
            assert_eq!(world.made.grants.len(), 2, "both sides opened the session");
            world
        }

        #[test]
        fn the_first_list_reaches_an_open_session() {
            let _ = opened(&super::lists()[0].1);
        }

        #[test]
        fn the_last_list_opens_one_without_a_link() {
            let world = opened(&super::lists().last().unwrap().1);
            assert!(world.made.grants.iter().all(|grant| grant.link.is_none()));
        }

        #[test]
        fn the_ninth_list_opens_one_over_a_renewed_link() {
            use super::super::*;
            let lists = super::lists();
            let (_, bytes) = &lists[8];
            let mut world = World { parties: [Party::new(1), Party::new(2)], made: Made::default() };
            for operation in bytes.chunks(4) {
                let who = usize::from(operation[1] % 2);
                let step = Step { who, operator: false, alter: false, a: operation[2], b: operation[3] };
                world.step(operation[0], &step);
            }
            let links: std::collections::BTreeSet<_> = world.made.links.iter().collect();
            assert_eq!((links.len(), world.made.grants.len()), (2, 2));
            assert_eq!(world.made.grants[0].link.as_ref(), world.made.links.last());
        }
    }
}
