"""A policy live in the browser: WebGL on the client, no graphics card or display on this machine."""

from collections.abc import Callable

import mujoco
import torch
from torch import Tensor

from isaacrl.env import Env
from isaacrl.errors import UserError


def view(env: Env, act: Callable[[Tensor], Tensor]) -> None:
    """Serve the environment's worlds until Ctrl-C, running in real time under the policy."""
    try:
        import viser
        from mjviser import Viewer
    except ImportError:
        raise UserError("viewer=browser needs the viewer extra: pip install 'isaacrl[viewer]'") from None
    model, data = env.visual_model, mujoco.MjData(env.visual_model)
    obs, due = env.reset(), 0

    @torch.no_grad()
    def step(_model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """The viewer counts physics steps; the environment takes `decimation` of them at once."""
        nonlocal obs, due
        if due == 0:
            obs, *_ = env.step(act(obs["policy"]))
        due = (due + 1) % env.decimation
        data.time += model.opt.timestep

    def show(scene: object) -> None:
        fields = {k: env.engine.field(k).cpu().numpy() for k in ("xpos", "xmat", "qpos", "qvel")}
        xmat = fields["xmat"].reshape(env.num_envs, -1, 3, 3)
        scene.update_from_arrays(fields["xpos"], xmat, qpos=fields["qpos"], qvel=fields["qvel"])  # type: ignore[attr-defined]

    def reset(_model: mujoco.MjModel, _data: mujoco.MjData) -> None:
        nonlocal obs, due
        obs, due = env.reset(), 0

    # Takes the next free port by itself. For this machine alone: from afar through `ssh -L`.
    server = viser.ViserServer(host="localhost", verbose=False)
    print(f"open http://localhost:{server.get_port()} in a browser; Ctrl-C ends")
    Viewer(model, data, step, show, reset, num_envs=env.num_envs, server=server).run()
