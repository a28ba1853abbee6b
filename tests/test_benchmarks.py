import json
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
