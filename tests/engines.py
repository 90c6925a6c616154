"""The engines under test, each on every device it runs on, and how to build one for a model written as a string."""

import mujoco
import numpy as np
import pytest
import torch

from isaacrl import sim
from isaacrl.schema import SimConfig
from isaacrl.sim.engine import Actuation

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ENGINES = [
    pytest.param(("mujoco", "cpu"), id="mujoco"),
    pytest.param(("mjwarp", "cpu"), id="mjwarp"),
    pytest.param(("warp", "cpu"), id="warp"),
    pytest.param(("mjwarp", "cuda"), id="mjwarp-cuda", marks=[pytest.mark.gpu, NO_GPU]),
    pytest.param(("warp", "cuda"), id="warp-cuda", marks=[pytest.mark.gpu, NO_GPU]),
]


def make(xml, n, which, randomized=(), actuation=None, **config):
    """An engine of n worlds; which: (engine, device) as in ENGINES."""
    name, device = which
    model = mujoco.MjModel.from_xml_string(xml)
    actuation = actuation or Actuation.direct(model.nu)
    cfg = SimConfig(engine=name, **{"num_threads": 1, "deterministic": True} | config)
    return sim.build(model, n, device, cfg, actuation, randomized)


def put(engine, forward=True, **state):
    """Write state fields, given as anything that broadcasts to [E, ...], and make what derives from them current."""
    for name, value in state.items():
        field = engine.field(name)
        value = torch.as_tensor(np.asarray(value, float), dtype=field.dtype, device=field.device)
        engine.write(name, value.expand(field.shape).clone())
    if forward:
        engine.forward()


def host(tensor):
    return tensor.cpu().numpy().astype(np.float64)


def roundoff(which):
    """Unit roundoff of the engine's numbers."""
    return 1.1e-16 if which[0] == "mujoco" else 6e-8
