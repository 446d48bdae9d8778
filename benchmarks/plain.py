"""The published computation, to compare with: every position of every layer, padding too, attention written out, every head.

It runs with the weights of this library's models, so that both give the same numbers (`tests/test_layers.py` compares them, and
`tests/test_parity.py` with those of the published program). What it does in vain, the published program does in vain: all
heads for whatever task, the words' and the regions' heads of pre-training for every position, texts padded to the length of
their task and pictures to 101 rows, the last layers of both streams for positions that nobody reads, and an optimiser that
takes one parameter after another.
"""
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from vl12in1.model import Encoded
from vl12in1.model.layers import LAYERS, meeting


def attention(block, x, key, value, mask):
    query = block.query_in(x)
    query, key, value = (part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** .5 + (~mask)[:, None, None] * -1e4
    weights = F.dropout(scores.softmax(-1), block.attention_dropout, block.training)
    return block.attention_out((weights @ value).transpose(1, 2).flatten(2))


def layers(encoder, order, streams, masks):
    "The streams, name -> (N, L, hidden), after the layers of an order."
    for kind, number in order:
        blocks, before = encoder.blocks(kind, number), dict(streams)
        for asks, (asked,) in LAYERS[kind].items():
            key, value = blocks[asked].key_value_in(before[asked]).chunk(2, -1)
            block = blocks[asks]
            x = block.attention_norm(before[asks] + block.dropout(attention(block, before[asks], key, value, masks[asked])))
            inner = F.gelu(block.feed_forward_in(x))
            streams = streams | {asks: block.feed_forward_norm(x + block.dropout(block.feed_forward_out(inner)))}
    return streams


def begin(encoder, batch):
    "The streams before the first layer, and their masks."
    streams = {"text": encoder.text_embeddings(batch.tokens, batch.task_row, batch.segments),
               "image": encoder.image_embeddings(batch.features, batch.spatials)}
    token = int(bool(encoder.config.task_tokens))
    return streams, {"text": F.pad(batch.text_mask, (token, 0), value=True), "image": batch.region_mask}


def encode(encoder, batch) -> Encoded:
    "A batch after all layers."
    streams, masks = begin(encoder, encoder.prepared(batch))
    streams = layers(encoder, encoder.order, streams, masks)
    return Encoded(streams["text"], streams["image"], *encoder.pool(streams["text"][:, 0], streams["image"][:, 0]))


class Plain(nn.Module):
    "`Batch` -> logits of the head of its task. `model` and, for the heads of pre-training, `pretraining` give the weights."

    def __init__(self, model, pretraining):
        super().__init__()
        self.model, self.pretraining = model, pretraining.heads
        self.sentence = nn.Linear(model.config.text_width, 1)  # the published head that no task uses

    def head(self, task): return self.model.head(task)

    def heads(self, encoded, batch) -> dict[str, torch.Tensor]:
        "What every head says of every row."
        regions = replace(batch, candidates=None)
        logits = {name: head.logits(encoded, regions) for name, head in self.model.heads.items()
                  if len(batch.tokens) % head.rows == 0 or name == "match"}
        self.pretraining.words(encoded.text, self.model.encoder.word_table())
        self.pretraining.regions(encoded.image)
        self.pretraining.alignment(encoded.pooled)
        self.sentence(encoded.text)
        return logits

    def forward(self, batch):
        encoded = encode(self.model.encoder, batch)
        logits, head = self.heads(encoded, batch), self.model.head(batch.task)
        if batch.candidates is not None: return head.logits(encoded, batch).float()
        return next(own for name, own in logits.items() if self.model.heads[name] is head).float()

    def rank(self, batch) -> torch.Tensor:
        "Scores of one text with the M images that stand beside it in a batch, in the published fast mode: what precedes the meeting once."
        encoder, batch = self.model.encoder, self.model.encoder.prepared(batch)
        streams, masks = begin(encoder, batch)
        meet, count = meeting(encoder.order), len(batch.features)
        streams = layers(encoder, encoder.order[:meet], streams, masks)
        streams, masks = ({name: every.expand(count, *every.shape[1:]) for name, every in of.items()} for of in (streams, masks))
        streams = layers(encoder, encoder.order[meet:], streams, masks)
        pairs = replace(batch, tokens=batch.tokens.expand(count, -1))
        encoded = Encoded(streams["text"], streams["image"], *encoder.pool(streams["text"][:, 0], streams["image"][:, 0]))
        return self.heads(encoded, pairs)["match"]


def optimizer(module, rate=2e-5):
    "AdamW as the published program uses it: a group for each parameter, one after another."
    return torch.optim.AdamW([dict(params=[parameter]) for parameter in module.parameters()], lr=rate, foreach=False, fused=False)
