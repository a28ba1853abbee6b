"""What `llasa rating-page` and `rating-scores` do with their parsed options; called by `commands`."""

import sys
from argparse import Namespace

from llasa_core.commands import print_counts


def rating_page(options: Namespace) -> None:
    """Print hash and counts of the page."""
    from llasa_core.rating import named_manifests, rating_page
    from llasa_core.understanding import read_sentences

    sentences = read_sentences(*options.sentences)
    systems = named_manifests(options.manifests)
    print_counts(rating_page(options.out, sentences, systems, options.title, options.seed))


def rating_scores(options: Namespace) -> None:
    """Print means and agreement."""
    from llasa_core.rating_scores import aggregate

    report = aggregate(options.scores, options.key, options.out, options.seed)
    print_counts(report)
    if report["raters"] < 2:
        print("llasa: one rater, so nothing is said of agreement", file=sys.stderr)
