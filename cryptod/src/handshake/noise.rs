//! One Noise handshake state: `XXpsk0+psk3` over a link, `XXpsk3` without one. Messages in, messages out, then two raw keys.
//!
//! It knows nothing of payloads, certificates or links; `initiator` and `responder` do. The library's state keeps keys in
//! plain arrays, so it lives boxed in one place and is overwritten in place before that place is freed.

use openred_proto::limits::NOISE_BYTES;
use openred_proto::secret::Secret;
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::resolver::Resolver;

/// Who sends the first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Sends REQUEST and FINALIZE.
    Initiator,
    /// Sends VERIFY.
    Responder,
}

/// Noise refused: a message that does not authenticate, is malformed or too long, or a key that contributes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoiseRefused;

/// What a Noise state starts from.
pub(crate) struct Start<'a> {
    pub(crate) side: Side,
    pub(crate) name: &'static str,
    pub(crate) prologue: &'a [u8],
    pub(crate) static_secret: &'a Secret<32>,
    pub(crate) ephemeral: Secret<32>,
    pub(crate) psk0: Option<&'a Secret<32>>,
}

/// What both sides hold after the last message.
pub(crate) struct Split {
    /// Key material of the direction initiator → responder.
    pub(crate) from_initiator: Secret<32>,
    /// Key material of the direction responder → initiator.
    pub(crate) from_responder: Secret<32>,
    /// The final handshake hash: 32 or 64 bytes, by suite.
    pub(crate) hash: Vec<u8>,
}

/// A handshake in progress.
pub(crate) struct Noise {
    state: Box<HandshakeState>,
}

impl Noise {
    pub(crate) fn start(start: Start<'_>) -> Result<Self, NoiseRefused> {
        let params = start.name.parse().map_err(|_| NoiseRefused)?;
        let mut builder = Builder::with_resolver(params, Box::new(Resolver::new(start.ephemeral)))
            .local_private_key(start.static_secret.expose())
            .and_then(|builder| builder.prologue(start.prologue))
            .map_err(|_| NoiseRefused)?;
        if let Some(psk0) = start.psk0 {
            builder = builder.psk(0, psk0.expose()).map_err(|_| NoiseRefused)?;
        }
        let built = match start.side {
            Side::Initiator => builder.build_initiator(),
            Side::Responder => builder.build_responder(),
        };
        Ok(Self { state: Box::new(built.map_err(|_| NoiseRefused)?) })
    }

    /// The next message, carrying `payload`.
    pub(crate) fn write(&mut self, payload: &[u8]) -> Result<Vec<u8>, NoiseRefused> {
        let mut message = vec![0; NOISE_BYTES];
        let length = self.state.write_message(payload, &mut message).map_err(|_| NoiseRefused)?;
        message.truncate(length);
        Ok(message)
    }

    /// The payload of the peer's next message.
    pub(crate) fn read(&mut self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, NoiseRefused> {
        if message.len() > NOISE_BYTES {
            return Err(NoiseRefused);
        }
        let mut payload = Zeroizing::new(vec![0; message.len()]);
        let length = self.state.read_message(message, &mut payload).map_err(|_| NoiseRefused)?;
        payload.truncate(length);
        Ok(payload)
    }

    /// Sets the post-quantum pre-shared key, which only the exchange itself yields (PROTOCOL 5).
    pub(crate) fn set_psk3(&mut self, psk3: &Secret<32>) -> Result<(), NoiseRefused> {
        self.state.set_psk(3, psk3.expose()).map_err(|_| NoiseRefused)
    }

    /// The peer's static key, once its message with it was read.
    pub(crate) fn remote_static(&self) -> Option<[u8; 32]> {
        self.state.get_remote_static().and_then(|key| key.try_into().ok())
    }

    /// Ends the handshake: the raw split and the final hash.
    pub(crate) fn split(mut self) -> Result<Split, NoiseRefused> {
        if !self.state.is_handshake_finished() {
            return Err(NoiseRefused);
        }
        let keys = Zeroizing::new(self.state.dangerously_get_raw_split());
        Ok(Split {
            from_initiator: Secret::new(keys.0),
            from_responder: Secret::new(keys.1),
            hash: self.state.get_handshake_hash().to_vec(),
        })
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        // The cheapest state that can be built holds no secret; written over the old one, it takes chaining key and PSKs with it.
        let params = "Noise_NN_25519_ChaChaPoly_BLAKE2s".parse().expect("a name of the Noise specification");
        let blank = Builder::with_resolver(params, Box::new(Resolver::new(Secret::new([0; 32])))).build_initiator();
        *self.state = blank.expect("a pattern without keys needs nothing");
        std::hint::black_box(&*self.state);
    }
}

#[cfg(test)]
#[path = "noise_vectors.rs"]
mod vectors;
