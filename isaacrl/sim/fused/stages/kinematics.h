// Kinematics: poses of all bodies and the spatial axis of every dof (MuJoCo: mj_kinematics, cdof of mj_comPos).
//
// Each body first finds its pose in its parent's frame; then poses are composed by pointer doubling: after k rounds
// each is relative to the ancestor 2^k levels up.
#pragma once

enum { FREE = 0, BALL = 1, SLIDE = 2, HINGE = 3 };  // mjtJoint
enum { AXIS_HINGE = 0, AXIS_SLIDE = 1, AXIS_WORLD = 2, AXIS_BODY = 3 };  // what kind of motion a dof is

// Moves (pos, rot), a body's pose in its parent's frame, by joint j.
FN void apply_joint(const World& w, Scratch& S, int j, vec3& pos, quat& rot) {
  int type = jnt_type(w)[j], adr = jnt_qposadr(w)[j];
  if (type == FREE) {  // the tree's origin is the body itself
    pos = v3(0, 0, 0), rot = normalized(q4(S.qpos + adr + 3));
    return;
  }
  vec3 own_axis = v3(jnt_axis(w) + 3 * j), own_anchor = v3(jnt_pos(w) + 3 * j);
  vec3 axis = rotate(rot, own_axis), anchor = pos + rotate(rot, own_anchor);
  store(S.joint[j], axis), store(S.joint[j] + 4, anchor);
  if (type == SLIDE) {
    pos = pos + (S.qpos[adr] - qpos0(w)[adr]) * axis;
    return;
  }
  quat turn = type == HINGE ? turn_by(own_axis, S.qpos[adr] - qpos0(w)[adr]) : normalized(q4(S.qpos + adr));
  rot = product(rot, turn);
  pos = anchor - rotate(rot, own_anchor);
}

FN void kinematics(const World& w, Scratch& S) {
  Per<vec3, NB> pos;
  Per<quat, NB> rot;
  EACH(b, NB) {
    pos[b] = v3(body_pos(w) + 3 * b), rot[b] = q4(body_quat(w) + 4 * b);
#if NMOCAP
    int mocap = body_mocapid(w)[b];
    if (mocap >= 0) {
      pos[b] = v3(live<const real>(w, A_MOCAP_POS, 3 * NMOCAP) + 3 * mocap);
      rot[b] = normalized(q4(live<const real>(w, A_MOCAP_QUAT, 4 * NMOCAP) + 4 * mocap));
    }
#endif
    int first = body_jntadr(w)[b], number = body_jntnum(w)[b];
    ROLLED for (int k = 0; k < MAX_JOINTS; k++) if (k < number) apply_joint(w, S, first + k, pos[b], rot[b]);
    store4(S.pose[b], pos[b].x, pos[b].y, pos[b].z, 0), store4(S.pose[b] + 4, rot[b].w, rot[b].x, rot[b].y, rot[b].z);
  }
  UNROLL for (int k = 0; k < BODY_ROUNDS; k++) {
    sync();
    EACH(b, NB) {
      int up = body_up(w)[k * NB + b];
      quat above = orientation_of(S, up);
      pos[b] = position_of(S, up) + rotate(above, pos[b]);
      rot[b] = product(above, rot[b]);
    }
    sync();
    EACH(b, NB) {
      if (k == BODY_ROUNDS - 1) rot[b] = normalized(rot[b]);
      store4(S.pose[b], pos[b].x, pos[b].y, pos[b].z, 0), store4(S.pose[b] + 4, rot[b].w, rot[b].x, rot[b].y, rot[b].z);
    }
  }
  sync();
}

// Each dof's axis about the tree's reference point.
FN void dof_axes(const World& w, Scratch& S, Per<spatial, NV>& axis) {
  EACH(i, NV) {
    int body = dof_body(w)[i], kind = dof_kind(w)[i], e = dof_axis(w)[i];
    bool jointed = kind == AXIS_HINGE || kind == AXIS_SLIDE;
    int frame = jointed ? body_parent(w)[body] : body;  // the joint's axis is in the parent's frame
    quat rot = orientation_of(S, frame);
    vec3 direction = v3(e == 0, e == 1, e == 2), anchor = position_of(S, frame);
    if (jointed) {
      const real* joint = S.joint[dof_jnt(w)[i]];
      direction = rotate(rot, v3(joint)), anchor = anchor + rotate(rot, v3(joint + 4));
    } else if (kind == AXIS_BODY) {
      direction = rotate(rot, direction);
      if (dof_is_ball(w)[i]) anchor = position_of(S, body_parent(w)[body]) +
          rotate(orientation_of(S, body_parent(w)[body]), v3(S.joint[dof_jnt(w)[i]] + 4));
    }
    axis[i] = kind == AXIS_SLIDE || kind == AXIS_WORLD
                  ? spatial{v3(0, 0, 0), direction}
                  : spatial{direction, cross(direction, reference_of(w, S, body) - anchor)};
    store_spatial(S.motion[i], axis[i]);
  }
  sync();
}
