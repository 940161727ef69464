"""The experiment that the campaign trains.

The smallest model that sees and has a part to freeze. The argument is a folder of stories.
"""

import ml_collections

from dreamjax import config as c

STEPS = 120


def get_config(arg: str) -> ml_collections.ConfigDict:
    model = c.ModelConfig(
        llm=c.LlamaConfig(vocab_size=320, width=32, layers=1, heads=2, kv_heads=2, ffn_width=48, max_positions=128),
        clip=c.ClipConfig(image_size=8, patch_size=4, width=16, layers=1, heads=2, ffn_width=32, select_layer=-1),
    )
    run = c.RunConfig(
        model=model,
        data=c.DataConfig(
            train=(c.SourceConfig("storybook", arg),),
            eval=(c.SourceConfig("storybook", arg, split="eval"),),
            tokenizer_vocab=300,
            length=64,
            input_slots=4,
            target_slots=0,
        ),
        optim=c.OptimConfig(
            trainable=(r"^(llm|visual_projector)/",),
            frozen=(r"^clip/",),
            learning_rate=1e-2,
            warmup_share=0.0,
            schedule="constant",
            ema_decay=0.9,
        ),
        mesh=c.MeshConfig(data=-1, fsdp=1, tensor=1),
        total_steps=STEPS,
        batch_size=4,
        log_every=1,
        checkpoint_every=2,
        eval_every=0,
        checkpoints_kept=2,
    )
    return ml_collections.ConfigDict(c.to_dict(run))
