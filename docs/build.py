"Builds the site: `python docs/build.py FOLDER`. A warning of Sphinx or a broken link fails."
import sys
import tempfile
import time
from pathlib import Path

from sphinx.cmd.build import main as sphinx

from check import broken
from gather import gather


def build(site):
    "The site in the folder `site`; returns 0, or 1 if something is wrong with it."
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pages, trees = Path(folder, "pages"), Path(folder, "trees")
        gather(pages)
        options = ["-q", "-W", "--keep-going", "-j", "auto", "-c", str(Path(__file__).parent), "-d", str(trees)]
        if sphinx([*options, str(pages), str(site)]): return 1
    complaints, links = broken(site)
    for complaint in complaints: print(complaint)
    files = [path for path in Path(site).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    count = sum(path.suffix == ".html" for path in files)
    print(f"{site}: {count} pages, {size:.0f} MB, {links} internal links, {len(complaints)} broken, {time.monotonic() - begin:.0f} s")
    return int(bool(complaints))


if __name__ == "__main__": sys.exit(build(Path(sys.argv[1])))
