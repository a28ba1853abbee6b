"""Recognition by a model whose sides are swapped: its rows, its score, joint and single models compared."""

import math

import numpy as np
import pytest
from test_train import settings, write_codes

from llasa_core.codecs.fake import FakeCodec
from llasa_core.codes import read_codes
from llasa_core.errors import InputError
from llasa_core.evaluate import summarise
from llasa_core.recognition import compare_losses, recognise, task_entries
from llasa_core.synthesize import Synthesizer
from llasa_core.train import train


class Listener:
    """Hears what it is told to, one answer an utterance."""

    def __init__(self, answers):
        self.answers = iter(answers)

    def transcribe_codes(self, codes):
        return [next(self.answers) for _ in codes]


def test_rows_count_the_errors_of_the_words(tmp_path):
    dataset = read_codes(write_codes(tmp_path / "codes", 3))  # "Please bring 0 apples." and so on
    done = []
    listener = Listener(["please bring 0 apples", "please bring apples", "Please, bring two apples!"])
    rows = recognise(listener, dataset, block=2, progress=done.append)
    assert [row["errors"] for row in rows] == [0, 1, 0] and [row["words"] for row in rows] == [4, 4, 4]
    assert [row["id"] for row in rows] == ["u0-0", "u0-1", "u0-2"] and done == [2, 1]
    assert summarise(rows)["corpus_wer"] == pytest.approx(1 / 12)
    assert rows[0]["seconds"] == pytest.approx(len(dataset[0]["codes"]) / 50, abs=1e-3)


def test_limit_is_spread_evenly(tmp_path):
    dataset = read_codes(write_codes(tmp_path / "codes", 10))
    assert [row["id"] for row in recognise(Listener("abcd"), dataset, 4)] == ["u0-0", "u0-2", "u0-5", "u0-7"]


def test_model_trained_on_one_pair_recognises_it(tmp_path, mini_tokenizer):
    """The trainer with the sides swapped, then greedy transcription, on an utterance learnt by heart."""
    mini_tokenizer.save_pretrained(tmp_path / "tokenizer")
    codes = write_codes(tmp_path / "codes", 1)
    changes = {"model": "nano", "codes": task_entries(codes, ["asr"]), "eval_codes": task_entries(codes, ["asr"])}
    changes |= {"max_steps": 60, "peak_lr": 1e-2, "tokens_per_step": 512, "log_steps": 20, "zero_init_residual": True}
    metrics = train(settings(tmp_path, tmp_path / "run", **changes))
    assert metrics["eval_loss"] < 0.1 and "eval_bits_per_second" not in metrics
    (row,) = recognise(Synthesizer.from_folder(tmp_path / "run", FakeCodec()), read_codes(codes))
    assert (row["hypothesis"], row["errors"]) == ("Please bring 0 apples.", 0)


def test_tasks_become_entries_and_unknown_ones_are_refused():
    assert task_entries("c", ["tts", "asr"]) == [{"path": "c", "task": "tts"}, {"path": "c", "task": "asr"}]
    for tasks in ([], ["translate"]):
        with pytest.raises(InputError, match="expected some of tts and asr"):
            task_entries("c", tasks)


def test_difference_of_losses_worked_by_hand():
    single = [{"id": name, "seconds": 2.0, "nats": nats * math.log(2)} for name, nats in (("a", 200), ("b", 220))]
    joint = [row | {"nats": row["nats"] + 8 * math.log(2)} for row in reversed(single)]
    change = compare_losses(single, joint)
    np.testing.assert_allclose(
        [change[f"bits_per_second_difference{end}"] for end in ("", "_low", "_high", "_n")], [4, 4, 4, 2]
    )
    with pytest.raises(InputError, match="only one of the two"):
        compare_losses(single, joint[:1])
