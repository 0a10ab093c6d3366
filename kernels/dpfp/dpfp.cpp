// DPFP features on a CPU, divided by their sum where that is asked for; see README.md.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "pointwise.h"

namespace workbench {
namespace {

using at::Tensor;

// Sixteen sums side by side, so that the loop becomes vectors without reordering what is written.
template <class C>
C dot(const C* a, const C* b, int64_t n) {
  C lanes[16] = {};
  int64_t m = 0;
  for (; m + 16 <= n; m += 16)
    for (int64_t j = 0; j < 16; ++j) lanes[j] += a[m + j] * b[m + j];
  C sum = 0;
  for (; m < n; ++m) sum += a[m] * b[m];
  for (C lane : lanes) sum += lane;
  return sum;
}

// y = [relu(x), relu(-x)] with the last nu numbers once more in front, so that y[m - i] needs no
// wrapping; NaN stays NaN.
template <class T, class C>
void rectify(const T* x, C* y, int64_t K, int64_t nu) {
  for (int64_t k = 0; k < K; ++k) {
    const C v = static_cast<C>(x[k]);
    y[k] = v < C(0) ? C(0) : v;
    y[K + k] = v > C(0) ? C(0) : -v;
  }
  std::copy(y + 2 * K - nu, y + 2 * K, y - nu);
}

template <class T, class C>
void forward_row(const T* x, T* features, int64_t K, int64_t nu, bool normalise, C* y, C* scaled,
                 C* others) {
  const int64_t N = 2 * K;
  rectify(x, y, K, nu);
  C sum = 0;
  if (normalise) {
    std::fill(others, others + N, C(0));
    for (int64_t i = 1; i <= nu; ++i)
      for (int64_t m = 0; m < N; ++m) others[m] += y[m - i];
    sum = dot(y, others, N);
  }
  sum = sum == C(0) ? C(1) : sum;
  for (int64_t m = 0; m < N; ++m) scaled[m] = y[m] / sum;
  for (int64_t i = 1; i <= nu; ++i) {
    T* to = features + (i - 1) * N;
    for (int64_t m = 0; m < N; ++m) to[m] = static_cast<T>(scaled[m] * y[m - i]);
  }
}

// dy: the gradient of y before any division; others_m = sum_i (y_{m-i} + y_{m+i}), so that half of
// y . others is the sum of the features and half of y . dy that of features times gradients.
template <class T, class C>
void backward_row(const T* g, const T* x, T* dx, int64_t K, int64_t nu, bool normalise, C* y, C* dy,
                  C* others, C* sent) {
  const int64_t N = 2 * K;
  rectify(x, y, K, nu);
  std::fill(dy, dy + N, C(0));
  std::fill(others, others + N, C(0));
  for (int64_t i = 1; i <= nu; ++i) {
    const T* from = g + (i - 1) * N;
    for (int64_t m = 0; m < N; ++m) {
      const C grad = static_cast<C>(from[m]);
      sent[m] = grad * y[m];
      dy[m] += grad * y[m - i];
    }
    for (int64_t m = i; m < N; ++m) dy[m - i] += sent[m];
    for (int64_t m = 0; m < i; ++m) dy[N + m - i] += sent[m];
    if (!normalise) continue;
    for (int64_t m = 0; m < N; ++m) others[m] += y[m - i];
    for (int64_t m = i; m < N; ++m) others[m - i] += y[m];
    for (int64_t m = 0; m < i; ++m) others[N + m - i] += y[m];
  }
  const C sum = normalise ? dot(y, others, N) / 2 : C(0);
  if (sum != C(0)) {
    const C mean = dot(y, dy, N) / 2 / sum;
    for (int64_t m = 0; m < N; ++m) dy[m] = (dy[m] - mean * others[m]) / sum;
  }
  for (int64_t k = 0; k < K; ++k) {
    const C v = static_cast<C>(x[k]);
    dx[k] = static_cast<T>((v <= C(0) ? C(0) : dy[k]) - (v >= C(0) ? C(0) : dy[K + k]));
  }
}

void check(const Tensor& x, int64_t nu) {
  TORCH_CHECK(x.dim() > 0 && 0 < nu && nu < 2 * x.size(-1), "got ", nu, " shifts of heads of shape ",
              x.sizes(), ", expected 1 to twice their width less one");
}

// Numbers from one row to the next, or 0: heads of a projection lie evenly, with gaps.
int64_t row_stride(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  if (x.stride(last) != 1) return 0;
  if (last == 0) return x.size(0);
  for (int64_t d = last - 1; d > 0; --d)
    if (x.stride(d - 1) != x.stride(d) * x.size(d)) return 0;
  return x.stride(last - 1);
}

Tensor forward(const Tensor& x_in, int64_t nu, bool normalise) {
  check(x_in, nu);
  const int64_t K = x_in.size(-1), N = 2 * K, rows = x_in.numel() / K;
  const Tensor x = row_stride(x_in) > 0 ? x_in : x_in.contiguous();
  const int64_t stride = row_stride(x_in) > 0 ? row_stride(x_in) : K;
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = N * nu;
  Tensor features = at::empty(shape, x.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "dpfp", [&] {
    using C = Computed<scalar_t>;
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = features.mutable_data_ptr<scalar_t>();
    // below some 10 microseconds of work a second thread costs more than it brings
    at::parallel_for(0, rows, 1 + 32768 / (N * nu), [&](int64_t begin, int64_t end) {
      std::vector<C> room(nu + 3 * N);
      C* y = room.data() + nu;
      for (int64_t r = begin; r < end; ++r)
        forward_row(from + r * stride, to + r * N * nu, K, nu, normalise, y, y + N, y + 2 * N);
    });
  });
  return features;
}

Tensor backward(const Tensor& g_in, const Tensor& x_in, int64_t nu, bool normalise) {
  check(x_in, nu);
  const int64_t K = x_in.size(-1), N = 2 * K, rows = x_in.numel() / K;
  const Tensor x = row_stride(x_in) > 0 ? x_in : x_in.contiguous();
  const int64_t stride = row_stride(x_in) > 0 ? row_stride(x_in) : K;
  TORCH_CHECK(g_in.numel() == rows * N * nu, "got a gradient of shape ", g_in.sizes(), " beside ",
              nu, " shifts of heads of shape ", x.sizes());
  const Tensor g = g_in.to(x.scalar_type()).contiguous();
  Tensor dx = at::empty(x.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "dpfp", [&] {
    using C = Computed<scalar_t>;
    const scalar_t* grads = g.const_data_ptr<scalar_t>();
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = dx.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, 1 + 16384 / (N * nu), [&](int64_t begin, int64_t end) {
      std::vector<C> room(nu + 4 * N);
      C* y = room.data() + nu;
      for (int64_t r = begin; r < end; ++r)
        backward_row(grads + r * N * nu, from + r * stride, to + r * K, K, nu, normalise, y, y + N,
                     y + 2 * N, y + 3 * N);
    });
  });
  return dx;
}

TORCH_LIBRARY_IMPL(workbench, CPU, m) {
  m.impl("dpfp_forward", forward);
  m.impl("dpfp_backward", backward);
}

}  // namespace
}  // namespace workbench
