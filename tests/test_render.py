"""Pictures show the right thing the right way up, through OpenGL and without it; files can be played elsewhere."""

import mmap
import os
from pathlib import Path

import imageio_ffmpeg
import mujoco
import numpy as np
import pytest

import isaacrl
from isaacrl import media, render
from isaacrl.errors import UserError
from isaacrl.sim.scene import add_surroundings

# A red ball that slides along x and a blue one fixed above the origin; no light but the camera's, to know the colours.
BALLS = """
<mujoco>
  <visual><headlight ambient=".5 .5 .5" diffuse=".5 .5 .5" specular="0 0 0"/></visual>
  <worldbody>
    <camera name="any" pos="0 0 5"/>
    <geom size=".3" pos="0 0 1" rgba="0 0 1 1" contype="0" conaffinity="0"/>
    <body name="ball">
      <joint type="slide" axis="1 0 0"/>
      <geom size=".3" rgba="1 0 0 1" mass="1" contype="0" conaffinity="0"/>
    </body>
    <body mocap="true" pos="0 0 -9"><geom size=".3" rgba="0 1 0 1" contype="0" conaffinity="0"/></body>
  </worldbody>
</mujoco>"""
CAMERA = {"lookat": [0, 0, 0], "distance": 4, "azimuth": 90, "elevation": 0, "track": None}  # +x is right, +z is up
HALF_HEIGHT = 4 * np.tan(np.radians(22.5))  # of what such a picture shows at the balls [m]
HOPPER = Path(__file__).parent / "models" / "hopper.xml"


def has_gl():
    try:
        return render.backend("gl")[0] != "warp"
    except UserError:
        return False


RENDERERS = [pytest.param("gl", marks=pytest.mark.skipif("not has_gl()", reason="no OpenGL")), "warp"]


@pytest.fixture
def balls():
    return mujoco.MjModel.from_xml_string(BALLS)


def draw(model, qpos, renderer, width=96, height=64, camera=CAMERA, mocap=None):
    return list(
        render.render_frames(model, qpos, camera=camera, width=width, height=height, mocap=mocap, renderer=renderer)
    )


def where(image, channel):
    """Mean row and column, relative to the size, of the pixels in which one colour prevails."""
    image = image.astype(int)
    mask = image[..., channel] > 60 + np.delete(image, channel, axis=2).max(axis=2)
    assert mask.any(), "the ball is not in the picture"
    return np.argwhere(mask).mean(axis=0) / image.shape[:2]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_pictures_are_upright_and_have_the_right_colours(balls, renderer):
    before = balls.vis.global_.offwidth, balls.vis.quality.offsamples, balls.cam_fovy.copy()
    left, right = draw(balls, [[[-1.0]], [[1.0]]], renderer)
    assert left.shape == (64, 96, 3) and left.dtype == np.uint8
    for image, x in ((left, -1.0), (right, 1.0)):
        assert where(image, 0) == pytest.approx([0.5, 0.5 + 0.5 * x / HALF_HEIGHT / 1.5], abs=0.03)
        assert where(image, 2) == pytest.approx([0.5 - 0.5 / HALF_HEIGHT, 0.5], abs=0.03)
    assert (balls.vis.global_.offwidth, balls.vis.quality.offsamples) == before[:2]  # the caller's model is left alone
    assert (balls.cam_fovy == before[2]).all()


@pytest.mark.parametrize("renderer", RENDERERS)
def test_every_world_has_its_own_tile(balls, renderer):
    positions = np.array([-1.0, 0.5, 1.0])
    (image,) = draw(balls, positions[None, :, None], renderer, 128, 96)
    for (x, y, w, h), position in zip(render._tiles(3, 128, 96), positions, strict=True):
        column = where(image[y : y + h, x : x + w], 0)[1]
        assert column == pytest.approx(0.5 + 0.5 * position / (4 * np.tan(np.radians(22.5)) * w / h), abs=0.04)
    assert (image[-40:, -55:] == round(255 * render.GAP_COLOR)).all()  # no fourth world


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_same_world_looks_the_same_in_every_tile(renderer):
    spec = mujoco.MjSpec.from_file(str(HOPPER))
    add_surroundings(spec)
    model = spec.compile()
    (image,) = draw(model, np.tile(model.qpos0, (1, 9, 1)), renderer, 480, 360, camera={})
    first, *others = [image[y : y + h, x : x + w] for x, y, w, h in render._tiles(9, 480, 360)]
    assert first.std() > 20 and all((other == first).all() for other in others)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_mocap_bodies_follow_and_broken_worlds_are_drawn_at_rest(balls, renderer):
    mocap = np.array([[[[0.0, 0, -1]]]]), np.array([[[[1.0, 0, 0, 0]]]])
    (image,) = draw(balls, [[[np.nan]]], renderer, mocap=mocap)
    assert where(image, 1)[0] > 0.7
    assert where(image, 0) == pytest.approx([0.5, 0.5], abs=0.03)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_camera_follows_each_world_and_jumps_with_it(balls, renderer):
    """At a steady 0.1 m a frame the ball stays where `lookat` puts it; after a reset it does so at once."""
    path = np.concatenate([np.arange(15) * 0.1, -4 + np.arange(15) * 0.1])
    qpos = np.stack([path, -path], axis=1)[..., None]
    frames = draw(balls, qpos, renderer, 130, 64, camera=CAMERA | {"lookat": [0.5, 0, 0], "track": "ball"})
    tiles = render._tiles(2, 130, 64)
    for image in (frames[0], frames[10], frames[14], frames[15], frames[29]):
        for x, y, w, h in tiles:
            row, column = where(image[y : y + h, x : x + w], 0)
            assert (row, column) == pytest.approx((0.5, 0.5 - 0.25 / HALF_HEIGHT / (w / h)), abs=0.03)
    (still,) = draw(balls, qpos[14:15, :1], renderer, 64, 64, camera=CAMERA)  # standing still it leaves the middle
    assert where(still, 0)[1] > 0.9


def test_the_camera_smooths_steps_but_not_the_way():
    stride = 0.05 * np.sin(2 * np.pi * np.arange(100) / 15)
    way = np.stack([np.arange(100) * 0.1 + stride, stride], axis=1)
    seen = render._smooth(way)[10:-10]
    assert np.abs(seen[:, 1]).max() < 0.015
    assert np.abs(seen[:, 0] - np.arange(10, 90) * 0.1).max() < 0.015


@pytest.mark.parametrize("renderer", RENDERERS)
def test_far_from_the_origin_a_robot_looks_the_same(renderer):
    """Ground, light and shadow go with a floating robot, and the camera by itself. Whole checks away: same texture."""
    spec = mujoco.MjSpec.from_file(str(HOPPER))
    add_surroundings(spec)
    model = spec.compile()
    qpos = np.tile(model.qpos0, (2, 1, 1))
    qpos[1, 0, :2] = 50, -30
    near, far = (f.astype(int) for f in draw(model, qpos, renderer, 160, 120, camera={}))
    assert np.abs(near - far).mean() < 1.5  # of 255
    assert near.std() > 25  # and there is something to see


def test_what_the_camera_follows_by_itself(balls):
    fixed = mujoco.MjModel.from_xml_path(str(Path(isaacrl.__file__).parent / "assets" / "cartpole.xml"))
    hopper = mujoco.MjModel.from_xml_path(str(HOPPER))
    assert render.tracked_body(fixed, {}) is None
    assert render.tracked_body(hopper, {}) == hopper.body("base").id
    assert render.tracked_body(hopper, {"track": "shin.*"}) == hopper.body("shin1").id
    assert render.tracked_body(balls, {}) == balls.body("ball").id  # nothing bounds its way
    assert render.tracked_body(hopper, {"track": None}) is None


@pytest.mark.skipif("not has_gl()", reason="no OpenGL")
def test_both_renderers_show_the_same_cartpole():
    model = mujoco.MjModel.from_xml_path(str(Path(isaacrl.__file__).parent / "assets" / "cartpole.xml"))
    view = {"lookat": [0, 0, 1.05], "distance": 4.2, "azimuth": 90, "elevation": -9}
    gl, warp = (draw(model, [[[0.4, 0.6]]], r, 160, 120, view)[0].astype(int) for r in ("gl", "warp"))
    assert np.abs(gl - warp).mean() < 12  # of 255
    assert np.abs(gl - gl[::-1]).mean() > 20  # upside down would show


def test_the_first_opengl_that_draws_is_taken(monkeypatch):
    monkeypatch.delenv("ISAACRL_RENDERER", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    broken = {}
    monkeypatch.setattr(render, "gl_problem", broken.get)
    assert render.backend()[0] == "egl"
    broken["egl"] = "no driver"
    assert render.backend()[0] == "osmesa" and "egl: no driver" in render.backend()[1]
    broken["osmesa"] = "no library"
    name, reason = render.backend()
    assert name == "warp" and "egl: no driver" in reason and "osmesa: no library" in reason
    with pytest.raises(UserError, match="egl: no driver.*Install Mesa"):
        render.backend("gl")
    monkeypatch.setenv("DISPLAY", ":0")
    assert render.backend()[0] == "glfw"
    broken.clear()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert render.backend()[0] == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "off")
    assert render.backend()[0] == "warp"
    monkeypatch.setenv("ISAACRL_RENDERER", "vulkan")
    with pytest.raises(UserError, match="ISAACRL_RENDERER=vulkan.*gl or warp"):
        render.backend()


def test_a_broken_opengl_is_a_line_of_text():
    """The probe runs in a process of its own; a backend that is not there ends as text."""
    assert "no_such_gl" in render.gl_problem("no_such_gl")


@pytest.mark.parametrize(
    "camera, message",
    [
        ({"zoom": 2}, "task.camera.zoom: unknown key.*lookat"),
        ({"distance": "far"}, "task.camera.distance=far: expected a number"),
        ({"lookat": [1, 2]}, "task.camera.lookat=.*three numbers"),
        ({"track": "bal"}, "task.camera.track: 'bal' matches no body; did you mean ball"),
        ({"track": "*"}, "task.camera.track: '\\*' is not a regular expression"),
    ],
)
def test_a_wrong_camera_is_the_users_error(balls, camera, message):
    with pytest.raises(UserError, match=message):
        render.render_frames(balls, [[[0.0]]], camera=camera, renderer="warp")


def test_without_opengl_a_model_needs_a_camera():
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    with pytest.raises(UserError, match="no camera"):
        next(render.render_frames(model, np.zeros((1, 1, 0)), renderer="warp"))


def shades(num, height, width):
    """Frames whose brightness grows with time and whose columns tell left from right."""
    for t in range(num):
        frame = np.full((height, width, 3), 20 * t, np.uint8)
        frame[:, : width // 2, 0] = 250
        yield frame


@pytest.fixture
def no_fork(monkeypatch):
    """imageio_ffmpeg's reader forks without this, and the other tests' simulations have reserved much memory."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")


@pytest.mark.usefixtures("no_fork")
def test_videos_play_elsewhere(tmp_path):
    path = tmp_path / "a video.mp4"
    assert media.write_video(shades(10, 49, 65), path, fps=12.5) == 10
    reader = imageio_ffmpeg.read_frames(str(path))
    info = next(reader)
    assert info["codec"] == "h264" and info["pix_fmt"].startswith("yuv420p")
    assert info["size"] == (64, 48) and info["fps"] == pytest.approx(12.5)
    frames = [np.frombuffer(frame, np.uint8).reshape(48, 64, 3) for frame in reader]
    assert [frame[:, 40:].mean() for frame in frames] == pytest.approx([20 * t for t in range(10)], abs=6)
    assert frames[0][:, :28, 0].mean() > 200
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it loads
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_reserved_much_memory_films_too(tmp_path):
    """As thousands of worlds in C MuJoCo do: Linux refuses such a process a fork."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        reserved = [mmap.mmap(-1, int(0.7 * most), flags=mmap.MAP_PRIVATE) for _ in range(2)]
    except OSError:
        pytest.skip("this kernel refuses to reserve so much memory")
    assert media.write_video(shades(3, 48, 64), tmp_path / "v.mp4", fps=10) == 3
    for memory in reserved:
        memory.close()


def test_a_video_that_cannot_be_written_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="could not be written: .*No such file or directory"):
        media.write_video(shades(40, 480, 640), tmp_path / "nowhere" / "v.mp4", fps=10)


@pytest.mark.usefixtures("no_fork")
def test_png_is_what_was_drawn(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    media.write_png(frame, tmp_path / "p.png")
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "p.png"))
    next(reader)
    assert (np.frombuffer(next(reader), np.uint8).reshape(7, 11, 3) == frame).all()
