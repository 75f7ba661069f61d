"""The pages: templates filled with what comes from the data set, which is always escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cluster.view.replies import AnswerReply
from fsl_dist.viewing.corrections import Correction
from fsl_dist.viewing.curating import Kind, Suspicion, Suspicions
from fsl_dist.viewing.run_view import RunView, Sample

# A longer list of names is typed; a browser would be slow to show it.
_MOST_NAMES = 2000
# Images up to this side are shown with their pixels as squares.
_PIXELATED_SIDE = 64
_ORDERS = {
    "distance": "smallest distance first",
    "cosine": "largest cosine first",
    "product": "largest product first",
}

_TITLES: dict[Kind, tuple[str, str]] = {
    "label": ("Likely label errors", "A classifier that has not seen the image contradicts its label."),
    "duplicate": ("Near-duplicates", "The same or nearly the same picture is in another split or class."),
    "unlike": ("Unlike their class", "The image is far from all others of its class."),
    "thin": ("Thin classes", "The class has fewer than 5 training images."),
}


@dataclass(frozen=True, slots=True)
class Item:
    """A suspicious image on the page that corrects labels."""

    sample: Sample
    suspicion: Suspicion
    partner: Sample | None
    """an image to compare it with"""
    last: Correction | None
    """the last decision on it"""


class Pages:
    """Renders the pages of some opened runs of one data set."""

    def __init__(self, views: Sequence[RunView]) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        first = views[0]
        config, catalogue = first.trained.config, first.catalogue
        self._environment.globals |= {
            "runs": [view.name for view in views],
            "dataset": Path(config.data.dataset).name,
            "num_training": first.gallery.num_vectors,
            "networks": [view.trained.config.backbone.name for view in views],
            "splits": catalogue.split_names,
            "class_names": catalogue.class_names[:_MOST_NAMES],
            "group_names": catalogue.group_names[:_MOST_NAMES],
            "has_groups": bool(catalogue.group_names),
            "start_split": next(name for name in ("test", "val", "train") if name in catalogue.split_names),
            "pixelated": "pixelated" if config.data.image_size <= _PIXELATED_SIDE else "",
            "orders": _ORDERS,
        }

    def ask(self) -> str:
        """The page that asks about images."""
        return self._environment.get_template("ask.html").render()

    def login(self, *, is_wrong: bool = False) -> str:
        """The page that asks for the token."""
        return self._environment.get_template("login.html").render(is_wrong=is_wrong)

    def correct(
        self, kind: Kind, items: Sequence[Item], found: Suspicions | None, problem: str, table: str
    ) -> str:
        """The page that corrects labels; `found` is None until the lists are computed."""
        return self._environment.get_template("correct.html").render(
            kind=kind, items=items, found=found, problem=problem, table=table, titles=_TITLES
        )

    def answer(self, reply: AnswerReply, run: int) -> str:
        """A fragment of a page with one answer; `run` is the position of its run."""
        return self._environment.get_template("answer.html").render(reply=reply, run=run)
