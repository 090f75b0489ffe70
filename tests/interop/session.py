"""docs/protocol.md, sections 5 and 6: handshake and session, over the independent Noise implementation `noiseprotocol`."""

import http.client
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from noise.connection import Keypair, NoiseConnection
from wire import concat, decode, encode, expand, extract, hmac, one, sha256, u64, verified

ACCEPT, REQUEST, RESPONSE = 0, 1, 2
INITIATOR, RESPONDER = 0, 1
HOUR = 3_600_000
CHUNK = 65_536


def post(endpoint, path, body):
    url = urlsplit(endpoint)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    try:
        connection.request("POST", path, body, {"content-type": "application/octet-stream"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Initiator:
    """One handshake of `identity` over `link`; `forge` may change a message on its way."""

    def __init__(self, identity, link, endpoint, forge=lambda phase, body: body):
        self.identity, self.link, self.endpoint, self.forge = identity, link, endpoint, forge
        self.peer = link.acceptor if link.issuer == identity.id else link.issuer
        self.kem = mlkem.MLKEM768PrivateKey.generate()

    def request(self, counter, now):
        """REQUEST as it goes out."""
        me, peer, link = self.identity.id, self.peer, self.link
        name = link.noise_name()
        static = x25519.X25519PrivateKey.generate()
        public = static.public_key().public_bytes_raw()
        certificate = encode((1, me), (2, link.method), (3, public), (4, now - 3 * HOUR), (5, now + 20 * HOUR))
        self.certificate = self.identity.statement("openred/1/static", certificate)
        self.noise = NoiseConnection.from_name(name.encode())
        self.noise.set_as_initiator()
        # The second one is not known before VERIFY; it is put in its place then.
        self.noise.set_psks(psks=[link.key("openred/1/psk", me, peer), bytes(32)])
        prologue = concat(b"openred/1", b"linked", name.encode(), bytes(8), u64(link.epoch), link.id, me, peer)
        self.noise.set_prologue(prologue)
        self.noise.set_keypair_from_private_bytes(Keypair.STATIC, static.private_bytes_raw())
        self.noise.start_handshake()
        self.kem_key = self.kem.public_key().public_bytes_raw()
        message = bytes(self.noise.write_message(encode((1, now), (2, self.kem_key))))
        direction = bytes([1 if me > peer else 0])
        tag = hmac(link.key("openred/1/tag", me, peer), concat(direction, u64(counter)))[:16]
        mac1 = hmac(link.key("openred/1/mac1", me, peer), concat(tag, message))[:16]
        return encode((1, encode((1, 1), (4, tag), (5, mac1), (7, message))))

    def finalize(self, verify):
        """Reads VERIFY; FINALIZE as it goes out."""
        reply = decode(verify)
        said = decode(bytes(self.noise.read_message(one(reply, 2))))
        ciphertext, certificate = one(said, 1), decode(verified("openred/1/static", one(said, 2), self.peer))
        assert one(certificate, 1) == self.peer and one(certificate, 2) == self.link.method
        shown = self.noise.noise_protocol.keypairs["rs"] or self.noise.noise_protocol.handshake_state.rs
        assert one(certificate, 3) == shown.public_bytes, "certified for another key"
        prk = extract(b"", self.kem.decapsulate(ciphertext))
        psk3 = expand(prk, concat(b"openred/1/psk3", sha256(self.kem_key), sha256(ciphertext)))
        self.noise.noise_protocol.psks[0] = psk3
        payload = encode((2, self.certificate), (3, int(self.card_sequence)))
        message = bytes(self.noise.write_message(payload))
        return encode((2, encode((1, one(reply, 1)), (2, message))))

    card_sequence = 1

    def open(self, counter, now):
        """The whole handshake: a session."""
        request = self.forge("REQUEST", self.request(counter, now))
        status, verify = post(self.endpoint, "/p2p/handshake", request)
        if status != 200:
            return status, verify
        # The same bytes get the same answer.
        assert post(self.endpoint, "/p2p/handshake", request) == (200, verify)
        finalize = self.forge("FINALIZE", self.finalize(verify))
        status, record = post(self.endpoint, "/p2p/handshake", finalize)
        if status != 200:
            return status, record
        assert post(self.endpoint, "/p2p/handshake", finalize) == (200, record)
        return Session(self, record)


class Session:
    def __init__(self, handshake, record):
        noise, link = handshake.noise, handshake.link
        self.endpoint, self.method, self.number = handshake.endpoint, link.method, 0
        self.hash = noise.get_handshake_hash()
        # The raw split, before the two became ciphers.
        halves = (noise.noise_protocol.cipher_state_encrypt.k, noise.noise_protocol.cipher_state_decrypt.k)
        self.secrets = [
            expand(extract(b"", half), concat(b"openred/1/session-secret", role, self.hash))
            for half, role in zip(halves, (b"initiator", b"responder"))
        ]
        self.tags = [expand(secret, b"openred/1/session-tag", 16) for secret in self.secrets]
        self.mutual_link = expand(extract(b"", self.hash), b"openred/1/mutual-link", 16)
        accept = decode(self.unseal(record, ACCEPT, RESPONDER, RESPONDER, 0))
        proof = lambda node: hmac(link.base, concat(b"openred/1/match", node, self.hash[:32]))
        assert one(accept, 1, 0) == 0, "refused"
        assert one(accept, 2) == proof(handshake.peer), "the tokens do not match"
        self.match_proof = proof(handshake.identity.id)

    def cipher(self, sender, kind, opener, number):
        name = (bytes([kind]), bytes([opener]), u64(number))
        key = expand(self.secrets[sender], concat(b"openred/1/stream", *name))
        data = concat(self.tags[sender], *name)
        aead = AESGCM(key) if self.method in (2, 4) else ChaCha20Poly1305(key)
        nonce = lambda position, last: bytes(7) + position.to_bytes(4, "big") + bytes([last])
        return aead, nonce, data

    def seal(self, plaintext, sender, kind, opener, number):
        aead, nonce, data = self.cipher(sender, kind, opener, number)
        full = len(plaintext) // CHUNK
        out = b"".join(
            aead.encrypt(nonce(at, 0), plaintext[at * CHUNK : (at + 1) * CHUNK], data) for at in range(full)
        )
        return out + aead.encrypt(nonce(full, 1), plaintext[full * CHUNK :], data)

    def unseal(self, sealed, kind, opener, sender, number):
        aead, nonce, data = self.cipher(sender, kind, opener, number)
        full = len(sealed) // (CHUNK + 16)
        cut = [sealed[at * (CHUNK + 16) : (at + 1) * (CHUNK + 16)] for at in range(full + 1)]
        return b"".join(aead.decrypt(nonce(at, int(at == full)), chunk, data) for at, chunk in enumerate(cut))

    def ask(self, path, body, change=lambda request: request):
        """One request to module `openred`: status and body of the response, or the carrier's refusal."""
        self.number += 1
        head = encode((1, "openred"), (2, "POST"), (3, path), (5, len(body) + 1))
        sealed = self.seal(len(head).to_bytes(2, "big") + head + body, INITIATOR, REQUEST, INITIATOR, self.number)
        request = self.tags[INITIATOR] + bytes([REQUEST]) + u64(self.number) + sealed
        status, answer = post(self.endpoint, "/p2p/session", change(request))
        if status != 200:
            return None, answer
        plain = self.unseal(answer, RESPONSE, INITIATOR, RESPONDER, self.number)
        length = int.from_bytes(plain[:2], "big")
        return one(decode(plain[2 : 2 + length]), 1), plain[2 + length :]
