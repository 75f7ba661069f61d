"""The routes of the browser application, as JSON and as pages."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import parse_qs

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from cluster.view.correcting import Corrector, add_correcting
from cluster.view.gate import COOKIE, LOGIN, Sessions
from cluster.view.pages import Pages
from cluster.view.replies import Activation, AnswerReply, NovelReply, answer_reply, maps_reply
from cluster.view.settings import ViewSettings
from fsl_dist.plots.map_overlay import ramp
from fsl_dist.viewing.novel import NovelClasses
from fsl_dist.viewing.run_view import Asked, RunView, Sample, encode_picture
from index.base.errors import FslDistError, RequestError

logger = logging.getLogger(__name__)

_MAX_LINE = 600
"""characters of a refusal"""
_PER_PAGE = 48
_MAX_MAPS = 50
Split = Literal["train", "val", "test", "novel"]
K = Annotated[int, Query(ge=1, description="Neighbours, nearest first.")]
Run = Annotated[int, Query(ge=0, description="Position of the run on the command line.")]
ClassName = Annotated[str, Query(max_length=1000, description="Only images of this class; empty: any.")]
GroupName = Annotated[str, Query(max_length=1000, description="Only images of this group; empty: any.")]
Ids = Annotated[str, Query(pattern=r"^\d{1,18}(,\d{1,18})*$", description="Sample ids, separated by commas.")]
Result = TypeVar("Result")


class Application:
    """The state of the application: the opened runs, the novel classes, and one thread that works with the networks."""

    def __init__(
        self, views: Sequence[RunView], settings: ViewSettings, sessions: Sessions, corrections: Path
    ) -> None:
        """corrections: the table of a curator's decisions."""
        self.views, self.settings, self.sessions = views, settings, sessions
        self.novel = [NovelClasses(view) for view in views]
        self.pages = Pages(views)
        self.corrector = Corrector(views[0], corrections, seconds=settings.lists_s)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fsl-dist-view")

    def close(self) -> None:
        """Stop the thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def work(self, call: Callable[[], Result]) -> Result:
        """Run a call on the thread of the networks."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    def view(self, run: int) -> RunView:
        """A run by its position."""
        if run >= len(self.views):
            raise HTTPException(404, f"run={run}: there are {len(self.views)} runs, numbered from 0")
        return self.views[run]

    async def answer(
        self, image: Asked, run: int, k: int, split: Split, class_name: str, group_name: str
    ) -> AnswerReply:
        """Ask a run about an image."""
        view, novel = self.view(run), self.novel[run]
        if k > self.settings.max_k:
            raise HTTPException(422, f"k={k} is more than max_k={self.settings.max_k} of this application")
        only = view.only(split, class_name, group_name)
        return await self.work(
            lambda: answer_reply(view, view.ask(image, k=k, only=only, novel=novel.vectors))
        )


def refuse(error: Exception) -> Response:
    """An error as an answer: {"error": one line}."""
    headers = None
    match error:
        case HTTPException():
            status, text, headers = error.status_code, str(error.detail), error.headers
        case RequestValidationError():
            first = error.errors()[0]
            status, text = 422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"
        case RequestError():
            status, text = 422, str(error)
        case _:
            status, text = 500, "the request failed; the log of the application says why"
            # The message of an error may quote an image; its type and place do not.
            logger.error("a request failed: %s", type(error).__name__, exc_info=error)
    if len(text) > _MAX_LINE:
        text = f"{text[: _MAX_LINE // 2]} … {text[-_MAX_LINE // 2 :]}"
    return JSONResponse({"error": " ".join(text.split())}, status, headers)


def build_application(state: Application) -> FastAPI:
    """The routes."""
    app = FastAPI(
        title="fsl-dist view", summary="Evidence for the answers of a run", docs_url=None, redoc_url=None
    )
    for kind in (HTTPException, RequestValidationError, FslDistError, Exception):
        app.add_exception_handler(kind, lambda _, error: refuse(error))
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    _add_pages(app, state)
    _add_questions(app, state)
    _add_novel(app, state)
    add_correcting(app, state.corrector, state.pages)
    return app


def _add_pages(app: FastAPI, state: Application) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def ask_page() -> str:
        return state.pages.ask()

    @app.get(LOGIN, response_class=HTMLResponse, include_in_schema=False)
    async def login_page() -> str:
        return state.pages.login()

    @app.post(LOGIN, include_in_schema=False)
    async def log_in(request: Request) -> Response:
        fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=4)
        if not state.sessions.is_token(fields.get("token", [""])[0]):
            return HTMLResponse(state.pages.login(is_wrong=True), 401)
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, state.sessions.cookie, httponly=True, samesite="strict")
        return response

    @app.get("/ramp.png", response_class=Response, include_in_schema=False)
    async def colours() -> Response:
        return Response(encode_picture(np.asarray(ramp())), media_type="image/png")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Ready: the runs are open."""
        return {"status": "ready"}


def _add_questions(app: FastAPI, state: Application) -> None:
    def reply_as(request: Request, run: int, reply: AnswerReply) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(state.pages.answer(reply, run))
        return JSONResponse(jsonable_encoder(reply))

    @app.post("/ask", response_model=AnswerReply, openapi_extra={"requestBody": _IMAGE})
    async def ask_upload(
        request: Request,
        run: Run = 0,
        k: K = 10,
        split: Split = "train",
        class_name: ClassName = "",
        group_name: GroupName = "",
    ) -> Response:
        """Answer an image, whose file is the body. It is kept in memory until the answer is sent, and nowhere else.

        With `Accept: text/html` the answer is a fragment of a page.
        """
        image = await request.body()
        return reply_as(request, run, await state.answer(image, run, k, split, class_name, group_name))

    @app.get("/samples/{sample}/answer", response_model=AnswerReply)
    async def ask_sample(
        request: Request,
        sample: int,
        run: Run = 0,
        k: K = 10,
        split: Split = "train",
        class_name: ClassName = "",
        group_name: GroupName = "",
    ) -> Response:
        """Answer an image of the data set, which is not its own neighbour."""
        _check_id(state, sample)
        return reply_as(request, run, await state.answer(sample, run, k, split, class_name, group_name))

    @app.get(
        "/samples/{sample}/image", response_class=Response, responses={200: {"content": {"image/png": {}}}}
    )
    async def image(sample: int, run: Run = 0) -> Response:
        """The part of an image of the data set that the network sees, as PNG."""
        _check_id(state, sample)
        view = state.view(run)
        return Response(await state.work(lambda: view.picture(sample)), media_type="image/png")

    @app.get("/samples")
    async def samples(
        split: Split = "test",
        class_name: ClassName = "",
        group_name: GroupName = "",
        start: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = _PER_PAGE,
    ) -> list[Sample]:
        """Images of a split in the order of their ids, from position `start`."""
        return state.views[0].list_samples(state.views[0].only(split, class_name, group_name), start, limit)

    @app.post("/maps", openapi_extra={"requestBody": _IMAGE})
    async def maps_upload(request: Request, ids: Ids, run: Run = 0) -> list[Activation]:
        """Activation maps of the body's image with each of some images of the data set, as coloured PNGs."""
        return await _maps(state, await request.body(), ids, run)

    @app.get("/samples/{sample}/maps")
    async def maps_sample(sample: int, ids: Ids, run: Run = 0) -> list[Activation]:
        """The same for an image of the data set."""
        _check_id(state, sample)
        return await _maps(state, sample, ids, run)


async def _maps(state: Application, image: Asked, ids: str, run: int) -> list[Activation]:
    samples = [int(sample) for sample in ids.split(",")]
    if len(samples) > _MAX_MAPS:
        raise HTTPException(422, f"ids has {len(samples)} samples; at most {_MAX_MAPS} have maps at once")
    for sample in samples:
        _check_id(state, sample)
    view = state.view(run)
    return await state.work(lambda: maps_reply(view, image, samples))


def _add_novel(app: FastAPI, state: Application) -> None:
    name = Annotated[str, Query(min_length=1, max_length=200, description="Name of the class.")]

    @app.get("/novel")
    async def novel() -> list[NovelReply]:
        """The novel classes that are known to this process."""
        return [NovelReply(name, count) for name, count in state.novel[0].counts.items()]

    @app.post("/novel", openapi_extra={"requestBody": _IMAGE})
    async def add(request: Request, name: name) -> list[NovelReply]:
        """Add the body's image to a novel class. Its embedding is kept in memory, the image is not."""
        image = await request.body()
        for classes in state.novel:
            await state.work(partial(classes.add, name, image))
        return await novel()

    @app.delete("/novel")
    async def remove(name: name) -> list[NovelReply]:
        """Forget a novel class."""
        for classes in state.novel:
            classes.remove(name)
        return await novel()


def _check_id(state: Application, sample: int) -> None:
    num = state.views[0].catalogue.num_samples
    if not 0 <= sample < num:
        raise HTTPException(
            404, f"sample {sample} is unknown; the data set has {num} samples, numbered from 0"
        )


_IMAGE = {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
