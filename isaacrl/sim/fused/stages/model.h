// One world: where its model, its state and its scratch memory lie.
//
// The sizes (NQ, NV, ...) and the accessors of tables (body_mass(w), dof_body(w), ...) are written by tables.py, which
// also says what each table holds. A table of the model is shared by all worlds or, where it is randomized, the world's
// own row of a live array.
#pragma once

#define PADDED(n) (((n) + 3) / 4 * 4)
#define AT_LEAST_ONE(n) ((n) > 0 ? (n) : 1)

// Rows of the Hessian that lanes hold in registers; a few that do not fit stay in scratch memory, rather than giving
// every lane a second row.
#define NR (NV <= LANES || NV > LANES + 6 ? NV : LANES)
#define NROW PADDED(NR)
#define COLUMNS PADDED(NV)  // of a row of the Hessian; those from NV on are 0
#define NH (COLUMNS + (COLUMNS % 8 ? 0 : 4))  // reals from row to row: lanes that read one each use all memory banks
#define ROWS (NROW > LANES ? NROW : LANES)
// Rows of M; those beyond NV are of the identity, for lanes without a dof.
#define NMASS (NV > NR ? NV : ROWS > NV && NROW == NV ? NV + 1 : NROW)
// Two columns of pivots, and what the loops of factor.h read beyond.
#define PIVOT (ROWS + (ROWS > NROW + 8 ? ROWS : NROW + 8))
#define MATRIX 28                     // a packed 6 x 6 matrix (21), a spatial force (6), padding: no bank conflicts
#define WRENCH 21                     // where the spatial force begins
#define TRIANGLE (MAXDIM * (MAXDIM + 1) / 2)  // a packed symmetric matrix of a contact's rows
#define FRICTIONS (MAXDIM > 3 || ANISOTROPIC ? 4 : 0)
#define C_FORCE (MAXDIM > 3 ? 20 + FRICTIONS : C_AREF)                       // of the rows (a_ref is in use no more)
#define C_HESSIAN (20 + FRICTIONS + (MAXDIM > 3 ? PADDED(MAXDIM) : 0))  // second derivative of their cost by the rows
#define SPARE (NCON > NFAST)  // a place in scratch memory for rows that are not kept there
#define RECORD (C_HESSIAN + PADDED(TRIANGLE))

struct World {
  int id;
  const real* params;                // shared tables of reals
  const int* tables;                 // and of integers
  const unsigned long long* arrays;  // addresses of live arrays, one row a world; 0: nobody asked for it
};

template <class T>
FN T* live(const World& w, int array, int columns) {
  T* p = (T*)w.arrays[array];
  return p ? p + (size_t)w.id * columns : p;
}

//@tables
// A contact, a record of RECORD reals. Positions are relative to the reference point of `body`'s tree.
enum { C_POS = 0, C_MU = 3, C_NORMAL = 4, C_D = 7, C_TANGENT = 8, C_BODY = 11, C_OTHER = 12, C_SIGN = 13, C_DIM = 14,
       C_PAIR = 15, C_AREF = 16, C_DIST = 19, C_FRICTION = 20 };  // and C_FORCE, C_HESSIAN

struct ALIGNED Scratch {
  real qpos[PADDED(NQ)];
  real qvel[PADDED(NV)];
  real warm[PADDED(NV)];              // the last acceleration
  real force[AT_LEAST_ONE(NU)];       // of each actuator
  real drive[AT_LEAST_ONE(2 * NU)];   // on its dof, by dof, and the derivative by the velocity
  ALIGNED real pose[NB][8];           // position relative to the tree's origin (3), 0, orientation (4)
  ALIGNED real motion[NV][8];         // each dof's axis as a spatial motion (MuJoCo's cdof, about the reference point)
  ALIGNED real mass[NMASS][NH];       // the joint-space inertia M
  ALIGNED real contact[AT_LEAST_ONE(NCON)][RECORD];
  ALIGNED real vector[NH];
  union {
    struct {
      ALIGNED real chain[NV][8];  // sums of spatial motions over a dof and its ancestors
      union {
        ALIGNED real joint[AT_LEAST_ONE(NJ)][8];  // axis and anchor in the parent's frame: kinematics alone
        struct {                                  // collision alone
          ALIGNED real geom[AT_LEAST_ONE(NG)][8];  // centre, bounding radius, orientation
#if NHFIELD
          // Of height fields, below geoms that may touch them: see Patch in collision.h.
          ALIGNED real corner[NHFIELD][4], centre[NHFIELD][4];
          int patch[NHFIELD][4], cells[NHFIELD];  // pair, shape, first height, columns and kind; how many cells
          int prism[2 * CELLS][2];                // some within reach: patch and half, row and column
#endif
          int candidate[AT_LEAST_ONE(NPAIR)];  // pairs that may touch
        };
        ALIGNED real sums[NB][MATRIX];  // spatial inertia about the reference point, and force; summed over subtrees
      };
    };
    struct {  // the solver alone
      ALIGNED real row[AT_LEAST_ONE((NFAST + SPARE) * MAXDIM)][NH];  // J of the first contacts; see scratch_rows
      ALIGNED real extra[AT_LEAST_ONE(NV - NR)][NH];      // rows of the Hessian
      union {
        ALIGNED real pivot[2][PIVOT];                // of the elimination
        real product[AT_LEAST_ONE(NCON * MAXDIM)];  // J x
      };
    };
  };
  int failed;      // not 0: a target is not a number
  int overflowed;  // not 0: there was no room for a contact
#if PROFILE
  unsigned clock, ticks[16];
#endif
};

// Where the time goes: clock cycles by section, to a live array [E, 16].
#if PROFILE && GPU
#define MARK(S, k) (sync(), mark(S, k))
#define START_CLOCK(S) start_clock(S)
#define STORE_CLOCK(w, S) store_clock(w, S)
FN void start_clock(Scratch& S) {
  EACH(one, 1) {
    for (int k = 0; k < 16; k++) S.ticks[k] = 0;
    S.clock = (unsigned)clock();
  }
}
FN void mark(Scratch& S, int k) {
  EACH(one, 1) {
    unsigned now = (unsigned)clock();
    S.ticks[k] += now - S.clock, S.clock = now;
  }
}
FN void store_clock(const World& w, Scratch& S) {
  int* out = live<int>(w, A_PROFILE, 16);
  if (out) EACH(one, 1) for (int k = 0; k < 16; k++) out[k] = (int)S.ticks[k];
}
#else
#define MARK(S, k)
#define START_CLOCK(S)
#define STORE_CLOCK(w, S)
#endif

// Packed tables (tables.py): what a stage must know of a body or a dof, in one load of four integers.
struct ALIGNED_INT words {
  int a, b, c, d;
};
FN words body_words(const World& w, int body) { return ((const words*)body_packed(w))[body]; }
FN words dof_words(const World& w, int dof) { return ((const words*)dof_packed(w))[dof]; }
// Of an actuator: flags, addresses in qpos and qvel, place in S.drive; of a dof: where its drives begin and end there,
// and whether the joint limits their sum.
FN words actuator_words(const World& w, int actuator) { return ((const words*)actuator_packed(w))[actuator]; }
FN words drive_words(const World& w, int dof) { return ((const words*)dof_drive(w))[dof]; }
enum { CTRL_LIMITED = 1, FORCE_LIMITED = 2, AFFINE_GAIN = 4, AFFINE_BIAS = 8 };
// What the solver and the sensors must know of a pair of geoms.
struct ALIGNED_INT Pair {
  int PAIR_FIELDS;
};
FN Pair pair_of(const World& w, int pair) { return ((const Pair*)pair_int(w))[pair]; }
#if NHFIELD
// A height field: where its heights begin among those of all fields, and the highest of each TILE x TILE cells; of its
// frame's axes the least x and y, the distance of heights, the z of its base, and 1 / dx and 1 / dy.
struct Field {
  int first, rows, columns, tiles, tile_columns;
  real x, y, dx, dy, base, per_dx, per_dy;
};
FN Field field_of(const World& w, int geom) {
  int k = NFIELDS > 1 ? geom_field(w)[geom] : 0;
  const int* i = field_int(w) + 8 * k;
  const real* r = field_real(w) + 8 * k;
  return Field{i[0], i[1], i[2], i[3], i[4], r[0], r[1], r[2], r[3], r[4], r[5], r[6]};
}
FN const real* heights(const World& w) { return (const real*)w.arrays[A_HEIGHTS]; }  // [m], the same for all worlds
#endif
FN int byte_of(int word, int k) { return (word >> (8 * k)) & 255; }

// How stiff and how strongly damped a constraint is: K, B and MuJoCo's solimp (derive.py), and one more.
struct Parameters {
  real K, B, d0, dmax, per_width, midpoint, power, extra;
};
FN Parameters parameters_at(const real* p) {
  four a = fetch4(p), b = fetch4(p + 4);
  return Parameters{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}

// J of contact k, [MAXDIM][NH], is in scratch memory. Most worlds have few contacts: only the first are kept there, the
// others in a live array, and their turn in scratch memory is between fetch_rows and the next of them.
FN real* scratch_rows(Scratch& S, int k) { return S.row[(k < NFAST ? k : NFAST) * MAXDIM]; }
#if SPARE
FN real* kept_rows(const World& w, int k) {
  return live<real>(w, A_ROWS, (NCON - NFAST) * MAXDIM * NH) + (k - NFAST) * MAXDIM * NH;
}
FN void keep_rows(const World& w, Scratch& S, int k) {
  real *kept = kept_rows(w, k), *place = scratch_rows(S, k);
  sync();
  EACH_OF_MANY(i, MAXDIM * NH) kept[i] = place[i];
  sync();
}
FN void fetch_rows(const World& w, Scratch& S, int k) {
  real *kept = kept_rows(w, k), *place = scratch_rows(S, k);
  sync();
  EACH_OF_MANY(i, MAXDIM * NH) place[i] = kept[i];
  sync();
}
#endif

// Where the positions of a body's tree are counted from: the base of a free tree, else the world's origin. Far from the
// world's origin float32 has no millimetres, so only differences are ever formed of these.
FN vec3 origin_of(const World& w, const Scratch& S, int body) {
  int a = body_origin(w)[body];
  return a >= 0 ? v3(S.qpos + a) : v3(0, 0, 0);
}
// The reference point of a body's tree, relative to its origin.
FN vec3 reference_of(const World& w, const Scratch& S, int body) { return v3(S.pose[body_root(w)[body]]); }
FN vec3 position_of(const Scratch& S, int body) { return v3(S.pose[body]); }
FN quat orientation_of(const Scratch& S, int body) { return q4(S.pose[body] + 4); }
