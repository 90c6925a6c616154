"""What the layers around physics and around the matrix products cost, on this machine.

    python benchmarks/overhead.py

1. Environment layer and logging against physics, for a contact-rich quadruped and for cart-pole (tiny physics).
2. PPO's update against a bare torch loop of the same matrix products: the values of the rollout, then for each gradient
   step forward, input and weight gradient of each layer of policy and critic, nothing else. Rounds of both alternate;
   the ratio is of medians.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does, before torch is imported

import torch
from common import write
from torch import Tensor

from isaacrl import algos
from isaacrl.config import compose
from isaacrl.env import Env
from isaacrl.log import open_log

ROOT = Path(__file__).parent.parent


def layers(task: str, iterations: int) -> dict[str, float]:
    """Milliseconds an iteration of PPO spends in each layer."""
    cfg = compose([f"task={task}", "device=cpu"], config_dir=str(ROOT / "benchmarks" / "conf"))
    env = Env(cfg)
    env.timer.enabled = True
    algo = algos.build(env, cfg)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        log = open_log(cfg.logger, Path(folder), title=task, iterations=iterations, reward_terms=env.task.reward_names)
        for i in range(iterations):
            algo._rollout(env.timer) if algo.obs is not None else algo.iterate(env.timer)
            metrics = env.read_metrics()
            spent = env.timer.read()
            began = time.perf_counter()
            log.log({f"time/{k}": v for k, v in spent.items()} | metrics | {"iteration": i, "env_steps": i}, i + 1)
            rows.append(spent | {"log": time.perf_counter() - began})
        log.close(None)
    rows = rows[2:]
    ms = {k: 1e3 * statistics.median(r[k] for r in rows) for k in ("sim", "env", "log", "policy")}
    steps = cfg.algo.num_steps * cfg.num_envs
    return ms | {
        "num_envs": cfg.num_envs,
        "num_steps": cfg.algo.num_steps,
        "decimation": cfg.task.decimation,
        "physics_steps_per_s": steps * cfg.task.decimation / ms["sim"] * 1e3,
        "env_and_log_over_physics": (ms["env"] + ms["log"]) / ms["sim"],
    }


def products(nets: list[torch.nn.Sequential], inputs: list[Tensor], rounds: int, whole: Tensor) -> float:
    """Seconds of the bare matrix products of `rounds` gradient steps, and of the rollout's values (last net)."""
    plan = []
    for net, x in zip(nets, inputs):
        weights = [m.weight.detach() for m in net if isinstance(m, torch.nn.Linear)]
        acts = [x, *(torch.randn(len(x), w.shape[0]) for w in weights)]
        plan.append((weights, acts, [torch.empty_like(a) for a in acts], [torch.empty_like(w) for w in weights]))
    value_acts = [whole, *(torch.empty(len(whole), w.shape[0]) for w in plan[-1][0])]
    began = time.perf_counter()
    for i, w in enumerate(plan[-1][0]):
        torch.mm(value_acts[i], w.T, out=value_acts[i + 1])
    for _ in range(rounds):
        for weights, acts, grads, weight_grads in plan:
            for i, w in enumerate(weights):
                torch.mm(acts[i], w.T, out=grads[i + 1])
            for i, w in reversed(list(enumerate(weights))):
                torch.mm(acts[i + 1].T, acts[i], out=weight_grads[i])
                if i:
                    torch.mm(acts[i + 1], w, out=grads[i])
    return time.perf_counter() - began


def update(task: str, hidden: str, repeats: int) -> dict[str, float]:
    """PPO's whole update against its matrix products."""
    cfg = compose([f"task={task}", "device=cpu", f"algo.hidden={hidden}"], config_dir=str(ROOT / "benchmarks" / "conf"))
    env = Env(cfg)
    algo = algos.build(env, cfg)
    algo.iterate(env.timer)
    rows = cfg.algo.num_steps * cfg.num_envs // cfg.algo.minibatches
    nets, inputs = [algo.policy.net, algo.critic.net], [algo.obs.flatten(0, 1)[:rows]] * 2
    ours, bare = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        algo._update()
        ours.append(time.perf_counter() - began)
        with torch.no_grad():
            bare.append(products(nets, inputs, cfg.algo.epochs * cfg.algo.minibatches, algo.obs.flatten(0, 1)))
    a, b = statistics.median(ours), statistics.median(bare)
    return {"rows": rows, "update_ms": 1e3 * a, "products_ms": 1e3 * b, "ratio": a / b}


if __name__ == "__main__":
    write(
        "overhead_cpu",
        {
            "environment_layer": {task: layers(task, 22) for task in ("crawler", "cartpole")},
            "update": {
                "crawler 256-128-64": update("crawler", "[256,128,64]", 9),
                "crawler 512-256-128": update("crawler", "[512,256,128]", 5),
                "cartpole 32-32": update("cartpole", "[32,32]", 9),
            },
        },
    )
