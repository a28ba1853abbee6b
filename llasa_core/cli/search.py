"""The command `llasa search`."""

from argparse import Namespace

from llasa_core.cli.common import progress_bar, require
from llasa_core.cli.synthesis import speech
from llasa_core.errors import InputError


def search(options: Namespace) -> None:
    """Print the manifest's path; cost, settings and verifiers of the search stand beside it in
    search.json.
    """
    from llasa_core import judges
    from llasa_core.audio import load_audio
    from llasa_core.evaluation.scoring import embed_references
    from llasa_core.search.batch import pieces_of, search_manifest
    from llasa_core.search.strategy import Rule, Strategy
    from llasa_core.search.verifiers import VoiceVerifier, WordsVerifier

    guided = options.strategy != "best-of-n"
    by_voice = guided and options.guide == "voice"
    asr, speaker = (
        options.verifier_asr,
        options.verifier_speaker or ("resemblyzer" if by_voice else "none"),
    )
    if asr == speaker == "none":
        raise InputError(
            "--verifier-asr and --verifier-speaker are both none, expected at least one verifier"
        )
    if speaker != "none" and (options.voice is None) == (options.voices is None):
        what = (
            f"--strategy {options.strategy} is guided by the voice"
            if by_voice
            else "--verifier-speaker"
        )
        raise InputError(
            f"{what}, compared with recordings: it needs --voice or --voices, one of the two"
        )
    if guided and (speaker if options.guide == "voice" else asr) == "none":
        raise InputError(
            f"--strategy {options.strategy} is guided by the {options.guide}: it needs that"
            " verifier"
        )
    strategy = Strategy(
        options.strategy,
        options.candidates,
        options.beams,
        options.expansions,
        options.step_codes,
        options.prefix_seconds,
        options.context_codes,
        options.guide,
    )
    rule = Rule(options.rule)
    if options.voices is not None:
        require(options.voices)
    synthesizer, requests, sampling = speech(options)
    rate, verifiers = synthesizer.codec.sample_rate, {}
    if asr != "none":
        verifiers["words"] = WordsVerifier(judges.load_transcriber(asr), rate)
        verifiers["words"].check(requests)
    if speaker != "none":
        embedder = judges.load_speaker_embedder(speaker)
        if options.voices is not None:
            verifiers["voice"] = VoiceVerifier(
                embedder, embed_references(options.voices, embedder).centroids(), rate
            )
        else:
            verifiers["voice"] = VoiceVerifier.of_recording(
                embedder, load_audio(options.voice, rate), rate
            )
    total = sum(len(pieces_of(request, options.chunk_characters)) for request in requests)
    with progress_bar(total, "text") as bar:
        print(
            search_manifest(
                synthesizer,
                requests,
                options.out,
                strategy,
                verifiers,
                sampling,
                rule,
                options.chunk_characters,
                bar.update,
            )
        )
