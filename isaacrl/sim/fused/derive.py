"""What the kernel's tables derive from a MuJoCo model."""

from collections.abc import Iterable

import mujoco
import numpy as np

_D = mujoco.mjtDisableBit


def parameters(m: mujoco.MjModel, solref: np.ndarray, solimp: np.ndarray) -> list[float]:
    """K, B, d0, dmax, 1 / width, midpoint, power of a constraint (MuJoCo's manual, "Solver parameters")."""
    d0, dmax = np.clip(solimp[:2], mujoco.mjMINIMP, mujoco.mjMAXIMP)
    width, midpoint = max(solimp[2], 0.0), float(np.clip(solimp[3], mujoco.mjMINIMP, mujoco.mjMAXIMP))
    power = max(1.0, float(solimp[4]))
    if width <= mujoco.mjMINVAL:
        d0 = dmax = 0.5 * (d0 + dmax)
        width = 1.0
    if (solref[0] > 0) != (solref[1] > 0):
        solref = np.array([0.02, 1.0])  # neither of the two meanings: MuJoCo warns and takes its default
    if solref[0] > 0:
        time, ratio = float(solref[0]), float(solref[1])
        if not m.opt.disableflags & _D.mjDSBL_REFSAFE:
            time = max(time, 2 * m.opt.timestep)
        stiffness = 1.0 / max(mujoco.mjMINVAL, dmax**2 * time**2 * ratio**2)
        damping = 2.0 / max(mujoco.mjMINVAL, dmax * time)
    else:
        stiffness, damping = -solref[0] / max(mujoco.mjMINVAL, dmax**2), -solref[1] / max(mujoco.mjMINVAL, dmax)
    return [float(x) for x in (stiffness, damping, d0, dmax, 1.0 / width, midpoint, power)]


def last_dofs(m: mujoco.MjModel) -> np.ndarray:
    """The last dof on the way from the world to each body, [nbody]; -1: it cannot move."""
    last = np.full(m.nbody, -1)
    for b in range(1, m.nbody):
        last[b] = m.body_dofadr[b] + m.body_dofnum[b] - 1 if m.body_dofnum[b] else last[m.body_parentid[b]]
    return last


def dof_masks(m: mujoco.MjModel) -> list[int]:
    """Each dof and the dofs above it, as bits."""
    masks: list[int] = []
    for i in range(m.nv):
        parent = m.dof_parentid[i]
        masks.append((masks[parent] if parent >= 0 else 0) | 1 << i)
    return masks


def gravity(m: mujoco.MjModel) -> np.ndarray:
    return np.zeros(3) if m.opt.disableflags & _D.mjDSBL_GRAVITY else m.opt.gravity


def pack_bytes(values: Iterable[int]) -> int:
    """Up to four numbers below 256 as one signed integer of 32 bits, the first lowest."""
    word = sum(int(v) << 8 * k for k, v in enumerate(values))
    return word - (word >> 31 << 32)


def pack_mask(mask: int) -> tuple[int, int]:
    """A 64-bit mask as two signed integers of 32 bits."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    return (low - (low >> 31 << 32), high - (high >> 31 << 32))
