"""Lower bounds of the memory of sampling: a request that cannot fit is refused before the system kills the process.

All are lower bounds, of the largest array alone; what they let pass may still be too much.
"""

import contextlib
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from dreamjax.config import ModelConfig
from dreamjax.config.validation import require_present
from dreamjax.errors import ConfigError
from dreamjax.models.llama import init_cache

GIB = 2**30
WIDEST_HEAD = 256  # that a fused kernel takes; the VAE's one head has all channels


@contextlib.contextmanager
def exhausted_is_said() -> Iterator[None]:
    """A ConfigError, in one line, where an array did not find room after all."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"memory: {reason}; ask for smaller pictures, fewer tokens, or fewer documents at once (--batch_size)"
        ) from None


def there_is() -> int:
    """Bytes of all devices of this process, or of the machine where they are its CPUs."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    return stats.get("bytes_limit", 0) * len(devices) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_room_for_images(config: ModelConfig, latents: tuple[int, int, int], rows: int, copies: int):
    """Raises ConfigError where `rows` pictures of [h, w, C] latents, `copies` of each where there is guidance,
    cannot be drawn at once.
    """
    height, width, _ = latents
    factor = config.vae.downsampling if config.vae else 1
    need, noun = max(_images(config, height, width, rows, copies))
    if need > there_is():
        size = f"{rows} pictures of {width * factor} x {height * factor} pixels at once"
        raise ConfigError(
            f"height, width: {size} take more than {need / GIB:,.0f} GiB ({noun}), there are "
            f"{there_is() / GIB:,.0f} GiB"
        )


def _images(config: ModelConfig, height: int, width: int, rows: int, copies: int) -> list[tuple[int, str]]:
    """(bytes, what they are) of the largest arrays."""
    unet, vae = require_present(config.unet, "model.unet"), config.vae
    positions, item = height * width, jnp.dtype(config.dtype).itemsize
    on_cpu = jax.default_backend() == "cpu"  # where no kernel spares writing out the scores of all pairs of positions
    sizes = [(rows * copies * positions * unet.block_channels[0] * item, "feature maps of the U-Net")]
    if on_cpu and any(unet.cross_attention):
        level = unet.cross_attention.index(True)
        attending = -(-height // 2**level) * -(-width // 2**level)
        sizes.append((rows * copies * unet.heads[level] * attending**2 * 4, "self-attention of the U-Net"))
    if vae is not None:
        sizes.append((rows * positions * vae.downsampling**2 * vae.block_channels[0] * item, "feature maps of the VAE"))
        if on_cpu or vae.block_channels[-1] > WIDEST_HEAD:
            sizes.append((rows * positions**2 * 4, "self-attention of the VAE"))
    return sizes


def require_room_for_documents(config: ModelConfig, rows: int, slots: int):
    """Raises ConfigError where the keys and values of `rows` documents of `slots` positions do not fit."""
    llm = require_present(config.llm, "model.llm")
    cache = jax.eval_shape(lambda: init_cache(llm, rows, slots, jnp.dtype(config.dtype)))
    need = sum(array.size * array.dtype.itemsize for array in cache.values())
    if need > there_is():
        took = (
            f"{rows} documents of up to {slots:,} tokens at once take {need / GIB:,.0f} GiB for keys and values alone"
        )
        raise ConfigError(f"batch_size, max_tokens: {took}, there are {there_is() / GIB:,.0f} GiB")
