# shellcheck shell=bash disable=SC2034
# The compiler's flags for training on many devices, in one place; the other scripts read this file. Set DREAMJAX_XLA_FLAGS or
# DREAMJAX_TPU_FLAGS to nothing to go without, or to flags of your own.

# TPU. Read by libtpu when the program starts, for all that it compiles; the train step asks for the same by itself (dreamjax/parallel/mesh.py).
#   ..._threshold_for_windowed_einsum_mib       no loops of small products in place of a gather and a large one: on 16 v4 chips
#                                               modelled utilisation rises from .22 to .48
#   ..._enable_async_all_gather, ..._async_collective_fusion*, ..._overlap_compute_collective_tc
#                                               weights of the next layer are gathered while this one computes: .48 to .51
tpu_flags=${DREAMJAX_TPU_FLAGS-"--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000
 --xla_enable_async_all_gather=true
 --xla_tpu_enable_async_collective_fusion=true
 --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
 --xla_tpu_enable_async_collective_fusion_multiple_steps=true
 --xla_tpu_overlap_compute_collective_tc=true"}
tpu_flags=${tpu_flags//$'\n'/}

# GPU. Collectives run beside the computation, scheduled as early as their operands allow.
gpu_flags=${DREAMJAX_XLA_FLAGS-"--xla_gpu_enable_latency_hiding_scheduler=true"}

# Exit status of a run that a signal stopped after it had saved: schedulers start again what did not end with 0.
stopped_status=75
