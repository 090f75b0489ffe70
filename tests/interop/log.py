"""The directory's log, from docs/protocol.md section 7 and RFC 6962 alone: entries, the tree as it is defined, proofs by their definition, heads."""

import base64
import hashlib

from wire import did


def sha256(data):
    return hashlib.sha256(data).digest()


def entry(card, salt=None):
    if salt is None:
        return sha256(card)
    return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in (salt, card)))


def leaf(data):
    return sha256(b"\0" + data)


def split(size):
    largest = 1
    while largest * 2 < size:
        largest *= 2
    return largest


def root(leaves):
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return leaves[0]
    middle = split(len(leaves))
    return sha256(b"\1" + root(leaves[:middle]) + root(leaves[middle:]))


def inclusion(index, leaves):
    if len(leaves) == 1:
        return []
    middle = split(len(leaves))
    if index < middle:
        return inclusion(index, leaves[:middle]) + [root(leaves[middle:])]
    return inclusion(index - middle, leaves[middle:]) + [root(leaves[:middle])]


def consistency(old, leaves, whole=True):
    if old == len(leaves):
        return [] if whole else [root(leaves)]
    middle = split(len(leaves))
    if old <= middle:
        return consistency(old, leaves[:middle], whole) + [root(leaves[middle:])]
    return consistency(old - middle, leaves[middle:], False) + [root(leaves[:middle])]


def text(origin, size, top):
    return f"{origin}\n{size}\n{base64.b64encode(top).decode()}\n"


def note(owner, size, top, *, body=None, name=None, key=None, kind=1):
    """A signed head; the named arguments bend it."""
    origin = did(owner.id)
    body = text(origin, size, top) if body is None else body
    name = origin if name is None else name
    mark = sha256(name.encode() + b"\n" + bytes([kind]) + owner.id)[:4]
    signature = (owner if key is None else key).key.sign(body.encode())
    return f"{body}\n\u2014 {name} {base64.b64encode(mark + signature).decode()}\n"
