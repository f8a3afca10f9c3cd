"""Invented personal information, and what looks like it and is none."""

import random
import string

_DIGITS = string.digits
_ALPHABET = string.ascii_lowercase


def personal(tag: str, rng: random.Random) -> str:
    """A value that must be redacted as `tag`."""
    return {"EMAIL": _email, "IP_ADDRESS": _ip, "PHONE": _phone, "KEY": _key, "USER": _user}[tag](rng)


def harmless(rng: random.Random) -> str:
    """A date, an amount, a version, a range of years, a time: nothing to redact."""
    year, month, day = rng.randint(1900, 2025), rng.randint(1, 12), rng.randint(1, 28)
    return rng.choice(
        (
            f"{year}-{month:02}-{day:02}",
            f"{day:02}/{month:02}/{year}",
            f"{rng.randint(1, 99)} {rng.randint(100, 999)}",
            f"{rng.randint(1, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 20)}",
            f"{year}-{year + rng.randint(1, 9)}",
            f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}",
            f"{rng.randint(1, 99)} %",
            f"A{rng.randint(1, 9)}",
            f"{_word(rng)}-{_word(rng)}-{_word(rng)}",
            f"{rng.randint(1, 9)},{rng.randint(100, 999)}.{rng.randint(10, 99)}",
        )
    )


def _word(rng: random.Random, alphabet: str = _ALPHABET, least: int = 4, most: int = 9) -> str:
    return "".join(rng.choices(alphabet, k=rng.randint(least, most)))


def _email(rng: random.Random) -> str:
    name = rng.choice(
        (_word(rng), f"{_word(rng)}.{_word(rng)}", f"{_word(rng)}{rng.randint(1, 99)}", f"{_word(rng)}+{_word(rng)}")
    )
    return f"{name}@{rng.choice(('', 'mail.'))}{_word(rng)}.{rng.choice(('org', 'net', 'fr', 'co.za', 'edu.vn', 'in'))}"


def _ip(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return ".".join(str(rng.randint(1, 254)) for _ in range(4))
    groups = [f"{rng.randint(1, 0xFFFF):x}" for _ in range(8)]
    return ":".join(groups) if rng.random() < 0.5 else ":".join(groups[:3]) + "::" + groups[3]


def _phone(rng: random.Random) -> str:
    country = rng.choice(("33", "34", "44", "84", "91", "221", "234", "250", "254", "351"))
    separator = rng.choice((" ", "-", "."))
    groups = [
        "".join(rng.choices(_DIGITS, k=size)) for size in rng.choice(((3, 3, 3), (2, 3, 4), (3, 4), (2, 2, 2, 2)))
    ]
    return f"{rng.choice(('+', '00'))}{country} {separator.join(groups)}"


def _key(rng: random.Random) -> str:
    if rng.random() < 0.5:  # as an API hands it out: letters and digits by turns
        return "".join(_word(rng, least=1, most=3) + _word(rng, _DIGITS, 1, 3) for _ in range(rng.randint(6, 10)))
    return "-".join(str(rng.randint(1000, 9999)) for _ in range(4))  # as on a card


def _user(rng: random.Random) -> str:
    return f"@{_word(rng)}{rng.choice(('', '_' + _word(rng), str(rng.randint(1, 999))))}"
