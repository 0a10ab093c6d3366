// A panel: some columns of a fast-weight matrix, held in the fastest cache for a whole segment.
//
// Columns of the recurrences do not depend on each other, so a panel is worked through all tokens
// without looking at the rest of the matrix. Its rows are a few vectors wide; the compiler maps
// them to whatever vectors the processor has. Every array of vectors here is indexed by constants
// alone (`unroll`): only then does each compiler keep it in registers.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

namespace workbench {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// A pass takes a few tokens at once, so that it loads and stores a row once for all of them. With
// this width the writes of two tokens and their four reads fill the registers and no more.
constexpr int kMaxVectors = kRegisters / 8;
// sums that must be under way at a time to hide the latency of a multiply-add
constexpr int kChains = kRegisters / 4;
constexpr int64_t kPanelBytes = 32 * 1024;

#define WORKBENCH_INLINE __attribute__((always_inline))

// body(0), body(1), ... with arguments that are constants to the compiler
template <int n, class Body>
WORKBENCH_INLINE inline void unroll(const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) WORKBENCH_INLINE {
    (body(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, n>{});
}

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  static constexpr int lanes = kVectorBytes / sizeof(T);
};

template <class T>
WORKBENCH_INLINE inline typename Vector<T>::type load(const T* from) {
  typename Vector<T>::type v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// *from in every lane; x - 0 is x for every x, so this is one load that spreads what it loads
template <class T>
WORKBENCH_INLINE inline typename Vector<T>::type spread(const T* from) {
  return *from - typename Vector<T>::type{};
}

template <class T, int lanes>
WORKBENCH_INLINE inline T add_up(const T* v) {
  if constexpr (lanes == 1) {
    return *v;
  } else {
    T half[lanes / 2];
    for (int i = 0; i < lanes / 2; ++i) half[i] = v[i] + v[i + lanes / 2];
    return add_up<T, lanes / 2>(half);
  }
}

template <class T>
WORKBENCH_INLINE inline T sum_of_lanes(const typename Vector<T>::type& v) {
  T lanes[Vector<T>::lanes];
  std::memcpy(lanes, &v, sizeof(v));
  return add_up<T, Vector<T>::lanes>(lanes);
}

template <class T>
inline T dot(const T* a, const T* b, int64_t n) {
  constexpr int lanes = Vector<T>::lanes;
  typename Vector<T>::type sum0{}, sum1{};
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    sum0 += load(a + i) * load(b + i);
    sum1 += load(a + i + lanes) * load(b + i + lanes);
  }
  if (i + lanes <= n) sum0 += load(a + i) * load(b + i), i += lanes;
  T total = sum_of_lanes<T>(sum0 + sum1);
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

// One row of a panel, or a vector that belongs to its columns. P: how many vectors wide.
template <class T, int P>
struct Row {
  using V = typename Vector<T>::type;
  static constexpr int width = P * Vector<T>::lanes;
  V v[P];

  static Row zero() {
    Row row;
    unroll<P>([&](auto p) WORKBENCH_INLINE { row.v[p] = V{}; });
    return row;
  }
  static Row from(const T* whole) {
    Row row;
    std::memcpy(&row, whole, sizeof(row));
    return row;
  }
  Row operator*(T scale) const {
    Row row;
    unroll<P>([&](auto p) WORKBENCH_INLINE { row.v[p] = v[p] * scale; });
    return row;
  }
  // this + scale * other
  Row plus(T scale, const Row& other) const {
    Row row;
    unroll<P>([&](auto p) WORKBENCH_INLINE { row.v[p] = v[p] + scale * other.v[p]; });
    return row;
  }
  Row operator-(const Row& other) const { return plus(T(-1), other); }
  T dot(const Row& other) const {
    V sum = V{};
    unroll<P>([&](auto p) WORKBENCH_INLINE { sum += v[p] * other.v[p]; });
    return sum_of_lanes<T>(sum);
  }
};

// Aligned memory for one thread, handed out in pieces.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t n) : data_(static_cast<T*>(::operator new(n * sizeof(T), kAlign))) {}
  ~Scratch() { ::operator delete(data_, kAlign); }
  Scratch(Scratch&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  T* get() const { return data_; }
  bool empty() const { return !data_; }

 private:
  static constexpr std::align_val_t kAlign{64};
  T* data_ = nullptr;
};

// Memory that a pass asks for on its way: `step` bytes for each row.
struct Run {
  const char* from;
  int64_t step;
};

// When a pass over the rows reads: after all of its writes, or each read after the write beside it.
enum class Reads { last, alternate };

// S[r] += sum over w of a[w][r] x[w], and the sums over r of b[i][r] S[r] as `Reads` says: one load
// and one store of each row for all that some tokens do to it.
template <class T, int P, int W, int R, Reads kReads>
[[gnu::noinline]] void pass(typename Vector<T>::type* __restrict__ S, int64_t rows,
                            const std::array<const T*, W>& a, const std::array<Row<T, P>, W>& x_in,
                            const std::array<const T*, R>& b, std::array<Row<T, P>, R>& y,
                            Run ahead) {
  using V = typename Vector<T>::type;
  constexpr int together = R ? std::max(1, kChains / (P * R)) : 1;
  V x[W][P], sum[together][R + 1][P];
  unroll<W>([&](auto w) WORKBENCH_INLINE {
    unroll<P>([&](auto p) WORKBENCH_INLINE { x[w][p] = x_in[w].v[p]; });
  });
  unroll<together>([&](auto u) WORKBENCH_INLINE {
    unroll<R>([&](auto i) WORKBENCH_INLINE {
      unroll<P>([&](auto p) WORKBENCH_INLINE { sum[u][i][p] = V{}; });
    });
  });
  const auto touch = [&](int64_t r, auto u) WORKBENCH_INLINE {
    if constexpr (R > 0) __builtin_prefetch(ahead.from + r * ahead.step, 0, 2);
    V s[P];
    unroll<P>([&](auto p) WORKBENCH_INLINE { s[p] = S[r * P + p]; });
    const auto read = [&](auto i) WORKBENCH_INLINE {
      const V scale = spread(b[i] + r);
      unroll<P>([&](auto p) WORKBENCH_INLINE { sum[u][i][p] += scale * s[p]; });
    };
    unroll<W>([&](auto w) WORKBENCH_INLINE {
      const V scale = spread(a[w] + r);
      unroll<P>([&](auto p) WORKBENCH_INLINE { s[p] += scale * x[w][p]; });
      if constexpr (kReads == Reads::alternate) read(w);
    });
    unroll<P>([&](auto p) WORKBENCH_INLINE { S[r * P + p] = s[p]; });
    if constexpr (kReads == Reads::last) unroll<R>(read);
  };
  int64_t r = 0;
  for (; r + together <= rows; r += together)
    unroll<together>([&](auto u) WORKBENCH_INLINE { touch(r + u, u); });
  for (; r < rows; ++r) touch(r, std::integral_constant<int, 0>{});
  unroll<R>([&](auto i) WORKBENCH_INLINE {
    unroll<P>([&](auto p) WORKBENCH_INLINE {
      V total = sum[0][i][p];
      unroll<together - 1>([&](auto u) WORKBENCH_INLINE { total += sum[u + 1][i][p]; });
      y[i].v[p] = total;
    });
  });
}

template <class T_, int P>
struct Panel {
  using T = T_;
  using R = Row<T, P>;
  using V = typename R::V;
  template <int n>
  using Pointers = std::array<const T*, n>;
  template <int n>
  using RowsOf = std::array<R, n>;

  V* S;
  int64_t rows;
  int64_t n;  // columns in use, at most R::width

  // S[r][c] = from[r * row_stride + c * column_stride], zeros beyond the columns in use
  template <class From>
  void load(const From* from, int64_t row_stride, int64_t column_stride) {
    for (int64_t r = 0; r < rows; ++r) {
      T* to = reinterpret_cast<T*>(S + r * P);
      for (int64_t c = 0; c < n; ++c) to[c] = from[r * row_stride + c * column_stride];
      for (int64_t c = n; c < R::width; ++c) to[c] = T(0);
    }
  }
  template <class To>
  void store(To* to, int64_t row_stride) const {
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = reinterpret_cast<const T*>(S + r * P);
      for (int64_t c = 0; c < n; ++c) to[r * row_stride + c] = from[c];
    }
  }
  template <size_t W>
  void write(const std::array<const T*, W>& a, const std::array<R, W>& x) {
    RowsOf<0> none;
    pass<T, P, int(W), 0, Reads::last>(S, rows, a, x, {}, none, {});
  }
  template <size_t W, size_t N>
  void write_then_read(const std::array<const T*, W>& a, const std::array<R, W>& x,
                       const std::array<const T*, N>& b, std::array<R, N>& y,
                       Run ahead) {
    pass<T, P, int(W), int(N), Reads::last>(S, rows, a, x, b, y, ahead);
  }
  // token by token: write, read
  template <size_t W>
  void alternate(const std::array<const T*, W>& a, const std::array<R, W>& x,
                 const std::array<const T*, W>& b, std::array<R, W>& y, Run ahead) {
    pass<T, P, int(W), int(W), Reads::alternate>(S, rows, a, x, b, y, ahead);
  }
};

// How many vectors wide panels of a matrix with these rows are, and how many cover its columns.
template <class T>
struct Cut {
  int64_t rows, columns;
  int vectors;

  Cut(int64_t rows_, int64_t columns_) : rows(rows_), columns(columns_), vectors(kMaxVectors) {
    while (vectors > 1 && rows * vectors * kVectorBytes > kPanelBytes) vectors /= 2;
  }
  int64_t width() const { return int64_t(vectors) * Vector<T>::lanes; }
  int64_t panels() const { return (columns + width() - 1) / width(); }
  int64_t numbers() const { return rows * width(); }
  int64_t all() const { return panels() * numbers(); }

  // Call work(panel, first column) for all panels, which lie in `room` one after the other; each is
  // the narrowest that holds its columns.
  template <class Work>
  void each(T* room, const Work& work) const {
    for (int64_t first = 0; first < columns; first += width(), room += numbers()) {
      const int64_t n = std::min(width(), columns - first);
      auto* S = reinterpret_cast<typename Vector<T>::type*>(room);
      if (kMaxVectors >= 4 && n > 2 * Vector<T>::lanes) {
        if constexpr (kMaxVectors >= 4) work(Panel<T, 4>{S, rows, n}, first);
      } else if (n > Vector<T>::lanes) {
        work(Panel<T, 2>{S, rows, n}, first);
      } else {
        work(Panel<T, 1>{S, rows, n}, first);
      }
    }
  }
};

}  // namespace workbench
