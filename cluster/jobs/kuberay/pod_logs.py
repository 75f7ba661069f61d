"""A pod's log, asked for as often as connections break: no line twice, none left out."""

import re
from collections import Counter
from collections.abc import Iterator

from cluster.jobs.kuberay.api import BrokenOffError, KubeApi, KubeError

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ?")


class TryLog:
    """The lines of one try that were reported: a second submitter of the same try writes them all again."""

    def __init__(self) -> None:
        self._lines: list[int] = []  # hashes; a million lines take 40 MB

    def reader(self) -> "TryReader":
        """What one more pod of the try writes."""
        return TryReader(self._lines)


class TryReader:
    """Finds, among the lines of one pod, those that an earlier pod of the same try did not write."""

    def __init__(self, lines: list[int]) -> None:
        self._lines, self._known, self._position = lines, len(lines), 0

    def is_new(self, line: str) -> bool:
        """Whether `line` was not reported yet; it counts as reported from now on."""
        value = hash(line)
        if self._position < self._known:
            try:
                self._position = self._lines.index(value, self._position, self._known) + 1
            except ValueError:  # of the submitter itself, or what the earlier one did not get to write
                return True
            return False
        self._lines.append(value)
        return True


class PodLog:
    """The log of one pod.

    Each request resumes at the second of the last line that was read, by the timestamps of Kubernetes, and leaves out what was
    read in that second. So neither a connection that breaks nor a log that the node has rotated repeats or loses a line.

    Args:
        api: the API server.
        path: of the log.
        reader: which lines are new to the try.
    """

    def __init__(self, api: KubeApi, path: str, reader: TryReader) -> None:
        self._api, self._path, self._reader = api, path, reader
        self._second, self._zone = "", ""
        self._recent: list[str] = []  # lines of that second, with their timestamps
        self.is_complete = False
        """whether the last request was answered to its end"""

    def read(self, *, follow: bool) -> Iterator[str]:
        """The lines since the last request, each with its newline; with follow until the pod ends or the connection does.

        A pod that is gone has no more lines. Half a line at a connection's end is left to the next request.
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
