"""Shards: every line in one of them; answers that are gone on with are whole, and of the same."""

import jax.numpy as jnp
import pytest

from transformer_jax.decoding.shards import fingerprint, share, unfinished, within


@pytest.mark.parametrize(("total", "count"), [(10, 3), (2, 5), (0, 2), (7, 7), (1, 1)])
def test_each_line_is_in_one_shard(total, count):
    shards = [share(range(total), index, count) for index in range(count)]
    assert [line for lines in shards for line in lines] == list(range(total))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("start", range(8))
@pytest.mark.parametrize("stop", range(8))
def test_lines_of_a_range_are_found_in_groups(start, stop):
    groups = within(iter(["abc", "d", "efg"]), range(start, stop))
    assert "".join(groups) == "abcdefg"[start:stop]


def test_no_more_is_read_than_is_needed():
    groups = iter(["abc", "d", "efg"])
    assert list(within(groups, range(1, 4))) == ["bc", "d"] and list(groups) == ["efg"]


def test_the_hash_is_of_parameters_and_settings():
    params = {"a": jnp.zeros(3), "b": jnp.ones(2)}
    assert fingerprint(params, [1]) == fingerprint(dict(params), [1])
    assert (
        len(
            {fingerprint(*x) for x in [(params, 1), (params, 2), (params | {"b": jnp.zeros(2)}, 1)]}
        )
        == 3
    )


def test_whole_answers_are_gone_on_with(tmp_path):
    output = str(tmp_path / "out")

    def work(key, text, ends=True):
        with unfinished(output, key, lines_each=2) as (file, answers):
            file.write(text)
            if not ends:
                raise KeyError
        return answers

    with pytest.raises(KeyError):
        work("a", b"1\n1\n2\n2\n3\ncut off", ends=False)
    with pytest.raises(KeyError):
        work("b", b"other", ends=False)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["out.a.part", "out.b.part"]
    assert work("a", b"3\n3\n") == 2
    assert (tmp_path / "out").read_bytes() == b"1\n1\n2\n2\n3\n3\n"
    assert not (tmp_path / "out.a.part").exists()


def test_two_processes_do_not_write_one_shard(tmp_path):
    output = str(tmp_path / "out")
    with unfinished(output, "a", 1) as (file, _):
        file.write(b"whole\n")
        with (
            pytest.raises(ValueError, match="another process is writing"),
            unfinished(output, "a", 1),
        ):
            pass
    assert (tmp_path / "out").read_bytes() == b"whole\n"
