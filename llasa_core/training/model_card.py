"""The model card: README.md of a checkpoint, in the hub's format, from what llasa.json says.

It holds no number that llasa.json, or the summary of an evaluation, does not. Its Python is run by
a test as it stands.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from llasa_core.checkpoint import HUB_ID, RECOMMENDED_SAMPLING
from llasa_core.tokenizer import TTS_INSTRUCTION

CARD = "README.md"
TEXT = "Call Anna at nine."  # what the examples say

LIBRARIES = {  # codec -> the import, and how a loaded codec decodes `codes`, int64 (F,)
    "xcodec2": (
        "from transformers import AutoModelForCausalLM, AutoTokenizer, Xcodec2Model",
        'Xcodec2Model.from_pretrained("HKUSTAudio/xcodec2-hf")',
        "codec.decode(codes[None, None]).audio_values[0, 0].detach().numpy()",
    ),
    "": (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from llasa_core.codecs import load_codec",
        "load_codec({codec})",
        "codec.decode([codes.numpy()])[0]",
    ),
}

PROMPT = """\
text = "{text}"
question = "{instruction}<|TEXT_UNDERSTANDING_START|>" + text + "<|TEXT_UNDERSTANDING_END|>"
messages = [
    {{"role": "user", "content": question}},
    {{"role": "assistant", "content": "{tag}<|SPEECH_GENERATION_START|>"}},
]
prompt = tokenizer.apply_chat_template(
    messages, date_string="{date}", continue_final_message=True,
    return_dict=True, return_tensors="pt",
)
end, first = tokenizer.convert_tokens_to_ids(["<|SPEECH_GENERATION_END|>", "<|s_0|>"])"""

# The training hid the template's <|eot_id|>: they are hidden here too, the positions stay plain.
HIDDEN = """
hidden = prompt["input_ids"] == tokenizer.convert_tokens_to_ids("<|eot_id|>")
prompt["attention_mask"] = (~hidden).long()
prompt["position_ids"] = torch.arange(prompt["input_ids"].shape[1])[None]"""

TRANSFORMERS = """\
import soundfile
{hub}{imports}

folder = {folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
codec = {codec}

{prompt}
ids = model.generate(
    **prompt, do_sample=True, {sampling}, max_length={context}, eos_token_id=end, pad_token_id=end
)
codes = ids[0, prompt["input_ids"].shape[1] :] - first
codes = codes[codes >= 0]  # all other ids are below those of speech
wave = {decoded}
soundfile.write("speech.wav", wave, 16_000)"""

VLLM = """\
import torch
from vllm import LLM, SamplingParams

engine = LLM(folder, max_model_len={context})
sampling = SamplingParams({sampling}, max_tokens={room}, stop_token_ids=[end])
asked = {{"prompt_token_ids": prompt["input_ids"][0].tolist()}}
ids = engine.generate(asked, sampling)[0].outputs[0].token_ids
codes = torch.tensor([one - first for one in ids if one >= first])"""


def base_of(model: str) -> str | None:
    """The hub id of the model that a training started from; None for a size or a local folder."""
    return model if "/" in model and HUB_ID.fullmatch(model) and not Path(model).exists() else None


def model_card(
    settings: Mapping[str, Any],
    name: str,
    scores: Mapping[str, Any] | None = None,
    license: str | None = None,
    pushed: bool = False,
    carried: bool = False,
) -> str:
    """The card's text. settings: llasa.json. name: the folder, or where `pushed` the hub id.

    scores: summary.json of an evaluation. license: its name in the hub's list. carried: the codec
    travels in the folder `codec`.
    """
    tasks = {row["task"] for row in settings.get("data") or ()} or {"tts"}
    parts = [
        "---\n" + _metadata(settings, name, tasks, scores, license) + "\n---",
        f"# {PurePosixPath(name).name}",
        "A Llama that speaks, after [Llasa](https://arxiv.org/abs/2502.04128): it reads a text and"
        f" answers with the codes of {_codec_name(settings, carried)}, which that codec turns into"
        " 16 kHz speech.",
        _table(settings, carried),
    ]
    if scores is not None:
        parts += ["## Scores", _score_table(scores)]
    if "tts" in tasks:
        parts += _use(settings, name, pushed, carried)
    if "asr" in tasks:
        parts += ["## Recognition", f"```\nllasa transcribe --model {name} recording.wav\n```"]
    return "\n\n".join(parts) + "\n"


def _metadata(
    settings: Mapping, name: str, tasks: set[str], scores: Mapping | None, license: str | None
) -> str:
    """The YAML header, as the hub's own library writes it."""
    from huggingface_hub import EvalResult, ModelCardData

    languages = {one for row in settings.get("data") or () for one in row.get("languages", ())}
    task = "text-to-speech" if "tts" in tasks else "automatic-speech-recognition"
    data = ModelCardData(
        base_model=settings.get("base_model"),
        language=sorted(languages) or None,
        library_name="transformers",
        license=license,
        pipeline_tag=task,
        tags=["llasa", "speech"],
    )
    if scores is not None:
        data.model_name = PurePosixPath(name).name
        data.eval_results = [
            EvalResult(
                task_type=task,
                dataset_type="held-out",
                dataset_name=str(scores.get("name", "held-out texts")),
                metric_type=metric,
                metric_name=f"{metric} [{low:.4g}, {high:.4g}], n = {count}",
                metric_value=round(value, 6),
            )
            for metric, value, low, high, count in scored(scores)
        ]
    return data.to_yaml()


def scored(scores: Mapping[str, Any]) -> list[tuple[str, float, float, float, int]]:
    """(metric, value, low, high, n) of each metric of a summary that carries its interval."""
    metrics = scores["metrics"]
    return [
        (name, value, metrics[f"{name}_low"], metrics[f"{name}_high"], metrics[f"{name}_n"])
        for name, value in metrics.items()
        if {f"{name}_low", f"{name}_high", f"{name}_n"} <= set(metrics)
    ]


def _score_table(scores: Mapping[str, Any]) -> str:
    lines = ["| metric | value | 95 % interval | n |", "|---|---|---|---|"]
    for name, value, low, high, count in scored(scores):
        lines.append(f"| {name} | {value:.4g} | {low:.4g} to {high:.4g} | {count} |")
    judges = ", ".join(f"{role}: {judge}" for role, judge in (scores.get("judges") or {}).items())
    return "\n".join(lines) + (f"\n\nJudges: {judges}." if judges else "")


def _table(settings: Mapping[str, Any], carried: bool) -> str:
    """What it was trained on and how far, a row a fact; a fact that is not known has no row."""
    training, metrics = settings["training"], settings["metrics"]
    rows = {"trained from": settings.get("base_model") or training["model"]}
    data = settings.get("data") or []
    for row in data:
        speech = f", {row['hours']:.3g} h of speech" if "hours" in row else ""
        weight = f", {row['weight']:g} passes an epoch" if row["weight"] != 1 else ""
        said = f"{row['utterances']:,} examples{speech}, task {row['task']}{weight}"
        rows[f"data `{row['name']}`"] = said
    if data:
        rows["speech in all"] = f"{sum(row.get('hours', 0) for row in data):.3g} h"
    rows |= {
        "parameters": f"{metrics['parameters']:,}",
        "steps, tokens": f"{metrics['steps']:,} steps, {metrics['tokens']:,} tokens",
        "peak learning rate, seed": f"{training['peak_lr']:g}, {training['seed']}",
    }
    if "eval_loss" in metrics:
        bits = metrics.get("eval_bits_per_second")
        end = "" if bits is None else f", {bits:.4g} bits a second of speech"
        at = f", weights of step {metrics['best_step']:,}" if "best_step" in metrics else ""
        rows["held-out loss"] = f"{metrics['eval_loss']:.4f} nats a token{end}{at}"
    if settings.get("speaker_tags") and settings["speakers"]:
        rows["speaker tags"] = ", ".join(settings["speakers"])
    rows["context"] = f"{training['context']:,} tokens, prompt and speech together"
    rows["codec"] = _codec_name(settings, carried)
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {text} |" for key, text in rows.items())])


def _codec_name(settings: Mapping[str, Any], carried: bool) -> str:
    name = "X-codec2" if settings["codec"] == "xcodec2" else f"the codec {settings['codec']}"
    weights = settings.get("codec_fingerprint")
    told = f" (weights {weights})" if weights else ""
    return f"{name}{told}" + (", in the folder `codec`" if carried else "")


def _use(settings: Mapping[str, Any], name: str, pushed: bool, carried: bool) -> list[str]:
    """How to speak with transformers, vLLM and this library."""
    context = settings["training"]["context"]
    codec = repr(settings.get("codec_folder") or settings["codec"]).replace("'", '"')
    imports, loaded, decoded = LIBRARIES.get("" if carried else settings["codec"], LIBRARIES[""])
    tagged = settings.get("speaker_tags") and settings["speakers"]
    sampling = ", ".join(
        f"{key}={value}" for key, value in RECOMMENDED_SAMPLING.items() if value != 1
    )
    prompt = PROMPT.format(
        text=TEXT,
        instruction=TTS_INSTRUCTION,
        tag=f"Speaker {settings['speakers'][0]} " if tagged else "",
        date=settings["date"],
    )
    masked = settings.get("mask_eot")
    example = TRANSFORMERS.format(
        hub="from huggingface_hub import snapshot_download\n" if pushed else "",
        imports=("import torch\n" if masked else "") + imports,
        folder=f'snapshot_download("{name}")' if pushed else f'"{name}"',
        codec=loaded.format(codec='f"{folder}/codec"' if carried else codec),
        prompt=prompt + (HIDDEN if masked else ""),
        sampling=sampling,
        context=context,
        decoded=decoded,
    )
    engine = VLLM.format(context=context, sampling=sampling, room=context // 2)
    engine = f"With the prompt and codec from above:\n\n```python\n{engine}\n```"
    if masked:
        engine = "vLLM cannot hide the template's `<|eot_id|>`, as this model's training did."
    return [
        "## Use it with transformers",
        f"```python\n{example}\n```",
        "## With vLLM",
        engine,
        "## With llasa-core",
        "Checks each utterance and samples a failed one again; clones voices, streams and reads"
        f' long texts:\n\n```\nllasa synthesize --model {name} "{TEXT}" -o speech.wav\n```',
    ]
