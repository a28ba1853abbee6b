"""Work on the thread of the models, seen from another."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from llasa_core.app.work import Job, Stopped
from llasa_core.errors import InputError


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_reader_sees_what_is_told_in_order_and_then_the_result(pool):
    def work(job):
        for number in range(5):
            job.tell(number)
        return threading.current_thread().name

    job = Job(pool, work, 10)
    assert list(job) == [0, 1, 2, 3, 4]
    assert job.result != threading.current_thread().name


def test_error_of_the_work_reaches_the_reader_after_what_was_told(pool):
    def work(job):
        job.tell("begun")
        raise InputError("no such voice")

    seen = []
    with pytest.raises(InputError, match="no such voice"):
        for told in Job(pool, work, 10):
            seen.append(told)
    assert seen == ["begun"]


def test_who_stops_listening_stops_the_work(pool):
    ended = threading.Event()

    def work(job):
        try:
            while True:
                job.tell("more")
        finally:
            ended.set()

    for _ in Job(pool, work, 10):
        break  # the generator is closed here
    assert ended.wait(5)


def test_stopped_before_its_turn_never_begins(pool):
    gate, begun = threading.Event(), []
    first = Job(pool, lambda job: gate.wait(5), 10)
    second = Job(pool, begun.append, 10)
    second.stop()
    gate.set()
    assert list(first) == []
    with pytest.raises(Stopped):
        list(second)
    assert begun == []


def test_work_beyond_its_time_is_refused_and_the_wait_does_not_count(pool):
    gate = threading.Event()
    first = Job(pool, lambda job: gate.wait(5), 10)
    second = Job(pool, lambda job: job.check() or "in time", 0.2)
    threading.Timer(0.4, gate.set).start()
    assert list(first) == [] and list(second) == [] and second.result == "in time"

    def slow(job):
        threading.Event().wait(0.1)
        job.check()

    with pytest.raises(InputError, match=r"more than 0\.05 s"):
        list(Job(pool, slow, 0.05))
