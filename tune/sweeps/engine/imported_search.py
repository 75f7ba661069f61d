"""Points of a user's `ray.tune.search.Searcher`, which is imported by its path."""

import importlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fsl_dist.training.ray.session import prepare_import
from index.base.errors import ConfigError, RequestError
from index.base.extras import require
from tune.plan import NotYet, Proposer
from tune.records import Trial
from tune.search import next_point
from tune.space import Knob, Point
from tune.sweep_settings import ImportedSearch, SweepSettings

if TYPE_CHECKING:
    from ray.tune.search import Searcher

log = logging.getLogger(__name__)


def check_imported(config: SweepSettings) -> None:
    """Raise ConfigError if the search names a class that cannot be imported, or that does not accept the space."""
    if isinstance(config.search, ImportedSearch):
        _build(config, config.search)


def open_proposer(config: SweepSettings) -> Proposer:
    """What proposes the sweep's points."""
    if isinstance(config.search, ImportedSearch):
        return ImportedProposer(config, config.search)
    return next_point


class ImportedProposer:
    """A searcher with the results that it has got.

    Its state exists only in this process. After a kill a new one gets the finished trials, if it has
    `add_evaluated_point`; otherwise it starts from scratch, which is logged.
    """

    def __init__(self, config: SweepSettings, search: ImportedSearch) -> None:
        self._searcher = _build(config, search)
        self._search = search
        self._asked: set[int] = set()
        self._told: set[int] = set()

    def __call__(self, config: SweepSettings, trials: Sequence[Trial]) -> tuple[int, Point] | None:
        """The next point; None if the searcher has finished, NotYet if it waits for a trial."""
        self._tell(config, [trial for trial in trials if trial.draw >= 0 and trial.result])
        draw = max((trial.draw for trial in trials), default=-1) + 1
        found = self._searcher.suggest(_name(draw))
        if found == self._searcher.FINISHED:
            return None
        if found is None:
            raise NotYet
        self._asked.add(draw)
        return draw, self._point_of(config, found)

    def _tell(self, config: SweepSettings, ended: Sequence[Trial]) -> None:
        lost = 0
        for trial in ended:
            if trial.draw in self._told:
                continue
            self._told.add(trial.draw)
            assert trial.result is not None
            value = trial.result.value if trial.is_scored else None
            if trial.draw in self._asked:
                result = (
                    None if value is None else {"value": value, "training_iteration": trial.result.epochs}
                )
                self._searcher.on_trial_complete(_name(trial.draw), result, error=value is None)
            elif value is not None:
                parameters = {key: _as_told(knob, trial.point[key]) for key, knob in config.space.items()}
                try:
                    self._searcher.add_evaluated_point(parameters, value)
                except NotImplementedError:
                    lost += 1
        if lost:
            log.warning(
                "search.class=%s has no add_evaluated_point, so it restarts without %d trials that ended before",
                self._search.class_, lost,
            )  # fmt: skip

    def _point_of(self, config: SweepSettings, found: dict[str, Any]) -> Point:
        from ray.tune.utils.util import flatten_dict

        flat = flatten_dict(found, delimiter=".")
        if set(flat) != set(config.space):
            raise RequestError(
                f"search.class={self._search.class_} proposed the keys {', '.join(sorted(flat)) or 'none'}; space has "
                f"{', '.join(sorted(config.space))} (a searcher returns a value for each key of space, and no other)"
            )
        point: Point = {}
        for key, knob in config.space.items():
            value = flat[key].item() if hasattr(flat[key], "item") else flat[key]
            point[key] = knob.options[value] if _is_counted(knob) else value
        return point


def _build(config: SweepSettings, search: ImportedSearch) -> "Searcher":
    """The searcher, with the sweep's space. Raises ConfigError in one line."""
    prepare_import()
    require("ray")
    from ray.tune.search import Searcher

    module, _, name = search.class_.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may raise anything when it is imported
        raise ConfigError(
            f"search.class={search.class_} cannot be imported: {_one_line(error)} (install its package, or name a "
            "class that Python finds)"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Searcher)):
        raise ConfigError(
            f"search.class={search.class_} is not a ray.tune.search.Searcher (a subclass of it proposes points)"
        )
    try:
        searcher: Searcher = found(**search.settings)
        domains = {key: _domain_of(knob) for key, knob in config.space.items()}
        takes_space = searcher.set_search_properties("value", config.mode, domains)
    except Exception as error:  # the searcher's own, such as a package that is missing
        raise ConfigError(
            f"search.class={search.class_} with search.settings={search.settings} cannot be made: {_one_line(error)}"
        ) from error
    if not takes_space:
        raise ConfigError(
            f"search.class={search.class_} with search.settings={search.settings} accepts no space, metric or "
            "mode from the sweep (leave them out of search.settings; a Searcher's set_search_properties returns "
            "True if it accepts them)"
        )
    return searcher


def _domain_of(knob: Knob) -> Any:
    from ray import tune as raytune

    if knob.options:
        return raytune.choice(list(range(len(knob.options)) if _is_counted(knob) else knob.options))
    if knob.randint:
        return raytune.randint(knob.randint[0], knob.randint[1] + 1)
    return raytune.uniform(*knob.uniform) if knob.uniform else raytune.loguniform(*knob.loguniform)


def _is_counted(knob: Knob) -> bool:
    """Whether a searcher sees the places of the options in place of the options, some of which are lists."""
    return any(isinstance(option, tuple) for option in knob.options)


def _as_told(knob: Knob, value: Any) -> Any:
    return knob.options.index(value) if _is_counted(knob) else value


def _name(draw: int) -> str:
    return f"{draw:04d}"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
