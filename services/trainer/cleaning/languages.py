"""The languages of ROOTS: codes of the 46 natural ones, file endings of the 13 programming ones."""

from pathlib import PurePosixPath

NATURAL = (
    *("ak", "ar", "as", "bm", "bn", "ca", "en", "es", "eu", "fon", "fr", "gu", "hi", "id", "ig", "ki"),
    *("kn", "lg", "ln", "ml", "mr", "ne", "nso", "ny", "or", "pa", "pt", "rn", "rw", "sn", "st", "sw"),
    *("ta", "te", "tn", "ts", "tum", "tw", "ur", "vi", "wo", "xh", "yo", "zh-hans", "zh-hant", "zu"),
)
ALIASES = {"zhs": "zh-hans", "zht": "zh-hant", "zh-cn": "zh-hans", "zh-tw": "zh-hant"}  # how data sets also say it

# Endings as ROOTS' query took them, letter case included: C is what ends in .C or .H, and no .c or .h.
# Source: bigscience-workshop/data-preparation@9d058841, sourcing/code_dataset/query.sql.
_ENDINGS = {
    "C": ".C .H",
    "C#": ".cs",
    "C++": ".cpp .hpp .c++ .h++ .cc .hh",
    "Go": ".go",
    "Java": ".java",
    "JavaScript": ".js",
    "Lua": ".lua",
    "PHP": ".php .php3 .php4 .php5 .phps .phpt",
    "Python": ".py",
    "Ruby": ".rb",
    "Rust": ".rs",
    "Scala": ".scala",
    "TypeScript": ".ts .tsx",
}
PROGRAMMING = tuple(_ENDINGS)
_BY_ENDING = {ending: language for language, endings in _ENDINGS.items() for ending in endings.split()}

UNDETERMINED = "undetermined"  # the identifier cannot tell; it names the candidates
OTHER = "other"  # told, and not one of ROOTS'


def normalised(declared: object) -> str | None:
    """The code of a language that a data set declares; None where it declares none or one that names no single code."""
    if not isinstance(declared, str):
        return None
    if declared in PROGRAMMING:
        return declared
    code = declared.lower().replace("_", "-")
    code = ALIASES.get(code, code)
    return code if code in NATURAL else None


def programming_language(path: object) -> str | None:
    """The programming language of a file, by its ending."""
    return _BY_ENDING.get(PurePosixPath(path).suffix) if isinstance(path, str) else None
