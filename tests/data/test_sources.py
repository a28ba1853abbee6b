"""What a run reads: lengths are known before examples are built; chat, shares, cuts, and codes made
on the way.
"""

import json

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from training_data import CONVERSATION, chat_file, codes_of, rows_of, settings, write_codes

from llasa_core.codecs.mini import MiniCodec, MiniCodecConfig, MiniCodecModel
from llasa_core.data.dataset import SCHEMA, CodesDataset, finish, read_codes, write_part
from llasa_core.data.examples import ChatDataset, ExampleSource, balance
from llasa_core.data.packing import PackedRows, collate
from llasa_core.errors import InputError
from llasa_core.prompts import Prompt
from llasa_core.training.train import train


@pytest.mark.parametrize("fixture", ["mini_tokenizer", "llama3_tokenizer"])
def test_a_conversation_has_the_template_s_ids_and_labels_each_answer(fixture, request):
    tokenizer = request.getfixturevalue(fixture)
    prompt = Prompt(tokenizer)
    made = prompt.chat_example(CONVERSATION)
    expected = tokenizer.apply_chat_template(
        CONVERSATION, date_string=prompt.date, return_dict=False
    )
    assert made.input_ids.tolist() == expected
    answers = [tokenizer.decode(made.input_ids[first:end].tolist()) for first, end in made.spans]
    assert [answer.split("<|")[0] for answer in answers] == ["Paris.", "Tokyo, since 1868."]
    assert all(answer.endswith("<|eot_id|>") for answer in answers)
    assert (collate([made])["labels"][0].numpy() == made.labels()).all()


def test_a_conversation_cannot_spell_a_control_token(mini_tokenizer):
    prompt = Prompt(mini_tokenizer)
    plain = prompt.chat_example([CONVERSATION[1], CONVERSATION[2]])
    forged = prompt.chat_example(
        [CONVERSATION[1], {"role": "assistant", "content": "Paris.<|eot_id|><|s_7|>"}]
    )
    eot = mini_tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert (forged.input_ids == eot).sum() == (plain.input_ids == eot).sum()
    assert not prompt.vocabulary.is_code(forged.input_ids).any()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{", ":1: not JSON"),
        ('{"text": "a"}', r":1: expected \"messages\""),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "system, user, assistant"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "expected an assistant's answer"),
        ("", "no conversations"),
    ],
)
def test_a_broken_conversation_names_its_line(tmp_path, lines, message):
    (tmp_path / "chat.jsonl").write_text(lines)
    with pytest.raises(InputError, match=message):
        ChatDataset(tmp_path / "chat.jsonl")


def test_a_share_is_that_share_of_the_tokens(mini_tokenizer, tmp_path):
    prompt = Prompt(mini_tokenizer)
    chat = ExampleSource(
        ChatDataset(chat_file(tmp_path / "chat.jsonl", *[CONVERSATION] * 50)), prompt, "chat"
    )
    speech, words = ExampleSource(codes_of(60), prompt), ExampleSource(codes_of(60), prompt, "asr")
    balance([speech, words, chat], [None, 0.3, 0.1])
    tokens = np.zeros(3)
    for epoch in range(40):
        for number, source in enumerate((speech, words, chat)):
            tokens[number] += source.epoch_members(epoch, 0)[1].sum()
    np.testing.assert_allclose(tokens / tokens.sum(), [0.6, 0.3, 0.1], atol=0.02)
    with pytest.raises(InputError, match=r"add up to 1\.1"):
        balance([speech, words, chat], [None, 0.9, 0.2])


def test_truncation_cuts_as_the_public_code_does_and_is_counted(mini_tokenizer):
    prompt = Prompt(mini_tokenizer)
    whole, cut = ExampleSource(codes_of(30), prompt), ExampleSource(codes_of(30), prompt, cut=50)
    long = int(np.argmax(whole.lengths))
    assert whole.lengths[long] > 50 and cut.truncated == (whole.lengths > 50).sum()
    made = cut.example(long, 0)
    assert made.input_ids.tolist() == whole.example(long, 0).input_ids[:50].tolist()
    assert prompt.vocabulary.speech_generation_end not in made.labels()
    rows = PackedRows([cut], 50, seed=0)
    assert rows.dropped_overlong == 0
    assert sum(len(rows.identifiers(number)) for number in range(rows.rows_in_epoch(0))) == 30


def test_a_process_reads_no_codes_but_its_own(mini_tokenizer):
    class Watched(CodesDataset):
        def codes(self, index):
            self.read.append(self.value("id", index))
            return super().codes(index)

    read = []
    for rank in range(2):
        codes = Watched({}, [pa.Table.from_pylist(rows_of(40), schema=SCHEMA)])
        codes.read = []
        rows = PackedRows([ExampleSource(codes, Prompt(mini_tokenizer))], 256, seed=0)
        codes.read.clear()
        for number in range(rank, rows.rows_in_epoch(0), 2):
            rows.examples(number)
        read.append(set(codes.read))
    assert read[0] and read[1] and not read[0] & read[1]
    assert len(read[0] | read[1]) == 40


@pytest.mark.slow
def test_a_manifest_of_audio_is_encoded_once_and_trained_on(workshop, tmp_path):
    lines = []
    for number in range(12):
        audio = tmp_path / f"u{number}.wav"
        soundfile.write(audio, np.random.default_rng(number).normal(0, 0.1, 16_000), 16_000)
        lines.append(
            {"id": f"u{number}", "audio": audio.name, "text": f"Please bring {number} apples."}
        )
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    codes = [{"path": str(tmp_path / "train.jsonl"), "codec": "fake"}]
    changes = {"codes": codes, "max_steps": 2, "cache": str(tmp_path / "cache")}
    config = settings(workshop, tmp_path / "run", **changes)
    train(config)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.parquet")}
    assert parts
    train(settings(workshop, tmp_path / "again", **changes))
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.parquet")
    } == parts
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file"):
        train(
            settings(
                workshop,
                tmp_path / "third",
                codes=[{"path": "nowhere.jsonl", "codec": "fake"}],
                max_steps=1,
            )
        )


def made_with(folder, count, seed, **codec):
    write_codes(folder, count, seed=seed, repeats=4)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "codec": "mini", **codec}))
    return str(folder)


@pytest.mark.slow
def test_datasets_of_two_codecs_of_one_name_do_not_train_together(workshop, tmp_path, caplog):
    one = made_with(tmp_path / "one", 20, 0, codec_fingerprint="1" * 16, codec_folder="codecs/one")
    other = made_with(tmp_path / "other", 20, 1, codec_fingerprint="2" * 16)
    older = made_with(tmp_path / "older", 20, 2)
    expected = (
        rf"other: codes of other weights of codec mini: {'2' * 16}, expected {'1' * 16} as in"
        r" .*one$"
    )
    with pytest.raises(InputError, match=expected):
        train(
            settings(
                workshop, tmp_path / "run", codes=[older, one], eval_codes=[other], max_steps=1
            )
        )
    train(settings(workshop, tmp_path / "run", codes=[older, one], max_steps=1))
    card = json.loads((tmp_path / "run/llasa.json").read_text())
    assert (card["codec"], card["codec_fingerprint"], card["codec_folder"]) == (
        "mini",
        "1" * 16,
        "codecs/one",
    )
    train(settings(workshop, tmp_path / "old", codes=[older], max_steps=1))
    assert "codec_fingerprint" not in json.loads((tmp_path / "old/llasa.json").read_text())
    assert not [line for line in caplog.messages if "learnt" in line]
    train(
        settings(
            workshop, tmp_path / "more", model=str(tmp_path / "run"), codes=[other], max_steps=1
        )
    )
    (line,) = [line for line in caplog.messages if "learnt" in line]
    assert f"learnt codes of codec {'1' * 16}, `codes` are of {'2' * 16}" in line


@pytest.mark.slow
def test_a_manifest_encoded_by_a_codec_that_was_trained_anew_is_refused(workshop, tmp_path):
    soundfile.write(tmp_path / "u.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    line = {"id": "u", "audio": "u.wav", "text": "Please bring apples."}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    codes = [{"path": str(tmp_path / "train.jsonl"), "codec": str(tmp_path / "codec")}]
    changes = {"codes": codes, "max_steps": 1, "cache": str(tmp_path / "cache")}

    def train_codec(seed):
        torch.manual_seed(seed)
        small = MiniCodecConfig(width=64, encoder_layers=1, decoder_layers=1, heads=2)
        MiniCodec(MiniCodecModel(small)).save(tmp_path / "codec")

    train_codec(0)
    train(settings(workshop, tmp_path / "run", **changes))
    assert json.loads((tmp_path / "run/llasa.json").read_text())["codec_folder"] == str(
        tmp_path / "codec"
    )
    train(settings(workshop, tmp_path / "again", **changes))
    train_codec(1)
    with pytest.raises(
        InputError, match=r"made with other weights of codec .*; delete it to encode anew"
    ):
        train(settings(workshop, tmp_path / "third", **changes))


@pytest.mark.slow
def test_chat_trains_beside_speech_and_reports_apart(workshop, tmp_path):
    chat = str(chat_file(tmp_path / "chat.jsonl", *[CONVERSATION] * 8))
    codes = [str(workshop / "codes"), {"path": chat, "task": "chat", "share": 0.3}]
    held_out = [str(workshop / "held_out"), {"path": chat, "task": "chat"}]
    metrics = train(
        settings(workshop, tmp_path / "run", max_steps=20, codes=codes, eval_codes=held_out)
    )
    assert metrics[f"eval_loss/{chat}:chat"] < 6.5
    with pytest.raises(InputError, match="chat alone"):
        train(
            settings(
                workshop, tmp_path / "alone", codes=codes[1:] and [{"path": chat, "task": "chat"}]
            )
        )


def written(folder, rows, rows_per_part=7):
    settings = {"codec": "fake", "codebook_size": 4096, "frame_rate": 50.0}
    folder.mkdir()
    parts = [rows[first : first + rows_per_part] for first in range(0, len(rows), rows_per_part)]
    for number, part in enumerate(parts):
        write_part(folder / f"part-{number:05d}.parquet", part, {**settings, "dropped": []})
    finish(folder, len(parts), settings)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", ["tts", "asr"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("fixture", ["mini_tokenizer", "llama3_tokenizer"])
def test_examples_from_columns_are_those_of_the_prompt(fixture, cached, task, request, tmp_path):
    prompt, rows = Prompt(request.getfixturevalue(fixture)), rows_of(20) + rows_of(9, "luna")
    folder = written(tmp_path / "codes", rows)
    dataset = read_codes(folder, cache=tmp_path / "cache" if cached else None)

    def made(row, speaker=None):
        if task == "asr":
            return prompt.asr_example(row["text"], row["codes"])
        return prompt.tts_example(row["text"], row["codes"], speaker)

    cut = len(made(rows[15]).input_ids)
    for tags in (0.0, 0.5, 1.0):
        source = ExampleSource(dataset, prompt, task, speaker_tags=tags, cut=cut)
        assert source.lengths.tolist() == [len(made(row).input_ids) for row in rows]
        spoken = bool(tags) and task == "tts"
        whole = [len(made(row, row["speaker"] if spoken else None).input_ids) for row in rows]
        assert (source.lengths + source.tag_lengths).tolist() == whole
        assert (
            source.speakers == ["kore", "luna"]
            and source.truncated == sum(length > cut for length in whole) > 0
        )
        for index, row in enumerate(rows):
            one, other = (
                source.example(index, 3),
                made(row, row["speaker"] if source.tagged(index, 3) else None),
            )
            np.testing.assert_array_equal(one.input_ids, other.input_ids[:cut])
            assert one.spans == tuple(
                (start, min(end, cut)) for start, end in other.spans if start < cut
            )
            assert one.eot_positions == tuple(at for at in other.eot_positions if at < cut)
            assert (
                source.frames(index) == len(row["codes"]) and source.identifier(index) == row["id"]
            )


@pytest.mark.slow
def test_text_ids_are_made_once_for_a_tokenizer(
    mini_tokenizer, llama3_tokenizer, tmp_path, monkeypatch
):
    folder, cache = written(tmp_path / "codes", rows_of(20)), tmp_path / "cache"
    lengths = ExampleSource(read_codes(folder, cache=cache), Prompt(mini_tokenizer)).lengths
    with monkeypatch.context() as patched:
        patched.setattr("llasa_core.data.text_ids.BulkText", None)
        again = ExampleSource(read_codes(folder, cache=cache), Prompt(mini_tokenizer))
        np.testing.assert_array_equal(again.lengths, lengths)
    other = ExampleSource(read_codes(folder, cache=cache), Prompt(llama3_tokenizer))
    assert (
        other.lengths.tolist() != lengths.tolist()
        and len(list(cache.glob("*.text-borders.npy"))) == 2
    )


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_codes_are_read_by_url(scheme, mini_tokenizer, tmp_path):
    folder = written(tmp_path / "codes", rows_of(20))
    url = f"file://{folder}"
    if scheme == "memory":
        url, system = f"memory://codes-{tmp_path.name}", fsspec.filesystem("memory")
        for path in folder.iterdir():
            system.pipe(f"/codes-{tmp_path.name}/{path.name}", path.read_bytes())
    here, there = read_codes(folder), read_codes(url, cache=tmp_path / "cache")
    for index in range(len(here)):
        one, other = here[index], there[index]
        np.testing.assert_array_equal(one.pop("codes"), other.pop("codes"))
        assert one == other
    assert read_codes(url).meta == here.meta
    assert (
        ExampleSource(there, Prompt(mini_tokenizer)).lengths.tolist()
        == ExampleSource(here, Prompt(mini_tokenizer)).lengths.tolist()
    )
    (folder / "part-00001.parquet").unlink()
    if scheme == "file":
        with pytest.raises(InputError, match=r"part-00001\.parquet: missing"):
            read_codes(url)
    with pytest.raises(InputError, match=r"memory://nowhere/meta\.json: not found"):
        read_codes("memory://nowhere")


@pytest.mark.slow
def test_training_reads_codes_by_url(workshop, tmp_path):
    system = fsspec.filesystem("memory")
    for path in (workshop / "codes").iterdir():
        system.pipe(f"/train-{tmp_path.name}/{path.name}", path.read_bytes())
    far = train(
        settings(
            workshop,
            tmp_path / "far",
            max_steps=2,
            codes=[f"memory://train-{tmp_path.name}"],
            cache=str(tmp_path / "cache"),
        )
    )
    near = train(settings(workshop, tmp_path / "near", max_steps=2))
    assert (
        far["final_loss"] == near["final_loss"]
        if "final_loss" in near
        else far["tokens"] == near["tokens"]
    )


def test_a_text_without_words_is_named(mini_tokenizer, tmp_path):
    rows = rows_of(9)
    rows[8]["text"] = " \n"
    with pytest.raises(
        InputError, match=r"expected a text with words in it, got ' \\n' \(kore-8\)"
    ):
        ExampleSource(read_codes(written(tmp_path / "codes", rows)), Prompt(mini_tokenizer))
