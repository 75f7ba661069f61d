"""Places at s3:// and gs:// on the command line: verbs that take them get working folders, others refuse them."""

import click

from index.base.errors import RequestError
from index.base.object_cache import bring, is_url, working_folder

_INDEX_VERBS = ("build", "search", "status", "rollback", "add", "remove", "update", "merge")
VERBS = {
    *("pack", "resplit", "inspect", "train", "embed", "evaluate", "predict", "explain", "export", "doctor"),
    *(f"index {verb}" for verb in _INDEX_VERBS),
    *("sweep resume", "sweep report"),
}
"""verbs that read and write places at object stores"""
_PASSED_ON = ("submit", "job")
"""verbs whose arguments are another command's, which resolves them where it runs"""
_OPTIONS_ON_DISK = ("--table", "--plots", "--config")
# Everything else that is named is a folder.
_FILES = (".npy", ".npz", ".parquet")


class PlacesGroup(click.Group):
    """The verbs, whose arguments may be places at object stores."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, resolve_places(args))


def resolve_places(arguments: list[str]) -> list[str]:
    """`arguments` with working folders for addresses; RequestError where the verb or option takes none.

    Values of KEY=VALUE stay: the configuration knows which of them are places.
    """
    words = [word for word in arguments if not word.startswith("-")]
    verb = " ".join(words[:2]) if words[:1] in (["index"], ["sweep"]) else " ".join(words[:1])
    if words[:1] and words[0] in _PASSED_ON:
        return arguments
    resolved, before = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_setting = bool(equals) and not is_url(name)
        if not is_url(value if is_setting else argument) or (is_setting and not name.startswith("--")):
            resolved.append(argument)
        elif verb not in VERBS:
            raise RequestError(
                f"fsl-dist {verb} works on a disk alone, not at {value if is_setting else argument} "
                f"(at object stores: {', '.join(sorted(VERBS))})"
            )
        elif (name if is_setting else before) in _OPTIONS_ON_DISK:
            raise RequestError(
                f"{name if is_setting else before} takes a path on a disk, not {value or argument}"
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
