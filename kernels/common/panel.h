// A panel: some columns of a fast-weight matrix, held in the fastest cache for a whole segment.
//
// Columns of the recurrences do not depend on each other, so a panel is worked through all tokens
// without looking at the rest of the matrix. Its rows are a few vectors wide; the compiler maps
// them to whatever vectors the processor has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

namespace workbench {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// four vectors hide the latency of a multiply-add behind each other
constexpr int kMaxVectors = 4;
constexpr int64_t kPanelBytes = 32 * 1024;

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  static constexpr int lanes = kVectorBytes / sizeof(T);
};

// One row of a panel, or a vector that belongs to its columns. P: how many vectors wide.
template <class T, int P>
struct Row {
  using V = typename Vector<T>::type;
  static constexpr int width = P * Vector<T>::lanes;
  V v[P];

  static Row zero() {
    Row row;
    for (int p = 0; p < P; ++p) row.v[p] = V{};
    return row;
  }
  // the first n entries from memory, zeros beyond them
  static Row load(const T* from, int64_t n) {
    Row row = zero();
    if (n == width) std::memcpy(&row, from, sizeof(row));
    else std::memcpy(&row, from, n * sizeof(T));
    return row;
  }
  void store(T* to, int64_t n) const {
    if (n == width) std::memcpy(to, this, sizeof(*this));
    else std::memcpy(to, this, n * sizeof(T));
  }
  Row operator*(T scale) const {
    Row row;
    for (int p = 0; p < P; ++p) row.v[p] = v[p] * scale;
    return row;
  }
  Row operator-(const Row& other) const {
    Row row;
    for (int p = 0; p < P; ++p) row.v[p] = v[p] - other.v[p];
    return row;
  }
  Row operator+(const Row& other) const {
    Row row;
    for (int p = 0; p < P; ++p) row.v[p] = v[p] + other.v[p];
    return row;
  }
  T dot(const Row& other) const {
    V sum = V{};
    for (int p = 0; p < P; ++p) sum += v[p] * other.v[p];
    T total = 0;
    for (int i = 0; i < Vector<T>::lanes; ++i) total += sum[i];
    return total;
  }
};

// Memory for one panel, aligned to its vectors.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n) : data_(static_cast<T*>(::operator new(n * sizeof(T), kAlign))) {}
  ~Scratch() { ::operator delete(data_, kAlign); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  static constexpr std::align_val_t kAlign{64};
  T* data_;
};

template <class T, int P>
struct Panel {
  using R = Row<T, P>;
  using V = typename R::V;
  // rows taken together: short rows alone would wait for their own sums
  static constexpr int together = kMaxVectors / P;

  V* S;
  int64_t rows;
  int64_t n;  // columns in use, at most R::width

  // S[r][c] = from[r * row_stride + c * column_stride]
  void load(const T* from, int64_t row_stride, int64_t column_stride) {
    for (int64_t r = 0; r < rows; ++r) {
      T* to = reinterpret_cast<T*>(S + r * P);
      for (int64_t c = 0; c < R::width; ++c)
        to[c] = c < n ? from[r * row_stride + c * column_stride] : T(0);
    }
  }
  void store(T* to, int64_t row_stride) const {
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(to + r * row_stride, S + r * P, n * sizeof(T));
  }

  // sum over r of a[r] S[r]
  R read(const T* a) const {
    R y = R::zero();
    for (int64_t r = 0; r < rows; ++r)
      for (int p = 0; p < P; ++p) y.v[p] += a[r] * S[r * P + p];
    return y;
  }
  // S[r] += a[r] x
  void write(const T* a, const R& x) {
    for (int64_t r = 0; r < rows; ++r) {
      const T scale = a[r];
      for (int p = 0; p < P; ++p) S[r * P + p] += scale * x.v[p];
    }
  }

  // S[r] += a[r] x, then sum over r of b[r] S[r]
  R write_read(const T* a, const R& x, const T* b) {
    return pass<false, false>(a, x, nullptr, x, b, nullptr, nullptr);
  }
  // S[r] += a[r] x, then two reads of what is there now
  R write_read_read(const T* a, const R& x, const T* b, const T* c, R& second) {
    return pass<false, true>(a, x, nullptr, x, b, c, &second);
  }
  // S[r] += a[r] x + b[r] y, then sum over r of c[r] S[r]
  R write_write_read(const T* a, const R& x, const T* b, const R& y, const T* c) {
    return pass<true, false>(a, x, b, y, c, nullptr, nullptr);
  }

 private:
  // one load and one store of each row for everything that a token does to it
  template <bool kTwoWrites, bool kTwoReads>
  R pass(const T* a1, const R& x1, const T* a2, const R& x2, const T* b1, const T* b2, R* second) {
    V* const __restrict__ panel = S;
    V y1[together][P], y2[together][P];
    for (int i = 0; i < together; ++i)
      for (int p = 0; p < P; ++p) y1[i][p] = y2[i][p] = V{};
    const auto touch = [&](int64_t r, int i) __attribute__((always_inline)) {
      const T write1 = a1[r], write2 = kTwoWrites ? a2[r] : T(0);
      const T read1 = b1[r], read2 = kTwoReads ? b2[r] : T(0);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        V s = panel[r * P + p] + write1 * x1.v[p];
        if constexpr (kTwoWrites) s += write2 * x2.v[p];
        panel[r * P + p] = s;
        y1[i][p] += read1 * s;
        if constexpr (kTwoReads) y2[i][p] += read2 * s;
      }
    };
    int64_t r = 0;
    for (; r + together <= rows; r += together) {
#pragma GCC unroll 4
      for (int i = 0; i < together; ++i) touch(r + i, i);
    }
    for (; r < rows; ++r) touch(r, 0);
    R first;
    for (int p = 0; p < P; ++p) {
      V sum1 = y1[0][p], sum2 = y2[0][p];
      for (int i = 1; i < together; ++i) sum1 += y1[i][p], sum2 += y2[i][p];
      first.v[p] = sum1;
      if constexpr (kTwoReads) second->v[p] = sum2;
    }
    return first;
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
  int64_t scratch() const { return rows * width(); }
};

// Call work(panel, first column) with the narrowest panel that holds the columns of number `index`.
template <class T, class Work>
void with_panel(const Cut<T>& cut, int64_t index, T* scratch, const Work& work) {
  const int64_t first = index * cut.width();
  const int64_t n = std::min(cut.width(), cut.columns - first);
  using V = typename Vector<T>::type;
  V* S = reinterpret_cast<V*>(scratch);
  if (n > 2 * Vector<T>::lanes) work(Panel<T, 4>{S, cut.rows, n}, first);
  else if (n > Vector<T>::lanes) work(Panel<T, 2>{S, cut.rows, n}, first);
  else work(Panel<T, 1>{S, cut.rows, n}, first);
}

}  // namespace workbench
