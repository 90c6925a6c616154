// The kernels of device_update.py. device_kernels.py reads the KERNEL lines, makes a launch of each and compiles this
// for a GPU or, so that tests need none, for a CPU, where a launch is a loop over its threads.
//
// Matrices are row-major; widths and strides count reals and are multiples of 8. Macros: those of device_common.h and
// ACTIONS.

constexpr int ROW = (ACTIONS + 3) / 4 * 4;     // reals of an action in a sample
constexpr int SAMPLE = 4 + 2 * ROW;            // advantage, target, old value, log probability; action; its mean
constexpr int SUMS = 5 + ACTIONS;              // what `loss` sums: losses, distance, clipped, mirror; log_std's gradient
constexpr int PADDED = (ACTIONS + 7) / 8 * 8;  // reals of a row of mean_grad
constexpr int ROUNDS = 8;                      // of the shuffle
enum { FINITE, SCALE, RATE, ROOT };            // what `settle` tells `adam`

// --- before the epochs -----------------------------------------------------------------------------------------------

// Advantages [T, E] (Schulman et al. 2016, eq. 16) and returns, a world a thread. following: V of what a step led to.
KERNEL gae(int thread, const float* reward, const float* value, const float* following, const Bool* terminated,
           const Bool* truncated, float* advantage, float* returns, int T, int E, float gamma, float lam) {
  if (thread >= E) return;
  float carry = 0.0f;
#pragma unroll 4
  for (int t = T - 1; t >= 0; --t) {
    Long i = Long(t) * E + thread;
    float v = value[i], next = terminated[i] ? 0.0f : gamma * following[i];
    float past = terminated[i] || truncated[i] ? 0.0f : gamma * lam * carry;
    carry = reward[i] + next - v + past;
    advantage[i] = carry;
    returns[i] = carry + v;
  }
}

// What `loss` reads of each sample, side by side. moments: mean and 1 / std of the advantages, and of values or null.
KERNEL pack(int thread, const float* advantage, const float* returns, const float* value, const float* action,
            const float* mean, const float* moments, const float* value_mean, const float* value_var,
            const float* log_std, float* sample, int rows) {
  if (thread >= rows) return;
  float* s = sample + Long(thread) * SAMPLE;
  float shift = value_mean ? value_mean[0] : 0.0f, scale = value_mean ? 1.0f / sqrtf(value_var[0] + 1e-8f) : 1.0f;
  float log_prob = 0.0f;
#pragma unroll
  for (int a = 0; a < ROW; a += 4) {
    Quad x, m;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x.x[j] = m.x[j] = 0.0f;
      if (a + j < ACTIONS) {
        x.x[j] = action[Long(thread) * ACTIONS + a + j];
        m.x[j] = mean[Long(thread) * ACTIONS + a + j];
        float z = (x.x[j] - m.x[j]) * expf(-log_std[a + j]);
        log_prob -= 0.5f * z * z + log_std[a + j] + 0.91893853320467274f;
      }
    }
    *(Quad*)(s + 4 + a) = x;
    *(Quad*)(s + 4 + ROW + a) = m;
  }
  Quad head;
  head.x[0] = (advantage[thread] - moments[0]) * moments[1];
  head.x[1] = (returns[thread] - shift) * scale;
  head.x[2] = (value[thread] - shift) * scale;
  head.x[3] = log_prob;
  *(Quad*)s = head;
}

// Observations [rows, n] as the first layer reads them: normalized (unless mean is null), clipped, a 1, zeros.
KERNEL normalize(int thread, const float* obs, const float* mean, const float* var, Real* out, int rows, int n,
                 int stride, float clip) {
  int packs = stride / PACK, row = thread / packs, first = thread % packs * PACK;
  if (row >= rows) return;
  Pack v;
#pragma unroll
  for (int k = 0; k < PACK; ++k) {
    int c = first + k;
    float x = c == n ? 1.0f : 0.0f;
    if (c < n) {
      x = obs[Long(row) * n + c];
      if (mean) {
        x = (x - mean[c]) * (1.0f / sqrtf(var[c] + 1e-8f));
        x = x < -clip ? -clip : x > clip ? clip : x;  // leaves NaN
      }
    }
    v.x[k] = x;
  }
  store(out + Long(row) * stride + first, v);
}

// The last of the four mixed words of isaacrl/random.py's pcg4d.
DEVICE unsigned mixed(unsigned x, unsigned y, unsigned z, unsigned w) {
  x = x * 1664525u + 1013904223u;
  y = y * 1664525u + 1013904223u;
  z = z * 1664525u + 1013904223u;
  w = w * 1664525u + 1013904223u;
  for (int i = 0; i < 2; ++i) {
    x += y * w;
    y += z * x;
    z += x * y;
    w += y * z;
    if (i == 0) x ^= x >> 16, y ^= y >> 16, z ^= z >> 16, w ^= w >> 16;
  }
  return w;
}

// A permutation of 0 .. n - 1, a function of (seed, counter + epoch): a Feistel network over the next power of two, in
// which a number outside the range is sent on until it is inside (Black and Rogaway 2002, "cycle walking"). With half > 0
// it is one of pairs, of a step's `worlds` samples and their mirror images, which follow them; every minibatch is `half`
// samples and then their mirror images.
KERNEL shuffle(int thread, int* order, const Long* counter, int n, int bits, int epoch, int seed, int worlds, int half) {
  if (thread >= n) return;
  unsigned low = bits / 2, low_mask = (1u << low) - 1, high_mask = (1u << (bits - low)) - 1, x = thread;
  Long key = *counter + epoch;
  do {
    unsigned a = x & low_mask, b = x >> low;
    for (int r = 0; r < ROUNDS; ++r) {
      unsigned y = unsigned(key >> 32) * ROUNDS + r;
      if (r % 2) a ^= mixed(b, y, unsigned(key), unsigned(seed)) & low_mask;
      else b ^= mixed(a, y, unsigned(key), unsigned(seed)) & high_mask;
    }
    x = b << low | a;
  } while (x >= unsigned(n));
  if (!half) {
    order[thread] = int(x);
  } else if (thread < n / half * half) {  // the rest is in no minibatch
    int sample = int(x) + int(x) / worlds * worlds, place = thread + thread / half * half;
    order[place] = sample;
    order[place + half] = sample + worlds;
  }
}

// --- a minibatch -----------------------------------------------------------------------------------------------------

// Rows of source, in that order, to target and, unless it is null, to other.
KERNEL gather(int thread, const Real* source, Real* target, Real* other, const int* order, int rows, int stride) {
  int packs = stride / PACK, row = thread / packs, first = thread % packs * PACK;
  if (row >= rows) return;
  Pack v = load(source + Long(order[row]) * stride + first);
  store(target + Long(row) * stride + first, v);
  if (other) store(other + Long(row) * stride + first, v);
}

// The first columns of x become activation(x + bias); `batch` rows share a bias.
KERNEL activate(int thread, Real* x, const float* bias, int rows, int width, int stride, int batch) {
  int packs = width / PACK, row = thread / packs, first = thread % packs * PACK;
  if (row >= rows) return;
  Real* p = x + Long(row) * stride + first;
  const float* b = bias + row / batch * width + first;
  Pack v = load(p);
#pragma unroll
  for (int k = 0; k < PACK; k += 4) {
    Quad q = *(const Quad*)(b + k);
#pragma unroll
    for (int j = 0; j < 4; ++j) v.x[k + j] = activation(v.x[k + j] + q.x[j]);
  }
  store(p, v);
}

// The gradient of an activation's output becomes that of its input.
KERNEL descend(int thread, Real* grad, const Real* output, int rows, int width, int stride) {
  int packs = width / PACK, row = thread / packs, first = thread % packs * PACK;
  if (row >= rows) return;
  Real* p = grad + Long(row) * width + first;
  Pack g = load(p), y = load(output + Long(row) * stride + first);
#pragma unroll
  for (int k = 0; k < PACK; ++k) g.x[k] *= slope(y.x[k]);
  store(p, g);
}

// PPO's losses and their gradients by the networks' outputs, which lack their biases. `teams` rows of sums. They are of the
// first `own` rows. With `paired` the second half are mirror images of the first, and there is a mirror loss: the image of
// mean a is sign[a] times mean index[a].
KERNEL loss(int thread, const float* sample, const int* order, const float* mean, const float* mean_bias,
            const float* value, const float* value_bias, const float* log_std, const int* index, const float* sign,
            Real* mean_grad, Real* value_grad, float* sums, int rows, int threads, int mean_width, int value_width,
            int value_clip, int own, int paired, float clip, float value_coef, float symmetry_coef) {
  float total[SUMS], inv_std[ACTIONS], log_norm = 0.0f, share = 1.0f / own;
  int half = rows / 2;
  float pair_share = 1.0f / (half > 0 ? half * ACTIONS : 1);
  for (int k = 0; k < SUMS; ++k) total[k] = 0.0f;
#pragma unroll
  for (int a = 0; a < ACTIONS; ++a) {
    inv_std[a] = expf(-log_std[a]);
    log_norm += log_std[a] + 0.91893853320467274f;
  }
  for (int i = thread; i < rows; i += threads) {
    const float* s = sample + Long(order[i]) * SAMPLE;
    Quad head = *(const Quad*)s;
    float advantage = head.x[0], target = head.x[1], old_value = head.x[2], z[PADDED], z2 = 0.0f, distance = 0.0f;
#pragma unroll
    for (int a = 0; a < PADDED; a += 4) {
      Quad x, m0, m;
      if (a < ACTIONS) {
        x = *(const Quad*)(s + 4 + a);
        m0 = *(const Quad*)(s + 4 + ROW + a);
        m = *(const Quad*)(mean + Long(i) * mean_width + a);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        z[a + j] = 0.0f;
        if (a + j < ACTIONS) {
          float now = m.x[j] + mean_bias[a + j], moved = (m0.x[j] - now) * inv_std[a + j];
          z[a + j] = (x.x[j] - now) * inv_std[a + j];
          z2 += z[a + j] * z[a + j];
          distance += moved * moved;
        }
      }
    }
    // d loss / d log prob is -ratio * advantage / rows where the clipped surrogate is not the lower one. Comparisons
    // are such that NaN stays.
    float ratio = expf(-0.5f * z2 - log_norm - head.x[3]);
    float inside = ratio < 1.0f - clip ? 1.0f - clip : ratio > 1.0f + clip ? 1.0f + clip : ratio;
    float plain = ratio * advantage, clipped = inside * advantage;
    float grad = plain <= clipped ? -plain * share : 0.0f;
    bool counts = i < own;
    if (counts) {
      total[0] -= plain <= clipped ? plain : clipped;
      total[2] += distance;
      total[3] += fabsf(ratio - 1.0f) > clip ? 1.0f : 0.0f;
    }
    bool image = paired && i >= half;
    const float *now = mean + Long(i) * mean_width, *partner = mean + Long(i - half) * mean_width;
    Real* out = mean_grad + Long(i) * mean_width;
#pragma unroll
    for (int a = 0; a < PADDED; a += PACK) {
      Pack g;
#pragma unroll
      for (int k = 0; k < PACK; ++k) {
        g.x[k] = 0.0f;
        if (a + k < ACTIONS) {
          if (counts) {
            g.x[k] = grad * z[a + k] * inv_std[a + k];
            total[5 + (a + k < ACTIONS ? a + k : 0)] += grad * (z[a + k] * z[a + k] - 1.0f);
          }
          if (image) {
            int from = index[a + k];
            float apart = now[a + k] + mean_bias[a + k] - sign[a + k] * (partner[from] + mean_bias[from]);
            g.x[k] += 2.0f * symmetry_coef * pair_share * apart;
            total[4] += apart * apart * pair_share;
          }
        }
      }
      store(out + a, g);
    }

    float v = value[Long(i) * value_width] + value_bias[0], error = v - target, squared = error * error;
    if (value_clip) {
      // Where the clipped value is the worse one its error counts, which is constant outside the clip range.
      float moved = v - old_value, kept = moved < -clip ? -clip : moved > clip ? clip : moved;
      float error2 = old_value + kept - target, squared2 = error2 * error2;
      if (squared2 > squared) {
        error = kept == moved ? error2 : 0.0f;
        squared = squared2;
      }
    }
    if (counts) total[1] += squared;
    value_grad[Long(i) * value_width] = to_real(counts ? 2.0f * value_coef * share * error : 0.0f);
  }
  team_sums(total, sums + Long(TEAM) * SUMS);
}

// Gradients of n parameters from the products' parts: parameter i is the sum of count parts, stride apart, from
// source[i] on, by its layer; -1: it is not of a layer. squares: a sum of their squares for each team.
KERNEL reduce(int thread, const float* parts, const int* source, const int* layer, const int* strides,
              const int* counts, float* grad, float* squares, int n, int threads) {
  float square = 0.0f;
  for (int i = thread; i < n; i += threads) {
    if (source[i] < 0) continue;
    const float* p = parts + source[i];
    int count = counts[layer[i]];
    Long stride = strides[layer[i]];
    float sum = 0.0f;
#pragma unroll 8
    for (int k = 0; k < count; ++k) sum += p[k * stride];
    grad[i] = sum;
    square += sum * sum;
  }
  square = team_sum(square);
  if (LANE == 0) squares[TEAM] = square;
}

// By one team: what the minibatch's step is. log_std's gradient; the gradient's norm; whether the step is taken; the
// learning rate, which follows the KL divergence if desired_kl > 0; Adam's step number. totals: the sums of
// (losses, entropy, KL, clip fraction, gradient norm) over steps taken, the number of those skipped, the mirror losses.
// rows: of PPO's own losses.
KERNEL settle(int thread, const float* sums, const float* squares, const float* log_std, const float* log_std0,
              float* log_std_grad, float* lr, float* step, float* control, float* totals, int teams, int squared,
              int rows, float value_coef, float entropy_coef, float max_norm, float desired_kl, float lr_min,
              float lr_max) {
  SHARED float sum[SUMS];
#if defined(__CUDA_ARCH__)
  for (int k = LANE / 32; k < SUMS; k += LANES / 32) {
    float x = 0.0f;
#pragma unroll 16
    for (int i = LANE % 32; i < teams; i += 32) x += sums[i * SUMS + k];
    x = warp_sum(x);
    if (LANE % 32 == 0) sum[k] = x;
  }
#else
  for (int k = 0; k < SUMS; ++k) {
    sum[k] = 0.0f;
    for (int i = 0; i < teams; ++i) sum[k] += sums[i * SUMS + k];
  }
#endif
  float square = 0.0f;
#pragma unroll 4
  for (int i = LANE; i < squared; i += LANES) square += squares[i];
  square = team_sum(square);
  float share = 1.0f / rows, entropy = 0.0f, kl = 0.0f, own = 0.0f;
  if (LANE < WARP) {
    for (int a = LANE; a < ACTIONS; a += WARP) {
      float now = log_std[a], change = now - log_std0[a], grad = sum[5 + a] - entropy_coef;
      entropy += now + 1.4189385332046727f;
      kl += change + 0.5f * expf(-2.0f * change) - 0.5f;
      log_std_grad[a] = grad;
      own += grad * grad;
    }
    entropy = warp_sum(entropy);
    kl = warp_sum(kl) + 0.5f * share * sum[2];
    square += warp_sum(own);
  }
  if (LANE > 0) return;
  float policy = share * sum[0], value = share * sum[1], norm = sqrtf(square);
  float scale = max_norm / (norm + 1e-6f);
  if (!finite(norm) || !finite(policy + value_coef * value - entropy_coef * entropy)) {
    control[FINITE] = 0.0f;
    totals[6] += 1.0f;
    return;
  }
  float rate = *lr;
  if (desired_kl > 0.0f) {
    rate *= kl > 2.0f * desired_kl ? 1.0f / 1.5f : kl < 0.5f * desired_kl ? 1.5f : 1.0f;
    rate = rate < lr_min ? lr_min : rate > lr_max ? lr_max : rate;
    *lr = rate;
  }
  *step += 1.0f;
  control[FINITE] = 1.0f;
  control[SCALE] = scale < 1.0f ? scale : 1.0f;
  control[RATE] = rate / -exp_minus_1(*step * -0.105360516f);             // 1 - 0.9^step
  control[ROOT] = 1.0f / sqrtf(-exp_minus_1(*step * -0.00100050033f));  // 1 - 0.999^step
  const float row[6] = {policy, value, entropy, kl, share * sum[3], norm};
  for (int k = 0; k < 6; ++k) totals[k] += row[k];
  totals[7] += sum[4];
}

// Adam's step (Kingma and Ba 2015, algorithm 1) on n parameters, bounds for log_std, which are the `actions` ones from
// `first` on, and new working copies: a weight's are at target[i] and second[i], a bias's at -2 - target[i], -1: there is
// none. Without control only the copies are written.
KERNEL adam(int thread, float* value, float* grad, float* mean, float* square, const float* control, const int* target,
            const int* second, Real* weights, float* biases, int n, int first, float low, float high) {
  if (thread >= n) return;
  float x = value[thread];
  if (control) {
    if (control[FINITE] != 0.0f) {
      float g = grad[thread] * control[SCALE], m = mean[thread], s = square[thread];
      m += 0.1f * (g - m);
      s += 0.001f * (g * g - s);
      x -= control[RATE] * m / (sqrtf(s) * control[ROOT] + 1e-8f);
      mean[thread] = m;
      square[thread] = s;
      grad[thread] = g;
    }
    if (unsigned(thread - first) < unsigned(ACTIONS)) x = x < low ? low : x > high ? high : x;
    value[thread] = x;
  }
  int to = target[thread], too = second[thread];
  if (to >= 0) weights[to] = to_real(x);
  if (too >= 0) weights[too] = to_real(x);
  if (to < -1) biases[-2 - to] = x;
}
