"""The rooms of the library: imports point down and form no circle; no folder, module or function
outgrows a reader. Imports inside functions count, those for type checkers do not.
"""

import ast
from collections import Counter
from pathlib import Path

from llasa_core.experiments.config import repository_root

LIBRARY = repository_root(Path(__file__).parent) / "llasa_core"
LEVELS = (  # a room imports from rooms of lower levels, never from its own level or above
    {"core"},  # the modules directly in llasa_core
    {"codecs", "judges"},
    {"data", "synthesis"},
    {"training", "evaluation", "search"},
    {"experiments", "serving"},
    {"app"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
DOORS = {
    "llasa_core": "the public names, loaded when they are asked for",
    "llasa_core.train": "`torchrun -m llasa_core.train` needs a module of that name",
}
MOST_MODULES, MOST_LINES, LONGEST_FUNCTION, MOST_ARGUMENTS = 15, 450, 80, 8
LONG_MODULES = {
    "llasa_core.files": "paths and URLs, atomic writes, the one bounded reader of JSON and YAML",
    "llasa_core.data.dataset": "one format: its writer, its checks and its reader know each other",
    "llasa_core.manifest": "two line formats, utterances and requests, with the same checks",
}
LONG_FUNCTIONS = {
    "llasa_core.experiments.config.load_experiment": "one check a key of the file, in its order",
    "llasa_core.training.train.train": "the run from settings to checkpoint, in order",
}
MANY_ARGUMENTS = {
    "llasa_core.app.page.add_api.speak": "the names of its arguments are those of the API",
    "llasa_core.data.corpora.synthetic.build": "options of the command",
    "llasa_core.data.encode.encode_manifest": "options of the command",
    "llasa_core.model.packed_attention": "the signature that transformers calls",
    "llasa_core.search.batch.search_manifest": "options of the command",
    "llasa_core.synthesis.synthesizer.Synthesizer.__init__": "options of a loaded model",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {name_of(path): path for path in sorted(LIBRARY.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def room(name: str) -> str:
    parts = name.split(".")
    inside = len(parts) > 2 or (len(parts) == 2 and PATHS[name].name == "__init__.py")
    return parts[1] if inside else "core"


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_statements(tree: ast.AST):
    """Every import that runs some day."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif for_type_checkers(node):
            for other in node.orelse:
                yield from import_statements(other)
        else:
            yield from import_statements(node)


def targets(module: str, node: ast.Import | ast.ImportFrom) -> set[str]:
    """The modules of the library that the statement loads."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in PATHS}
    origin = node.module or ""
    if node.level:
        package = module.split(".")
        package = package if PATHS[module].name == "__init__.py" else package[:-1]
        base = package[: len(package) - node.level + 1]
        origin = ".".join([*base, *([node.module] if node.module else [])])
    found = (f"{origin}.{alias.name}" for alias in node.names)
    return {name if name in PATHS else origin for name in found if origin in PATHS}


IMPORTS = {
    module: {name for node in import_statements(tree) for name in targets(module, node)} - {module}
    for module, tree in TREES.items()
}


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that reach each other (Tarjan's strongly connected components)."""
    order, lowest, stack, found = {}, {}, [], []

    def visit(module):
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in arrows.get(module, ()):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            at = stack.index(module)
            group = set(stack[at:])
            del stack[at:]
            if len(group) > 1:
                found.append(group)

    for module in arrows:
        if module not in order:
            visit(module)
    return found


def functions(tree: ast.AST, prefix: str):
    """(qualified name, node) of every function and method."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions(node, name)
        else:
            yield from functions(node, prefix)


FUNCTIONS = [pair for module, tree in TREES.items() for pair in functions(tree, module)]


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    listed = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    own = sum(argument.arg in ("self", "cls") for argument in listed[:1])
    return len(listed) - own + bool(node.args.vararg) + bool(node.args.kwarg)


def test_every_module_is_in_a_room():
    assert {room(name) for name in PATHS} <= set(LEVEL)


def test_imports_point_down():
    assert {
        f"{module} -> {other}"
        for module, others in IMPORTS.items()
        if module not in DOORS
        for other in others
        if room(other) != room(module) and LEVEL[room(other)] >= LEVEL[room(module)]
    } == set()


def test_training_evaluation_and_synthesis_never_import_one_another():
    apart = {"training", "evaluation", "synthesis"}
    assert {
        f"{module} -> {other}"
        for module, others in IMPORTS.items()
        for other in others
        if {room(module), room(other)} <= apart and room(module) != room(other)
    } == set()


def test_only_the_command_line_uses_the_door_of_launchers():
    assert {module for module, others in IMPORTS.items() if "llasa_core.train" in others} <= {
        module for module in PATHS if room(module) == "cli"
    }


def test_no_modules_import_each_other_in_a_circle():
    arrows = {module: others for module, others in IMPORTS.items() if module not in DOORS}
    assert circles(arrows) == []


def test_no_folder_holds_more_modules_than_a_reader_surveys():
    folders = Counter(
        path.parent
        for module, path in PATHS.items()
        if path.name != "__init__.py" and module not in DOORS
    )
    assert {
        str(folder.relative_to(LIBRARY.parent)): count
        for folder, count in folders.items()
        if count > MOST_MODULES
    } == {}


def excess(sizes: dict[str, int], most: int, exceptions: dict[str, str]) -> dict[str, int | str]:
    """What is above `most` without an exception, and the exceptions that nothing needs any more."""
    above = {name: size for name, size in sizes.items() if size > most}
    stale = {name: "stale exception" for name in exceptions if name not in above}
    return {name: size for name, size in above.items() if name not in exceptions} | stale


def test_no_module_is_too_long():
    sizes = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in PATHS.items()
    }
    assert excess(sizes, MOST_LINES, LONG_MODULES) == {}


def test_no_function_is_too_long():
    sizes = {name: node.end_lineno - node.lineno + 1 for name, node in FUNCTIONS}
    assert excess(sizes, LONGEST_FUNCTION, LONG_FUNCTIONS) == {}


def test_no_function_takes_too_many_arguments():
    counts = {name: arguments(node) for name, node in FUNCTIONS}
    assert excess(counts, MOST_ARGUMENTS, MANY_ARGUMENTS) == {}


def test_an_exception_that_nothing_needs_is_found():
    sizes = {"short": 1, "long": 9, "known": 9}
    assert excess(sizes, 8, {"known": "", "short": "", "gone": ""}) == {
        "long": 9,
        "short": "stale exception",
        "gone": "stale exception",
    }


def test_circles_are_found_and_imports_are_told_apart():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    lines = (
        "def f():\n    from llasa_core import files\nif TYPE_CHECKING:\n    import llasa_core.audio"
    )
    (statement,) = import_statements(ast.parse(lines))
    assert targets("llasa_core.cli", statement) == {"llasa_core.files"}
    (statement,) = ast.parse("from ..manifest import Utterance").body
    assert targets("llasa_core.data.encode", statement) == {"llasa_core.manifest"}
