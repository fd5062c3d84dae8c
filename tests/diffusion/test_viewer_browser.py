"""The viewer in a real browser: what is drawn follows the slider, the controls and the pointer."""

import io
import json
import time
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from flashpoint.diffusion.viewer import payload, write_view

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have 64 MB there, too little for screenshots
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",
    "--window-size=1200,1000",
)
SAMPLES = 30


@dataclass
class Browser:
    """A page, and what it says of itself."""

    driver: object

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, css):
        return self.driver.find_element("css selector", css)

    def choose(self, text):
        """Clicks the control with this label."""
        label = f'//label[normalize-space()="{text}"]'
        self.driver.find_element("xpath", label).click()

    def state(self):
        """data-* attributes of the canvas."""
        return self.run("return {...document.getElementById('canvas').dataset}")

    def drawn(self):
        """data-* attributes of the canvas and its pixels [h, w, 4], once nothing is pending."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )
        state = self.state()
        size, values = self.run(
            "return [canvas.width, "
            "[...pen.getImageData(0, 0, canvas.width, canvas.height).data].join()]"
        )
        pixels = np.fromstring(values, dtype=np.uint8, sep=",")
        return state, pixels.reshape(size, size, 4)


@pytest.fixture(scope="module")
def pages(states_run, solid_run, flow_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload, "_GRID", 24)
        patch.setattr(payload, "_FIELDS", 5)
        return [
            write_view(*run, samples=SAMPLES, save_to=folder / f"{n}.html", say=lambda _: None)
            for n, run in enumerate((states_run, solid_run, flow_run))
        ]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    driver.get("about:blank")  # ends the loading of the browser's own first page
    yield driver
    driver.quit()


def wait_until(holds):
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def load(driver, page, width=1200):
    driver.set_window_size(width, 1000)
    driver.get_log("performance")  # empties it
    driver.get(page.as_uri())
    wait_until(lambda: driver.execute_script("return document.documentElement.dataset.ready"))
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    return Browser(driver)


@pytest.fixture
def plane(chromium, pages):
    return load(chromium, pages[0])


def test_it_loads_from_a_file_and_asks_for_nothing_else(chromium, pages):
    load(chromium, pages[0])
    messages = [
        json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")
    ]
    requests = {m["params"]["request"]["url"] for m in messages
                if m["method"] == "Network.requestWillBeSent"}  # fmt: skip
    assert requests <= {pages[0].as_uri(), "data:,"}


def test_the_slider_moves_what_is_drawn(plane):
    from selenium.webdriver.common.keys import Keys

    slider = plane.find("#time")
    slider.send_keys(Keys.HOME)
    noise, first = plane.drawn()
    slider.send_keys(Keys.ARROW_RIGHT)
    later, second = plane.drawn()
    slider.send_keys(Keys.END)
    done, final = plane.drawn()
    assert noise["t"] == "30"
    assert int(later["t"]) < 30
    assert done["t"] == "0"
    assert noise["drawn"] == done["drawn"] == str(SAMPLES)
    assert (first != second).any()
    assert (second != final).any()
    assert "timestep 0 of 30" in slider.get_attribute("aria-valuetext")
    assert "timestep 0 of 30" in plane.find("#canvas").get_attribute("aria-label")


def test_points_lie_where_the_samples_are(plane):
    plane.choose("Paths of points")
    _, pixels = plane.drawn()
    dim, reach, x = plane.run("""
        const { shape, values } = run.chains[0].x;
        return [shape[2], run.reach, [...values.slice(last * shape[1] * shape[2])]];
    """)
    x = np.reshape(x, (-1, dim))
    assert len(x) == SAMPLES
    half = len(pixels) / 2
    column, row = half + x[:, 0] / reach * half, half - x[:, 1] / reach * half
    inside = (abs(x) < reach).all(1)
    assert inside.sum() > 10
    opaque = pixels[..., 3] > 0
    assert opaque[row[inside].astype(int), column[inside].astype(int)].all()
    rows, columns = np.nonzero(opaque)
    gaps = np.hypot(rows[:, None] - row, columns[:, None] - column).min(1)
    assert gaps.max() < 6  # nothing else is drawn


def test_playing_and_pausing(plane):
    from selenium.webdriver.common.keys import Keys

    body = plane.find("body")
    plane.run("document.getElementById('speed').selectedIndex = 0")  # slow, until the key arrives
    body.send_keys(Keys.HOME)
    plane.drawn()  # what was drawn before would look like progress
    body.send_keys(Keys.SPACE)
    assert plane.find("#play").get_attribute("aria-label") == "Pause"
    wait_until(lambda: plane.state()["t"] != "30")
    body.send_keys(Keys.SPACE)
    paused, _ = plane.drawn()
    assert 0 < int(paused["t"]) < 30
    time.sleep(0.2)
    assert plane.drawn()[0]["t"] == paused["t"]


def test_playing_does_not_step_back(plane):
    """The frame that is drawn first may have begun before the key was pressed."""
    at = plane.run(
        "goTo(0); play(true); tick(before - 50); const { at } = view; play(false); return at"
    )
    assert at == 0


def test_maps_and_scores_are_drawn(plane):
    before = plane.drawn()[1]
    seen = [before]
    for text, name in (
        ("Density of the data", "data"),
        ("Density of the samples", "samples"),
        ("Error of the network", "excess"),
        ("Classifier's regions", "regions"),
    ):
        plane.choose(text)
        state, pixels = plane.drawn()
        assert state["map"] == name
        assert all((pixels != other).mean() > 0.02 for other in seen)
        seen.append(pixels)
    plane.choose("Of the network")
    state, pixels = plane.drawn()
    assert state["score"] == "network"
    assert (pixels != seen[-1]).any()
    assert "t = 1" in plane.find("#note").text


def test_maps_follow_the_slider(plane):
    """Noise covers more of the plane than data."""
    from selenium.webdriver.common.keys import Keys

    plane.choose("Density of the data")
    covered = {}
    for key, note in ((Keys.END, "t = 1;"), (Keys.HOME, "t = 30;")):
        plane.find("#time").send_keys(key)
        covered[key] = (plane.drawn()[1][..., 3] > 60).mean()
        assert note in plane.find("#note").text
    assert covered[Keys.HOME] > 1.5 * covered[Keys.END] > 0


def test_a_flow_goes_from_noise_without_data_to_samples(chromium, pages):
    from selenium.webdriver.common.keys import Keys

    flow = load(chromium, pages[2])
    flow.choose("Of the network")
    flow.choose("Density of the data")
    for key, t, level in ((Keys.HOME, "20", "1.000"), (Keys.END, "0", "0.000")):
        flow.find("#time").send_keys(key)
        state, pixels = flow.drawn()
        assert (state["t"], state["score"], state["map"]) == (t, "network", "data")
        assert f"noise level {level}" in flow.run("return $('reading').textContent")
        assert (pixels[..., 3] > 0).mean() > 0.02
    assert "predicts flow velocity" in flow.find("header").text


def test_classes_can_be_hidden(plane):
    plane.choose("Guided by class")
    state, both = plane.drawn()
    assert (state["chain"], state["drawn"]) == ("Guided by class", "50")
    plane.choose("Michigan")
    state, fewer = plane.drawn()
    assert state["drawn"] == "40"
    assert (both != fewer).any()


def test_a_click_follows_the_nearest_point(plane):
    from selenium.webdriver import ActionChains

    x, y = plane.run("""
        const middle = canvas.width / 2, project = projector();
        const places = [...Array(30).keys()].filter((n) => !view.followed.has(n))
            .map((n) => placeAt(run.chains[0], n, last, project))
            .map(([x, y]) => [x - middle, y - middle])
            .sort((a, b) => Math.hypot(...a) - Math.hypot(...b));
        return places[0].map((place) => place * canvas.clientWidth / canvas.width);
    """)
    followed = int(plane.drawn()[0]["followed"])
    canvas = plane.find("#canvas")
    ActionChains(plane.driver).move_to_element_with_offset(canvas, x, y).click().perform()
    assert int(plane.drawn()[0]["followed"]) == followed + 1


def test_three_dimensions_turn(chromium, pages):
    from selenium.webdriver import ActionChains

    solid = load(chromium, pages[1])
    _, before = solid.drawn()
    canvas = solid.find("#canvas")
    ActionChains(chromium).click_and_hold(canvas).move_by_offset(80, 30).release().perform()
    state, after = solid.drawn()
    assert (before != after).any()
    assert state["drawn"] == str(SAMPLES)
    assert not solid.find("#maps").is_displayed()


def test_dark_and_light(plane):
    def brightness():
        image = Image.open(io.BytesIO(plane.driver.get_screenshot_as_png())).convert("L")
        return np.asarray(image).mean()

    first = brightness()
    plane.find("#theme").click()
    plane.drawn()
    second = brightness()
    assert {first > 128, second > 128} == {True, False}


def test_the_caption_of_the_regions_says_what_the_theme_shows(plane):
    plane.choose("Classifier's regions")
    captions = []
    for _ in range(2):
        plane.drawn()
        dark = plane.run("return dark()")
        captions.append((dark, plane.find("#note").text))
        plane.find("#theme").click()
    assert {dark for dark, _ in captions} == {True, False}
    for dark, caption in captions:
        assert f"{'darker' if dark else 'paler'} where it is less sure" in caption


def test_the_hint_is_not_cut_at_1400_by_1000(chromium, pages):
    size = {"width": 1400, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page = load(chromium, pages[0], 1400)
        assert page.run("return [innerWidth, innerHeight]") == [1400, 1000]
        # With a line to spare, for fonts and descriptions that are longer.
        for part in ("#keys", "#stage"):
            script = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
            assert page.run(script, part) < 1000 - 24
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [500, 800, 1200])
def test_nothing_is_wider_than_the_window(chromium, pages, width):
    page = load(chromium, pages[0], width)
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
