// The kernels of off_policy_ops.py beside those of layers: what is done with samples, outputs of critics and actions.
//
// Macros: those of device_common.h; ATOMS, returns that a categorical critic tells apart. B samples are called rows.

constexpr int HELD = (ATOMS + WARP - 1) / WARP;  // atoms that a lane holds

DEVICE float larger(float a, float b) { return a > b ? a : b; }

#if defined(__CUDA_ARCH__)
constexpr int TEAM_WARPS = 8;
#define SYNC_WARP __syncwarp()
DEVICE float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = larger(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
#else
constexpr int TEAM_WARPS = 1;
#define SYNC_WARP
DEVICE float warp_max(float x) { return x; }
#endif

// --- samples ---------------------------------------------------------------------------------------------------------

// Transitions of random stored steps and worlds (replay.py), from draws [2, rows] between 0 and 1: sums of up to `steps`
// steps of reward, up to the episode's end and to the newest step. first and last: which steps of all worlds' a sum begins
// and ends with. discount: of the value after the last; 0 where it terminated.
KERNEL transitions(int thread, const float* draws, const Long* at, const Long* filled, const float* reward,
                   const Bool* terminated, const Bool* truncated, Long* first, Long* last, float* total,
                   float* discount, int rows, int capacity, int worlds, int steps, float gamma) {
  if (thread >= rows) return;
  Long back = Long(draws[thread] * filled[0]), world = Long(draws[rows + thread] * worlds), i = 0;
  back = back < filled[0] ? back : filled[0] - 1;
  world = world < worlds ? world : worlds - 1;
  float sum = 0.0f, factor = 1.0f;
  for (int k = 0; k < steps && k <= back; ++k) {
    i = ((at[0] - 1 - back + k) % capacity + capacity) % capacity * worlds + world;
    if (k == 0) first[thread] = i;
    sum += factor * reward[i];
    factor *= gamma;
    if (terminated[i] || truncated[i]) break;
  }
  last[thread] = i;
  total[thread] = sum;
  discount[thread] = terminated[i] ? 0.0f : factor;
}

// Rows of source [., n], normalized and clipped unless mean is null.
KERNEL take(int thread, const float* source, const Long* index, const float* mean, const float* var, float* out,
            int rows, int n, int stride, float clip) {
  int row = thread / stride, c = thread % stride;
  if (row >= rows) return;
  float x = 0.0f;
  if (c < n) {
    x = source[index[row] * n + c];
    if (mean) {
      x = (x - mean[c]) * (1.0f / sqrtf(var[c] + 1e-8f));
      x = x < -clip ? -clip : x > clip ? clip : x;  // leaves NaN
    }
  }
  out[thread] = x;
}

// --- categorical critics: a warp takes a sample ----------------------------------------------------------------------

// Probabilities of a row of logits, an atom each WARP columns from `lane` on; the logarithm of their sum.
DEVICE float softmax(const float* logits, int lane, float (&p)[HELD]) {
  float top = -3.4028235e38f, sum = 0.0f;
#pragma unroll
  for (int k = 0; k < HELD; ++k)
    if (lane + k * WARP < ATOMS) top = larger(top, logits[lane + k * WARP]);
  top = warp_max(top);
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    int c = lane + k * WARP;
    p[k] = c < ATOMS ? expf(logits[c] - top) : 0.0f;
    sum += p[k];
  }
  sum = warp_sum(sum);
#pragma unroll
  for (int k = 0; k < HELD; ++k) p[k] /= sum;
  return top + logf(sum);
}

DEVICE float atom(int k, float v_max) { return -v_max + 2.0f * v_max / (ATOMS - 1) * k; }

DEVICE float mean_return(const float (&p)[HELD], int lane, float v_max) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < HELD; ++k) sum += p[k] * atom(lane + k * WARP, v_max);  // behind the last atom p is 0
  return warp_sum(sum);
}

// Both critics' cross entropies with the distribution of reward + discount * (next value - bonus), and their gradient.
// out, next [2, rows, ATOMS]: logits. bonus: or null. The next value is both critics' mean or, with `lower`, that of the
// lower one. terms [3, rows]: loss; value; its distance from the target, absolute; means of both critics but for the
// loss, which is the sum.
KERNEL categorical_loss(int thread, const float* out, const float* next, const float* reward, const float* discount,
                        const float* bonus, float* grad, float* terms, int rows, int lower, float v_max) {
  int row = thread / WARP, lane = thread % WARP;
  if (row >= rows) return;
  SHARED float shared[TEAM_WARPS][ATOMS];
  float* p = shared[LANE / WARP];
  float one[HELD], two[HELD];
  softmax(next + Long(row) * ATOMS, lane, one);
  softmax(next + Long(rows + row) * ATOMS, lane, two);
  bool first = lower && mean_return(one, lane, v_max) <= mean_return(two, lane, v_max);
#pragma unroll
  for (int k = 0; k < HELD; ++k)
    if (lane + k * WARP < ATOMS)
      p[lane + k * WARP] = !lower ? 0.5f * (one[k] + two[k]) : first ? one[k] : two[k];
  SYNC_WARP;

  // Each target atom collects what moved atoms near it have: a fixed order, whatever the discount.
  float target[HELD], wanted = 0.0f, mass = 0.0f, cost = bonus ? bonus[row] : 0.0f;
  float spacing = 2.0f * v_max / (ATOMS - 1);
#pragma unroll
  for (int k = 0; k < HELD; ++k) target[k] = 0.0f;
  for (int i = 0; i < ATOMS; ++i) {
    float at = reward[row] + discount[row] * (atom(i, v_max) - cost);
    at = at < -v_max ? -v_max : at > v_max ? v_max : at;  // leaves NaN
    float place = (at + v_max) / spacing;
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      float share = 1.0f - fabsf(place - (lane + k * WARP));
      target[k] += share <= 0.0f ? 0.0f : share * p[i];  // leaves NaN
    }
  }
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    if (lane + k * WARP >= ATOMS) target[k] = 0.0f;
    wanted += target[k] * atom(lane + k * WARP, v_max);
    mass += target[k];
  }
  wanted = warp_sum(wanted);
  mass = warp_sum(mass);

  float loss = 0.0f, value = 0.0f, error = 0.0f;
  for (int g = 0; g < 2; ++g) {
    Long start = (Long(g) * rows + row) * ATOMS;
    float cross = 0.0f, log_sum = softmax(out + start, lane, one), v = mean_return(one, lane, v_max);
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int c = lane + k * WARP;
      if (c >= ATOMS) continue;
      cross += target[k] * (log_sum - out[start + c]);
      grad[start + c] = (one[k] * mass - target[k]) / rows;
    }
    loss += warp_sum(cross);
    value += 0.5f * v;
    error += 0.5f * fabsf(v - wanted);
  }
  if (lane > 0) return;
  terms[row] = loss;
  terms[rows + row] = value;
  terms[2 * rows + row] = error;
}

// The value of logits [2, rows, ATOMS], mean or lower one of both critics, and its gradient.
KERNEL expected(int thread, const float* out, float* value, float* grad, int rows, int lower, float v_max) {
  int row = thread / WARP, lane = thread % WARP;
  if (row >= rows) return;
  float p[2][HELD], v[2];
  for (int g = 0; g < 2; ++g) {
    softmax(out + (Long(g) * rows + row) * ATOMS, lane, p[g]);
    v[g] = mean_return(p[g], lane, v_max);
  }
  if (lane == 0) value[row] = !lower ? 0.5f * (v[0] + v[1]) : v[0] <= v[1] ? v[0] : v[1];
  for (int g = 0; g < 2; ++g) {
    float share = !lower ? 0.5f : (v[0] <= v[1]) == (g == 0) ? 1.0f : 0.0f;
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int c = lane + k * WARP;
      if (c < ATOMS) grad[(Long(g) * rows + row) * ATOMS + c] = share * p[g][k] * (atom(c, v_max) - v[g]);
    }
  }
}

// --- squashed actions ------------------------------------------------------------------------------------------------

// sac.squashed of a policy's outputs [rows, 2 n], mean and log_std, which is clipped: actions [rows, n] and the
// logarithms of their densities [rows].
KERNEL squash(int thread, const float* out, const float* noise, float* action, float* log_prob, int rows, int n,
              float low, float high) {
  int row = thread / WARP, lane = thread % WARP;
  if (row >= rows) return;
  float sum = 0.0f;
  for (int a = lane; a < n; a += WARP) {
    float s = out[Long(row) * 2 * n + n + a], e = noise[Long(row) * n + a];
    s = s < low ? low : s > high ? high : s;
    float x = out[Long(row) * 2 * n + a] + expf(s) * e, y = -2.0f * x;
    float softplus = y > 20.0f ? y : logf(1.0f + expf(y));
    action[Long(row) * n + a] = tanhf(x);
    sum += -0.5f * (e * e + 1.8378770664093453f) - s - 2.0f * (0.69314718055994531f - x - softplus);
  }
  sum = warp_sum(sum);
  if (lane == 0) log_prob[row] = sum;
}

// The gradient by the outputs from those by the action and by log_prob.
KERNEL squash_grad(int thread, const float* out, const float* noise, const float* by_action, const float* by_log_prob,
                   float* grad, int rows, int n, float low, float high) {
  int row = thread / n, a = thread % n;
  if (row >= rows) return;
  float s = out[Long(row) * 2 * n + n + a], e = noise[thread], kept = s < low ? low : s > high ? high : s;
  float spread = expf(kept) * e, t = tanhf(out[Long(row) * 2 * n + a] + spread);
  float g = by_action[thread] * (1.0f - t * t) + by_log_prob[row] * 2.0f * t;  // d log_prob / d x = 2 tanh(x)
  grad[Long(row) * 2 * n + a] = g;
  grad[Long(row) * 2 * n + n + a] = kept == s ? g * spread - by_log_prob[row] : 0.0f;
}

// --- parameters ------------------------------------------------------------------------------------------------------

// Adam's step number `step` (Kingma and Ba 2015, algorithm 1), unless the gradient is not finite.
KERNEL adam(int thread, float* value, const float* grad, float* mean, float* square, const float* step,
            const float* rate, const Bool* finite, int n) {
  if (thread >= n || !finite[0]) return;
  float g = grad[thread], m = mean[thread], s = square[thread];
  m += 0.1f * (g - m);
  s += 0.001f * (g * g - s);
  mean[thread] = m;
  square[thread] = s;
  float first = 1.0f - expf(step[0] * -0.105360516f), second = 1.0f - expf(step[0] * -0.00100050033f);  // 1 - 0.9^step
  value[thread] -= rate[0] / first * m / (sqrtf(s / second) + 1e-8f);
}
