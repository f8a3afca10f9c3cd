"""Generate: a model, a language, a prompt; the completion streams."""

from collections.abc import MutableMapping, Sequence
from typing import Any

import streamlit as st
from anthesis import SamplingParams
from streamlit.delta_generator import DeltaGenerator

from ui import markup
from ui.answers import Answer, stream_answers
from ui.chrome import VIEWS, page, show_error
from ui.languages import BY_CODE, LANGUAGES, Language
from ui.licences import ask_to_accept
from ui.platform import Servable, connect, servable

state: MutableMapping[Any, Any] = st.session_state
NOBODY = Servable("", "")


def main() -> None:
    with page("Playground", "Give a model the beginning of a text, and it goes on."):
        client = connect().client
        choices = servable(client.deployments.list(), client.aliases.list())
        if not choices:
            nothing_ready()
            return
        # Left by the run in which the button was pressed, whose widgets had to be enabled to hand over their values.
        answers, sampling = state.pop("generate", ([], SamplingParams()))
        running = bool(answers)
        left, right = st.columns([2.5, 1], gap="large")
        with right:
            chosen = settings(disabled=running)
        with left:
            models = pick_models(choices, disabled=running)
            blocked = not running and ask_to_accept(model.version for model in models)
            language, prompt = write_prompt(disabled=running)
            if buttons(prompt, running=running, blocked=blocked):
                state["answers"] = [Answer(model=model, prompt=prompt, language=language) for model in models]
                state["generate"] = (state["answers"], chosen)
                st.rerun()
            if running:
                generate(answers, sampling)
            else:
                stop(state.get("answers", []))
                show(state.get("answers", []))


def nothing_ready() -> None:
    waiting = connect().client.deployments.list()
    errors = [error for deployment in waiting for error in deployment.errors]
    if errors:
        st.error("**No worker could load what is deployed.**", icon="⚠️")
        st.code("\n".join(errors), language=None, wrap_lines=True)
    elif waiting:
        st.info(f"**{waiting[0].target} is being loaded.** It takes a moment; then it can be tried here.", icon="⏳")
        st.button("Look again", icon=":material/refresh:")
    else:
        st.info(
            "**No model is deployed yet.** `make demo` trains and deploys two small ones; or import BLOOM's weights "
            "and deploy them on the Models page.",
            icon="🌱",
        )
        st.page_link(VIEWS / "models.py", label="Go to Models", icon=":material/account_tree:")


def settings(*, disabled: bool) -> SamplingParams:
    with st.container(border=True):
        st.markdown("##### Settings")
        max_tokens = st.slider(
            "Longest answer (tokens)", 1, 2048, 64, key="max_tokens", persist_state="session", disabled=disabled
        )
        temperature = st.slider(
            "Temperature",
            0.0,
            2.0,
            0.7,
            0.05,
            key="temperature",
            persist_state="session",
            disabled=disabled,
            help="0 always takes the likeliest token; higher is freer.",
        )
        greedy = temperature == 0
        top_p = st.slider(
            "Top-p",
            0.05,
            1.0,
            0.95,
            0.05,
            key="top_p",
            disabled=disabled or greedy,
            persist_state="session",
            help="Draw only from the likeliest tokens that together have this probability.",
        )
        top_k = st.number_input(
            "Top-k",
            0,
            1000,
            0,
            key="top_k",
            disabled=disabled or greedy,
            persist_state="session",
            help="Draw only from this many likeliest tokens; 0: all.",
        )
        penalty = st.slider(
            "Repetition penalty",
            1.0,
            2.0,
            1.1,
            0.05,
            key="repetition_penalty",
            persist_state="session",
            disabled=disabled,
            help="Above 1, tokens that were there already become less likely.",
        )
        seed = st.number_input(
            "Seed",
            0,
            2**53 - 1,
            None,
            key="seed",
            persist_state="session",
            disabled=disabled,
            placeholder="new each time",
            help="The same seed and settings give the same text.",
        )
    return SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=int(top_k),
        repetition_penalty=penalty,
        max_tokens=max_tokens,
        seed=None if seed is None else int(seed),
    )


def pick_models(choices: Sequence[Servable], *, disabled: bool) -> list[Servable]:
    by_name = {choice.name: choice for choice in choices}
    wanted = st.query_params.get("model", "")
    if wanted and state.get("linked_model") != wanted:  # once per link: the choice is the user's afterwards
        state["linked_model"] = wanted
        match = by_name.get(wanted) or next((c for c in choices if c.version == wanted), None)
        if match:
            state["model"] = match
        else:
            st.warning(f"No worker has {wanted} ready; choose another, or deploy it on the Models page.", icon="⏳")
    for key in ("model", "second"):
        if key in state and state[key] not in choices:  # redeployed, or gone
            state.pop(key)
    first, second = st.columns(2)
    model = first.selectbox(
        "Model", choices, format_func=lambda c: c.label, key="model", persist_state="session", disabled=disabled
    )
    other = second.selectbox(
        "Compare with",
        [NOBODY, *(c for c in choices if c != model)],
        key="second",
        persist_state="session",
        disabled=disabled,
        format_func=lambda c: c.label or "nothing",
    )
    return [model] if other == NOBODY else [model, other]


def write_prompt(*, disabled: bool) -> tuple[Language, str]:
    """The language picked and the prompt; a new language brings its own prompt."""
    if "prompt" not in state:
        state["language"] = LANGUAGES[0].code
        state["prompt"] = LANGUAGES[0].prompts[0]
    code = st.selectbox(
        "Language",
        [language.code for language in LANGUAGES],
        key="language",
        persist_state="session",
        disabled=disabled,
        format_func=lambda c: BY_CODE[c].label,
        on_change=take_prompt,
        help="46 natural and 13 programming languages. Type to search, in English or in the language itself.",
    )
    language = BY_CODE[code]
    prompt = st.text_area(
        "Prompt", key="prompt", persist_state="session", height=150, disabled=disabled, placeholder="Begin a text…"
    )
    with st.container(horizontal=True, gap="small"):
        for number, (title, _) in enumerate(language.examples):
            st.button(
                title,
                key=f"example{number}",
                on_click=take_prompt,
                args=(number,),
                disabled=disabled,
                type="tertiary",
                icon=":material/format_quote:" if number < len(language.prompts) else ":material/assignment:",
            )
    return language, prompt


def take_prompt(number: int = 0) -> None:
    _, state["prompt"] = BY_CODE[state["language"]].examples[number]


def buttons(prompt: str, *, running: bool, blocked: bool) -> bool:
    """Whether Generate was pressed. Stop does nothing but rerun the page, which ends the calls."""
    with st.container(horizontal=True):
        pressed = st.button(
            "Generate",
            type="primary",
            icon=":material/local_florist:",
            key="start",
            disabled=running or blocked or not prompt,
        )
        st.button("Stop", icon=":material/stop_circle:", key="stop", disabled=not running)
    return pressed


def generate(answers: Sequence[Answer], sampling: SamplingParams) -> None:
    cards = {id(answer): card for answer, card in zip(answers, place(len(answers)), strict=True)}
    stream_answers(connect().streaming, answers, sampling, lambda answer: draw(answer, cards[id(answer)]))
    st.rerun()  # enables the settings again


def stop(answers: Sequence[Answer]) -> None:
    """End what an earlier run of the page still streams; Streamlit may end that run only after this one."""
    for answer in answers:
        answer.stopped = True


def show(answers: Sequence[Answer]) -> None:
    if not answers:
        (card,) = place(1)
        card.html('<div class="an-empty">The continuation appears here, token by token.</div>')
    for answer, card in zip(answers, place(len(answers)), strict=True):
        draw(answer, card)


def place(count: int) -> list[DeltaGenerator]:
    """A bordered place for each of `count` answers, side by side."""
    return [column.container(border=True).empty() for column in st.columns(count)] if count else []


def draw(answer: Answer, card: DeltaGenerator) -> None:
    with card.container():
        st.html(markup.card_title(answer.model.name, answer.version or answer.model.version))
        st.html(markup.completion(answer.prompt, answer.text, answer.language, running=answer.running))
        if answer.error:
            show_error(answer.error)
        rate = answer.tokens_per_second
        st.html(
            markup.facts(
                [
                    ("Tokens", f"{answer.num_tokens:,}"),
                    ("Tokens/s", f"{rate:,.1f}" if rate else "–"),
                    ("First token", f"{answer.first - answer.started:.2f} s" if answer.first else "–"),
                    ("Prompt tokens", f"{answer.num_prompt_tokens:,}" if answer.num_prompt_tokens else "–"),
                    ("State", answer.ending),
                ]
            )
        )


main()
