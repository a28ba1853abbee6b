import hashlib
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from finished_runs import lines, write_run

from llasa_core.errors import InputError
from llasa_core.evaluation.protocols import PROTOCOLS
from llasa_core.experiments.config import load_experiment, notebook_parameters, repository_root
from llasa_core.experiments.results import (
    find_run,
    published_tables,
    read_result,
    read_results,
    runs_table,
)
from llasa_core.experiments.runner import run_experiment
from llasa_core.experiments.tables import with_interval
from llasa_core.studies.beside_paper import beside_the_paper
from llasa_core.studies.study import (
    BEGIN,
    END,
    ROLES,
    paired_differences,
    read_study,
    results_table,
    section,
    system_scores,
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
    study, missing = read_study(results)
    assert sorted(study) == ["builtin", "codec", "human", "lm"]
    assert missing == {
        "finetune": "human_finetune/run",
        "resynthesis": "codec_resynthesis/run",
        "search": "inference_time_scaling/open",
        "law": "train_time_scaling/run",
        "scaling_scores": "scaling_scores/run",
        "codecs_builtin": "codec_table/builtin",
        "codecs_human": "codec_table/human",
        "asr": "asr/seed0",
        "finetuning": "finetuning_scores/test",
    }


def test_scores_are_recomputed_from_the_utterances(results):
    study, _ = read_study(results)
    scores = system_scores(study).set_index(["corpus", "system"])
    assert scores.loc[("builtin", "recordings"), "corpus_wer"] == 0.01
    assert scores.loc[("builtin", "codec"), "corpus_wer"] == pytest.approx(1 / 10)
    assert scores.loc[("builtin", "synthesized"), "corpus_wer"] == pytest.approx(3 / 10)
    assert scores.loc[("builtin", "synthesized"), "nearest_speaker_share"] == 0.5
    assert scores.loc[("human", "before"), "speaker_similarity"] == pytest.approx(0.65)
    assert list(scores.loc["human"].index) == ["recordings", "codec", "before", "after"]
    change = paired_differences(study)
    assert change["synthesized - codec"]["corpus_wer_difference"] == pytest.approx(0.2)
    assert change["after - before"]["speaker_similarity_difference"] == pytest.approx(0.2)


def test_recordings_are_recomputed_where_the_codec_run_kept_their_rows(results):
    (results / "mini_codec/run-0badc0de/originals.jsonl").write_text(lines(scored(CODEC)))
    study, _ = read_study(results)
    assert system_scores(study).loc[0, "corpus_wer"] == pytest.approx(1 / 10)
    assert paired_differences(study)["synthesized - recordings"][
        "corpus_wer_difference"
    ] == pytest.approx(0.2)
    assert "Mini Llasa minus recordings, paired: WER in points 20.0 [" in results_table(results)


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


def beside(results):
    study, _ = read_study(results)
    runs = {f"{item.experiment}/{item.run}": item for item in study.values()}
    return beside_the_paper(system_scores(study), published_tables(results), runs)


def test_our_numbers_stand_beside_the_published_ones_and_say_why_they_differ(results):
    path = results / "evaluation/builtin-11111111/result.json"
    params = {
        "originals": "artifacts/builtin/test.jsonl",
        "asr": "whisper-tiny.en",
        "speaker": "wespeaker",
    }
    path.write_text(path.read_text().replace('"params": {}', f'"params": {json.dumps(params)}'))
    table = beside(results)
    spoken = table[
        (table["our_system"] == "builtin, synthesized") & (table["metric"] == "WER, %")
    ].iloc[0]
    # mean of 1/4 and 2/6, as Seed-TTS-Eval's number is a mean over utterances
    assert (spoken["published"], spoken["n"]) == (3.22, 2) and spoken["ours"].startswith("29.17 [")
    assert spoken["comparable"] == (
        "no: artifacts/builtin/test.jsonl, not Seed-TTS-Eval; "
        "whisper-tiny.en, not whisper-large-v3; Whisper's normaliser, not Seed-TTS-Eval's"
    )
    assert set(table.loc[table["protocol"] == "asr", "comparable"]) == {"no run"}
    assert {"codec", "asr", "esd-en", "esd-zh", "librispeech-continuation"} <= set(
        table["protocol"]
    )
    shutil.rmtree(results / "evaluation")
    shutil.rmtree(results / "mini_codec")
    nothing = beside(results)
    assert (
        (nothing["ours"] == "").all() and nothing["n"].isna().all() and len(nothing) == len(table)
    )


def test_same_test_set_and_judge_are_comparable(results):
    rows = [row | {"similarity_to_original": 0.8} for row in scored(CODEC)]
    folder = write_run(
        results, "codec_resynthesis", "run-66666666", {}, utterances=rows, originals=rows
    )
    path = folder / "result.json"
    params = {"originals": "LibriSpeech test-clean", "speaker": "wavlm_large_finetune", "asr": "x"}
    path.write_text(path.read_text().replace('"params": {}', f'"params": {json.dumps(params)}'))
    table = beside(results).query("system == 'X-codec2'").set_index("metric")
    assert table.loc["similarity to the original", "comparable"] == "yes"
    assert table.loc["WER, %", "comparable"] == "no: x, not hubert-large-ls960-ft"
    assert table.loc["WER, %", "our_system"] == "resynthesis, codec"


def test_searched_speech_is_summarised_over_texts(results):
    rows = [
        row | {"id": f"{row['id']}.s{s}", "text_id": row["id"]}
        for row in scored(SPOKEN)
        for s in range(3)
    ]
    write_run(
        results,
        "inference_time_scaling",
        "open-7",
        {},
        **{n: rows for n in ("plain", "partial-prm")},
    )
    study, _ = read_study(results)
    scores = system_scores(study).set_index(["corpus", "system"])
    assert scores.loc[("search", "plain"), "corpus_wer"] == pytest.approx(3 / 10)
    assert scores.loc[("search", "plain"), "corpus_wer_n"] == 6
    once = scores.loc[("builtin", "synthesized")]
    for end in ("_low", "_high"):  # three equal seeds are no more evidence than one
        assert scores.loc[("search", "plain"), f"corpus_wer{end}"] == pytest.approx(
            once[f"corpus_wer{end}"]
        )


def test_markdown_holds_every_part_with_intervals_and_names_what_is_missing(results):
    text = results_table(results)
    assert "| corpus WER, % | 1.0 [0.0, 2.0] | 10.0 [0.0, 16.7] | 30.0 [25.0, 33.3] |" in text
    assert "| | recordings (n = 2) | mini codec (n = 2) | mini Llasa (n = 2) |" in text.replace(
        "|  |", "| |"
    )
    assert (
        "Fine-tuned minus before, paired: WER in points -20.0 [-25.0, -16.7], similarity 0.200"
        in text
    )
    assert "| mini codec | 4.0 | – | 100 | – | – | – | 2 |" in text
    assert (
        "\n\nNot comparable: " in text
        and "Without a finished run: `human_finetune/run`, `codec_resynthesis/run`," in text
    )
    assert "`evaluation/human-22222222`" in text and "nan" not in text
    assert results_table(results / "published") == ""


def test_a_value_without_a_number_is_an_empty_cell():
    row = {"wer": 0.1234, "wer_low": -0.0001, "wer_high": 0.2}
    assert with_interval(row, "wer", 100, 1) == "12.3 [0.0, 20.0]"
    assert with_interval(row, "cer") == "" and with_interval({"wer": float("nan")}, "wer") == ""


def test_section_replaces_only_what_stands_between_the_markers():
    text = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    assert section(text) == "old\n"
    assert section(text, "new\n") == f"above\n{BEGIN}\nnew\n{END}\nbelow\n"
    assert section(section(text, ""), "new\n") == section(text, "new\n")
    for broken in ("no markers", f"{END}\n{BEGIN}", text + BEGIN):
        with pytest.raises(InputError, match="once each"):
            section(broken)


def test_page_of_results_says_what_the_results_say():
    page = (ROOT / "results/README.md").read_text(encoding="utf-8")
    made = results_table(ROOT / "results")
    made = made.replace("](results/", "](").replace("](experiments/", "](../experiments/")
    assert section(page) == made, "results/README.md is stale"


def test_figures_were_drawn_from_the_results_that_are_there():
    run = find_run(ROOT / "results", "paper_figures/run")
    if run is None:
        pytest.skip("no figures drawn yet")
    digests = {
        item["path"]: hashlib.sha256((ROOT / item["path"]).read_bytes()).hexdigest()
        for item in run.artifacts.values()
    }
    assert digests == {item["path"]: item["sha256"] for item in run.artifacts.values()}
    study, _ = read_study(ROOT / "results", run.params["runs"])
    assert {f"input_{role}" for role in study} == {
        name for name in run.artifacts if name.startswith("input_")
    }


def test_notebook_reads_the_same_runs_as_the_library():
    assert notebook_parameters(ROOT / "notebooks/90_paper_figures.ipynb")["runs"] == ROLES


@pytest.mark.notebook
def test_notebook_draws_every_figure_of_a_complete_study_and_writes_the_readme(results, tmp_path):
    log = pd.DataFrame({"step": [10, 20], "loss": [5.0, 4.0], "eval_loss": [None, 4.5]})
    shutil.rmtree(results / "human_finetune")
    rows = [
        {key: value for key, value in row.items() if value == value}
        for row in log.to_dict("records")
    ]
    write_run(results, "human_finetune", "run-44444444", {"eval_loss": 4.5}, train_log=rows)
    repository = tmp_path / "repository"
    for name in ("pyproject.toml", "notebooks/90_paper_figures.ipynb"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, repository / name)
    results.rename(repository / "results")
    (repository / "README.md").write_text(f"{BEGIN}\n{END}\n")
    (repository / "experiments").mkdir()
    text = (
        (ROOT / "experiments/paper_figures.yaml")
        .read_text()
        .replace("readme: README.md", "readme: README.md, n_boot: 9")
    )
    (repository / "experiments/paper_figures.yaml").write_text(text)
    (state,) = run_experiment(load_experiment(repository / "experiments/paper_figures.yaml"))
    assert state.state == "done", state.line
    result = read_result(repository / state.run.run_dir / "result.json")
    assert (
        result.metrics["figures"],
        result.metrics["parts"],
        result.metrics["parts_missing"],
    ) == (9, 5, 8)
    assert result.metrics["learning_curve_exponent"] == pytest.approx(0.5, abs=0.02)
    pictures = sorted((repository / "results/figures").iterdir())
    assert len(pictures) == 18 and max(picture.stat().st_size for picture in pictures) < 200_000
    assert section((repository / "README.md").read_text()) == results_table(repository / "results")
