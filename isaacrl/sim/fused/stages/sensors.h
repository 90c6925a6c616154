// Sensors, in MuJoCo's order and layout (mj_sensorPos, mj_sensorVel, mj_sensorAcc). One table a family, made and
// described in sensors.py; one lane a sensor. A family that the model has none of compiles to nothing.
#pragma once

// A part of a body whose pose and velocity is measured.
enum { OF_BODY = 0, OF_INERTIA = 1, OF_GEOM = 2, OF_SITE = 3 };
struct Frame {
  int body;
  vec3 pos;  // relative to the origin of the body's tree
  quat rot;
};
FN Frame frame_of(const World& w, const Scratch& S, int type, int id) {
  Frame f = {id, v3(0, 0, 0), quat{1, 0, 0, 0}};
  if (type == OF_INERTIA) f.pos = body_ipos(w, id), f.rot = body_iquat(w, id);
  if (type == OF_GEOM) f = Frame{geom_bodyid(w)[id], geom_pos(w, id), geom_quat(w, id)};
  if (type == OF_SITE) f = Frame{site_bodyid(w)[id], site_pos(w, id), site_quat(w, id)};
  quat rot = orientation_of(S, f.body);
  f.pos = position_of(S, f.body) + rotate(rot, f.pos), f.rot = product(rot, f.rot);
  return f;
}
// From the reference point of its tree.
FN vec3 arm_of(const World& w, const Scratch& S, const Frame& f) { return f.pos - reference_of(w, S, f.body); }

#if SENSE_CUTOFFS
// Clips the readings of a stage. Lanes clip what other lanes wrote.
FN void cut_off(const World& w, real* out, bool of_forces) {
  sync();
  EACH_OF_MANY(i, SENSE_CUTOFFS) {
    const int* s = cutoff_sensor(w) + 4 * i;  // stage, address, how many, only above
    if (s[0] != of_forces) continue;
    real most = cutoff(w)[i];
    ROLLED for (int k = s[1]; k < s[1] + s[2]; k++) out[k] = clamp_to(out[k], s[3] ? out[k] : -most, most);
  }
}
#endif

// --- of the state ----------------------------------------------------------------------------------------------------

#if SENSE_FRAMES
// In the order of FRAMES in sensors.py.
enum { FRAMEPOS = 0, FRAMEQUAT, FRAMEXAXIS, FRAMEYAXIS, FRAMEZAXIS, FRAMELINVEL, FRAMEANGVEL, GYRO, VELOCIMETER };
FN void sense_frame(const World& w, const Scratch& S, const int* s, real* out) {
  int kind = s[0];
  Frame f = frame_of(w, S, s[2], s[3]);
  out += s[1];
  if (kind == FRAMEQUAT) {
    *out = f.rot.w, store(out + 1, v3(f.rot.x, f.rot.y, f.rot.z));
    return;
  }
  vec3 x;
  if (kind == FRAMEPOS) {
    x = origin_of(w, S, f.body) + f.pos;
  } else if (kind <= FRAMEZAXIS) {
    x = rotate(f.rot, v3(kind == FRAMEXAXIS, kind == FRAMEYAXIS, kind == FRAMEZAXIS));
  } else {
    spatial v = of_body(w, S, f.body);
    bool turning = kind == FRAMEANGVEL || kind == GYRO;
    x = turning ? v.rot : v.lin + cross(v.rot, arm_of(w, S, f));
    if (kind >= GYRO) x = rotate(conjugate(f.rot), x);
  }
  if (s[4] >= 0) x = rotate(conjugate(frame_of(w, S, s[4], s[5]).rot), x);  // an axis seen from another frame
  store(out, x);
}
#endif

FN void centers_of_mass(const World& w, Scratch& S);  // see outputs.h
FN vec3 center_of_mass(const World& w, const Scratch& S, int body);
// S.sums: of masses and of masses times positions. The world's own subtree is made of trees with origins of their own.
FN vec3 center_in_world(const World& w, const Scratch& S, int body) {
  if (body) return origin_of(w, S, body) + center_of_mass(w, S, body);
  real mass = 0;
  vec3 c = v3(0, 0, 0);
  UNROLL for (int b = 1; b < NB; b++) {
    if (BODY_PARENT[b]) continue;  // known when the kernel is compiled
    const real* s = S.sums[b];
    mass += s[0], c = c + s[0] * origin_of(w, S, b) + v3(s + 1);
  }
  return mass > TINY ? (1 / mass) * c : c;
}

// Poses are those of the new state, S.chain the sums of its velocities.
FN void write_state_sensors(const World& w, Scratch& S) {
  real* out = live<real>(w, A_SENSORDATA, NSENSORDATA);
  if (!out) return;
#if SENSE_FRAMES
  EACH_OF_MANY(i, SENSE_FRAMES) sense_frame(w, S, frame_sensor(w) + 6 * i, out);
#endif
#if SENSE_COORDINATES
  EACH_OF_MANY(i, SENSE_COORDINATES) {
    const int* s = coordinate_sensor(w) + 3 * i;  // address, whether of qvel, index there
    out[s[0]] = coordinate_scale(w)[i] * (s[1] ? S.qvel : S.qpos)[s[2]];
  }
#endif
#if SENSE_BALLS
  EACH_OF_MANY(i, SENSE_BALLS) {
    const int* s = ball_sensor(w) + 2 * i;
    quat q = normalized(q4(S.qpos + s[1]));
    out[s[0]] = q.w, store(out + s[0] + 1, v3(q.x, q.y, q.z));
  }
#endif
#if SENSE_COMS
  centers_of_mass(w, S);
  EACH_OF_MANY(i, SENSE_COMS) store(out + com_sensor(w)[2 * i], center_in_world(w, S, com_sensor(w)[2 * i + 1]));
#endif
#if SENSE_CLOCKS
  EACH_OF_MANY(i, SENSE_CLOCKS) out[clock_sensor(w)[i]] = *live<real>(w, A_TIME, 1);
#endif
#if SENSE_CUTOFFS
  cut_off(w, out, false);
#endif
}

// --- of the last physics step ----------------------------------------------------------------------------------------

#if SENSE_ACCELEROMETERS
// Of a site, in its own axes, less gravity's. The body's acceleration is the sum of cdof_dot qvel + cdof qacc over the
// dofs that move it, from the root on; S.vector: qacc. The dofs of one rotation turn with all of it, and a motion does
// not turn itself, so `velocity` is that of the joints before.
FN vec3 sense_acceleration(const World& w, const Scratch& S, const int* s) {
  Frame f = frame_of(w, S, OF_SITE, s[1]);
  spatial velocity = {v3(0, 0, 0), v3(0, 0, 0)}, own = velocity, a = {v3(0, 0, 0), -v3(opt_gravity(w))};
  ROLLED for (int k = s[2]; k < s[2] + s[3]; k++) {
    int dof = accelerometer_dof(w)[k], i = dof >> 2;  // and two bits: whether its axis is turned; begins a joint
    spatial axis = load_spatial(S.motion[i]), m = S.qvel[i] * axis;
    if (dof & 2) velocity = velocity + own, own = spatial{v3(0, 0, 0), v3(0, 0, 0)};
    if (dof & 1) a = a + cross_motion(velocity, m);
    own = own + m, a = a + S.vector[i] * axis;
  }
  velocity = velocity + own;
  vec3 arm = arm_of(w, S, f), spin = velocity.rot;
  return rotate(conjugate(f.rot), a.lin + cross(a.rot, arm) + cross(spin, velocity.lin + cross(spin, arm)));
}
#endif

#if SENSE_CONTACTS + SENSE_TOUCHES
// Each contact's force on the second of its two geoms, in the place of what only the solver needed of its record: world
// axes (3), normal force.
enum { C_PUSH = C_AREF };
FN void record_forces(Scratch& S, const Problem& P) {
  EACH_OF(k, P.touching, NCON) {
    real* c = S.contact[k];
    Response r = respond(c, P.x[k]);
    vec3 n = v3(c + C_NORMAL), f = r.force[0] * n;
#if MAXDIM > 1
    vec3 t = v3(c + C_TANGENT);
    f = f + r.force[1] * t + r.force[2] * cross(n, t);
#endif
    store4(c + C_PUSH, f.x, f.y, f.z, r.force[0]);
  }
}
#endif

#if SENSE_CONTACTS
// How many contacts match, and their net force in world axes or the strongest one's in its own. The forces are those on
// the sensor's second object: if that is the first of a contact's geoms, the contact is seen from the other side.
FN void sense_contact(const World& w, const Scratch& S, int i, int ncon, real* out) {
  const int* s = contact_sensor(w) + 2 * i;  // address, whether net
  int found = 0, strongest = 0, match_of_strongest = 1;
  vec3 force = v3(0, 0, 0);
  real most = -1;
  ROLLED for (int k = 0; k < ncon; k++) {
    const real* c = S.contact[k];
    // 0: no match, 1: as it is, 2: from the other side; 16 sensors a word.
    unsigned word = contact_match(w)[(int)c[C_PAIR] * CONTACT_WORDS + i / 16], match = (word >> (i % 16 * 2)) & 3;
    if (!match) continue;
    found++;
    vec3 f = v3(c + C_PUSH);
    if (s[1]) {
      force = force + (match == 1 ? R(1) : R(-1)) * f;
    } else if (dot(f, f) > most) {
      most = dot(f, f), strongest = k, match_of_strongest = match;
    }
  }
  if (!s[1] && found) {
    const real* c = S.contact[strongest];
    vec3 n = v3(c + C_NORMAL), t = v3(c + C_TANGENT), f = v3(c + C_PUSH);
    force = v3(dot(n, f), dot(t, f), (match_of_strongest == 1 ? R(1) : R(-1)) * dot(cross(n, t), f));
  }
  out += s[0];
  *out = R(found), store(out + 1, force);
}
#endif

#if SENSE_TOUCHES
// Narrows [low, high] to where a t^2 + 2 b t + c <= 0; a >= 0.
FN void narrow(real a, real b, real c, real& low, real& high) {
  real d = b * b - a * c;
  if (a < TINY ? c > 0 : d < TINY) {
    high = low - 1;
  } else if (a >= TINY) {
    real t = root(d), s = 1 / a;
    low = more(low, (-b - t) * s), high = less(high, (t - b) * s);
  }
}
FN void between(real x, real dx, real size, real& low, real& high) {
  if (magnitude(dx) < TINY) {
    if (magnitude(x) > size) high = low - 1;
  } else {
    real t = -x / dx, half = size / magnitude(dx);
    low = more(low, t - half), high = less(high, t + half);
  }
}
FN bool meets_ball(vec3 p, vec3 d, real radius) {
  real low = 0, high = R(1e30);
  narrow(dot(d, d), dot(d, p), dot(p, p) - radius * radius, low, high);
  return low <= high;
}
enum { ZONE_SPHERE = 2, ZONE_CAPSULE, ZONE_ELLIPSOID, ZONE_CYLINDER, ZONE_BOX };  // mjtGeom
// Whether the ray from p along d meets a site's shape, or begins in it.
FN bool meets(int shape, vec3 p, vec3 d, const real* size) {
  real low = 0, high = R(1e30);
  if (shape == ZONE_SPHERE) return meets_ball(p, d, size[0]);
  if (shape == ZONE_ELLIPSOID) {
    vec3 s = v3(1 / size[0], 1 / size[1], 1 / size[2]);
    return meets_ball(v3(s.x * p.x, s.y * p.y, s.z * p.z), v3(s.x * d.x, s.y * d.y, s.z * d.z), 1);
  }
  between(p.z, d.z, shape == ZONE_BOX ? size[2] : size[1], low, high);
  if (shape == ZONE_BOX) {
    between(p.x, d.x, size[0], low, high), between(p.y, d.y, size[1], low, high);
    return low <= high;
  }
  narrow(d.x * d.x + d.y * d.y, p.x * d.x + p.y * d.y, p.x * p.x + p.y * p.y - size[0] * size[0], low, high);
  if (low <= high || shape == ZONE_CYLINDER) return low <= high;
  vec3 end = v3(0, 0, size[1]);
  return meets_ball(p - end, d, size[0]) || meets_ball(p + end, d, size[0]);
}
// The sum of the normal forces of the site's body whose line of action, from the contact on, meets the site.
FN real sense_touch(const World& w, const Scratch& S, const int* s, int ncon) {
  Frame f = frame_of(w, S, OF_SITE, s[1]);
  real sum = 0;
  ROLLED for (int k = 0; k < ncon; k++) {
    const real* c = S.contact[k];
    Pair q = pair_of(w, (int)c[C_PAIR]);
    real force = c[C_PUSH + 3];
    if ((q.body_a != f.body && q.body_b != f.body) || !(force > 0)) continue;
    int body = (int)c[C_BODY];
    vec3 p = v3(c + C_POS) + reference_of(w, S, body) + (origin_of(w, S, body) - origin_of(w, S, f.body)) - f.pos;
    vec3 d = (q.body_b == f.body ? R(-1) : R(1)) * v3(c + C_NORMAL);
    quat turn = conjugate(f.rot);
    if (meets(s[2], rotate(turn, p), rotate(turn, d), touch_size(w) + 3 * s[3])) sum += force;
  }
  return sum;
}
#endif

#if SENSE_DRIVES
// What the actuators do to a dof, within the joint's limit (as qfrc_actuator).
FN real drive_of(const World& w, const Scratch& S, int dof) {
  real f = 0;
  words drive = drive_words(w, dof);
  ROLLED for (int k = drive.a; k < drive.b; k++) f += S.drive[k];
  return drive.c ? clamp_to(f, dof_forcerange(w)[2 * dof], dof_forcerange(w)[2 * dof + 1]) : f;
}
#endif

#if NSENSOR_FORCE
// S.vector: qacc; the contacts' records have their forces.
FN void sense_forces(const World& w, Scratch& S, int touching, real* out) {
#if SENSE_ACCELEROMETERS
  EACH_OF_MANY(i, SENSE_ACCELEROMETERS) {
    const int* s = accelerometer(w) + 4 * i;
    store(out + s[0], sense_acceleration(w, S, s));
  }
#endif
#if SENSE_CONTACTS
  EACH_OF_MANY(i, SENSE_CONTACTS) sense_contact(w, S, i, touching, out);
#endif
#if SENSE_TOUCHES
  EACH_OF_MANY(i, SENSE_TOUCHES) {
    const int* s = touch_sensor(w) + 4 * i;
    out[s[0]] = sense_touch(w, S, s, touching);
  }
#endif
#if SENSE_DRIVES
  EACH_OF_MANY(i, SENSE_DRIVES) {
    const int* s = drive_sensor(w) + 3 * i;  // address, whether of a dof, dof or actuator
    out[s[0]] = s[1] ? drive_of(w, S, s[2]) : S.force[s[2]];
  }
#endif
#if SENSE_CUTOFFS
  cut_off(w, out, true);
#endif
  sync();
}

// At the end of the last physics step, before its state is integrated.
FN void write_force_sensors(const World& w, Scratch& S, const Problem& P) {
  real* out = live<real>(w, A_SENSORDATA, NSENSORDATA);
  if (!out) return;
  sync();
#if SENSE_ACCELEROMETERS
  EACH(i, NV) S.vector[i] = P.a[i];
#endif
#if SENSE_CONTACTS + SENSE_TOUCHES
  record_forces(S, P);
#endif
  sync();
  sense_forces(w, S, P.touching, out);
}
#endif
