// The narrow phase of collision: one possible contact of one pair of geoms, as C MuJoCo finds it.
//
// A pure function that one lane runs: every (pair, k) is a work item of its own. The geom of the lower type comes
// first; normals point from it to the other. All thresholds on lengths are C's in float64; in float32, where an angle
// of 1e-7 is noise, directions that C tells apart below SLIGHT count as parallel.
#pragma once

// A model says which kinds it has; the others cost neither code nor registers.
#ifndef HAS_PLANE_SPHERE
#define HAS_PLANE_SPHERE 1
#endif
#ifndef HAS_PLANE_CAPSULE
#define HAS_PLANE_CAPSULE 1
#endif
#ifndef HAS_PLANE_BOX
#define HAS_PLANE_BOX 1
#endif
#ifndef HAS_PLANE_CYLINDER
#define HAS_PLANE_CYLINDER 1
#endif
#ifndef HAS_PLANE_ELLIPSOID
#define HAS_PLANE_ELLIPSOID 1
#endif
#ifndef HAS_SPHERE_SPHERE
#define HAS_SPHERE_SPHERE 1
#endif
#ifndef HAS_SPHERE_CAPSULE
#define HAS_SPHERE_CAPSULE 1
#endif
#ifndef HAS_CAPSULE_CAPSULE
#define HAS_CAPSULE_CAPSULE 1
#endif
#define HAS_PLANES (HAS_PLANE_SPHERE || HAS_PLANE_CAPSULE || HAS_PLANE_BOX || HAS_PLANE_CYLINDER || HAS_PLANE_ELLIPSOID)
#define HAS_BALLS (HAS_SPHERE_SPHERE || HAS_SPHERE_CAPSULE || HAS_CAPSULE_CAPSULE)

enum {
  PLANE_SPHERE = 0,
  PLANE_CAPSULE,
  PLANE_BOX,
  PLANE_CYLINDER,
  PLANE_ELLIPSOID,
  SPHERE_SPHERE,
  SPHERE_CAPSULE,
  CAPSULE_CAPSULE,
  SPHERE_BOX,  // see boxes.h
  CAPSULE_BOX,
  BOX_BOX,
  HFIELD_SPHERE,  // see hfield.h
  HFIELD_CAPSULE,
  HFIELD_BOX
};

// How many contacts a pair of a kind can have.
#define POSSIBLE(kind)                                                                                    \
  (HAS_BOX_BOX && (kind) == BOX_BOX ? 8 : (kind) == PLANE_BOX || (kind) == PLANE_CYLINDER ? 4             \
   : (kind) == PLANE_CAPSULE || (kind) == CAPSULE_CAPSULE || (HAS_CAPSULE_BOX && (kind) == CAPSULE_BOX) ? 2 : 1)

// The sine of an angle (or a ratio of lengths) that is taken for 0.
#define SLIGHT (sizeof(real) == 8 ? TINY : R(1e-6))

// A geom: its world pose [m] and MuJoCo's geom_size [m]: (radius), (radius, half-length) or (half-sizes).
struct Shape {
  vec3 pos;
  quat rot;
  vec3 size;
};

// A contact: halfway between the surfaces [m], the frame's first two rows, and the distance [m], < 0 in penetration.
struct Hit {
  vec3 pos, normal, tangent;
  real dist;
};

// Columns of the rotation's matrix, so written that a quarter turn gives exact zeros, on which C's orders depend.
FN vec3 z_axis(const quat& q) {
  return v3(R(2) * (q.x * q.z + q.w * q.y), R(2) * (q.y * q.z - q.w * q.x),
            (q.w * q.w - q.x * q.x) + (q.z * q.z - q.y * q.y));
}
FN vec3 x_axis(const quat& q) {
  return v3((q.w * q.w - q.z * q.z) + (q.x * q.x - q.y * q.y), R(2) * (q.x * q.y + q.w * q.z),
            R(2) * (q.x * q.z - q.w * q.y));
}

// The tangent that nothing else determines: y, or z where the normal is near y, made orthogonal to the normal n.
FN vec3 default_tangent(vec3 n) {
  bool y = magnitude(n.y) < R(0.5);
  real along = y ? n.y : n.z;
  real s = inverse(root(R(1) - along * along));  // along^2 <= 3/4
  return s * (v3(0, y ? R(1) : R(0), y ? R(0) : R(1)) - along * n);
}

// What each kind finds is a pair of points (two balls touch) or a point and its distance from the plane; the rest of a
// contact is made from these in one place, so that lanes with different kinds part only briefly.

// Balls about two points; the rotations of the geoms they stand for matter only where the points coincide.
FN bool balls(vec3 p1, real r1, const quat& rot1, vec3 p2, real r2, const quat& rot2, real reach, Hit& hit) {
  vec3 n = p2 - p1;
  real square = dot(n, n), most = reach + r1 + r2;
  if (!(square <= most * most)) return false;
  real l = root(square);
  hit.dist = l - r1 - r2;
  if (l < SLIGHT) {  // across both z axes; x where those are parallel
    n = cross(z_axis(rot1), z_axis(rot2));
    l = length(n);
    if (l < SLIGHT) n = v3(1, 0, 0), l = 1;
  }
  n = inverse(l) * n;
  hit.normal = n;
  hit.tangent = default_tangent(n);
  hit.pos = p1 + (r1 + R(0.5) * hit.dist) * n;
  return true;
}

// The point of a capsule's segment that is nearest to p.
FN vec3 nearest_to(vec3 p, const Shape& capsule) {
  vec3 axis = z_axis(capsule.rot);
  return capsule.pos + clamp_to(dot(axis, p - capsule.pos), -capsule.size.y, capsule.size.y) * axis;
}

// The nearest points p and q of two capsules' segments; where the axes are parallel, two pairs: from each end of the
// first segment. x and y run along the two axes from the centres.
FN bool nearest_points(int k, const Shape& a, const Shape& b, vec3& p, vec3& q) {
  vec3 u = z_axis(a.rot), v = z_axis(b.rot), d = a.pos - b.pos, w = cross(u, v);
  real h1 = a.size.y, h2 = b.size.y, uv = dot(u, v), det = dot(w, w), x;
  bool sphere = R(4) * h1 * h1 <= TINY || R(4) * h2 * h2 <= TINY, parallel = !(det > R(1e-8));
  if (k && (sphere || !parallel)) return false;
  if (!parallel) {
    // dot(w, cross(v, d)) / det, and not the usual 2x2 system: its determinant 1 - uv^2 cancels in float32.
    x = clamp_to(dot(w, cross(v, d)) * inverse(det), -h1, h1);
  } else {
    x = sphere ? R(0) : k ? h1 : -h1;
  }
  real y = uv * x + dot(v, d);
  if (magnitude(y) > h2) {
    y = clamp_to(y, -h2, h2);
    x = clamp_to(uv * y - dot(u, d), -h1, h1);
  }
  p = a.pos + x * u, q = b.pos + y * v;
  return true;
}

// A plane's contacts: n is its normal, height that of the other geom's centre over it; p is a point of the geom's
// surface, relative to the centre, and dist its distance from the plane.

// The spheres at the ends, that at +z first; the tangent is the axis, projected on the plane.
FN bool plane_capsule(int k, const Shape& b, vec3 n, real height, real reach, vec3& p, real& dist, vec3& tangent) {
  vec3 axis = z_axis(b.rot);
  real h = k ? -b.size.y : b.size.y, r = b.size.x, end = height + h * dot(axis, n);
  if (!(end <= reach + r)) return false;
  dist = end - r;
  p = h * axis - r * n;
  vec3 t = cross(n, cross(axis, n));  // not axis - dot(axis, n) * n, which is not in the plane when that is small
  real l = length(t);
  if (l < SLIGHT) {  // upright: x, as C has it; but C leaves it so where x is not in the plane
    t = cross(n, cross(v3(1, 0, 0), n));
    l = length(t);
  }
  if (l >= SLIGHT) tangent = inverse(l) * t;
  return true;
}

// C keeps the first four corners (x changes fastest) that are in reach and not above the centre.
FN bool plane_box(int k, const Shape& b, vec3 n, real height, real reach, vec3& p, real& dist) {
  axes box = axes_of(b.rot);
  vec3 up = seen(box, n);
  up = v3(b.size.x * up.x, b.size.y * up.y, b.size.z * up.z);
  int corner = -1, found = 0;
  ROLLED for (int i = 0; i < 8; i++) {
    real rise = (i & 1 ? up.x : -up.x) + (i & 2 ? up.y : -up.y) + (i & 4 ? up.z : -up.z);
    if (height + rise <= reach && rise <= 0 && found++ == k) corner = i, dist = height + rise;
  }
  if (corner < 0) return false;
  p = v3(corner & 1 ? b.size.x : -b.size.x, corner & 2 ? b.size.y : -b.size.y, corner & 4 ? b.size.z : -b.size.z);
  p = turned(box, p);
  return true;
}

// The lowest points of the near and the far disk, then two that complete an equilateral triangle on the near disk.
FN bool plane_cylinder(int k, const Shape& b, vec3 n, real height, real reach, vec3& p, real& dist) {
  vec3 axis = z_axis(b.rot);
  real up = dot(axis, n), r = b.size.x, h = b.size.y;
  if (up > 0) axis = -axis, up = -up;  // towards the plane
  // Across the axis: `down` towards the plane, `side` along it. From the cross product, so that the lowest point is
  // right even when the cylinder stands nearly upright.
  vec3 side = cross(axis, n), down;
  real sine = length(side), rise;
  if (sine >= SLIGHT) {
    side = inverse(sine) * side;
    down = cross(axis, side);
    rise = -r * sine;
  } else {
    down = x_axis(b.rot);
    side = cross(down, axis);
    rise = sizeof(real) == 8 ? r * dot(down, n) : R(0);  // below SLIGHT: noise in float32
  }
  real near = height + h * up;
  if (!(near + rise <= reach)) return false;
  real s = r, t = 0;  // the point is s * down + t * side from the centre of its disk
  if (k == 0) {
    dist = near + rise;
  } else if (k == 1) {
    dist = height - h * up + rise;
    h = -h;
  } else {
    dist = near - R(0.5) * rise;
    s = R(-0.5) * r, t = (k == 2 ? R(0.866025403784438647) : R(-0.866025403784438647)) * r;
    if (r * h < TINY) side = v3(1, 0, 0);
  }
  p = h * axis + s * down + t * side;
  return dist <= reach;
}

// The lowest point: that of the unit sphere, scaled by the half-sizes. Its depth below the centre is the support
// function, which float32 gives more accurately than the point.
FN bool plane_ellipsoid(const Shape& b, vec3 n, real height, real reach, vec3& p, real& dist) {
  axes frame = axes_of(b.rot);
  vec3 down = seen(frame, -n);
  down = v3(b.size.x * down.x, b.size.y * down.y, b.size.z * down.z);
  real l = length(down);
  dist = height - l;
  if (!(dist <= reach)) return false;
  down = inverse(more(l, TINY)) * down;
  p = turned(frame, v3(b.size.x * down.x, b.size.y * down.y, b.size.z * down.z));
  return true;
}

FN bool on_plane(int kind, int k, const Shape& a, const Shape& b, real reach, Hit& hit) {
  vec3 n = z_axis(a.rot), p = v3(0, 0, 0);
  real height = dot(b.pos - a.pos, n), dist = 0;
  hit.tangent = default_tangent(n);
  bool found = false;
  if (HAS_PLANE_SPHERE && kind == PLANE_SPHERE) {
    found = height <= reach + b.size.x;
    dist = height - b.size.x;
    p = -b.size.x * n;
  } else if (HAS_PLANE_CAPSULE && kind == PLANE_CAPSULE) {
    found = plane_capsule(k, b, n, height, reach, p, dist, hit.tangent);
  } else if (HAS_PLANE_BOX && kind == PLANE_BOX) {
    found = plane_box(k, b, n, height, reach, p, dist);
  } else if (HAS_PLANE_CYLINDER && kind == PLANE_CYLINDER) {
    found = plane_cylinder(k, b, n, height, reach, p, dist);
  } else if (HAS_PLANE_ELLIPSOID && kind == PLANE_ELLIPSOID) {
    found = plane_ellipsoid(b, n, height, reach, p, dist);
  }
  hit.normal = n;
  hit.dist = dist;
  hit.pos = b.pos + p - (R(0.5) * dist) * n;
  return found;
}

// The k-th possible contact (k < POSSIBLE(kind)) of geoms a and b: true where C MuJoCo has it within `reach` [m], that
// is margin plus gap, and `hit` is it.
FN bool touch(int kind, int k, const Shape& a, const Shape& b, real reach, Hit& hit) {
  if (HAS_PLANES && (!HAS_BALLS || kind <= PLANE_ELLIPSOID)) return on_plane(kind, k, a, b, reach, hit);
  if (!HAS_BALLS) return false;
  vec3 p = a.pos, q = b.pos;
  if (HAS_SPHERE_CAPSULE && kind == SPHERE_CAPSULE) q = nearest_to(p, b);
  if (HAS_CAPSULE_CAPSULE && kind == CAPSULE_CAPSULE && !nearest_points(k, a, b, p, q)) return false;
  return balls(p, a.size.x, a.rot, q, b.size.x, b.rot, reach, hit);
}
