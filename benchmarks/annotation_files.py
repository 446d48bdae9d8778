"""Annotation files of upstream's forms and sizes, filled with random words: what reading is measured on, since no corpus can be taken for
granted. A function for each corpus writes its files below `root`, record by record; another reads them as published code does."""
import json
import random
from itertools import accumulate, repeat
from pathlib import Path

WORDS = [f"word{number}" for number in range(8000)]
OFTEN = list(accumulate(1 / (number + 1) for number in range(len(WORDS))))  # a few words make most of a text, as in any language
ANSWERS = [f"answer {number}" for number in range(1800)]
PHOTOGRAPHS = 108_077  # of Visual Genome


def text(rng, fewest=4, most=12) -> str:
    "Words at random, as many as a question or a caption has."
    return " ".join(rng.choices(WORDS, cum_weights=OFTEN, k=rng.randint(fewest, most)))


def opened(root, path):
    "A new text file below `root`."
    file = Path(root) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("w", encoding="utf-8")


def write_list(root, path, field, records):
    "A JSON object with the list `records` under `field`, or the list alone if that is None."
    with opened(root, path) as file:
        file.write("[" if field is None else json.dumps({"info": {"version": "2.0"}})[:-1] + f', "{field}": [')
        for number, record in enumerate(records): file.write(", " * (number > 0) + json.dumps(record))
        file.write("]" if field is None else "]}")


def write_photographs(root):
    "Visual Genome's list of its photographs, half of them COCO's."
    write_list(root, "visual_genome/image_data.json", None, (
        {"image_id": number, "url": f"https://cs.stanford.edu/people/rak248/VG_100K_2/{number}.jpg", "width": 800, "height": 600,
         "coco_id": 2 * number if number % 2 else None, "flickr_id": 7 * number} for number in range(1, PHOTOGRAPHS + 1)))


def vqa(root, fraction=1.):
    "A fraction of VQA v2: of 443,757 questions for training, 214,354 for validation, 447,793 without answers."
    for subset, questions in {"train2014": 443_757, "val2014": 214_354, "test2015": 447_793}.items():
        rng, first = random.Random(subset), {"train2014": 1, "val2014": 200_000, "test2015": 400_000}[subset]
        numbers = ((first + number // 5, number % 5) for number in range(int(fraction * questions)))
        asked = [dict(image_id=image, question_id=1000 * image + number) for image, number in numbers]
        write_list(root, f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json", "questions", (
            {"image_id": ids["image_id"], "question": text(rng) + "?", "question_id": ids["question_id"]} for ids in asked))
        if subset == "test2015": continue
        given = ([ANSWERS[int(1800 * rng.random() ** 4)] for _ in range(2)] for _ in repeat(None))
        write_list(root, f"vqa/v2_mscoco_{subset}_annotations.json", "annotations", (
            {"question_type": "what is this", "multiple_choice_answer": (two := next(given))[0], "answers": [
                {"answer": two[number % 3 == 2], "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)],
             "image_id": ids["image_id"], "answer_type": "other", "question_id": ids["question_id"]} for ids in asked))


def gqa_record(rng, image) -> dict:
    "A question of GQA, with the program and the annotations that upstream gives with it."
    thing, answer, number = rng.choice(WORDS), ANSWERS[int(1800 * rng.random() ** 4)], str(rng.randrange(4_000_000))
    steps = [{"operation": operation, "dependencies": [step - 1] * (step > 0), "argument": f"{thing} ({number})"}
             for step, operation in enumerate(("select", "relate", "query")[:rng.randint(2, 3)])]
    return {"semantic": steps, "entailed": [f"{rng.randrange(20_000_000):08d}" for _ in range(rng.randint(0, 6))],
            "equivalent": [f"{rng.randrange(20_000_000):08d}"], "question": text(rng, 5, 12) + "?", "imageId": image, "isBalanced": True,
            "groups": {"global": thing if rng.random() < .5 else None, "local": f"06-{thing}_{answer}"}, "answer": answer,
            "semanticStr": "->".join(f"{step['operation']}: {thing} ({number})" for step in steps),
            "annotations": {"answer": {"0": number}, "question": {"4": number, "9": number}, "fullAnswer": {"1": number}},
            "types": {"detailed": rng.choice(("categoryRelS", "verifyAttr", "relS")), "semantic": "rel", "structural": "query"},
            "fullAnswer": f"The {thing} is {answer}."}


def gqa(root, fraction=1.):
    "A fraction of GQA, balanced: of 943,000 questions for training, 132,062 for validation, 12,578 of testdev."
    write_photographs(root)
    for split, questions in {"train": 943_000, "val": 132_062, "testdev": 12_578}.items():
        rng, first = random.Random(split), {"train": 0, "val": 10_000_000, "testdev": 20_000_000}[split]
        with opened(root, f"gqa/{split}_balanced_questions.json") as file:
            for number in range(int(fraction * questions)):
                image = f"n{rng.randrange(400)}" if split == "testdev" else str(rng.randint(1, PHOTOGRAPHS))
                file.write(f'{", " if number else "{"}"{first + 7 * number:08d}": {json.dumps(gqa_record(rng, image))}')
            file.write("}")


def snli_ve(root, fraction=1.):
    "A fraction of SNLI-VE, the original: of 529,527 pairs for training, 17,858 of dev, 17,901 for the test."
    for split, pairs in {"train": 529_527, "dev": 17_858, "test": 17_901}.items():
        rng, first = random.Random(split), {"train": 10_000_000, "dev": 20_000_000, "test": 30_000_000}[split]
        with opened(root, f"snli_ve/snli_ve_{split}.jsonl") as file:
            for number in range(int(fraction * pairs)):
                image, label = f"{first + number // 18}.jpg", rng.choice(("entailment", "neutral", "contradiction"))
                premise, hypothesis = text(rng, 8, 20), text(rng, 4, 12)
                parsed = {f"sentence{i}{kind}": " ".join(f"({'' if kind == '_binary_parse' else 'NN'} {word})" for word in words.split())
                          for i, words in ((1, premise), (2, hypothesis)) for kind in ("_binary_parse", "_parse")}
                record = {"annotator_labels": [label], "captionID": f"{image}#{number % 5}", "gold_label": label,
                          "pairID": f"{image}#{number % 5}r{number}", "sentence1": premise, "sentence2": hypothesis, **parsed,
                          "Flikr30kID": image}
                file.write(json.dumps(record) + "\n")


def conceptual_captions(root, fraction=1.):
    "A fraction of Conceptual Captions: of 3,318,333 pairs for training, 15,840 for validation."
    names = {"train": "Train_GCC-training", "val": "Validation_GCC-1.1.0-Validation"}
    for split, pairs in {"train": 3_318_333, "val": 15_840}.items():
        rng = random.Random(split)
        with opened(root, f"conceptual_captions/{names[split]}.tsv") as file:
            for number in range(int(fraction * pairs)):
                address = f"http://static{number % 97}.example.com/{split}/pictures/large/{rng.randrange(10 ** 9)}/{number}.jpg"
                file.write(f"{text(rng, 6, 16)}\t{address}\n")


WRITERS = {"gqa": gqa, "vqa": vqa, "snli_ve": snli_ve, "conceptual_captions": conceptual_captions}


def every(field, *files):
    "The records below `field` of JSON files, or of their lists if that is None, all parsed at once."
    for file in files:
        content = json.loads(Path(file).read_bytes())
        yield from content if field is None else content[field]


def plain_vqa(root):
    "Entries of VQA's files as published code makes them: all is parsed, and a dictionary is kept for each question."
    answers = {record["question_id"]: record for record in every("annotations", *Path(root).glob("vqa/*_annotations.json"))}
    return [dict(question_id=record["question_id"], image_id=record["image_id"], text=record["question"],
                 answer=answers.get(record["question_id"])) for record in every("questions", *Path(root).glob("vqa/*_questions.json"))]


def plain_gqa(root):
    "Entries of GQA's files, likewise."
    contents = [json.loads(file.read_bytes()) for file in Path(root).glob("gqa/*_questions.json")]
    return [dict(question_id=id, image_id=record["imageId"], text=record["question"], answer=record)
            for content in contents for id, record in content.items()]


def plain_snli_ve(root):
    "Entries of SNLI-VE's files, likewise."
    records = [json.loads(line) for file in Path(root).glob("snli_ve/*.jsonl") for line in file.open("rb")]
    return [dict(question_id=record["pairID"], image_id=record["Flikr30kID"], text=record["sentence2"], answer=record)
            for record in records]


def plain_conceptual_captions(root):
    "Entries of Conceptual Captions, likewise."
    lines = (line.rstrip("\n").split("\t") for file in Path(root).glob("conceptual_captions/*.tsv") for line in file.open(encoding="utf-8"))
    return [dict(image_id=address, text=caption) for caption, address in lines]


PLAIN = {"gqa": plain_gqa, "vqa": plain_vqa, "snli_ve": plain_snli_ve, "conceptual_captions": plain_conceptual_captions}
