"""The scene of simulated pushing (`make test-sim`)."""

import numpy as np
import pytest

from vsr_lightning.data import push_simulator
from vsr_lightning.data.push_scene import POOL_SIZE, make_model


@pytest.mark.sim
def test_pool_is_the_same_every_time_and_no_two_objects_look_alike():
    mujoco = push_simulator._import_mujoco()  # which chooses the backend before MuJoCo is imported
    first, second = make_model(mujoco), make_model(mujoco)
    np.testing.assert_array_equal(first.tex_data, second.tex_data)
    np.testing.assert_array_equal(first.geom_size, second.geom_size)
    looks = set()
    for index in range(POOL_SIZE):
        geoms = np.flatnonzero(first.geom_bodyid == first.body(f"object{index}").id)
        textures = first.mat_texid[first.geom_matid[geoms], mujoco.mjtTextureRole.mjTEXROLE_RGB]
        pixels = [first.tex_data[first.tex_adr[t] :][: 64 * 64 * 3].tobytes() for t in textures]
        looks.add((first.geom_type[geoms].tobytes(), *pixels))
    assert len(looks) == POOL_SIZE
