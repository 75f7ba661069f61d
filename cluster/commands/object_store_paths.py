"""Addresses at s3:// and gs:// on the command line: some commands get working folders for them, others refuse them."""

import click

from index.base.errors import RequestError
from index.base.object_cache import bring, is_url, working_folder

_INDEX_COMMANDS = ("build", "search", "status", "rollback", "add", "remove", "update", "merge", "serve")
COMMANDS = {
    *("pack", "resplit", "inspect", "train", "embed", "evaluate", "predict", "explain", "export", "doctor"),
    *(f"index {command}" for command in _INDEX_COMMANDS),
    *("sweep resume", "sweep report"),
}
"""commands that read and write at object stores"""
_PASSED_ON = ("submit", "job", "top")
"""commands whose addresses are a cluster's, or another command's, which resolves them where it runs"""
_OPTIONS_ON_DISK = ("--table", "--plots", "--config")
# Every other argument is a folder.
_FILES = (".npy", ".npz", ".parquet")


class PlacesGroup(click.Group):
    """The commands, whose arguments may be addresses at object stores."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, resolve_places(args))


def resolve_places(arguments: list[str]) -> list[str]:
    """Replace addresses in `arguments` by working folders; RequestError if the command or option does not support them.

    Values of KEY=VALUE are not changed: the configuration knows which of them are addresses.
    """
    words = [word for word in arguments if not word.startswith("-")]
    command = " ".join(words[:2]) if words[:1] in (["index"], ["sweep"]) else " ".join(words[:1])
    if words[:1] and words[0] in _PASSED_ON:
        return arguments
    resolved, before = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_setting = bool(equals) and not is_url(name)
        if not is_url(value if is_setting else argument) or (is_setting and not name.startswith("--")):
            resolved.append(argument)
        elif command not in COMMANDS:
            raise RequestError(
                f"fsl-dist {command} works only on a disk, not at {value if is_setting else argument} "
                f"(at object stores: {', '.join(sorted(COMMANDS))})"
            )
        elif (name if is_setting else before) in _OPTIONS_ON_DISK:
            raise RequestError(
                f"{name if is_setting else before} needs a path on a disk, not {value or argument}"
            )
        elif not is_setting:
            resolved.append(_resolve(argument))
        else:
            resolved.append(f"{name}={_resolve(value)}")
        before = argument
    return resolved


def _resolve(address: str) -> str:
    path = working_folder(address)
    if path.suffix in _FILES:
        bring(path.parent, wanted=lambda name: name == path.name)
    return str(path)
