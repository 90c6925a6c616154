// The lane model: how one source runs as a group of lanes on a GPU and as plain loops on a CPU.
//
// LANES lanes (1 to 32, a power of two, a part of one GPU warp) step one world together. A stage is a sequence of
// blocks; within a block each item (a body, a dof, a contact, ...) is handled by one lane, independently of all others:
//
//     EACH(i, NV) { y[i] = 2 * x[i]; }
//
// What outlives a block is either scratch memory, which all lanes see after sync(), or a Per<T, N>, one value an item,
// which only the item's own lane can reach (registers on a GPU, an array on a CPU). Everything else in a stage is
// uniform: the same in all lanes. A plain variable that EACH adds to is a lane's share until across(...) joins the lanes.
#pragma once

#if defined(__CUDA_ARCH__)
#define GPU 1
#define FN __device__ __forceinline__
// A function that is called, not inlined: it is hardly ever needed.
#define RARE __device__ __noinline__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define ALIGNED __align__(16)
#define ALIGNED_INT __align__(16)
#define CONSTANT __device__ const
#else
#define GPU 0
#define FN static inline
#define RARE static
#define UNROLL
#define ROLLED
#define ALIGNED alignas(4 * sizeof(REAL))
#define ALIGNED_INT
#define CONSTANT const
#endif

// Loops over the model's parts: unrolled where that is little code; else the kernel would wait for its instructions.
#if NV <= 20
#define LOOP UNROLL
#else
#define LOOP ROLLED
#endif

typedef REAL real;
#define R(x) ((real)(x))

#if GPU

// Slots: how many items of n a lane handles at most.
#define SLOTS(n) (((n) + LANES - 1) / LANES)

struct Item {
  int id, slot;
  FN operator int() const { return id; }
};
template <class T, int N>
struct Per {
  T v[SLOTS(N) > 0 ? SLOTS(N) : 1];
  FN T& operator[](Item i) { return v[i.slot]; }
  FN const T& operator[](Item i) const { return v[i.slot]; }
};

FN int lane_id() { return LANES == 1 ? 0 : (threadIdx.x & (LANES - 1)); }
FN unsigned group_mask() {
  return LANES == 32 ? 0xffffffffu : (((1u << (LANES & 31)) - 1u) << ((threadIdx.x & 31) & ~(LANES - 1)));
}
FN int item_or_last(int id, int n) { return n % LANES == 0 || id < n ? id : n - 1; }
// n items, known at compile time, one lane each.
#define EACH(i, n)                                                   \
  UNROLL for (int i##_s = 0; i##_s < SLOTS(n); i##_s++)              \
    if (Item i{i##_s * LANES + lane_id(), i##_s}; i.id < (n))
// The same where the block only computes values from others: lanes without an item repeat the last one, which spares
// the branch. Not for what adds up over items.
#define MAP(i, n)                                                    \
  UNROLL for (int i##_s = 0; i##_s < SLOTS(n); i##_s++)              \
    if (Item i{item_or_last(i##_s * LANES + lane_id(), n), i##_s}; true)
// n items of at most `most`: n is known at run time only.
#define EACH_OF(i, n, most)                                          \
  UNROLL for (int i##_s = 0; i##_s < SLOTS(most); i##_s++)           \
    if (Item i{i##_s * LANES + lane_id(), i##_s}; i.id < (n))
// Many items; nothing Per of them is kept.
#define EACH_OF_MANY(i, n)                                           \
  ROLLED for (Item i{lane_id(), 0}; i.id < (n); i.id += LANES)
// Batches of items in which all lanes take part, those beyond n too (`i < n` is the block's to ask): for append().
#define BATCHES(i, n)                                                \
  ROLLED for (int i##_s = 0; i##_s < (n); i##_s += LANES)            \
    if (Item i{i##_s + lane_id(), 0}; true)
// The same for blocks of little code, of which a few overlap.
#define SMALL_BATCHES(i, n)                                          \
  _Pragma("unroll 4") for (int i##_s = 0; i##_s < (n); i##_s += LANES) \
    if (Item i{i##_s + lane_id(), 0}; true)

// Brings near what is used later.
FN void prefetch(const void* p) {
  unsigned unused;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(unused) : "l"(p));
}
FN void sync() {
  if (LANES > 1) __syncwarp(group_mask());
}
// What other multiprocessors have written in this launch: past this one's own cache. And what was written before is seen
// before what is written after.
FN real latest(const real* p) { return __ldcg(p); }
FN void fence() { __threadfence(); }
// Where all worlds of a block come together, only so that they fetch the same instructions at the same time: a step has
// more of them than the cache has room for. Worlds that have ended are not waited for.
FN void meet() { __syncthreads(); }
// This thread's number where blocks are numbered as they begin; there are `total` threads. next: of blocks, 0 at first
// and again in the end.
FN int ticket(int* next, int total) {
  __shared__ int block;
  if (threadIdx.x == 0) {
    block = atomicAdd(next, 1);
    if ((block + 1) * blockDim.x == total) *next = 0;
  }
  __syncthreads();
  return block * blockDim.x + threadIdx.x;
}
FN real across(real x) {
  UNROLL for (int m = LANES / 2; m; m >>= 1) x += __shfl_xor_sync(group_mask(), x, m, LANES);
  return x;
}
// Four at once: they wait for each other's shuffles.
FN void across(real& a, real& b, real& c, real& d) {
  UNROLL for (int m = LANES / 2; m; m >>= 1) {
    real e = __shfl_xor_sync(group_mask(), a, m, LANES), f = __shfl_xor_sync(group_mask(), b, m, LANES);
    real g = __shfl_xor_sync(group_mask(), c, m, LANES), h = __shfl_xor_sync(group_mask(), d, m, LANES);
    a += e, b += f, c += g, d += h;
  }
}
FN bool any(bool p) { return LANES == 1 ? p : (__ballot_sync(group_mask(), p) & group_mask()) != 0; }
// The place of this lane's item in a list of n so far, if `hit`; n grows by the hits of all lanes.
FN int append(bool hit, int& n) {
  if (LANES == 1) return hit ? n++ : n;
  unsigned mask = group_mask(), all = __ballot_sync(mask, hit) & mask;
  int place = n + __popc(all & ((1u << (threadIdx.x & 31)) - 1u));
  n += __popc(all);
  return place;
}
// Item k's value, in all lanes; k is uniform.
template <class T, int N>
FN T from(const Per<T, N>& x, int k) {
  T own = x.v[0];
  UNROLL for (int slot = 1; slot < SLOTS(N); slot++) if (k / LANES == slot) own = x.v[slot];
  return LANES == 1 ? own : __shfl_sync(group_mask(), own, k & (LANES - 1), LANES);
}

#else

struct Item {
  int id;
  operator int() const { return id; }
};
template <class T, int N>
struct Per {
  T v[N > 0 ? N : 1];
  T& operator[](Item i) { return v[i.id]; }
  const T& operator[](Item i) const { return v[i.id]; }
};
// Blocks must not depend on the order of their items: tests run them backwards as well.
#if BACKWARDS
#define EACH(i, n) for (Item i{(n)-1}; i.id >= 0; i.id--)
#else
#define EACH(i, n) for (Item i{0}; i.id < (n); i.id++)
#endif
#define MAP(i, n) EACH(i, n)
#define EACH_OF(i, n, most) EACH(i, n)
#define EACH_OF_MANY(i, n) EACH(i, n)
#define BATCHES(i, n) for (Item i{0}; i.id < (n); i.id++)
#define SMALL_BATCHES(i, n) BATCHES(i, n)
FN void prefetch(const void*) {}
FN void sync() {}
FN real latest(const real* p) { return *p; }
FN void fence() {}
FN void meet() {}
FN real across(real x) { return x; }
FN void across(real&, real&, real&, real&) {}
FN bool any(bool p) { return p; }
FN int append(bool hit, int& n) { return hit ? n++ : n; }
template <class T, int N>
FN T from(const Per<T, N>& x, int k) {
  return x.v[k];
}

#endif
