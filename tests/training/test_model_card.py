"""The model card: its facts are those of llasa.json, and its Python speaks as it stands."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoTokenizer

from llasa_core.codecs import weights_of
from llasa_core.prompts import Prompt
from llasa_core.training.model_card import base_of, model_card
from llasa_core.training.published import publish_checkpoint

TRACKED = Path(__file__).parents[2] / "results" / "checkpoints" / "mini-llasa"
SETTINGS = json.loads((TRACKED / "llasa.json").read_text())
SPEAKER = SETTINGS["speakers"][0]  # whom the card lets speak


def python_of(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_card_says_what_the_training_recorded():
    from huggingface_hub import ModelCard

    data = [
        {"name": "lj/train", "task": "tts", "weight": 1.0, "utterances": 12_000}
        | {"hours": 23.1, "languages": ["en"]},
        {"name": "talk.jsonl", "task": "chat", "weight": 0.5, "utterances": 80},
    ]
    settings = {**SETTINGS, "data": data, "base_model": "meta-llama/Llama-3.2-1B-Instruct"}
    card = ModelCard(model_card(settings, "out/lj"))
    assert card.data.base_model == "meta-llama/Llama-3.2-1B-Instruct"
    assert (card.data.language, card.data.library_name) == (["en"], "transformers")
    for row in (
        "| data `lj/train` | 12,000 examples, 23.1 h of speech, task tts |",
        "| data `talk.jsonl` | 80 examples, task chat, 0.5 passes an epoch |",
        "| speech in all | 23.1 h |",
        "| steps, tokens | 2,500 steps, 10,159,001 tokens |",
        "| held-out loss | 1.9145 nats a token, 141.7 bits a second of speech |",
        f"| speaker tags | {', '.join(SETTINGS['speakers'])} |",
    ):
        assert row in card.text


def test_base_is_a_hub_id_and_neither_a_size_nor_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "lj").mkdir(parents=True)
    assert base_of("HKUSTAudio/Llasa-1B") == "HKUSTAudio/Llasa-1B"
    assert [base_of(name) for name in ("mini", "out/lj", str(tmp_path))] == [None] * 3


@pytest.mark.slow
def test_the_lines_for_transformers_speak_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    ran = {}
    exec(python_of(model_card(SETTINGS, str(TRACKED)))[0], ran)
    wave, rate = soundfile.read("speech.wav")
    assert rate == 16_000 and len(wave) == 320 * len(ran["codes"]) > 8_000
    assert np.sqrt(np.mean(wave**2)) > 0.01
    prompt = Prompt(AutoTokenizer.from_pretrained(TRACKED)).tts_prompt(ran["text"], SPEAKER)
    assert ran["prompt"]["input_ids"][0].tolist() == prompt.tolist()
    assert ran["ids"][0, -1] == ran["end"]


@pytest.mark.slow
def test_the_lines_hide_what_the_training_hid(tmp_path, monkeypatch):
    """Greedy, the codes are those of our own loop."""
    from llasa_core.manifest import Request
    from llasa_core.synthesis.sampling import Sampling
    from llasa_core.synthesis.synthesizer import Synthesizer

    monkeypatch.chdir(tmp_path)
    ours = Synthesizer.from_folder(TRACKED, "mini", "cpu")
    ours.mask_eot = True
    request = Request("u", "Call Anna at nine.", SPEAKER, None, 0)
    (spoken,) = ours.speak([request], Sampling(0.0))
    lines = python_of(model_card({**SETTINGS, "mask_eot": True}, str(TRACKED)))[0]
    greedy = lines.replace("do_sample=True, temperature=0.8, top_k=50", "do_sample=False")
    assert greedy != lines
    ran = {}
    exec(greedy.replace("AutoModelForCausalLM.from_pretrained(folder)", FLOAT32), ran)
    assert ran["codes"].tolist() == spoken.generated.codes.tolist()
    assert (ran["prompt"]["attention_mask"] == 0).sum() > 0


FLOAT32 = "AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)"


@pytest.mark.slow
def test_the_lines_decode_with_xcodec2_of_transformers(tmp_path, monkeypatch, mini_tokenizer):
    """Random weights of the same class stand for the released ones, whose name the card holds."""
    import transformers

    from llasa_core.codecs.mini import MiniCodecConfig
    from llasa_core.codecs.xcodec2 import Xcodec2Codec

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = MiniCodecConfig(width=64, heads=4, decoder_layers=1).xcodec2()
    config.semantic_model_config.hidden_size = 64
    codec = transformers.Xcodec2Model(config).eval()
    monkeypatch.setattr(
        transformers.Xcodec2Model, "from_pretrained", lambda name: loaded.append(name) or codec
    )
    loaded, ran = [], {}
    exec(python_of(model_card({**SETTINGS, "codec": "xcodec2"}, str(TRACKED)))[0], ran)
    assert loaded == ["HKUSTAudio/xcodec2-hf"]
    expected = Xcodec2Codec(codec).decode([ran["codes"].numpy()])[0]
    np.testing.assert_allclose(ran["wave"], expected, atol=1e-5)


def test_a_published_checkpoint_names_the_tracked_codec_where_that_makes_its_codes(tmp_path):
    known = weights_of("mini")
    folder = tmp_path / "trained"
    shutil.copytree(TRACKED, folder)
    adapted = tmp_path / "adapted"
    adapted.mkdir()
    (adapted / "adaptation.json").write_text("{}")
    for codes, own_folder, named in (
        (known["codes_fingerprint"], "codecs/own", None),
        (known["codes_fingerprint"], str(adapted), str(adapted)),
        ("0123456789abcdef", "codecs/own", "codecs/own"),
    ):
        own = {"codec_folder": own_folder, "codec_fingerprint": "f" * 16}
        (folder / "llasa.json").write_text(
            json.dumps({**SETTINGS, **own, "codes_fingerprint": codes})
        )
        publish_checkpoint(folder, tmp_path / "published")
        told = json.loads((tmp_path / "published" / "llasa.json").read_text())
        card = (tmp_path / "published" / "README.md").read_text()
        assert told.get("codec_folder") == named
        assert (told["codec_fingerprint"] == known["codec_fingerprint"]) == (named is None)
        assert f'load_codec("{named or "mini"}")' in card
