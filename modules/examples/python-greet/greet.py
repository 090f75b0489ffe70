"""greet: a module in Python, against the contract alone (proto/openred/module/v1/module.proto).

Nothing of OpenRed's SDK is used: a gRPC library, two connections, and the rules at the head of the contract. It serves
POST /greet {"name": …} to the operator and to peers, and GET /greeted/{name} to the operator; its counts are rows of the node.
"""

import asyncio
import json
import sys

from grpclib.client import Channel
from grpclib.exceptions import GRPCError, StreamTerminatedError

from openred.module.v1 import module_grpc, module_pb2 as wire

VERSION = 1  # of the contract; this module speaks no other
PROOF_BYTES = 32
BODY_BYTES = 1024  # the longest that POST /greet takes


class Refusal(Exception):
    """Becomes a problem document (RFC 9457)."""

    def __init__(self, status, code, detail):
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail


class Greet:
    """The module itself: what it does with a call, and what it keeps."""

    def __init__(self, host):
        self.host = host

    async def call(self, call, body):
        operator = not call.peer
        if call.path == "/greet":
            self.wants(call, wire.METHOD_POST)
            return await self.greet(body)
        if operator and call.path.startswith("/greeted/") and call.path.count("/") == 2 and call.path != "/greeted/":
            self.wants(call, wire.METHOD_GET)
            row = await self.host.KvGet(wire.KvGetRequest(key=self.key(call.path.removeprefix("/greeted/"))))
            return int(row.value or b"0")
        raise Refusal(404, "no-such-route", "this module has no such route")

    @staticmethod
    def wants(call, method):
        if call.method != method:
            raise Refusal(405, "wrong-method", "this route takes another method")

    @staticmethod
    def key(name):
        key = b"greeted/" + name.encode()
        if len(key) > 256:
            raise Refusal(413, "value-too-large", "a name has at most 248 bytes")
        return key

    async def greet(self, body):
        try:
            name = json.loads(body)["name"]
            key = self.key(name)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Refusal(400, "bad-json", 'not the expected JSON: {"name": …}') from None
        while True:
            row = await self.host.KvGet(wire.KvGetRequest(key=key))
            count = int(row.value or b"0") + 1
            expected = wire.Row(key=key, value=row.value) if row.HasField("value") else wire.Row(key=key)
            wanted = wire.Row(key=key, value=str(count).encode())
            if (await self.host.KvApply(wire.KvApplyRequest(expect=[expected], put=[wanted]))).committed:
                return {"text": f"Hello, {name}!", "count": count}


class Attachment:
    """One attachment: frames in, frames out, a task for each call."""

    def __init__(self, stream, module):
        self.stream, self.module = stream, module
        self.running, self.draining = {}, False

    async def say(self, **kind):
        await self.stream.send_message(wire.ModuleFrame(**kind))

    async def serve(self):
        """Until the node ends it (False) or wants the process to end (True)."""
        try:
            while (frame := await self.stream.recv_message()) is not None:
                kind = frame.WhichOneof("kind")
                if kind == "shutdown":
                    return True
                handle = getattr(self, f"on_{kind}", None)
                if handle is not None:  # of a later version, or a feature that was not named: ignored
                    await handle(getattr(frame, kind))
            return False
        finally:
            for task, _ in self.running.values():
                task.cancel()

    async def on_configure(self, _):
        await self.say(configured=wire.Configured())

    async def on_activate(self, _):
        await self.say(activated=wire.Activated())

    async def on_migrate(self, _):
        await self.say(failed=wire.Failed(code="no-migration", detail="this module migrates nothing"))

    async def on_ping(self, ping):
        await self.say(pong=wire.Pong(number=ping.number))

    async def on_event(self, event):
        await self.say(event_done=wire.EventDone(call=event.call))

    async def on_drain(self, _):
        self.draining = True
        await self.drained()

    async def drained(self):
        if self.draining and not self.running:
            self.draining = False
            await self.say(drained=wire.Drained())

    async def on_call(self, call):
        # Two pieces are enough: a body within the limit needs no credit, and a longer one is refused.
        pieces = asyncio.Queue()
        pieces.put_nowait((call.body, call.end))
        self.running[call.call] = (asyncio.create_task(self.run(call, pieces)), pieces)

    async def on_chunk(self, chunk):
        if chunk.call in self.running:
            self.running[chunk.call][1].put_nowait((chunk.body, chunk.end))

    async def on_cancel(self, cancel):
        if running := self.running.pop(cancel.call, None):
            running[0].cancel()
            await self.say(cancelled=wire.Cancelled(call=cancel.call))
            await self.drained()

    async def run(self, call, pieces):
        try:
            answer, status, kind = await self.module.call(call, await self.body(call, pieces)), 200, "application/json"
        except Refusal as refusal:
            status, kind = refusal.status, "application/problem+json"
            answer = {
                "type": f"urn:openred:problem:{refusal.code}",
                "title": refusal.code,
                "status": status,
                "code": refusal.code,
                "detail": refusal.detail,
            }
        except GRPCError as error:
            status, kind = 503, "application/problem+json"
            answer = {"title": "storage-failed", "status": status, "code": "storage-failed", "detail": error.message}
        if self.running.pop(call.call, None) is None:
            return  # cancelled meanwhile: it has ended already
        body = json.dumps(answer).encode()
        reply = wire.Reply(call=call.call, status=status, content_type=kind, length=len(body), body=body, end=wire.END_DONE)
        await self.say(reply=reply)
        await self.drained()

    async def body(self, call, pieces):
        limit = BODY_BYTES if call.path == "/greet" else 0
        if call.HasField("length") and call.length > limit:
            raise Refusal(413, "body-too-long", f"the body is longer than {limit} bytes")
        body = b""
        while True:
            piece, end = await pieces.get()
            body += piece
            if len(body) > limit:
                raise Refusal(413, "body-too-long", f"the body is longer than {limit} bytes")
            if end == wire.END_DONE:
                return body
            if end != wire.END_MORE:
                raise Refusal(400, "body-truncated", "the body ended before it was complete")


async def attach(socket, proof):
    """One attachment, from Hello to its end; whether the process shall end."""
    first, second = Channel(path=socket), Channel(path=socket)
    ends = False
    try:
        async with module_grpc.AttachmentStub(first).Attach.open() as stream:
            hello = wire.Hello(
                proof=proof, module="greet", version="0.1.0", newest=VERSION, oldest=VERSION, summary="Greets, in Python"
            )
            await stream.send_message(wire.ModuleFrame(hello=hello))
            welcome = (await stream.recv_message()).welcome
            host = module_grpc.HostStub(second)
            await host.Open(wire.OpenRequest(ticket=welcome.ticket))
            ends = await Attachment(stream, Greet(host)).serve()
            await stream.end()
    except (GRPCError, StreamTerminatedError, OSError, AttributeError) as error:
        print(f"the attachment ended: {error}", file=sys.stderr)
    finally:
        first.close()
        second.close()
    return ends


async def main():
    values = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(values), sys.stdin)
    proof = asyncio.create_task(values.readexactly(PROOF_BYTES))
    attached = None
    while True:
        # A value begins an attachment, in the place of the one that there is; the pipe's end ends the process.
        done, _ = await asyncio.wait({proof, attached} - {None}, return_when=asyncio.FIRST_COMPLETED)
        if attached in done and attached.result():
            return
        attached = None if attached in done else attached
        if proof in done:
            if attached is not None:
                attached.cancel()
            try:
                value = proof.result()
            except asyncio.IncompleteReadError:
                return
            attached = asyncio.create_task(attach(sys.argv[1], value))
            proof = asyncio.create_task(values.readexactly(PROOF_BYTES))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("a module is started by its node, with the path of the module socket")
    asyncio.run(main())
