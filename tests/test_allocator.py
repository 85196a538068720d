"""Memory that a step frees stays with the process, where nobody has chosen otherwise."""

import sys

import pytest
from commands import run

PROGRAM = """
import resource, sys
from transformer_jax import allocator
if sys.argv[1] == "share":
    allocator.share_arena()
kept = allocator.keep_freed_memory()
b"x" * (64 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    b"x" * (64 << 20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize(
    ("first", "variables", "kept"),
    [
        ("share", {}, True),
        ("", {}, False),
        ("share", {"TRANSFORMER_JAX_MALLOC": "default"}, False),
        ("share", {"MALLOC_TRIM_THRESHOLD_": "100000"}, False),
        ("share", {"GLIBC_TUNABLES": "glibc.malloc.check=0"}, False),
    ],
)
def test_freed_memory_is_kept_unless_it_was_chosen_otherwise(tmp_path, first, variables, kept):
    done = run(tmp_path, "-c", PROGRAM, first, variables=variables)
    assert (done.stdout, done.stderr) == (f"{kept} {kept}\n", "")
