"""`llasa_core` hands out what notebooks import, and loads nothing before it is used."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import llasa_core


@pytest.mark.parametrize("name", llasa_core.MODULES)
def test_public_name_is_found_and_told_in_the_docstring(name):
    assert callable(getattr(llasa_core, name))
    assert re.search(rf"\b{name}\b", llasa_core.__doc__)
    assert name in dir(llasa_core)


def test_unknown_name_is_an_import_error():
    with pytest.raises(ImportError, match="no_such_name"):
        exec("from llasa_core import no_such_name")


def test_a_name_loads_its_own_module_and_no_torch():
    script = (
        "import sys\nfrom llasa_core import Request, Prompt, load_codec, summarise\n"
        "print(*sorted({'torch', 'transformers', 'pandas', 'soundfile'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_no_public_name_is_hidden_by_a_module():
    modules = {path.stem for path in Path(llasa_core.__path__[0]).iterdir()}
    assert modules & set(llasa_core.MODULES) == set()
