import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_training_benchmark_compares_equal_losses_and_reports_ratios_with_their_spread(
    tmp_path,
):
    """The smoke shape, once: what it prints is not asserted to be fast, what it compares must be
    the same thing.
    """
    out = tmp_path / "train_step.json"
    command = [
        sys.executable,
        "benchmarks/train_step.py",
        "--shape",
        "smoke",
        "--repeats",
        "1",
        "-o",
        str(out),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    report = json.loads(out.read_text())
    shape = report["shapes"]["smoke"]
    assert shape["largest_loss_difference_nats_per_token"] < 1e-5
    norms = {name: variant["grad_norm"] for name, variant in shape["variants"].items()}
    assert norms["packed_mask_eot"] == pytest.approx(norms["public"], rel=1e-5)
    assert norms["packed"] == pytest.approx(norms["grouped"], rel=1e-5)
    assert abs(norms["packed"] - norms["public"]) > 1e-5 * norms["public"]  # the holes are seen
    assert {"median", "least", "most", "n"} == set(shape["ratios"]["fp32 over public fp32"])
    assert report["data"]["packing_fill"] >= 0.97 and report["device"]


@pytest.mark.slow
def test_training_peers_reach_the_same_losses_on_the_same_utterances(tmp_path):
    """TRL is one of them where it is installed; flattening needs nothing more than transformers."""
    peers = ["flattening"] + ["trl"] * (importlib.util.find_spec("trl") is not None)
    out = tmp_path / "peers.json"
    command = [sys.executable, "benchmarks/peers_training.py", "--shapes", "smoke", "-o", str(out)]
    command += ["--utterances", "5", "--steps", "3", "--repeats", "1", "--peers", *peers]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads(out.read_text())["shapes"]["smoke"]
    assert found["utterances"] == 5 and set(found["ratios"]) == set(peers)
    assert max(found["largest_loss_difference_nats_per_token"].values()) < 1e-5
    ours = found["runs"]["ours"][0]["step_losses"]
    assert len(ours) == 3 and ours[2] < ours[0]  # it learns
    for peer in peers:
        assert found["runs"][peer][0]["step_losses"] == pytest.approx(ours, abs=0.01)


@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="TRL is installed")
def test_training_peers_without_trl_say_so_in_one_line(tmp_path):
    command = [sys.executable, "benchmarks/peers_training.py", "-o", str(tmp_path / "o.json")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1 and said.endswith("needs TRL, expected: pip install trl")


def test_the_run_for_a_gpu_goes_through_on_a_cpu_with_tiny_shapes(tmp_path):
    out = tmp_path / "gpu.json"
    command = ["benchmarks/on_gpu.sh", "--shape", "smoke", "--device", "cpu", "--out", str(out)]
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    parts = json.loads(out.read_text())["parts"]
    assert not [name for name, part in parts.items() if "failed" in part]
    for one in parts["attention"].values():
        assert one["difference"] < 0.02 * one["largest"]
    assert abs(parts["head"]["loss"]) < 1e-3 and parts["head"]["gradient"] < 0.01
    assert parts["training_step"]["packed"]["tokens"] == 87
    assert parts["decoding_bf16"]["codes_a_second_3"] > 0
    assert parts["encoding"]["equal_codes"] > 0
