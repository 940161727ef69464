"""Every setting of a run, as frozen dataclasses; experiments say `from dreamjax import config as c`."""

from dreamjax.config.model import (
    ClipConfig,
    ClipTextConfig,
    DiffusionConfig,
    LlamaConfig,
    ModelConfig,
    UNetConfig,
    VaeConfig,
    dreamllm_7b,
    tiny,
)
from dreamjax.config.run import (
    DataConfig,
    InitFrom,
    LossConfig,
    LrRule,
    MeshConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
)
from dreamjax.config.validation import from_dict, to_dict

__all__ = [
    "ClipConfig",
    "ClipTextConfig",
    "DataConfig",
    "DiffusionConfig",
    "InitFrom",
    "LlamaConfig",
    "LossConfig",
    "LrRule",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "SourceConfig",
    "UNetConfig",
    "VaeConfig",
    "dreamllm_7b",
    "from_dict",
    "tiny",
    "to_dict",
]
