"""A workdir goes on as the run that it holds; what would be another run is refused with a way on that can be typed."""

import dataclasses
import json
import pathlib
import shlex

import jax.numpy as jnp
import pytest
from absl import flags
from etils import epath
from ml_collections import config_flags
from small_run import CONFIG

from dreamjax.config import InitFrom, RunConfig, SourceConfig
from dreamjax.config.validation import from_dict
from dreamjax.errors import ConfigError
from dreamjax.training import optimizer
from dreamjax.training.initialize import check_same_run, way_on, with_data, with_steps
from dreamjax.training.train_logger import RecordCounts, TrainLogger, read_metrics

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = epath.Path("/runs/a b")
TYPED = """--config.init_from="({'path': '/runs/a b'},)\""""


def changed(config: RunConfig = CONFIG, **values) -> RunConfig:
    """A config with other values, those of its optimiser and data by their own names."""
    for name in ("optim", "data"):
        part = getattr(config, name)
        own = {
            key: values.pop(key) for key in list(values) if key in {field.name for field in dataclasses.fields(part)}
        }
        config = dataclasses.replace(config, **{name: dataclasses.replace(part, **own)})
    return dataclasses.replace(config, **values)


def refusal(now: RunConfig, before: RunConfig = CONFIG, done: int = 500) -> str:
    with pytest.raises(ConfigError) as refused:
        check_same_run(FOLDER, before, now, done)
    assert "\n" not in str(refused.value) and TYPED in str(refused.value)
    return str(refused.value)


def test_a_refusal_names_what_differs_and_the_way_on():
    text = refusal(changed(learning_rate=1e-3, seed=4))
    assert (
        "values of config.optim.learning_rate (2e-05, now 0.001), config.seed (0, now 4); bring the old "
        "values back, or begin" in text
    )
    assert "allow" not in text
    text = refusal(changed(train=(SourceConfig("storybook", path="x"),)))
    assert "config.data.train[0].format ('shapes', now 'storybook'), config.data.train[0].path ('', now 'x');" in text
    assert text.endswith("or go on with these data by --config.allow_changed_data=True")
    assert " and 2 more; bring" in refusal(
        changed(length=24, tokenizer_vocab=7, rows_per_group=2, flip=True, draft=True, template="llama2", tokenizer="t")
    )


def test_the_way_on_is_typed_as_it_stands(monkeypatch):
    (word,) = [word for word in shlex.split(way_on(FOLDER)) if word.startswith("--config.")]
    argv = ["train", f"--config={ROOT / 'experiments/quickstart.py'}", word]
    monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks for overrides
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", None, flag_values=values)
    values(argv)
    assert from_dict(RunConfig, holder.value).init_from == (InitFrom("/runs/a b"),)


def test_other_documents_name_the_way_on():
    with pytest.raises(ConfigError) as refused:
        with_data({"data": "these"}, "those", CONFIG, FOLDER)
    assert TYPED in str(refused.value) and "--config.allow_changed_data=True" in str(refused.value)


CONSTANT = changed(schedule="constant", total_steps=1000)  # with a warm-up of 3 steps


@pytest.mark.parametrize(
    "before, now", [(CONSTANT, 4000), (changed(CONSTANT, warmup_share=0.0), 9000), (changed(allow_longer=True), 1500)]
)
def test_a_run_may_become_longer(before, now):
    check_same_run(FOLDER, before, changed(before, total_steps=now), 1000)


def test_what_does_not_depend_on_the_number_of_steps_is_the_same_rate():
    for warmup, now, done in ((0.0, 4000, 0), (0.003, 4000, 12), (0.003, 4000, 10), (0.003, 1100, 0), (0.5, 1001, 400)):
        config = changed(CONSTANT, warmup_share=warmup).optim
        steps = jnp.arange(done, 1000)
        same = jnp.array_equal(optimizer.schedule(config, 1000)(steps), optimizer.schedule(config, now)(steps))
        assert optimizer.depends_on_total(config, 1000, now, done) != bool(same), (warmup, now, done)


@pytest.mark.parametrize(
    "before, now, done", [(CONFIG, 2000, 1000), (CONSTANT, 8000, 10), (changed(CONSTANT, warmup_share=1.0), 1100, 1000)]
)
def test_a_longer_run_whose_rate_would_change_says_how(before, now, done):
    text = refusal(changed(before, total_steps=now), before, done)
    assert (
        f"config.total_steps (1000, now {now});" in text
        and "go on by --config.allow_longer=True, with the learning rate of" in text
    )
    was, becomes = (f"{float(optimizer.schedule(before.optim, total)(done)):.3g}" for total in (1000, now))
    assert text.endswith(f"of {now} steps: {becomes} at step {done + 1}, where that of 1000 steps is {was}")


def test_fewer_steps_are_another_run():
    assert "allow_longer" not in refusal(changed(CONSTANT, total_steps=700, allow_longer=True), CONSTANT)


def test_a_longer_run_is_recorded(tmp_path):
    meta, note = with_steps({"origins": []}, changed(total_steps=4), 0)
    assert note == {} and meta == {"origins": [], "total_steps": 4}
    meta, note = with_steps(meta, changed(total_steps=9), 4)
    assert meta["total_steps"] == 9
    watch = TrainLogger(changed(total_steps=9), epath.Path(tmp_path), 4, RecordCounts(10), note=note)
    values = {"loss": 1.0, "grad_norm": 1.0, "tokens": 5, "finite": True, "stop": False}
    for step in (5, 6, 7, 8, 9):
        watch.after_dispatch(step, dict(values), (), ())
    watch.settle()
    watch.close()
    first, *rest = read_metrics(epath.Path(tmp_path))
    assert (first["step"], first["total_steps"], first["total_steps_before"]) == (5, 9, 4)
    assert [line["step"] for line in rest] == [9] and "total_steps" not in json.dumps(rest)


def test_nothing_changed_is_the_same_run():
    check_same_run(FOLDER, CONFIG, changed(log_every=3, threads=7), 10)
