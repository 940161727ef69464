"""Report of a compiled training step: memory, FLOPs, estimated time, as facts and as text."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from jax.sharding import Mesh

from dreamjax.compile_tpu import checks, estimate, flops, hlo
from dreamjax.compile_tpu.program import Compiled
from dreamjax.compile_tpu.topology import IMAGE_TILE, Topology
from dreamjax.config import RunConfig

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Target:
    """The slice that a program is compiled for, and the mesh over its devices."""

    topology: Topology
    mesh: Mesh

    @property
    def coordinates(self) -> list[tuple[int, ...]]:
        """By partition: the slice of its chip, then the chip's coordinates in the torus."""
        devices: Iterable[Any] = self.mesh.devices.flat  # of TPUs, which have coordinates
        return [(getattr(device, "slice_index", 0) or 0, *device.coords) for device in devices]


def basics(config: RunConfig, topology: Topology, summary: dict) -> dict:
    """The facts that are known before compiling; `summary` is that of training/report.py."""
    trained = {name for name in summary["parameters"] if name in summary["trained_parts"]}
    work = flops.step_flops(config, trained)
    return {
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "peak_tflops_per_chip": topology.chip.tflops,
        "hbm_limit_gib": topology.chip.hbm_gib,
        "mesh": summary["mesh"],
        "rows": summary["rows"],
        "length": summary["length"],
        "input_slots": summary["input_slots"],
        "target_slots": summary["target_slots"],
        "images_at_once": summary["target_slots"]
        // (config.accumulate * config.loss.image_chunks * topology.chips // summary["mesh"]["tensor"]),
        "model_tflops": sum(work.values()) / topology.chips / 1e12,
        "model_tflops_by_part": {name: value / topology.chips / 1e12 for name, value in work.items()},
    }


def memory(compiled: Compiled, bytes_per_device: dict) -> dict:
    """GiB of one device by kind; arguments other than the state and the frozen parameters are the batch."""
    sizes = {
        "parameters": bytes_per_device["trainable"] + bytes_per_device["average"],
        "frozen": bytes_per_device["frozen"],
        "optimiser": bytes_per_device["optimiser"],
    }
    sizes |= {
        "batch": max(compiled.arguments - sum(sizes.values()), 0),
        "activations": compiled.temporary,
        "code": compiled.code,
    }
    return {name: size / GIB for name, size in sizes.items()} | {"peak": compiled.peak / GIB}


def measured(compiled: Compiled, target: Target) -> tuple[hlo.Module, dict]:
    """(module, facts): time, FLOPs and collectives of one run."""
    module = hlo.parse(compiled.text)
    walk = estimate.Walk(module, target.topology, target.coordinates)
    cost = walk.cost(module.entry)
    chip = target.topology.chip
    collectives = [
        {"kind": kind, "asynchronous": asynchronous, "count": count, "gib": size / GIB}
        for (kind, asynchronous), (count, size) in sorted(cost.collectives.items())
    ]
    largest = walk.largest
    return module, {
        "xla_tflops": cost.flops / 1e12,
        "step_seconds_estimate": cost.seconds,
        "terms": {  # seconds
            "roofline_compute": cost.flops / (chip.tflops * 1e12),
            "roofline_hbm": cost.hbm_bytes / (chip.hbm_gbytes * 1e9),
            "roofline_interconnect": cost.network,
            "schedule_fusions": cost.seconds - cost.waiting - cost.kernels,
            "schedule_kernels": cost.kernels,
            "schedule_waiting_for_collectives": cost.waiting,
        },
        "collectives": collectives,
        "collective_gib": sum(entry["gib"] for entry in collectives),
        "largest_collective": {"kind": largest.kind, "gib": largest.bytes / GIB, "where": largest.op_name}
        if largest
        else None,
        "assumptions": list(estimate.ASSUMPTIONS),
        "compile_seconds": compiled.seconds,
    }


def of_step(
    config: RunConfig,
    target: Target,
    compiled: Compiled,
    facts: dict,
    bytes_per_device: dict,
    trees: tuple[dict, dict],
) -> dict:
    """The report of a compiled step; `facts` are its basics, `trees` the shapes of (trainable, frozen)."""
    module, measurements = measured(compiled, target)
    hbm = memory(compiled, bytes_per_device)
    replicated = {part for part in trees[1] if any(re.search(pattern, f"{part}/") for pattern in config.replicated)}
    findings = checks.run(module, *trees, replicated, target.topology.chips, target.mesh.shape["tensor"])
    return (
        facts
        | {
            "fits": hbm["peak"] <= facts["hbm_limit_gib"],
            "hbm_peak_gib": hbm["peak"],
            "hbm_share": hbm["peak"] / facts["hbm_limit_gib"],
            "hbm_gib": hbm,
        }
        | measurements
        | {
            "recompute_ratio": measurements["xla_tflops"] / facts["model_tflops"],
            "mfu_estimate": facts["model_tflops"]
            / (measurements["step_seconds_estimate"] * facts["peak_tflops_per_chip"]),
            "checks": findings,
        }
    )


def too_large(facts: dict, used_gib: float, seconds: float) -> dict:
    """The report of a step that does not fit, so that the compiler stopped."""
    missing = dict.fromkeys(("xla_tflops", "step_seconds_estimate", "mfu_estimate"))
    share = used_gib / facts["hbm_limit_gib"]
    return (
        facts
        | missing
        | {
            "fits": False,
            "hbm_peak_gib": used_gib,
            "hbm_share": share,
            "collectives": [],
            "compile_seconds": seconds,
            "checks": {},
        }
    )


def _at_once(images: int) -> str:
    """The number of images that a chip denoises at once, and the empty places of its tile."""
    empty = -images % IMAGE_TILE
    return f"{images} images on a chip" + (
        f" in the time of {images + empty}: a multiple of {IMAGE_TILE} would leave nothing empty" if empty else ""
    )


def format_summary(report: dict) -> str:
    """The report as text."""
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    lines = [
        f"slice         {report['slices']} x {report['topology']}: {report['chips']} chips of "
        f"{report['peak_tflops_per_chip']} TFLOP/s, {report['hbm_limit_gib']} GiB",
        f"mesh          {mesh}",
        f"a step        {report['rows']} rows of {report['length']} tokens, {report['input_slots']} input "
        f"and {report['target_slots']} target image slots",
        f"at once       {_at_once(report['images_at_once'])}",
        f"HBM           {report['hbm_peak_gib']:.2f} of {report['hbm_limit_gib']} GiB a chip "
        f"({report['hbm_share']:.1%}): {'fits' if report['fits'] else 'DOES NOT FIT'}",
    ]
    if "hbm_gib" in report:
        lines.append("              " + ", ".join(f"{name} {size:.2f}" for name, size in report["hbm_gib"].items()))
    if report["step_seconds_estimate"]:
        parts = ", ".join(f"{name} {value:.2f}" for name, value in report["model_tflops_by_part"].items())
        lines += [
            f"model         {report['model_tflops']:.2f} TFLOP a chip, every row full and every slot used: {parts}",
            f"XLA           {report['xla_tflops']:.2f} TFLOP a chip, {report['recompute_ratio']:.2f} times the model's",
            f"a step takes  {report['step_seconds_estimate']:.3f} s, {report['mfu_estimate']:.1%} of the "
            "peak: an ESTIMATE from the compiler's schedule, in seconds:",
            *(f"              {value:8.3f}  {name.replace('_', ' ')}" for name, value in report["terms"].items()),
            *(f"              assumed: {line}" for line in report["assumptions"]),
            "collectives",
            *(
                f"              {entry['kind']:20s} {entry['count']:6d} {entry['gib']:10.2f} GiB  "
                f"{'asynchronous' if entry['asynchronous'] else 'waited for'}"
                for entry in report["collectives"]
            ),
        ]
    for name, facts in report.get("sampling", {}).items():
        lines.append(
            f"{name:13s} {facts['hbm_peak_gib']:.2f} GiB a chip, {facts['seconds_estimate']:.4f} s "
            f"estimated, compiled in {facts['compile_seconds']:.0f} s"
        )
    lines += [f"FAILED        {line}" for findings in report["checks"].values() for line in findings]
    return "\n".join([*lines, f"compiled      in {report['compile_seconds']:.0f} s"])
