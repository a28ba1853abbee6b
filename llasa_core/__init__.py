"""Llasa as a reproducible research repository: speech synthesis with a plain Llama.

Importing this package does no work and needs no model. What a notebook needs can be imported from
here; its module is loaded when a name is first used:

* corpora and codes: read_corpus, prepare, build_synthetic_corpus, build_open_corpus, at_speed,
  read_manifest, write_manifest, select, load_audio, load_codec, resynthesize, Adaptation,
  adapt_codec, encode_manifest, read_codes, nested_subset, join_pairs
* vocabulary and prompt: build_mini_tokenizer, merge_tokenizer, load_tokenizer, Prompt
* training: TrainConfig, launch, publish_checkpoint, held_out_rows, held_out_summary
* synthesis: Synthesizer, Request, Sampling, synthesize_manifest, speak_long, spoken_form
* search: Strategy, WordsVerifier, VoiceVerifier, search_manifest
* evaluation: load_judges, load_transcriber, load_speaker_embedder, embed_references,
  evaluate_manifest, summarise, compare_systems, listening_page
* notebooks and results: at_repository_root, find_or_make, listen, record, read_results

The modules `plots`, `files`, `intervals` and `metrics` are imported as such: `from llasa_core
import plots`.
"""

import importlib

__version__ = "0.1.0"

# Public name: the module that has it, and its name there where that differs
MODULES = {
    "read_corpus": "data.corpora.readers",
    "prepare": "data.corpora.prepare",
    "build_open_corpus": "data.corpora.open_corpus:build",
    "build_synthetic_corpus": "data.corpora.synthetic:build",
    "at_speed": "data.corpora.speeds",
    "read_manifest": "manifest",
    "write_manifest": "manifest",
    "select": "codecs.roundtrip",
    "load_audio": "audio",
    "load_codec": "codecs",
    "resynthesize": "codecs.roundtrip",
    "Adaptation": "codecs.adapt",
    "adapt_codec": "codecs.adapt",
    "encode_manifest": "data.encode",
    "read_codes": "data.dataset",
    "nested_subset": "data.subsets",
    "join_pairs": "data.subsets",
    "build_mini_tokenizer": "data.text_tokenizers",
    "merge_tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
    "Prompt": "prompts",
    "TrainConfig": "training.config",
    "launch": "training.launch",
    "publish_checkpoint": "training.published",
    "held_out_rows": "training.held_out",
    "held_out_summary": "training.held_out",
    "Synthesizer": "synthesis.synthesizer",
    "Request": "manifest",
    "Sampling": "synthesis.sampling",
    "synthesize_manifest": "synthesis.batch",
    "speak_long": "synthesis.long_text",
    "spoken_form": "synthesis.spoken_form",
    "Strategy": "search.strategy",
    "WordsVerifier": "search.verifiers",
    "VoiceVerifier": "search.verifiers",
    "search_manifest": "search.batch",
    "load_judges": "judges",
    "load_transcriber": "judges",
    "load_speaker_embedder": "judges",
    "embed_references": "evaluation.scoring",
    "evaluate_manifest": "evaluation.scoring",
    "summarise": "evaluation.summary",
    "compare_systems": "intervals",
    "listening_page": "evaluation.listening_page",
    "at_repository_root": "experiments.config",
    "find_or_make": "experiments.small",
    "listen": "audio",
    "record": "experiments.results",
    "read_results": "experiments.results",
}


def __getattr__(name: str):
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, own = MODULES[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), own or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
