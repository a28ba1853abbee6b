"""Public benchmarks as they are distributed -> requests and manifests; every line and every wav is
checked.
"""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
from protocol_fixtures import esd, librispeech, samples, seed_tts, wav

from llasa_core import cli
from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.evaluation.protocols import PROTOCOLS, protocol_of
from llasa_core.evaluation.protocols.preparation import prepare_protocol, reference_manifest
from llasa_core.files import read_rows
from llasa_core.manifest import read_manifest, read_requests
from llasa_core.model import build_model
from llasa_core.prompts import Voice
from llasa_core.tokenizer import vocabulary_of


def prepared(name, source, out, **options):
    report = prepare_protocol(name, source, out, **options)
    return report, {row["id"]: row for row in read_rows(out / "trials.jsonl")}


def requests(out):
    """The requests as synthesis reads them, voices as (file, words)."""
    asked = []

    def voice(path, text):
        asked.append((path, text))
        return Voice(text, np.arange(150))

    return read_requests(out / "requests.jsonl", voice), asked


@pytest.mark.parametrize("inside", [".", "en", "en/meta.lst"])
def test_seed_tts_list_becomes_requests_with_voice_prompts(tmp_path, inside):
    root = seed_tts(tmp_path / "set")
    report, trials = prepared("seed-tts-en", root / inside, tmp_path / "out")
    assert report == {
        **{"protocol": "seed-tts-en", "trials": 2, "left_out": {}, "seeds": 1, "codec": None},
        **{"references": 2, "prompts": 2},
    }
    wanted, voices = requests(tmp_path / "out")
    assert [(item.id, item.text) for item in wanted] == [
        ("u1", "The cat's forty-two mats, sir!"),
        ("u2", "Hello there."),
    ]
    assert [voice.text for voice in (item.voice for item in wanted)] == [
        "Some call me nature.",
        "Others call me.",
    ]
    assert [path.resolve() for path, _ in voices] == [
        (root / f"en/prompt-wavs/p{i}.wav").resolve() for i in (1, 2)
    ]
    references = read_manifest(tmp_path / "out" / "references.jsonl")
    assert [item.audio.name for item in references] == [
        "u1.wav",
        "other.wav",
    ]  # by its id, and as the list says
    assert trials["u1"]["prompt"].endswith("en/prompt-wavs/p1.wav") and not trials["u1"]["joined"]


def test_seed_tts_chinese_lists_are_two_protocols(tmp_path):
    root = seed_tts(tmp_path / "set")
    for name, id_ in (("seed-tts-zh", "z1"), ("seed-tts-hard", "h1")):
        report, trials = prepared(name, root, tmp_path / name)
        assert (
            list(trials) == [id_] and trials[id_]["language"] == "zh" and report["references"] == 0
        )
        assert not (tmp_path / name / "references.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "u3|only|three",
            (
                r"meta\.lst:3: 'u3\|only\|three' has 3 fields, expected utt\|prompt text\|prompt"
                r" wav\|text"
            ),
        ),
        ("u3||prompt-wavs/p1.wav|Text.", r"meta\.lst:3: .* none empty"),
        (
            "u1|Words.|prompt-wavs/p1.wav|Text.",
            r"meta\.lst:3: duplicate id 'u1' \(first in .*meta\.lst:1\)",
        ),
        (
            "../u3|Words.|prompt-wavs/p1.wav|Text.",
            r"meta\.lst:3: id '\.\./u3', expected a file name",
        ),
        ("u3|Words.|prompt-wavs/no.wav|Text.", r"meta\.lst:3: audio file .*no\.wav is missing"),
        (
            "u3|Words.|prompt-wavs/p1.wav|Text.|wavs/no.wav",
            r"meta\.lst:3: audio file .*no\.wav is missing",
        ),
        ("u3|Words.|prompt-wavs/p1.wav|!?", r"meta\.lst:3: text '!\?' has no word in it"),
        ("u3|Words.|meta.lst|Text.", r"meta\.lst:3: audio file .*meta\.lst cannot be read"),
    ],
)
def test_bad_seed_tts_line_is_named_and_nothing_is_written(tmp_path, line, message):
    root = seed_tts(tmp_path / "set")
    with (root / "en/meta.lst").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message):
        prepare_protocol("seed-tts-en", root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_continuation_prompts_with_the_first_three_seconds_and_the_whole_text(tmp_path):
    report, trials = prepared(
        "librispeech-continuation", librispeech(tmp_path / "set"), tmp_path / "out"
    )
    assert list(trials) == [
        "121-70-0000",
        "61-70-0000",
        "61-70-0003",
    ]  # 2.5 s and 12 s are outside 4 to 10 s
    assert report["left_out"] == {"not_4_to_10_seconds": 4}
    prompt = samples(tmp_path / "out/prompts/61-70-0003.wav")
    source = samples(tmp_path / "set/test-clean/61/70/61-70-0003.flac")
    assert len(prompt) == 48_000
    np.testing.assert_allclose(prompt, source[:48_000], atol=1e-4)
    wanted, voices = requests(tmp_path / "out")
    assert wanted[2].text == "ROOM SEVEN IS TAKEN BY NOW" and wanted[2].voice.text == ""
    assert voices[2][0].name == "61-70-0003.wav" and trials["61-70-0003"]["joined"]


@pytest.mark.slow
def test_continuation_is_synthesized_with_the_guards_that_are_on_by_default(
    tmp_path, mini_tokenizer, capsys
):
    prepare_protocol("librispeech-continuation", librispeech(tmp_path / "set"), tmp_path / "out")
    mini_tokenizer.save_pretrained(tmp_path / "model")
    build_model("tiny", vocabulary_of(mini_tokenizer).size, context=512).save_pretrained(
        tmp_path / "model"
    )
    asked = [
        "--manifest",
        str(tmp_path / "out/requests.jsonl"),
        "-o",
        str(tmp_path / "spoken"),
        "--max-seconds",
        "0.4",
    ]
    # Status 1: random weights never end, and the guards say so.
    assert (
        cli.main(["synthesize", "--model", str(tmp_path / "model"), "--codec", "fake", *asked]) == 1
    )
    rows = read_rows(tmp_path / "spoken" / "manifest.jsonl")
    assert [row["id"] for row in rows] == ["121-70-0000", "61-70-0000", "61-70-0003"]
    assert all(row["attempts"] >= 1 for row in rows)


def test_cross_sentence_takes_a_short_utterance_of_the_same_speaker_or_the_pairs_of_a_list(
    tmp_path,
):
    folder = librispeech(tmp_path / "set")
    _, trials = prepared("librispeech-cross", folder, tmp_path / "out")
    assert {id_: row["prompt"].rpartition("/")[2] for id_, row in trials.items()} == {
        "121-70-0000": "121-70-0001.flac",
        "61-70-0000": "61-70-0001.flac",
        "61-70-0003": "61-70-0001.flac",
    }
    wanted, _ = requests(tmp_path / "out")
    assert wanted[0].voice.text == "A DOG BARKED" and wanted[0].speaker == "121"
    pair = "61-70-0003\t6.0\tRoom seven.\t61-70-0000\t5.0\tThe cat sat on the mat.\n"
    (folder / "cross_sentence.lst").write_text(pair)
    _, trials = prepared("librispeech-cross", folder, tmp_path / "listed")
    assert (
        list(trials) == ["61-70-0000"] and trials["61-70-0000"]["text"] == "The cat sat on the mat."
    )
    (folder / "cross_sentence.lst").write_text(pair + pair.replace("61-70-0000", "61-70-9999"))
    with pytest.raises(
        InputError, match=r"cross_sentence\.lst:2: utterance '61-70-9999' is not in"
    ):
        prepare_protocol("librispeech-cross", folder, tmp_path / "bad")
    (folder / "cross_sentence.lst").write_text("a b\n")
    with pytest.raises(InputError, match=r"cross_sentence\.lst:1: 'a b' has 1 fields, expected 6"):
        prepare_protocol("librispeech-cross", folder, tmp_path / "bad")


def test_cross_sentence_counts_utterances_whose_speaker_has_no_short_one(tmp_path):
    folder = librispeech(tmp_path / "set")
    listing = folder / "121/70/121-70.trans.txt"
    listing.write_text("".join(line for line in listing.open() if "0001" not in line))
    (folder / "121/70/121-70-0001.flac").unlink()
    report, trials = prepared("librispeech-cross", folder, tmp_path / "out")
    assert (
        list(trials) == ["61-70-0000", "61-70-0003"]
        and report["left_out"]["no_prompt_of_2_to_5_seconds"] == 1
    )


def damage_transcript(folder):
    (folder / "61/70/61-70.trans.txt").write_text("61-70-0000\n")


def lose_recording(folder):
    (folder / "61/70/61-70-0001.flac").unlink()


def lose_transcript(folder):
    listing = folder / "61/70/61-70.trans.txt"
    listing.write_text("".join(line for line in listing.open() if "0002" not in line))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            damage_transcript,
            r"61-70\.trans\.txt:1: '61-70-0000', expected an id, a space and a text",
        ),
        (lose_recording, r"61-70\.trans\.txt:2: audio file .*61-70-0001\.flac is missing"),
        (lose_transcript, r"61-70\.trans\.txt: no line for 61-70-0002"),
        (
            lambda folder: shutil.rmtree(folder / "61") or shutil.rmtree(folder / "121"),
            r"no \*\.trans\.txt in it",
        ),
        (
            lambda folder: (folder / "61/70/61-70-0003.flac").write_bytes(b"x"),
            r"61-70-0003\.flac cannot be read",
        ),
    ],
)
def test_damaged_librispeech_tree_is_named(tmp_path, damage, message):
    folder = librispeech(tmp_path / "set")
    damage(folder)
    with pytest.raises(InputError, match=message):
        prepare_protocol(
            "asr" if "cannot" in message else "librispeech-cross", folder, tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_librispeech_of_several_subsets_is_refused(tmp_path):
    folder = librispeech(tmp_path / "set")
    with pytest.raises(
        InputError,
        match=r"not two folders below .* expected a LibriSpeech subset such as test-clean",
    ):
        prepare_protocol("asr", folder.parent, tmp_path / "out")


@pytest.mark.parametrize("flat", [False, True])
def test_esd_pairs_test_sentences_within_speaker_and_emotion(tmp_path, flat):
    root = esd(tmp_path / "set", flat)
    report, trials = prepared("esd-en", root, tmp_path / "en")
    assert report["trials"] == 15 and {row["speaker"] for row in trials.values()} == {"0011"}
    angry = {id_: row["prompt"] for id_, row in trials.items() if row["emotion"] == "Angry"}
    assert {id_: path.rpartition("/")[2] for id_, path in angry.items()} == {
        "0011_000371": "0011_000372.wav",
        "0011_000372": "0011_000373.wav",
        "0011_000373": "0011_000371.wav",
    }
    _, trials = prepared("esd-zh", root, tmp_path / "zh")
    assert (
        trials["0001_000371"]["text"].startswith("打远一看")
        and trials["0001_000371"]["language"] == "zh"
    )


def test_esd_recording_without_a_text_and_a_broken_list_are_named(tmp_path):
    root = esd(tmp_path / "set")
    listing = root / "0011/0011.txt"
    content = listing.read_text()
    listing.write_text(
        "\n".join(line for line in content.splitlines() if "0011_000372" not in line)
    )
    with pytest.raises(InputError, match=r"0011\.txt: no line for 0011_000372"):
        prepare_protocol("esd-en", root, tmp_path / "out")
    listing.write_text(
        content.replace("0011_000022\t", "0011_000022 ").replace("\tNeutral", " Neutral")
    )
    with pytest.raises(
        InputError, match=r"0011\.txt:1: .* expected an id, a text and an emotion between tabs|:2: "
    ):
        prepare_protocol("esd-en", root, tmp_path / "out")
    shutil.rmtree(root / "0011/Sad")
    listing.write_text(content)
    with pytest.raises(InputError, match=r"0011/Sad: no such folder"):
        prepare_protocol("esd-en", root, tmp_path / "out")


def test_codec_protocol_writes_both_sides_and_needs_a_codec(tmp_path):
    folder = librispeech(tmp_path / "set")
    with pytest.raises(InputError, match="expected --codec"):
        prepare_protocol("codec", folder, tmp_path / "out")
    report, trials = prepared("codec", folder, tmp_path / "out", codec=FakeCodec())
    assert (
        report["trials"] == report["references"] == 7
        and report["prompts"] == 0
        and report["codec"] == "fake"
    )
    decoded = read_manifest(tmp_path / "out/resynthesis/manifest.jsonl")
    assert [item.id for item in decoded] == list(trials) and all(
        item.audio.is_file() for item in decoded
    )
    assert not (tmp_path / "out/requests.jsonl").exists()
    assert reference_manifest(tmp_path / "out") == tmp_path / "out/references.jsonl"


def test_codec_protocol_reads_a_manifest_too(tmp_path):
    wav(tmp_path / "a.wav", "hello", 3)
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"id": "a", "audio": "a.wav", "text": "Hello."}) + "\n"
    )
    report, _ = prepared("codec", tmp_path / "m.jsonl", tmp_path / "out", codec=FakeCodec())
    assert report["trials"] == 1


def test_seeds_ask_for_every_text_again_and_prompts_go_through_the_codec_once(tmp_path):
    root = seed_tts(tmp_path / "set")
    listing = root / "en/meta.lst"
    listing.write_text(listing.read_text() + "u3|Some call me nature.|prompt-wavs/p1.wav|Bye.\n")
    report, trials = prepared("seed-tts-en", root, tmp_path / "out", codec=FakeCodec(), seeds=2)
    wanted, _ = requests(tmp_path / "out")
    assert [(item.id, item.seed) for item in wanted] == [
        (f"u{i}.s{seed}", seed) for seed in (0, 1) for i in (1, 2, 3)
    ]
    assert (
        report["prompts"] == 2
        and len(list((tmp_path / "out/resynthesized_prompts/wavs").iterdir())) == 2
    )
    assert trials["u1"]["resynthesized_prompt"] == trials["u3"]["resynthesized_prompt"]
    assert (
        soundfile.info(tmp_path / "out" / trials["u1"]["resynthesized_prompt"]).frames == 19 * 320
    )


def test_limit_is_spread_over_the_list(tmp_path):
    _, trials = prepared("asr", librispeech(tmp_path / "set"), tmp_path / "out", limit=2)
    assert list(trials) == ["121-70-0000", "61-70-0000"]


def test_a_filter_that_leaves_nothing_says_what_it_left_out(tmp_path):
    wav(tmp_path / "set/61/70/61-70-0000.wav", "hello", 3, 1.0)
    (tmp_path / "set/61/70/61-70.trans.txt").write_text("61-70-0000 HELLO\n")
    with pytest.raises(
        InputError, match=r"no trial for librispeech-continuation \(not_4_to_10_seconds 1\)"
    ):
        prepare_protocol("librispeech-continuation", tmp_path / "set", tmp_path / "out")


def test_request_with_both_ways_of_naming_the_prompts_words_is_refused(tmp_path):
    line = {"id": "a", "text": "x", "voice": "a.wav", "voice_text": "y", "voice_in_text": True}
    (tmp_path / "r.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=r"r\.jsonl:1: .* not both"):
        read_requests(tmp_path / "r.jsonl", lambda path, text: Voice(text, np.arange(3)))


def test_command_prepares_and_its_help_names_every_protocol_with_its_metric(tmp_path, capsys):
    assert cli.main(["protocol", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for protocol in PROTOCOLS.values():
        assert protocol.name in shown and " ".join(protocol.metric.split()) in shown
    assert (
        cli.main(
            ["protocol", "seed-tts-en", str(seed_tts(tmp_path / "set")), str(tmp_path / "out")]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["trials"] == 2
    assert (
        cli.main(["protocol", "seed-tts-en", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    )
    assert re.search("nowhere", capsys.readouterr().err)
    with pytest.raises(InputError, match="protocol 'seed' is unknown"):
        protocol_of("seed")
