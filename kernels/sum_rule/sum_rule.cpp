// The sum rule on a CPU: W += k v^T, y = W^T q; equations in README.md.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "heads.h"

namespace workbench {
namespace {

using at::Tensor;

// tokens that share a pass: their writes and reads fill the registers
constexpr int C = 3;

// From the first token or from the last: S += a x^T, out = S^T b, over panels of the width of x.
// Forward, and each part of the backward pass, is one call for a panel; `transposed` says that a
// has the values' width and x the keys'.
template <class T>
struct Scan {
  struct Operand {
    Lane<T> rows;
    const Lane<T>* kept = nullptr;  // where to leave them, if anywhere
    T* inverse = nullptr;           // where to leave the inverse of the sums they are divided by
  };
  Operand a, x, b;
  Lane<T> out;
  const Tensor* start;
  const Tensor* end;  // null where the last matrix is not asked for
  bool transposed, reversed;
};

template <class T, class Panel>
void scan(const Sizes& s, int64_t head, const Scan<T>& o, const T* zeros, Panel panel, int64_t c) {
  using R = typename Panel::R;
  const Matrix matrix = o.transposed ? Matrix{(head * s.F + c) * s.V, 1, s.V}
                                     : Matrix{head * s.F * s.V + c, s.V, 1};
  load_state(panel, *o.start, matrix);
  const auto feed = [&](const typename Scan<T>::Operand& from, int64_t first, int64_t n,
                        int64_t padded, bool whole) {
    // whole rows are brought by the first panel, the others find them
    const bool found = whole && c && from.kept;
    Feed<T, C> rows(found ? *from.kept : from.rows, s.T, first, n, padded, zeros);
    if (!found) rows.normalised(from.inverse);
    if (!found && from.kept) rows.kept_in(*from.kept);
    return rows;
  };
  auto a = feed(o.a, 0, panel.rows, panel.rows, true), b = feed(o.b, 0, panel.rows, panel.rows, true);
  auto x = feed(o.x, c, panel.n, R::width, false);
  const int64_t step = o.reversed ? -1 : 1;
  for (int64_t i = 0; i < s.T; i += C) {
    const int64_t t = o.reversed ? s.T - 1 - i : i;
    a.move(t, step), b.move(t, step), x.move(t, step);
    std::array<R, C> written, y;
    for (int j = 0; j < C; ++j) written[j] = R::from(x.now[j]);
    for (int j = 0; j < C && i + C + j < s.T; ++j)
      o.out.template prefetch<1>(t + (C + j) * step, c, panel.n);
    panel.alternate(a.now, written, b.now, y);
    for (int j = 0; j < C && i + j < s.T; ++j) o.out.put(t + j * step, c, panel.n, y[j]);
  }
  if (o.end) store_state(panel, *o.end, matrix);
}

template <class T>
void forward(const Sizes& s, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state,
             bool normalise, const Tensor& y, const Tensor& last) {
  const Heads<T> Q(q), K(k), V(v), Y(y);
  const Cut<T> cut(s.F, s.V);
  const int64_t panels = cut.panels(), cost = s.T * 4 * cut.numbers();
  const auto work = [&](int64_t i, const Bench<T>& bench) {
    const int64_t head = i / panels, b = head / s.H, h = head % s.H;
    T *iq = normalise ? bench.own : nullptr, *ik = normalise ? iq + s.T : nullptr;
    const Scan<T> o{{K(b, h), nullptr, ik}, {V(b, h)}, {Q(b, h), nullptr, iq}, Y(b, h),
                    &state, &last, false, false};
    with_panel(cut, i % panels, bench.panel,
               [&](auto panel, int64_t c) { scan(s, head, o, bench.zeros, panel, c); });
  };
  const int64_t own = normalise ? 2 * s.T : 0;
  share_out<T>(s.B * s.H * panels, cut.numbers(), s.F, own, cost, work);
}

template <class T>
void backward(const Sizes& s, const Tensor& gy, const Tensor& glast, const Tensor& q,
              const Tensor& k, const Tensor& v, const Tensor& state, bool normalise,
              const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dstate) {
  const Heads<T> Gy(gy), Q(q), K(k), V(v), Dq(dq), Dk(dk), Dv(dv);
  const Cut<T> narrow(s.F, s.V), wide(s.V, s.F);
  const int64_t panel = std::max(narrow.numbers(), wide.numbers());
  const int64_t by_f = numbers_of_kept_rows<T>(s.T, s.F), by_v = numbers_of_kept_rows<T>(s.T, s.V);
  const auto work = [&](int64_t head, const Bench<T>& bench) {
    const int64_t b = head / s.H, h = head % s.H;
    const Lane<T> dq_ = Dq(b, h), dk_ = Dk(b, h);
    T* room = bench.own;
    const auto by = [&](int64_t width) { return kept_rows(room, s.T, width); };
    const Lane<T> kept_q = by(s.F), kept_k = by(s.F), kept_v = by(s.V), kept_gy = by(s.V);
    const Lane<T> g = normalise ? by(s.F) : dq_;
    T *iq = normalise ? room : nullptr, *ik = normalise ? room + s.T : nullptr;
    T* two_rows = room + 2 * s.T;
    const auto run = [&](const Cut<T>& cut, const Scan<T>& o) {
      for (int64_t i = 0; i < cut.panels(); ++i)
        with_panel(cut, i, bench.panel,
                   [&](auto p, int64_t c) { scan(s, head, o, bench.zeros, p, c); });
    };
    // G, the gradient of W: backwards in W's own shape for dv, transposed for dk
    run(narrow, {{Q(b, h), &kept_q, iq}, {Gy(b, h), &kept_gy}, {K(b, h), &kept_k, ik}, Dv(b, h),
                 &glast, &dstate, false, true});
    run(wide, {{kept_gy}, {kept_q}, {V(b, h), &kept_v}, normalise ? g : dk_, &glast, nullptr, true,
               true});
    if (normalise) backward_of_normalise(g, kept_k, ik, s.T, s.F, two_rows, dk_);
    run(wide, {{kept_v}, {kept_k}, {kept_gy}, g, &state, nullptr, true, false});
    if (normalise) backward_of_normalise(g, kept_q, iq, s.T, s.F, two_rows, dq_);
  };
  const int64_t own = 2 * by_v + (normalise ? 3 : 2) * by_f + 2 * s.T + 2 * s.F;
  share_out<T>(s.B * s.H, panel, std::max(s.F, s.V), own, s.T * 12 * s.F * s.V, work);
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
  const Tensor y = in_large_pages(at::empty({s.B, s.T, s.H, s.V}, v.options()));
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
    return in_large_pages(at::empty({s.B, s.T, s.H, width}, q.options()));
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
