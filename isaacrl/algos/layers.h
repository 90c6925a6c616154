// What stands between two products of a network, forward and backward, for off_policy_ops.py: a warp takes a row.
//
// Macros: those of device_common.h, where ACTIVATION may be SILU too; WIDTH, columns of the layer; NORM, whether it is
// normalized before its activation.

#define SILU 3

constexpr int HELD = (WIDTH + WARP - 1) / WARP;  // columns of a row that a lane holds

#if defined(__CUDA_ARCH__)
constexpr int TEAM_WARPS = 8;
#else
constexpr int TEAM_WARPS = 1;
#endif

DEVICE float activated(float x) {
#if ACTIVATION == SILU
  return x / (1.0f + expf(-x));
#else
  return activation(x);
#endif
}

// The activation's derivative, from its input.
DEVICE float slope_at(float x) {
#if ACTIVATION == SILU
  float s = 1.0f / (1.0f + expf(-x));
  return s * (1.0f + x * (1.0f - s));
#else
  return slope(activation(x));
#endif
}

// y = activation(normalized(x + bias) * gain + shift); without NORM activation(x + bias). `batch` rows share a bias, a
// gain and a shift. stats: a row's mean and 1 / std, for the way back (Ba et al. 2016, eq. 4).
KERNEL norm_act(int thread, const float* x, const float* bias, const float* gain, const float* shift, float* y,
                float* stats, int rows, int batch) {
  int row = thread / WARP, lane = thread % WARP, net = row / batch * WIDTH;
  if (row >= rows) return;
  const float* p = x + Long(row) * WIDTH;
  float v[HELD], sum = 0.0f;
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    int c = lane + k * WARP;
    v[k] = c < WIDTH ? p[c] + bias[net + c] : 0.0f;
    sum += v[k];
  }
#if NORM
  float mean = warp_sum(sum) / WIDTH, square = 0.0f;
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    float d = lane + k * WARP < WIDTH ? v[k] - mean : 0.0f;
    square += d * d;
  }
  float scale = 1.0f / sqrtf(warp_sum(square) / WIDTH + 1e-5f);
  if (lane == 0) {
    stats[2 * row] = mean;
    stats[2 * row + 1] = scale;
  }
#endif
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    int c = lane + k * WARP;
    if (c >= WIDTH) continue;
#if NORM
    v[k] = (v[k] - mean) * scale * gain[net + c] + shift[net + c];
#endif
    y[Long(row) * WIDTH + c] = activated(v[k]);
  }
}

// From the gradient by y that by x and, for each of `blocks` teams a network, sums of those by bias, gain and
// shift: parts [blocks, 3, networks, WIDTH].
KERNEL norm_act_grad(int thread, const float* x, const float* bias, const float* gain, const float* shift,
                     const float* stats, const float* grad, float* out, float* parts, int batch, int blocks, int nets) {
  int g = TEAM / blocks, block = TEAM % blocks, warp = LANE / WARP, lane = LANE % WARP, net = g * WIDTH;
  float sums[3][HELD];
#pragma unroll
  for (int k = 0; k < HELD; ++k) sums[0][k] = sums[1][k] = sums[2][k] = 0.0f;
  for (int r = block * TEAM_WARPS + warp; r < batch; r += blocks * TEAM_WARPS) {
    Long row = Long(g) * batch + r;
    const float* p = grad + row * WIDTH;
    float d[HELD], h[HELD];
#if NORM
    float mean = stats[2 * row], scale = stats[2 * row + 1], m = 0.0f, mh = 0.0f;
#endif
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int c = lane + k * WARP;
      d[k] = h[k] = 0.0f;
      if (c >= WIDTH) continue;
      float z = x[row * WIDTH + c] + bias[net + c];
#if NORM
      h[k] = (z - mean) * scale;
      d[k] = p[c] * slope_at(h[k] * gain[net + c] + shift[net + c]);
      sums[1][k] += d[k] * h[k];
      sums[2][k] += d[k];
      d[k] *= gain[net + c];
      m += d[k];
      mh += d[k] * h[k];
#else
      d[k] = p[c] * slope_at(z);
#endif
    }
#if NORM
    m = warp_sum(m) / WIDTH;
    mh = warp_sum(mh) / WIDTH;
#endif
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
      int c = lane + k * WARP;
      if (c >= WIDTH) continue;
#if NORM
      d[k] = scale * (d[k] - m - h[k] * mh);
#endif
      out[row * WIDTH + c] = d[k];
      sums[0][k] += d[k];
    }
  }
  SHARED float shared[TEAM_WARPS][WIDTH];
  float* to = parts + Long(block * 3 * nets + g) * WIDTH;
#pragma unroll
  for (int i = 0; i < (NORM ? 3 : 1); ++i) {
    SYNC;
#pragma unroll
    for (int k = 0; k < HELD; ++k)
      if (lane + k * WARP < WIDTH) shared[warp][lane + k * WARP] = sums[i][k];
    SYNC;
    for (int c = LANE; c < WIDTH; c += LANES) {
      float sum = 0.0f;
      for (int w = 0; w < TEAM_WARPS; ++w) sum += shared[w][c];
      to[i * nets * WIDTH + c] = sum;
    }
  }
}
