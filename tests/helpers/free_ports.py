"""Ports that nobody listens on, and that no connection gets by chance."""

import errno
import random
import socket

# Below those that Linux gives to outgoing connections (32768 and above): a Ray on loopback has hundreds of these, and may
# take a port between the test's choice and the service's start.
_PORTS = range(15_000, 32_000)


def free_port() -> int:
    """A free TCP port of the loopback."""
    while True:
        port = random.SystemRandom().choice(_PORTS)  # other tests run at the same time, with the same seeds
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
