// The sum rule on a CPU: W += k v^T, y = W^T q; equations in README.md.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "heads.h"

namespace workbench {
namespace {

using at::Tensor;

// From the first token or from the last: S += a x^T, out = S^T b, over panels of the width of x.
// Forward, and each part of the backward pass, is one call; `transposed` says that a has the
// values' width and x the keys'.
struct Operands {
  const Tensor &a, &x, &b, &start;
  Tensor& out;
  Tensor* end;
  bool transposed, reversed;
};

template <class T>
void scan(const Sizes& s, const Operands& o) {
  const Heads<const T> A(o.a), X(o.x), B(o.b);
  const Heads<T> Out(o.out);
  const Cut<T> cut = o.transposed ? Cut<T>(s.V, s.F) : Cut<T>(s.F, s.V);
  for_each_panel<T>(s, cut, [&](int64_t b, int64_t h, auto panel, int64_t c) {
    using R = typename decltype(panel)::R;
    const int64_t n = panel.n, matrix = (b * s.H + h) * s.F * s.V;
    const auto a_ = A(b, h), x_ = X(b, h), b_ = B(b, h);
    const auto out_ = Out(b, h);
    const T* start = o.start.const_data_ptr<T>() + matrix;
    if (o.transposed) panel.load(start + c * s.V, 1, s.V);
    else panel.load(start + c, s.V, 1);
    for (int64_t i = 0; i < s.T; ++i) {
      const int64_t t = o.reversed ? s.T - 1 - i : i;
      panel.write_read(a_[t], R::load(x_[t] + c, n), b_[t]).store(out_[t] + c, n);
    }
    if (o.end) panel.store(o.end->mutable_data_ptr<T>() + matrix + c, s.V);
  });
}

std::tuple<Tensor, Tensor> sum_rule_forward(const Tensor& q_in, const Tensor& k_in,
                                            const Tensor& v_in, const Tensor& state_in) {
  const Sizes s = check(q_in, k_in, state_in);
  check_like(k_in, q_in, q_in.sizes(), "keys");
  check_like(v_in, q_in, {s.B, s.T, s.H, s.V}, "values");
  check_like(state_in, q_in, {s.B, s.H, s.F, s.V}, "state");
  const Tensor q = with_contiguous_width(q_in), k = with_contiguous_width(k_in);
  const Tensor v = with_contiguous_width(v_in), state = state_in.contiguous();
  Tensor y = at::empty({s.B, s.T, s.H, s.V}, v.options());
  Tensor last = at::empty(state.sizes(), state.options());
  for_type(q, [&](auto type) {
    scan<decltype(type)>(s, {k, v, q, state, y, &last, false, false});
  });
  return {y, last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sum_rule_backward(
    const Tensor& gy_in, const Tensor& glast_in, const Tensor& q_in, const Tensor& k_in,
    const Tensor& v_in, const Tensor& state_in) {
  const Sizes s = check(q_in, k_in, state_in);
  check_like(gy_in, q_in, {s.B, s.T, s.H, s.V}, "output gradient");
  check_like(glast_in, q_in, {s.B, s.H, s.F, s.V}, "state gradient");
  check_like(v_in, q_in, {s.B, s.T, s.H, s.V}, "values");
  const Tensor gy = with_contiguous_width(gy_in), q = with_contiguous_width(q_in);
  const Tensor k = with_contiguous_width(k_in), v = with_contiguous_width(v_in);
  const Tensor glast = glast_in.contiguous(), state = state_in.contiguous();
  const auto like = q.options();
  Tensor dq = at::empty({s.B, s.T, s.H, s.F}, like), dk = at::empty({s.B, s.T, s.H, s.F}, like);
  Tensor dv = at::empty({s.B, s.T, s.H, s.V}, like), dstate = at::empty(state.sizes(), like);
  for_type(q, [&](auto type) {
    using T = decltype(type);
    // G, the gradient of W: forwards in W's own shape for dv, transposed for dk
    scan<T>(s, {q, gy, k, glast, dv, &dstate, false, true});
    scan<T>(s, {gy, q, v, glast, dk, nullptr, true, true});
    scan<T>(s, {v, k, gy, state, dq, nullptr, true, false});
  });
  return {dq, dk, dv, dstate};
}

TORCH_LIBRARY_IMPL(workbench, CPU, m) {
  m.impl("sum_rule_forward", sum_rule_forward);
  m.impl("sum_rule_backward", sum_rule_backward);
}

}  // namespace
}  // namespace workbench
