"""A small tokenizer of BLOOM's kind for tests, trained in a fraction of a second."""

from functools import lru_cache
from pathlib import Path

from bloom import bpe

# A little of many scripts, so that merges cross bytes of two-, three- and four-byte characters.
TEXTS = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos, dotados como están de razón.",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق، وقد وهبوا عقلاً وضميرًا.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும் சமமானவர்கள்.",
    "Gbogbo ènìyàn ni a bí ní òmìnira; iyì àti ẹ̀tọ́ kọ̀ọ̀kan sì dọ́gba.",
    "def main(n: int) -> int:\n    return sum(i * i for i in range(n))\n",
    "Hello world! Hello, world? 😀😀 🙂🙂 \t\n",
)


@lru_cache
def small_tokenizer_json(vocab_size: int = 512) -> str:
    """The text of a BLOOM-like tokenizer.json: specials 0 to 3, all bytes, then merges, `vocab_size` ids at most.

    Exactly `vocab_size` up to about 800.
    """
    return bpe.train(TEXTS * 2, vocab_size=vocab_size).to_str()


def write_small_tokenizer(folder: Path, vocab_size: int = 512) -> Path:
    """Write `tokenizer.json` into `folder`; return its path."""
    path = folder / "tokenizer.json"
    path.write_text(small_tokenizer_json(vocab_size), encoding="utf-8")
    return path
