import numpy as np
import pytest
from training_data import codes_of

from llasa_core.data.examples import ExampleSource
from llasa_core.data.packing import PackedRows, code_noise, collate, pack_lengths, packed_windows
from llasa_core.errors import InputError
from llasa_core.prompts import Example, Prompt
from llasa_core.tokenizer import vocabulary_of


def example(ids, labels_from, labels_to):
    return Example(np.array(ids, dtype=np.int32), ((labels_from, labels_to),), ())


def test_best_fit_puts_each_document_into_the_fullest_row_with_room():
    # 7 and 6 open rows (room 3 and 4); 4 fits only beside 6, 3 only beside 7; 2 opens a third row.
    assert pack_lengths([2, 3, 7, 4, 6], 10) == [[2, 1], [4, 3], [0]]


@pytest.mark.parametrize("lengths", [[5, 11], [0, 3]])
def test_a_document_that_cannot_fit_is_refused(lengths):
    with pytest.raises(InputError, match="expected 1 to 10"):
        pack_lengths(lengths, 10)


def test_packing_keeps_every_document_once_and_fills_rows():
    lengths = np.random.default_rng(0).integers(60, 300, 5000)
    rows = [row for window in packed_windows(lengths, 2048, (0, 0), 2048) for row in window]
    assert sorted(np.concatenate(rows).tolist()) == list(range(5000))
    assert max(lengths[row].sum() for row in rows) <= 2048
    assert lengths.sum() / (len(rows) * 2048) >= 0.97


def test_order_depends_on_the_seed_alone():
    lengths = np.random.default_rng(0).integers(60, 300, 500)
    first, again, other = (
        next(packed_windows(lengths, 1024, seed)) for seed in ((1, 0), (1, 0), (1, 1))
    )
    assert [row.tolist() for row in first] == [row.tolist() for row in again]
    assert [row.tolist() for row in first] != [row.tolist() for row in other]


def test_collated_positions_restart_and_labels_stay_inside_their_document():
    batch = collate([example([5, 6, 7, 8], 2, 4), example([9, 10, 11], 1, 2)])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10, 11]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 8, -100, 10, -100]]
    assert batch["cu_seqlens"].tolist() == [0, 4, 7]


def test_a_label_on_the_first_token_is_refused():
    with pytest.raises(InputError, match="after the first token"):
        collate([example([5, 6, 7], 0, 2)])


def test_code_noise_changes_codes_in_the_input_and_no_label(mini_tokenizer):
    vocabulary = vocabulary_of(mini_tokenizer)
    made = Prompt(mini_tokenizer).tts_example("We meet Alice.", np.full(400, 17))
    noise = code_noise(vocabulary, 0.25, np.random.default_rng(0))
    clean, noisy = collate([made]), collate([made], noise)
    assert (clean["labels"] == noisy["labels"]).all()
    changed = (clean["input_ids"] != noisy["input_ids"])[0].numpy()
    assert 60 <= changed.sum() <= 140
    assert vocabulary.is_code(noisy["input_ids"][0].numpy()[changed]).all()
    assert vocabulary.is_code(clean["input_ids"][0].numpy()[changed]).all()


def test_overlong_utterances_are_dropped_and_counted(mini_tokenizer):
    source = ExampleSource(codes_of(30), Prompt(mini_tokenizer))
    capacity = int(np.sort(source.lengths)[-6])
    rows = PackedRows([source], capacity, seed=0)
    assert rows.dropped_overlong == 5
    seen = [
        len(made.input_ids)
        for number in range(rows.rows_in_epoch(0))
        for made in rows.examples(number)
    ]
    assert len(seen) == 25
    assert max(seen) == capacity


def test_nothing_left_to_pack_is_an_error(mini_tokenizer):
    with pytest.raises(InputError, match="no utterance fits"):
        PackedRows([ExampleSource(codes_of(3), Prompt(mini_tokenizer))], 12, seed=0)


@pytest.mark.parametrize("task", ["tts", "asr"])
@pytest.mark.parametrize("tags", [0.0, 0.5])
def test_planned_lengths_are_the_lengths_of_the_examples(mini_tokenizer, task, tags):
    source = ExampleSource(codes_of(20), Prompt(mini_tokenizer), task, speaker_tags=tags)
    for epoch in (0, 1):
        members, lengths = source.epoch_members(epoch, seed=0)
        assert [len(source.example(int(i), epoch).input_ids) for i in members] == lengths.tolist()


def test_speaker_tags_are_drawn_again_each_epoch(mini_tokenizer):
    source = ExampleSource(codes_of(200), Prompt(mini_tokenizer), speaker_tags=0.5)
    first, second = ([source.tagged(i, epoch) for i in range(200)] for epoch in (0, 1))
    assert 70 <= sum(first) <= 130
    assert first != second


def test_weights_repeat_or_thin_a_dataset(mini_tokenizer):
    prompt = Prompt(mini_tokenizer)
    twice = ExampleSource(codes_of(40), prompt, weight=2.0)
    half = ExampleSource(codes_of(400, "ann"), prompt, weight=0.5)
    assert np.bincount(twice.epoch_members(0, 0)[0]).tolist() == [2] * 40
    assert 150 <= len(half.epoch_members(0, 0)[0]) <= 250
    assert half.epoch_members(0, 0)[0].tolist() != half.epoch_members(1, 0)[0].tolist()


def test_a_row_can_be_read_without_the_rows_before_it(mini_tokenizer):
    def fresh():
        return PackedRows([ExampleSource(codes_of(40), Prompt(mini_tokenizer))], 256, seed=3)

    walked = fresh()
    rows = [[made.input_ids.tolist() for made in walked.examples(number)] for number in range(40)]
    number = walked.rows_in_epoch(0) + 3
    assert [made.input_ids.tolist() for made in fresh().examples(number)] == rows[number]
    assert fresh().tokens_before(number) == sum(len(ids) for row in rows[:number] for ids in row)
    assert walked.rows_in_epoch(0) <= number < walked.rows_in_epoch(0) + walked.rows_in_epoch(1)
