"""`llasa data`: what the report counts, worked out by hand, and what each filter leaves out."""

import json

import numpy as np
import pytest

from llasa_core import cli
from llasa_core.data.dataset import finish, read_codes, write_part
from llasa_core.data.filter import Filters, filter_codes
from llasa_core.data.report import data_report
from llasa_core.errors import InputError

SETTINGS = {"codec": "fake", "codebook_size": 8, "frame_rate": 50.0}


def row(id, codes, text="x" * 12, speaker="ann", language="en", seconds=None):
    found = {
        "id": id,
        "text": text,
        "codes": np.array(codes, np.uint16),
        "speaker": speaker,
        "language": language,
    }
    return found | {"seconds": len(codes) / 50 if seconds is None else seconds}


def dataset(folder, *parts):
    folder.mkdir()
    for number, rows in enumerate(parts):
        write_part(
            folder / f"part-{number:05d}.parquet",
            rows,
            {**SETTINGS, "dropped": [["gone", "silent"]] if not number else []},
        )
    finish(folder, len(parts), SETTINGS)
    return folder


@pytest.fixture
def codes(tmp_path):
    """Thirty utterances of one second (codes 0 and 1, each half), and some that are odd."""
    plain = [
        row(
            f"u{n:02d}",
            np.random.default_rng(n).permutation([0, 1] * 25),
            f"{'x' * (9 + n % 5)}{n:02d}",
        )
        for n in range(30)
    ]
    odd = [
        row("talkative", [0] * 25 + [1] * 25, "y" * 400),
        row("german", [1, 0] * 50, "z" * 30, "ute", "de"),
    ]
    odd += [
        row("u03", plain[5]["codes"], "same codes"),
        row("again", [0, 0, 1, 1] * 12, plain[7]["text"]),
    ]
    odd += [row("longer", [0, 1] * 25, seconds=2.0, text="w" * 24)]
    return dataset(tmp_path / "codes", plain, odd)


@pytest.mark.slow
def test_report_counts_what_is_there(codes, tmp_path):
    report = data_report(codes, tmp_path / "report")
    assert report["utterances"] == 35 and report["hours"] == pytest.approx(
        (30 + 1 + 2 + 1 + 0.96 + 2) / 3600
    )
    assert report["by_language"]["de"] == {"utterances": 1, "hours": round(2 / 3600, 4)}
    assert report["by_speaker"]["ann"]["utterances"] == 34 and report["speakers"] == 2
    assert report["codes"]["in_use"] == 2 and report["codes"]["entropy_bits"] == pytest.approx(1.0)
    assert (
        report["codes"]["total"] == 30 * 50 + 50 + 100 + 50 + 48 + 50
        and report["codes"]["perplexity"] == 2.0
    )
    assert report["rate_outliers"]["farthest"][0] == {
        "id": "talkative",
        "characters_per_second": 400.0,
    }
    assert report["seconds_not_those_of_the_codes"] == {"count": 1, "first": ["longer"]}
    same = report["duplicates"]
    assert same["ids"] == {"count": 1, "first": [["u03", "u03"]]} and same["codes"] == {
        "count": 1,
        "first": [["u05", "u03"]],
    }
    assert same["texts_of_one_speaker"] == {"count": 1, "first": [["u07", "again"]]}
    assert report["longest_run_of_one_code_seconds"]["max"] == 0.5 and report[
        "dropped_when_made"
    ] == {"silent": 1}
    assert json.loads((tmp_path / "report/report.json").read_text()) == report
    page = (tmp_path / "report/index.html").read_text()
    assert "talkative" in page and all(
        (tmp_path / f"report/{name}.png").stat().st_size > 5000
        for name in ("hours", "lengths", "codes", "rates")
    )
    assert "http:" not in page and "https:" not in page


def test_each_filter_leaves_out_what_it_should_and_counts_it(codes, tmp_path):
    filters = Filters(0.97, 1.5, 10.0, 100.0)
    meta = filter_codes(codes, tmp_path / "kept", filters)
    few = sum(len(f"{'x' * (9 + n % 5)}{n:02d}") < 10 for n in range(30))
    assert (
        meta["dropped"] == {"min_seconds": 1, "max_seconds": 2, "max_characters_per_second": 1}
        and few == 0
    )
    assert meta["utterances"] == 31 and meta["filters"]["max_seconds"] == 1.5
    kept, before = read_codes(tmp_path / "kept"), read_codes(codes)
    np.testing.assert_array_equal(kept[30]["codes"], before[32]["codes"])
    listed = [
        json.loads(line) for line in (tmp_path / "kept/dropped.jsonl").read_text().splitlines()
    ]
    assert {line["id"]: line["reason"] for line in listed}[
        "talkative"
    ] == "max_characters_per_second"
    assert filter_codes(codes, tmp_path / "kept", filters) == meta
    with pytest.raises(InputError, match="by other filters"):
        filter_codes(codes, tmp_path / "kept", Filters(0.5))
    assert filter_codes(codes, tmp_path / "de", Filters(languages=("de",)))["utterances"] == 1


def test_scores_filter_by_mos_and_wer_and_their_lack_is_a_reason(codes, tmp_path):
    rows = [
        {"id": f"u{n:02d}", "quality": 2.0 + n / 10, "errors": n % 4, "words": 10}
        for n in range(29)
    ]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    meta = filter_codes(
        codes, tmp_path / "kept", Filters(min_mos=3.05, max_wer=0.2), tmp_path / "scores.jsonl"
    )
    wrong = sum(n % 4 == 3 for n in range(11, 29))
    assert meta["dropped"] == {"min_mos": 12, "max_wer": wrong, "no_score": 5}  # u03 is there twice
    with pytest.raises(InputError, match="max_wer needs --scores"):
        filter_codes(codes, tmp_path / "none", Filters(max_wer=0.1))
    (tmp_path / "scores.jsonl").write_text('{"id": "u00", "errors": 1, "words": 0}\n')
    with pytest.raises(InputError, match=r"scores\.jsonl: row 1: expected id, errors, words"):
        filter_codes(codes, tmp_path / "none", Filters(max_wer=0.1), tmp_path / "scores.jsonl")


@pytest.mark.slow
def test_commands_print_where_the_result_is(codes, tmp_path, capsys):
    assert cli.main(["data", "report", str(codes), "-o", str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out.strip().endswith("page/index.html")
    assert (
        cli.main(
            [
                "data",
                "filter",
                str(codes),
                str(tmp_path / "kept"),
                "--language",
                "en",
                "--max-seconds",
                "1.5",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["dropped"] == {"max_seconds": 2}
    assert cli.main(["data", "filter", str(codes), str(tmp_path / "none")]) == 2
    assert "no filter is set" in capsys.readouterr().err
    assert (
        cli.main(["data", "filter", str(codes), str(tmp_path / "none"), "--min-seconds", "99"]) == 2
    )
    assert "no utterance is left (min_seconds 35, first " in capsys.readouterr().err


def test_report_on_a_full_disk_names_the_file(codes, small_disk):
    with pytest.raises(InputError, match=r"report/hours\.png: no space left on the disk"):
        data_report(codes, small_disk("12k") / "report")


def test_codes_cache_on_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, small_disk):
    rows = [row(f"u{number}", [number % 8] * 4000) for number in range(20)]
    codes, cache = dataset(tmp_path / "many", rows), small_disk("20k") / "cache"
    with pytest.raises(InputError, match=r"cache/\w+\.arrow: no space left on the disk"):
        read_codes(codes, cache=cache)
    assert [path.name for path in cache.iterdir()] == ["unpack.lock"]
    small_disk("10m")
    assert len(read_codes(codes, cache=cache)) == 20
