// Contacts of boxes with balls, capsules and each other, as C MuJoCo finds them (mjc_SphereBox, mjc_CapsuleBox,
// mjc_BoxBox): which points of a capsule or of a face it takes, and when it prefers a face to an edge.
#pragma once

#ifndef HAS_SPHERE_BOX
#define HAS_SPHERE_BOX 1
#endif
#ifndef HAS_CAPSULE_BOX
#define HAS_CAPSULE_BOX 1
#endif
#ifndef HAS_BOX_BOX
#define HAS_BOX_BOX 1
#endif

#if HAS_SPHERE_BOX || HAS_CAPSULE_BOX
// A ball about p; the normal points into the box.
FN bool ball_box(vec3 p, real r, const Shape& b, const axes& box, real reach, Hit& hit) {
  vec3 c = seen(box, p - b.pos), s = b.size;
  vec3 d = v3(clamp_to(c.x, -s.x, s.x), clamp_to(c.y, -s.y, s.y), clamp_to(c.z, -s.z, s.z)) - c;
  real l = length(d);
  if (l - r > reach) return false;
  if (l > TINY) {
    d = inverse(l) * d;
  } else {  // inside: away from the nearest face
    vec3 gap = v3(s.x - magnitude(c.x), s.y - magnitude(c.y), s.z - magnitude(c.z));
    l = -less(gap.x, less(gap.y, gap.z));
    d = gap.x <= -l ? v3(c.x > 0 ? -1 : 1, 0, 0) : gap.y <= -l ? v3(0, c.y > 0 ? -1 : 1, 0) : v3(0, 0, c.z > 0 ? -1 : 1);
  }
  hit.normal = turned(box, d);
  hit.tangent = default_tangent(hit.normal);
  hit.dist = l - r;
  hit.pos = p + (R(0.5) * (l + r)) * hit.normal;
  return true;
}
#endif

#if HAS_CAPSULE_BOX
FN real part(vec3 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : v.z; }
FN void set_part(vec3& v, int i, real x) {
  if (i == 0) v.x = x;
  else if (i == 1) v.y = x;
  else v.z = x;
}
FN real quotient(real a, real b) { return b != 0 ? a / b : a > 0 ? R(1e10) : R(-1e10); }

// Where on a capsule's axis, from -1 to 1, the balls about the points are that touch a box: the k-th of up to two. The
// first is nearest to the box; the second the furthest one over the same face, or along the same edge.
FN bool place_on_capsule(int k, vec3 pos, vec3 half, vec3 size, real& place) {
  int up = (half.x > 0) + 2 * (half.y > 0) + 4 * (half.z > 0);  // the octant to which the axis points
  real best = R(1e32), on_edge = 0;
  int face = -2, corner = -1, edge = -1, at_box = -1;  // at_box: 0 or 2, an end of the edge, 1, between them; -1: no edge
  place = 0;
  ROLLED for (int i = -1; i < 2; i += 2) {  // an end of the capsule over a face, or inside
    vec3 tip = pos + R(i) * half, in = v3(clamp_to(tip.x, -size.x, size.x), clamp_to(tip.y, -size.y, size.y), clamp_to(tip.z, -size.z, size.z));
    int outside = (in.x != tip.x) + (in.y != tip.y) + (in.z != tip.z);
    real square = dot(in - tip, in - tip);
    if (outside > 1 || !(square < best)) continue;
    best = square, place = R(i), face = in.x != tip.x ? 0 : in.y != tip.y ? 1 : in.z != tip.z ? 2 : -1;
  }
  ROLLED for (int i = 0; i < 24; i++) {  // an edge along axis j, that begins at corner i / 3
    int from = i / 3, j = i % 3;
    if (from & (1 << j)) continue;
    vec3 middle = v3(from & 1 ? size.x : -size.x, from & 2 ? size.y : -size.y, from & 4 ? size.z : -size.z);
    set_part(middle, j, 0);
    vec3 d = middle - pos;
    real s = part(size, j), h = part(half, j), dj = part(d, j), hh = dot(half, half), across = hh - h * h;
    if (s * s * across < TINY) continue;  // parallel: other edges or faces are as near
    real y = (dot(half, d) - h * dj) / across, x = (h * y - dj) / s;  // on the capsule and on the edge
    int end = 1;
    if (magnitude(x) > 1) x = x > 0 ? R(1) : R(-1), end = x > 0 ? 2 : 0, y = (dot(half, d) + x * s * h) / hh;
    if (magnitude(y) > 1) {
      y = y > 0 ? R(1) : R(-1), x = (y * h - dj) / s, end = magnitude(x) > 1 ? (x > 0 ? 2 : 0) : end;
      x = clamp_to(x, -1, 1);
    }
    d = d - y * half;
    set_part(d, j, part(d, j) + s * x);
    real square = dot(d, d);
    if (!(square < best - (sizeof(real) == 8 ? TINY : R(1e-5) * best))) continue;
    best = square, place = y, on_edge = x, at_box = end, edge = j, face = -2, corner = from + (end == 2 ? 1 << j : 0);
  }
  if (face == -2 && at_box < 0) return false;
  if (k == 0) return true;
  real way = 0;  // to the second, along the axis
  vec3 magnitudes = v3(magnitude(half.x), magnitude(half.y), magnitude(half.z));
  int c = at_box >= 0 ? up ^ corner : 0;
  if (at_box == 0 || at_box == 2) {
    if (c == 0 || c == 7) return false;  // it points at the corner
    bool one = c == 1 || c == 2 || c == 4;
    if (!one) c = 7 - c;
    int i = c >> 1, next = i < 2 ? i + 1 : 0, last = 3 - i - next;
    real sign = one ? R(1) : R(-1), h = part(half, i);
    if (2 * h * h > dot(half, half)) {  // along the edge
      way = less(1 - sign * place, 2 * quotient(part(size, i), part(magnitudes, i)));
    } else {
      real room = less(quotient(part(size, next), part(magnitudes, next)), quotient(part(size, last), part(magnitudes, last)));
      way = -less(1 + sign * place, 2 * room);
    }
    way *= sign;
  } else if (at_box == 1) {
    c &= 7 - (1 << edge);
    if (c != 1 && c != 2 && c != 4) return false;
    int a = edge < 2 ? edge + 1 : 0, b = 3 - edge - a;
    if (part(magnitudes, a) > part(magnitudes, b)) a = b;
    b = 3 - edge - a;  // the face at whose side the capsule leans less
    bool ahead = c & (1 << b);
    way = less(ahead ? 1 - place : 1 + place, 2 * quotient(part(size, b), part(magnitudes, b)));
    real left = bool(up & (1 << edge)) == ahead ? 1 - on_edge : 1 + on_edge;
    way = less(way, part(size, edge) * quotient(left, part(magnitudes, edge)));
    way *= ahead ? R(1) : R(-1);
  } else {
    if (face < 0) return false;
    real sign = -place;  // the near end is at `place`
    way = 2;
    ROLLED for (int i = 0; i < 3; i++) {
      if (i == face || part(half, i) == 0) continue;
      ROLLED for (int side = -1; side < 2; side += 2) {
        real e = (R(side) * part(size, i) - part(pos - sign * half, i)) * sign / part(half, i);
        if (e > 0 && e < way) way = e;
      }
    }
    way *= sign;
  }
  place += way;
  return true;
}

FN bool capsule_box(int k, const Shape& a, const Shape& b, real reach, Hit& hit) {
  axes box = axes_of(b.rot);
  vec3 half = a.size.y * z_axis(a.rot);
  real place;
  if (!place_on_capsule(k, seen(box, a.pos - b.pos), seen(box, half), b.size, place)) return false;
  return ball_box(a.pos + place * half, a.size.x, b, box, reach, hit);
}
#endif

#if HAS_BOX_BOX
struct Box {
  vec3 axis[3];
  real size[3];
};
FN Box box_of(const Shape& a) {
  axes u = axes_of(a.rot);
  return Box{{u.x, u.y, u.z}, {a.size.x, a.size.y, a.size.z}};
}
// Half the extent of a box along n.
FN real spread(const Box& a, vec3 n) {
  real s = 0;
  for (int i = 0; i < 3; i++) s += a.size[i] * magnitude(dot(a.axis[i], n));
  return s;
}
// Its corner furthest along n, from the centre; of an edge along axis i the middle.
FN vec3 corner_along(const Box& a, vec3 n, int edge, int flipped) {
  vec3 p = v3(0, 0, 0);
  for (int i = 0; i < 3; i++) {
    bool ahead = (dot(a.axis[i], n) >= 0) != (i == flipped);
    if (i != edge) p = p + (ahead ? a.size[i] : -a.size[i]) * a.axis[i];
  }
  return p;
}
// An axis across n but for roundoff, other than the edge's: which side of it counts is then open. -1: none.
FN int open_side(const Box& a, vec3 n, int edge) {
  int open = -1;
  for (int i = 2; i >= 0; i--) if (i != edge && magnitude(dot(a.axis[i], n)) < R(1e-5)) open = i;
  return open;
}

// Cuts a polygon of n corners (x, y, and z along with them) at sign * part <= most. A rectangle cut so at its four sides
// has at most eight corners.
FN int cut(vec3* p, int n, bool y, real sign, real most) {
  vec3 out[8];
  int m = 0;
  for (int k = 0; k < n; k++) {
    vec3 a = p[k], b = p[k + 1 < n ? k + 1 : 0];
    real da = sign * (y ? a.y : a.x) - most, db = sign * (y ? b.y : b.x) - most;
    if (da <= 0 && m < 8) out[m++] = a;
    if (((da < 0 && db > 0) || (da > 0 && db < 0)) && m < 8) out[m++] = a + (da / (da - db)) * (b - a);
  }
  for (int k = 0; k < m; k++) p[k] = out[k];
  return m;
}

// The k-th contact where the face of box r along its axis i, on the side of the other box, is the one between them.
FN bool on_face(int k, int i, const Box& r, const Box& other, vec3 d, real reach, vec3& pos, vec3& n, real& dist) {
  int x = (i + 1) % 3, y = (i + 2) % 3, faced = 0;
  n = (dot(r.axis[i], d) >= 0 ? R(1) : R(-1)) * r.axis[i];
  for (int j = 1; j < 3; j++)
    if (magnitude(dot(other.axis[j], n)) > magnitude(dot(other.axis[faced], n))) faced = j;
  int u = (faced + 1) % 3, v = (faced + 2) % 3;
  vec3 middle = d + (dot(other.axis[faced], n) > 0 ? -other.size[faced] : other.size[faced]) * other.axis[faced];
  vec3 p[8];
  for (int j = 0; j < 4; j++) {
    vec3 c = middle + (j == 0 || j == 3 ? other.size[u] : -other.size[u]) * other.axis[u];
    c = c + (j < 2 ? other.size[v] : -other.size[v]) * other.axis[v];
    p[j] = v3(dot(c, r.axis[x]), dot(c, r.axis[y]), dot(c, n) - r.size[i]);
  }
  int corners = 4, found = 0;
  for (int j = 0; j < 4; j++) corners = cut(p, corners, j > 1, j & 1 ? R(-1) : R(1), r.size[j > 1 ? y : x]);
  real same = R(1e-10) * (r.size[x] * r.size[x] + r.size[y] * r.size[y]);
  for (int j = 0; j < corners; j++) {
    bool keep = p[j].z <= reach;
    for (int q = 0; keep && q < found; q++) {
      real a = p[q].x - p[j].x, b = p[q].y - p[j].y;
      keep = a * a + b * b >= same;
    }
    if (!keep) continue;
    if (found == k) {
      dist = p[j].z;
      pos = p[j].x * r.axis[x] + p[j].y * r.axis[y] + (r.size[i] + R(0.5) * dist) * n;
      return true;
    }
    p[found++] = p[j];
  }
  return false;
}

FN bool box_box(int k, const Shape& one, const Shape& other, real reach, Hit& hit) {
  Box a = box_of(one), b = box_of(other);
  vec3 d = other.pos - one.pos, axis = v3(0, 0, 0), face_axis = axis;
  real best = -R(1e30), face = best, slack = 0;
  for (int i = 0; i < 3; i++) slack += R(1e-6) * (a.size[i] + b.size[i]);
  int code = -1, face_code = -1;
  // The direction in which they are furthest apart, or least deep in each other: of faces of either, then across edges.
  for (int i = 0; i < 15; i++) {
    vec3 n = i < 3 ? a.axis[i] : i < 6 ? b.axis[i - 3] : cross(a.axis[(i - 6) / 3], b.axis[(i - 6) % 3]);
    if (i >= 6) {
      real square = dot(n, n);
      if (square < R(1e-7)) continue;
      n = (1 / root(square)) * n;
    }
    real sep = magnitude(dot(n, d)) - spread(a, n) - spread(b, n);
    if (sep > reach + slack) return false;
    if (i < 6 ? sep > best : sep - R(1e-6) * magnitude(sep) > best && sep > face) best = sep, code = i, axis = n;
    if (i < 6) face = best, face_code = code, face_axis = axis;
  }
  if (code < 0) return false;
  // A face gives more contacts than an edge that is hardly another direction and hardly better.
  if (code >= 6 && magnitude(dot(axis, face_axis)) > R(0.99) && best < face + R(0.05) * magnitude(face) + TINY) code = face_code;
  if (code < 6) {
    bool first = code < 3;
    vec3 pos, n;
    if (!on_face(k, first ? code : code - 3, first ? a : b, first ? b : a, first ? d : -d, reach, pos, n, hit.dist)) return false;
    hit.normal = first ? n : -n, hit.pos = (first ? one.pos : other.pos) + pos;
  } else {
    if (k) return false;
    int i = (code - 6) / 3, j = (code - 6) % 3;
    if (dot(axis, d) < 0) axis = -axis;
    int open_a = open_side(a, axis, i), open_b = open_side(b, axis, j);
    vec3 p = v3(0, 0, 0), q = p, u = a.axis[i], v = b.axis[j];
    real nearest = R(1e30), uv = dot(u, v), det = 1 - uv * uv;
    for (int f = 0; f < 4; f++) {
      if ((f & 1 && open_a < 0) || (f & 2 && open_b < 0)) continue;
      vec3 c1 = corner_along(a, axis, i, f & 1 ? open_a : -1), c2 = d + corner_along(b, -axis, j, f & 2 ? open_b : -1);
      vec3 e = c2 - c1;
      real s = det >= TINY ? (dot(u, e) - uv * dot(v, e)) / det : R(0);
      s = clamp_to(s, -a.size[i], a.size[i]);
      real t = clamp_to(uv * s - dot(v, e), -b.size[j], b.size[j]);
      s = clamp_to(dot(u, e) + uv * t, -a.size[i], a.size[i]);
      c1 = c1 + s * u, c2 = c2 + t * v;
      real square = dot(c2 - c1, c2 - c1);
      if (square < nearest) nearest = square, p = c1, q = c2;
    }
    hit.dist = dot(q - p, axis);
    if (hit.dist > reach + slack) return false;
    hit.normal = axis, hit.pos = one.pos + R(0.5) * (p + q);
  }
  hit.tangent = default_tangent(hit.normal);
  return true;
}
#endif

FN bool touch_box(int kind, int k, const Shape& a, const Shape& b, real reach, Hit& hit) {
#if HAS_SPHERE_BOX
  if (kind == SPHERE_BOX) return ball_box(a.pos, a.size.x, b, axes_of(b.rot), reach, hit);
#endif
#if HAS_CAPSULE_BOX
  if (kind == CAPSULE_BOX) return capsule_box(k, a, b, reach, hit);
#endif
#if HAS_BOX_BOX
  if (kind == BOX_BOX) return box_box(k, a, b, reach, hit);
#endif
  return false;
}
