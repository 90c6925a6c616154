// Integration: semi-implicit in the positions (MuJoCo: mj_EulerSkip, mj_implicitSkip, mj_integratePos).
#pragma once

// Positions by the new velocities.
FN void integrate_positions(const World& w, Scratch& S) {
  EACH(j, NJ) {
    int packed = jnt_packed(w)[j], type = packed & 3, adr = packed >> 2, dof = jnt_dofadr(w)[j];
    if (type == SLIDE || type == HINGE) {
      S.qpos[adr] += TIMESTEP * S.qvel[dof];
      continue;
    }
    if (type == FREE) {
      UNROLL for (int k = 0; k < 3; k++) S.qpos[adr + k] += TIMESTEP * S.qvel[dof + k];
      adr += 3, dof += 3;
    }
    vec3 v = v3(S.qvel + dof);
    real speed = length(v);
    quat q = normalized(q4(S.qpos + adr));
    if (speed > TINY) q = normalized(product(q, turn_by(inverse(speed) * v, TIMESTEP * speed)));
    S.qpos[adr] = q.w, S.qpos[adr + 1] = q.x, S.qpos[adr + 2] = q.y, S.qpos[adr + 3] = q.z;
  }
  sync();
}

#if SPINNING
// The acceleration a of a free body that nothing moves on, implicit in its gyroscopic force too, which makes the matrix
// unsymmetric: (M - h slope - h G) a = M qacc, where G is the derivative of the force by the velocity. In terms of M,
// whose upper right block is B = -m R [c]x, and of the inertia I about the body's origin, column k of G is
// -2 (R w) x B e_k + B (w x e_k) above and (I w) x e_k - w x I e_k below, for the angular velocity w in the body's axes.
// S.pivot: M qacc and slope. To S.vector.
RARE void free_acceleration(const World& w, Scratch& S, int body, int dof) {
  real A[6][7];
  for (int i = 0; i < 6; i++) {
    for (int j = 0; j < 6; j++) A[i][j] = S.mass[dof + i][dof + j];
    A[i][i] -= TIMESTEP * S.pivot[1][dof + i], A[i][6] = S.pivot[0][dof + i];
  }
  vec3 spin = v3(S.qvel + dof + 3), turning = rotate(orientation_of(S, body), spin), momentum = v3(0, 0, 0), B[3], I[3];
  for (int k = 0; k < 3; k++) {  // M is symmetric: columns as rows
    const real* M = S.mass[dof + 3 + k] + dof;
    B[k] = v3(M), I[k] = v3(M + 3);
    if (k == 0) I[k].x -= dof_armature(w)[dof + 3];
    if (k == 1) I[k].y -= dof_armature(w)[dof + 4];
    if (k == 2) I[k].z -= dof_armature(w)[dof + 5];
    momentum = momentum + (k == 0 ? spin.x : k == 1 ? spin.y : spin.z) * I[k];
  }
  for (int k = 0; k < 3; k++) {
    vec3 e = v3(k == 0, k == 1, k == 2), u = cross(spin, e);
    vec3 push = u.x * B[0] + u.y * B[1] + u.z * B[2] - R(2) * cross(turning, B[k]);
    vec3 twist = cross(momentum, e) - cross(spin, I[k]);
    const real G[6] = {push.x, push.y, push.z, twist.x, twist.y, twist.z};
    for (int i = 0; i < 6; i++) A[i][3 + k] -= TIMESTEP * G[i];
  }
  for (int p = 0; p < 6; p++) {
    for (int i = p + 1; i < 6; i++) {
      real f = A[i][p] / A[p][p];
      for (int j = p; j < 7; j++) A[i][j] -= f * A[p][j];
    }
  }
  for (int p = 5; p >= 0; p--) {
    for (int j = p + 1; j < 6; j++) A[p][6] -= A[p][j] * A[j][6];
    S.vector[dof + p] = A[p][6] = A[p][6] / A[p][p];
  }
}

FN void free_accelerations(const World& w, Scratch& S, const Problem& P, Per<real, NV>& acceleration) {
  sync();
  EACH(i, NV) S.pivot[0][i] = P.Ma[i], S.pivot[1][i] = P.slope[i], S.vector[i] = acceleration[i];
  sync();
  EACH_OF_MANY(k, SPINNING) free_acceleration(w, S, spinning_body(w)[k], spinning_dof(w)[k]);
  sync();
  EACH(i, NV) acceleration[i] = S.vector[i];
}
#endif

FN void integrate(const World& w, Scratch& S, const Per<real, NV>& acceleration, const Per<real, NV>& a) {
  sync();
  EACH(i, NV) {
    S.qvel[i] += TIMESTEP * acceleration[i];
    S.warm[i] = a[i];
  }
  sync();
  integrate_positions(w, S);
}
