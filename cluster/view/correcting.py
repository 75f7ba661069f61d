"""The routes by which a curator corrects labels."""

import logging
import threading
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from cluster.view.pages import Item, Pages
from cluster.view.replies import CorrectionReply, ListsState
from fsl_dist.viewing.corrections import Correction, Corrections, Decision
from fsl_dist.viewing.curating import KINDS, Kind, Suspicions, find_suspicions
from fsl_dist.viewing.run_view import RunView
from index.base.errors import FslDistError, RequestError

logger = logging.getLogger(__name__)


class Corrector:
    """The lists of suspicious images, computed on a thread at the first visit, and the decisions on them."""

    def __init__(self, view: RunView, table: Path, *, seconds: float) -> None:
        """table: the decisions. seconds: time limit of the lists."""
        self.view, self.corrections = view, Corrections(table)
        self.suspicions: Suspicions | None = None
        self.problem = ""
        self._seconds = seconds
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to compute the lists, unless that was done."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._compute, name="fsl-dist-view-lists", daemon=True)
                self._thread.start()

    def decide(self, sample: int, kind: Kind, decision: Decision, label: str) -> Correction:
        """Write a decision to the table. Raises RequestError for an unknown class."""
        view, names = self.view, self.view.catalogue.class_names
        (described,) = view.describe([sample])
        was = described.label
        if decision in ("accept", "correct"):
            view.only("train", label)
            if not label:
                raise RequestError(f"decision={decision} needs a label, the name of a class")
            new = names[names.index(label)]
        else:
            new = was if decision == "keep" else ""
        correction = Correction(described.key, new, was, decision, kind)
        with self._lock:
            self.corrections.append(correction)
        return correction

    def _compute(self) -> None:
        try:
            self.suspicions = find_suspicions(Path(self.view.trained.run), seconds=self._seconds)
        except FslDistError as error:
            self.problem = str(error)
        except Exception:
            logger.exception("the lists could not be computed")
            self.problem = "the lists could not be computed; the log of the application says why"


class DecisionBody(BaseModel):
    """A decision on one image."""

    sample: Annotated[int, Field(ge=0)]
    """its id"""
    list: Kind
    """the list in which it was found"""
    decision: Decision
    """accept the suggested label, keep the label, correct it to another class, leave the image out"""
    label: Annotated[str, Field(max_length=1000)] = ""
    """the class, for accept and correct"""


def add_correcting(app: FastAPI, corrector: Corrector, pages: Pages) -> None:
    """Add the routes."""

    @app.get("/correct", response_class=HTMLResponse, include_in_schema=False)
    async def correct_page(kind: Annotated[Kind, Query(alias="list")] = "label") -> str:
        corrector.start()
        found = corrector.suspicions
        items = [] if found is None else _items(corrector, found, kind)
        return pages.correct(kind, items, found, corrector.problem, str(corrector.corrections.path))

    @app.get("/correct/state")
    async def state() -> ListsState:
        """Whether the lists are computed, and how many images each has."""
        found = corrector.suspicions
        numbers = {} if found is None else {str(kind): found.numbers[kind] for kind in KINDS}
        return ListsState(found is not None, corrector.problem, numbers)

    @app.post("/corrections")
    async def decide(body: DecisionBody) -> CorrectionReply:
        """Append a decision to the table of corrections."""
        num = corrector.view.catalogue.num_samples
        if body.sample >= num:
            raise HTTPException(404, f"sample {body.sample} is unknown; the data set has {num} samples")
        try:
            made = await run_in_threadpool(
                corrector.decide, body.sample, body.list, body.decision, body.label
            )
        except OSError as error:
            raise HTTPException(
                507, f"the decision was not written to {corrector.corrections.path.name}: {error.strerror}"
            ) from error
        return CorrectionReply(made.key, made.label, made.was, made.decision)


def _items(corrector: Corrector, found: Suspicions, kind: Kind) -> list[Item]:
    suspicions = found.items[kind]
    samples = corrector.view.describe([one.sample for one in suspicions])
    partners = corrector.view.describe([max(one.partner, 0) for one in suspicions])
    last = corrector.corrections.last
    return [
        Item(sample, suspicion, partner if suspicion.partner >= 0 else None, last.get(sample.key))
        for sample, suspicion, partner in zip(samples, suspicions, partners, strict=True)
    ]
