"""Blocks of texts are tokenized exactly as each text alone, by both tokenizers."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from llasa_core.data.text_ids import BulkText
from llasa_core.tokenizer import text_encoder

PARTS = [
    "Call",
    " the",
    "  ",
    "office",
    ".",
    "\n",
    "\r\n ",
    " 12345",
    "7",
    " a",
    "'s",
    "'T",
    " don't",
    " (",
    ") ",
    "\t",
]
PARTS += [
    "é",
    " é",
    "你好",
    " 你",
    "🙂",
    " 🙂a",
    "\u3000",
    "\u00a0b",
    " <|s_12|>",
    "<|eot_id|>",
    "-",
    " -",
    "A",
    "!\n\n",
    " \n a",
]


def texts_of(count, seed):
    random = np.random.default_rng(seed)
    return ["".join(random.choice(PARTS, random.integers(0, 12))) for _ in range(count)]


@pytest.fixture(params=["mini_tokenizer", "llama3_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_ids_of_a_block_are_those_of_each_text_alone(tokenizer):
    bulk, encoder, texts = BulkText(tokenizer), text_encoder(tokenizer), texts_of(4000, 0)
    assert bulk.by_pieces
    ids, borders = bulk.encode(pa.array(texts))
    for number, text in enumerate(texts):
        alone = encoder.encode(text, add_special_tokens=False).ids
        assert ids[borders[number] : borders[number + 1]].tolist() == alone, repr(text)
    part = bulk.encode(pa.array(texts).slice(7, 50))
    np.testing.assert_array_equal(part[0], ids[borders[7] : borders[57]])
    assert bulk.encode(pa.array([], pa.string()))[1].tolist() == [0]
    assert bulk.encode(pa.array(["", "a", ""]))[1].tolist() == [0, 0, 1, 1]


@pytest.mark.slow
def test_decoding_gives_the_texts_back(tokenizer):
    bulk, texts = BulkText(tokenizer), texts_of(2000, 1)
    ids, borders = bulk.encode(pa.array(texts))
    again, fine = bulk.decode(ids, borders)
    assert fine.all() and again.to_pylist() == texts and bulk.matches(ids, borders, again).all()


@pytest.mark.slow
def test_ids_that_are_no_text_are_told(tokenizer):
    bulk = BulkText(tokenizer)
    rows = [
        bulk.encode(pa.array(["good"]))[0].tolist(),
        [-1],
        [tokenizer.convert_tokens_to_ids("<|eot_id|>")],
    ]
    rows += [
        [bulk.text_size + 3],
        bulk.encode(pa.array(["你"]))[0].tolist()[:1]
        if tokenizer.vocab_size < 5000
        else [2**31 - 1],
    ]
    rows += [tokenizer.convert_tokens_to_ids(["g", "o"])]  # the tokenizer itself writes "go"
    flat, borders = np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)])
    texts, fine = bulk.decode(flat, borders)
    assert fine.tolist() == [True, False, False, False, False, True]
    assert texts.to_pylist() == ["good", "", "", "", "", "go"]
    expected = [True, False, False, False, False, len(bulk.encode(pa.array(["go"]))[0]) == 2]
    assert bulk.matches(flat, borders, texts).tolist() == expected


def test_a_tokenizer_with_other_words_is_asked_directly(mini_tokenizer):
    import copy

    from tokenizers import pre_tokenizers

    other = copy.deepcopy(mini_tokenizer)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bulk, encoder, texts = BulkText(other), text_encoder(other), texts_of(50, 2)
    assert not bulk.by_pieces
    ids, borders = bulk.encode(pa.array(texts))
    assert [ids[a:b].tolist() for a, b in pairwise(borders)] == [
        encoder.encode(text, add_special_tokens=False).ids for text in texts
    ]


def test_forgetting_pieces_changes_no_id(mini_tokenizer, monkeypatch):
    monkeypatch.setattr("llasa_core.data.text_ids.MOST_PIECES", 3)
    bulk, fresh = BulkText(mini_tokenizer), BulkText(mini_tokenizer)
    for seed in range(5):
        texts = pa.array(texts_of(20, seed))
        np.testing.assert_array_equal(bulk.encode(texts)[0], fresh.encode(texts)[0])
