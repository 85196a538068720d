"""Functions in processes of their own: what they return, and how they may end."""

import os

import pytest

from transformer_jax.compare.children import ChildError, in_child


def test_a_result_comes_back_from_another_process():
    assert in_child(os.getppid) == os.getpid()


@pytest.mark.parametrize(
    ("function", "argument", "told"),
    [
        (os._exit, 7, "its process died, with exit code 7"),
        (os.listdir, "/nowhere/at all", "No such file"),
        (int, "seven", "invalid literal"),
        (len, 3, "TypeError: object of type 'int' has no len"),
    ],
)
def test_whatever_ends_a_child_is_told_in_a_sentence(function, argument, told):
    with pytest.raises(ChildError, match=told) as raised:
        in_child(function, argument)
    assert "\n" not in str(raised.value)
