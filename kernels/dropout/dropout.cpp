// Dropout on a CPU, its mask a function of a seed and of where a number is; see README.md.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace workbench {
namespace {

using at::Tensor;

constexpr int64_t ROW = 4096;  // numbers that share what is mixed from seed and row

uint32_t mix(uint32_t x) {
  x = (x ^ x >> 16) * 0x7FEB352Du;
  x = (x ^ x >> 15) * 0x846CA68Bu;
  return x ^ x >> 16;
}

template <class T>
void drop_row(const T* x, T* y, int64_t n, uint32_t first, uint32_t second, uint32_t threshold,
              double factor) {
  using C = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const C scale = static_cast<C>(factor);
  for (int64_t c = 0; c < n; ++c) {
    uint32_t h = static_cast<uint32_t>(c) * 0x9E3779B1u + first;
    h = (h ^ h >> 16) * 0x7FEB352Du;
    h ^= h >> 15;
    h = (h + second) * 0x846CA68Bu;
    h ^= h >> 16;
    const C kept = static_cast<C>(x[c]) * scale;
    y[c] = static_cast<T>(h >= threshold ? kept : C(0));
  }
}

Tensor dropout(const Tensor& x_in, const Tensor& seed_in, double p) {
  TORCH_CHECK(0 <= p && p < 1, "got a probability of ", p, ", expected 0 <= p < 1");
  TORCH_CHECK(seed_in.scalar_type() == at::kLong && seed_in.numel() == 1, "got a seed of ",
              seed_in.numel(), " ", seed_in.scalar_type(), ", expected one int64");
  const uint64_t seed = static_cast<uint64_t>(*seed_in.const_data_ptr<int64_t>());
  const auto threshold = static_cast<uint32_t>(std::min(std::nearbyint(p * 0x1p32), 0x1p32 - 1));
  const Tensor x = x_in.contiguous();
  Tensor y = at::empty(x.sizes(), x.options());
  const int64_t n = x.numel(), rows = (n + ROW - 1) / ROW;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "dropout", [&] {
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = y.mutable_data_ptr<scalar_t>();
    // below some 10 microseconds of work a second thread costs more than it brings
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const auto low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
        const auto row = static_cast<uint32_t>(r);
        drop_row(from + r * ROW, to + r * ROW, std::min(ROW, n - r * ROW), mix(row ^ low),
                 mix(row + high + 0x9E3779B9u), threshold, 1 / (1 - p));
      }
    });
  });
  return y;
}

TORCH_LIBRARY_IMPL(workbench, CPU, m) { m.impl("dropout", dropout); }

}  // namespace
}  // namespace workbench
