// The delta rule on a CPU: W += k (beta (v - W^T k))^T, y = W^T q; equations in README.md.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "heads.h"

namespace workbench {
namespace {

using at::Tensor;

// Tokens of a block: they share a pass over the matrix, which is read as it was before them all.
// What they would have found of each other is made up for by products of their own rows.
constexpr int C = 2;
template <class T>
using Pair = std::array<const T*, C>;

template <class T>
std::array<const T*, 2 * C> side_by_side(const Pair<T>& a, const Pair<T>& b) {
  return {a[0], a[1], b[0], b[1]};
}

// products[i][j] = a_i . b_j for j <= i, or for j < i
template <class T>
struct Products {
  T at[C][C];
  Products(const Pair<T>& a, const Pair<T>& b, int64_t n, bool of_itself) {
    for (int i = 0; i < C; ++i)
      for (int j = 0; j < i + of_itself; ++j) at[i][j] = dot(a[i], b[j], n);
  }
  const T* operator[](int i) const { return at[i]; }
};

// Everything that the parts of a call share. Lanes of one head.
template <class T>
struct Head {
  Sizes s;
  int64_t head;
  const T* zeros;
  T *inverse_q, *inverse_k;  // null where queries and keys are taken as they are
  Lane<T> q, k, v, beta, error, y, gy;

  bool inside(int64_t t) const { return t >= 0 && t < s.T; }
  // rows that will be written soon are fetched like those that will be read
  WORKBENCH_INLINE void expect(const Lane<T>& out, int64_t t, int64_t c, int64_t n) const {
    if (inside(t)) out.template prefetch<1>(t, c, n);
  }
  T strength(int64_t t) const { return inside(t) ? beta.number(t) : T(0); }
  Feed<T, C> rows(const Lane<T>& lane, int64_t width) const {
    return {lane, s.T, 0, width, width, zeros};
  }
  template <class Panel>
  Feed<T, C> part(const Lane<T>& lane, const Panel& panel, int64_t c) const {
    return {lane, s.T, c, panel.n, Panel::R::width, zeros};
  }
  Matrix matrix(int64_t c) const { return {head * s.F * s.V + c, s.V, 1}; }
  Matrix transposed(int64_t c) const { return {(head * s.F + c) * s.V, 1, s.V}; }
};

template <class T, class Panel>
void forward(const Head<T>& o, const Tensor& state, const Tensor& last, bool keep, Panel panel,
             int64_t c) {
  using R = typename Panel::R;
  load_state(panel, state, o.matrix(c));
  auto q = o.rows(o.q, o.s.F), k = o.rows(o.k, o.s.F), v = o.part(o.v, panel, c);
  q.normalised(o.inverse_q), k.normalised(o.inverse_k);
  std::array<R, C> x{R::zero(), R::zero()};
  std::array<R, 2 * C> found;
  for (int64_t t = 0; t < o.s.T; t += C) {
    q.move(t, 1), k.move(t, 1), v.move(t, 1);
    const Products<T> kk(k.now, k.now, o.s.F, false), qk(q.now, k.now, o.s.F, true);
    panel.write_then_read(k.before, x, side_by_side<T>(k.now, q.now), found);
    for (int i = 0; i < C && o.inside(t + i); ++i) {
      o.expect(o.y, t + i + C, c, panel.n);
      if (keep) o.expect(o.error, t + i + C, c, panel.n);
      R e = R::from(v.now[i]) - found[i];
      for (int j = 0; j < i; ++j) e = e.plus(-kk[i][j], x[j]);
      if (keep) o.error.put(t + i, c, panel.n, e);
      x[i] = e * o.strength(t + i);
      R y = found[C + i];
      for (int j = 0; j <= i; ++j) y = y.plus(qk[i][j], x[j]);
      o.y.put(t + i, c, panel.n, y);
    }
  }
  // a token beyond the segment has a key of zeros, whatever it would write
  panel.write(k.now, x);
  store_state(panel, last, o.matrix(c));
}

// What the parts of the backward pass leave to each other, in rows of the thread's own: their
// inputs as numbers of type T, queries and keys normalised; w = dv; what dk has to give back.
template <class T>
struct Between {
  Lane<T> q, k, gy, error, w, before, dq, dk, dbeta;
};

// Backwards over tokens: the gradient of W, and from it w, dbeta and the first state's.
template <class T, class Panel>
void backward_values(const Head<T>& o, const Between<T>& z, const Tensor& glast,
                     const Tensor& dstate, const Lane<T>& dv, Panel panel, int64_t c) {
  using R = typename Panel::R;
  load_state(panel, glast, o.matrix(c));
  // the first panel brings the rows, the others find them
  auto q = o.rows(c ? z.q : o.q, o.s.F), k = o.rows(c ? z.k : o.k, o.s.F);
  if (c == 0) q.normalised(o.inverse_q).kept_in(z.q), k.normalised(o.inverse_k).kept_in(z.k);
  auto gy = o.part(o.gy, panel, c), error = o.part(o.error, panel, c);
  gy.kept_in(z.gy), error.kept_in(z.error);
  std::array<R, 2 * C> x;  // gy and -w of a block
  x.fill(R::zero());
  std::array<R, C> du;
  for (int64_t t = o.s.T - 1; t >= 0; t -= C) {
    q.move(t, -1), k.move(t, -1), gy.move(t, -1), error.move(t, -1);
    const Products<T> kq(k.now, q.now, o.s.F, true), kk(k.now, k.now, o.s.F, false);
    panel.write_then_read(side_by_side<T>(q.before, k.before), x, k.now, du);
    for (int i = 0; i < C && o.inside(t - i); ++i) {
      o.expect(dv, t - i - C, c, panel.n);
      x[i] = R::from(gy.now[i]);
      for (int j = 0; j <= i; ++j) du[i] = du[i].plus(kq[i][j], x[j]);
      for (int j = 0; j < i; ++j) du[i] = du[i].plus(kk[i][j], x[C + j]);
      const R w = du[i] * o.strength(t - i);
      x[C + i] = R::zero() - w;
      z.w.put(t - i, c, R::width, w);
      dv.put(t - i, c, panel.n, w);
      // a sum over columns, of which each panel has some
      const T here = du[i].dot(R::from(error.now[i]));
      const T sum = c == 0 ? here : z.dbeta.number(t - i) + here;
      z.dbeta.put(t - i, 0, 1, &sum);
    }
  }
  panel.write(side_by_side<T>(q.now, k.now), x);
  store_state(panel, dstate, o.matrix(c));
}

// With every write known, the transposed matrix forwards: dq, and what dk has to give back.
template <class T, class Panel>
void backward_queries(const Head<T>& o, const Between<T>& z, const Tensor& state, Panel panel,
                      int64_t c) {
  using R = typename Panel::R;
  load_state(panel, state, o.transposed(c));
  auto error = o.rows(z.error, o.s.V), gy = o.rows(z.gy, o.s.V), w = o.rows(z.w, o.s.V);
  auto k = o.part(z.k, panel, c);
  std::array<R, C> x{R::zero(), R::zero()};
  std::array<R, 2 * C> found;
  for (int64_t t = 0; t < o.s.T; t += C) {
    error.move(t, 1), gy.move(t, 1), w.move(t, 1), k.move(t, 1);
    const Products<T> ge(gy.now, error.now, o.s.V, true), we(w.now, error.now, o.s.V, false);
    panel.write_then_read(error.before, x, side_by_side<T>(gy.now, w.now), found);
    for (int i = 0; i < C && o.inside(t + i); ++i) {
      o.expect(z.dq, t + i + C, c, panel.n);
      x[i] = R::from(k.now[i]) * o.strength(t + i);
      R dq = found[i], before = found[C + i];
      for (int j = 0; j <= i; ++j) dq = dq.plus(ge[i][j], x[j]);
      for (int j = 0; j < i; ++j) before = before.plus(we[i][j], x[j]);
      z.dq.put(t + i, c, panel.n, dq);
      z.before.put(t + i, c, R::width, before);
    }
  }
}

// Its gradient backwards: the rest of dk.
template <class T, class Panel>
void backward_keys(const Head<T>& o, const Between<T>& z, const Tensor& glast, Panel panel,
                   int64_t c) {
  using R = typename Panel::R;
  load_state(panel, glast, o.transposed(c));
  auto error = o.rows(z.error, o.s.V), gy = o.rows(z.gy, o.s.V), w = o.rows(z.w, o.s.V);
  auto q = o.part(z.q, panel, c), k = o.part(z.k, panel, c), before = o.part(z.before, panel, c);
  std::array<R, 2 * C> x;  // q and -k of a block
  x.fill(R::zero());
  std::array<R, C> g;
  for (int64_t t = o.s.T - 1; t >= 0; t -= C) {
    error.move(t, -1), gy.move(t, -1), w.move(t, -1);
    q.move(t, -1), k.move(t, -1), before.move(t, -1);
    const Products<T> eg(error.now, gy.now, o.s.V, true), ew(error.now, w.now, o.s.V, false);
    panel.write_then_read(side_by_side<T>(gy.before, w.before), x, error.now, g);
    for (int i = 0; i < C && o.inside(t - i); ++i) {
      o.expect(z.dk, t - i - C, c, panel.n);
      x[i] = R::from(q.now[i]);
      x[C + i] = R::zero() - R::from(k.now[i]);
      for (int j = 0; j <= i; ++j) g[i] = g[i].plus(eg[i][j], x[j]);
      for (int j = 0; j < i; ++j) g[i] = g[i].plus(ew[i][j], x[C + j]);
      const R dk = g[i] * o.strength(t - i) - R::from(before.now[i]);
      z.dk.put(t - i, c, panel.n, dk);
    }
  }
}

// (B, T, H) as rows of one number
template <class T>
Heads<T> of_one(const Tensor& x) {
  return Heads<T>(x.unsqueeze(-1));
}

std::tuple<Tensor, Tensor, Tensor> delta_rule_forward(const Tensor& q_in, const Tensor& k_in,
                                                      const Tensor& v_in, const Tensor& beta,
                                                      const Tensor& state_in, bool normalise,
                                                      bool keep_error) {
  const Sizes s = check(q_in, k_in, state_in);
  check_like(k_in, q_in, q_in.sizes(), "keys");
  check_like(v_in, q_in, {s.B, s.T, s.H, s.V}, "values");
  check_like(beta, q_in, {s.B, s.T, s.H}, "write strengths");
  check_state(state_in, q_in, s, "state");
  const Tensor q = with_contiguous_width(q_in), k = with_contiguous_width(k_in);
  const Tensor v = with_contiguous_width(v_in), state = state_in.contiguous();
  const Tensor y = in_large_pages(at::empty({s.B, s.T, s.H, s.V}, v.options()));
  const Tensor last = at::empty(state.sizes(), state.options());
  const auto computed = v.options().dtype(computed_type(v));
  const Tensor error = keep_error ? in_large_pages(at::empty(y.sizes(), computed))
                                  : at::empty({0}, computed);
  for_type(q, [&](auto type) {
    using T = decltype(type);
    const Heads<T> Q(q), K(k), V(v), Beta = of_one<T>(beta), Y(y), E(keep_error ? error : y);
    const Cut<T> cut(s.F, s.V);
    const int64_t panels = cut.panels(), cost = s.T * 6 * cut.numbers();
    const auto work = [&](int64_t i, const Bench<T>& bench) {
      const int64_t head = i / panels, b = head / s.H, h = head % s.H;
      T* inverse = normalise ? bench.own : nullptr;
      Head<T> o{s, head, bench.zeros, inverse, normalise ? inverse + s.T : nullptr};
      o.q = Q(b, h), o.k = K(b, h), o.v = V(b, h), o.beta = Beta(b, h), o.y = Y(b, h);
      o.error = E(b, h);
      with_panel(cut, i % panels, bench.panel, [&](auto panel, int64_t c) {
        forward(o, state, last, keep_error, panel, c);
      });
    };
    share_out<T>(s.B * s.H * panels, cut.numbers(), s.F, normalise ? 2 * s.T : 0, cost, work);
  });
  return {y, last, error};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> delta_rule_backward(
    const Tensor& gy_in, const Tensor& glast_in, const Tensor& q_in, const Tensor& k_in,
    const Tensor& beta, const Tensor& state_in, const Tensor& error_in, bool normalise) {
  const Sizes s = check(q_in, k_in, state_in);
  check_like(gy_in, q_in, {s.B, s.T, s.H, s.V}, "output gradient");
  check_state(state_in, q_in, s, "state");
  check_like(glast_in, q_in, state_in.sizes(), "state gradient", state_in.scalar_type());
  check_like(error_in, q_in, gy_in.sizes(), "errors of the forward pass", computed_type(q_in));
  const Tensor gy = with_contiguous_width(gy_in), q = with_contiguous_width(q_in);
  const Tensor k = with_contiguous_width(k_in), error = with_contiguous_width(error_in);
  const Tensor glast = glast_in.contiguous(), state = state_in.contiguous();
  const auto fresh = [&](int64_t width) {
    return in_large_pages(at::empty({s.B, s.T, s.H, width}, q.options()));
  };
  const Tensor dq = fresh(s.F), dk = fresh(s.F), dv = fresh(s.V);
  const Tensor dstate = at::empty(state.sizes(), state.options());
  const Tensor dbeta = at::empty(beta.sizes(), beta.options());
  for_type(q, [&](auto type) {
    using T = decltype(type);
    const Heads<T> Gy(gy), Q(q), K(k), Beta = of_one<T>(beta), E(error);
    const Heads<T> Dq(dq), Dk(dk), Dv(dv), Dbeta = of_one<T>(dbeta);
    const Cut<T> narrow(s.F, s.V), wide(s.V, s.F);
    const int64_t panel = std::max(narrow.numbers(), wide.numbers());
    const int64_t by_f = numbers_of_kept_rows<T>(s.T, s.F), by_v = numbers_of_kept_rows<T>(s.T, s.V);
    // with its sums and dbeta; and room for two rows
    const int64_t own = 3 * by_v + (normalise ? 4 : 3) * by_f + 3 * s.T + 2 * s.F;
    const auto work = [&](int64_t head, const Bench<T>& bench) {
      const int64_t b = head / s.H, h = head % s.H;
      const Lane<T> dq_ = Dq(b, h), dk_ = Dk(b, h), dv_ = Dv(b, h), dbeta_ = Dbeta(b, h);
      T* room = bench.own;
      const auto by = [&](int64_t width) { return kept_rows(room, s.T, width); };
      Between<T> z{by(s.F), by(s.F), by(s.V), by(s.V), by(s.V), by(s.F), dq_, dk_};
      if (normalise) z.dq = z.dk = by(s.F);
      T *sums = room, *strengths = room + 2 * s.T, *two_rows = room + 3 * s.T;
      z.dbeta = {reinterpret_cast<char*>(strengths), sizeof(T), sizeof(T)};
      Head<T> o{s, head, bench.zeros, normalise ? sums : nullptr, normalise ? sums + s.T : nullptr};
      o.q = Q(b, h), o.k = K(b, h), o.beta = Beta(b, h), o.error = E(b, h), o.gy = Gy(b, h);
      const auto each_panel = [&](const Cut<T>& cut, const auto& part) {
        for (int64_t i = 0; i < cut.panels(); ++i) with_panel(cut, i, bench.panel, part);
      };
      each_panel(narrow, [&](auto p, int64_t c) { backward_values(o, z, glast, dstate, dv_, p, c); });
      for (int64_t t = 0; t < s.T; ++t) dbeta_.put(t, 0, 1, strengths + t);
      each_panel(wide, [&](auto p, int64_t c) { backward_queries(o, z, state, p, c); });
      if (normalise) backward_of_normalise(z.dq, z.q, o.inverse_q, s.T, s.F, two_rows, dq_);
      each_panel(wide, [&](auto p, int64_t c) { backward_keys(o, z, glast, p, c); });
      if (normalise) backward_of_normalise(z.dk, z.k, o.inverse_k, s.T, s.F, two_rows, dk_);
    };
    share_out<T>(s.B * s.H, panel, std::max(s.F, s.V), own, s.T * 18 * s.F * s.V, work);
  });
  return {dq, dk, dv, dbeta, dstate};
}

TORCH_LIBRARY_IMPL(workbench, CPU, m) {
  m.impl("delta_rule_forward", delta_rule_forward);
  m.impl("delta_rule_backward", delta_rule_backward);
}

}  // namespace
}  // namespace workbench
