"""The secure channel of 0x81: handshake, key schedule, records. Noise is the package noiseprotocol's, the ciphers are cryptography's; nothing
here is this project's.

A `wire` is anything with send(bytes) and receive(count), which gives just so many bytes or raises Closed.
"""
import warnings
from struct import pack, unpack

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from noise.connection import Keypair, NoiseConnection

VERSION = 0x81
NO_METHOD = 0xFF
METHODS = {1: "aes-128-gcm", 2: "aes-256-gcm", 3: "chacha20-poly1305"}
KEY_BYTES = {1: 16, 2: 32, 3: 32}
CIPHERS = {1: AESGCM, 2: AESGCM, 3: ChaCha20Poly1305}
LOGIN = 48
EPOCH = 1 << 20
RECORD_MIN, RECORD_MAX, FIRST_MAX, TAG = 24, 65_404, 256, 16
SETTINGS = 0x01

# It warns of ephemeral keys that are given, as they are for vectors.
warnings.filterwarnings("ignore", module="noise")


class Fault(Exception):
    """The peer breaks a rule."""


class Closed(Exception):
    """The peer has closed."""


class Direction:
    """The keys of one direction."""

    def __init__(self, method, secret):
        self.method, self.number = method, 0
        self.begin(secret)

    def begin(self, secret):
        self.key = self.expand(secret, b"key", KEY_BYTES[self.method])
        self.iv = self.expand(secret, b"iv", 12)
        self.next = self.expand(secret, b"next", 32)
        self.cipher = CIPHERS[self.method](self.key)

    def expand(self, secret, what, length):
        label = b"zhwkprox 0x81 " + what + bytes([self.method])
        return HKDFExpand(algorithm=SHA256(), length=length, info=label).derive(secret)

    def nonce(self):
        number = (self.number % EPOCH).to_bytes(12, "big")
        return bytes(a ^ b for a, b in zip(self.iv, number))

    def count(self):
        self.number += 1
        if self.number % EPOCH == 0:
            self.begin(self.next)

    def seal(self, plaintext):
        length = pack("<I", len(plaintext) + TAG)
        sealed = self.cipher.encrypt(self.nonce(), plaintext, length)
        self.count()
        return length + sealed

    def open(self, record):
        try:
            plaintext = self.cipher.decrypt(self.nonce(), record[4:], record[:4])
        except InvalidTag:
            raise Fault(f"record {self.number} does not verify") from None
        self.count()
        return plaintext


class Tunnel:
    """What a handshake leaves: both directions, and what the peer accepts."""

    def __init__(self, wire, method, secrets, sends_first):
        self.wire, self.method, self.secrets = wire, method, secrets
        to_inter_server, to_server = (Direction(method, secret) for secret in secrets)
        self.out, self.into = (to_inter_server, to_server) if sends_first else (to_server, to_inter_server)
        self.peer = {}

    def send(self, plaintext):
        self.wire.send(self.out.seal(plaintext))

    def receive(self):
        header = self.wire.receive(4)
        (length,) = unpack("<I", header)
        most = FIRST_MAX if self.into.number == 0 else RECORD_MAX
        if not RECORD_MIN <= length <= most:
            raise Fault(f"record {self.into.number} has length {length}: expected {RECORD_MIN} to {most}")
        return self.into.open(header + self.wire.receive(length))


def settings_frame(pairs):
    payload = b"".join(pack("<HI", id_, value) for id_, value in pairs)
    return pack("<BBHI", SETTINGS, 0, len(payload), 0) + payload


def read_settings(plaintext, from_server):
    kind, flags, length, stream = unpack("<BBHI", plaintext[:8])
    payload = plaintext[8:]
    if (kind, flags, stream) != (SETTINGS, 0, 0) or length != len(payload) or length % 6:
        raise Fault("the first record is not SETTINGS alone")
    settings = {1: 262_144, 2: 1024}
    settings.update(unpack("<HI", payload[at : at + 6]) for at in range(0, length, 6))
    if not 16_384 <= settings[1] < 1 << 31 or from_server and settings[2] == 0:
        raise Fault(f"settings out of bounds: {settings}")
    return settings


def noise(prologue, psk, initiator, ephemeral):
    connection = NoiseConnection.from_name(b"Noise_NNpsk0_25519_AESGCM_SHA256")
    connection.set_psks(psk)
    connection.set_prologue(prologue)
    connection.set_as_initiator() if initiator else connection.set_as_responder()
    if ephemeral:
        connection.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    connection.start_handshake()
    return connection


def read_login(connection, message):
    try:
        if bytes(connection.read_message(message)) != b"":
            raise Fault("the login carries a payload")
        return True
    except InvalidTag:
        return False


def as_server(wire, psk, methods, settings, ephemeral=None):
    """Logs in. `methods` are bytes, most wanted first."""
    hello = bytes([VERSION, len(methods), *methods])
    wire.send(hello)
    answer = wire.receive(2)
    if answer[0] != VERSION:
        raise Fault(f"inter-server speaks {answer[0]:#04x}")
    if answer[1] == NO_METHOD:
        raise Fault("inter-server allows none of these ciphers")
    if answer[1] not in methods:
        raise Fault(f"inter-server chose {answer[1]:#04x}, which was not offered")
    answer += wire.receive(32)
    login = noise(b"zhwkprox" + hello + answer, psk, True, ephemeral)
    wire.send(bytes([LOGIN]) + bytes(login.write_message()))
    if wire.receive(1)[0] != LOGIN or not read_login(login, wire.receive(LOGIN)):
        raise Fault("the answer to our login does not verify")
    state = login.noise_protocol
    tunnel = Tunnel(wire, answer[1], (state.cipher_state_encrypt.k, state.cipher_state_decrypt.k), True)
    tunnel.send(settings_frame(settings))
    tunnel.peer = read_settings(tunnel.receive(), from_server=False)
    return tunnel


def as_inter_server(wire, psk, allowed, settings, nonce, ephemeral=None):
    """Takes one login."""
    hello = wire.receive(2)
    if hello[0] != VERSION or not 1 <= hello[1] <= 16:
        raise Fault(f"server begins with {hello.hex()}")
    methods = wire.receive(hello[1])
    method = next((method for method in methods if method in allowed), None)
    if method is None:
        wire.send(bytes([VERSION, NO_METHOD]))
        raise Fault(f"server offers {methods.hex()}, none of which is allowed")
    answer = bytes([VERSION, method]) + nonce
    wire.send(answer)
    login = noise(b"zhwkprox" + hello + methods + answer, psk, False, ephemeral)
    if wire.receive(1)[0] != LOGIN or not read_login(login, wire.receive(LOGIN)):
        raise Fault("wrong key or not a zhwkproX server")
    wire.send(bytes([LOGIN]) + bytes(login.write_message()))
    state = login.noise_protocol
    tunnel = Tunnel(wire, method, (state.cipher_state_decrypt.k, state.cipher_state_encrypt.k), False)
    tunnel.peer = read_settings(tunnel.receive(), from_server=True)
    tunnel.send(settings_frame(settings))
    return tunnel
