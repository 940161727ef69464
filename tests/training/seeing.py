"""The experiment of test_hosts.

The smallest model that sees, on four devices and measured on held-out stories. The argument is a folder of stories.
"""

import ml_collections

from benchmarks.faults import experiment


def get_config(arg: str) -> ml_collections.ConfigDict:
    config = experiment.get_config(arg)
    config.mesh.data, config.mesh.fsdp = 2, 2
    config.total_steps, config.checkpoint_every, config.eval_every, config.eval_batches = 12, 4, 6, 1
    return config
