//! One vault with its file, clock and generator, and what must hold of each of its answers.

use openred_cryptod::audit::Trail;
use openred_cryptod::audit::open::Opening;
use openred_cryptod::error::{Error, Result};
use openred_cryptod::keyring::Keyring;
use openred_cryptod::state::State;
use openred_cryptod::vault::quota::Rates;
use openred_cryptod::vault::{Outcome, Vault};
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::FRAME_BYTES;
use openred_proto::vault::{Frame, Refusal, Reply, Request, Role, SessionGrant, decode_frame, encode_frame};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use crate::oracle::{Oracle, secrets};
use crate::records::NOW;

/// What a session's two sides compare.
#[derive(Clone)]
pub(super) struct Grant {
    pub(super) link: Option<LinkId>,
    pub(super) send: [u8; 32],
    pub(super) receive: [u8; 32],
    pub(super) hash: [u8; 32],
    pub(super) mutual_link: [u8; 16],
    pub(super) proof: [u8; 32],
}

impl From<SessionGrant> for Grant {
    fn from(grant: SessionGrant) -> Self {
        Self {
            link: grant.link,
            send: *grant.send.expose(),
            receive: *grant.receive.expose(),
            hash: grant.hash,
            mutual_link: grant.mutual_link,
            proof: grant.match_proof,
        }
    }
}

/// A vault as the loop keeps it.
pub(super) struct Party {
    vault: Vault,
    random: ChaCha20Rng,
    pub(super) now: UnixMillis,
    pub(super) node: NodeId,
    file: Vec<u8>,
    trail: [Vec<u8>; 2],
    oracle: Oracle,
    seed: u8,
    /// Locked or lost: no key may be used.
    gone: bool,
}

impl Party {
    pub(super) fn new(seed: u8) -> Self {
        let mut random = ChaCha20Rng::from_seed([seed; 32]);
        let keyring = Keyring::from_secrets(&mut secrets(seed));
        let trail = Trail::fresh(keyring.identity(), NOW).unwrap();
        let vault = Vault::open(keyring, State::new(), trail, &Rates::default(), NOW, &mut random).unwrap();
        let node = vault.node_id();
        let oracle = Oracle::new(&secrets(seed), node);
        let mut party = Self {
            vault,
            random,
            now: NOW,
            node,
            file: Vec::new(),
            trail: <[Vec<u8>; 2]>::default(),
            oracle,
            seed,
            gone: false,
        };
        party.commit();
        party
    }

    /// Asks as the front or the supervisor would; nothing when the request is too long for a frame.
    pub(super) fn ask(&mut self, role: Role, body: Request) -> Option<Reply> {
        let frame = encode_frame(&Frame { id: 7, body }).ok()?;
        Some(self.frame(role, &frame[4..]))
    }

    /// Hands in one frame's body, and holds the answer to what must be true of it.
    pub(super) fn frame(&mut self, role: Role, body: &[u8]) -> Reply {
        if self.vault.must_commit() {
            self.commit();
        }
        let request = decode_frame::<Request>(body).ok();
        let outcome = self.vault.handle_frame(self.now, &mut self.random, role, body);
        let encoded = encode_frame(&outcome.reply).expect("a reply that fits no frame");
        assert!(encoded.len() <= FRAME_BYTES + 4);
        self.oracle.watch(&encoded);
        self.judge(role, request.as_ref(), &outcome);
        self.gone |= outcome.ended;
        outcome.reply.body
    }

    fn judge(&self, role: Role, request: Option<&Frame<Request>>, outcome: &Outcome) {
        let reply = &outcome.reply.body;
        let Some(request) = request else {
            assert!(matches!(reply, Reply::Refused(Refusal::Malformed)) && outcome.hang_up && !outcome.ended);
            return;
        };
        assert_eq!(outcome.reply.id, request.id, "another request's answer");
        let is_locked = matches!(request.body, Request::Lock);
        let is_operators = is_locked
            || matches!(
                request.body,
                Request::Rotate { .. }
                    | Request::Note { .. }
                    | Request::AuditStatus
                    | Request::AuditFiled { .. }
                    | Request::AuditSubject { .. }
            );
        let may = match role {
            Role::Node => !is_operators,
            Role::Operator => is_operators || matches!(request.body, Request::Describe),
        };
        assert_eq!(outcome.hang_up, !may, "{role:?} asked {:?}", request.body);
        assert_eq!(outcome.ended, may && is_locked);
        if !may {
            assert!(matches!(reply, Reply::Refused(Refusal::NotAllowed)));
        } else if self.gone && !is_locked {
            assert!(matches!(reply, Reply::Refused(Refusal::StateLost)), "a key was used after the end: {reply:?}");
        }
        assert!(!matches!(reply, Reply::Refused(Refusal::Bug)), "a defect, by its own word: {:?}", request.body);
    }

    /// As the loop does before it replies.
    pub(super) fn commit(&mut self) {
        let changes = self.vault.commit(&mut self.random).expect("a commit that cannot be listed");
        let wrote = !changes.state.is_empty();
        for write in changes.trail {
            lay(&mut self.trail[write.file], write.offset, &write.bytes);
        }
        for write in changes.state {
            lay(&mut self.file, write.offset, &write.bytes);
        }
        if wrote {
            self.oracle.learn(&self.file);
        }
    }

    pub(super) fn tick(&mut self) {
        let _ = self.vault.handle_timeout(self.now, &mut self.random);
    }

    pub(super) fn lose(&mut self) {
        self.vault.lose();
        self.gone = true;
    }

    /// What a restart leaves: the file alone, with what was handled last in it or not.
    pub(super) fn restart(&mut self, commit: bool) {
        if commit {
            self.commit();
        }
        let (file, segments) = (&self.file, &self.trail);
        let state = State::load(&self.oracle.state_key(), &mut |offset, buffer| read(file, offset, buffer));
        let state = state.expect("a file of whole commits loads");
        let keyring = Keyring::from_secrets(&mut secrets(self.seed));
        let open = |anew| {
            let opening = Opening {
                identity: keyring.identity(),
                head: state.audit_head(),
                anew,
                earlier: &[],
                taken: None,
                now: self.now,
            };
            Trail::open(opening, &mut |which, offset, buffer| read(&segments[which], offset, buffer))
        };
        let trail = match open(false) {
            // The clock was set back: the operator's way out.
            Err(Error::LocalAuditClock(_)) => open(true),
            opened => opened,
        };
        let trail = trail.expect("a trail of whole commits is found again");
        self.vault = Vault::open(keyring, state, trail, &Rates::default(), self.now, &mut self.random).unwrap();
        self.gone = false;
        self.commit();
    }
}

fn lay(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).unwrap();
    file.resize(file.len().max(start + bytes.len()), 0);
    file[start..start + bytes.len()].copy_from_slice(bytes);
}

/// Past the end of a file there are zeros.
fn read(file: &[u8], offset: u64, buffer: &mut [u8]) -> Result<()> {
    let have = usize::try_from(offset).ok().and_then(|offset| file.get(offset..)).unwrap_or(&[]);
    let length = have.len().min(buffer.len());
    buffer.fill(0);
    buffer[..length].copy_from_slice(&have[..length]);
    Ok(())
}
