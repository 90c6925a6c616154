// The constraint solver: Newton's method on
//
//     cost(a) = 1/2 (a - a_smooth)' M (a - a_smooth) + s(J a - a_ref)
//
// (MuJoCo: mj_solNewton; its manual, "Computation: Solver"). Neither J nor M is formed: what a contact with the
// immovable world adds to the Hessian is a 6 x 6 matrix on its body, beside the body's inertia, so that M + J' D J of
// all of these comes out of one composite rigid body recursion, and J' f out of one sum over subtrees. Contacts between
// two moving bodies are added row by row.
#pragma once

struct Problem {
  Per<real, NV> force;     // generalized forces without constraints
  Per<real, NV> slope;     // their derivative by the dof's velocity
  Per<Dof, NV> dof;        // limits and friction loss
  Per<Rows, NCON> x;       // J a - a_ref of each contact
  Per<real, NV> a, Ma;     // the present acceleration, and M times it
  int touching;            // contacts
  int ncon;                // and limits of ball joints, which are kept with them
  int nefc, iterations;    // MuJoCo's rows; Newton steps
};

// --- one contact's share ---------------------------------------------------------------------------------------------

// What a contact adds: the 6 x 6 matrix on its body, unless two bodies can move, and its force.
FN void share_of(const World& w, const Scratch& S, const real* c, const Response& r, real* out) {
  vec3 p = v3(c + C_POS), n = v3(c + C_NORMAL), t = v3(c + C_TANGENT), s = cross(n, t);
  vec3 f = r.force[0] * n, torque = v3(0, 0, 0);
  bool angular = BALL_LIMITS && dim_of(c) == 0;
#if MAXDIM > 1
  f = f + r.force[1] * t + r.force[2] * s;
#endif
#if MAXDIM > 3
  torque = r.force[3] * n;
#endif
#if MAXDIM > 4
  torque = torque + r.force[4] * t + r.force[5] * s;
#endif
  if (angular) torque = f, f = v3(0, 0, 0);
  store(out + WRENCH, c[C_SIGN] * (cross(p, f) + torque)), store(out + WRENCH + 3, c[C_SIGN] * f);
  if (NPAIR_MOVING + BALL_LIMITS > 0 && (int)c[C_OTHER]) {
#if NTREE > 1
    store(out + WRENCH + 6, cross(seen_from_other(w, S, c), f) + torque);
#endif
    return;  // its matrix is the rows' own
  }
  // L: forces of linear motion. W = [p x] L [p x]' (rot-rot), [p x] L (rot-lin), L (lin-lin).
  real xx, yy, zz, xy, xz, yz;
  const real* h = r.hessian;
#if MAXDIM > 1
  {
    vec3 un = h[0] * n + h[1] * t + h[3] * s, ut = h[1] * n + h[2] * t + h[4] * s, us = h[3] * n + h[4] * t + h[5] * s;
    xx = n.x * un.x + t.x * ut.x + s.x * us.x, yy = n.y * un.y + t.y * ut.y + s.y * us.y;
    zz = n.z * un.z + t.z * ut.z + s.z * us.z, xy = n.x * un.y + t.x * ut.y + s.x * us.y;
    xz = n.x * un.z + t.x * ut.z + s.x * us.z, yz = n.y * un.z + t.y * ut.z + s.y * us.z;
  }
#else
  xx = h[0] * n.x * n.x, yy = h[0] * n.y * n.y, zz = h[0] * n.z * n.z;
  xy = h[0] * n.x * n.y, xz = h[0] * n.x * n.z, yz = h[0] * n.y * n.z;
#endif
  if (angular) {
    out[0] = xx, out[1] = yy, out[2] = zz, out[3] = xy, out[4] = xz, out[5] = yz;
    UNROLL for (int k = 6; k < WRENCH; k++) out[k] = 0;
    return;
  }
  vec3 lx = v3(xx, xy, xz), ly = v3(xy, yy, yz), lz = v3(xz, yz, zz);  // rows, and columns, of L
  vec3 cx = cross(p, lx), cy = cross(p, ly), cz = cross(p, lz);        // columns of [p x] L
  // Rows of [p x] L are (cx.x cy.x cz.x), ...; [p x] L [p x]' = [p x] ([p x] L)'.
  vec3 rx = cross(p, v3(cx.x, cy.x, cz.x)), ry = cross(p, v3(cx.y, cy.y, cz.y)), rz = cross(p, v3(cx.z, cy.z, cz.z));
  real rr[6] = {rx.x, ry.y, rz.z, rx.y, rx.z, ry.z};
  real rl[9] = {cx.x, cy.x, cz.x, cx.y, cy.y, cz.y, cx.z, cy.z, cz.z};
#if MAXDIM > 3
  {  // Rows of relative rotation: cross terms (linear force from rotation) B and A (torque from rotation).
    vec3 d[6] = {n, t, s, n, t, s};
    UNROLL for (int i = 3; i < MAXDIM; i++) {
      UNROLL for (int j = 0; j <= i; j++) {
        real k = h[i * (i + 1) / 2 + j];
        if (j < 3) {  // torque d_i, motion of row j: (p x d_j, d_j)
          vec3 u = d[i], m = d[j], q = cross(p, m);
          rl[0] += k * u.x * m.x, rl[1] += k * u.x * m.y, rl[2] += k * u.x * m.z;
          rl[3] += k * u.y * m.x, rl[4] += k * u.y * m.y, rl[5] += k * u.y * m.z;
          rl[6] += k * u.z * m.x, rl[7] += k * u.z * m.y, rl[8] += k * u.z * m.z;
          rr[0] += 2 * k * u.x * q.x, rr[1] += 2 * k * u.y * q.y, rr[2] += 2 * k * u.z * q.z;
          rr[3] += k * (u.x * q.y + u.y * q.x), rr[4] += k * (u.x * q.z + u.z * q.x), rr[5] += k * (u.y * q.z + u.z * q.y);
        } else {
          vec3 u = d[i], m = d[j];
          real g = i == j ? k : 2 * k;
          rr[0] += g * u.x * m.x, rr[1] += g * u.y * m.y, rr[2] += g * u.z * m.z;
          g *= R(0.5);
          rr[3] += g * (u.x * m.y + u.y * m.x), rr[4] += g * (u.x * m.z + u.z * m.x), rr[5] += g * (u.y * m.z + u.z * m.y);
        }
      }
    }
  }
#endif
  UNROLL for (int k = 0; k < 6; k++) out[k] = rr[k];
  UNROLL for (int k = 0; k < 9; k++) out[6 + k] = rl[k];
  out[15] = xx, out[16] = yy, out[17] = zz, out[18] = xy, out[19] = xz, out[20] = yz;
}

// S.sums: the inertia of each body and the matrices and forces of its first ncon contacts, summed over subtrees.
STAGE void gather_shares(Scratch& S, int ncon) {
  IN_SCRATCH(S);
  sync();
  EACH(e, WRENCH + 6) {
    real* column = &S.sums[0][e];
    const real* inertia = &S.inertia[0][e];
    UNROLL for (int b = 1; b < NB; b++) column[b * MATRIX] = e < WRENCH ? inertia[b * MATRIX] : R(0);
    ROLLED for (int k = 0; k < ncon; k++) {
      const real* c = S.contact[k];
      int body = (int)c[C_BODY], other = (int)c[C_OTHER];
      if (e < WRENCH) {
        if (!other) column[body * MATRIX] += S.share[k][e];
      } else {
        column[body * MATRIX] += S.share[k][e];
#if NTREE > 1
        if (other) column[other * MATRIX] -= S.share[k][e < WRENCH + 3 ? e + 6 : e];
#else
        if (other) column[other * MATRIX] -= S.share[k][e];
#endif
      }
    }
  }
  sum_over_subtrees<0, WRENCH + 6>(S);
}

// --- the Hessian -----------------------------------------------------------------------------------------------------

// H of all that acts on one body (composite rigid bodies: H_ij = axis_j . G axis_i for j above i), plus the diagonal,
// which S.vector has.
STAGE void assemble(World w, Scratch& S) {
  IN_SCRATCH(S);
  IN_GLOBAL(w);
  Per<spatial, NV> f;
  EACH(i, NV) {
    f[i] = times(load_matrix(S.sums[byte_of(dof_words(w, i).a, 0)]), axis_of(S, i));
    UNROLL for (int q = 0; q < NH; q += 4) store4(S.hessian[i] + q, 0, 0, 0, 0);
  }
  sync();
  EACH(i, NV) {
    int depth = byte_of(dof_words(w, i).b, 3);
    S.hessian[i][i] = dot(axis_of(S, i), f[i]) + S.vector[i];
    UNROLL for (int q = 0; q < DEPTH_WORDS; q++) {
      int above = dof_above(w)[q * NV + i];
      UNROLL for (int d = 0; d < 4; d++) {
        if (4 * q + d < depth) {
          int j = byte_of(above, d);
          S.hessian[i][j] = S.hessian[j][i] = dot(axis_of(S, j), f[i]);
        }
      }
    }
  }
  sync();
}

#if NPAIR_MOVING + BALL_LIMITS > 0
// J of a contact between two moving bodies to S.row.
STAGE void write_rows(World w, Scratch& S, const real* c) {
  IN_SCRATCH(S);
  IN_GLOBAL(w);
  int body = (int)c[C_BODY], other = (int)c[C_OTHER];
  vec3 n = v3(c + C_NORMAL), t = v3(c + C_TANGENT), s = cross(n, t), p = v3(c + C_POS), p_other = seen_from_other(w, S, c);
  EACH(i, NV) {
    bool mine = (body_dofs(w)[2 * body + i / 32] >> (i % 32)) & 1, theirs = (body_dofs(w)[2 * other + i / 32] >> (i % 32)) & 1;
    real sign = R((mine ? 1 : 0) - (theirs ? 1 : 0));
    spatial axis = axis_of(S, i);
    vec3 rot = sign * axis.rot, lin = sign * (axis.lin + cross(axis.rot, theirs ? p_other : p));
    S.row[0][i] = BALL_LIMITS && dim_of(c) == 0 ? dot(n, rot) : dot(n, lin);
#if MAXDIM > 1
    S.row[1][i] = dot(t, lin), S.row[2][i] = dot(s, lin);
#endif
#if MAXDIM > 3
    S.row[3][i] = dot(n, rot);
#endif
#if MAXDIM > 4
    S.row[4][i] = dot(t, rot), S.row[5][i] = dot(s, rot);
#endif
  }
  sync();
}
#endif

// --- the line search -------------------------------------------------------------------------------------------------

// The minimum along v, and by how much the cost falls. Newton's method between brackets.
FN real search(const World& w, Scratch& S, const Problem& P, const Per<real, NV>& v, const Per<real, NV>& Mv,
               const Per<Rows, NCON>& jv, real& gain) {
  real g = 0, h = 0, square = 0;  // slope and curvature of the smooth part at 0
  EACH(i, NV) g += v[i] * (P.Ma[i] - P.force[i]), h += v[i] * Mv[i], square += v[i] * v[i];
  g = across(g), h = across(h), square = across(square);
  real t = 0, low = 0, high = -1, cost0 = 0, cost = 0, enough = 0;
  ROLLED for (int k = 0; k < 50; k++) {
    real first = 0, second = 0;
    cost = 0;
    EACH_OF(c, P.ncon, NCON) add_cost(S.contact[c], P.x[c], jv[c], t, cost, first, second);
#if LIMITS || LOSSES
    EACH(i, NV) add_cost(w, i, P.dof[i], v[i], t, cost, first, second);
#endif
    first = across(first) + g + t * h, second = across(second) + h;
    if (k == 0) {
      cost0 = cost, t = 1;
      enough = TOLERANCE * R(0.01) * root(square) / SCALE + R(sizeof(real) == 4 ? 2e-6 : 1e-14) * magnitude(first);
      continue;
    }
    if (magnitude(first) <= enough || !(second > 0)) break;
    if (first < 0) low = t;
    else high = t;
    real next = t - first / second;
    if (next <= low || (high >= 0 && next >= high)) next = high >= 0 ? R(0.5) * (low + high) : 2 * t;
    if (next == t) break;
    t = next;
  }
  gain = across(cost0 - cost) - t * (g + R(0.5) * t * h);
  return t;
}

// --- Newton ----------------------------------------------------------------------------------------------------------

// Rows at a = 0: P.x is -a_ref.
FN void begin(const World& w, Scratch& S, Problem& P) {
  int nefc = 0;
  EACH_OF(c, P.ncon, NCON) nefc += rows_of(S.contact[c]);
  EACH(i, NV) {
    P.dof[i] = dof_constraints(w, S, i);
    nefc += (P.dof[i].limit > 0) + (P.dof[i].loss > 0);
    P.a[i] = P.Ma[i] = 0;
  }
  P.nefc = (int)across(R(nefc));
}

#if NPAIR_MOVING + BALL_LIMITS > 0
// Adds J' K J of one contact between two moving bodies to H; its rows are in S.row.
FN void add_pair(Scratch& S, const real* c, Per<Row, NR>& H) {
  const real* K = c + C_HESSIAN;
  EACH(i, NR) {
    UNROLL for (int b = 0; b < MAXDIM; b++) {
      real s = 0;
      UNROLL for (int a = 0; a < MAXDIM; a++) s += K[a > b ? a * (a + 1) / 2 + b : b * (b + 1) / 2 + a] * S.row[a][i];
      UNROLL for (int q = 0; q < NROW; q += 4) {
        four t = load4(S.row[b] + q);
        H[i].v[q] += s * t.x, H[i].v[q + 1] += s * t.y, H[i].v[q + 2] += s * t.z, H[i].v[q + 3] += s * t.w;
      }
    }
  }
  ROLLED for (int e = NR; e < NV; e++) {
    EACH(j, NV) {
      real sum = 0;
      UNROLL for (int b = 0; b < MAXDIM; b++) {
        UNROLL for (int a = 0; a < MAXDIM; a++) {
          sum += K[a > b ? a * (a + 1) / 2 + b : b * (b + 1) / 2 + a] * S.row[a][e] * S.row[b][j];
        }
      }
      S.hessian[e][j] += sum;
    }
  }
  sync();
}
#endif

// Solves H x = b in place; S.hessian has what acts on single bodies. ncon: contacts between moving bodies among these.
FN void solve_rows(const World& w, Scratch& S, int ncon, Per<real, NV>& x) {
  Per<Row, NR> H;
  Per<real, NR> y;
  if (NV > NR) {
    EACH(i, NV) S.vector[i] = x[i];
  }
  EACH(i, NR) {
    UNROLL for (int q = 0; q < NROW; q += 4) {
      four t = load4(S.hessian[i] + q);
      H[i].v[q] = t.x, H[i].v[q + 1] = t.y, H[i].v[q + 2] = t.z, H[i].v[q + 3] = t.w;
    }
    y[i] = x[i];
  }
#if NPAIR_MOVING + BALL_LIMITS > 0
  ROLLED for (int k = 0; k < ncon; k++) {
    const real* c = S.contact[k];
    if (c[C_OTHER] == 0 || c[C_HESSIAN] == 0) continue;
    write_rows(w, S, c);
    add_pair(S, c, H);
  }
#endif
  if (NV > NR) {
    sync();
    eliminate_extra_rows(S, H, y);
  }
  gauss_jordan(S, H, y);
  if (NV > NR) recover_extra_rows(S, y);
  EACH(i, NV) x[i] = NV > NR ? S.vector[i] : y[Item(i)];
}

// Where a full step along x leads: whether it leaves the quadratic function that it minimizes, which zone numbers tell.
FN bool leaves_zones(const World& w, Scratch& S, const Problem& P, const Per<real, NV>& x, const Per<Rows, NCON>& jv,
                     const Per<int, NV>& dof_zone, const Per<int, NCON>& zone) {
  bool changed = false;
  EACH_OF(c, P.ncon, NCON) {
    Rows y;
    UNROLL for (int k = 0; k < MAXDIM; k++) y.v[k] = P.x[c].v[k] + jv[c].v[k];
    int next = zone_of(S.contact[c], y);
    changed |= next != zone[c] || next == CURVED;
  }
#if LIMITS || LOSSES
  EACH(i, NV) {
    Dof d = P.dof[i];
    advance(d, x[i]);
    real f, h;
    int next;
    respond(w, i, d, f, h, next);
    changed |= next != dof_zone[i];
  }
#endif
  return any(changed);
}

// Minimizes the cost; the first step, from 0, is to the acceleration of the last physics step. acceleration: what the
// state is integrated with, implicit in the velocity where the integrator is: (M - h dforce/dvelocity) acceleration =
// M a.
FN void newton(const World& w, Scratch& S, Problem& P, Per<real, NV>& acceleration) {
  Per<int, NCON> zone;
  Per<int, NV> dof_zone;
  Per<real, NV> x;
  bool finishing = false;
  EACH(i, NV) x[i] = S.warm[i];
  P.iterations = -1;
  ROLLED for (;;) {
    {  // a += t x
      Per<real, NV> Mx;
      Per<Rows, NCON> jv;
      sync();
      EACH(i, NV) store_spatial(S.chain[i], x[i] * axis_of(S, i));
      sum_along_chains(w, S);
      EACH_OF(c, P.ncon, NCON) jv[c] = motion_of(w, S, S.contact[c]);
      times_inertia(w, S);
      EACH(i, NV) Mx[i] = S.vector[i] + dof_armature(w)[i] * x[i];
      MARK(S, 5);
      real t = 1;
      if (P.iterations >= 0) {
        finishing = !leaves_zones(w, S, P, x, jv, dof_zone, zone);
        if (!finishing) {
          real gain;
          t = search(w, S, P, x, Mx, jv, gain);
          finishing = !(SCALE * gain >= TOLERANCE);  // NaN ends it too
        }
      }
      EACH(i, NV) {
        P.a[i] += t * x[i], P.Ma[i] += t * Mx[i];
        advance(P.dof[i], t * x[i]);
      }
      EACH_OF(c, P.ncon, NCON) {
        UNROLL for (int k = 0; k < MAXDIM; k++) P.x[c].v[k] += t * jv[c].v[k];
      }
      P.iterations++;
      MARK(S, 6);
    }
    Per<real, NV> diagonal;
    ROLLED for (;;) {  // at most twice: the gradient may say that this was the minimum
      if (finishing && !IMPLICIT) break;
      int ncon = finishing ? 0 : P.ncon;
      sync();
      EACH_OF(c, ncon, NCON) {
        Response r = respond(S.contact[c], P.x[c]);
        zone[c] = r.zone;
        share_of(w, S, S.contact[c], r, S.share[c]);
#if NPAIR_MOVING + BALL_LIMITS > 0
        UNROLL for (int k = 0; k < TRIANGLE; k++) S.contact[c][C_HESSIAN + k] = r.hessian[k];
#endif
      }
      gather_shares(S, ncon);
      real square = 0;
      EACH(i, NV) {
        diagonal[i] = dof_armature(w)[i];
        if (finishing) {
          x[i] = P.Ma[i];
          diagonal[i] -= TIMESTEP * P.slope[i];
        } else {
          real f, h;
          respond(w, i, P.dof[i], f, h, dof_zone[i]);
          x[i] = P.force[i] + f + along_axis(w, S, i) - P.Ma[i];
          diagonal[i] += h;
          square += x[i] * x[i];
        }
      }
      if (finishing) break;
      square = across(square);
      finishing = !(SCALE * root(square) >= TOLERANCE) || P.iterations >= ITERATIONS;
      if (!finishing) break;
    }
    MARK(S, 7);
    if (finishing && !IMPLICIT) break;
    EACH(i, NV) S.vector[i] = diagonal[i];
    assemble(w, S);
    MARK(S, 8);
    solve_rows(w, S, finishing ? 0 : P.ncon, x);
    MARK(S, 9);
    if (finishing) break;
  }
  EACH(i, NV) acceleration[i] = IMPLICIT ? x[i] : P.a[i];
}
