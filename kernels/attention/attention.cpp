// Attention by content and distance on a CPU; equations in README.md.
//
// Queries go through tiles of keys; a tile's scores live in the fastest caches only. What a head
// does follows its own span. Letters: i a query, j a key of the tile, d their distance; x a column
// of the codes, which are stored by falling distance: x = top - d, so that x - j is the same for
// all keys of a query.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "tile.h"

namespace workbench {
namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;

constexpr int64_t kKeys = 128;    // of a tile
constexpr int64_t kQueries = 64;  // of a tile, backward
constexpr int64_t kChunk = 128;   // queries that one thread takes, forward
constexpr int64_t kEdge = 2 * kGroup + 64;  // columns of codes beyond the distances in use

// One head's rows over time. The width is contiguous; batch, time and heads may have any stride.
template <class T>
struct Rows {
  T* base;
  int64_t stride;
  T* operator[](int64_t t) const { return base + t * stride; }
};

template <class T>
class Sequences {
 public:
  explicit Sequences(const Tensor& x)
      : base_(pointer(x)), batch_(x.stride(0)), time_(x.stride(1)), head_(x.stride(2)) {}
  Rows<T> operator()(int64_t b, int64_t h) const { return {base_ + b * batch_ + h * head_, time_}; }

 private:
  static T* pointer(const Tensor& x) {
    if constexpr (std::is_const_v<T>) return x.const_data_ptr<std::remove_const_t<T>>();
    else return x.mutable_data_ptr<T>();
  }
  T* base_;
  int64_t batch_, time_, head_;
};

struct Call {
  const Tensor &q, &k, &v;
  const Maybe &p, &r, &bias, &span, &pk, &pv, &pbias, &seed;
  int64_t nearest, farthest, ramp;
  double p_drop;
  bool banded;
  int64_t B, T, S, H, K, V, N, R;

  int64_t past() const { return S - T; }
};

template <class U, int n>
struct Words {
  typedef U type __attribute__((vector_size(4 * n)));
};

// Where dropout takes its numbers from; the same function as `kept` in dropout.py.
struct Dice {
  typedef uint32_t U;
  U low, high, threshold;
  static U mix(U x) {
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
  }
  // 1 / (1 - p) where a weight stays, 0 where it goes, for the columns from c on
  template <class T>
  static typename Lanes<T>::V factors(U first, U second, U threshold, U c, T scale) {
    constexpr int n = Lanes<T>::n;
    typename Words<U, n>::type x;
    for (int l = 0; l < n; ++l) x[l] = U(l);
    x = (x + c) * 0x9E3779B1u + first;
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = x ^ x >> 15;
    x = (x + second) * 0x846CA68Bu;
    x = x ^ x >> 16;
    const typename Words<int32_t, n>::type stays = x >= threshold;  // -1 where true
    return __builtin_convertvector(stays, typename Lanes<T>::V) * -scale;
  }
};

// What every thread reads: the call in one type, and codes packed for products.
template <class T>
struct Work {
  using L = Lanes<T>;
  static constexpr int64_t unit = std::max<int64_t>(L::n, kGroup);  // columns are taken so many at a time

  const Call& c;
  Sequences<const T> q, k, v;
  int64_t Kc, Kp, Vp, Pc, Pp;  // widths with a column for biases, and whole vectors
  Tensor span;
  std::vector<int64_t> reach;  // of a head, over batch and queries; -1: it sees nothing
  std::vector<Tensor> columns, codes;  // of a head or of all: transposed and packed; and in rows
  std::vector<int64_t> top;
  Dice dice{};

  Work(const Call& call, bool backward)
      : c(call), q(c.q), k(c.k), v(c.v), Kc(c.K + (c.pbias ? 1 : 0)), Kp(rounded_up(Kc, L::n)),
        Vp(rounded_up(c.V, L::n)), Pc(c.K + (c.bias ? 1 : 0)), Pp(rounded_up(Pc, L::n)) {
    if (c.span) span = c.span->contiguous();
    reach.assign(c.H, -1);
    for (int64_t b = 0; b < (dynamic() ? c.B : 1); ++b)
      for (int64_t h = 0; h < c.H; ++h)
        for (int64_t t = 0; t < (dynamic() ? c.T : 1); ++t) reach[h] = std::max(reach[h], last(b, h, t));
    if (c.r) pack_codes(backward);
    if (c.p_drop > 0) {
      const uint64_t seed = uint64_t(*c.seed->const_data_ptr<int64_t>());
      dice = {Dice::U(seed), Dice::U(seed >> 32), threshold(c.p_drop)};
    }
  }

  static Dice::U threshold(double p) {
    return Dice::U(std::min(std::nearbyint(p * 4294967296.0), 4294967295.0));
  }
  bool dynamic() const { return span.defined() && span.dim() == 3; }
  // R + 1 + z: where the soft mask of a query has fallen to zero
  T end(int64_t b, int64_t h, int64_t t) const {
    return T(c.ramp + 1) + span.const_data_ptr<T>()[dynamic() ? (b * c.H + h) * c.T + t : h];
  }
  // the farthest distance that a query takes part in
  int64_t last(int64_t b, int64_t h, int64_t t) const {
    if (!span.defined() || !c.banded) return c.farthest;
    const T z = end(b, h, t);
    // a span that is not a number takes part in everything, so that all results say so
    return z < T(0) ? -1 : z < T(c.farthest) ? int64_t(z) : c.farthest;
  }

  void pack_codes(bool backward) {
    const Tensor r = c.r->contiguous();
    const int64_t heads = r.size(1), unused = c.H ? *std::max_element(reach.begin(), reach.end()) : -1;
    Tensor bias;
    if (c.bias) bias = c.bias->contiguous();
    columns.resize(heads), codes.resize(heads), top.resize(heads);
    at::parallel_for(0, heads, 1, [&](int64_t from, int64_t to) {
      for (int64_t h = from; h < to; ++h) {
        top[h] = (heads == 1 ? unused : reach[h]) + kEdge;
        const int64_t X = columns_of(h);
        Tensor in_rows = at::empty({X, Pp}, c.q.options());
        T* base = in_rows.mutable_data_ptr<T>();
        pack_rows(base, X, c.K, Pp, [&](int64_t x) -> const T* {
          const int64_t d = top[h] - x;
          return d < 0 ? nullptr : r.const_data_ptr<T>() + (std::min(d, c.R - 1) * heads + h) * c.K;
        });
        if (c.bias)
          for (int64_t x = 0; x <= top[h]; ++x)
            base[x * Pp + c.K] = bias.const_data_ptr<T>()[std::min(top[h] - x, c.R - 1) * c.H + h];
        columns[h] = at::empty({X * Pc}, c.q.options());
        pack_transposed(columns[h].mutable_data_ptr<T>(), X, Pc, [&](int64_t x) { return base + x * Pp; });
        if (backward) codes[h] = in_rows;
      }
    });
  }
  // a bias per head means codes per head, too
  int64_t table(int64_t h) const { return columns.size() == 1 ? 0 : h; }
  int64_t columns_of(int64_t table) const { return rounded_up(top[table] + kEdge, L::n); }
};

// The keys that are worked on: of the text (with distances), or persistent.
template <class T>
struct Keys {
  int64_t first, n, inner;  // the first key, how many, the width of their scores' product
  bool text;
  Right<T> transposed;  // inner rows, keys as columns
  Right<T> values;      // rows
};

// A range of the tile's columns.
struct Range {
  int64_t from, to;
  bool empty() const { return from >= to; }
};

// One head of one sequence: some of its queries, copied together, and a tile of its keys.
template <class T>
struct Head {
  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int64_t unit = Work<T>::unit;
  static constexpr int64_t kWide = kKeys + kQueries + 2 * unit;

  const Work<T>& w;
  const Call& c;
  int64_t b, h, t0, rows, padded;
  Buffer<T> Q, P, keys, values, key_rows, value_rows, S, D;
  int64_t reach = -1;

  Head(const Work<T>& work, int64_t b_, int64_t h_, int64_t t0_, int64_t rows_)
      : w(work), c(work.c), b(b_), h(h_), t0(t0_), rows(rows_), padded(rounded_up(rows_, kGroup)),
        Q(padded * w.Kp), P(c.p ? padded * w.Pp : 1), keys(kKeys * w.Kp), values(kKeys * w.Vp),
        key_rows(kKeys * w.Kp), value_rows(kKeys * w.Vp), S(kGroup * kKeys), D(kGroup * kWide) {
    const auto q = w.q(b, h);
    gather(Q, w.Kp, c.K, q, c.pbias.has_value());
    if (c.p) gather(P, w.Pp, c.K, Sequences<const T>(*c.p)(b, h), c.bias.has_value());
    for (int64_t i = 0; i < rows; ++i) reach = std::max(reach, w.last(b, h, t0 + i));
  }

  // this head's queries, zeros to fill up, and a one behind each where it meets biases
  void gather(T* to, int64_t width, int64_t inner, Rows<const T> from, bool one) const {
    pack_rows(to, padded, inner, width, [&](int64_t i) { return i < rows ? from[t0 + i] : nullptr; });
    if (one)
      for (int64_t i = 0; i < padded; ++i) to[i * width + inner] = T(1);
  }

  // Call work(keys) for every tile that these queries see.
  template <class Each>
  void for_each_tile(bool backward, const Each& work) {
    const int64_t own = c.past() + t0;
    const int64_t end = std::min(c.S, own + rows - c.nearest);
    const auto k = w.k(b, h), v = w.v(b, h);
    if (reach >= 0)
      for (int64_t j = std::max<int64_t>(0, own - reach); j < end; j += kKeys)
        work(tile(j, std::min(kKeys, end - j), c.K, true, k.base + j * k.stride, k.stride,
                  v.base + j * v.stride, v.stride, nullptr, backward));
    if (!c.pk) return;
    const T* bias = c.pbias ? c.pbias->template const_data_ptr<T>() + h * c.N : nullptr;
    for (int64_t j = 0; j < c.N; j += kKeys)
      work(tile(j, std::min(kKeys, c.N - j), w.Kc, false,
                c.pk->template const_data_ptr<T>() + (h * c.N + j) * c.K, c.K,
                c.pv->template const_data_ptr<T>() + (h * c.N + j) * c.V, c.V, bias ? bias + j : nullptr,
                backward));
  }

  Keys<T> tile(int64_t first, int64_t n, int64_t inner, bool text, const T* k, int64_t k_row, const T* v,
               int64_t v_row, const T* bias, bool backward) {
    const int64_t wide = rounded_up(n, unit);
    const bool whole_k = c.K == w.Kp, whole_v = c.V == w.Vp;
    // rows of whole vectors can be read where they are
    if (!whole_k) pack_rows<T>(key_rows, n, c.K, w.Kp, [&](int64_t j) { return k + j * k_row; });
    if (!whole_v) pack_rows<T>(value_rows, n, c.V, w.Vp, [&](int64_t j) { return v + j * v_row; });
    if (bias)
      for (int64_t j = 0; j < n; ++j) key_rows[j * w.Kp + c.K] = bias[j];
    in_rows = whole_k ? workbench::rows(k, k_row) : workbench::rows<T>(key_rows, w.Kp);
    pack_transposed<T>(keys, wide, inner, [&](int64_t j) { return j < n ? in_rows.base + j * in_rows.step : nullptr; });
    if (backward)
      pack_transposed<T>(values, wide, c.V, [&](int64_t j) { return j < n ? v + j * v_row : nullptr; });
    return {first, n, inner, text, packed<T>(keys, inner),
            whole_v ? workbench::rows(v, v_row) : workbench::rows<T>(value_rows, w.Vp)};
  }
  Right<T> in_rows{};  // the tile's keys

  // The columns that query i sees.
  Range visible(const Keys<T>& tile, int64_t i) const {
    if (i >= rows) return {0, 0};
    if (!tile.text) return {0, tile.n};
    const int64_t own = c.past() + t0 + i - tile.first;
    return {std::max<int64_t>(0, own - w.last(b, h, t0 + i)), std::min(tile.n, own - c.nearest + 1)};
  }
  // The columns that any query of a group sees.
  Range visible_to_group(const Keys<T>& tile, int64_t i0) const {
    Range all{kKeys, 0};
    for (int64_t i = i0; i < i0 + kGroup; ++i) {
      const Range one = visible(tile, i);
      if (!one.empty()) all = {std::min(all.from, one.from), std::max(all.to, one.to)};
    }
    return all;
  }
  static Range widened(Range r) { return {r.from / unit * unit, rounded_up(r.to, unit)}; }
  // the column of codes of query 0 and key 0 of a tile
  int64_t corner(const Keys<T>& tile) const {
    return w.top[w.table(h)] - (c.past() + t0 - tile.first);
  }

  // Scores of a group of queries, and the first column of codes that D begins with.
  int64_t scores(const Keys<T>& tile, int64_t i0, Range r) {
    product<false>(S + r.from, kKeys, Left<T>{Q + i0 * w.Kp, w.Kp, 1},
                   tile.transposed.at(0, r.from / L::n), tile.inner, (r.to - r.from) / L::n);
    if (!tile.text || !c.p) return 0;
    const int64_t x = corner(tile) - (i0 + kGroup - 1) + r.from, start = x / L::n * L::n;
    const int64_t vectors = rounded_up(corner(tile) - i0 + r.to - start, L::n) / L::n;
    const T* columns = w.columns[w.table(h)].template const_data_ptr<T>();
    product<false>((T*)D, kWide, Left<T>{P + i0 * w.Pp, w.Pp, 1},
                   packed(columns, w.Pc).at(0, start / L::n), w.Pc, vectors);
    return start;
  }

  // A query's row of a group's scores, once distances are added and what it must not see is -inf.
  // Calls work(column, scores) for every vector.
  template <class Each>
  __attribute__((always_inline)) inline void for_each_score(const Keys<T>& tile, int64_t i, int64_t i0, Range r, int64_t start,
                      const Each& work) const {
    const Range sees = visible(tile, i);
    const T* s = S + (i - i0) * kKeys;
    const T* d = tile.text && c.p ? D + (i - i0) * kWide + (corner(tile) - i - start) : nullptr;
    for (int64_t j = r.from; j < r.to; j += L::n) {
      V x = L::load(s + j);
      if (d) x += L::load(d + j);
      if (j < sees.from || j + L::n > sees.to) {
        const auto column = L::index() + typename L::Int(j);
        const auto hidden = (column < typename L::Int(sees.from)) | (column >= typename L::Int(sees.to));
        x = hidden ? L::all(-std::numeric_limits<T>::infinity()) : x;
      }
      work(j, x);
    }
  }

  // The soft mask of query i: what it gives for a vector of columns.
  struct Mask {
    T end, ramp, own;
    int64_t ramped;  // columns from here on weigh 1
    bool on;
    // (R + 1 + z - d) / R, not yet clamped
    V slope(int64_t j) const {
      const V d = own - L::number(L::index() + typename L::Int(j));
      return (end - d) / ramp;
    }
    bool soft(int64_t j) const { return on && j < ramped; }
    // in this order: both hand on what is not a number if it comes second
    V clamped(V x) const { return L::min(L::all(T(1)), L::max(V{}, x)); }
  };
  Mask mask(const Keys<T>& tile, int64_t i) const {
    if (!w.span.defined() || !tile.text || i >= rows) return {0, 1, 0, 0, false};
    const T end = w.end(b, h, t0 + i);
    const int64_t own = c.past() + t0 + i - tile.first;
    // distances from z + 1 on, where the mask is 1 but has a slope
    const T full = end - T(c.ramp);
    const int64_t ramped = full > T(own) ? 0 : full >= T(0) ? own - int64_t(full) + 1 : kKeys;
    return {end, T(c.ramp), T(own), ramped, true};
  }

  // Dropout's factors for query i.
  struct Drop {
    Dice::U first, second, threshold, column;
    T scale;
    V operator()(int64_t j) const { return Dice::factors<T>(first, second, threshold, column + Dice::U(j), scale); }
  };
  Drop drop(const Keys<T>& tile, int64_t i) const {
    const Dice::U row = Dice::U((b * c.H + h) * c.T + t0 + i);
    return {Dice::mix(row ^ w.dice.low), Dice::mix(row + w.dice.high + 0x9E3779B9u), w.dice.threshold,
            Dice::U(tile.text ? tile.first : c.S + tile.first), T(1 / (1 - c.p_drop))};
  }
};

// --- forward -------------------------------------------------------------------------------------

template <class T>
struct Forward : Head<T> {
  using Base = Head<T>;
  using typename Base::L;
  using typename Base::V;
  using Base::c, Base::w, Base::S, Base::rows, Base::padded, Base::b, Base::h, Base::t0;

  Buffer<T> Y, most, sum, mass;

  Forward(const Work<T>& work, int64_t b_, int64_t h_, int64_t first, int64_t n)
      : Base(work, b_, h_, first, n), Y(padded * w.Vp), most(padded), sum(padded), mass(padded) {
    std::fill_n((T*)Y, padded * w.Vp, T(0));
    std::fill_n((T*)most, padded, -std::numeric_limits<T>::infinity());
    std::fill_n((T*)sum, padded, T(0));
    std::fill_n((T*)mass, padded, T(0));
  }

  void run(T* y, T* log_norm) {
    this->for_each_tile(false, [&](const Keys<T>& tile) {
      for (int64_t i0 = 0; i0 < padded; i0 += kGroup) {
        const Range sees = this->visible_to_group(tile, i0), r = Base::widened(sees);
        if (sees.empty()) continue;
        const int64_t start = this->scores(tile, i0, r);
        for (int64_t i = i0; i < i0 + kGroup; ++i) weigh(tile, i, i0, r, start);
        product<true>(Y + i0 * w.Vp, w.Vp, Left<T>{S + sees.from, kKeys, 1}, tile.values.at(sees.from, 0),
                      sees.to - sees.from, w.Vp / L::n);
      }
    });
    const T extra = c.span ? T(1e-8) : T(0);
    for (int64_t i = 0; i < rows; ++i) {
      const T norm = (c.span ? mass[i] : sum[i]) + extra * sum[i];
      // a query that sees nothing: zeros, and no weight for anything in the backward pass
      const bool blind = norm <= 0;
      const T scale = blind ? T(0) : 1 / norm;
      T* to = y + ((b * c.T + t0 + i) * c.H + h) * c.V;
      for (int64_t x = 0; x < c.V; ++x) to[x] = Y[i * w.Vp + x] * scale;
      log_norm[(b * c.H + h) * c.T + t0 + i] =
          blind ? std::numeric_limits<T>::infinity() : most[i] + std::log(norm);
    }
  }

  // Scores to weights, relative to the largest score so far.
  void weigh(const Keys<T>& tile, int64_t i, int64_t i0, Range r, int64_t start) {
    T* s = S + (i - i0) * kKeys;
    V high = L::all(-std::numeric_limits<T>::infinity());
    typename L::I wrong{};  // where a score is not a number, which no maximum would show
    this->for_each_score(tile, i, i0, r, start, [&](int64_t j, V x) {
      L::store(s + j, x);
      high = L::max(high, x);
      wrong |= x != x;
    });
    if (any(wrong)) sum[i] = mass[i] = std::numeric_limits<T>::quiet_NaN();
    const T highest = L::largest(high);
    if (highest > most[i]) rescale(i, highest);
    if (most[i] == -std::numeric_limits<T>::infinity()) {
      std::fill(s + r.from, s + r.to, T(0));
      return;
    }
    const auto mask = this->mask(tile, i);
    V total = V{}, left = V{};
    const T base = most[i];
    for (int64_t j = r.from; j < r.to; j += L::n) {
      V e = exp(L::load(s + j) - base);
      total += e;
      if (mask.soft(j)) {
        e *= mask.clamped(mask.slope(j));
      }
      left += e;
      L::store(s + j, e);
    }
    sum[i] += L::sum(total);
    mass[i] += L::sum(left);
    if (c.p_drop > 0) {
      const auto drop = this->drop(tile, i);
      for (int64_t j = r.from; j < r.to; j += L::n) L::store(s + j, L::load(s + j) * drop(j));
    }
  }

  static bool any(typename L::I x) {
    typename L::Int all = 0;
    for (int64_t l = 0; l < L::n; ++l) all |= x[l];
    return all != 0;
  }

  void rescale(int64_t i, T highest) {
    const T scale = std::exp(most[i] - highest);
    most[i] = highest;
    sum[i] *= scale;
    mass[i] *= scale;
    T* y = Y + i * w.Vp;
    for (int64_t x = 0; x < w.Vp; x += L::n) L::store(y + x, L::load(y + x) * scale);
  }
};

// --- backward ------------------------------------------------------------------------------------

// Gradients of what a head shares with others, of each head and sequence apart: they are summed in
// a fixed order afterwards, so that threads change no bit.
template <class T>
struct Shares {
  std::vector<Tensor> codes;  // of a head and sequence: columns of codes in rows
  Tensor span, pk, pv;
};

template <class T>
struct Backward : Head<T> {
  using Base = Head<T>;
  using typename Base::L;
  using typename Base::V;
  using Base::c, Base::w, Base::S, Base::rows, Base::padded, Base::b, Base::h, Base::t0;
  static constexpr int64_t kRow = kKeys + kQueries + Base::unit;

  Buffer<T> G, dQ, dP, dA, A, dS, E, dK, dV, delta, norm;
  Buffer<double> dspan;  // sums of many numbers of both signs
  T* dcodes = nullptr;
  int64_t skipped = 0;  // columns of codes before those of dcodes

  Backward(const Work<T>& work, int64_t b_, int64_t h_)
      : Base(work, b_, h_, 0, work.c.T), G(padded * w.Vp), dQ(padded * w.Kp), dP(c.p ? padded * w.Pp : 1),
        dA(kGroup * kKeys), A(kQueries * kKeys), dS(kQueries * kKeys), E(c.p ? kQueries * kRow : 1),
        dK(kKeys * w.Kp), dV(kKeys * w.Vp), delta(padded), norm(padded), dspan(padded) {}

  void run(const Tensor& gy, const Tensor& y, const Tensor& log_norm, std::vector<Tensor>& grads,
           Shares<T>& shares) {
    this->gather(G, w.Vp, c.V, Sequences<const T>(gy)(b, h), false);
    const auto read = Sequences<const T>(y)(b, h);
    for (int64_t i = 0; i < padded; ++i) {
      double dot = 0;
      if (i < rows)
        for (int64_t x = 0; x < c.V; ++x) dot += double(G[i * w.Vp + x]) * read[i][x];
      delta[i] = T(dot);
      norm[i] = i < rows ? log_norm.const_data_ptr<T>()[(b * c.H + h) * c.T + i]
                         : std::numeric_limits<T>::infinity();
      dspan[i] = 0;
    }
    std::fill_n((T*)dQ, padded * w.Kp, T(0));
    if (c.p) std::fill_n((T*)dP, padded * w.Pp, T(0));
    const int64_t head = b * c.H + h;
    if (c.p) {
      const Tensor& mine = shares.codes[head];
      dcodes = mine.mutable_data_ptr<T>();
      skipped = w.columns_of(w.table(h)) - mine.size(0);
    }
    const auto dk = Sequences<T>(grads[1])(b, h), dv = Sequences<T>(grads[2])(b, h);
    int64_t done = 0;  // keys whose gradients are written
    const auto nothing = [&](int64_t until) {
      for (; done < until; ++done) {
        std::fill_n(dk[done], c.K, T(0));
        std::fill_n(dv[done], c.V, T(0));
      }
    };
    this->for_each_tile(true, [&](const Keys<T>& tile) {
      std::fill_n((T*)dK, kKeys * w.Kp, T(0));
      std::fill_n((T*)dV, kKeys * w.Vp, T(0));
      for (int64_t i = first_row(tile); i < padded; i += kQueries) block(tile, i);
      if (tile.text) {
        nothing(tile.first);
        done = tile.first + tile.n;
        for (int64_t j = 0; j < tile.n; ++j) {
          std::memcpy(dk[tile.first + j], dK + j * w.Kp, c.K * sizeof(T));
          std::memcpy(dv[tile.first + j], dV + j * w.Vp, c.V * sizeof(T));
        }
      } else {
        T* pk = shares.pk.template mutable_data_ptr<T>() + (head * c.N + tile.first) * w.Kc;
        T* pv = shares.pv.template mutable_data_ptr<T>() + (head * c.N + tile.first) * c.V;
        for (int64_t j = 0; j < tile.n; ++j) {
          std::memcpy(pk + j * w.Kc, dK + j * w.Kp, w.Kc * sizeof(T));
          std::memcpy(pv + j * c.V, dV + j * w.Vp, c.V * sizeof(T));
        }
      }
    });
    nothing(c.S);
    finish(grads, shares);
  }

  void finish(std::vector<Tensor>& grads, Shares<T>& shares) {
    const auto dq = Sequences<T>(grads[0])(b, h);
    for (int64_t i = 0; i < rows; ++i) std::memcpy(dq[i], dQ + i * w.Kp, c.K * sizeof(T));
    if (c.p) {
      const auto dp = Sequences<T>(grads[3])(b, h);
      for (int64_t i = 0; i < rows; ++i) std::memcpy(dp[i], dP + i * w.Pp, c.K * sizeof(T));
    }
    if (!c.span) return;
    T* to = shares.span.template mutable_data_ptr<T>() + (b * c.H + h) * (w.dynamic() ? c.T : 1);
    double total = 0;
    for (int64_t i = 0; i < rows; ++i) {
      if (w.dynamic()) to[i] = T(dspan[i] / double(c.ramp));
      else total += dspan[i];
    }
    if (!w.dynamic()) to[0] = T(total / double(c.ramp));
  }

  // the first query, in whole groups, that sees a key of the tile
  int64_t first_row(const Keys<T>& tile) const {
    if (!tile.text) return 0;
    return std::max<int64_t>(0, tile.first + c.nearest - c.past()) / kGroup * kGroup;
  }

  // Gradients of a block of queries and a tile of keys.
  void block(const Keys<T>& tile, int64_t first) {
    const int64_t groups = std::min(kQueries, padded - first) / kGroup;
    const bool positions = tile.text && c.p;
    // column 0 of E is this column of the codes
    const int64_t corner = positions ? this->corner(tile) - first - (kQueries - 1) : 0;
    Range columns[kQueries / kGroup], codes[kQueries / kGroup], every{kKeys, 0}, every_code{kRow, 0};
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t i0 = first + g * kGroup;
      const Range sees = this->visible_to_group(tile, i0), r = Base::widened(sees);
      columns[g] = codes[g] = {0, 0};
      if (sees.empty()) continue;
      columns[g] = r;
      every = {std::min(every.from, r.from), std::max(every.to, r.to)};
      const int64_t start = this->scores(tile, i0, r);
      product<false>(dA + r.from, kKeys, Left<T>{G + i0 * w.Vp, w.Vp, 1},
                     packed<T>(this->values, c.V).at(0, r.from / L::n), c.V, (r.to - r.from) / L::n);
      for (int64_t i = i0; i < i0 + kGroup; ++i)
        differentiate(tile, i, i0, r, start, A + (i - first) * kKeys, dS + (i - first) * kKeys);
      T* const ds = dS + g * kGroup * kKeys;
      product<true>(dQ + i0 * w.Kp, w.Kp, Left<T>{ds + sees.from, kKeys, 1},
                    this->in_rows.at(sees.from, 0), sees.to - sees.from, w.Kp / L::n);
      if (!positions) continue;
      const int64_t far = kQueries - (g + 1) * kGroup;
      codes[g] = {far + r.from, far + kGroup + r.to};
      every_code = {std::min(every_code.from, codes[g].from), std::max(every_code.to, codes[g].to)};
      T* const e = E + g * kGroup * kRow;
      for (int64_t i = 0; i < kGroup; ++i) {
        T* row = e + i * kRow;
        const int64_t shift = far + kGroup - 1 - i;
        std::fill(row + codes[g].from, row + shift + r.from, T(0));
        std::memcpy(row + shift + r.from, ds + i * kKeys + r.from, (r.to - r.from) * sizeof(T));
        std::fill(row + shift + r.to, row + codes[g].to, T(0));
      }
      product<true>(dP + i0 * w.Pp, w.Pp, Left<T>{e + codes[g].from, kRow, 1},
                    workbench::rows<T>(w.codes[w.table(h)].template const_data_ptr<T>(), w.Pp)
                        .at(corner + codes[g].from, 0),
                    codes[g].to - codes[g].from, w.Pp / L::n);
    }
    const auto inside = [](const Range* all, int64_t j) {
      return [=](int64_t g) { return all[g].from <= j && j + kGroup <= all[g].to; };
    };
    for (int64_t j = every.from; j < every.to; j += kGroup) {
      product_of_groups(dK + j * w.Kp, w.Kp, Left<T>{dS + j, 1, kKeys},
                        workbench::rows<T>(this->Q + first * w.Kp, w.Kp), groups, w.Kp / L::n, inside(columns, j));
      product_of_groups(dV + j * w.Vp, w.Vp, Left<T>{A + j, 1, kKeys},
                        workbench::rows<T>(G + first * w.Vp, w.Vp), groups, w.Vp / L::n, inside(columns, j));
    }
    for (int64_t x = every_code.from; x < every_code.to; x += kGroup)
      product_of_groups(dcodes + (corner + x - skipped) * w.Pp, w.Pp, Left<T>{E + x, 1, kRow},
                        workbench::rows<T>(this->P + first * w.Pp, w.Pp), groups, w.Pp / L::n, inside(codes, x));
  }

  // Weights again, and the gradients of scores and span from those of the weights.
  void differentiate(const Keys<T>& tile, int64_t i, int64_t i0, Range r, int64_t start, T* a, T* ds) {
    const auto mask = this->mask(tile, i);
    const T base = norm[i], dot = delta[i], lost = c.span ? T(1e-8) * dot : T(0);
    const T* da = dA + (i - i0) * kKeys;
    const auto drop = this->drop(tile, i);
    V slopes = V{};
    this->for_each_score(tile, i, i0, r, start, [&](int64_t j, V x) {
      const V e = exp(x - base);
      V weight = e, change = L::load(da + j);
      V kept = L::all(T(1));
      if (c.p_drop > 0) {
        kept = drop(j);
        change *= kept;
      }
      change -= dot;
      if (mask.soft(j)) {
        const V m = mask.slope(j);
        // clamp hands its gradient on at both ends
        slopes += ((m >= V{}) & (m <= L::all(T(1)))) ? e * change : V{};
        weight *= mask.clamped(m);
      }
      L::store(ds + j, weight * change - e * lost);
      L::store(a + j, weight * kept);
    });
    if (mask.on) dspan[i] += L::sum(slopes);
  }
};

// --- the op --------------------------------------------------------------------------------------

// Run work(item) for every item on all threads, costly ones first; whoever is free takes the next.
template <class Cost, class Each>
void share_out(int64_t items, const Cost& cost, const Each& work) {
  std::vector<int64_t> order(items);
  double total = 0;
  for (int64_t i = 0; i < items; ++i) order[i] = i, total += cost(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
  // below some 50 microseconds of work a second thread costs more than it brings
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), 1 + int64_t(total / 2e6));
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min(threads, items), 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next++) < items;) work(order[i]);
  });
}

template <class T>
double cost(const Work<T>& w, int64_t h, int64_t queries) {
  const Call& c = w.c;
  return double(queries) * (std::min<int64_t>(w.reach[h] + 1, c.S) + c.N + 32) * (2 * c.K + c.V);
}

Tensor contiguous_width(const Tensor& x) {
  return x.size(-1) == 1 || x.stride(-1) == 1 ? x : x.contiguous();
}
Tensor plain(const Tensor& x) { return x.scalar_type() == at::kBFloat16 ? x.to(at::kFloat) : x; }
Maybe plain(const Maybe& x) { return x ? Maybe(plain(*x)) : x; }
Maybe flat(const Maybe& x) { return x ? Maybe(plain(*x).contiguous()) : x; }

#define WORKBENCH_ATTENTION_ARGUMENTS                                                                 \
  const Tensor &q_in, const Tensor &k_in, const Tensor &v_in, const Maybe &p_in, const Maybe &r_in,    \
      const Maybe &bias_in, const Maybe &span_in, const Maybe &pk_in, const Maybe &pv_in,              \
      const Maybe &pbias_in, const Maybe &seed, int64_t nearest, int64_t farthest, int64_t ramp,       \
      double p_drop, bool banded

// Run a function template for the element type of x.
template <class Each>
void for_type(const Tensor& x, const Each& work) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, "got numbers of type ",
              x.scalar_type(), ", expected float, double or bfloat16");
  if (x.scalar_type() == at::kFloat) work(float{});
  else work(double{});
}

// The tensors of a call, in a type that is computed in and with contiguous widths.
struct Inputs {
  Tensor q, k, v;
  Maybe p, r, bias, span, pk, pv, pbias;
  const Maybe& seed;
  int64_t nearest, farthest, ramp;
  double p_drop;
  bool banded;

  Call call() const {
    const int64_t B = q.size(0), T = q.size(1), S = k.size(1), H = q.size(2), K = q.size(3), V = v.size(3);
    TORCH_CHECK(k.sizes() == at::IntArrayRef({B, S, H, K}) && v.sizes() == at::IntArrayRef({B, S, H, V}) &&
                    T >= 1 && T <= S,
                "got queries ", q.sizes(), ", keys ", k.sizes(), " and values ", v.sizes(),
                ", which do not belong together");
    TORCH_CHECK(!p == !r && (!p || p->sizes() == q.sizes()), "got position queries or codes alone");
    TORCH_CHECK(!r || (r->dim() == 3 && (r->size(1) == H || (r->size(1) == 1 && !bias) || H == 1)),
                "got codes of another number of heads");
    TORCH_CHECK(p_drop == 0 || seed, "got dropout without a seed");
    for (const Maybe* x : {&p, &r, &bias, &span, &pk, &pv, &pbias})
      TORCH_CHECK(!*x || (*x)->scalar_type() == q.scalar_type(), "got numbers of several types");
    const int64_t N = pk ? pk->size(1) : 0, R = r ? r->size(0) : 0;
    return {q, k, v, p, r, bias, span, pk, pv, pbias, seed, nearest, std::min(farthest, S - 1), ramp,
            p_drop, banded, B, T, S, H, K, V, N, R};
  }
};

Inputs inputs(WORKBENCH_ATTENTION_ARGUMENTS) {
  const auto narrow = [](const Tensor& x) { return contiguous_width(plain(x)); };
  Maybe r = plain(r_in);
  // biases make the codes of heads differ
  if (r && bias_in) r = r->expand({r->size(0), q_in.size(2), r->size(2)});
  return {narrow(q_in), narrow(k_in), narrow(v_in), p_in ? Maybe(narrow(*p_in)) : p_in, r,
          plain(bias_in), flat(span_in), flat(pk_in), flat(pv_in), flat(pbias_in), seed,
          nearest, farthest, ramp, p_drop, banded};
}

#define WORKBENCH_ATTENTION_PASS \
  q_in, k_in, v_in, p_in, r_in, bias_in, span_in, pk_in, pv_in, pbias_in, seed, nearest, farthest, ramp, p_drop, banded

std::tuple<Tensor, Tensor> attention_forward(WORKBENCH_ATTENTION_ARGUMENTS) {
  const Inputs in = inputs(WORKBENCH_ATTENTION_PASS);
  const Call c = in.call();
  Tensor y = at::empty({c.B, c.T, c.H, c.V}, c.v.options());
  Tensor log_norm = at::empty({c.B, c.H, c.T}, c.q.options());
  for_type(c.q, [&](auto type) {
    using T = decltype(type);
    const Work<T> work(c, false);
    const int64_t chunks = (c.T + kChunk - 1) / kChunk;
    share_out(
        c.B * c.H * chunks, [&](int64_t i) { return cost(work, i / chunks % c.H, std::min(kChunk, c.T)); },
        [&](int64_t i) {
          const int64_t first = i % chunks * kChunk, head = i / chunks;
          Forward<T>(work, head / c.H, head % c.H, first, std::min(kChunk, c.T - first))
              .run(y.mutable_data_ptr<T>(), log_norm.mutable_data_ptr<T>());
        });
  });
  return {y.to(v_in.scalar_type()), log_norm};
}

// out[row] = sum over parts, in their order
template <class T>
void sum_parts(Tensor& out, const Tensor& parts) {
  const int64_t n = out.numel(), count = parts.numel() / std::max<int64_t>(n, 1);
  at::parallel_for(0, n, 1 << 14, [&](int64_t from, int64_t to) {
    T* y = out.mutable_data_ptr<T>();
    std::fill(y + from, y + to, T(0));
    for (int64_t part = 0; part < count; ++part) {
      const T* x = parts.const_data_ptr<T>() + part * n;
      for (int64_t i = from; i < to; ++i) y[i] += x[i];
    }
  });
}

// The gradients of codes and biases: rows by distance, those beyond the table in its last row.
template <class T>
void sum_codes(const Work<T>& w, const Shares<T>& shares, Tensor& dr, Tensor* dbias) {
  const Call& c = w.c;
  const int64_t heads = dr.size(1);
  at::parallel_for(0, c.R, 64, [&](int64_t from, int64_t to) {
    std::fill_n(dr.mutable_data_ptr<T>() + from * heads * c.K, (to - from) * heads * c.K, T(0));
    for (int64_t part = 0; part < c.B * c.H; ++part) {
      const Tensor& mine = shares.codes[part];
      const int64_t h = part % c.H, X = mine.size(0);
      // row x of the part holds distance far - x
      const int64_t far = w.top[w.table(h)] - (w.columns_of(w.table(h)) - X);
      const T* base = mine.const_data_ptr<T>();
      for (int64_t d = from; d <= (to == c.R ? far : std::min(far, to - 1)); ++d) {
        const int64_t row = std::min(d, c.R - 1);
        const T* x = base + (far - d) * w.Pp;
        T* y = dr.mutable_data_ptr<T>() + (row * heads + (heads == 1 ? 0 : h)) * c.K;
        for (int64_t i = 0; i < c.K; ++i) y[i] += x[i];
        if (dbias) dbias->mutable_data_ptr<T>()[row * c.H + h] += x[c.K];
      }
    }
  });
}

template <class T>
void differentiate(const Call& c, const Tensor& gy, const Tensor& y, const Tensor& log_norm,
                   std::vector<Tensor>& grads) {
  const Work<T> work(c, true);
  const auto like = c.q.options();
  Shares<T> shares;
  if (c.p)
    for (int64_t part = 0; part < c.B * c.H; ++part) {
      const int64_t h = part % c.H, table = work.table(h);
      // a short head among long ones has few columns
      const int64_t X = work.columns_of(table) - (work.top[table] - kEdge - work.reach[h]) / work.unit * work.unit;
      shares.codes.push_back(at::zeros({X, work.Pp}, like));
    }
  if (c.span) shares.span = work.dynamic() ? grads[6] : at::empty({c.B, c.H}, like);
  if (c.pk) {
    shares.pk = at::empty({c.B, c.H, c.N, work.Kc}, like);
    shares.pv = at::empty({c.B, c.H, c.N, c.V}, like);
  }
  share_out(
      c.B * c.H, [&](int64_t i) { return cost(work, i % c.H, c.T); },
      [&](int64_t i) { Backward<T>(work, i / c.H, i % c.H).run(gy, y, log_norm, grads, shares); });
  if (c.p) sum_codes(work, shares, grads[4], c.bias ? &grads[5] : nullptr);
  if (c.span && !work.dynamic()) sum_parts<T>(grads[6], shares.span);
  if (!c.pk) return;
  Tensor keys = at::empty({c.H, c.N, work.Kc}, like);
  sum_parts<T>(keys, shares.pk);
  sum_parts<T>(grads[8], shares.pv);
  grads[7].copy_(keys.narrow(2, 0, c.K));
  if (c.pbias) grads[9].copy_(keys.select(2, c.K));
}

std::vector<Tensor> attention_backward(const Tensor& gy_in, const Tensor& y_in, const Tensor& log_norm_in,
                                       WORKBENCH_ATTENTION_ARGUMENTS) {
  const Inputs in = inputs(WORKBENCH_ATTENTION_PASS);
  const Call c = in.call();
  const Tensor gy = contiguous_width(plain(gy_in)), y = contiguous_width(plain(y_in));
  const Tensor log_norm = log_norm_in.contiguous();
  TORCH_CHECK(gy.sizes() == y.sizes() && y.sizes() == at::IntArrayRef({c.B, c.T, c.H, c.V}), "got gradients of shape ",
              gy.sizes(), " of an output of shape ", y.sizes());
  std::vector<Tensor> grads;
  const auto add = [&](const Maybe& x) {
    grads.push_back(x ? at::empty(x->sizes(), c.q.options()) : at::empty({0}, c.q.options()));
  };
  for (const Tensor* x : {&q_in, &k_in, &v_in}) add(*x);
  for (const Maybe* x : {&p_in, &in.r, &bias_in, &span_in, &pk_in, &pv_in, &pbias_in}) add(*x);
  if (c.bias) grads[5].zero_();
  for_type(c.q, [&](auto type) { differentiate<decltype(type)>(c, gy, y, log_norm, grads); });
  if (r_in && grads[4].sizes() != r_in->sizes()) grads[4] = grads[4].sum(1, true);
  for (size_t i = 0; i < grads.size(); ++i)
    grads[i] = grads[i].to(i == 6 && span_in ? span_in->scalar_type() : q_in.scalar_type());
  return grads;
}

TORCH_LIBRARY_IMPL(workbench, CPU, m) {
  m.impl("attention_forward", attention_forward);
  m.impl("attention_backward", attention_backward);
}

}  // namespace
}  // namespace workbench
