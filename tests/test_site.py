"The site, built and read in a real browser; its checks are shown sinners. And the workflows that test the project and publish the site."
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# A chapter with mathematics and pictures, the multi-task table, and what else is easily too wide.
PAGES = ["index", "book/index", "nbs/52_schedules", "nbs/60_metrics", "reports/table_multitask", "reports/index", "gallery",
         "nbs/study/table_multitask", "api/vl12in1.training.schedules"]


def module(name):
    "One of the programs in docs/, imported from its file."
    sys.path.insert(0, str(ROOT / "docs"))
    try: return importlib.import_module(name)
    finally: sys.path.remove(str(ROOT / "docs"))


# --- what is gathered

def test_every_chapter_has_a_part():
    assert {path.name[0] for path in (ROOT / "nbs").glob("[0-9]*.ipynb")} == set(module("gather").PARTS)


def test_the_front_page_lists_every_guide():
    listed = re.findall("^nbs/guides/(.+)$", (ROOT / "docs/front.md").read_text(), re.M)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "nbs/guides").glob("*.ipynb"))


@pytest.mark.parametrize("source, text, tags", [
    ("#| export\nx = 1", "x = 1", ["library"]), ("x = 1", "x = 1", []),
    ("#| exporti\n#| hide_input\nx = 1", "x = 1", ["library", "remove-input"])])
def test_directives_are_hidden(source, text, tags):
    (cell,) = module("gather").shown(dict(cell_type="code", source=source, metadata={}))
    assert cell["source"] == text and cell["metadata"]["tags"] == tags


@pytest.mark.parametrize("source", ["#| hide\nimport os", "#| default_exp boxes"])
def test_hidden_cells_are_left_out(source):
    assert module("gather").shown(dict(cell_type="code", source=source, metadata={})) == []


def test_a_title_is_numbered_and_followed_by_where_it_stands():
    text = module("gather").titled("# Boxes\n> Where things are.\n\nThree conventions.", ["part 0", "a link"], number="01")
    assert text.startswith("# 01 Boxes\n\n> Where things are.\n\n:::{container} facts\npart 0 · a link\n:::\n\n")
    assert text.endswith("\n\nThree conventions.\n")


@pytest.mark.parametrize("target, followed, copied", [
    ("../README.md#two", "../index.md", []), ("01_boxes.ipynb#Overlap", "01_boxes.ipynb#Overlap", []), ("#here", "#here", []),
    ("https://example.org", "https://example.org", []), ("../params.yaml", "../params.yaml", ["params.yaml"]),
    ("../reports/thorough", "../reports/thorough/index.md", []), ("../profiles", module("gather").REPOSITORY + "/profiles", []),
    ("../reports/table_of_tomorrow.md", None, []), ("../tests/parity/README.md", "../tests/parity/README.md", ["README.md"])])
def test_links_are_followed(target, followed, copied, tmp_path):
    gather = module("gather")
    text = gather.followed(f"[a]({target}) b", gather.BOOK / "00_tasks.ipynb", tmp_path)
    assert text == (f"[a]({followed}) b" if followed else "a b")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == copied


@pytest.mark.parametrize("ran, outputs", [("x = 1", {"a": [dict(data={"text/markdown": "new"})]}), ("x = 2", {})])
def test_outputs_are_those_of_the_same_code(ran, outputs, tmp_path, monkeypatch):
    gather = module("gather")
    monkeypatch.setattr(gather, "ROOT", tmp_path)
    (tmp_path / "executed").mkdir()
    shown = dict(data={"text/markdown": ["[new](table.md)"]})
    cells = [dict(id="a", cell_type="code", source=[ran], metadata={}, outputs=[shown])]
    (tmp_path / "executed/table.ipynb").write_text(json.dumps(dict(cells=cells)))
    committed = [dict(id="a", cell_type="code", source=["x = 1"], metadata={}, outputs=[])]
    assert gather.executed(tmp_path / "nbs/study/table.ipynb", committed) == outputs


# --- what is checked

@pytest.mark.parametrize("body, complaint", [
    ('<a href="b.html">b</a><a href="a.html#top">top</a><h1 id="top"></h1><a href="https://example.org">e</a>', None),
    ('<a href="c.html">c</a>', "c.html leads nowhere"), ('<img src="d.png">', "d.png leads nowhere"),
    ('<a href="b.html#part">part</a>', "no anchor b.html#part"),
    ('<script src="https://example.org/mathjax.js"></script>', "asks another host for https://example.org/mathjax.js"),
    ('<link rel="stylesheet" href="//example.org/font.css">', "asks another host for //example.org/font.css")])
def test_a_broken_link_is_found(body, complaint, tmp_path):
    (tmp_path / "a.html").write_text(body)
    (tmp_path / "b.html").write_text("b")
    complaints, followed = module("check").broken(tmp_path)
    assert [line.partition(": ")[2] for line in complaints] == [complaint] * bool(complaint)
    assert followed == (2 if complaint is None else "another host" not in complaint)


def test_a_font_of_another_host_is_found(tmp_path):
    (tmp_path / "book.css").write_text("@font-face { src: url('https://example.org/font.woff2') }")
    assert module("check").broken(tmp_path)[0] == [f"{tmp_path}/book.css: asks another host for https://example.org/font.woff2"]


# --- workflows

@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_call_targets_that_exist(path):
    targets = set(re.findall(r"^([a-z. /-]+):", (ROOT / "Makefile").read_text(), re.M))
    targets = {name for line in targets for name in line.split()}
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    called = [name for step in steps for name in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))]
    assert called and set(called) <= targets
    assert all("run" in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps)


# --- in a browser

def needs(*packages):
    "Skips where the extra or the browser is missing."
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing: pytest.skip(f"{', '.join(missing)}: not installed; make site installs the extra vl12in1[docs], selenium is there for pip")
    if not (CHROMIUM and DRIVER): pytest.skip("no browser: apt-get install chromium chromium-driver")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    "Where the site is served, after it was built."
    needs("sphinx", "myst_nb", "furo", "latex2mathml", "selenium")
    site = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, ROOT / "docs/build.py", site], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ pages, \d+ MB, \d+ internal links, 0 broken, \d+ s$", done.stdout.strip())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words): pass


@pytest.fixture(scope="module", params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def browser(request, address):
    "A browser of a desktop's and of a phone's width, with the network off but for this machine."
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"): options.add_argument(argument)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    width, height = request.param
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500))
    yield browser
    browser.quit()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_and_is_complete(page, browser, address):
    browser.get(f"{address}/{page}.html")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    browser.execute_script("for (const image of document.images) image.loading = 'eager'")
    broken = ("return Promise.all([...document.images].map(image => image.decode().then(() => '', () => image.src)))"
              ".then(names => names.filter(name => name))")
    assert browser.execute_script(broken) == []
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked and all(name.startswith((address, "data:")) for name in asked)


@pytest.mark.slow
def test_mathematics_is_drawn(browser, address):
    browser.get(f"{address}/nbs/52_schedules.html")
    script = "return [...document.querySelectorAll('math')].map(formula => formula.getBoundingClientRect().height)"
    heights = browser.execute_script(script)
    assert len(heights) > 3 and min(heights) > 5
    assert "$" not in browser.find_element("css selector", "article p").text
    edges = ("const [above, below] = document.querySelector('mfrac').children;"
             "return [above.getBoundingClientRect().bottom, below.getBoundingClientRect().top]")
    above, below = browser.execute_script(edges)
    assert above <= below + 4  # a numerator stands above its denominator


@pytest.mark.slow
def test_search_finds_stop_and_go(browser, address):
    from selenium.webdriver.support.ui import WebDriverWait
    browser.get(f"{address}/search.html?q=stop-and-go")
    results = lambda browser: [link.get_attribute("href") for link in browser.find_elements("css selector", "ul.search li a")]
    found = WebDriverWait(browser, 60).until(lambda browser: results(browser))
    WebDriverWait(browser, 60).until(lambda browser: any("nbs/52_schedules.html" in link for link in results(browser)), str(found))


@pytest.mark.slow
def test_a_chapter_says_where_it_stands(browser, address):
    browser.get(f"{address}/nbs/52_schedules.html")
    facts = browser.find_element("css selector", ".facts")
    links = {link.text: link.get_attribute("href") for link in facts.find_elements("css selector", "a")}
    assert facts.text.startswith("Part 5")
    assert links["vl12in1.training.schedules"] == f"{address}/api/vl12in1.training.schedules.html"
    assert links["source notebook"].endswith("/52_schedules.ipynb")
    neighbours = {link.get_attribute("href").rpartition("/")[2] for link in browser.find_elements("css selector", ".related-pages a")}
    assert neighbours == {"51a_toy.html", "53_balancing.html"}
