// Collision: contacts of all pairs of geoms that may touch, as records (MuJoCo: mj_collision and the parameters that
// mj_makeConstraint gives to contacts).
#pragma once

// Poses of the colliding geoms, relative to the origins of their trees, and bounding radii.
FN void place_geoms(const World& w, Scratch& S) {
  EACH_OF_MANY(g, NG) {
    int body = shape_body(w)[g];
    quat rot = orientation_of(S, body);
    four place = fetch4(shape_place(w) + 8 * g);
    vec3 pos = position_of(S, body) + rotate(rot, v3(place.x, place.y, place.z));
    rot = product(rot, fetch_quat(shape_place(w) + 8 * g + 4));
    store4(S.geom[g], pos.x, pos.y, pos.z, place.w);
    store4(S.geom[g] + 4, rot.w, rot.x, rot.y, rot.z);
  }
  sync();
}

FN Shape shape_of(const World& w, const Scratch& S, int g) {
  return Shape{v3(S.geom[g]), q4(S.geom[g] + 4), shape_size(w, g)};
}

// How much a constraint is held that is violated by so much (MuJoCo: getimpedance).
FN real impedance(const Parameters& prm, real violation) {
  real x = magnitude(violation) * prm.per_width, y, middle = prm.midpoint, power = prm.power;
  if (x >= 1) {
    y = 1;
  } else if (power == R(1)) {
    y = x;
  } else if (power == R(2)) {
    y = x <= middle ? x * x / middle : 1 - (1 - x) * (1 - x) / (1 - middle);
  } else {
    y = x <= middle ? pow(x, power) / pow(middle, power - 1) : 1 - pow(1 - x, power) / pow(1 - middle, power - 1);
  }
  return prm.d0 + y * (prm.dmax - prm.d0);
}
FN real stiffness_of(real imp, real diagonal) { return inverse(more((1 - imp) * diagonal * inverse(imp), TINY)); }

// One contact's record. pair: row of the pair table.
FN void record(const World& w, Scratch& S, int pair, const Hit& hit, vec3 pos, real* c) {
  const real* p = pair_real(w) + PAIR_REALS * pair;
  Pair q = pair_of(w, pair);
  Parameters prm = parameters_at(p);
  four limits = fetch4(p + P_INCLUDE), more_friction = fetch4(p + P_INCLUDE + 4);
  real mu[5] = {limits.y, limits.z, limits.w, more_friction.x, more_friction.y};
#if OWN_FRICTION  // friction of its own in each world
  if (q.friction_from != FROM_PAIR) {
    const real *a = geom_friction(w) + 3 * q.geom_a, *b = geom_friction(w) + 3 * q.geom_b;
    if (q.friction_from == FROM_A) b = a;
    if (q.friction_from == FROM_B) a = b;
    mu[0] = mu[1] = more(a[0], b[0]), mu[2] = more(a[1], b[1]), mu[3] = mu[4] = more(a[2], b[2]);
    UNROLL for (int k = 0; k < 5; k++) mu[k] = more(mu[k], R(1e-5));
  }
#endif
  real margin = limits.x, imp = impedance(prm, hit.dist - margin);
  // The diagonal of J M^-1 J', roughly (MuJoCo: mj_diagApprox).
  real diagonal = body_invweight0(w)[2 * q.body_a] + body_invweight0(w)[2 * q.body_b];
  if (!ELLIPTIC && q.dim > 1) diagonal = diagonal * (1 + mu[0] * mu[0]) * 2 * mu[0] * mu[0] * INV_IMPRATIO;
  store4(c, pos.x, pos.y, pos.z, mu[0]);
  store4(c + 4, hit.normal.x, hit.normal.y, hit.normal.z, hit.dist < margin ? stiffness_of(imp, diagonal) : R(0));
  store4(c + 8, hit.tangent.x, hit.tangent.y, hit.tangent.z, R(q.body));
  store4(c + 12, R(q.other), R(q.sign), R(q.dim), R(pair));
  // Of the reference acceleration: K imp (dist - margin) and B; solver.h makes it from these and the velocity.
  store4(c + 16, prm.K * imp * (hit.dist - margin), prm.B, more_friction.z, hit.dist);
#if MAXDIM > 3 || ANISOTROPIC
  UNROLL for (int k = 0; k < 4; k++) c[C_FRICTION + k] = mu[k + 1];
#endif
}

// From where a pair's contact is seen: both shapes relative to the origin of the tree of its `body`.
FN void seen_from_body(const World& w, const Scratch& S, const Pair& q, Shape& a, Shape& b, vec3& reference) {
  vec3 here = origin_of(w, S, q.body);
  a.pos = a.pos + (origin_of(w, S, q.body_a) - here);
  b.pos = b.pos + (origin_of(w, S, q.body_b) - here);
  reference = reference_of(w, S, q.body);
}

// At most how far apart the surfaces of a pair are when there is a contact.
FN real reach_of(const World& w, int pair) {
#ifdef REACH
  return REACH;  // of all pairs
#else
  return pair_reach(w)[pair];
#endif
}

FN bool try_contact(const World& w, const Scratch& S, int pair, int k, Hit& hit, vec3& pos) {
  Pair q = pair_of(w, pair);
  if (k >= POSSIBLE(q.kind)) return false;
  Shape a = shape_of(w, S, q.shape_a), b = shape_of(w, S, q.shape_b);
  vec3 reference;
  seen_from_body(w, S, q, a, b, reference);
#if HAS_BOXES
  bool found = q.kind >= SPHERE_BOX ? touch_box(q.kind, k, a, b, reach_of(w, pair), hit)
                                    : touch(q.kind, k, a, b, reach_of(w, pair), hit);
#else
  bool found = touch(q.kind, k, a, b, reach_of(w, pair), hit);
#endif
  pos = hit.pos - reference;
  return found;
}

// Whether the bounding spheres of a pair without plane come within its reach.
FN bool near(const World& w, const Scratch& S, int pair) {
  int shapes = pair_shapes(w)[pair];
  four a = load4(S.geom[shapes & 0xffff]), b = load4(S.geom[shapes >> 16]);
  vec3 d = v3(a.x - b.x, a.y - b.y, a.z - b.z);
#if PAIRS_ACROSS
  Pair q = pair_of(w, pair);
  d = d + (origin_of(w, S, q.body_a) - origin_of(w, S, q.body_b));
#endif
  real r = a.w + b.w + reach_of(w, pair);
  return dot(d, d) <= r * r;
}

#if NHFIELD
// Of a geom and the height field with which it may touch: the cells below it that may reach it.
struct Patch {
  int pair, row, column, columns;
};
// A geom in the field's frame.
FN Shape seen_from_field(const Shape& field, const Shape& geom) {
  Shape b = geom;
#if FIELDS_LEVEL
  b.pos = geom.pos - field.pos;
  return b;
#endif
  quat turn = conjugate(field.rot);
  b.pos = rotate(turn, geom.pos - field.pos), b.rot = product(turn, geom.rot);
  return b;
}

// How many prisms of the field are within the bounds of the geom, 0 if none is as high; `lowest`: where the geom ends.
FN int prisms_below(const World& w, const Scratch& S, int pair, Patch& patch, real& lowest) {
  Pair q = pair_of(w, pair);
  Shape field = shape_of(w, S, q.shape_a), geom = shape_of(w, S, q.shape_b);
  vec3 reference;
  seen_from_body(w, S, q, field, geom, reference);
  Shape b = seen_from_field(field, geom);
  Field f = field_of(w, q.geom_a);
  vec3 half = extent_of(q.kind, b);
  real reach = reach_of(w, pair);
  half = v3(half.x + reach, half.y + reach, half.z + reach);
  // As reals first: a state may be anything.
  real x = (b.pos.x - f.x) / f.dx, y = (b.pos.y - f.y) / f.dy, wide = half.x / f.dx, deep = half.y / f.dy;
  int left = (int)floor(clamp_to(x - wide, 0, R(f.columns - 1))), right = (int)floor(clamp_to(x + wide, -1, R(f.columns - 2)));
  int low = (int)floor(clamp_to(y - deep, 0, R(f.rows - 1))), high = (int)floor(clamp_to(y + deep, -1, R(f.rows - 2)));
  lowest = b.pos.z - half.z;
  patch = Patch{pair, low, left, right - left + 1};
  if (right < left || high < low || b.pos.z + half.z < f.base) return 0;
  real most = -FAR;  // of the heights around
  ROLLED for (int r = low / TILE; r <= high / TILE; r++) {
    ROLLED for (int c = left / TILE; c <= right / TILE; c++) most = more(most, heights(w)[f.tiles + r * f.tile_columns + c]);
  }
  return most < lowest ? 0 : 2 * (right - left + 1) * (high - low + 1);
}

// The i-th prism of all patches and its geom, in the field's axes. False where the geom is above the plane of the prism's
// top, and cannot touch it.
FN bool prism_at(const World& w, const Scratch& S, int i, int& pair, Shape& geom, Prism& prism) {
  int k = 0;
  for (; i >= S.prisms[k]; k++) i -= S.prisms[k];
  int columns = S.patch[k][3], row = i / 2 / columns, column = i / 2 - row * columns, half = i & 1;
  pair = S.patch[k][0], row += S.patch[k][1], column += S.patch[k][2];
#if NFIELDS > 1
  Field f = field_of(w, pair_of(w, pair).geom_a);
#else
  Field f = field_of(w, 0);
#endif
  const real* at = heights(w) + f.first + row * f.columns + column;
  real h[4] = {at[0], at[1], at[f.columns], at[f.columns + 1]};
  if (more(more(h[0], h[3]), half ? h[1] : h[2]) < S.lowest[k]) return false;
  Pair q = pair_of(w, pair);
  Shape field = shape_of(w, S, q.shape_a);
  geom = shape_of(w, S, q.shape_b);
  vec3 reference;
  seen_from_body(w, S, q, field, geom, reference);
  geom = seen_from_field(field, geom);
  vec3 corner = v3(f.x + f.dx * column - geom.pos.x, f.y + f.dy * row - geom.pos.y, 0);
  UNROLL for (int c = 0; c < 4; c++) h[c] -= geom.pos.z;
  prism = prism_of(half, corner, f.dx, f.dy, h, f.base - geom.pos.z);
  return -dot(prism.normal, prism.v[0]) < extent_along(q.kind, geom, prism.normal) + reach_of(w, pair);
}

FN bool try_prism(const World& w, const Scratch& S, int i, int& pair, Hit& hit, vec3& pos) {
  Shape b;
  Prism prism;
  prism_at(w, S, i, pair, b, prism);
  Pair q = pair_of(w, pair);
  if (!touch_prism(q.kind, prism, b, reach_of(w, pair), hit)) return false;
  Shape field = shape_of(w, S, q.shape_a), geom = shape_of(w, S, q.shape_b);
  vec3 reference;
  seen_from_body(w, S, q, field, geom, reference);
#if !FIELDS_LEVEL
  hit.normal = rotate(field.rot, hit.normal), hit.pos = rotate(field.rot, hit.pos);
#endif
  hit.tangent = default_tangent(hit.normal);
  pos = geom.pos + hit.pos - reference;
  return true;
}

// Contacts with height fields, appended to the others. Prisms are tried in batches: first which of them have tops
// that their geom reaches, then these, so that no lane is idle meanwhile.
FN void collide_with_fields(const World& w, Scratch& S, int& ncon) {
  int near_pairs = 0, total = 0;
  BATCHES(i, NHFIELD) {
    Patch patch;
    real lowest = 0;
    int n = i < NHFIELD ? prisms_below(w, S, FIRST_HFIELD + i, patch, lowest) : 0;
    int place = append(n > 0, near_pairs);
    if (n > 0) {
      S.patch[place][0] = patch.pair, S.patch[place][1] = patch.row;
      S.patch[place][2] = patch.column, S.patch[place][3] = patch.columns;
      S.prisms[place] = n, S.lowest[place] = lowest;
    }
  }
  sync();
  for (int k = 0; k < near_pairs; k++) total += S.prisms[k];
  ROLLED for (int first = 0; first < total; first += PRISMS) {
    int some = total - first < PRISMS ? total - first : PRISMS, high = 0;
    BATCHES(i, some) {
      int pair;
      Shape geom;
      Prism prism;
      bool found = i < some && prism_at(w, S, first + i, pair, geom, prism);
      int place = append(found, high);
      if (found) S.prism[place] = first + i;
    }
    sync();
    BATCHES(i, high) {
      Hit hit;
      vec3 pos;
      int pair = 0;
      bool found = i < high && try_prism(w, S, S.prism[i], pair, hit, pos);
      int place = append(found, ncon);
      if (found && place < NCON) record(w, S, pair, hit, pos, S.contact[place]);
    }
    sync();
  }
}
#endif

// Fills S.contact; returns how many there are, which may be more than NCON, of which the first NCON are kept.
FN int collide(const World& w, Scratch& S) {
  int ncon = 0;
#if NG
  place_geoms(w, S);
  // What to try: each possible contact of a pair with a plane, and of the other pairs that are near each other.
  int items = NPLANE_ITEMS;
#if NPAIR
  SMALL_BATCHES(i, NPAIR) {
    bool found = i < NPAIR && near(w, S, FIRST_PAIR + i);
    int place = append(found, items);
    if (found) S.candidate[place - NPLANE_ITEMS] = FIRST_PAIR + i;
  }
  int near_pairs = items - NPLANE_ITEMS;
  items = NPLANE_ITEMS + near_pairs * POSSIBLE_PAIR;
  sync();
#endif
  BATCHES(i, items) {
    Hit hit;
    vec3 pos;
    int pair = 0;
    bool found = false;
    if (i < items) {
      int k = 0;
      if (i < NPLANE_ITEMS) pair = plane_item(w)[2 * i], k = plane_item(w)[2 * i + 1];
#if NPAIR
      else k = (i - NPLANE_ITEMS) / near_pairs, pair = S.candidate[(i - NPLANE_ITEMS) - k * near_pairs];
#endif
      found = try_contact(w, S, pair, k, hit, pos);
    }
    int place = append(found, ncon);
    if (found && place < NCON) record(w, S, pair, hit, pos, S.contact[place]);
  }
  sync();
#if NHFIELD
  collide_with_fields(w, S, ncon);
#endif
#endif
  return ncon;
}
