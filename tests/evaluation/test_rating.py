"""Text understanding: test sentences, the blinded page (its script run by node) and what becomes of
exported scores.
"""

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from llasa_core.audio import write_wav
from llasa_core.cli import main
from llasa_core.errors import InputError
from llasa_core.evaluation.rating.page import named_manifests, rating_page
from llasa_core.evaluation.rating.scores import (
    agreement,
    coincidences,
    mean_scores,
    ordinal_alpha,
    read_scores,
)
from llasa_core.evaluation.rating.sentences import CATEGORIES, read_sentences
from llasa_core.manifest import read_requests

TRACKED = sorted((Path(__file__).parents[2] / "experiments" / "text_understanding").glob("*.jsonl"))
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node runs the page's script")
SENTENCES = [
    {"id": "q1", "language": "en", "category": "Questions", "text": "Is it?", "expected": "a rise"},
    {
        "id": "q2",
        "language": "en",
        "category": "Questions",
        "text": "</script><b>Who?",
        "expected": "<i>a fall</i>",
    },
    {"id": "e1", "language": "en", "category": "Emotions", "text": "Oh no!", "expected": "fear"},
    {"id": "z1", "language": "zh", "category": "Emotion", "text": "太好了！", "expected": "喜悦"},
]


def write_lines(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def write_speech(folder, place, sentences=SENTENCES):
    """A manifest of a wave for each sentence, other waves for another `place`."""
    folder.mkdir(parents=True)
    for number, item in enumerate(sentences):
        write_wav(
            folder / f"{item['id']}.wav",
            0.3 * np.sin(np.arange(800) * (0.1 + 0.01 * number + 0.2 * place)),
        )
    lines = [
        {"id": item["id"], "audio": f"{item['id']}.wav", "text": item["text"]} for item in sentences
    ]
    return write_lines(folder / "manifest.jsonl", lines)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page of three systems over four sentences, made by the command."""
    folder = tmp_path_factory.mktemp("rating")
    sentences = write_lines(folder / "sentences.jsonl", SENTENCES)
    speech = [
        f"{name}={write_speech(folder / name, place)}"
        for place, name in enumerate(("nano1b", "large8b", "human"))
    ]
    assert (
        main(
            [
                "rating-page",
                *speech,
                "--sentences",
                str(sentences),
                "-o",
                str(folder / "out"),
                "--seed",
                "5",
            ]
        )
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def key(made):
    return json.loads((made / "out" / "key.json").read_text(encoding="utf-8"))


def browse(made, *acts, rater="ann", **order):
    told = json.dumps({"rater": rater, "do": acts, **order})
    command = [
        NODE,
        str(Path(__file__).with_name("rating_browser.js")),
        str(made / "out" / "page" / "index.html"),
    ]
    done = subprocess.run(
        command, input=told, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def export(folder, key, name, score, **changes):
    """A complete file of scores: score(system, sentence) for each clip."""
    scores = [
        {"item": item, "score": score(meant["system"], meant["sentence"]), "place": 0}
        for item, meant in key["items"].items()
    ]
    value = {
        "schema": 1,
        "page": key["page"],
        "rater": name,
        "complete": True,
        "scores": scores,
    } | changes
    path = folder / f"{name}.json"
    path.write_text(json.dumps(value))
    return path


def test_tracked_sentences_fill_every_category_of_both_languages_and_can_be_spoken():
    sentences = read_sentences(*TRACKED)
    counts = Counter((sentence.language, sentence.category) for sentence in sentences)
    assert {(language, name) for language, names in CATEGORIES.items() for name in names} == set(
        counts
    )
    assert min(counts.values()) >= 5
    spoken = [request for path in TRACKED for request in read_requests(path)]
    assert [(request.id, request.text) for request in spoken] == [(s.id, s.text) for s in sentences]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"category": "Rare Characters"},
            "category is 'Rare Characters', expected one of Compound Nouns",
        ),
        ({"language": "de"}, "language is 'de', expected en or zh"),
        ({"expected": " "}, "expected is ' ', expected text"),
        ({"text": 3}, "text is 3, expected text"),
        ({"id": "a/b"}, "id 'a/b', expected a file name"),
        ({"id": "q1"}, "id 'q1' is a duplicate"),
        ({"text": "Is it?"}, "text 'Is it?' is a duplicate"),
        ({"note": "x"}, "the key 'note' is unknown"),
    ],
)
def test_bad_sentence_is_refused_with_file_and_line(tmp_path, change, message):
    path = write_lines(tmp_path / "s.jsonl", [SENTENCES[0], SENTENCES[2] | change])
    with pytest.raises(InputError) as caught:
        read_sentences(path)
    assert str(caught.value).startswith(f"{path}:2: ") and message in str(caught.value)


def test_sentence_without_expectation_and_an_empty_file_are_refused(tmp_path):
    short = {name: value for name, value in SENTENCES[0].items() if name != "expected"}
    with pytest.raises(InputError, match=r":1: the key 'expected' is missing"):
        read_sentences(write_lines(tmp_path / "s.jsonl", [short]))
    with pytest.raises(InputError, match="no sentences in it"):
        read_sentences(write_lines(tmp_path / "none.jsonl", []))


def test_page_names_no_system_and_needs_no_network(made, key):
    text = (made / "out" / "page" / "index.html").read_text(encoding="utf-8")
    everything = [text, *(path.name for path in (made / "out" / "page").rglob("*"))]
    assert not any(name in part for name in ("nano1b", "large8b", "human") for part in everything)
    assert "http:" not in text and "<link" not in text and "src=" not in text
    assert {meant["system"] for meant in key["items"].values()} == {"nano1b", "large8b", "human"}


def test_clips_are_the_systems_waves_under_names_of_the_key(made, key):
    clips = made / "out" / "page" / "clips"
    assert {path.stem for path in clips.iterdir()} == set(key["items"]) and len(key["items"]) == 12
    for item, meant in key["items"].items():
        original = made / meant["system"] / f"{meant['sentence']}.wav"
        assert (clips / f"{item}.wav").read_bytes() == original.read_bytes()


def test_text_cannot_leave_the_data_of_the_page(made):
    text = (made / "out" / "page" / "index.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and "<b>Who?" not in text and "<i>a fall" not in text


def test_hash_changes_with_a_text_and_with_a_sample_and_an_older_key_is_kept(tmp_path):
    sentences = read_sentences(write_lines(tmp_path / "s.jsonl", SENTENCES))
    systems = {"a": write_speech(tmp_path / "a", 0), "b": write_speech(tmp_path / "b", 1)}
    first = rating_page(tmp_path / "one", sentences, systems)["page"]
    assert rating_page(tmp_path / "one", sentences, systems)["page"] == first
    assert rating_page(tmp_path / "fewer", sentences[:3], systems)["page"] != first
    assert rating_page(tmp_path / "seed", sentences, systems, seed=1)["page"] != first
    write_wav(tmp_path / "b" / "q1.wav", np.zeros(800))
    before = (tmp_path / "one" / "key.json").read_bytes()
    with pytest.raises(InputError, match=r"key\.json: belongs to another page"):
        rating_page(tmp_path / "one", sentences, systems)
    assert (tmp_path / "one" / "key.json").read_bytes() == before
    assert rating_page(tmp_path / "two", sentences, systems)["page"] != first


def test_system_that_lacks_a_sentence_or_speaks_another_text_is_refused(tmp_path):
    sentences = read_sentences(write_lines(tmp_path / "s.jsonl", SENTENCES))
    with pytest.raises(InputError, match="no utterance 'z1'"):
        rating_page(
            tmp_path / "out", sentences, {"a": write_speech(tmp_path / "a", 0, SENTENCES[:3])}
        )
    other = [*SENTENCES[:3], SENTENCES[3] | {"text": "别的"}]
    with pytest.raises(InputError, match="'z1' speaks '别的', expected '太好了！'"):
        rating_page(tmp_path / "out", sentences, {"a": write_speech(tmp_path / "b", 0, other)})
    assert not (tmp_path / "out").exists()


def test_systems_take_the_name_given_or_that_of_their_folder_once():
    assert list(named_manifests(["x=a/m.jsonl", "runs/tuned/m.jsonl"])) == ["x", "tuned"]
    with pytest.raises(InputError, match="duplicate or empty system name 'a'"):
        named_manifests(["a=one.jsonl", "a=two.jsonl"])


@needs_node
def test_rater_works_through_all_clips_by_keyboard_and_the_export_is_read(made, key, tmp_path):
    run = browse(made, *["2", "3", "1"] * 4, "save")
    assert (
        run["seen"][0]["progress"] == "1 of 12, 0 scored"
        and run["seen"][-2]["progress"] == "12 of 12, 12 scored"
    )
    assert "All scored" in run["seen"][-2]["status"] and run["seen"][-1]["status"] == "Saved."
    assert len({step["clip"] for step in run["seen"][:12]}) == 12
    texts = [step["text"] for step in run["seen"][:12]]
    assert [texts[i] for i in (0, 3, 6, 9)] == [
        texts[i + 2] for i in (0, 3, 6, 9)
    ]  # a sentence's clips come together
    assert len(set(texts)) == 4 and {step["lang"] for step in run["seen"]} == {"en", "zh"}
    assert run["saved"]["name"] == f"scores-{key['page']}-ann.json"
    path = tmp_path / "ann.json"
    path.write_text(json.dumps(run["saved"]["content"]))
    rows = read_scores([path], made / "out" / "key.json")
    assert Counter(row["score"] for row in rows) == {1: 4, 2: 4, 3: 4}
    pressed = dict(zip((step["clip"] for step in run["seen"]), [2, 3, 1] * 4, strict=False))
    assert all(pressed[f"clips/{row['id'].split('/')[1]}.wav"] == row["score"] for row in rows)
    assert {row["place"] for row in rows} == {0, 1, 2}


@needs_node
def test_orders_differ_between_raters_and_sentences_and_repeat_for_one_rater(made, key):
    def heard(rater):
        clips = [step["clip"] for step in browse(made, *["ArrowRight"] * 11, rater=rater)["seen"]]
        return [
            (key["items"][clip[6:-4]]["sentence"], key["items"][clip[6:-4]]["system"])
            for clip in clips
        ]

    ann, bob = heard("ann"), heard("bob")
    assert heard("ann") == ann != bob and sorted(ann) == sorted(bob)
    systems = {
        tuple(system for _, system in order[start : start + 3])
        for order in (ann, bob)
        for start in (0, 3, 6, 9)
    }
    assert len(systems) > 1


@needs_node
def test_keys_replay_move_and_change_a_score_and_leave_the_browsers_own_alone(made):
    run = browse(
        made, " ", "2", "ArrowLeft", "3", "ctrl+3", "x", "ArrowLeft", "ArrowLeft", "n", "click1"
    )
    seen = run["seen"]
    assert seen[1]["plays"] == seen[0]["plays"] + 1 and seen[1]["progress"] == "1 of 12, 0 scored"
    assert seen[2]["progress"] == "2 of 12, 1 scored" and seen[3]["pressed"] == ["2"]
    assert seen[4]["progress"] == "2 of 12, 1 scored" and seen[5] == seen[6] == seen[4]
    assert seen[8]["progress"] == "1 of 12, 1 scored" and seen[8]["pressed"] == [
        "3"
    ]  # stays at the first
    assert (
        seen[9]["progress"] == "2 of 12, 1 scored" and seen[10]["progress"] == "3 of 12, 2 scored"
    )
    assert run["prevented"] == [" ", "2", "ArrowLeft", "3", "ArrowLeft", "ArrowLeft", "n"]


@needs_node
def test_progress_of_a_rater_is_found_again_and_not_that_of_another(made):
    first = browse(made, "1", "2", "save")
    assert first["seen"][-1]["status"] == "Saved, but 10 have no score yet."
    assert (
        first["saved"]["content"]["complete"] is False
        and len(first["saved"]["content"]["scores"]) == 2
    )
    again = browse(made, "ArrowLeft", stored=first["stored"])
    assert again["seen"][0]["progress"] == "3 of 12, 2 scored" and again["seen"][1]["pressed"] == [
        "2"
    ]
    assert (
        browse(made, rater="bob", stored=first["stored"])["seen"][0]["progress"]
        == "1 of 12, 0 scored"
    )


@needs_node
def test_unheard_clip_gets_no_score_and_a_browser_without_storage_says_so(made):
    silent = browse(made, "3", autoplay=False)
    assert (
        silent["seen"][1]["progress"] == "1 of 12, 0 scored"
        and "Listen first" in silent["seen"][1]["status"]
    )
    assert len(browse(made, "3", "save", blocked=True)["saved"]["content"]["scores"]) == 1


def test_means_are_those_of_sentences_with_interval_and_count(made, key, tmp_path):
    table = {"nano1b": 1, "large8b": 2, "human": 3}
    ann = export(tmp_path, key, "ann", lambda system, sentence: table[system])
    bob = export(
        tmp_path, key, "bob", lambda system, sentence: 3 if sentence == "q1" else table[system]
    )
    means = mean_scores(read_scores([ann, bob], made / "out" / "key.json"))
    rows = {
        (row["language"], row["system"], row["category"]): row for row in means.to_dict("records")
    }
    questions = rows["en", "nano1b", "Questions"]  # q1: 1 and 3, q2: 1 and 1
    assert (questions["score"], questions["score_n"], questions["raters"]) == (1.5, 2, 2)
    assert (questions["score_low"], questions["score_high"]) == (1.0, 2.0)
    assert (
        rows["en", "nano1b", "all"]["score"] == pytest.approx(4 / 3)
        and rows["en", "nano1b", "all"]["score_n"] == 3
    )
    assert rows["zh", "human", "all"]["score"] == 3.0 and rows["zh", "human", "all"]["score_n"] == 1
    assert len(rows) == 3 * (2 + 1 + 2)


def test_ordinal_alpha_of_a_case_worked_by_hand():
    """Two raters: (1,1) (2,2) (3,3) (1,2). n = 3, 3, 2; squared differences 9 (1-2), 6.25 (2-3),
    30.25 (1-3).

    Observed 1 x 9; expected 3 x 3 x 9 + 3 x 2 x 6.25 + 3 x 2 x 30.25 = 300 above the diagonal;
    alpha = 1 - 7 x 9 / 300.
    """
    units = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2], [1, 1, 0]])
    assert ordinal_alpha(coincidences(units).sum(axis=0)) == pytest.approx(0.79)


def test_ordinal_alpha_of_krippendorffs_example():
    """Krippendorff (2011): four observers, twelve units, five levels, missing values: 0.815."""
    observers = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = np.array(
        [
            [column.count(str(level)) for level in range(1, 6)]
            for column in zip(*observers, strict=True)
        ]
    )
    assert ordinal_alpha(coincidences(units).sum(axis=0)) == pytest.approx(0.815, abs=5e-4)


def test_agreement_is_one_for_equal_raters_and_undefined_for_one_rater_or_one_score(
    made, key, tmp_path
):
    table = {"nano1b": 1, "large8b": 2, "human": 3}
    same = [
        export(tmp_path, key, rater, lambda system, sentence: table[system])
        for rater in ("ann", "bob")
    ]
    rows = read_scores(same, made / "out" / "key.json")
    found = agreement(rows)
    assert found == {
        "alpha": 1.0,
        "alpha_low": 1.0,
        "alpha_high": 1.0,
        "alpha_n": 12,
        "alpha_raters": 2,
    }
    assert agreement(rows[:12]) == {}
    flat = [export(tmp_path, key, rater, lambda system, sentence: 2) for rater in ("ann", "bob")]
    assert agreement(read_scores(flat, made / "out" / "key.json")) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page": "0" * 16}, "scores of page '0000000000000000'"),
        ({"schema": 2}, "schema 2"),
        ({"rater": ""}, "rater is ''"),
        ({"scores": {}}, "scores is a JSON dict"),
        ({"scores": [7]}, "score 1 is 7"),
        ({"scores": [{"item": "nowhere", "score": 1}]}, "a clip that the page does not have"),
        ({"scores": []}, "incomplete, 12 of 12 clips have no score"),
    ],
)
def test_file_of_another_page_or_without_all_scores_is_refused(
    made, key, tmp_path, capsys, change, message
):
    path = export(tmp_path, key, "ann", lambda system, sentence: 2, **change)
    command = [
        "rating-scores",
        str(path),
        "--key",
        str(made / "out" / "key.json"),
        "-o",
        str(tmp_path / "scores"),
    ]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"llasa: {path}: ") and message in said and said.count("\n") == 1
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(
    ("score", "message"),
    [(0, "is 0"), (4, "is 4"), (2.0, "is 2.0"), (True, "True"), (None, "None")],
)
def test_score_outside_the_rubric_is_refused(made, key, tmp_path, score, message):
    path = export(tmp_path, key, "ann", lambda system, sentence: score)
    with pytest.raises(InputError, match=f"score 1 .*{message}.*expected 1, 2, 3"):
        read_scores([path], made / "out" / "key.json")


def test_rater_in_two_files_and_a_clip_scored_twice_are_refused(made, key, tmp_path):
    ann = export(tmp_path, key, "ann", lambda system, sentence: 2)
    with pytest.raises(InputError, match="rater 'ann' is a duplicate"):
        read_scores([ann, ann], made / "out" / "key.json")
    item = next(iter(key["items"]))
    twice = export(
        tmp_path, key, "bob", lambda system, sentence: 2, scores=[{"item": item, "score": 2}] * 2
    )
    with pytest.raises(InputError, match="again, expected one score a clip"):
        read_scores([twice], made / "out" / "key.json")


def test_command_writes_a_row_a_score_and_a_summary_and_says_what_one_rater_cannot(
    made, key, tmp_path, capsys
):
    ann = export(tmp_path, key, "ann", lambda system, sentence: 2)
    assert (
        main(
            [
                "rating-scores",
                str(ann),
                "--key",
                str(made / "out" / "key.json"),
                "-o",
                str(tmp_path / "s"),
            ]
        )
        == 0
    )
    assert "nothing is said of agreement" in capsys.readouterr().err
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert (
        summary["page"] == key["page"]
        and summary["raters"] == 1
        and summary["agreement"] == {"en": {}, "zh": {}}
    )
    lines = (tmp_path / "s" / "utterances.jsonl").read_text().splitlines()
    assert len(lines) == 12 and {json.loads(line)["score"] for line in lines} == {2}


@pytest.mark.parametrize("kind", ["text", "symlink", "html", "svg"])
def test_what_is_no_recording_never_reaches_the_raters(kind, tmp_path):
    sentences = write_lines(tmp_path / "sentences.jsonl", SENTENCES)
    manifest = write_speech(tmp_path / "speech", 0)
    secret = tmp_path / "secret"
    secret.write_text("<svg onload='alert(1)'>root:x:0:0</svg>")
    name = {"text": secret, "symlink": "link.wav", "html": "a.html", "svg": "a.svg"}[kind]
    if kind == "symlink":
        (manifest.parent / name).symlink_to(secret)
    elif kind != "text":
        (manifest.parent / name).write_bytes(secret.read_bytes())
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[0]["audio"] = str(name)
    write_lines(manifest, lines)
    with pytest.raises(InputError, match=f"{Path(name).name}: no audio"):
        rating_page(tmp_path / "out", read_sentences(sentences), {"one": manifest})
    assert not (tmp_path / "out").exists()


def test_clips_are_re_encoded_under_names_of_their_own(made):
    clips = sorted((made / "out" / "page" / "clips").iterdir())
    assert {clip.suffix for clip in clips} == {".wav"} and len(clips) == 12
    assert all(soundfile.info(str(clip)).subtype == "PCM_16" for clip in clips)
