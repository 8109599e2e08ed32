"""Frames and streams of 0x81, as far as an echo and a fetch need them: strict about what the peer may do, plain in what it does itself."""
import ipaddress
from struct import pack, unpack

from channel import Closed, Fault

PAD, SETTINGS, OPEN, OPENED, DATA, FIN, RESET, WINDOW, PING, PONG, GOAWAY, DATAGRAM = range(12)
CONTROL = (PAD, PING, PONG, GOAWAY)
FIXED = {FIN: 0, RESET: 1, WINDOW: 4, PING: 8, PONG: 8}
PAYLOAD_MAX = 65_380
NO_UDP = 0x07
CREDIT_MAX = (1 << 31) - 1


def frame(kind, stream=0, payload=b"", flags=0):
    return pack("<BBHI", kind, flags, len(payload), stream) + payload


def frames(plaintext):
    """The frames of a record, which they must fill."""
    while plaintext:
        if len(plaintext) < 8:
            raise Fault("a record ends inside a frame's header")
        kind, flags, length, stream = unpack("<BBHI", plaintext[:8])
        payload, plaintext = plaintext[8 : 8 + length], plaintext[8 + length :]
        if len(payload) < length:
            raise Fault("a record ends inside a frame")
        if kind >= 0x80:
            continue
        if kind > DATAGRAM or kind == SETTINGS:
            raise Fault(f"frame of type {kind:#04x}")
        if (stream == 0) != (kind in CONTROL):
            raise Fault(f"frame of type {kind:#04x} on stream {stream}")
        if flags and not (kind == OPEN and flags == 1):
            raise Fault(f"frame of type {kind:#04x} with flags {flags:#04x}")
        if length != FIXED.get(kind, length) or kind == DATA and length == 0 or kind == GOAWAY and not 1 <= length <= 201:
            raise Fault(f"frame of type {kind:#04x} with {length} bytes")
        if kind != PAD:
            yield kind, flags, stream, payload


def encode_address(host, port):
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode()
        return bytes([3, len(name)]) + name + pack(">H", port)
    return bytes([4 if number.version == 4 else 6]) + number.packed + pack(">H", port)


def decode_address(payload):
    forms = {4: 4, 6: 16}
    if payload[:1] == b"\x03" and len(payload) > 2:
        host, rest = payload[2 : 2 + payload[1]].decode(errors="replace"), payload[2 + payload[1] :]
    elif payload[:1] and payload[0] in forms:
        end = 1 + forms[payload[0]]
        host, rest = str(ipaddress.ip_address(payload[1:end])) if len(payload) >= end else "", payload[end:]
    else:
        raise Fault(f"address {payload.hex()}")
    if len(rest) != 2:
        raise Fault(f"address {payload.hex()}")
    return host, unpack(">H", rest)[0]


class Stream:
    """One stream, from either side."""

    def __init__(self, send_credit, window):
        self.send_credit, self.receive_credit = send_credit, window
        self.queue, self.end_queued = bytearray(), False
        self.end_sent = self.end_received = False

    def over(self):
        return self.end_sent and self.end_received


class End:
    """What both sides of a tunnel do alike."""

    def __init__(self, tunnel, window, say):
        self.tunnel, self.window, self.say = tunnel, window, say
        self.streams, self.goaway_sent, self.goaway_received = {}, False, False

    def send(self, kind, stream=0, payload=b"", flags=0):
        self.tunnel.send(frame(kind, stream, payload, flags))

    def handle_common(self, kind, stream, payload):
        """True if it was for the tunnel, or for a stream that is over."""
        if kind == PING:
            self.send(PONG, payload=payload)
        elif kind == PONG:
            raise Fault("PONG without PING")
        elif kind == GOAWAY:
            if self.goaway_received:
                raise Fault("a second GOAWAY")
            self.goaway_received = True
            self.say(f"goaway {payload[0]:#04x} {payload[1:].decode(errors='replace')!r}")
            if payload[0] >= 0x10:
                raise Closed(f"goaway {payload[0]:#04x}")
            self.go_away()
        elif kind == OPEN or stream in self.streams:
            return False
        elif not self.was_opened(stream):
            raise Fault(f"frame of type {kind:#04x} for stream {stream}, which was not opened")
        return True

    def go_away(self):
        if not self.goaway_sent:
            self.goaway_sent = True
            self.send(GOAWAY, payload=b"\x00")

    def handle_data(self, stream, payload):
        """Counts it and gives the credit back at once: it has been used."""
        state = self.streams[stream]
        if state.end_received:
            raise Fault(f"DATA after FIN on stream {stream}")
        state.receive_credit -= len(payload)
        if state.receive_credit < 0:
            raise Fault(f"DATA beyond the credit on stream {stream}")

    def give_back(self, stream, count):
        state = self.streams.get(stream)
        if state and count and not state.end_received:
            state.receive_credit += count
            self.send(WINDOW, stream, pack("<I", count))

    def handle_window(self, stream, payload):
        (more,) = unpack("<I", payload)
        state = self.streams[stream]
        state.send_credit += more
        if more == 0 or state.send_credit > CREDIT_MAX:
            raise Fault(f"WINDOW of {more} on stream {stream}")

    def flush(self, stream):
        """Sends what the credit allows; how much that was."""
        state, sent = self.streams[stream], 0
        while state.queue and state.send_credit:
            part = bytes(state.queue[: min(state.send_credit, PAYLOAD_MAX)])
            del state.queue[: len(part)]
            state.send_credit -= len(part)
            sent += len(part)
            self.send(DATA, stream, part)
        if state.end_queued and not state.queue and not state.end_sent:
            state.end_sent = True
            self.send(FIN, stream)
        if state.over():
            del self.streams[stream]
        return sent

    def handle_fin(self, stream):
        if self.streams[stream].end_received:
            raise Fault(f"FIN after FIN on stream {stream}")
        self.streams[stream].end_received = True

    def is_over(self):
        return self.goaway_sent and self.goaway_received and not self.streams


class EchoServer(End):
    """An exit whose every destination is an echo."""

    last = 0

    def was_opened(self, stream):
        return stream <= self.last

    def run(self):
        try:
            while not self.is_over():
                for kind, flags, stream, payload in frames(self.tunnel.receive()):
                    self.handle(kind, flags, stream, payload)
        except Closed as closed:
            self.say(f"closed: {closed}")
            return
        self.say("over")

    def handle(self, kind, flags, stream, payload):
        if self.handle_common(kind, stream, payload):
            return
        if kind == OPEN:
            if stream != self.last + 1:
                raise Fault(f"OPEN of stream {stream}: expected {self.last + 1}")
            self.last = stream
            self.say("open %d %s:%d" % (stream, *decode_address(payload)))
            if flags:
                self.send(RESET, stream, bytes([NO_UDP]))
                return
            self.streams[stream] = Stream(self.tunnel.peer[1], self.window)
            self.send(OPENED, stream, encode_address("127.0.0.1", 7))
        elif kind == DATA:
            self.handle_data(stream, payload)
            self.streams[stream].queue += payload
            self.give_back(stream, self.flush(stream))
        elif kind == WINDOW:
            self.handle_window(stream, payload)
            self.give_back(stream, self.flush(stream))
        elif kind == FIN:
            self.handle_fin(stream)
            self.streams[stream].end_queued = True
            self.say(f"end {stream}")
            self.flush(stream)
        elif kind == RESET:
            self.say(f"reset {stream} {payload[0]:#04x}")
            del self.streams[stream]
        else:
            raise Fault(f"frame of type {kind:#04x} from an inter-server on stream {stream}")


class Client(End):
    """An inter-server with one client."""

    def was_opened(self, stream):
        return stream == 1


def fetch(tunnel, window, host, port, request, say):
    """Opens a stream, sends all at once, ends it, and gives what came back until the other end."""
    end, answer, opened = Client(tunnel, window, say), bytearray(), False
    end.send(OPEN, 1, encode_address(host, port))
    stream = end.streams[1] = Stream(tunnel.peer[1], window)
    stream.queue += request
    stream.end_queued = True
    end.flush(1)
    while not end.is_over():
        for kind, _, number, payload in frames(tunnel.receive()):
            if end.handle_common(kind, number, payload):
                continue
            if not opened and kind not in (OPENED, RESET):
                raise Fault(f"frame of type {kind:#04x} before OPENED")
            if kind == OPENED:
                if opened:
                    raise Fault("a second OPENED")
                opened = True
                say("opened %s:%d" % decode_address(payload))
            elif kind == DATA:
                end.handle_data(number, payload)
                answer += payload
                end.give_back(number, len(payload))
            elif kind == WINDOW:
                end.handle_window(number, payload)
                end.flush(number)
            elif kind == FIN:
                end.handle_fin(number)
                end.flush(number)
            elif kind == RESET:
                raise Fault(f"the stream was reset with {payload[0]:#04x}")
            else:
                raise Fault(f"frame of type {kind:#04x} from a server")
        if not end.streams:
            end.go_away()
    return bytes(answer)
