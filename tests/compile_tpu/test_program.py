"""What the compiler said of a program is kept on disk, and compiled anew where that is damaged."""

import gzip

import jax
import pytest
from etils import epath

from dreamjax.compile_tpu.program import compile_cached


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x1f\x8b\x08" + b"\0" * 30, "half", "other"])
def test_a_damaged_entry_is_compiled_anew(tmp_path, capsys, damage):
    lowered = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((3,), "float32"))
    first = compile_cached(lowered, epath.Path(tmp_path))
    (entry,) = tmp_path.iterdir()
    data = entry.read_bytes()
    entry.write_bytes({"half": data[:-20], "other": gzip.compress(b"[1]")}.get(damage, damage))
    again = compile_cached(lowered, epath.Path(tmp_path))
    assert again.text == first.text and again.temporary == first.temporary
    told = capsys.readouterr().err
    assert told.startswith(f"{entry}: damaged (") and told.count("\n") == 1
    assert (
        compile_cached(lowered, epath.Path(tmp_path)) == again
        and len(list(tmp_path.iterdir())) == 1
        and not capsys.readouterr().err
    )
