"""The benchmarks by name. A new one is a file beside this one and a line here."""

from dreamjax.evaluation.benchmark import Benchmark
from dreamjax.evaluation.benchmarks import captions, gqa, language, mmbench, mme, mmvet, pope, scienceqa, vqa

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *captions.BENCHMARKS,
        *vqa.BENCHMARKS,
        scienceqa.BENCHMARK,
        gqa.BENCHMARK,
        mme.BENCHMARK,
        mmbench.BENCHMARK,
        mmvet.BENCHMARK,
        pope.BENCHMARK,
        *language.BENCHMARKS,
    )
}
