"""Makes ../vectors/0x81.json: whole handshakes under given ephemeral keys and nonces, the first records both ways, the step of the keys."""
import json
import socket
import threading

from channel import EPOCH, METHODS, Direction, Fault, as_inter_server, as_server
from wire import Wire

SERVER_SETTINGS = [(1, 300_000), (2, 7)]
INTER_SERVER_SETTINGS = [(1, 16_384)]


class Recorder(Wire):
    """A wire that keeps what was sent, call by call."""

    def __init__(self, connection):
        super().__init__(connection)
        self.sent = []

    def send(self, data):
        self.sent.append(data.hex())
        super().send(data)


def bytes_from(seed, count=32):
    return bytes((seed + at) % 256 for at in range(count))


def both(server, inter_server):
    """Runs both sides; their outcomes (a tunnel or a Fault) and their wires."""
    ends = [Recorder(end) for end in socket.socketpair()]
    outcomes = [None, None]

    def run(at, side):
        try:
            outcomes[at] = side(ends[at])
        except Fault as fault:
            outcomes[at] = fault

    threads = [threading.Thread(target=run, args=(at, side)) for at, side in enumerate((server, inter_server))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes, ends


def handshake(name, offered, allowed, seed):
    psk, nonce = bytes_from(seed), bytes_from(seed + 64)
    server_ephemeral, inter_server_ephemeral = bytes_from(seed + 128), bytes_from(seed + 192)
    (server, inter_server), (at_server, at_inter_server) = both(
        lambda wire: as_server(wire, psk, offered, SERVER_SETTINGS, server_ephemeral),
        lambda wire: as_inter_server(wire, psk, allowed, INTER_SERVER_SETTINGS, nonce, inter_server_ephemeral),
    )
    records = []
    for number in range(1, 4):
        for sender, tunnel, receiver in (("server", server, inter_server), ("inter-server", inter_server, server)):
            plaintext = bytes_from(16 * number, 8 + 13 * number)
            tunnel.send(plaintext)
            assert receiver.receive() == plaintext
            wire = at_server if sender == "server" else at_inter_server
            records.append({"from": sender, "number": number, "plaintext": plaintext.hex(), "record": wire.sent[-1]})
    hello, login, server_settings = at_server.sent[:3]
    answer, login_answer, inter_server_settings = at_inter_server.sent[:3]
    assert server.secrets == inter_server.secrets
    return {
        "name": name,
        "psk": psk.hex(),
        "offered": bytes(offered).hex(),
        "allowed": bytes(allowed).hex(),
        "nonce": nonce.hex(),
        "server_ephemeral": server_ephemeral.hex(),
        "inter_server_ephemeral": inter_server_ephemeral.hex(),
        "server_settings": SERVER_SETTINGS,
        "inter_server_settings": INTER_SERVER_SETTINGS,
        "wire": [
            {"from": "server", "what": "hello", "bytes": hello},
            {"from": "inter-server", "what": "method and nonce", "bytes": answer},
            {"from": "server", "what": "Noise message 1", "bytes": login},
            {"from": "inter-server", "what": "Noise message 2", "bytes": login_answer},
            {"from": "server", "what": "SETTINGS", "bytes": server_settings},
            {"from": "inter-server", "what": "SETTINGS", "bytes": inter_server_settings},
        ],
        "method": server.method,
        "secret_to_inter_server": server.secrets[0].hex(),
        "secret_to_server": server.secrets[1].hex(),
        "records": records,
    }


def epochs(method):
    """Records around the step. The plaintext of each is its number, 8 bytes, little-endian."""
    secret = bytes_from(3 * method)
    direction = Direction(method, secret)
    schedule, records = [], []
    for numbers in ((0, 1, EPOCH - 1), (EPOCH, EPOCH + 1)):
        schedule.append({"key": direction.key.hex(), "iv": direction.iv.hex(), "next": direction.next.hex()})
        for number in numbers:
            direction.number = number
            record = direction.seal(number.to_bytes(8, "little"))
            records.append({"number": number, "record": record.hex()})
    return {"method": method, "secret": secret.hex(), "epochs": schedule, "records": records}


def make():
    (_, fault), (at_server, at_inter_server) = both(
        lambda wire: as_server(wire, bytes(32), [1, 9], SERVER_SETTINGS),
        lambda wire: as_inter_server(wire, bytes(32), [2, 3], INTER_SERVER_SETTINGS, bytes(32)),
    )
    assert isinstance(fault, Fault)
    handshakes = [handshake(name, [method], [method], 16 * method) for method, name in METHODS.items()]
    handshakes.append(handshake("the second of three, behind one that nobody knows", [0x7E, 3, 1], [2, 1], 77))
    return {
        "handshakes": handshakes,
        "none_allowed": {"offered": "0109", "allowed": "0203", "hello": at_server.sent[0], "answer": at_inter_server.sent[0]},
        "epoch_steps": [epochs(method) for method in METHODS],
    }


def text():
    return json.dumps(make(), indent=1) + "\n"
