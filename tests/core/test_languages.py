import pytest

from llasa_core.manifest import Request, Utterance
from llasa_core.prompts import joined_texts, language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Hello there.", "en"),
        ("Über naïve façades", "en"),
        ("你好，世界。", "zh"),
        ("我们用GPT训练", "zh"),
        ("今日は良い天気です", "ja"),
        ("カタカナ", "ja"),
        ("안녕하세요", "ko"),
        ("Привет, мир", "ru"),
        ("สวัสดี", "th"),
        ("नमस्ते", "hi"),
        ("123 ...", "en"),
        ("The word 你 means you.", "en"),
    ],
)
def test_language_is_that_of_most_letters(text, language):
    assert language_of(text) == language
    assert Utterance("a", "a.wav", text).language == language
    if any(map(str.isalnum, text)):
        assert Request("a", text).language == language


def test_language_that_is_given_stays():
    assert Request("a", "你好", language="yue").language == "yue"
    assert Utterance("a", "a.wav", "Hallo.", language="de").language == "de"


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        ("Hello.", "Call Anna.", "Hello. Call Anna."),
        ("你好。", "今天天气很好。", "你好。今天天气很好。"),
        ("こんにちは。", "元気ですか。", "こんにちは。元気ですか。"),
        ("สวัสดี", "ครับ", "สวัสดีครับ"),
        ("안녕하세요.", "반갑습니다.", "안녕하세요. 반갑습니다."),
        ("Привет.", "Как дела?", "Привет. Как дела?"),
        ("", "Call Anna.", "Call Anna."),
        ("In 1984", "5 came.", "In 1984 5 came."),
    ],
)
def test_texts_are_joined_with_a_space_only_where_their_script_uses_it(first, second, joined):
    assert joined_texts(first, second) == joined
