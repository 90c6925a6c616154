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

FN void integrate(const World& w, Scratch& S, const Per<real, NV>& acceleration, const Per<real, NV>& a) {
  sync();
  EACH(i, NV) {
    S.qvel[i] += TIMESTEP * acceleration[i];
    S.warm[i] = a[i];
  }
  sync();
  integrate_positions(w, S);
}
