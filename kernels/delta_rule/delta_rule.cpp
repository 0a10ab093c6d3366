// The delta rule on a CPU: W += k (beta (v - W^T k))^T, y = W^T q; equations in README.md.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "heads.h"

namespace workbench {
namespace {

using at::Tensor;

template <class T>
void forward(const Sizes& s, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
             const Tensor& state, Tensor& y, Tensor& last, Tensor& error) {
  const Heads<const T> Q(q), K(k), V(v), Beta(beta);
  const Heads<T> Y(y);
  const bool keep = error.numel() > 0;
  const Heads<T> E(keep ? error : y);
  for_each_panel<T>(s, Cut<T>(s.F, s.V), [&](int64_t b, int64_t h, auto panel, int64_t c) {
    using R = typename decltype(panel)::R;
    const int64_t n = panel.n, matrix = (b * s.H + h) * s.F * s.V + c;
    const auto q_ = Q(b, h), k_ = K(b, h), v_ = V(b, h), beta_ = Beta(b, h);
    const auto y_ = Y(b, h), e_ = E(b, h);
    panel.load(state.const_data_ptr<T>() + matrix, s.V, 1);
    R old = panel.read(k_[0]);
    for (int64_t t = 0; t < s.T; ++t) {
      const R e = R::load(v_[t] + c, n) - old;
      if (keep) e.store(e_[t] + c, n);
      // what the next key will find is read in the same pass; the last token has no next
      const T* next = k_[t + 1 < s.T ? t + 1 : t];
      panel.write_read_read(k_[t], e * *beta_[t], q_[t], next, old).store(y_[t] + c, n);
    }
    panel.store(last.mutable_data_ptr<T>() + matrix, s.V);
  });
}

// Backwards over tokens: the gradient of W, and from it those of v, beta and the first state.
template <class T>
void backward_values(const Sizes& s, const Tensor& gy, const Tensor& glast, const Tensor& q,
                     const Tensor& k, const Tensor& beta, const Tensor& error, Tensor& dv,
                     Tensor& dbeta, Tensor& dstate) {
  const Heads<const T> Gy(gy), Q(q), K(k), Beta(beta), E(error);
  const Heads<T> Dv(dv);
  const Cut<T> cut(s.F, s.V);
  for_each_panel<T>(s, cut, [&](int64_t b, int64_t h, auto panel, int64_t c) {
    using R = typename decltype(panel)::R;
    const int64_t n = panel.n, matrix = (b * s.H + h) * s.F * s.V + c;
    const auto gy_ = Gy(b, h), q_ = Q(b, h), k_ = K(b, h), beta_ = Beta(b, h), e_ = E(b, h);
    const auto dv_ = Dv(b, h);
    // dbeta sums over columns, which panels share out: each panel has a slice of its own
    T* dbeta_ = dbeta.mutable_data_ptr<T>() + (c / cut.width()) * s.B * s.T * s.H;
    panel.load(glast.const_data_ptr<T>() + matrix, s.V, 1);
    R minus_w = R::zero();
    for (int64_t t = s.T - 1; t >= 0; --t) {
      const T* later = k_[t + 1 < s.T ? t + 1 : t];
      const R du = panel.write_write_read(later, minus_w, q_[t], R::load(gy_[t] + c, n), k_[t]);
      const R w = du * *beta_[t];
      w.store(dv_[t] + c, n);
      dbeta_[(b * s.T + t) * s.H + h] = du.dot(R::load(e_[t] + c, n));
      minus_w = R::zero() - w;
    }
    panel.write(k_[0], minus_w);
    panel.store(dstate.mutable_data_ptr<T>() + matrix, s.V);
  });
}

// With every write known, the transposed matrix forwards for dq, its gradient backwards for dk.
template <class T>
void backward_keys(const Sizes& s, const Tensor& gy, const Tensor& glast, const Tensor& q,
                   const Tensor& k, const Tensor& beta, const Tensor& state, const Tensor& error,
                   const Tensor& dv, Tensor& dq, Tensor& dk) {
  const Heads<const T> Gy(gy), Q(q), K(k), Beta(beta), E(error), Dv(dv);
  const Heads<T> Dq(dq), Dk(dk);
  for_each_panel<T>(s, Cut<T>(s.V, s.F), [&](int64_t b, int64_t h, auto panel, int64_t c) {
    using R = typename decltype(panel)::R;
    const int64_t n = panel.n, matrix = ((b * s.H + h) * s.F + c) * s.V;
    const auto gy_ = Gy(b, h), q_ = Q(b, h), k_ = K(b, h), beta_ = Beta(b, h), e_ = E(b, h);
    const auto w_ = Dv(b, h);
    const auto dq_ = Dq(b, h), dk_ = Dk(b, h);
    panel.load(state.const_data_ptr<T>() + matrix, 1, s.V);
    R before = panel.read(w_[0]);
    for (int64_t t = 0; t < s.T; ++t) {
      before.store(dk_[t] + c, n);
      const T* next = w_[t + 1 < s.T ? t + 1 : t];
      const R written = R::load(k_[t] + c, n) * *beta_[t];
      panel.write_read_read(e_[t], written, gy_[t], next, before).store(dq_[t] + c, n);
    }
    panel.load(glast.const_data_ptr<T>() + matrix, 1, s.V);
    R minus_k = R::zero();
    for (int64_t t = s.T - 1; t >= 0; --t) {
      const T* later = w_[t + 1 < s.T ? t + 1 : t];
      const R q_t = R::load(q_[t] + c, n);
      const R from_write = panel.write_write_read(later, minus_k, gy_[t], q_t, e_[t]) * *beta_[t];
      (from_write - R::load(dk_[t] + c, n)).store(dk_[t] + c, n);
      minus_k = R::zero() - R::load(k_[t] + c, n);
    }
  });
}

Tensor rows_of_one(const Tensor& beta) { return beta.unsqueeze(-1); }

std::tuple<Tensor, Tensor, Tensor> delta_rule_forward(
    const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& beta,
    const Tensor& state_in, bool keep_error) {
  const Sizes s = check(q_in, k_in, state_in);
  check_like(k_in, q_in, q_in.sizes(), "keys");
  check_like(v_in, q_in, {s.B, s.T, s.H, s.V}, "values");
  check_like(beta, q_in, {s.B, s.T, s.H}, "write strengths");
  check_like(state_in, q_in, {s.B, s.H, s.F, s.V}, "state");
  const Tensor q = with_contiguous_width(q_in), k = with_contiguous_width(k_in);
  const Tensor v = with_contiguous_width(v_in), state = state_in.contiguous();
  Tensor y = at::empty({s.B, s.T, s.H, s.V}, v.options());
  Tensor last = at::empty(state.sizes(), state.options());
  const std::vector<int64_t> kept = keep_error ? y.sizes().vec() : std::vector<int64_t>{0};
  Tensor error = at::empty(kept, v.options());
  for_type(q, [&](auto type) {
    forward<decltype(type)>(s, q, k, v, rows_of_one(beta), state, y, last, error);
  });
  return {y, last, error};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> delta_rule_backward(
    const Tensor& gy_in, const Tensor& glast_in, const Tensor& q_in, const Tensor& k_in,
    const Tensor& beta, const Tensor& state_in, const Tensor& error_in) {
  const Sizes s = check(q_in, k_in, state_in);
  check_like(gy_in, q_in, {s.B, s.T, s.H, s.V}, "output gradient");
  check_like(glast_in, q_in, {s.B, s.H, s.F, s.V}, "state gradient");
  check_like(error_in, q_in, {s.B, s.T, s.H, s.V}, "errors of the forward pass");
  const Tensor gy = with_contiguous_width(gy_in), q = with_contiguous_width(q_in);
  const Tensor k = with_contiguous_width(k_in), error = with_contiguous_width(error_in);
  const Tensor glast = glast_in.contiguous(), state = state_in.contiguous();
  const auto like = q.options();
  Tensor dq = at::empty({s.B, s.T, s.H, s.F}, like), dk = at::empty({s.B, s.T, s.H, s.F}, like);
  Tensor dv = at::empty({s.B, s.T, s.H, s.V}, like), dstate = at::empty(state.sizes(), like);
  Tensor dbeta;
  for_type(q, [&](auto type) {
    using T = decltype(type);
    const Tensor rows = rows_of_one(beta);
    dbeta = at::empty({Cut<T>(s.F, s.V).panels(), s.B, s.T, s.H}, like);
    backward_values<T>(s, gy, glast, q, k, rows, error, dv, dbeta, dstate);
    backward_keys<T>(s, gy, glast, q, k, rows, state, error, dv, dq, dk);
  });
  return {dq, dk, dv, dbeta.sum(0), dstate};
}

TORCH_LIBRARY_IMPL(workbench, CPU, m) {
  m.impl("delta_rule_forward", delta_rule_forward);
  m.impl("delta_rule_backward", delta_rule_backward);
}

}  // namespace
}  // namespace workbench
