"""The experiment of test_hosts: a model that sees and does not draw, the smallest that has a part to freeze. The argument is a folder of stories."""

import ml_collections

from dreamjax import config as c
from dreamjax.schema import to_dict


def get_config(arg: str) -> ml_collections.ConfigDict:
    model = c.ModelConfig(
        llm=c.LlamaConfig(vocab_size=320, width=32, layers=1, heads=2, kv_heads=2, ffn_width=48, max_positions=64),
        clip=c.ClipConfig(image_size=8, patch_size=4, width=16, layers=1, heads=2, ffn_width=32, select_layer=-1),
    )
    run = c.RunConfig(
        model=model,
        data=c.DataConfig(
            train=(c.SourceConfig("storybook", arg),), eval=(c.SourceConfig("storybook", arg, split="eval"),),
            tokenizer_vocab=300, length=64, seen_slots=4, dreamed_slots=0,
        ),
        optim=c.OptimConfig(trainable=(r"^(llm|visual_projector)/",), frozen=(r"^clip/",), learning_rate=1e-2, warmup_share=0.0, schedule="constant"),
        mesh=c.MeshConfig(data=2, fsdp=2, tensor=1),
        total_steps=12, batch_size=4, log_every=1, checkpoint_every=4, eval_every=6, eval_batches=1,
    )
    return ml_collections.ConfigDict(to_dict(run))
