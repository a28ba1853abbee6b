import os
import signal
import subprocess
import sys
import time

import pytest

from llasa_core import cli
from llasa_core.errors import InputError
from llasa_core.files import one_writer, read_object, write_rows
from llasa_core.journal import Journal

WANTED = {"a": {"text": "one"}, "b": {"text": "two"}}


def work(out, wanted=WANTED, settings=None, result="manifest.jsonl", restart=False):
    """Items made now; each writes a file that holds its identity."""
    journal = Journal(out, settings or {"rate": 1}, result, restart)
    rows, made = journal.finished(wanted), []
    (out / "wavs").mkdir(parents=True, exist_ok=True)
    with journal.writing(rows) as add:
        for name, identity in wanted.items():
            if name not in rows:
                (out / f"wavs/{name}.wav").write_text(str(identity))
                rows[name] = {"id": name, "audio": f"wavs/{name}.wav"}
                add(rows[name], identity)
                made.append(name)
    if result:
        write_rows(out / result, (rows[name] for name in wanted))
    return made


def test_finished_items_are_kept_with_settings_that_are_equal_as_json(tmp_path):
    assert work(tmp_path, settings={"line": (1, 2)}) == ["a", "b"]
    assert read_object(tmp_path / "settings.json") == {"line": [1, 2]}
    assert work(tmp_path, settings={"line": [1, 2]}) == []
    assert work(tmp_path, {**WANTED, "c": {}}, settings={"line": [1, 2]}) == ["c"]


@pytest.mark.parametrize("identity", [{"text": "other"}, {"text": "one", "seed": 1}, None])
def test_changed_item_or_one_without_its_audio_is_made_again(tmp_path, identity):
    work(tmp_path)
    if identity is None:
        (tmp_path / "wavs/a.wav").unlink()
    assert work(tmp_path, WANTED | ({"a": identity} if identity else {})) == ["a"]


def test_torn_last_line_and_torn_audio_of_a_killed_run_are_dropped(tmp_path):
    work(tmp_path)
    (tmp_path / "wavs/c.wav.7-0f.part").touch()
    with (tmp_path / "finished.jsonl").open("ab") as journal:
        journal.write('{"id": "c", "text": "é'.encode()[:-1])
    assert work(tmp_path, {**WANTED, "c": {}}) == ["c"]
    assert not (tmp_path / "wavs/c.wav.7-0f.part").exists()
    assert work(tmp_path, {**WANTED, "c": {}}) == []


def test_item_that_is_made_again_is_unfinished_until_it_is_made(tmp_path):
    work(tmp_path)
    changed = WANTED | {"a": {"text": "other"}}
    journal = Journal(tmp_path, {"rate": 1})
    with journal.writing(journal.finished(changed)):
        (tmp_path / "wavs/a.wav").write_text("other")  # and killed before its line
    assert work(tmp_path) == ["a"] and "one" in (tmp_path / "wavs/a.wav").read_text()


def test_result_is_away_while_its_items_are_unfinished(tmp_path):
    work(tmp_path)
    journal = Journal(tmp_path, {"rate": 1}, "manifest.jsonl")
    assert (tmp_path / "manifest.jsonl").exists()
    with journal.writing():
        assert not (tmp_path / "manifest.jsonl").exists()


def test_other_settings_are_refused_or_begun_anew(tmp_path):
    work(tmp_path)
    with pytest.raises(InputError, match=r"settings\.json: made with rate 1, not 2"):
        Journal(tmp_path, {"rate": 2})
    with pytest.raises(InputError, match="made with guards None, not 1"):
        Journal(tmp_path, {"rate": 1, "guards": 1})
    assert work(tmp_path, settings={"rate": 2}, restart=True) == ["a", "b"]


def test_result_of_unknown_origin_is_left_alone(tmp_path):
    write_rows(tmp_path / "manifest.jsonl", [])
    with pytest.raises(InputError, match=r"manifest\.jsonl: no settings\.json next to it"):
        Journal(tmp_path, {}, "manifest.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]


@pytest.mark.parametrize("line", ["{", "[]", '{"id": 3, "identity": 0}', '{"id": "a"}'])
def test_damaged_journal_is_named_by_its_line(tmp_path, line):
    work(tmp_path)
    (tmp_path / "finished.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"finished\.jsonl:1: .*delete"):
        Journal(tmp_path, {"rate": 1})


def test_nothing_is_written_before_work_begins(tmp_path):
    Journal(tmp_path / "new", {"rate": 1}).finished(WANTED)
    assert not (tmp_path / "new").exists()


def test_killed_process_loses_at_most_the_item_it_was_making(tmp_path):
    def read():
        path = tmp_path / "finished.jsonl"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    wanted = {str(number): number for number in range(100_000)}
    child = os.fork()
    if child == 0:
        work(tmp_path, wanted)
        os._exit(0)
    while len(read()) < 20:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done = len(read())
    some = {str(number): number for number in range(done + 5)}
    assert work(tmp_path, some) == [str(number) for number in range(done, done + 5)]


def test_audio_that_was_damaged_since_it_was_finished_is_made_again(tmp_path):
    (tmp_path / "wavs").mkdir()
    with Journal(tmp_path, {}).writing() as add:
        for name in "ab":
            (tmp_path / f"wavs/{name}.wav").write_bytes(name.encode() * 1000)
            add({"id": name, "audio": f"wavs/{name}.wav"}, "text")
    wanted = {"a": "text", "b": "text"}
    assert set(Journal(tmp_path, {}).finished(wanted)) == {"a", "b"}
    damaged = bytearray((tmp_path / "wavs/a.wav").read_bytes())
    damaged[500] ^= 1
    (tmp_path / "wavs/a.wav").write_bytes(damaged)
    found = Journal(tmp_path, {}).finished(wanted)
    assert found == {"b": {"id": "b", "audio": "wavs/b.wav"}}


def test_second_process_in_a_folder_is_refused_until_the_first_is_gone(tmp_path):
    code = "import sys, time; from llasa_core.files import one_writer\n"
    code += "with one_writer(sys.argv[1]): print('in', flush=True); time.sleep(600)"
    out = tmp_path / "out"
    first = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="out: another process is writing there"):
            Journal(out, {}).writing().__enter__()
        assert cli.main(["data", "report", "nowhere", "-o", str(out)]) == 2
    finally:
        first.kill()
        first.wait()
    with one_writer(out), one_writer(out):  # a process may take its own again
        assert list(out.iterdir()) == []
    with one_writer(tmp_path / "unused"):
        pass
    assert not (tmp_path / "unused").exists() and out.exists()
