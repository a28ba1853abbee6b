"""Word counts as the public scripts compute them; ours are in `metrics.word_errors`.

Seed-TTS-Eval (run_wer.py): all punctuation but ' is stripped, so "forty-two" is one word, and
"don’t" with a curly apostrophe is not "don't"; English is lowercased, Chinese is split into
characters, numbers stay as written.
"""

import string

from llasa_core import metrics
from llasa_core.errors import InputError, needs_extra

# zhon.hanzi.punctuation of zhon 2.1.1 (a test compares the two where zhon is installed), and
# ASCII's
CHINESE_PUNCTUATION = (
    "＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏﹑﹔·．！？｡。"
)

_STRIPPED = str.maketrans("", "", (CHINESE_PUNCTUATION + string.punctuation).replace("'", ""))


def seed_tts_text(text: str, language: str) -> str:
    """Text as Seed-TTS-Eval compares it, words between spaces. InputError unless en or zh."""
    stripped = text.translate(_STRIPPED).replace("  ", " ")
    if language == "zh":
        return " ".join(stripped)
    if language == "en":
        return stripped.lower()
    raise InputError(f"Seed-TTS-Eval compares texts in en and zh, got language {language!r}")


def public_errors(words: str, reference: str, hypothesis: str, language: str) -> tuple[int, int]:
    """(errors, words of the reference) by the rule "seed-tts" or "whisper"; Chinese hypotheses are
    simplified first.

    Raises InputError when nothing is left of the reference, or zhconv is needed and absent.
    """
    if words == "whisper":
        return metrics.word_errors(reference, hypothesis, language)
    import jiwer

    said = seed_tts_text(reference, language)
    if not said.strip():
        raise InputError(
            f"reference text {reference!r} is empty without punctuation, expected at least one word"
        )
    heard = seed_tts_text(simplified(hypothesis) if language == "zh" else hypothesis, language)
    result = jiwer.process_words(said, heard)
    errors = result.substitutions + result.deletions + result.insertions
    return errors, result.hits + result.substitutions + result.deletions


def simplified(text: str) -> str:
    """Chinese text in simplified characters (zhconv, zh-cn), as in the public script."""
    with needs_extra("Seed-TTS-Eval in Chinese", "protocols", "zhconv"):
        import zhconv
    return zhconv.convert(text, "zh-cn")
