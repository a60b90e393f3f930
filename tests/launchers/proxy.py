"""A way to an API server that can be closed: connections are handed on byte for byte, TLS as it is."""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable


class Proxy:
    """Listens on this machine and hands on to one address."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.pairs: set[socket.socket] = set()
        self.server = self._serve(0)

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def _serve(self, port: int) -> socketserver.ThreadingTCPServer:
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                try:
                    other = socket.create_connection(proxy.target, timeout=10)
                except OSError:
                    return
                other.settimeout(None)
                proxy.pairs |= {self.request, other}
                back = threading.Thread(target=hand_on, args=(other, self.request, proxy.passed), daemon=True)
                back.start()
                hand_on(self.request, other, proxy.passed)
                back.join()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=lambda: server.serve_forever(poll_interval=0.05), daemon=True).start()
        return server

    def passed(self, source: socket.socket, count: int) -> None:
        """Called with the bytes that an end has sent."""

    def stop(self) -> None:
        """Nobody answers any more, and what is open breaks off."""
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.pairs):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.pairs.clear()

    def start(self) -> None:
        """Hand on again, at the same address."""
        self.server = self._serve(self.port)


def hand_on(source: socket.socket, target: socket.socket, passed: Callable[[socket.socket, int], None]) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 16):
            passed(source, len(block))
            target.sendall(block)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
