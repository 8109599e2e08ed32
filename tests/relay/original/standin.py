#!/usr/bin/env python3
"""A stand-in for the two original programs of protocol 0x80, faults included. It shares no code with this project: AES-CFB is openssl's.

    standin.py server ADDR:PORT          dials an inter-server, as the original exit does
    standin.py inter-server ADDR:PORT    takes SOCKS5 clients and one server on one port, as the original entry does

Faults kept on purpose: each message is read with ONE recv (what is glued behind it is lost, what is split is garbage) and handled on a
thread of its own, so messages that come closer than half a millisecond are handled in the WRONG order; a connect that fails is never
reported; a flow is closed 20 s after the last request, in mid-reply too; the first message of a flow with a second one glued to it
kills the server; the entry never says that a client has gone, sends all clients of one (ip, port) under one key, and answers SOCKS5
with a 16-byte address under type 1. Each fault that the other side provoked is printed as a line `fault: …`.
"""
import ctypes
import ctypes.util
import os
import socket
import struct
import sys
import threading
import time

KEY = b"samplekeytomatch"
IV = bytes(range(16))
MESSAGE = 4096           # what one recv asks for
TIMER = 20.0             # seconds after the last request
CLOSER = 0.0005          # messages nearer than this overtake each other
CHALLENGE = 22

crypto = ctypes.CDLL(ctypes.util.find_library("crypto"))
for name in ("EVP_CIPHER_CTX_new", "EVP_aes_128_cfb128"):
    getattr(crypto, name).restype = ctypes.c_void_p


def cfb(data, encrypt):
    """Each message starts afresh from the key and the common IV."""
    context = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
    out, n = ctypes.create_string_buffer(len(data) + 32), ctypes.c_int(0)
    ok = crypto.EVP_CipherInit_ex(context, ctypes.c_void_p(crypto.EVP_aes_128_cfb128()), None, KEY, IV, 1 if encrypt else 0)
    ok = ok and crypto.EVP_CipherUpdate(context, out, ctypes.byref(n), data, len(data))
    crypto.EVP_CIPHER_CTX_free(context)
    if not ok:
        raise RuntimeError("openssl refused the message")
    return out.raw[: n.value]


def say(words):
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def frame(key, data):
    version, address, port = key
    return bytes([version]) + address + struct.pack(">H", port) + struct.pack("<I", len(data)) + cfb(data, True)


def parse(message):
    """One message out of one recv: (key, data, what was glued behind or None)."""
    size = {4: 4, 6: 16}.get(message[0])
    if size is None or len(message) < 1 + size + 6:
        say("fault: a message of %d bytes starts %s" % (len(message), message[:12].hex()))
        return None
    address, (port,) = message[1 : 1 + size], struct.unpack(">H", message[1 + size : 3 + size])
    (length,) = struct.unpack("<I", message[3 + size : 7 + size])
    body = message[7 + size :]
    if length > 1024:
        say("fault: a message claims %d bytes" % length)
    if len(body) < length:
        say("fault: a message was split: %d of %d bytes came with one recv" % (len(body), length))
    if len(body) > length:
        say("fault: %d bytes glued behind a message" % (len(body) - length))
    return (message[0], address, port), cfb(body[:length], False), len(body) > length


class Tunnel:
    """Reads messages, one recv each, and hands each to a thread; near ones are handled the wrong way round."""

    def __init__(self, sock, handle):
        self.sock, self.handle, self.lock = sock, handle, threading.Lock()

    def send(self, key, data):
        with self.lock:
            self.sock.sendall(frame(key, data))

    def run(self):
        last = None
        while True:
            try:
                message = self.sock.recv(MESSAGE)
            except OSError:
                message = b""
            if not message:
                return
            now = time.monotonic()
            parsed = parse(message)
            if parsed is None:
                continue
            if last is not None and now - last < CLOSER:
                say("fault: two messages %d us apart" % ((now - last) * 1e6))
                threading.Timer(0.002, self.handle, parsed).start()
            else:
                # In order as long as they are far enough apart; a thread each, as there.
                worker = threading.Thread(target=self.handle, args=parsed)
                worker.start()
                worker.join(0.0005)
            last = now


class Server:
    """The original exit."""

    def __init__(self, sock):
        self.tunnel, self.flows, self.lock = Tunnel(sock, self.on_request), {}, threading.Lock()
        self.asked = {}

    def on_request(self, key, data, glued):
        with self.lock:
            destination = self.flows.get(key)
            if destination is not None:
                self.asked[destination] = time.monotonic()
        if destination is None:
            if glued:
                say("fault: crashed, the first message of a flow had another glued to it")
                os._exit(1)
            family = socket.AF_INET if key[0] == 4 else socket.AF_INET6
            destination = socket.socket(family, socket.SOCK_STREAM)
            try:
                destination.connect((socket.inet_ntop(family, key[1]), key[2]))
            except OSError:
                return  # nothing is ever said about it
            say("opened")
            with self.lock:
                self.flows[key] = destination
                self.asked[destination] = time.monotonic()
            threading.Thread(target=self.replies, args=(key, destination), daemon=True).start()
            threading.Thread(target=self.timer, args=(key, destination), daemon=True).start()
        try:
            destination.sendall(data)
        except OSError:
            pass

    def replies(self, key, destination):
        while True:
            try:
                data = destination.recv(1024)
            except OSError:
                data = b""
            try:
                self.tunnel.send(key, data)
            except OSError:
                return
            if not data:
                break
            time.sleep(0.0015)
        with self.lock:
            if self.flows.get(key) is destination:
                del self.flows[key]
        destination.close()
        say("closed")

    def timer(self, key, destination):
        while True:
            with self.lock:
                left = self.asked[destination] + TIMER - time.monotonic()
            if left <= 0:
                break
            time.sleep(left)
        # Whoever holds the key then loses it.
        with self.lock:
            self.flows.pop(key, None)
        try:
            destination.shutdown(socket.SHUT_RDWR)
            say("timer")
        except OSError:
            pass


def server(address):
    while True:
        sock = socket.create_connection(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"\x80\x01\x00")
        if sock.recv(1) != b"\x80":
            sys.exit("fault: the version was not answered")
        challenge = os.urandom(CHALLENGE)
        sock.sendall(bytes([CHALLENGE]) + challenge)
        answer = sock.recv(300)  # one recv: size and message together
        if len(answer) < 2 or len(answer) != 1 + answer[0]:
            say("fault: the answer to the challenge came in pieces: %s" % answer.hex())
        if not cfb(answer[1:], False).startswith(challenge):
            sock.sendall(b"\x00")
            sys.exit("fault: the keys differ")
        sock.sendall(b"\x01")
        say("tunnel")
        Server(sock).tunnel.run()
        say("tunnel lost")
        sock.close()
        time.sleep(0.2)


class Entry:
    """The original entry: one server, any number of clients."""

    def __init__(self):
        self.tunnel, self.clients, self.lock = None, {}, threading.Lock()

    def serve(self, sock):
        first = sock.recv(3)
        if first[:1] == b"\x80":
            self.server(sock)
        elif first[:1] == b"\x05":
            self.client(sock)
        else:
            say("fault: a connection starts %s" % first.hex())
            sock.close()

    def server(self, sock):
        sock.sendall(b"\x80")
        challenge = sock.recv(300)
        if len(challenge) < 2 or len(challenge) != 1 + challenge[0]:
            say("fault: the challenge came in pieces: %s" % challenge.hex())
        answer = cfb(challenge[1:] + os.urandom(10), True)
        sock.sendall(bytes([len(answer)]) + answer)
        if sock.recv(1) in (b"", b"\x00"):
            say("refused")
            sock.close()
            return
        tunnel = Tunnel(sock, self.on_reply)
        with self.lock:
            self.tunnel = tunnel  # the newest one is used
        say("tunnel")
        tunnel.run()
        say("tunnel lost")

    def client(self, sock):
        sock.sendall(b"\x05\x00")
        request = sock.recv(300)
        if len(request) < 10 or request[3] not in (1, 4):
            say("fault: a request starts %s" % request[:8].hex())
            sock.close()
            return
        size = 4 if request[3] == 1 else 16
        key = (4 if size == 4 else 6, request[4 : 4 + size], struct.unpack(">H", request[4 + size : 6 + size])[0])
        # Sixteen bytes of address under type 1: twelve stray ones for the client.
        sock.sendall(b"\x05\x00\x00\x01" + bytes(16) + b"\x00\x00")
        with self.lock:
            self.clients.setdefault(key, []).append(sock)
        while True:
            try:
                data = sock.recv(1024)
            except OSError:
                data = b""
            if not data:
                break
            self.tunnel.send(key, data)
            time.sleep(0.0015)
        with self.lock:
            # The server is not told.
            if sock in self.clients.get(key, []):
                self.clients[key].remove(sock)
        sock.close()

    def on_reply(self, key, data, _glued):
        with self.lock:
            clients = list(self.clients.get(key, []))
            if not data:
                self.clients[key] = []
        for client in clients:
            try:
                if data:
                    client.sendall(data)
                else:
                    client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def inter_server(address):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(100)
    say("listening")
    entry = Entry()
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=entry.serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("server", "inter-server"):
        sys.exit(__doc__)
    try:
        os.nice(-15)  # a reader that is not scheduled in time would find messages glued that were sent apart
    except OSError:
        pass
    host, port = sys.argv[2].rsplit(":", 1)
    {"server": server, "inter-server": inter_server}[sys.argv[1]]((host, int(port)))
