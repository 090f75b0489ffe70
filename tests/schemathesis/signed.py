"""What schemathesis loads before it sends: every request is signed as a node signs it (RFC 9421, docs/protocol.md section 7), so that the directory
looks at what stands behind the signature too. Calls without a signature ignore the headers."""

import base64
import hashlib
import os
import time

import schemathesis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from requests.auth import AuthBase

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def did_key(public):
    number = int.from_bytes(b"\xed\x01" + public, "big")
    text = ""
    while number:
        number, digit = divmod(number, 58)
        text = ALPHABET[digit] + text
    return "did:key:z" + text


class Signed(AuthBase):
    def __init__(self):
        self.key = Ed25519PrivateKey.generate()
        self.node = did_key(self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def __call__(self, request):
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
        params = (
            '("@method" "@target-uri" "content-digest")'
            f';created={int(time.time())};nonce="{os.urandom(16).hex()}";alg="ed25519"'
            f';keyid="{self.node}";tag="openred/1/http"'
        )
        base = f'"@method": {request.method}\n"@target-uri": {request.url}\n"content-digest": {digest}\n"@signature-params": {params}'
        signature = base64.b64encode(self.key.sign(base.encode())).decode()
        request.headers["content-digest"] = digest
        request.headers["signature-input"] = f"openred={params}"
        request.headers["signature"] = f"openred=:{signature}:"
        return request


schemathesis.auth.set_from_requests(Signed())
