// Contacts with a height field. Each of its cells is two prisms, parted by the diagonal from the corner of least row and
// column to the opposite one: a triangle of heights above, upright sides, a level base. A geom has at most one contact
// with each prism, where the two are nearest or, where they overlap, along the shortest way out (MuJoCo:
// mjc_ConvexHField, whose general search arrives at the same; here it is worked out).
#pragma once

#ifndef HAS_HFIELD_SPHERE
#define HAS_HFIELD_SPHERE 1
#endif
#ifndef HAS_HFIELD_CAPSULE
#define HAS_HFIELD_CAPSULE 1
#endif

#ifndef HAS_HFIELD_BOX
#define HAS_HFIELD_BOX 1
#endif

#define FAR R(1e30)

// Positions are relative to the geom's centre, in the field's axes, z up.
struct Prism {
  vec3 v[3];    // corners of the top, counterclockwise as seen from above
  real base;    // z of the bottom
  vec3 normal;  // of the top
};
// Half 0 of a cell is that of larger y. h: heights of its corners (x, y) = (0, 0), (1, 0), (0, 1), (1, 1), less the centre's.
FN Prism prism_of(int half, vec3 corner, real dx, real dy, const real* h, real base) {
  Prism q;
  q.v[0] = v3(corner.x, corner.y, h[0]);
  vec3 across = v3(corner.x + dx, corner.y + dy, h[3]);
  q.v[1] = half ? v3(corner.x + dx, corner.y, h[1]) : across;
  q.v[2] = half ? across : v3(corner.x, corner.y + dy, h[2]);
  q.base = base;
  vec3 n = cross(q.v[1] - q.v[0], q.v[2] - q.v[0]);
  q.normal = inverse(length(n)) * n;
  return q;
}
// Of the side at an edge of the top: outwards.
FN vec3 side_normal(vec3 e) {
  real s = inverse(root(e.x * e.x + e.y * e.y));
  return v3(s * e.y, -s * e.x, 0);
}

// Of a face, outwards: the side at the edge e for 0 to 2, the top, the base.
FN vec3 face_normal(const Prism& q, int i, vec3 e) { return i < 3 ? side_normal(e) : i == 3 ? q.normal : v3(0, 0, -1); }

// The nearest way between a prism and something else: p is the other's point, dist < 0 inside, normal outwards.
struct Way {
  vec3 p, normal;
  real dist;
};

// A point above the top: this is nearest, or an edge or a corner of it.
FN Way point_top(const Prism& q, vec3 p) {
  vec3 e = q.v[1] - q.v[0], f = q.v[2] - q.v[0], d = p - q.v[0];
  real ee = dot(e, e), ff = dot(f, f), ef = dot(e, f);
  // Of the place of the point along e and f: from the three corners.
  real e0 = dot(e, d), f0 = dot(f, d), e1 = e0 - ee, f1 = f0 - ef, e2 = e0 - ef, f2 = f0 - ff, s = 0, t = 0;
  if (e0 <= 0 && f0 <= 0) s = 0;
  else if (e1 >= 0 && f1 <= e1) s = 1;
  else if (f2 >= 0 && e2 <= f2) t = 1;
  else if (e0 * f1 <= e1 * f0 && e0 >= 0 && e1 <= 0) s = e0 * inverse(ee);
  else if (e2 * f0 <= e0 * f2 && f0 >= 0 && f2 <= 0) t = f0 * inverse(ff);
  else if (e1 * f2 <= e2 * f1 && f1 >= e1 && e2 >= f2) t = (f1 - e1) * inverse(ee - 2 * ef + ff), s = 1 - t;
  else return Way{p, q.normal, dot(d, q.normal)};
  d = d - (s * e + t * f);
  real l = length(d);
  return Way{p, l > TINY ? inverse(l) * d : q.normal, l};
}

FN Way point_prism(const Prism& q, vec3 p) {
  vec3 c = p;  // the nearest point of the prism, where it is not on the top
  bool above = p.z > more(more(q.v[0].z, q.v[1].z), q.v[2].z);
  if (!above) {
    real side = -FAR, square = FAR, top = 0;
    vec3 out = q.normal, foot = p, a = q.v[0], next = q.v[1], last = q.v[2];
    ROLLED for (int i = 0; i < 3; i++) {
      vec3 e = next - a, d = p - a, n = side_normal(e);
      real s = dot(n, d);
      if (s > side) side = s, out = n;
      // The nearest point of the edge as seen from above.
      real t = clamp_to((d.x * e.x + d.y * e.y) * inverse(e.x * e.x + e.y * e.y), 0, 1);
      real x = d.x - t * e.x, y = d.y - t * e.y;
      if (x * x + y * y < square) square = x * x + y * y, foot = v3(a.x + t * e.x, a.y + t * e.y, p.z), top = a.z + t * e.z;
      d = a, a = next, next = last, last = d;
    }
    real height = dot(p - q.v[0], q.normal);
    bool inside = side <= 0;  // as seen from above
    if (inside && height <= 0 && p.z >= q.base) {
      real dist = height;
      vec3 n = q.normal;
      if (side > dist) dist = side, n = out;
      if (q.base - p.z > dist) dist = q.base - p.z, n = v3(0, 0, -1);
      return Way{p, n, dist};
    }
    above = p.z >= q.base && (inside || p.z > top);
    c = p.z < q.base ? v3(inside ? p.x : foot.x, inside ? p.y : foot.y, q.base) : foot;
  }
  if (above) return point_top(q, p);
  vec3 d = p - c;
  real l = length(d);
  return Way{p, l > TINY ? inverse(l) * d : q.normal, l};
}

// The nearest points t a and b + along e of two segments, t from -1 to 1 and along from 0 to 1.
FN real nearest_on_segment(vec3 a, vec3 b, vec3 e, real& along) {
  vec3 w = cross(a, e);
  real det = dot(w, w), ae = dot(a, e), ee = dot(e, e);
  real t = det > R(1e-10) * dot(a, a) * ee ? dot(w, cross(b, e)) * inverse(det) : R(0);
  t = clamp_to(t, -1, 1);
  along = clamp_to((t * ae - dot(b, e)) * inverse(ee), 0, 1);
  return clamp_to((dot(b, a) + along * ae) * inverse(more(dot(a, a), TINY)), -1, 1);
}

// How far the prism reaches along n, and its corner that does.
FN real reach_along(const Prism& q, vec3 n, vec3& corner) {
  real most = -FAR;
  UNROLL for (int k = 0; k < 3; k++) {
    vec3 v = q.v[k];
    if (n.z < 0) v.z = q.base;
    real s = dot(n, v);
    if (s > most) most = s, corner = v;
  }
  return most;
}

// Of the segment that overlaps the prism: the shortest way out. Directions: normals of the prism, and what is at right
// angles to the segment and to an edge of the top or the sides; not of the base.
FN Way overlapping(const Prism& q, vec3 a) {
  Way best = {v3(0, 0, 0), q.normal, -FAR};
  vec3 b = q.v[0], next = q.v[1], last = q.v[2];
  ROLLED for (int i = 0; i < 5; i++) {
    vec3 n = face_normal(q, i, next - b);
    real across = dot(n, a), sep = (i < 4 ? -dot(n, b) : q.base) - magnitude(across);
    if (sep > best.dist) best = Way{across > 0 ? -a : a, n, sep};
    if (i < 3) n = b, b = next, next = last, last = n;
  }
  ROLLED for (int i = 0; i < 4; i++) {
    vec3 e = i < 3 ? next - b : v3(0, 0, 1), w = cross(a, e);
    real l = length(w);
    bool crossing = l > SLIGHT * length(a) * length(e);
    ROLLED for (int back = 0; crossing && back < 2; back++) {
      vec3 n = (back ? -inverse(l) : inverse(l)) * w, corner;
      real most = reach_along(q, n, corner);
      if (-most <= best.dist) continue;
      real t = dot(w, cross(corner, e)) * inverse(l * l);  // where the segment is nearest to the edge
      best = Way{clamp_to(t, -1, 1) * a, n, -most};
    }
    if (i < 3) w = b, b = next, next = last, last = w;
  }
  return best;
}

// Whether the segment from -a to a is in the prism anywhere.
FN bool segment_enters(const Prism& q, vec3 a) {
  real low = -1, high = 1;
  vec3 b = q.v[0], next = q.v[1], last = q.v[2];
  ROLLED for (int i = 0; i < 5; i++) {
    vec3 n = face_normal(q, i, next - b);
    real here = i < 4 ? -dot(n, b) : q.base, slope = dot(n, a);
    real t = -here * inverse(magnitude(slope) > TINY ? slope : TINY);
    if (magnitude(slope) <= TINY) high = here > 0 ? low - 1 : high;
    else if (slope > 0) high = less(high, t);
    else low = more(low, t);
    if (i < 3) n = b, b = next, next = last, last = n;
  }
  return low < high;
}

// The segment from -a to a, or the point 0 where `point` says so.
FN Way core_prism(const Prism& q, vec3 a, bool point) {
  if (!point && segment_enters(q, a)) return overlapping(q, a);
  Way best;
  ROLLED for (int end = 0; end < (point ? 1 : 2); end++) {
    Way other = point_prism(q, end ? a : -a);
    if (end == 0 || other.dist < best.dist) best = other;
  }
  if (point) return best;
  vec3 b = q.v[0], next = q.v[1], last = q.v[2];
  ROLLED for (int i = 0; i < 6; i++) {  // edges of the top, then of the sides
    vec3 e = i < 3 ? next - b : v3(0, 0, q.base - b.z);
    real along, t = nearest_on_segment(a, b, e, along);
    vec3 d = t * a - (b + along * e);
    real l = length(d);
    if (l < best.dist) best = Way{t * a, l > TINY ? inverse(l) * d : q.normal, l};
    d = b, b = next, next = last, last = d;
  }
  return best;
}

#if HAS_HFIELD_BOX
// A box that overlaps the prism: the shortest way out, along a face's normal or across two edges. Edges of the base are
// left out. dist > 0: they do not overlap.
FN Way box_prism(const Prism& q, vec3 size, axes box) {
  Way best = {v3(0, 0, 0), q.normal, -FAR};
  vec3 corner, u = box.x, b = q.v[0], next = q.v[1], last = q.v[2];
  ROLLED for (int i = 0; i < 5; i++) {
    vec3 n = face_normal(q, i, next - b), d = seen(box, n);
    d = v3(d.x > 0 ? -size.x : size.x, d.y > 0 ? -size.y : size.y, d.z > 0 ? -size.z : size.z);
    vec3 p = turned(box, d);
    real sep = dot(n, p) - (i < 4 ? dot(n, b) : -q.base);
    if (sep > best.dist) best = Way{p, n, sep};
    if (i < 3) n = b, b = next, next = last, last = n;
  }
  real half = size.x;
  ROLLED for (int k = 0; k < 3; k++) {
    ROLLED for (int i = 0; i < 5; i++) {  // the face; edges of the top; upright edges
      vec3 e = i < 4 ? next - b : v3(0, 0, 1), w = i ? cross(u, e) : u;
      real l = length(w);
      bool crossing = l > SLIGHT * length(e) || i == 0;
      ROLLED for (int back = 0; crossing && back < 2; back++) {
        vec3 n = (back ? -inverse(l) : inverse(l)) * w, d = seen(box, n);
        real most = reach_along(q, n, corner);
        real sep = -(size.x * magnitude(d.x) + size.y * magnitude(d.y) + size.z * magnitude(d.z)) - most;
        if (sep <= best.dist) continue;
        if (i == 0) {
          best = Way{corner + sep * n, n, sep};
          continue;
        }
        // The middle of the box's edge that is furthest in, and where this edge is nearest to the other.
        d = v3(d.x > 0 ? -size.x : size.x, d.y > 0 ? -size.y : size.y, d.z > 0 ? -size.z : size.z);
        vec3 p = turned(box, d);
        p = p - dot(p, u) * u;
        real t = dot(w, cross(corner - p, e)) * inverse(l * l);
        best = Way{p + clamp_to(t, -half, half) * u, n, sep};
      }
      if (i > 0 && i < 4) w = b, b = next, next = last, last = w;
    }
    u = k ? box.z : box.y, half = k ? size.z : size.y;
  }
  return best;
}
#endif

// A geom at the origin, with its rotation in the field's axes, and a prism; the contact in these axes, as seen from the
// geom's centre. True where it is within reach.
FN bool touch_prism(int kind, const Prism& q, const Shape& b, real reach, Hit& hit) {
  Way way;
  real r = b.size.x;
#if HAS_HFIELD_SPHERE || HAS_HFIELD_CAPSULE
  bool point = !HAS_HFIELD_CAPSULE || kind == HFIELD_SPHERE;
  if (kind != HFIELD_BOX) way = core_prism(q, point ? v3(0, 0, 0) : b.size.y * z_axis(b.rot), point);
#endif
#if HAS_HFIELD_BOX
  if (kind == HFIELD_BOX) way = box_prism(q, b.size, axes_of(b.rot)), r = 0;
#endif
  hit.normal = way.normal;
  hit.dist = way.dist - r;
  hit.pos = way.p - R(0.5) * (way.dist + r) * way.normal;
  return hit.dist < reach;
}

// Half the extent of a geom along the direction n.
FN real extent_along(int kind, const Shape& b, vec3 n) {
#if HAS_HFIELD_BOX
  if (kind == HFIELD_BOX) {
    vec3 d = seen(axes_of(b.rot), n);
    return b.size.x * magnitude(d.x) + b.size.y * magnitude(d.y) + b.size.z * magnitude(d.z);
  }
#endif
  bool capsule = HAS_HFIELD_CAPSULE && kind == HFIELD_CAPSULE;
  return b.size.x + (capsule ? b.size.y * magnitude(dot(n, z_axis(b.rot))) : R(0));
}

// Half the extent of a geom along the axes of its frame's parent.
FN vec3 extent_of(int kind, const Shape& b) {
  real r = b.size.x;
#if HAS_HFIELD_BOX
  if (kind == HFIELD_BOX) {
    axes u = axes_of(b.rot);
    vec3 x = b.size.x * u.x, y = b.size.y * u.y, z = b.size.z * u.z;
    return v3(magnitude(x.x) + magnitude(y.x) + magnitude(z.x), magnitude(x.y) + magnitude(y.y) + magnitude(z.y),
              magnitude(x.z) + magnitude(y.z) + magnitude(z.z));
  }
#endif
  if (HAS_HFIELD_CAPSULE && kind == HFIELD_CAPSULE) {
    vec3 a = b.size.y * z_axis(b.rot);
    return v3(magnitude(a.x) + r, magnitude(a.y) + r, magnitude(a.z) + r);
  }
  return v3(r, r, r);
}
