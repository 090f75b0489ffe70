//! A carrier that does what it likes: it keeps all that was sent, over two links of the same two nodes, and hands any of it to either
//! node, as any message, over either link, changed or not, as often as it likes; the nodes' clocks are up to two hours off. What must
//! hold: who has a session has it with the other, who has the same one; no message makes two; and when the carrier lets go, sessions open.

use proptest::prelude::*;

use openred_proto::limits::HALF_OPEN_LIFE;

use super::*;

/// What the carrier has, with who made it.
#[derive(Clone)]
enum Kept {
    Request(Vec<u8>),
    Verify(HandshakeId, Vec<u8>),
    Finalize(HandshakeId, Vec<u8>),
}

impl Kept {
    fn noise(&self) -> &[u8] {
        match self {
            Self::Request(noise) | Self::Verify(_, noise) | Self::Finalize(_, noise) => noise,
        }
    }
}

struct Carrier {
    engines: [Engine; 2],
    links: [Link; 2],
    ahead: [Duration; 2],
    now: UnixMillis,
    kept: Vec<Kept>,
    /// Handshakes that each has begun, and answered.
    begun: [Vec<HandshakeId>; 2],
    answered: [Vec<HandshakeId>; 2],
    sessions: [Vec<Established>; 2],
    /// Whether each session of a responder was one of the other's before.
    matched: bool,
}

impl Carrier {
    fn new(method: Method, ahead: [u64; 2]) -> Self {
        let ahead = ahead.map(Duration::from_secs);
        let mut engines = [Engine::with(1, &[method]), Engine::with(2, &[method])];
        for (engine, ahead) in engines.iter_mut().zip(ahead) {
            // Certified by its own clock.
            let key = public(engine.statics[&method].0.expose());
            let certificate = engine.certify(method, key, NOON.plus(ahead));
            engine.statics.get_mut(&method).unwrap().1 = certificate;
        }
        let links = [3, 4].map(|seed| Link::between(&engines[0], &engines[1], method, seed));
        let none = || [Vec::new(), Vec::new()];
        Self {
            engines,
            links,
            ahead,
            now: NOON,
            kept: Vec::new(),
            begun: none(),
            answered: none(),
            sessions: Default::default(),
            matched: true,
        }
    }

    fn clock(&self, who: usize) -> UnixMillis {
        self.now.plus(self.ahead[who])
    }

    fn begin(&mut self, who: usize, link: usize) {
        let now = self.clock(who);
        if let Ok((exchange, noise)) = self.engines[who].begin(now, &self.links[link]) {
            self.begun[who].push(exchange);
            self.kept.push(Kept::Request(noise));
        }
    }

    fn request(&mut self, to: usize, link: usize, noise: &[u8]) {
        let now = self.clock(to);
        if let Ok(answered) = self.engines[to].answer(now, &self.links[link], noise) {
            self.answered[to].push(answered.id);
            self.kept.push(Kept::Verify(answered.id, answered.message));
        }
    }

    fn verify(&mut self, to: usize, exchange: HandshakeId, handshake: HandshakeId, noise: &[u8]) {
        let now = self.clock(to);
        if let Ok((finalize, session)) = self.engines[to].handshakes.finish(now, exchange, noise, &[]) {
            self.sessions[to].push(session);
            self.kept.push(Kept::Finalize(handshake, finalize));
        }
    }

    fn finalize(&mut self, to: usize, handshake: HandshakeId, noise: &[u8]) {
        let now = self.clock(to);
        if let Ok(session) = self.engines[to].handshakes.complete(now, handshake, noise) {
            // FINALIZE is only made with the initiator's own session.
            self.matched &= self.sessions[1 - to].iter().any(|theirs| theirs.hash == session.hash);
            self.sessions[to].push(session);
        }
    }

    /// One deed: what, to whom, with what.
    fn act(&mut self, what: u8, to: usize, which: u8, other: u8) {
        let pick = |from: &[HandshakeId]| from.get(usize::from(other) % from.len().max(1)).copied();
        let kept = self.kept.get(usize::from(which) % self.kept.len().max(1)).cloned();
        match (what, kept) {
            (0 | 1, _) => self.begin(to, usize::from(which) % 2),
            (2, _) => self.now = self.now.plus(Duration::from_millis(u64::from(which) * u64::from(other))),
            // As it was meant, to where it was meant or not.
            (3..=7, Some(Kept::Request(noise))) => self.request(to, usize::from(other) % 2, &noise),
            (3..=7, Some(Kept::Verify(handshake, noise))) => {
                let exchange = pick(&self.begun[to]);
                exchange.into_iter().for_each(|exchange| self.verify(to, exchange, handshake, &noise));
            }
            (3..=7, Some(Kept::Finalize(handshake, noise))) => {
                let handshake = if what == 7 { pick(&self.answered[to]).unwrap_or(handshake) } else { handshake };
                self.finalize(to, handshake, &noise);
            }
            // As another message than it is, or changed.
            (_, Some(kept)) => {
                let mut noise = kept.noise().to_vec();
                if what == 8 {
                    let at = usize::from(other) * 5 % noise.len();
                    noise[at] ^= 1 << (which % 8);
                }
                match (which % 3, pick(&self.begun[to]), pick(&self.answered[to])) {
                    (0, Some(exchange), Some(handshake)) => self.verify(to, exchange, handshake, &noise),
                    (1, _, Some(handshake)) => self.finalize(to, handshake, &noise),
                    _ => self.request(to, usize::from(other) % 2, &noise),
                }
            }
            (_, None) => {}
        }
    }

    fn hold(&self) -> Result<(), TestCaseError> {
        let mut hashes = std::collections::BTreeSet::new();
        for (who, sessions) in self.sessions.iter().enumerate() {
            for session in sessions {
                prop_assert_eq!(session.peer, self.engines[1 - who].id());
                prop_assert!(hashes.insert((who, session.hash)), "two sessions of one handshake");
                let theirs = self.sessions[1 - who].iter().find(|theirs| theirs.hash == session.hash);
                if let Some(theirs) = theirs {
                    prop_assert!(session.send == theirs.receive && session.receive == theirs.send);
                    let of = |established: &Established| {
                        (established.link.as_ref().map(|(link, _)| *link), established.mutual_link)
                    };
                    prop_assert_eq!(of(session), of(theirs));
                }
            }
        }
        prop_assert!(self.matched, "a responder opened what nobody had begun");
        Ok(())
    }

    /// The carrier lets go: one handshake each way over each link.
    fn opens(&mut self) -> Result<(), TestCaseError> {
        self.now = self.now.plus(HALF_OPEN_LIFE);
        for (who, link) in [(0, 0), (1, 1), (1, 0), (0, 1)] {
            let before = [0, 1].map(|who| self.sessions[who].len());
            self.begin(who, link);
            let Some(Kept::Request(noise)) = self.kept.last().cloned() else { panic!("no REQUEST") };
            self.request(1 - who, link, &noise);
            let Some(Kept::Verify(handshake, noise)) = self.kept.last().cloned() else { panic!("no VERIFY") };
            let exchange = *self.begun[who].last().unwrap();
            self.verify(who, exchange, handshake, &noise);
            let Some(Kept::Finalize(handshake, noise)) = self.kept.last().cloned() else { panic!("no FINALIZE") };
            self.finalize(1 - who, handshake, &noise);
            let after = [0, 1].map(|who| self.sessions[who].len());
            prop_assert_eq!(after, before.map(|count| count + 1));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_a_carrier_does_sessions_match_and_open(
        deeds in proptest::collection::vec((0_u8..10, 0_usize..2, any::<u8>(), any::<u8>()), 1..50),
        ahead in [0_u64..=7200, 0_u64..=7200],
        method in 0_usize..4,
    ) {
        let mut carrier = Carrier::new(Method::ALL[method], ahead);
        for (what, to, which, other) in deeds {
            carrier.act(what, to, which, other);
            carrier.hold()?;
        }
        carrier.opens()?;
        carrier.hold()?;
    }
}
