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
// What lies below a geom near a height field: cells that may reach it. Lengths are in the field's axes.
struct Patch {
  int pair, shape, kind;     // shape: the geom's
  int first, rows, columns;  // of the cells' heights, and how many cells
  vec3 corner;               // of the first cell, as seen from the geom's centre; z: that of the field's origin
  vec3 centre;               // of the geom, as contacts have it
  real lowest;               // where the geom ends, z in the field's frame
};
// False where no height of the field is as high as the geom.
FN bool patch_below(const World& w, const Scratch& S, int pair, Patch& patch) {
  Pair q = pair_of(w, pair);
  Shape field = shape_of(w, S, q.shape_a), b = shape_of(w, S, q.shape_b);
  vec3 reference;
  seen_from_body(w, S, q, field, b, reference);
  vec3 centre = b.pos - reference, pos = b.pos - field.pos;
#if !FIELDS_LEVEL
  quat back = conjugate(field.rot);
  pos = rotate(back, pos), b.rot = product(back, b.rot);
#endif
  Field f = field_of(w, q.geom_a);
  vec3 half = extent_of(q.kind, b);
  real reach = reach_of(w, pair);
  half = v3(half.x + reach, half.y + reach, half.z + reach);
  // As reals first: a state may be anything.
  real x = (pos.x - f.x) * f.per_dx, y = (pos.y - f.y) * f.per_dy, wide = half.x * f.per_dx, deep = half.y * f.per_dy;
  int left = (int)floor(clamp_to(x - wide, 0, R(f.columns - 1))), right = (int)floor(clamp_to(x + wide, -1, R(f.columns - 2)));
  int low = (int)floor(clamp_to(y - deep, 0, R(f.rows - 1))), high = (int)floor(clamp_to(y + deep, -1, R(f.rows - 2)));
  real lowest = pos.z - half.z;
  patch = Patch{pair, q.shape_b, q.kind, f.first + low * f.columns + left, high - low + 1, right - left + 1,
                v3(f.x + f.dx * left - pos.x, f.y + f.dy * low - pos.y, -pos.z), centre, lowest};
  if (right < left || high < low || pos.z + half.z < f.base) return false;
  // The highest of the tiles: of two by two, which are all but of large geoms, at once.
  int top = (unsigned)low / TILE, bottom = (unsigned)high / TILE, start = (unsigned)left / TILE, end = (unsigned)right / TILE;
  const real *tile = heights(w) + f.tiles + start, *one = tile + top * f.tile_columns, *other = tile + bottom * f.tile_columns;
  real most = more(more(one[0], one[end - start]), more(other[0], other[end - start]));
  if (bottom - top > 1 || end - start > 1) {
    ROLLED for (int r = top; r <= bottom; r++) {
      ROLLED for (int c = 0; c <= end - start; c++) most = more(most, tile[r * f.tile_columns + c]);
    }
  }
  return most >= lowest;
}

// Half 0 or 1 of a patch's cell. `at`: its heights.
FN Prism prism_in(const Field& f, const real* corner, int row, int column, int half, const real* at) {
  real z = corner[2], h[4] = {at[0] + z, at[1] + z, at[f.columns] + z, at[f.columns + 1] + z};
  return prism_of(half, v3(corner[0] + f.dx * column, corner[1] + f.dy * row, 0), f.dx, f.dy, h, f.base + z);
}
FN Field field_below(const World& w, int pair) { return field_of(w, NFIELDS > 1 ? pair_of(w, pair).geom_a : 0); }
FN quat rotation_of_field(const World& w, const Scratch& S, int pair) { return q4(S.geom[pair_of(w, pair).shape_a] + 4); }
// The geom of a patch, at the origin, with its rotation in the field's axes.
FN Shape geom_above(const World& w, const Scratch& S, int pair, int shape) {
  Shape geom{v3(0, 0, 0), q4(S.geom[shape] + 4), shape_size(w, shape)};
#if !FIELDS_LEVEL
  geom.rot = product(conjugate(rotation_of_field(w, S, pair)), geom.rot);
#endif
  return geom;
}

// Which prisms of the i-th cell of all patches have a top whose plane their geom reaches: bit 0, bit 1; and where it is.
FN int halves_within_reach(const World& w, const Scratch& S, int i, int& k, int& row, int& column) {
  k = 0;
  for (; i >= S.cells[k]; k++) i -= S.cells[k];
  const int* p = S.patch[k];
  const real* corner = S.corner[k];
  int columns = p[3] & 0xffff;
  row = i / columns, column = i - row * columns;
  Field f = field_below(w, p[0]);
  const real* at = heights(w) + p[2] + row * f.columns + column;
  real h[4] = {at[0], at[1], at[f.columns], at[f.columns + 1]}, lowest = corner[3], diagonal = more(h[0], h[3]);
  bool high[2] = {more(diagonal, h[2]) >= lowest, more(diagonal, h[1]) >= lowest};
  if (!high[0] && !high[1]) return 0;
  Shape geom = geom_above(w, S, p[0], p[1]);
  real reach = reach_of(w, p[0]);
  int found = 0;
  UNROLL for (int half = 0; half < 2; half++) {
    Prism q = prism_in(f, corner, row, column, half, at);
    bool within = -dot(q.normal, q.v[0]) < extent_along(p[3] >> 16, geom, q.normal) + reach;
    if (high[half] && within) found |= 1 << half;
  }
  return found;
}

FN bool try_prism(const World& w, const Scratch& S, int prism, int where, int& pair, Hit& hit, vec3& pos) {
  int k = prism >> 1, row = where >> 16, column = where & 0xffff;
  const int* p = S.patch[k];
  pair = p[0];
  Field f = field_below(w, pair);
  Prism q = prism_in(f, S.corner[k], row, column, prism & 1, heights(w) + p[2] + row * f.columns + column);
  if (!touch_prism(p[3] >> 16, q, geom_above(w, S, pair, p[1]), reach_of(w, pair), hit)) return false;
#if !FIELDS_LEVEL
  quat turn = rotation_of_field(w, S, pair);
  hit.normal = rotate(turn, hit.normal), hit.pos = rotate(turn, hit.pos);
#endif
  hit.tangent = default_tangent(hit.normal);
  pos = v3(S.centre[k]) + hit.pos;
  return true;
}

// Contacts with height fields, appended to the others. Cells are looked at in batches: first which of their prisms have
// tops that their geom reaches, then these, so that no lane is idle meanwhile.
FN void collide_with_fields(const World& w, Scratch& S, int& ncon) {
  int near_pairs = 0, total = 0;
  BATCHES(i, NHFIELD) {
    Patch p;
    bool found = i < NHFIELD && patch_below(w, S, FIRST_HFIELD + i, p);
    int place = append(found, near_pairs);
    if (found) {
      int* patch = S.patch[place];
      patch[0] = p.pair, patch[1] = p.shape, patch[2] = p.first, patch[3] = p.columns | p.kind << 16;
      store4(S.corner[place], p.corner.x, p.corner.y, p.corner.z, p.lowest);
      store4(S.centre[place], p.centre.x, p.centre.y, p.centre.z, 0);
      S.cells[place] = p.rows * p.columns;
    }
  }
  sync();
  for (int k = 0; k < near_pairs; k++) total += S.cells[k];
  ROLLED for (int first = 0; first < total; first += CELLS) {
    int some = total - first < CELLS ? total - first : CELLS, high = 0;
    BATCHES(i, some) {
      int k, row, column, halves = i < some ? halves_within_reach(w, S, first + i, k, row, column) : 0;
      UNROLL for (int half = 0; half < 2; half++) {
        bool found = halves >> half & 1;
        int place = append(found, high);
        if (found) S.prism[place][0] = 2 * k + half, S.prism[place][1] = row << 16 | column;
      }
    }
    sync();
    BATCHES(i, high) {
      Hit hit;
      vec3 pos;
      int pair = 0;
      bool found = i < high && try_prism(w, S, S.prism[i][0], S.prism[i][1], pair, hit, pos);
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
