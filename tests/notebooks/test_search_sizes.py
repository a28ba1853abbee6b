"""Search by model size, from runs written as notebook 60 writes them; no model. made_up_runs has
their trainings.
"""

import io
import json
import shutil
from pathlib import Path

import pytest
from notebook_functions import notebook_functions

from llasa_core.errors import InputError
from llasa_core.experiments.config import load_experiment, repository_root
from llasa_core.manifest import evenly, read_manifest

search_sizes = notebook_functions("65_search_sizes")
ROOT = repository_root(Path(__file__).parent)
TRAINED = ("scaling", "scaling_target")
SIMILARITY = {"nano": 0.5, "micro": 0.6, "tiny": 0.7}
CONDITIONS = {
    "manifest": "test.jsonl",
    "voices": "dev.jsonl",
    "limit": 8,
    "tagged": True,
    "seeds": [0],
    "codec": "mini",
}
CONDITIONS |= {"search_asr": "a", "search_speaker": "b", "judge_asr": "c", "judge_speaker": "d"}
# Of 10 words a text, in turn: errors of even and of odd texts; FLOPs and CPU seconds of the first
# text.
NANO = {
    "plain": (1, (9, 5), 2e9, 0.5),
    "both-2": (2, (4, 0), 4e9, 2.0),
    "both-4": (4, (2, 0), 8e9, 4.0),
}
MICRO = {
    "plain": (1, (5, 3), 4e9, 0.7),
    "both-2": (2, (4, 2), 8e9, 2.2),
    "both-4": (4, (2, 0), 16e9, 4.4),
}
TINY = {
    "plain": (1, (3, 1), 10e9, 1.0),
    "both-2": (2, (2, 0), 20e9, 2.4),
    "both-4": (4, (1, 0), 40e9, 4.8),
}
COOL = {"plain": (1, (2, 0), 10e9, 1.0)}


def scored_rows(errors, similarity, flops, cpu_seconds):
    rows = []
    for number in range(8):
        row = {
            "id": f"u{number}.s0",
            "text_id": f"u{number}",
            "candidate": 0,
            "seconds": 2.0,
            "words": 10,
        }
        row |= {"errors": errors[number % 2], "similarity": similarity, "tokens": 100}
        rows.append(
            row | {"flops": flops * (1 + number / 8), "cpu_seconds": cpu_seconds * (1 + number / 8)}
        )
    return rows


def write_run(
    root, experiment, label, model, arms, temperature=0.8, guided=None, partial=(), **params
):
    """A finished run of notebook 60: arms {name: (n, errors, FLOPs, CPU seconds)}, guided: the same
    of partial PRM.
    """
    folder = Path(root, experiment, f"{label}-00000000")
    folder.mkdir(parents=True)
    described = {
        name: {"strategy": "best of N", "n": arm[0], "by": ["words"] * (arm[0] > 1)}
        for name, arm in arms.items()
    }
    params = {**CONDITIONS, "model": model, "temperature": temperature, "arms": described, **params}
    params |= {"partial": list(partial), "prm": [], "candidates": 16}
    size = Path(model).parts[-2].partition("-")[0]
    for name, (_, *made) in (arms | ({"partial-prm": guided} if guided else {})).items():
        rows = scored_rows(
            made[0], SIMILARITY.get(size, 0.5) + 0.2 * (name == "partial-prm"), *made[1:]
        )
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {
        "schema": 1,
        "experiment": experiment,
        "run": folder.name,
        "notebook": "n",
        "params": params,
    }
    (folder / "result.json").write_text(
        json.dumps(result | {"metrics": {}, "artifacts": {}, "provenance": {}})
    )


def model_of(size):
    return f"artifacts/scaling/{size}-seed0-hours1.0-0000/model"


def write_study(root):
    """What made_up_runs holds: `python -c "from test_search_sizes import *;
    write_study('../made_up_runs')"` in tests/notebooks.
    """
    for size, arms in (("nano", NANO), ("micro", MICRO), ("tiny", TINY)):
        write_run(root, "search_sizes", size, model_of(size), arms)
    write_run(root, "search_sizes", "tiny-cool", model_of("tiny"), COOL, temperature=0.15)
    arms = {"plain": (1, (5, 3), 4e9, 0.7), "both-16": (16, (2, 0), 64e9, 6.0)}
    guided = (16, (3, 1), 80e9, 9.0)
    write_run(
        root,
        "search_guided",
        "beams16-1s",
        "some/mini",
        arms,
        guided=guided,
        partial=(16, 2, 25, 1.0),
        tagged=False,
    )
    guided = (16, (2, 0), 70e9, 8.0)
    write_run(
        root,
        "search_guided",
        "beams4-1s",
        "some/mini",
        {},
        guided=guided,
        partial=(4, 2, 25, 1.0),
        tagged=False,
    )


@pytest.fixture
def results(tmp_path):
    shutil.copytree(ROOT / "tests" / "made_up_runs" / "scaling", tmp_path / "scaling")
    write_study(tmp_path)
    return tmp_path


def read(results):
    return search_sizes.read_systems(results, "search_sizes", TRAINED)


def rows_of(systems, size, temperature, arm):
    chosen = systems.query("size == @size and temperature == @temperature and arm == @arm")
    (rows,) = chosen["rows"]
    return rows


def test_systems_take_their_size_from_the_training_that_made_their_model(results):
    systems = read(results)
    first = systems[["size", "temperature", "arm", "parameters"]].iloc[::3].values.tolist()
    assert first == [
        ["nano", 0.8, "plain", 550_336],
        ["micro", 0.8, "plain", 1_065_312],
        ["tiny", 0.8, "plain", 1_846_656],
        ["tiny", 0.15, "plain", 1_846_656],
    ]
    table = search_sizes.with_scores(systems).set_index(["size", "temperature", "arm"])
    assert table.loc[("nano", 0.8, "both-4"), "corpus_wer"] == pytest.approx(0.1)
    assert table.loc[("tiny", 0.15, "plain"), ["corpus_wer_n", "texts", "hours"]].tolist() == [
        8,
        8,
        pytest.approx(0.9996),
    ]
    shutil.rmtree(results / "scaling" / "nano-seed0-hours1.0-0000")
    with pytest.raises(InputError, match="no finished run of scaling, scaling_target made this"):
        read(results)


def test_crossing_is_found_where_it_was_planted_on_each_axis_and_none_where_there_is_none(results):
    found = search_sizes.crossings(search_sizes.pairs_of(read(results)))
    words = found[found["metric"] == "corpus_wer"].set_index(
        ["smaller", "larger", "larger_temperature", "axis"]
    )

    def crossing(*key):
        row = words.loc[key]
        return row["arm"], row["n"], row["verdict"], row["ratio"]

    # both-2 of nano is as often better as worse than tiny plain; both-4 has one error fewer on
    # every text
    assert crossing("nano", "tiny", 0.8, "flops") == (
        "both-4",
        4,
        "at equal or lower cost",
        pytest.approx(0.8),
    )
    assert crossing("nano", "tiny", 0.8, "cpu_seconds") == (
        "both-4",
        4,
        "at higher cost",
        pytest.approx(4.0),
    )
    assert crossing("micro", "tiny", 0.8, "flops") == (
        "both-4",
        4,
        "at higher cost",
        pytest.approx(1.6),
    )
    assert crossing("nano", "micro", 0.8, "flops") == (
        "both-2",
        2,
        "at equal or lower cost",
        pytest.approx(1.0),
    )
    for smaller in (
        "nano",
        "micro",
    ):  # at its lower temperature one sample of tiny is as good as four of theirs
        assert crossing(smaller, "tiny", 0.15, "flops")[:3] == ("", 0, "not beaten")
    best = words.loc[("nano", "tiny", 0.8, "flops")]
    assert [best[f"difference{end}"] for end in search_sizes.ENDS] == pytest.approx(
        [-0.1, -0.1, -0.1, 8]
    )
    assert [best[f"ratio{end}"] for end in search_sizes.ENDS] == pytest.approx([0.8, 0.8, 0.8, 8])
    assert (found[found["metric"] == "speaker_similarity"]["arm"] == "").all()


def test_seconds_of_the_verifiers_are_what_remains_without_the_drawn_tokens(results):
    heard = search_sizes.verifier_seconds(search_sizes.with_scores(read(results)))
    # nano: 4 candidates in 4.0 s, 0.5 s of it to draw as many tokens as plain did; the mean text
    # costs 1.4375 of it
    assert heard.to_dict() == pytest.approx(
        {"nano": 3.5 / 4 * 1.4375, "micro": 3.7 / 4 * 1.4375, "tiny": 3.8 / 4 * 1.4375}
    )


def test_seconds_of_a_text_are_its_share_of_all_since_texts_run_side_by_side(results):
    systems = read(results)
    for row in rows_of(systems, "tiny", 0.8, "plain"):
        row["cpu_seconds"] = -0.5 if row["id"] == "u0.s0" else 12.0 / 7  # 11.5 in all, as before
    pairs = search_sizes.pairs_of(systems).set_index(
        ["smaller", "arm", "larger", "larger_temperature"]
    )
    row = pairs.loc[[("nano", "both-4", "tiny", 0.8)]].iloc[0]
    assert [row[f"cpu_seconds_ratio{end}"] for end in search_sizes.ENDS] == pytest.approx(
        [4.0, 4.0, 4.0, 8]
    )


def test_smaller_model_takes_the_largest_search_that_the_larger_ones_cost_pays_for(results):
    keys = ["smaller", "larger", "larger_n", "larger_temperature"]
    found = search_sizes.at_equal_cost(read(results), "flops").set_index(keys)

    def taken(*key):
        row = found.loc[key]
        return row["n"], row["verdict"], row["flops_ratio"]

    # nano: 4 and 8 GFLOP for 2 and 4; tiny: 10, 20 and 40 for 1, 2 and 4
    assert taken("nano", "tiny", 1, 0.8) == (4, "smaller", pytest.approx(0.8))
    assert taken("micro", "tiny", 1, 0.8) == (2, "larger", pytest.approx(0.8))
    assert taken("micro", "tiny", 2, 0.8) == (4, "not told apart", pytest.approx(0.8))
    assert found.loc[("nano", "tiny", 4, 0.8), "corpus_wer_difference"] == pytest.approx(0.05)
    seconds = search_sizes.at_equal_cost(read(results), "cpu_seconds").set_index(keys)
    dear = seconds.loc[("nano", "tiny", 1, 0.8)]  # the verifiers of two samples cost more than tiny
    assert (dear["n"], dear["verdict"]) == (0, "no search is as cheap")
    assert seconds.loc[("nano", "tiny", 2, 0.8), "n"] == 2
    kept = search_sizes.budgets(found.reset_index())
    assert sorted(set(kept.loc[kept["larger"] == "tiny", "larger_n"])) == [1, 4]


def test_size_and_hours_of_a_model_are_of_all_trainings_behind_it(results):
    """One may go on where another ended, and be published where that one was."""

    def train(experiment, model, hours):
        folder = results / experiment / "run-0000"
        folder.mkdir(parents=True)
        params = {"model": model, "publish": "some/mini"}
        metrics = {"parameters": 5_000_000, "train_hours": hours}
        (folder / "result.json").write_text(
            json.dumps(
                {"schema": 1, "experiment": experiment, "run": folder.name, "notebook": "n"}
                | {"params": params, "metrics": metrics, "artifacts": {}, "provenance": {}}
            )
        )

    train("first", "mini", 42.0)
    train("second", "artifacts/first/run-0000/model", 10.0)
    write_run(results, "search_sizes", "mini", "some/mini", NANO)
    systems = search_sizes.read_systems(results, "search_sizes", (*TRAINED, "first", "second"))
    last = systems[systems["model"] == "some/mini"].iloc[0]
    assert last[["size", "parameters", "hours"]].tolist() == ["mini", 5_000_000, 52.0]


def test_voice_that_is_searched_for_crosses_upwards(results):
    systems = read(results)
    for row in rows_of(systems, "nano", 0.8, "both-2"):
        row["similarity"] = 0.65
    found = search_sizes.crossings(search_sizes.pairs_of(systems))
    voice = found[(found["metric"] == "speaker_similarity") & (found["axis"] == "flops")].set_index(
        ["smaller", "larger"]
    )
    assert voice.loc[[("nano", "micro")], "arm"].tolist() == ["both-2"]
    assert voice.loc[[("nano", "micro")], "difference"].tolist() == pytest.approx([0.05])
    assert set(voice.loc[[("nano", "tiny")], "arm"]) == {""}


def test_other_texts_other_judges_and_a_second_run_of_a_size_are_refused(results):
    write_run(results, "search_sizes", "nano-again", model_of("nano"), NANO)
    with pytest.raises(InputError, match=r"nano_t0\.8_plain is there twice"):
        read(results)
    shutil.rmtree(results / "search_sizes" / "nano-again-00000000")
    write_run(
        results,
        "search_sizes",
        "tiny-other",
        model_of("tiny"),
        COOL,
        temperature=0.5,
        judge_asr="another",
    )
    with pytest.raises(InputError, match="runs differ in `judge_asr`"):
        read(results)
    shutil.rmtree(results / "search_sizes" / "tiny-other-00000000")
    path = results / "search_sizes" / "nano-00000000" / "both-4.jsonl"
    path.write_text(path.read_text().replace("u7", "u8"))
    with pytest.raises(InputError, match=r"u7\.s0' is scored in only one of the two systems"):
        search_sizes.pairs_of(read(results))


def test_guided_searches_are_paired_with_the_best_of_n_of_another_run(results):
    table = search_sizes.guided_table(results, "search_guided", "both-16")
    assert table["arm"].tolist() == ["plain", "both-16", "beams4x2-1s", "beams16x2-1s"]
    rows = table.set_index("arm")
    assert rows.loc["beams16x2-1s", "corpus_wer_difference"] == pytest.approx(0.1)
    assert rows.loc["beams4x2-1s", "speaker_similarity_difference"] == pytest.approx(0.2)
    assert rows.loc["beams4x2-1s", ["series", "note"]].tolist() == [
        "partial PRM by voice + ORM, 4 beams",
        "1 s",
    ]
    assert search_sizes.largest_search(results, "search_guided") == "both-16"
    with pytest.raises(InputError, match="expected 'both-4'"):
        search_sizes.guided_table(results, "search_guided", "both-4")


def test_metrics_are_finite_numbers_each_with_its_interval_and_count(results):
    systems = read(results)
    found = search_sizes.crossings(search_sizes.pairs_of(systems))
    guided = search_sizes.guided_table(results, "search_guided", "both-16")
    equal = search_sizes.budgets(search_sizes.at_equal_cost(systems, "flops"))
    flat = search_sizes.flat_metrics(search_sizes.with_scores(systems), found, guided, equal)
    scores = {name for name in flat if not name.endswith(("_low", "_high", "_n"))}
    scores -= {name for name in scores if name.endswith("_candidates")}
    assert all({f"{name}_low", f"{name}_high", f"{name}_n"} <= flat.keys() for name in scores)
    assert flat["nano_t0.8_both-4_corpus_wer"] == pytest.approx(0.1)
    assert flat["nano_against_tiny_t0.8_corpus_wer_by_flops_ratio"] == pytest.approx(0.8)
    assert flat["nano_against_tiny_t0.15_corpus_wer_by_flops_least_n"] == 0
    assert "nano_against_tiny_t0.15_corpus_wer_by_flops_ratio" not in flat
    assert flat["nano_at_the_flops_of_tiny_t0.8_n1_candidates"] == 4
    assert flat["nano_at_the_flops_of_tiny_t0.8_n1_corpus_wer_difference"] == pytest.approx(-0.1)
    assert all(value == value for value in flat.values())


@pytest.mark.slow
def test_curves_join_a_sizes_points_by_cost_and_leave_the_ones_apart_hollow(results):
    table = search_sizes.with_scores(read(results))
    table = table.assign(
        series=table["size"], note=[f"N={n}" for n in table["n"]], apart=table["temperature"] < 0.8
    )

    def draw():
        return search_sizes.cost_curves(table, "Which is the better buy?", "N", "cooler")

    def saved(figure, kind):
        picture = io.BytesIO()
        figure.savefig(
            picture, format=kind, metadata={"svg": {"Date": None}, "png": {"Software": None}}[kind]
        )
        return picture.getvalue()

    figure = draw()
    first, last = figure.axes[0], figure.axes[3]
    assert figure.get_suptitle() == "Which is the better buy?"
    assert first.get_ylabel() == "corpus WER (%), n = 8"
    assert last.get_xlabel() == "CPU seconds an utterance, verifiers included"
    lines = [bar.lines[0] for bar in first.containers]
    assert [line.get_ydata().tolist() for line in lines[:1]] == [pytest.approx([70, 20, 10])]
    assert lines[0].get_xdata().tolist() == pytest.approx(
        [2.875, 5.75, 11.5]
    )  # mean of the texts, in 1e9
    assert (
        len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 4 and len(lines) == 4
    )
    assert lines[-1].get_fillstyle() == "none" and lines[-1].get_ydata() == pytest.approx([10])
    assert saved(figure, "svg") == saved(draw(), "svg") and len(saved(figure, "png")) < 250_000


def test_made_up_runs_of_search_are_those_that_these_tests_write(tmp_path):
    write_study(tmp_path)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert (
            ROOT / "tests" / "made_up_runs" / path.relative_to(tmp_path)
        ).read_text() == path.read_text(), path


def test_each_size_is_searched_and_speaks_once_at_the_temperature_of_a_single_sample():
    searched, (guided, *_), spoken = (
        load_experiment(ROOT / "experiments" / f"{name}.yaml").runs
        for name in ("search_sizes", "search_guided", "scaling_speech")
    )
    half = len(searched) // 2
    hot, cool = searched[:half], searched[half:]
    assert [run.params["model"] for run in hot] == [run.params["model"] for run in cool]
    assert {run.params["temperature"] for run in hot} == {guided.params["temperature"]} == {0.8}
    assert {run.params["temperature"] for run in cool} == {0.15}
    assert all(run.params["candidates"] == 16 for run in hot)
    models = [run.params["model"] for run in hot]
    assert set(models[:3]) <= {run.params["model"] for run in spoken}
    assert {run.params["manifest"] for run in searched} == {
        run.params["manifest"] for run in spoken
    }
    assert (ROOT / models[3] / "llasa.json").is_file()


@pytest.mark.parametrize("name", ["inference_time_scaling", "search_guided", "search_sizes"])
def test_texts_of_the_searches_are_of_all_voices_alike(name):
    """The manifests name their 240 texts by their voices in turn: eight of the grammar, eight that
    were held out, nine named ones of open English.
    """
    for run in load_experiment(ROOT / "experiments" / f"{name}.yaml").runs:
        number = 9 if run.params["manifest"].endswith("/test_open.jsonl") else 8
        voices = [place % number for place in range(240)]
        manifest = ROOT / run.params["manifest"]
        if manifest.is_file():
            speakers = [utterance.speaker for utterance in read_manifest(manifest)]
            assert [speakers.index(speaker) for speaker in speakers] == voices
        chosen = list(evenly(voices, run.params["limit"]))
        least, *_, most = sorted(chosen.count(voice) for voice in range(number))
        assert (least, most) == ((6, 6) if number == 8 else (5, 6))


def test_voice_prompts_are_of_speakers_that_no_training_text_names_and_judged_by_other_recordings():
    for name in ("inference_time_scaling", "search_guided"):
        for run in load_experiment(ROOT / "experiments" / f"{name}.yaml").runs:
            params = run.params
            assert bool(params["prompts"]) != params["tagged"]
            assert params["prompts"] != params["voices"]
            paths = [ROOT / params[key] for key in ("prompts", "voices")]
            if params["prompts"] and all(path.is_file() for path in paths):
                prompts, voices = map(read_manifest, paths)
                assert not {one.id for one in prompts} & {one.id for one in voices}
                assert {one.speaker for one in prompts} == {one.speaker for one in voices}
