// Tensors of layout (B, T, H, width) as rows of numbers, and work shared out over their heads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <bit>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "panel.h"

namespace workbench {

// How many tokens ahead of its work a kernel asks for rows: heads lie far apart in memory, so no
// processor guesses what comes next.
constexpr int64_t kAhead = 4;

// --- numbers of the type computed with, T, or bfloat16 that are widened to it --------------------

using Bits16 [[gnu::may_alias]] = uint16_t;
using Bits32 [[gnu::may_alias]] = uint32_t;

inline void widen(const void* from, int64_t n, float* to) {
  const auto* in = static_cast<const Bits16*>(from);
  auto* out = reinterpret_cast<Bits32*>(to);
  for (int64_t i = 0; i < n; ++i) out[i] = uint32_t(in[i]) << 16;
}

// to the nearest, ties to even; NaN stays NaN
inline void narrow(const float* from, int64_t n, void* to) {
  const auto* in = reinterpret_cast<const Bits32*>(from);
  auto* out = static_cast<Bits16*>(to);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = in[i], rounded = bits + 0x7fff + (bits >> 16 & 1);
    out[i] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : uint16_t(rounded >> 16);
  }
}

// One head's rows over time. The width is contiguous; batch, time and heads may have any stride.
template <class T>
struct Lane {
  char* base;
  int64_t stride, size;  // bytes from token to token, and of a number
  bool followed_by_zeros = false;  // each row, as far as a panel reaches

  bool as_it_is() const { return size == int64_t(sizeof(T)); }
  char* at(int64_t t, int64_t c) const { return base + t * stride + c * size; }

  void get(int64_t t, int64_t c, int64_t n, T* to) const {
    if (as_it_is()) std::memcpy(to, at(t, c), n * sizeof(T));
    else if constexpr (std::is_same_v<T, float>) widen(at(t, c), n, to);
  }
  void put(int64_t t, int64_t c, int64_t n, const T* from) const {
    if (as_it_is()) std::memcpy(at(t, c), from, n * sizeof(T));
    else if constexpr (std::is_same_v<T, float>) narrow(from, n, at(t, c));
  }
  template <int P>
  void put(int64_t t, int64_t c, int64_t n, const Row<T, P>& row) const {
    if (as_it_is() && n == Row<T, P>::width) std::memcpy(at(t, c), &row, sizeof(row));
    else put(t, c, n, reinterpret_cast<const T*>(&row));
  }
  T number(int64_t t) const {
    T x;
    get(t, 0, 1, &x);
    return x;
  }
  // 1: to be written, 0: to be read. Inlined by force: to GCC a function that does nothing else has
  // no effect, and its calls go
  template <int kWrite>
  WORKBENCH_INLINE void prefetch(int64_t t, int64_t c, int64_t n) const {
    if (followed_by_zeros) return;  // side by side: the processor sees what comes next
    const char* from = at(t, c);
    for (int64_t i = 0; i < n * size; i += 64) __builtin_prefetch(from + i, kWrite, 3);
  }
};

template <class T>
class Heads {
 public:
  explicit Heads(const at::Tensor& x)
      : base_(static_cast<char*>(const_cast<void*>(x.const_data_ptr()))), size_(x.element_size()),
        batch_(x.stride(0) * size_), time_(x.stride(1) * size_), head_(x.stride(2) * size_) {}
  Lane<T> operator()(int64_t b, int64_t h) const {
    return {base_ + b * batch_ + h * head_, time_, size_};
  }

 private:
  char* base_;
  int64_t size_, batch_, time_, head_;
};

// --- rows of some tokens at a time ---------------------------------------------------------------

// 1 / the sum of a row; 0 stands for a sum of 0, by which nothing is divided
template <class T>
T inverse_of_sum(const T* row, int64_t n) {
  T total = 0;
  for (int64_t i = 0; i < n; ++i) total += row[i];
  return total == 0 ? T(0) : T(1) / total;
}

// A head's rows in a thread's own memory: numbers of type T side by side, where the strides of the
// tensors would leave most of a cache unused, and zeros after each row as far as a panel reaches.
template <class T>
Lane<T> kept_rows(T*& room, int64_t tokens, int64_t width) {
  constexpr int64_t panel = Row<T, kMaxVectors>::width;
  const int64_t padded = (width + panel - 1) / panel * panel;
  T* rows = room;
  room += tokens * padded;
  return {reinterpret_cast<char*>(rows), padded * int64_t(sizeof(T)), sizeof(T), true};
}
template <class T>
int64_t numbers_of_kept_rows(int64_t tokens, int64_t width) {
  T* none = nullptr;
  kept_rows(none, tokens, width);
  return none - static_cast<T*>(nullptr);
}

// Columns first to first + n of a head's tokens, C of them at a time, as numbers of type T: where
// they lie, or in other rows where they must be converted, divided by their sum, or followed by
// zeros up to `padded`. Tokens beyond the segment are rows of zeros.
template <class T, int C>
class Feed {
 public:
  std::array<const T*, C> now, before;

  Feed(const Lane<T>& lane, int64_t tokens, int64_t first, int64_t n, int64_t padded,
       const T* zeros)
      : lane_(lane), tokens_(tokens), first_(first), n_(n), padded_(padded), zeros_(zeros) {
    now.fill(zeros);
    before.fill(zeros);
  }
  // Divide rows, whole ones, by their sums, and leave 1 / sum in inverse; null: as they are.
  Feed& normalised(T* inverse) {
    inverse_ = inverse;
    return *this;
  }
  // Leave the rows that come by in those of another lane.
  Feed& kept_in(const Lane<T>& rows) {
    kept_ = rows.base;
    kept_stride_ = rows.stride;
    return *this;
  }
  // on to the tokens t, t + step, ...; `before` are those that were `now`
  void move(int64_t t, int64_t step) {
    before = now;
    side_ ^= 1;
    for (int i = 0; i < C; ++i) {
      const int64_t token = t + i * step, soon = token + kAhead * step;
      if (inside(soon)) lane_.template prefetch<0>(soon, first_, n_);
      now[i] = inside(token) ? fetch(token, i) : zeros_;
    }
  }

 private:
  bool inside(int64_t t) const { return t >= 0 && t < tokens_; }
  const T* fetch(int64_t t, int i) {
    const bool ready = lane_.as_it_is() && (n_ == padded_ || lane_.followed_by_zeros);
    if (ready && !inverse_ && !kept_) return reinterpret_cast<const T*>(lane_.at(t, first_));
    T* row;
    if (kept_) {
      row = reinterpret_cast<T*>(kept_ + t * kept_stride_) + first_;
    } else {
      if (buffer_.empty()) buffer_ = Scratch<T>(2 * C * padded_);
      row = buffer_.get() + (side_ * C + i) * padded_;
    }
    lane_.get(t, first_, n_, row);
    for (int64_t c = n_; c < padded_; ++c) row[c] = T(0);
    if (inverse_) {
      inverse_[t] = inverse_of_sum(row, n_);
      if (const T scale = inverse_[t]; scale != 0)
        for (int64_t c = 0; c < n_; ++c) row[c] *= scale;
    }
    return row;
  }

  Lane<T> lane_;
  int64_t tokens_, first_, n_, padded_;
  const T* zeros_;
  T* inverse_ = nullptr;
  char* kept_ = nullptr;
  int64_t kept_stride_ = 0;
  int side_ = 0;
  Scratch<T> buffer_;
};

// The gradient g of x = features / sum(features) becomes that of the features, for a head's tokens.
template <class T>
void backward_of_normalise(const Lane<T>& g, const Lane<T>& x, const T* inverse, int64_t tokens,
                           int64_t n, T* room, const Lane<T>& out) {
  T *g_ = room, *x_ = room + n;
  for (int64_t t = 0; t < tokens; ++t) {
    g.get(t, 0, n, g_);
    if (const T scale = inverse[t]; scale != 0) {
      x.get(t, 0, n, x_);
      const T along = dot(g_, x_, n);
      for (int64_t i = 0; i < n; ++i) g_[i] = (g_[i] - along) * scale;
    }
    out.put(t, 0, n, g_);
  }
}

// --- tensors -------------------------------------------------------------------------------------

inline at::Tensor with_contiguous_width(const at::Tensor& x) {
  return x.size(-1) == 1 || x.stride(-1) == 1 ? x : x.contiguous();
}

inline at::ScalarType computed_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Ask for large pages behind fresh memory: writing it first costs several times as much in small
// ones.
inline at::Tensor in_large_pages(at::Tensor x) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(2) << 20;
  const auto begin = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page, end = (begin + x.nbytes()) / page * page;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
  return x;
}

struct Sizes {
  int64_t B, T, H, F, V;
};

// The contract of the ops, checked for callers that do not come through their Python front.
inline Sizes check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& state) {
  TORCH_CHECK(q.dim() == 4 && state.dim() == 4, "got queries with ", q.dim(), " and a state with ",
              state.dim(), " dimensions, expected 4 for both");
  const Sizes s{q.size(0), q.size(1), q.size(2), q.size(3), state.size(3)};
  TORCH_CHECK(k.sizes() == q.sizes(), "got keys of shape ", k.sizes(), ", expected ", q.sizes());
  TORCH_CHECK(state.size(0) == s.B && state.size(1) == s.H && state.size(2) == s.F,
              "got a state of shape ", state.sizes(), " beside queries of shape ", q.sizes());
  return s;
}

inline void check_like(const at::Tensor& x, const at::Tensor& q, at::IntArrayRef shape,
                       const char* name, std::optional<at::ScalarType> type = std::nullopt) {
  const at::ScalarType wanted = type.value_or(q.scalar_type());
  TORCH_CHECK(x.sizes() == shape, "got ", name, " of shape ", x.sizes(), ", expected ", shape);
  TORCH_CHECK(x.scalar_type() == wanted && x.device() == q.device(), "got ", name, " of type ",
              x.scalar_type(), " on ", x.device(), ", expected ", wanted, " on ", q.device());
}

// A state has the queries' type or, beside bfloat16, float.
inline void check_state(const at::Tensor& x, const at::Tensor& q, const Sizes& s, const char* name) {
  const bool wide = q.scalar_type() == at::kBFloat16 && x.scalar_type() == at::kFloat;
  check_like(x, q, {s.B, s.H, s.F, s.V}, name, wide ? at::kFloat : q.scalar_type());
}

// Run a function template for the type that x is computed with.
template <class Work>
auto for_type(const at::Tensor& x, const Work& work) {
  const at::ScalarType type = x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble || type == at::kBFloat16,
              "got numbers of type ", type, ", expected float, double or bfloat16");
  return type == at::kDouble ? work(double{}) : work(float{});
}

// --- work on heads -------------------------------------------------------------------------------

// What a thread has for a head: the panel, zeros as wide as a row, and numbers of the caller's.
template <class T>
struct Bench {
  T *panel, *zeros, *own;
};

// A matrix of a state as a panel's columns: number first of the F x V matrix, its strides.
struct Matrix {
  int64_t first, row, column;
};

template <class Panel>
void load_state(Panel& panel, const at::Tensor& state, const Matrix& m) {
  using T = typename Panel::T;
  if (state.scalar_type() == at::kBFloat16) {
    if constexpr (std::is_same_v<T, float>)
      panel.load(state.const_data_ptr<at::BFloat16>() + m.first, m.row, m.column);
  } else {
    panel.load(state.const_data_ptr<T>() + m.first, m.row, m.column);
  }
}

template <class Panel>
void store_state(const Panel& panel, const at::Tensor& state, const Matrix& m) {
  using T = typename Panel::T;
  if (state.scalar_type() == at::kBFloat16) {
    if constexpr (std::is_same_v<T, float>)
      panel.store(state.mutable_data_ptr<at::BFloat16>() + m.first, m.row);
  } else {
    panel.store(state.mutable_data_ptr<T>() + m.first, m.row);
  }
}

// Call work(i, bench) for i from 0 to n - 1; `numbers` says how many the panel and the caller need,
// `cost` how many operations each i takes.
template <class T, class Work>
void share_out(int64_t n, int64_t panel, int64_t widest, int64_t own, int64_t cost,
               const Work& work) {
  // below some 20 microseconds of work a second thread costs more than it brings
  const int64_t grain = 1 + (1 << 20) / (1 + cost);
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    constexpr int64_t lanes = 64 / sizeof(T);
    const int64_t zeros = (widest + Row<T, kMaxVectors>::width + lanes - 1) / lanes * lanes;
    const Scratch<T> scratch(panel + zeros + own);
    const Bench<T> bench{scratch.get(), scratch.get() + panel, scratch.get() + panel + zeros};
    std::fill(bench.zeros, bench.zeros + zeros, T(0));
    for (int64_t i = begin; i < end; ++i) work(i, bench);
  });
}

}  // namespace workbench
