// Whole networks in one launch, on tensor cores: a block takes BLOCK_ROWS rows through all layers and keeps them in
// shared memory. device_networks.py makes the launches; GPUs only.
//
// Macros: those of device_common.h, with BFLOAT16; NETS networks of LAYERS layers, whose input has INPUTS[l] columns of
// weights, is stored with STRIDES[l] columns and gives OUTPUTS[l], all multiples of 8; BLOCK_ROWS, BLOCK_WARPS; TILES,
// the most columns of 8 that a warp sums up at once. Matrix fragments are those of PTX's mma.m16n8k16.

constexpr int INPUT[] = {INPUTS}, STRIDE[] = {STRIDES}, OUTPUT[] = {OUTPUTS};
constexpr int R = BLOCK_ROWS, WARPS = BLOCK_WARPS, THREADS = 32 * WARPS;
constexpr int ROW_WARPS = R >= 128 ? R / 64 : 1, COLUMN_WARPS = WARPS / ROW_WARPS, BANDS = R / ROW_WARPS / 16;
constexpr int LOADS_AHEAD = BANDS > 2 ? 3 : 6;  // steps of a product whose weights are on their way
constexpr int GAP = 8;  // reals after a row in shared memory, so that rows do not meet in its banks

DEVICE constexpr int up16(int n) { return (n + 15) / 16 * 16; }
DEVICE constexpr int most(int a, int b) { return a > b ? a : b; }

// Reals of all layers before layer l: of packed weights forward and backward, of biases and gradients, of inputs.
DEVICE constexpr int forward_weights(int l) {
  return l ? forward_weights(l - 1) + NETS * up16(INPUT[l - 1]) * OUTPUT[l - 1] : 0;
}
DEVICE constexpr int backward_weights(int l) {
  return l > 1 ? backward_weights(l - 1) + NETS * up16(OUTPUT[l - 1]) * INPUT[l - 1] : forward_weights(LAYERS);
}
DEVICE constexpr int outputs_before(int l) { return l ? outputs_before(l - 1) + NETS * OUTPUT[l - 1] : 0; }
DEVICE constexpr int inputs_before(int l) { return l ? inputs_before(l - 1) + NETS * STRIDE[l - 1] : 0; }

// Rows of tiles in shared memory: inputs of layers, gradients of their outputs. Layers take turns with two places.
DEVICE constexpr int input_row(int l) { return up16(INPUT[l]) + GAP; }
DEVICE constexpr int grad_row(int l) { return up16(OUTPUT[l]) + GAP; }
DEVICE constexpr int widest_input(int l) { return l < LAYERS ? most(input_row(l), widest_input(l + 2)) : 0; }
DEVICE constexpr int widest_grad(int l) { return l < LAYERS ? most(grad_row(l), widest_grad(l + 2)) : 0; }
static_assert(2 * R * (widest_input(0) + widest_input(1)) <= SCRATCH, "device_networks.scratch_bytes");
static_assert(LAYERS == 1 || 2 * R * (widest_grad(0) + widest_grad(1)) <= SCRATCH, "device_networks.scratch_bytes");

struct alignas(8) Two { unsigned x[2]; };
struct alignas(8) Floats { float x[2]; };

#if defined(__CUDA_ARCH__)
DEVICE unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

// Four 8 x 8 matrices; lanes 8 i to 8 i + 7 name the rows of the i-th.
DEVICE void load_matrices(unsigned (&x)[4], const Real* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(row)));
}

DEVICE void multiply_add(float (&c)[4], const unsigned (&a)[4], const Two& b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x[0]), "r"(b.x[1]));
}

// 16 bytes to shared memory, which are there after copies_end.
DEVICE void copy_begin(Real* to, const Real* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from));
}
DEVICE void copies_end() { asm volatile("cp.async.wait_all;" ::: "memory"); }

DEVICE unsigned two_reals(float a, float b) {
  unsigned x;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(b), "f"(a));
  return x;
}
#endif

DEVICE void two_floats(unsigned x, float& a, float& b) {
  a = from_real(Real(x & 0xffffu));
  b = from_real(Real(x >> 16));
}

// The product of a tile [R, K] and weights [K, N], packed as device_networks.packed says. Then, for every two neighbours
// (row, column) and (row, column + 1) of the result, `use` is given: their place, the two, what column(column) gave and
// what entry(row, column) gave. Before the first of them all threads have called ready().
template <int K, int N, class Ready, class Column, class Entry, class Use>
DEVICE void product(const Real* tile, const Real* weights, Ready ready, Column column, Entry entry, Use use) {
  constexpr int STEPS = K / 16, COLUMNS = N / 8, SHARE = (COLUMNS + COLUMN_WARPS - 1) / COLUMN_WARPS;
  constexpr int PASSES = (SHARE + TILES - 1) / TILES, TAKEN = (SHARE + PASSES - 1) / PASSES;
  constexpr int AHEAD = STEPS < LOADS_AHEAD ? STEPS : LOADS_AHEAD;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int band = warp % ROW_WARPS * BANDS * 16, share = warp / ROW_WARPS;
  const int end = COLUMNS * (share + 1) / COLUMN_WARPS;
  int first = COLUMNS * share / COLUMN_WARPS;
  const Real* row = tile + (band + lane % 16) * (K + GAP) + lane / 16 * 8;
#pragma unroll 1
  for (int pass = 0; pass < PASSES; ++pass, first += TAKEN) {
    float sum[BANDS][TAKEN][4];
#pragma unroll
    for (int m = 0; m < BANDS; ++m)
#pragma unroll
      for (int j = 0; j < TAKEN; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[m][j][k] = 0.0f;
    if (first < end) {
      // Where fewer columns are left the warp computes some that are not its own, or what lies behind the weights.
      const Two* w = (const Two*)weights + first * 32 + lane;
      Two b[AHEAD][TAKEN];  // of the next steps, on their way from the cache
#pragma unroll
      for (int s = 0; s < AHEAD; ++s)
#pragma unroll
        for (int j = 0; j < TAKEN; ++j) b[s][j] = w[(s * COLUMNS + j) * 32];
#pragma unroll 1
      for (int s = 0; s < STEPS; s += AHEAD) {
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
          if (s + k >= STEPS) break;
          unsigned a[BANDS][4];
#pragma unroll
          for (int m = 0; m < BANDS; ++m) load_matrices(a[m], row + m * 16 * (K + GAP) + (s + k) * 16);
#pragma unroll
          for (int j = 0; j < TAKEN; ++j)
#pragma unroll
            for (int m = 0; m < BANDS; ++m) multiply_add(sum[m][j], a[m], b[k][j]);
          if (s + k + AHEAD >= STEPS) continue;
#pragma unroll
          for (int j = 0; j < TAKEN; ++j) b[k][j] = w[((s + k + AHEAD) * COLUMNS + j) * 32];
        }
      }
    }
    if (pass == 0) ready();
    if (first >= end) continue;
    const int r = band + lane / 4, c = first * 8 + lane % 4 * 2;
    Floats q[TAKEN];
#pragma unroll
    for (int j = 0; j < TAKEN; ++j) q[j] = first + j < end ? column(c + j * 8) : Floats{{0.0f, 0.0f}};
#pragma unroll
    for (int j = 0; j < TAKEN; ++j) {
      if (first + j >= end) break;
      unsigned e[BANDS][2];
#pragma unroll
      for (int m = 0; m < BANDS; ++m)
#pragma unroll
        for (int k = 0; k < 2; ++k) e[m][k] = entry(r + m * 16 + k * 8, c + j * 8);
#pragma unroll
      for (int m = 0; m < BANDS; ++m)
#pragma unroll
        for (int k = 0; k < 2; ++k)
          use(r + m * 16 + k * 8, c + j * 8, sum[m][j][2 * k], sum[m][j][2 * k + 1], q[j], e[m][k]);
    }
  }
}

DEVICE void clear(Real* to) { *(Bits*)to = Bits{{0, 0, 0, 0}}; }

// Zeros after the first N columns of a tile that a product reads with up16(N).
template <int N>
DEVICE void pad(Real* tile) {
  if (up16(N) == N) return;
  for (int r = threadIdx.x; r < R; r += THREADS) clear(tile + r * (up16(N) + GAP) + N);
}

// The first N columns of a tile to `rows` rows of a matrix.
template <int N>
DEVICE void write_tile(const Real* tile, int tile_row, Real* to, int stride, int rows) {
  for (int i = threadIdx.x; i < R * (N / 8); i += THREADS) {
    int r = i / (N / 8), c = i % (N / 8) * 8;
    if (r < rows) *(Bits*)(to + Long(r) * stride + c) = *(const Bits*)(tile + r * tile_row + c);
  }
}

struct Batch {
  int g, first, rows, all;  // a network; the block's rows of `all` ones
};

DEVICE Batch batch(int block, int blocks, int all) {
  int first = block % blocks * R;
  return Batch{block / blocks, first, all - first < R ? all - first : R, all};
}

template <int L, class Put>
DEVICE void forward_from(const Batch& b, Real* tile, Real* other, const Real* weights, const float* biases,
                         Real* inputs, Put put) {
  const Real* w = weights + forward_weights(L) + b.g * up16(INPUT[L]) * OUTPUT[L];
  const float* bias = biases + outputs_before(L) + b.g * OUTPUT[L];
  auto ready = [] {};
  auto column = [=](int c) { return *(const Floats*)(bias + c); };
  auto entry = [](int, int) { return 0u; };
  if constexpr (L + 1 == LAYERS) {
    product<up16(INPUT[L]), OUTPUT[L]>(
        tile, w, ready, column, entry, [&](int r, int c, float x, float y, Floats q, unsigned) { put(r, c, x, y, q); });
  } else {
    constexpr int ROW_ = input_row(L + 1);
    product<up16(INPUT[L]), OUTPUT[L]>(
        tile, w, ready, column, entry, [=](int r, int c, float x, float y, Floats q, unsigned) {
          *(unsigned*)(other + r * ROW_ + c) = two_reals(activation(x + q.x[0]), activation(y + q.x[1]));
        });
    pad<INPUT[L + 1]>(other);
    SYNC;
    if (inputs) {
      Real* to = inputs + Long(b.all) * inputs_before(L + 1) + (Long(b.g) * b.all + b.first) * STRIDE[L + 1];
      write_tile<OUTPUT[L]>(other, ROW_, to, STRIDE[L + 1], b.rows);
    }
    forward_from<L + 1>(b, other, tile, weights, biases, inputs, put);
  }
}

// Outputs, which lack the last bias, and inputs of all layers, of samples in that order: rows of source, or of
// source2 for the second network. `all` rows, of which those from `rows` on get no sample.
KERNEL forward(int thread, const Real* weights, const float* biases, const Real* source, const Real* source2,
                const int* order, Real* inputs, float* output, int rows, int all, int blocks) {
  extern __shared__ Bits isaacrl_tiles[];
  Real *tile = (Real*)isaacrl_tiles, *other = tile + R * widest_input(0);
  Batch b = batch(thread / THREADS, blocks, all);
  SHARED int sample[R];
  for (int r = threadIdx.x; r < R; r += THREADS) sample[r] = b.first + r < rows ? order[b.first + r] : -1;
  SYNC;
  constexpr int PACKS = most(STRIDE[0], up16(INPUT[0])) / 8;
  for (int i = threadIdx.x; i < R * PACKS; i += THREADS) {
    int r = i / PACKS, c = i % PACKS * 8;
    Real* to = tile + r * input_row(0) + c;
    if (sample[r] >= 0 && c < STRIDE[0]) copy_begin(to, (b.g ? source2 : source) + Long(sample[r]) * STRIDE[0] + c);
    else clear(to);
  }
  copies_end();
  SYNC;
  Real* to = inputs + (Long(b.g) * all + b.first) * STRIDE[0];
  write_tile<STRIDE[0]>(tile, input_row(0), to, STRIDE[0], rows - b.first);
  output += (Long(b.g) * all + b.first) * OUTPUT[LAYERS - 1];
  forward_from<0>(b, tile, other, weights, biases, inputs, [&](int r, int c, float x, float y, Floats) {
    if (r < b.rows) *(Floats*)(output + Long(r) * OUTPUT[LAYERS - 1] + c) = Floats{{x, y}};
  });
}

// Output [rows, width] of network g for observations [rows, n], normalized and clipped unless mean is null.
KERNEL evaluate(int thread, const Real* weights, const float* biases, const float* obs, const float* mean,
                 const float* var, float* output, int g, int rows, int n, int width, float clip) {
  extern __shared__ Bits isaacrl_tiles[];
  Real *tile = (Real*)isaacrl_tiles, *other = tile + R * widest_input(0);
  Batch b = batch(thread / THREADS, thread / THREADS + 1, rows);
  b.g = g;
  constexpr int PACKS = up16(INPUT[0]) / 8;
  for (int i = threadIdx.x; i < R * PACKS; i += THREADS) {
    int r = i / PACKS, first = i % PACKS * 8;
    Pack v;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      int c = first + k;
      float x = 0.0f;
      if (r < b.rows && c < n) {
        x = obs[Long(b.first + r) * n + c];
        if (mean) {
          x = (x - mean[c]) * (1.0f / sqrtf(var[c] + 1e-8f));
          x = x < -clip ? -clip : x > clip ? clip : x;  // leaves NaN
        }
      }
      v.x[k] = x;
    }
    store(tile + r * input_row(0) + first, v);
  }
  SYNC;
  output += Long(b.first) * width;
  forward_from<0>(b, tile, other, weights, biases, nullptr, [&](int r, int c, float x, float y, Floats q) {
    if (r < b.rows && c < width) output[Long(r) * width + c] = x + q.x[0];
    if (r < b.rows && c + 1 < width) output[Long(r) * width + c + 1] = y + q.x[1];
  });
}

template <int L>
DEVICE void backward_from(const Batch& b, Real* tile, Real* other, const Real* weights, const Real* inputs,
                          Real* grads) {
  if constexpr (L > 0) {
    constexpr int N = OUTPUT[L - 1], ROW_ = grad_row(L - 1);
    static_assert(INPUT[L] == N, "a layer's input is the one before's output");
    const Real* y = inputs + Long(b.all) * inputs_before(L) + (Long(b.g) * b.all + b.first) * STRIDE[L];
    for (int i = threadIdx.x; i < R * (N / 8); i += THREADS) {
      int r = i / (N / 8), c = i % (N / 8) * 8;
      if (r < b.rows) copy_begin(other + r * ROW_ + c, y + Long(r) * STRIDE[L] + c);
      else clear(other + r * ROW_ + c);
    }
    auto ready = [] {
      copies_end();
      SYNC;
    };
    const Real* w = weights + backward_weights(L) + b.g * up16(OUTPUT[L]) * N;
    auto column = [](int) { return Floats{{0.0f, 0.0f}}; };
    auto entry = [=](int r, int c) { return *(const unsigned*)(other + r * ROW_ + c); };
    product<up16(OUTPUT[L]), N>(
        tile, w, ready, column, entry, [=](int r, int c, float x, float y, Floats, unsigned e) {
          float p, q;
          two_floats(e, p, q);
          *(unsigned*)(other + r * ROW_ + c) = two_reals(x * slope(p), y * slope(q));
        });
    pad<N>(other);
    SYNC;
    Real* to = grads + Long(b.all) * outputs_before(L - 1) + (Long(b.g) * b.all + b.first) * N;
    write_tile<N>(other, ROW_, to, N, b.rows);
    backward_from<L - 1>(b, other, tile, weights, inputs, grads);
  }
}

// Gradients by the outputs of all layers but the last, from the last one's.
KERNEL backward(int thread, const Real* weights, const Real* inputs, Real* grads, int all, int blocks) {
  extern __shared__ Bits isaacrl_tiles[];
  constexpr int LAST = LAYERS - 1, N = OUTPUT[LAST];
  Real* places[2] = {(Real*)isaacrl_tiles, (Real*)isaacrl_tiles + R * widest_grad(0)};
  Real *tile = places[LAST % 2], *other = places[1 - LAST % 2];
  Batch b = batch(thread / THREADS, blocks, all);
  const Real* from = grads + Long(all) * outputs_before(LAST) + (Long(b.g) * all + b.first) * N;
  for (int i = threadIdx.x; i < R * (N / 8); i += THREADS) {
    int r = i / (N / 8), c = i % (N / 8) * 8;
    if (r < b.rows) *(Bits*)(tile + r * grad_row(LAST) + c) = *(const Bits*)(from + Long(r) * N + c);
    else clear(tile + r * grad_row(LAST) + c);
  }
  pad<N>(tile);
  SYNC;
  backward_from<LAST>(b, tile, other, weights, inputs, grads);
}
