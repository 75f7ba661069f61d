"""The browser application as a running server: opened runs, a listening socket, and how it ends."""

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn

from cluster.service.connections import GuardedConnection
from cluster.service.gate import VARIABLE, environment
from cluster.service.settings import GateSettings, digest_token
from cluster.view.application import Application, build_application
from cluster.view.gate import Sessions, ViewGate
from cluster.view.settings import ViewSettings, check_address
from fsl_dist.errors import RequestError
from fsl_dist.training.trained import TrainedRun, open_trained
from fsl_dist.viewing.run_view import RunView
from index.base.errors import FslDistError

_MILLION = 1_000_000
_READY_WITHIN_S = 30.0


class ViewServer:
    """The browser application for one run, or for two runs of one data set that are compared.

    It listens from its creation until `close`, on a thread of its own.
    """

    def __init__(
        self,
        runs: Sequence[Path],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token_env: str | None = None,
        corrections: Path | None = None,
        settings: ViewSettings | None = None,
    ) -> None:
        """Open the runs and listen.

        Args:
            runs: folders of one or two runs on the same catalogue version. They are opened here, because a network is
                used by one thread.
            host: address to listen on; others than loopback need a token.
            port: 0: a free one.
            token_env: environment variable with the token that requests must have.
            corrections: table to which decisions on labels are appended; by default corrections.csv in the first
                run's folder.
            settings: limits of a request.

        Raises:
            RequestError: the runs are of different data, the address cannot be used, or a token is missing.
        """
        settings = settings or ViewSettings()
        check_address(host, port, has_token=token_env is not None)
        token_sha256 = "" if token_env is None else digest_token(token_env)
        if not 1 <= len(runs) <= 2:
            raise RequestError(f"view shows one run or compares two; {len(runs)} were given")
        with ExitStack() as opened:
            found = [open_trained(run) for run in runs]
            for trained in found:
                opened.callback(trained.close)
            _check_same_data(found)
            views: list[RunView] = []
            for trained in found:
                views.append(RunView(trained, max_pixels=round(settings.max_megapixels * _MILLION)))
                opened.callback(views[-1].close)
            sessions = Sessions(token_sha256)
            table = corrections or Path(found[0].run) / "corrections.csv"
            state = Application(views, settings, sessions, table)
            opened.callback(state.close)
            gate = GateSettings(
                max_body_mb=settings.max_upload_mb, replica_s=settings.timeout_s, token_sha256=token_sha256
            )
            # Read by the connections, which uvicorn creates.
            os.environ[VARIABLE] = environment(gate)[VARIABLE]
            names = frozenset({"localhost", "127.0.0.1", "::1", host})
            app = ViewGate(build_application(state), gate, sessions, names)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            port = listening.getsockname()[1]
            self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            config = uvicorn.Config(
                app, http=GuardedConnection, ws="none", log_level="warning", access_log=False, lifespan="off",
                server_header=False,
            )  # fmt: skip
            self._server = uvicorn.Server(config)
            self._thread = threading.Thread(
                target=self._server.run,
                kwargs={"sockets": [listening]},
                name="fsl-dist-view-server",
                daemon=True,
            )
            opened.callback(self._stop)
            self._thread.start()
            self._wait_until_ready()
            self._open = opened.pop_all()

    def __repr__(self) -> str:
        return f"ViewServer('{self.url}')"

    def _repr_html_(self) -> str:
        return f'<a href="{self.url}" target="_blank" rel="noopener">{self.url}</a>'

    @property
    def is_running(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Answer the running requests, then stop."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_WITHIN_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise FslDistError(f"{self.url} did not start to answer")
            time.sleep(0.01)


def _check_same_data(runs: Sequence[TrainedRun]) -> None:
    first, *others = runs
    for other in others:
        if other.catalogue.fingerprint != first.catalogue.fingerprint:
            raise RequestError(
                f"{other.run} was trained on {other.config.data.dataset}, version {other.catalogue.version}, and "
                f"{first.run} on {first.config.data.dataset}, version {first.catalogue.version}; view compares runs of "
                "the same images and labels"
            )
