// The sum rule on a CPU: W += k v^T, y = W^T q; equations in README.md.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "heads.h"
#include "pool.h"

namespace workbench {
namespace {

using at::Tensor;

// tokens that share a pass: their writes and reads fill the registers
constexpr int C = 3;

// how many a panel takes for a block of some heads
int64_t passes(int64_t heads, const Walk& walk) { return heads * ((walk.n + C - 1) / C); }

// Over a block of tokens, in the order of the walk: S += a x^T, out = S^T b, over panels of the
// width of x and out. Forward, and each part of the backward pass, is one call for a panel.
template <class T, class Panel>
void scan(const Walk& walk, const T* zeros, const Rows<T>& a, const Rows<T>& x, const Rows<T>& b,
          const Rows<T>& out, Ahead& ahead, Panel panel, int64_t c) {
  using R = typename Panel::R;
  for (int64_t i = 0; i < walk.n; i += C) {
    const auto x_ = rows_at<C>(x, walk, i, c, zeros);
    std::array<R, C> written, y;
    for (int j = 0; j < C; ++j) written[j] = R::from(x_[j]);
    panel.alternate(rows_at<C>(a, walk, i, 0, zeros), written, rows_at<C>(b, walk, i, 0, zeros), y,
                    ahead.next(panel.rows));
    for (int j = 0; j < C && i + j < walk.n; ++j)
      std::memcpy(out[walk.token(i + j)] + c, &y[j], sizeof(R));
  }
}

template <class T>
void forward(const Sizes& s, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state,
             bool normalise, const Tensor& y, const Tensor& last) {
  const Heads<T> Q(q), K(k), V(v), Y(y);
  const Cut<T> cut(s.F, s.V);
  const Groups groups(s, cut.all() * sizeof(T), (2 * s.F + 2 * s.V) * sizeof(T));
  const int64_t by_f = Rows<T>::numbers(s.F), by_v = Rows<T>::numbers(s.V);
  const auto work = [&](int64_t i, T* room) {
    const auto group = groups.group(i, s.H);
    const int64_t b = group.b, h0 = group.h0, heads = group.heads;
    Ahead ahead;
    T* panels = std::exchange(room, room + groups.heads * cut.all());
    const T* none = zeros(room, std::max(by_f, by_v));
    const auto q_ = Rows<T>::take(room, s.F, normalise), k_ = Rows<T>::take(room, s.F, normalise);
    const auto v_ = Rows<T>::take(room, s.V), y_ = Rows<T>::take(room, s.V);
    const auto each = [&](int64_t j, const auto& part) { cut.each(panels + j * cut.all(), part); };
    for (int64_t t = 0; t < s.T; t += groups.tokens) {
      const Walk walk{std::min(groups.tokens, s.T - t)};
      ahead.start(heads, t + walk.n, std::min(s.T, t + walk.n + groups.tokens),
                  passes(heads, walk) * cut.panels());
      ahead.add(Q, b, h0, s.F), ahead.add(K, b, h0, s.F);
      ahead.add(V, b, h0, s.V), ahead.add(Y, b, h0, s.V, true);
      for (int64_t j = 0; j < heads; ++j) {
        const int64_t h = h0 + j, head = b * s.H + h;
        if (t == 0) each(j, [&](auto p, int64_t c) { load_state(p, state, matrix(s, head, c)); });
        q_.get(Q(b, h), t, walk.n), k_.get(K(b, h), t, walk.n), v_.get(V(b, h), t, walk.n);
        each(j, [&](auto p, int64_t c) { scan(walk, none, k_, v_, q_, y_, ahead, p, c); });
        y_.pass_on(Y(b, h), t, walk.n);
        if (t + walk.n == s.T)
          each(j, [&](auto p, int64_t c) { store_state(p, last, matrix(s, head, c)); });
      }
    }
  };
  const int64_t rows = 2 * by_f + 2 * by_v + (normalise ? 2 : 0);
  const int64_t numbers = groups.heads * cut.all() + std::max(by_f, by_v) + kMostTokens * rows;
  share_out<T>(s.B * groups.per_sequence, numbers, s.T * 4 * groups.heads * cut.all(), work);
}

template <class T>
void backward(const Sizes& s, const Tensor& gy, const Tensor& glast, const Tensor& q,
              const Tensor& k, const Tensor& v, const Tensor& state, bool normalise,
              const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dstate) {
  const Heads<T> Gy(gy), Q(q), K(k), V(v), Dq(dq), Dk(dk), Dv(dv);
  const Cut<T> narrow(s.F, s.V), wide(s.V, s.F);
  const int64_t both = narrow.all() + wide.all();
  const Groups groups(s, both * sizeof(T), (3 * s.F + 3 * s.V) * sizeof(T));
  const int64_t by_f = Rows<T>::numbers(s.F), by_v = Rows<T>::numbers(s.V);
  const auto work = [&](int64_t i, T* room) {
    const auto group = groups.group(i, s.H);
    const int64_t b = group.b, h0 = group.h0, heads = group.heads;
    Ahead ahead;
    T* panels = std::exchange(room, room + groups.heads * both);
    const T* none = zeros(room, std::max(by_f, by_v));
    const auto q_ = Rows<T>::take(room, s.F, normalise), k_ = Rows<T>::take(room, s.F, normalise);
    const auto v_ = Rows<T>::take(room, s.V), gy_ = Rows<T>::take(room, s.V);
    const auto g = Rows<T>::take(room, s.F), dv_ = Rows<T>::take(room, s.V);
    const auto each = [&](int64_t j, const auto& part) { narrow.each(panels + j * both, part); };
    const auto each_wide = [&](int64_t j, const auto& part) {
      wide.each(panels + j * both + narrow.all(), part);
    };
    // the gradient of W backwards: in W's own shape for dv, transposed for dk
    const int64_t blocks = (s.T + groups.tokens - 1) / groups.tokens;
    for (int64_t n = blocks; n-- > 0;) {
      const int64_t t = n * groups.tokens;
      const Walk walk{std::min(groups.tokens, s.T - t), true};
      ahead.start(heads, std::max<int64_t>(0, t - groups.tokens), t,
                  passes(heads, walk) * (narrow.panels() + wide.panels()));
      ahead.add(Q, b, h0, s.F), ahead.add(K, b, h0, s.F), ahead.add(V, b, h0, s.V);
      ahead.add(Gy, b, h0, s.V), ahead.add(Dk, b, h0, s.F, true), ahead.add(Dv, b, h0, s.V, true);
      for (int64_t j = 0; j < heads; ++j) {
        const int64_t h = h0 + j, head = b * s.H + h;
        if (n == blocks - 1) {
          each(j, [&](auto p, int64_t c) { load_state(p, glast, matrix(s, head, c)); });
          each_wide(j, [&](auto p, int64_t c) { load_state(p, glast, transposed(s, head, c)); });
        }
        q_.get(Q(b, h), t, walk.n), k_.get(K(b, h), t, walk.n);
        v_.get(V(b, h), t, walk.n), gy_.get(Gy(b, h), t, walk.n);
        each(j, [&](auto p, int64_t c) { scan(walk, none, q_, gy_, k_, dv_, ahead, p, c); });
        each_wide(j, [&](auto p, int64_t c) { scan(walk, none, gy_, q_, v_, g, ahead, p, c); });
        g.undo_normalise(k_, walk.n);
        dv_.pass_on(Dv(b, h), t, walk.n), g.pass_on(Dk(b, h), t, walk.n);
        if (t == 0) each(j, [&](auto p, int64_t c) { store_state(p, dstate, matrix(s, head, c)); });
      }
    }
    // W itself forwards, transposed, for dq
    for (int64_t t = 0; t < s.T; t += groups.tokens) {
      const Walk walk{std::min(groups.tokens, s.T - t)};
      ahead.start(heads, t + walk.n, std::min(s.T, t + walk.n + groups.tokens),
                  passes(heads, walk) * wide.panels());
      ahead.add(K, b, h0, s.F), ahead.add(V, b, h0, s.V);
      ahead.add(Gy, b, h0, s.V), ahead.add(Dq, b, h0, s.F, true);
      if (normalise) ahead.add(Q, b, h0, s.F);
      for (int64_t j = 0; j < heads; ++j) {
        const int64_t h = h0 + j, head = b * s.H + h;
        if (t == 0)
          each_wide(j, [&](auto p, int64_t c) { load_state(p, state, transposed(s, head, c)); });
        k_.get(K(b, h), t, walk.n), v_.get(V(b, h), t, walk.n), gy_.get(Gy(b, h), t, walk.n);
        if (normalise) q_.get(Q(b, h), t, walk.n);
        each_wide(j, [&](auto p, int64_t c) { scan(walk, none, v_, k_, gy_, g, ahead, p, c); });
        g.undo_normalise(q_, walk.n);
        g.pass_on(Dq(b, h), t, walk.n);
      }
    }
  };
  const int64_t rows = 3 * by_f + 3 * by_v + (normalise ? 2 : 0);
  const int64_t numbers = groups.heads * both + std::max(by_f, by_v) + kMostTokens * rows;
  share_out<T>(s.B * groups.per_sequence, numbers, s.T * 12 * groups.heads * s.F * s.V, work);
}

std::tuple<Tensor, Tensor> sum_rule_forward(const Tensor& q_in, const Tensor& k_in,
                                            const Tensor& v_in, const Tensor& state_in,
                                            bool normalise) {
  const Sizes s = check(q_in, k_in, state_in);
  check_like(k_in, q_in, q_in.sizes(), "keys");
  check_like(v_in, q_in, {s.B, s.T, s.H, s.V}, "values");
  check_state(state_in, q_in, s, "state");
  const Tensor q = with_contiguous_width(q_in), k = with_contiguous_width(k_in);
  const Tensor v = with_contiguous_width(v_in), state = state_in.contiguous();
  const Tensor y = pooled({s.B, s.T, s.H, s.V}, v.scalar_type());
  const Tensor last = at::empty(state.sizes(), state.options());
  for_type(q, [&](auto type) { forward<decltype(type)>(s, q, k, v, state, normalise, y, last); });
  return {y, last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sum_rule_backward(
    const Tensor& gy_in, const Tensor& glast_in, const Tensor& q_in, const Tensor& k_in,
    const Tensor& v_in, const Tensor& state_in, bool normalise) {
  const Sizes s = check(q_in, k_in, state_in);
  check_like(gy_in, q_in, {s.B, s.T, s.H, s.V}, "output gradient");
  check_like(v_in, q_in, {s.B, s.T, s.H, s.V}, "values");
  check_state(state_in, q_in, s, "state");
  check_like(glast_in, q_in, state_in.sizes(), "state gradient", state_in.scalar_type());
  const Tensor gy = with_contiguous_width(gy_in), q = with_contiguous_width(q_in);
  const Tensor k = with_contiguous_width(k_in), v = with_contiguous_width(v_in);
  const Tensor glast = glast_in.contiguous(), state = state_in.contiguous();
  const auto fresh = [&](int64_t width) {
    return pooled({s.B, s.T, s.H, width}, q.scalar_type());
  };
  const Tensor dq = fresh(s.F), dk = fresh(s.F), dv = fresh(s.V);
  const Tensor dstate = at::empty(state.sizes(), state.options());
  for_type(q, [&](auto type) {
    backward<decltype(type)>(s, gy, glast, q, k, v, state, normalise, dq, dk, dv, dstate);
  });
  return {dq, dk, dv, dstate};
}

TORCH_LIBRARY_IMPL(workbench, CPU, m) {
  m.impl("sum_rule_forward", sum_rule_forward);
  m.impl("sum_rule_backward", sum_rule_backward);
}

}  // namespace
}  // namespace workbench
