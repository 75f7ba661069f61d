"""What an object store's errors mean: whether asking again may help, and their reason in a few words."""

import re
from typing import Any

STATUS = re.compile(r"status code: (\d{3})")
# Too busy or temporarily unavailable; any other 4xx status is a final answer.
_PASSING = {408, 425, 429}


class ShortReadError(Exception):
    """A download ended early."""


class ChangedError(Exception):
    """Bytes of a download changed on the way."""


def exceptions() -> Any:
    import obstore.exceptions

    return obstore.exceptions


def is_passing(error: Exception) -> bool:
    """Whether the same request may be answered later."""
    if isinstance(error, ShortReadError):
        return True
    if not isinstance(error, exceptions().GenericError):
        return isinstance(error, TimeoutError | ConnectionError)
    status = STATUS.search(str(error))
    return status is None or int(status[1]) >= 500 or int(status[1]) in _PASSING


def has_expired(error: Exception) -> bool:
    """Whether keys, or the token that they are issued for, have ended: S3's and STS's codes."""
    return (
        re.search(r"<Code>(ExpiredToken|ExpiredTokenException|TokenRefreshRequired)</Code>", str(error))
        is not None
    )


def reason_of(error: Exception) -> str:
    """The store's words in one short line; neither its headers nor a signed address."""
    text = str(error)
    told = re.search(r"<Message>(.*?)</Message>", text)
    status = STATUS.search(text)
    if told or status:
        return " ".join(filter(None, [status and f"status {status[1]}", told and told[1]]))
    lines = text.split("Debug source")[0].strip().splitlines()
    words = re.sub(r".*Error performing \w+ https?://\S+ in \S+ - ", "", lines[0]) if lines else ""
    return re.sub(r"https?://\S+", "", words).strip(" :") or type(error).__name__
