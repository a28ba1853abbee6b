"""Small corpora in the layouts that people bring, one function each: they write a folder and return
what must be read from it.

What is to come of a corpus: rows (id, text, speaker) in the order of its list, reasons of what is
dropped, or the words of the line that refuses it.
"""

import io
import json
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

WORDS = ["a sunny day in May", "she said no, again", "we walk to the river", "two birds sing"]
SPEAKERS = ["anna", "bob", "anna", "bob"]
IDS = ["u1", "u2", "u3", "u4"]


@dataclass
class Expected:
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    refused: str = ""
    source: str = ""  # within the folder
    said: str = ""  # a part of what the reader tells


def sound(name: str) -> np.ndarray:
    """Noise of half a second and of a length that tells a name from others."""
    samples = 8_000 + 16 * (sum(unicodedata.normalize("NFC", name).encode()) % 97)
    generator = np.random.default_rng(samples)
    return (0.1 * generator.standard_normal(samples)).astype(np.float32)


def recording(path: Path, wave: np.ndarray | None = None, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lstrip(".").upper()
    settings = {"format": {"AIF": "AIFF", "OPUS": "OGG"}.get(suffix, suffix), **settings}
    soundfile.write(path, sound(path.stem) if wave is None else wave, 16_000, **settings)
    return path


def recordings(folder: Path, names=IDS, pattern="wavs/{}.wav") -> None:
    for name in names:
        recording(folder / pattern.format(name))


def table(folder: Path, lines, name="metadata.csv", coding="utf-8", end="\n") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes((end.join(lines) + end).encode(coding))


def rows(speakers=("",) * 4, ids=IDS, texts=WORDS) -> list[tuple[str, str, str]]:
    return list(zip(ids, texts, speakers, strict=True))


def three_columns(folder: Path, order: str, delimiter="|", header=(), **settings) -> None:
    values = {"id": IDS, "text": WORDS, "speaker": SPEAKERS}
    columns = [values[name] for name in order.split()]
    lines = [delimiter.join(header)] if header else []
    table(folder, [*lines, *map(delimiter.join, zip(*columns, strict=True))], **settings)


def plain(folder):
    recordings(folder)
    table(folder, [f"{id}|{text}" for id, text in zip(IDS, WORDS, strict=True)])
    return Expected(rows(), said="column 1 is audio, 2 is text")


def text_then_speaker(folder):
    recordings(folder)
    three_columns(folder, "id text speaker")
    return Expected(rows(SPEAKERS), said="2 is text, 3 is speaker")


def speaker_then_text(folder):
    recordings(folder)
    three_columns(folder, "id speaker text")
    return Expected(rows(SPEAKERS), said="2 is speaker, 3 is text")


def ljspeech(folder):
    recordings(folder)
    raw = ["In 1914", 'He said "no"', "Mr. Hall", "2 birds"]
    normal = ["In nineteen fourteen", 'He said "no"', "Mister Hall", "two birds"]
    table(folder, [f"{id}|{a}|{b}" for id, a, b in zip(IDS, raw, normal, strict=True)])
    return Expected(rows(texts=normal), said="2 is raw, 3 is text")


def speaker_numbers(folder):
    recordings(folder)
    numbers = ["0", "11", "0", "11"]
    table(folder, [f"wavs/{i}.wav|{s}|{t}" for i, t, s in rows(numbers)], "filelist.txt")
    return Expected(rows(numbers), said="2 is speaker")


def one_speaker_in_all_rows(folder):
    recordings(folder)
    table(folder, [f"{id}|{text}|anna" for id, text in zip(IDS, WORDS, strict=True)])
    return Expected(rows(["anna"] * 4))


def ambiguous_three(folder):
    recordings(folder)
    texts, others = ["yes", "no", "stop", "go"], ["ja", "nein", "halt", "los"]
    table(folder, [f"{i}|{a}|{b}" for i, a, b in zip(IDS, texts, others, strict=True)])
    return Expected(refused="metadata.csv:1: the roles of its 3 columns are ambiguous")


def three_with_languages(folder):
    recordings(folder)
    table(folder, [f"{id}|{text}|en" for id, text in zip(IDS, WORDS, strict=True)])
    return Expected(refused="metadata.csv:1: the roles of its 3 columns are ambiguous")


def header_id_text(folder):
    recordings(folder)
    table(folder, ["id|text", *(f"{i}|{t}" for i, t in zip(IDS, WORDS, strict=True))])
    return Expected(rows(), said="by its header")


def header_coqui(folder):
    recordings(folder, pattern="clips/{}.wav")
    lines = [f"clips/{i}.wav|{t}|{s}" for i, t, s in rows(SPEAKERS)]
    table(folder, ["audio_file|text|speaker_name", *lines])
    return Expected(
        rows(SPEAKERS), said="by its header, column 1 is audio, 2 is text, 3 is speaker"
    )


def header_of_unknown_names(folder):
    recordings(folder)
    table(folder, ["clip|text", *(f"{i}|{t}" for i, t in zip(IDS, WORDS, strict=True))])
    return Expected(refused="metadata.csv:1: 'clip, text' seems to be a header")


def header_without_text(folder):
    recordings(folder)
    three_columns(folder, "id speaker text", header=("id", "speaker", "words"))
    return Expected(refused="metadata.csv:1: the header 'id, speaker, words' names no text column")


def common_voice(folder):
    recordings(folder, pattern="clips/{}.mp3")
    lines = [f"{s}\t{i}.mp3\t{t}\t2\ten" for i, t, s in rows(SPEAKERS)]
    header = "client_id\tpath\tsentence\tup_votes\tlocale"
    for name, chosen in (("train", lines[:2]), ("dev", lines[2:3]), ("test", lines[3:])):
        table(folder, [header, *chosen], f"{name}.tsv")
    table(folder, [header, *lines], "validated.tsv")
    return Expected(rows(SPEAKERS), said="column 1 is speaker, 2 is audio, 3 is text")


def quoted_csv(folder):
    recordings(folder)
    texts = ['he said "no", twice', "plain words", "two\nlines, one text", 'a "b" c']
    quoted = [
        f'{i},"{t}",{s}'
        for i, t, s in zip(IDS, [t.replace('"', '""') for t in texts], SPEAKERS, strict=True)
    ]
    table(folder, ["id,text,speaker", *quoted])
    return Expected(rows(SPEAKERS, texts=[t.replace("\n", " ") for t in texts]), said="comma")


def quoted_with_bars(folder):
    recordings(folder)
    texts = ['he said "no"', "plain words", "a | in a text", 'a "b" c']
    quoted = [t.replace('"', '""') for t in texts]
    table(folder, [f'"{i}"|"{t}"' for i, t in zip(IDS, quoted, strict=True)])
    return Expected(rows(texts=texts))


def loose_commas(folder):
    recordings(folder)
    table(folder, [f"{i},well, {t.replace(',', '')}" for i, t in zip(IDS, WORDS, strict=True)])
    return Expected(refused="metadata.csv:1: 'u1,well, a sunny day in May', expected texts with")


def uneven_commas(folder):
    recordings(folder)
    table(folder, [f"{i},{t}" for i, t in zip(IDS, WORDS, strict=True)])
    return Expected(refused="metadata.csv:2: 'u2,she said no, again' has 3 columns where most")


def commas(folder):
    recordings(folder, IDS[2:], "{}.wav")
    table(folder, [f"{i},{t}" for i, t in zip(IDS[2:], WORDS[2:], strict=True)], "list.csv")
    return Expected(rows()[2:], said="comma")


def semicolons(folder):
    recordings(folder)
    table(folder, [f"{i};{t}" for i, t in zip(IDS, WORDS, strict=True)])
    return Expected(rows(), said="semicolon")


def tabs(folder):
    recordings(folder, pattern="{}.wav")
    table(folder, [f"{i}\t{t}" for i, t in zip(IDS, WORDS, strict=True)], "line_index.tsv")
    return Expected(rows(), said="tab")


def tab_inside_a_text(folder):
    recordings(folder)
    texts = ["a sunny\tday in May", *WORDS[1:]]
    table(folder, [f"{i}|{t}" for i, t in zip(IDS, texts, strict=True)])
    return Expected(rows())


def byte_order_mark_and_crlf(folder):
    recordings(folder)
    lines = [f"{i}|{t}" for i, t in zip(IDS, WORDS, strict=True)]
    table(folder, lines, coding="utf-8-sig", end="\r\n")
    return Expected(rows())


def utf_16(folder):
    recordings(folder)
    three_columns(folder, "id text speaker", "\t", ("id", "text", "speaker"), coding="utf-16")
    return Expected(rows(SPEAKERS))


def latin_1(folder):
    recordings(folder)
    lines = [f"{i}|{t} caf\u00e9" for i, t in zip(IDS, WORDS, strict=True)]
    table(folder, lines, coding="latin-1")
    return Expected(refused="metadata.csv:1: byte 25 is no UTF-8")


def names_of_files(folder):
    recordings(folder)
    table(folder, [f"{i}.wav|{t}" for i, t in zip(IDS, WORDS, strict=True)])
    return Expected(rows())


def capital_suffix(folder):
    recordings(folder, pattern="wavs/{}.WAV")
    table(folder, [f"{i}|{t}" for i, t in zip(IDS, WORDS, strict=True)])
    return Expected(rows())


def flat_folder(folder):
    recordings(folder, pattern="{}.wav")
    table(folder, [f"wavs/{i}.wav|{t}" for i, t in zip(IDS, WORDS, strict=True)])
    return Expected(rows())


def windows_paths(folder):
    recordings(folder)
    starts = ["wavs\\", "C:\\data\\corpus\\wavs\\", "..\\corpus\\wavs\\", ".\\wavs\\"]
    lines = [f"{a}{i}.wav|{t}" for a, i, t in zip(starts, IDS, WORDS, strict=True)]
    table(folder, lines[:2] + lines[3:])
    return Expected(rows()[:2] + rows()[3:])


def paths_of_another_machine(folder):
    recordings(folder, pattern="wavs/kore/{}.wav")
    table(folder, [f"/corpora/set/wavs/kore/{i}.wav|{t}" for i, t in zip(IDS, WORDS, strict=True)])
    return Expected(rows(ids=[f"kore/{id}" for id in IDS]))


def same_names_of_two_speakers(folder):
    for speaker in ("anna", "bob"):
        recordings(folder, IDS[:2], f"{speaker}/{{}}.wav")
    lines = [f"anna/u1.wav|{WORDS[0]}", f"bob/u1.wav|{WORDS[1]}", f"u2.wav|{WORDS[2]}"]
    table(folder, [*lines, f"carl/u2.wav|{WORDS[3]}"])
    found = [("anna/u1", WORDS[0], ""), ("bob/u1", WORDS[1], "")]
    return Expected(found, {"ambiguous_audio": 1, "missing_audio": 1})


def recordings_of_another_corpus(folder):
    recordings(folder, IDS[:2])
    recordings(folder, IDS, "other/wavs/{}.wav")
    table(folder, [f"wavs/{i}.wav|{t}" for i, t in zip(IDS, WORDS, strict=True)])
    return Expected(rows()[:2], {"missing_audio": 2})


def manifest_beside_another_corpus(folder):
    recordings(folder, IDS[:2])
    recordings(folder, IDS, "other/{}.wav")
    items = [{"id": i, "audio": f"{i}.wav", "text": t} for i, t in zip(IDS, WORDS, strict=True)]
    lines_of(folder / "list.jsonl", items)
    return Expected(rows()[:2], {"missing_audio": 2})


HARD = ["my file (1)", "it's 50%", "a #2 & b", "caf\u00e9", "nin\u0303o", "\u4f60\u597d [x]"]


def hard_names(folder):
    recordings(folder, HARD)
    table(folder, [f"{i}|{t}" for i, t in zip(HARD, [*WORDS, *WORDS[:2]], strict=True)])
    return Expected(rows(("",) * 6, HARD, [*WORDS, *WORDS[:2]]))


def accents_composed_otherwise(folder):
    recordings(folder, ["caf\u00e9", "nin\u0303o"])
    table(folder, [f"cafe\u0301|{WORDS[0]}", f"ni\u00f1o.wav|{WORDS[1]}"])
    return Expected([("cafe\u0301", WORDS[0], ""), ("ni\u00f1o", WORDS[1], "")])


def lines_of(path: Path, items) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def nemo(folder):
    recordings(folder)
    pairs = zip(IDS, WORDS, strict=True)
    items = [{"audio_filepath": f"wavs/{i}.wav", "duration": 0.5, "text": t} for i, t in pairs]
    lines_of(folder / "manifest.json", [*items, {**items[0], "offset": 1.5}])
    return Expected(rows(), {"offset": 1})


def json_array(folder):
    recordings(folder)
    items = [{"id": i, "wav": f"wavs/{i}.wav", "text": t} for i, t in zip(IDS, WORDS, strict=True)]
    (folder / "all.json").write_text(json.dumps(items, indent=2))
    return Expected(rows())


def emilia(folder):
    for id, text, speaker in rows(SPEAKERS):
        recording(folder / f"{id}.mp3")
        facts = {"id": id, "wav": f"x/{id}.mp3", "text": f" {text}", "duration": 0.5}
        facts |= {"speaker": speaker, "language": "en", "dnsmos": 3.2}
        (folder / f"{id}.json").write_text(json.dumps(facts))
    return Expected([(i, f" {t}", s) for i, t, s in rows(SPEAKERS)])


def text_files_beside(folder):
    for id, text, speaker in rows(SPEAKERS):
        recording(folder / speaker / f"{id}.wav")
        (folder / speaker / f"{id}.txt").write_text(text + "\n")
    ids = [f"{s}/{i}" for i, s in zip(IDS, SPEAKERS, strict=True)]
    return Expected(sorted(rows(SPEAKERS, ids)))


def integers(folder):
    recordings(folder)
    items = [
        {"id": n, "audio": f"wavs/{i}.wav", "text": t, "speaker": n % 2}
        for n, (i, t) in enumerate(zip(IDS, WORDS, strict=True))
    ]
    lines_of(folder / "list.jsonl", items)
    return Expected(rows(["0", "1", "0", "1"], ["0", "1", "2", "3"]))


def bad_lines(folder):
    recordings(folder)
    good = [{"id": i, "audio": f"wavs/{i}.wav", "text": t} for i, t in zip(IDS, WORDS, strict=True)]
    bad = [{**good[0], "id": "n", "text": None}, {**good[0], "id": "half \ud800"}]
    bad += [{**good[0], "id": "s", "speaker": "\udfff"}, {**good[0], "id": "l", "language": [1]}]
    bad += [{**good[0], "id": "p", "audio": "x" * 5_000}, {**good[0], "id": ["i"]}]
    bad += [{**good[0], "id": "m", "text": "tab\tand\nline"}]
    lines_of(folder / "train.jsonl", [*bad, *good])
    dropped = {"textless": 1, "bad_id": 2, "bad_speaker": 1, "bad_language": 1, "bad_path": 1}
    return Expected([("m", "tab and line", ""), *rows()], dropped)


def manifest_of_other_keys(folder):
    lines_of(folder / "train.jsonl", [{"id": "a", "audio": "a.wav", "words": "some"}])
    return Expected(refused="train.jsonl:1: no text among the keys 'id, audio, words', expected")


def moved_manifest(folder):
    recordings(folder)
    starts = ["wavs\\", "/corpora/corpus/wavs/", "", "./"]
    items = [
        {"id": i, "audio": f"{a}{i}.wav", "text": t}
        for a, i, t in zip(starts, IDS, WORDS, strict=True)
    ]
    lines_of(folder / "list.jsonl", items)
    return Expected(rows())


def other_formats(folder):
    for id, suffix in zip(IDS, ("ogg", "aiff", "m4a", "wma"), strict=True):
        if suffix in ("m4a", "wma"):
            (folder / f"wavs/{id}.{suffix}").write_bytes(b"\0\0\0 ftypM4A 1234")
        else:
            recording(folder / f"wavs/{id}.{suffix}")
    table(folder, [f"{i}|{t}" for i, t in zip(IDS, WORDS, strict=True)])
    return Expected(rows()[:2], {"needs_ffmpeg": 2})


def tree_of_other_formats(folder):
    chapter = folder / "train-clean-100/19/198"
    recording(chapter / "19_198_1.flac")
    (chapter / "19_198_2.m4a").write_bytes(b"\0\0\0 ftypM4A 1234")
    for number in (1, 2):
        (chapter / f"19_198_{number}.normalized.txt").write_text(WORDS[number])
    return Expected([("19_198_1", WORDS[1], "19")], {"needs_ffmpeg": 1})


def tar_is_for_encode(folder):
    folder.mkdir()
    (folder / "s.tar").write_bytes(b"")
    return Expected(refused="s.tar: expected a list; `llasa encode` reads tar", source="s.tar")


def broken_recordings(folder):
    waves = {"whole": sound("whole"), "loud": sound("loud") * 32_768, "fast": sound("fast")}
    waves |= {"quiet": np.concatenate([sound("a"), np.zeros(240_000), sound("b")])}
    for name, wave in waves.items():
        recording(folder / f"wavs/{name}.wav", wave.astype(np.float32), subtype="FLOAT")
    whole = io.BytesIO()
    soundfile.write(whole, np.tile(sound("cut"), 5), 16_000, format="MP3")
    (folder / "wavs/cut.mp3").write_bytes(whole.getvalue()[: len(whole.getvalue()) * 42 // 100])
    texts = dict.fromkeys([*waves, "cut"], "some words") | {"fast": "many words " * 10}
    table(folder, [f"{name}|{text}" for name, text in texts.items()])
    reasons = ["integer_scale", "text_too_long", "long_silence", "cut_off"]
    return Expected([("whole", "some words", "")], dict.fromkeys(reasons, 1))


def two_lists(folder):
    recordings(folder)
    for name in ("first.csv", "second.csv"):
        table(folder, [f"{i}|{t}" for i, t in zip(IDS, WORDS, strict=True)], name)
    return Expected(refused="lists first.csv, second.csv, expected one")


def list_by_name(folder):
    two_lists(folder)
    return Expected(rows(), source="second.csv")


LAYOUTS = [
    plain,
    text_then_speaker,
    speaker_then_text,
    ljspeech,
    speaker_numbers,
    one_speaker_in_all_rows,
    ambiguous_three,
    three_with_languages,
    header_id_text,
    header_coqui,
    header_of_unknown_names,
    header_without_text,
    common_voice,
    quoted_csv,
    quoted_with_bars,
    loose_commas,
    uneven_commas,
    commas,
    semicolons,
    tabs,
    tab_inside_a_text,
    byte_order_mark_and_crlf,
    utf_16,
    latin_1,
    names_of_files,
    capital_suffix,
    flat_folder,
    windows_paths,
    paths_of_another_machine,
    same_names_of_two_speakers,
    recordings_of_another_corpus,
    manifest_beside_another_corpus,
    hard_names,
    accents_composed_otherwise,
    nemo,
    json_array,
    emilia,
    text_files_beside,
    integers,
    bad_lines,
    manifest_of_other_keys,
    moved_manifest,
    other_formats,
    tree_of_other_formats,
    tar_is_for_encode,
    broken_recordings,
    two_lists,
    list_by_name,
]

JSON_LAYOUTS = [nemo, json_array, integers, bad_lines, moved_manifest]  # also read by encode
