// Learned actuators (isaacrl.sim.actuator_net): each lane evaluates the networks of its own actuators.
#pragma once

#if NETS
enum { NET_LINEAR, NET_LSTM, NET_TANH, NET_RELU, NET_ELU, NET_SOFTSIGN, NET_SIGMOID, NET_SILU, NET_SOFTPLUS,
       NET_LEAKY_RELU };

#if GPU
FN real power_of_e(real x) { return expf(x); }
FN real logarithm(real x) { return logf(x); }
#else
FN real power_of_e(real x) { return exp(x); }
FN real logarithm(real x) { return log(x); }
#endif
FN real logistic(real x) { return R(1) / (R(1) + power_of_e(-x)); }
// Not tanhf, of which the compiler's fast mathematics leaves three digits.
FN real hyperbolic(real x) { return R(1) - R(2) / (R(1) + power_of_e(R(2) * clamp_to(x, R(-20), R(20)))); }

FN real activated(int kind, real x, real slope) {
  switch (kind) {
    case NET_TANH: return hyperbolic(x);
    case NET_RELU: return x > 0 ? x : R(0);
    case NET_ELU: return x > 0 ? x : slope * (power_of_e(x) - R(1));
    case NET_SOFTSIGN: return x / (R(1) + magnitude(x));
    case NET_SIGMOID: return logistic(clamp_to(x, R(-40), R(40)));
    case NET_SILU: return x * logistic(clamp_to(x, R(-40), R(40)));
    case NET_SOFTPLUS: return x > R(20) ? x : logarithm(R(1) + power_of_e(x));
    default: return x > 0 ? x : slope * x;
  }
}

// Row `row` of a matrix with n columns, times x.
FN real row_times(const real* matrix, int row, int n, const real* x) {
  const real* r = matrix + row * n;
  real sum = 0;
  for (int i = 0; i < n; i++) sum += r[i] * x[i];
  return sum;
}

// The torque of actuator u from this physics step's position error and velocity; its memory moves on.
FN real network_torque(const World& w, int u, real error, real speed) {
  const int net = law_net(w)[u], *head = net_head(w) + 8 * net, *lag = net_lag(w) + head[3];
  const int depth = head[2], n = head[4];
  const real* scale = net_scale(w) + 4 * net;
  real* memory = live<real>(w, A_NET, NU * NET_MEMORY) + u * NET_MEMORY;
  ROLLED for (int k = depth - 1; k > 0; k--) memory[k] = memory[k - 1], memory[depth + k] = memory[depth + k - 1];
  memory[0] = error, memory[depth] = speed;
  real x[NET_WIDTH], y[NET_WIDTH];
  ROLLED for (int i = 0; i < n; i++) {
    x[(head[5] ? n : 0) + i] = scale[0] * memory[lag[i]];
    x[(head[5] ? 0 : n) + i] = scale[1] * memory[depth + lag[i]];
  }
  real* state = memory + 2 * depth;
  int width = 2 * n;
  ROLLED for (int k = 0; k < head[1]; k++) {
    const int* op = net_op(w) + 4 * (head[0] + k);
    const real* weight = net_weight(w) + op[3];
    if (op[0] == NET_LINEAR) {
      const int in = op[1], out = op[2];
      ROLLED for (int j = 0; j < out; j++) y[j] = weight[in * out + j] + row_times(weight, j, in, x);
      width = out;
      ROLLED for (int j = 0; j < out; j++) x[j] = y[j];
    } else if (op[0] == NET_LSTM) {
      const int in = op[1], out = op[2];
      const real *hidden = weight + 4 * out * in, *bias = hidden + 4 * out * out;
      ROLLED for (int j = 0; j < out; j++) {
        real gate[4];
        for (int g = 0; g < 4; g++) {
          int row = g * out + j;
          gate[g] = bias[row] + row_times(weight, row, in, x) + row_times(hidden, row, out, state);
        }
        real cell = logistic(gate[1]) * state[out + j] + logistic(gate[0]) * hyperbolic(gate[2]);
        state[out + j] = cell;
        y[j] = logistic(gate[3]) * hyperbolic(cell);
      }
      width = out;
      ROLLED for (int j = 0; j < out; j++) x[j] = state[j] = y[j];
      state += 2 * out;
    } else {
      ROLLED for (int j = 0; j < width; j++) x[j] = activated(op[0], x[j], weight[0]);
    }
  }
  return scale[2] * x[0];
}
#endif
