"""Figures of notebook 90, drawn from finished runs and published tables; a study without a run has
no figure.

Train-time scaling and fine-tuning draw theirs themselves (notebooks 50 and 80); here is what other
notebooks leave in the folder of their run.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llasa_core import plots
from llasa_core.evaluation import codecs, scaling
from llasa_core.experiments import tables
from llasa_core.experiments.results import PublishedTable, Result
from llasa_core.experiments.tables import with_interval
from llasa_core.studies.study_sections import CORPORA


def study_figures(study: Mapping[str, Result]) -> dict[str, Figure]:
    """{name: figure} of search, codecs and recognition."""
    drawn: dict[str, Figure] = {}
    if "search" in study:
        panels = {
            "corpus_wer": ("corpus WER (%)", 100.0),
            "similarity": ("cosine to the wanted voice", 1.0),
        }
        arms = tables.search_arms(study["search"])
        if len(arms):
            drawn["search"] = plots.search_frontier(
                arms, panels, "tokens", "codes drawn an utterance"
            )
    for role in CORPORA:
        if role in study:
            drawn[role] = _codecs(tables.codec_scores(study[role]))
    if "asr" in study:
        table = tables.recognition_scores(study["asr"]).replace({"system": tables.DIRECTIONS})
        panels = {
            "corpus_wer": ("corpus WER of recognition (%)", 100.0),
            "bits_per_second": ("held-out speech (bits per second)", 1.0),
        }
        drawn["recognition"] = plots.score_panels(table, panels)
    return drawn


def system_figures(scores: pd.DataFrame) -> dict[str, Figure]:
    """{name: figure} of `study.system_scores` on held-out sentences of the built-in corpus and of
    the real voice.
    """
    drawn: dict[str, Figure] = {}
    builtin, human = (scores[scores["corpus"] == name] for name in ("builtin", "human"))
    words = {"corpus_wer": ("corpus WER (%)", 100.0)}
    if len(builtin):
        drawn["wer"] = plots.score_panels(builtin, words)
        panels = {
            "speaker_similarity": ("cosine to the own speaker", 1.0),
            "nearest_speaker_share": ("nearest to the own speaker (% of utterances)", 100.0),
        }
        drawn["speaker"] = plots.score_panels(builtin, panels)
    if len(human):
        panels = {**words, "speaker_similarity": ("cosine to the voice", 1.0)}
        drawn["human_voice"] = plots.score_panels(human, panels)
    return drawn


def published_seed_tts_eval(table: PublishedTable) -> Figure:
    """The paper's models on Seed-TTS-Eval by size, hours and search, between recordings and their
    round trip.
    """
    frame = table.frame()
    return plots.by_model(
        frame.query("model != '' and zh_cer.notna()"),
        {
            "zh_cer": "test-zh CER (%)",
            "en_wer": "test-en WER (%)",
            "en_sim": "test-en similarity (cosine)",
        },
        "published: Llasa on Seed-TTS-Eval (arXiv 2502.04128v1, Table 2), model size and training"
        " hours",
        references=frame.query("system in ('Human', 'X-codec2 resynthesis')"),
    )


def human_pairs(human: Result, difference: Mapping[str, float]) -> Figure:
    """Each sentence's similarity before and after fine-tuning; difference: `compare_systems` of the
    two.
    """
    sides = {"before": human.rows("before"), "after": human.rows()}
    pairs = pd.DataFrame(
        {name: pd.DataFrame(rows).set_index("id")["similarity"] for name, rows in sides.items()}
    )
    change = with_interval(difference, "speaker_similarity_difference", decimals=3)
    return plots.paired_scatter(
        pairs, "cosine to the voice", f"mean change {change}, n={len(pairs)}"
    )


def learning_curve(
    log: pd.DataFrame, bits_per_second: float, n_boot: int
) -> tuple[Figure, dict[str, float]]:
    """(figure, flat numbers of the fit) of a training log's held-out losses; no fit to fewer than
    five.
    """
    held_out = log.dropna(subset=["eval_loss"]).drop_duplicates("tokens", keep="last")
    if len(held_out) < 5:
        return plots.learning_curve(held_out, None, bits_per_second, ""), {}
    law = scaling.power_law_fit(held_out["tokens"], held_out["eval_loss"], n_boot=n_boot)
    x = np.geomspace(held_out["tokens"].min(), held_out["tokens"].max(), 60)
    low, high = law.predict_interval(x)
    fit = pd.DataFrame({"x": x, "y": law.predict(x), "y_low": low, "y_high": high})
    formula = f"{law.irreducible:.2f} + {law.amplitude:.3g} tokens^-{law.exponent:.2f}, n={law.n}"
    return plots.learning_curve(held_out, fit, bits_per_second, formula), law.metrics(
        "learning_curve"
    )


def _codecs(table: pd.DataFrame) -> Figure:
    columns = {
        "corpus_wer": ("corpus WER (%)", 100.0),
        "speaker_similarity": ("cosine to the own speaker", 1.0),
        "quality": ("predicted quality (1 to 5)", 1.0),
    }
    panels = {name: label for name, label in columns.items() if name in table}
    return plots.score_panels(codecs.labelled(table), panels)
