"""Reads the command line of a job before it is sent: its command words, its --config, errors, and local paths."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import click

from cluster.jobs.job import LONGEST_NAME
from index.base.errors import RequestError
from index.base.files import new_token

_NOT_JOBS = ("submit", "job", "top", "k8s")
# Keys of a run and of a sweep that are paths.
_PATHS = ("run.dir", "dir", "data.dataset", "data.features", "backbone.weights")
_SETTING = re.compile(r"^[A-Za-z_][A-Za-z0-9_.]*=")


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command line of `fsl-dist`, read but not run."""

    words: tuple[str, ...]
    """the words of its command, such as ("sweep", "run")"""
    rest: tuple[str, ...]
    """what follows these words, without `--config FILE`"""
    config: Path | None
    """the file that --config names"""
    options: frozenset[str]
    """long names of all options of the command"""
    paths: tuple[str, ...] = ()
    """its arguments that are neither options nor KEY=VALUE, in their order"""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command line without `--config FILE`."""
        return (*self.words, *self.rest)

    @property
    def settings(self) -> tuple[str, ...]:
        """Its KEY=VALUE arguments."""
        return tuple(word for word in self.rest if _SETTING.match(word))

    def value(self, option: str) -> str:
        """The value of `option`; empty if it is not given."""
        words = list(self.rest)
        if "--" in words:
            words = words[: words.index("--")]
        for word, following in zip_longest(words, words[1:], fillvalue=""):
            if word == option:
                return following
            if word.startswith(f"{option}="):
                return word.removeprefix(f"{option}=")
        return ""

    def number(self, option: str) -> int | None:
        """The value of `option` as a whole number; None if it is not given, or is not a number."""
        text = self.value(option)
        return int(text) if text.isdigit() else None

    def with_options(self, *first: str, flags: Sequence[str] = ()) -> tuple[str, ...]:
        """The command line with `first` after the command words, and those of `flags` that it has and lacks."""
        added = [flag for flag in flags if flag in self.options and flag not in self.rest]
        return (*self.words, *first, *added, *self.rest)


def read_command(root: click.Group, arguments: Sequence[str]) -> Command:
    """Find the command in `arguments`, and separate its --config.

    Raises RequestError for an unknown command, for one that cannot run as a job, and for an unknown option.
    Values are not checked: a path may exist where the job runs but not here.
    """
    command: click.Command = root
    words: list[str] = []
    rest = list(arguments)
    while isinstance(command, click.Group):
        known = [name for name in command.list_commands(click.Context(command)) if name not in _NOT_JOBS]
        name = rest.pop(0) if rest else ""
        found = command.get_command(click.Context(command), name) if name in known else None
        if found is None:
            said = f"{' '.join([*words, name])!r} is not a command" if name else "there is no command"
            raise RequestError(
                f"{said} that a job could run; one of {', '.join(known)} follows {' '.join(words) or '--'}"
            )
        words.append(name)
        command = found
    context = click.Context(command, info_name=" ".join(words))
    try:
        given, _, _ = command.make_parser(context).parse_args(list(rest))
    except click.UsageError as error:
        raise RequestError(f"fsl-dist {' '.join(words)}: {error.format_message()}") from None
    config = next(
        (given.get(p.name) for p in command.params if p.name and "--config" in p.opts and given.get(p.name)),
        None,
    )
    named = [given.get(p.name) for p in command.params if isinstance(p, click.Argument) and p.name]
    positional = [
        word
        for one in named
        for word in (one if isinstance(one, (list, tuple)) else [one])
        if isinstance(word, str)
    ]
    return Command(
        words=tuple(words),
        rest=tuple(_without_config(rest)) if config else tuple(rest),
        config=Path(config) if config else None,
        options=frozenset(name for p in command.params for name in p.opts if name.startswith("--")),
        paths=tuple(word for word in positional if not _SETTING.match(word)),
    )


def resolve_command(command: Command, *, is_elsewhere: bool) -> tuple[Command, str]:
    """The command as a job runs it, and the text of its configuration, checked with its KEY=VALUE arguments.

    The text includes everything that the file refers to. With is_elsewhere, a run of one worker uses Ray Train:
    in the command's own process it would train on the cluster's head, which often has no GPU.
    Raises ConfigError as the command itself would.
    """
    if command.words == ("sweep", "run"):
        from tune.sweep_file import inline_sweep, load_sweep

        if command.config is None:
            raise RequestError("fsl-dist sweep run: Missing option '--config'.")
        load_sweep(command.config, command.settings)
        return command, inline_sweep(command.config)
    if command.words == ("train",):
        from fsl_dist.config import load_config, render_config

        # Without --config, --resume reads the run's own config.yaml, which may be on another machine.
        if command.config is None and "--resume" in command.rest:
            return command, ""
        config = load_config(command.config, command.settings)
        if is_elsewhere and not config.uses_ray and config.workers.launch == "auto":
            command = replace(command, rest=(*command.rest, "workers.launch=ray"))
        return command, render_config(config) if command.config else ""
    if command.words == ("index", "build"):
        from index.base.settings import parse_overrides, validate
        from index.config import IndexConfig

        validate(IndexConfig, parse_overrides(command.settings), "the arguments")
    if command.config is None:
        return command, ""
    from fsl_dist.config import load_config, render_config

    return command, render_config(load_config(command.config, command.settings))


def name_job(command: Command) -> str:
    """A new name: the command, the date and time, and 48 random bits, so that concurrent submitters never collide."""
    ending = f"-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{new_token()}"
    words = "-".join(command.words)[: LONGEST_NAME - len(ending)].rstrip("-")
    return words + ending


def find_local_paths(command: Command, config: str) -> list[str]:
    """Relative paths that the command or its configuration names: on another machine they mean something else."""
    named = {}
    if config:
        from index.base.settings import parse_yaml

        # A sweep has its run under `base`; a KEY=VALUE of either overrides the file.
        named = {key.removeprefix("base."): text for key, text in _flatten(parse_yaml(config, "--config"))}
    named |= {word.partition("=")[0]: word.partition("=")[2] for word in command.rest if "=" in word}
    # A single word is a name (workers.launch=ray) rather than a path, unless its key is one of _PATHS.
    found = [text for key, text in named.items() if key in _PATHS and text and _is_relative(text)]
    found += [text for text in named.values() if "/" in text and _is_relative(text) and _exists(text)]
    found += [word for word in command.rest if "=" not in word and _is_relative(word) and _exists(word)]
    return list(dict.fromkeys(found))


def _is_relative(text: str) -> bool:
    return "://" not in text and not text.startswith(("-", "/"))


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except OSError:  # too long for a path
        return False


def _flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value of all texts, those of lists under the list's key and their number."""
    for name, value in tree.items():
        items = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(items, Mapping):
            yield from _flatten({str(key): item for key, item in items.items()}, f"{prefix}{name}.")
        elif isinstance(items, str):
            yield f"{prefix}{name}", items


def _without_config(words: Sequence[str]) -> Iterator[str]:
    waiting = iter(words)
    for word in waiting:
        if word == "--":
            yield word
            yield from waiting
        elif word == "--config":
            next(waiting, None)
        elif not word.startswith("--config="):
            yield word
