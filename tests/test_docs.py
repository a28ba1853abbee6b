"""The front page and the pages of docs/ keep their promises: short, links that lead somewhere,
commands that parse, numbers that results/ holds.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
from torture import markdown

from llasa_core.cli import build_parser
from llasa_core.evaluation.summary import summarise
from llasa_core.experiments.config import repository_root
from llasa_core.experiments.results import read_result, read_results, speech_folders
from llasa_core.experiments.tables import sampled_again

ROOT = repository_root(Path(__file__).parent)
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "benchmarks/README.md",
        ROOT / "results/README.md",
    ]
)
page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(text):
    """The lines of fenced code blocks, continued lines joined."""
    found = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "".join(found).replace("\\\n", " ").splitlines()


def headings(path):
    """The anchors that a Markdown page offers, as GitHub writes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_front_page_fits_on_a_few_screens():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130 and len(text.split()) <= 900


@page
def test_links_lead_to_files_and_headings_that_are_there(path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        place, _, anchor = target.partition("#")
        if "://" in place:
            continue
        linked = path.parent / place if place else path
        if not linked.exists() or (anchor and anchor not in headings(linked)):
            broken.append(target)
    assert broken == []


@page
def test_llasa_commands_are_accepted_by_the_parser(path):
    parser = build_parser()
    for line in blocks(path.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        if words[:1] != ["llasa"]:
            continue
        end = next((i for i, word in enumerate(words) if word in ("|", ">")), len(words))
        parser.parse_args(words[1:end])


@page
def test_make_targets_that_are_named_exist(path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z]+)", text))
    named |= {line.split()[1] for line in blocks(text) if line.startswith("make ")}
    assert named <= targets


def headline_rows():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    row = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| \[(\d+)\]\((\S+\.jsonl)\) \|$", re.M)
    return row.findall(text)


def test_headline_table_has_rows():
    assert 1 <= len(headline_rows()) <= 6


@pytest.mark.parametrize("row", headline_rows(), ids=lambda row: row[0])
def test_headline_numbers_are_those_of_the_scored_utterances(row):
    _, wer, similarity, n, path = row
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    summary = summarise([json.loads(line) for line in lines])

    def cell(name, factor, decimals):
        value, low, high = (factor * summary[f"{name}{end}"] for end in ("", "_low", "_high"))
        return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"

    assert wer == cell("corpus_wer", 100, 1)
    assert similarity == cell("speaker_similarity", 1, 3)
    assert int(n) == summary["utterances"]


def test_front_page_says_how_much_of_the_headline_speech_was_sampled_again():
    speech = speech_folders(read_results(ROOT / "results"))
    shares = {}
    for name, *_, path in headline_rows():
        scored = read_result((ROOT / path).parent / "result.json")
        shares[name] = sampled_again(scored, Path(path).stem, speech).get("sampled_again_share")
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    told = [f"{100 * share:.0f} %" for share in shares.values() if share]
    assert [share for share in told if share not in text or "ampled again" not in text] == []


def benchmark(name):
    return json.loads((ROOT / f"results/benchmarks/{name}.json").read_text(encoding="utf-8"))


def repeats(ratio, form="{:.1f}", unit=" x"):
    median, least, most = (form.format(ratio[key]) for key in ("median", "least", "most"))
    return f"{median}{unit} [{least}, {most}]"


def best_slots(model):
    ratios = [side["ratio"] for key, side in model.items() if key.startswith("slots_")]
    return f"{max(ratios):.1f} x"


def cells_of_peers():
    """Of the table beside other libraries: body-heavy and head-heavy, ours against each of them."""
    trained, drawn = benchmark("peers_training")["shapes"], benchmark("peers_decoding")["cases"]
    shapes = ("body-heavy", "head-heavy")
    cells = [
        [repeats(trained[shape]["ratios"][peer]) for shape in shapes]
        for peer in ("trl", "flattening")
    ]
    for peer in ("trl", "flattening"):
        memory = [trained[shape]["memory"][peer] for shape in shapes]
        in_percent = [{key: 100 * value for key, value in ratio.items()} for ratio in memory]
        cells.append([repeats(ratio, "{:.0f}", "%") for ratio in in_percent])
    found = {(one["model"], one["kind"], one["utterances"]): one["ratios"] for one in drawn}
    for peer in ("continuous", "vllm"):
        for kind, counts in (("whole", (1, 16, 64)), ("first chunk", (1, 16))):
            for count in counts:
                both = [found.get((shape, kind, count)) for shape in shapes]
                cells.append([repeats(one[peer]) if one else "not measured" for one in both])
    return cells


def test_page_of_the_benchmarks_says_what_their_files_say():
    text = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in line.strip("| ").split(" | ")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ") and ".json](" in line
    ]
    step, generated = benchmark("train_step"), benchmark("decoding")["models"]
    shapes = [step["shapes"][shape]["ratios"] for shape in ("body-heavy", "head-heavy")]
    expected = [
        [repeats(ratios[key]) for ratios in shapes]
        for key in (
            "fp32 over public fp32",
            "bf16 over public bf16",
            "bf16 over public fp32",
            "fp32 over grouped fp32",
        )
    ]
    memory = [ratios["peak memory, fp32 over public fp32"] for ratios in shapes]
    in_percent = [{key: 100 * value for key, value in ratio.items()} for ratio in memory]
    expected.append([repeats(ratio, "{:.0f}", "%") for ratio in in_percent])
    by_model = {model["model"]: best_slots(model) for model in generated}
    expected.append([by_model["body-heavy"], by_model["head-heavy"]])
    expected.append([f"{step['data']['ratio']:.0f} x"])
    expected.append([f"{benchmark('search')['best_of_16']['share']:.0%}"])
    for codec in benchmark("encode")["codecs"].values():
        equal = codec["share_of_codes_equal_to_each_file_alone"]
        expected.append([f"{codec['ratio_cpu']:.1f} x"])
        expected.append([f"{equal['ours']:.1%}, {equal['loop']:.1%}"])
    copied = benchmark("memmap")["share_of_copy_rate"]
    expected += [[f"{copied[way]['wall']:.0%}"] for way in ("export", "import")]
    assert cells == expected + cells_of_peers()


def test_page_of_reliability_shows_the_recorded_tables():
    report = json.loads((ROOT / "results/reliability.json").read_text())
    assert markdown(report) in (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def test_architecture_page_names_every_folder_and_core_file():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^llasa_core/\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    library = ROOT / "llasa_core"
    folders = {f"{path.name}/" for path in library.iterdir() if (path / "__init__.py").is_file()}
    files = {path.stem for path in library.glob("*.py")} - {"__init__"}
    assert {name for name in folders | files if not re.search(rf"^ .*\b{name}", tree, re.M)} == {
        name for name in ("studies/",) if name in folders
    }
