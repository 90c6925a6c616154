// What the text of a fused kernel is made of: LANES lanes work on a world, on a CPU one after the other.
#if defined(__CUDA_ARCH__)
#define FN __device__ __forceinline__
#define EACH(i, n) for (int i = threadIdx.x & (LANES - 1); i < (n); i += LANES)
#define FIRST ((threadIdx.x & (LANES - 1)) == 0)
FN void sync() { __syncwarp(); }
#define ACROSS(name, combined)                                   \
  template <class T>                                             \
  FN T across_##name(T a) {                                      \
    for (int m = LANES / 2; m; m >>= 1) {                        \
      T b = __shfl_xor_sync(0xffffffffu, a, m);                  \
      a = combined;                                              \
    }                                                            \
    return a;                                                    \
  }
#else
#define FN static inline
#define EACH(i, n) for (int i = 0; i < (n); i++)
#define FIRST true
FN void sync() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }  // scratch memory may change its type here
#define ACROSS(name, combined) \
  template <class T>           \
  FN T across_##name(T a) {    \
    return a;                  \
  }
#endif

#define AT(type, byte) ((type*)(S + (byte)))
#define WORLD ((size_t)world)
#define INFINITE ((float)(1e30 * 1e30 * 1e300))
#define NOT_A_NUMBER ((float)(INFINITE - INFINITE))

// As torch does, NaN wins.
template <class T>
FN T most(T a, T b) {
  return a != a || a > b ? a : b;
}
template <class T>
FN T least(T a, T b) {
  return a != a || a < b ? a : b;
}
template <class T>
FN T absolute(T a) {
  return a <= 0 ? 0 - a : a;
}
template <class T>
FN T signum(T a) {
  return (a > 0) - (a < 0);  // 0 of NaN
}
template <class T>
FN bool finite(T a) {
  return a - a == 0;
}
template <class T>
FN bool infinite(T a) {
  return a == a && a - a != 0;
}
template <class T>
FN T mix(T a, T b, T w) {
  return absolute(w) < (T)0.5 ? a + w * (b - a) : b - (b - a) * (1 - w);
}
// What a division leaves, with the sign of a. Of whole numbers by 0 torch leaves anything or complains.
FN float rest(float a, float b) { return fmodf(a, b); }
FN double rest(double a, double b) { return fmod(a, b); }
template <class T>
FN T rest(T a, T b) {
  return b == 0 || (b < 0 && b + 1 == 0) ? 0 : a % b;
}
// The same with the sign of b.
template <class T>
FN T modulo(T a, T b) {
  T r = rest(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
// As torch does: n beyond the bits shifts them all out.
template <class T>
FN T shift_left(T a, T n) {
  return n < 0 || n >= (T)(8 * sizeof(T)) ? 0 : (T)((unsigned long long)a << n);
}
template <class T>
FN T shift_right(T a, T n) {
  return n < 0 || n >= (T)(8 * sizeof(T)) ? (a < 0 ? -1 : 0) : (T)(a >> n);
}
#if defined(__CUDA_ARCH__)
FN float log_1p(float a) { return log1pf(a); }
FN float exp_m1(float a) { return expm1f(a); }
FN double log_1p(double a) { return log1p(a); }
FN double exp_m1(double a) { return expm1(a); }
#else  // Warp's compiler lacks both; Kahan's ways, exact near 0
FN double log_1p(double a) {
  double u = 1 + a, d = u - 1;
  return d == 0 ? a : u > 0 && finite(u) ? ::log(u) * (a / d) : ::log(u);
}
FN double exp_m1(double a) {
  double u = ::exp(a), d = u - 1;
  return d == 0 ? a : u > 0 && finite(u) ? d * (a / ::log(u)) : d;
}
FN float log_1p(float a) { return (float)log_1p((double)a); }
FN float exp_m1(float a) { return (float)exp_m1((double)a); }
#endif
FN int wrapped(long long i, int n) { return (int)(i < 0 ? i + n : i); }
template <class T>
FN T pick(int i, T a, T b) {
  return i == 0 ? a : b;
}
template <class T>
FN T pick(int i, T a, T b, T c) {
  return i == 0 ? a : i == 1 ? b : c;
}
template <class T>
FN T pick(int i, T a, T b, T c, T d) {
  return i < 2 ? (i == 0 ? a : b) : (i == 2 ? c : d);
}
ACROSS(add, a + b)
ACROSS(multiply, a * b)
ACROSS(most, most(a, b))
ACROSS(least, least(a, b))
ACROSS(or, a || b)
ACROSS(and, a && b)
