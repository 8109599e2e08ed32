#!/usr/bin/env python3
"""Measures what two of the host settings bring on loopback, each without and with it, in a network namespace of its own (as root):

    unshare -n python3 tests/tuning/gains.py target/release/zhwkprox

The numbers that tuning/settings quote as measured are from here. The rest needs cards, losses or a way to go, which loopback has not."""

import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time

SOCKS = ("127.0.0.1", 1080)
BINARY = os.path.abspath(sys.argv[1])


def main():
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, values, measure in [
        ("net.ipv4.tcp_notsent_lowat", ["4294967295", "262144"], readers_that_do_not_read),
        ("net.core.somaxconn", ["128", "4096"], clients_in_a_burst),
    ]:
        for value in values:
            subprocess.run(["sysctl", "-qw", f"{name}={value}"], check=True)
            with tempfile.TemporaryDirectory() as folder:
                print(f"{name} = {value}: {with_relay(folder, measure)}", flush=True)


def with_relay(folder, measure):
    key = f"{folder}/key"
    subprocess.run([BINARY, "keygen", "--out", key], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    roles = []
    try:
        for role in [
            ["inter-server", "--listen", "127.0.0.1:1992", "--socks", "127.0.0.1:1080"],
            ["server", "--dial", "127.0.0.1:1992", "--allow", "127.0.0.0/8"],
        ]:
            arguments = [BINARY, *role, "--cores", "0", "--key-file", key]
            roles.append(subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return measure(roles[0].pid)
    finally:
        for role in roles:
            role.kill()
            role.wait()


def destination(serve):
    """A process that accepts and calls `serve` for each connection, and keeps it. Gives its port and how to end it."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Below every range of ports, so that no connection takes it.
    listener.bind(("127.0.0.1", 900))
    listener.listen(4096)
    child = os.fork()
    if child == 0:
        kept = []
        while True:
            kept.append(listener.accept()[0])
            serve(kept[-1])
    port = listener.getsockname()[1]
    listener.close()

    def end():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    return port, end


def flow(port):
    """A client's connection to the destination through the relay, or None with a refusal."""
    client = socket.socket()
    client.settimeout(20)
    client.connect(SOCKS)
    client.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x01" + socket.inet_aton("127.0.0.1") + port.to_bytes(2, "big"))
    reply = b""
    while len(reply) < 12:
        more = client.recv(12 - len(reply))
        if not more:
            return None
        reply += more
    return client if reply[3] == 0 else None


def first_flow(port):
    for _ in range(200):
        try:
            client = flow(port)
            if client:
                return client
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit("the relay does not work here")


def tcp_memory():
    with open("/proc/net/sockstat", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("TCP:"))
    return int(line.split("mem ")[1]) * os.sysconf("SC_PAGE_SIZE")


def readers_that_do_not_read(_):
    """Memory of the kernel for 200 clients that read nothing of a download."""

    def endless(connection):
        connection.setblocking(False)
        if os.fork() == 0:
            connection.setblocking(True)
            try:
                while True:
                    connection.sendall(bytes(65536))
            finally:
                os._exit(0)

    port, end = destination(endless)
    try:
        clients = [first_flow(port)]
        clients += [flow(port) for _ in range(199)]
        last = -1
        # Until nothing moves any more.
        while abs(tcp_memory() - last) > 1 << 20:
            last = tcp_memory()
            time.sleep(2)
        return f"{tcp_memory() / 200 / 1024:.0f} KiB per flow, all sockets of it together"
    finally:
        end()


def clients_in_a_burst(entry):
    """Until the last of 3,000 clients that come at once is connected, with the entry stopped for 100 ms."""
    port, end = destination(lambda connection: None)
    try:
        first_flow(port)
        selector = selectors.DefaultSelector()
        os.kill(entry, signal.SIGSTOP)
        began = time.monotonic()
        for _ in range(3000):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(SOCKS)
            selector.register(client, selectors.EVENT_WRITE)
        time.sleep(max(0, 0.1 - (time.monotonic() - began)))
        os.kill(entry, signal.SIGCONT)
        left = 3000
        while left:
            for event, _ in selector.select():
                selector.unregister(event.fileobj)
                left -= 1
        return f"the last is connected after {time.monotonic() - began:.2f} s"
    finally:
        end()


main()
