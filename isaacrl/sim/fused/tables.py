"""A MuJoCo model as the fused kernel reads it: sizes as macros, and tables of reals and integers.

Every table becomes an accessor of its name in the kernel's source, `body_mass(w)` say, which gives the row of a world.
Tables that bear the name of an mjModel field have its content and shape; what the others hold is said where they are
made. A table that differs between worlds is not stored here but read from a live array [E, ...].
"""

import math
from dataclasses import dataclass, field

import mujoco
import numpy as np

from isaacrl.sim import actuator_net
from isaacrl.sim.engine import DIRECT, PD, Actuation
from isaacrl.sim.fused import hfields, pair_tables, sensors
from isaacrl.sim.fused.derive import dof_masks, gravity, last_dofs, pack_bytes, pack_mask, parameters
from isaacrl.sim.fused.pairs import contact_pairs

_FREE, _BALL, _SLIDE, _HINGE = range(4)  # mjtJoint
_D = mujoco.mjtDisableBit

# Live arrays of every world by name; the kernel calls them A_<NAME>.
STATE = (
    "qpos",
    "qvel",
    "warm",
    "target",
    "time",
    "overflow",
    "nonfinite",
    "fresh",
    "line",
    "net",
    "num_worlds",
    "rows",
    "mask",
    "progress",
)
OPTIONAL = ("ctrl", "qfrc_applied", "xfrc", "mocap_pos", "mocap_quat")
STATE_OUTPUTS = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    *("actuator_length", "actuator_velocity", "cvel", "subtree_com"),
)
FORCE_OUTPUTS = (
    *("qacc", "qfrc_constraint", "qfrc_smooth", "qfrc_actuator", "actuator_force", "ncon", "nefc", "niter"),
    "sensordata",
)
SWITCHES = ("any_position", "any_velocity")  # not 0: some output derives from positions, from velocities
ARRAYS = (*STATE, *OPTIONAL, *STATE_OUTPUTS, *FORCE_OUTPUTS, *SWITCHES, "profile")
# What the clock cycles of a launch are counted by, in the order of MARK in the stages.
SECTIONS = (
    *("load", "kinematics", "collision", "inertia and bias", "forces, M and rows", "J x", "line search"),
    *("gradient and Hessian", "solve", "integration", "finish", "outputs"),
)

# Model fields that may have one value a world, and their columns a world.
PER_WORLD = (
    *("body_mass", "body_inertia", "body_ipos", "body_iquat", "body_pos", "body_quat", "body_invweight0"),
    *("dof_damping", "dof_armature", "dof_frictionloss", "dof_invweight0", "jnt_stiffness", "jnt_range"),
    *("qpos0", "qpos_spring", "actuator_gainprm", "actuator_biasprm", "actuator_forcerange", "actuator_ctrlrange"),
    *("geom_friction", "opt.gravity", "actuation.kp", "actuation.kd", "actuation.delay"),
)
_NAMES = {
    "actuation.kp": "law_kp",
    "actuation.kd": "law_kd",
    "actuation.delay": "law_delay",
    "opt.gravity": "opt_gravity",
}

# Tables whose accessors give a row: three reals, stored as four, or a quaternion.
_VEC3 = ("body_pos", "body_ipos", "body_inertia", "jnt_pos", "jnt_axis", "geom_pos", "site_pos", "shape_size")
_QUAT = ("body_quat", "body_iquat", "geom_quat", "site_quat")


@dataclass
class Tables:
    """What the kernel is compiled for and what it reads. sizes: macros; own: per-world tables, {accessor: columns}."""

    sizes: dict[str, int | float | str]
    reals: dict[str, np.ndarray]
    ints: dict[str, np.ndarray]
    own: dict[str, str] = field(default_factory=dict)  # accessor -> field with one value a world
    own_columns: dict[str, int] = field(default_factory=dict)
    constants: str = ""
    heights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # of the live array `heights`

    @property
    def row_columns(self) -> int:
        """Reals a world of the live array `rows`."""
        s = self.sizes
        return (int(s["NCON"]) - int(s["NFAST"])) * int(s["MAXDIM"]) * stride(int(s["NV"]))

    def arrays(self) -> list[str]:
        """Names of all live arrays in the order of the kernel's table of addresses."""
        fields = ["heights"] if self.heights.size else []
        return [*ARRAYS, *(f"own_{name}" for name in self.own), *fields]

    def header(self) -> str:
        """Macros and accessors, as source."""
        reals, ints = self.blobs(np.float32)
        counts = {"PARAMS": reals.size, "TABLES": ints.size, "ARRAYS": len(self.arrays())}
        lines = [f"#define {k} {_literal(v)}" for k, v in (self.sizes | counts).items()]
        lines += [f"#define A_{name.upper()} {i}" for i, name in enumerate(self.arrays())]
        lines += [f"#define PAIR_FIELDS {', '.join(n.lower() for n in pair_tables.INTS)}"]
        lines += [f"#define P_INCLUDE {pair_tables.INCLUDE}"]
        lines += ["enum { FROM_BOTH = 0, FROM_A = 1, FROM_B = 2, FROM_PAIR = 3 };"]
        return "\n".join(lines) + "\n"

    def accessors(self) -> str:
        """One function a table, and the tables that must be known when the kernel is compiled."""
        lines = [self.constants]
        for tables, kind, base in ((self.reals, "real", "params"), (self.ints, "int", "tables")):
            at = 0
            for name, table in tables.items():
                own = name in self.own
                if own:
                    address = f"live<const real>(w, A_OWN_{name.upper()}, {self.own_columns[name]})"
                else:
                    address, at = f"w.{base} + {at}", at + _pad(name, table).size
                if name in _VEC3 or name in _QUAT:
                    of, width = ("vec3", 3 if own else 4) if name in _VEC3 else ("quat", 4)
                    load = ("v3" if name in _VEC3 else "q4") if own else f"fetch_{of}"
                    lines.append(f"FN {of} {name}(const World& w, int k) {{ return {load}({address} + {width} * k); }}")
                else:
                    lines.append(f"FN const {kind}* {name}(const World& w) {{ return {address}; }}")
        return "\n".join(lines) + "\n"

    def blobs(self, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        """All shared tables one after the other: reals and integers."""
        reals = [_pad(n, t) for n, t in self.reals.items() if n not in self.own]
        ints = [_pad(n, t) for n, t in self.ints.items()]
        return np.concatenate([*reals, np.zeros(4)]).astype(dtype), np.concatenate(ints).astype(np.int32)


def make_tables(
    model: mujoco.MjModel,
    actuation: Actuation,
    *,
    lanes: int,
    nconmax: int,
    tolerance: float,
    delays: int = 0,
    fast_contacts: int | None = None,
    randomized: frozenset[str] = frozenset(),
) -> Tables:
    """Tables of a model that `coverage.uncovered` has nothing against.

    nconmax: contacts a world has room for; fast_contacts: how many of them in scratch memory, by default all; of the
    others the live array `rows`, `Tables.row_columns` reals a world, holds the rows of J. delays: places in the delay
    line, 0 for none.
    randomized: fields with one value a world, of PER_WORLD.
    """
    m = model
    pairs = contact_pairs(m)
    sizes: dict[str, int | float | str] = {
        "NQ": m.nq, "NV": m.nv, "NU": m.nu, "NB": m.nbody, "NJ": m.njnt, "NGEOM": m.ngeom, "NSITE": m.nsite,
        "NMOCAP": m.nmocap, "NTREE": m.ntree, "NSENSORDATA": m.nsensordata, "LANES": lanes, "LINE": delays, "PRM": 10,
    }  # fmt: skip
    reals: dict[str, np.ndarray] = {}
    ints: dict[str, np.ndarray] = {}
    _bodies(m, sizes, reals, ints)
    _dofs(m, sizes, reals, ints)
    _limits(m, sizes, reals, ints)
    _actuators(m, actuation, sizes, reals, ints)
    pair_tables.add(m, pairs, sizes, reals, ints)
    _options(m, sizes, ints, tolerance, randomized)
    columns = pair_tables.INTS
    geoms = ints["pair_int"].reshape(-1, len(columns))[:, [columns.index("GEOM_A"), columns.index("GEOM_B")]]
    sensors.add(m, geoms, sizes, reals, ints)
    sizes["NCON"] = (max(1, nconmax) if pairs else 0) + int(sizes["BALL_LIMITS"])
    sizes["NFAST"] = sizes["NCON"] if fast_contacts is None else min(int(sizes["NCON"]), fast_contacts)
    sizes["OWN_QPOS0"] = int("qpos0" in randomized)
    sizes["OWN_FRICTION"] = int("geom_friction" in randomized)
    sizes["LOSSES"] = int(bool((m.dof_frictionloss > 0).any()) or "dof_frictionloss" in randomized)
    sizes["STIFFNESS"] = int(bool((m.jnt_stiffness != 0).any()) or "jnt_stiffness" in randomized)
    tables = Tables(sizes, reals, ints)
    if sizes.get("NHFIELD"):
        tables.heights = hfields.add(m, sizes, reals, ints)
    tables.constants = f"static CONSTANT int BODY_PARENT[NB] = {{{', '.join(map(str, m.body_parentid.tolist()))}}};"
    for name in sorted(randomized):
        accessor = _NAMES.get(name, name)
        tables.own[accessor] = name
        tables.own_columns[accessor] = int(reals[accessor].size)
    return tables


def _bodies(m: mujoco.MjModel, sizes: dict, reals: dict, ints: dict) -> None:
    for name in ("body_pos", "body_quat", "body_ipos", "body_iquat", "body_mass", "body_inertia", "body_gravcomp"):
        reals[name] = getattr(m, name)
    reals["body_invweight0"], reals["opt_gravity"] = m.body_invweight0, gravity(m)
    ints["body_parent"], ints["body_root"], ints["body_mocapid"] = m.body_parentid, m.body_rootid, m.body_mocapid
    sizes["GRAVCOMP"] = int(m.body_gravcomp.any() and not m.opt.disableflags & _D.mjDSBL_GRAVITY)
    last, depth = last_dofs(m), np.zeros(m.nbody, int)
    origin = np.full(m.nbody, -1)  # address in qpos of the position of the tree's free joint
    for b in range(1, m.nbody):
        depth[b] = depth[m.body_parentid[b]] + 1
        root = m.body_rootid[b]
        joint = m.body_jntadr[root]
        if joint >= 0 and m.jnt_type[joint] == _FREE:
            origin[b] = m.jnt_qposadr[joint]
    ints["body_origin"] = origin
    rounds = math.ceil(math.log2(max(depth.max(), 1)))
    up = [m.body_parentid.astype(int)]
    for _ in range(1, max(rounds, 1)):
        up.append(up[-1][up[-1]])
    # A tree of depth 1 is its own result; the kernel wants one round at least, in which all compose with the world.
    sizes["BODY_ROUNDS"], ints["body_up"] = max(rounds, 1), np.array(up)
    ints["body_packed"] = np.array([[
        pack_bytes([m.body_parentid[b], m.body_rootid[b], last[b] & 255, m.body_jntnum[b]]),
        max(int(m.body_jntadr[b]), 0),
        pack_bytes([level[b] for level in up[:4]]),
        0,
    ] for b in range(m.nbody)])  # fmt: skip
    mask = dof_masks(m)
    ints["body_dofs"] = np.array([pack_mask(mask[d]) if d >= 0 else (0, 0) for d in last])
    ints["site_bodyid"], reals["site_pos"], reals["site_quat"] = m.site_bodyid, m.site_pos, m.site_quat


def _dofs(m: mujoco.MjModel, sizes: dict, reals: dict, ints: dict) -> None:
    for name in ("jnt_pos", "jnt_axis", "jnt_stiffness", "jnt_range", "qpos0", "qpos_spring"):
        reals[name] = getattr(m, name)
    if m.opt.disableflags & _D.mjDSBL_SPRING:
        reals["jnt_stiffness"] = np.zeros(m.njnt)
    for name in ("dof_damping", "dof_armature", "dof_frictionloss", "dof_invweight0"):
        reals[name] = getattr(m, name)
    if m.opt.disableflags & _D.mjDSBL_DAMPER:
        reals["dof_damping"] = np.zeros(m.nv)
    if m.opt.disableflags & (_D.mjDSBL_FRICTIONLOSS | _D.mjDSBL_CONSTRAINT):
        reals["dof_frictionloss"] = np.zeros(m.nv)
    ints["jnt_qposadr"], ints["jnt_dofadr"] = m.jnt_qposadr, m.jnt_dofadr
    reals["jnt_zero"] = m.qpos0[m.jnt_qposadr]  # of slides and hinges
    ints["jnt_body"], ints["jnt_packed"] = m.jnt_bodyid, m.jnt_type | m.jnt_qposadr << 2
    kind, axis, source = np.zeros(m.nv, int), np.zeros(m.nv, int), np.arange(m.nv)
    for i in range(m.nv):
        joint = m.dof_jntid[i]
        k, first = i - m.jnt_dofadr[joint], m.jnt_dofadr[joint]
        match m.jnt_type[joint]:
            case 0:
                kind[i], axis[i] = (2, k) if k < 3 else (3, k - 3)
                source[i] = first + 5
            case 1:
                kind[i], axis[i], source[i] = 3, k, first + 2
            case 2:
                kind[i] = 1
    types = m.jnt_type[m.dof_jntid]
    ints["dof_jnt"] = m.dof_jntid
    ints["dof_scalar"], ints["dof_qpos"] = types >= _SLIDE, m.jnt_qposadr[m.dof_jntid]
    above: list[list[int]] = []  # of each dof the dofs above it, nearest first
    for i in range(m.nv):
        parent = m.dof_parentid[i]
        above.append([int(parent), *above[parent]] if parent >= 0 else [])
    depth = np.array([len(a) for a in above])
    sizes["DEPTH_WORDS"] = (int(depth.max()) + 3) // 4
    ints["dof_above"] = np.array(
        [[pack_bytes(a[4 * q : 4 * q + 4]) for a in above] for q in range(sizes["DEPTH_WORDS"])]
    )
    rounds = math.ceil(math.log2(int(depth.max()) + 1))
    sizes["DOF_ROUNDS"] = rounds
    up = [[a[2**k - 1] if 2**k <= len(a) else 255 for k in range(max(rounds, 4))] for a in above]
    ints["dof_up"] = np.array(up).T
    ints["dof_packed"] = np.array([[
        pack_bytes([b, m.body_parentid[b] if kind[i] < 2 else b, m.body_rootid[b], m.dof_jntid[i]]),
        int(kind[i]) | int(axis[i]) << 4 | int(types[i] == _BALL) << 8 | int(source[i]) << 16 | int(depth[i]) << 24,
        pack_bytes(up[i][:4]),
        0,
    ] for i, b in enumerate(m.dof_bodyid)])  # fmt: skip


def _limits(m: mujoco.MjModel, sizes: dict, reals: dict, ints: dict) -> None:
    """limit_prm, loss_prm, ball_prm: constraint parameters (derive.parameters), the margin; limit_prm 0: no limit."""
    on = not m.opt.disableflags & (_D.mjDSBL_LIMIT | _D.mjDSBL_CONSTRAINT)
    limited = m.jnt_limited.astype(bool) & on
    limit, loss = np.zeros((m.nv, 8)), np.zeros((m.nv, 8))
    for i in range(m.nv):
        joint = m.dof_jntid[i]
        loss[i, :7] = parameters(m, m.dof_solref[i], m.dof_solimp[i])
        if limited[joint] and m.jnt_type[joint] >= _SLIDE:
            limit[i, :7] = parameters(m, m.jnt_solref[joint], m.jnt_solimp[joint])
            limit[i, 7] = m.jnt_margin[joint]
    balls = [j for j in range(m.njnt) if m.jnt_type[j] == _BALL and limited[j]]
    ball = np.zeros((len(balls), 8))
    for k, j in enumerate(balls):
        ball[k, :7], ball[k, 7] = parameters(m, m.jnt_solref[j], m.jnt_solimp[j]), m.jnt_margin[j]
    last = last_dofs(m)
    other = [m.body_parentid[m.jnt_bodyid[j]] for j in balls]
    reals["limit_prm"], reals["loss_prm"], reals["ball_prm"] = limit, loss, ball
    ints["ball_joint"] = np.array(balls, int)
    ints["ball_other"] = np.array([b if last[b] >= 0 else 0 for b in other], int)
    sizes["LIMITS"], sizes["BALL_LIMITS"] = int(limit.any()), len(balls)


def _actuators(m: mujoco.MjModel, law: Actuation, sizes: dict, reals: dict, ints: dict) -> None:
    for name in ("actuator_gainprm", "actuator_biasprm", "actuator_forcerange", "actuator_ctrlrange", "actuator_gear"):
        reals[name] = getattr(m, name)
    clamp = bool(not m.opt.disableflags & _D.mjDSBL_CLAMPCTRL)
    flags = (m.actuator_ctrllimited.astype(bool) & clamp) * 1 + m.actuator_forcelimited.astype(int) * 2
    flags += (m.actuator_gaintype == mujoco.mjtGain.mjGAIN_AFFINE) * 4
    flags += (m.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE) * 8
    joint = m.actuator_trnid[:, 0]
    dof = m.jnt_dofadr[joint]
    order = np.argsort(dof, kind="stable")
    off = bool(m.opt.disableflags & _D.mjDSBL_ACTUATION)
    number = np.bincount(dof, minlength=m.nv) * (0 if off else 1)
    # flags, addresses in qpos and qvel, place among the actuators by dof
    ints["actuator_packed"] = np.column_stack([flags, m.jnt_qposadr[joint], dof, np.argsort(order)])
    limited = m.jnt_actfrclimited[m.dof_jntid].astype(bool)
    ints["dof_drive"] = np.column_stack([np.cumsum(number) - number, np.cumsum(number), limited, np.zeros(m.nv, int)])
    reals["dof_forcerange"] = m.jnt_actfrcrange[m.dof_jntid]
    sizes["ANY_PD"], sizes["ANY_EXPLICIT"] = int((law.law == PD).any()), int((law.law != DIRECT).any())
    ints["law_kind"], ints["law_qpos"], ints["law_qvel"] = law.law, law.qpos_adr, law.qvel_adr
    ints["law_net"] = law.net
    for into, of in zip((sizes, reals, ints), actuator_net.tables(law.nets)):
        into |= of
    reals["law_kp"], reals["law_kd"], reals["law_effort"] = law.kp, law.kd, law.effort_limit
    lined = np.isfinite(law.saturation_effort) & np.isfinite(law.velocity_limit)
    reals["law_stall"] = np.where(lined, law.saturation_effort, np.inf)
    reals["law_slope"] = np.where(lined, law.saturation_effort / np.where(lined, law.velocity_limit, 1.0), 0.0)
    reals["law_delay"] = law.delay.astype(float)


def _options(m: mujoco.MjModel, sizes: dict, ints: dict, tolerance: float, randomized: frozenset[str]) -> None:
    damping = not m.opt.disableflags & _D.mjDSBL_DAMPER and (m.dof_damping.any() or "dof_damping" in randomized)
    fast = m.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    implicit = not m.opt.disableflags & _D.mjDSBL_EULERDAMP and bool(damping)
    if fast:
        affine = m.actuator_biasprm[:, 2].any() or m.actuator_gainprm[:, 2].any()
        implicit = bool(damping or affine or randomized & {"actuator_biasprm", "actuator_gainprm"})
    free = np.flatnonzero((m.jnt_type == _FREE) & (m.tree_dofnum[m.body_treeid[m.jnt_bodyid]] == 6)) if fast else []
    ints["spinning_body"], ints["spinning_dof"] = m.jnt_bodyid[free], m.jnt_dofadr[free]  # see integrate.h
    sizes |= {
        "SPINNING": len(free),
        "TIMESTEP": float(m.opt.timestep),
        "IMPLICIT": int(implicit),
        "EULER": int(not fast),
        "ELLIPTIC": int(m.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC),
        "IMPRATIO": float(m.opt.impratio),
        "INV_IMPRATIO": 1.0 / float(m.opt.impratio),
        "ROOT_INV_IMPRATIO": float(m.opt.impratio) ** -0.5,
        "TOLERANCE": float(tolerance),
        "ITERATIONS": int(m.opt.iterations),
        "SCALE": 1.0 / (m.stat.meaninertia * max(1, m.nv)),
        "PROFILE": 0,
    }


def _literal(value: int | float | str) -> str:
    return f"R({value!r})" if isinstance(value, float) else str(value)


def stride(nv: int) -> int:
    """Reals from row to row of matrices [nv, nv], NH of stages/model.h."""
    return padded(nv) if padded(nv) % 8 else padded(nv) + 4


def padded(size: int) -> int:
    """The next multiple of four, PADDED of stages/model.h."""
    return (size + 3) // 4 * 4


def _pad(name: str, table: np.ndarray) -> np.ndarray:
    """A table as it is stored: flat, in whole groups of four."""
    if name in _VEC3:
        table = np.pad(np.reshape(table, (-1, 3)), ((0, 0), (0, 1)))
    flat = np.zeros(padded(table.size), table.dtype)
    flat[: table.size] = np.ravel(table)
    return flat
