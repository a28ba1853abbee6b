"""Checkpoints that may come from a stranger: nothing of theirs runs, nothing is made up."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForXVector,
)

from llasa_core import cli
from llasa_core.checkpoint import changed_weights, codec_place, load_strictly, weights_sha256
from llasa_core.errors import InputError
from llasa_core.experiments.config import repository_root
from llasa_core.judges.speaker import WavLMEmbedder
from llasa_core.model import build_model, load_model
from llasa_core.prompts import Prompt

ROOT = repository_root(Path(__file__).parent)
PAYLOAD = "from pathlib import Path\nPath(__file__).with_name('ran').write_text('code ran')\n"


@pytest.fixture
def checkpoint(tmp_path):
    """A Llama of 0.2 M parameters, saved as transformers saves it."""
    build_model("nano", 300).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(checkpoint, change):
    weights = load_file(checkpoint / "model.safetensors")
    save_file(change(weights), checkpoint / "model.safetensors", metadata={"format": "pt"})


def configure(checkpoint, **values):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without(part):
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


def with_value(value):
    def change(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        return weights

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("layers.1."), "missing weights: model.layers.1.input_layernorm.weight"),
        (without("q_proj"), "missing weights: model.layers.0.self_attn.q_proj.weight"),
        (without("embed_tokens"), "missing weights: .*model.embed_tokens.weight"),
        (lambda weights: {f"x.{name}": value for name, value in weights.items()}, "missing"),
        (lambda weights: weights | {"spare": np.zeros(3, np.float32)}, "unexpected weights: spare"),
        (with_value(np.nan), "NaN or infinite weights: model.layers.1.mlp.up_proj.weight"),
        (with_value(np.inf), "NaN or infinite weights: model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_weights_that_are_missing_or_more_or_broken_are_refused_by_name(checkpoint, change, told):
    rewrite(checkpoint, change)
    with pytest.raises(InputError, match=told):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model_type": "gpt2"}, "missing weights"),
        ({"model_type": "nothing"}, "cannot be loaded"),
        ({"num_hidden_layers": 4}, "`num_hidden_layers` is 4, the weights hold 3 layers"),
        ({"num_hidden_layers": 2}, "`num_hidden_layers` is 2, the weights hold 3 layers"),
        (
            {"num_hidden_layers": 100_000},
            "`num_hidden_layers` is 100000, expected a whole",
        ),
        ({"hidden_size": 10**9}, "`hidden_size`"),
        ({"hidden_size": -64}, "`hidden_size`"),
        ({"hidden_size": "wide"}, "`hidden_size` is 'wide'"),
        ({"vocab_size": True}, "`vocab_size` is True"),
        ({"num_attention_heads": 0}, "`num_attention_heads` is 0"),
        ({"intermediate_size": 200}, "mismatched weights: model.layers.0.mlp.down_proj.weight"),
        ({"quantization_config": {"quant_method": "awq"}}, "`quantization_config`"),
        ({"rope_parameters": "yes"}, "cannot be loaded"),
    ],
)
def test_config_of_another_model_or_of_absurd_sizes_is_refused(checkpoint, values, told):
    configure(checkpoint, **values)
    with pytest.raises(InputError, match=told):
        load_model(checkpoint)


def test_generation_config_of_another_type_is_one_line(checkpoint):
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": {"a": 1}, "top_k": "x"}')
    try:
        load_model(checkpoint)
    except InputError as error:
        assert "\n" not in str(error)


def test_a_sound_checkpoint_is_loaded_as_it_was_saved(checkpoint):
    model = load_model(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    for name, value in weights.items():
        assert np.array_equal(model.state_dict()[name].numpy(), value)


@pytest.mark.slow
@pytest.mark.parametrize("stdin", [b"y\ny\ny\n", None], ids=["answers y", "closed"])
@pytest.mark.parametrize("model_type", ["llama", "stranger"])
def test_code_of_a_checkpoint_never_runs(tmp_path, stdin, model_type):
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "results" / "checkpoints" / "mini-llasa", folder)
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    names["AutoTokenizer"] = ["code.Tokenizer", "code.Tokenizer"]
    configure(folder, model_type=model_type, auto_map=names)
    (folder / "code.py").write_text(PAYLOAD)
    command = [sys.executable, "-m", "llasa_core.cli", "synthesize", "Hello.", "--model", folder]
    done = subprocess.run(
        [*command, "--max-seconds", "0.1", "--attempts", "0", "-o", tmp_path / "out"],
        input=stdin,
        stdin=None if stdin else subprocess.DEVNULL,
        capture_output=True,
    )
    assert not (folder / "ran").exists()
    if model_type == "stranger":
        assert done.returncode == 2
        assert len(done.stderr.decode().splitlines()) == 1 and b"never run" in done.stderr


def test_a_speaker_model_that_lacks_weights_is_refused(tmp_path):
    config = WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32, 32),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        tdnn_dim=(32, 32, 64),
        tdnn_kernel=(5, 3, 1),
        tdnn_dilation=(1, 2, 1),
        xvector_output_dim=32,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    WavLMForXVector(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    WavLMEmbedder(str(tmp_path))
    rewrite(tmp_path, without("projector"))
    with pytest.raises(InputError, match=r"missing weights: projector\.bias"):
        WavLMEmbedder(str(tmp_path))


def test_a_hub_model_out_of_reach_is_one_line_at_once(monkeypatch, capsys):
    from huggingface_hub import constants

    def out_of_reach(*arguments, **settings):
        raise ConnectionError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.model_info", out_of_reach)
    assert cli.main(["check", "HKUSTAudio/Llasa-1B"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "HKUSTAudio/Llasa-1B" in told[0] and "no network" in told[0]
    with pytest.raises(InputError, match="no network"):
        load_strictly(AutoModelForCausalLM, "HKUSTAudio/Llasa-1B")


FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hostile", "told"),
    [
        (FOREVER, "does not end within 5 s"),
        ("{{ 'a' * 10**10 }}", "failed on user and assistant turns"),
        ("{{ 'x'.center(10**10) }}", "failed on user and assistant turns"),
        ("{{ 'x'.center(10**6) }}", "writes 1,"),
        ("{{ ''.__class__.__mro__ }}", "failed on user and assistant turns"),
    ],
)
def test_chat_template_without_an_end_or_of_any_size_is_refused(hostile, told, mini_tokenizer):
    tokenizer = copy.deepcopy(mini_tokenizer)
    tokenizer.chat_template = hostile + tokenizer.chat_template
    with pytest.raises(InputError, match=told):
        Prompt(tokenizer)


@pytest.mark.slow
def test_unknown_chat_template_that_ends_is_rendered_as_ever(mini_tokenizer):
    tokenizer = copy.deepcopy(mini_tokenizer)
    tokenizer.chat_template = "{# of a stranger #}" + tokenizer.chat_template
    ours, theirs = (Prompt(one).tts_prompt("Hello.") for one in (mini_tokenizer, tokenizer))
    assert list(ours) == list(theirs)


def test_a_flipped_bit_of_the_weights_is_found_by_check(checkpoint, mini_tokenizer, capsys):
    mini_tokenizer.save_pretrained(checkpoint)
    (checkpoint / "llasa.json").write_text(json.dumps({"weights": weights_sha256(checkpoint)}))
    assert changed_weights(checkpoint) == []
    path = checkpoint / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert changed_weights(checkpoint) == [f"{path}: sha256 differs from training's"]
    assert cli.main(["check", str(checkpoint)]) == 1
    assert "sha256 differs" in capsys.readouterr().out


@pytest.mark.slow
def test_check_tells_a_codec_of_other_weights_than_the_model_was_trained_on(
    checkpoint, mini_tokenizer, capsys
):
    mini_tokenizer.save_pretrained(checkpoint)
    card = {"codec": "mini", "codec_fingerprint": "0123456789abcdef"}
    (checkpoint / "llasa.json").write_text(json.dumps(card))
    assert cli.main(["check", str(checkpoint)]) == 1
    assert "the model knows 0123456789abcdef" in capsys.readouterr().out


def test_codec_is_the_one_that_travels_then_the_folder_that_is_there_then_the_name(
    checkpoint, tmp_path
):
    assert codec_place(checkpoint, {}) is None
    told = {"codec": "mini", "codec_folder": str(tmp_path / "adapted")}
    assert codec_place(checkpoint, told) == "mini"  # a folder of somebody else's machine
    for folder in (tmp_path / "adapted", checkpoint / "codec"):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        assert codec_place(checkpoint, told) == str(folder)
