// Actuation and passive forces (isaacrl.sim.actuators.Law; MuJoCo: mj_fwdActuation, mj_passive).
#pragma once

enum { LAW_DIRECT, LAW_PD, LAW_NETWORK };

// The control of actuator u in this physics step: its target, late by the delay, and the explicit law.
FN real control_of(const World& w, Scratch& S, int u, bool fresh) {
  real target = live<const real>(w, A_TARGET, NU)[u];
  if (!(magnitude(target) <= R(1e10))) S.failed = 1;  // limits would hide it
#if LINE  // places in the delay line, newest first: [LINE, number of worlds, NU]
  volatile real* line = (real*)w.arrays[A_LINE] + (size_t)w.id * NU + u;  // another multiprocessor may have written it
  size_t stride = (size_t)w.arrays[A_NUM_WORLDS] * NU;
  ROLLED for (int k = LINE - 1; k > 0; k--) line[k * stride] = fresh ? target : line[(k - 1) * stride];
  line[0] = target;
  int age = (int)nearest(clamp_to(law_delay(w)[u], R(0), R(LINE - 1)));
  target = line[age * stride];
#endif
#if ANY_EXPLICIT
  if (int kind = law_kind(w)[u]) {
    real error = target - S.qpos[law_qpos(w)[u]], qd = S.qvel[law_qvel(w)[u]], torque = 0;
#if ANY_PD
    if (kind == LAW_PD) torque = law_kp(w)[u] * error - law_kd(w)[u] * qd;
#endif
#if NETS
    if (kind == LAW_NETWORK) torque = network_torque(w, u, error, qd);
    if (!(magnitude(torque) <= R(1e10))) S.failed = 1;
#endif
    real low = -law_effort(w)[u], high = -low, stall = law_stall(w)[u];
    if (stall < R(1e30)) {  // the torque-speed line of a DC motor; braking is bounded by the stall torque too
      real droop = law_slope(w)[u] * qd;
      low = more(low, less(-stall - droop, R(0)));
      high = less(high, more(stall - droop, R(0)));
    }
    target = less(more(torque, low), high);
  }
#endif
  return target;
}

// Generalized forces but those of constraints: actuators, springs, dampers, applied forces, less the bias (S.vector).
// slope[i] is the derivative of dof i's force by its own velocity, which implicit integration needs (MuJoCo:
// mjd_smooth_vel).
FN void smooth_forces(const World& w, Scratch& S, bool last, Per<real, NV>& force, Per<real, NV>& slope) {
#if NU
  bool fresh = false;
#if LINE
  volatile unsigned char* flag = live<volatile unsigned char>(w, A_FRESH, 1);
  fresh = *flag;
  sync();
#endif
  EACH(u, NU) {
    real ctrl = control_of(w, S, u, fresh);
    if (last && w.arrays[A_CTRL]) live<real>(w, A_CTRL, NU)[u] = ctrl;
    words act = actuator_words(w, u);
    if (act.a & CTRL_LIMITED) {
      ctrl = clamp_to(ctrl, actuator_ctrlrange(w)[2 * u], actuator_ctrlrange(w)[2 * u + 1]);
    }
    const real *gain = actuator_gainprm(w) + PRM * u, *law = actuator_biasprm(w) + PRM * u;
    real gear = actuator_gear(w)[6 * u];
    real len = gear * S.qpos[act.b], vel = gear * S.qvel[act.c];
    real g = gain[0], b = 0, d = 0;
    if (act.a & AFFINE_GAIN) g += gain[1] * len + gain[2] * vel, d = gain[2] * ctrl;
    if (act.a & AFFINE_BIAS) b = law[0] + law[1] * len + law[2] * vel, d += law[2];
    real f = g * ctrl + b;
    if (act.a & FORCE_LIMITED) {
      real low = actuator_forcerange(w)[2 * u], high = actuator_forcerange(w)[2 * u + 1];
      if (f <= low || f >= high) d = 0;  // a clamped force does not depend on the velocity
      f = clamp_to(f, low, high);
    }
    S.force[u] = f, S.drive[act.d] = gear * f, S.drive[NU + act.d] = gear * gear * d;
    if (last && w.arrays[A_ACTUATOR_FORCE]) live<real>(w, A_ACTUATOR_FORCE, NU)[u] = f;
  }
#if LINE
  EACH(one, 1) *flag = 0;
#endif
#endif
  sync();
  const real* applied = live<const real>(w, A_QFRC_APPLIED, NV);
  EACH(i, NV) {
    real f = 0, s = -dof_damping(w)[i];
#if NU
    words drive = drive_words(w, i);
    ROLLED for (int k = drive.a; k < drive.b; k++) {
      f += S.drive[k];
      if (!EULER) s += S.drive[NU + k];
    }
    if (drive.c) {
      real low = dof_forcerange(w)[2 * i], high = dof_forcerange(w)[2 * i + 1];
      if (f <= low || f >= high) s = -dof_damping(w)[i];
      f = clamp_to(f, low, high);
    }
#endif
    if (last && w.arrays[A_QFRC_ACTUATOR]) live<real>(w, A_QFRC_ACTUATOR, NV)[i] = f;
    f -= S.vector[i] + dof_damping(w)[i] * S.qvel[i];
#if STIFFNESS
    if (dof_scalar(w)[i]) {
      int a = dof_qpos(w)[i];
      f -= jnt_stiffness(w)[dof_jnt(w)[i]] * (S.qpos[a] - qpos_spring(w)[a]);
    }
#endif
    if (applied) f += applied[i];
    if (!(magnitude(f) <= R(1e30))) S.failed = 1;  // the solver would end where it starts
    force[i] = f, slope[i] = s;
  }
}
