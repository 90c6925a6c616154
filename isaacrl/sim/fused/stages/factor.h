// H x = b for a symmetric positive definite H, one row a lane.
//
// Rows beyond the lanes (nv > LANES) lie in scratch memory and are eliminated first. The others are in registers:
// Gauss-Jordan elimination, two pivots a round trip through scratch memory. As the block that is left stays symmetric, a
// pivot's row is read as its column.
#pragma once

#define EXTRA (NV > NR)

struct Row {
  real v[NROW];
};

#if EXTRA
// Eliminates rows NR .. NV - 1, which S.extra has, from all others; S.vector holds b.
FN void eliminate_extra_rows(Scratch& S, Per<Row, ROWS>& H, Per<real, ROWS>& x) {
  ROLLED for (int e = NV - 1; e >= NR; e--) {
    const real* E = S.extra[e - NR];
    real inv = inverse(E[e]), b = S.vector[e];
    EACH(i, NR) {
      real f = E[i] * inv;
      x[i] -= f * b;
      UNROLL for (int q = 0; q < NROW; q += 4) {
        four t = load4(E + q);
        H[i].v[q] -= f * t.x, H[i].v[q + 1] -= f * t.y, H[i].v[q + 2] -= f * t.z, H[i].v[q + 3] -= f * t.w;
      }
    }
    ROLLED for (int m = NR; m < e; m++) {
      real f = E[m] * inv;
      EACH(j, NV) if (j <= m) S.extra[m - NR][j] -= f * E[j];
      EACH(one, 1) S.vector[m] -= f * b;
    }
    sync();
  }
}

FN void recover_extra_rows(Scratch& S, const Per<real, ROWS>& x) {
  EACH(i, NR) S.vector[i] = x[i];
  sync();
  ROLLED for (int e = NR; e < NV; e++) {
    const real* E = S.extra[e - NR];
    real s = 0;
    EACH(j, NV) if (j < e) s += E[j] * S.vector[j];
    real value = (S.vector[e] - across(s)) / E[e];
    sync();
    EACH(one, 1) S.vector[e] = value;
    sync();
  }
}

#endif

// Four pivots from k on; H has the columns from k to the last, W of them, and moves to those from k + 4 on.
template <int W>
FN void eliminate(Scratch& S, Per<Row, ROWS>& H, Per<real, ROWS>& x, Per<real, ROWS>& scale, int k) {
  UNROLL for (int p = 0; p < 4; p += 2) {
    real *first = S.pivot[p / 2], *second = first + ROWS;
    EACH(i, ROWS) first[i] = H[i].v[p], second[i] = H[i].v[p + 1];
    real b0 = from(x, k + p), b1 = from(x, k + p + 1);
    sync();
    real inv0 = inverse(first[k + p]), across_pivots = first[k + p + 1], s = across_pivots * inv0;
    real inv1 = inverse(second[k + p + 1] - s * across_pivots);
    b1 -= s * b0;
    EACH(i, ROWS) {
      real f0 = i == k + p ? R(0) : H[i].v[p] * inv0;
      real f1 = i == k + p + 1 ? R(0) : (H[i].v[p + 1] - f0 * across_pivots) * inv1;
      if (i == k + p) scale[i] = inv0;
      if (i == k + p + 1) scale[i] = inv1;
      x[i] = x[i] - f0 * b0 - f1 * b1;
      f0 -= f1 * s;
      UNROLL for (int q = p == 0 ? 0 : 4; q < W; q += 4) {
        four t = load4(first + k + q), u = load4(second + k + q);
        if (q) H[i].v[q] = H[i].v[q] - f0 * t.x - f1 * u.x, H[i].v[q + 1] = H[i].v[q + 1] - f0 * t.y - f1 * u.y;
        H[i].v[q + 2] = H[i].v[q + 2] - f0 * t.z - f1 * u.z;
        H[i].v[q + 3] = H[i].v[q + 3] - f0 * t.w - f1 * u.w;
      }
    }
  }
  EACH(i, ROWS) UNROLL for (int q = 4; q < W; q++) H[i].v[q - 4] = H[i].v[q];
}

// All pivots from k on, where H has W columns left: the next twelve with loops over W, those after over twelve fewer.
template <int W>
FN void eliminate_from(Scratch& S, Per<Row, ROWS>& H, Per<real, ROWS>& x, Per<real, ROWS>& scale, int& k) {
  constexpr int NEXT = W > 12 ? W - 12 : 0;
  ROLLED for (; k < NROW - NEXT; k += 4) eliminate<W>(S, H, x, scale, k);
  if constexpr (NEXT > 0) eliminate_from<NEXT>(S, H, x, scale, k);
}

// Solves in place: x holds b, then the solution. H is destroyed; rows and columns beyond NR are those of the identity.
// Loops of little code, which work on a few columns more than they need to: a kernel of this size is bound by fetching
// its instructions, so all loops here are kept small.
FN void gauss_jordan(Scratch& S, Per<Row, ROWS>& H, Per<real, ROWS>& x) {
  Per<real, ROWS> scale;
  EACH(i, ROWS) scale[i] = 0;
  int k = 0;
  eliminate_from<NROW>(S, H, x, scale, k);
  EACH(i, ROWS) x[i] *= scale[i];
  sync();
}

