// Constraints as the solver sees them: joint limits and friction loss, one of each a dof; contacts, each with 1 to
// MAXDIM rows (normal, two tangents, spin about the normal, roll about the tangents), never the edges of a pyramid.
//
// A row of a contact's Jacobian is the motion, along one direction, of what is fixed to one body against another.
// MuJoCo: mj_makeConstraint, mj_makeImpedance, mj_constraintUpdate; "Computation: Constraint model" in its manual.
#pragma once

struct Rows {
  real v[MAXDIM];
};
FN int dim_of(const real* c) { return (int)c[C_DIM]; }  // 0: the limit of a ball joint, one row, a torque

// The contact's place as seen from the reference point of `other`'s tree.
FN vec3 seen_from_other(const World& w, const Scratch& S, const real* c) {
  vec3 p = v3(c + C_POS);
#if NTREE > 1
  int body = (int)c[C_BODY], other = (int)c[C_OTHER];
  p = p + (origin_of(w, S, body) - origin_of(w, S, other)) + (reference_of(w, S, body) - reference_of(w, S, other));
#endif
  return p;
}

// The rows of J of contact k.
FN void write_rows(const World& w, Scratch& S, int k) {
  const real* c = S.contact[k];
  real(*row)[NH] = (real(*)[NH])scratch_rows(S, k);
  int body = (int)c[C_BODY], other = (int)c[C_OTHER];
  vec3 n = v3(c + C_NORMAL), t = v3(c + C_TANGENT), s = cross(n, t), p = v3(c + C_POS), p_other = seen_from_other(w, S, c);
  real sign = c[C_SIGN];
  MAP(i, NV) {
    bool mine = (body_dofs(w)[2 * body + i / 32] >> (i % 32)) & 1, theirs = false;
    if (NPAIR_MOVING + BALL_LIMITS > 0) theirs = (body_dofs(w)[2 * other + i / 32] >> (i % 32)) & 1;
    real side = mine == theirs ? R(0) : mine ? sign : R(-1);
    spatial axis = side * axis_of(S, i);
    vec3 rot = axis.rot, lin = axis.lin + cross(axis.rot, theirs ? p_other : p);
    row[0][i] = BALL_LIMITS && dim_of(c) == 0 ? dot(n, rot) : dot(n, lin);
#if MAXDIM > 1
    row[1][i] = dot(t, lin), row[2][i] = dot(s, lin);
#endif
#if MAXDIM > 3
    row[3][i] = dot(n, rot);
#endif
#if MAXDIM > 4
    row[4][i] = dot(t, rot), row[5][i] = dot(s, rot);
#endif
  }
  EACH(i, NH - NV) UNROLL for (int j = 0; j < MAXDIM; j++) row[j][NV + i] = 0;
#if SPARE
  if (k >= NFAST) keep_rows(w, S, k);
#endif
}

FN real dot4(four a, four b) { return a.x * b.x + a.y * b.y + (a.z * b.z + a.w * b.w); }
// a . b over the dofs.
FN real row_dot(const real* a, const real* b) {
  real s = 0;
  UNROLL for (int q = 0; q < COLUMNS; q += 4) s += dot4(load4(a + q), load4(b + q));
  return s;
}
// J x of all contacts: a lane works on a row, then takes what its contact has.
FN void motion_of_contacts(const World& w, Scratch& S, int ncon, const real* x, Per<Rows, NCON>& motion) {
  EACH_OF_MANY(e, ncon * MAXDIM) {
#if SPARE
    if (e >= NFAST * MAXDIM) {
      S.product[e] = row_dot(kept_rows(w, NFAST) + (e - NFAST * MAXDIM) * NH, x);
      continue;
    }
#endif
    S.product[e] = row_dot(S.row[e], x);
  }
  sync();
  EACH_OF(c, ncon, NCON) UNROLL for (int j = 0; j < MAXDIM; j++) motion[c].v[j] = S.product[c * MAXDIM + j];
  sync();  // pivots take its place
}

FN real friction_of(const real* c, int row) {
  return row == 1 || (row == 2 && !ANISOTROPIC) ? c[C_MU] : c[C_FRICTION + row - 2];
}

// Reference accelerations of a contact, whose rows have the velocities v.
FN Rows reference_acceleration(const real* c, const Rows& v) {
  Rows a;
  real spring = c[C_AREF], damping = c[C_AREF + 1], damping_friction = ELLIPTIC ? c[C_AREF + 2] : damping;
  a.v[0] = -damping * v.v[0] - spring;
  UNROLL for (int j = 1; j < MAXDIM; j++) a.v[j] = -damping_friction * v.v[j];
  return a;
}

// Force, second derivative of the cost and zone of a contact whose rows of J a - a_ref are x. hessian: packed lower
// triangle, [k (k + 1) / 2 + j]. Zones tell whether the cost is the same quadratic function at two points: bit k of a
// pyramid's edge k, or of an elliptic cone 0 (free), 1 (sticks); CURVED where it slides.
enum { CURVED = 1 << 30 };
struct Response {
  real force[MAXDIM], hessian[TRIANGLE], cost;
  int zone;
};

FN void respond_pyramid(const real* c, const Rows& x, int dim, Response& r) {
  real D = c[C_D];
  if (dim <= 1) {
    bool on = x.v[0] < 0;
    r.force[0] = on ? -D * x.v[0] : R(0), r.hessian[0] = on ? D : R(0), r.zone = on;
    r.cost = R(-0.5) * r.force[0] * x.v[0];
    return;
  }
  UNROLL for (int k = 1; k < MAXDIM; k++) {
    if (k >= dim) break;
    real mu = friction_of(c, k), up = x.v[0] + mu * x.v[k], down = x.v[0] - mu * x.v[k];
    real a = up < 0 ? D : R(0), b = down < 0 ? D : R(0), fa = -a * up, fb = -b * down;
    r.force[0] += fa + fb, r.force[k] = mu * (fa - fb);
    r.cost -= R(0.5) * (fa * up + fb * down);
    r.hessian[0] += a + b;
    r.hessian[k * (k + 1) / 2] = mu * (a - b), r.hessian[k * (k + 1) / 2 + k] = mu * mu * (a + b);
    r.zone |= ((up < 0 ? 1 : 0) | (down < 0 ? 2 : 0)) << (2 * k);
  }
}

// Scaled rows of an elliptic cone: N = mu x0, U_k = friction_k x_k, T = |U|; the force is 0 where N >= mu T.
struct Cone {
  real mu, N, T, D, Dm, U[MAXDIM];
};
FN Cone cone_of(const real* c, const Rows& x, int dim) {
  Cone k;
  k.D = c[C_D], k.mu = c[C_MU] * ROOT_INV_IMPRATIO;
  k.Dm = k.D / more(k.mu * k.mu * (1 + k.mu * k.mu), TINY);
  k.N = k.mu * x.v[0];
  real t = 0;
  UNROLL for (int j = 1; j < MAXDIM; j++) {
    k.U[j] = j < dim ? friction_of(c, j) * x.v[j] : R(0);
    t += k.U[j] * k.U[j];
  }
  k.T = root(t);
  return k;
}
FN bool cone_free(const Cone& k) { return k.N >= k.mu * k.T || (k.T <= 0 && k.N >= 0); }
FN bool cone_sticks(const Cone& k) { return k.mu * k.N + k.T <= 0 || (k.T <= 0 && k.N < 0); }
FN real cone_stiffness(const real* c, int row) {  // of a row while the contact sticks
  real ratio = friction_of(c, row) / c[C_MU];
  return c[C_D] * IMPRATIO * ratio * ratio;
}

FN void respond_elliptic(const real* c, const Rows& x, int dim, Response& r) {
  if (dim <= 1) {
    respond_pyramid(c, x, dim, r);
    return;
  }
  Cone k = cone_of(c, x, dim);
  if (cone_free(k)) return;
  if (cone_sticks(k)) {
    r.force[0] = -k.D * x.v[0], r.hessian[0] = k.D, r.zone = 1, r.cost = R(-0.5) * r.force[0] * x.v[0];
    UNROLL for (int j = 1; j < MAXDIM; j++) {
      if (j >= dim) break;
      real d = cone_stiffness(c, j);
      r.force[j] = -d * x.v[j], r.hessian[j * (j + 1) / 2 + j] = d, r.cost -= R(0.5) * r.force[j] * x.v[j];
    }
    return;
  }
  real NT = k.N - k.mu * k.T, inv = 1 / k.T;
  r.zone = CURVED, r.cost = R(0.5) * k.Dm * NT * NT;
  r.force[0] = -k.Dm * NT * k.mu, r.hessian[0] = k.Dm * k.mu * k.mu;
  UNROLL for (int j = 1; j < MAXDIM; j++) {
    if (j >= dim) break;
    real fj = friction_of(c, j), u = k.U[j] * inv;
    r.force[j] = k.Dm * NT * k.mu * u * fj;
    r.hessian[j * (j + 1) / 2] = -k.Dm * k.mu * u * k.mu * fj;
    UNROLL for (int i = 1; i <= j; i++) {
      real v = k.U[i] * inv;
      real h = k.mu * k.mu * u * v - k.mu * NT * inv * ((i == j ? R(1) : R(0)) - u * v);
      r.hessian[j * (j + 1) / 2 + i] = k.Dm * h * fj * friction_of(c, i);
    }
  }
}

FN Response respond(const real* c, const Rows& x) {
  Response r;
  UNROLL for (int k = 0; k < MAXDIM; k++) r.force[k] = 0;
  UNROLL for (int k = 0; k < TRIANGLE; k++) r.hessian[k] = 0;
  r.zone = 0, r.cost = 0;
  if (c[C_D] > 0) {
    if (ELLIPTIC) respond_elliptic(c, x, dim_of(c), r);
    else respond_pyramid(c, x, dim_of(c), r);
  }
  return r;
}

// Adds a contact's cost at x + t v to (cost, first and second derivative by t); returns its zone there.
FN int add_cost(const real* c, const Rows& x, const Rows& v, real t, real& cost, real& first, real& second) {
  real D = c[C_D];
  int dim = dim_of(c);
  if (!(D > 0)) return 0;
  if (!ELLIPTIC || dim <= 1) {
    int zone = 0;
    UNROLL for (int k = 0; k < (MAXDIM > 1 ? 2 * (MAXDIM - 1) : 1); k++) {
      int row = 1 + k / 2;
      if (dim <= 1 ? k > 0 : row >= dim) break;
      real mu = dim <= 1 ? R(0) : (k % 2 ? -friction_of(c, row) : friction_of(c, row));
      real dy = v.v[0], y = x.v[0];
      if (MAXDIM > 1) dy += mu * v.v[row < MAXDIM ? row : 0], y += mu * x.v[row < MAXDIM ? row : 0];
      y += t * dy;
      if (y < 0) cost += R(0.5) * D * y * y, first += D * y * dy, second += D * dy * dy, zone |= dim <= 1 ? 1 : 4 << k;
    }
    return zone;
  }
  Rows y;
  UNROLL for (int k = 0; k < MAXDIM; k++) y.v[k] = x.v[k] + t * v.v[k];
  Cone k = cone_of(c, y, dim);
  if (cone_free(k)) return 0;
  if (cone_sticks(k)) {
    UNROLL for (int j = 0; j < MAXDIM; j++) {
      if (j >= dim) break;
      real d = j ? cone_stiffness(c, j) : D;
      cost += R(0.5) * d * y.v[j] * y.v[j], first += d * y.v[j] * v.v[j], second += d * v.v[j] * v.v[j];
    }
    return 1;
  }
  real UV = 0, VV = 0, NT = k.N - k.mu * k.T;
  UNROLL for (int j = 1; j < MAXDIM; j++) {
    if (j >= dim) break;
    real V = friction_of(c, j) * v.v[j];
    UV += k.U[j] * V, VV += V * V;
  }
  real T1 = UV / k.T, T2 = (VV - T1 * T1) / k.T, NT1 = k.mu * v.v[0] - k.mu * T1;
  cost += R(0.5) * k.Dm * NT * NT, first += k.Dm * NT * NT1, second += k.Dm * (NT1 * NT1 - k.mu * NT * T2);
  return CURVED;
}

// How many rows MuJoCo makes of a contact.
FN int rows_of(const real* c) {
  int dim = dim_of(c);
  return !(c[C_D] > 0) ? 0 : dim <= 1 ? 1 : ELLIPTIC ? dim : 2 * (dim - 1);
}

// Limits and friction loss of one dof. Rows: sign x - a_ref (limit), x - a_ref (loss).
struct Dof {
  real limit, limit_sign, limit_x;  // D (0: not at a limit), 1 or -1, J a - a_ref
  real loss, loss_x;                // D (0: none), J a - a_ref; the bound is dof_frictionloss
};
FN Dof dof_constraints(const World& w, const Scratch& S, int i) {
  Dof d = {0, 1, 0, 0, 0};
#if LIMITS
  Parameters prm = parameters_at(limit_prm(w) + 8 * i);
  if (prm.power > 0) {  // limited
    int a = dof_qpos(w)[i], j = dof_jnt(w)[i];
    real low = S.qpos[a] - jnt_range(w)[2 * j], high = jnt_range(w)[2 * j + 1] - S.qpos[a], margin = prm.extra;
    if (low < margin || high < margin) {
      d.limit_sign = low < margin ? R(1) : R(-1);
      real x = (low < margin ? low : high) - margin, imp = impedance(prm, x);
      d.limit = stiffness_of(imp, dof_invweight0(w)[i]);
      d.limit_x = prm.B * d.limit_sign * S.qvel[i] + prm.K * imp * x;
    }
  }
#endif
#if LOSSES
  if (dof_frictionloss(w)[i] > 0) {
    Parameters prm = parameters_at(loss_prm(w) + 8 * i);
    d.loss = stiffness_of(impedance(prm, 0), dof_invweight0(w)[i]);
    d.loss_x = prm.B * S.qvel[i];
  }
#endif
  return d;
}

// Force on the dof, diagonal of the Hessian, cost and zone.
FN void respond(const World& w, int i, const Dof& d, real& force, real& hessian, real& cost, int& zone) {
  force = hessian = cost = 0, zone = 0;
#if LIMITS
  if (d.limit > 0 && d.limit_x < 0) {
    real f = -d.limit * d.limit_x;
    force = d.limit_sign * f, hessian = d.limit, cost = R(-0.5) * f * d.limit_x, zone = 1;
  }
#endif
#if LOSSES
  if (d.loss > 0) {
    real most = dof_frictionloss(w)[i], f = -d.loss * d.loss_x;
    if (magnitude(f) < most) hessian += d.loss, zone |= 2, cost -= R(0.5) * f * d.loss_x;
    else zone |= f > 0 ? 4 : 8, cost += most * (magnitude(d.loss_x) - R(0.5) * most / d.loss);
    force += clamp_to(f, -most, most);
  }
#endif
}
FN int add_cost(const World& w, int i, const Dof& d, real v, real t, real& cost, real& first, real& second) {
  int zone = 0;
#if LIMITS
  real y = d.limit_x + t * d.limit_sign * v;
  if (d.limit > 0 && y < 0) {
    cost += R(0.5) * d.limit * y * y, first += d.limit * y * d.limit_sign * v, second += d.limit * v * v, zone = 1;
  }
#endif
#if LOSSES
  if (d.loss > 0) {
    real z = d.loss_x + t * v, most = dof_frictionloss(w)[i], f = d.loss * z;
    if (magnitude(f) < most) {
      cost += R(0.5) * f * z, first += f * v, second += d.loss * v * v, zone |= 2;
    } else {
      cost += most * (magnitude(z) - R(0.5) * most / d.loss), first += z > 0 ? most * v : -most * v, zone |= f < 0 ? 4 : 8;
    }
  }
#endif
  return zone;
}
FN void advance(Dof& d, real v) { d.limit_x += d.limit_sign * v, d.loss_x += v; }

#if BALL_LIMITS
// Appends the limits of ball joints to the contacts: torques about the axis of the rotation, against it.
FN void ball_limits(const World& w, Scratch& S, int& ncon) {
  BATCHES(k, BALL_LIMITS) {
    bool found = false;
    int j = 0;
    vec3 axis = v3(0, 0, 0);
    real dist = 0;
    if (k < BALL_LIMITS) {
      j = ball_joint(w)[k];
      quat q = normalized(q4(S.qpos + jnt_qposadr(w)[j]));
      vec3 u = v3(q.x, q.y, q.z);
      real s = length(u), angle = 2 * atan2(s, magnitude(q.w)), sign = q.w < 0 ? R(-1) : R(1);
      axis = s > TINY ? (sign / s) * u : v3(1, 0, 0);
      dist = more(jnt_range(w)[2 * j], jnt_range(w)[2 * j + 1]) - angle;
      found = dist < ball_prm(w)[8 * k + 7];
    }
    int place = append(found, ncon);
    if (found && place < NCON) {
      Parameters prm = parameters_at(ball_prm(w) + 8 * k);
      real imp = impedance(prm, dist - prm.extra);
      int body = jnt_body(w)[j];
      vec3 n = -rotate(orientation_of(S, body), axis);
      real* c = S.contact[place];
      store4(c, 0, 0, 0, 0);
      store4(c + 4, n.x, n.y, n.z, stiffness_of(imp, dof_invweight0(w)[jnt_dofadr(w)[j]]));
      store4(c + 8, 0, 0, 0, R(body));
      store4(c + 12, R(ball_other(w)[k]), 1, 0, -1);
      store4(c + 16, prm.K * imp * (dist - prm.extra), prm.B, prm.B, dist);
    }
  }
  sync();
}
#endif
