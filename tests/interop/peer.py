"""A second implementation, written from docs/protocol.md, against a running node and its directory: over each method it offers
the node a link and takes one from it, completes the handshake, and asks inside the session.

    peer.py NODE ENDPOINT DIRECTORY ORIGIN REQUEST…

NODE and DIRECTORY are did:keys, ENDPOINT and ORIGIN their URLs; REQUEST… is the command by which the node's operator requests a
link, to which the peer's did:key is appended. Prints a line for each thing that held; the first that does not ends it."""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime

from session import Initiator, Session
from wire import NAMES, Identity, Prekey, did, encode, decode, issue, node_of, one, open_offer, sha256, verified

HOUR = 3_600_000


def now():
    return time.time_ns() // 1_000_000


class Peer:
    """A node of this language that speaks one method. Its clock may be off, by `ahead` milliseconds."""

    def __init__(self, method, directory, origin, ahead=0):
        self.identity, self.prekey, self.method, self.ahead = Identity(), Prekey(), method, ahead
        self.directory, self.origin, self.cursor = directory, origin, 0
        self.corrected = 0
        self.sequence = self.now()

    def now(self):
        return now() + self.ahead

    def call(self, method, path, body=None):
        """A call of section 7; a directory that takes the clock amiss says what it is, once."""
        for last in (False, True):
            try:
                return self.call_once(method, path, body)
            except urllib.error.HTTPError as refused:
                date = refused.headers.get("date")
                if last or date is None:
                    raise SystemExit(f"{method} {path}: {refused.code} {refused.read().decode()}")
                self.corrected = parsedate_to_datetime(date).timestamp() - self.now() // 1000

    def call_once(self, method, path, body):
        """Signed by RFC 9421."""
        data = b"" if body is None else json.dumps(body).encode()
        target = self.origin + "/api/v3" + path
        digest = f"sha-256=:{base64.b64encode(sha256(data)).decode()}:"
        params = (
            '("@method" "@target-uri" "content-digest")'
            f';created={int(self.now() // 1000 + self.corrected)};nonce="{os.urandom(16).hex()}";alg="ed25519"'
            f';keyid="{did(self.identity.id)}";tag="openred/1/http"'
        )
        signed = f'"@method": {method}\n"@target-uri": {target}\n"content-digest": {digest}\n"@signature-params": {params}'
        signature = base64.b64encode(self.identity.key.sign(signed.encode())).decode()
        headers = {
            "content-digest": digest,
            "content-type": "application/json",
            "signature-input": f"openred={params}",
            "signature": f"openred=:{signature}:",
        }
        request = urllib.request.Request(target, data or None, headers, method=method)
        with urllib.request.urlopen(request, timeout=70) as answer:
            return json.load(answer)

    def register(self):
        prekey = encode((1, self.prekey.id), (2, self.prekey.public), (3, self.now() - HOUR), (4, self.now() + 100 * HOUR))
        card = encode(
            (1, 1),
            (2, self.identity.id),
            (3, self.sequence),
            (4, self.now()),
            (5, self.now() + 24 * HOUR),
            (10, 1 << (self.method - 1)),
            (11, prekey),
        )
        statement = self.identity.statement("openred/1/card", card)
        self.call("POST", "/nodes/register", {"card": base64.b64encode(statement).decode()})

    def card_of(self, node):
        view = self.call("GET", f"/nodes/{did(node)}")
        card = decode(verified("openred/1/card", base64.b64decode(view["card"]), node))
        assert one(card, 2) == node and one(card, 10) >> (self.method - 1) & 1
        return card

    def received(self, kind):
        """The next thing of a kind that comes through the directory."""
        for _ in range(20):
            answer = self.call("GET", f"/tokens/receive?wait=20&after={self.cursor}")
            self.cursor = answer["cursor"]
            for item in answer["items"]:
                if item["kind"] == kind:
                    return item
        raise SystemExit(f"no {kind} came")

    def offer(self, node):
        """Offers the node a link: the link, once its receipt is here."""
        prekey = decode(one(self.card_of(node), 11))
        assert one(prekey, 1) == sha256(one(prekey, 2))[:16]
        offer, link = issue(
            self.identity,
            node,
            one(prekey, 1),
            one(prekey, 2),
            node_of(self.directory),
            self.method,
            os.urandom(16),
            self.now(),
            self.now(),
        )
        routed = self.call("POST", "/tokens/request-connection", {"offer": base64.b64encode(offer).decode()})
        receipt = verified("openred/1/receipt", base64.b64decode(routed["receipt"]), node_of(self.directory))
        self.check_receipt(receipt, 2, offer, node)
        receipt = verified("openred/1/receipt", base64.b64decode(self.received("receipt")["payload"]), node)
        self.check_receipt(receipt, 1, offer, node)
        return link

    def check_receipt(self, receipt, kind, offer, node):
        said = decode(receipt)
        expected = (kind, sha256(offer), self.identity.id, node)
        assert tuple(one(said, number) for number in (1, 2, 3, 4)) == expected

    def take(self, node):
        """Takes the offer that the node makes."""
        item = self.received("offer")
        assert item["from"] == did(node)
        offer = base64.b64decode(item["payload"])
        link = open_offer(offer, self.prekey, self.identity.id, node_of(self.directory))
        assert link.issuer == node and link.method == self.method
        receipt = encode((1, 1), (2, sha256(offer)), (3, node), (4, self.identity.id), (5, self.now()))
        statement = self.identity.statement("openred/1/receipt", receipt)
        self.call("POST", "/tokens/acknowledge", {"receipt": base64.b64encode(statement).decode()})
        return link


def flip(at):
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def refused(peer, link, endpoint):
    """What was changed on its way is refused, all of it alike."""
    answers = []
    for counter, phase in ((1, "REQUEST"), (2, "FINALIZE")):
        forge = lambda name, body: flip(len(body) - 1)(body) if name == phase else body
        answers.append(Initiator(peer.identity, link, endpoint, forge).open(counter, peer.now()))
    stranger = Initiator(Identity(), link, endpoint)
    answers.append(stranger.open(3, peer.now()))
    assert answers == [(403, b"")] * 3, answers


def converse(peer, link, endpoint, node):
    handshake = Initiator(peer.identity, link, endpoint)
    session = handshake.open(4, peer.now())
    assert isinstance(session, Session), session
    # The initiator's half of the match proof.
    assert session.ask("/match", session.match_proof) == (204, b"")
    for body in (b"", b"hello", os.urandom(65_536), os.urandom(150_000)):
        assert session.ask("/echo", body) == (200, body)
    status, listed = session.ask("/link/sync", b"")
    entry = decode(one(decode(listed), 1))
    assert status == 200 and (one(entry, 1), one(entry, 2)) == (link.id, 3)
    # A number is taken once; what does not authenticate is refused, and all alike.
    session.number -= 1
    assert session.ask("/echo", b"again")[0] is None
    assert session.ask("/echo", b"changed", flip(40))[0] is None
    assert session.ask("/echo", b"and on") == (200, b"and on")
    return session


def renewed(peer, link, session, endpoint, node):
    """Renews the link inside the session, and talks over the new one."""
    prekey = decode(one(peer.card_of(node), 11))
    life = link.not_after - link.not_before
    offer, new = issue(
        peer.identity,
        node,
        one(prekey, 1),
        one(prekey, 2),
        node_of(peer.directory),
        peer.method,
        os.urandom(16),
        peer.now(),
        peer.now(),
        life,
        link,
    )
    status, receipt = session.ask("/link/offer", node_of(peer.directory) + offer)
    assert status == 200, status
    peer.check_receipt(verified("openred/1/receipt", receipt, node), 1, offer, node)
    opened = Initiator(peer.identity, new, endpoint).open(1, peer.now())
    assert isinstance(opened, Session) and opened.ask("/echo", b"renewed") == (200, b"renewed")


def clock_off(node, endpoint, directory, origin):
    """A clock two hours off still registers, links and connects (the seconds are those that this takes)."""
    for ahead in (2 * HOUR - 60_000, 60_000 - 2 * HOUR):
        peer = Peer(1, directory, origin, ahead)
        peer.register()
        assert abs(peer.corrected * 1000 + ahead) < 5_000
        link = peer.offer(node)
        session = converse(peer, link, endpoint, node)
        renewed(peer, link, session, endpoint, node)
        print(f"ok clock {ahead // 1000} s off: registered, linked, connected, renewed", flush=True)


def main():
    node_text, endpoint, directory, origin, *request = sys.argv[1:]
    node = node_of(node_text)
    clock_off(node, endpoint, directory, origin)
    for method, name in NAMES.items():
        peer = Peer(method, directory, origin)
        peer.register()
        link = peer.offer(node)
        refused(peer, link, endpoint)
        session = converse(peer, link, endpoint, node)
        renewed(peer, link, session, endpoint, node)
        print(f"ok {name}: offered, receipt, handshake, session, renewal; mutual link {session.mutual_link.hex()}", flush=True)

        peer = Peer(method, directory, origin)
        peer.register()
        subprocess.run([*request, did(peer.identity.id)], check=True, stdout=subprocess.DEVNULL)
        link = peer.take(node)
        converse(peer, link, endpoint, node)
        print(f"ok {name}: accepted, handshake, session", flush=True)


if __name__ == "__main__":
    main()
