// The constraint solver: Newton's method on
//
//     cost(a) = 1/2 (a - a_smooth)' M (a - a_smooth) + s(J a - a_ref)
//
// (MuJoCo: mj_solNewton; its manual, "Computation: Solver"). Contacts enter with one to six rows each and the second
// derivative of their cost by these, so that a pyramid needs three rows, not four edges. Where the cost is piecewise
// quadratic and a full step stays within the piece, that step is exact and there is no line search.
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

// Where a packed symmetric matrix has the element (a, b).
FN constexpr int at(int a, int b) { return a > b ? a * (a + 1) / 2 + b : b * (b + 1) / 2 + a; }

// --- gradient and Hessian --------------------------------------------------------------------------------------------

// Adds J' K J of the contacts to the Hessian, and J' f to the forces.
FN void add_contacts(const World& w, Scratch& S, int ncon, Per<Row, ROWS>& H, Per<real, NV>& force) {
  ROLLED for (int k = 0; k < ncon; k++) {
    const real* c = S.contact[k];
    if (c[C_HESSIAN] == 0) continue;  // it pushes nothing
#if SPARE
    if (k >= NFAST) fetch_rows(w, S, k);
#endif
    const real(*J)[NH] = (const real(*)[NH])scratch_rows(S, k);
    real f[PADDED(MAXDIM)], K[PADDED(TRIANGLE)];
    UNROLL for (int q = 0; q < PADDED(MAXDIM); q += 4) {
      four v = load4(c + C_FORCE + q);
      f[q] = v.x, f[q + 1] = v.y, f[q + 2] = v.z, f[q + 3] = v.w;
    }
    UNROLL for (int q = 0; q < PADDED(TRIANGLE); q += 4) {
      four v = load4(c + C_HESSIAN + q);
      K[q] = v.x, K[q + 1] = v.y, K[q + 2] = v.z, K[q + 3] = v.w;
    }
    EACH(i, NR) {
      real own[MAXDIM];
      UNROLL for (int b = 0; b < MAXDIM; b++) own[b] = J[b][i], force[i] += own[b] * f[b];
      UNROLL for (int b = 0; b < MAXDIM; b++) {
        real s = 0;
        UNROLL for (int a = 0; a < MAXDIM; a++) s += K[at(a, b)] * own[a];
        UNROLL for (int q = 0; q < NROW; q += 4) {
          four t = load4(J[b] + q);
          H[i].v[q] += s * t.x, H[i].v[q + 1] += s * t.y;
          if (q + 2 < NR) H[i].v[q + 2] += s * t.z;
          if (q + 3 < NR) H[i].v[q + 3] += s * t.w;
        }
      }
    }
#if EXTRA
    EACH(i, NV) {
      if (i >= NR) UNROLL for (int b = 0; b < MAXDIM; b++) force[i] += J[b][i] * f[b];
      real own[MAXDIM];  // here the lanes are columns of the rows in scratch memory
      UNROLL for (int b = 0; b < MAXDIM; b++) own[b] = J[b][i];
      UNROLL for (int e = NR; e < NV; e++) {
        real sum = 0;
        UNROLL for (int b = 0; b < MAXDIM; b++) {
          real s = 0;
          UNROLL for (int a = 0; a < MAXDIM; a++) s += K[at(a, b)] * J[a][e];
          sum += s * own[b];
        }
        S.extra[e - NR][i] += sum;
      }
    }
#endif
  }
}

// Solves H x = b in place.
FN void solve(Scratch& S, Per<Row, ROWS>& H, Per<real, NV>& x) {
  Per<real, ROWS> y;
  EACH(i, ROWS) y[i] = 0;
#if EXTRA
  sync();
  EACH(i, NV) S.vector[i] = x[i];
  sync();
  EACH(i, NR) y[i] = x[i];
  eliminate_extra_rows(S, H, y);
  gauss_jordan(S, H, y);
  recover_extra_rows(S, y);
  EACH(i, NV) x[i] = S.vector[i];
#else
  EACH(i, NR) y[i] = x[i];
  gauss_jordan(S, H, y);
  EACH(i, NR) x[i] = y[i];
#endif
}

// --- the line search -------------------------------------------------------------------------------------------------

// A step along v = H^-1 residual: 1, or to the minimum, by Newton's method between brackets. gain: by how much the cost
// falls, from its slopes, as the difference of two costs is mostly rounding close to the minimum. exact: the full step
// leaves no zone, so that it leads to the minimum. cost0: this lane's part of the constraints' cost at 0.
FN real search(const World& w, Scratch& S, const Problem& P, const Per<real, NV>& v, const Per<real, NV>& Mv,
               const Per<Rows, NCON>& jv, const Per<real, NV>& residual, real cost0, const Per<int, NV>& dof_zone,
               const Per<int, NCON>& zone, bool& exact, real& gain) {
  real t = 1, low = 0, high = -1, start = 0, enough = 0, move = 2, earlier = 2;
  ROLLED for (int k = 1; k < 50; k++) {
    real cost = 0, first = 0, second = 0, slope = 0;
    bool changed = false;
    EACH_OF(c, P.ncon, NCON) {
      int next = add_cost(S.contact[c], P.x[c], jv[c], t, cost, first, second);
      changed |= next != zone[c] || next == CURVED;
    }
    EACH(i, NV) {
#if LIMITS || LOSSES
      changed |= add_cost(w, i, P.dof[i], v[i], t, cost, first, second) != dof_zone[i];
#endif
      real g = v[i] * (P.Ma[i] - P.force[i]), h = v[i] * Mv[i];  // slope and curvature of the smooth part at 0
      cost += t * (g + R(0.5) * t * h), first += g + t * h, second += h;
      slope += v[i] * residual[i];
    }
    exact = k == 1 && !any(changed);
    if (exact) break;
    real saved = cost0 - cost;
    across(saved, first, second, slope);
    gain = R(0.5) * t * (slope - first);
    if (k == 1) {
      // A full step that pays will do: an exact minimum costs more than it saves in Newton steps (it even needs more).
      if (magnitude(first) <= R(0.7) * slope && saved > 0) break;
      real square = 0;
      EACH(i, NV) square += v[i] * v[i];
      start = magnitude(slope);
      enough = TOLERANCE * R(0.01) * root(across(square)) / SCALE + R(sizeof(real) == 4 ? 2e-6 : 1e-14) * start;
    }
    if (magnitude(first) <= enough || !(second > 0)) break;
    if (first < 0) low = t;
    else high = t;
    real next = t - first / second;
    // Steps that do not halve in two go to and fro about a kink; then the bracket is halved.
    bool leaps = high >= 0 && 2 * magnitude(next - t) > earlier;
    if (next <= low || (high >= 0 && next >= high) || leaps) next = high >= 0 ? R(0.5) * (low + high) : 2 * t;
    if (next == t) break;
    earlier = move, move = magnitude(next - t);
    t = next;
  }
  return t;
}

// --- Newton ----------------------------------------------------------------------------------------------------------

// Rows and what they need, at a = 0, where J a - a_ref is -a_ref.
FN void begin(const World& w, Scratch& S, Problem& P) {
  int nefc = 0;
  ROLLED for (int k = 0; k < P.ncon; k++) write_rows(w, S, k);
  sync();
  motion_of_contacts(w, S, P.ncon, S.qvel, P.x);
  EACH_OF(c, P.ncon, NCON) {
    nefc += rows_of(S.contact[c]);
    Rows a = reference_acceleration(S.contact[c], P.x[c]);
    UNROLL for (int k = 0; k < MAXDIM; k++) P.x[c].v[k] = -a.v[k];
  }
  EACH(i, NV) {
    P.dof[i] = dof_constraints(w, S, i);
    nefc += (P.dof[i].limit > 0) + (P.dof[i].loss > 0);
    P.a[i] = P.Ma[i] = 0;
  }
  P.nefc = (int)across(R(nefc));
}

// Minimizes the cost, from a = 0: there it is a_ref that says which contacts push and which limits hold, a better guess
// than the acceleration of the last physics step, from which it takes a fifth more steps. acceleration: what the state is
// integrated with, implicit in the velocity where the integrator is: (M - h dforce/dvelocity) acceleration = M a.
FN void newton(const World& w, Scratch& S, Problem& P, Per<real, NV>& acceleration) {
  Per<int, NCON> zone;
  Per<int, NV> dof_zone;
  Per<real, NV> x, residual, diagonal;
  bool finishing = false;
  P.iterations = 0;
  sync();
  ROLLED for (;;) {
    real cost = 0;  // this lane's part of that of the constraints
    Per<Row, ROWS> H;
    ROLLED for (;;) {  // at most twice: the gradient may say that this was the minimum
      if (finishing && !IMPLICIT) break;
      if (!finishing) {
        EACH_OF(c, P.ncon, NCON) {
          Response r = respond(S.contact[c], P.x[c]);
          zone[c] = r.zone, cost += r.cost;
          UNROLL for (int k = 0; k < MAXDIM; k++) S.contact[c][C_FORCE + k] = r.force[k];
          UNROLL for (int k = 0; k < TRIANGLE; k++) S.contact[c][C_HESSIAN + k] = r.hessian[k];
        }
        sync();
      }
      EACH(i, NV) {
        real f = 0, h = 0, s = 0;
        if (!finishing) respond(w, i, P.dof[i], f, h, s, dof_zone[i]);
        else h = -TIMESTEP * P.slope[i];
        x[i] = finishing ? P.Ma[i] : P.force[i] + f - P.Ma[i];
        cost += s;
        diagonal[i] = S.mass[i][i];
        S.mass[i][i] += h;  // until the row is copied
        if (i >= NR) UNROLL for (int q = 0; q < COLUMNS; q += 4) *(four*)(S.extra[i - NR] + q) = load4(S.mass[i] + q);
      }
      EACH(i, ROWS) {
        const real* M = S.mass[i < NMASS ? i : NMASS - 1];
        UNROLL for (int q = 0; q < NROW; q += 4) {
          four m = load4(M + q);
          H[i].v[q] = m.x, H[i].v[q + 1] = m.y, H[i].v[q + 2] = m.z, H[i].v[q + 3] = m.w;
        }
      }
      EACH(i, NV) S.mass[i][i] = diagonal[i];
      if (finishing) break;
      if (EXTRA) sync();
      add_contacts(w, S, P.ncon, H, x);
      real square = 0;
      EACH(i, NV) residual[i] = x[i], square += x[i] * x[i];
      square = across(square);
      finishing = !(SCALE * root(square) >= TOLERANCE) || P.iterations >= ITERATIONS;
      if (!finishing) break;
    }
    MARK(S, 7);
    if (finishing && !IMPLICIT) break;
    solve(S, H, x);
    MARK(S, 8);
    if (finishing) break;
    {  // a += t x
      Per<real, NV> Mx;
      Per<Rows, NCON> jv;
      sync();
      EACH(i, NV) S.vector[i] = x[i];  // not MAP: lanes without a dof have no x of the last one
      sync();
      motion_of_contacts(w, S, P.ncon, S.vector, jv);
      MAP(i, NV) Mx[i] = row_dot(S.mass[i], S.vector);
      MARK(S, 5);
      bool exact;
      real gain = 0, t = search(w, S, P, x, Mx, jv, residual, cost, dof_zone, zone, exact, gain);
      finishing = exact || !(SCALE * gain >= TOLERANCE);  // NaN ends it too
      MAP(i, NV) {
        P.a[i] += t * x[i], P.Ma[i] += t * Mx[i];
        advance(P.dof[i], t * x[i]);
      }
      EACH_OF(c, P.ncon, NCON) {
        UNROLL for (int k = 0; k < MAXDIM; k++) P.x[c].v[k] += t * jv[c].v[k];
      }
      P.iterations++;
      MARK(S, 6);
    }
  }
  MAP(i, NV) acceleration[i] = IMPLICIT ? x[i] : P.a[i];
}
