"""Runs of a small model in folders, without data: what the tests of checkpoints and hand-over stand on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from small_model import CLIP, LLM, leaves

from dreamjax.config import DataConfig, MeshConfig, ModelConfig, OptimConfig, RunConfig, SourceConfig
from dreamjax.parallel.mesh import make_mesh
from dreamjax.training import checkpoint
from dreamjax.training.initialize import begin, prepare_workdir
from dreamjax.training.state import State, init, shardings

# A model that sees and does not draw: the fewest parameters with a part to freeze.
CONFIG = RunConfig(
    model=ModelConfig(llm=LLM, clip=CLIP),
    data=DataConfig(train=(SourceConfig("shapes"),), length=32, input_slots=2, target_slots=0),
    optim=OptimConfig(trainable=("^(llm|visual_projector)/",), frozen=("^clip/",), ema_decay=0.9),
)


@dataclasses.dataclass
class Run:
    """A run in a folder, opened as `train.py` opens it."""

    config: RunConfig
    folder: epath.Path
    mesh: jax.sharding.Mesh

    def __post_init__(self):
        prepare_workdir(self.folder, self.config)
        shapes = jax.eval_shape(lambda: init(self.config))
        self.where = shardings(*shapes, self.mesh)
        self.manager = checkpoint.open_manager(self.folder, self.config.checkpoints_kept)
        self.state, self.frozen, self.meta = begin(self.config, self.folder, self.manager, shapes, self.where)

    def save(self, step: int, loss: float | None = None):
        """Saves the state as that of another step, with values that tell its arrays apart."""

        def shift(tree, by):
            return jax.tree.map(lambda leaf: leaf + jnp.asarray(by * step, leaf.dtype), tree)

        state = self.state
        state = State(
            jnp.int32(step),
            shift(state.trainable, 1.0),
            shift(state.optimiser, 2),
            shift(state.average, 3.0) if state.average else None,
        )
        self.state = jax.device_put(state, self.where[0])
        checkpoint.save(self.manager, self.state, self.meta | {"seconds": 1.5}, loss)
        self.manager.wait_until_finished()


def mesh(*sizes: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])


def same_bytes(ours, theirs) -> bool:
    ours, theirs = leaves(ours), leaves(theirs)
    return ours.keys() == theirs.keys() and all(
        ours[path].tobytes() == theirs[path].tobytes() and ours[path].dtype == theirs[path].dtype for path in ours
    )
