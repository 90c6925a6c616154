"""Pictures and videos of states, with or without OpenGL.

`render_frames` draws joint positions that were recorded before: no physics runs here. It uses MuJoCo's OpenGL renderer
off screen (EGL, OSMesa, or a window system where there is a display) and, where none of them works, the ray tracer of
mujoco-warp, which needs no OpenGL at all. `backend` says which and why; the environment variable ISAACRL_RENDERER
(`gl` or `warp`) insists on one.
"""

import copy
import importlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from isaacrl.errors import UserError
from isaacrl.hfield import Window, ground_height
from isaacrl.media import last_line
from isaacrl.suggest import did_you_mean, listing

CAMERA_KEYS = ("lookat", "distance", "azimuth", "elevation", "track")
SMOOTH = 10  # frames before and after that a following camera averages over: most of a stride at 30 frames a second
JUMP = 0.5  # a body that moves farther between two frames was put somewhere else [m]: the camera jumps with it
GAP = 2  # pixels between the worlds of one picture
GAP_COLOR = 0.2


def render_frames(
    model: Any,
    qpos: Any,
    *,
    camera: dict[str, Any] | None = None,
    width: int = 640,
    height: int = 480,
    mocap: tuple[Any, Any] | None = None,
    renderer: str | None = None,
) -> Iterator[np.ndarray]:
    """Pictures of E worlds side by side, one a time step: uint8 [height, width, 3].

    Args:
        model: the `mujoco.MjModel`. mujoco-warp's renderer needs at least one camera in it, and moves the first one.
        qpos: joint positions, [T, E, nq]. Worlds with a non-finite position are drawn in the model's default pose.
        camera: `lookat` [m], `distance` [m], `azimuth` and `elevation` [deg]; what is missing, the model decides.
            `track` names the body (a pattern: the first that matches) that each world's camera follows in x and y,
            smoothly; `lookat` then counts from it in x and y, and z stays a height above the ground. Without it the
            camera follows a robot that can go anywhere, and null stands still.
        width, height: size of the whole picture [pixels].
        mocap: positions [T, E, nmocap, 3] [m] and quaternions [T, E, nmocap, 4] of mocap bodies.
        renderer: `gl` or `warp`; default: what `backend` finds.

    Raises:
        UserError: an unknown camera key or renderer, no OpenGL where it is asked for, a model without camera (warp).
    """
    qpos = np.asarray(qpos, dtype=np.float64)
    if qpos.ndim != 3 or qpos.shape[2] != model.nq:
        raise ValueError(f"qpos has shape {qpos.shape}, expected [T, E, {model.nq}]")
    name, _ = backend(renderer)
    view = _view(model, camera or {})
    tiles = _tiles(qpos.shape[1], width, height)
    poses = zip(_poses(model, qpos, mocap), _lookats(model, qpos, mocap, camera or {}, view), strict=True)
    if name == "warp":
        return _warp_frames(model, poses, view, tiles, width, height)
    return _gl_frames(name, model, poses, view, tiles, width, height)


def backend(renderer: str | None = None) -> tuple[str, str]:
    """What draws on this machine, and why: (egl, osmesa, glfw, cgl or warp; one line).

    A backend counts only after it has drawn a picture in a process of its own: a broken driver cannot crash this one.
    """
    wish = renderer or os.environ.get("ISAACRL_RENDERER", "")
    if wish not in ("", "gl", "warp"):
        raise UserError(f"ISAACRL_RENDERER={wish}: unknown renderer. It is gl or warp; unset, the first that works.")
    if wish == "warp":
        return "warp", "asked for"
    failures = []
    for name in _candidates():
        problem = gl_problem(name)
        if problem is None:
            return name, f"OpenGL through {name}" + (f" ({failures[0]})" if failures else "")
        failures.append(f"{name}: {problem}")
    why = "no OpenGL here (" + ("; ".join(failures) or "MUJOCO_GL turns it off") + ")"
    if wish == "gl":
        raise UserError(f"ISAACRL_RENDERER=gl: {why}. Install Mesa (Debian: apt install libegl1 libgl1), or unset it.")
    return "warp", f"mujoco-warp's own renderer: {why}"


# --- which OpenGL ---


def _candidates() -> list[str]:
    """OpenGL backends worth trying, best first. MUJOCO_GL, MuJoCo's own switch, comes before our order."""
    wish = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wish in ("disable", "disabled", "off", "false", "0"):
        return []
    if sys.platform == "darwin":
        order = ["cgl", "glfw"]
    elif sys.platform == "win32":
        order = ["glfw"]
    else:
        display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        order = ["egl", "osmesa"] + (["glfw"] if display else [])
    wish = "glfw" if wish in ("glx", "wgl") else wish
    return [wish, *(name for name in order if name != wish)] if wish in ("egl", "osmesa", "glfw", "cgl") else order


@cache
def gl_problem(name: str) -> str | None:
    """None when OpenGL backend `name` draws a picture here, else what went wrong, in one line."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"MUJOCO_GL": "off", "PYTHONPATH": path}  # off: importing mujoco loads no OpenGL itself
    code = f"from isaacrl.render import _draw_something; _draw_something({name!r})"
    try:
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return last_line(error)
    if run.returncode == 0:
        return None
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    return lines[-1].strip()[:120] if lines else f"the probe ended with code {run.returncode}"


def _draw_something(name: str) -> None:
    """Draw a white sphere through backend `name`; raise unless it shows."""
    import mujoco

    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='.1' rgba='1 1 1 1'/></worldbody></mujoco>")
    view = _view(model, {})
    poses = zip(_poses(model, np.zeros((1, 1, 0)), None), view.lookat.reshape(1, 1, 3))
    frame = next(_gl_frames(name, model, poses, view, [(0, 0, 32, 32)], 32, 32))
    if frame.max() == 0:
        raise RuntimeError("it draws nothing")


# --- what is shared by both renderers ---


def _view(model: Any, camera: dict[str, Any]) -> Any:
    """The `mujoco.MjvCamera` that the keys of `camera` describe."""
    import mujoco

    view = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, view)
    if (view.azimuth, view.elevation) == (90.0, -45.0):  # the model does not say: from the front left, not so near
        view.azimuth, view.elevation, view.distance = 135.0, -20.0, 1.6 * view.distance
    for key, value in camera.items():
        if key not in CAMERA_KEYS:
            raise UserError(f"task.camera.{key}: unknown key. A camera has {', '.join(CAMERA_KEYS)}.")
        if key == "track":
            continue
        try:
            setattr(view, key, np.asarray(value, np.float64) if key == "lookat" else float(value))
        except (TypeError, ValueError) as error:
            expected = "three numbers [m]" if key == "lookat" else "a number"
            raise UserError(f"task.camera.{key}={value}: expected {expected}.") from error
    return view


def _tiles(num: int, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """One rectangle (left, top, width, height) a world, in rows, as square a grid as it gets."""
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    w, h = (width - GAP * (columns - 1)) // columns, (height - GAP * (rows - 1)) // rows
    if w < 1 or h < 1:
        raise ValueError(f"{num} worlds do not fit a picture of {width}x{height} pixels")
    return [((w + GAP) * (i % columns), (h + GAP) * (i // columns), w, h) for i in range(num)]


def _blank(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), round(255 * GAP_COLOR), np.uint8)


def _poses(model: Any, qpos: np.ndarray, mocap: tuple[Any, Any] | None) -> Iterator[Iterator[Any]]:
    """For each step an iterator over its worlds: one and the same MjData, with the kinematics of that world."""
    import mujoco

    data = mujoco.MjData(model)

    def world(t: int, e: int) -> Any:
        data.qpos[:] = qpos[t, e] if np.isfinite(qpos[t, e]).all() else model.qpos0
        if mocap is not None:
            data.mocap_pos[:], data.mocap_quat[:] = np.asarray(mocap[0][t][e]), np.asarray(mocap[1][t][e])
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        mujoco.mj_flex(model, data)
        mujoco.mj_tendon(model, data)
        return data

    return ((world(t, e) for e in range(qpos.shape[1])) for t in range(len(qpos)))


def check_camera(model: Any, camera: dict[str, Any]) -> None:
    """Raise UserError where task.camera holds what is unknown, or tracks a body that there is not."""
    _view(model, camera)
    tracked_body(model, camera)


def tracked_body(model: Any, camera: dict[str, Any]) -> int | None:
    """The body that the camera follows: what `track` names, else the first one if nothing bounds its way, else None."""
    names = [model.body(b).name for b in range(1, model.nbody)]
    if "track" in camera:
        pattern = camera["track"]
        if pattern is None:
            return None
        try:
            found = [i for i, name in enumerate(names, 1) if re.fullmatch(pattern, name)]
        except re.error as e:
            raise UserError(f"task.camera.track: '{pattern}' is not a regular expression ({e})") from None
        if found:
            return found[0]
        hint = did_you_mean(pattern, names)
        raise UserError(f"task.camera.track: '{pattern}' matches no body{hint}; there are: {listing(names)}")
    import mujoco

    free, slide = mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_SLIDE
    unbound = model.njnt and (model.jnt_type[0] == free or model.jnt_type[0] == slide and not model.jnt_limited[0])
    return int(model.jnt_bodyid[0]) if unbound else None


def _lookats(model: Any, qpos: np.ndarray, mocap: Any, camera: dict[str, Any], view: Any) -> np.ndarray:
    """What each world's camera looks at in each frame [m], [T, E, 3]."""
    steps, num = qpos.shape[:2]
    out = np.broadcast_to(view.lookat, (steps, num, 3)).copy()
    body = tracked_body(model, camera)
    if body is None:
        return out
    if "lookat" not in camera:
        out[..., :2] = 0  # the model's own view is centred on where the robot starts
    where = np.array([[data.xpos[body].copy() for data in worlds] for worlds in _poses(model, qpos, mocap)])
    where[..., 2] = ground_height(model, where[..., :2])
    for e in range(num):
        jumps = np.flatnonzero(np.linalg.norm(np.diff(where[:, e, :2], axis=0), axis=1) > JUMP) + 1
        for part in np.split(np.arange(steps), jumps):
            out[part, e] += _smooth(where[part, e])
    return out


def _smooth(path: np.ndarray) -> np.ndarray:
    """Mean over up to SMOOTH frames on both sides, [T, n]; as many on either, so that a steady motion has no lag."""
    steps = np.arange(len(path))
    half = np.minimum(np.minimum(steps, steps[::-1]), SMOOTH)
    sums = np.concatenate([np.zeros((1, path.shape[1])), np.cumsum(path, axis=0)])
    return (sums[steps + half + 1] - sums[steps - half]) / (2 * half + 1)[:, None]


# --- OpenGL ---


def _gl_frames(
    name: str,
    model: Any,
    poses: Iterable[tuple[Iterable[Any], np.ndarray]],
    view: Any,
    tiles: list[tuple[int, int, int, int]],
    width: int,
    height: int,
) -> Iterator[np.ndarray]:
    """Every world by itself, at the origin of the buffer: far from it Mesa's interpolation is coarse, and shadows
    get specks."""
    import mujoco

    _, _, w, h = tiles[0]
    # The backend's module, not mujoco.GLContext: that one was chosen when mujoco was first imported.
    gl = importlib.import_module(f"mujoco.{name}").GLContext(w, h)
    gl.make_current()
    context = None
    try:
        model = copy.copy(model)
        # Halving a picture twice as large smooths shadows too, and costs less than multisampling without a GPU.
        model.vis.global_.offwidth, model.vis.global_.offheight = 2 * w, 2 * h
        model.vis.quality.offsamples = 0
        # Without a GPU a shadow map of 4096 x 4096 takes longer than a small picture itself.
        model.vis.quality.shadowsize = min(model.vis.quality.shadowsize, 1 << (4 * max(w, h) - 1).bit_length())
        terrain = Window(model)
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
        scene, option = mujoco.MjvScene(model, maxgeom=max(2000, 2 * model.ngeom)), mujoco.MjvOption()
        pixels = np.empty((2 * h, 2 * w, 3), np.uint8)
        viewport = mujoco.MjrRect(0, 0, 2 * w, 2 * h)
        picture = _blank(width, height)
        for worlds, lookats in poses:
            gl.make_current()
            for data, lookat, (left, top, _, _) in zip(worlds, lookats, tiles, strict=True):
                view.lookat = lookat
                terrain.move(data, lookat, context)
                mujoco.mjv_updateCamera(model, data, view, scene)  # the scene centres endless planes on the camera
                mujoco.mjv_updateScene(model, data, option, None, view, mujoco.mjtCatBit.mjCAT_ALL.value, scene)
                mujoco.mjr_render(viewport, scene, context)
                mujoco.mjr_readPixels(pixels, None, viewport, context)
                picture[top : top + h, left : left + w] = _halve(pixels)[::-1]
            yield picture.copy()
    finally:
        if context is not None:
            gl.make_current()
            context.free()
        gl.free()


def _halve(pixels: np.ndarray) -> np.ndarray:
    """[2 H, 2 W, 3] to [H, W, 3]: the mean of every 2 x 2 pixels."""
    rows = pixels[0::2].astype(np.uint16)
    rows += pixels[1::2]
    mean = rows[:, 0::2] + rows[:, 1::2]
    mean += 2
    mean >>= 2
    return mean.astype(np.uint8)


# --- mujoco-warp ---


def _warp_frames(
    model: Any,
    poses: Iterable[tuple[Iterable[Any], np.ndarray]],
    view: Any,
    tiles: list[tuple[int, int, int, int]],
    width: int,
    height: int,
) -> Iterator[np.ndarray]:
    """All worlds of a picture in one launch, on the GPU if Warp has one, else on the CPU."""
    if model.ncam == 0:
        raise UserError("The model has no camera; without OpenGL a picture needs one: add <camera/> to its worldbody.")
    import mujoco
    import warp as wp

    wp.config.log_level = wp.LOG_WARNING
    import mujoco_warp as mjw

    num, (_, _, w, h) = len(tiles), tiles[0]
    model = copy.copy(model)
    model.cam_fovy[0], model.cam_projection[0] = model.vis.global_.fovy, mujoco.mjtProjection.mjPROJ_PERSPECTIVE
    model.cam_sensorsize[0] = 0  # 0: the field of view counts, not a sensor's size
    m, d = mjw.put_model(model), mjw.make_data(model, nworld=num)
    context = mjw.create_render_context(
        model,
        num,
        cam_res=(w, h),
        cam_active=[0],
        render_rgb=True,
        render_depth=False,
        render_seg=False,
        use_shadows=True,
        render_skybox=True,
        background_color=(0.8, 0.85, 0.9, 1.0),
        samples_per_pixel=2 if wp.get_device().is_cuda else 1,
    )
    drawn = ("geom_xpos", "geom_xmat", "light_xpos", "light_xdir", "flexvert_xpos")
    cam_xpos, cam_xmat = np.zeros((num, model.ncam, 3)), np.zeros((num, model.ncam, 3, 3))
    backward, cam_xmat[:, 0] = _camera_pose(view)
    rgb = wp.zeros((num, h, w), dtype=wp.vec3)
    picture = _blank(width, height)
    for worlds, lookats in poses:
        cam_xpos[:, 0] = lookats + backward
        pose = [[getattr(data, field).copy() for field in drawn] for data in worlds]
        for field, values in zip(drawn, zip(*pose, strict=True), strict=True):
            array = getattr(d, field)
            if array.size:
                array.assign(np.stack(values).reshape(array.numpy().shape))
        d.cam_xpos.assign(cam_xpos)
        d.cam_xmat.assign(cam_xmat)
        mjw.refit_bvh(m, d, context)
        mjw.render(m, d, context)
        mjw.get_rgb(context, 0, rgb)
        images = np.rint(rgb.numpy() * 255).clip(0, 255).astype(np.uint8)
        for image, (left, top, _, _) in zip(images, tiles, strict=True):
            picture[top : top + h, left : left + w] = image
        yield picture.copy()


def _camera_pose(view: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of a free camera: position [3] from what it looks at, orientation [3, 3] (columns: right, up, backward)."""
    azimuth, elevation = math.radians(view.azimuth), math.radians(view.elevation)
    forward = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    right = np.array([math.sin(azimuth), -math.cos(azimuth), 0.0])
    return -view.distance * forward, np.stack([right, np.cross(right, forward), -forward], axis=1)
