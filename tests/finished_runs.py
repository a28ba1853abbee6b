"""Finished runs made up for tests of what reads results/: a folder with result.json and JSON-lines
files.
"""

import hashlib
import json


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_run(results, experiment, run, metrics, params=None, **files):
    """A finished run with its JSON-lines files, as the runner leaves it."""
    folder = results / experiment / run
    folder.mkdir(parents=True)
    artifacts = {}
    for name, rows in files.items():
        text = lines(rows)
        (folder / f"{name}.jsonl").write_text(text)
        place = f"results/{experiment}/{run}/{name}.jsonl"
        artifacts[name] = {"path": place, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    result = {
        "schema": 1,
        "experiment": experiment,
        "run": run,
        "notebook": "n.ipynb",
        "params": params or {},
    }
    result |= {
        "metrics": metrics,
        "artifacts": artifacts,
        "provenance": {"seconds": 3.0, "git_sha": "abc"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


VOICES = {"human": "human", "synthetic": "new-voice"}  # and their folders
AMOUNTS = {"0.5min": 0.493, "11min": 10.988}  # minutes that the subsets hold
RANKS = {"full": 0, "lora": 8}
SEEDS = (0, 1)


def two_sentences(errors, similarity):
    """Two scored utterances of ten words; the second has an error more and is 0.1 nearer."""
    return [
        {"id": f"u{n}", "seconds": 1.0, "words": 10, "errors": errors + n}
        | {"similarity": similarity + n / 10}
        for n in range(2)
    ]


def write_minutes(results, voice):
    """Fine-tuning by minutes of a voice, in folders that do not carry the names of their scores.

    More minutes, all weights and an adapted decoder take two errors of a sentence away each, and
    another seed adds one.
    """
    originals = f"artifacts/{VOICES[voice]}/test.jsonl"
    base, spoken, number = "base/model", {"codec": "mini", "attempts": 0}, 0
    adapted = {f"speech/{voice}-{amount}": f"codecs/{amount}" for amount in AMOUNTS}
    params = spoken | {"model": base, "speech_dir": f"speech/{voice}", "decoders": adapted}
    write_run(results, "finetuning_speech", f"{voice}-before-0", {}, params)
    systems = {"before": f"speech/{voice}/manifest.jsonl"}
    params = {"originals": originals, "systems": systems, "main_system": "before"}
    params |= {"resynthesis_codec": "mini", "score_originals": True}
    rows = {"originals": two_sentences(0, 0.8), "codec": two_sentences(2, 0.4)}
    rows["utterances"] = two_sentences(9, 0.0)
    write_run(results, "finetuning_scores", f"{voice}-0", {}, params, **rows)
    for more, (amount, minutes) in enumerate(AMOUNTS.items()):
        systems = {"before": f"speech/{voice}-{amount}/manifest.jsonl"}
        rows = {"codec": two_sentences(1, 0.6), "before": two_sentences(8, 0.3)}
        for method, rank in RANKS.items():
            for seed in SEEDS:
                number += 1
                model, folder = f"models/{voice}/{number}", f"speech/{voice}-{number}"
                run = f"{voice}-{method}-{amount}-seed{seed}-0"
                params = {"model": base, "publish": model, "lora_rank": rank, "seed": seed}
                params |= {"codec": "mini", "epochs": 0.0}
                write_run(results, "finetuning", run, {"train_hours": minutes / 60}, params)
                params = spoken | {"model": model, "speech_dir": folder}
                params["decoders"] = {f"{folder}-else": f"codecs/{amount}"}
                write_run(results, "finetuning_speech", run, {}, params)
                for decoder, heard in enumerate((folder, f"{folder}-else")):
                    system = f"{method}-seed{seed}{'-adapted' * decoder}"
                    systems[system] = f"{heard}/manifest.jsonl"
                    errors = 7 - 2 * (more + (method == "full") + decoder) + seed
                    near = 0.1 + 0.2 * decoder + 0.1 * more + 0.01 * seed
                    rows[system] = two_sentences(errors, near)
        params = {"originals": originals, "systems": systems, "main_system": "full-seed0"}
        params |= {"resynthesis_codec": f"codecs/{amount}", "score_originals": False}
        rows["utterances"] = rows.pop("full-seed0")
        write_run(results, "finetuning_scores", f"{voice}-{amount}-0", {}, params, **rows)
