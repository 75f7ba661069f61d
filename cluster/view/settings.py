"""What the browser application is started with."""

import ipaddress
import socket
from typing import Annotated

from pydantic import Field

from index.base.errors import RequestError
from index.base.settings import settings


@settings("view")
class ViewSettings:
    """Limits of one request."""

    max_upload_mb: Annotated[int, Field(ge=1, le=512)] = 20
    """Size of an uploaded image file, in MiB."""

    max_megapixels: Annotated[float, Field(gt=0.0, le=178.0)] = 50.0
    """Millions of pixels that an uploaded image may declare; a larger one is not decoded."""

    max_k: Annotated[int, Field(ge=1, le=1000)] = 100
    """Neighbours of an image."""

    timeout_s: Annotated[float, Field(gt=0.0)] = 60.0
    """Seconds within which a request is answered; then it is refused with 504."""

    lists_s: Annotated[float, Field(gt=0.0)] = 300.0
    """Seconds that the lists of likely label errors and near-duplicates may take; parts that do not fit are named."""


def check_address(host: str, port: int, *, has_token: bool) -> None:
    """Raise RequestError for an address in use, and for one that others can reach without a token."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise RequestError(f"host={host} is not an address of this machine: {error}") from None
    if not ipaddress.ip_address(address[0]).is_loopback and not has_token:
        raise RequestError(
            f"host={host} lets others see the images, and there is no token; set token_env=… to the name of an "
            "environment variable that contains one"
        )
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise RequestError(f"host={host} port={port}: {error.strerror}; choose another port=…") from None
