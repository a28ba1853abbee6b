from dataclasses import dataclass

import pytest

from llasa_core.errors import InputError, above, at_least, between, check_fields, one_of


@dataclass
class Settings:
    steps: int = 1
    rate: float = 0.5
    most: float | None = None
    kind: str = "a"
    fast: bool = False

    def __post_init__(self):
        bounds = {"steps": at_least(1), "rate": above(0, most=1), "kind": one_of("a", "b")}
        check_fields(self, "demo", **bounds, most=between(0, 9))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "demo: `steps` is 0, expected a whole number of at least 1"),
        ({"steps": True}, "`steps` is True, expected a whole number"),
        ({"steps": 1.0}, "`steps` is 1.0, expected a whole number"),
        ({"rate": 0}, "`rate` is 0, expected a number above 0 and at most 1"),
        ({"rate": 1.5}, "`rate` is 1.5, expected a number above 0 and at most 1"),
        ({"rate": float("nan")}, "`rate` is nan, expected a number"),
        ({"rate": None}, "`rate` is None, expected a number above 0 and at most 1"),
        ({"most": 10}, "`most` is 10, expected a number from 0 to 9 or null"),
        ({"most": float("inf")}, "`most` is inf, expected a number from 0 to 9 or null"),
        ({"kind": "c"}, "`kind` is 'c', expected text that is 'a' or 'b'"),
        ({"fast": 1}, "`fast` is 1, expected true or false"),
    ],
)
def test_value_of_another_type_or_out_of_its_bounds_is_named_with_what_was_expected(wrong, message):
    with pytest.raises(InputError) as raised:
        Settings(**wrong)
    assert message in str(raised.value)


def test_bounds_include_their_ends_and_none_has_no_bound():
    assert Settings(1, 1, 0).most == 0
    assert Settings(1, 1, 9).most == 9 and Settings(most=None).most is None
