"""The prompt object: ids of the published sample, both directions, tags and voices, and equality
with the slow path.
"""

import numpy as np
import pytest

from llasa_core.data.text_tokenizers import build_mini_tokenizer
from llasa_core.errors import InputError
from llasa_core.prompts import Prompt, Voice
from llasa_core.tokenizer import DEFAULT_DATE, SpeechVocabulary, merge_tokenizer, vocabulary_of

# One sample as the public training code presents it to the model, template date "23 Nov 2026".
SAMPLE_DATE = "23 Nov 2026"
SAMPLE_TEXT = "farmers were demanding le"
SAMPLE_CODES = np.array([30033, 30033, 1862, 29333, 578, 36804], np.uint16)
# fmt: off
SAMPLE_BEFORE = [
    128000, 128006, 9125, 128007, 271, 38766, 1303, 33025, 2696, 25, 6790, 220, 2366, 18, 198,
    15724, 2696, 25,
    220, 1419, 4723, 220, 2366, 21, 271, 128009, 128006, 882, 128007, 271, 12281, 279, 1495, 311,
    8982, 25,
]
SAMPLE_QUESTION = [128258, 66911, 388, 1051, 26192, 514, 128259]
SAMPLE_BETWEEN = [128009, 128006, 78191, 128007, 271]
SAMPLE_ANSWER = [128260, 158297, 158297, 130126, 157597, 128842, 165068, 128261]
# fmt: on
SAMPLE_IDS = [*SAMPLE_BEFORE, *SAMPLE_QUESTION, *SAMPLE_BETWEEN, *SAMPLE_ANSWER, 128009]

BOTH = pytest.mark.parametrize("fixture", ["mini_tokenizer", "llama3_tokenizer"])


@pytest.fixture
def sample_prompt(llama3_tokenizer):
    return Prompt(llama3_tokenizer, date=SAMPLE_DATE)


def chat_ids(tokenizer, user, assistant, date=DEFAULT_DATE, **options):
    """The slow path: the whole sample as one string through the tokenizer's own chat template."""
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return tokenizer.apply_chat_template(turns, date_string=date, return_dict=False, **options)


def spelled(codes):
    return "".join(f"<|s_{code}|>" for code in codes)


def asked(text):
    return (
        f"Convert the text to speech:<|TEXT_UNDERSTANDING_START|>{text}<|TEXT_UNDERSTANDING_END|>"
    )


@pytest.mark.slow
def test_public_sample_is_reproduced_to_the_id(sample_prompt):
    example = sample_prompt.tts_example(SAMPLE_TEXT, SAMPLE_CODES)
    assert example.input_ids.dtype == np.int32
    assert example.input_ids.tolist() == SAMPLE_IDS
    assert example.labels().tolist() == [-100] * 48 + SAMPLE_ANSWER + [-100]
    assert example.eot_positions == (25, 43, 56)


def test_public_text_ids_decode_to_the_text_and_encode_back(sample_prompt):
    assert sample_prompt.tokenizer.decode(SAMPLE_QUESTION[1:-1]) == SAMPLE_TEXT
    assert sample_prompt.text_ids(SAMPLE_TEXT).tolist() == SAMPLE_QUESTION[1:-1]


def test_generation_prompt_is_the_example_up_to_the_start_marker(sample_prompt):
    prompt = sample_prompt.tts_prompt(SAMPLE_TEXT)
    assert prompt.dtype == np.int32
    assert prompt.tolist() == SAMPLE_IDS[:49]


def test_date_changes_the_date_tokens_alone(llama3_tokenizer):
    dated = Prompt(llama3_tokenizer).tts_prompt(SAMPLE_TEXT)
    differ = np.flatnonzero(dated != np.array(SAMPLE_IDS[:49]))
    assert differ.tolist() == [19, 20, 23]
    assert "Today Date: 26 Jul 2024\n" in llama3_tokenizer.decode(dated)


@BOTH
@pytest.mark.parametrize("speaker", [None, "kore"])
def test_splice_equals_the_chat_template_on_the_whole_string(fixture, speaker, request):
    tokenizer = request.getfixturevalue(fixture)
    text, codes, tag = " Hello, 42 llamas!\n", [0, 4095, 17], "Speaker kore " if speaker else ""
    prompt = Prompt(tokenizer)
    answer = f"{tag}<|SPEECH_GENERATION_START|>{spelled(codes)}<|SPEECH_GENERATION_END|>"
    assert prompt.tts_example(text, codes, speaker).input_ids.tolist() == chat_ids(
        tokenizer, asked(text), answer
    )
    started = chat_ids(
        tokenizer, asked(text), f"{tag}<|SPEECH_GENERATION_START|>", continue_final_message=True
    )
    assert prompt.tts_prompt(text, speaker).tolist() == started


@BOTH
def test_recognition_swaps_the_sides_and_labels_the_text(fixture, request):
    tokenizer = request.getfixturevalue(fixture)
    prompt, codes, text = Prompt(tokenizer), [5, 6, 7], "the red lamp"
    user = (
        "Convert the speech to"
        f" text:<|SPEECH_UNDERSTANDING_START|>{spelled(codes)}<|SPEECH_UNDERSTANDING_END|>"
    )
    answer = f"<|TEXT_GENERATION_START|>{text}<|TEXT_GENERATION_END|>"
    example = prompt.asr_example(text, codes)
    assert example.input_ids.tolist() == chat_ids(tokenizer, user, answer)
    labelled = example.input_ids[example.spans[0][0] : example.spans[0][1]]
    assert tokenizer.decode(labelled) == answer
    assert (
        prompt.asr_prompt(codes).tolist() == example.input_ids[: example.spans[0][0] + 1].tolist()
    )
    assert tokenizer.decode(labelled[1:-1]) == text


@BOTH
def test_labels_span_the_codes_with_their_markers_behind_a_speaker_tag(fixture, request):
    tokenizer = request.getfixturevalue(fixture)
    ids = vocabulary_of(tokenizer)
    example = Prompt(tokenizer).tts_example("hello", [1, 2], speaker="kore")
    labelled = example.input_ids[example.spans[0][0] : example.spans[0][1]].tolist()
    assert labelled == [
        ids.speech_generation_start,
        *ids.codes_to_ids([1, 2]),
        ids.speech_generation_end,
    ]
    assert example.labels()[example.labels() != -100].tolist() == labelled
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert example.eot_positions == tuple(np.flatnonzero(example.input_ids == eot))


def test_voice_is_continued_after_its_text_and_its_codes(mini_tokenizer):
    prompt, voice = (
        Prompt(mini_tokenizer),
        Voice("Call the office.", np.array([9, 8, 7], np.uint16)),
    )
    ids = prompt.tts_prompt("The red lamp.", speaker="kore", voice=voice)
    whole = prompt.tts_example("Call the office. The red lamp.", voice.codes, speaker="kore")
    assert ids.tolist() == whole.input_ids[: whole.spans[0][1] - 1].tolist()


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(
    "literal", ["<|s_12|>", "<|eot_id|>", "<|SPEECH_GENERATION_START|>", "<|begin_of_text|>"]
)
def test_control_literals_in_texts_and_speakers_add_no_control_token(fixture, literal, request):
    tokenizer = request.getfixturevalue(fixture)
    prompt = Prompt(tokenizer)
    controls = set(tokenizer.get_added_vocab().values())

    def count(ids):
        return sum(int(id_) in controls for id_ in ids)

    voice = Voice(f"as {literal} said", [3])
    assert count(prompt.text_ids(f"now {literal} say")) == 0
    assert count(prompt.tts_example(f"{literal} b", [3], literal).input_ids) == count(
        prompt.tts_example("a b", [3], "kore").input_ids
    )
    assert count(prompt.tts_prompt(literal, literal, voice)) == count(
        prompt.tts_prompt("a", "b", Voice("c", [3]))
    )
    assert count(prompt.asr_example(literal, [3]).input_ids) == count(
        prompt.asr_example("a", [3]).input_ids
    )
    assert tokenizer.decode(prompt.text_ids(literal)) == literal


@pytest.mark.slow
def test_another_template_is_followed_with_what_it_writes_after_the_turn():
    tokenizer = merge_tokenizer(build_mini_tokenizer(["hello there"]), 16)
    turn = "'<|start_header_id|>' + m['role'] + '\n' + m['content'] + '<|eot_id|>\n'"
    tokenizer.chat_template = "{% for m in messages %}{{ " + turn + " }}{% endfor %}"
    answer = f"Speaker a <|SPEECH_GENERATION_START|>{spelled([1, 2])}<|SPEECH_GENERATION_END|>"
    example = Prompt(tokenizer).tts_example("hello", [1, 2], "a")
    assert example.input_ids.tolist() == chat_ids(tokenizer, asked("hello"), answer)
    assert tokenizer.decode(example.input_ids).endswith("<|SPEECH_GENERATION_END|><|eot_id|>\n")
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert example.eot_positions == tuple(np.flatnonzero(example.input_ids == eot))
    assert len(example.eot_positions) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ messages[0]['content'] }}",
        "{{ messages[1]['content'] + messages[0]['content'] }}",
        "{{ raise_exception('no such role') }}",
        "{{ messages[0]['content'] + '<|eot_id|>assistant' + messages[1]['content'] }}",
    ],
)
def test_missing_or_unusable_template_is_refused_in_one_line(template):
    tokenizer = merge_tokenizer(build_mini_tokenizer(["assistantSpeaker"] * 9), 16)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="chat template") as error:
        Prompt(tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "codes", "message"),
    [
        ("", [1], "text"),
        (" \n", [1], "text"),
        (None, [1], "text"),
        ("hello", [], "at least one"),
        ("hello", [4096], "code 4096"),
        ("hello", [[1]], "flat array"),
    ],
)
def test_wrong_texts_and_codes_are_refused(mini_tokenizer, text, codes, message):
    prompt = Prompt(mini_tokenizer)
    calls = [lambda: prompt.tts_example(text, codes), lambda: prompt.asr_example(text, codes)]
    calls.append(lambda: prompt.tts_prompt(text, voice=Voice("voice", codes)))
    for call in calls:
        with pytest.raises(InputError, match=message):
            call()


def test_unmerged_tokenizer_and_another_layout_are_refused(mini_tokenizer):
    with pytest.raises(InputError, match="merged with speech codes"):
        Prompt(build_mini_tokenizer(["hello"]))
    with pytest.raises(InputError, match="expected SpeechVocabulary"):
        Prompt(mini_tokenizer, SpeechVocabulary(128_256, 65_536))


def test_tokenizer_whose_text_model_spells_a_special_token_is_refused(mini_tokenizer):
    tokenizer = merge_tokenizer(build_mini_tokenizer(["hello ok"] * 9), 16)
    tokenizer.add_special_tokens({"pad_token": "hello"})
    with pytest.raises(InputError, match="plain text 'hello'"):
        Prompt(tokenizer)


def test_voice_without_words_continues_a_text_that_holds_them(mini_tokenizer):
    prompt = Prompt(mini_tokenizer)
    codes = np.arange(5)
    whole = prompt.tts_prompt("Call the office at seven.", voice=Voice("", codes))
    parts = prompt.tts_prompt("at seven.", voice=Voice("Call the office", codes))
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize(
    ("words", "text", "whole"),
    [("Hello.", "Call Anna.", "Hello. Call Anna."), ("你好。", "再见。", "你好。再见。")],
)
def test_voice_text_and_text_have_a_space_between_only_where_the_script_uses_it(
    mini_tokenizer, words, text, whole
):
    prompt, codes = Prompt(mini_tokenizer), np.arange(4)
    joined = prompt.tts_prompt(text, voice=Voice(words, codes))
    assert np.array_equal(joined, prompt.tts_prompt(whole, voice=Voice("", codes)))
