"""Session fixtures and limits: one thread a library, no hub, and the two merged tokenizers, built
once.
"""

import os
import subprocess

import pytest

from llasa_core.data.text_tokenizers import (
    build_llama3_tokenizer,
    build_mini_tokenizer,
    locate_llama3_vocabulary,
)
from llasa_core.tokenizer import merge_tokenizer

# Read when torch, tokenizers and the hub client are first imported, which tests do later.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

MINI_TEXTS = (
    "Call the office at seven in the morning.",
    "The red lamp stands in the hall.",
    "Please bring four apples and a bottle of milk.",
    "We will meet Alice at the station on Friday.",
) * 5


MARKS = {  # mark -> what the path of a test, its name included, begins with
    "notebook": ("tests/notebooks/test_notebooks.py::test_study_runs",),
    "slurm": ("tests/experiments/test_slurm.py",),
    "fuzz": ("tests/test_fuzz.py",),
    "slow": (  # every test of these trains, runs a script or a browser
        "tests/app/test_browser.py",
        "tests/training/test_parallel.py",
        "tests/training/test_recipes.py",
        "tests/test_benchmarks.py",
        "tests/test_synthesis_benchmarks.py",
    ),
}


# Minutes in one process each: begun first, so that two processes end at about the same time
LONG = (
    "tests/notebooks/test_notebooks.py",
    "tests/training/test_parallel.py",
    "tests/training/test_train.py",
    "tests/training/test_recipes.py",
    "tests/experiments/test_slurm.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    for item in items:
        for mark, beginnings in MARKS.items():
            if item.nodeid.startswith(beginnings):
                item.add_marker(mark)


@pytest.fixture(scope="session")
def mini_tokenizer():
    """A mini tokenizer merged with 4,096 codes."""
    return merge_tokenizer(build_mini_tokenizer(MINI_TEXTS), 4096)


@pytest.fixture(scope="session")
def llama3_text_tokenizer():
    """The real Llama-3 tokenizer, 128,256 ids, from the vocabulary file in the wheel
    `llama-models`.
    """
    return build_llama3_tokenizer(locate_llama3_vocabulary())


@pytest.fixture(scope="session")
def llama3_tokenizer(llama3_text_tokenizer):
    """The real Llama-3 tokenizer merged with 65,536 codes."""
    return merge_tokenizer(llama3_text_tokenizer, 65_536)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, mini_tokenizer):
    """Codes to train on, codes held out, and a tokenizer folder."""
    from training_data import write_codes  # imports torch: after the environment above

    folder = tmp_path_factory.mktemp("workshop")
    mini_tokenizer.save_pretrained(folder / "tokenizer")
    write_codes(folder / "codes", 60, seed=0, repeats=4)
    write_codes(folder / "held_out", 12, seed=1, repeats=4)
    write_codes(folder / "long", 5, seed=1, repeats=4, longest=600)
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A function: a size as mount takes it -> a folder that is a file system of that size; called
    again, it grows.
    """
    folder = tmp_path / "small"

    def of(size):
        if os.path.ismount(folder):
            subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
            return folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"needs the right to mount a file system of {size}")
        return folder

    yield of
    if os.path.ismount(folder):
        subprocess.run(
            ["umount", "--lazy", str(folder)], check=True
        )  # files of errors not yet collected may be open
