"""No function of the four packages is there for tests alone."""

import ast

from production import Module, reached, reached_in_production, read_modules

import fsl_dist
import index


def test_every_function_and_class_is_reached_by_a_command_or_is_public() -> None:
    modules = read_modules()
    every = {f"{name}.{own}" for name, module in modules.items() for own in module.definitions}
    names = {*fsl_dist.__all__, *index.__all__, "__getattr__", "__dir__"}
    public = {function for function in every if function.rpartition(".")[2] in names}
    assert sorted(every - reached(modules, reached_in_production() | public)) == []


def test_what_only_itself_or_a_type_mentions_is_not_reached() -> None:
    own = "def f(): return g()\ndef g(): pass\ndef h(): return h()\ndef i(): pass\nTABLE = {1: i}"
    user = "if TYPE_CHECKING:\n    from a.own import h\nfrom a.own import f as renamed\nrenamed()"
    modules = {"a.own": Module(ast.parse(own)), "a.user": Module(ast.parse(user))}
    assert reached(modules, set()) == {"a.own.f", "a.own.g", "a.own.i"}
    assert "a.own.h" in reached(modules, {"a.own.h"})


def test_a_decorated_command_is_reached_and_a_cached_function_is_not() -> None:
    source = "@group.command('x')\ndef command(): helper()\ndef helper(): pass\n@cache\ndef unused(): pass"
    assert reached({"m": Module(ast.parse(source))}, set()) == {"m.command", "m.helper"}
