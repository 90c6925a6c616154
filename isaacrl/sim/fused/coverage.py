"""What the engine `warp` does not cover of a model: `uncovered(model)` lists it, `explain` makes a sentence of it.

Models are compiled ones: a geom that nothing can touch, or a wind in a vacuum, is no obstacle. Sensors count only where
somebody reads them.
"""

from collections.abc import Iterable, Sequence

import mujoco
import numpy as np

from isaacrl.sim.drives import FIELDS as DRIVE_FIELDS
from isaacrl.sim.fused.pairs import contact_pairs, moves_apart

MAX_NV = 64
MAX_BODIES = 256  # ids of bodies, and of joints, which are fewer than nv, are bytes in the kernel's tables
# Model fields that may have one value a world.
FIELDS = (
    "body_mass",
    "body_inertia",
    "body_ipos",
    "body_iquat",
    "body_pos",
    "body_quat",
    "dof_damping",
    "dof_armature",
    "dof_frictionloss",
    "jnt_stiffness",
    "jnt_range",
    "qpos0",
    "qpos_spring",
    "actuator_gainprm",
    "actuator_biasprm",
    "actuator_forcerange",
    "actuator_ctrlrange",
    "geom_friction",
    "opt.gravity",
    *DRIVE_FIELDS,
)

_JOINT, _OBJECT, _TRANSMISSION = mujoco.mjtJoint, mujoco.mjtObj, mujoco.mjtTrn
_OFF, _ON = mujoco.mjtDisableBit, mujoco.mjtEnableBit
_SPHERE, _CAPSULE = "sphere", "capsule"
# Kinds of geoms that may touch, in the order of mjtGeom.
SHAPES = {("plane", other) for other in (_SPHERE, _CAPSULE, "ellipsoid", "cylinder", "box")}
SHAPES |= {(_SPHERE, _SPHERE), (_SPHERE, _CAPSULE), (_CAPSULE, _CAPSULE)}
SHAPES |= {(_SPHERE, "box"), (_CAPSULE, "box"), ("box", "box")}
SHAPES |= {("hfield", other) for other in (_SPHERE, _CAPSULE, "box")}
WIDEST = 1 << 15  # a row and a column of a height field share an integer: see S.prism in stages/model.h
_SHAPELESS = ("mesh", "sdf")  # named one by one, whatever they touch

# Disable flags that the step follows, and the fields that it does not switch off where they have one value a world.
FOLLOWED_FLAGS = {
    _OFF.mjDSBL_CONSTRAINT: ("dof_frictionloss",),
    _OFF.mjDSBL_FRICTIONLOSS: ("dof_frictionloss",),
    _OFF.mjDSBL_LIMIT: (),
    _OFF.mjDSBL_CONTACT: (),
    _OFF.mjDSBL_SPRING: ("jnt_stiffness",),
    _OFF.mjDSBL_DAMPER: ("dof_damping",),
    _OFF.mjDSBL_GRAVITY: ("opt.gravity",),
    _OFF.mjDSBL_CLAMPCTRL: (),
    _OFF.mjDSBL_FILTERPARENT: (),
    _OFF.mjDSBL_REFSAFE: (),
    _OFF.mjDSBL_EULERDAMP: (),
}
# And those that change nothing here: where the solver starts, how it splits the problem, what finds the same contacts,
# what is not covered anyway; engines look after worlds that are not finite themselves.
HARMLESS_FLAGS = (
    _OFF.mjDSBL_EQUALITY,
    _OFF.mjDSBL_WARMSTART,
    _OFF.mjDSBL_MIDPHASE,
    _OFF.mjDSBL_AUTORESET,
    _OFF.mjDSBL_NATIVECCD,
    _OFF.mjDSBL_ISLAND,
    _OFF.mjDSBL_MULTICCD,
)
_INTEGRATORS = (mujoco.mjtIntegrator.mjINT_EULER, mujoco.mjtIntegrator.mjINT_IMPLICITFAST)
_SOLVERS = (mujoco.mjtSolver.mjSOL_NEWTON, mujoco.mjtSolver.mjSOL_CG)  # two ways to the same optimum

# Kinds of objects that each covered sensor may belong to.
_FRAMES = ("body", "xbody", "geom", "site")
SENSORS = {
    "contact": ("body", "xbody", "geom"),
    "touch": ("site",),
    "gyro": ("site",),
    "accelerometer": ("site",),
    "velocimeter": ("site",),
    **dict.fromkeys(("framepos", "framequat", "framexaxis", "frameyaxis", "framezaxis"), _FRAMES),
    **dict.fromkeys(("framelinvel", "frameangvel"), _FRAMES),
    **dict.fromkeys(("jointpos", "jointvel", "jointactfrc", "ballquat", "ballangvel"), ("joint",)),
    **dict.fromkeys(("actuatorpos", "actuatorvel", "actuatorfrc"), ("actuator",)),
    "subtreecom": ("body",),
    "clock": ("unknown",),
}
_WITH_REFERENCE = ("framexaxis", "frameyaxis", "framezaxis")  # measured in the frame of another object
_FOUND_FORCE = (1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND)) | (1 << int(mujoco.mjtConDataField.mjCONDATA_FORCE))
_STRONGEST, _NET = 2, 3  # intprm[1] of contact sensors: the strongest of all contacts, or their sum


def uncovered(model: mujoco.MjModel, randomized_fields: Sequence[str] = (), sensors: bool = True) -> list[str]:
    """What the engine cannot do for this model, each a short noun phrase; empty: it covers the model.

    randomized_fields: those with one value a world. sensors: whether the model's sensors are read.
    """
    reasons = _sizes(model) + _options(model) + _joints(model) + _actuators(model) + _geoms(model)
    reasons += _fields(model, sorted(set(randomized_fields)))
    return reasons + (_sensors(model) if sensors else [])


def explain(reasons: Sequence[str]) -> str:
    """The reasons in a sentence: the first few, and how many more there are."""
    if not reasons:
        return "engine warp covers the model"
    few = list(reasons) if len(reasons) <= 4 else [*reasons[:3], f"{len(reasons) - 3} more"]
    return "engine warp does not cover " + ", ".join(few[:-1]) + (" and " if few[:-1] else "") + few[-1]


# --- parts of the model ----------------------------------------------------------------------------------------------


def _sizes(model: mujoco.MjModel) -> list[str]:
    """What is counted."""
    out = []
    if not 1 <= model.nv <= MAX_NV:
        out.append(f"nv {model.nv} (at {'most' if model.nv else 'least'} {MAX_NV if model.nv else 1})")
    if model.nbody > MAX_BODIES:
        out.append(f"{model.nbody} bodies (at most {MAX_BODIES})")
    out += _counted(model.ntendon, "tendon")
    out += _counted(model.neq, "equality constraint")  # active or not: they can be switched on
    out += _counted(model.nflex, "flex", "flexes")
    return out + _counted(model.nplugin, "plugin")


def _options(model: mujoco.MjModel) -> list[str]:
    """The solver, forces of the whole world, flags and callbacks."""
    opt, out = model.opt, []
    if opt.integrator not in map(int, _INTEGRATORS):
        out.append(f"integrator {_name(mujoco.mjtIntegrator(opt.integrator), 'mjINT_')}")
    if opt.solver not in map(int, _SOLVERS):
        out.append(f"solver {_name(mujoco.mjtSolver(opt.solver), 'mjSOL_')}")
    if opt.noslip_iterations:
        out.append("noslip iterations")
    if opt.density or opt.viscosity:  # wind alone does nothing
        out.append("fluid forces")
    out += ["adhesive contacts"] if model.flg_adhesion else []
    out += ["surface velocities of geoms"] if model.flg_surfacevel else []
    known = sum(map(int, (*FOLLOWED_FLAGS, *HARMLESS_FLAGS, _OFF.mjDSBL_SENSOR)))  # the last: see _sensors
    out += [f"flag {x}=disable" for x in _bits(opt.disableflags & ~known, _OFF, "mjDSBL_")]
    out += [f"flag {x}=enable" for x in _bits(opt.enableflags & ~int(_ON.mjENBL_FWDINV), _ON, "mjENBL_")]
    passive = _OFF.mjDSBL_SPRING | _OFF.mjDSBL_DAMPER  # together they switch off all passive forces
    if model.flg_gravcomp and opt.disableflags & passive == passive:
        out.append("gravity compensation with flags spring=disable and damper=disable")
    # mjcb_time is a clock for profiling: no physics.
    hooks = ("control", "passive", "act_dyn", "act_gain", "act_bias", "sensor", "contactfilter")
    return out + [f"callback mjcb_{x}" for x in hooks if getattr(mujoco, f"get_mjcb_{x}")() is not None]


def _fields(model: mujoco.MjModel, randomized: Sequence[str]) -> list[str]:
    """Fields with one value a world."""
    out = [f"randomized field '{name}'" for name in randomized if name not in FIELDS]
    for flag, fields in FOLLOWED_FLAGS.items():
        if model.opt.disableflags & flag:
            off = f"with flag {_name(flag, 'mjDSBL_')}=disable"
            out += [f"randomized field '{name}' {off}" for name in fields if name in randomized]
    return out


def _joints(model: mujoco.MjModel) -> list[str]:
    """Springs, dampers and limits."""
    found = []
    limits = not model.opt.disableflags & (_OFF.mjDSBL_LIMIT | _OFF.mjDSBL_CONSTRAINT)
    for j in range(model.njnt):
        kind = _JOINT(model.jnt_type[j])
        free, ball = kind == _JOINT.mjJNT_FREE, kind == _JOINT.mjJNT_BALL
        dofs = slice(model.jnt_dofadr[j], model.jnt_dofadr[j] + (6 if free else 3 if ball else 1))
        noun = f"{_name(kind, 'mjJNT_')} joint" if free or ball else "joint"
        low, high = model.jnt_range[j]
        if (free or ball) and model.jnt_stiffness[j]:
            found.append((noun, j, "with a spring"))
        if model.jnt_plasticadr[j] >= 0:
            found.append((noun, j, "with a spring that yields"))
        if model.jnt_stiffnesspoly[j].any():
            found.append((noun, j, "with a nonlinear spring"))
        if model.dof_dampingpoly[dofs].any():
            found.append((noun, j, "with nonlinear damping"))
        if model.jnt_actgravcomp[j] and model.flg_gravcomp:
            found.append((noun, j, "with gravity compensation by its actuators"))
        # Both limits at once would be two rows of one joint.
        if limits and model.jnt_limited[j] and not (free or ball) and high - low < 2.0 * model.jnt_margin[j]:
            found.append((noun, j, "whose range is narrower than twice its margin"))
    return _grouped(model, _OBJECT.mjOBJ_JOINT, found)


def _actuators(model: mujoco.MjModel) -> list[str]:
    """The first thing about each actuator that is not covered."""
    found = [("actuator", i, tail) for i in range(model.nactuator) if (tail := _of_actuator(model, i))]
    return _grouped(model, _OBJECT.mjOBJ_ACTUATOR, found)


def _of_actuator(model: mujoco.MjModel, i: int) -> str:
    transmission = _TRANSMISSION(model.actuator_trntype[i])
    if model.actuator_plugin[i] >= 0:
        return "of a plugin"
    if transmission not in (_TRANSMISSION.mjTRN_JOINT, _TRANSMISSION.mjTRN_JOINTINPARENT):
        return f"with transmission {_name(transmission, 'mjTRN_')}"
    joint = _JOINT(model.jnt_type[model.actuator_trnid[i, 0]])
    if joint not in (_JOINT.mjJNT_SLIDE, _JOINT.mjJNT_HINGE):
        return f"on a {_name(joint, 'mjJNT_')} joint"
    if dynamics := model.actuator_dyntype[i]:
        return f"with {_name(mujoco.mjtDyn(dynamics), 'mjDYN_')} dynamics"
    gain, bias = mujoco.mjtGain(model.actuator_gaintype[i]), mujoco.mjtBias(model.actuator_biastype[i])
    if gain not in (mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtGain.mjGAIN_AFFINE):
        return f"with {_name(gain, 'mjGAIN_')} gain"
    if bias not in (mujoco.mjtBias.mjBIAS_NONE, mujoco.mjtBias.mjBIAS_AFFINE):
        return f"with {_name(bias, 'mjBIAS_')} bias"
    if model.actuator_ctrlnum[i] != 1 or model.actuator_outnum[i] != 1:
        return "with several inputs or outputs"
    if model.actuator_damping[i] or model.actuator_dampingpoly[i].any():
        return "with damping"
    if model.actuator_armature[i]:
        return "with armature"
    if model.actuator_historyadr[i] >= 0 or model.actuator_delay[i]:
        return "with a history"
    # MuJoCo knows groups 0 to 30.
    group = model.actuator_group[i]
    return "in a disabled group" if 0 <= group <= 30 and model.opt.disableactuator & (1 << int(group)) else ""


def _geoms(model: mujoco.MjModel) -> list[str]:
    """Geoms that may touch others in a way that is not covered."""
    shapeless: list[tuple[str, int, str]] = []
    kinds: dict[str, int] = {}
    stuck = 0
    for pair in contact_pairs(model):
        both = (pair.geom1, pair.geom2)
        first, second = (_name(mujoco.mjtGeom(model.geom_type[g]), "mjGEOM_") for g in both)
        named = [(f"colliding {kind} geom", g, "") for g, kind in zip(both, (first, second)) if kind in _SHAPELESS]
        shapeless += named
        apart = " with a margin" if (first, second) == ("hfield", "box") and pair.margin > 0.0 else ""
        if not named and ((first, second) not in SHAPES or apart):
            kind = f"{first} and {second}{apart}"
            kinds[kind] = kinds.get(kind, 0) + 1
        stuck += not moves_apart(model, pair)
    out = _grouped(model, _OBJECT.mjOBJ_GEOM, sorted(set(shapeless)))
    out += [f"{n} geom pair{'s' if n > 1 else ''} of {kind}" for kind, n in sorted(kinds.items())]
    wide = np.flatnonzero(np.maximum(model.hfield_nrow, model.hfield_ncol) > WIDEST)
    tail = f"with more than {WIDEST} points along an edge"
    out += _grouped(model, _OBJECT.mjOBJ_HFIELD, [("height field", int(i), tail) for i in wide])
    return out + _counted(
        stuck, "contact pair of geoms that nothing moves", "contact pairs of geoms that nothing moves"
    )


def _sensors(model: mujoco.MjModel) -> list[str]:
    found = [("sensor", i, tail) for i in range(model.nsensor) if (tail := _of_sensor(model, i))]
    flag = ["flag sensor=disable"] if model.opt.disableflags & _OFF.mjDSBL_SENSOR and model.nsensor else []
    return flag + _grouped(model, _OBJECT.mjOBJ_SENSOR, found)


def _of_sensor(model: mujoco.MjModel, i: int) -> str:
    """What about a sensor is not covered."""
    kind = _name(mujoco.mjtSensor(model.sensor_type[i]), "mjSENS_")
    what, reference = (_name(_OBJECT(x[i]), "mjOBJ_") for x in (model.sensor_objtype, model.sensor_reftype))
    if kind not in SENSORS:
        return f"of type {kind}"
    if what not in SENSORS[kind]:
        return f"of type {kind} of a {what}" if what != "unknown" else f"of type {kind} without an object"
    if model.sensor_historyadr[i] >= 0 or model.sensor_delay[i] or model.sensor_interval[i].any():
        return "with a history or an interval"
    if kind == "contact":
        return _of_contact_sensor(model.sensor_intprm[i], what, reference, int(model.sensor_refid[i]))
    if model.sensor_cutoff[i]:
        return "with a cutoff"
    if model.sensor_refid[i] >= 0 and (kind not in _WITH_REFERENCE or reference not in _FRAMES):
        return f"of type {kind} with a reference frame"
    return ""


def _of_contact_sensor(prm: np.ndarray, what: str, reference: str, reference_id: int) -> str:
    """As `isaacrl.terms.sensors.contact` makes them: found and force, of one contact or of the sum of all."""
    if prm[0] != _FOUND_FORCE:
        return "of type contact with data other than found and force"
    if prm[1] != (_STRONGEST if what == "xbody" else _NET) or prm[2] != 1:
        return f"of type contact of a {what} with another reduction"
    world = reference == "body" and reference_id == 0
    return "" if reference == "unknown" or reference == "xbody" or world else f"of type contact against a {reference}"


# --- wording ---------------------------------------------------------------------------------------------------------


def _counted(n: int, noun: str, plural: str = "") -> list[str]:
    return [f"{n} {noun if n == 1 else plural or noun + 's'}"] if n else []


def _name(member: object, prefix: str) -> str:
    """mjSENS_TOUCH -> touch."""
    name = member.name.removeprefix(prefix)  # type: ignore[attr-defined]
    return name if prefix in ("mjINT_", "mjSOL_") else name.lower()


def _bits(flags: int, names: object, prefix: str) -> list[str]:
    """Names of the bits set in flags."""
    members = [m for n, m in names.__members__.items() if n.startswith(prefix)]  # type: ignore[attr-defined]
    return [_name(m, prefix) for m in members if flags & int(m)]


def _grouped(model: mujoco.MjModel, kind: mujoco.mjtObj, found: Iterable[tuple[str, int, str]]) -> list[str]:
    """(noun, id, tail) of objects of one kind: one is named, several of the same noun and tail are counted."""
    groups: dict[tuple[str, str], list[int]] = {}
    for noun, i, tail in found:
        groups.setdefault((noun, tail), []).append(i)
    out = []
    for (noun, tail), ids in groups.items():
        name = mujoco.mj_id2name(model, kind, ids[0])
        one = f"{noun} '{name}'" if name else f"{noun} {ids[0]}"
        out.append(f"{one if len(ids) == 1 else f'{len(ids)} {noun}s'} {tail}".rstrip())
    return out
