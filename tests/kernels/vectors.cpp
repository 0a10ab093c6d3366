// What kernels/common builds on vectors beside plain loops, on any processor and without PyTorch.
//
// Numbers are small and whole, so that every sum is exact and equality is the test.
#include <cmath>
#include <cstdio>
#include <vector>

#include "panel.h"
#include "tile.h"

namespace {

using namespace workbench;

int failures = 0;

void expect(bool holds, const char* what, int64_t a, int64_t b) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "%s, sizes %ld %ld\n", what, long(a), long(b));
}

template <class T>
struct Numbers {
  uint32_t seed = 1;
  T next() {
    seed = seed * 1664525u + 1013904223u;
    return T(int(seed >> 16) % 7 - 3);
  }
  std::vector<T> some(int64_t n) {
    std::vector<T> x(n);
    for (T& one : x) one = next();
    return x;
  }
};

// Pointers to `n` rows of some numbers each.
template <class T, size_t n>
std::array<const T*, n> pointers(const std::vector<T>& x, int64_t width) {
  std::array<const T*, n> at;
  for (size_t i = 0; i < n; ++i) at[i] = x.data() + i * width;
  return at;
}

template <class T>
void panels(int64_t rows, int64_t columns) {
  constexpr size_t W = 3;
  Numbers<T> numbers;
  const Cut<T> cut(rows, columns);
  const int64_t padded = cut.panels() * cut.width();
  const auto start = numbers.some(rows * columns);
  const auto a = numbers.some(W * rows), b = numbers.some(W * rows), c = numbers.some(rows);
  auto x = numbers.some(W * padded);
  for (size_t w = 0; w < W; ++w)
    for (int64_t j = columns; j < padded; ++j) x[w * padded + j] = 0;
  // plainly: write, read, W times; then one more write and two reads after it
  auto S = start;
  std::vector<T> y(W * columns), z(2 * columns);
  const auto write = [&](const T* key, const T* value) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < columns; ++j) S[r * columns + j] += key[r] * value[j];
  };
  const auto read = [&](const T* key, T* to) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < columns; ++j) to[j] += key[r] * S[r * columns + j];
  };
  for (size_t w = 0; w < W; ++w) {
    write(&a[w * rows], &x[w * padded]);
    read(&b[w * rows], &y[w * columns]);
  }
  write(c.data(), x.data());
  read(a.data(), &z[0]), read(b.data(), &z[columns]);

  const Buffer<T> room(cut.all());
  std::vector<T> last(rows * columns);
  bool reads = true;
  cut.each(room, [&](auto panel, int64_t first) {
    using R = typename decltype(panel)::R;
    std::array<R, W> in, out;
    std::array<R, 2> after;
    for (size_t w = 0; w < W; ++w) in[w] = R::from(&x[w * padded + first]);
    panel.load(start.data() + first, columns, 1);
    panel.alternate(pointers<T, W>(a, rows), in, pointers<T, W>(b, rows), out, Run{"", 0});
    panel.write_then_read(std::array<const T*, 1>{c.data()}, std::array<R, 1>{in[0]},
                          std::array<const T*, 2>{a.data(), b.data()}, after, Run{"", 0});
    for (int64_t j = 0; j < panel.n; ++j) {
      for (size_t w = 0; w < W; ++w)
        reads &= reinterpret_cast<const T*>(&out[w])[j] == y[w * columns + first + j];
      for (int i = 0; i < 2; ++i)
        reads &= reinterpret_cast<const T*>(&after[i])[j] == z[i * columns + first + j];
    }
    panel.store(last.data() + first, columns);
  });
  expect(reads, "reads of a panel", rows, columns);
  expect(last == S, "a panel after its writes", rows, columns);
  T sum = 0;
  for (int64_t r = 0; r < rows; ++r) sum += a[r] * b[r];
  expect(dot(a.data(), b.data(), rows) == sum, "dot", rows, 0);
}

// out = (or +=) a b with a's rows as they lie, and a^T b over groups of rows.
template <class T>
void products(int64_t inner, int64_t vectors) {
  using L = Lanes<T>;
  Numbers<T> numbers;
  const int64_t width = vectors * L::n, groups = inner;
  const auto a = numbers.some(kGroup * inner), b = numbers.some(inner * width);
  const auto start = numbers.some(kGroup * width);
  std::vector<T> want(kGroup * width);
  for (int64_t r = 0; r < kGroup; ++r)
    for (int64_t c = 0; c < inner; ++c)
      for (int64_t j = 0; j < width; ++j) want[r * width + j] += a[r * inner + c] * b[c * width + j];
  auto got = start;
  product<false>(got.data(), width, Left<T>{a.data(), inner, 1}, workbench::rows(b.data(), width),
                 inner, vectors);
  expect(got == want, "product", inner, vectors);

  // packed: columns of one vector
  std::vector<T> columns(inner * width);
  for (int64_t c = 0; c < inner; ++c)
    for (int64_t j = 0; j < width; ++j)
      columns[j / L::n * inner * L::n + c * L::n + j % L::n] = b[c * width + j];
  got = start;
  product<true>(got.data(), width, Left<T>{a.data(), inner, 1}, packed(columns.data(), inner), inner,
                vectors);
  bool same = true;
  for (size_t i = 0; i < got.size(); ++i) same &= got[i] == start[i] + want[i];
  expect(same, "product added to what is there", inner, vectors);

  const auto left = numbers.some(groups * kGroup * kGroup);
  const auto right = numbers.some(groups * kGroup * width);
  auto sums = start;
  got = start;
  const auto takes = [](int64_t g) { return g % 3 != 1; };
  for (int64_t c = 0; c < groups * kGroup; ++c)
    for (int64_t r = 0; takes(c / kGroup) && r < kGroup; ++r)
      for (int64_t j = 0; j < width; ++j)
        sums[r * width + j] += left[c * kGroup + r] * right[c * width + j];
  product_of_groups(got.data(), width, Left<T>{left.data(), 1, kGroup},
                    workbench::rows(right.data(), width), groups, vectors, takes);
  expect(got == sums, "product of groups", groups, vectors);
}

template <class T>
void packing(int64_t rows, int64_t width) {
  using L = Lanes<T>;
  Numbers<T> numbers;
  const auto x = numbers.some(rows * width);
  const auto from = [&](int64_t r) { return r == 1 ? nullptr : x.data() + r * width; };
  const int64_t padded = rounded_up(width, L::n);
  std::vector<T> turned(rounded_up(rows, L::n) * width, T(9)), wide(rows * padded, T(9));
  pack_transposed<T>(turned.data(), rows, width, from);
  pack_rows<T>(wide.data(), rows, width, padded, from);
  bool same = true;
  for (int64_t r = 0; r < rounded_up(rows, L::n); ++r)
    for (int64_t c = 0; c < width; ++c)
      same &= turned[r / L::n * width * L::n + c * L::n + r % L::n] ==
              (r < rows && r != 1 ? x[r * width + c] : T(0));
  expect(same, "packed transpose", rows, width);
  same = true;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < padded; ++c)
      same &= wide[r * padded + c] == (c < width && r != 1 ? x[r * width + c] : T(0));
  expect(same, "packed rows", rows, width);
}

template <class T>
void lanes() {
  using L = Lanes<T>;
  Numbers<T> numbers;
  const auto x = numbers.some(L::n), y = numbers.some(L::n);
  const auto a = L::load(x.data()), b = L::load(y.data());
  const auto most = L::max(a, b), least = L::min(a, b), counted = L::number(L::index());
  T sum = 0, largest = x[0];
  bool same = true;
  for (int64_t c = 0; c < L::n; ++c) {
    sum += x[c], largest = std::max(largest, x[c]);
    same &= most[c] == std::max(x[c], y[c]) && least[c] == std::min(x[c], y[c]);
    same &= counted[c] == T(c) && L::all(T(2.5))[c] == T(2.5);
  }
  expect(same, "lanes", L::n, sizeof(T));
  expect(L::sum(a) == sum && sum_of_lanes<T>(a) == sum, "sum of lanes", L::n, sizeof(T));
  expect(L::largest(a) == largest, "largest lane", L::n, sizeof(T));

  const double low = sizeof(T) == 4 ? -87 : -708, unit = std::numeric_limits<T>::epsilon();
  double worst = 0;
  for (double at = low; at < 80; at += 0.0371) {
    const double got = exp(L::all(T(at)))[L::n - 1], want = std::exp(double(T(at)));
    worst = std::max(worst, std::abs(got - want) / want);
  }
  // the smallest normal numbers have all their digits, too; what is below them is nothing
  expect(worst < 4 * unit, "exp", L::n, int64_t(worst / unit));
  expect(exp(L::all(T(low - 2)))[0] == 0, "exp of what is far below", L::n, sizeof(T));
  expect(exp(L::all(-std::numeric_limits<T>::infinity()))[0] == 0, "exp", L::n, sizeof(T));
}

template <class T>
void all() {
  lanes<T>();
  for (const int64_t rows : {1, 2, 7, 16, 33, 300})
    for (const int64_t columns : {1, 3, 4, 5, 16, 31, 64, 70}) panels<T>(rows, columns);
  for (const int64_t inner : {1, 2, 9})
    for (const int64_t vectors : {1, 2, 3, 4}) products<T>(inner, vectors);
  for (const int64_t rows : {1, 2, 8, 19})
    for (const int64_t width : {1, 4, 15, 16, 37}) packing<T>(rows, width);
}

}  // namespace

int main() {
  all<float>();
  all<double>();
  std::printf("vectors of %d bytes, %d failures\n", workbench::kVectorBytes, failures);
  return failures > 0;
}
