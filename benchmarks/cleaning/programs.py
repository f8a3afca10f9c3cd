"""Small source files in six languages, and files that ROOTS' rules for code refuse."""

import random
from dataclasses import dataclass

_CONSONANTS, _VOWELS = "bdfklmnprstvz", "aeiou"


@dataclass(frozen=True, slots=True)
class _Style:
    ending: str
    comment: str
    head: str
    function: str


_STYLES = {
    "Python": _Style(
        ".py",
        "#",
        "import {a}\nfrom {b} import {c}\n",
        '''
def {f}({a}, {b}={n}):
    """{words}."""
    {c} = [{a}.{d}(item) for item in {b} if item != {n}]
    if len({c}) > {n}:
        raise ValueError("{words}")
    return sum({c}, start={a}.{e})
''',
    ),
    "Java": _Style(
        ".java",
        "//",
        "package {a}.{b};\n\nimport java.util.List;\n\npublic final class {c} {{\n",
        """
    /** {words}. */
    public int {f}(List<Integer> {a}, int {b}) {{
        int {c} = {n};
        for (int {d} : {a}) {{
            {c} += {d} * {b} - {n};
        }}
        return Math.max({c}, this.{e});
    }}
""",
    ),
    "JavaScript": _Style(
        ".js",
        "//",
        "import {{ {a} }} from './{b}.js';\n",
        """
// {words}
export function {f}({a}, {b} = {n}) {{
  const {c} = {a}.filter((item) => item.{d} > {b});
  if ({c}.length === {n}) throw new Error('{words}');
  return {c}.map((item) => item.{e} + {n});
}}
""",
    ),
    "Go": _Style(
        ".go",
        "//",
        'package {a}\n\nimport "fmt"\n',
        """
// {f} {words}.
func {f}({a} []int, {b} int) (int, error) {{
	{c} := {n}
	for _, {d} := range {a} {{
		{c} += {d} * {b}
	}}
	if {c} > {n} {{
		return 0, fmt.Errorf("{e}: %d", {c})
	}}
	return {c}, nil
}}
""",
    ),
    "Rust": _Style(
        ".rs",
        "//",
        "use std::collections::HashMap;\n",
        """
/// {words}.
pub fn {f}({a}: &HashMap<String, i64>, {b}: i64) -> Result<i64, String> {{
    let {c}: i64 = {a}.values().map(|{d}| {d} * {b}).sum();
    if {c} > {n} {{
        return Err(format!("{words}: {{}}", {c}));
    }}
    Ok({c} + {n})
}}
""",
    ),
    "C++": _Style(
        ".cpp",
        "//",
        "#include <vector>\n#include <stdexcept>\n",
        """
// {words}
int {f}(const std::vector<int>& {a}, int {b}) {{
    int {c} = {n};
    for (auto {d} : {a}) {c} += {d} / ({b} + {n});
    if ({c} < 0) throw std::runtime_error("{words}");
    return {c} * {n};
}}
""",
    ),
}
LANGUAGES = tuple(_STYLES)
UNFIT = ("code_longest_line", "code_non_word_share", "code_characters", "code_token_lengths", "code_licence")


def ending(language: str) -> str:
    return _STYLES[language].ending


def program(language: str, rng: random.Random) -> str:
    style = _STYLES[language]
    functions = [style.function.format_map(_Names(rng)) for _ in range(rng.randint(3, 6))]
    return style.head.format_map(_Names(rng)) + "".join(functions)


def respaced(program: str) -> str:
    """The same with other white space."""
    return program.replace("\n", "\n\n").replace("    ", "\t")


def unfit(reason: str, language: str, rng: random.Random) -> str:
    """A file that breaks the rule of that name; for the licence it is the licence that does."""
    names, comment = _Names(rng), _STYLES[language].comment
    match reason:
        case "code_longest_line":
            return program(language, rng) + f"\n{comment} " + " ".join(names["a"] for _ in range(400))
        case "code_non_word_share":
            return program(language, rng) + f"\n{comment} {'-' * 12} {'=' * 3}" * 300
        case "code_characters":
            return f"{comment} {names['a']} {names['words']}"[:90]
        case "code_token_lengths":
            return "\n".join(" ".join(rng.choice(("ab", "cd", "xy;", "=", "3,")) for _ in range(12)) for _ in range(30))
        case _:
            return program(language, rng)


class _Names(dict[str, str]):
    """Whatever a template asks for, invented."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def __missing__(self, key: str) -> str:
        if key == "n":
            value = str(self._rng.randint(1, 9999))
        elif key == "words":
            value = " ".join(self._name() for _ in range(6))
        else:
            value = self._name() + ("_" + self._name() if key == "f" else "")
        self[key] = value
        return value

    def _name(self) -> str:
        return "".join(
            self._rng.choice(_CONSONANTS) + self._rng.choice(_VOWELS) for _ in range(self._rng.randint(2, 4))
        )
