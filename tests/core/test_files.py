import json
import re

import pytest

from llasa_core.errors import InputError
from llasa_core.files import brief, read_object, read_rows, read_yaml, write_json, write_rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON list, expected a JSON object"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON"),
        ('{"a": ' + "9" * 5_000 + "}", "not JSON"),
        ('{\n"a": 1,\n}', "at line 3, column 1"),
    ],
)
def test_what_is_no_json_object_is_refused_with_its_file(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json") as raised:
        read_object(tmp_path / "a.json")
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_file_that_is_missing_a_folder_or_no_utf8_is_refused(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    for name in ("latin.json", "none.json", ""):
        with pytest.raises(InputError, match=f"{tmp_path}.*expected a card"):
            read_object(tmp_path / name, "a card")


def test_file_beyond_the_size_limit_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("llasa_core.files.MOST_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text('{"a": "twelve"}')
    with pytest.raises(InputError, match="more than 10 bytes"):
        read_object(tmp_path / "a.json")


def test_nan_is_read_unless_finite_numbers_are_demanded(tmp_path):
    (tmp_path / "a.json").write_text('{"a": NaN}')
    assert read_object(tmp_path / "a.json")["a"] != read_object(tmp_path / "a.json")["a"]
    with pytest.raises(InputError, match="the constant NaN"):
        read_object(tmp_path / "a.json", finite=True)


def test_bad_line_is_named_by_its_number_with_blank_lines_counted(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n[]\n')
    with pytest.raises(InputError, match=r"rows\.jsonl:4: a JSON list"):
        read_rows(tmp_path / "rows.jsonl")


def test_rows_and_objects_come_back_as_they_were_written(tmp_path):
    rows = [{"id": "a", "text": "Grüße\u2028\n"}, {"id": "b", "nats": 1.5, "half": "\ud800"}]
    assert read_rows(write_rows(tmp_path / "new" / "rows.jsonl", rows)) == rows
    assert read_object(write_json(tmp_path / "one.json", rows[1])) == rows[1]
    assert "Grüße" in (tmp_path / "new" / "rows.jsonl").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "one.json").read_bytes()) == rows[1]


def test_not_a_number_is_never_written(tmp_path):
    for write in (write_json, lambda path, value: write_rows(path, [value])):
        with pytest.raises(ValueError, match="JSON compliant"):
            write(tmp_path / "a", {"a": float("nan")})
    assert not (tmp_path / "a").exists()


def test_brief_message_keeps_beginning_and_end_of_a_long_one():
    assert brief(ValueError("a\n b")) == "a b"
    short = brief(ValueError("first " + "x" * 1000 + " last"))
    assert short.startswith("first") and short.endswith("last") and len(short) < 130


@pytest.mark.parametrize(
    "content, said",
    [
        ('{"a": ' + "[" * 150 + "]" * 150 + "}", "brackets in brackets"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "not JSON"),
        ('{"a": ' + "9" * 400 + "}", "a number of 400 digits"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
    ],
)
def test_json_beyond_the_bounds_of_depth_and_digits_is_refused(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=f"a.json: .*{said}"):
        read_object(tmp_path / "a.json")


def test_text_of_many_digits_and_many_shallow_brackets_are_read(tmp_path):
    wanted = {"text": "7" * 5000, "rows": [[{}]] * 500}
    (tmp_path / "a.json").write_text(json.dumps(wanted))
    assert read_object(tmp_path / "a.json") == wanted


def test_number_that_becomes_infinite_is_refused_where_finite_ones_are_demanded(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1e999, "b": 1.5}')
    assert read_object(tmp_path / "a.json")["b"] == 1.5
    with pytest.raises(InputError, match="1e999"):
        read_object(tmp_path / "a.json", finite=True)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content, said",
    [
        ("a: 2001-99-99", "not YAML"),
        ("a: 2001-01-01", "`a` is datetime.date"),
        ('a: !!map "foo"', "not YAML"),
        ("a: !!set {x}", "`a` is {'x'}"),
        ("a: !!binary aGk=", "`a` is b'hi'"),
        ("a: !!python/object/apply:os.system [id]", "not YAML"),
        ('a: ["x\\0y"]', "NUL"),
        ("a: .nan", "`a` is nan"),
        ("a: " + "9" * 400, "digits"),
        ("a: " + "[" * 5000, "not YAML"),
        ("a: " + "[" * 120 + "]" * 120, "in each other"),
        ("a: &a [*a]", "line 1: more than"),
        ("a: *b", "undefined alias"),
        (LAUGHS, "line 5: more than 100,000 values"),
        ("- a", "expected a mapping"),
        ("a: \x01", "not YAML"),
    ],
)
def test_yaml_that_json_cannot_hold_or_out_of_bounds_is_refused(tmp_path, content, said):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(InputError, match=f"a.yaml: .*{re.escape(said)}"):
        read_yaml(tmp_path / "a.yaml")


def test_yaml_aliases_and_merged_mappings_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {b: &b 1, c: [x]}\nd: {<<: *a, b: *b}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 1, "c": ["x"]}, "d": {"b": 1, "c": ["x"]}}
