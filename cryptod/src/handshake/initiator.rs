//! The initiator: sends REQUEST, expects VERIFY, sends FINALIZE and is done.
//!
//! The responder opens the session with ACCEPT, its first sealed record; that is the session layer's, not ours.

use openred_proto::checked::handshake::{RequestPayload, SenderPayload};
use openred_proto::id::UnixMillis;
use openred_proto::limits::MLKEM_CIPHERTEXT_BYTES;
use openred_proto::secret::Secret;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::certificates::Certificates;
use super::kem::EphemeralKem;
use super::noise::{Noise, Side, Start};
use super::{Credentials, Established, Mode, Refusal, Waiting};

/// REQUEST is sent; the next message can only be VERIFY.
pub(super) struct ExpectVerify {
    noise: Noise,
    kem: EphemeralKem,
    link: Waiting,
    certificate: Vec<u8>,
    card_sequence: u64,
}

impl ExpectVerify {
    /// Begins in `mode`; returns the machine and REQUEST's Noise message. `timestamp` is `max(now, last sent + 1)`, made
    /// durable by the caller before the message leaves.
    ///
    /// # Errors
    /// Only for credentials that cannot be used; no peer has had a say yet.
    pub(super) fn request(
        random: &mut impl CryptoRng,
        timestamp: UnixMillis,
        mode: Mode,
        own: &Credentials<'_>,
    ) -> Result<(Self, Vec<u8>), Refusal> {
        let mut noise = Noise::start(Start {
            side: Side::Initiator,
            name: mode.noise_name(),
            prologue: &mode.prologue(),
            static_secret: own.static_secret,
            ephemeral: draw(random),
            psk0: mode.psk0(),
        })?;
        let kem = EphemeralKem::generate(random);
        let payload = RequestPayload { timestamp, kem_key: kem.public().to_vec() };
        let message = noise.write(&payload.encode())?;
        let link = Waiting::new(mode, Side::Initiator);
        let certificate = own.certificate.to_vec();
        Ok((Self { noise, kem, link, certificate, card_sequence: own.card_sequence }, message))
    }

    /// Reads VERIFY and answers with FINALIZE's Noise message. The peer is settled before FINALIZE is written: nothing of
    /// this node's identity goes to anybody else. `directory_head` is the latest seen, 32 bytes or empty.
    ///
    /// # Errors
    /// Any [`Refusal`] of the peer's message; the machine is gone with it.
    pub(super) fn verify(
        mut self,
        now: UnixMillis,
        message: &[u8],
        directory_head: &[u8],
        certificates: &mut Certificates,
    ) -> Result<(Vec<u8>, Established), Refusal> {
        let said = SenderPayload::decode_verify(&self.noise.read(message)?)?;
        let certificate = certificates.verify(&said.certificate, now)?;
        self.link.check_peer(&self.noise, &certificate)?;
        let ciphertext: &[u8; MLKEM_CIPHERTEXT_BYTES] =
            said.kem_ciphertext.as_slice().try_into().map_err(|_| Refusal::NotAuthentic)?;
        self.noise.set_psk3(&self.kem.psk3(ciphertext))?;
        let payload = SenderPayload {
            kem_ciphertext: Vec::new(),
            certificate: self.certificate,
            card_sequence: self.card_sequence,
            directory_head: directory_head.to_vec(),
        };
        let finalize = self.noise.write(&payload.encode())?;
        Ok((finalize, self.link.establish(Side::Initiator, certificate.node_id, said, self.noise)?))
    }
}

/// Draws the one ephemeral secret of a side.
pub(super) fn draw(random: &mut impl CryptoRng) -> Secret<32> {
    let mut bytes = Zeroizing::new([0; 32]);
    random.fill_bytes(&mut *bytes);
    Secret::new(*bytes)
}
