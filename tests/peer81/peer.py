#!/usr/bin/env python3
"""Protocol 0x81 by somebody else: a server or an inter-server to test against, and the test vectors.

    peer.py vectors                                 prints ../vectors/0x81.json
    peer.py exit  --connect ADDR --key FILE         logs in and echoes what streams bring, until the inter-server ends the tunnel
    peer.py entry --listen ADDR --key FILE --get HOST:PORT [--path /]
                                                    takes a server, fetches a page through it, ends the tunnel in order

Needs requirements.txt. Each line it prints is one event; "fault: …" is a rule that the other side broke, and ends it with status 1.
"""
import argparse
import base64
import os
import socket
import sys

import vectors
from channel import METHODS, Closed, Fault, as_inter_server, as_server
from streams import EchoServer, fetch
from wire import Wire

PREFIX = "zhwkprox-0x81:"
WINDOW = 262_144


def main():
    parser = argparse.ArgumentParser(description="protocol 0x81 by somebody else")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("vectors")
    for name, address in (("exit", "--connect"), ("entry", "--listen")):
        command = commands.add_parser(name)
        command.add_argument(address, required=True, dest="address")
        command.add_argument("--key", required=True)
        command.add_argument("--cipher", action="append", choices=METHODS.values(), help="most wanted first")
        command.add_argument("--window", type=int, default=WINDOW)
        if name == "entry":
            command.add_argument("--get", required=True, metavar="HOST:PORT")
            command.add_argument("--path", default="/")
    arguments = parser.parse_args()
    try:
        if arguments.command == "vectors":
            sys.stdout.write(vectors.text())
        else:
            {"exit": run_exit, "entry": run_entry}[arguments.command](arguments)
    except Fault as fault:
        say(f"fault: {fault}")
        sys.exit(1)
    except Closed as closed:
        say(f"closed: {closed}")
        sys.exit(1)


def run_exit(arguments):
    wire = Wire(socket.create_connection(address(arguments.address)))
    tunnel = as_server(wire, read_key(arguments.key), methods(arguments), [(1, arguments.window), (2, 64)])
    say(f"logged in {METHODS[tunnel.method]} window {tunnel.peer[1]}")
    EchoServer(tunnel, arguments.window, say).run()


def run_entry(arguments):
    listener = socket.create_server(address(arguments.address))
    say("listening %s:%d" % listener.getsockname()[:2])
    wire = Wire(listener.accept()[0])
    tunnel = as_inter_server(wire, read_key(arguments.key), methods(arguments), [(1, arguments.window)], os.urandom(32))
    say(f"logged in {METHODS[tunnel.method]} window {tunnel.peer[1]} streams {tunnel.peer[2]}")
    host, port = address(arguments.get)
    request = f"GET {arguments.path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()
    answer = fetch(tunnel, arguments.window, host, port, request, say)
    head, _, body = answer.partition(b"\r\n\r\n")
    say("status " + head.split(b"\r\n")[0].decode(errors="replace"))
    say(f"body {len(body)} bytes")
    sys.stdout.flush()
    sys.stdout.buffer.write(body)
    sys.stdout.flush()


def read_key(path):
    with open(path, encoding="ascii") as file:
        line = file.read().strip()
    key = base64.b64decode(line.removeprefix(PREFIX), validate=True)
    if not line.startswith(PREFIX) or len(key) != 32:
        sys.exit(f"{path} holds no key of 0x81")
    return key


def methods(arguments):
    names = arguments.cipher or list(METHODS.values())
    return [method for name in names for method, its in METHODS.items() if its == name]


def address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def say(line):
    print(line, flush=True)


if __name__ == "__main__":
    main()
