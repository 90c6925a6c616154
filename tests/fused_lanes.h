// A group of GPU lanes on a CPU: each lane is a fiber that runs to its next barrier; then the next lane's turn comes.
// What lanes exchange without a barrier between depends on whose turn comes first, so tests run several orders.
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <vector>

#define __CUDA_ARCH__ 1
#define __device__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __shared__ static
using std::atan2;
using std::cos;
using std::pow;
using std::sin;

static struct {
  unsigned x;
} threadIdx, blockDim;
static const int STACK = 1 << 21;
static ucontext_t fiber[32], back;
static int lane, lanes, first_thread, barrier_of[32];
static char box[32][16];  // what a lane shows the others

static void meet(int barrier) {  // 0: the lane has ended
  int me = lane;
  barrier_of[me] = barrier;
  swapcontext(&fiber[me], &back);
  threadIdx.x = first_thread + me;
}
static void __syncwarp(unsigned) { meet(1); }
static void __syncthreads() { meet(5); }
static void __threadfence() {}
static int atomicAdd(int* p, int x) { return (*p += x) - x; }
template <class T>
static T __ldcg(const T* p) {
  return *p;
}
template <class T>
static T exchange(T x, int from, int barrier) {
  memcpy(box[lane], &x, sizeof(T)), meet(barrier);
  memcpy(&x, box[from], sizeof(T)), meet(barrier);
  return x;
}
template <class T>
static T __shfl_xor_sync(unsigned, T x, int mask, int) {
  return exchange(x, lane ^ mask, 2);
}
template <class T>
static T __shfl_sync(unsigned, T x, int from, int) {
  return exchange(x, from, 3);
}
static unsigned __ballot_sync(unsigned, bool p) {
  unsigned bits = 0;
  box[lane][0] = p, meet(4);
  for (int k = 0; k < lanes; k++) bits |= (unsigned)box[k][0] << (first_thread + k);
  meet(4);
  return bits;
}
static int __popc(unsigned x) { return __builtin_popcount(x); }

// Runs the function in all lanes; false where they part at a barrier. order: 0 forwards, 1 backwards; else the one or the
// other between two barriers, as a sequence of random bits begun with `order` says.
template <class F>
static bool run_lanes(F* entry, int count, int first, int order) {
  unsigned bits = order;
  static std::vector<char> stacks(32 * STACK);
  lanes = count, first_thread = first;
  for (int k = 0; k < count; k++) {
    getcontext(&fiber[k]);
    fiber[k].uc_stack.ss_sp = &stacks[k * STACK], fiber[k].uc_stack.ss_size = STACK, fiber[k].uc_link = &back;
    makecontext(&fiber[k], entry, 0);
  }
  do {
    bits = bits * 1664525u + 1013904223u;
    bool backwards = order < 2 ? order : bits >> 31;
    for (int k = 0; k < count; k++) {
      lane = backwards ? count - 1 - k : k, threadIdx.x = first + lane;
      swapcontext(&back, &fiber[lane]);
    }
    for (int k = 1; k < count; k++) {
      if (barrier_of[k] != barrier_of[0]) return false;
    }
  } while (barrier_of[0]);
  return true;
}
