// What is written once, at the end of a launch: only arrays that somebody asked for (address not 0).
#pragma once

#define WANTED(array) (w.arrays[array] != 0)

// Sums of mass and of mass times position (relative to the tree's origin) over subtrees, to S.sums[b][0 .. 3].
FN void centers_of_mass(const World& w, Scratch& S) {
  sync();
  EACH(b, NB) {
    real mass = body_mass(w)[b];
    vec3 c = mass * (position_of(S, b) + rotate(orientation_of(S, b), body_ipos(w, b)));
    S.sums[b][0] = mass, store(S.sums[b] + 1, c);
  }
  sum_over_subtrees(S, 4);
}
// Relative to the tree's origin; not of the world itself (see center_in_world).
FN vec3 center_of_mass(const World& w, const Scratch& S, int body) {
  const real* s = S.sums[body];
  return s[0] > TINY ? (1 / s[0]) * v3(s + 1)
                     : position_of(S, body) + rotate(orientation_of(S, body), body_ipos(w, body));
}

FN void write_matrix(real* out, quat q) {
  axes a = axes_of(q);
  out[0] = a.x.x, out[1] = a.y.x, out[2] = a.z.x, out[3] = a.x.y, out[4] = a.y.y, out[5] = a.z.y;
  out[6] = a.x.z, out[7] = a.y.z, out[8] = a.z.z;
}

FN void write_bodies(const World& w, Scratch& S) {
  real *xpos = live<real>(w, A_XPOS, 3 * NB), *xquat = live<real>(w, A_XQUAT, 4 * NB), *xmat = live<real>(w, A_XMAT, 9 * NB);
  real *xipos = live<real>(w, A_XIPOS, 3 * NB), *ximat = live<real>(w, A_XIMAT, 9 * NB);
  EACH_OF_MANY(b, NB) {
    quat q = orientation_of(S, b);
    vec3 p = origin_of(w, S, b) + position_of(S, b);
    if (xpos) store(xpos + 3 * b, p);
    if (xquat) xquat[4 * b] = q.w, store(xquat + 4 * b + 1, v3(q.x, q.y, q.z));
    if (xmat) write_matrix(xmat + 9 * b, q);
    if (xipos) store(xipos + 3 * b, p + rotate(q, body_ipos(w, b)));
    if (ximat) write_matrix(ximat + 9 * b, product(q, body_iquat(w, b)));
  }
}

FN void write_geoms_and_sites(const World& w, Scratch& S) {
  real *pos = live<real>(w, A_GEOM_XPOS, 3 * NGEOM), *mat = live<real>(w, A_GEOM_XMAT, 9 * NGEOM);
  if (pos || mat) {
    EACH_OF_MANY(g, NGEOM) {
      int b = geom_bodyid(w)[g];
      quat q = orientation_of(S, b);
      if (pos) store(pos + 3 * g, origin_of(w, S, b) + position_of(S, b) + rotate(q, geom_pos(w, g)));
      if (mat) write_matrix(mat + 9 * g, product(q, geom_quat(w, g)));
    }
  }
  pos = live<real>(w, A_SITE_XPOS, 3 * NSITE), mat = live<real>(w, A_SITE_XMAT, 9 * NSITE);
  if (pos || mat) {
    EACH_OF_MANY(s, NSITE) {
      int b = site_bodyid(w)[s];
      quat q = orientation_of(S, b);
      if (pos) store(pos + 3 * s, origin_of(w, S, b) + position_of(S, b) + rotate(q, site_pos(w, s)));
      if (mat) write_matrix(mat + 9 * s, product(q, site_quat(w, s)));
    }
  }
}

// Velocities as MuJoCo's cvel: (angular, linear at the centre of mass of the body's tree). S.chain: sums of velocities.
FN void write_velocities(const World& w, Scratch& S) {
  real *cvel = live<real>(w, A_CVEL, 6 * NB), *com = live<real>(w, A_SUBTREE_COM, 3 * NB);
  EACH_OF_MANY(b, NB) {
    if (com) store(com + 3 * b, center_in_world(w, S, b));
    if (cvel) {
      spatial v = of_body(w, S, b);
      int root = body_root(w)[b];
      vec3 lin = v.lin + cross(v.rot, center_of_mass(w, S, root) - position_of(S, root));
      store(cvel + 6 * b, v.rot), store(cvel + 6 * b + 3, lin);
    }
  }
}

FN void write_actuators(const World& w, Scratch& S) {
#if NU
  real *len = live<real>(w, A_ACTUATOR_LENGTH, NU), *vel = live<real>(w, A_ACTUATOR_VELOCITY, NU);
  if (len || vel) {
    EACH_OF_MANY(u, NU) {
      real gear = actuator_gear(w)[6 * u];
      if (len) len[u] = gear * S.qpos[actuator_words(w, u).b];
      if (vel) vel[u] = gear * S.qvel[actuator_words(w, u).c];
    }
  }
#endif
}

// Everything that derives from positions and velocities. S.chain: sums of velocities.
FN void write_state_outputs(const World& w, Scratch& S) {
  write_bodies(w, S);
  write_geoms_and_sites(w, S);
  write_actuators(w, S);
  if (!WANTED(A_ANY_VELOCITY)) return;
  if (WANTED(A_CVEL) || WANTED(A_SUBTREE_COM)) {
    centers_of_mass(w, S);
    write_velocities(w, S);
  }
#if NSENSOR_STATE
  write_state_sensors(w, S);
#endif
}

// Accelerations and forces of the last physics step.
FN void write_force_outputs(const World& w, Scratch& S, Problem& P) {
  real *qacc = live<real>(w, A_QACC, NV), *constraint = live<real>(w, A_QFRC_CONSTRAINT, NV), *smooth = live<real>(w, A_QFRC_SMOOTH, NV);
  EACH(i, NV) {
    if (qacc) qacc[i] = P.a[i];
    if (constraint) constraint[i] = P.Ma[i] - P.force[i];
    if (smooth) smooth[i] = P.force[i];
  }
  int *ncon = live<int>(w, A_NCON, 1), *nefc = live<int>(w, A_NEFC, 1), *niter = live<int>(w, A_NITER, 1);
  EACH(one, 1) {
    if (ncon) *ncon = P.touching;
    if (nefc) *nefc = P.nefc;
    if (niter) *niter = P.iterations;
  }
#if NSENSOR_FORCE
  write_force_sensors(w, S, P);
#endif
}
