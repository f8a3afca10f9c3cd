from examples.demo.corpus import Article
from examples.demo.data import beginning


def article(language: str, paragraph: str) -> Article:
    return Article(language=language, number=29, heading="", paragraphs=(paragraph,))


def test_a_prompt_ends_at_a_word():
    articles = [article("en", "Everyone has duties to the community in which alone")]
    assert beginning(articles, "en") == "Everyone has duties to the"


def test_a_prompt_in_a_script_without_spaces_is_cut_short():
    assert beginning([article("zh-hans", "人" * 60)], "zh-hans") == "人" * 8
