import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import speaking_llama
from training_data import losses, settings, write_codes
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

from llasa_core.data.text_tokenizers import build_mini_tokenizer
from llasa_core.errors import InputError
from llasa_core.model import build_model, load_model, model_config, resize_vocabulary
from llasa_core.prompts import Prompt
from llasa_core.tokenizer import vocabulary_of
from llasa_core.training.config import TrainConfig
from llasa_core.training.launch import launch
from llasa_core.training.loss import LOSSES
from llasa_core.training.published import generation_settings
from llasa_core.training.train import train
from llasa_core.training.trainer import groups_of


@pytest.mark.slow
def test_training_learns_and_publishes_an_ordinary_checkpoint(workshop, tmp_path):
    config = settings(
        workshop,
        tmp_path / "run",
        max_steps=30,
        eval_codes=[str(workshop / "held_out")],
        eval_steps=15,
    )
    metrics = train(config)
    curve = losses(tmp_path / "run")
    assert len(curve) == 30
    assert curve[0] == pytest.approx(math.log(len(load_tokens(tmp_path))), abs=0.3)
    assert metrics["eval_loss"] < 4 < curve[0]
    held_out = json.loads((tmp_path / "run" / "llasa.json").read_text())
    assert (
        held_out["codec"] == "fake"
        and held_out["speakers"] == ["kore", "puck"]
        and held_out["date"] == "26 Jul 2024"
    )
    assert metrics["dropped_overlong"] == 0 and metrics["tokens"] > 20_000
    model = load_model(tmp_path / "run", load_tokens(tmp_path))
    assert model.dtype == torch.float32
    assert not list((tmp_path / "run").rglob("*.bin"))
    # Bits per second, recomputed from the loss: nats a token x tokens / ln 2 / seconds.
    table = pq.read_table(workshop / "held_out" / "part-00000.parquet")["codes"].to_pylist()
    tokens, seconds = (
        sum(len(codes) + 2 for codes in table),
        sum(len(codes) for codes in table) / 50,
    )
    expected = metrics["eval_loss"] * tokens / math.log(2) / seconds
    assert metrics["eval_bits_per_second"] == pytest.approx(expected, rel=1e-6)


def load_tokens(tmp_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tmp_path / "run")


@pytest.mark.slow
def test_accumulated_passes_equal_one_pass(workshop, tmp_path):
    train(
        settings(workshop, tmp_path / "one", max_steps=3, rows_per_device=4, tokens_per_step=2048)
    )
    train(
        settings(workshop, tmp_path / "four", max_steps=3, rows_per_device=1, tokens_per_step=2048)
    )
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "four"), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "muon"])
def test_a_killed_run_resumes_bit_for_bit(workshop, tmp_path, optim):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = {"save_steps": 3, "code_noise": 0.7, "final_code_noise": 0.0}
    changes |= {"speaker_tags": 0.5, "optim": optim}
    train(settings(workshop, whole, **changes))
    shutil.copytree(whole, killed)
    for path in [*killed.glob("*.safetensors"), killed / "llasa.json"]:
        path.unlink()
    shutil.rmtree(killed / "checkpoint-6")
    (killed / "checkpoint-5").mkdir()  # a checkpoint that was being written
    train(settings(workshop, killed, **changes, resume=True))
    assert losses(whole) == losses(killed)
    first, second = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_code_noise_falls_evenly_to_its_final_value(workshop, tmp_path):
    constant = settings(workshop, tmp_path, max_steps=5, code_noise=0.3)
    assert {constant.code_noise_at(step) for step in range(5)} == {0.3}
    falling = replace(constant, code_noise=0.8, final_code_noise=0.0)
    noise = [falling.code_noise_at(step) for step in range(7)]
    assert noise == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0])


@pytest.mark.slow
def test_workers_change_neither_the_data_nor_a_bit_of_the_loss(workshop, tmp_path):
    changes = {
        "max_steps": 5,
        "rows_per_device": 1,
        "tokens_per_step": 1536,
        "save_steps": 2,
        "code_noise": 0.1,
    }
    train(settings(workshop, tmp_path / "none", **changes))
    train(settings(workshop, tmp_path / "two", **changes, workers=2))
    assert losses(tmp_path / "none") == losses(tmp_path / "two")
    (tmp_path / "two" / "llasa.json").unlink()
    shutil.rmtree(tmp_path / "two" / "checkpoint-4")
    train(settings(workshop, tmp_path / "two", **changes, workers=1, resume=True))
    assert losses(tmp_path / "none") == losses(tmp_path / "two")


@pytest.mark.slow
def test_sigkill_loses_at_most_save_steps_and_no_bit(workshop, tmp_path):
    changes = {"max_steps": 12, "save_steps": 3}
    train(settings(workshop, tmp_path / "whole", **changes))
    config = settings(workshop, tmp_path / "killed", **changes, resume=True)
    command = [sys.executable, "-m", "llasa_core.train", write_config(tmp_path, config)]
    kills = 0
    for reached in (2, 5, 8):  # steps of the log at which the process dies
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        log = tmp_path / "killed" / "train_log.jsonl"
        while process.poll() is None and not (
            log.is_file() and len(log.read_text().splitlines()) > reached
        ):
            time.sleep(0.005)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills == 3
    before = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    subprocess.run(command, check=True, capture_output=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert before[-1] >= 9
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_finished_run_that_resumes_trains_no_further(workshop, tmp_path):
    config = settings(workshop, tmp_path / "run", max_steps=2, save_steps=2, resume=True)
    train(config)
    before = load_file(tmp_path / "run" / "model.safetensors")
    train(config)
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"peak_lr": 5e-2, "seed": 3},
            r"settings\.json: .*`peak_lr` 0\.002, the config 0\.05; .*`output_dir`",
        ),
        ({"seed": 3}, "`seed` 0, the config 3"),
        ({"max_steps": 4}, "`max_steps` 2, the config 4"),
        ({"tokens_per_step": 2048}, "`tokens_per_step` 1024, the config 2048"),
        ({"codes": "held_out"}, "`codes` .*sha256"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_another_run_is_not_resumed_nor_certified(finished, workshop, change, message):
    before = (finished / "llasa.json").read_bytes()
    change = {
        name: [str(workshop / value)] if name == "codes" else value
        for name, value in change.items()
    }
    with pytest.raises(InputError, match=message):
        train(
            settings(
                workshop, finished, **{"max_steps": 2, "save_steps": 2, "resume": True, **change}
            )
        )
    assert (finished / "llasa.json").read_bytes() == before
    unsaved = [
        folder.rename(folder.with_name(f"aside-{folder.name}"))
        for folder in finished.glob("checkpoint-*")
    ]
    with pytest.raises(InputError, match=message):  # a finished folder without checkpoints
        train(settings(workshop, finished, **{"max_steps": 2, "resume": True, **change}))
    for folder in unsaved:
        folder.rename(folder.with_name(folder.name.removeprefix("aside-")))


@pytest.fixture(scope="module")
def finished(workshop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(settings(workshop, folder, max_steps=2, save_steps=2))
    return folder


@pytest.mark.slow
def test_what_decides_no_weight_may_change_on_the_way(finished, workshop, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    moved = shutil.copytree(workshop / "codes", tmp_path / "moved")
    changes = {
        "rows_per_device": 1,
        "save_steps": 1,
        "log_steps": 2,
        "report_to": "none",
        "codes": [str(moved)],
    }
    metrics = train(settings(workshop, tmp_path / "run", max_steps=2, resume=True, **changes))
    before = json.loads((finished / "train_log.jsonl").read_text().splitlines()[-1])
    assert metrics["steps"] == 2 and metrics["seconds"] == before["seconds"]  # of the first time


@pytest.mark.slow
def test_a_folder_from_before_settings_were_kept_resumes(finished, workshop, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "settings.json").unlink()
    (tmp_path / "run" / "checkpoint-2" / "settings.json").unlink()
    longer = settings(workshop, tmp_path / "run", max_steps=3, peak_lr=1e-3, resume=True)
    assert train(longer)["steps"] == 3
    assert len(losses(tmp_path / "run")) == 3
    with pytest.raises(
        InputError, match=r"`peak_lr` 0\.001, the config 0.002"
    ):  # from now on they are kept
        train(settings(workshop, tmp_path / "run", max_steps=3, resume=True))


@pytest.mark.slow
def test_checkpoints_that_a_new_beginning_left_behind_are_not_resumed(
    finished, workshop, tmp_path, monkeypatch
):
    shutil.copytree(finished, tmp_path / "run")

    def killed(*_):
        raise KeyboardInterrupt

    anew = {"max_steps": 2, "save_steps": 2, "peak_lr": 1e-3}
    with monkeypatch.context() as patch:
        patch.setitem(LOSSES, "cross_entropy", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings(workshop, tmp_path / "run", **anew, overwrite=True))
    train(settings(workshop, tmp_path / "run", **anew, resume=True))
    train(settings(workshop, tmp_path / "whole", **anew))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_held_out_utterances_that_do_not_fit_are_counted(finished, workshop):
    config = settings(
        workshop,
        finished,
        max_steps=2,
        resume=True,
        context=512,
        eval_codes=[str(workshop / "long")],
    )
    assert train(config)["eval_dropped_overlong"] == 1


@pytest.mark.slow
def test_standard_output_is_the_metrics_alone(workshop, tmp_path, monkeypatch, capsys):
    from llasa_core import cli
    from llasa_core.training.launch import main

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for command, arguments in ((main, []), (cli.main, ["train"])):
        config = settings(workshop, tmp_path / "run", max_steps=2, overwrite=True)
        path = write_config(tmp_path, config)
        assert command([*arguments, path]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["steps"] == 2
        assert "'loss'" in captured.err


def write_config(folder, config):
    values = {
        name: value for name, value in vars(config).items() if name != "notes" and value is not None
    }
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder / "config.json")


@pytest.mark.slow
def test_a_diverged_run_is_one_line_and_status_1(workshop, tmp_path, monkeypatch, capsys):
    from llasa_core import cli
    from llasa_core.training.launch import main

    monkeypatch.setitem(LOSSES, "cross_entropy", lambda model, batch: (torch.tensor(math.nan), 1))
    path = write_config(tmp_path, settings(workshop, tmp_path / "run", max_steps=2))
    for command, arguments in ((main, []), (cli.main, ["train"])):
        assert command([*arguments, path]) == 1
        captured = capsys.readouterr()
        assert captured.err.splitlines()[-1].startswith(
            "llasa: the loss is nan at step 1, lower peak_lr; read: u0-"
        )
        assert "Traceback" not in captured.err and captured.out == ""


@pytest.mark.slow
def test_fine_tuning_starts_from_a_folder_and_lora_leaves_the_base_alone(workshop, tmp_path):
    peft = pytest.importorskip("peft")
    train(settings(workshop, tmp_path / "base", max_steps=1))
    config = settings(
        workshop,
        tmp_path / "tuned",
        max_steps=2,
        model=str(tmp_path / "base"),
        tokenizer=None,
        lora={"r": 4},
    )
    train(config)
    base, tuned = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "tuned"))
    assert base.keys() == tuned.keys()
    assert torch.equal(base["model.embed_tokens.weight"], tuned["model.embed_tokens.weight"])
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(base[name], tuned[name])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(
        model, tmp_path / "tuned" / "adapter"
    ).merge_and_unload()
    torch.testing.assert_close(merged.state_dict()[name], tuned[name])


@pytest.mark.slow
def test_generate_of_other_people_stops_at_the_end_of_speech(workshop, tmp_path, mini_tokenizer):
    """The base ends its answers with another id; transformers' generate reads what we publish."""
    vocabulary = vocabulary_of(mini_tokenizer)
    base = speaking_llama(vocabulary, end_logit=30.0)
    base.generation_config.eos_token_id = mini_tokenizer.eos_token_id
    base.save_pretrained(tmp_path / "base")
    start = {"model": str(tmp_path / "base"), "max_steps": 1, "peak_lr": 1e-6, "context": 256}
    train(settings(workshop, tmp_path / "run", **start))
    ours = GenerationConfig.from_pretrained(tmp_path / "run")
    assert ours.eos_token_id == [vocabulary.speech_generation_end]
    assert (ours.do_sample, ours.temperature, ours.top_k, ours.top_p) == (True, 0.8, 50, 1.0)
    prompt = torch.tensor(Prompt(mini_tokenizer).tts_prompt("Hello."))[None].long()
    torch.manual_seed(0)
    for folder, stops in (("run", True), ("base", False)):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        ids = model.generate(prompt, max_new_tokens=100)[0].tolist()
        assert (len(ids) < prompt.shape[1] + 100) == stops
        assert not stops or ids[-1] == vocabulary.speech_generation_end
    asr = settings(workshop, tmp_path, codes=[{"path": "x", "task": "asr"}, "y"])
    ends = generation_settings(asr, mini_tokenizer).eos_token_id
    assert ends == [vocabulary.speech_generation_end, vocabulary.text_generation_end]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_the_rows_that_are_new(workshop, tmp_path, tied):
    """They stayed as they began: a loss of 6.6 where full fine-tuning reached 1.2."""
    peft = pytest.importorskip("peft")
    words = build_mini_tokenizer(["Please bring apples and milk."] * 5)
    torch.manual_seed(0)
    shape = model_config("nano", len(words), 512)
    shape.tie_word_embeddings = tied
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "text")
    words.save_pretrained(tmp_path / "text")
    new = {"model": str(tmp_path / "text"), "tokenizer": None, "lora": {"r": 4}}
    new |= {"max_steps": 30, "peak_lr": 2e-2, "save_steps": 20}
    metrics = train(settings(workshop, tmp_path / "run", **new))
    base, tuned = (load_file(tmp_path / name / "model.safetensors") for name in ("text", "run"))
    begun = resize_vocabulary(
        load_model(tmp_path / "text"), len(load_tokens(tmp_path))
    ).state_dict()
    matrices = ["model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])]
    for name in matrices:
        old = len(words)
        assert torch.equal(tuned[name][:old], base[name])  # neither trained nor decayed
        moved = (tuned[name] - begun[name])[old:].abs().amax(1)
        assert moved[8:12].min() > 0  # the four codes that the speech is made of
    assert metrics["final_loss"] < 4 < losses(tmp_path / "run")[0]

    # The adapter alone, on the base with new rows, is the merged model.
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    plain.resize_token_embeddings(len(load_tokens(tmp_path)), mean_resizing=False)
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    ids = torch.arange(1, 60)[None] * 70
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)

    killed = tmp_path / "run" / "checkpoint-30"
    (tmp_path / "run" / "llasa.json").unlink()
    shutil.rmtree(killed)
    again = train(settings(workshop, tmp_path / "run", **new, resume=True))
    assert again["final_loss"] == metrics["final_loss"]
    with pytest.raises(InputError, match="`lora` trains new speech rows"):
        sharded = settings(workshop, tmp_path / "sharded", **new, fsdp=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("llasa_core.training.train.engine_arguments", lambda *_: {})
            train(sharded)


@pytest.mark.slow
def test_lora_on_a_model_that_speaks_leaves_no_embedding_in_the_adapter(workshop, tmp_path):
    pytest.importorskip("peft")
    train(settings(workshop, tmp_path / "base", max_steps=1))
    start = {"model": str(tmp_path / "base"), "lora": {"r": 4}, "max_steps": 1}
    train(settings(workshop, tmp_path / "run", **start))
    names = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name for name in names) and len(names) == 2 * 7 * 5


def test_a_text_model_gets_the_speech_rows(workshop, tmp_path, mini_tokenizer):
    text_tokenizer = build_mini_tokenizer(["Please bring apples and milk."] * 5)
    build_model("tiny", len(text_tokenizer)).save_pretrained(tmp_path / "text")
    text_tokenizer.save_pretrained(tmp_path / "text")
    train(
        settings(
            workshop, tmp_path / "run", max_steps=1, model=str(tmp_path / "text"), tokenizer=None
        )
    )
    assert (
        load_model(tmp_path / "run", load_tokens(tmp_path)).config.vocab_size
        == len(text_tokenizer) + 8 + 4096
    )


@pytest.mark.slow
def test_asr_and_tts_train_together_and_report_apart(workshop, tmp_path):
    both = [{"path": str(workshop / "held_out"), "task": task} for task in ("tts", "asr")]
    codes = [
        str(workshop / "codes"),
        {"path": str(workshop / "codes"), "task": "asr", "weight": 0.5},
    ]
    metrics = train(
        settings(
            workshop,
            tmp_path / "run",
            max_steps=2,
            codes=codes,
            eval_codes=both,
            save_dtype="bfloat16",
        )
    )
    apart = [metrics[f"eval_loss/{workshop / 'held_out'}:{task}"] for task in ("tts", "asr")]
    assert min(apart) < metrics["eval_loss"] < max(apart)
    assert (
        load_file(tmp_path / "run" / "model.safetensors")["model.norm.weight"].dtype
        == torch.bfloat16
    )


@pytest.mark.slow
def test_warm_up_then_cosine_to_a_tenth(workshop, tmp_path):
    config = settings(workshop, tmp_path / "run", max_steps=5, warmup_ratio=0.4, peak_lr=1e-3)
    train(config)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()
    ]
    # 2 steps of warm-up; then thirds of a half cosine from 1 to 0.1: 0.55 + 0.45 cos(60), cos(120),
    # cos(180 degrees).
    assert [line["lr"] for line in lines] == pytest.approx(
        [0.5e-3, 1e-3, 0.775e-3, 0.325e-3, 0.1e-3]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peak_l": 1e-3}, "unknown key `peak_l`; nearest: peak_lr"),
        ({"peak_lr": "3e-4"}, "`peak_lr` is '3e-4', expected a number"),
        ({"max_steps": 10.5}, "`max_steps` is 10.5, expected a whole number of at least 1 or null"),
        ({"bf16": 1}, "`bf16` is 1, expected true or false"),
        ({"seed": -1}, "`seed` is -1, expected a whole number from 0 to"),
        ({"lora": {"rank": 4}}, r"`lora` has keys \['rank'\], expected some of r, alpha"),
        ({"lora": {"dropout": 1}}, "`lora` has dropout 1, expected 0 to 1"),
        ({"lora": {"target_modules": [3]}}, "expected a list of names"),
        ({"seed": True}, "`seed` is True, expected a whole number"),
        ({"codes": []}, "at least one codes folder"),
        ({"codes": [{"path": "x", "task": "sing"}]}, "expected tts, asr or chat"),
        ({"codes": [{"path": "x", "wait": 1}]}, "unknown key `wait`"),
        ({"epochs": 1.0}, "exactly one of `max_steps` and `epochs`"),
        ({"code_noise": 1.5}, "expected a number from 0 to 1"),
        ({"save_dtype": "fp8"}, "save_dtype"),
        ({"learning_rate": 1e-3}, "set the same thing"),
    ],
)
def test_bad_settings_name_the_key(workshop, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        settings(workshop, tmp_path, **change)


def test_an_optimizer_that_does_not_exist_is_refused(workshop, tmp_path):
    with pytest.raises(InputError, match=r"`optim` is 'adam', expected one of .*adamw_torch_fused"):
        train(settings(workshop, tmp_path, optim="adam"))


def test_muon_refuses_engines_that_shard_its_matrices(workshop, tmp_path):
    with pytest.raises(InputError, match="`optim` is 'muon', which needs whole matrices"):
        train(settings(workshop, tmp_path, optim="muon", fsdp=True))


def test_muon_takes_the_matrices_of_the_layers_and_leaves_embeddings_and_norms_to_adamw():
    model = build_model("nano", 300)
    decaying = {name for name, one in model.named_parameters() if one.ndim > 1}
    names = {id(one): name for name, one in model.named_parameters()}
    groups = {
        (group["orthogonal"], group["weight_decay"]): {names[id(one)] for one in group["params"]}
        for group in groups_of(model, decaying, 0.1)
    }
    assert set(groups) == {(True, 0.1), (False, 0.1), (False, 0.0)}
    assert groups[True, 0.1] == {name for name in names.values() if "proj" in name}
    assert groups[False, 0.1] <= {"model.embed_tokens.weight", "lm_head.weight"}
    assert all("norm" in name for name in groups[False, 0.0])


def test_public_settings_are_translated_with_a_note(tmp_path):
    public = {
        "llm_model_name_or_path": "meta-llama/Llama-3.2-1B-Instruct",
        "cache_dir": "cache",
        "data_path": "data",
        "bf16": True,
        "output_dir": "out",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "evaluation_strategy": "steps",
        "eval_steps": 1000,
        "save_strategy": "steps",
        "save_steps": 5000,
        "save_total_limit": 100,
        "learning_rate": 0.00005,
        "weight_decay": 0.01,
        "adam_beta2": 0.95,
        "warmup_ratio": 0.03,
        "lr_scheduler_type": "cosine",
        "logging_steps": 10,
        "report_to": "wandb",
        "model_max_length": 2048,
        "gradient_checkpointing": True,
        "dataloader_num_workers": 4,
        "dataloader_prefetch_factor": 4,
        "deepspeed": "ds_config_zero2.json",
    }
    (tmp_path / "config.json").write_text(json.dumps(public))
    config = TrainConfig.from_json(tmp_path / "config.json")
    assert (config.model, config.codes, config.epochs, config.peak_lr) == (
        public["llm_model_name_or_path"],
        ["data"],
        2,
        5e-5,
    )
    assert (config.context, config.beta2, config.activation_checkpointing) == (2048, 0.95, True)
    assert config.rows(world_size=8) == (8 * 4 * 8, 8, 4)
    assert "`learning_rate` is read as `peak_lr`" in config.notes
    assert any("lr_scheduler_type" in note and "cosine" in note for note in config.notes)


def test_a_step_must_divide_into_rows(workshop, tmp_path):
    with pytest.raises(InputError, match="a multiple of context x processes = 512 x 3"):
        settings(workshop, tmp_path).rows(world_size=3)
    assert settings(workshop, tmp_path).rows(world_size=2) == (2, 1, 1)


def test_a_wrong_codebook_and_a_missing_tokenizer_are_named(workshop, tmp_path):
    write_codes(tmp_path / "other", 3, codebook_size=512)
    with pytest.raises(InputError, match=r"4096 speech tokens.*codebook of 512"):
        train(settings(workshop, tmp_path / "run", codes=[str(tmp_path / "other")]))
    with pytest.raises(InputError, match="`tokenizer` is missing"):
        train(settings(workshop, tmp_path / "run", tokenizer=None))


def test_the_command_ends_with_2_and_one_line_on_bad_input(tmp_path, capsys):
    from llasa_core.training.launch import main

    (tmp_path / "config.json").write_text(
        '{"model": "tiny", "codes": ["x"], "output_dir": "o", "epoch": 1}'
    )
    assert main([str(tmp_path / "config.json")]) == 2
    assert "config.json: config: unknown key `epoch`; nearest: epochs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_reports_its_true_speed_and_wrapper(workshop, tmp_path):
    config = settings(workshop, tmp_path / "run", max_steps=4, save_steps=4, resume=True)
    train(config)
    (tmp_path / "run" / "llasa.json").unlink()  # what is written last
    metrics = train(config)
    last = json.loads((tmp_path / "run" / "train_log.jsonl").read_text().splitlines()[-1])
    assert metrics["seconds"] == last["seconds"]
    assert metrics["tokens_per_second"] == round(metrics["tokens"] / last["seconds"], 1) > 0
    card = json.loads((tmp_path / "run" / "llasa.json").read_text())
    assert card["engine"]["wrapper"] == "none"


@pytest.mark.slow
@pytest.mark.parametrize("size", ["30k", "2m", "9m"])  # the log, a checkpoint, a later checkpoint
def test_training_on_a_full_disk_is_one_line_and_resumes(workshop, tmp_path, small_disk, size):
    disk = small_disk(size)
    changes = {"max_steps": 4, "save_steps": 1, "save_total_limit": 2, "resume": True}
    config = settings(workshop, disk / "run", **changes)
    with pytest.raises(InputError, match="no space left on the disk") as caught:
        launch(config, progress=False)
    assert "\n" not in str(caught.value) and str(disk) in str(caught.value)
    small_disk("200m")
    launch(config, progress=False)
    train(settings(workshop, tmp_path / "whole", **changes))
    assert losses(disk / "run") == losses(tmp_path / "whole")
