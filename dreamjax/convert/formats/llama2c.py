"""llama2.c's files (github.com/karpathy/llama2.c): a .bin of float32 weights behind seven integers, and a .bin of token
pieces.

The weights have a fixed order and no names; here they get those of LlamaForCausalLM. Their rotary embedding rotates
neighbouring entries of a head, LlamaForCausalLM's rotates entries i and i + C / 2: the rows of wq and wk are permuted.
"""

import math
import pathlib
import struct

import numpy as np

from dreamjax.config import LlamaConfig
from dreamjax.convert.tensors import Tensor, from_array
from dreamjax.document.tokenizer import Tokenizer
from dreamjax.errors import ConfigError

HEADER = struct.Struct("<7i")
EPSILON = 1e-5  # of its RMSNorm, which is not in the file
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of sentencepiece's pieces
BPE = 2


def recognises(file: pathlib.Path) -> bool:
    """True where a file has the length that its header of seven integers implies."""
    if not file.is_file() or file.stat().st_size < HEADER.size:
        return False
    try:
        return _read_header(file)[2] == file.stat().st_size
    except ConfigError:
        return False


def read(file: pathlib.Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """The model's configuration and its tensors by the names of LlamaForCausalLM, mapped into memory.

    ConfigError where the length is wrong.
    """
    config, layout, length = _read_header(file)
    if length != file.stat().st_size:
        raise ConfigError(
            f"{file}: has {file.stat().st_size:,} bytes, and its header asks for {length:,}: is no llama2.c checkpoint"
        )
    mapped = np.memmap(file, np.float32, "r", HEADER.size)
    tensors, offset = {}, 0
    for name, shape in layout:
        size = math.prod(shape)
        array = mapped[offset : offset + size].reshape(shape)
        offset += size
        for i in range(shape[0] if "{i}" in name else 1):
            layer_array = array[i] if "{i}" in name else array
            tensor = from_array(name.replace("{i}", str(i)), layer_array, file)
            heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
            tensors[tensor.name] = _half_split(tensor, heads) if heads else tensor
    return config, {name: tensor for name, tensor in tensors.items() if not name.startswith("freq_cis")}


def _read_header(file: pathlib.Path) -> tuple[LlamaConfig, list[tuple[str, tuple[int, ...]]], int]:
    """(configuration, names and shapes in their order, bytes of the file)."""
    with open(file, "rb") as opened:
        width, ffn, layers, heads, kv_heads, vocab, positions = HEADER.unpack(opened.read(HEADER.size))
    try:
        config = LlamaConfig(
            abs(vocab), width, layers, heads, kv_heads, ffn, positions, rms_norm_eps=EPSILON, tie_embeddings=vocab > 0
        )
    except (ConfigError, ZeroDivisionError) as error:
        raise ConfigError(f"{file}: is no llama2.c checkpoint: {error}") from None
    kv_width, half = width // heads * kv_heads, width // heads // 2
    layer = "model.layers.{i}."
    layout = [
        ("model.embed_tokens.weight", (abs(vocab), width)),
        (f"{layer}input_layernorm.weight", (layers, width)),
        (f"{layer}self_attn.q_proj.weight", (layers, width, width)),
        (f"{layer}self_attn.k_proj.weight", (layers, kv_width, width)),
        (f"{layer}self_attn.v_proj.weight", (layers, kv_width, width)),
        (f"{layer}self_attn.o_proj.weight", (layers, width, width)),
        (f"{layer}post_attention_layernorm.weight", (layers, width)),
        (f"{layer}mlp.gate_proj.weight", (layers, ffn, width)),
        (f"{layer}mlp.down_proj.weight", (layers, width, ffn)),
        (f"{layer}mlp.up_proj.weight", (layers, ffn, width)),
        ("model.norm.weight", (width,)),
        ("freq_cis_real.table", (positions, half)),  # of the rotary angles, which are computed
        ("freq_cis_imag.table", (positions, half)),
        *([] if vocab > 0 else [("lm_head.weight", (abs(vocab), width))]),
    ]
    return config, layout, HEADER.size + 4 * sum(math.prod(shape) for _, shape in layout)


def _half_split(tensor: Tensor, heads: int) -> Tensor:
    """Permutes the rows of each head: even entries first, then the odd ones."""
    rows = np.arange(tensor.shape[0]).reshape(heads, -1, 2).transpose(0, 2, 1).reshape(-1)
    return tensor._replace(read=lambda index: tensor.read((slice(None),))[rows[index[0]], index[1]])


# ----------------------------------------------------------------------------------------------------------------------
# Tokenizer


def read_tokenizer(file: pathlib.Path, vocab_size: int) -> Tokenizer:
    """llama2.c's vocabulary of pieces with scores as a tokenizer for text alone.

    ConfigError where the file does not hold `vocab_size` pieces.
    """
    data, offset, pieces = file.read_bytes(), 4, []
    try:
        for _ in range(vocab_size):
            score, length = struct.unpack_from("<fi", data, offset)
            piece = data[offset + 8 : offset + 8 + length]
            if length < 0 or len(piece) < length:
                raise struct.error
            pieces.append((piece.decode("utf-8"), score))
            offset += 8 + length
    except (struct.error, UnicodeDecodeError):
        raise ConfigError(f"{file}: is no llama2.c tokenizer of {vocab_size} pieces") from None
    if offset != len(data):
        raise ConfigError(f"{file}: holds more than the model's {vocab_size} pieces")
    try:
        return Tokenizer.from_model(sentencepiece_model(pieces), {}, pad_token="<unk>")
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None


def sentencepiece_model(pieces: list[tuple[str, float]]) -> bytes:
    """A sentencepiece BPE model of (piece, score), the first three of which are <unk>, <s>, </s>; a space in a piece is
    a space in the text.

    Written in protobuf's wire format by the field numbers of sentencepiece_model.proto.
    """
    names = {0: "<unk>", 1: "<s>", 2: "</s>"}
    model = b""
    for i, (piece, score) in enumerate(pieces):
        is_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
        kind = UNKNOWN if i == 0 else CONTROL if i < 3 else BYTE if is_byte else NORMAL
        name = names.get(i, piece if is_byte else piece.replace(" ", "\u2581"))
        model += _block(1, _block(1, name.encode()) + _float(2, score) + _number(3, kind))
    trainer = _number(3, BPE) + _number(4, len(pieces)) + _number(35, 1)  # model_type, vocab_size, byte_fallback
    trainer += (
        _number(40, 0) + _number(41, 1) + _number(42, 2) + _number(43, 2**64 - 1)
    )  # ids of <unk>, <s>, </s>; pad: -1, none
    normalizer = (
        _block(1, b"identity") + _number(3, 1) + _number(4, 0) + _number(5, 1)
    )  # a space before the text; others stay
    return model + _block(2, trainer) + _block(3, normalizer)


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _block(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
