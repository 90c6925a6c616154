"""Rays against MuJoCo's own (mj_ray), on every kind of terrain and against every shape they see."""

import sys

import mujoco
import numpy as np
import pytest
import torch
import warp as wp
from fused_kernel import optimization
from test_fuse_env import actions, agree, left_by, pair

from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.schema import TerrainConfig
from isaacrl.sim import terrain
from isaacrl.sim.rays import RayCaster
from isaacrl.terms.rays import fan, mirror_map

FAR = 12.0


def field():
    """A model of two levels of all kinds of terrain."""
    spec = mujoco.MjSpec()
    kinds = dict.fromkeys(terrain.KINDS, 1.0)
    cfg = TerrainConfig(kinds=kinds, levels=2, columns=len(kinds), border=1.0, size=6.0, resolution=0.1)
    terrain.add_to(spec, terrain.build(cfg))
    return spec.compile()


def shapes():
    """Bodies of the world in all shapes, turned; a plate of limited size; a moving ball and a transparent box."""
    rng, geoms = np.random.default_rng(3), []
    sizes = {
        "box": "0.4 0.7 0.2",
        "sphere": "0.6",
        "capsule": "0.3 0.6",
        "cylinder": "0.5 0.4",
        "ellipsoid": "0.3 0.5 0.8",
        "plane": "0.8 0.5 1",
    }
    for kind, size in sizes.items():
        for _ in range(3):
            pos, quat = rng.uniform(-3.0, 3.0, 3), rng.normal(size=4)
            geoms.append(f'<geom type="{kind}" size="{size}" pos="{pos[0]} {pos[1]} {pos[2]}" ' + quaternion(quat))
    return mujoco.MjModel.from_xml_string(
        f"""<mujoco><worldbody>{"".join(geoms)}<geom type="plane" size="0 0 1" pos="0 0 -4"/>
        <geom type="box" size="1 1 1" rgba="1 1 1 0"/>
        <body pos="0 0 2"><freejoint/><geom type="sphere" size="1.5" rgba="1 1 1 0"/></body></worldbody></mujoco>"""
    )


def quaternion(q):
    return f'quat="{q[0]} {q[1]} {q[2]} {q[3]}"/>'


def expected(model, starts, directions, far=FAR):
    """mj_ray of every start [E, 3] along every direction [E, R, 3]; far where there is nothing nearer."""
    data, found = mujoco.MjData(model), np.zeros(1, np.int32)
    mujoco.mj_forward(model, data)
    out = np.full(directions.shape[:2], far)
    for e, start in enumerate(starts):
        for r, along in enumerate(directions[e]):
            distance = mujoco.mj_ray(model, data, start, along / np.linalg.norm(along), None, 1, -1, found, None)
            if 0.0 <= distance < far:
                out[e, r] = distance
    return out


def turned(quats, directions):
    """Directions [E, R, 3] in the world's frame."""
    out, mat = [], np.zeros(9)
    for q in quats:
        mujoco.mju_quat2Mat(mat, q / np.linalg.norm(q))
        out.append(directions @ mat.reshape(3, 3).T)
    return np.array(out)


def poses(n, low, high, seed=0):
    rng = np.random.default_rng(seed)
    starts, quats = rng.uniform(low, high, (n, 3)), rng.normal(size=(n, 4))
    return starts.astype(np.float32).astype(float), quats / np.linalg.norm(quats, axis=1, keepdims=True)


def cast(model, starts, quats, directions, far=FAR):
    caster = RayCaster(model, directions, far, len(starts), "cpu")
    return caster(*(torch.tensor(x, dtype=torch.float32) for x in (starts, quats))).numpy()


def test_rays_on_all_kinds_of_terrain_are_as_long_as_mujocos():
    """From above the ground, from inside of it, from beside the field and from below."""
    model = field()
    half = np.array([*model.hfield_size[0, :2], 1.5])
    starts, quats = poses(600, -1.1 * half, 1.1 * half)
    directions = np.concatenate((fan((-180, 180), 24, (-60, 20), 3), [[0, 0, -1], [0, 0, 1], [1, 0, 0], [0, -1, 0]]))
    quats[::5] = [1.0, 0.0, 0.0, 0.0]  # along the grid as well
    distance = cast(model, starts, quats, directions)
    reference = expected(model, starts, turned(quats, directions))
    np.testing.assert_allclose(distance, reference, rtol=0.0, atol=1e-4)
    hits = (reference < FAR).mean()
    assert 0.5 < hits < 0.95


def test_rays_from_points_of_the_grid_along_its_lines():
    """Where rays cross corners of cells, and run along their edges and diagonals."""
    model, resolution = field(), 0.1
    rng = np.random.default_rng(1)
    corner = -model.hfield_size[0, :2]
    starts = np.concatenate((corner + resolution * rng.integers(20, 60, (200, 2)), np.full((200, 1), 0.6)), axis=1)
    starts = starts.astype(np.float32).astype(float)
    directions = np.array([[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-0.5, -0.1)])
    quats = np.tile([1.0, 0.0, 0.0, 0.0], (200, 1))
    distance = cast(model, starts, quats, directions)
    reference = expected(model, starts, turned(quats, directions))
    # Some of MuJoCo's rays fall through the level ground, between two triangles that share an edge.
    other = np.abs(distance - reference) > 1e-4
    ground = 0.6 / 0.5 * np.linalg.norm([1.0, 0.0, 0.5])
    assert other.mean() < 0.01 and (reference[other] > distance[other]).all()
    np.testing.assert_allclose(distance[other], ground, atol=1e-5)
    assert 0.6 < (distance < FAR).mean() < 0.9


def test_rays_against_shapes_are_as_long_as_mujocos():
    model = shapes()
    starts, quats = poses(400, -4.0, 4.0)
    directions = fan((-180, 180), 12, (-90, 90), 5)
    distance = cast(model, starts, quats, directions)
    reference = expected(model, starts, turned(quats, directions))
    np.testing.assert_allclose(distance, reference, rtol=0.0, atol=1e-4)


def test_a_world_that_failed_sees_nothing():
    starts, quats = poses(4, 0.0, 1.0)
    starts[0, 1], quats[1, 2], starts[2, 0] = np.nan, np.inf, 1e30
    distance = cast(field(), starts, quats, fan((-180, 180), 8, (-45, 0), 2))
    assert (distance[:3] == np.float32(FAR)).all() and distance[3].min() < FAR


SMALL = ["task.terrain.levels=3", "task.terrain.columns=10", "task.terrain.border=3"]


def env(*nodes, task="go2_rough", num_envs=12):
    overrides = [f"task.observations.critic.{node}" for node in nodes] + (SMALL if task == "go2_rough" else [])
    return Env(compose([f"task={task}", f"num_envs={num_envs}", "device=cpu", *overrides]))


def turn(e):
    """All robots turned at random."""
    qpos = e.engine.field("qpos").clone()
    qpos[:, 3:7] = torch.nn.functional.normalize(torch.randn(len(qpos), 4, generator=torch.Generator().manual_seed(0)))
    qpos[:, 2] += 0.4
    e.engine.write("qpos", qpos)
    e.engine.forward()
    e.state.refresh()


@pytest.mark.parametrize(("frame", "level"), [("body: FL_calf", False), ("site: imu", True)])
def test_rays_start_at_the_body_or_site_and_turn_with_it(frame, level):
    fans = "pos: [0.1, 0.05, 0.2], azimuths: 8, elevation: [-40, -5], elevations: 2, far: 3.0"
    e = env(f"rays={{{frame}, {fans}, yaw_only: {level}}}")
    turn(e)
    term = next(t for g in e.groups if g.name == "critic" for t in g.terms if t.name == "rays")
    distance = term(e.state).numpy()
    model, name = mujoco.MjModel.__copy__(e.engine.model), frame.split(": ")[1]
    ground = model.geom("ground").id
    model.geom_matid[np.arange(model.ngeom) != ground] = -1
    model.geom_rgba[np.arange(model.ngeom) != ground, 3] = 0.0  # rays do not see the robot
    data = mujoco.MjData(model)
    for world in range(len(distance)):
        data.qpos[:] = e.engine.field("qpos")[world].numpy()
        mujoco.mj_kinematics(model, data)
        place = data.site(name) if level else data.body(name)
        mat = (place.xmat).reshape(3, 3)
        start = (place.xpos + mat @ [0.1, 0.05, 0.2]).astype(np.float32)
        if level:
            x = mat[:, 0] / np.hypot(*mat[:2, 0])
            mat = np.array([[x[0], -x[1], 0.0], [x[1], x[0], 0.0], [0.0, 0.0, 1.0]])
        directions = (fan((-180, 180), 8, (-40, -5), 2) @ mat.T)[None]
        np.testing.assert_allclose(
            distance[world], expected(model, start[None].astype(float), directions, 3.0)[0], atol=1e-4
        )


def test_rays_are_part_of_a_compiled_step():
    """With resets, rays in both groups, and noise and history: carried out one by one, and compiled."""
    policy = "policy.rays={azimuths: 6, elevation: [-30, -10], elevations: 2, far: 3.0, noise: 0.01, history: 2}"
    critic = "critic.rays={site: imu, yaw_only: true, azimuths: 5, azimuth: [-60, 60], elevation: [-40, -40]}"
    with optimization(0):
        plain, fused = pair("go2_rough", *SMALL, *(f"task.observations.{x}" for x in (policy, critic)), num_envs=31)
        for action in actions(plain, 4):
            agree(left_by(plain, action), left_by(fused, action))
    seen = plain.obs["policy"][:, -24:]
    assert seen.shape == (31, 24) and (seen.std(dim=0) > 0.02).all()


def test_a_pattern_has_a_mirror_image_or_is_refused():
    directions = fan((-90, 90), 5, (-30, 10), 2)
    index = mirror_map(directions, (1.0, -1.0, 1.0))
    np.testing.assert_allclose(directions[index], directions * [1, -1, 1], atol=1e-9)
    assert index == [4, 3, 2, 1, 0, 9, 8, 7, 6, 5]
    assert sorted(mirror_map(fan((-180, 180), 7, (0, 0), 1) @ np.diag([-1, 1, 1]), (1, -1, 1))) == list(range(7))
    with pytest.raises(UserError, match="without its mirror image"):
        mirror_map(fan((-90, 80), 5, (0, 0), 1), (1.0, -1.0, 1.0))


@pytest.mark.skipif(sys.platform != "linux", reason="Warp compiles for GPUs on Linux and Windows")
def test_the_kernel_compiles_for_a_gpu(tmp_path):
    wp.compile_aot_module(wp.get_module("isaacrl.sim.rays"), arch=90, module_dir=tmp_path, use_ptx=False)
    assert list(tmp_path.glob("*.cubin"))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("{body: base, site: imu}", "site and body are both given"),
        ("{body: hed}", "hed"),
        ("{azimuths: 0}", "azimuths 0, elevations 1: both must be at least 1"),
        ("{azimuth: [90, -90]}", "azimuth: got [90, -90]; give [low, high] in degrees"),
        ("{elevation: [0, 100]}", "elevation: got [0, 100]"),
        ("{directions: []}", "directions: give at least one vector"),
        ("{directions: [[1, 0]]}", "is not a list of vectors [x, y, z]"),
        ("{far: 0}", "far: got 0"),
    ],
)
def test_mistakes_are_told(node, message):
    with pytest.raises(UserError) as e:
        env(f"rays={node}", task="go2_flat", num_envs=2)
    assert message in str(e.value) and "task.observations.critic.rays" in str(e.value)
