import json

from llasa_core.studies.speed import speed_rows


def test_the_table_holds_what_the_files_hold_and_nothing_else(tmp_path):
    assert speed_rows(tmp_path) == []
    (tmp_path / "benchmarks").mkdir()
    found = {"share_of_copy_rate": {"import": {"wall": 0.614}, "export": {"wall": 0.3}}}
    (tmp_path / "benchmarks" / "memmap.json").write_text(json.dumps(found))
    (tmp_path / "benchmarks" / "search.json").write_text(
        json.dumps({"best_of_16": {"share": 0.25}})
    )
    assert speed_rows(tmp_path) == [
        [
            "best of 16, share of the cost of 16 runs, verifiers included",
            "25%",
            "[search.json](results/benchmarks/search.json)",
        ],
        [
            "import of public memory maps, rate as a share of a plain file copy's",
            "61%",
            "[memmap.json](results/benchmarks/memmap.json)",
        ],
        [
            "export of public memory maps, rate as a share of a plain file copy's",
            "30%",
            "[memmap.json](results/benchmarks/memmap.json)",
        ],
    ]
