"""The text of a made bundle from sentencepiece alone: ids, decoded text, and the rows of the official data builder.

The rules are those of transformers 4.35's slow LlamaTokenizer and of omni/data/builders/builder_dreamllm.py, written
down again: what they say is compared with the package, which this file therefore does not import.
"""

import dataclasses
import functools
import io
import re

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

SPACE = "\u2581"
PAD = "[PAD]"
IGNORED = -100

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CORPUS = [
    SYSTEM,
    "USER: Tell me about the river. ASSISTANT: The river runs under the old bridge.",
    "USER: What is in the picture? ASSISTANT: A black dog.",
    "A photo of a dog and a cat in the forest, detailed ink wash.",
    "Sunrise over the lake, beautiful! And then it rained.",
    "(best quality) a polar bear",
    "Write a short story about a goat.",
    "Once upon a time there was a goat; it had 3 horns and 42 friends.",
    "ugly, blurry, low quality, worst anatomy",
]
TEXTS = [
    "",
    " ",
    "b",
    "A photo of a goat.",
    "   three   spaces ",
    "left<image>right",
    "left <image> right",
    "<image>\nWhat is it?",
    "<im_start><im_patch><im_end>Why?",
    "USER: yes ASSISTANT: no</s>USER: why",
    "</s>",
    "words</s>",
    "words </s> more",
    "<s>begin",
    "Größe 山 ☂ 🐐",
    "tab\tand\nline",
    "0123456789",
    "ASSISTANT: ",
    "ASSISTANT:",
    "<dream>",
    "Here: <dream>",
    "<dream_start>y<dream_end>",
    "[PAD]",
    "<unk>",
    "The goat's horns, aren't they?",
    "\n",
    "a\n\nb",
    "<dream><dream>",
    "y <image> <dream> z",
]


def train(pieces: int, unk: int, bos: int, eos: int) -> bytes:
    """A small model like LLaMA's: BPE with bytes for unknown characters and single digits."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        unk_id=unk,
        bos_id=bos,
        eos_id=eos,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@dataclasses.dataclass(frozen=True)
class Words:
    """A slow LlamaTokenizer: a sentencepiece model, the added tokens with their ids, and transformers' flag."""

    model: bytes
    added: tuple[tuple[str, int], ...]
    legacy: bool

    @functools.cached_property
    def sentencepiece(self) -> sentencepiece.SentencePieceProcessor:
        """Non-legacy tokenizers put no space before a text by themselves."""
        spec = sentencepiece_model_pb2.ModelProto.FromString(self.model)
        spec.normalizer_spec.add_dummy_prefix = self.legacy
        return sentencepiece.SentencePieceProcessor(model_proto=spec.SerializeToString())

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Of the special tokens."""
        own = self.sentencepiece
        return {own.id_to_piece(i): i for i in (own.bos_id(), own.eos_id(), own.unk_id())} | dict(self.added)

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        return {i: name for name, i in self.ids.items()}

    def __call__(self, text: str, limit: int | None = None) -> list[int]:
        """Ids with <s> before them, the first `limit` of them."""
        text = text if self.legacy or not text else SPACE + text.replace(SPACE, " ")
        found = []
        for part in re.split("(" + "|".join(map(re.escape, self.ids)) + ")", text):
            found += [self.ids[part]] if part in self.ids else self._plain(part)
        space = self.sentencepiece.piece_to_id(SPACE)
        if not self.legacy and found[:1] == [space] and found[1:2] and found[1] in self._names:
            found = found[1:]
        return [self.ids["<s>"], *found][:limit]

    def _plain(self, part: str) -> list[int]:
        if not part or self.legacy or part[0] not in (SPACE, " "):
            return self.sentencepiece.encode(part)
        unknown = self.sentencepiece.id_to_piece(self.sentencepiece.unk_id())
        return self.sentencepiece.encode(unknown + part)[len(self.sentencepiece.encode(unknown)) :]

    def pieces(self, ids) -> list[str]:
        return [self._names.get(i) or self.sentencepiece.id_to_piece(i) for i in ids]

    def decode(self, ids, skip_special: bool = False) -> str:
        """The text; added tokens but the pad stand by themselves between spaces."""
        apart = {name for name, _ in self.added} - {PAD}
        runs: list = []
        for piece in self.pieces(ids):
            if skip_special and piece in self.ids:
                continue
            if piece in apart:
                runs.append(piece)
            elif runs and isinstance(runs[-1], list):
                runs[-1].append(piece)
            else:
                runs.append([piece])
        texts = [run if isinstance(run, str) else self._joined(run) for run in runs]
        return " ".join(text for number, text in enumerate(texts, 1) if text or number == len(texts))

    def _joined(self, pieces: list[str]) -> str:
        first = [pieces[0].removeprefix(SPACE)]
        text, plain = "", []
        for i, piece in enumerate(first + pieces[1:]):
            if piece in self.ids:
                text += " " if self.legacy and i and pieces[i - 1] not in self.ids else ""
                text, plain = text + self.sentencepiece.decode(plain) + piece, []
            else:
                plain.append(piece)
        return text + self.sentencepiece.decode(plain)


def padded(rows: list[list[int]], fill: int, side: str = "right") -> list[list[int]]:
    """Rows filled up to the longest."""
    most = max(map(len, rows))
    return [row + [fill] * (most - len(row)) if side == "right" else [fill] * (most - len(row)) + row for row in rows]


def record(words: Words) -> dict:
    """tokenizer.json."""
    found: dict = {"texts": TEXTS}
    for name, one in (
        ("legacy", dataclasses.replace(words, legacy=True)),
        ("nonlegacy", dataclasses.replace(words, legacy=False)),
    ):
        ids = [one(text) for text in TEXTS]
        found[name] = {
            "input_ids": ids,
            "tokens": [one.pieces(row) for row in ids],
            "decode": [one.decode(row) for row in ids],
            "decode_skip_special": [one.decode(row, True) for row in ids],
            "no_special": [row[1:] for row in ids],
            "trunc8": [one(text, 8) for text in TEXTS],
        }
    rows = [words(text) for text in ("a photo of a goat", "yes", "")]
    for side in ("right", "left"):
        found[f"pad_{side}"] = {
            "input_ids": padded(rows, words.ids[PAD], side),
            "attention_mask": padded([[1] * len(row) for row in rows], 0, side),
        }
    control = [words.ids[name] for name in ("<s>", "</s>", PAD, "<unk>")]
    return found | {
        "special": words.ids,
        "len": words.sentencepiece.get_piece_size() + len(words.added),
        "bos_eos_pad_unk": control,
    }


# ----------------------------------------------------------------------------------------------------------------------
# Rows


@dataclasses.dataclass(frozen=True)
class Rows:
    """The official data builder.

    `queries` and `patches` are the slots of a picture, `limit` the most tokens of a row.
    """

    words: Words
    queries: int
    patches: int
    limit: int

    def image(self, mode: str) -> list[int]:
        ids = self.words.ids
        dream = [ids["<dream_start>"], *[ids["<im_patch>"]] * self.queries, ids["<dream_end>"]]
        inputs = [ids["<im_start>"], *[ids["<im_patch>"]] * self.patches, ids["<im_end>"]]
        return {"comprehension_only": inputs, "creation_only": dream, "joint": dream + inputs}[mode]

    def interleaved(self, given: dict, mode: str) -> dict:
        """Chunks of text with a picture behind each of the first; with an instruction, behind a prompt."""
        ids, words = self.words.ids, self.words
        begin = words(f"{SYSTEM} USER: {given['instruction']} ASSISTANT:") if "instruction" in given else []
        row, shown, first = list(begin), [], 0
        texts = [text.strip() for text in given["text_list"]]
        ends = [index + 1 for index in given["matched_text_index"]]
        ends += [len(texts)] if (ends or [0])[-1] != len(texts) else []
        for number, end in enumerate(ends):
            chunk = words(" ".join(texts[first:end]))[1:]
            first = end
            if len(row) + len(chunk) + 2 > self.limit:
                break
            row += chunk
            if number < given["n_images"]:
                if len(row) + len(self.image(mode)) + 2 > self.limit:
                    break
                if number not in given.get("bad_images", ()):
                    row, shown = row + self.image(mode), [*shown, number]
        no_loss = {ids[name] for name in ("<im_patch>", "<im_start>", "<im_end>", "<dream_end>")}
        row = [*([] if begin else [ids["<s>"]]), *row, ids["</s>"]]
        labels = [IGNORED if at < len(begin) or token in no_loss else token for at, token in enumerate(row)]
        return {
            "input_ids": row,
            "labels": labels,
            "images": shown if mode != "creation_only" else [],
            "images_dm": shown if mode != "comprehension_only" else [],
        }

    def pair(self, given: dict, mode: str, direction: float | None) -> dict:
        if mode == "joint":
            mode = "comprehension_only" if direction >= 0.5 else "creation_only"
        image, eos = self.image(mode), self.words.ids["</s>"]
        text = self.words(given["text"], self.limit - len(image) - 1)
        if mode == "creation_only":
            row = [*text, *image, eos]
            return {"input_ids": row, "labels": [IGNORED] * len(row), "images": [], "images_dm": [0]}
        row = [text[0], *image, *text[1:], eos]
        return {
            "input_ids": row,
            "labels": [text[0], *[IGNORED] * len(image), *row[1 + len(image) :]],
            "images": [0],
            "images_dm": [],
        }

    def two_images(self) -> dict:
        row = [
            self.words.ids["<s>"],
            *self.image("comprehension_only"),
            *self.image("creation_only"),
            self.words.ids["</s>"],
        ]
        return {"input_ids": row, "labels": [IGNORED] * len(row), "images": [0], "images_dm": [1]}

    def conversation(self, turns: list) -> dict:
        """Learned are the tokens behind those of what comes before an answer.

        A placeholder becomes its picture's slots.
        """
        ids, tokens, supervised = self.words.ids, [], []
        for said, answer in zip(chat(turns[::2]), turns[1::2], strict=False):
            before, whole = self.words(said)[1:], self.words(f"{said} {answer[1]}</s>")[1:]
            assert whole[: len(before)] == before, f"the tokens before an answer depend on it: {said} {answer[1]}"
            tokens, supervised = (
                tokens + whole,
                supervised + [False] * len(before) + [True] * (len(whole) - len(before)),
            )
        out, number = {"input_ids": [ids["<s>"]], "labels": [IGNORED], "images": [], "images_dm": []}, 0
        for token, teach in zip(tokens, supervised, strict=False):
            slots = {ids["<image>"]: self.image("comprehension_only"), ids["<dream>"]: self.image("joint")}.get(token)
            out["input_ids"] += slots or [token]
            out["labels"] += [IGNORED] * len(slots) if slots else [token if teach else IGNORED]
            if slots:
                out["images"].append(number)
                out["images_dm"] += [number] if token == ids["<dream>"] else []
                number += 1
        return out


def chat(questions: list) -> list[str]:
    """What stands before each answer since the one before."""
    return [f"{f'{SYSTEM} ' if i == 0 else ''}USER: {words} ASSISTANT:" for i, (_, words) in enumerate(questions)]


PAGE = {"text_list": ["A photo of a goat. ", " The black cat.", "And then a river", "the end."], "n_images": 2}
CONVERSATIONS = [
    [["user", "<image>\nWhat is in the picture?"], ["assistant", "A black goat."]],
    [
        ["user", "Hello there"],
        ["assistant", "Hello."],
        ["user", "Tell me a story."],
        ["assistant", "Once upon a time there was a goat."],
    ],
    [
        ["user", "Please draw a cat."],
        ["assistant", "Here: <dream>"],
        ["user", "And what is this <image>?"],
        ["assistant", "A lake."],
    ],
]


def data_record(rows: Rows) -> dict:
    """data.json: rows of every kind, both tokenizers and all modes, some over their limit."""
    cases = []

    def add(kind: str, given: dict, legacy: bool, mode: str, limit: int | None = None, **more):
        own = dataclasses.replace(rows, words=dataclasses.replace(rows.words, legacy=legacy), limit=limit or rows.limit)
        match kind:
            case "ImageTextPair":
                output = own.pair(given, mode, more["prob"])
            case "ImageImagePair":
                output = own.two_images()
            case "Conversation":
                output = own.conversation(given["turns"])
            case _:
                output = own.interleaved(given, mode)
        cases.append(
            {
                "kind": kind,
                "desc": given,
                "tokenizer": "legacy" if legacy else "nonlegacy",
                "mode": mode,
                "max_len": limit,
                **more,
                "output": output,
            }
        )

    one = rows.queries + rows.patches
    for legacy in (True, False):
        add("ImageImagePair", {"n_images": 2}, legacy, "joint")
        for mode, direction in (("comprehension_only", None), ("creation_only", None), ("joint", 0.2), ("joint", 0.5)):
            for text in (
                "A photo of a goat.",
                "",
                "The black cat is here, under the blue sky of the old town by the river.",
            ):
                add("ImageTextPair", {"text": text, "n_images": 1}, legacy, mode, one + 12, prob=direction)
        for mode in ("comprehension_only", "creation_only", "joint"):
            for index in ([0, 2], [1, 1], [3], []):
                given = PAGE | {"matched_text_index": index, "n_images": len(index)}
                add("InterleavedImageText", given, legacy, mode)
                add(
                    "InstructInterleavedImageText", given | {"instruction": "Write a story about a goat."}, legacy, mode
                )
            for limit in (one + 8, one + 14, one + 40):
                add("InterleavedImageText", PAGE | {"matched_text_index": [0, 2]}, legacy, mode, limit)
        add("InterleavedImageText", PAGE | {"matched_text_index": [0, 2], "bad_images": [0]}, legacy, "joint")
    for turns in CONVERSATIONS:
        add("Conversation", {"turns": turns}, True, "joint")
    prompts = [
        "".join(f"{said} {answer[1]}</s>" for said, answer in zip(chat(turns[::2]), turns[1::2], strict=False))
        for turns in CONVERSATIONS
    ]
    return {
        "clip_embed_len": rows.patches,
        "num_dream_queries": rows.queries,
        "conv_template": "vicuna_v1.1",
        "prompts": prompts,
        "cases": cases,
    }
