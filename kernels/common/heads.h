// Tensors of layout (B, T, H, width) as rows of numbers, and work shared out over their heads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <bit>
#include <cmath>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "panel.h"

namespace workbench {

// Tokens of a block, a multiple of what every pass takes together; how many bytes its rows of all
// heads of a group may fill, and the matrices of the group: two blocks and the matrices fit into a
// second-level cache.
constexpr int64_t kMostTokens = 48, kPassesDivide = 6;
constexpr int64_t kBlockBytes = 256 * 1024, kGroupBytes = 512 * 1024;

// A tensor so large has left the caches before it is read as a whole again.
constexpr size_t kLargeBytes = 8 << 20;

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
  bool large = false;  // the tensor is

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
};

template <class T>
class Heads {
 public:
  explicit Heads(const at::Tensor& x)
      : base_(static_cast<char*>(const_cast<void*>(x.const_data_ptr()))), size_(x.element_size()),
        batch_(x.stride(0) * size_), time_(x.stride(1) * size_), head_(x.stride(2) * size_),
        large_(x.nbytes() >= kLargeBytes) {}
  Lane<T> operator()(int64_t b, int64_t h) const {
    return {base_ + b * batch_ + h * head_, time_, size_, large_};
  }
  int64_t next_head() const { return head_; }

 private:
  char* base_;
  int64_t size_, batch_, time_, head_;
  bool large_;
};

// --- blocks of tokens ----------------------------------------------------------------------------

template <class T>
T sum_of(const T* row, int64_t n) {
  T total = 0;
  for (int64_t i = 0; i < n; ++i) total += row[i];
  return total;
}

// (row - what) / by. Products with 1 / by are several times faster; where that is infinite, NaN or
// has lost digits, for sums that are themselves out of bounds, it is not what a division gives.
template <class T>
void take_off_and_divide(T* row, int64_t n, T what, T by) {
  const T inverse = T(1) / by;
  if (std::isnormal(inverse)) {
    for (int64_t i = 0; i < n; ++i) row[i] = (row[i] - what) * inverse;
  } else {
    for (int64_t i = 0; i < n; ++i) row[i] = (row[i] - what) / by;
  }
}

// A block of a head's rows in a thread's own memory: numbers of type T side by side, with zeros
// after each row as far as a panel reaches. The strides of the tensors would leave most of a cache
// unused.
template <class T>
struct Rows {
  T* base = nullptr;
  int64_t width = 0, padded = 0;
  T* sums = nullptr;  // of each row, by which it was divided unless that is 0

  static int64_t numbers(int64_t width) {
    constexpr int64_t panel = Row<T, kMaxVectors>::width;
    return (width + panel - 1) / panel * panel;
  }
  static Rows take(T*& room, int64_t width, bool normalised = false) {
    Rows rows{room, width, numbers(width)};
    room += kMostTokens * rows.padded;
    if (normalised) rows.sums = std::exchange(room, room + kMostTokens);
    return rows;
  }
  T* operator[](int64_t t) const { return base + t * padded; }

  // tokens first to first + n - 1 of a head; divided by their sums where there is room for them
  void get(const Lane<T>& lane, int64_t first, int64_t n) const {
    for (int64_t t = 0; t < n; ++t) {
      T* row = (*this)[t];
      lane.get(first + t, 0, width, row);
      std::fill(row + width, row + padded, T(0));
      if (!sums) continue;
      sums[t] = sum_of(row, width);
      if (sums[t] != 0) take_off_and_divide(row, width, T(0), sums[t]);
    }
  }
  void put(const Lane<T>& lane, int64_t first, int64_t n) const {
    for (int64_t t = 0; t < n; ++t) lane.put(first + t, 0, width, (*this)[t]);
  }
  // As `put`, for results too large to stay in a cache until someone reads them: whole lines go to
  // memory past the caches, which need not fetch them first.
  void pass_on(const Lane<T>& lane, int64_t first, int64_t n) const {
#if defined(__AVX512F__)
    const bool whole = lane.as_it_is() && width % Vector<T>::lanes == 0 &&
                       (reinterpret_cast<uintptr_t>(lane.base) | lane.stride) % kVectorBytes == 0;
    if (lane.large && whole) {
      for (int64_t t = 0; t < n; ++t) {
        const T* from = (*this)[t];
        char* to = lane.at(first + t, 0);
        for (int64_t c = 0; c < width; c += Vector<T>::lanes)
          _mm512_stream_si512(reinterpret_cast<__m512i*>(to + c * sizeof(T)),
                              _mm512_load_si512(from + c));
      }
      return;
    }
#endif
    put(lane, first, n);
  }
  // The rows, gradients of features / sum(features) = x, become those of the features.
  void undo_normalise(const Rows& x, int64_t n) const {
    if (!x.sums) return;
    for (int64_t t = 0; t < n; ++t) {
      T* g = (*this)[t];
      if (x.sums[t] != 0) take_off_and_divide(g, width, dot(g, x[t], width), x.sums[t]);
    }
  }
};

// A row of zeros.
template <class T>
const T* zeros(T*& room, int64_t n) {
  std::fill(room, room + n, T(0));
  return std::exchange(room, room + n);
}

// One number of each token.
template <class T>
void get_numbers(const Lane<T>& lane, int64_t first, int64_t n, T* to) {
  for (int64_t t = 0; t < n; ++t) lane.get(first + t, 0, 1, to + t);
}

// The tokens of a block in the order of a recurrence, C at a time.
struct Walk {
  int64_t n;
  bool reversed = false;
  int64_t token(int64_t i) const { return reversed ? n - 1 - i : i; }
};

// Rows i to i + C - 1 of a walk; zeros beyond its end.
template <int C, class T>
WORKBENCH_INLINE inline std::array<const T*, C> rows_at(const Rows<T>& rows, const Walk& walk,
                                                        int64_t i, int64_t first, const T* zeros) {
  std::array<const T*, C> at;
  for (int j = 0; j < C; ++j) at[j] = i + j < walk.n ? rows[walk.token(i + j)] + first : zeros;
  return at;
}

// The rows that a group's next block needs, for passes to ask for while they work on this one: in
// the order in which they lie in memory, so that the processor guesses what comes next, and a little
// at a time, because a queue of requests holds up everything else.
class Ahead {
 public:
  // begin to end - 1: the tokens; passes: how many there will be
  void start(int64_t heads, int64_t begin, int64_t end, int64_t passes) {
    heads_ = heads, begin_ = begin, tokens_ = end - begin, passes_ = std::max<int64_t>(1, passes);
    n_ = 0, stream_ = range_ = bytes_ = left_ = 0;
  }
  template <class T>
  void add(const Heads<T>& x, int64_t b, int64_t h, int64_t width, bool passed_on = false) {
    const Lane<T> lane = x(b, h);
    if (tokens_ <= 0 || (passed_on && lane.large)) return;
    const int64_t bytes = width * lane.size;
    Stream s{lane.base + begin_ * lane.stride, lane.stride, x.next_head(), bytes, heads_};
    bytes_ += tokens_ * heads_ * s.bytes;
    // neighbours make one range
    if (s.heads == 1 || s.head == s.bytes) s.bytes *= std::exchange(s.heads, 1);
    s.ranges = tokens_ * s.heads;
    if (s.heads == 1 && s.time == s.bytes) s.bytes *= std::exchange(s.ranges, 1);
    streams_[n_++] = s;
  }
  // The part of a pass over so many rows.
  Run next(int64_t rows) {
    int64_t wanted = (bytes_ + passes_ - 1) / passes_;
    while (left_ < wanted || wanted > 64 * rows) {  // at once what does not fit
      const int64_t some = std::min(left_, wanted);
      for (int64_t i = 0; i < some; i += 64) __builtin_prefetch(at_ + i, 0, 2);
      at_ += some, left_ -= some, wanted -= some;
      if (left_ > 0) break;
      if (stream_ == n_) return {zero_, 0};
      const Stream& s = streams_[stream_];
      at_ = s.base + range_ / s.heads * s.time + range_ % s.heads * s.head;
      left_ = s.bytes;
      if (++range_ == s.ranges) range_ = 0, ++stream_;
    }
    const char* from = std::exchange(at_, at_ + wanted);
    left_ -= wanted;
    return {from, (wanted + rows - 1) / rows};
  }

 private:
  struct Stream {
    const char* base;
    int64_t time, head, bytes, heads, ranges = 0;
  };
  std::array<Stream, 8> streams_;
  int64_t n_, stream_, range_, heads_, begin_, tokens_, passes_, bytes_, left_;
  const char* at_;
  const char zero_[1] = {};
};

// --- tensors -------------------------------------------------------------------------------------

inline at::Tensor with_contiguous_width(const at::Tensor& x) {
  return x.size(-1) == 1 || x.stride(-1) == 1 ? x : x.contiguous();
}

inline at::ScalarType computed_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
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

// A matrix of a state as a panel's columns: number first of the F x V matrix, its strides.
struct Matrix {
  int64_t first, row, column;
};

inline Matrix matrix(const Sizes& s, int64_t head, int64_t c) {
  return {head * s.F * s.V + c, s.V, 1};
}
inline Matrix transposed(const Sizes& s, int64_t head, int64_t c) {
  return {(head * s.F + c) * s.V, 1, s.V};
}

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

// How the work on B x H heads is cut: a thread takes some heads of one sequence through the segment
// together, block after block, each head's matrices waiting in the second-level cache meanwhile.
struct Groups {
  int64_t heads, per_sequence, tokens;

  // bytes: of a head's matrices, and of its rows of one token. Only which heads go together depends
  // on the number of threads, and no number that is computed depends on that.
  Groups(const Sizes& s, int64_t matrix_bytes, int64_t row_bytes) {
    const int64_t most = std::clamp<int64_t>(kGroupBytes / matrix_bytes, 1, 8);
    tokens = kBlockBytes / (most * row_bytes) / kPassesDivide * kPassesDivide;
    tokens = std::clamp<int64_t>(tokens, 2 * kPassesDivide, kMostTokens);
    const int64_t threads = at::get_num_threads();
    for (heads = s.T > tokens ? std::min(most, s.H) : 1; heads > 1; --heads) {
      const int64_t groups = s.B * ((s.H + heads - 1) / heads);
      // no thread has much more to do than its part
      if ((groups + threads - 1) / threads * threads * heads * 10 <= s.B * s.H * 11) break;
    }
    per_sequence = (s.H + heads - 1) / heads;
  }
  struct Group {
    int64_t b, h0, heads;  // the sequence, its first head, how many
  };
  Group group(int64_t i, int64_t H) const {
    const int64_t h0 = i % per_sequence * heads;
    return {i / per_sequence, h0, std::min(heads, H - h0)};
  }
};

// Call work(i, scratch) for i from 0 to n - 1; `numbers` says how many the scratch is to hold,
// `cost` how many operations each i takes.
template <class T, class Work>
void share_out(int64_t n, int64_t numbers, int64_t cost, const Work& work) {
  // below some 20 microseconds of work a second thread costs more than it brings
  const int64_t grain = 1 + (1 << 20) / (1 + cost);
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(numbers);
    for (int64_t i = begin; i < end; ++i) work(i, scratch.get());
#if defined(__AVX512F__)
    _mm_sfence();  // what went past the caches is there before another thread is told so
#endif
  });
}

}  // namespace workbench
