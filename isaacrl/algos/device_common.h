// What kernels share: how reals are stored, activations, sums in a fixed order.
//
// Macros: BFLOAT16, how activations, their gradients and working copies of weights are stored (else float); ACTIVATION,
// one of ELU, RELU and TANH.

#define ELU 0
#define RELU 1
#define TANH 2
#define KERNEL inline CUDA_CALLABLE void
#define DEVICE inline CUDA_CALLABLE

#if BFLOAT16
typedef unsigned short Real;
#else
typedef float Real;
#endif
typedef unsigned char Bool;
typedef long long Long;

constexpr int PACK = 16 / sizeof(Real);  // reals of one 16-byte access

// --- reals as they are stored ----------------------------------------------------------------------------------------

struct alignas(16) Quad { float x[4]; };
struct alignas(16) Bits { unsigned x[4]; };
union Word { unsigned bits; float value; };

#if BFLOAT16
DEVICE float from_real(Real x) {
  Word w;
  w.bits = unsigned(x) << 16;
  return w.value;
}

// Round to the nearest, to even where there are two.
DEVICE Real to_real(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned short r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
#else
  Word w;
  w.value = x;
  if (x != x) return 0x7fff;
  return Real((w.bits + 0x7fffu + ((w.bits >> 16) & 1u)) >> 16);
#endif
}
#else
DEVICE float from_real(Real x) { return x; }
DEVICE Real to_real(float x) { return x; }
#endif

struct Pack { float x[PACK]; };

DEVICE Pack load(const Real* p) {
  Pack v;
#if defined(__CUDA_ARCH__)
  Bits b = *(const Bits*)p;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    Word low, high;
#if BFLOAT16
    low.bits = b.x[k] << 16;
    high.bits = b.x[k] & 0xffff0000u;
    v.x[2 * k] = low.value;
    v.x[2 * k + 1] = high.value;
#else
    low.bits = b.x[k];
    v.x[k] = low.value;
#endif
  }
#else
  for (int k = 0; k < PACK; ++k) v.x[k] = from_real(p[k]);
#endif
  return v;
}

DEVICE void store(Real* p, const Pack& v) {
#if defined(__CUDA_ARCH__)
  Bits b;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#if BFLOAT16
    b.x[k] = unsigned(to_real(v.x[2 * k])) | unsigned(to_real(v.x[2 * k + 1])) << 16;
#else
    Word w;
    w.value = v.x[k];
    b.x[k] = w.bits;
#endif
  }
  *(Bits*)p = b;
#else
  for (int k = 0; k < PACK; ++k) p[k] = to_real(v.x[k]);
#endif
}

// --- activations -----------------------------------------------------------------------------------------------------

DEVICE float exp_minus_1(float x) {
#if defined(__CUDA_ARCH__)
  return expm1f(x);
#else
  float t = tanhf(0.5f * x);  // without cancellation
  return 2.0f * t / (1.0f - t);
#endif
}

// For bfloat16 by instructions that are a little inexact, and without a branch.
DEVICE float activation(float x) {
#if ACTIVATION == RELU
  return x < 0.0f ? 0.0f : x;
#elif ACTIVATION == TANH
#if BFLOAT16 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
  asm("tanh.approx.f32 %0, %0;" : "+f"(x));
  return x;
#else
  return tanhf(x);
#endif
#elif BFLOAT16 && defined(__CUDA_ARCH__)
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * 1.44269504f));
  return x > 0.0f ? x : e - 1.0f;
#else
  return x > 0.0f ? x : exp_minus_1(x);
#endif
}

// The activation's derivative, from its output.
DEVICE float slope(float y) {
#if ACTIVATION == RELU
  return y > 0.0f ? 1.0f : 0.0f;
#elif ACTIVATION == TANH
  return 1.0f - y * y;
#else
  return y > 0.0f ? 1.0f : y + 1.0f;
#endif
}

// --- sums in a fixed order -------------------------------------------------------------------------------------------

// Threads that add up together: a block of a GPU; on a CPU each is alone.
#if defined(__CUDA_ARCH__)
#define LANE int(threadIdx.x)
#define LANES int(blockDim.x)
#define TEAM int(blockIdx.x)
#define SYNC __syncthreads()
#define SHARED __shared__
constexpr int WARP = 32;

DEVICE float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// The sum over the block, in its first thread. All threads call it.
DEVICE float team_sum(float x) {
  SHARED float parts[32];
  x = warp_sum(x);
  SYNC;  // the last call's parts have been read
  if (LANE % 32 == 0) parts[LANE / 32] = x;
  SYNC;
  if (LANE < 32) x = warp_sum(LANE < LANES / 32 ? parts[LANE] : 0.0f);
  return x;
}

// Sums over the block. All threads call it, once.
template <int N>
DEVICE void team_sums(const float (&x)[N], float* sums) {
  SHARED float parts[32][N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    float sum = warp_sum(x[k]);
    if (LANE % 32 == 0) parts[LANE / 32][k] = sum;
  }
  SYNC;
  for (int k = LANE; k < N; k += LANES) {
    float sum = 0.0f;
    for (int w = 0; w < LANES / 32; ++w) sum += parts[w][k];
    sums[k] = sum;
  }
}
#else
#define LANE 0
#define LANES 1
#define TEAM thread
#define SYNC
#define SHARED
constexpr int WARP = 1;
DEVICE float warp_sum(float x) { return x; }
DEVICE float team_sum(float x) { return x; }
template <int N>
DEVICE void team_sums(const float (&x)[N], float* sums) {
  for (int k = 0; k < N; ++k) sums[k] = x[k];
}
#endif

DEVICE bool finite(float x) { return fabsf(x) <= 3.4028235e38f; }
