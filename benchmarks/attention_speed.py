"""Attention as the step takes it, by each kernel that runs on the device here: python -m benchmarks.attention_speed
[--repeats=20]

Forward and backward in bfloat16, at the model's own shapes on an accelerator and at small ones on a CPU: the LLM's,
causal over rows of two packed documents, and the U-Net's largest, over all positions. The error is that of results and
gradients against plain attention in float32, as the norm of the difference over the norm, the largest of the four.
Prints a Markdown table, and JSON on the last line.
"""

import argparse
import datetime
import json

import jax
import jax.numpy as jnp

from benchmarks.step_speed import machine, median_seconds
from dreamjax.models import attention

# Rows, positions, heads, width of a head, and whether causal over packed documents.
SHAPES = {"LLM": (4, 2048, 32, 128, True), "U-Net": (8, 4096, 5, 64, False)}
SMALL = {"LLM": (2, 256, 4, 128, True), "U-Net": (2, 256, 5, 64, False)}
KERNELS = {"gpu": ("xla", "cudnn"), "tpu": ("xla", "splash")}


def gradients(kernel: str, segments: jax.Array | None):
    """The function of queries, keys, values and what the result's gradient is, that gives the result and three
    gradients.
    """
    attend = (
        (lambda *qkv: attention.full_attention(*qkv, kernel))
        if segments is None
        else (lambda *qkv: attention.causal_attention(*qkv, segments, kernel))
    )

    def run(q, k, v, outer):
        result, pull = jax.vjp(attend, q, k, v)
        return result, *pull(outer.astype(result.dtype))

    return jax.jit(run)


def measure(name: str, kernel: str, shape: tuple, repeats: int) -> dict:
    """Time and error of one kernel at one shape."""
    rows, length, heads, width, causal = shape
    draws = [
        jax.random.normal(key, (rows, length, heads, width), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0), 4)
    ]
    segments = jnp.broadcast_to(1 + (jnp.arange(length) >= length // 3), (rows, length)) if causal else None
    run = gradients(kernel, segments)
    with jax.default_matmul_precision("highest"):
        exact = gradients("xla", segments)(*(draw.astype(jnp.float32) for draw in draws))

    def distance(got, true):
        return float(jnp.linalg.norm(got.astype(jnp.float32) - true) / jnp.linalg.norm(true))

    error = max(map(distance, run(*draws), exact))
    del exact
    seconds = median_seconds(lambda: jax.block_until_ready(run(*draws)), repeats)
    return {"attention": name, "kernel": kernel, "shape": shape[:4], "ms": 1e3 * seconds, "error": error}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=20, help="runs that are timed, behind two to warm up; the median counts"
    )
    repeats = parser.parse_args().repeats
    backend = jax.default_backend()
    print(
        f"{datetime.date.today()}, {machine()}\n\n| attention | rows x positions x heads x width | kernel "
        "| forward and backward | error |\n|---|---|---|---|---|"
    )
    rows = []
    for name, shape in (SMALL if backend == "cpu" else SHAPES).items():
        for kernel in KERNELS.get(backend, ("xla",)):
            rows.append(measure(name, kernel, shape, repeats))
            print(
                f"| {name} | {' x '.join(map(str, shape[:4]))} | {kernel} | {rows[-1]['ms']:.2f} ms | "
                f"{rows[-1]['error']:.1e} |",
                flush=True,
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
