// The order of one launch: `substeps` physics steps of one world, then its outputs.
//
// A launch may be made in rounds, of one physics step of all worlds each, but for the end of the last: a block steps its
// worlds once and leaves the rest to another block, which waits for it (they begin in the order of their tickets). Thus
// the last few blocks of a launch, for which most multiprocessors wait, are a single step long.
#pragma once

// One physics step; kinematics and velocities (sums along chains in S.chain) are those of the state already.
FN void physics_step(const World& w, Scratch& S, Problem& P, bool last) {
  Per<real, NV> acceleration;
  int found = collide(w, S);
  P.touching = P.ncon = found < NCON ? found : NCON;
#if BALL_LIMITS
  ball_limits(w, S, P.ncon);
  found += P.ncon - P.touching;
  P.ncon = P.ncon < NCON ? P.ncon : NCON;
#endif
  if (found > NCON) {
    EACH(one, 1) S.overflowed = 1;
  }
  MARK(S, 2);
  meet();
  inertia_and_bias(w, S);
  MARK(S, 3);
  smooth_forces(w, S, last, P.force, P.slope);
  mass_matrix(w, S);
  begin(w, S, P);
  MARK(S, 4);
  newton(w, S, P, acceleration);
  meet();
  if (last) write_force_outputs(w, S, P);
#if SPINNING
  free_accelerations(w, S, P, acceleration);
#endif
  integrate(w, S, acceleration, P.a);
  MARK(S, 9);
}

// Of a world in rounds: how many it has behind it, in units of 4, and what went wrong in them.
FN volatile int* progress_of(const World& w) { return live<volatile int>(w, A_PROGRESS, 1); }

// Between global and scratch memory. round: what the state must have behind it.
FN void load_state(const World& w, Scratch& S, int round) {
  const real *qpos = live<const real>(w, A_QPOS, NQ), *qvel = live<const real>(w, A_QVEL, NV);
  EACH(one, 1) {
    int progress = 0;
    if (round > 0) {
      do progress = *progress_of(w);
      while (progress >> 2 != round);
      fence();
    }
    S.failed = progress & 1, S.overflowed = progress >> 1 & 1;
  }
  sync();
  Per<real, NQ> q;
  Per<real, NV> v;
  EACH(i, NQ) q[i] = latest(qpos + i);
  EACH(i, NV) v[i] = latest(qvel + i);
  EACH(i, NQ) S.qpos[i] = q[i];
  EACH(i, NV) S.qvel[i] = v[i];
  EACH(i, COLUMNS - NV) S.qvel[NV + i] = S.vector[NV + i] = 0;  // rows are padded with zeros
  EACH_OF_MANY(u, NU) prefetch(live<const real>(w, A_TARGET, NU) + u);
  EACH(one, 1) prefetch(live<const real>(w, A_TIME, 1));
  sync();
}
FN void store_state(const World& w, const Scratch& S) {
  real *qpos = live<real>(w, A_QPOS, NQ), *qvel = live<real>(w, A_QVEL, NV), *warm = live<real>(w, A_WARM, NV);
  EACH_OF_MANY(i, NQ) qpos[i] = S.qpos[i];
  EACH_OF_MANY(i, NV) qvel[i] = S.qvel[i], warm[i] = S.warm[i];
}

FN void end_round(const World& w, const Scratch& S, int rounds) {
  store_state(w, S);
  sync();
  EACH(one, 1) {
    fence();
    *progress_of(w) = rounds << 2 | (S.overflowed ? 2 : 0) | (S.failed ? 1 : 0);
  }
}

FN bool sound(real x) { return magnitude(x) <= R(1e10); }  // mjMAXVAL; a NaN compares as false
FN bool all_sound(const Scratch& S) {
  bool bad = S.failed;
  EACH(i, NQ) bad |= !sound(S.qpos[i]);
  EACH(i, NV) bad |= !sound(S.qvel[i]) || !sound(S.warm[i]);
  return !any(bad);
}

// A world that failed starts anew, like a reset, and says so.
RARE void start_anew(World w, Scratch& S) {
  EACH_OF_MANY(i, NQ) S.qpos[i] = qpos0(w)[i];
  EACH_OF_MANY(i, NV) S.qvel[i] = S.warm[i] = 0;
#if NMOCAP
  EACH_OF_MANY(b, NB) {
    int k = body_mocapid(w)[b];
    if (k < 0) continue;
    real *pos = live<real>(w, A_MOCAP_POS, 3 * NMOCAP), *rot = live<real>(w, A_MOCAP_QUAT, 4 * NMOCAP);
    quat q = body_quat(w, b);
    store(pos + 3 * k, body_pos(w, b));
    rot[4 * k] = q.w, store(rot + 4 * k + 1, v3(q.x, q.y, q.z));
  }
#endif
  const int zeroed[] = {A_CTRL, NU, A_QFRC_APPLIED, NV, A_XFRC, 6 * NB, A_QACC, NV, A_QFRC_CONSTRAINT, NV, A_QFRC_SMOOTH, NV,
                        A_QFRC_ACTUATOR, NV, A_ACTUATOR_FORCE, NU, A_SENSORDATA, NSENSORDATA, A_TIME, 1,
#if NETS
                        A_NET, NU * NET_MEMORY,
#endif
  };
  ROLLED for (int k = 0; k < (int)(sizeof(zeroed) / sizeof(int)); k += 2) {
    real* p = live<real>(w, zeroed[k], zeroed[k + 1]);
    if (p) EACH_OF_MANY(i, zeroed[k + 1]) p[i] = 0;
  }
  EACH(one, 1) {
    *live<unsigned char>(w, A_NONFINITE, 1) = 1;
    *live<unsigned char>(w, A_FRESH, 1) = 1;
  }
  sync();
}

// The state after the last physics step, if it is one.
FN void finish_state(const World& w, Scratch& S, int substeps) {
  EACH(one, 1) {
    *live<unsigned char>(w, A_NONFINITE, 1) = 0;
    if (S.overflowed) *live<long long>(w, A_OVERFLOW, 1) += 1;
    real* time = live<real>(w, A_TIME, 1);
    ROLLED for (int k = 0; k < substeps; k++) *time += TIMESTEP;  // as single steps would
  }
  sync();
  if (!all_sound(S)) start_anew(w, S);
  store_state(w, S);
}

// substeps 0: outputs of the state as it is, in the worlds of `mask`. round: which to make, ALL_ROUNDS: of all, at once.
enum { ALL_ROUNDS = -1 };
FN void step_world(const World& w, Scratch& S, int substeps, int round) {
  const unsigned char* mask = live<const unsigned char>(w, A_MASK, 1);
  if (substeps == 0 && mask && !*mask) return;
  Problem P;
  START_CLOCK(S);
  load_state(w, S, round);
  MARK(S, 0);
  ROLLED for (int k = round == ALL_ROUNDS ? 0 : round;; k++) {
    if (k == substeps && substeps) {
      if (round != ALL_ROUNDS) EACH(one, 1) *progress_of(w) = 0;
      finish_state(w, S, substeps);
      MARK(S, 10);
    }
    if (k == substeps && !w.arrays[A_ANY_POSITION]) break;
    meet();
    kinematics(w, S);
    if (k == substeps && !w.arrays[A_ANY_VELOCITY]) break;
    MAP(i, NV) store_spatial(S.chain[i], S.qvel[i] * axis_of(S, i));
    sum_along_chains(w, S);
    MARK(S, 1);
    if (k == substeps) break;
    physics_step(w, S, P, k == substeps - 1);
    if (round != ALL_ROUNDS && k < substeps - 1) {
      end_round(w, S, k + 1);
      return;
    }
  }
  if (w.arrays[A_ANY_POSITION]) write_state_outputs(w, S);
  MARK(S, 11);
  STORE_CLOCK(w, S);
}
