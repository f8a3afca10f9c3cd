"""The playground as a person uses it: Chromium, and every service behind it, none of them faked."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="left out: the playground in a browser needs playwright")

from anthesis.v1.registry_pb2 import Model
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.conftest import LocalPlatform, add_version
from tests.support.chromium import NoChromium, launch

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

PATIENCE_MS = 60_000  # for one thing to appear, on a machine that is busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            chromium = launch(playwright)
        except NoChromium as missing:
            pytest.skip(f"left out: the playground in a browser: {missing}")
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1360, "height": 1100})
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if not ours(request.url) else None)
    yield page
    page.close()
    assert not outside, f"the playground asked for {outside}"


def ours(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


def main_button(page: Page, label: str):
    """The button whose words, after its icon's name, are `label`."""
    return page.get_by_test_id("stMain").get_by_role("button").filter(has_text=re.compile(rf"{label}$"))


def set_slider(page: Page, label: str, key: str, times: int) -> None:
    thumb = page.get_by_role("slider", name=label)
    thumb.focus()
    for _ in range(times):
        page.keyboard.press(key)


def choose(page: Page, label: str, choice: str) -> None:
    """Type into a select box until `choice` is offered, and take it."""
    box = page.get_by_role("combobox", name=label)
    box.click()
    box.fill(choice)
    page.get_by_role("option").filter(has_text=choice).first.click()


@pytest.fixture(scope="module")
def oak(platform: LocalPlatform) -> str:
    """A model that takes milliseconds for a token on any machine: 2,048 are seen, however late the page is drawn."""
    platform.client.models.create(Model(name="oak", licence="apache-2.0"))
    add_version(platform.client, "oak", hidden=480, n_layer=12)
    platform.client.deployments.create("oak")
    platform.client.deployments.wait("oak", timeout_s=120)
    return "oak"


def test_a_completion_streams_and_stops(platform: LocalPlatform, page: Page, oak: str) -> None:
    page.goto(f"{platform.url}/?model={oak}")
    page.get_by_role("textbox", name="Prompt").fill("Tous les êtres humains")
    set_slider(page, "Longest answer", "End", 1)
    start = main_button(page, "Generate")
    start.click()
    page.wait_for_selector(".an-caret")  # under way
    page.wait_for_function(
        "document.querySelector('.an-caret') && document.querySelector('.an-added').textContent.length > 10"
    )
    partial = page.locator(".an-added").inner_text()
    page.wait_for_function("seen => document.querySelector('.an-added').textContent.length > seen", arg=len(partial))
    assert page.locator(".an-caret").count() == 1, "it was over before it was seen"
    assert page.locator(".an-prompt").inner_text() == "Tous les êtres humains"
    main_button(page, "Stop").click()
    expect(page.locator(".an-facts")).to_contain_text("stopped by you")
    stopped_at = page.locator(".an-added").inner_text()
    expect(start).to_be_enabled()
    assert page.locator(".an-added").inner_text() == stopped_at


def test_arabic_reads_right_to_left(platform: LocalPlatform, page: Page) -> None:
    page.goto(f"{platform.url}/?model=seedling")
    choose(page, "Language", "Arabic")
    prompt = page.get_by_role("textbox", name="Prompt")
    expect(prompt).to_have_value(re.compile("^يولد"))
    assert prompt.evaluate("e => [getComputedStyle(e).unicodeBidi, getComputedStyle(e).textAlign]") == [
        "plaintext",
        "start",
    ]
    main_button(page, "Generate").click()
    expect(page.locator(".an-completion")).to_have_css("direction", "rtl")


def test_a_fine_tune_is_submitted_its_curve_grows_and_its_version_is_tried(
    platform: LocalPlatform, page: Page, tasks_file: Path
) -> None:
    page.goto(f"{platform.url}/finetune")
    upload_form = page.get_by_test_id("stExpander").filter(has_text="Upload a file").locator("details")
    expect(upload_form).to_be_visible()
    if upload_form.get_attribute("open") is None:  # datasets are there already: it is folded
        upload_form.locator("summary").click()
    page.locator("input[type=file]").set_input_files(tasks_file)
    upload = main_button(page, "Upload").last
    expect(upload).to_be_enabled()
    upload.click()
    expect(page.get_by_test_id("stMultiSelect")).to_contain_text("repeat")
    choose(page, "Base", "seedling")
    page.get_by_role("textbox", name="Name of the new model").fill("repeater")
    page.get_by_role("spinbutton", name="Steps").fill("50")
    page.get_by_text("More settings").click()
    page.get_by_role("spinbutton", name="Sequence length").fill("64")
    page.get_by_role("spinbutton", name="Batch (sequences)").fill("8")
    page.keyboard.press("Tab")
    start = main_button(page, "Start training")
    expect(start).to_be_enabled()
    start.click()

    page.wait_for_url("**/jobs?job=*")
    expect(page.locator(".an-state")).to_have_text("Running", timeout=180_000)
    step = page.get_by_test_id("stProgress")
    expect(step).to_contain_text(re.compile(r"Step \d+ of 50"), timeout=180_000)
    curve = page.get_by_test_id("stVegaLiteChart").first
    expect(curve).to_be_visible()
    seen = {step.inner_text()}
    while len(seen) < 2 and "50 of 50" not in step.inner_text():
        expect(step).not_to_have_text(step.inner_text(), timeout=120_000)
        seen.add(step.inner_text())
    assert len(seen) >= 2, f"the curve did not grow while it was watched: {seen}"

    expect(page.locator(".an-state")).to_have_text("Succeeded", timeout=480_000)
    expect(page.get_by_text("New version: repeater@1")).to_be_visible()
    (job,) = (job for job in platform.client.jobs.list() if job.fine_tune.output_model == "repeater")
    assert job.model_version == "repeater@1"
    assert platform.client.models.get_version("repeater@1").parent == "seedling@1"

    main_button(page, "Deploy").click()
    page.get_by_role("link").filter(has_text="Try it").click(timeout=120_000)
    page.wait_for_url(re.compile("model=repeater(@|%40)1"))
    main_button(page, "Generate").click()
    expect(page.locator(".an-added")).not_to_be_empty()
    expect(page.locator(".an-card-title")).to_contain_text("repeater@1")
