"""Annotation files of upstream's forms and sizes, filled with random words: what reading is measured on, since no corpus can be taken for
granted. A function for each corpus writes its files below `root`, record by record."""
import json
import random
from itertools import repeat
from pathlib import Path

WORDS = [f"word{number}" for number in range(8000)]
ANSWERS = [f"answer {number}" for number in range(1800)]
PHOTOGRAPHS = 108_077  # of Visual Genome


def text(rng, fewest=4, most=12) -> str:
    "Words at random, a text of a question's or a caption's length; frequent ones are drawn as often as in any language."
    return " ".join(WORDS[int(len(WORDS) ** rng.random()) - 1] for _ in range(rng.randint(fewest, most)))


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


def vqa(root, sizes=None):
    "VQA v2: 443,757 questions for training, 214,354 for validation, 447,793 without answers, or other `sizes` of the three."
    for subset, questions in zip(("train2014", "val2014", "test2015"), sizes or (443_757, 214_354, 447_793)):
        rng, first = random.Random(subset), {"train2014": 1, "val2014": 200_000, "test2015": 400_000}[subset]
        asked = [dict(image_id=first + number // 5, question_id=1000 * (first + number // 5) + number % 5) for number in range(questions)]
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


def gqa(root, sizes=None):
    "GQA, balanced: 943,000 questions for training, 132,062 for validation, 12,578 of testdev, or other `sizes` of the three."
    write_photographs(root)
    for split, questions in zip(("train", "val", "testdev"), sizes or (943_000, 132_062, 12_578)):
        rng, first = random.Random(split), {"train": 0, "val": 10_000_000, "testdev": 20_000_000}[split]
        with opened(root, f"gqa/{split}_balanced_questions.json") as file:
            for number in range(questions):
                image = f"n{rng.randrange(400)}" if split == "testdev" else str(rng.randint(1, PHOTOGRAPHS))
                file.write(f'{", " if number else "{"}"{first + 7 * number:08d}": {json.dumps(gqa_record(rng, image))}')
            file.write("}")


def snli_ve(root, sizes=None):
    "SNLI-VE, original: 529,527 pairs for training, 17,858 of dev, 17,901 for the test, or other `sizes` of the three."
    for split, pairs in zip(("train", "dev", "test"), sizes or (529_527, 17_858, 17_901)):
        rng, first = random.Random(split), {"train": 10_000_000, "dev": 20_000_000, "test": 30_000_000}[split]
        with opened(root, f"snli_ve/snli_ve_{split}.jsonl") as file:
            for number in range(pairs):
                image, label = f"{first + number // 18}.jpg", rng.choice(("entailment", "neutral", "contradiction"))
                premise, hypothesis = text(rng, 8, 20), text(rng, 4, 12)
                parsed = {f"sentence{i}{kind}": " ".join(f"({'' if kind == '_binary_parse' else 'NN'} {word})" for word in words.split())
                          for i, words in ((1, premise), (2, hypothesis)) for kind in ("_binary_parse", "_parse")}
                record = {"annotator_labels": [label], "captionID": f"{image}#{number % 5}", "gold_label": label,
                          "pairID": f"{image}#{number % 5}r{number}", "sentence1": premise, "sentence2": hypothesis, **parsed,
                          "Flikr30kID": image}
                file.write(json.dumps(record) + "\n")


def conceptual_captions(root, sizes=None):
    "Conceptual Captions: 3,318,333 pairs for training, 15,840 for validation, or other `sizes` of the two."
    files = {"train": "Train_GCC-training.tsv", "val": "Validation_GCC-1.1.0-Validation.tsv"}
    for (split, name), pairs in zip(files.items(), sizes or (3_318_333, 15_840)):
        rng = random.Random(split)
        with opened(root, f"conceptual_captions/{name}") as file:
            for number in range(pairs):
                file.write(f"{text(rng, 6, 16)}\thttp://static{number % 97}.example.com/{split}/pictures/large/{rng.randrange(10 ** 9)}/{number}.jpg\n")


WRITERS = {"gqa": gqa, "vqa": vqa, "snli_ve": snli_ve, "conceptual_captions": conceptual_captions}
