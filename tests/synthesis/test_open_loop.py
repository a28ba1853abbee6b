import numpy as np
import pytest
from tiny_models import ANSWERS, TEXT, toy_llama

from llasa_core.errors import InputError
from llasa_core.synthesis.decoding import Asked, Drawing, decode, generating
from llasa_core.synthesis.open_loop import OpenLoop
from llasa_core.synthesis.sampling import Sampling

HOT, MILD, GREEDY = Sampling(1.2, 0, 0.9), Sampling(0.8, 20), Sampling(0.0)


@pytest.fixture(scope="module")
def llama():
    return toy_llama(end_logit=1.0)


def rows(count):
    generator = np.random.default_rng(1)
    made = []
    for number in range(count):
        prompt = generator.integers(0, TEXT, generator.integers(2, 30)).astype(np.int32)
        hidden = (1,) if number % 4 == 0 else ()
        sampling = (HOT, MILD, GREEDY)[number % 3]
        made.append(Asked(prompt, 5 + number % 25, number % 5, sampling, hidden))
    made[5] = Asked(made[2].prompt, 20, 9, MILD)  # a prompt that another row has
    return made


def alone(model, asked):
    row = ([asked.prompt], [asked.limit], [asked.seed])
    ((_, found),) = decode(model, *row, asked.sampling, ANSWERS, hidden=[asked.hidden])
    return found


def test_rows_that_join_late_draw_what_they_draw_alone(llama):
    every, done = rows(14), {}
    with generating(llama):
        loop = OpenLoop(llama, ANSWERS, Sampling(), 4, 128)
        for index, asked in enumerate(every):
            loop.add(index, asked)
            loop.admit()
            done |= dict(loop.advance())
        while loop.live or loop.queue:
            if loop.queue and loop.live < loop.slots:
                loop.admit()
            done |= dict(loop.advance())
        assert not loop.prompts and not loop.samplings
    for index, asked in enumerate(every):
        expected = alone(llama, asked)
        assert done[index].ids.tolist() == expected.ids.tolist()
        assert (done[index].reason, done[index].steps) == (expected.reason, expected.steps)


def test_row_that_leaves_disturbs_no_other_and_frees_its_slot(llama):
    every, done = [Asked(row.prompt, 30, row.seed, HOT, row.hidden) for row in rows(6)], {}
    with generating(llama):
        loop = OpenLoop(llama, ANSWERS, Sampling(), 4, 128)
        for index, asked in enumerate(every):
            loop.add(index, asked)
        loop.admit()
        done |= dict(loop.advance())
        gone = int(loop.request[0])
        loop.drop(gone)  # live
        loop.drop(5)  # waits
        loop.drop(5)
        assert loop.live == 3 - len(done) and list(loop.queue) == [4]
        loop.admit()
        assert loop.live == 4 - len(done)
        while loop.live:
            done |= dict(loop.advance())
    assert set(done) == set(range(6)) - {gone, 5}
    for index, row in done.items():
        assert row.ids.tolist() == alone(llama, every[index]).ids.tolist()


def test_what_is_drawn_so_far_begins_the_row(llama):
    asked = Asked(np.arange(5), 30, 3, HOT)
    whole = alone(llama, asked)
    with generating(llama):
        loop = OpenLoop(llama, ANSWERS, Sampling(), 2, 128)
        loop.add(7, asked)
        assert len(loop.drawn(7)) == 0
        loop.admit()
        for count in range(1, 4):
            loop.advance()
            assert loop.drawn(7).tolist() == whole.ids[:count].tolist()
        drawing = Drawing(llama, asked, ANSWERS)
        taken = drawing.take(4)
        assert (taken.ids.tolist(), taken.reason, taken.steps) == (whole.ids[:4].tolist(), "", 4)
        ended = drawing.take(99)
        assert ended.ids.tolist() == whole.ids.tolist() and ended.reason == whole.reason


@pytest.mark.parametrize(
    "wrong",
    [
        Asked(np.arange(5), 124, 0, MILD),
        Asked(np.arange(5), 60, 0, MILD),  # more than the loop's context
        Asked(np.arange(0), 5, 0, MILD),
        Asked(np.arange(5), 5, -1, MILD),
        Asked(np.arange(5), 5, 0, Sampling(min_codes=3)),
        Asked(np.arange(5), 5, 0, Sampling(repetition_penalty=1.5)),
    ],
)
def test_row_that_the_loop_cannot_draw_is_refused(llama, wrong):
    loop = OpenLoop(llama, ANSWERS, Sampling(), 2, 64)
    with pytest.raises(InputError, match="generation"):
        loop.add(0, wrong)
    assert not loop.prompts and not loop.queue
