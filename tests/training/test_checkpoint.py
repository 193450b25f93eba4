"""Checkpoints: exact, complete or absent, with errors that name what does not fit."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from localist_jax.training.checkpoint import CheckpointError, Checkpoints


def state(seed=0, width=4):
    key = jax.random.key(seed)
    return {
        "w": jax.random.normal(key, (3, width)),
        "gates": jnp.ones((2, 2)),
        "step": jnp.int32(7),
        "key": key,
        "flag": jnp.array([True, False]),
    }


def abstract(tree):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


@pytest.fixture
def folder(tmp_path):
    """Save checkpoints at steps 2, 4 and 6."""
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(
                step, state(step), manifest={"config": {"a": 1}, "topology": {}}, cursor=b"\x00at %d" % step
            )
    return tmp_path / "checkpoints"


def test_what_was_saved_comes_back_bit_for_bit(folder):
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [2, 4, 6]
        for step in (2, 6, None):
            found, cursor = checkpoints.restore(abstract(state()), step)
            wanted = state(step or 6)
            assert cursor == b"\x00at %d" % (step or 6)
            np.testing.assert_array_equal(
                jax.random.key_data(found.pop("key")), jax.random.key_data(wanted.pop("key"))
            )
            jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_manifest_tells_what_it_is(folder):
    with Checkpoints(folder) as checkpoints:
        about = checkpoints.manifest(4)
    assert (about["step"], about["config"], about["format"]) == (4, {"a": 1}, 2)
    assert about["leaves"]["w"] == [[3, 4], "float32"]
    assert set(about["versions"]) == {"jax", "flax", "optax", "orbax-checkpoint"}


def test_only_so_many_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(), manifest={}, cursor={})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]


def test_reading_touches_nothing(folder):
    def listing():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = listing()
    with Checkpoints(folder) as checkpoints:
        checkpoints.restore(abstract(state()))
    assert listing() == before


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (state(width=5), r"w is float32\[3, 4\], but the configuration asks for float32\[3, 5\]"),
        (
            {**state(), "gates": jnp.ones((3, 3))},
            "gates is .*block_capacity, heads and layers as in the checkpoint, or grow it",
        ),
        ({**state(), "more": jnp.ones(1)}, "checkpoint 6 lacks leaf more"),
        ({k: v for k, v in state().items() if k != "w"}, "checkpoint 6 has an extra leaf w"),
        ({**state(), "w": jnp.zeros((3, 4), jnp.bfloat16)}, "asks for bfloat16"),
    ],
)
def test_another_topology_is_refused_by_leaf(folder, wanted, words):
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError, match=words) as error:
        checkpoints.restore(abstract(wanted))
    assert "\n" not in str(error.value)


def test_missing_ones_are_named(folder, tmp_path):
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match="no checkpoint 5; there are 2, 4, 6"),
    ):
        checkpoints.restore(abstract(state()), 5)
    with (
        Checkpoints(tmp_path / "nowhere") as checkpoints,
        pytest.raises(CheckpointError, match="no checkpoints here"),
    ):
        checkpoints.manifest()
    (tmp_path / "empty").mkdir()
    with (
        Checkpoints(tmp_path / "empty") as checkpoints,
        pytest.raises(CheckpointError, match="no complete checkpoint here"),
    ):
        checkpoints.manifest()


def test_damage_is_reported_with_a_remedy(folder):
    for path in (folder / "6" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 40:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match=r"6 .* is damaged .*delete it to continue from 4"),
    ):
        checkpoints.restore(abstract(state()), 6)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(abstract(state()), 4)[1] == b"\x00at 4"


def flip(path, place=0.5):
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 0x10
    path.write_bytes(bytes(raw))


def test_one_flipped_byte_of_the_arrays_is_noticed(folder):
    largest = max(
        (p for p in (folder / "6" / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    flip(largest)
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError, match=r"6 .* is damaged"):
        checkpoints.restore(abstract(state()), 6)


def test_arrays_that_read_well_but_are_others_are_noticed(folder):
    """Check files replaced by those of another step, which formats cannot notice."""
    shutil.rmtree(folder / "6" / "state")
    shutil.copytree(folder / "4" / "state", folder / "6" / "state")
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(
            CheckpointError, match=r"6 .* is damaged \(state/\w+ differs from what was saved\); .* from 4"
        ):
            checkpoints.restore(abstract(state()), 6)
        checkpoints.restore(abstract(state()), 4)


def test_a_manifest_that_was_edited_is_noticed(folder):
    path = next((folder / "6" / "manifest").rglob("metadata"))
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match="manifest differs from what was"),
    ):
        checkpoints.manifest(6)


def test_a_save_that_was_never_committed_is_not_there(folder):
    torn = folder / "8.orbax-checkpoint-tmp-1"
    shutil.copytree(folder / "6", torn)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 6
    with Checkpoints(folder, keep=3) as checkpoints:
        assert checkpoints.latest() == 6
        checkpoints.save(8, state(8), manifest={}, cursor={})
    assert not torn.exists()  # a writer cleans up before its first save
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [4, 6, 8]


def test_a_newer_format_is_refused(folder):
    path = next((folder / "6" / "manifest").rglob("metadata"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match="format 99, this version reads 2"),
    ):
        checkpoints.manifest(6)


@pytest.mark.parametrize("method", ["save", "wait_until_finished", "close"])
def test_a_save_that_meets_a_full_disk_is_one_line_with_a_remedy(tmp_path, monkeypatch, method):
    """Check an error that may come up at once or later, since arrays are written in the background."""

    def full(self, *_, **__):
        raise ValueError(
            f"RESOURCE_EXHAUSTED: {tmp_path}: \n Failed: No space left on device [os_error_code='28']"
        )

    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.latest()
    monkeypatch.setattr(ocp.CheckpointManager, method, full)
    calls = {
        "save": lambda: checkpoints.save(1, {"x": jnp.zeros(2)}, manifest={}, cursor={}),
        "wait_until_finished": checkpoints.wait,
        "close": checkpoints.close,
    }
    words = r"could not be written \(No space left on device\); earlier ones are complete"
    with pytest.raises(CheckpointError, match=words) as error:
        calls[method]()
    assert "\n" not in str(error.value)
