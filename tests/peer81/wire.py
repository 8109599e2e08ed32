"""One TCP connection, as the channel wants it."""
import socket

from channel import Closed


class Wire:
    """Just so many bytes or Closed."""

    def __init__(self, connection):
        self.connection = connection

    def send(self, data):
        try:
            self.connection.sendall(data)
        except OSError as error:
            raise Closed(str(error)) from None

    def receive(self, count):
        parts = []
        while count:
            try:
                part = self.connection.recv(count)
            except (ConnectionError, socket.timeout) as error:
                raise Closed(str(error)) from None
            if not part:
                raise Closed("end of the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
