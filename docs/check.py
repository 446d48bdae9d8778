"Checks a built site: every link and anchor leads somewhere, and no page asks another host for a script, a style or a picture."
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote


class Page(HTMLParser):
    "The anchors, links and resources of a page."

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.resources = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors.add(attributes.get("id"))
        if tag == "a": self.links.add(attributes.get("href"))
        else: self.resources |= {attributes.get("src"), attributes.get("href")}


def is_external(link):
    return bool(re.match(r"([a-z]+:)?//|mailto:", link))


def broken(site):
    "Complaints about the pages below the folder `site`, and the number of links that were followed."
    files = {str(path) for path in Path(site).rglob("*") if path.is_file()}
    pages = {path: Page(Path(path).read_text()) for path in sorted(files) if path.endswith(".html")}
    complaints, followed = [], 0
    for path, page in pages.items():
        for link in sorted((page.links | page.resources) - {None, "", "#"}):
            if link.startswith("data:"): continue
            if is_external(link):
                if link in page.resources: complaints.append(f"{path}: asks another host for {link}")
                continue
            followed += 1
            target, _, anchor = unquote(link).partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(path), target.split("?")[0])) if target else path
            if target not in files: complaints.append(f"{path}: {link} leads nowhere")
            elif anchor and target in pages and anchor not in pages[target].anchors: complaints.append(f"{path}: no anchor {link}")
    for style in sorted(Path(site).rglob("*.css")):
        urls = re.findall(r"url\(\s*[\"']?((?:https?:)?//[^)\"']+)", style.read_text())
        complaints += [f"{style}: asks another host for {url}" for url in urls]
    return complaints, followed
