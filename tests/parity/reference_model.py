"""A DreamLLM of torch parts for a made bundle: transformers' LLaMA and CLIP, diffusers' U-Net, VAE and schedulers, and
what joins them.

Splicing, conditions and losses are written down from what is known of the official code (omni/models/dreamllm). Nothing
here comes from the package, which is compared with it. Tensors are float32, pictures [n, 3, h, w].
"""

import dataclasses
import json
import pathlib

import diffusers
import safetensors.torch
import torch
import transformers

HEAD, EMBEDDING = "stable_diffusion_head", "clip_vision_embedding"
VISUAL, CONDITION, QUERIES = (
    f"model.{EMBEDDING}.projector.projector",
    f"{HEAD}.projector.projector.weight",
    "model.dream_embedding.dream_queries",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """The parts, the special tokens' ids and what config.json says of their use."""

    llm: transformers.LlamaForCausalLM
    clip: transformers.CLIPVisionModel
    visual: torch.nn.Module
    queries: torch.nn.Parameter  # [1, Q, D]
    condition: torch.nn.Linear
    unet: diffusers.UNet2DConditionModel
    vae: diffusers.AutoencoderKL
    schedule: diffusers.DDPMScheduler
    ids: dict[str, int]
    settings: dict

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Everything but CLIP, U-Net and VAE, by the official names."""
        visual = {f"{VISUAL}.{name}": value for name, value in self.visual.named_parameters()}
        return {**dict(self.llm.named_parameters()), **visual, QUERIES: self.queries, CONDITION: self.condition.weight}


def build(config: dict, components: pathlib.Path, ids: dict[str, int], seed: int) -> Model:
    """The model of a config.json and the components' configurations, with large random weights, no norm 1 and no
    bias 0.
    """

    def read(file):
        return json.loads((components / file).read_text())

    own = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "tie_word_embeddings",
    )
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    llm = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{key: config[key] for key in own}, rope_parameters=rope)
    )
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**read("clip/config.json")))
    unet = diffusers.UNet2DConditionModel.from_config(read("sd/unet/config.json"))
    vae = diffusers.AutoencoderKL.from_config(read("sd/vae/config.json"))
    schedule = diffusers.DDPMScheduler.from_config(read("sd/scheduler/scheduler_config.json"))
    plugins, width = config["plugins_init_kwargs"], config["hidden_size"]
    visual = torch.nn.Linear(clip.config.hidden_size, width)
    if plugins[EMBEDDING]["projector_type"] == "mlp":
        visual = torch.nn.Sequential(visual, torch.nn.GELU(), torch.nn.Linear(width, width))
    condition = torch.nn.Linear(width, unet.config.cross_attention_dim, bias=False)
    queries = torch.nn.Parameter(torch.zeros(1, plugins["dream_embedding"]["num_dream_queries"], width))
    model = Model(llm, clip, visual, queries, condition, unet, vae, schedule, ids, config)
    draws = torch.Generator().manual_seed(seed)
    for part in (llm, clip, visual, condition, unet, vae):
        randomise(part.eval(), draws)
    with torch.no_grad():
        queries.copy_(0.6 * torch.randn(queries.shape, generator=draws))
        # Words are likelier than what opens a picture, which official generation cannot write.
        llm.lm_head.weight[min(i for name, i in ids.items() if name not in ("<s>", "</s>", "<unk>")) :] *= 0.3
    for frozen in (clip, unet, vae):
        frozen.requires_grad_(False)
    return model


def randomise(part: torch.nn.Module, draws: torch.Generator):
    """Matrices keep the size of what they multiply, embeddings have deviation 0.6, scales lie about 1 and biases
    about 0.
    """
    for name, parameter in part.named_parameters():
        noise = torch.randn(parameter.shape, generator=draws)
        with torch.no_grad():
            if "embed" in name and "patch" not in name:
                parameter.copy_(0.6 * noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise + (1 if name.endswith("weight") else 0))


def save(model: Model, folder: pathlib.Path):
    """The LLM with the buffers of old transformers, and three pickles."""
    state = {name: value.contiguous() for name, value in model.llm.state_dict().items()}
    if model.settings["tie_word_embeddings"]:
        del state["lm_head.weight"]
    width = model.settings["hidden_size"] // model.settings["num_attention_heads"]
    for layer in range(model.settings["num_hidden_layers"]):
        frequencies = 1.0 / model.settings["rope_theta"] ** (torch.arange(0, width, 2).float() / width)
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    clip = {
        f"clip_vision_model.vision_model.{name.removeprefix('vision_model.')}": value
        for name, value in model.clip.state_dict().items()
    }
    visual = {f"projector.projector.{name}": value for name, value in model.visual.state_dict().items()}
    torch.save(clip | visual, folder / f"{EMBEDDING}.bin")
    torch.save({"dream_queries": model.queries.detach()}, folder / "dream_embedding.bin")
    head = {
        f"{part}.{name}": value for part in ("vae", "unet") for name, value in getattr(model, part).state_dict().items()
    }
    torch.save(head | {"projector.projector.weight": model.condition.weight.detach()}, folder / f"{HEAD}.bin")


# ----------------------------------------------------------------------------------------------------------------------
# The LLM and what it reads


def see(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Pictures to embeddings [n, P, D]."""
    states = model.clip(images, output_hidden_states=True).hidden_states
    return model.visual(states[model.settings["plugins_init_kwargs"][EMBEDDING]["select_layer"]][:, 1:])


def splice(model: Model, ids: torch.Tensor, images: torch.Tensor | None = None, dream: bool = False) -> torch.Tensor:
    """[B, S] ids -> [B, S, D].

    Queries behind every <dream_start>, then the pictures in reading order behind the <im_start>s, as far as they go.
    """
    embeds = model.llm.get_input_embeddings()(ids)
    rows, places, values = [], [], []
    for name, given in (("<dream_start>", None), ("<im_start>", None if images is None else see(model, images))):
        if name == "<im_start>" and given is None or name == "<dream_start>" and not dream:
            continue
        for number, (row, at) in enumerate((ids == model.ids[name]).nonzero().tolist()):
            if given is not None and number == len(given):
                break
            value = model.queries[0] if given is None else given[number]
            rows.append(torch.full((len(value),), row))
            places.append(torch.arange(at + 1, at + 1 + len(value)))
            values.append(value)
    return embeds.index_put((torch.cat(rows), torch.cat(places)), torch.cat(values)) if rows else embeds


def run(model: Model, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor | None = None):
    """transformers' outputs.

    Causal attention to what the mask [B, S] shows, positions counted with the pads unless given.
    """
    length = embeds.shape[1]
    inputs = torch.ones(length, length, dtype=torch.bool).tril() & (mask[:, None, :] == 1)
    bias = torch.zeros(inputs.shape).masked_fill(~inputs, torch.finfo(torch.float32).min)[:, None]
    positions = torch.arange(length).expand(len(embeds), -1) if positions is None else positions
    return model.llm.model(
        inputs_embeds=embeds, attention_mask=bias, position_ids=positions, output_hidden_states=True, use_cache=False
    )


def word_loss(model: Model, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the labels of the whole batch that count; 0 without any."""
    logits, targets = model.llm.lm_head(hidden)[:, :-1], labels[:, 1:]
    total = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100, reduction="sum"
    )
    return total / max(int((targets != -100).sum()), 1)


def total_loss(model: Model, words: torch.Tensor, images: torch.Tensor | float, schedule: str) -> torch.Tensor:
    lm, vm = model.settings["loss_weight_lm"], model.settings["loss_weight_vm"]
    scale = {"none": 1.0, "l1_norm": lm + vm, "l2_norm": (lm**2 + vm**2) ** 0.5}[schedule]
    return (lm * words + vm * images) / scale


# ----------------------------------------------------------------------------------------------------------------------
# Pictures


def at_queries(model: Model, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states behind every <dream_start>, [m, Q, D]."""
    count = model.queries.shape[1]
    return torch.stack(
        [hidden[row, at + 1 : at + 1 + count] for row, at in (ids == model.ids["<dream_start>"]).nonzero().tolist()]
    )


def without_context(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """The official training's unconditional branch, which leaves the queries out.

    What the LLM reads, and its states [1, Q, D].
    """
    names = ["<s>", "<dream_start>", *["<im_patch>"] * model.queries.shape[1], "<dream_end>", "</s>"]
    ids = torch.tensor([[model.ids[name] for name in names]])
    embeds = splice(model, ids)
    return embeds, run(model, embeds, torch.ones_like(ids)).last_hidden_state[:, 2:-2]


def image_loss(
    model: Model, images: torch.Tensor, hidden: torch.Tensor, draws: dict[str, torch.Tensor], options: dict
) -> tuple[torch.Tensor, dict]:
    """The denoising loss of pictures in [-1, 1] and what led to it.

    `draws` as they are recorded, `options` as a variant's settings.
    """
    draws = {name: values[: len(images)] for name, values in draws.items()}
    with torch.no_grad():
        moments = model.vae.encode(images).latent_dist
        latents = (moments.mean + moments.std * draws["eps_vae"]) * model.vae.config.scaling_factor
    noise, steps = draws["noise"] + options.get("noise_offset", 0) * draws["offset_noise"], draws["timesteps"]
    noisy = model.schedule.add_noise(latents, noise + options.get("input_perturbation", 0) * draws["pert_noise"], steps)
    made = {
        "noisy_latents": noisy,
        "latents": latents,
        "vae_mean": moments.mean,
        "vae_std": moments.std,
        "encoder_hidden_states": hidden,
    }
    if "drop_prob" in options:
        made["u_inputs_embeds"], empty = without_context(model)
        made["u_encoder_hidden_states"] = empty.expand_as(hidden)
        drop = draws["drop_mask"][:, None, None]
        hidden = (1 - drop) * hidden + drop * empty
    made["unet_context"] = model.condition(hidden)
    made["unet_pred"] = model.unet(noisy, steps, made["unet_context"]).sample
    velocity = options["prediction_type"] == "v_prediction"
    target = model.schedule.get_velocity(latents, noise, steps) if velocity else noise
    errors = ((made["unet_pred"] - target) ** 2).mean(dim=(1, 2, 3))
    if "snr_gamma" in options:
        ratio = signal_to_noise(model, steps) + velocity
        errors = errors * ratio.clamp(max=options["snr_gamma"]) / ratio
    return errors.mean(), made


def signal_to_noise(model: Model, steps: torch.Tensor) -> torch.Tensor:
    share = model.schedule.alphas_cumprod[steps]
    return share / (1 - share)


# ----------------------------------------------------------------------------------------------------------------------
# Inference


@torch.no_grad()
def prompt_states(
    model: Model, ids: torch.Tensor, mask: torch.Tensor, images: torch.Tensor | None = None
) -> torch.Tensor:
    """What a prompt conditions on, [B, Q, D]: the states at the queries behind it, whatever fills it up."""
    opening = torch.tensor(
        [model.ids["<dream_start>"], *[model.ids["<im_patch>"]] * model.queries.shape[1], model.ids["<dream_end>"]]
    ).expand(len(ids), -1)
    embeds = torch.cat([splice(model, ids, images), splice(model, opening, dream=True)], dim=1)
    return run(model, embeds, torch.cat([mask, torch.ones_like(opening)], dim=1)).last_hidden_state[
        :, ids.shape[1] + 1 : -1
    ]


@torch.no_grad()
def draw(
    model: Model,
    sampler,
    states: torch.Tensor,
    empty: torch.Tensor | None,
    latents: torch.Tensor,
    seeds: list[int],
    scale: float,
    rescale: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents after every step [steps, B, C, h, w], timesteps).

    A step's fresh noise comes from its seed, for as many pictures as `states` has at most.
    """
    context = model.condition(states) if empty is None else model.condition(torch.cat([empty, states]))
    sampler.set_timesteps(len(seeds))
    found, most = [], 2
    for step, seed in zip(sampler.timesteps, seeds, strict=False):
        predicted = model.unet(torch.cat([latents] * (len(context) // len(latents))), step, context).sample
        if empty is not None:
            away, towards = predicted.chunk(2)
            predicted = away + scale * (towards - away)
            spread = towards.std(dim=(1, 2, 3), keepdim=True) / predicted.std(dim=(1, 2, 3), keepdim=True)
            predicted = (rescale * spread + 1 - rescale) * predicted

        def fill(x):
            return x.expand(most, *x.shape[1:]) if len(x) == 1 else x  # so that one picture has the first one's noise

        latents = sampler.step(
            fill(predicted), step, fill(latents), generator=torch.Generator().manual_seed(seed)
        ).prev_sample[: len(latents)]
        found.append(latents)
    return torch.stack(found), sampler.timesteps


@torch.no_grad()
def write(
    model: Model, ids: torch.Tensor, mask: torch.Tensor, images: torch.Tensor | None, count: int, pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy.

    (ids with what was written behind them, the logits of every step [B, T, V]). Pads follow </s>; positions leave pads
    out.
    """
    embeds, scores, done = splice(model, ids, images), [], torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(count):
        hidden = run(model, embeds, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)).last_hidden_state
        scores.append(model.llm.lm_head(hidden[:, -1]))
        token = scores[-1].argmax(dim=-1).where(~done, pad)[:, None]
        done = done | (token[:, 0] == model.ids["</s>"])
        ids, mask, embeds = (
            torch.cat([ids, token], 1),
            torch.cat([mask, torch.ones_like(token)], 1),
            torch.cat([embeds, splice(model, token)], 1),
        )
        if done.all():
            break
    return ids, torch.stack(scores, dim=1)
