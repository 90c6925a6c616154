// Vectors, quaternions (w, x, y, z) and spatial vectors. Spatial motion: (angular, linear at the tree's reference
// point); spatial force: (torque about that point, force). World axes throughout.
#pragma once

#define TINY R(1e-15)  // mjMINVAL

struct vec3 {
  real x, y, z;
};
struct quat {
  real w, x, y, z;
};
struct ALIGNED four {
  real x, y, z, w;
};
struct spatial {
  vec3 rot, lin;
};

#if GPU
FN real inverse(real x) {  // 1 ulp
  real y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FN real root(real x) { return sqrtf(x); }
FN real nearest(real x) { return rintf(x); }
FN real magnitude(real x) { return fabsf(x); }
FN real less(real a, real b) { return fminf(a, b); }
FN real more(real a, real b) { return fmaxf(a, b); }
#else
FN real inverse(real x) { return R(1) / x; }
FN real root(real x) { return sqrt(x); }
FN real nearest(real x) { return floor(x + R(0.5)); }
FN real magnitude(real x) { return x < 0 ? -x : x; }
FN real less(real a, real b) { return a < b ? a : b; }
FN real more(real a, real b) { return a > b ? a : b; }
#endif

FN real clamp_to(real x, real low, real high) { return less(more(x, low), high); }

FN vec3 v3(real x, real y, real z) { return vec3{x, y, z}; }
FN vec3 v3(const real* p) { return vec3{p[0], p[1], p[2]}; }
FN vec3 operator+(vec3 a, vec3 b) { return v3(a.x + b.x, a.y + b.y, a.z + b.z); }
FN vec3 operator-(vec3 a, vec3 b) { return v3(a.x - b.x, a.y - b.y, a.z - b.z); }
FN vec3 operator-(vec3 a) { return v3(-a.x, -a.y, -a.z); }
FN vec3 operator*(real s, vec3 a) { return v3(s * a.x, s * a.y, s * a.z); }
FN real dot(vec3 a, vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
FN vec3 cross(vec3 a, vec3 b) { return v3(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x); }
FN real length(vec3 a) { return root(dot(a, a)); }
FN void store(real* p, vec3 a) { p[0] = a.x, p[1] = a.y, p[2] = a.z; }

FN quat q4(const real* p) { return quat{p[0], p[1], p[2], p[3]}; }
FN quat product(quat a, quat b) {
  return quat{a.w * b.w - a.x * b.x - a.y * b.y - a.z * b.z, a.w * b.x + a.x * b.w + a.y * b.z - a.z * b.y,
              a.w * b.y - a.x * b.z + a.y * b.w + a.z * b.x, a.w * b.z + a.x * b.y - a.y * b.x + a.z * b.w};
}
FN vec3 rotate(quat q, vec3 v) {
  vec3 u = v3(q.x, q.y, q.z), t = R(2) * cross(u, v);
  return v + q.w * t + cross(u, t);
}
FN quat conjugate(quat q) { return quat{q.w, -q.x, -q.y, -q.z}; }
FN quat normalized(quat q) {
  real n = q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z;
  if (!(n > TINY * TINY)) return n == n ? quat{1, 0, 0, 0} : q;  // as MuJoCo; NaN stays NaN
  real s = inverse(root(n));
  return quat{s * q.w, s * q.x, s * q.y, s * q.z};
}
// The three axes of a rotation: columns of its matrix.
struct axes {
  vec3 x, y, z;
};
FN axes axes_of(quat q) {
  real xx = q.x * q.x, yy = q.y * q.y, zz = q.z * q.z, xy = q.x * q.y, xz = q.x * q.z, yz = q.y * q.z;
  real wx = q.w * q.x, wy = q.w * q.y, wz = q.w * q.z;
  return axes{v3(1 - 2 * (yy + zz), 2 * (xy + wz), 2 * (xz - wy)), v3(2 * (xy - wz), 1 - 2 * (xx + zz), 2 * (yz + wx)),
              v3(2 * (xz + wy), 2 * (yz - wx), 1 - 2 * (xx + yy))};
}
FN vec3 turned(axes r, vec3 v) { return v.x * r.x + v.y * r.y + v.z * r.z; }        // to the world's axes
FN vec3 seen(axes r, vec3 v) { return v3(dot(r.x, v), dot(r.y, v), dot(r.z, v)); }  // to the frame's own

// sin and cos of half an angle. In float32 the angle is reduced modulo pi (a quaternion's sign means nothing) and
// both are polynomials: the chip's own approximations are not accurate enough.
FN void half_sin_cos(real angle, real& s, real& c) {
  real a = R(0.5) * angle;
  if (sizeof(real) == 8) {
    s = sin(a), c = cos(a);
    return;
  }
  real n = nearest(a * R(0.318309886183790672));
  a = a - n * R(3.140625);
  a = a - n * R(9.67653589793e-4);
  real x = a * a;
  s = a * (R(1) + x * (R(-1.0 / 6) + x * (R(1.0 / 120) + x * (R(-1.0 / 5040) + x * (R(1.0 / 362880) + x * R(-1.0 / 39916800))))));
  c = R(1) + x * (R(-0.5) + x * (R(1.0 / 24) + x * (R(-1.0 / 720) + x * (R(1.0 / 40320) + x * (R(-1.0 / 3628800) + x * R(1.0 / 479001600))))));
}
FN quat turn_by(vec3 axis, real angle) {
  real s, c;
  half_sin_cos(angle, s, c);
  return quat{c, s * axis.x, s * axis.y, s * axis.z};
}

FN spatial operator+(spatial a, spatial b) { return spatial{a.rot + b.rot, a.lin + b.lin}; }
FN spatial operator-(spatial a, spatial b) { return spatial{a.rot - b.rot, a.lin - b.lin}; }
FN spatial operator*(real s, spatial a) { return spatial{s * a.rot, s * a.lin}; }
FN real dot(spatial a, spatial b) { return dot(a.rot, b.rot) + dot(a.lin, b.lin); }
// v x m and v x* f (Featherstone 2008, section 2.9).
FN spatial cross_motion(spatial v, spatial m) { return spatial{cross(v.rot, m.rot), cross(v.rot, m.lin) + cross(v.lin, m.rot)}; }
FN spatial cross_force(spatial v, spatial f) { return spatial{cross(v.rot, f.rot) + cross(v.lin, f.lin), cross(v.rot, f.lin)}; }

// Scratch rows of 8 reals: two aligned loads.
FN four load4(const real* p) { return *(const four*)p; }
// From the tables, which a CPU aligns for single reals only.
#if GPU
FN four fetch4(const real* p) { return load4(p); }
#else
FN four fetch4(const real* p) { return four{p[0], p[1], p[2], p[3]}; }
#endif
FN vec3 fetch_vec3(const real* p) {
  four v = fetch4(p);
  return v3(v.x, v.y, v.z);
}
FN quat fetch_quat(const real* p) {
  four v = fetch4(p);
  return quat{v.x, v.y, v.z, v.w};
}
FN void store4(real* p, real x, real y, real z, real w) { *(four*)p = four{x, y, z, w}; }
FN spatial load_spatial(const real* p) {
  four a = load4(p), b = load4(p + 4);
  return spatial{v3(a.x, a.y, a.z), v3(b.x, b.y, b.z)};
}
FN void store_spatial(real* p, spatial s) {
  store4(p, s.rot.x, s.rot.y, s.rot.z, 0);
  store4(p + 4, s.lin.x, s.lin.y, s.lin.z, 0);
}
