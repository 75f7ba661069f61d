"""Translate the library's messages, which use Python's arguments, to the options of the command line.

    resume=True continues it              →  --resume continues it
    protocol=knn scores the others        →  --protocol knn scores the others
    set it with split_column              →  set it with --split-column
    pack(split=classes) creates one       →  `fsl-dist pack --split classes` creates one

Dotted settings (`run.dir=…`) are the same in both and are kept. Options of the running command are recognised by any
name; those of other commands only by names with an underscore, which are not English words.
"""

import re
from collections.abc import Iterator, Sequence

import click


def on_one_line(message: str) -> str:
    """`message` with escapes instead of control characters, which names of files and classes may contain."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)


def innermost(root: click.Command, arguments: Sequence[str]) -> click.Command:
    """The command below `root` that `arguments` select; the group itself if they select none of its commands."""
    command = root
    for word in arguments:
        if not isinstance(command, click.Group):
            break
        command = command.commands.get(word, command)
    return command


def in_options(message: str, root: click.Command, command: click.Command) -> str:
    """`message` with arguments and functions in place of which `command`, one of those below `root`,
    has options and commands."""
    commands = dict(_walk(root, ""))
    options = {
        option.name: option
        for one in [*commands.values(), command]
        for option in one.params
        if isinstance(option, click.Option) and option.name and ("_" in option.name or one is command)
    }
    message = _rewrite_calls(
        message, commands, {path.split()[-1].replace("-", ""): path for path in commands if path}
    )
    return _rewrite_options(message, options)


def _walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _walk(below, f"{path} {name}".strip())


def _rewrite_calls(message: str, commands: dict[str, click.Command], paths: dict[str, str]) -> str:
    def command_line(call: re.Match[str]) -> str:
        path = paths.get(call[1].replace("_", ""))
        if path is None:
            return call[0]
        options = {
            str(option.name): option for option in commands[path].params if isinstance(option, click.Option)
        }
        arguments = " ".join(part.strip() for part in call[2].split(",") if part.strip())
        return f"`fsl-dist {f'{path} {_rewrite_options(arguments, options)}'.strip()}`"

    return re.sub(r"\b([a-z_]+)\(([^()]*)\)", command_line, message)


def _rewrite_options(message: str, options: dict[str, click.Option]) -> str:
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    if not names:
        return message

    def option_text(found: re.Match[str]) -> str:
        option, value = options[found[1]], found[2]
        flag = max(option.opts, key=len)
        if not value:
            return flag if "_" in found[1] else found[0]
        if not option.is_flag:
            return f"{flag} "
        if value == "=True":
            return flag
        return option.secondary_opts[0] if value == "=False" and option.secondary_opts else found[0]

    return re.sub(rf"(?<![\w./\-])({names})(=(?:True\b|False\b)?|(?![\w=(/\-]|\.\w))", option_text, message)
