"""Recognition by a model whose sides are swapped: its rows, its score, joint and single models
compared.
"""

import math

import numpy as np
import pytest
from training_data import settings, write_codes

from llasa_core.audio import write_wav
from llasa_core.cli import main
from llasa_core.codecs.fake import FakeCodec
from llasa_core.data.dataset import read_codes
from llasa_core.data.encode import encode_manifest
from llasa_core.errors import InputError
from llasa_core.evaluation.recognition import compare_losses, recognise, task_entries
from llasa_core.evaluation.summary import summarise
from llasa_core.manifest import Utterance, write_manifest
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.training.train import train


class Listener:
    """Hears what it is told to, one answer an utterance."""

    def __init__(self, answers):
        self.answers = iter(answers)

    def transcribe_codes(self, codes):
        return [next(self.answers) for _ in codes]


def test_rows_count_the_errors_of_the_words(tmp_path):
    dataset = read_codes(write_codes(tmp_path / "codes", 3))  # "Please bring 0 apples." and so on
    done = []
    listener = Listener(
        ["please bring 0 apples", "please bring apples", "Please, bring two apples!"]
    )
    rows = recognise(listener, dataset, block=2, progress=done.append)
    assert [row["errors"] for row in rows] == [0, 1, 0] and [row["words"] for row in rows] == [
        4,
        4,
        4,
    ]
    assert [row["id"] for row in rows] == ["u0-0", "u0-1", "u0-2"] and done == [2, 1]
    assert summarise(rows)["corpus_wer"] == pytest.approx(1 / 12)
    assert rows[0]["seconds"] == pytest.approx(len(dataset[0]["codes"]) / 50, abs=1e-3)


def test_limit_is_spread_evenly(tmp_path):
    dataset = read_codes(write_codes(tmp_path / "codes", 10))
    assert [row["id"] for row in recognise(Listener("abcd"), dataset, 4)] == [
        "u0-0",
        "u0-2",
        "u0-5",
        "u0-7",
    ]


@pytest.mark.slow
def test_model_trained_on_one_recording_recognises_it_at_the_command_line_too(
    tmp_path, mini_tokenizer, capsys
):
    """The trainer with the sides swapped, then greedy transcription, of an utterance learnt by
    heart.
    """
    mini_tokenizer.save_pretrained(tmp_path / "tokenizer")
    wav, text = tmp_path / "bring.wav", "Please bring four apples."
    write_wav(
        wav, 0.3 * np.sin(np.arange(16_000) ** 1.5 * 1e-4) * (np.arange(16_000) % 4000 / 4000)
    )
    write_manifest(
        tmp_path / "m.jsonl", [Utterance("bring", wav, text, "kore", "en", 1.0, "train")]
    )
    encode_manifest(tmp_path / "m.jsonl", tmp_path / "codes", FakeCodec())
    entries = task_entries(tmp_path / "codes", ["asr"])
    changes = {
        "model": "nano",
        "codes": entries,
        "eval_codes": entries,
        "max_steps": 80,
        "peak_lr": 1e-2,
    }
    changes |= {"tokens_per_step": 512, "log_steps": 20, "zero_init_residual": True}
    metrics = train(settings(tmp_path, tmp_path / "run", **changes))
    assert metrics["eval_loss"] < 0.3 and "eval_bits_per_second" not in metrics
    listener = Synthesizer.from_folder(tmp_path / "run", FakeCodec())
    (row,) = recognise(listener, read_codes(tmp_path / "codes"))
    assert (row["hypothesis"], row["errors"]) == (text, 0)
    capsys.readouterr()
    assert main(["transcribe", "--model", str(tmp_path / "run"), str(wav)]) == 0
    assert capsys.readouterr().out == f"{wav}\t{text}\n"


def test_tasks_become_entries_and_unknown_ones_are_refused():
    assert task_entries("c", ["tts", "asr"]) == [
        {"path": "c", "task": "tts"},
        {"path": "c", "task": "asr"},
    ]
    for tasks in ([], ["translate"]):
        with pytest.raises(InputError, match="expected some of tts and asr"):
            task_entries("c", tasks)


def test_difference_of_losses_worked_by_hand():
    single = [
        {"id": name, "seconds": 2.0, "nats": nats * math.log(2)}
        for name, nats in (("a", 200), ("b", 220))
    ]
    joint = [row | {"nats": row["nats"] + 8 * math.log(2)} for row in reversed(single)]
    change = compare_losses(single, joint)
    np.testing.assert_allclose(
        [change[f"bits_per_second_difference{end}"] for end in ("", "_low", "_high", "_n")],
        [4, 4, 4, 2],
    )
    with pytest.raises(InputError, match="only one of the two"):
        compare_losses(single, joint[:1])
