#!/usr/bin/env python3
"""Makes 0x80-session.json: whole sessions of protocol 0x80, byte by byte, and inputs that must be refused.

An outside witness: every cipher byte comes from `openssl enc`, every header is put together here, and nothing of the project is used.

    python3 tests/vectors/make_0x80_session.py > tests/vectors/0x80-session.json
"""
import ipaddress
import json
import struct
import subprocess

IV = bytes(range(16))
KEYS = {
    "aes-128-ctr": b"samplekeytomatch",
    "aes-256-ctr": bytes(range(32)),
    "aes-128-cfb": b"samplekeytomatch",
}
CHALLENGE = bytes((37 * i + 11) % 256 for i in range(32))
TAIL = bytes((91 * i + 5) % 256 for i in range(16))


def openssl(method, key, data, iv=IV):
    """One message, begun afresh from key and IV."""
    command = ["openssl", "enc", "-e", "-" + method, "-nosalt", "-nopad", "-K", key.hex(), "-iv", iv.hex()]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def header(ip, port, length):
    address = ipaddress.ip_address(ip)
    kind = b"\x04" if address.version == 4 else b"\x06"
    return kind + address.packed + struct.pack(">H", port) + struct.pack("<I", length)


def ramp(start, count):
    return bytes((start + 7 * i) % 251 for i in range(count))


V4 = ("192.0.2.7", 443)
V6 = ("2001:db8::1", 8080)
MAPPED = ("::ffff:192.0.2.7", 443)

# Who sends what to which (ip, port); an empty payload opens, then ends. The IPv4 address and its mapped form are two flows.
FRAMES = [
    ("entry", V4, b""),
    ("entry", V6, b""),
    ("entry", V4, b"GET / HTTP/1.1\r\nHost: destination\r\n\r\n"),
    ("exit", V4, b"HTTP/1.1 200 OK\r\n\r\n"),
    ("entry", MAPPED, b""),
    ("exit", MAPPED, b"SSH-2.0-destination speaks first\r\n"),
    ("exit", V4, ramp(3, 300)),
    ("entry", MAPPED, b"x"),
    ("entry", V4, b""),
    ("exit", V4, ramp(200, 33)),
    ("exit", V6, b""),
    ("entry", V6, ramp(0, 129)),
    ("exit", V4, b""),
    ("entry", V4, b""),
    ("entry", V6, b""),
    ("exit", MAPPED, b""),
    ("entry", V4, b"again, on the key that was freed"),
    ("exit", V4, b""),
    ("entry", MAPPED, b""),
    ("entry", V4, b""),
]


def session(method, key):
    reply = openssl(method, key, CHALLENGE + TAIL)
    steps = [
        {"from": "exit", "what": "hello", "bytes": "800100"},
        {"from": "entry", "what": "version", "bytes": "80"},
        {"from": "exit", "what": "challenge", "bytes": (bytes([len(CHALLENGE)]) + CHALLENGE).hex()},
        {"from": "entry", "what": "reply", "bytes": (bytes([len(reply)]) + reply).hex()},
        {"from": "exit", "what": "verdict", "bytes": "01"},
    ]
    for sender, (ip, port), plain in FRAMES:
        frame = header(ip, port, len(plain)) + openssl(method, key, plain)
        steps.append({"from": sender, "what": "frame", "ip": ip, "port": port, "plain": plain.hex(), "bytes": frame.hex()})
    return {"method": method, "key": key.hex(), "iv": IV.hex(), "challenge": CHALLENGE.hex(), "tail": TAIL.hex(), "steps": steps}


def refused(method, key):
    """What each side is sent, what it must have answered, and how it must call the fault."""
    reply = openssl(method, key, CHALLENGE + TAIL)
    asked = (bytes([32]) + CHALLENGE).hex()
    good = bytes([len(reply)]) + reply
    other = bytearray(good)
    other[32] ^= 1  # the last byte of the challenge
    first = bytearray(good)
    first[1] ^= 0x80
    return [
        {"side": "exit", "gets": "81", "says": "800100", "fault": "inter-server speaks 0x81: expected 0x80, see --protocol"},
        {"side": "exit", "gets": "05", "says": "800100", "fault": "inter-server speaks 0x05: expected 0x80"},
        {"side": "exit", "gets": "80" + bytes(other).hex(), "says": "800100" + asked + "00", "fault": "inter-server does not have our key"},
        {"side": "exit", "gets": "80" + bytes(first).hex(), "says": "800100" + asked + "00", "fault": "inter-server does not have our key"},
        {"side": "exit", "gets": "80" + "1f" + reply[:31].hex(), "says": "800100" + asked + "00",
         "fault": "inter-server replied with 31 bytes to a challenge of 32"},
        {"side": "exit", "gets": "8000", "says": "800100" + asked + "00", "fault": "inter-server replied with 0 bytes to a challenge of 32"},
        {"side": "entry", "gets": "81", "says": "", "fault": "server speaks 0x81: expected 0x80, see --protocol"},
        {"side": "entry", "gets": "16", "says": "", "fault": "server speaks 0x16: expected 0x80"},
        {"side": "entry", "gets": "80010000", "says": "80", "fault": "server sent a challenge of 0 bytes: expected 1 to 64"},
        {"side": "entry", "gets": "80010041", "says": "80", "fault": "server sent a challenge of 65 bytes: expected 1 to 64"},
        {"side": "entry", "gets": "800100ff", "says": "80", "fault": "server sent a challenge of 255 bytes: expected 1 to 64"},
        {"side": "entry", "gets": "800100" + asked + "00", "says": "80" + good.hex(), "fault": "server refused our key"},
    ]


def accepted(method, key):
    """Odd, but allowed."""
    short = openssl(method, key, CHALLENGE)
    long = openssl(method, key, CHALLENGE + bytes(255 - 32))
    most = bytes(range(64))
    reply = openssl(method, key, most + TAIL)
    one = openssl(method, key, b"\x7f" + TAIL)
    asked = (bytes([32]) + CHALLENGE).hex()
    return [
        {"name": "a reply without a tail", "side": "exit", "gets": "80" + "20" + short.hex(), "says": "800100" + asked + "01"},
        {"name": "the longest reply", "side": "exit", "gets": "80" + "ff" + long.hex(), "says": "800100" + asked + "01"},
        {"name": "a hello without methods", "side": "entry", "gets": "8000" + "01" + "7f" + "01", "says": "80" + "11" + one.hex()},
        {"name": "a hello with 255 methods", "side": "entry", "gets": "80ff" + "80" * 255 + "01" + "7f" + "02", "says": "80" + "11" + one.hex()},
        {"name": "the longest challenge", "side": "entry", "gets": "800100" + "40" + most.hex() + "ff", "says": "80" + "50" + reply.hex()},
    ]


def wraps():
    """IVs around the point from which a counter of 32 bits wraps within 4 GiB, and one that carries through all 128."""
    plain = bytes(80)
    cases = []
    for iv in ("00000000000000000000000000000000", "0102030405060708090a0b0cf0000000", "0102030405060708090a0b0cf0000001",
               "0102030405060708090a0b0cffffffff", "fffffffffffffffffffffffffffffffe"):
        for method, key in KEYS.items():
            cipher = openssl(method, key, plain, bytes.fromhex(iv))
            cases.append({"method": method, "key": key.hex(), "iv": iv, "plain": plain.hex(), "cipher": cipher.hex()})
    return cases


print(json.dumps({
    "comment": "made by make_0x80_session.py with openssl enc; every message starts afresh from key and commonIV",
    "sessions": [session(method, key) for method, key in KEYS.items()],
    "refused": refused("aes-128-ctr", KEYS["aes-128-ctr"]),
    "accepted": accepted("aes-128-ctr", KEYS["aes-128-ctr"]),
    "refused_frames": [
        {"bytes": kind + "c000020701bb00000000", "fault": f"peer sent a frame of address kind 0x{kind}: expected 0x04 or 0x06"}
        for kind in ("00", "01", "03", "05", "07", "80", "ff")
    ],
    "ivs": wraps(),
}, indent=1))
