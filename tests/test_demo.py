"The page, in a real browser: choose, type, click, see a box, and be refused."
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

import toy
from vl12in1 import demo
from vl12in1.model import ViLBERTConfig
from vl12in1.predictor import Predictor
from vl12in1.tasks import TASKS

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

if importlib.util.find_spec("gradio") is None: pytest.skip("the extra vl12in1[demo] is not installed", allow_module_level=True)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER): pytest.skip("no browser: apt-get install chromium chromium-driver", allow_module_level=True)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A folder with an untrained model, an untrained detector, pictures, and files that are none."
    folder = tmp_path_factory.mktemp("desk")
    toy.save_untrained(folder, ViLBERTConfig.miniature(vocab_size=len(toy.WORDS), feature_dim=64))
    (folder / "pictures").mkdir()
    (folder / "empty").mkdir()
    (folder / "fonts").mkdir()  # which matplotlib lists once
    random = np.random.default_rng(0)
    for name in ("one", "two", "three"):
        Image.fromarray(random.integers(0, 255, (48, 64, 3), np.uint8)).save(folder / "pictures" / f"{name}.png")
    Image.fromarray(random.integers(0, 255, (80, 40, 3), np.uint8)).save(folder / "mine.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.png").write_text("no picture")
    with open(folder / "large.png", "wb") as large: large.truncate(11 * 10 ** 6)
    return folder


@contextmanager
def served(desk, temporary):
    "Where `vl12in1 demo` serves the page, with an empty working folder and a folder for `temporary` files; SIGTERM ends it."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vl12in1.command", "demo", "--model", desk / "model", "--detector", desk / "detector",
               "--pictures", desk / "pictures", "--port", str(port)]
    environment = os.environ | dict(TMPDIR=str(temporary), MPLCONFIGDIR=str(desk / "fonts"), HOME=str(desk / "empty"), NO_PROXY="127.0.0.1")
    address = f"http://127.0.0.1:{port}"
    with open(desk / "log", "w") as log:
        server = subprocess.Popen(command, cwd=desk / "empty", env=environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 600
            while True:
                try: urlopen(address, timeout=5).close()
                except OSError:
                    assert server.poll() is None and time.monotonic() < end, (desk / "log").read_text()
                    time.sleep(.5)
                else: break
            yield address
        finally:
            server.terminate()
            server.wait(60)


@pytest.fixture(scope="module")
def address(desk):
    (desk / "temporary").mkdir()
    with served(desk, desk / "temporary") as address: yield address


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def browser(request, address):
    "A browser that has opened the page."
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"): options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    width, height = request.param
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500))
    try:
        browser.get(address)
        wait(browser, "#ask")
        yield browser
    finally: browser.quit()


def wait(browser, selector, seconds=60):
    "What a selector finds, as soon as it finds something."
    return WebDriverWait(browser, seconds).until(lambda browser: browser.find_elements(By.CSS_SELECTOR, selector), selector)


def texts(browser, selector):
    "The texts of what a selector finds, read at once, since the page may be drawn anew meanwhile."
    script = "return [...document.querySelectorAll(arguments[0])].map(found => found.textContent.trim())"
    return browser.execute_script(script, selector)


def refusal(browser):
    "What the page says in its corner."
    wait(browser, ".toast-body")
    return " ".join(texts(browser, ".toast-body"))


def choose(browser, number=0):
    wait(browser, ".choices .thumbnail-item")[number].click()
    wait(browser, ".chosen img")


def ask(browser, text):
    browser.find_element(By.CSS_SELECTOR, "#sentence :is(textarea, input)").send_keys(text)
    browser.find_element(By.ID, "ask").click()


def test_a_picture_and_a_sentence_are_answered_by_all_tasks(browser, desk):
    choose(browser)
    ask(browser, "is red")
    wait(browser, "#boxes rect")
    wait(browser, "#word label")
    widths = browser.execute_script("return [...document.querySelectorAll('#boxes rect')].map(box => box.getBoundingClientRect().width)")
    assert len(widths) == 5 and min(widths) > 0
    rows = texts(browser, "#replies tr")
    assert len(rows) == len(TASKS)
    assert all(row.startswith(task.title) for row, task in zip(rows, TASKS.values()))
    assert any("needs a second picture" in row for row in rows)
    WebDriverWait(browser, 60).until(lambda browser: texts(browser, "#word label") == ["is", "red"])
    browser.execute_script("document.querySelectorAll('#word label')[1].click()")
    wait(browser, "#attention svg[aria-label='where red looks']")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked and all(name.startswith(("http://127.0.0.1:", "data:", "blob:")) for name in asked)
    assert list((desk / "empty").iterdir()) == []  # neither in the working folder nor at home


@pytest.mark.parametrize("file, complaint", [
    ("notes.txt", "Invalid file type"), ("broken.png", "broken.png"), ("large.png", "exceed the maximum allowed size of 10.0 Mb")])
def test_a_wrong_upload_is_refused(file, complaint, browser, desk):
    wait(browser, "input[type=file]")[0].send_keys(str(desk / file))
    assert complaint in refusal(browser)
    assert not browser.find_elements(By.CSS_SELECTOR, ".chosen img")


def test_an_upload_is_answered(browser, desk):
    wait(browser, "input[type=file]")[0].send_keys(str(desk / "mine.png"))
    wait(browser, ".chosen img")
    ask(browser, "a red thing")
    assert len(wait(browser, "#boxes rect")) == 5


def test_nothing_is_asked_without_a_picture(browser):
    ask(browser, "a red thing")
    assert "choose a picture" in refusal(browser)
    assert not browser.find_elements(By.CSS_SELECTOR, "#boxes rect")


def test_nothing_is_asked_without_a_sentence(browser):
    choose(browser)
    ask(browser, " ")
    assert "nothing is asked" in refusal(browser)


def test_only_this_machine_and_no_other_origin(address):
    with urlopen(address) as page: policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy
    with urlopen(f"{address}/config") as config: assert json.load(config)["analytics_enabled"] is False


def test_the_temporary_folder_goes_when_the_process_is_ended(desk, tmp_path):
    "Also by SIGTERM. Without it there are the gallery's pictures, and whatever was uploaded."
    with served(desk, tmp_path) as address:
        boundary = "picture"
        content = (desk / "mine.png").read_bytes()
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="mine.png"\r\nContent-Type: image/png\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        request = Request(f"{address}/gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
        with urlopen(request) as reply: (uploaded,) = json.load(reply)
        assert Path(uploaded).read_bytes() == content and Path(uploaded).is_relative_to(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert list((desk / "empty").iterdir()) == []


def test_all_tasks_take_less_than_a_second(desk):
    "Of a processor's time, which does not depend on what else the machine does; the picture was looked at before."
    predictor = Predictor.from_pretrained(desk / "model", desk / "detector", machine=toy.CPU)
    shown = demo.gallery_of(desk / "pictures")
    gallery = [picture + np.uint8(shift) for shift in range(4) for picture in shown]
    demo.asked(predictor, gallery[0], "is red", 255 - gallery[0], gallery)
    start = time.process_time()
    table, _, _ = demo.asked(predictor, gallery[0], "a red thing", 255 - gallery[0], gallery)
    assert time.process_time() - start < 1
    assert table.count("<tr>") == len(TASKS) and "of 13 for this caption" in table
