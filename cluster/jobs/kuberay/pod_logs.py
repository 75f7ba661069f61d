"""Reads the log of a pod across broken connections: no line is repeated or lost."""

import re
from collections import Counter
from collections.abc import Iterator

from cluster.jobs.kuberay.api import BrokenOffError, KubeApi, KubeError

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ?")


class TryLog:
    """The reported lines of one try: a second submitter of the same try writes them all again."""

    def __init__(self) -> None:
        self._lines: list[int] = []  # hashes; a million lines take 40 MB

    def reader(self) -> "TryReader":
        """A reader for one more pod of the try."""
        return TryReader(self._lines)


class TryReader:
    """Finds the lines of one pod that no earlier pod of the same try wrote."""

    def __init__(self, lines: list[int]) -> None:
        self._lines, self._known, self._position = lines, len(lines), 0

    def is_new(self, line: str) -> bool:
        """Whether `line` was not reported yet; it counts as reported from now on."""
        value = hash(line)
        if self._position < self._known:
            try:
                self._position = self._lines.index(value, self._position, self._known) + 1
            except (
                ValueError
            ):  # a line of the submitter itself, or one that the earlier submitter did not reach
                return True
            return False
        self._lines.append(value)
        return True


class PodLog:
    """The log of one pod.

    Each request starts at the second of the last line that was read, by the timestamps of Kubernetes, and skips the
    lines already read in that second. So broken connections and logs rotated by the node repeat or lose no line.

    Args:
        api: the API server.
        path: API path of the log.
        reader: which lines are new to the try.
    """

    def __init__(self, api: KubeApi, path: str, reader: TryReader) -> None:
        self._api, self._path, self._reader = api, path, reader
        self._second, self._zone = "", ""
        self._recent: list[str] = []  # lines of that second, with their timestamps
        self.is_complete = False
        """whether the last answer was complete"""

    def read(self, *, follow: bool) -> Iterator[str]:
        """The lines since the last request, with newlines; with follow, until the pod ends or the connection breaks.

        A deleted pod has no more lines. An incomplete last line is left to the next request.
        """
        query = {"timestamps": "true", "follow": "true" if follow else "false"}
        if self._second:
            query["sinceTime"] = self._second + self._zone
        replayed = Counter(self._recent)
        self.is_complete = False
        rest = ""
        try:
            for piece in self._api.stream(self._path, **query):
                *lines, rest = (rest + piece).split("\n")
                for line in lines:
                    yield from self._take(line, replayed, "\n")
        except BrokenOffError:
            return
        except KubeError:  # gone, or not yet started
            self.is_complete = not follow
            return
        if rest and not follow:
            yield from self._take(rest, replayed, "")
        self.is_complete = True

    def _take(self, line: str, replayed: Counter[str], end: str) -> Iterator[str]:
        if replayed[line] > 0:
            replayed[line] -= 1
            return
        if stamp := _STAMP.match(line):
            second = stamp[1]
            if second > self._second:
                self._second, self._zone, self._recent = second, stamp[2], []
            self._recent.append(line)
            line = line[stamp.end() :]
        if self._reader.is_new(line):
            yield line + end
