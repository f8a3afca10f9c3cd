"""BLOOM's kind of tokenizer: byte-level BPE behind BLOOM's pre-tokenizer.

Source: bigscience/tokenizer, tokenizer.json. There is no normalizer, so that every text comes back byte for byte, and
the 256 bytes are all in the vocabulary, so that no text is unknown.
"""

import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.trainers import BpeTrainer

# For Oniguruma, which nests character classes: an optional space, then characters that are neither white space nor one
# of ( ) | . , ! ? … 。 ， 、 । ۔ ،. Python's `re` cannot parse it.
SPLIT_PATTERN = " ?[^(\\s|[.,!?…。，、।۔،])]+"
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")  # ids 0 to 3
_SPELT_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))


def pre_tokenizer() -> PreTokenizer:
    """Splits a text into the stretches within which BPE may merge, then writes their bytes in the byte alphabet."""
    split = Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False)
    return Sequence([split, ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])


def train(texts: Iterable[str], *, vocab_size: int, min_frequency: int = 2) -> Tokenizer:
    """Learn merges from `texts`; the same texts in the same order give the same tokenizer.

    `vocab_size` counts the special tokens and the 256 bytes; little text ends below it.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.post_processor = ByteLevelProcessor(trim_offsets=False, use_regex=False)
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without_special_tokens(texts), trainer)
    return tokenizer


def _without_special_tokens(texts: Iterable[str]) -> Iterator[str]:
    """`texts` cut wherever they spell a special token.

    Otherwise merges could spell "</s>", whose id in the vocabulary is the special token's: text would become the token.
    """
    for text in texts:
        yield from filter(None, _SPELT_SPECIAL.split(text))
