import re
import shutil
from pathlib import Path

import pytest
from finished_runs import write_run

from llasa_core.errors import InputError
from llasa_core.evaluation.protocols import PROTOCOLS
from llasa_core.experiments.config import repository_root
from llasa_core.experiments.results import (
    find_run,
    published_tables,
    read_result,
    read_results,
    runs_table,
)

ROOT = repository_root(Path(__file__).parent)
# id, errors, words, similarity, own speaker and nearest speaker
CODEC = [("a", 0, 4, 0.9, "x", "x"), ("b", 1, 6, 0.8, "y", "y")]
SPOKEN = [("a", 1, 4, 0.7, "x", "x"), ("b", 2, 6, 0.6, "y", "x")]


def scored(rows):
    keys = ("id", "errors", "words", "similarity", "speaker", "nearest_speaker")
    return [dict(zip(keys, row, strict=True)) | {"seconds": 2.0, "ended": True} for row in rows]


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(ROOT / "results" / "published", folder / "published")
    originals = {
        "original_corpus_wer": 0.01,
        "original_corpus_wer_low": 0.0,
        "original_corpus_wer_high": 0.02,
    }
    originals |= {f"original_speaker_similarity{end}": 0.9 for end in ("", "_low", "_high")}
    originals |= {f"original_nearest_speaker_share{end}": 1.0 for end in ("", "_low", "_high")}
    originals |= {
        f"original_{m}_n": 2 for m in ("corpus_wer", "speaker_similarity", "nearest_speaker_share")
    }
    training = {"training_train_hours": 4.0, "training_steps": 100, "training_seconds": 90.0}
    codec_log = [{"step": step, "mel": 1.0, "ctc": 2.0} for step in (50, 100)]
    write_run(
        folder,
        "mini_codec",
        "run-0badc0de",
        originals | training,
        utterances=scored(CODEC),
        train_log=codec_log,
    )
    write_run(folder, "evaluation", "builtin-11111111", {}, utterances=scored(SPOKEN))
    human = {
        "before": scored(SPOKEN),
        "utterances": scored(CODEC),
        "originals": scored(CODEC),
        "codec": scored(CODEC),
    }
    write_run(folder, "evaluation", "human-22222222", {}, **human)
    log = [{"step": 20, "tokens": 5000, "loss": 6.0}]
    log += [
        {
            "step": 50 * n,
            "tokens": 10_000 * n,
            "eval_loss": 2 + 9 * n**-0.5,
            "eval_bits_per_second": 300.0 / n,
        }
        for n in range(1, 9)
    ]
    write_run(
        folder, "mini_llasa", "run-33333333", {"eval_loss": 5.18, "tokens": 80_000}, train_log=log
    )
    (folder / "human_finetune" / "run-44444444").mkdir(parents=True)  # started, not finished
    return folder


def test_finished_runs_are_read_and_unfinished_ones_ignored(results):
    table = runs_table(read_results(results))
    assert list(table["run"]) == [
        "builtin-11111111",
        "human-22222222",
        "run-0badc0de",
        "run-33333333",
    ]
    assert list(table["seconds"]) == [3.0] * 4


def test_a_label_stands_for_its_only_finished_run(results):
    assert find_run(results, "mini_codec/run").run == "run-0badc0de"
    assert find_run(results, "mini_codec/run-0badc0de").run == "run-0badc0de"
    assert find_run(results, "mini_codec/ru") is None
    shutil.copytree(results / "mini_codec/run-0badc0de", results / "mini_codec/run-55555555")
    with pytest.raises(InputError, match=r"several finished runs \(run-0badc0de, run-55555555\)"):
        find_run(results, "mini_codec/run")
    with pytest.raises(InputError, match="expected that folder"):
        find_run(results, "mini_codec/run-55555555")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema": 1', '"schema": 2', "schema is 2, expected 1"),
        ('"metrics"', '"scores"', "key `metrics` is missing"),
        ('"original_corpus_wer": 0.01', '"original_corpus_wer": NaN', "the constant NaN"),
        (
            '"original_corpus_wer": 0.01',
            '"original_corpus_wer": "0.01"',
            "metric `original_corpus_wer` is '0.01'",
        ),
        ('"provenance"', '"provenance', "not JSON"),
        ('"run": "run-0badc0de"', '"run": "run-5"', "is the result of mini_codec/run-5"),
    ],
)
def test_damaged_result_is_named(results, old, new, message):
    path = results / "mini_codec/run-0badc0de/result.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: .*{re.escape(message)}"):
        read_result(path)


def test_truncated_utterances_differ_from_the_recorded_sha256(results):
    run = find_run(results, "evaluation/builtin")
    path = run.folder / "utterances.jsonl"
    path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(InputError, match=r"utterances\.jsonl: sha256 is not the"):
        run.rows()
    path.unlink()
    with pytest.raises(InputError, match=r"utterances\.jsonl: missing"):
        run.rows()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "seconds": 1.0}, "an id occurs twice"),
        ({"id": "c"}, "row 2: `seconds` is missing"),
        ({"id": "c", "seconds": float("nan")}, "row 2: `seconds` is nan"),
    ],
)
def test_rows_that_are_no_scored_utterances_are_refused(tmp_path, row, message):
    write_run(
        tmp_path, "evaluation", "builtin-1", {}, utterances=[{"id": "a", "seconds": 1.0}, row]
    )
    with pytest.raises(InputError, match=message):
        find_run(tmp_path, "evaluation/builtin").rows()


def test_training_log_needs_a_step_in_every_line(results, tmp_path):
    log = find_run(results, "mini_llasa/run").train_log()
    assert list(log.dropna(subset=["eval_loss"])["tokens"]) == [10_000 * n for n in range(1, 9)]
    write_run(tmp_path, "mini_llasa", "run-1", {}, train_log=[{"tokens": 1}])
    with pytest.raises(InputError, match="`step` is missing"):
        find_run(tmp_path, "mini_llasa/run").train_log()


def test_published_tables_name_their_source_and_agree_with_the_paper(results):
    tables = published_tables(results)
    sizes = {"codec": 20, "seed_tts_eval": 25, "asr": 4, "esd": 11, "continuation": 24}
    assert {name: len(table.rows) for name, table in tables.items()} == sizes
    frames = {name: table.frame() for name, table in tables.items()}
    for number, name in enumerate(sizes, start=1):
        assert (frames[name]["source"] == f"arXiv 2502.04128v1, Table {number}").all()
        assert set(tables[name].judges) <= set(tables[name].columns)
        for protocol in tables[name].protocol.split(", "):
            assert protocol in PROTOCOLS
    codec = frames["codec"].set_index("system")
    assert (codec.loc["X-codec2", "wer"], codec.loc["Ground truth", "wer"]) == (2.47, 1.96)
    assert codec.loc["StableCodec"].tolist()[:3] == [50, 15625, 2]
    searched = (
        frames["seed_tts_eval"]
        .query("model == '8b 250k' and search == 'partial PRM (speaker)'")
        .iloc[0]
    )
    assert (searched["zh_cer"], searched["en_wer"], searched["hard_wer"]) == (1.04, 1.84, 10.59)
    esd = frames["esd"].query("model == '3b 250k' and search == 'PRM (emotion)'").iloc[0]
    assert (esd["en_emotion_similarity"], esd["zh_emotion_similarity"]) == (0.949, 0.975)
    ranges = {
        "wer": (0, 100),
        "cer": (0, 100),
        "sim": (0, 1),
        "stoi": (0, 1),
        "similarity": (0, 1),
        "pesq": (1, 4.65),
    }
    for frame in frames.values():
        for column in frame.select_dtypes("number"):
            for part, (low, high) in ranges.items():
                if part in column.split("_"):
                    assert frame[column].dropna().between(low, high).all(), column
    # A model is not better without the search that optimises the very metric, as printed: no row
    # was mixed up.
    seed = (
        frames["seed_tts_eval"]
        .query("model != '' and zh_cer.notna()")
        .pivot(index="model", columns="search")
    )
    assert (seed["en_sim"]["partial PRM (speaker)"] > seed["en_sim"]["none"]).all()
    assert (
        seed["en_wer"]["partial PRM (speaker) + ORM (WER)"]
        < seed["en_wer"]["partial PRM (speaker)"]
    ).all()
    path = results / "published" / "paper_tables.json"
    path.write_text(
        path.read_text().replace('"source": "arXiv 2502.04128v1, Table 3"', '"source": ""')
    )
    with pytest.raises(InputError, match=r"table `asr`: .* expected a system and a source"):
        published_tables(results)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"clean_wer": 2.7, ', "", "column `clean_wer` is missing"),
        (
            '"clean_wer": 2.7',
            '"clean_wer": "2.7"',
            "column `clean_wer` is '2.7', expected a number or null",
        ),
        ('"clean_wer": 2.7', '"clear_wer": 1, "clean_wer": 2.7', "key `clear_wer` is no column"),
        (
            '"system": "whisper-large-v3"',
            '"system": "whisper-large-v2"',
            "expected no system twice",
        ),
        (
            '"test_set": "LibriSpeech test-clean and test-other"',
            '"test_set": null',
            "`test_set` is None",
        ),
        ('"clean_wer": 2.7', '"clean_wer": NaN', "the constant NaN"),
    ],
)
def test_malformed_published_table_is_named(results, old, new, message):
    path = results / "published" / "paper_tables.json"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=re.escape(message)):
        published_tables(results)
