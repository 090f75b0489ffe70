"""docs/protocol.md, sections 0 to 4: notation, statements, methods, offers. Written from that text and wire.proto alone."""

import hashlib
import hmac as hmac_module
import os

from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
NOISE = {
    1: "25519_ChaChaPoly_BLAKE2s",
    2: "25519_AESGCM_SHA256",
    3: "25519_ChaChaPoly_SHA512",
    4: "25519_AESGCM_BLAKE2b",
}
NAMES = {1: "alpha", 2: "beta", 3: "gamma", 4: "delta"}


# Section 0.


def concat(*parts):
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def u64(number):
    return number.to_bytes(8, "big")


def sha256(data):
    return hashlib.sha256(data).digest()


def hmac(key, data):
    return hmac_module.new(key, data, hashlib.sha256).digest()


def extract(salt, material):
    return hmac(salt or bytes(32), material)


def expand(prk, info, length=32):
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac(prk, block + info + bytes([counter]))
        out += block
        counter += 1
    return out[:length]


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode(*fields):
    """Fields as (number, value), ascending; defaults are absent, lists repeat their number."""
    out = b""
    for number, value in fields:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str):
                one = one.encode()
            if isinstance(one, bytes):
                if one or isinstance(value, list):
                    out += varint(number << 3 | 2) + varint(len(one)) + one
            elif one:
                out += varint(number << 3) + varint(int(one))
    return out


def decode(data):
    """All fields, each as a list; only what canonical form allows."""
    fields, at, last = {}, 0, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                assert byte or shift == 7, "a varint that is not minimal"
                return value

    while at < len(data):
        key = number()
        assert key >> 3 >= last, "fields out of order"
        last = key >> 3
        value = number()
        if key & 7 == 2:
            assert at + value <= len(data), "cut off"
            value, at = bytes(data[at : at + value]), at + value
        else:
            assert key & 7 == 0, "unknown wire type"
        fields.setdefault(last, []).append(value)
    return fields


def one(fields, number, default=b""):
    assert len(fields.get(number, [])) <= 1
    return fields.get(number, [default])[0]


# Section 1.


def base58(data):
    number, out = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        out = BASE58[digit] + out
    return out


def did(node):
    return "did:key:z" + base58(b"\xed\x01" + node)


def node_of(text):
    number = 0
    for character in text.removeprefix("did:key:z"):
        number = number * 58 + BASE58.index(character)
    raw = number.to_bytes(34, "big")
    assert raw[:2] == b"\xed\x01"
    return raw[2:]


class Identity:
    def __init__(self):
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.id = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def statement(self, label, payload):
        signature = self.key.sign(label.encode() + b"\0" + payload)
        return encode((1, payload), (2, self.id), (3, signature))


def verified(label, data, signer):
    """The payload of a statement, verified first."""
    fields = decode(data)
    payload, said, signature = (one(fields, number) for number in (1, 2, 3))
    assert said == signer, "another signer"
    ed25519.Ed25519PublicKey.from_public_bytes(said).verify(signature, label.encode() + b"\0" + payload)
    return payload


# X-Wing (draft-connolly-cfrg-xwing-kem): ML-KEM-768 and X25519.


def x_wing_secret(of_kem, of_curve, ciphertext, public):
    return hashlib.sha3_256(of_kem + of_curve + ciphertext + public + b"\\.//^\\").digest()


class Prekey:
    def __init__(self, seed=None):
        expanded = hashlib.shake_256(seed or os.urandom(32)).digest(96)
        self.kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        self.curve = x25519.X25519PrivateKey.from_private_bytes(expanded[64:])
        self.curve_public = self.curve.public_key().public_bytes_raw()
        self.public = self.kem.public_key().public_bytes_raw() + self.curve_public
        self.id = sha256(self.public)[:16]

    def decapsulate(self, enc):
        ciphertext, share = enc[:1088], enc[1088:]
        of_curve = self.curve.exchange(x25519.X25519PublicKey.from_public_bytes(share))
        return x_wing_secret(self.kem.decapsulate(ciphertext), of_curve, share, self.curve_public)


def encapsulate(public):
    kem = mlkem.MLKEM768PublicKey.from_public_bytes(public[:1184])
    of_kem, ciphertext = kem.encapsulate()
    ephemeral = x25519.X25519PrivateKey.generate()
    share = ephemeral.public_key().public_bytes_raw()
    of_curve = ephemeral.exchange(x25519.X25519PublicKey.from_public_bytes(public[1184:]))
    return x_wing_secret(of_kem, of_curve, share, public[1184:]), ciphertext + share


# HPKE (RFC 9180, section 5.1): X-Wing, HKDF-SHA256, ChaCha20-Poly1305.


class Hpke:
    def __init__(self, shared, info, psk=b"", psk_id=b""):
        suite = b"HPKE" + bytes.fromhex("647a00010003")

        def labeled_extract(salt, label, material):
            return extract(salt, b"HPKE-v1" + suite + label + material)

        def labeled_expand(prk, label, about, length):
            return expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + about, length)

        mode = bytes([1 if psk else 0])
        context = mode + labeled_extract(b"", b"psk_id_hash", psk_id) + labeled_extract(b"", b"info_hash", info)
        secret = labeled_extract(shared, b"secret", psk)
        self.cipher = ChaCha20Poly1305(labeled_expand(secret, b"key", context, 32))
        self.nonce = labeled_expand(secret, b"base_nonce", context, 12)
        exporter = labeled_expand(secret, b"exp", context, 32)
        self.export = lambda about, length: labeled_expand(exporter, b"sec", about, length)

    def seal(self, aad, plaintext):
        return self.cipher.encrypt(self.nonce, plaintext, aad)

    def open(self, aad, ciphertext):
        return self.cipher.decrypt(self.nonce, ciphertext, aad)


# Section 4.


class Link:
    def __init__(self, header, base, issuer, acceptor):
        self.id, self.method = one(header, 1), one(header, 2)
        self.epoch = one(header, 3, 0)
        self.not_before, self.not_after = one(header, 4), one(header, 5)
        self.base, self.issuer, self.acceptor = base, issuer, acceptor

    def noise_name(self):
        return "Noise_XXpsk0+psk3_" + NOISE[self.method]

    def key(self, purpose, initiator, responder):
        terms = (self.noise_name().encode(), NAMES[self.method].encode(), u64(self.epoch), self.id)
        return expand(self.base, concat(purpose.encode(), initiator, responder, *terms))


def info(issuer, recipient, prekey_id, prekey, directory):
    return concat(b"\x01", issuer, recipient, prekey_id, sha256(prekey), directory)


def issue(identity, recipient, prekey_id, prekey, directory, method, link_id, now, sequence, life=86_400_000, old=None):
    """An offer and the link that it makes; `old` is the link that it renews."""
    routing = encode((1, 1), (2, identity.id), (3, recipient), (4, prekey_id), (5, old.id if old else b""), (6, now + life))
    shared, enc = encapsulate(prekey)
    psk, psk_id = renewal(old, identity.id, recipient) if old else (b"", b"")
    context = Hpke(shared, info(identity.id, recipient, prekey_id, prekey, directory), psk, psk_id)
    epoch = now // 3_600_000
    header = encode((1, link_id), (2, method), (3, epoch), (4, now), (5, now + life), (6, sequence))
    signed = concat(routing, header, enc, sha256(prekey))
    signature = identity.key.sign(b"openred/1/link\0" + signed)
    body = (len(header).to_bytes(2, "big") + header + signature).ljust(2048, b"\0")
    offer = len(routing).to_bytes(2, "big") + routing + enc + context.seal(routing, body)
    base = expand(context.export(b"openred/1/link-base", 32), sha256(header))
    return offer, Link(decode(header), base, identity.id, recipient)


def renewal(old, sender, recipient):
    return expand(old.base, concat(b"openred/1/renew", old.id, sender, recipient)), old.id


def open_offer(offer, prekey, own, directory, old=None):
    """Opens an offer to this node and checks what section 4 asks for."""
    length = int.from_bytes(offer[:2], "big")
    routing, rest = offer[2 : 2 + length], offer[2 + length :]
    enc, sealed = rest[:1120], rest[1120:]
    said = decode(routing)
    issuer = one(said, 2)
    assert one(said, 1) == 1 and one(said, 3) == own and one(said, 4) == prekey.id and len(sealed) == 2064
    psk, psk_id = renewal(old, issuer, own) if old else (b"", b"")
    assert one(said, 5) == psk_id
    context = Hpke(prekey.decapsulate(enc), info(issuer, own, prekey.id, prekey.public, directory), psk, psk_id)
    body = context.open(routing, sealed)
    length = int.from_bytes(body[:2], "big")
    header, signature, padding = body[2 : 2 + length], body[2 + length : 66 + length], body[66 + length :]
    assert not any(padding)
    signed = concat(routing, header, enc, sha256(prekey.public))
    ed25519.Ed25519PublicKey.from_public_bytes(issuer).verify(signature, b"openred/1/link\0" + signed)
    fields = decode(header)
    assert one(fields, 5) == one(said, 6), "two ends of life"
    base = expand(context.export(b"openred/1/link-base", 32), sha256(header))
    return Link(fields, base, issuer, own)
