"""Multi-host runs: processes find each other, take turns at shared files, agree to stop, and end when one has died.

A host is one process here, as JAX counts them. A process learns of the others from the first of these that is set:

    --coordinator --hosts --host                                    plain addresses
    JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID        the same, from the environment
    SLURM_NTASKS SLURM_PROCID and what else srun sets               a Slurm step of several tasks
    the machine's metadata, or what GKE sets                        a Cloud TPU slice, or several

and is by itself where there is none. The hosts share the workdir.
"""

import atexit
import contextlib
import dataclasses
import glob
import importlib.util
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import multihost

from dreamjax import cli
from dreamjax.errors import ConfigError, RunStopped, gist
from dreamjax.parallel import relay

COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Address HOST:PORT of host 0, where a run of several hosts is not detected."
)
HOSTS = flags.DEFINE_integer("hosts", None, "Number of hosts (processes) of the run, with --coordinator.")
HOST = flags.DEFINE_integer("host", None, "Number of this host, from 0, with --coordinator.")
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat",
    30,
    "Seconds after which a host that is silent counts as dead; the others then end.",
    lower_bound=5,
    upper_bound=60,
)
CONNECT = flags.DEFINE_integer(
    "connect_timeout", 300, "Seconds that the hosts wait for each other at the start.", lower_bound=1
)

# Words in the runtime's errors when another host does not answer; JAX raises them under several types.
LOST = ("Gloo", "NCCL", "CoordinationService", "UNAVAILABLE", "DEADLINE_EXCEEDED")
_at_exit: list[Callable[[], None]] = []  # run also where the process ends at once
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among its hosts; JAX detects what is None, by the method `cluster`."""

    cluster: str | None  # a method of jax.distributed: deactivate (all is given), slurm, or None for what is there
    coordinator: str | None = None  # HOST:PORT
    hosts: int | None = None
    host: int | None = None
    devices: tuple[int, ...] | None = None  # local GPUs of this process; (): all that it sees


def find_place(
    environ: Mapping[str, str],
    coordinator: str | None = None,
    hosts: int | None = None,
    host: int | None = None,
    on_tpu: bool = False,
) -> Place | None:
    """This process among its hosts, from flags and environment as in this file's docstring.

    None for a run of one host. ConfigError where a setting is missing.
    """
    if coordinator is not None or hosts is not None or host is not None:
        return _plain(("--coordinator", coordinator), ("--hosts", hosts), ("--host", host))
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if any(environ.get(name) for name in names[:2]):
        return _plain(*((name, environ.get(name) or None) for name in names))
    if all(name in environ for name in SLURM) and int(environ["SLURM_NTASKS"]) > 1:
        return _slurm(environ)
    return Place(None) if on_tpu else None


def _plain(
    coordinator: tuple[str, str | None], hosts: tuple[str, str | int | None], host: tuple[str, str | int | None]
) -> Place | None:
    """A place from three settings, each with its name."""
    for (name, value), example in zip((coordinator, hosts, host), ("host0:8476", "4", "0"), strict=True):
        if value is None:
            raise ConfigError(
                f"{name}: is missing; a run of several hosts needs {coordinator[0]}, {hosts[0]} and "
                f"{host[0]} on each, such as {name}={example}"
            )
    address = str(coordinator[1])
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise ConfigError(f"{coordinator[0]}: {address!r} is no address like host0:8476")
    count, number = _as_count(*hosts), _as_count(*host)
    if not number < count:
        raise ConfigError(f"{host[0]}: is {number}, and the {count} hosts of {hosts[0]} are numbered from 0")
    return Place("deactivate", address, count, number) if count > 1 else None


def _as_count(name: str, value: str | int | None) -> int:
    if not str(value).isdecimal():
        raise ConfigError(f"{name}: {value!r} is no count")
    return int(str(value))


def _slurm(environ: Mapping[str, str]) -> Place:
    """A task of a Slurm step: several on a node take a GPU each, unless each sees its own alone; one takes all."""
    tasks, nodes = (
        int(environ["SLURM_NTASKS"]),
        int(environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES") or 1),
    )
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    takes_all_visible = tasks == nodes or (visible is not None and len(visible.split(",")) == 1)
    return Place(
        "slurm",
        None,
        tasks,
        int(environ["SLURM_PROCID"]),
        () if takes_all_visible else (int(environ["SLURM_LOCALID"]),),
    )


def on_tpu_machine(environ: Mapping[str, str]) -> bool:
    """True where TPU chips are attached that JAX may use."""
    allowed = "tpu" in environ.get("JAX_PLATFORMS", "tpu") or not environ["JAX_PLATFORMS"]
    return (
        allowed
        and importlib.util.find_spec("libtpu") is not None
        and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    )


def join() -> None:
    """Connects this process to the others, before JAX is used. A host that dies stops the others within --heartbeat
    seconds.

    Raises ConfigError for settings that cannot be right and RunStopped where the others are not reached in time.
    """
    place = find_place(os.environ, COORDINATOR.value, HOSTS.value, HOST.value, on_tpu_machine(os.environ))
    if place is None:
        return
    host_name = "this host" if place.host is None else f"host {place.host} of {place.hosts}"
    at_address = f" at {place.coordinator}" if place.coordinator else ""
    print(f"{host_name}: meets the others{at_address}, within {CONNECT.value} s", file=sys.stderr, flush=True)
    if place.coordinator and place.host:
        _reach(place.coordinator, host_name)
    _relay_stderr(host_name)
    # It would handle SIGTERM from here on, and miss one while a resumed run compiles; see `stop_consensus`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator,
            num_processes=place.hosts,
            process_id=place.host,
            local_device_ids=place.devices,
            cluster_detection_method=place.cluster,
            heartbeat_timeout_seconds=HEARTBEAT.value,
            initialization_timeout=CONNECT.value,
            shutdown_timeout_seconds=HEARTBEAT.value,
        )
    except (ValueError, OSError) as error:
        if place.cluster is not None:
            raise ConfigError(f"hosts: {error}") from None
        print(
            f"this machine has TPU chips and says of no other hosts ({gist(error)}): it runs by itself", file=sys.stderr
        )
    except RuntimeError as error:
        raise RunStopped(
            f"{host_name}: did not find the others{at_address} ({gist(error)}); does each of them run?"
        ) from None


def _reach(address: str, host_name: str) -> None:
    """Returns once host 0 listens. JAX waits too, but ends with a dump of its stack when it waits in vain."""
    name, _, port = address.rpartition(":")
    limit = time.monotonic() + CONNECT.value
    while True:
        try:
            socket.create_connection((name.strip("[]"), int(port)), timeout=CONNECT.value).close()
            return
        except OSError as error:
            if time.monotonic() > limit:
                raise RunStopped(
                    f"{host_name}: nobody answers at {address} within {CONNECT.value} s ({error}); does host 0 "
                    "run there, and is the port open?"
                ) from None
            time.sleep(0.2)


def _relay_stderr(host_name: str) -> None:
    """Sends stderr through dreamjax/parallel/relay.py, for one clear line where the runtime ends this process because
    of another host.

    Where that program ends first, stderr is as before.
    """
    reader, writer = os.pipe()
    stderr = os.dup(2)
    # In a session of its own: signals to this process group, such as Ctrl-C, must not end it early.
    copying = subprocess.Popen([sys.executable, "-I", relay.__file__, host_name], stdin=reader, start_new_session=True)
    sys.stderr.flush()
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)

    finished = threading.Event()

    def restore() -> None:
        copying.wait()
        if not finished.is_set():
            os.dup2(stderr, 2)

    waiting = threading.Thread(target=restore, daemon=True, name="relay")
    waiting.start()

    def finish() -> None:
        finished.set()
        sys.stderr.flush()
        if copying.poll() is None:
            os.write(2, relay.END)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)  # the runtime may still write
        waiting.join(10)

    _at_exit.append(finish)
    atexit.register(finish)


# ----------------------------------------------------------------------------------------------------------------------
# Working together


def is_first() -> bool:
    """True on host 0, which alone prints and writes shared files."""
    return jax.process_index() == 0


def print_on_host0(text: str) -> None:
    """Prints on host 0."""
    if is_first():
        print(text, flush=True)


def wait_for_all(name: str, days: int = 7) -> None:
    """Returns when every host has called it with this `name`, unique in the program; it occupies no device."""
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=days * 86_400_000)


@contextlib.contextmanager
def one_before_the_others(name: str) -> Iterator[None]:
    """Host 0 runs the body first, then the others, which see its files. `name` is unique in the program."""
    if not is_first():
        wait_for_all(name)
    yield
    if is_first():
        wait_for_all(name)


def own_groups(rows: NamedSharding, count: int) -> tuple[int, ...]:
    """The numbers of the global batch's `count` groups on this host's devices, in order.

    Hosts share groups where rows are not split between them.
    """
    indices = rows.addressable_devices_indices_map((count,)).values()
    bounds = {index[0].indices(count) for index in indices if index is not None}
    return tuple(group for begin_end_step in sorted(bounds) for group in range(*begin_end_step))


def stop_consensus(mesh: Mesh) -> Callable[[bool], jax.Array | bool]:
    """`agree(wants_stop)`: True on all hosts if any host wants to stop. All call it at the same steps.

    Nobody waits: the answer is an array that the devices compute in order. So the hosts stop after the same
    step when one of them gets a signal, whether a person, Slurm, GKE or a preempted machine sends it.
    """
    if jax.process_count() == 1:
        return lambda wants_stop: wants_stop
    spread, replicated = NamedSharding(mesh, P(mesh.axis_names)), NamedSharding(mesh, P())
    any_of = jax.jit(jnp.any, out_shardings=replicated)
    return lambda wants_stop: any_of(
        jax.make_array_from_callback((mesh.size,), spread, lambda _: np.array([wants_stop]))
    )


def multihost_main(main: Callable[[], int | None]) -> Callable[[], int | None]:
    """Wraps `main` for multi-host runs: on an error the process exits without the shutdown barrier, so that peers fail
    fast; an error caused by a lost peer becomes RunStopped.
    """

    def run() -> int | None:
        try:
            return main()
        except BaseException as error:
            lost = (
                jax.distributed.is_initialized()
                and not isinstance(error, cli.MENDABLE)
                and any(word in str(error) for word in LOST)
            )
            _skip_shutdown_barrier(2 if lost or isinstance(error, cli.MENDABLE) or cli.no_room(error) else 1)
            if not lost:
                raise
            raise RunStopped(
                f"host {jax.process_index()} of {jax.process_count()}: {relay.LOST}, or cannot reach it "
                f"({gist(error)}); {relay.ADVICE}"
            ) from None

    return run


def _skip_shutdown_barrier(status: int) -> None:
    """Makes this process exit without the shutdown barrier, which the other hosts would not reach."""
    if jax.distributed.is_initialized():
        # a save in the background fails on the way out, and would log stacks behind the error's line
        logging.disable()
        atexit.register(_exit_now, status)


def _exit_now(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for finish in _at_exit:
        finish()
    os._exit(status)
