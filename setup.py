"""What pyproject.toml has no words for: the page on PyPI links to the repository, and nbdev's index stays out of the wheel."""
import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

REPOSITORY = "https://github.com/vl12in1/vl12in1"


def with_absolute_links(text: str) -> str:
    "Markdown whose links and pictures lead to the repository, where they led to files beside the text."
    text = re.sub(r"(!\[[^\]]*\]\()(?![a-z]+:|#)", rf"\1{REPOSITORY}/raw/main/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?![a-z]+:|#)", rf"\1{REPOSITORY}/blob/main/", text)


class WithoutIndex(build_py):
    "Leaves out `_modidx.py`, which only nbdev reads."

    def find_package_modules(self, package, package_dir):
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "_modidx"]


readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
setup(long_description=with_absolute_links(readme), long_description_content_type="text/markdown", cmdclass=dict(build_py=WithoutIndex))
