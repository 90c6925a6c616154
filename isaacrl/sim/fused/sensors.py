"""Sensors as the fused kernel reads them: one table a family, in stages/sensors.h. "address": in sensordata.

Families differ in what they need: poses and velocities of the new state, or accelerations and forces of the last
physics step. The kernel has no code for a family that the model has no sensor of.
"""

import mujoco
import numpy as np

_KIND, _OBJECT = mujoco.mjtSensor, mujoco.mjtObj
# Of a frame: what is measured, in the order of the enumeration in sensors.h.
FRAMES = (
    *(_KIND.mjSENS_FRAMEPOS, _KIND.mjSENS_FRAMEQUAT),
    *(_KIND.mjSENS_FRAMEXAXIS, _KIND.mjSENS_FRAMEYAXIS, _KIND.mjSENS_FRAMEZAXIS),
    *(_KIND.mjSENS_FRAMELINVEL, _KIND.mjSENS_FRAMEANGVEL, _KIND.mjSENS_GYRO, _KIND.mjSENS_VELOCIMETER),
)
_PARTS = (_OBJECT.mjOBJ_XBODY, _OBJECT.mjOBJ_BODY, _OBJECT.mjOBJ_GEOM, _OBJECT.mjOBJ_SITE)  # OF_BODY, OF_INERTIA, ...
# Read from qpos or qvel.
_COORDINATES = (
    *(_KIND.mjSENS_JOINTPOS, _KIND.mjSENS_JOINTVEL, _KIND.mjSENS_BALLANGVEL),
    *(_KIND.mjSENS_ACTUATORPOS, _KIND.mjSENS_ACTUATORVEL),
)
_STRONGEST = 2  # intprm[1] of a contact sensor; otherwise net force
MATCHES_A_WORD = 16


def add(m: mujoco.MjModel, pair_geoms: np.ndarray, sizes: dict, reals: dict, ints: dict) -> None:
    """Add the tables and sizes of all sensors. pair_geoms: the two geoms of each pair that may touch, [pairs, 2]."""
    families: dict[str, list] = {name: [] for name in (*_STATE, *_FORCE, "accelerometer_dof", "touch_shape", "cutoff")}
    scales, cutoffs = [], []
    for i in range(m.nsensor):
        kind, adr, obj = _KIND(m.sensor_type[i]), int(m.sensor_adr[i]), int(m.sensor_objid[i])
        if kind in FRAMES:
            reference = (_part(m.sensor_reftype[i]), int(m.sensor_refid[i])) if m.sensor_refid[i] >= 0 else (-1, 0)
            families["frame"].append([FRAMES.index(kind), adr, _part(m.sensor_objtype[i]), obj, *reference])
        elif kind in _COORDINATES:
            of_velocity, first, scale = _coordinate(m, kind, obj)
            families["coordinate"] += [[adr + k, of_velocity, first + k] for k in range(m.sensor_dim[i])]
            scales += [scale] * int(m.sensor_dim[i])
        elif kind == _KIND.mjSENS_BALLQUAT:
            families["ball"].append([adr, m.jnt_qposadr[obj]])
        elif kind == _KIND.mjSENS_SUBTREECOM:
            families["com"].append([adr, obj])
        elif kind == _KIND.mjSENS_CLOCK:
            families["clock"].append(adr)
        elif kind == _KIND.mjSENS_ACCELEROMETER:
            chain = _chain(m, int(m.site_bodyid[obj]))
            families["accelerometer"].append([adr, obj, len(families["accelerometer_dof"]), len(chain)])
            families["accelerometer_dof"] += chain
        elif kind == _KIND.mjSENS_CONTACT:
            families["contact"].append([adr, m.sensor_intprm[i, 1] != _STRONGEST])
        elif kind == _KIND.mjSENS_TOUCH:
            families["touch"].append([adr, obj, m.site_type[obj], len(families["touch"])])
            families["touch_shape"].append(m.site_size[obj])
        elif kind == _KIND.mjSENS_ACTUATORFRC:
            families["drive"].append([adr, 0, obj])
        elif kind == _KIND.mjSENS_JOINTACTFRC:
            families["drive"].append([adr, 1, m.jnt_dofadr[obj]])
        else:
            continue  # nobody reads it (see coverage.py)
        if (row := _cutoff(m, i)) is not None:
            families["cutoff"].append(row)
            cutoffs.append(m.sensor_cutoff[i])
    for name, accessor in (_STATE | _FORCE | {"cutoff": "cutoff_sensor"}).items():
        sizes[f"SENSE_{name.upper()}S" if name != "touch" else "SENSE_TOUCHES"] = len(families[name])
        ints[accessor] = np.array(families[name], int)
    reals["coordinate_scale"], reals["cutoff"] = np.array(scales, float), np.array(cutoffs, float)
    reals["touch_size"] = np.array(families["touch_shape"], float)
    ints["accelerometer_dof"] = np.array(families["accelerometer_dof"], int)
    ints["contact_match"] = _matches(m, pair_geoms)
    sizes["CONTACT_WORDS"] = ints["contact_match"].shape[1]
    sizes["NSENSOR_STATE"] = sum(len(families[name]) for name in _STATE)
    sizes["NSENSOR_FORCE"] = sum(len(families[name]) for name in _FORCE)


# Families and their tables. Columns:
_STATE = {
    "frame": "frame_sensor",  # of FRAMES, address, part and id, part (-1: none) and id of the reference
    "coordinate": "coordinate_sensor",  # a row an element: address, whether of qvel, index there
    "ball": "ball_sensor",  # address, address in qpos
    "com": "com_sensor",  # address, body
    "clock": "clock_sensor",  # address
}
_FORCE = {
    "accelerometer": "accelerometer",  # address, site, first row and number of rows of accelerometer_dof
    "contact": "contact_sensor",  # address, whether net force
    "touch": "touch_sensor",  # address, site, its shape, row of touch_size
    "drive": "drive_sensor",  # address, whether of a dof (else an actuator), id
}


def _part(kind: int) -> int:
    return _PARTS.index(_OBJECT(kind))


def _coordinate(m: mujoco.MjModel, kind: mujoco.mjtSensor, obj: int) -> tuple[int, int, float]:
    """Whether it is of qvel, the first index there and the factor."""
    of_velocity = kind in (_KIND.mjSENS_JOINTVEL, _KIND.mjSENS_BALLANGVEL, _KIND.mjSENS_ACTUATORVEL)
    scale, joint = 1.0, obj
    if kind in (_KIND.mjSENS_ACTUATORPOS, _KIND.mjSENS_ACTUATORVEL):
        scale, joint = float(m.actuator_gear[obj, 0]), int(m.actuator_trnid[obj, 0])
    return int(of_velocity), int(m.jnt_dofadr[joint] if of_velocity else m.jnt_qposadr[joint]), scale


def _chain(m: mujoco.MjModel, body: int) -> list[int]:
    """The dofs that move a body, from the root on, each dof * 4 + 2 (it begins a joint) + 1 (its axis is turned).

    The translations of a free joint are along the world's axes; its rotations count as a joint of their own.
    """
    while body and not m.body_dofnum[body]:
        body = m.body_parentid[body]
    chain, i = [], int(m.body_dofadr[body] + m.body_dofnum[body] - 1) if body else -1
    while i >= 0:
        joint = m.dof_jntid[i]
        within, free = i - m.jnt_dofadr[joint], m.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE
        chain.append(4 * i + 2 * int(within in (0, 3)) + int(not (free and within < 3)))
        i = int(m.dof_parentid[i])
    return chain[::-1]


def _cutoff(m: mujoco.MjModel, i: int) -> list[int] | None:
    """Whether of forces, address, how many numbers, whether only above; None: sensor i is not clipped."""
    datatype = mujoco.mjtDataType(m.sensor_datatype[i])
    clipped = datatype in (mujoco.mjtDataType.mjDATATYPE_REAL, mujoco.mjtDataType.mjDATATYPE_POSITIVE)
    if not clipped or m.sensor_cutoff[i] <= 0 or m.sensor_type[i] == _KIND.mjSENS_CONTACT:
        return None
    forces = m.sensor_needstage[i] == mujoco.mjtStage.mjSTAGE_ACC
    above = datatype == mujoco.mjtDataType.mjDATATYPE_POSITIVE
    return [int(forces), int(m.sensor_adr[i]), int(m.sensor_dim[i]), int(above)]


# --- contact sensors -------------------------------------------------------------------------------------------------


def _matches(m: mujoco.MjModel, pair_geoms: np.ndarray) -> np.ndarray:
    """Which contacts count for which contact sensor, [pairs, words], two bits each, MATCHES_A_WORD sensors a word.

    0: it does not count. 1: it does, with the force on the second geom. 2: with the force on the first.
    """
    ids = [i for i in range(m.nsensor) if m.sensor_type[i] == _KIND.mjSENS_CONTACT]
    words = np.zeros((len(pair_geoms), -(-len(ids) // MATCHES_A_WORD)), np.uint32)
    for k, i in enumerate(ids):
        objects = [(m.sensor_objtype[i], m.sensor_objid[i]), (m.sensor_reftype[i], m.sensor_refid[i])]
        # Whether geom g of a pair belongs to the sensor's object o, [o][g]: [pairs].
        inside = [[_belongs(m, pair_geoms[:, g], *objects[o]) for g in (0, 1)] for o in (0, 1)]
        regular, reverse = inside[0][0] & inside[1][1], inside[0][1] & inside[1][0]
        match = np.where(regular, 1, np.where(reverse, 2, 0)).astype(np.uint32)
        words[:, k // MATCHES_A_WORD] |= match << np.uint32(2 * (k % MATCHES_A_WORD))
    return words.view(np.int32)


def _belongs(m: mujoco.MjModel, geoms: np.ndarray, kind: int, obj: int) -> np.ndarray:
    """Whether geoms belong to an object: a geom, a body (`body`), a body with all below it (`xbody`) or anything."""
    body = m.geom_bodyid[geoms]
    match _OBJECT(kind):
        case _OBJECT.mjOBJ_GEOM:
            return geoms == obj
        case _OBJECT.mjOBJ_BODY:
            return body == obj
        case _OBJECT.mjOBJ_XBODY:
            below = np.zeros(m.nbody, bool)
            for b in range(m.nbody):
                below[b] = b == obj or (b > 0 and below[m.body_parentid[b]])
            return below[body]
        case _OBJECT.mjOBJ_UNKNOWN:
            return np.ones(len(geoms), bool)
    raise ValueError(f"contact sensor of {_OBJECT(kind)}")
