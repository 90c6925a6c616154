// Kinematics: poses of all bodies and the spatial axis of every dof (MuJoCo: mj_kinematics, cdof of mj_comPos).
//
// Each body first finds its pose in its parent's frame; then poses are composed by pointer doubling: after k rounds
// each is relative to the ancestor 2^k levels up.
#pragma once

enum { FREE = 0, BALL = 1, SLIDE = 2, HINGE = 3 };  // mjtJoint
enum { AXIS_HINGE = 0, AXIS_SLIDE = 1, AXIS_WORLD = 2, AXIS_BODY = 3 };  // what kind of motion a dof is

// Moves (pos, rot), a body's pose in its parent's frame, by joint j.
FN void apply_joint(const World& w, Scratch& S, int j, vec3& pos, quat& rot) {
  int packed = jnt_packed(w)[j], type = packed & 3, adr = packed >> 2;
  vec3 own_axis = jnt_axis(w, j), own_anchor = jnt_pos(w, j);
#if OWN_QPOS0
  real zero = qpos0(w)[adr];
#else
  real zero = jnt_zero(w)[j];
#endif
  if (type == FREE) {  // the tree's origin is the body itself
    pos = v3(0, 0, 0), rot = normalized(q4(S.qpos + adr + 3));
    return;
  }
  vec3 axis = rotate(rot, own_axis), anchor = pos + rotate(rot, own_anchor);
  store(S.joint[j], axis), store(S.joint[j] + 4, anchor);
  if (type == SLIDE) {
    pos = pos + (S.qpos[adr] - zero) * axis;
    return;
  }
  quat turn = type == HINGE ? turn_by(own_axis, S.qpos[adr] - zero) : normalized(q4(S.qpos + adr));
  rot = product(rot, turn);
  pos = anchor - rotate(rot, own_anchor);
}

FN void kinematics(const World& w, Scratch& S) {
  Per<vec3, NB> pos;
  Per<quat, NB> rot;
  Per<int, NB> up;
  MAP(b, NB) {
    words body = body_words(w, b);
    up[b] = body.c;
    pos[b] = body_pos(w, b), rot[b] = body_quat(w, b);
#if NMOCAP
    int mocap = body_mocapid(w)[b];
    if (mocap >= 0) {
      pos[b] = v3(live<const real>(w, A_MOCAP_POS, 3 * NMOCAP) + 3 * mocap);
      rot[b] = normalized(q4(live<const real>(w, A_MOCAP_QUAT, 4 * NMOCAP) + 4 * mocap));
    }
#endif
    int first = body.b & 0xffff, number = byte_of(body.a, 3);
    ROLLED for (int k = 0; k < number; k++) apply_joint(w, S, first + k, pos[b], rot[b]);
    store4(S.pose[b], pos[b].x, pos[b].y, pos[b].z, 0), store4(S.pose[b] + 4, rot[b].w, rot[b].x, rot[b].y, rot[b].z);
  }
  LOOP for (int k = 0; k < BODY_ROUNDS; k++) {
    sync();
    MAP(b, NB) {
      int above = k < 4 ? byte_of(up[b], k) : body_up(w)[k * NB + b];
      quat turn = orientation_of(S, above);
      pos[b] = position_of(S, above) + rotate(turn, pos[b]);
      rot[b] = product(turn, rot[b]);
    }
    sync();
    MAP(b, NB) {
      if (k == BODY_ROUNDS - 1) rot[b] = normalized(rot[b]);
      store4(S.pose[b], pos[b].x, pos[b].y, pos[b].z, 0), store4(S.pose[b] + 4, rot[b].w, rot[b].x, rot[b].y, rot[b].z);
    }
  }
  sync();

  // Each dof's axis about the tree's reference point.
  MAP(i, NV) {
    words dof = dof_words(w, i);
    int frame = byte_of(dof.a, 1), kind = dof.b & 15, e = (dof.b >> 4) & 3;
    quat turn = orientation_of(S, frame);  // of the parent where a joint has its axis there
    vec3 direction = v3(e == 0, e == 1, e == 2), anchor = position_of(S, frame);
    const real* joint = S.joint[byte_of(dof.a, 3)];
    if (kind == AXIS_HINGE || kind == AXIS_SLIDE) {
      direction = rotate(turn, v3(joint)), anchor = anchor + rotate(turn, v3(joint + 4));
    } else if (kind == AXIS_BODY) {
      direction = rotate(turn, direction);
      if ((dof.b >> 8) & 1) {  // a ball joint
        int parent = body_parent(w)[byte_of(dof.a, 0)];
        anchor = position_of(S, parent) + rotate(orientation_of(S, parent), v3(joint + 4));
      }
    }
    vec3 reference = v3(S.pose[byte_of(dof.a, 2)]);
    store_spatial(S.motion[i], kind == AXIS_SLIDE || kind == AXIS_WORLD
                                   ? spatial{v3(0, 0, 0), direction}
                                   : spatial{direction, cross(direction, reference - anchor)});
  }
  sync();
}

FN spatial axis_of(const Scratch& S, int dof) { return load_spatial(S.motion[dof]); }
