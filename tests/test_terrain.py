"""Terrain: its shapes in metres, heights as MuJoCo has them, where robots stand, and how levels change."""

import copy
import math

import mujoco
import numpy as np
import pytest
import torch

from isaacrl import sim
from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.errors import UserError
from isaacrl.evaluate_terrain import by_patch
from isaacrl.hfield import Window, ground_height
from isaacrl.render import _lookats, _view
from isaacrl.schema import TerrainConfig
from isaacrl.sim import terrain

ALL = dict.fromkeys(terrain.KINDS, 1.0)


def settings(**changes):
    return TerrainConfig(**({"levels": 3, "columns": 10, "border": 3.0, "kinds": ALL} | changes))


def patch(kind, level=2, **changes):
    """Heights [n, n] of one patch of three levels, and x, y of its points from its middle [m]."""
    cfg = settings(kinds={kind: 1.0}, columns=1, **changes)
    field, n, edge = terrain.build(cfg), round(cfg.size / cfg.resolution), round(cfg.border / cfg.resolution)
    place = (np.arange(n) - n / 2) * cfg.resolution
    return field.heights[edge : edge + n, edge + level * n : edge + (level + 1) * n], place


@pytest.mark.parametrize(("kind", "sign"), [("stairs_down", 1.0), ("stairs_up", -1.0)])
def test_the_highest_stairs_have_steps_of_23_cm(kind, sign):
    heights, place = patch(kind)
    along = sign * heights[len(place) // 2]  # from edge to edge through the middle
    rises = np.diff(along[: len(place) // 2])
    steps = rises[rises > 1e-6]
    assert len(steps) == 10 and steps == pytest.approx(0.23) and (rises[rises < 1e-6] == 0.0).all()
    assert np.diff(np.nonzero(rises > 1e-6)[0]) == pytest.approx(3)  # treads of 0.3 m
    easier = np.diff(sign * patch(kind, level=0)[0][len(place) // 2])
    assert easier.max() == pytest.approx(0.05)


@pytest.mark.parametrize(("kind", "sign"), [("slope_down", 1.0), ("slope_up", -1.0)])
def test_the_steepest_slope_has_35_degrees(kind, sign):
    heights, place = patch(kind)
    slope = sign * np.diff(heights[len(place) // 2])[: len(place) // 2 - 12] / 0.1
    assert np.degrees(np.arctan(slope[1:])) == pytest.approx(35.0, abs=0.01)
    assert abs(patch(kind, level=0)[0]).max() == 0.0


def test_ditches_stones_obstacles_waves_and_roughness_are_as_large_as_said():
    heights, place = patch("gap")
    assert runs(heights[len(place) // 2] < -0.9) == [7, 7]  # eight cells of 0.1 m from edge to edge
    heights, _ = patch("rough")
    assert 0.09 < abs(heights).max() <= 0.1 and heights.min() < -0.09
    heights, _ = patch("obstacles")
    assert {round(abs(float(h)), 3) for h in np.unique(heights)} <= {0.0, 0.125, 0.25} and abs(heights).max() == 0.25
    heights, _ = patch("waves")
    assert heights.max() - heights.min() == pytest.approx(0.5, abs=0.01)
    for level, cells, wide in ((2, 4, 4), (1, 2, 8)):  # 0.4 m and 0.225 m, and stones as wide as 0.4 m and 0.8 m
        heights, place = patch("stones", level, size=12.0)
        inner = heights[(place > -5.5) & (place < -1.5)][:, abs(place) < 5.5]
        row = next(r for r in inner if r.max() == 0.0)  # across stones, not along a gap
        assert set(runs(row < 0.0)[1:-1]) == {cells - 1} and set(runs(row == 0.0)[1:-1]) == {wide + 1}
        assert set(np.unique(row)) == {-1.0, 0.0}
    assert (patch("stones", 0)[0] == 0.0).all()


def runs(row):
    """How many there are of each run of true values."""
    ends = np.nonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))[0]
    return list(ends[1::2] - ends[::2])


def test_every_kind_gets_its_share_of_the_columns_and_none_is_left_out():
    def columns(n, **kinds):
        return list(terrain._columns(settings(kinds=kinds, columns=n)))

    assert columns(20, stairs_up=10, stairs_down=10, gap=0.5, stones=0.5) == (
        ["stairs_up"] * 9 + ["stairs_down"] * 9 + ["gap", "stones"]
    )
    assert columns(10, rough=0.96, gap=0.04) == ["rough"] * 9 + ["gap"]
    assert columns(10, stairs_up=0.2, rough=0.3, flat=0.5) == ["stairs_up"] * 2 + ["rough"] * 3 + ["flat"] * 5
    with pytest.raises(UserError, match="give each at least one"):
        columns(1, rough=1, gap=1)


@pytest.mark.parametrize("kind", sorted(terrain.KINDS))
def test_patches_end_at_height_0(kind):
    for level in range(3):
        heights, _ = patch(kind, level)
        assert abs(heights[0]).max() < 1e-6 and abs(heights[:, 0]).max() < 1e-6


def test_a_seed_gives_the_same_field_and_another_seed_another():
    fields = [terrain.build(settings(seed=s)).heights for s in (1, 1, 2)]
    assert np.array_equal(fields[0], fields[1]) and not np.array_equal(fields[0], fields[2])


def env(*overrides, task="go2_rough"):
    return Env(compose([f"task={task}", "num_envs=30", "device=cpu", *overrides]))


SMALL = ["task.terrain.levels=3", "task.terrain.columns=10", "task.terrain.border=3"]
KINDS = [f"task.terrain.kinds.{k}=1" for k in terrain.KINDS]


def test_heights_are_those_that_mujocos_rays_hit():
    e = env(*SMALL, *KINDS)
    model = e.engine.model
    data, found = mujoco.MjData(model), np.zeros(1, np.int32)
    mujoco.mj_forward(model, data)
    points = np.random.default_rng(0).uniform(-1.0, 1.0, (2000, 2)) * -np.array(e.state.ground.corner) * 1.02
    heights = e.state.ground.height(torch.tensor(points, dtype=torch.float32)).numpy()
    every_group = np.ones(6, np.uint8)
    for (x, y), height in zip(points, heights):
        data.qpos[:3] = 1000.0, 1000.0, 0.0
        distance = mujoco.mj_ray(
            model, data, np.array([x, y, 10.0]), np.array([0.0, 0.0, -1.0]), every_group, 1, -1, found, None
        )
        inside = abs(x) < -e.state.ground.corner[0] and abs(y) < -e.state.ground.corner[1]
        if inside:
            assert 10.0 - distance == pytest.approx(height, abs=1e-4)
    edge = e.state.ground.height(torch.tensor([[1e4, 0.0], [0.0, -1e4]]))
    assert (edge == 0.0).all()


def test_a_camera_follows_the_ground():
    """Its height above the ground below the robot stays."""
    e = env(*SMALL, *KINDS)
    model, ground = e.engine.model, e.state.ground
    assert ground_height(mujoco.MjModel.from_xml_string("<mujoco/>"), np.ones((2, 3, 2))).tolist() == [[0.0] * 3] * 2
    xy = ground.origins[..., :2].reshape(-1, 2).numpy() + 0.02
    torch.testing.assert_close(
        torch.tensor(ground_height(model, xy)), ground.height(torch.tensor(xy)).double(), rtol=0.0, atol=0.05
    )
    qpos = np.tile(model.qpos0, (1, len(xy), 1))
    qpos[0, :, :2] = xy
    view = _view(model, {"lookat": [0.0, 0.0, 0.25]})
    found = _lookats(model, qpos, None, {"lookat": [0.0, 0.0, 0.25]}, view)[0]
    np.testing.assert_allclose(found[:, :2], xy, atol=1e-6)
    np.testing.assert_allclose(found[:, 2], ground_height(model, xy) + 0.25, atol=1e-6)
    assert np.ptp(found[:, 2]) > 0.5


def test_robots_start_on_their_patches():
    e = env(*SMALL, *KINDS, "task.terrain.start_level=2")
    ground, s = e.state.ground, e.state
    assert set(ground.level.tolist()) == {0, 1, 2} and len(set(ground.column.tolist())) == 10
    assert ((s.base_pos_w - ground.origin)[:, :2].abs() < 0.05).all()
    for _ in range(25):  # half a second
        e.step(torch.zeros(30, e.task.num_actions))
    assert not s.terminated.any() and (s.base_height > 0.15).all() and (s.base_height < 0.45).all()
    feet = s.above_ground(s.contact("feet").parts.pos_w)
    assert feet.min() > -0.02


def turn(e, yaw):
    """All robots' bases to a heading."""
    qpos = e.state.read("qpos").clone()
    qpos[:, 3:7] = torch.tensor([math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)])
    e.engine.write("qpos", qpos, e.everywhere)
    e.engine.forward()
    e.state.refresh()


def test_levels_rise_with_the_way_and_fall_without_it():
    e = env(*SMALL, "task.terrain.levels=4")
    s, ground = e.state, e.state.ground
    ground.level.copy_(torch.tensor([1, 1, 3, 2, 0] * 6))
    qpos = s.read("qpos").clone()
    qpos[:, :3] = ground.origin
    qpos[0::5, 0] += 4.5  # left the patch
    qpos[2::5, 1] -= 4.5  # also the hardest
    qpos[3::5, 0] += 0.5
    e.engine.write("qpos", qpos, e.everywhere)
    e.engine.forward()
    s.refresh()
    s.episode_step.fill_(500)
    term = e.curricula[0]
    for heading, forward, left in ((0.4, 6.0, 0.0), (-0.5, 0.0, -2.0)):  # 4.6 m from the start
        turn(e, heading)
        s.commands["velocity"] = torch.tensor([[forward, left, 1.0]] * 30) / s.step_dt
        term.advance(s)
    asked = [6 * math.cos(0.4) + 2 * math.sin(-0.5), 6 * math.sin(0.4) - 2 * math.cos(-0.5)]
    torch.testing.assert_close(term.fn.asked, torch.tensor([asked] * 30))
    mask = torch.ones(30, dtype=torch.bool)
    mask[-5:] = False
    term(s, mask)
    level = ground.level.view(6, 5)
    assert (level[:5, 0] == 2).all() and (level[:5, 1] == 0).all() and (level[:5, 3] == 1).all()
    assert (level[:5, 4] == 0).all() and (level[:5, 2] < 4).all() and len(set(level[:5, 2].tolist())) > 1
    assert level[5].tolist() == [1, 1, 3, 2, 0]
    term.reset(s, e.everywhere)  # told to stand, or in a circle: it has come all the way
    before = ground.level.clone()
    assert e.read_metrics()["curriculum/terrain_levels"] == pytest.approx(before.float().mean().item() / 3, abs=1e-6)
    term(s, torch.arange(30) % 5 == 4)
    assert torch.equal(ground.level, before)


def test_who_falls_early_is_asked_for_the_way_of_a_whole_episode():
    e = env(*SMALL, "task.terrain.levels=4")
    s, ground = e.state, e.state.ground
    whole = s.max_episode_steps
    ground.level.fill_(2)
    qpos = s.read("qpos").clone()
    qpos[:, :3] = ground.origin
    qpos[:, 0] += 0.6
    e.engine.write("qpos", qpos, e.everywhere)
    e.engine.forward()
    s.refresh()
    term = e.curricula[0]
    turn(e, 0.0)
    s.commands["velocity"] = torch.tensor([[1.0, 0.0, 0.0]] * 30) / s.step_dt
    term.advance(s)  # 1 m
    ended = torch.tensor([whole, whole // 2, whole // 10, 1, whole - 1] * 6)
    s.episode_step.copy_(ended)
    term(s, e.everywhere)
    assert torch.equal(ground.level, 2 - (0.6 < 0.5 * whole / ended).long())


def test_a_scan_turns_with_the_robot():
    e = env(*SMALL, "task.observations.critic.height_scan={size: [0.4, 0.2], resolution: 0.2, scale: 1.0}")
    s = e.state
    qpos = s.read("qpos").clone()
    yaw = 0.7
    qpos[:, 3:7] = torch.tensor([math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)])
    qpos[:, 0] += 1.7
    e.engine.write("qpos", qpos, e.everywhere)
    e.engine.forward()
    s.refresh()
    scan = next(t for g in e.groups if g.name == "critic" for t in g.terms if t.name == "height_scan")(s)
    points = [(x, y) for y in (-0.1, 0.1) for x in (-0.2, 0.0, 0.2)]
    for k, (x, y) in enumerate(points):
        at = s.base_pos_w[:, :2] + torch.tensor(
            [math.cos(yaw) * x - math.sin(yaw) * y, math.sin(yaw) * x + math.cos(yaw) * y]
        )
        expected = (s.base_pos_w[:, 2] - s.ground.height(at) - 0.3).clamp(-1.0, 1.0)
        torch.testing.assert_close(scan[:, k], expected, rtol=0.0, atol=1e-4)


def test_a_contract_says_where_a_scan_looks():
    e = env(*SMALL)
    (group,) = (g for g in e.groups if g.name == "policy")
    (scan,) = (t for t in group.contract(e.state) if t["name"] == "height_scan")
    assert scan["parameters"] == {"size": [1.6, 1.0], "resolution": 0.1, "offset": 0.3, "most": 1.0}
    assert scan["size"] == 17 * 11 and scan["unit"] == "m"


def test_the_edge_ends_an_episode_without_failure():
    e = env(*SMALL)
    s = e.state
    qpos = s.read("qpos").clone()
    qpos[3, 0], qpos[3, 2] = -s.ground.corner[0] - 0.5, 0.4
    e.engine.write("qpos", qpos, e.everywhere)
    e.engine.forward()
    s.refresh()
    _, _, terminated, truncated, _ = e.step(torch.zeros(30, e.task.num_actions))
    assert truncated[3] and not terminated[3]


def test_levels_are_in_checkpoints():
    e, other = env(*SMALL, "task.terrain.start_level=2"), env(*SMALL, "task.terrain.start_level=2", "seed=3")
    assert not torch.equal(e.state.ground.level, other.state.ground.level)
    other.load_state_dict(e.state_dict())
    assert torch.equal(e.state.ground.level, other.state.ground.level)


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("go2_rough", ["+task.terrain.kinds.stair=1"], "task.terrain.kinds: no kind 'stair'; there is flat, gap,"),
        ("go2_rough", ["task.terrain.kinds.rough=-1"], "task.terrain.kinds.rough: got -1; must be a share"),
        ("go2_rough", ["task.terrain.columns=3"], "task.terrain.columns: 3 for 6 kinds"),
        ("go2_rough", ["task.terrain.size=3"], "task.terrain.size: 3.0 m; must be at least 4 m"),
        ("go2_rough", ["task.terrain.resolution=0.01"], "task.terrain: 10001 x 18001 heights are more than 16 million"),
        ("cartpole", ["+task.terrain.kinds.flat=1"], "task.terrain: cartpole.xml has a ground of its own (floor)"),
        ("franka_reach", ["+task.terrain.kinds.flat=1"], "task.terrain: the robot's base is fixed"),
        ("go2_flat", ["+task.curricula.terrain_levels={}"], "the ground is an endless plane"),
    ],
)
def test_mistakes_are_told(task, overrides, message):
    with pytest.raises(UserError) as e:
        Env(compose([f"task={task}", "num_envs=4", "device=cpu", *overrides])).reset()
    assert message in str(e.value)


def test_no_kinds_are_a_plane():
    scene = sim.make_scene(*(compose(["task=go2_flat"])[k] for k in ("asset", "task")))
    assert scene.terrain is None and scene.model.geom("ground").type == mujoco.mjtGeom.mjGEOM_PLANE


def test_way_is_what_was_come_of_what_was_asked():
    e = env(*SMALL)
    s, way = e.state, next(t for t in e.task.metric_terms if t.name == "way")
    way.reset(s, e.everywhere)
    assert (way(s) == 1.0).all()  # nothing was asked
    turn(e, 0.5)
    s.commands["velocity"] = torch.tensor([[4.0, 0.0, 0.0]] * 30) / s.step_dt
    way.advance(s)
    assert (way(s) < 0.05).all()
    qpos = s.read("qpos").clone()
    qpos[:15, 0] += 3.0
    qpos[15:, 1] += 9.0
    e.engine.write("qpos", qpos, e.everywhere)
    e.engine.forward()
    s.refresh()
    torch.testing.assert_close(way(s), torch.tensor([0.75] * 15 + [1.0] * 15), rtol=0.0, atol=0.02)
    way.reset(s, e.everywhere)
    s.terminated[::2] = True  # who falls before much was asked has not come all the way
    assert (way(s)[::2] == 0.0).all() and (way(s)[1::2] == 1.0).all()


def test_an_evaluation_tells_kinds_and_levels_apart():
    e = env(*SMALL, "task.terrain.levels=4")
    e.curricula = []

    def run():
        e.reset()  # where robots stand
        at = e.state.base_pos_w[:, :2]
        nearest = torch.cdist(at, e.state.ground.origins[..., :2].reshape(-1, 2)).argmin(dim=1)
        return {"x": nearest.float()}

    found = by_patch(e, run)["x"]
    kinds = e.state.ground.kinds
    for kind, means in found.items():
        columns = torch.tensor([c for c in e.state.ground.column.tolist() if kinds[c] == kind])
        for level, mean in enumerate(means):
            own = [len(kinds) * level + int(c) for c in columns]
            assert mean is None or min(own) <= mean <= max(own)
    assert sum(m is not None for means in found.values() for m in means) > len(found)


def test_engine_warp_steps_terrains_as_mujoco_does():
    """go2_rough: robots that stand, lean and lie on their patches; accelerations, and what its contact sensors feel."""
    engines = []
    for name in ("mujoco", "warp"):
        e = env(*SMALL, *KINDS, "task.terrain.start_level=2", f"sim.engine={name}", "sim.nconmax=60")
        e.engine.field("sensordata")
        engines.append(e.engine)
        qpos = e.state.read("qpos").clone().double()
        qpos[:, 2] -= torch.linspace(0.0, 0.12, 30)
        qpos[::3, 3:7] = torch.tensor([0.7, 0.5, 0.5, 0.1])  # on its side
        field = e.engine.field("qpos")
        e.engine.write("qpos", qpos.to(field.dtype), e.everywhere)
        e.engine.write("qvel", 0.0 * e.engine.field("qvel"), e.everywhere)
        e.engine.step(1, torch.zeros(30, e.engine.model.nu, dtype=e.engine.field("ctrl").dtype))
    theirs, ours = engines
    model = theirs.model
    assert sim._fastest(model, "cuda:0", [])[0] == "warp"
    touching = ours.field("ncon") > 0
    assert touching.sum() > 20 and ours.field("ncon").max() > 15 and not ours.overflow.any()
    feels = theirs.field("sensordata")[touching]
    assert (feels.abs().amax(1) > 10.0).sum() > 15
    for name in ("qacc", "sensordata"):
        expected, found = (engine.field(name)[touching].double() for engine in engines)
        error = (found - expected).abs().amax(1) / expected.abs().amax(1)
        # Of the others, the box is in the ground, which C MuJoCo finds less deep (docs/design.md).
        assert error.median() < 3e-4 and error.quantile(0.9) < 3e-3, (name, error)


def test_pictures_show_the_terrain_around_the_robot(monkeypatch):
    """Heights near what a camera looks at are the terrain's own, wherever that is; what is drawn is small."""
    uploads = []
    monkeypatch.setattr(mujoco, "mjr_uploadHField", lambda *a: uploads.append(a))
    model = env(*KINDS, "task.terrain.levels=10").engine.model
    shown = copy.copy(model)
    window, data = Window(shown), mujoco.MjData(model)
    assert (shown.hfield_ncol[0], shown.hfield_nrow[0]) == (201, 201)
    near = np.stack(np.meshgrid(np.linspace(-6.0, 6.0, 25), np.linspace(-6.0, 6.0, 25)), axis=-1)
    edge = model.hfield_size[0, :2]
    for at in ([0.0, 0.0], [0.7, 0.4], [20.3, -30.7], [-edge[0] + 7.0, edge[1] - 7.0], [0.0, 0.0]):
        mujoco.mj_kinematics(model, data)
        window.move(data, np.array([*at, 0.3]), None)
        shown.geom_pos[window.geom] = data.geom_xpos[window.geom]
        np.testing.assert_allclose(ground_height(shown, near + at), ground_height(model, near + at), atol=1e-6)
    assert len(uploads) == 3  # not where the camera went 0.8 m
