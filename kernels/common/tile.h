// Small matrix products, transposition and exp on whatever vectors the processor has.
//
// Matrices are rows of numbers whose width is a whole number of vectors; `packed` ones are cut into
// columns of one vector, so that a product reads them in order.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "panel.h"

namespace workbench {

constexpr int64_t kGroup = 8;  // rows that a product takes together

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTogether = 8;  // of 32 registers, 16 hold sums
#else
constexpr int kTogether = 4;
#endif

template <class T>
struct Lanes {
  using V = typename Vector<T>::type;
  static constexpr int64_t n = Vector<T>::lanes;
  typedef V Unaligned __attribute__((aligned(alignof(T)), may_alias));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Int;
  typedef Int I __attribute__((vector_size(kVectorBytes)));

  static V load(const T* from) { return *reinterpret_cast<const Unaligned*>(from); }
  static void store(T* to, V x) { *reinterpret_cast<Unaligned*>(to) = x; }
  static V all(T x) { return V{} + x; }
  static V max(V a, V b) { return a > b ? a : b; }
  static V min(V a, V b) { return a < b ? a : b; }
  static I index() {
    I i;
    for (int64_t c = 0; c < n; ++c) i[c] = Int(c);
    return i;
  }
  static V number(I i) { return __builtin_convertvector(i, V); }
  static T largest(V x) {
    T most = x[0];
    for (int64_t c = 1; c < n; ++c) most = x[c] > most ? x[c] : most;
    return most;
  }
  static T sum(V x) {
    // in pairs: the compiler halves vectors, and rounding errors stay small
    T part[n];
    std::memcpy(part, &x, sizeof(x));
    for (int64_t half = n / 2; half > 0; half /= 2)
      for (int64_t c = 0; c < half; ++c) part[c] += part[c + half];
    return part[0];
  }
};

inline int64_t rounded_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Numbers on a cache line; not filled.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n) : data_(static_cast<T*>(::operator new(n * sizeof(T), kAlign))) {}
  operator T*() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(T* x) const { ::operator delete(x, kAlign); }
  };
  std::unique_ptr<T, Free> data_;
};

// --- exp -----------------------------------------------------------------------------------------

// exp(x) for x <= 88 (float) or 700 (double), 0 where it is below the smallest normal number: 2^n
// exp(r) with |r| <= ln(2) / 2. The coefficients for float are those of the Cephes library.
inline typename Lanes<float>::V exp(typename Lanes<float>::V x) {
  using L = Lanes<float>;
  const auto low = x < -87.3f;
  x = low ? L::all(-87.3f) : x;
  const L::V shifted = x * 1.44269504088896341f + 12582912.0f;  // n in the last bits
  const L::V n = shifted - 12582912.0f;
  const L::V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  L::V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const L::V y = p * (r * r) + r + 1.0f;
  const L::I bits = (L::I)y + ((L::I)shifted << 23);
  return low ? L::V{} : (L::V)bits;
}

inline typename Lanes<double>::V exp(typename Lanes<double>::V x) {
  using L = Lanes<double>;
  const auto low = x < -708.0;
  x = low ? L::all(-708.0) : x;
  const L::V shifted = x * 1.44269504088896340736 + 6755399441055744.0;
  const L::V n = shifted - 6755399441055744.0;
  const L::V r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double c = 1.0 / 6227020800.0;  // 1 / 13!
  L::V p = L::all(c);
  for (int k = 13; k > 0; --k) p = p * r + (c *= k);
  const L::I bits = (L::I)p + ((L::I)shifted << 52);
  return low ? L::V{} : (L::V)bits;
}

// --- products ------------------------------------------------------------------------------------

// Rows of numbers to multiply from the left: entry (r, c) is base[r * row + c * step].
template <class T>
struct Left {
  const T* base;
  int64_t row, step;
};

// What is multiplied from the right: vector p of row c is at base[c * step + p * vector].
template <class T>
struct Right {
  const T* base;
  int64_t step, vector;
  Right at(int64_t c, int64_t p) const { return {base + c * step + p * vector, step, vector}; }
};

template <class T>
Right<T> rows(const T* base, int64_t width) {
  return {base, width, Lanes<T>::n};
}
// columns of one vector, each of `inner` rows
template <class T>
Right<T> packed(const T* base, int64_t inner) {
  return {base, Lanes<T>::n, inner * Lanes<T>::n};
}

// R rows and P vectors of sums, in registers.
template <class T, int R, int P>
struct Sums {
  using L = Lanes<T>;
  typename L::V v[R][P];

  void clear() {
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) v[r][p] = typename L::V{};
  }
  void load(const T* from, int64_t row) {
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) v[r][p] = L::load(from + r * row + p * L::n);
  }
  void store(T* to, int64_t row) const {
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p) L::store(to + r * row + p * L::n, v[r][p]);
  }
  __attribute__((always_inline)) inline void add(Left<T> a, Right<T> b, int64_t inner) {
    for (int64_t c = 0; c < inner; ++c) {
      typename L::V x[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) x[p] = L::load(b.base + c * b.step + p * b.vector);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const T scale = a.base[r * a.row + c * a.step];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) v[r][p] += scale * x[p];
      }
    }
  }
};

// out = (kAdd: out +) a b, for kGroup rows; out's rows are `row` apart.
template <bool kAdd, class T>
void product(T* out, int64_t row, Left<T> a, Right<T> b, int64_t inner, int64_t vectors) {
  const auto part = [&](auto two, int64_t p) {
    for (int64_t r = 0; r < kGroup; r += kTogether) {
      Sums<T, kTogether, decltype(two)::value> sums;
      T* to = out + r * row + p * Lanes<T>::n;
      if constexpr (kAdd) sums.load(to, row);
      else sums.clear();
      sums.add({a.base + r * a.row, a.row, a.step}, b.at(0, p), inner);
      sums.store(to, row);
    }
  };
  int64_t p = 0;
  for (; p + 2 <= vectors; p += 2) part(std::integral_constant<int, 2>{}, p);
  if (p < vectors) part(std::integral_constant<int, 1>{}, p);
}

// out += sum over groups of a^T b, where `takes(g)`: kGroup rows of out, group g being rows g kGroup
// and on of both a and b.
template <class T, class Takes>
void product_of_groups(T* out, int64_t row, Left<T> a, Right<T> b, int64_t groups, int64_t vectors,
                       const Takes& takes) {
  const auto part = [&](auto two, int64_t p) {
    for (int64_t r = 0; r < kGroup; r += kTogether) {
      Sums<T, kTogether, decltype(two)::value> sums;
      T* to = out + r * row + p * Lanes<T>::n;
      sums.load(to, row);
      for (int64_t g = 0; g < groups; ++g)
        if (takes(g))
          sums.add({a.base + r * a.row + g * kGroup * a.step, a.row, a.step}, b.at(g * kGroup, p), kGroup);
      sums.store(to, row);
    }
  };
  int64_t p = 0;
  for (; p + 2 <= vectors; p += 2) part(std::integral_constant<int, 2>{}, p);
  if (p < vectors) part(std::integral_constant<int, 1>{}, p);
}

// --- transposition -------------------------------------------------------------------------------

#if defined(__clang__) || __GNUC__ >= 12
template <class V, size_t... c>
V interleaved(V a, V b, bool second, std::index_sequence<c...>) {
  constexpr int n = sizeof...(c);
  return second ? __builtin_shufflevector(a, b, (n / 2 + int(c) / 2 + n * (int(c) % 2))...)
                : __builtin_shufflevector(a, b, (int(c) / 2 + n * (int(c) % 2))...);
}

// Transpose as many vectors as they have lanes: each round interleaves the two halves.
template <class T>
void transpose(typename Lanes<T>::V (&x)[Lanes<T>::n]) {
  constexpr int n = Lanes<T>::n;
  const std::make_index_sequence<n> all;
  for (int round = 1; round < n; round *= 2) {
    typename Lanes<T>::V y[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      y[2 * i] = interleaved(x[i], x[i + n / 2], false, all);
      y[2 * i + 1] = interleaved(x[i], x[i + n / 2], true, all);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) x[i] = y[i];
  }
}
#else
template <class T>
void transpose(typename Lanes<T>::V (&x)[Lanes<T>::n]) {
  for (int i = 0; i < Lanes<T>::n; ++i)
    for (int j = 0; j < i; ++j) std::swap(((T*)&x[i])[j], ((T*)&x[j])[i]);
}
#endif

// Pack the transpose of rows: `width` numbers from each of them become `width` rows of the packed
// matrix, row r its column r. from(r): where row r begins, or null for zeros.
template <class T, class From>
void pack_transposed(T* to, int64_t rows, int64_t width, const From& from) {
  using L = Lanes<T>;
  for (int64_t r = 0; r < rows; r += L::n, to += width * L::n) {
    const T* row[L::n];
    for (int64_t i = 0; i < L::n; ++i) row[i] = r + i < rows ? from(r + i) : nullptr;
    int64_t c = 0;
    for (; c + L::n <= width; c += L::n) {
      typename L::V x[L::n];
      for (int64_t i = 0; i < L::n; ++i) x[i] = row[i] ? L::load(row[i] + c) : typename L::V{};
      transpose<T>(x);
      for (int64_t i = 0; i < L::n; ++i) L::store(to + (c + i) * L::n, x[i]);
    }
    for (; c < width; ++c)
      for (int64_t i = 0; i < L::n; ++i) to[c * L::n + i] = row[i] ? row[i][c] : T(0);
  }
}

// Copy rows into wider ones, with zeros behind.
template <class T, class From>
void pack_rows(T* to, int64_t rows, int64_t width, int64_t padded, const From& from) {
  for (int64_t r = 0; r < rows; ++r, to += padded) {
    const T* row = from(r);
    if (row) std::memcpy(to, row, width * sizeof(T));
    std::memset(to + (row ? width : 0), 0, (padded - (row ? width : 0)) * sizeof(T));
  }
}

}  // namespace workbench
