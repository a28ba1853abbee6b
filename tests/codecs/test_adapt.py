"""A codec's decoder adapted to a toy voice at width 64: its codes, its held-out loss, stops and
resumes, what is refused, and the language models that go on with it.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import TINY_CODEC
from training_data import settings as of_training

from llasa_core import cli
from llasa_core.audio import write_wav
from llasa_core.checkpoint import refuse_another_codec
from llasa_core.codecs import load_codec, mini_training
from llasa_core.codecs.adapt import Adaptation, adapt_codec
from llasa_core.codecs.mini import ADAPTATION, MiniCodec, MiniCodecModel
from llasa_core.data.dataset import read_codes
from llasa_core.data.encode import encode_manifest
from llasa_core.data.subsets import join_pairs
from llasa_core.errors import InputError
from llasa_core.manifest import Request, Utterance, read_manifest, write_manifest
from llasa_core.synthesis.batch import synthesize_manifest
from llasa_core.synthesis.sampling import Sampling
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.training.train import train


def tone(place, seconds=1.5):
    """float32: pulses at 120 to 150 Hz of slowly changing loudness, a voice of one vowel."""
    time = np.arange(int(16_000 * seconds)) / 16_000
    pitch = 120 + 5 * (place % 7)
    harmonics = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12))
    return (0.1 * harmonics * (1 + 0.5 * np.sin(2 * np.pi * (1 + place) * time))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A base codec, twenty clips of a toy voice and the base adapted to them, in one folder."""
    folder = tmp_path_factory.mktemp("adapt")
    torch.manual_seed(0)
    MiniCodec(MiniCodecModel(TINY_CODEC), "cpu").save(folder / "base")
    for place in range(20):
        write_wav(folder / f"{place}.wav", tone(place))
    write_manifest(
        folder / "voice.jsonl",
        [Utterance(f"clip-{i}", folder / f"{i}.wav", "ah", seconds=1.5) for i in range(20)],
    )
    adapt_codec(settings(folder))
    return folder


def settings(folder, out="adapted", **changes):
    """Fifteen steps on the clips."""
    return replace(
        Adaptation(
            str(folder / "base"), folder / "voice.jsonl", folder / out, steps=15, save_steps=5
        ),
        **changes,
    )


def record_of(folder):
    return json.loads((folder / ADAPTATION).read_text())


def test_codes_of_any_wave_are_those_of_the_base_and_the_sound_is_not(corpus):
    base, adapted = load_codec(corpus / "base"), load_codec(corpus / "adapted")
    random = np.random.default_rng(0)
    waves = [random.normal(0, 0.1, 16_077).astype(np.float32), tone(3), tone(9, 0.31) * 3]
    for codes, same in zip(base.encode(waves), adapted.encode(waves), strict=True):
        np.testing.assert_array_equal(codes, same)
    assert (adapted.name, adapted.codebook_size) == (base.name, base.codebook_size)
    assert adapted.codes_fingerprint == base.codes_fingerprint
    assert adapted.fingerprint != base.fingerprint
    assert not np.allclose(*(codec.decode([codes])[0] for codec in (base, adapted)), atol=1e-3)


def test_held_out_loss_falls_and_the_record_says_what_was_done(corpus):
    record = record_of(corpus / "adapted")
    assert record["held_out_mel_change_high"] < 0
    assert record["held_out_mel_after"] - record["held_out_mel_before"] == pytest.approx(
        record["held_out_mel_change"]
    )
    assert record["base_fingerprint"] == load_codec(corpus / "base").fingerprint
    assert record["fingerprint"] == load_codec(corpus / "adapted").fingerprint
    assert (record["steps"], record["train_clips"], record["held_out_clips"]) == (15, 18, 2)
    parts = [read_manifest(corpus / "adapted" / f"{n}.jsonl") for n in ("train", "held_out")]
    assert [len(part) for part in parts] == [18, 2]
    assert len({each.id for part in parts for each in part}) == 20


def test_killed_and_resumed_adaptation_equals_the_uninterrupted_one(corpus, monkeypatch):
    asked, original = settings(corpus, "resumed"), mini_training.step_losses
    steps, dies_at = [], 8

    def counted(*arguments):
        steps.append(arguments[-1])
        if arguments[-1] == dies_at:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(mini_training, "step_losses", counted)
    with pytest.raises(KeyboardInterrupt):
        adapt_codec(asked)
    with pytest.raises(InputError, match=r"resume\.pt: of another codec, other settings or rec"):
        adapt_codec(replace(asked, seed=1))
    assert not (asked.output_dir / ADAPTATION).exists()
    dies_at = None
    record = adapt_codec(asked)
    assert steps == [*range(9), *range(5, 15)]
    weights = [(corpus / n / "model.safetensors").read_bytes() for n in ("adapted", "resumed")]
    assert weights[0] == weights[1]
    whole = record_of(corpus / "adapted")
    assert {**record, "seconds": 0} == {**whole, "seconds": 0}
    assert adapt_codec(asked) == record and len(steps) == 19  # done: no step is repeated
    assert not (asked.output_dir / "resume.pt").exists()


def test_what_stands_in_the_folder_is_not_overwritten(corpus):
    with pytest.raises(InputError, match="seed is 0, expected 1"):
        adapt_codec(settings(corpus, seed=1))
    with pytest.raises(InputError, match="base: holds a codec already, expected a new folder"):
        adapt_codec(settings(corpus, "base"))


def test_language_model_of_the_base_accepts_the_adapted_codec_and_no_other(corpus, tmp_path):
    base, adapted = load_codec(corpus / "base"), load_codec(corpus / "adapted")
    card = {
        "codec": "mini",
        "codec_fingerprint": base.fingerprint,
        "codec_folder": str(corpus / "base"),
    }
    refuse_another_codec(tmp_path, card, adapted)
    torch.manual_seed(1)
    other = MiniCodec(MiniCodecModel(TINY_CODEC), "cpu")
    for codec in (other, load_codec("mini")):
        with pytest.raises(InputError, match="give that of the folder"):
            refuse_another_codec(tmp_path, card, codec)
    # The base has moved: adaptation.json says where to; what cannot be compared is not believed.
    card["codec_folder"] = str(tmp_path / "gone")
    refuse_another_codec(tmp_path, card, adapted)
    record = record_of(shutil.copytree(corpus / "adapted", tmp_path / "moved"))
    for base_now in (tmp_path / "gone", corpus / "adapted"):
        told = json.dumps({**record, "base": str(base_now)})
        (tmp_path / "moved" / ADAPTATION).write_text(told)
        with pytest.raises(InputError, match="trained on codec mini of weights"):
            refuse_another_codec(tmp_path, card, load_codec(tmp_path / "moved"))


@pytest.mark.parametrize(
    ("codec", "clips", "message"),
    [
        ("mini", 4, "4 recordings of together 6.0 s, expected at least 2"),
        ("mini", 0, "0 recordings of together 0.0 s"),
        ("fake", 20, "codec fake: its decoder cannot be trained here, expected mini or a folder"),
        ("xcodec2", 20, "codec xcodec2: its decoder cannot be trained here"),
        ("nothing", 20, "codec 'nothing' is unknown"),
    ],
)
def test_too_little_speech_and_a_codec_without_training_are_refused_in_one_line(
    corpus, tmp_path, capsys, codec, clips, message
):
    few = tmp_path / "few.jsonl"
    write_manifest(few, read_manifest(corpus / "voice.jsonl")[:clips])
    assert cli.main(["adapt-codec", codec, str(few), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"peak_lr": 0.0}, {"threads": 0}, {"seed": -1}])
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=f"codec adaptation: `{next(iter(wrong))}`"):
        Adaptation("mini", "m.jsonl", "out", **wrong)


def test_command_prints_the_losses_and_the_folder_is_a_codec(corpus, tmp_path, capsys):
    argv = ["adapt-codec", str(corpus / "base"), str(corpus / "voice.jsonl"), str(tmp_path / "a")]
    assert cli.main([*argv, "--steps", "1"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == record_of(tmp_path / "a")
    assert "1/1" in err
    assert load_codec(tmp_path / "a").folder == str(tmp_path / "a")


@pytest.fixture(scope="module")
def study(corpus, mini_tokenizer):
    """Codes of the clips: of the base, of the adapted codec, and begun with one and ended with the
    other; and a model trained on all of them, joined.
    """
    base, adapted = (load_codec(corpus / name, "cpu") for name in ("base", "adapted"))
    voice = corpus / "voice.jsonl"
    metas = {
        codec.folder: encode_manifest(voice, f"{codec.folder}-codes", codec, rows_per_part=10)
        for codec in (base, adapted)
    }
    both = corpus / "both-codes"
    assert encode_manifest(voice, both, base, shards=2, shard=0, rows_per_part=10) is None
    metas["both"] = encode_manifest(voice, both, adapted, shards=2, shard=1, rows_per_part=10)
    join_pairs(both, corpus / "pairs")
    mini_tokenizer.save_pretrained(corpus / "tokenizer")
    folders = [str(corpus / f"{n}-codes") for n in ("base", "adapted", "both")]
    asked = {"model": "nano", "max_steps": 1, "codes": [*folders, str(corpus / "pairs")]}
    train(of_training(corpus, corpus / "model", **asked))
    return metas


@pytest.mark.slow
def test_dataset_begun_with_the_base_and_ended_with_the_adapted_codec_has_the_codes_of_both(
    corpus, study
):
    base, adapted = (load_codec(corpus / name, "cpu") for name in ("base", "adapted"))
    rows = [list(read_codes(corpus / f"{n}-codes")) for n in ("base", "adapted", "both")]
    for one in rows[1:]:
        assert [row["id"] for row in one] == [row["id"] for row in rows[0]]
        assert all(
            np.array_equal(*(x["codes"] for x in two)) for two in zip(one, rows[0], strict=True)
        )
    assert {meta["codes_fingerprint"] for meta in study.values()} == {base.codes_fingerprint}
    told = [meta.get("codec_fingerprint") for meta in study.values()]
    assert told == [base.fingerprint, adapted.fingerprint, None]
    joined = json.loads((corpus / "pairs" / "meta.json").read_text())
    assert joined["codes_fingerprint"] == base.codes_fingerprint
    torch.manual_seed(1)
    other = MiniCodec(MiniCodecModel(TINY_CODEC), "cpu")
    expected = f"weights of codec mini: {base.codes_fingerprint}, not {other.codes_fingerprint};"
    for name in ("base", "both"):
        with pytest.raises(InputError, match=expected):
            encode_manifest(
                corpus / "voice.jsonl", corpus / f"{name}-codes", other, rows_per_part=10
            )


@pytest.mark.slow
def test_model_of_joined_codes_speaks_through_either_decoder_and_no_other_encoder(
    corpus, study, tmp_path, capsys
):
    card = json.loads((corpus / "model" / "llasa.json").read_text())
    base = load_codec(corpus / "base", "cpu")
    assert card["codes_fingerprint"] == base.codes_fingerprint
    spoken = {}
    for name in ("base", "adapted"):
        model = Synthesizer.from_folder(corpus / "model", corpus / name, "cpu")
        asked, out = [Request("a", "Ah.")], tmp_path / name
        sampling = Sampling(temperature=1.0)
        synthesize_manifest(model, asked, out, sampling, keep_codes=True)
        row = json.loads((out / "manifest.jsonl").read_text())
        spoken[name] = row["code_list"], (out / row["audio"]).read_bytes()
    assert spoken["base"][0] == spoken["adapted"][0] and len(spoken["base"][0]) > 5
    assert spoken["base"][1] != spoken["adapted"][1]
    # Without a codec: the one that llasa.json names.
    assert Synthesizer.from_folder(corpus / "model").codec.fingerprint == base.fingerprint
    torch.manual_seed(1)
    MiniCodec(MiniCodecModel(TINY_CODEC), "cpu").save(tmp_path / "other")
    argv = ["synthesize", "--model", str(corpus / "model"), "--codec", str(tmp_path / "other")]
    assert cli.main([*argv, "Ah.", "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"of weights {base.codes_fingerprint}, not" in error
    assert f"give that of the folder {corpus / 'base'} as codec" in error


@pytest.mark.slow
def test_older_records_without_the_codes_fingerprint_join_where_their_codec_is_at_hand(
    corpus, study, tmp_path, caplog
):
    older = shutil.copytree(corpus / "base-codes", tmp_path / "older")
    model = shutil.copytree(corpus / "model", tmp_path / "model")
    for file in (older / "meta.json", model / "llasa.json"):
        told = json.loads(file.read_text())
        del told["codes_fingerprint"]
        file.write_text(json.dumps(told))
    asked = {"model": str(model), "max_steps": 1, "tokenizer": None}
    asked["codes"] = [str(older), str(corpus / "adapted-codes")]
    train(of_training(corpus, tmp_path / "tuned", **asked))
    assert not [line for line in caplog.messages if "learnt" in line]
    card = json.loads((tmp_path / "tuned" / "llasa.json").read_text())
    assert card["codes_fingerprint"] == study["both"]["codes_fingerprint"]
    assert Synthesizer.from_folder(tmp_path / "tuned").codec.folder == str(corpus / "adapted")
    told = json.loads((older / "meta.json").read_text())
    (older / "meta.json").write_text(json.dumps({**told, "codec_folder": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="codes of other weights of codec mini"):
        train(of_training(corpus, tmp_path / "again", **asked))
