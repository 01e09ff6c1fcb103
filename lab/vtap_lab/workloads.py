"""Small servers and clients for pods: `python -m vtap_lab.workloads http-server|http-client|dns-server|dns-client`.

Clients run until SIGTERM, at a steady rate, and end with status 1 at the first answer that is not what the server gives.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import socketserver
import sys
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset

from vtap_lab.errors import PATIENCE

READY = "ready"
DNS_NAME = "web.shop.svc.cluster.local."
_TIMEOUT = 5.0


class _Page(BaseHTTPRequestHandler):
    """Answers GET with a page of the size that stands in the server's `page`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        page = getattr(self.server, "page", b"")
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: thousands of lines that nobody reads."""


class _PageServer(socketserver.ThreadingTCPServer):
    """Not http.server's: that asks the name service for the host's name, which a pod of a lab may not have."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, page: bytes) -> None:
        self.page = page
        super().__init__(("", port), _Page)


def http_server(port: int, size: int) -> None:
    """Serve pages of `size` bytes."""
    with _PageServer(port, b"x" * size) as server:
        print(READY, flush=True)
        server.serve_forever()


def http_client(address: str, port: int, rate: float) -> None:
    """A request on a connection of its own, `rate` times a second."""

    def fetch(number: int) -> bool:
        connection = http.client.HTTPConnection(address, port, timeout=_TIMEOUT * PATIENCE)
        try:
            connection.request("GET", f"/order/{number}")
            return connection.getresponse().status == 200
        finally:
            connection.close()

    _repeat(fetch, rate)


def dns_server(address: str, port: int, answer: str) -> None:
    """Answer every question for an A record with one address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            question, reply_socket = self.request
            reply = dns.message.make_response(dns.message.from_wire(question), recursion_available=True)
            asked = reply.question[0]
            if asked.rdtype == dns.rdatatype.A:
                reply.answer.append(dns.rrset.from_text(asked.name, 30, "IN", "A", answer))
            reply_socket.sendto(reply.to_wire(), self.client_address)

    with socketserver.UDPServer((address, port), Handler) as server:
        print(READY, flush=True)
        server.serve_forever()


def dns_client(address: str, port: int, rate: float) -> None:
    """Ask for DNS_NAME, `rate` times a second; again where no answer comes, as every resolver does (RFC 1035, 4.2.1)."""

    def ask(number: int, tries: int = 3) -> bool:
        try:
            reply = dns.query.udp(dns.message.make_query(DNS_NAME, "A"), address, _TIMEOUT * PATIENCE / 2, port)
        except dns.exception.Timeout:
            return tries > 1 and ask(number, tries - 1)
        return reply.rcode() == dns.rcode.NOERROR and len(reply.answer) == 1

    _repeat(ask, rate)


def _repeat(attempt: Callable[[int], bool], rate: float) -> None:
    due = time.monotonic()
    for number in itertools.count():
        if not attempt(number):
            sys.exit(f"attempt {number} got a wrong answer")
        due = max(due + 1 / rate, time.monotonic() - 1 / rate)
        time.sleep(max(0.0, due - time.monotonic()))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vtap_lab.workloads", description="Servers and clients for pods")
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("http-server")
    server.add_argument("port", type=int)
    server.add_argument("--size", type=int, default=4000, help="bytes of a page")
    resolver = commands.add_parser("dns-server")
    resolver.add_argument("address")
    resolver.add_argument("--port", type=int, default=53)
    resolver.add_argument("--answer", required=True, help="the IPv4 address that every name has")
    for name, port in (("http-client", 80), ("dns-client", 53)):
        client = commands.add_parser(name)
        client.add_argument("address")
        client.add_argument("--port", type=int, default=port)
        client.add_argument("--rate", type=float, default=10, help="attempts a second")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve or ask until SIGTERM."""
    options = _arguments(argv)
    match options.command:
        case "http-server":
            http_server(options.port, options.size)
        case "dns-server":
            dns_server(options.address, options.port, options.answer)
        case "http-client":
            http_client(options.address, options.port, options.rate)
        case _:
            dns_client(options.address, options.port, options.rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
