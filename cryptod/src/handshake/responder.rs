//! The responder: expects REQUEST, answers with VERIFY, expects FINALIZE and is done.

use openred_proto::checked::handshake::{RequestPayload, SenderPayload};
use openred_proto::id::UnixMillis;
use openred_proto::limits::MLKEM_PUBLIC_BYTES;
use rand_core::CryptoRng;

use super::certificates::Certificates;
use super::initiator::draw;
use super::noise::{Noise, Side, Start};
use super::table::Incoming;
use super::{Credentials, Established, Mode, Refusal, Waiting, kem};

/// VERIFY is sent; the next message can only be FINALIZE.
pub(super) struct ExpectFinalize {
    noise: Noise,
    link: Waiting,
}

/// What an accepted REQUEST yields.
pub(super) struct Answer {
    pub(super) machine: ExpectFinalize,
    /// VERIFY's Noise message.
    pub(super) message: Vec<u8>,
    /// The REQUEST's timestamp.
    pub(super) timestamp: UnixMillis,
}

impl ExpectFinalize {
    /// Reads REQUEST in `mode` and answers.
    ///
    /// # Errors
    /// Any [`Refusal`] of the message; nothing is kept of it.
    pub(super) fn answer(
        random: &mut impl CryptoRng,
        mode: Mode,
        own: &Credentials<'_>,
        request: &Incoming<'_>,
    ) -> Result<Answer, Refusal> {
        let mut noise = Noise::start(Start {
            side: Side::Responder,
            name: mode.noise_name(),
            prologue: &mode.prologue(),
            static_secret: own.static_secret,
            ephemeral: draw(random),
            psk0: mode.psk0(),
        })?;
        let said = RequestPayload::decode(&noise.read(request.message)?)?;
        if said.timestamp <= request.accepted {
            return Err(Refusal::Replayed);
        }
        let key: &[u8; MLKEM_PUBLIC_BYTES] = said.kem_key.as_slice().try_into().map_err(|_| Refusal::BadKemKey)?;
        let (ciphertext, psk3) = kem::encapsulate(random, key).ok_or(Refusal::BadKemKey)?;
        let verify = SenderPayload {
            kem_ciphertext: ciphertext.to_vec(),
            certificate: own.certificate.to_vec(),
            card_sequence: own.card_sequence,
            directory_head: request.directory_head.to_vec(),
        };
        let message = noise.write(&verify.encode())?;
        noise.set_psk3(&psk3)?;
        let link = Waiting::new(mode, Side::Responder);
        Ok(Answer { machine: Self { noise, link }, message, timestamp: said.timestamp })
    }

    /// Reads FINALIZE.
    ///
    /// # Errors
    /// Any [`Refusal`]; the machine is gone with it.
    pub(super) fn finalize(
        mut self,
        now: UnixMillis,
        message: &[u8],
        certificates: &mut Certificates,
    ) -> Result<Established, Refusal> {
        let said = SenderPayload::decode_finalize(&self.noise.read(message)?)?;
        let certificate = certificates.verify(&said.certificate, now)?;
        self.link.check_peer(&self.noise, &certificate)?;
        self.link.establish(Side::Responder, certificate.node_id, said, self.noise)
    }
}
