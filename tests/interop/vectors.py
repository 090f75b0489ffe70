"""Computes proto/vectors/wire/ from docs/protocol.md and wire.proto: right ones, and for each the ways in which it may be wrong.

    vectors.py FOLDER [--check]     writes the files; with --check only says whether they are as they would be written"""

import base64
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519

import log
from wire import NAMES, Identity, Link, Prekey, did, encode, open_offer, sha256, varint

NOW = 1_800_000_000_000
HOUR = 3_600_000
DAY = 24 * HOUR
SOURCE = "Computed from docs/protocol.md and wire.proto by tests/interop/vectors.py; no code of this project's took part."


def identity_of(seed):
    made = Identity.__new__(Identity)
    made.key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    made.id = made.key.public_key().public_bytes_raw()
    return made


ALICE, BOB, CAROL = (identity_of(bytes([seed]) * 32) for seed in (1, 2, 3))


def filler(length, seed=0):
    out = b""
    while len(out) < length:
        out += sha256(bytes([seed]) + len(out).to_bytes(4, "big"))
    return out[:length]


def field(number, value):
    return encode((number, [value])) if isinstance(value, (bytes, str)) else varint(number << 3) + varint(value)


def unfit(fields):
    """Encodings of the same message that are not canonical."""
    good = encode(*fields)
    present = [(number, one) for number, value in fields for one in (value if isinstance(value, list) else [value]) if one]
    parts = [field(number, one) for number, one in present]
    assert b"".join(parts) == good
    yield "a trailing byte", good + b"\0"
    yield "an unknown field", good + field(100, 1)
    yield "cut by a byte", good[:-1]
    lists = [number for number, value in fields if isinstance(value, list)]
    if len(parts) > 1 and present[0][0] != present[1][0]:
        yield "two fields swapped", parts[1] + parts[0] + b"".join(parts[2:])
    if present and present[-1][0] not in lists:
        yield "a field twice", good + parts[-1]
    if present:
        number, one = present[0]
        kind = 0 if isinstance(one, int) else 2
        yield "a key that is not minimal", bytes([number << 3 | kind | 128, 0]) + parts[0][1:] + b"".join(parts[1:])
        other = varint(number << 3 | (2 - kind)) + (b"\1\0" if kind == 0 else b"\1")
        yield "another wire type", other + b"".join(parts[1:])
    numbers = {number for number, _ in present}
    for number, value in fields:
        if number not in numbers and not isinstance(value, list):
            zero = field(number, 0) if isinstance(value, int) else field(number, b"")
            before = b"".join(part for (at, _), part in zip(present, parts) if at < number)
            yield f"field {number} with an explicit default", before + zero + good[len(before) :]
            break


def replaced(fields, number, value):
    return [(at, value if at == number else was) for at, was in fields]


class File:
    def __init__(self):
        self.cases = []

    def right(self, why, data, **more):
        self.cases.append({"accept": True, "why": why, "bytes": data.hex(), **more})

    def wrong(self, why, data, **more):
        self.cases.append({"accept": False, "why": why, "bytes": data.hex(), **more})

    def plain(self, why, fields, **more):
        """A message that nobody signs, and its unfit encodings."""
        self.right(why, encode(*fields), **more)
        for reason, data in unfit(fields):
            self.wrong(f"{why}: {reason}", data, **more)


def signed(file, label, owner, why, fields, **more):
    """A right statement; then what a signature does not make right."""
    payload = encode(*fields)
    good = owner.statement(label, payload)
    file.right(why, good, **more)
    for reason, data in unfit(fields):
        file.wrong(f"{why}: {reason}, and signed", owner.statement(label, data), **more)
    signature = owner.key.sign(label.encode() + b"\0" + payload)
    for reason, data in unfit([(1, payload), (2, owner.id), (3, signature)]):
        file.wrong(f"{why}: the statement has {reason}", data, **more)
    file.wrong(f"{why}: under another label", owner.statement("openred/1/beacon", payload), **more)
    file.wrong(f"{why}: signed by another", CAROL.statement(label, payload), **more)
    forged = encode((1, payload), (2, owner.id), (3, CAROL.key.sign(label.encode() + b"\0" + payload)))
    file.wrong(f"{why}: another's signature", forged, **more)
    for at in (0, len(payload) // 2, len(payload) - 1):
        changed = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
        file.wrong(f"{why}: bit of byte {at} flipped", encode((1, changed), (2, owner.id), (3, signature)), **more)
    for at in (0, 31, 32, 63):
        changed = signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
        file.wrong(f"{why}: bit of the signature's byte {at} flipped", encode((1, payload), (2, owner.id), (3, changed)), **more)
    # RFC 8032: S below the group's order, or one message has two signatures.
    order = 2**252 + 27742317777372353535851937790883648493
    high = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    file.wrong(f"{why}: a scalar that is not canonical", encode((1, payload), (2, owner.id), (3, signature[:32] + high)), **more)
    small = bytes([1]) + bytes(31)
    file.wrong(f"{why}: a signer of small order", encode((1, payload), (2, small), (3, small + bytes(32))), **more)


def prekey(key=filler(1216), **change):
    fields = [(1, sha256(key)[:16]), (2, key), (3, NOW - 3 * HOUR), (4, NOW + 7 * DAY)]
    for number, value in change.items():
        fields = replaced(fields, int(number[1:]), value)
    return encode(*fields)


def card(**change):
    fields = [
        (1, 1),
        (2, ALICE.id),
        (3, NOW),
        (4, NOW),
        (5, NOW + DAY),
        (6, ["http://192.0.2.1:7440", "https://node.example/openred"]),
        (7, "Alice"),
        (8, "north"),
        (9, 1),
        (10, 15),
        (11, prekey()),
        (12, []),
    ]
    for number, value in change.items():
        fields = replaced(fields, int(number[1:]), value)
    return fields


def word(old, new, sequence, step=1):
    return old.statement("openred/1/succession", encode((1, step), (2, old.id), (3, new.id), (4, sequence)))


def cards():
    file, label, now = File(), "openred/1/card", {"now": NOW}
    signed(file, label, ALICE, "a card with everything", card(), **now)
    small = card(f6=[], f7="", f8="", f9=0, f10=1)
    file.right("a card behind NAT", ALICE.statement(label, encode(*small)), **now)
    led = card(f12=[word(BOB, CAROL, NOW - 2), word(CAROL, ALICE, NOW - 1)])
    file.right("a card with a lineage", ALICE.statement(label, encode(*led)), **now)
    good = ALICE.statement(label, encode(*card()))
    file.right("within the grace of its end", good, now=NOW + DAY + 3 * HOUR)
    file.right("two hours ahead", good, now=NOW - 2 * HOUR)
    file.wrong("past the grace of its end", good, now=NOW + DAY + 3 * HOUR + 1)
    file.wrong("its sequence is over two hours ahead", good, now=NOW - 2 * HOUR - 1)
    for why, change in {
        "another version": {"f1": 2},
        "no version": {"f1": 0},
        "of another node": {"f2": BOB.id},
        "a short node id": {"f2": ALICE.id[:31]},
        "over 8 days": {"f5": NOW + 8 * DAY + 3 * HOUR + 1},
        "nine endpoints": {"f6": [f"http://192.0.2.{number}" for number in range(9)]},
        "an endpoint of another scheme": {"f6": ["ftp://192.0.2.1"]},
        "an endpoint with a user part": {"f6": ["http://user@192.0.2.1"]},
        "an endpoint with a query": {"f6": ["http://192.0.2.1/?a"]},
        "an endpoint with a fragment": {"f6": ["http://192.0.2.1/#a"]},
        "an endpoint with a space": {"f6": ["http://192.0.2.1/ a"]},
        "an empty endpoint": {"f6": [b""]},
        "a name that is not UTF-8": {"f7": b"\xff"},
        "a name with a line end": {"f7": "a\nb"},
        "a listing that is neither": {"f9": 2},
        "an unknown method": {"f10": 16},
        "no prekey": {"f11": b""},
        "a prekey id of another key": {"f11": prekey(f1=bytes(15) + b"\1")},
        "a short prekey": {"f11": prekey(key=filler(1215))},
        "a lineage that leads elsewhere": {"f12": [word(BOB, CAROL, NOW - 2)]},
        "a lineage with a gap": {"f12": [word(BOB, BOB, NOW - 2), word(CAROL, ALICE, NOW - 1)]},
        "a lineage of five": {"f12": [word(BOB, ALICE, NOW - 5 + number) for number in range(5)]},
        "longer than 4 KiB": {"f6": ["http://192.0.2.1/" + "a" * 220] * 8, "f12": [filler(256)] * 4},
    }.items():
        file.wrong(why, ALICE.statement(label, encode(*card(**change))), **now)
    return file


def certificates():
    file, label, now = File(), "openred/1/static", {"now": NOW}
    fields = [(1, ALICE.id), (2, 4), (3, filler(32)), (4, NOW - 3 * HOUR), (5, NOW + DAY)]
    signed(file, label, ALICE, "a certificate", fields, **now)
    good = ALICE.statement(label, encode(*fields))
    file.right("at the end of its grace", good, now=NOW + DAY + 3 * HOUR)
    file.right("at the beginning of its grace", good, now=NOW - 6 * HOUR)
    file.wrong("past its grace", good, now=NOW + DAY + 3 * HOUR + 1)
    file.wrong("before its grace", good, now=NOW - 6 * HOUR - 1)
    for why, number, value in [
        ("of another node", 1, BOB.id),
        ("an unknown method", 2, 5),
        ("no method", 2, 0),
        ("a short key", 3, filler(31)),
        ("a long key", 3, filler(33)),
        ("a window of more than a day and its backdating", 5, NOW + DAY + 1),
    ]:
        file.wrong(why, ALICE.statement(label, encode(*replaced(fields, number, value))), **now)
    return file


def receipts():
    file, label = File(), "openred/1/receipt"
    fields = [(1, 1), (2, filler(32)), (3, ALICE.id), (4, BOB.id), (5, NOW)]
    by = {"signer": BOB.id.hex()}
    signed(file, label, BOB, "the recipient's", fields, **by)
    routed = BOB.statement(label, encode(*replaced(replaced(fields, 1, 2), 4, CAROL.id)))
    file.right("a directory's, about another recipient", routed, **by)
    file.wrong("as another's", BOB.statement(label, encode(*fields)), signer=CAROL.id.hex())
    for why, number, value in [
        ("accepted for another", 4, CAROL.id),
        ("of no kind", 1, 0),
        ("of an unknown kind", 1, 3),
        ("a short token id", 2, filler(31)),
        ("no issuer", 3, b""),
    ]:
        file.wrong(why, BOB.statement(label, encode(*replaced(fields, number, value))), **by)
    return file


def successions():
    file, label = File(), "openred/1/succession"
    fields = [(1, 1), (2, ALICE.id), (3, BOB.id), (4, NOW)]
    signed(file, label, ALICE, "a successor", fields)
    file.right("taken back", ALICE.statement(label, encode(*replaced(fields, 1, 2))))
    for why, number, value in [
        ("of no step", 1, 0),
        ("of an unknown step", 1, 3),
        ("of oneself", 3, ALICE.id),
        ("for another", 2, CAROL.id),
        ("nobody", 3, b""),
    ]:
        file.wrong(why, ALICE.statement(label, encode(*replaced(fields, number, value))))
    return file


def module_words():
    file, label = File(), "openred/1/module"
    body = filler(100)
    fields = [(1, "greet"), (2, "words.v1"), (3, sha256(body)), (4, len(body)), (5, NOW)]
    said = {"signer": ALICE.id.hex(), "module": "greet", "domain": "words.v1", "body": body.hex()}
    signed(file, label, ALICE, "a word", fields, **said)
    good = ALICE.statement(label, encode(*fields))
    empty = replaced(replaced(fields, 3, sha256(b"")), 4, 0)
    file.right("of nothing", ALICE.statement(label, encode(*empty)), **{**said, "body": ""})
    for why, change in [
        ("of another node", {"signer": BOB.id.hex()}),
        ("of another module", {"module": "other"}),
        ("in another domain", {"domain": "words.v2"}),
        ("of another body", {"body": filler(100, 1).hex()}),
        ("of a part of it", {"body": body[:99].hex()}),
    ]:
        file.wrong(why, good, **{**said, **change})
    for why, number, value in [
        ("a module that is none", 1, "../greet"),
        ("no domain", 2, ""),
        ("a domain in capitals", 2, "Words"),
        ("a short digest", 3, filler(31)),
        ("another length", 4, 99),
    ]:
        file.wrong(why, ALICE.statement(label, encode(*replaced(fields, number, value))), **said)
    return file


def methods():
    """Descriptions that hold the floor, with their ids; what does not decode; and what is below the floor, with what it is below it in."""
    file = File()
    floor = [(1, 1), (2, "omega"), (3, 1), (4, 1), (5, 1), (6, 256), (7, 128), (8, 1), (9, 1), (10, b"\1")]
    floor += [(11, ["psk", "tag", "mac1"]), (12, 3600)]

    def good(why, fields):
        data = encode(*fields)
        file.right(why, data, id=sha256(data)[:16].hex())

    good("the floor", floor)
    for reason, data in unfit(floor):
        file.wrong(f"the floor: {reason}", data)
    change = lambda *pairs: [(at, dict(pairs).get(at, was)) for at, was in floor]
    good("AES-GCM with SHA-256", change((5, 2), (8, 2)))
    good("ChaCha20-Poly1305 with SHA-512", change((8, 3), (9, 2)))
    good("every transform", change((10, b"\4\3\2\1")))
    good("labels of its own", change((11, ["one", "two-2", "three"])))
    good("an epoch of seven days", change((12, 7 * 86400)))
    file.wrong("too long", encode(*change((2, "o" * 256))))
    for why, named, *pairs in [
        ("no name", "name", (2, "")),
        ("a name in capitals", "name", (2, "Omega")),
        ("no agreement", "agreement", (3, 0)),
        ("an agreement that there is not", "agreement", (3, 2)),
        ("nothing post-quantum", "post-quantum", (4, 0)),
        ("another post-quantum part", "post-quantum", (4, 2)),
        ("no AEAD", "aead", (5, 0)),
        ("an AEAD that there is not", "aead", (5, 3)),
        ("keys of 128 bits", "key-length", (6, 128)),
        ("keys of 512 bits", "key-length", (6, 512)),
        ("tags of 64 bits", "tag-length", (7, 64)),
        ("a hash that there is not", "hash", (8, 5)),
        ("AES-GCM with BLAKE2s", "suite", (5, 2)),
        ("a derivation that there is not", "kdf", (9, 3)),
        ("no transform", "transform", (10, b"")),
        ("a transform that there is not", "transform", (10, b"\1\5")),
        ("a transform twice", "transform-repeated", (10, b"\2\1\2")),
        ("five transforms", "too-many-transforms", (10, b"\1\2\3\4\1")),
        ("two labels", "purposes", (11, ["psk", "tag"])),
        ("four labels", "purposes", (11, ["psk", "tag", "mac1", "more"])),
        ("one label for two purposes", "purpose-reused", (11, ["psk", "psk", "mac1"])),
        ("an epoch under an hour", "schedule", (12, 3599)),
        ("an epoch over seven days", "schedule", (12, 7 * 86400 + 1)),
    ]:
        file.wrong(why, encode(*change(*pairs)), weak=f"method-{named}")
    return file


def payloads():
    file = File()
    request = [(1, NOW), (2, filler(1184))]
    file.plain("REQUEST", request, phase="REQUEST")
    for why, number, value in [("a short key", 2, filler(1183)), ("a long key", 2, filler(1185)), ("no key", 2, b"")]:
        file.wrong(f"REQUEST: {why}", encode(*replaced(request, number, value)), phase="REQUEST")
    verify = [(1, filler(1088)), (2, filler(180, 1)), (3, NOW), (4, filler(32, 2))]
    file.plain("VERIFY", verify, phase="VERIFY")
    for why, number, value in [
        ("no ciphertext", 1, b""),
        ("a short ciphertext", 1, filler(1087)),
        ("a long ciphertext", 1, filler(1089)),
        ("a short directory head", 4, filler(31)),
        ("a long directory head", 4, filler(33)),
    ]:
        file.wrong(f"VERIFY: {why}", encode(*replaced(verify, number, value)), phase="VERIFY")
    finalize = [(1, b""), (2, filler(180, 1)), (3, NOW), (4, b"")]
    file.plain("FINALIZE", finalize, phase="FINALIZE")
    file.right("FINALIZE with a head", encode(*replaced(finalize, 4, filler(32))), phase="FINALIZE")
    file.wrong("FINALIZE: a ciphertext", encode(*replaced(finalize, 1, filler(1088))), phase="FINALIZE")
    return file


def heads():
    file = File()
    request = [(1, "files"), (2, "POST"), (3, "/put?name=a"), (4, "text/plain"), (5, 43), (6, 30_000), (7, filler(16))]
    file.plain("a request's", request, head="request")
    file.right("a request's, as short as can be", encode((1, "a"), (2, "GET"), (3, "/")), head="request")
    for why, number, value in [
        ("a long module", 1, "m" * 64),
        ("a long method", 2, "M" * 17),
        ("a long path", 3, "/" * 1025),
        ("a path with a line end", 3, "/a\n"),
        ("a path that is not UTF-8", 3, b"\xff"),
        ("a long media type", 4, "t" * 129),
        ("a long idempotency key", 7, filler(65)),
    ]:
        file.wrong(f"a request's: {why}", encode(*replaced(request, number, value)), head="request")
    response = [(1, 200), (2, "text/plain"), (3, 1)]
    file.plain("a response's", response, head="response")
    file.right("a response's, length unknown", encode((1, 204)), head="response")
    for why, number, value in [
        ("no status", 1, 0),
        ("a status of two digits", 1, 99),
        ("a status of four digits", 1, 1000),
        ("a status beyond 16 bits", 1, 65_736),
        ("a long media type", 2, "t" * 129),
    ]:
        file.wrong(f"a response's: {why}", encode(*replaced(response, number, value)), head="response")
    accept = [(1, 0), (2, filler(32))]
    file.plain("ACCEPT", accept, head="accept")
    file.right("ACCEPT that refuses", encode((1, 3)), head="accept")
    file.wrong("ACCEPT: a long proof", encode((2, filler(33))), head="accept")
    return file


def signatures():
    """RFC 9421 as section 7 takes it."""
    cases = []
    nonce, target, body = filler(16).hex(), "https://directory.example/api/v3/nodes/register", b'{"card":""}'

    def params(created=NOW // 1000, nonce=nonce, key=did(ALICE.id), tail=""):
        return (
            f'("@method" "@target-uri" "content-digest");created={created};nonce="{nonce}";alg="ed25519"'
            f';keyid="{key}";tag="openred/1/http"{tail}'
        )

    def case(why, accept=True, method="POST", target=target, body=body, signed=None, name="openred", by=ALICE, shown=None):
        signed = signed or params()
        digest = f"sha-256=:{base64.b64encode(sha256(body)).decode()}:"
        base = f'"@method": POST\n"@target-uri": {CASE_TARGET}\n"content-digest": {digest}\n"@signature-params": {signed}'
        signature = base64.b64encode(by.key.sign(base.encode())).decode()
        cases.append(
            {
                "accept": accept,
                "why": why,
                "method": method,
                "target_uri": target,
                "body": body.hex(),
                "content_digest": digest,
                "signature_input": shown or f"{name}={signed}",
                "signature": f"{name}=:{signature}:",
            }
        )

    CASE_TARGET = target
    case("a registration")
    case("an empty body", body=b"")
    case("another method", False, method="PUT")
    case("another target", False, target=target + "?a")
    case("another name", False, name="sig1")
    case("another's key", False, by=BOB)
    case("a parameter more", False, signed=params(tail=";expires=1"))
    case("a parameter less", False, signed=params().replace(';alg="ed25519"', ""))
    case("another algorithm", False, signed=params().replace("ed25519", "rsa-v1_5-sha256"))
    case("another tag", False, signed=params().replace("openred/1/http", "openred/2/http"))
    case("parameters in another order", False, signed=params().replace(';alg="ed25519"', "") + ';alg="ed25519"')
    case("a component more", False, signed=params().replace('"content-digest"', '"content-digest" "date"'))
    case("a component less", False, signed=params().replace(' "content-digest"', ""))
    case("a time that is not minimal", False, signed=params(created=f"0{NOW // 1000}"))
    case("a short nonce", False, signed=params(nonce=nonce[:30]))
    case("a nonce in capitals", False, signed=params(nonce=nonce[:-1] + "A"))
    case("a key id that is none", False, signed=params(key="did:key:z6Mk"))
    case("two signatures", False, shown=f"openred={params()}, other={params()}")
    case("another time than was signed", False, shown=f"openred={params(created=NOW // 1000 + 1)}")
    changed = dict(cases[0], accept=False, why="another body than was signed", body=b"{}".hex())
    cases.append(changed)
    broken = dict(cases[0], accept=False, why="a signature that is not base64", signature="openred=:????:")
    cases.append(broken)
    file = File()
    file.cases = cases
    return file


def log_heads():
    """Signed heads of directories' logs; `directory` is whose it is taken to be."""
    file, origin = File(), did(ALICE.id)
    top = filler(32)
    for why, size, at in [("of an empty log", 0, sha256(b"")), ("of one entry", 1, top), ("of many", 4_000_000_000, top), ("of the longest", 2**62, top)]:
        file.right(why, log.note(ALICE, size, at).encode(), directory=ALICE.id.hex(), size=size, root=at.hex())
    good = log.note(ALICE, 77, top)
    wrong = lambda why, note, owner=ALICE: file.wrong(why, note if isinstance(note, bytes) else note.encode(), directory=owner.id.hex())
    body = log.text(origin, 77, top)
    wrong("of another directory", good, BOB)
    wrong("under another's name", log.note(ALICE, 77, top, body=log.text(did(BOB.id), 77, top)), BOB)
    wrong("another's signature", log.note(ALICE, 77, top, key=BOB))
    wrong("the key has another name than the origin", log.note(ALICE, 77, top, name="directory.example"))
    wrong("another kind of key", log.note(ALICE, 77, top, kind=4))
    wrong("another size than the signed one", good.replace("\n77\n", "\n78\n"))
    for why, bent in [
        ("a leading zero", body.replace("\n77\n", "\n077\n")),
        ("a sign before the size", body.replace("\n77\n", "\n+77\n")),
        ("a size that is too large", log.text(origin, 2**62 + 1, top)),
        ("a size beyond 64 bits", log.text(origin, 2**64, top)),
        ("no size", body.replace("\n77\n", "\n\n")),
        ("a size of another base", body.replace("\n77\n", "\n0x4d\n")),
        ("a root that is too short", log.text(origin, 77, top[:31])),
        ("a root that is too long", log.text(origin, 77, top + b"\0")),
        ("a root without its padding", body.replace("=\n", "\n")),
        ("a fourth line", body + "more\n"),
        ("an origin that is a host name", body.replace(origin, "directory.example")),
        ("a space behind the origin", body.replace(origin, origin + " ")),
    ]:
        wrong(f"{why}, and signed", log.note(ALICE, 77, top, body=bent))
    wrong("no signature", body)
    wrong("an empty line and no signature", body + "\n")
    wrong("two signatures", good + good.split("\n\n")[1])
    wrong("a hyphen for the dash", good.replace("\u2014", "-"))
    wrong("the last line has no end", good[:-1])
    wrong("a line after it", good + "\n")
    wrong("lines that end as on Windows", good.replace("\n", "\r\n"))
    wrong("not UTF-8", good.encode().replace(b"\xe2\x80\x94", b"\xe2\x80\xff"))
    wrong("signed under a label", log.note(ALICE, 77, top).rsplit(" ", 1)[0] + " " + base64.b64encode(
        sha256(origin.encode() + b"\n\1" + ALICE.id)[:4] + ALICE.key.sign(b"openred/1/receipt\0" + body.encode())).decode() + "\n")
    wrong("nothing", "")
    return file


def log_proofs():
    """Entries, roots and proofs; `bytes` is the proof, its hashes side by side."""
    file = File()
    card = ALICE.statement("openred/1/card", filler(300))
    entries = [log.entry(card), log.entry(card, filler(16, 1))] + [filler(32, seed) for seed in range(2, 13)]
    leaves = [log.leaf(data) for data in entries]
    hexes = lambda proof: b"".join(proof)
    for size in (1, 2, 3, 7, 8, 13):
        top = log.root(leaves[:size])
        for index in sorted({0, 1, size // 2, size - 1} & set(range(size))):
            more = dict(proof="inclusion", index=index, size=size, entry=entries[index].hex(), root=top.hex())
            if index < 2:
                more |= dict(card=card.hex()) | (dict(salt=filler(16, 1).hex()) if index else {})
            file.right(f"entry {index} of {size}", hexes(log.inclusion(index, leaves[:size])), **more)
    for old, new in [(0, 0), (0, 5), (1, 1), (1, 2), (2, 3), (3, 7), (4, 8), (6, 8), (7, 13), (8, 13), (13, 13)]:
        proof = log.consistency(old, leaves[:new]) if old else []
        file.right(f"{old} before {new}", hexes(proof), proof="consistency", old=old, new=new, old_root=log.root(leaves[:old]).hex(), new_root=log.root(leaves[:new]).hex())
    good = list(file.cases)
    for case in good:
        more = {name: value for name, value in case.items() if name not in ("accept", "why", "bytes", "card", "salt")}
        proof, why = bytes.fromhex(case["bytes"]), case["why"]
        file.wrong(f"{why}: a hash more", proof + filler(32, 99), **more)
        if case.get("old") != 0 or case["new"] == 0:
            file.wrong(f"{why}: another root", proof, **more | {("root" if "root" in more else "new_root"): filler(32, 98).hex()})
        if proof:
            file.wrong(f"{why}: a hash less", proof[:-32], **more)
            file.wrong(f"{why}: a bit flipped", bytes([proof[0] ^ 1]) + proof[1:], **more)
            file.wrong(f"{why}: in the other order", b"".join(proof[at : at + 32] for at in range(len(proof) - 32, -1, -32)) if len(proof) > 32 else bytes(32), **more)
        if case["proof"] == "inclusion":
            file.wrong(f"{why}: beyond the end", proof, **more | dict(index=case["size"]))
            file.wrong(f"{why}: an inner hash as an entry", proof, **more | dict(entry=(entries[0] + entries[1]).hex()))
        else:
            file.wrong(f"{why}: another older root", proof, **more | dict(old_root=filler(32, 97).hex()))
            file.wrong(f"{why}: the older one is larger", proof, **more | dict(old=case["new"] + 1))
    file.wrong("65 hashes", filler(32) * 65, proof="inclusion", index=0, size=2**62, entry=entries[0].hex(), root=filler(32).hex())
    return file


def directory_heads():
    file = File()
    notes = [log.note(owner, 5, filler(32, 1)) for owner in (ALICE, BOB, CAROL)]
    file.right("no head", b"")
    for count in range(1, 4):
        file.plain(f"{count} heads", [(1, notes[:count])])
    file.wrong("one directory twice", encode((1, notes[:1] * 2)))
    file.wrong("one directory twice, at two sizes", encode((1, [notes[0], log.note(ALICE, 6, filler(32, 1))])))
    file.wrong("nine heads", encode((1, [log.note(identity_of(bytes([seed]) * 32), 5, filler(32, 1)) for seed in range(10, 19)])))
    file.wrong("one that is too long", encode((1, [notes[0] + "x" * 400])))
    file.wrong("one of nobody", encode((1, ["x\n5\n"])))
    file.wrong("an empty one", encode((1, [""])))
    return file


FILES = {
    "log-head.json": log_heads,
    "log-proof.json": log_proofs,
    "directory-heads.json": directory_heads,
    "card.json": cards,
    "static-certificate.json": certificates,
    "receipt.json": receipts,
    "succession.json": successions,
    "module-word.json": module_words,
    "method-description.json": methods,
    "payloads.json": payloads,
    "heads.json": heads,
    "http-signature.json": signatures,
}


def offers_open(folder):
    """The offers of proto/vectors/offer are ours: here another implementation opens them."""
    cases = json.loads((folder / "offer" / "accept.json").read_text())["cases"]
    raw = lambda case, name: bytes.fromhex(case[name])
    for case in cases:
        prekey, own = Prekey(raw(case, "prekey_seed")), identity_of(raw(case, "recipient_seed")).id
        renewed = case.get("renews")
        old = Link({1: [raw(renewed, "link_id")], 4: [0], 5: [0], 2: [1]}, raw(renewed, "base"), b"", b"") if renewed else None
        link = open_offer(raw(case, "offer"), prekey, own, raw(case, "directory"), old)
        expected = (raw(case, "base"), raw(case, "link_id"), raw(case, "sender"), case["method"], int(case["epoch"]))
        assert (link.base, link.id, link.issuer, NAMES[link.method], link.epoch) == expected, case["link_id"]
        assert sha256(raw(case, "offer")) == raw(case, "token_id")
    print(f"ok offers: {len(cases)} opened")


def main():
    folder, check = Path(sys.argv[1]), "--check" in sys.argv
    if check:
        offers_open(folder.parent)
    for name, made in FILES.items():
        cases = made().cases
        text = json.dumps({"source": SOURCE, "cases": cases}, indent=1) + "\n"
        if check:
            assert (folder / name).read_text() == text, f"{name} is not what the document says"
        else:
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        right = sum(case["accept"] for case in cases)
        print(f"ok {name}: {right} right, {len(cases) - right} wrong")


if __name__ == "__main__":
    main()
