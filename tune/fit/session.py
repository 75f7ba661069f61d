"""The state that the steps of a fit share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from index.base.files import Owner
from tune.fit.budget.clock import Clock
from tune.fit.budget.plan import FitPlan
from tune.fit.budget.prepare import embeddings_s, end_s
from tune.fit.config import FitConfig
from tune.fit.data import Parts


@dataclass(slots=True)
class Session:
    """One session of a fit: from a call, or a resume, to its end."""

    config: FitConfig
    out: Path
    """the fit's folder"""
    owner: Owner
    clock: Clock
    parts: Parts
    plan: FitPlan
    say: Callable[[str], None]
    """shows a sentence to who watches"""
    progress: object
    """shows a line in place of the one before; or False"""
    notes: list[str] = field(default_factory=list)
    """sentences for the record"""
    warnings: list[str] = field(default_factory=list)
    embedding_s: float = 0.0
    """seconds for embedding all images by the frozen network and fitting its heads, in this session; 0:
    they were cached"""

    def note(self, text: str) -> None:
        """A sentence for the record and for who watches."""
        self.notes.append(text)
        self.say(text)

    @property
    def reserve_s(self) -> float:
        """Seconds that are reserved for the steps after the final run, estimated from those of the frozen network."""
        assert self.plan.rates is not None
        seconds = 1.3 * self.embedding_s or embeddings_s(self.plan, self.plan.rates)
        return seconds + end_s(self.config)
