// Velocities, inertias and sums over trees (Featherstone 2008, chapters 5 and 6; MuJoCo: mj_comVel, mj_rne, mj_crb).
#pragma once

// Each row of S.chain becomes its sum over that dof and the dofs above it. Pointer doubling.
FN void sum_along_chains(const World& w, Scratch& S) {
  Per<spatial, NV> x;
  Per<int, NV> up;
  MAP(i, NV) up[i] = dof_words(w, i).c, x[i] = load_spatial(S.chain[i]);
  LOOP for (int k = 0; k < DOF_ROUNDS; k++) {
    sync();
    MAP(i, NV) {
      int above = k < 4 ? byte_of(up[i], k) : dof_up(w)[k * NV + i];
      if (above != 255) x[i] = x[i] + load_spatial(S.chain[above]);
    }
    sync();
    MAP(i, NV) store_spatial(S.chain[i], x[i]);
  }
  sync();
}

// What S.chain holds for a body: the sum at its last dof; 0 for a body that cannot move.
FN spatial of_body(const World& w, const Scratch& S, int body) {
  int last = byte_of(body_words(w, body).a, 2);
  if (last == 255) return spatial{v3(0, 0, 0), v3(0, 0, 0)};
  return load_spatial(S.chain[last]);
}

// S.sums[b][0 .. count) becomes its sum over the subtree of b; one lane an element.
FN void sum_over_subtrees(Scratch& S, int count) {
  sync();
  EACH_OF_MANY(e, count) {
    real x[NB];
    real* column = &S.sums[0][e];
    UNROLL for (int b = 1; b < NB; b++) x[b] = column[b * MATRIX];
    UNROLL for (int b = NB - 1; b > 0; b--) if (BODY_PARENT[b]) x[BODY_PARENT[b]] += x[b];
    UNROLL for (int b = 1; b < NB; b++) column[b * MATRIX] = x[b];
  }
  sync();
}

// The summed force of the subtree that dof i moves, along its axis.
FN real along_axis(const World& w, const Scratch& S, int i) {
  const real* f = S.sums[byte_of(dof_words(w, i).a, 0)] + WRENCH;
  return dot(axis_of(S, i), spatial{v3(f), v3(f + 3)});
}

// A symmetric 6 x 6 matrix maps motion to force: rot-rot (xx yy zz xy xz yz), rot-lin by rows (9), lin-lin (6).
struct matrix6 {
  real m[WRENCH];
};
FN matrix6 load_matrix(const real* p) {
  matrix6 g;
  UNROLL for (int k = 0; k < 5; k++) {
    four a = load4(p + 4 * k);
    g.m[4 * k] = a.x, g.m[4 * k + 1] = a.y, g.m[4 * k + 2] = a.z, g.m[4 * k + 3] = a.w;
  }
  g.m[20] = p[20];
  return g;
}
FN vec3 times_sym(const real* s, vec3 v) {
  return v3(s[0] * v.x + s[3] * v.y + s[4] * v.z, s[3] * v.x + s[1] * v.y + s[5] * v.z, s[4] * v.x + s[5] * v.y + s[2] * v.z);
}
FN spatial times(const matrix6& g, spatial v) {
  const real* c = g.m + 6;
  vec3 rot = times_sym(g.m, v.rot) + v3(c[0] * v.lin.x + c[1] * v.lin.y + c[2] * v.lin.z,
                                        c[3] * v.lin.x + c[4] * v.lin.y + c[5] * v.lin.z,
                                        c[6] * v.lin.x + c[7] * v.lin.y + c[8] * v.lin.z);
  vec3 lin = times_sym(g.m + 15, v.lin) + v3(c[0] * v.rot.x + c[3] * v.rot.y + c[6] * v.rot.z,
                                             c[1] * v.rot.x + c[4] * v.rot.y + c[7] * v.rot.z,
                                             c[2] * v.rot.x + c[5] * v.rot.y + c[8] * v.rot.z);
  return spatial{rot, lin};
}

// The spatial inertia of a body whose centre of mass is at c from the reference point (Featherstone 2008, eq. 2.63).
FN matrix6 body_matrix(real mass, vec3 principal, quat rot, vec3 c) {
  axes a = axes_of(rot);
  matrix6 g;
  real* m = g.m;
  vec3 h = mass * c;
  m[0] = principal.x * a.x.x * a.x.x + principal.y * a.y.x * a.y.x + principal.z * a.z.x * a.z.x + h.y * c.y + h.z * c.z;
  m[1] = principal.x * a.x.y * a.x.y + principal.y * a.y.y * a.y.y + principal.z * a.z.y * a.z.y + h.x * c.x + h.z * c.z;
  m[2] = principal.x * a.x.z * a.x.z + principal.y * a.y.z * a.y.z + principal.z * a.z.z * a.z.z + h.x * c.x + h.y * c.y;
  m[3] = principal.x * a.x.x * a.x.y + principal.y * a.y.x * a.y.y + principal.z * a.z.x * a.z.y - h.x * c.y;
  m[4] = principal.x * a.x.x * a.x.z + principal.y * a.y.x * a.y.z + principal.z * a.z.x * a.z.z - h.x * c.z;
  m[5] = principal.x * a.x.y * a.x.z + principal.y * a.y.y * a.y.z + principal.z * a.z.y * a.z.z - h.y * c.z;
  m[6] = 0, m[7] = -h.z, m[8] = h.y;
  m[9] = h.z, m[10] = 0, m[11] = -h.x;
  m[12] = -h.y, m[13] = h.x, m[14] = 0;
  m[15] = m[16] = m[17] = mass;
  m[18] = m[19] = m[20] = 0;
  return g;
}

// Inertias, and the bias force of each dof (gravity, Coriolis, external wrenches) to S.vector: the recursive
// Newton-Euler algorithm without joint accelerations. S.chain has the sums of velocities along chains.
FN void inertia_and_bias(const World& w, Scratch& S) {
  Per<spatial, NV> swept;  // cdof_dot qvel
  Per<spatial, NB> moving;
  MAP(b, NB) moving[b] = of_body(w, S, b);
  MAP(i, NV) {
    words dof = dof_words(w, i);
    spatial v = load_spatial(S.chain[byte_of(dof.b, 2)]);
    swept[i] = ((dof.b & 15) == AXIS_WORLD ? R(0) : S.qvel[i]) * cross_motion(v, axis_of(S, i));
  }
  sync();
  MAP(i, NV) store_spatial(S.chain[i], swept[i]);
  sum_along_chains(w, S);
  const real* wrenches = live<const real>(w, A_XFRC, 6 * NB);
  vec3 gravity = v3(opt_gravity(w));
  MAP(b, NB) {
    real mass = body_mass(w)[b];
    quat rot = orientation_of(S, b);
    vec3 c = position_of(S, b) + rotate(rot, body_ipos(w, b)) - v3(S.pose[byte_of(body_words(w, b).a, 1)]);
    matrix6 g = body_matrix(mass, body_inertia(w, b), product(rot, body_iquat(w, b)), c);
    spatial v = moving[b], a = of_body(w, S, b);
    a.lin = a.lin - gravity;
    spatial f = times(g, a) + cross_force(v, times(g, v));
#if GRAVCOMP
    vec3 lift = (body_gravcomp(w)[b] * mass) * gravity;
    f = f + spatial{cross(c, lift), lift};
#endif
    if (wrenches) {
      vec3 push = v3(wrenches + 6 * b), twist = v3(wrenches + 6 * b + 3);
      f = f - spatial{twist + cross(c, push), push};
    }
    real* out = S.sums[b];
    UNROLL for (int k = 0; k < 20; k += 4) store4(out + k, g.m[k], g.m[k + 1], g.m[k + 2], g.m[k + 3]);
    out[20] = g.m[20], out += WRENCH;
    store(out, f.rot), store(out + 3, f.lin);
  }
  sum_over_subtrees(S, WRENCH + 6);
  MAP(i, NV) S.vector[i] = along_axis(w, S, i);
  sync();
}

// The joint-space inertia to S.mass, from the subtrees' inertias in S.sums (composite rigid bodies: M_ij = axis_j . I
// axis_i for j above i, and the armature; MuJoCo: mj_crb).
FN void mass_matrix(const World& w, Scratch& S) {
  EACH(i, NMASS) {
    UNROLL for (int q = 0; q < COLUMNS; q += 4) store4(S.mass[i] + q, 0, 0, 0, 0);
    if (i >= NV && i < COLUMNS) S.mass[i][i] = 1;
  }
  sync();
  MAP(i, NV) {
    words dof = dof_words(w, i);
    int depth = byte_of(dof.b, 3);
    spatial f = times(load_matrix(S.sums[byte_of(dof.a, 0)]), axis_of(S, i));
    S.mass[i][i] = dot(axis_of(S, i), f) + dof_armature(w)[i];
    LOOP for (int q = 0; q < DEPTH_WORDS; q++) {
      int above = dof_above(w)[q * NV + i];
      UNROLL for (int d = 0; d < 4; d++) {
        if (4 * q + d < depth) {
          int j = byte_of(above, d);
          S.mass[i][j] = S.mass[j][i] = dot(axis_of(S, j), f);
        }
      }
    }
  }
  sync();
}
