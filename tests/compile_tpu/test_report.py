"""The report of a compiled step in words."""

import pytest

from dreamjax.compile_tpu import report

FACTS = {
    "slices": 1,
    "topology": "v4:2x2x1",
    "chips": 4,
    "peak_tflops_per_chip": 275,
    "hbm_limit_gib": 32,
    "mesh": {"data": 1, "fsdp": 4, "tensor": 1},
    "rows": 12,
    "length": 2048,
    "input_slots": 36,
    "target_slots": 36,
}


@pytest.mark.parametrize(
    "images, words",
    [
        (9, "9 images on a chip in the time of 16: a multiple of 8 would leave nothing empty\n"),
        (16, "16 images on a chip\n"),
        (0, "0 images on a chip\n"),
    ],
)
def test_images_that_leave_a_chip_idle_are_named(images, words):
    assert f"at once       {words}" in report.format_summary(
        report.too_large(FACTS | {"images_at_once": images}, 40.0, 60.0)
    )


def test_a_step_that_does_not_fit():
    words = report.format_summary(report.too_large(FACTS | {"images_at_once": 8}, 40.0, 60.0))
    assert "40.00 of 32 GiB a chip (125.0%): DOES NOT FIT" in words and "a step takes" not in words
