"""A SpeechService on a port: uvicorn, one process, until a signal, which ends it gently."""

from __future__ import annotations

import logging
import socket
import sys

import uvicorn

from llasa_core.errors import InputError
from llasa_core.processes import Terminated
from llasa_core.serving.web import Web

GRACE = 5.0  # seconds for the last bytes, after the time that a request may take


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket on an address, port 0: a free one; nobody is let in yet. InputError where it is
    taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        door.close()
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{host} port {port}: cannot listen there ({why})") from None
    return door


def address(door: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = door.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(web: Web, door: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then no new ones, and those that are open are
    finished. A second Ctrl-C ends at once.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="llasa: %(message)s")
    config = uvicorn.Config(
        web.application(),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(web.service.limits.seconds + GRACE),
    )
    door.listen(1024)
    try:
        uvicorn.Server(config).run(sockets=[door])
    except Terminated:
        print("llasa: all requests are finished", file=sys.stderr)
