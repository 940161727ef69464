"""XLA for tests and for the commands that they start: they compile many tiny programs,
so that compiling takes most of their time and need not be done well."""

import functools
import os
import pathlib
import subprocess
import sys

import forked

ROOT = pathlib.Path(__file__).parents[2]
WITHOUT_OPTIMIZATION = "--xla_backend_optimization_level=0"
PLAIN_KERNELS = (
    "--xla_cpu_use_fusion_emitters=false"  # the older emitter of fused loops compiles in about two thirds of the time
)


def flags(devices: int) -> str:
    """XLA_FLAGS of a process with so many CPU devices, fake ones if they are several."""
    return f"{_quick()} --xla_force_host_platform_device_count={devices}" if devices > 1 else _quick()


def environment(devices: int = 1, **changes: str) -> dict[str, str]:
    """The environment of a command that a test starts; what was compiled once, in it or elsewhere, is not compiled
    again.

    NPROC is what the tests' own fake devices need; a command with such devices sets it itself.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "NPROC"}
    return inherited | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(devices)} | changes


def command(module: str, *arguments, expect: int = 0) -> subprocess.CompletedProcess:
    """`python -m dreamjax.MODULE` with arguments, run to its end, which must have the given status."""
    process = forked.Process(f"dreamjax.{module}", list(map(str, arguments)), environment())
    out, err = process.communicate()
    assert process.returncode == expect, out + err
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@functools.cache
def _quick() -> str:
    """XLA ends a process that is given a flag it does not know, so an XLA without the older emitter is found out in
    another one.
    """
    known = os.environ.get("DREAMJAX_TEST_XLA_FLAGS")  # asked once in a session: workers are given what was found
    if known is None:
        both = f"{WITHOUT_OPTIMIZATION} {PLAIN_KERNELS}"
        tried = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": both},
            capture_output=True,
        )
        known = os.environ["DREAMJAX_TEST_XLA_FLAGS"] = WITHOUT_OPTIMIZATION if tried.returncode else both
    return known
