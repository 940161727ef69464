"""The experiments at the paper's sizes, compiled for pods that are not at hand, as one table:

    python -m benchmarks.pod_table [--only=REGEX] [--cache=DIR]

Every row is one run of `python -m dreamjax.compile`, whose results are kept, so that the table goes on where it was
interrupted. The last two have 64 and 128 chips laid out as 16 are: what a chip does is the same on all three, and how
far time and memory differ stands below the table. A row takes minutes and about 14 GiB. Rows that were not reached are
left out, never guessed. Times and MFU are estimates from the compiler's schedule. The last line of stdout is JSON.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

import tqdm

from dreamjax.experiments.common.paper import TARGETS

STAGES = {
    "I comprehension": "stage1_align.py:{},comprehension",
    "I creation": "stage1_align.py:{},creation",
    "II": "stage2_igpt.py:{}",
    "III": "stage3_sft.py:{}",
}
PODS = ("v4-16", "v4-64", "v4-128", "v5p-64", "v6e-128")
ALIKE = ("II v4-16", "II v4-64 as v4-16", "II v4-128 as v4-16")  # the same work on each chip
ROOT = pathlib.Path(__file__).parents[1]


def rows() -> dict[str, tuple[str, ...]]:
    """Names of rows and the arguments of `python -m dreamjax.compile` for each."""

    def of(file, pod):
        return (f"--config=experiments/{file.format(pod)}", f"--topology={TARGETS[pod].topology}")

    found = {f"{stage} {pod}": of(file, pod) for pod in PODS for stage, file in STAGES.items()}
    small = TARGETS["v4-16"]
    for pod in ("v4-64", "v4-128"):
        alike = (
            f"--config.mesh.data={TARGETS[pod].chips // small.fsdp}",
            f"--config.mesh.fsdp={small.fsdp}",
            f"--config.model.llm.remat={small.remat}",
        )
        found[f"II {pod} as v4-16"] = (*of(STAGES["II"], pod), *alike)
    return found


def compiled(row: tuple[str, ...], cache: str) -> dict:
    """The report of one row; what went wrong stands under `error`."""
    command = [sys.executable, "-m", "dreamjax.compile", *row, "--nosampling", f"--cache={cache}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode in (0, 1) and lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    return {"error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}


def format_summary(name: str, row: dict) -> str:
    """One line of a Markdown table."""
    if "error" in row:
        return f"| {name} | {row['error']} | | | | | | |"
    if not row["step_seconds_estimate"]:
        return (
            f"| {name} | {row['hbm_peak_gib']:.1f} GiB | {row['hbm_share']:.0%} | does not fit | | | | "
            f"{row['compile_seconds']:.0f} s |"
        )
    largest = row["largest_collective"]
    failed = ", ".join(check for check, findings in row["checks"].items() if findings) or "none"
    return (
        f"| {name} | {row['hbm_peak_gib']:.1f} GiB | {row['hbm_share']:.0%} | "
        f"{row['step_seconds_estimate']:.2f} s | {row['mfu_estimate']:.1%} | "
        f"{largest['kind']}, {largest['gib']:.2f} GiB | {failed} | {row['compile_seconds']:.0f} s |"
    )


def compared(reports: dict[str, dict]) -> str:
    """The differences between rows with the same work on each chip; empty if some are missing."""
    if any(not reports.get(name, {}).get("step_seconds_estimate") for name in ALIKE):
        return ""
    facts = {
        "seconds a step": "step_seconds_estimate",
        "GiB of HBM": "hbm_peak_gib",
        "GiB in collectives": "collective_gib",
    }
    lines = [f"The same work on each of {', '.join(str(reports[name]['chips']) for name in ALIKE)} chips:"]
    for words, key in facts.items():
        values = [reports[name][key] for name in ALIKE]
        lines.append(
            f"{', '.join(f'{value:.2f}' for value in values)} {words} (up to {max(values) / min(values) - 1:.1%} more)"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", help="a regular expression: rows whose name it finds, such as '^II v4-128'"
    )
    parser.add_argument(
        "--cache", default=os.path.expanduser("~/.cache/dreamjax/compiled"), help="folder that keeps what was compiled"
    )
    arguments = parser.parse_args()
    wanted = {name: row for name, row in rows().items() if re.search(arguments.only, name)}
    reports = {name: compiled(row, arguments.cache) for name, row in tqdm.tqdm(wanted.items(), unit="row")}
    print(
        "| stage, pod | HBM peak | of the chip | step (estimate) | MFU (estimate) | largest collective | "
        "checks failed | compiled in |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, row in reports.items():
        print(format_summary(name, row))
    print(compared(reports))
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
