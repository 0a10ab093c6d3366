// The delta rule on a CPU: W += k (beta (v - W^T k))^T, y = W^T q; equations in README.md.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "heads.h"
#include "pool.h"

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

// how many a panel takes for a block of some heads
int64_t passes(int64_t heads, const Walk& walk) { return heads * ((walk.n + C - 1) / C); }

// at[i][j] = a_i . b_j of a block's tokens, for j <= i, or for j < i
template <class T>
struct Products {
  T at[C][C];
  const T* operator[](int i) const { return at[i]; }
};
template <class T>
using AllProducts = std::array<Products<T>, kMostTokens / C>;

template <class T>
void multiply(const Rows<T>& a, const Rows<T>& b, const Walk& walk, bool of_itself, const T* zeros,
              AllProducts<T>& out) {
  // whole vectors, as far as every panel writes
  const int64_t n = (a.width + Vector<T>::lanes - 1) / Vector<T>::lanes * Vector<T>::lanes;
  for (int64_t i = 0; i < walk.n; i += C) {
    const Pair<T> a_ = rows_at<C>(a, walk, i, 0, zeros), b_ = rows_at<C>(b, walk, i, 0, zeros);
    for (int r = 0; r < C; ++r)
      for (int j = 0; j < r + of_itself; ++j) out[i / C].at[r][j] = dot(a_[r], b_[j], n);
  }
}

// Some tokens of a head, and what the parts of a call leave to each other: rows of a thread's own.
template <class T>
struct Block {
  Walk walk;
  const T* zeros;
  Ahead* ahead;
  T *beta, *dbeta;
  Rows<T> q, k, v, gy, error, y, w, dq, dk;
  AllProducts<T> first, second;

  bool inside(int64_t i) const { return i < walk.n; }
  T strength(int64_t i) const { return inside(i) ? beta[walk.token(i)] : T(0); }
  Pair<T> at(const Rows<T>& rows, int64_t i, int64_t c = 0) const {
    return rows_at<C>(rows, walk, i, c, zeros);
  }
  T* row(const Rows<T>& rows, int64_t i, int64_t c) const { return rows[walk.token(i)] + c; }
};

template <class T, int P>
WORKBENCH_INLINE inline void store(T* to, const Row<T, P>& row) {
  std::memcpy(to, &row, sizeof(row));
}

template <class T, class Panel>
void forward(const Block<T>& z, bool keep, Panel panel, int64_t c) {
  using R = typename Panel::R;
  Pair<T> k, before{z.zeros, z.zeros};
  std::array<R, C> x{R::zero(), R::zero()};
  std::array<R, 2 * C> found;
  for (int64_t t = 0; t < z.walk.n; t += C) {
    k = z.at(z.k, t);
    panel.write_then_read(before, x, side_by_side<T>(k, z.at(z.q, t)), found,
                          z.ahead->next(panel.rows));
    before = k;
    const Pair<T> v = z.at(z.v, t, c);
    const Products<T>&kk = z.first[t / C], &qk = z.second[t / C];
    for (int i = 0; i < C && z.inside(t + i); ++i) {
      R e = R::from(v[i]) - found[i];
      for (int j = 0; j < i; ++j) e = e.plus(-kk[i][j], x[j]);
      if (keep) store(z.row(z.error, t + i, c), e);
      x[i] = e * z.strength(t + i);
      R y = found[C + i];
      for (int j = 0; j <= i; ++j) y = y.plus(qk[i][j], x[j]);
      store(z.row(z.y, t + i, c), y);
    }
  }
  // a token beyond the block has a key of zeros, whatever it would write
  panel.write(k, x);
}

// Backwards over tokens: the gradient of W, and from it w = dv and dbeta.
template <class T, class Panel>
void backward_values(const Block<T>& z, Panel panel, int64_t c) {
  using R = typename Panel::R;
  Pair<T> q{z.zeros, z.zeros}, k = q;
  std::array<R, 2 * C> x;  // gy and -w of two tokens
  x.fill(R::zero());
  std::array<R, C> du;
  for (int64_t t = 0; t < z.walk.n; t += C) {
    const auto before = side_by_side<T>(q, k);
    q = z.at(z.q, t), k = z.at(z.k, t);
    panel.write_then_read(before, x, k, du, z.ahead->next(panel.rows));
    const Products<T>&kq = z.first[t / C], &kk = z.second[t / C];
    const Pair<T> gy = z.at(z.gy, t, c), error = z.at(z.error, t, c);
    for (int i = 0; i < C && z.inside(t + i); ++i) {
      x[i] = R::from(gy[i]);
      for (int j = 0; j <= i; ++j) du[i] = du[i].plus(kq[i][j], x[j]);
      for (int j = 0; j < i; ++j) du[i] = du[i].plus(kk[i][j], x[C + j]);
      const R w = du[i] * z.strength(t + i);
      x[C + i] = R::zero() - w;
      store(z.row(z.w, t + i, c), w);
      // a sum over columns, of which each panel has some
      z.dbeta[z.walk.token(t + i)] += du[i].dot(R::from(error[i]));
    }
  }
  panel.write(side_by_side<T>(q, k), x);
}

// The transposed gradient backwards: dk but for what the matrix itself has to give back.
template <class T, class Panel>
void backward_keys(const Block<T>& z, Panel panel, int64_t c) {
  using R = typename Panel::R;
  Pair<T> gy{z.zeros, z.zeros}, w = gy;
  std::array<R, 2 * C> x;  // q and -k of two tokens
  x.fill(R::zero());
  std::array<R, C> g;
  for (int64_t t = 0; t < z.walk.n; t += C) {
    const auto before = side_by_side<T>(gy, w);
    gy = z.at(z.gy, t), w = z.at(z.w, t);
    panel.write_then_read(before, x, z.at(z.error, t), g, z.ahead->next(panel.rows));
    const Products<T>&eg = z.first[t / C], &ew = z.second[t / C];
    const Pair<T> q = z.at(z.q, t, c), k = z.at(z.k, t, c);
    for (int i = 0; i < C && z.inside(t + i); ++i) {
      x[i] = R::from(q[i]);
      x[C + i] = R::zero() - R::from(k[i]);
      for (int j = 0; j <= i; ++j) g[i] = g[i].plus(eg[i][j], x[j]);
      for (int j = 0; j < i; ++j) g[i] = g[i].plus(ew[i][j], x[C + j]);
      store(z.row(z.dk, t + i, c), g[i] * z.strength(t + i));
    }
  }
  panel.write(side_by_side<T>(gy, w), x);
}

// The transposed matrix forwards, every write being known: dq, and the rest of dk.
template <class T, class Panel>
void backward_queries(const Block<T>& z, Panel panel, int64_t c) {
  using R = typename Panel::R;
  Pair<T> error, before{z.zeros, z.zeros};
  std::array<R, C> x{R::zero(), R::zero()};
  std::array<R, 2 * C> found;
  for (int64_t t = 0; t < z.walk.n; t += C) {
    error = z.at(z.error, t);
    panel.write_then_read(before, x, side_by_side<T>(z.at(z.gy, t), z.at(z.w, t)), found,
                          z.ahead->next(panel.rows));
    before = error;
    const Products<T>&ge = z.first[t / C], &we = z.second[t / C];
    const Pair<T> k = z.at(z.k, t, c);
    for (int i = 0; i < C && z.inside(t + i); ++i) {
      x[i] = R::from(k[i]) * z.strength(t + i);
      R dq = found[i], rest = found[C + i];
      for (int j = 0; j <= i; ++j) dq = dq.plus(ge[i][j], x[j]);
      for (int j = 0; j < i; ++j) rest = rest.plus(we[i][j], x[j]);
      store(z.row(z.dq, t + i, c), dq);
      T* dk = z.row(z.dk, t + i, c);
      store(dk, R::from(dk) - rest);
    }
  }
  panel.write(error, x);
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
  const Tensor y = pooled({s.B, s.T, s.H, s.V}, v.scalar_type());
  const Tensor last = at::empty(state.sizes(), state.options());
  const Tensor error = keep_error ? pooled(y.sizes(), computed_type(v))
                                  : at::empty({0}, v.options().dtype(computed_type(v)));
  for_type(q, [&](auto type) {
    using T = decltype(type);
    const Heads<T> Q(q), K(k), V(v), Beta = of_one<T>(beta), Y(y), E(keep_error ? error : y);
    const Cut<T> cut(s.F, s.V);
    const Groups groups(s, cut.all() * sizeof(T), (2 * s.F + 2 * s.V) * sizeof(T));
    const int64_t by_f = Rows<T>::numbers(s.F), by_v = Rows<T>::numbers(s.V);
    const auto work = [&](int64_t i, T* room) {
      const auto group = groups.group(i, s.H);
      const int64_t b = group.b, h0 = group.h0, heads = group.heads;
      Ahead ahead;
      Block<T> z;
      z.ahead = &ahead;
      T* panels = std::exchange(room, room + groups.heads * cut.all());
      z.zeros = zeros(room, std::max(by_f, by_v));
      z.beta = std::exchange(room, room + kMostTokens);
      z.q = Rows<T>::take(room, s.F, normalise), z.k = Rows<T>::take(room, s.F, normalise);
      z.v = Rows<T>::take(room, s.V), z.y = Rows<T>::take(room, s.V);
      z.error = Rows<T>::take(room, s.V);
      const auto each = [&](int64_t j, const auto& part) {
        cut.each(panels + j * cut.all(), part);
      };
      for (int64_t t = 0; t < s.T; t += groups.tokens) {
        z.walk = {std::min(groups.tokens, s.T - t)};
        ahead.start(heads, t + z.walk.n, std::min(s.T, t + z.walk.n + groups.tokens),
                    passes(heads, z.walk) * cut.panels());
        ahead.add(Q, b, h0, s.F), ahead.add(K, b, h0, s.F), ahead.add(V, b, h0, s.V);
        ahead.add(Y, b, h0, s.V, true);
        if (keep_error) ahead.add(E, b, h0, s.V, true);
        for (int64_t j = 0; j < heads; ++j) {
          const int64_t h = h0 + j, head = b * s.H + h;
          if (t == 0) each(j, [&](auto p, int64_t c) { load_state(p, state, matrix(s, head, c)); });
          z.q.get(Q(b, h), t, z.walk.n), z.k.get(K(b, h), t, z.walk.n);
          z.v.get(V(b, h), t, z.walk.n);
          get_numbers(Beta(b, h), t, z.walk.n, z.beta);
          multiply(z.k, z.k, z.walk, false, z.zeros, z.first);
          multiply(z.q, z.k, z.walk, true, z.zeros, z.second);
          each(j, [&](auto p, int64_t c) { forward(z, keep_error, p, c); });
          z.y.pass_on(Y(b, h), t, z.walk.n);
          if (keep_error) z.error.pass_on(E(b, h), t, z.walk.n);
          if (t + z.walk.n == s.T)
            each(j, [&](auto p, int64_t c) { store_state(p, last, matrix(s, head, c)); });
        }
      }
    };
    const int64_t rows = 2 * by_f + 3 * by_v + (normalise ? 3 : 1);
    const int64_t numbers = groups.heads * cut.all() + std::max(by_f, by_v) + kMostTokens * rows;
    share_out<T>(s.B * groups.per_sequence, numbers, s.T * 6 * groups.heads * cut.all(), work);
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
  const auto fresh = [&](int64_t width, at::ScalarType type) {
    return pooled({s.B, s.T, s.H, width}, type);
  };
  const at::ScalarType type_in = q.scalar_type(), computed = computed_type(q);
  const Tensor dq = fresh(s.F, type_in), dk = fresh(s.F, type_in), dv = fresh(s.V, type_in);
  // between the two ways through the segment nothing is rounded
  const Tensor half_dk = computed == type_in ? dk : fresh(s.F, computed);
  const Tensor w = computed == type_in ? dv : fresh(s.V, computed);
  const Tensor dstate = at::empty(state.sizes(), state.options());
  const Tensor dbeta = at::empty(beta.sizes(), beta.options());
  for_type(q, [&](auto type) {
    using T = decltype(type);
    const Heads<T> Gy(gy), Q(q), K(k), Beta = of_one<T>(beta), E(error);
    const Heads<T> Dq(dq), Dk(dk), Dv(dv), Dbeta = of_one<T>(dbeta), HalfDk(half_dk), W(w);
    const Cut<T> narrow(s.F, s.V), wide(s.V, s.F);
    const int64_t both = narrow.all() + wide.all();
    const Groups groups(s, both * sizeof(T), (3 * s.F + 3 * s.V) * sizeof(T));
    const int64_t by_f = Rows<T>::numbers(s.F), by_v = Rows<T>::numbers(s.V);
    const auto work = [&](int64_t i, T* room) {
      const auto group = groups.group(i, s.H);
      const int64_t b = group.b, h0 = group.h0, heads = group.heads;
      Ahead ahead;
      Block<T> z;
      z.ahead = &ahead;
      T* panels = std::exchange(room, room + groups.heads * both);
      z.zeros = zeros(room, std::max(by_f, by_v));
      z.beta = std::exchange(room, room + kMostTokens);
      z.dbeta = std::exchange(room, room + kMostTokens);
      z.q = Rows<T>::take(room, s.F, normalise), z.k = Rows<T>::take(room, s.F, normalise);
      z.gy = Rows<T>::take(room, s.V), z.error = Rows<T>::take(room, s.V);
      z.w = Rows<T>::take(room, s.V);
      z.dq = Rows<T>::take(room, s.F), z.dk = Rows<T>::take(room, s.F);
      const auto each = [&](int64_t j, const auto& part) { narrow.each(panels + j * both, part); };
      const auto each_wide = [&](int64_t j, const auto& part) {
        wide.each(panels + j * both + narrow.all(), part);
      };
      const auto get = [&](int64_t h, int64_t t) {
        z.k.get(K(b, h), t, z.walk.n), z.gy.get(Gy(b, h), t, z.walk.n);
        z.error.get(E(b, h), t, z.walk.n), get_numbers(Beta(b, h), t, z.walk.n, z.beta);
      };
      const int64_t blocks = (s.T + groups.tokens - 1) / groups.tokens;
      // the gradient of W, backwards: dv, dbeta and half of dk
      for (int64_t n = blocks; n-- > 0;) {
        const int64_t t = n * groups.tokens;
        z.walk = {std::min(groups.tokens, s.T - t), true};
        ahead.start(heads, std::max<int64_t>(0, t - groups.tokens), t,
                    passes(heads, z.walk) * (narrow.panels() + wide.panels()));
        ahead.add(Q, b, h0, s.F), ahead.add(K, b, h0, s.F), ahead.add(Gy, b, h0, s.V);
        ahead.add(E, b, h0, s.V), ahead.add(HalfDk, b, h0, s.F), ahead.add(W, b, h0, s.V);
        for (int64_t j = 0; j < heads; ++j) {
          const int64_t h = h0 + j, head = b * s.H + h;
          if (n == blocks - 1) {
            each(j, [&](auto p, int64_t c) { load_state(p, glast, matrix(s, head, c)); });
            each_wide(j, [&](auto p, int64_t c) { load_state(p, glast, transposed(s, head, c)); });
          }
          get(h, t), z.q.get(Q(b, h), t, z.walk.n);
          std::fill(z.dbeta, z.dbeta + z.walk.n, T(0));
          multiply(z.k, z.q, z.walk, true, z.zeros, z.first);
          multiply(z.k, z.k, z.walk, false, z.zeros, z.second);
          each(j, [&](auto p, int64_t c) { backward_values(z, p, c); });
          multiply(z.error, z.gy, z.walk, true, z.zeros, z.first);
          multiply(z.error, z.w, z.walk, false, z.zeros, z.second);
          each_wide(j, [&](auto p, int64_t c) { backward_keys(z, p, c); });
          z.w.put(W(b, h), t, z.walk.n), z.dk.put(HalfDk(b, h), t, z.walk.n);
          if (computed != type_in) z.w.put(Dv(b, h), t, z.walk.n);
          const Lane<T> out = Dbeta(b, h);
          for (int64_t m = 0; m < z.walk.n; ++m) out.put(t + m, 0, 1, z.dbeta + m);
          if (t == 0)
            each(j, [&](auto p, int64_t c) { store_state(p, dstate, matrix(s, head, c)); });
        }
      }
      // W itself, forwards: dq and the other half of dk
      for (int64_t t = 0; t < s.T; t += groups.tokens) {
        z.walk = {std::min(groups.tokens, s.T - t)};
        ahead.start(heads, t + z.walk.n, std::min(s.T, t + z.walk.n + groups.tokens),
                    passes(heads, z.walk) * wide.panels());
        ahead.add(K, b, h0, s.F), ahead.add(Gy, b, h0, s.V), ahead.add(E, b, h0, s.V);
        ahead.add(W, b, h0, s.V), ahead.add(HalfDk, b, h0, s.F), ahead.add(Dq, b, h0, s.F, true);
        if (normalise) ahead.add(Q, b, h0, s.F);
        for (int64_t j = 0; j < heads; ++j) {
          const int64_t h = h0 + j, head = b * s.H + h;
          if (t == 0)
            each_wide(j, [&](auto p, int64_t c) { load_state(p, state, transposed(s, head, c)); });
          get(h, t), z.w.get(W(b, h), t, z.walk.n), z.dk.get(HalfDk(b, h), t, z.walk.n);
          if (normalise) z.q.get(Q(b, h), t, z.walk.n);
          multiply(z.gy, z.error, z.walk, true, z.zeros, z.first);
          multiply(z.w, z.error, z.walk, false, z.zeros, z.second);
          each_wide(j, [&](auto p, int64_t c) { backward_queries(z, p, c); });
          z.dq.undo_normalise(z.q, z.walk.n), z.dk.undo_normalise(z.k, z.walk.n);
          z.dq.pass_on(Dq(b, h), t, z.walk.n), z.dk.put(Dk(b, h), t, z.walk.n);
        }
      }
    };
    const int64_t rows = 4 * by_f + 3 * by_v + (normalise ? 4 : 2);
    const int64_t numbers = groups.heads * both + std::max(by_f, by_v) + kMostTokens * rows;
    share_out<T>(s.B * groups.per_sequence, numbers, s.T * 18 * groups.heads * s.F * s.V, work);
  });
  return {dq, dk, dv, dbeta, dstate};
}

TORCH_LIBRARY_IMPL(workbench, CPU, m) {
  m.impl("delta_rule_forward", delta_rule_forward);
  m.impl("delta_rule_backward", delta_rule_backward);
}

}  // namespace
}  // namespace workbench
