"""Whether a server that has weights can be reached:
without a network, a download fails within seconds, not after retries."""

import logging
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
"""seconds in which a name is looked up and a connection made, or the server counts as out of reach"""


def is_reachable(url: str) -> bool:
    """Whether a connection to the server of `url`, or to the proxy that is set for it,
    can be made within `TIMEOUT_S`."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and parts.hostname and not urllib.request.proxy_bypass(parts.hostname):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)

    def connect() -> bool:
        try:
            socket.create_connection((parts.hostname or "", port), timeout=TIMEOUT_S).close()
        except OSError:
            return False
        return True

    # In a thread: a name look-up has no time limit.
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(connect).result(2 * TIMEOUT_S)
    except TookTooLong:
        return False
    finally:
        pool.shutdown(wait=False)


def check_reachable(url: str) -> None:
    """Raise OSError where `url` must be fetched with torch.hub, which waits without an end, and cannot be."""
    import torch

    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlsplit(url).path).name
    if not kept.is_file() and not is_reachable(url):
        raise OSError(f"{urllib.parse.urlsplit(url).hostname} cannot be reached")


@contextmanager
def hub_in_reach() -> Iterator[None]:
    """Use only the cache for files of the Hugging Face hub in this block, if the hub cannot be reached.

    Otherwise its client would try each of several files five times, for 50 s.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and not is_reachable(os.environ.get("HF_ENDPOINT", constants.ENDPOINT)):
        constants.HF_HUB_OFFLINE = True
        log.info("%s cannot be reached: its cache is used", constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
