"""Side by side on one machine, same small random weights, same work, one run:

    python benchmarks/sampling_speed.py [--runs=7] [--threads=2] [--batch=1]

* decoding: this package's writing loop against transformers' generate, greedy, with a cache; tokens per second
* drawing: this package's denoising and VAE against diffusers' StableDiffusionPipeline, DDIM with guidance; pictures per
  second

Everything is float32 on the CPU. Runs alternate between the two, so that both suffer alike from what else the machine
does; medians are reported, and compilation apart. The last line of stdout is JSON.
"""

import argparse
import json
import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import unflatten_dict

from dreamjax import config as c
from dreamjax.diffusion import samplers
from dreamjax.models import dreamllm
from dreamjax.models.dreamllm import Model
from dreamjax.models.llama import init_cache
from dreamjax.sampling import decode, denoise
from dreamjax.sampling.decode import WRITING, Settings, Special, State
from dreamjax.sampling.denoise import DenoisingPlan, Noise

LLM = c.LlamaConfig(vocab_size=8000, width=384, layers=8, heads=6, kv_heads=6, ffn_width=1024, max_positions=512)
UNET = c.UNetConfig(
    sample_size=32,
    block_channels=(64, 128, 256, 256),
    cross_attention=(True, True, True, False),
    heads=(2, 4, 8, 8),
    layers_per_block=1,
    context_width=256,
)
VAE = c.VaeConfig(block_channels=(32, 64, 128, 128), layers_per_block=1)
PROMPT, NEW, STEPS, GUIDANCE, QUERIES = 64, 128, 10, 5.0, 16


def compare(ours, theirs, work: float, unit: str, runs: int) -> dict:
    """Medians of alternating runs; `ours` is compiled first."""
    began = time.monotonic()
    ours()
    first = time.monotonic() - began
    theirs()
    times = {"dreamjax": [], "torch": []}
    for _ in range(runs):
        for name, call in (("dreamjax", ours), ("torch", theirs)):
            began = time.monotonic()
            call()
            times[name].append(time.monotonic() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    facts = {f"{name}_{unit}": round(work / median, 3) for name, median in medians.items()}
    return facts | {
        "ratio": round(medians["torch"] / medians["dreamjax"], 2),
        "compile_seconds": round(first - medians["dreamjax"], 1),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Decoding


def decoding(runs: int, batch: int) -> dict:
    """Greedy writing of NEW tokens after PROMPT tokens, prompt included in the time."""
    import transformers

    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=LLM.vocab_size,
            hidden_size=LLM.width,
            num_hidden_layers=LLM.layers,
            num_attention_heads=LLM.heads,
            num_key_value_heads=LLM.kv_heads,
            intermediate_size=LLM.ffn_width,
            max_position_embeddings=LLM.max_positions,
            rms_norm_eps=LLM.rms_norm_eps,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    model = Model(c.ModelConfig(llm=LLM), {"llm": llama_params(theirs.state_dict())})
    prompt = np.random.default_rng(0).integers(3, LLM.vocab_size, (batch, PROMPT)).astype(np.int32)

    def limit(value):
        return np.full(batch, value, np.int32)

    settings = Settings(
        np.float32(0),
        np.int32(0),
        np.float32(1),
        np.float32(1),
        limit(NEW),
        limit(0),
        limit(0),
        np.zeros(LLM.vocab_size, bool),
        np.int32(512),
    )

    @jax.jit
    def write(model, prompt):
        zeros = jnp.zeros(batch, jnp.int32)
        keys = jax.vmap(jax.random.key)(jnp.zeros(batch, jnp.uint32))
        logits, present = jnp.zeros((batch, LLM.vocab_size)), jnp.zeros((batch, LLM.vocab_size), bool)
        cache = init_cache(LLM, batch, 256, jnp.float32)
        state = State(
            cache,
            zeros,
            logits,
            present,
            jnp.zeros((batch, NEW), jnp.int32),
            zeros,
            zeros,
            zeros + WRITING,
            keys,
            zeros == 0,
        )
        state, _ = decode.extend(model, state, dreamllm.embed(model, prompt), limit(PROMPT))
        return decode.write(model, state, settings, Special(-1, -1, 1), NEW).tokens

    ids = torch.tensor(prompt).long()
    options = {"attention_mask": torch.ones_like(ids), "min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False}

    def generate():
        return theirs.generate(ids, **options)[:, PROMPT:].numpy()

    np.testing.assert_array_equal(write(model, prompt), generate())
    write.clear_cache()
    return compare(
        lambda: jax.block_until_ready(write(model, prompt)), generate, batch * NEW, "tokens_per_second", runs
    )


def llama_params(state: dict) -> dict:
    """Our tree from LlamaForCausalLM's tensors; layers are stacked."""

    def take(name):
        return state[name].numpy()

    def stack(name):
        return np.stack([take(f"model.layers.{i}.{name}.weight") for i in range(LLM.layers)])

    matrices = {f"attention/{n}": f"self_attn.{n}_proj" for n in "qkvo"} | {
        f"mlp/{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")
    }
    flat = {f"layers/{ours}/kernel": stack(theirs).transpose(0, 2, 1) for ours, theirs in matrices.items()}
    flat |= {
        "layers/attention_norm/scale": stack("input_layernorm"),
        "layers/mlp_norm/scale": stack("post_attention_layernorm"),
    }
    flat |= {
        "embed/embedding": take("model.embed_tokens.weight"),
        "norm/scale": take("model.norm.weight"),
        "head/kernel": take("lm_head.weight").T,
    }
    return jax.tree.map(jnp.array, unflatten_dict(flat, sep="/"))


# ----------------------------------------------------------------------------------------------------------------------
# Drawing


def drawing(runs: int, batch: int) -> dict:
    """STEPS steps of DDIM with guidance, and the VAE's decoder, from the same noise and conditions."""
    import diffusers

    diffusion = c.DiffusionConfig()
    sd, cross = UNET, ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in UNET.cross_attention]
    unet = diffusers.UNet2DConditionModel(
        sample_size=sd.sample_size,
        block_out_channels=sd.block_channels,
        layers_per_block=sd.layers_per_block,
        down_block_types=cross,
        up_block_types=[name.replace("Down", "Up") for name in reversed(cross)],
        attention_head_dim=sd.heads,
        cross_attention_dim=sd.context_width,
        norm_num_groups=sd.norm_groups,
        use_linear_projection=True,
    )
    levels = len(VAE.block_channels)
    vae = diffusers.AutoencoderKL(
        block_out_channels=VAE.block_channels,
        layers_per_block=VAE.layers_per_block,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        scaling_factor=VAE.scaling_factor,
    )
    scheduler = diffusers.DDIMScheduler(
        diffusion.timesteps,
        diffusion.beta_start,
        diffusion.beta_end,
        diffusion.beta_schedule,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae, None, None, unet.eval(), scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    config = c.ModelConfig(unet=UNET, vae=VAE, llm=c.LlamaConfig(width=256, heads=4, kv_heads=4), dream_queries=QUERIES)
    model = Model(config, {"unet": diffusers_params(unet.state_dict()), "vae": diffusers_params(vae.state_dict())})

    rng = np.random.default_rng(0)
    noise, keys = (
        rng.normal(size=(batch, 32, 32, 4)).astype(np.float32),
        jax.vmap(jax.random.key)(jnp.zeros(batch, jnp.uint32)),
    )
    context = rng.normal(size=(2, batch, QUERIES, UNET.context_width)).astype(np.float32)
    plan = samplers.padded(samplers.ddim(diffusion, STEPS, "leading"), diffusion.timesteps)
    how = DenoisingPlan(plan, np.asarray(GUIDANCE, np.float32), np.zeros((), np.float32))

    def ours():
        progress = denoise.denoise(
            model, context, samplers.begin(jnp.asarray(noise)), how, Noise(keys), (np.int32(0), np.int32(STEPS))
        )
        return np.asarray(denoise.decode(model, progress.x).images)

    empty, conditional = torch.tensor(context)
    embeds = {"prompt_embeds": conditional, "negative_prompt_embeds": empty}
    latents = torch.tensor(noise.transpose(0, 3, 1, 2))

    def theirs():
        made = pipeline(
            **embeds, latents=latents.clone(), num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np"
        )
        return made.images

    assert np.max(np.abs(ours() / 255 - theirs())) < 2 / 255
    jax.clear_caches()
    return compare(ours, theirs, batch, "pictures_per_second", runs)


def diffusers_params(state: dict) -> dict:
    """Our tree from a diffusers module's tensors; names differ in how list indices are joined."""
    flat = {}
    for name, tensor in state.items():
        path, leaf = re.sub(r"\.(\d+)", r"_\1", name).rsplit(".", 1)
        array = tensor.numpy()
        if leaf == "weight":
            leaf = "scale" if array.ndim == 1 else "kernel"
            array = array.transpose({1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[array.ndim])
        flat[f"{path.replace('.', '/')}/{leaf}"] = array
    return jax.tree.map(jnp.array, unflatten_dict(flat, sep="/"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--batch", type=int, default=1, help="documents, or pictures, at once")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        results = {
            name: task(arguments.runs, arguments.batch) for name, task in (("decoding", decoding), ("drawing", drawing))
        }
    for name, facts in results.items():
        print(f"{name:10s} {facts}")
    print(json.dumps(results | {"runs": arguments.runs, "threads": arguments.threads, "batch": arguments.batch}))


if __name__ == "__main__":
    main()
