"""What golden/ of a made bundle holds: {array: value} of each .npz and what stands in the .json beside it."""

import dataclasses

import diffusers
import numpy as np
import PIL.Image
import reference_model as torch_model
import torch
import transformers
from reference_model import Model
from reference_text import CONVERSATIONS, PAD, SYSTEM, Rows, chat, padded

DOCUMENTS = [
    (["A photo of a goat.", "The black cat is here, under the blue sky.", "And then a river."], [0, 1]),
    (["Sunrise over the lake", "beautiful!"], [0]),
    (["Only words in this one, no picture at all."], []),
]
CREATED = ["A polar bear in the forest.", "A cat"]
PROMPTS, NEGATIVES = (
    ["A photo of a goat.", "(best quality) A polar bear in the forest, detailed ink wash."],
    ["ugly,blurry", "low quality,worst anatomy,bad"],
)
MIXED = "A photo of <image> and a goat."
GUIDANCE, STEP_SEED = 3.5, 1000
RUNS = {
    "ddpm": {},
    "ddpm_nocfg": {"scale": 1.0},
    "ddpm_rescale": {"rescale": 0.7},
    "ddpm_noneg": {"negative": False},
    "ddpm_single": {"scale": 7.5, "rows": 1},
    "ddim": {},
}
VARIANTS = {
    "base": {},
    "otherpred": {"pt": True},
    "snr": {"snr_gamma": 5.0},
    "snr_otherpred": {"snr_gamma": 5.0, "pt": True},
    "offset": {"noise_offset": 0.1},
    "perturb": {"input_perturbation": 0.1},
    "drop": {"drop_prob": 0.5},
    "all": {"snr_gamma": 5.0, "noise_offset": 0.1, "input_perturbation": 0.1, "drop_prob": 0.5, "pt": True},
    "l1norm": {"sched": "l1_norm"},
    "l2norm": {"sched": "l2_norm"},
    "comprehension": {},
    "creation": {},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Maker:
    """The model, its rows and its pictures; every draw comes from `draws`."""

    model: Model
    rows: Rows
    processor: transformers.CLIPImageProcessorPil
    resolution: int
    draws: torch.Generator

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.draws)

    @property
    def latent(self) -> tuple[int, int, int]:
        """Channels and sides of the latents of training's pictures."""
        side = self.resolution // 2 ** (len(self.model.vae.config.block_out_channels) - 1)
        return self.model.unet.config.in_channels, side, side

    @property
    def drawn(self) -> tuple[int, int, int]:
        """The same of pictures that are drawn."""
        return self.model.unet.config.in_channels, *[self.model.unet.config.sample_size] * 2

    def image(self, height: int, width: int) -> np.ndarray:
        """A few coloured squares, uint8 [height, width, 3]."""
        squares = torch.randint(0, 256, (5, 5, 3), generator=self.draws).numpy().astype(np.uint8)
        return np.array(PIL.Image.fromarray(squares).resize((width, height), PIL.Image.Resampling.BICUBIC))

    def inputs(self, images: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(
            np.stack(self.processor([PIL.Image.fromarray(one) for one in images], return_tensors="np")["pixel_values"])
        )

    def targets(self, images: list[np.ndarray], flip: bool = False) -> torch.Tensor:
        """Shorter side to the resolution (bilinear), the middle, mirrored where asked for, from -1 to 1."""
        found, size = [], self.resolution
        for one in map(PIL.Image.fromarray, images):
            short = min(one.size)
            one = one.resize(
                tuple(size if side == short else int(size * side / short) for side in one.size),
                PIL.Image.Resampling.BILINEAR,
            )
            left, top = round((one.width - size) / 2), round((one.height - size) / 2)
            pixels = np.array(one.crop((left, top, left + size, top + size)))
            found.append(np.moveaxis(pixels[:, ::-1] if flip else pixels, -1, 0))
        return torch.from_numpy(np.stack(found)).float() / 255 * 2 - 1

    def tokens(self, texts: list[str], side: str) -> dict[str, torch.Tensor]:
        ids = [self.rows.words(text) for text in texts]
        mask = padded([[1] * len(row) for row in ids], 0, side)
        return {"input_ids": torch.tensor(padded(ids, self.model.ids[PAD], side)), "attention_mask": torch.tensor(mask)}


def collated(maker: Maker, rows: list[dict]) -> dict[str, torch.Tensor]:
    """Rows filled up on the right."""
    ids = padded([row["input_ids"] for row in rows], maker.model.ids[PAD])
    mask, labels = (
        padded([[1] * len(row["input_ids"]) for row in rows], 0),
        padded([row["labels"] for row in rows], -100),
    )
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}


# ----------------------------------------------------------------------------------------------------------------------
# Files


@torch.no_grad()
def components(maker: Maker) -> dict:
    """components.npz."""
    model, steps = maker.model, maker.model.schedule.config.num_train_timesteps
    channels, *sides = maker.latent

    def some(*shape):
        return maker.normal(2, *shape)

    made = {"clip_pixel_values": maker.inputs([maker.image(40, 52), maker.image(61, 33)])}
    made["clip_hidden_states"] = torch.stack(
        model.clip(made["clip_pixel_values"], output_hidden_states=True).hidden_states
    )
    made["clip_embeds"] = torch_model.see(model, made["clip_pixel_values"])
    made |= {"unet_sample": some(*maker.latent), "unet_timesteps": torch.tensor([7 * steps // 10, 3])}
    made["unet_context"] = some(model.queries.shape[1], model.unet.config.cross_attention_dim)
    made["unet_out"] = model.unet(*(made[f"unet_{name}"] for name in ("sample", "timesteps", "context"))).sample
    made["vae_images"] = some(3, maker.resolution, maker.resolution).clamp(-1, 1)
    moments = model.vae.encode(made["vae_images"]).latent_dist
    made |= {"vae_mean": moments.mean, "vae_logvar": moments.logvar, "vae_z": some(*maker.latent)}
    made["vae_decoded"] = model.vae.decode(made["vae_z"]).sample
    given = {
        "x0": some(channels, *sides),
        "noise": some(channels, *sides),
        "t": torch.tensor([steps // 100, steps * 9 // 10]),
    }
    made |= {f"add_noise_{name}": value for name, value in given.items()} | {
        "alphas_cumprod": model.schedule.alphas_cumprod
    }
    made |= {
        "add_noise_out": model.schedule.add_noise(*given.values()),
        "velocity_out": model.schedule.get_velocity(*given.values()),
    }
    made["snr_out"] = torch_model.signal_to_noise(model, given["t"])
    for count in (5, 50, 150):
        model.schedule.set_timesteps(count)
        made[f"ddpm_timesteps_{count}"] = model.schedule.timesteps
    return made


@torch.no_grad()
def forward(maker: Maker) -> tuple[dict[str, dict], dict]:
    """forward_*.npz by their endings, and forward.json."""
    model, written = maker.model, {"docs": DOCUMENTS}
    images = [maker.image(50, 40), maker.image(30, 45), maker.image(64, 64)]
    pages = [{"text_list": texts, "matched_text_index": index, "n_images": len(index)} for texts, index in DOCUMENTS]
    rows = {
        "joint": [maker.rows.interleaved(page, "joint") for page in pages],
        "comprehension": [maker.rows.interleaved(page, "comprehension_only") for page in pages],
        "creation": [maker.rows.pair({"text": text}, "creation_only", None) for text in CREATED],
    }
    files = {}
    for name, given in rows.items():
        made = collated(maker, given)
        made |= {"images": maker.inputs(images)} if name != "creation" else {}
        made |= (
            {"images_dm": maker.targets(images[: len(CREATED)] if name == "creation" else images)}
            if name != "comprehension"
            else {}
        )
        made["inputs_embeds"] = torch_model.splice(model, made["input_ids"], made.get("images"), "images_dm" in made)
        out = torch_model.run(model, made["inputs_embeds"], made["attention_mask"])
        lm = torch_model.word_loss(model, out.last_hidden_state, made["labels"])
        made |= {
            "hidden_layer1": out.hidden_states[1],
            "last_hidden": out.last_hidden_state,
            "logits": model.llm.lm_head(out.last_hidden_state),
        }
        made["loss"] = torch_model.total_loss(model, lm, 0.0, model.settings["loss_scale_schedule"])
        ids = made["input_ids"]
        losses = {"eval_loss": float(made["loss"]), "lm_loss": float(lm), "vm_loss": 0.0}
        written[name] = {
            "shape": list(ids.shape),
            **losses,
            "tokens": [maker.rows.words.pieces(row) for row in ids.tolist()],
        }
        files[name] = made
    return files, written | {"special_tokens2ids_dict": model.settings["special_tokens2ids_dict"]}


def losses(
    maker: Maker, batches: dict[str, dict], variants: dict[str, dict], graded: tuple[str, ...]
) -> tuple[dict, dict, dict[str, dict]]:
    """vmloss.npz, vmloss.json and the grads_*.npz by their endings; the variants `graded` have gradients."""
    model = maker.model
    count, own = len(batches["joint"]["images_dm"]), model.schedule.config.prediction_type
    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[own]
    draws = {name: maker.normal(count, *maker.latent) for name in ("eps_vae", "noise", "pert_noise")} | {
        "offset_noise": maker.normal(count, maker.latent[0], 1, 1)
    }
    draws["timesteps"] = torch.randint(0, model.schedule.config.num_train_timesteps, (count,), generator=maker.draws)
    draws["drop_mask"] = torch.tensor([1.0, 0.0, 1.0])[:count]
    arrays, written, gradients = dict(draws), {}, {}
    for name, options in variants.items():
        options = options | ({"pt": other} if "pt" in options else {})
        options = options | {"prediction_type": options.get("pt", own)}
        batch = batches.get(name, batches["joint"])
        embeds = torch_model.splice(model, batch["input_ids"], batch.get("images"), "images_dm" in batch)
        hidden = torch_model.run(model, embeds, batch["attention_mask"]).last_hidden_state
        lm, vm = torch_model.word_loss(model, hidden, batch["labels"]), torch.zeros(())
        if "images_dm" in batch:
            vm, made = torch_model.image_loss(
                model, batch["images_dm"], torch_model.at_queries(model, batch["input_ids"], hidden), draws, options
            )
            kept = ["noisy_latents", "unet_context", "unet_pred"] + (
                ["encoder_hidden_states"] if name in ("base", "drop") else []
            )
            kept += ["u_encoder_hidden_states", "u_inputs_embeds"] if name == "drop" else []
            arrays |= {f"{name}/{key}": made[key] for key in kept}
            arrays |= (
                {key: made[key] for key in ("vae_mean", "vae_std", "latents")} if batch is batches["joint"] else {}
            )
        total = torch_model.total_loss(model, lm, vm, options.get("sched", model.settings["loss_scale_schedule"]))
        written[name] = {"total": total.item(), "lm_loss": lm.item(), "vm_loss": vm.item(), "config": options}
        if name in graded:
            gradients[name], norm = graded_by(model, total)
            written[name] |= {"no_grad_for": [], "trainable_grad_norm": norm}
    return arrays, written, gradients


def graded_by(model: Model, total: torch.Tensor) -> tuple[dict, float]:
    """Gradients of the parameters that bundles record, and the norm of all."""
    parameters = model.trainable
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    grads = {
        name: torch.zeros_like(parameters[name]) if grad is None else grad
        for name, grad in zip(parameters, found, strict=False)
    }
    last = model.settings["num_hidden_layers"] - 1
    names = [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        f"model.layers.{last}.mlp.down_proj.weight",
        torch_model.QUERIES,
        torch_model.CONDITION,
    ]
    names += [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk"] + [
        name for name in grads if name.startswith(torch_model.VISUAL)
    ]
    return {name: grads[name] for name in names if name in grads}, float(
        torch.sqrt(sum((grad.double() ** 2).sum() for grad in grads.values()))
    )


def prompts(maker: Maker, mixed: bool, steps: int = 5) -> tuple[dict, dict]:
    """prompt.npz and prompt.json; `mixed` says whether there is a prompt with a picture."""
    model, arrays = maker.model, {}
    texts = {
        "pos": PROMPTS,
        "neg": NEGATIVES,
        "single": PROMPTS[:1],
        "empty": [""],
        "single_neg": NEGATIVES[:1],
        "empties": [""] * len(PROMPTS),
    }
    states = {}
    for side in ("right", "left"):
        for kind, given in texts.items():
            tokens = maker.tokens(given, side)
            states[side, kind] = torch_model.prompt_states(model, **_named(tokens))
            if kind in ("pos", "neg", "single", "empty"):
                arrays |= {f"{side}/{kind}/{name}": value for name, value in tokens.items()} | {
                    f"{side}/{kind}/prompt_embeds": states[side, kind]
                }
    if mixed:
        pixels_in = maker.image(58, 44)
        placeholder, slots = model.ids["<image>"], maker.rows.image("comprehension_only")
        ids = torch.tensor(
            [[i for token in maker.rows.words(MIXED) for i in (slots if token == placeholder else [token])]]
        )
        pixels = maker.inputs([pixels_in])
        arrays |= {
            "mm/image_u8": pixels_in,
            "mm/pixel_values": pixels,
            "mm/inputs_embeds": torch_model.splice(model, ids, pixels),
        }
        arrays["mm/prompt_embeds"] = torch_model.prompt_states(model, ids, torch.ones_like(ids), pixels)
    seeds, shape = [STEP_SEED + step for step in range(steps)], (len(PROMPTS), *maker.drawn)
    arrays["init_latents"] = maker.normal(*shape)
    arrays["step_noise"] = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    for run, asked in RUNS.items():
        rows = asked.get("rows", len(PROMPTS))
        scale, negative = (
            asked.get("scale", GUIDANCE),
            ("single_neg" if rows == 1 else "neg") if asked.get("negative", True) else "empties",
        )
        sampler = (diffusers.DDIMScheduler if run == "ddim" else diffusers.DDPMScheduler).from_config(
            model.schedule.config
        )
        away = states["right", negative] if scale > 1 else None
        chosen = states["right", "single" if rows == 1 else "pos"]
        latents, timesteps = torch_model.draw(
            model, sampler, chosen, away, arrays["init_latents"][:rows], seeds, scale, asked.get("rescale", 0.0)
        )
        arrays |= {f"{run}/latents_per_step": latents, f"{run}/latents": latents[-1], f"{run}/timesteps": timesteps}
        if run in ("ddpm", "ddim"):
            with torch.no_grad():
                pixels = model.vae.decode(latents[-1] / model.vae.config.scaling_factor).sample
            image = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
            arrays |= {f"{run}/image_np": image, f"{run}/image_u8": (255 * image).round().astype(np.uint8)}
    written = {
        "prompts": PROMPTS,
        "negative_prompts": NEGATIVES,
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE,
        "mm_text": MIXED,
    }
    settings = {key: value for key, value in sorted(model.schedule.config.items()) if key != "_use_default_values"}
    return arrays, written | {"scheduler_class_used": "DDPMScheduler", "scheduler_config": settings}


def _named(tokens: dict) -> dict:
    return {"ids": tokens["input_ids"], "mask": tokens["attention_mask"]}


def generation(maker: Maker) -> tuple[dict, dict]:
    """generate.npz and generate.json.

    Stops with an error where a token was nearly another one, or opens a picture: another seed draws another model.
    """
    model, words = maker.model, maker.rows.words
    images = [maker.image(39, 48), maker.image(52, 30)]
    arrays = {"pixel_values": maker.inputs(images)} | {f"image{number}_u8": one for number, one in enumerate(images)}
    slots = "<im_start>" + "<im_patch>" * maker.rows.patches + "<im_end>"

    def ask(question):
        return chat([["user", question]])[0]

    look = [ask(f"{slots}What is in the picture?"), ask(f"{slots}Why?")]
    tell = [ask("Tell me about the river."), ask("Who?")]
    written = {}
    for run, texts, count in (
        ("image", look[:1], 10),
        ("text", tell[:1], 10),
        ("batch2_leftpad", look, 8),
        ("batch2_text_leftpad", tell, 8),
    ):
        tokens = maker.tokens(texts, "left")
        shown = arrays["pixel_values"][: len(texts)] if texts[0].find("<im_start>") >= 0 else None
        sequences, scores = torch_model.write(model, **_named(tokens), images=shown, count=count, pad=model.ids[PAD])
        new = sequences[:, tokens["input_ids"].shape[1] :]
        best = scores.topk(2, dim=-1).values
        margin = float((best[..., 0] - best[..., 1]).min())
        if margin < 5e-4 or model.ids["<im_start>"] in new:
            raise SystemExit(f"generation {run}: margin {margin:.2g}, tokens {new.tolist()}: try another --seed")
        arrays |= {
            f"{run}/{name}": value for name, value in (tokens | {"sequences": sequences, "scores": scores}).items()
        }
        text = [words.decode(row, skip_special=True) for row in new.tolist()]
        written[run] = {
            "texts": texts,
            "new_tokens": new.tolist(),
            "text_out": text,
            "min_top1_top2_margin": margin,
            "padding_side": "left",
        }
    return arrays, written


def preprocessing(maker: Maker) -> dict:
    """preproc.npz; collated pictures are numbers."""
    arrays = {}
    for number, sides in enumerate([(40, 40), (50, 75), (90, 33), (17, 20), (40, 101), (12, 12), (58, 57)]):
        one = maker.image(*sides)
        clip, plain, flipped = maker.inputs([one])[0], maker.targets([one])[0], maker.targets([one], flip=True)[0]
        arrays |= {
            f"{number}/image_u8": one,
            f"{number}/clip": clip,
            f"{number}/sd": plain,
            f"{number}/sd_flip": flipped,
        }

    def pair(text, mode):
        return maker.rows.pair({"text": text}, mode, None)

    rows = [
        pair("A photo of a goat.", "comprehension_only"),
        pair("A cat", "creation_only"),
        pair(SYSTEM[:30], "comprehension_only"),
        maker.rows.two_images(),
    ]
    rows.append(maker.rows.conversation(CONVERSATIONS[2]))
    counters = {"images": 0, "images_dm": 0}
    for number, row in enumerate(rows):
        arrays |= {f"collate_in/{number}/{name}": np.array(row[name]) for name in ("input_ids", "labels")}
        arrays[f"collate_in/{number}/attention_mask"] = np.ones(len(row["input_ids"]), int)
        for name in counters:
            if row[name]:
                arrays[f"collate_in/{number}/{name}"] = np.arange(
                    counters[name], counters[name] + len(row[name]), dtype=np.float32
                )[:, None]
                counters[name] += len(row[name])
    arrays |= {f"collate/{name}": value for name, value in collated(maker, rows).items()}
    return arrays | {f"collate/{name}": np.arange(count, dtype=np.float32)[:, None] for name, count in counters.items()}
