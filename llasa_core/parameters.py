"""Parameters of notebooks: the literal defaults of the one cell tagged `parameters`, and values checked against them.

A value must have the type of the notebook's default (an int serves for a float). YAML 1.1 reads 3e-4 as text: refused
with the spelling that works.
"""

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

from llasa_core.errors import InputError


def notebook_parameters(path: str | Path) -> dict[str, Any]:
    """Names and literal defaults of the notebook's one `parameters` cell.

    Raises InputError for no or several such cells, and for a statement that is not `name = literal`.
    """
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        tagged = [
            "".join(cell["source"])
            for cell in cells
            if cell["cell_type"] == "code" and "parameters" in cell.get("metadata", {}).get("tags", ())
        ]
    except OSError as error:
        raise InputError(f"{path}: notebook cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a notebook of format 4 ({error!r})") from error
    if len(tagged) != 1:
        raise InputError(f"{path}: {len(tagged)} cells are tagged `parameters`, expected exactly one")
    try:
        body = ast.parse(tagged[0]).body
    except SyntaxError as error:
        raise InputError(f"{path}: parameters cell, line {error.lineno}: {error.msg}") from error
    parameters: dict[str, Any] = {}
    for statement in body:
        where = f"{path}: parameters cell, line {statement.lineno}"
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or [type(target) for target in targets] != [ast.Name]:
            raise InputError(f"{where}: expected `name = literal`")
        try:
            parameters[targets[0].id] = ast.literal_eval(statement.value)
        except (ValueError, TypeError) as error:
            raise InputError(f"{where}: `{targets[0].id}` is not a literal") from error
    return parameters


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read safely; a key given twice is an error, which plain YAML lets pass."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            seen = set()
            for key_node, _ in node.value:
                key = str(key_node.value)
                if key in seen:
                    raise InputError(f"{path}: line {key_node.start_mark.line + 1}: `{key}` is given twice")
                seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader)  # a SafeLoader
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected a mapping of keys")
    return settings


def checked_value(where: str, value: Any, default: Any) -> Any:
    """`value`, if it has the type of `default` (an int serves for a float); InputError otherwise."""
    expected = type(default)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}, expected a finite number")
    if isinstance(value, str) and expected is not str and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        digits, exponent = re.split("[eE]", value)
        digits = digits if "." in digits else digits + ".0"
        exponent = exponent if exponent[0] in "+-" else "+" + exponent
        raise InputError(f"{where}: YAML 1.1 reads {value} as text, write the number as {digits}e{exponent}")
    if expected is float and type(value) is int:
        return float(value)
    if default is None:
        try:
            json.dumps(value)
        except TypeError as error:
            raise InputError(f"{where} is {value!r}, expected a number, text, list or mapping") from error
        return value
    if type(value) is not expected and not (expected is tuple and type(value) is list):
        raise InputError(f"{where} is {value!r}, expected {expected.__name__} like the notebook's {default!r}")
    if isinstance(value, list):
        kinds = {type(item) for item in default}
        model = next(iter(default)) if len(kinds) == 1 else None
        return [checked_value(f"{where}[{index}]", item, model) for index, item in enumerate(value)]
    return value
