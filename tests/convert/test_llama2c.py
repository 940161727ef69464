"""llama2.c's files.

A real model's text against its authors' arithmetic written down again, and small files made here.
"""

import os
import pathlib
import re
import struct

import numpy as np
import pytest
from etils import epath

from dreamjax.api import DreamLLM
from dreamjax.config import LlamaConfig
from dreamjax.convert import importer
from dreamjax.convert.formats import llama2c
from dreamjax.errors import ConfigError

DATA = (
    pathlib.Path(os.environ.get("DREAMJAX_DATA", str(pathlib.Path(__file__).parents[2] / ".." / "shared" / "data")))
    / "stories260K"
)
BEGINNING = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


class Oracle:
    """run.c's forward pass and greedy loop in numpy, from the bytes of the file.

    Interleaved rotation, one token at a time.
    """

    def __init__(self, file: pathlib.Path):
        data = file.read_bytes()
        self.dim, self.hidden, self.layers, self.heads, self.kv_heads, self.vocab, self.length = struct.unpack_from(
            "<7i", data
        )
        assert self.vocab > 0, "shared classifier"
        floats, self.at = np.frombuffer(data, np.float32, offset=28), 0

        def take(*shape):
            size = int(np.prod(shape))
            self.at += size
            return floats[self.at - size : self.at].reshape(shape)

        head = self.dim // self.heads
        n, d, kv, h = self.layers, self.dim, head * self.kv_heads, self.hidden
        self.embed, self.att_norm, self.wq, self.wk, self.wv, self.wo = (
            take(self.vocab, d),
            take(n, d),
            take(n, d, d),
            take(n, kv, d),
            take(n, kv, d),
            take(n, d, d),
        )
        self.ffn_norm, self.w1, self.w2, self.w3, self.norm = (
            take(n, d),
            take(n, h, d),
            take(n, d, h),
            take(n, h, d),
            take(d),
        )
        self.head = head
        self.keys = np.zeros((n, self.length, self.kv_heads, head), np.float32)
        self.values = np.zeros_like(self.keys)

    def rmsnorm(self, x, weight):
        return weight * (x / np.sqrt(np.mean(x * x) + 1e-5))

    def rotate(self, x, position):
        """x [heads, head]: entries 2j and 2j + 1 turn together."""
        angle = position / 10000.0 ** (np.arange(0, self.head, 2) / self.head)
        even, odd = x[:, ::2], x[:, 1::2]
        return (
            np.stack([even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)], -1)
            .reshape(x.shape)
            .astype(np.float32)
        )

    def forward(self, token: int, position: int) -> np.ndarray:
        x = self.embed[token].copy()
        for i in range(self.layers):
            y = self.rmsnorm(x, self.att_norm[i])
            q = self.rotate((self.wq[i] @ y).reshape(self.heads, -1), position)
            self.keys[i, position] = self.rotate((self.wk[i] @ y).reshape(self.kv_heads, -1), position)
            self.values[i, position] = (self.wv[i] @ y).reshape(self.kv_heads, -1)
            attended = []
            for head in range(self.heads):
                group = head * self.kv_heads // self.heads
                scores = self.keys[i, : position + 1, group] @ q[head] / np.sqrt(self.head)
                weights = np.exp(scores - scores.max())
                attended.append(weights / weights.sum() @ self.values[i, : position + 1, group])
            x = x + self.wo[i] @ np.concatenate(attended)
            y = self.rmsnorm(x, self.ffn_norm[i])
            gate = self.w1[i] @ y
            x = x + self.w2[i] @ (gate / (1 + np.exp(-gate)) * (self.w3[i] @ y))
        return self.embed @ self.rmsnorm(x, self.norm)

    def greedy(self, steps: int) -> list[int]:
        token, written = 1, []
        for position in range(steps):
            token = int(np.argmax(self.forward(token, position)))
            if token == 1:  # which ends a story there
                break
            written.append(token)
        return written


def read_pieces(file: pathlib.Path, count: int) -> list[bytes]:
    data, at, pieces = file.read_bytes(), 4, []
    for _ in range(count):
        (length,) = struct.unpack_from("<i", data, at + 4)
        piece = data[at + 8 : at + 8 + length]
        pieces.append(bytes([int(piece[3:5], 16)]) if re.fullmatch(rb"<0x[0-9A-F]{2}>", piece) else piece)
        at += 8 + length
    return pieces


def test_stories260k_writes_what_its_authors_program_writes(tmp_path):
    if not DATA.exists():
        pytest.skip(f"no {DATA} (DREAMJAX_DATA)")
    oracle = Oracle(DATA / "stories260K.bin")
    ids = oracle.greedy(200)
    assert len(ids) == 200
    expected = b"".join(read_pieces(DATA / "tok512.bin", oracle.vocab)[i] for i in ids).decode().removeprefix(" ")
    assert expected.startswith(BEGINNING)
    folder = epath.Path(tmp_path) / "model"
    importer.write(importer.make_plan([str(DATA / "stories260K.bin")], str(DATA / "tok512.bin")), folder)
    model = DreamLLM.load(folder)
    assert not model.tokenizer.added and model.config.llm.vocab_size == 512
    assert model.generate("", temperature=0.0, max_tokens=200).text == expected


def made(tmp_path, vocab: int = 16, cut: int = 0) -> pathlib.Path:
    width, ffn, layers, heads, kv_heads, positions = 8, 12, 2, 4, 2, 6
    kv, half = width // heads * kv_heads, width // heads // 2
    per_layer = 2 * width + 2 * width * width + 2 * kv * width + 3 * width * ffn
    count = abs(vocab) * width * (1 if vocab > 0 else 2) + layers * per_layer + width + 2 * positions * half
    file = tmp_path / "made.bin"
    body = np.arange(count - cut, dtype=np.float32).tobytes()
    file.write_bytes(struct.pack("<7i", width, ffn, layers, heads, kv_heads, vocab, positions) + body)
    return file


@pytest.mark.parametrize("vocab", [16, -16])
def test_the_header_says_whether_the_head_is_the_embedding(tmp_path, vocab):
    file = made(tmp_path, vocab)
    config, tensors = llama2c.read(file)
    assert config == LlamaConfig(16, 8, 2, 4, 2, 12, 6, rms_norm_eps=1e-5, tie_embeddings=vocab > 0)
    assert ("lm_head.weight" in tensors) == (vocab < 0) and llama2c.recognises(file)
    q = tensors["model.layers.1.self_attn.q_proj.weight"]
    first = 16 * 8 + 2 * 8 + 64  # of the second layer's wq; head width 2: even and odd entries are already apart
    np.testing.assert_array_equal(q.read((slice(1, 3), slice(0, 2))), first + np.array([[8, 9], [16, 17]]))


def test_a_file_of_another_length_is_refused(tmp_path):
    file = made(tmp_path, cut=1)
    assert not llama2c.recognises(file)
    with pytest.raises(ConfigError, match="is no llama2.c checkpoint"):
        llama2c.read(file)
    with pytest.raises(ConfigError, match="is a file in no known layout"):
        importer.make_plan([str(file)])


def test_a_model_without_a_tokenizer_asks_for_one(tmp_path):
    with pytest.raises(ConfigError, match="^--tokenizer: is missing"):
        importer.make_plan([str(made(tmp_path))])


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    pieces = [
        ("<unk>", 0.0),
        ("\n<s>\n", 0.0),
        ("\n</s>\n", 0.0),
        *((f"<0x{i:02X}>", 0.0) for i in range(256)),
        (" ", 0.0),
        ("a", 0.0),
        (" a", -1.0),
    ]
    file = tmp_path / "tok.bin"
    file.write_bytes(
        struct.pack("<i", 7) + b"".join(struct.pack("<fi", score, len(p.encode())) + p.encode() for p, score in pieces)
    )
    tokenizer = llama2c.read_tokenizer(file, len(pieces))
    assert tokenizer.encode("a a\n") == [261, 261, 3 + 10] and tokenizer.decode([261, 261, 13]) == "a a\n"
    for wrong in (len(pieces) - 1, len(pieces) + 1):
        with pytest.raises(ConfigError, match="tok.bin: (is no|holds more)"):
            llama2c.read_tokenizer(file, wrong)
