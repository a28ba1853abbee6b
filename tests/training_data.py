"""What tests of data and training train on: codes datasets, conversations and settings of a tiny
run.
"""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llasa_core.data.dataset import SCHEMA, CodesDataset
from llasa_core.training.config import TrainConfig

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which city is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Japan?"},
    {"role": "assistant", "content": "Tokyo, since 1868."},
]


def write_codes(
    folder, count, seed=0, codebook_size=4096, repeats=None, longest=None, speakers=("kore", "puck")
):
    """A codes dataset on disk; `repeats` = that many distinct codes, so that a model can learn
    them.

    `longest`: codes of the last utterance.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        length = int(generator.integers(20, 60))
        length = longest if longest and i == count - 1 else length
        codes = generator.integers(0, repeats or codebook_size, length)
        rows.append(
            {
                "id": f"u{seed}-{i}",
                "text": f"Please bring {i} apples.",
                "codes": codes.tolist(),
                "speaker": speakers[i % len(speakers)],
                "language": "en",
                "seconds": len(codes) / 50,
            }
        )
    part = folder / "part-00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part)
    total = sum(len(row["codes"]) for row in rows)
    shard = {
        "file": part.name,
        "rows": count,
        "sha256": hashlib.sha256(part.read_bytes()).hexdigest(),
    }
    meta = {
        "codec": "fake",
        "codebook_size": codebook_size,
        "frame_rate": 50.0,
        "utterances": count,
        "codes": total,
    }
    meta |= {"seconds": total / 50, "speakers": ["kore", "puck"], "shards": [shard], "dropped": {}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def rows_of(count, speaker="kore"):
    """Rows of a codes dataset: utterance i has 10 + i codes."""
    return [
        {
            "id": f"{speaker}-{i}",
            "text": f"We meet at the station {i}.",
            "codes": np.arange(10 + i, dtype=np.uint16),
            "speaker": speaker,
            "language": "en",
            "seconds": (10 + i) / 50,
        }
        for i in range(count)
    ]


def codes_of(count, speaker="kore"):
    """The same, open."""
    return CodesDataset({}, [pa.Table.from_pylist(rows_of(count, speaker), schema=SCHEMA)])


def chat_file(path, *conversations):
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in conversations))
    return path


def settings(workshop, output, **changes):
    values = {
        "model": "tiny",
        "tokenizer": str(workshop / "tokenizer"),
        "codes": [str(workshop / "codes")],
        "output_dir": str(output),
        "max_steps": 6,
        "context": 512,
        "tokens_per_step": 1024,
        "peak_lr": 2e-3,
        "bf16": False,
        "log_steps": 1,
        "threads": 1,
    }
    return TrainConfig.from_dict(values | changes)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]
