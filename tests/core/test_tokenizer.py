"""The unified vocabulary: ids to the number, merging, reloading, and the check against the released
layout.
"""

import base64
import copy
import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import AddedToken

from llasa_core.data.text_tokenizers import build_llama3_tokenizer, build_mini_tokenizer
from llasa_core.errors import InputError
from llasa_core.prompts import Prompt
from llasa_core.tokenizer import (
    DEFAULT_DATE,
    MARKERS,
    SpeechVocabulary,
    check_layout,
    load_tokenizer,
    merge_tokenizer,
    template_pieces,
    text_encoder,
    vocabulary_of,
)

RELEASED = SpeechVocabulary(128_256, 65_536)
TEXTS = (
    "Farmers were demanding less, weren't they? 1234567 of THEM'LL   go\n\n now \t",
    "héllo 你好 안녕 مرحبا नमस्ते 🦙\r\n",
)


def ids_of(tokenizer, text):
    return text_encoder(tokenizer).encode(text, add_special_tokens=False).ids


def test_importing_tokens_and_prompts_loads_neither_torch_nor_transformers():
    code = (
        "import sys, llasa_core.tokenizer, llasa_core.prompts; print({'torch', 'transformers'} &"
        " set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "set()"
    )


def test_released_ids_are_those_of_the_design():
    assert RELEASED.size == 193_800
    assert RELEASED.first_code == 128_264
    markers = [getattr(RELEASED, name.strip("<|>").lower()) for name in MARKERS]
    assert markers == list(range(128_256, 128_264))
    assert RELEASED.codes_to_ids([0, 65_535]).tolist() == [128_264, 193_799]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_codes_survive_the_way_to_ids_and_back(dtype):
    codes = np.array([0, 1, 30_033, 65_535], np.int64).astype(dtype)
    ids = RELEASED.codes_to_ids(codes)
    assert ids.dtype == np.int64 and ids.tolist() == [128_264, 128_265, 158_297, 193_799]
    back = RELEASED.ids_to_codes(ids.astype(np.int32))
    assert back.dtype == np.int32 and back.tolist() == [0, 1, 30_033, 65_535]
    assert RELEASED.codes_to_ids([]).shape == RELEASED.ids_to_codes([]).shape == (0,)


def test_is_code_keeps_the_shape_and_both_borders():
    ids = np.array([[128_263, 128_264], [193_799, 193_800]])
    assert RELEASED.is_code(ids).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("codes", [[5, 4096], [-1], [0.5], [[1, 2]], ["7"]])
def test_wrong_codes_are_refused(codes):
    with pytest.raises(InputError, match="codes"):
        SpeechVocabulary(300, 4096).codes_to_ids(codes)


def test_code_out_of_range_is_named_with_its_place_and_the_range():
    with pytest.raises(InputError, match=r"code 4096 at index 1, expected 0\.\.4095"):
        SpeechVocabulary(300, 4096).codes_to_ids([5, 4096])
    with pytest.raises(InputError, match=r"id 307 at index 1 is no speech code \(308\.\.4403\)"):
        SpeechVocabulary(300, 4096).ids_to_codes([308, 307])


def test_merged_llama3_has_the_released_layout(llama3_text_tokenizer, llama3_tokenizer):
    assert len(llama3_text_tokenizer) == 128_256  # the merge leaves its source alone
    assert len(llama3_tokenizer) == 193_800
    assert vocabulary_of(llama3_tokenizer) == RELEASED
    assert llama3_tokenizer.convert_tokens_to_ids(["<|s_0|>", "<|s_777|>", "<|s_65535|>"]) == [
        128264,
        129041,
        193799,
    ]
    assert check_layout(llama3_tokenizer, {"vocab_size": 193_800}) == []


@pytest.mark.slow
def test_the_released_layout_without_a_chat_template_gets_the_known_one(llama3_tokenizer, tmp_path):
    llama3_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(tmp_path)
    assert check_layout(loaded) == []
    prompt = Prompt(loaded).tts_prompt("Hello.")
    assert prompt.tolist() == Prompt(llama3_tokenizer).tts_prompt("Hello.").tolist()


def test_llama3_special_tokens_stand_in_hugging_face_order(llama3_tokenizer):
    names = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
    ]
    names += [
        "<|eot_id|>",
        "<|python_tag|>",
        "<|reserved_special_token_3|>",
        "<|reserved_special_token_247|>",
    ]
    ids = [128_000, 128_001, 128_004, 128_005, 128_009, 128_010, 128_011, 128_255]
    assert llama3_tokenizer.convert_tokens_to_ids(names) == ids


def test_llama3_text_ids_are_those_of_the_public_sample(llama3_tokenizer):
    # Ids published for "farmers were demanding le" and for the instruction line.
    assert ids_of(llama3_tokenizer, "farmers were demanding le") == [66911, 388, 1051, 26192, 514]
    assert ids_of(llama3_tokenizer, "Convert the text to speech:") == [
        12281,
        279,
        1495,
        311,
        8982,
        25,
    ]


@pytest.mark.parametrize("fixture", ["mini_tokenizer", "llama3_tokenizer"])
@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_encoding_and_decoding(fixture, text, request):
    tokenizer = request.getfixturevalue(fixture)
    ids = ids_of(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("fixture", ["mini_tokenizer", "llama3_tokenizer"])
def test_text_that_spells_control_tokens_stays_text(fixture, request):
    tokenizer = request.getfixturevalue(fixture)
    text = "say <|s_12|> and <|eot_id|><|SPEECH_GENERATION_END|> now <|begin_of_text|>"
    assert tokenizer("<|s_12|>", add_special_tokens=False).input_ids == [
        vocabulary_of(tokenizer).first_code + 12
    ]
    ids = ids_of(tokenizer, text)
    assert max(ids) < tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    assert tokenizer.decode(ids) == text


def test_saved_and_reloaded_tokenizer_is_the_same(mini_tokenizer, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig

    mini_tokenizer.save_pretrained(tmp_path)
    LlamaConfig(vocab_size=len(mini_tokenizer)).save_pretrained(tmp_path)
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.get_vocab() == mini_tokenizer.get_vocab()
        assert loaded.chat_template == mini_tokenizer.chat_template
        assert loaded.special_tokens_map == mini_tokenizer.special_tokens_map
        assert vocabulary_of(loaded) == vocabulary_of(mini_tokenizer)
        assert [ids_of(loaded, text) for text in TEXTS] == [
            ids_of(mini_tokenizer, text) for text in TEXTS
        ]


@pytest.mark.slow
def test_reloaded_llama3_still_has_the_released_layout(llama3_tokenizer, tmp_path):
    llama3_tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert check_layout(loaded) == []
    assert loaded.eos_token_id == 128_009
    assert [ids_of(loaded, text) for text in TEXTS] == [
        ids_of(llama3_tokenizer, text) for text in TEXTS
    ]


def test_decoding_without_special_tokens_keeps_speech_codes(mini_tokenizer):
    # The public inference scripts read codes back from the decoded string.
    ids = mini_tokenizer.convert_tokens_to_ids(["<|s_7|>", "<|eot_id|>"])
    assert mini_tokenizer.decode(ids, skip_special_tokens=True) == "<|s_7|>"


def test_loading_runs_no_code_of_the_folder(mini_tokenizer, tmp_path):
    mini_tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    path.write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    assert len(load_tokenizer(tmp_path)) == len(mini_tokenizer)
    assert not (tmp_path / "ran").exists()


def test_folder_without_a_usable_tokenizer_is_refused_in_one_line(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text('{"model": ')
    (tmp_path / "empty").mkdir()
    for name in ("broken", "empty", "missing"):
        with pytest.raises(InputError) as error:
            load_tokenizer(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_merging_twice_and_reading_an_unmerged_tokenizer_are_refused(mini_tokenizer):
    with pytest.raises(InputError, match="already in it"):
        merge_tokenizer(mini_tokenizer, 16)
    with pytest.raises(InputError, match="expected a text tokenizer merged"):
        vocabulary_of(build_mini_tokenizer(["one two"]))
    with pytest.raises(InputError, match="codebook_size"):
        merge_tokenizer(build_mini_tokenizer(["one two"]), 0)


def test_tokens_behind_the_codes_are_refused(mini_tokenizer):
    longer = merge_tokenizer(build_mini_tokenizer(["one two"]), 16)
    longer.add_tokens(["<laugh>"])
    with pytest.raises(InputError, match=r"<\|s_16\|> has id None"):
        vocabulary_of(longer)


def test_layout_check_names_each_difference(mini_tokenizer):
    lines = check_layout(mini_tokenizer, {"vocab_size": 7})
    starts = [
        f"vocabulary size: {len(mini_tokenizer)}, expected 193800",
        "config vocab_size: 7, expected 193800",
    ]
    starts += [f"{name}: id " for name in MARKERS] + [
        "<|s_0|>: id ",
        "<|s_65535|>: missing, expected id 193799",
    ]
    starts += [
        "speech codes between: 65534 of 65534 ",
        "text ids of ",
        "chat template: no date line",
        "chat template before the text: ",
    ]
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert not any("\n" in line for line in lines)


@pytest.mark.slow
def test_layout_check_sees_two_codes_in_exchange(llama3_text_tokenizer):
    swapped = copy.deepcopy(llama3_text_tokenizer)
    names = [f"<|s_{code}|>" for code in range(65_536)]
    names[7], names[8] = names[8], names[7]
    swapped.add_tokens([AddedToken(name, normalized=False) for name in [*MARKERS, *names]])
    (line,) = check_layout(swapped)
    assert line.startswith("speech codes between: 2 of 65534 ") and line.endswith("from <|s_7|> on")


def test_errors_name_the_folder_of_the_tokenizer(tmp_path):
    build_mini_tokenizer(["one two"]).save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        vocabulary_of(load_tokenizer(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}: no <|TEXT_GENERATION_START|> in it")


@pytest.mark.slow
def test_layout_check_sees_one_changed_template_and_a_missing_one(llama3_tokenizer, monkeypatch):
    template = llama3_tokenizer.chat_template
    monkeypatch.setattr(
        llama3_tokenizer, "chat_template", template.replace("December 2023", "May 2024")
    )
    (line,) = check_layout(llama3_tokenizer)
    assert line.startswith("chat template before the text: ") and "May 2024" in line
    monkeypatch.setattr(llama3_tokenizer, "chat_template", None)
    (line,) = check_layout(llama3_tokenizer)
    assert "no chat template" in line


def test_llama3_template_takes_a_date_and_a_system_message(llama3_text_tokenizer):
    messages = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": " hi "}]
    text = llama3_text_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert (
        text
        == "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date:"
        " December 2023\n"
        f"Today Date: {DEFAULT_DATE}\n\nBe"
        " brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert (
        "Today Date: 01 Jan 2030\n\n<|eot_id|>"
        in template_pieces(llama3_text_tokenizer, "01 Jan 2030")[0]
    )


def test_mini_template_writes_the_date_only_with_a_system_message(mini_tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    text = mini_tokenizer.apply_chat_template(messages, tokenize=False, date_string="01 Jan 2030")
    assert "system<|end_header_id|>\n\nToday Date: 01 Jan 2030\n\nBe brief.<|eot_id|>" in text
    assert (
        template_pieces(mini_tokenizer)[0]
        == "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    )


def test_mini_tokenizer_makes_one_token_of_frequent_words(mini_tokenizer):
    tokens = mini_tokenizer.convert_ids_to_tokens(
        ids_of(mini_tokenizer, "Convert the text to speech: the station")
    )
    assert tokens == ["Convert", "Ġthe", "Ġtext", "Ġto", "Ġspeech", ":", "Ġthe", "Ġstation"]


@pytest.mark.slow
def test_mini_tokenizer_depends_on_its_texts_alone():
    code = (
        "from llasa_core.data.text_tokenizers import"
        " build_mini_tokenizer;print(build_mini_tokenizer((f'word {i} of many words' for i in"
        " range(50)), 300).backend_tokenizer.to_str())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    here = build_mini_tokenizer([f"word {i} of many words" for i in range(50)], 300)
    assert json.loads(elsewhere) == json.loads(here.backend_tokenizer.to_str())
    assert len(here) == 300


def test_mini_tokenizer_refuses_no_text_and_too_small_a_vocabulary():
    with pytest.raises(InputError, match="no text"):
        build_mini_tokenizer(["", "  "])
    with pytest.raises(InputError, match="vocab_size 261"):
        build_mini_tokenizer(["one"], 261)


def test_damaged_llama3_vocabulary_names_file_and_line(tmp_path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(InputError, match=r"tokenizer\.model"):
        build_llama3_tokenizer(path)
    lines = [base64.b64encode(bytes([i])).decode() + f" {i}" for i in range(256)]
    path.write_text("\n".join([*lines, "not-a-rank"]))
    with pytest.raises(InputError, match=r"tokenizer\.model: line 257"):
        build_llama3_tokenizer(path)
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"tokenizer\.model: 255 lines"):
        build_llama3_tokenizer(path)
