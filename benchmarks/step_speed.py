"""Speed of the train step on the devices of this machine: python -m benchmarks.step_speed [--size=NAME] [--steps=10]
[--peak_tflops=N]

Stage II as the paper trains it (LLM, projectors and dream queries train; CLIP, U-Net and VAE frozen), on rows of random
tokens with pictures in every slot that fits. Sizes are tried from the largest down, each in a process of its own, until
one fits; a CPU gets the toy. Prints a dated line of a Markdown table, and JSON on the last line.

Model FLOPs are the formula's (dreamjax/compile_tpu/flops.py), every row full and every slot used, without what the
backward pass computes again; the rows here are full. MFU is these over time and the chip's dense bf16 peak.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import jax
import numpy as np
from jax.sharding import NamedSharding

from dreamjax import config as c
from dreamjax.compile_tpu import flops
from dreamjax.compile_tpu.topology import CHIPS
from dreamjax.document.batch import fake_batch
from dreamjax.parallel.mesh import ROWS, make_mesh
from dreamjax.training.losses import SpecialIds
from dreamjax.training.state import init, shardings
from dreamjax.training.step import jit_train_step

FULL = c.dreamllm_7b()
IDS = SpecialIds(bos=1, dream_start=2, im_patch=2)
# Dense bf16 peak of a device in TFLOP/s, from the vendors' data sheets, by a part of its name.
PEAKS = {"H200": 989, "H100": 989, "A100": 312}
PEAKS |= {
    f"TPU {name}": CHIPS[chip].tflops
    for name, chip in {"v4": "v4", "v5p": "v5p", "v5 lite": "v5e", "v6 lite": "v6e"}.items()
}


def llm(layers: int, width: int = 4096, heads: int = 32, ffn: int = 11008) -> c.ModelConfig:
    """The real model around another LLM."""
    return dataclasses.replace(
        FULL, llm=dataclasses.replace(FULL.llm, layers=layers, width=width, heads=heads, kv_heads=heads, ffn_width=ffn)
    )


# Model, tokens per row, pictures seen and dreamed per row; the largest first.
SIZES = {
    "7b": (FULL, 2048, 3),
    "3b": (llm(26, 3200, 32, 8640), 2048, 3),
    "1b": (llm(22, 2048, 16, 5632), 2048, 3),
    "toy": (c.tiny(), 128, 2),
}


def run_config(size: str, rows: int, chunks: int = 1, attention: str = "auto") -> c.RunConfig:
    """Stage II at one of SIZES, so many rows on each device.

    `chunks` and `attention` as loss.image_chunks and model.llm.attention.
    """
    model, length, images = SIZES[size]
    model = dataclasses.replace(
        model,
        llm=dataclasses.replace(model.llm, attention=attention),
        unet=dataclasses.replace(model.unet, attention=attention),
    )
    data = c.DataConfig(train=(c.SourceConfig("shapes"),), length=length, input_slots=images, target_slots=images)
    optim = c.OptimConfig(
        trainable=(r"^llm/", r"^(visual|condition)_projector/", r"^dream_queries$"), frozen=(r"^(clip|unet|vae)/",)
    )
    return c.RunConfig(
        model=model,
        data=data,
        optim=optim,
        loss=c.LossConfig(image_chunks=chunks),
        mesh=c.MeshConfig(1, -1, 1),
        batch_size=rows * jax.device_count(),
    )


def measure(size: str, config: c.RunConfig, steps: int, peak: float | None) -> dict:
    """Compiles, warms up and times the step of one size."""
    mesh, batch = make_mesh(config.mesh), fake_batch(config)
    shapes = jax.eval_shape(lambda: init(config))
    where, by_row = shardings(*shapes, mesh), NamedSharding(mesh, ROWS)
    with jax.set_mesh(mesh):
        state, frozen = jax.jit(lambda: init(config), out_shardings=where)()
        on_devices = jax.device_put(batch, by_row)
        began = time.monotonic()
        step = jit_train_step(config, IDS, where, mesh).lower(state, frozen, on_devices).compile()
        compiled = time.monotonic() - began

        held = [state, None]  # the step takes the state's memory for the next one

        def run():
            held[:] = step(held[0], frozen, on_devices)
            jax.block_until_ready(held[1])

        del state
        seconds = median_seconds(run, steps)
    metrics, used = jax.device_get(held[1]), memory(step)
    loss = float(metrics["loss"])
    device = jax.devices()[0]
    peak = peak or next((tflops for name, tflops in PEAKS.items() if name.lower() in device.device_kind.lower()), None)
    tflops = sum(flops.step_flops(config, set(shapes[0].trainable)).values()) / jax.device_count() / 1e12
    facts = {"date": str(datetime.date.today()), "machine": machine(), "devices": jax.device_count(), "size": size}
    facts |= {"rows": config.batch_size, "length": config.data.length, "attention": config.model.llm.attention}
    facts |= {"step_seconds": seconds, "model_tflops_per_device": tflops, "loss": loss, "compile_seconds": compiled}
    facts |= {
        "tokens_per_second": int(metrics["tokens"]) / seconds,
        "images_per_second": int(metrics["pictures"]) / seconds,
    }
    return facts | {
        "memory_gib": used / 2**30,
        "tflops_per_second": tflops / seconds,
        "mfu": tflops / seconds / peak if peak else None,
    }


def median_seconds(run, repeats: int) -> float:
    """The median time of `run`, which waits for its results, behind two runs to warm up."""
    times = []
    for _ in range(repeats + 2):
        began = time.monotonic()
        run()
        times.append(time.monotonic() - began)
    return float(np.median(times[2:]))


def memory(step) -> int:
    """Most bytes that a device has held; where it does not say, what the compiled step needs."""
    told = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    needs = step.memory_analysis()
    return (
        told
        or needs.argument_size_in_bytes
        + needs.temp_size_in_bytes
        + needs.output_size_in_bytes
        - needs.alias_size_in_bytes
    )


def machine() -> str:
    """The devices' name; of a CPU, the processor's."""
    kind, info = jax.devices()[0].device_kind, pathlib.Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return (
        kind
        if kind != "cpu"
        else f"{(names or [platform.processor() or 'an unknown processor'])[0]}, {len(names)} cores"
    )


def format_summary(facts: dict) -> str:
    """A line of a Markdown table, below its head."""
    mfu = "" if facts["mfu"] is None else f"{facts['mfu']:.1%}"
    return (
        "| date | machine | size | attention | rows x tokens | step | MFU | memory per device | tokens/s "
        "| target images/s |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
        f"| {facts['date']} | {facts['devices']} x {facts['machine']} | {facts['size']} | {facts['attention']} | "
        f"{facts['rows']} x {facts['length']} | {facts['step_seconds']:.3f} s | "
        f"{mfu} | {facts['memory_gib']:.2f} GiB | {facts['tokens_per_second']:,.0f} | "
        f"{facts['images_per_second']:.2f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, help="this size alone, instead of the largest that fits")
    parser.add_argument("--rows", type=int, default=1, help="rows per device")
    parser.add_argument(
        "--image_chunks", type=int, default=1, help="parts in which pictures are denoised, one behind the other"
    )
    parser.add_argument(
        "--attention", default="auto", choices=("auto", "xla", "cudnn", "splash"), help="the kernel of LLM and U-Net"
    )
    parser.add_argument(
        "--steps", type=int, default=10, help="steps that are timed, behind two to warm up; the median counts"
    )
    parser.add_argument("--peak_tflops", type=float, help="the device's dense bf16 peak, where it is not known here")
    args = parser.parse_args()
    if args.size:
        facts = measure(
            args.size,
            run_config(args.size, args.rows, args.image_chunks, args.attention),
            args.steps,
            args.peak_tflops,
        )
        print(format_summary(facts))
        print(json.dumps(facts))
        return 0
    # The first look at the devices is a child's too: a process that holds an accelerator would keep it from the next.
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    backend = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()[-1]
    # JAX leaves a quarter of a GPU's memory alone unless it is told otherwise.
    surroundings = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.96"} | os.environ
    for size in ["toy"] if backend == "cpu" else SIZES:
        command = [sys.executable, "-m", "benchmarks.step_speed", f"--size={size}", *sys.argv[1:]]
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True)
        if done.returncode == 0:
            print(done.stdout, end="")
            return 0
        if "RESOURCE_EXHAUSTED" not in done.stderr:
            print(done.stderr, file=sys.stderr)
            return 1
        print(f"{size} does not fit", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
