import json
from dataclasses import fields, replace

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import ANSWERS, speaking_llama, toy_llama

from llasa_core import cli, judges
from llasa_core.codecs.fake import FakeCodec
from llasa_core.errors import InputError
from llasa_core.evaluation.scoring import evaluate_manifest
from llasa_core.judges import Judges
from llasa_core.judges.fake import (
    FakeQualityPredictor,
    FakeSpeakerEmbedder,
    FakeTranscriber,
    fake_speech,
)
from llasa_core.manifest import Request
from llasa_core.model import flops_per_token, model_config
from llasa_core.prompts import Voice
from llasa_core.search import batch
from llasa_core.search.branches import Branches
from llasa_core.search.cost import Cost, attended_keys, generation_flops
from llasa_core.search.search import search
from llasa_core.search.strategy import Rule, Strategy
from llasa_core.search.verifiers import VoiceVerifier, WordsVerifier
from llasa_core.synthesis.decoding import Answers, decode, generating
from llasa_core.synthesis.sampling import Sampling, candidate_seed
from llasa_core.synthesis.synthesizer import Synthesizer
from llasa_core.synthesis.text import clauses
from llasa_core.tokenizer import vocabulary_of

SAMPLING = Sampling(temperature=1.0, top_k=20, max_seconds=0.6)
REQUESTS = [
    Request("a", "Call the office."),
    Request("b", "Red lamp.", seed=5),
    Request("c", "We meet Alice.", seed=1),
]
GUIDED = Strategy(
    "partial-prm",
    candidates=3,
    beams=2,
    expansions=2,
    step_codes=3,
    prefix_seconds=0.12,
    guide="loud",
)


@pytest.fixture(scope="module")
def synthesizer(mini_tokenizer):
    model = speaking_llama(vocabulary_of(mini_tokenizer), end_logit=6.0)
    return Synthesizer(model, mini_tokenizer, FakeCodec(), slots=16)


def loud(wave, request):
    """Mean power: of a prefix as of the whole, so that the best beam is known from the codes."""
    return float(np.mean(np.square(wave, dtype=np.float64)))


def length(wave, request):
    return float(len(wave))


def run(synthesizer, requests, strategy, verifiers=None, rule=None, sampling=SAMPLING):
    found = search(synthesizer, requests, strategy, verifiers or {"loud": loud}, sampling, rule)
    return {chosen.request.id: chosen for chosen in found}


def plain(synthesizer, request, sampling=SAMPLING):
    return next(iter(synthesizer.speak([request], sampling)))


def codes(chosen):
    return chosen.spoken.generated.codes.tolist()


@pytest.mark.slow
def test_best_of_n_is_the_best_of_n_plain_samples_of_the_candidates_seeds(synthesizer):
    for name, chosen in run(synthesizer, REQUESTS, Strategy(candidates=6)).items():
        request = next(one for one in REQUESTS if one.id == name)
        samples = [
            plain(synthesizer, replace(request, seed=candidate_seed(request.seed, index)))
            for index in range(6)
        ]
        scores = [loud(one.wave, request) for one in samples]
        assert (
            chosen.index == int(np.argmax(scores))
            and chosen.seeds[chosen.index] == chosen.spoken.request.seed
        )
        np.testing.assert_allclose(chosen.scores[:, 0], scores)
        np.testing.assert_array_equal(chosen.spoken.wave, samples[chosen.index].wave)
        assert chosen.tokens == tuple(one.generated.steps for one in samples)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best-of-n", "prm", "partial-prm"])
def test_one_beam_and_one_candidate_is_plain_sampling(synthesizer, name):
    voice = Voice("Hello there.", np.arange(20, dtype=np.int32))
    requests = [*REQUESTS, Request("v", "At seven.", voice=voice, seed=3)]
    strategy = Strategy(name, 1, 1, 1, step_codes=4, prefix_seconds=0.16, guide="loud")
    for request in requests:
        chosen, expected = (
            run(synthesizer, requests, strategy)[request.id],
            plain(synthesizer, request),
        )
        assert codes(chosen) == expected.generated.codes.tolist()
        assert chosen.spoken.generated.log_prob == pytest.approx(
            expected.generated.log_prob, abs=1e-3
        )
        np.testing.assert_array_equal(chosen.spoken.wave, expected.wave)


@pytest.mark.parametrize("name", ["best-of-n", "prm", "partial-prm"])
def test_utterance_that_ends_at_once_is_empty_and_not_the_voice_prompt(mini_tokenizer, name):
    ends = Synthesizer(
        speaking_llama(vocabulary_of(mini_tokenizer), 100.0), mini_tokenizer, FakeCodec(), slots=16
    )
    request = Request("v", "At seven.", voice=Voice("Hello there.", np.arange(20, dtype=np.int32)))
    strategy = Strategy(name, 2, 2, 2, step_codes=4, prefix_seconds=0.16, guide="length")
    chosen = run(
        ends, [request], strategy, {"length": length}, sampling=replace(SAMPLING, min_codes=0)
    )["v"]
    assert (
        codes(chosen) == [] and len(chosen.spoken.wave) == 0 and set(chosen.scores[:, 0]) == {0.0}
    )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [Strategy(candidates=5), GUIDED, replace(GUIDED, name="prm")])
def test_same_seed_same_choice_whatever_runs_beside_it(synthesizer, strategy):
    together = run(synthesizer, REQUESTS, strategy)
    for request in REQUESTS:
        alone = run(synthesizer, [request], strategy)[request.id]
        assert codes(alone) == codes(together[request.id])
        np.testing.assert_allclose(alone.scores, together[request.id].scores)
    other = run(synthesizer, [replace(REQUESTS[0], seed=77)], strategy)["a"]
    assert codes(other) != codes(together["a"])


@pytest.mark.slow
def test_guided_beams_keep_the_prefixes_that_the_verifier_likes_best(synthesizer):
    """One step by hand: 6 codes by each of 4 streams, the 2 loudest continued by streams 0 and
    1.
    """
    strategy = Strategy("partial-prm", 2, 2, 2, step_codes=6, prefix_seconds=0.12, guide="loud")
    sampling = replace(SAMPLING, min_codes=8)  # nobody ends in the prefix
    request = REQUESTS[0]
    chosen = run(synthesizer, [request], strategy, sampling=sampling)["a"]
    starts = [
        plain(
            synthesizer, replace(request, seed=candidate_seed(request.seed, stream)), sampling
        ).generated.codes[:6]
        for stream in range(4)
    ]
    powers = [loud(synthesizer.codec.decode([start])[0], request) for start in starts]
    best = np.argsort(powers)[::-1][:2]
    assert codes(chosen)[:6] == starts[best[chosen.index]].tolist()
    assert chosen.scores.shape == (2, 1) and chosen.cost.candidates == 2
    assert chosen.cost.scored == 4 + 2  # prefixes, then whole utterances


@pytest.mark.slow
def test_more_search_finds_more_of_what_the_verifier_likes(synthesizer):
    def mean(strategy):
        return np.mean(
            [loud(c.spoken.wave, c.request) for c in run(synthesizer, many, strategy).values()]
        )

    many = [Request(f"r{i}", "Please bring four apples.", seed=i) for i in range(12)]
    scores = [mean(Strategy(candidates=n)) for n in (1, 4, 12)]
    assert scores[0] < scores[1] < scores[2]
    assert mean(replace(GUIDED, name="prm", beams=4, expansions=4)) > scores[0]


def test_forked_rows_go_on_as_if_their_prefix_had_been_computed_anew():
    model = toy_llama(end_logit=-100.0)
    prompts = [np.arange(9, dtype=np.int32), np.arange(5, 25, dtype=np.int32)]
    seeds = [[1, 2, 3], [4, 5, 6]]
    children = [(0, 1), (1, 1), (2, 0), (3, 5), (4, 3), (5, 5)]  # two requests of three rows
    with generating(model):
        branches = Branches(model, prompts, [20, 20], seeds, Sampling(), ANSWERS)
        branches.start(3)
        assert branches.advance(7) == []
        before = branches.partial()
        branches.fork(children)
        finished = dict(branches.advance())
    assert branches.prefilled == sum(len(prompt) - 1 for prompt in prompts)  # once a request
    for row, parent in children:
        prefix = before[parent]
        assert finished[row].ids[:7].tolist() == prefix.tolist()
        # The same tokens from the ids alone: the parent's prefix becomes the prompt, the child's
        # noise is set by hand.
        request, stream = divmod(row, 3)
        ids = recomputed(model, prompts[request], prefix, seeds[request][stream], 20)
        assert finished[row].ids.tolist() == ids
    assert branches.generated.tolist() == [3 * 20, 3 * 20]
    assert branches.attended.tolist() == [3 * attended_keys(len(prompt), 20) for prompt in prompts]


def recomputed(model, prompt, prefix, seed, limit):
    """Every step by a full forward pass over all ids so far, with the numbers of the child's own
    stream.
    """
    from llasa_core.synthesis.sampling import draw, row_noise

    ids, noise = [*prompt.tolist(), *prefix.tolist()], row_noise(seed, prompt, limit)
    head = ANSWERS.head
    while len(ids) < len(prompt) + limit:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1, head]
        allowed = torch.full_like(logits, -torch.inf)
        for part in (
            slice(ANSWERS.first - head.start, ANSWERS.stop - head.start),
            ANSWERS.end - head.start,
        ):
            allowed[:, part] = logits[:, part]
        number = torch.tensor([noise[len(ids) - len(prompt)]], dtype=torch.float64)
        ids.append(int(draw(allowed, number, Sampling())) + head.start)
    return ids[len(prompt) :]


def test_fork_without_change_leaves_every_row_as_it_is_to_the_bit():
    model = toy_llama(end_logit=-100.0)
    prompt = np.arange(9, dtype=np.int32)
    with generating(model):
        results = []
        for forked in (False, True):
            branches = Branches(model, [prompt], [20], [[1, 2]], Sampling(), ANSWERS)
            branches.start(2)
            branches.advance(5)
            if forked:  # there and back again
                branches.fork([(1, 0), (0, 1)])
                branches.fork([(0, 1), (1, 0)])
            results.append(dict(branches.advance()))
    for row in (0, 1):
        assert results[0][row].ids.tolist() == results[1][row].ids.tolist()
        assert results[0][row].log_prob == results[1][row].log_prob


@pytest.mark.slow
def test_samples_of_one_text_share_its_prompt():
    """Also those that start later, when the first ones have ended."""
    from llasa_core.synthesis.decoding import Loop

    model, prompt = toy_llama(end_logit=1.0), np.arange(20, dtype=np.int32)
    limits = [15 - i % 4 for i in range(12)]  # some row of the text always runs
    with generating(model):
        loop = Loop(model, [prompt] * 12, limits, list(range(12)), Sampling(), ANSWERS, 4, None)
        rows = dict(loop.run())
    assert loop.prefilled == 19
    alone = [
        next(decode(model, [prompt], [limits[seed]], [seed], Sampling(), ANSWERS))[1]
        for seed in range(12)
    ]
    assert [rows[i].ids.tolist() for i in range(12)] == [row.ids.tolist() for row in alone]


@pytest.mark.slow
def test_partial_audio_with_enough_context_is_that_of_the_whole_prefix(synthesizer):
    whole = run(synthesizer, REQUESTS, replace(GUIDED, name="prm"))
    heard = []

    def listening(wave, request):
        heard.append(len(wave))
        return loud(wave, request)

    covered = run(
        synthesizer, REQUESTS, replace(GUIDED, name="prm", context_codes=99), {"loud": listening}
    )
    assert {name: codes(chosen) for name, chosen in covered.items()} == {
        n: codes(c) for n, c in whole.items()
    }
    narrow = run(synthesizer, REQUESTS, replace(GUIDED, name="prm", context_codes=1))
    decoded = [sum(c.cost.audio_seconds for c in found.values()) for found in (whole, narrow)]
    assert decoded[1] < decoded[0] and max(heard) > 6 * 320


def test_costs_of_requests_add_up_to_the_work_that_was_done(synthesizer):
    for strategy in (Strategy(candidates=4), GUIDED):
        found = run(synthesizer, REQUESTS, strategy)
        costs = [chosen.cost for chosen in found.values()]
        total = Cost.total(costs)
        assert set(total.verifier_cpu_by) == {"loud"}
        for field in fields(Cost):
            parts = [getattr(cost, field.name) for cost in costs]
            if field.name == "verifier_cpu_by":
                parts = [part["loud"] for part in parts]
                assert total.verifier_cpu_by["loud"] == pytest.approx(total.verifier_cpu_seconds)
                assert total.verifier_cpu_by["loud"] == pytest.approx(sum(parts))
            else:
                assert getattr(total, field.name) == pytest.approx(sum(parts))
        assert total.candidates == sum(len(chosen.tokens) for chosen in found.values())
        assert 0 < total.verifier_seconds <= total.wall_seconds
        assert min(total.cpu_seconds, total.audio_seconds) > 0
        prompts, _ = synthesizer.prepare(REQUESTS, SAMPLING)
        assert total.prompt_tokens == sum(len(prompt) for prompt in prompts)
        if strategy.name == "best-of-n":
            assert total.generated_tokens == sum(sum(chosen.tokens) for chosen in found.values())
            assert total.scored == 12
        else:  # pruned prefixes were paid for as well
            assert total.generated_tokens > max(sum(chosen.tokens) for chosen in found.values())


def test_generation_costs_a_third_of_training_where_all_ids_may_be_answered():
    config = model_config("mini", 6000)
    flops = generation_flops(config, Answers(first=0, stop=5999, end=5999))
    length = 200
    drawn = flops(0, length, attended_keys(1, length))
    assert drawn == pytest.approx(length * flops_per_token(config, length) / 3, rel=0.01)
    assert flops(length, 0, 0) < flops(
        0, length, attended_keys(1, length)
    )  # a prompt needs no head


def test_rules_order_the_scores_or_add_them():
    scores, names = np.array([[-0.5, 0.9], [0.0, 0.1], [0.0, 0.3], [0.0, 0.3]]), ("words", "voice")
    assert Rule("first").best(scores, names) == 2
    assert Rule("sum").best(scores, names) == 0
    assert Rule("sum", {"voice": 0.0}).best(scores, names) == 1
    assert Rule("sum", {"voice": 0.1}).best(scores, names) == 2


def test_searched_speech_is_not_scored_by_its_own_verifier(synthesizer, tmp_path):
    verifiers = {"words": WordsVerifier(judges.load_transcriber("fake"))}
    path = batch.search_manifest(
        synthesizer, REQUESTS[:1], tmp_path / "found", Strategy(candidates=2), verifiers, SAMPLING
    )
    with pytest.raises(InputError, match="fake chose 'a' as a verifier of the search"):
        evaluate_manifest(path, tmp_path / "scores", Judges(judges.load_transcriber("fake")))
    rows, _ = evaluate_manifest(
        path, tmp_path / "scores", Judges(judges.load_transcriber("fake-2"))
    )
    assert rows[0]["id"] == "a"


@pytest.mark.slow
def test_search_and_evaluate_with_their_defaults_use_different_judges(
    synthesizer, tmp_path, monkeypatch
):
    """`llasa search --strategy partial-prm --voice ...`, then `llasa evaluate`: no verifier scores
    what it chose.
    """
    loaded = []

    def loader(kind, fake):
        def load(name, **options):
            loaded.append((kind, name))
            judge = fake()
            judge.name = name
            return judge

        return load

    monkeypatch.setattr(judges, "load_transcriber", loader("words", FakeTranscriber))
    monkeypatch.setattr(judges, "load_speaker_embedder", loader("voice", FakeSpeakerEmbedder))
    monkeypatch.setattr(judges, "load_quality_predictor", loader("quality", FakeQualityPredictor))
    synthesizer.model.save_pretrained(tmp_path / "model")
    synthesizer.tokenizer.save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "me.wav", fake_speech("what I say in it"), 16_000)
    ask = [
        "search",
        "--model",
        str(tmp_path / "model"),
        "--codec",
        "fake",
        "--max-seconds",
        "0.4",
        "Red lamp.",
    ]
    voice = ["--voice", str(tmp_path / "me.wav"), "--voice-text", "What I say in it."]
    small = ["--candidates", "2", "--beams", "1", "--expansions", "2", "--step-codes", "10"]
    out = tmp_path / "searched"
    assert cli.main([*ask, "--strategy", "partial-prm", *voice, *small, "-o", str(out)]) == 0
    assert loaded == [("words", "moonshine-tiny.en"), ("voice", "resemblyzer")]
    soundfile.write(tmp_path / "again.wav", fake_speech("what I say again"), 16_000)
    originals = tmp_path / "originals.jsonl"
    originals.write_text(
        '{"id": "me", "audio": "again.wav", "text": "What I say again.", "speaker": ""}\n'
    )
    score = [
        "evaluate",
        str(out / "manifest.jsonl"),
        str(tmp_path / "scores"),
        "--references",
        str(originals),
    ]
    assert cli.main(score) == 0
    assert not set(loaded[:2]) & set(loaded[2:]) and len(loaded) == 5
    loaded.clear()
    assert (
        cli.main([*ask, *small[:2], "-o", str(tmp_path / "words")]) == 0
    )  # best of N: by words alone
    assert loaded == [("words", "moonshine-tiny.en")]


def test_language_reaches_the_words_verifier_and_the_judge(synthesizer, tmp_path):
    class Hears:
        name = version = "ears"

        def transcribe(self, waves, sample_rate, language="en"):
            if language == "fr":
                raise InputError("ears: no French")
            return ["今天天气不好"] * len(waves)

    words = WordsVerifier(Hears())
    texts = {
        language: Request(language, "今天天气很好", language=language) for language in ("en", "zh")
    }
    assert words(np.zeros(9), texts["en"]) == -1 and words(
        np.zeros(9), texts["zh"]
    ) == pytest.approx(-1 / 6)
    words.check(texts.values())
    for wrong, message in (
        (replace(texts["zh"], language="fr"), "no French"),
        (Request("x", "(laughs)"), "empty after"),
    ):
        with pytest.raises(InputError, match=message):
            words.check([wrong])
    arguments = tmp_path, Strategy(candidates=2), {"words": words}, SAMPLING
    path = batch.search_manifest(synthesizer, [replace(texts["zh"], id="a")], *arguments)
    line = json.loads(path.read_text())
    assert line["language"] == "zh" and line["scores"]["words"] == pytest.approx([-1 / 6] * 2)
    rows, _ = evaluate_manifest(path, tmp_path / "scores", Judges(judges.load_transcriber("fake")))
    assert (rows[0]["language"], rows[0]["words"]) == ("zh", 6)
    done = []
    batch.search_manifest(
        synthesizer, [replace(texts["en"], id="a")], *arguments, progress=done.append
    )
    assert json.loads(path.read_text())["scores"]["words"] == [-1, -1] and done == [
        1
    ]  # searched again


@pytest.mark.parametrize("strategy", [Strategy(candidates=3), GUIDED])
def test_killed_search_goes_on_and_ends_with_the_same_manifest(synthesizer, tmp_path, strategy):
    def told(out):
        lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "cost"} for line in lines]

    def killed(finished):
        raise KeyboardInterrupt

    arguments = (strategy, {"loud": loud}, SAMPLING)
    batch.search_manifest(synthesizer, REQUESTS, tmp_path / "whole", *arguments)
    with pytest.raises(KeyboardInterrupt):
        batch.search_manifest(
            synthesizer, REQUESTS, tmp_path / "killed", *arguments, progress=killed
        )
    assert not (tmp_path / "killed" / "manifest.jsonl").exists()
    with (tmp_path / "killed" / "finished.jsonl").open("a") as journal:
        journal.write('{"id": "b", "torn')
    done = []
    batch.search_manifest(
        synthesizer, REQUESTS, tmp_path / "killed", *arguments, progress=done.append
    )
    assert done == [1, 1, 1]  # one was there
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    for wav in (tmp_path / "whole" / "wavs").iterdir():
        assert wav.read_bytes() == (tmp_path / "killed" / "wavs" / wav.name).read_bytes()
    report = json.loads((tmp_path / "whole" / "search.json").read_text())
    assert report["verifiers"] == {"loud": "loud"} and report["cost"]["candidates"] >= 3
    with pytest.raises(InputError, match="made with temperature"):
        batch.search_manifest(
            synthesizer,
            REQUESTS,
            tmp_path / "whole",
            strategy,
            {"loud": loud},
            replace(SAMPLING, temperature=0.5),
        )


def test_long_text_is_searched_in_pieces_and_joined(synthesizer, tmp_path):
    text = (
        "Call the office at seven, please. The red lamp stands in the hall. We meet Alice at the"
        " station."
    )
    path = batch.search_manifest(
        synthesizer,
        [Request("long", text), Request("short", "Red lamp.")],
        tmp_path,
        Strategy(candidates=2),
        {"length": length},
        SAMPLING,
        chunk_characters=40,
    )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines[0]["chosen"]) == 3 and lines[1]["chosen"] in (0, 1)
    assert lines[0]["text"] == text and lines[0]["candidates"] == 6
    assert lines[0]["seconds"] == pytest.approx(
        lines[0]["codes"] * 0.02 + 2 * batch.PAUSE_SECONDS, abs=1e-3
    )


def test_chunks_follow_the_papers_lengths_and_prefer_punctuation():
    text = (
        "One two three four. Five six seven eight nine ten, eleven twelve thirteen fourteen fifteen"
        " sixteen. End."
    )
    assert clauses(text, 200) == [text]
    assert clauses("short", 100) == ["short"]
    parts = clauses(text, 60)
    assert " ".join(parts) == text and parts[0].endswith(",")
    assert len(clauses("word " * 50, 100)) == 3
    assert "".join(clauses("今天天气很好，我们去公园散步。", 8)) == "今天天气很好，我们去公园散步。"
    assert clauses("今天天气很好，我们去公园散步。", 8)[0] == "今天天气很好，"


def test_voice_verifier_wants_the_voice_of_the_requests_speaker():
    embedder = judges.load_speaker_embedder("fake")
    waves = {name: fake_speech("hello there", number) for number, name in enumerate(("ava", "ben"))}
    voices = {name: embedder.embed([wave], 16_000)[0] for name, wave in waves.items()}
    verifier = VoiceVerifier(embedder, voices)
    own, other = (
        verifier(waves["ava"], Request("x", "hello there", speaker=name)) for name in ("ava", "ben")
    )
    assert own > other + 0.2 and verifier.judge == "fake"
    for_all = VoiceVerifier(embedder, {None: voices["ben"]})
    assert for_all(waves["ben"], REQUESTS[0]) == pytest.approx(1.0)
    untagged = Request("x", "hello there", reference_speaker="ava")
    assert verifier(waves["ava"], untagged) == own
    with pytest.raises(InputError, match="no recording of voice 'carl', there are ava, ben"):
        verifier(waves["ava"], Request("x", "hello", speaker="carl"))
    words = WordsVerifier(judges.load_transcriber("fake"))
    assert words(fake_speech("Hello there"), Request("x", "hello there")) == 0
    assert words(fake_speech("Hello"), Request("x", "hello there")) == -0.5


@pytest.mark.parametrize(
    ("strategy", "given", "message"),
    [
        ({"candidates": 0}, {}, "`candidates` is 0, expected a whole number of at least 1"),
        ({"name": "astar"}, {}, "strategy 'astar' is unknown"),
        ({"prefix_seconds": 0.0}, {}, "`prefix_seconds` is 0.0, expected a number above 0"),
        ({}, {"verifiers": {}}, "at least one verifier"),
        ({}, {"rule": Rule("sum", {"other": 1.0})}, "weight for 'other'"),
        ({"name": "prm"}, {}, "guide 'voice', but the verifiers are loud"),
        ({}, {"sampling": Sampling(temperature=0.0)}, "all candidates the same"),
        (
            {},
            {"verifiers": {"broken": lambda wave, request: float("nan")}},
            "verifier broken: scored candidate",
        ),
    ],
)
def test_bad_input_is_refused(synthesizer, strategy, given, message):
    with pytest.raises(InputError, match=message):
        arguments = {"verifiers": {"loud": loud}, "sampling": SAMPLING} | given
        list(search(synthesizer, REQUESTS, Strategy(**({"candidates": 2} | strategy)), **arguments))
