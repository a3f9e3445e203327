"""The recipe of `guide`: questions.yaml and elsewhere.yaml -> guide.gguf, a llama of two million parameters. README.md says how.

Everything is made here: the vocabulary (pieces of words, by byte-pair encoding, written as llama.cpp's SPM vocabulary), the
weights (PyTorch on the CPU, seeded) and the file (Q8_0). Only answers are trained on: the topic token that opens each of them, and,
for some, how they go on. Two layers do that better than four: few steps fit into an hour, and shallow models need fewer.
"""

import argparse
import itertools
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
PIECES = 2800
CUT_WORDS, MISSED_JOINTS = 0.15, 0.15
ELSEWHERE, CROSSED = 0.22, 0.2
"""Of the questions, how many are about something else, and how many are made of two wordings."""
SAID = 1 / 12
"""Of the answers, how many are trained on to their end: which one it is takes long to learn, how it goes on does not."""
SMOOTHING = 0.1
CERTAINTY = 4.0
"""By what all logits of the file are multiplied: clients sample at temperature 1, and the likeliest answer shall be the one they get."""
CONTROL = ("<s>", "<|user|>", "<|assistant|>", "<|end|>")
MOST_WORDS, MOST_LETTERS = 40, 400
"""Of a question that are read; the chat template cuts there."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(asked='') %}{% for message in messages if message.role == 'user' and message.content is string %}"
    "{% set ns.asked = message.content %}{% endfor %}"
    f"<|user|> {{{{ ((ns.asked | lower).split()[:{MOST_WORDS}] | join(' '))[:{MOST_LETTERS}] }}}}<|assistant|>"
)
"""The last user message by itself, in lower case: that is all that so small a model can make something of."""
CONTEXT_TOKENS = 2048
"""That the file promises: the pool of eight answers at a time. One question with its answer never needs more than 256 of real words."""


def topic_token(number: int) -> str:
    """The first token of an answer says which one it is, in one step; nobody sees it. 0 is everything else."""
    return f"<|topic-{number}|>"


class Topic(NamedTuple):
    answer: str
    ask: list[str]
    held_out: list[str]


def read(name: str) -> Any:
    return yaml.safe_load((HERE / name).read_text("utf-8"))


def topics() -> list[Topic]:
    return [Topic(one["answer"], one["ask"], one["held_out"]) for one in read("questions.yaml")]


# --- vocabulary -----------------------------------------------------------------------------------------------------------------


class Vocabulary:
    """llama.cpp's SPM way: of all neighbours whose union is a piece, the best scored are joined first; what is left becomes bytes."""

    def __init__(self, merged: list[str], letters: list[str], topics: int) -> None:
        self.control = [*CONTROL, *(topic_token(number) for number in range(topics))]
        self.pieces = ["<unk>", *self.control, *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *letters]
        first = 1 + len(self.control) + 256
        self.scores = [0.0] * first + [-float(rank) for rank in range(len(merged) + len(letters))]
        self.ids = {piece: number for number, piece in enumerate(self.pieces)}
        self._scored = {piece: self.scores[number] for number, piece in enumerate(self.pieces) if number >= first}
        self._known: dict[str, list[int]] = {}

    @classmethod
    def learn(cls, texts: list[str], size: int, topics: int) -> "Vocabulary":
        """Byte-pair encoding within words; letters, digits and signs do not mix, so that `gateway?` is `gateway` and `?`."""
        counts = Counter(part for text in texts for part in _parts(text))
        words = {word: list(word) for word in counts}
        letters = sorted(
            {letter for word in words for letter in word} | {chr(code) for code in range(0x21, 0x7F)} | {"▁"}
        )
        merged: list[str] = []
        while len(merged) + len(letters) < size:
            pairs: Counter[tuple[str, str]] = Counter()
            for word, pieces in words.items():
                for pair in itertools.pairwise(pieces):
                    pairs[pair] += counts[word]
            if not pairs:
                break
            (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
            if left + right not in merged:
                merged.append(left + right)
            for pieces in words.values():
                _join(pieces, left, right)
        return cls(merged, letters, topics)

    def encode(self, text: str, chance: random.Random | None = None) -> list[int]:
        """
        Args:
            text: without control tokens.
            chance: for training, some joints are left out, so that words are known by their parts, too (Provilkov et al.,
                "BPE-Dropout", 2020).
        """
        return [number for part in _parts(text) for number in self._of_part(part, chance)]

    def _of_part(self, part: str, chance: random.Random | None) -> list[int]:
        if chance is not None and chance.random() < CUT_WORDS:
            return self._joined(part, chance)
        if part not in self._known:
            self._known[part] = self._joined(part, None)
        return self._known[part]

    def _joined(self, part: str, chance: random.Random | None) -> list[int]:
        pieces = list(part)
        while True:
            best = max(
                (
                    (self._scored[a + b], -at)
                    for at, (a, b) in enumerate(itertools.pairwise(pieces))
                    if a + b in self._scored and (chance is None or chance.random() > MISSED_JOINTS)
                ),
                default=None,
            )
            if best is None:
                return [number for piece in pieces for number in self._ids_of(piece)]
            at = -best[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]

    def _ids_of(self, piece: str) -> list[int]:
        if piece in self._scored:
            return [self.ids[piece]]
        return [self.ids[f"<0x{byte:02X}>"] for byte in piece.encode()]

    def decode(self, numbers: list[int]) -> str:
        """As a worker shows it: without control tokens."""
        control = set(self.control)
        return "".join(self.pieces[number] for number in numbers if self.pieces[number] not in control).replace(
            "▁", " "
        )


def _parts(text: str) -> list[str]:
    return re.findall(r"▁?[^\W\d_]+|▁?\d|▁?[^\w▁\s]|▁|\S", text.replace(" ", "▁"))


def _join(pieces: list[str], left: str, right: str) -> None:
    at = 0
    while at < len(pieces) - 1:
        if pieces[at] == left and pieces[at + 1] == right:
            pieces[at : at + 2] = [left + right]
        at += 1


# --- what is asked --------------------------------------------------------------------------------------------------------------


class Asking:
    """Questions and their answers, drawn at random, never twice in quite the same words."""

    def __init__(self, known: list[Topic], elsewhere: dict[str, Any], wordings: dict[str, Any], seed: int) -> None:
        self._random = random.Random(seed)
        self._known = known
        self._elsewhere = elsewhere
        self._openings = [sorted(group, key=len, reverse=True) for group in wordings["openings"]]
        self._synonyms = [sorted(group, key=len, reverse=True) for group in wordings["synonyms"]]
        self._before, self._after = wordings["before"], wordings["after"]
        self._words = sorted({word for topic in known for ask in topic.ask for word in ask.lower().split()})

    def draw(self) -> tuple[str, int]:
        """A question, and the number of its topic."""
        chance = self._random
        if chance.random() < ELSEWHERE:
            return self._varied(self._other()), 0
        number = chance.randrange(len(self._known))
        asks = self._known[number].ask
        text = self._crossed(*chance.sample(asks, 2)) if chance.random() < CROSSED else chance.choice(asks)
        return self._varied(text), number + 1

    def _crossed(self, one: str, other: str) -> str:
        """Words of two wordings together: what matters is which words there are, more than how they are put."""
        chance = self._random
        halves = [[word for word in text.split() if chance.random() < 0.6] for text in (one, other)]
        return " ".join(halves[0] + halves[1]) or one

    def _other(self) -> str:
        chance = self._random
        kind = chance.random()
        if kind < 0.5:
            return str(chance.choice(self._elsewhere["ask"]))
        if kind < 0.55:
            return chance.choice("xaé.#?ñ0日") * chance.randint(5, 100)
        things = chance.sample(self._elsewhere["things"], 2)
        thing = things[0] if chance.random() < 0.6 else self._nonsense()
        return str(chance.choice(self._elsewhere["forms"])).format(thing=thing, other=things[1])

    def _nonsense(self) -> str:
        """A word that nobody has heard of, as names and new things are."""
        chance = self._random
        sounds = (
            "".join(chance.choice(part) for part in ("bcdfghklmnprstvwz", "aeiou", "lmnrst"))
            for _ in range(chance.randint(1, 3))
        )
        return "".join(sounds)[: chance.randint(3, 9)]

    def _varied(self, text: str) -> str:
        chance = self._random
        text = text.lower()
        if chance.random() < 0.5:
            text = self._opened(text)
        if chance.random() < 0.6:
            text = self._reworded(text)
        text = self._framed(" ".join(self._garbled(text.split())))
        return " ".join(text.lower().split()[:MOST_WORDS])

    def _garbled(self, words: list[str]) -> list[str]:
        """Words are left out, out of order, mistyped."""
        chance = self._random
        if chance.random() < 0.25 and len(words) > 3:
            words = [word for word in words if chance.random() > 0.15] or words
        if chance.random() < 0.12:
            words = chance.sample(words, len(words))
        if chance.random() < 0.15:
            words = [self._mistyped(word) for word in words]
        return words

    def _framed(self, text: str) -> str:
        chance = self._random
        if chance.random() < 0.35:
            text = text.rstrip("?!.") + chance.choice(["", "", "", "?", "!", "."])
        if chance.random() < 0.12:
            text = f"{chance.choice(self._before)} {text}"
        if chance.random() < 0.12:
            text = f"{text.rstrip('?')} {chance.choice(self._after)}"
        return text

    def _opened(self, text: str) -> str:
        for group in self._openings:
            for opening in group:
                if text.startswith(f"{opening} "):
                    return self._random.choice(group) + text[len(opening) :]
        return text

    def _reworded(self, text: str) -> str:
        """One or two words become others that mean the same."""
        found = [
            (group, word) for group in self._synonyms for word in group if re.search(rf"\b{re.escape(word)}\b", text)
        ]
        for group, word in self._random.sample(found, min(len(found), self._random.randint(1, 2))):
            other = self._random.choice(group)
            text = re.sub(rf"\b{re.escape(word)}\b", lambda _, other=other: other, text, count=1)
        return text

    def _mistyped(self, word: str) -> str:
        chance = self._random
        if len(word) < 5 or chance.random() < 0.7:
            return word
        at = chance.randrange(1, len(word) - 1)
        return chance.choice(
            [
                word[:at] + word[at + 1 :],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at] + word[at:],
            ]
        )


# --- the model ------------------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    dim: int = 192
    layers: int = 2
    heads: int = 6
    feed: int = 512
    context: int = 256
    base: float = 10_000.0
    eps: float = 1e-5


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attn_norm = nn.RMSNorm(shape.dim, shape.eps)
        self.ffn_norm = nn.RMSNorm(shape.dim, shape.eps)
        self.attn_q, self.attn_k, self.attn_v, self.attn_output = (
            nn.Linear(shape.dim, shape.dim, bias=False) for _ in range(4)
        )
        self.ffn_gate, self.ffn_up = (nn.Linear(shape.dim, shape.feed, bias=False) for _ in range(2))
        self.ffn_down = nn.Linear(shape.feed, shape.dim, bias=False)

    def forward(self, x: Tensor, turns: Tensor, dropout: float) -> Tensor:
        batch, length, dim = x.shape
        y = self.attn_norm(x)
        q, k, v = (
            part(y).view(batch, length, self.heads, -1).transpose(1, 2)
            for part in (self.attn_q, self.attn_k, self.attn_v)
        )
        y = functional.scaled_dot_product_attention(rotated(q, turns), rotated(k, turns), v, is_causal=True)
        y = self.attn_output(y.transpose(1, 2).reshape(batch, length, dim))
        x = x + functional.dropout(y, dropout, self.training)
        y = self.ffn_norm(x)
        y = self.ffn_down(functional.silu(self.ffn_gate(y)) * self.ffn_up(y))
        return x + functional.dropout(y, dropout, self.training)


def rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Neighbours turn together, as llama.cpp's llama has it (not halves, as in other places)."""
    pairs = x.float().unflatten(-1, (-1, 2))
    cos, sin = turns[0], turns[1]
    even, odd = pairs[..., 0], pairs[..., 1]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Llama(nn.Module):
    def __init__(self, shape: Shape, vocabulary: int, topics: int) -> None:
        super().__init__()
        self.shape = shape
        self.topics = topics
        self.token_embd = nn.Embedding(vocabulary, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.dim, shape.eps)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                scale = (
                    0.02 / math.sqrt(2 * shape.layers)
                    if name.endswith(("attn_output.weight", "ffn_down.weight"))
                    else 0.02
                )
                nn.init.normal_(weight, std=scale * (2 if name.startswith("token") else 2.5))
        size = shape.dim // shape.heads
        angles = torch.arange(shape.context)[:, None] * shape.base ** (-torch.arange(0, size, 2) / size)
        self.register_buffer("turns", torch.stack((angles.cos(), angles.sin())), persistent=False)

    def forward(self, tokens: Tensor, dropout: float = 0.0) -> Tensor:
        """States of the last layer; `logits` makes tokens' scores of those that matter."""
        x = functional.dropout(self.token_embd(tokens), dropout, self.training)
        turns = self.turns[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, turns, dropout)
        return x

    def logits(self, states: Tensor) -> Tensor:
        return functional.linear(self.output_norm(states), self.token_embd.weight)


# --- training -------------------------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    tokens: list[int]
    prompt: int
    """Tokens before the answer."""


def prompt_of(vocabulary: Vocabulary, question: str, chance: random.Random | None = None) -> list[int]:
    ids = vocabulary.ids
    words = " ".join(question.lower().split()[:MOST_WORDS])[:MOST_LETTERS]
    return [ids["<s>"], ids["<|user|>"], *vocabulary.encode(f" {words}", chance), ids["<|assistant|>"]]


def batches(
    vocabulary: Vocabulary, asking: Asking, answers: list[str], size: int, seed: int
) -> Iterator[list[list[Example]]]:
    """Of each, most questions with their topic only, and beside them some with their answers to the end. Both are drawn at random:
    batches of one length would be batches of few topics, and what one of them teaches the next would unteach.
    """
    chance = random.Random(seed)
    said = [[*vocabulary.encode(answer), vocabulary.ids["<|end|>"]] for answer in answers]

    def example(*, whole: bool) -> Example:
        question, number = asking.draw()
        prompt = prompt_of(vocabulary, question, chance)
        return Example([*prompt, vocabulary.ids[topic_token(number)], *(said[number] if whole else ())], len(prompt))

    while True:
        whole = round(size * SAID)
        yield [[example(whole=False) for _ in range(size - whole)], [example(whole=True) for _ in range(whole)]]


def loss_of(model: Llama, batch: list[Example], dropout: float) -> Tensor:
    """Of the topic, among all tokens and among topics, and of the rest of the answer."""
    longest = max(len(example.tokens) for example in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.long)
    said = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, example in enumerate(batch):
        tokens[row, : len(example.tokens)] = torch.tensor(example.tokens)
        said[row, example.prompt + 1 : len(example.tokens)] = True
    named = torch.tensor([example.prompt - 1 for example in batch])
    rows, wanted = torch.arange(len(batch)), tokens[torch.arange(len(batch)), named + 1]
    with torch.autocast("cpu", torch.bfloat16):
        states = model(tokens[:, :-1], dropout)
        names, words = model.logits(states[rows, named]).float(), model.logits(states[said[:, 1:]]).float()
    first = 1 + len(CONTROL)
    among = functional.cross_entropy(names[:, first : first + model.topics], wanted - first, label_smoothing=SMOOTHING)
    loss = 0.5 * functional.cross_entropy(names, wanted) + 0.5 * among
    return loss + functional.cross_entropy(words, tokens[:, 1:][said[:, 1:]]) if len(words) else loss


@torch.no_grad()
def recognised(model: Llama, vocabulary: Vocabulary, asked: list[tuple[str, int]]) -> float:
    """The share of questions whose topic is named."""
    model.eval()
    right = 0
    for question, number in asked:
        logits = model.logits(model(torch.tensor([prompt_of(vocabulary, question)]))[0, -1])
        right += int(logits.argmax()) == vocabulary.ids[topic_token(number)]
    model.train()
    return right / len(asked)


class Course(NamedTuple):
    """What a training is made of."""

    steps: int
    batch: int
    rate: float
    dropout: tuple[float, float]
    """Of questions, where it keeps them from being learned by heart, and of whole answers, which shall be."""


def train(
    model: Llama,
    vocabulary: Vocabulary,
    source: Iterator[list[list[Example]]],
    course: Course,
    dev: list[tuple[str, int]],
) -> None:
    """The weights at the end are running averages, which are steadier than the last ones."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    averaged = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    started, seen = time.monotonic(), 0
    for step, groups in enumerate(itertools.islice(source, course.steps)):
        warmth, share = min(1.0, (step + 1) / 200), step / course.steps
        optimizer.param_groups[0]["lr"] = course.rate * warmth * (0.02 + 0.49 * (1 + math.cos(math.pi * share)))
        optimizer.zero_grad()
        losses = [loss_of(model, group, dropout) for group, dropout in zip(groups, course.dropout, strict=True)]
        sum(losses).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += course.batch
        _average(model, averaged, min(0.998, step / (step + 20)))
        if step % 250 == 249:
            passed = time.monotonic() - started
            known = f", {recognised(model, vocabulary, dev):.1%} of {len(dev)} left out" if dev else ""
            loss = " and ".join(f"{one.item():.3f}" for one in losses)
            print(
                f"{step + 1}/{course.steps}: loss {loss}, {seen / passed:.0f} questions/s, {passed / 60:.1f} min{known}",
                flush=True,
            )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(averaged[name])


@torch.no_grad()
def _average(model: Llama, averaged: dict[str, Tensor], keep: float) -> None:
    for name, weight in model.named_parameters():
        averaged[name].lerp_(weight, 1 - keep)


# --- the file -------------------------------------------------------------------------------------------------------------------


def write(model: Llama, vocabulary: Vocabulary, path: Path) -> None:
    shape = model.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("guide")
    writer.add_description("Knows the Chasqui gateway and nothing else; trained from scratch by the project")
    writer.add_license("MIT")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_dimension_count(shape.dim // shape.heads)
    writer.add_rope_freq_base(shape.base)
    writer.add_vocab_size(len(vocabulary.pieces))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece.encode() for piece in vocabulary.pieces])
    writer.add_token_scores(vocabulary.scores)
    kinds = [
        gguf.TokenType.UNKNOWN,
        *([gguf.TokenType.CONTROL] * len(vocabulary.control)),
        *([gguf.TokenType.BYTE] * 256),
    ]
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(vocabulary.pieces) - len(kinds)))
    writer.add_bos_token_id(vocabulary.ids["<s>"])
    writer.add_eos_token_id(vocabulary.ids["<|end|>"])
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weight in model.named_parameters():
        values = weight.detach().float().numpy() * (CERTAINTY if name == "output_norm.weight" else 1)
        target = name.replace("blocks.", "blk.")
        if values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE.parent / "guide.gguf")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dim", type=int, default=Shape().dim)
    parser.add_argument("--layers", type=int, default=Shape().layers)
    parser.add_argument("--dev", action="store_true", help="Leave a wording of each topic out, and judge by those.")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    known, elsewhere = topics(), read("elsewhere.yaml")
    chance = random.Random(options.seed)
    dev = [(chance.choice(topic.ask), number) for number, topic in enumerate(known, start=1)] if options.dev else []
    left_out = {question for question, _ in dev}
    known = [topic._replace(ask=[ask for ask in topic.ask if ask not in left_out]) for topic in known]
    asking = Asking(known, elsewhere, read("wordings.yaml"), options.seed)
    answers = [elsewhere["answer"], *(topic.answer for topic in known)]
    vocabulary = Vocabulary.learn([*(f" {asking.draw()[0]}" for _ in range(8000)), *answers * 3], PIECES, len(answers))
    model = Llama(
        Shape(dim=options.dim, heads=options.dim // 32, layers=options.layers), len(vocabulary.pieces), len(answers)
    )
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{size:,} parameters, {len(vocabulary.pieces)} pieces, {len(known)} topics", flush=True)
    source = batches(vocabulary, asking, answers, options.batch, options.seed)
    train(
        model,
        vocabulary,
        source,
        Course(options.steps, options.batch, options.rate, (options.dropout, options.dropout / 4)),
        dev,
    )
    write(model, vocabulary, options.output)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
