"""Inverse weights of bodies and joints, world by world: what this engine uses of all that mj_setConst derives.

At the default pose with inertia matrix M, a body's translational weight is the mean of the diagonal of J inv(M) J' for
the Jacobian J of its centre of mass, its rotational weight that of its angular Jacobian, and a joint's the mean of the
diagonal of its block of inv(M), translations and rotations of a free joint apart. They do not depend on where a tree as
a whole stands, so each begins at the origin here. All in float64: inv(M) loses as many digits as M's condition has.
"""

import math
from collections.abc import Iterable, Mapping

import mujoco
import numpy as np
import torch
from torch import Tensor

_FREE, _BALL, _SLIDE, _HINGE = range(4)  # mjtJoint
POSE = ("body_pos", "body_quat", "qpos0")  # of frames at the default pose
FIELDS = (*POSE, "body_mass", "body_inertia", "body_ipos", "body_iquat", "dof_armature")
_ALIKE = 1e-6  # MuJoCo: closer to zero than this, a body's inertial frame is the body's frame
_ROOM = 2**27  # bytes of the largest intermediate tensor


class Constants:
    """`derive` for one model on one device. fields: those of FIELDS with one value a world; others are the model's.

    Frames form a tree: the world, every body, and beyond a body's frame one for each of its ball joints.
    """

    def __init__(self, model: mujoco.MjModel, device: str, fields: Iterable[str]):
        m = model
        self.fields = tuple(f for f in FIELDS if f in set(fields))
        self.device = device
        if device != "cpu":
            torch.cuda.current_blas_handle()  # cannot be made while a caller's graph is captured
        self.shared = {f: self._real(getattr(m, f))[None] for f in FIELDS}
        self._frames(m)
        self._dofs(m)
        self.above = self._real(_ancestors(m))  # [nbody, nv]
        # Bodies that a dof moves, by dof, and which dofs j are not below dof i: M[i, j] is that of i's subtree.
        self.moved = self.above.T.contiguous()
        self.order = self.above[self._int(m.dof_bodyid)].tril()  # [nv, nv]
        self.mean = self._real(_averages(m))  # [nv, nv]
        self.levels = [self._int(x) for x in _levels(m)]
        # Bodies that only slide, each alone: MuJoCo takes their mass for what it is in all directions.
        self.sliding = self._int(m.body_simple == 2).bool()
        self.sliding_dofs = self.sliding[self._int(m.dof_bodyid)]
        self.any_sliding = bool((m.body_simple == 2).any())
        self.dof_body = self._int(m.dof_bodyid)
        self.worlds = max(1, _ROOM // (48 * m.nbody * max(1, m.nv)))
        fixed = {f: v for f, v in self.shared.items() if f in POSE}
        self.still = None if set(self.fields) & set(POSE) else self._axes(fixed)

    def _real(self, x: np.ndarray) -> Tensor:
        return torch.as_tensor(np.array(x), dtype=torch.float64, device=self.device)

    def _int(self, x: object) -> Tensor:
        return torch.as_tensor(np.array(x), dtype=torch.long, device=self.device)

    def _frames(self, m: mujoco.MjModel) -> None:
        """The frames, and which of them are turned by a quaternion in qpos0 about which anchor."""
        parent, body = [0], [0]  # of each frame
        turned: list[tuple[int, int, np.ndarray]] = []  # frame, address of the quaternion, anchor
        last, before = [0], []  # of each body its last frame, of each joint the frame that it is in
        for b in range(1, m.nbody):
            parent.append(last[m.body_parentid[b]])
            body.append(b)
            for j in range(m.body_jntadr[b], m.body_jntadr[b] + m.body_jntnum[b]):
                before.append(len(parent) - 1)
                if m.jnt_type[j] == _FREE:  # stands where qpos0 says, whatever the body's own frame
                    turned.append((before[-1], m.jnt_qposadr[j] + 3, np.zeros(3)))
                elif m.jnt_type[j] == _BALL:
                    turned.append((len(parent), m.jnt_qposadr[j], m.jnt_pos[j]))
                    parent.append(before[-1])
                    body.append(0)
            last.append(len(parent) - 1)
        self.frame_body, self.body_frame, self.joint_frame = self._int(body), self._int(last), np.array(before, int)
        self.turned = self._int([x[0] for x in turned])
        self.turned_qpos = self._int([[x[1] + k for k in range(4)] for x in turned])
        self.turned_anchor = self._real([x[2] for x in turned])
        # What hangs on the world is taken to be at the origin.
        self.hung = self._real([b > 0 and m.body_parentid[b] > 0 for b in body])[:, None]
        up, depth = [np.array(parent)], np.zeros(len(parent), int)
        for i in range(1, len(parent)):
            depth[i] = depth[parent[i]] + 1
        for _ in range(1, math.ceil(math.log2(max(depth.max(), 2)))):
            up.append(up[-1][up[-1]])
        self.up = [self._int(x) for x in up]

    def _dofs(self, m: mujoco.MjModel) -> None:
        """Of each dof its axis, its anchor and their frames, and whether it turns (1) or slides (0)."""
        axis, turns, frame = np.zeros((m.nv, 3)), np.zeros((m.nv, 1)), np.zeros(m.nv, int)
        last = self.body_frame.tolist()
        for i in range(m.nv):
            j = m.dof_jntid[i]
            k, kind = i - m.jnt_dofadr[j], m.jnt_type[j]
            turns[i] = kind == _HINGE or kind == _BALL or kind == _FREE and k >= 3
            if kind in (_FREE, _BALL):  # along the world's axes, about those of the body
                axis[i], frame[i] = np.eye(3)[k % 3], last[m.dof_bodyid[i]] if turns[i] else 0
            else:
                axis[i], frame[i] = m.jnt_axis[j], self.joint_frame[j]
        self.axis_frame, self.anchor_frame = self._int(frame), self._int(self.joint_frame[m.dof_jntid])
        self.dof_axis, self.dof_anchor = self._real(axis), self._real(m.jnt_pos[m.dof_jntid])
        self.dof_turns = self._real(turns)

    def _axes(self, f: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Position [., nbody, 3] and matrix [., nbody, 3, 3] of each body, angular velocity and linear velocity at the
        origin of each dof [., nv, 3]."""
        pos = f["body_pos"][:, self.frame_body] * self.hung
        mat = _matrix(f["body_quat"][:, self.frame_body])
        eye = torch.eye(3, dtype=mat.dtype, device=mat.device)
        mat = torch.where(self.hung[..., None] > 0, mat, eye)
        if len(self.turned):
            turn = _matrix(f["qpos0"][:, self.turned_qpos])
            shift = self.turned_anchor - _apply(turn, self.turned_anchor)
            pos, mat = _put(pos, self.turned, shift), _put(mat, self.turned, turn)
        for up in self.up:  # frames relative to the 1st, 2nd, 4th, ... above them
            pos = pos[:, up] + _apply(mat[:, up], pos)
            mat = _times(mat[:, up], mat)
        axis = _apply(mat[:, self.axis_frame], self.dof_axis)
        anchor = pos[:, self.anchor_frame] + _apply(mat[:, self.anchor_frame], self.dof_anchor)
        linear = torch.where(self.dof_turns > 0, torch.linalg.cross(anchor, axis), axis)
        return pos[:, self.body_frame], mat[:, self.body_frame], axis * self.dof_turns, linear

    def __call__(self, values: Mapping[str, Tensor]) -> None:
        """Write body_invweight0 [E, nbody, 2] and dof_invweight0 [E, nv] from the other fields, each [E, ...].

        Nothing asks the device.
        """
        body, dof = values["body_invweight0"], values["dof_invweight0"]
        for i in range(0, len(body), self.worlds):
            rows = slice(i, i + self.worlds)
            f = self.shared | {name: values[name][rows].double() for name in self.fields}
            weights = self._weights(f)
            body[rows], dof[rows] = weights

    def _weights(self, f: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        pos, mat, angular, linear = self.still or self._axes(f)
        com = pos + _apply(mat, f["body_ipos"])
        inertia = self._inertia(f, com, _times(mat, _matrix(f["body_iquat"])), angular, linear)
        inverse = _inverse(inertia, self.levels)
        # Velocity of every centre of mass by every dof, [., nbody, 3, nv], angular and linear.
        above = self.above[:, None, :]
        turning = angular.mT[:, None] * above
        moving = (linear.mT[:, None] + torch.linalg.cross(angular.mT[:, None], com[..., None], dim=2)) * above
        weights = [
            ((x.flatten(1, 2) @ inverse).view(-1, *x.shape[1:]) * x).sum(dim=(2, 3)) / 3 for x in (moving, turning)
        ]
        bodies, dofs = torch.stack(weights, dim=2), inverse.diagonal(dim1=1, dim2=2) @ self.mean
        if not self.any_sliding:
            return bodies, dofs
        alone, light = self._alone(f), 1.0 / f["body_mass"].clamp(min=mujoco.mjMINVAL)
        bodies = torch.where(alone[..., None], torch.stack((light, torch.zeros_like(light)), dim=2), bodies)
        return bodies, torch.where(alone[:, self.dof_body], light[:, self.dof_body], dofs)

    def _alone(self, f: Mapping[str, Tensor]) -> Tensor:
        """Bodies that only slide, as long as their inertial frame is their own, boolean [., nbody]."""
        own = [(f[name][..., -3:].abs() < _ALIKE).all(dim=2) for name in ("body_ipos", "body_iquat")]
        return self.sliding & own[0] & own[1]

    def _inertia(self, f: Mapping[str, Tensor], com: Tensor, axes: Tensor, angular: Tensor, linear: Tensor) -> Tensor:
        """M [., nv, nv] from spatial inertias about the origin, summed over what each dof moves."""
        mass = f["body_mass"][..., None]
        first, eye = mass * com, torch.eye(3, dtype=com.dtype, device=com.device)
        spread = (com * com).sum(-1)[..., None, None] * eye - com[..., None] * com[..., None, :]
        second = _times(axes * f["body_inertia"][..., None, :], axes.mT) + mass[..., None] * spread
        parts = [x.expand(max(len(mass), len(second)), *x.shape[1:]) for x in (mass, first, second.flatten(2))]
        mass, first, second = (self.moved @ torch.cat(parts, dim=2)).split((1, 3, 9), dim=2)
        spin = _apply(second.unflatten(2, (3, 3)), angular) + torch.linalg.cross(first, linear)
        push = mass * linear + torch.linalg.cross(angular, first)
        lower = (spin @ angular.mT + push @ linear.mT) * self.order
        return lower + lower.tril(-1).mT + torch.diag_embed(f["dof_armature"])


def _ancestors(m: mujoco.MjModel) -> np.ndarray:
    """Whether each dof moves each body, [nbody, nv]."""
    above = np.zeros((m.nbody, m.nv))
    for b in range(1, m.nbody):
        above[b] = above[m.body_parentid[b]]
        above[b, m.body_dofadr[b] : m.body_dofadr[b] + m.body_dofnum[b]] = 1.0
    return above


def _averages(m: mujoco.MjModel) -> np.ndarray:
    """The matrix that averages over the three dofs of a ball joint and of both halves of a free one, [nv, nv]."""
    half = np.arange(m.nv) - m.jnt_dofadr[m.dof_jntid] >= 3
    same = (m.dof_jntid[:, None] == m.dof_jntid) & (half[:, None] == half)
    return same / same.sum(axis=0)


def _levels(m: mujoco.MjModel) -> list[np.ndarray]:
    """Dofs with equally many dofs above them, the deepest first."""
    depth = np.zeros(m.nv, int)
    for i in range(m.nv):
        if m.dof_parentid[i] >= 0:
            depth[i] = depth[m.dof_parentid[i]] + 1
    return [np.flatnonzero(depth == d) for d in range(depth.max(initial=0), -1, -1)]


def _inverse(matrix: Tensor, levels: list[Tensor]) -> Tensor:
    """Inverse of an inertia matrix [., nv, nv]. (A CUDA graph cannot capture torch's factorizations of batches.)

    Pivots of one level at once: once all below are eliminated, they are not coupled to one another.
    """
    a = matrix.clone()
    diagonal = a.diagonal(dim1=1, dim2=2)
    for at in levels:
        rows = a[:, at]
        scale = 1.0 / diagonal[:, at]
        scaled = rows * scale[..., None]
        a.baddbmm_(rows.mT, scaled, alpha=-1.0)
        a[:, at], a[:, :, at] = scaled, scaled.mT
        diagonal[:, at] = -scale
    return -a


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix [..., 3, 3] times vector [..., 3]; several times as fast as torch's product of small matrices."""
    return (matrix * vector[..., None, :]).sum(dim=-1)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices [..., 3, 3]."""
    return (a[..., None] * b[..., None, :, :]).sum(dim=-2)


def _put(tensor: Tensor, at: Tensor, value: Tensor) -> Tensor:
    """tensor [., n, ...] with value [., k, ...] at the places `at` [k] of its second dimension."""
    rows = max(len(tensor), len(value))
    return tensor.expand(rows, *tensor.shape[1:]).index_copy(1, at, value.expand(rows, *value.shape[1:]))


def _matrix(quat: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] (w, x, y, z) of any length."""
    w, x, y, z = (quat / quat.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        *(w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z),
    )
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
