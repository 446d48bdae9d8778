"""Gathers what the site shows into one folder, as Sphinx wants it: chapters, guides, study notebooks, reports, a page for each module.

Folders are those of the repository, so that links between notebooks and pages stay as they are. Nothing is run."""
import ast
import json
import os
import re
import shutil
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BOOK, REPORTS = ROOT / "nbs", ROOT / "reports"
# The first digit of a chapter's number is its part.
PARTS = {
    "0": ("Foundations", "The twelve tasks as one table, boxes, what an answer is worth, several processes, files, weights."),
    "1": ("The miniature world", "Scenes, photographs, language and files: thirteen small corpora that need no download."),
    "2": ("Readers", "Every release of the upstream files becomes tables of examples."),
    "3": ("Regions and cleaning", "What a detector saw in a picture, and which pictures nothing may learn from."),
    "4": ("Models", "Encoders, heads, saving, published checkpoints, BERT."),
    "5": ("Examples and training", "From tables to tensors; schedules, balancing, the trainer, runs, pre-training."),
    "6": ("Evaluation and asking", "Predictions, metrics, result files, a task of your own; asking a saved model about a picture."),
    "7": ("The study", "The runner, more seeds, clusters, experiments; statistics, results, tables and figures."),
    "8": ("Analyses and claims", "Doctor and plan; consistency, attention, probes; the claims, their reproduction, the protocol."),
    "9": ("The command line", "The command `vl12in1`, and the dozen names that `import vl12in1` offers."),
}
# Folder below reports/ -> what its study is called; the first that has a figure shows it in the gallery.
STUDIES = {"thorough": "with more seeds", ".": "with one seed", "beyond": "beyond the paper, with more seeds", "rerun": "with other seeds"}
REPOSITORY = "https://github.com/vl12in1/vl12in1/tree/main"
# Pictures of the front page: the first that is there.
FRONT = {"picture": ["nbs/demo.png", "reports/figure_attention.png"],
         "headline": ["reports/thorough/figure_headline.svg", "reports/figure_headline.svg", "reports/thorough/figure_learning.png"]}
DIRECTIVE = re.compile(r"^#\|\s*(\w+).*\n?", re.M)
TAGS = {"export": "library", "exporti": "library", "hide_input": "remove-input", "hide_output": "remove-output"}
INLINE = re.compile(r"!?\[([^\]]*)\]\(([^)\s#]+)[^)]*\)")
LINK = re.compile(r"(\]\(|^\[[^\]]+\]:\s+)([^)\s]+)", re.M)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def copy(file, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def relative(file, page):
    "The link from a page to a file, both by their places in the repository."
    return Path(os.path.relpath(file, page.parent)).as_posix()


def heading(path):
    "(title, subtitle) of a notebook, from its first cell."
    text = "".join(json.loads(path.read_text())["cells"][0]["source"])
    title, subtitle = re.match(r"# (.+)\n?((?:>.*\n?)*)", text).groups()
    return title, re.sub(r"^> ?", "", subtitle, flags=re.M).strip()


def titled(text, facts, number="", study=""):
    "The text of a page with a line of facts below its title and subtitle; the number of a chapter, the name of a study in the title."
    title, subtitle, rest = re.match(r"# (.+)\n?((?:>.*\n?)*)((?s:.*))", text).groups()
    title = " ".join(part for part in ("#", number, title, study) if part)
    line = f":::{{container}} facts\n{' · '.join(facts)}\n:::" if facts else ""
    return "\n\n".join(part.strip("\n") for part in (title, subtitle, line, rest) if part) + "\n"


def table(header, rows):
    "Rows of cells as a Markdown table."
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def contents(names):
    "What makes pages follow each other, and stand in the list at the side."
    return "\n".join(["```{toctree}", ":hidden:", "", *map(str, names), "```", ""])


# --- links

def followed(text, path, pages):
    """The Markdown of the file at `path`, with links that lead somewhere from its page: instead of to README.md to the front page, instead
    of to a folder to its index or to the repository. A linked file that is no page yet is copied; one of Markdown becomes a page. Of a link
    to a report that the study has not made there remain the words."""
    def made(match):
        file = (path.parent / match[2]).resolve()
        return match[0] if file.exists() or REPORTS not in file.parents else match[1]

    def follow(match):
        before, target = match.groups()
        if re.match(r"[a-z]+:|#", target): return match[0]
        file = (path.parent / target.partition("#")[0]).resolve()
        if file == ROOT / "README.md": return before + relative(ROOT / "index.md", path)
        if (file / "index.md").exists(): return f"{before}{target}/index.md"
        if file.is_dir(): return f"{before}{REPOSITORY}/{file.relative_to(ROOT)}"
        place = pages / file.relative_to(ROOT)
        if is_page(file) or not file.exists(): return match[0]  # a link within the site
        if file.suffix == ".md": write(place, f"---\norphan: true\n---\n{followed(file.read_text(), file, pages)}")
        else: copy(file, place)
        return match[0]
    return LINK.sub(follow, INLINE.sub(made, text))


def is_page(file):
    "Has this file a page of its own anyway?"
    return file.suffix == ".ipynb" or file.suffix == ".md" and (file.parent == ROOT or REPORTS in file.parents)


# --- notebooks

def shown(cell):
    "A cell as the site shows it, without nbdev's directives; none where nbdev hides it."
    source = "".join(cell["source"])
    words = set(DIRECTIVE.findall(source))
    if words & {"hide", "default_exp"}: return []
    tags = cell["metadata"].get("tags", []) + sorted(TAGS[word] for word in words & set(TAGS))
    return [cell | dict(source=DIRECTIVE.sub("", source), metadata=dict(tags=tags))]


def executed(path, cells):
    "Cell id -> outputs of the executed notebook of a stage; nothing if it has not been run, or if its code is not that of the commit."
    parameters = "".join("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    run = re.search(r'"(\w+)"', parameters)
    file = ROOT / "executed" / (f"{path.stem}@{run[1]}.ipynb" if run else path.name)
    if not file.exists(): return {}
    ran = {cell["id"]: cell for cell in json.loads(file.read_text())["cells"]}
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    if any(cell["source"] != ran.get(cell["id"], {}).get("source") for cell in code): return {}
    for output in (output for cell in ran.values() for output in cell.get("outputs", [])):
        pages = output.get("data", {})  # a report that a notebook shows has a page of its own: there its links are followed
        if "text/markdown" in pages: pages["text/markdown"] = INLINE.sub(r"\1", "".join(pages["text/markdown"]))
    return {cell["id"]: ran[cell["id"]]["outputs"] for cell in code}


def write_notebook(path, pages, facts, number=""):
    "The page of a notebook, and the notebook itself beside the pages, to be downloaded."
    notebook = json.loads(path.read_text())
    outputs = executed(path, notebook["cells"]) if path.parent.name == "study" else {}
    source = relative(ROOT / "source" / path.relative_to(ROOT), path)
    cells = [new for cell in notebook["cells"] for new in shown(cell)]
    cells[0]["source"] = titled(cells[0]["source"], [*facts, f"{{download}}`source notebook <{source}>`"], number)
    for cell in cells:
        if cell["cell_type"] == "markdown": cell["source"] = followed(cell["source"], path, pages)
        elif cell["id"] in outputs: cell["outputs"] = outputs[cell["id"]]
    write(pages / path.relative_to(ROOT), json.dumps(notebook | dict(cells=cells)))
    copy(path, pages / "source" / path.relative_to(ROOT))


# --- the book

def module_of(path):
    "vl12in1.training.schedules for the chapter that exports it."
    cells = json.loads(path.read_text())["cells"]
    name = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join("".join(cell["source"]) for cell in cells), re.M)[1]
    return re.sub(r"\.?__init__$", "", f"vl12in1.{name}")


def write_book(pages):
    "The chapters, a page for each part of them, and the map of the parts; returns chapter -> module."
    chapters = {path: module_of(path) for path in sorted(BOOK.glob("[0-9]*.ipynb"))}
    for path, module in chapters.items():
        part = path.name[0]
        facts = [f"Part {part}, [{PARTS[part][0]}](../book/part{part}.md), in [the book](../book/index.md)",
                 f"makes [`{module}`](../api/{module}.rst)"]
        write_notebook(path, pages, facts, number(path))
    for part, (title, text) in PARTS.items():
        own = [path for path in chapters if path.name[0] == part]
        rows = [[f"[{number(path)} {heading(path)[0]}](../nbs/{path.name})", heading(path)[1], f"`{chapters[path]}`"] for path in own]
        listed = table(["chapter", "what it is about", "module"], rows)
        below = contents(f"/nbs/{path.stem}" for path in own)
        write(pages / f"book/part{part}.md", f"# Part {part}: {title}\n\n{text}\n\n{listed}\n\n{below}")
    parts = table(["part", "what it is about"], [[f"[Part {part}: {title}](part{part}.md)", text] for part, (title, text) in PARTS.items()])
    write(pages / "book/index.md", f"{BOOK_TEXT}\n{parts}\n\n{contents(f'part{part}' for part in PARTS)}")
    return chapters


def number(path):
    "13a for 13a_programs.ipynb."
    return path.name.split("_")[0]


BOOK_TEXT = """# The book

Every module of the library is a chapter: what the paper or its code says, the few lines that do it, and a cell that shows them
work. Code with a coloured edge is what the library consists of; everything else shows it or checks it. A chapter only uses
chapters with smaller numbers.
"""


# --- the library

def write_library(chapters, pages):
    "A page for each module, which Sphinx fills with its docstrings, and the list of them."
    for path, module in chapters.items(): write(pages / f"api/{module}.rst", module_page(module, path.stem))
    in_order = sorted(chapters.items(), key=lambda item: item[1])
    listed_modules = [f"{module.removeprefix('vl12in1.')} <{module}>" for _, module in in_order]
    listed = table(["module", "what it is about"], [[f"[`{module}`]({module}.rst)", heading(path)[1]] for path, module in in_order])
    text = "# The library\n\nWhat the modules offer, from their docstrings."
    write(pages / "api/index.md", f"{text}\n\n{listed}\n\n{contents(listed_modules)}")


def module_page(module, chapter):
    "The page of a module: the functions and classes that are defined in it, and the other names that it offers."
    folder = ROOT.joinpath(*module.split("."))
    tree = ast.parse((folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text())
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    public = ast.literal_eval(assigned["__all__"])
    defined = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    members = ", ".join(name for name in public if name in defined)
    others = ", ".join(f"``{name}``" for name in public if name not in defined)
    text = f"{module}\n{'=' * len(module)}\n\nWritten in :doc:`/nbs/{chapter}`.\n\n.. automodule:: {module}\n"
    if members: text += f"   :members: {members}\n"
    if others: text += f"\nFurther names: {others}.\n"
    return text


# --- the study

def makers():
    "Name of a table or figure -> the stage that makes it."
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs = {stage: stages[stage].get("outs", []) for stage in stages}
    names = {stage: [next(iter(out)) if isinstance(out, dict) else out for out in outs[stage]] for stage in outs}
    return {Path(name).stem: stage for stage in names for name in names[stage] if name.startswith("reports/")}


def write_study(pages):
    "The notebooks of the stages, one page for each, and the list of them."
    made = {}
    for name, stage in makers().items(): made.setdefault(stage, []).append(name)
    notebooks = sorted((BOOK / "study").glob("*.ipynb"))
    for path in notebooks:
        tables = [f"[{name}](../../reports/{name}.md)" for name in made.get(path.stem, []) if (REPORTS / f"{name}.md").exists()]
        figures = [f"[{name}](../../gallery.md#{name})" for name in made.get(path.stem, []) if any(REPORTS.rglob(f"{name}.png"))]
        write_notebook(path, pages, ["[The study's notebooks](../../study/index.md)", *[f"makes {link}" for link in tables + figures]])
    rows = [[f"[{heading(path)[0]}](../nbs/study/{path.name})", heading(path)[1]] for path in notebooks]
    listed = table(["notebook", "what it is about"], rows)
    text = "# Notebooks of the study\n\nEach stage of the study runs one notebook, and most of them make one table or one figure."
    write(pages / "study/index.md", f"{text}\n\n{listed}\n\n{contents(f'/nbs/study/{path.stem}' for path in notebooks)}")


def write_reports(pages):
    "Tables and indexes of every study, each with a line on what made it."
    stages = makers()
    for path in sorted(REPORTS.rglob("*.md")):
        folder = path.parent.relative_to(REPORTS).as_posix()
        links = {"CSV": path.with_suffix(".csv")}
        if path.stem in stages: links["the notebook that made it"] = BOOK / "study" / f"{stages[path.stem]}.ipynb"
        if folder in STUDIES: links |= {STUDIES[study]: REPORTS / study / path.name for study in STUDIES if study != folder}
        facts = [f"[{words}]({relative(file, path)})" for words, file in links.items() if file.exists()]
        text = titled(path.read_text(), facts, study=f"({STUDIES[folder]})" if folder in STUDIES else "")
        if path.name == "index.md":
            others = [*path.parent.glob("[ft]*.md"), *path.parent.glob("benchmarks/*.md")]
            text += "\n" + contents(sorted(other.relative_to(path.parent).with_suffix("") for other in others))
        write(pages / path.relative_to(ROOT), followed(text, path, pages))


def write_gallery(pages):
    "All figures, one section each: that of the study with most seeds, links to the others, its table and its notebook."
    stages = makers()
    sections = []
    for name in sorted({path.stem for path in REPORTS.rglob("figure_*.png")}):
        files = {study: best(REPORTS / study / name) for study in STUDIES if (REPORTS / study / f"{name}.png").exists()}
        for file in files.values(): copy(file, pages / file.relative_to(ROOT))
        links = {STUDIES[study]: file.relative_to(ROOT) for study, file in files.items()}
        folder = REPORTS / next(iter(files))
        pages_of = {"what made it": folder / f"{name}.md", "table": folder / f"{name.replace('figure_', 'table_')}.md"}
        links |= {words: file.relative_to(ROOT) for words, file in pages_of.items() if file.exists()}
        links["notebook"] = f"nbs/study/{stages[name]}.ipynb"
        title, subtitle = heading(ROOT / links["notebook"])
        shown = f"![{title}]({next(iter(links.values()))})"
        below = " · ".join(f"[{words}]({file})" for words, file in links.items())
        sections.append(f"({name})=\n## {title}\n\n{subtitle}\n\n{shown}\n\n{below}\n")
    write(pages / "gallery.md", "# Gallery\n\nEvery figure of the study.\n\n" + "\n".join(sections))


def best(path):
    "A figure as SVG where there is one, else as PNG."
    return path.with_suffix(".svg") if path.with_suffix(".svg").exists() else path.with_suffix(".png")


# --- everything

def front(pages):
    "The front page; what its lists of pages name by a pattern, and what is not there, is left out."
    lines = (ROOT / "docs/front.md").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not re.fullmatch(r"[\w/]+\*", line.strip()) or any(pages.glob(line.strip())))


def gather(pages):
    "All pages, anew, in the folder `pages`."
    shutil.rmtree(pages, ignore_errors=True)
    chapters = write_book(pages)
    write_library(chapters, pages)
    write_study(pages)
    write_reports(pages)
    write_gallery(pages)
    write_notebook(BOOK / "index.ipynb", pages, ["[The book](../book/index.md), in ten minutes"])
    for path in (BOOK / "guides").glob("*.ipynb"): write_notebook(path, pages, ["Guide"])
    for path in ROOT.glob("*.md"):
        if path.name != "README.md": write(pages / path.name, followed(path.read_text(), path, pages))
    for name, candidates in FRONT.items():
        file = next(ROOT / candidate for candidate in candidates if (ROOT / candidate).exists())
        copy(file, pages / f"{name}{file.suffix}")
    write(pages / "index.md", front(pages))

