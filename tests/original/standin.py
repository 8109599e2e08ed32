#!/usr/bin/env python3
"""A stand-in for the author's two programs of protocol 0x80, faults included. AES-CFB is openssl's; nothing here is this project's.

    standin.py server ADDR:PORT     dials an inter-server, as the original server (exit) does
    standin.py inter-server         takes SOCKS5 clients and servers on ONE port, as the original inter-server (entry) does;
                                    the port is a free one and is printed: "listening PORT"

Faults that are kept, on both sides:
  * a message is what ONE recv gives: bytes glued behind it are lost, one that came in pieces is garbage;
  * every message is worked on by a thread of its own, which starts a little late: messages closer than that overtake each other.
Of the server:
  * bytes glued behind the message that opens a flow kill it;
  * a connect that fails is never reported;
  * 20 s after the last request a connection is closed, in mid-reply too, and whoever holds its (ip, port) THEN loses it;
  * the timer stays behind when the destination has closed; a connection that has lost its (ip, port) goes on replying under it;
  * there is no end of a client's data: a request of length 0 is a write of nothing, or opens.
Of the inter-server:
  * it never says that a client has gone; clients of one (ip, port) share it: the last one gets the replies;
  * its SOCKS5 answer has a 16-byte address under type 1: 12 stray bytes for the client.

Each line it prints is one event; "fault: ..." is something that the other side should have spared it.
"""
import ctypes
import ctypes.util
import os
import random
import socket
import struct
import sys
import threading
import time

KEY = b"samplekeytomatch"
IV = bytes(range(16))
MESSAGE = 1024        # what one recv asks for
LATE = 0.0006         # a message's thread starts up to this much late
TIMER = 20.0          # seconds after the last request
CHALLENGE = 22        # bytes

crypto = ctypes.CDLL(ctypes.util.find_library("crypto") or "libcrypto.so.3")
crypto.EVP_CIPHER_CTX_new.restype = ctypes.c_void_p
crypto.EVP_aes_128_cfb128.restype = ctypes.c_void_p


def cfb(data, encrypt):
    """Every message starts afresh from key and IV."""
    context = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
    out, length = ctypes.create_string_buffer(len(data) + 16), ctypes.c_int(0)
    cipher = ctypes.c_void_p(crypto.EVP_aes_128_cfb128())
    ok = crypto.EVP_CipherInit_ex(context, cipher, None, KEY, IV, int(encrypt))
    ok = ok and crypto.EVP_CipherUpdate(context, out, ctypes.byref(length), data, len(data))
    crypto.EVP_CIPHER_CTX_free(context)
    if not ok or length.value != len(data):
        die("openssl refused %d bytes" % len(data))
    return out.raw[: length.value]


def say(words):
    os.write(1, (words + "\n").encode())


def die(words):
    say("fault: " + words)
    os._exit(3)


def frame(key, data):
    kind, address, port = key
    return bytes([kind]) + address + struct.pack(">H", port) + struct.pack("<I", len(data)) + cfb(data, True)


def parse(message):
    """(key, data, bytes glued behind) of what one recv gave, or None."""
    size = {4: 4, 6: 16}.get(message[0])
    if size is None or len(message) < size + 7:
        say("fault: a message of %d bytes starts %s" % (len(message), message[:12].hex()))
        return None
    (port,), (length,) = struct.unpack_from(">H", message, 1 + size), struct.unpack_from("<I", message, 3 + size)
    data, glued = message[size + 7 : size + 7 + length], len(message) - size - 7 - length
    if glued < 0:
        say("fault: a message in pieces, %d of %d bytes came with one recv" % (len(data), length))
    return (message[0], message[1 : 1 + size], port), cfb(data, False), max(glued, 0)


def name(key):
    family = socket.AF_INET if key[0] == 4 else socket.AF_INET6
    return "%s %d" % (socket.inet_ntop(family, key[1]), key[2])


class Tunnel:
    """Frames out, and messages in: one recv each, a thread each."""

    def __init__(self, sock, handle):
        self.sock, self.handle, self.lock = sock, handle, threading.Lock()

    def send(self, key, data):
        with self.lock:
            try:
                self.sock.sendall(frame(key, data))
            except OSError:
                pass

    def run(self):
        say("tunnel")
        while True:
            try:
                message = self.sock.recv(MESSAGE)
            except OSError:
                message = b""
            if not message:
                break
            threading.Thread(target=self.work, args=(message,), daemon=True).start()
        say("tunnel lost")

    def work(self, message):
        late = time.monotonic() + random.uniform(0, LATE)
        parsed = parse(message)
        while time.monotonic() < late:
            time.sleep(0.00005)
        if parsed:
            self.handle(*parsed)


class Connection:
    """One of the server's connections to a destination."""

    def __init__(self):
        self.sock, self.is_up, self.dialled, self.last_request = None, False, threading.Event(), time.monotonic()


class Server:
    def __init__(self, sock):
        self.tunnel, self.keys, self.lock = Tunnel(sock, self.on_request), {}, threading.Lock()

    def on_request(self, key, data, glued):
        with self.lock:
            connection = self.keys.get(key)
            opens = connection is None
            if opens:
                connection = self.keys[key] = Connection()
            connection.last_request = time.monotonic()
        if opens:
            if glued:
                die("crashed: %d bytes glued behind the message that opens %s" % (glued, name(key)))
            say("open %s %d" % (name(key), len(data)))
            self.dial(key, connection, data)
            return
        if glued:
            say("fault: %d bytes glued behind a message for %s, lost" % (glued, name(key)))
        if not data:
            say("nothing %s" % name(key))
        connection.dialled.wait()
        try:
            if connection.is_up and data:
                connection.sock.sendall(data)
        except OSError:
            pass

    def dial(self, key, connection, data):
        try:
            family = socket.AF_INET if key[0] == 4 else socket.AF_INET6
            connection.sock = socket.socket(family, socket.SOCK_STREAM)
            connection.sock.connect((socket.inet_ntop(family, key[1]), key[2]))
            connection.is_up = True
            connection.sock.sendall(data)
        except OSError:
            with self.lock:
                self.keys.pop(key, None)
            say("failed %s" % name(key))  # on the wire nothing is said
        # Messages that came meanwhile have been waiting for this, each in its thread; in which order they go on is not looked at.
        connection.dialled.set()
        if connection.is_up:
            threading.Thread(target=self.replies, args=(key, connection), daemon=True).start()
            threading.Thread(target=self.timer, args=(key, connection), daemon=True).start()

    def replies(self, key, connection):
        while True:
            try:
                data = connection.sock.recv(MESSAGE)
            except OSError:
                data = b""
            if not data:
                break
            self.tunnel.send(key, data)
        connection.is_up = False
        connection.sock.close()
        with self.lock:
            self.keys.pop(key, None)
        self.tunnel.send(key, b"")
        say("end %s" % name(key))

    def timer(self, key, connection):
        while (left := connection.last_request + TIMER - time.monotonic()) > 0:
            time.sleep(left)
        with self.lock:
            holder = self.keys.pop(key, None)
        if holder not in (None, connection):
            say("fault: a timer took %s from a later flow" % name(key))
        if connection.is_up:
            say("timer %s" % name(key))
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def dial(address):
    """The original server: one tunnel. Dials again when it is lost, so that a test can go on."""
    while True:
        sock = socket.create_connection(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"\x80\x01\x00")
        if sock.recv(MESSAGE) != b"\x80":
            die("no version came back")
        challenge = os.urandom(CHALLENGE)
        sock.sendall(bytes([CHALLENGE]) + challenge)
        reply = sock.recv(MESSAGE)
        if not reply or len(reply) != 1 + reply[0]:
            die("the reply to the challenge was not one message: %s" % reply.hex())
        if not cfb(reply[1:], False).startswith(challenge):
            sock.sendall(b"\x00")
            die("the reply to the challenge is not ours")
        sock.sendall(b"\x01")
        Server(sock).tunnel.run()
        sock.close()
        time.sleep(0.2)


class InterServer:
    def __init__(self):
        self.tunnel, self.clients, self.lock = None, {}, threading.Lock()

    def listen(self):
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        say("listening %d" % listener.getsockname()[1])
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.arrival, args=(sock,), daemon=True).start()

    def arrival(self, sock):
        first = sock.recv(MESSAGE)
        if first[:1] == b"\x80":
            self.server(sock, first)
        elif first[:1] == b"\x05":
            self.client(sock)
        sock.close()

    def server(self, sock, hello):
        if len(hello) != 2 + hello[1]:
            die("the hello was not one message: %s" % hello.hex())
        sock.sendall(b"\x80")
        challenge = sock.recv(MESSAGE)
        if not challenge or len(challenge) != 1 + challenge[0]:
            die("the challenge was not one message: %s" % challenge.hex())
        reply = cfb(challenge[1:] + os.urandom(9), True)
        sock.sendall(bytes([len(reply)]) + reply)
        verdict = sock.recv(MESSAGE)
        if len(verdict) != 1 or verdict == b"\x00":
            die("the verdict was %s" % verdict.hex())
        self.tunnel = Tunnel(sock, self.on_reply)
        self.tunnel.run()

    def client(self, sock):
        sock.sendall(b"\x05\x00")
        request = sock.recv(MESSAGE)
        kind, size = {1: (4, 4), 4: (6, 16)}[request[3]]
        key = (kind, request[4 : 4 + size], struct.unpack_from(">H", request, 4 + size)[0])
        with self.lock:
            self.clients[key] = sock
        sock.sendall(b"\x05\x00\x00\x01" + bytes(16) + b"\x00\x00")
        while True:
            try:
                data = sock.recv(MESSAGE)
            except OSError:
                data = b""
            if not data:
                break
            self.tunnel.send(key, data)
        say("client gone %s" % name(key))  # on the wire nothing is said

    def on_reply(self, key, data, glued):
        if glued:
            say("fault: %d bytes glued behind a reply of %s, lost" % (glued, name(key)))
        with self.lock:
            client = self.clients.get(key)
        try:
            if client and data:
                client.sendall(data)
            elif client:
                client.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def be_prompt():
    """A reader that is kept waiting finds messages glued that were sent apart: ask for the processor as far as we may."""
    sys.setswitchinterval(0.0001)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except (OSError, AttributeError):
        pass


if __name__ == "__main__":
    be_prompt()
    if sys.argv[1:2] == ["server"] and len(sys.argv) == 3:
        host, port = sys.argv[2].rsplit(":", 1)
        dial((host, int(port)))
    elif sys.argv[1:] == ["inter-server"]:
        InterServer().listen()
    else:
        sys.exit(__doc__)
