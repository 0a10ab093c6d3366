// QRNN pooling on a CPU: c = f z + (1 - f) c, alone and between its gates; equations in README.md.
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "heads.h"
#include "pointwise.h"
#include "pool.h"

namespace workbench {
namespace {

using at::Tensor;

// Units do not depend on each other: each thread takes some of them through all tokens.
struct Block {
  int64_t b, first, n;
};

// `rows` of a block stay in the second-level cache between the two directions of a pass
constexpr int64_t kWidest = 256, kNarrowest = 64, kCacheBytes = 512 * 1024;

template <class T>
int64_t block_width(int64_t rows) {
  const int64_t fits = kCacheBytes / (rows * int64_t(sizeof(Computed<T>)));
  return std::clamp(fits / kNarrowest * kNarrowest, kNarrowest, kWidest);
}

// Call work(block, scratch): scratch has `rows` of the block's width, and the pass may run over
// several blocks in turn.
template <class T, class Work>
void for_each_block(int64_t B, int64_t tokens, int64_t U, int64_t rows, const Work& work) {
  const int64_t width = block_width<T>(rows), blocks = (U + width - 1) / width;
  // below some 50 microseconds of work a second thread costs more than it brings
  const int64_t grain = 1 + (1 << 17) / (1 + tokens * width);
  at::parallel_for(0, B * blocks, grain, [&](int64_t begin, int64_t end) {
    const Scratch<Computed<T>> scratch(rows * width);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * width;
      work(Block{i / blocks, first, std::min(width, U - first)}, scratch.get());
    }
  });
}

template <class T>
void load(Computed<T>* __restrict__ to, const T* __restrict__ from, int64_t n) {
#pragma omp simd
  for (int64_t u = 0; u < n; ++u) to[u] = from[u];
}

// Results of a pass have the type they are stored in; states that of the caller's.
Tensor computed(const Tensor& state, const Tensor& like) {
  return state.to(like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

// --- the recurrence alone ------------------------------------------------------------------------

template <class T>
void forward(const Tensor& f, const Tensor& z, const Tensor& state, Tensor& y, Tensor& last) {
  using A = Computed<T>;
  const int64_t tokens = f.size(1), U = f.size(2);
  const Lines<const T> F(f), Z(z);
  const Lines<T> Y(y);
  for_each_block<T>(f.size(0), tokens, U, 1, [&](Block k, A* __restrict__ c) {
    const int64_t at = k.b * U + k.first;
    load<A>(c, state.const_data_ptr<A>() + at, k.n);
    for (int64_t t = 0; t < tokens; ++t) {
      const T* __restrict__ f_ = F(k.b, t) + k.first;
      const T* __restrict__ z_ = Z(k.b, t) + k.first;
      T* __restrict__ y_ = Y(k.b, t) + k.first;
#pragma omp simd
      for (int64_t u = 0; u < k.n; ++u) {
        const A share = f_[u];
        c[u] = share * A(z_[u]) + (A(1) - share) * c[u];
        y_[u] = c[u];
      }
    }
    load<A>(last.mutable_data_ptr<A>() + at, c, k.n);
  });
}

template <class T>
void backward(const Tensor& gy, const Tensor& glast, const Tensor& f, const Tensor& z,
              const Tensor& y, const Tensor& state, Tensor& df, Tensor& dz, Tensor& dstate) {
  using A = Computed<T>;
  const int64_t tokens = f.size(1), U = f.size(2);
  const Lines<const T> Gy(gy), F(f), Z(z), Y(y);
  const Lines<T> Df(df), Dz(dz);
  for_each_block<T>(f.size(0), tokens, U, 2, [&](Block k, A* __restrict__ g) {
    const int64_t at = k.b * U + k.first;
    A* __restrict__ start = g + k.n;
    load<A>(g, glast.const_data_ptr<A>() + at, k.n);
    load<A>(start, state.const_data_ptr<A>() + at, k.n);
    const auto step = [&](int64_t t, const auto* __restrict__ before) {
      const T* __restrict__ gy_ = Gy(k.b, t) + k.first;
      const T* __restrict__ f_ = F(k.b, t) + k.first;
      const T* __restrict__ z_ = Z(k.b, t) + k.first;
      T* __restrict__ df_ = Df(k.b, t) + k.first;
      T* __restrict__ dz_ = Dz(k.b, t) + k.first;
#pragma omp simd
      for (int64_t u = 0; u < k.n; ++u) {
        const A total = g[u] + A(gy_[u]), share = f_[u];
        df_[u] = (A(z_[u]) - A(before[u])) * total;
        dz_[u] = share * total;
        g[u] = (A(1) - share) * total;
      }
    };
    for (int64_t t = tokens - 1; t > 0; --t) step(t, Y(k.b, t - 1) + k.first);
    step(0, static_cast<const A*>(start));
    load<A>(dstate.mutable_data_ptr<A>() + at, g, k.n);
  });
}

void check_alike(const Tensor& x, const Tensor& like, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK(x.sizes() == shape, "got ", name, " of shape ", x.sizes(), ", expected ", shape);
  TORCH_CHECK(x.scalar_type() == like.scalar_type() && x.device() == like.device(), "got ", name,
              " of type ", x.scalar_type(), " on ", x.device(), ", expected ", like.scalar_type(),
              " on ", like.device());
}

void check_state(const Tensor& state, const Tensor& like, int64_t B, int64_t U, const char* name) {
  TORCH_CHECK(state.dim() == 2 && state.size(0) == B && state.size(1) == U, "got ", name,
              " of shape ", state.sizes(), ", expected ", at::IntArrayRef({B, U}));
  TORCH_CHECK(state.device() == like.device(), "got ", name, " on ", state.device(), ", expected ",
              like.device());
}

std::tuple<Tensor, Tensor> forget_mult_forward(const Tensor& f_in, const Tensor& z_in,
                                               const Tensor& state_in) {
  TORCH_CHECK(f_in.dim() == 3, "got weights with ", f_in.dim(), " dimensions, expected 3");
  check_alike(z_in, f_in, f_in.sizes(), "values");
  check_state(state_in, f_in, f_in.size(0), f_in.size(2), "state");
  const Tensor f = with_contiguous_width(f_in), z = with_contiguous_width(z_in);
  const Tensor state = computed(state_in, f);
  Tensor y = pooled(f.sizes(), f.scalar_type()), last = pooled(state.sizes(), state.scalar_type());
  for_stored_type(f, [&](auto type) { forward<decltype(type)>(f, z, state, y, last); });
  return {y, last.to(state_in.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> forget_mult_backward(const Tensor& gy_in, const Tensor& glast,
                                                        const Tensor& f_in, const Tensor& z_in,
                                                        const Tensor& y, const Tensor& state_in) {
  check_alike(gy_in, f_in, f_in.sizes(), "output gradient");
  check_alike(z_in, f_in, f_in.sizes(), "values");
  check_alike(y, f_in, f_in.sizes(), "outputs");
  check_state(glast, f_in, f_in.size(0), f_in.size(2), "state gradient");
  check_state(state_in, f_in, f_in.size(0), f_in.size(2), "state");
  const Tensor f = with_contiguous_width(f_in), z = with_contiguous_width(z_in);
  const Tensor gy = with_contiguous_width(gy_in), state = computed(state_in, f);
  Tensor df = pooled(f.sizes(), f.scalar_type()), dz = pooled(f.sizes(), f.scalar_type());
  Tensor dstate = pooled(state.sizes(), state.scalar_type());
  for_stored_type(f, [&](auto type) {
    backward<decltype(type)>(gy, computed(glast, f), f, z, with_contiguous_width(y), state, df, dz,
                             dstate);
  });
  return {df, dz, dstate.to(state_in.scalar_type())};
}

// --- between its gates ---------------------------------------------------------------------------

// Rows of z, f and, if there is one, o lie side by side: (B, T, 2 U) or (B, T, 3 U).
struct Gates {
  const Tensor &gates, &state;
  const std::optional<Tensor>& mask;
  double share;
  int64_t B, T, U;
  bool output;
};

template <class T, bool kOutput, bool kMask>
void pool_forward(const Gates& in, Tensor& y, Tensor& last) {
  using A = Computed<T>;
  const Lines<const T> G(in.gates), M(kMask ? *in.mask : in.gates);
  const Lines<T> Y(y);
  const A scale = in.share;
  for_each_block<T>(in.B, in.T, in.U, 1, [&](Block k, A* __restrict__ c) {
    const int64_t at = k.b * in.U + k.first, U = in.U;
    load<A>(c, in.state.const_data_ptr<A>() + at, k.n);
    for (int64_t t = 0; t < in.T; ++t) {
      const T* __restrict__ g = G(k.b, t) + k.first;
      const T* __restrict__ m = M(k.b, t) + k.first;
      T* __restrict__ y_ = Y(k.b, t) + k.first;
#pragma omp simd
      for (int64_t u = 0; u < k.n; ++u) {
        A share = scale * sigmoid_of(A(g[U + u]));
        if constexpr (kMask) share *= A(m[u]);
        c[u] = share * tanh_of(A(g[u])) + (A(1) - share) * c[u];
        if constexpr (kOutput) y_[u] = sigmoid_of(A(g[2 * U + u])) * c[u];
        else y_[u] = c[u];
      }
    }
    load<A>(last.mutable_data_ptr<A>() + at, c, k.n);
  });
}

// Nothing but the inputs is kept for this: values, shares and cells are computed again, a block at a
// time, and are still in the cache when the gradient comes back through them.
template <class T, bool kOutput, bool kMask>
void pool_backward(const Gates& in, const Tensor& gy, const Tensor& glast, Tensor& dgates,
                   Tensor& dstate) {
  using A = Computed<T>;
  const Lines<const T> G(in.gates), M(kMask ? *in.mask : in.gates), Gy(gy);
  const Lines<T> Dg(dgates);
  const A scale = in.share;
  for_each_block<T>(in.B, in.T, in.U, 3 * in.T + 1, [&](Block k, A* __restrict__ scratch) {
    const int64_t at = k.b * in.U + k.first, U = in.U, n = k.n;
    load<A>(scratch, in.state.const_data_ptr<A>() + at, n);
    // the state, then for each token: cells, values, gates
    for (int64_t t = 0; t < in.T; ++t) {
      const T* __restrict__ g = G(k.b, t) + k.first;
      const T* __restrict__ m = M(k.b, t) + k.first;
      const A* __restrict__ before = scratch + (t ? 3 * t - 2 : 0) * n;
      A* __restrict__ c = scratch + (3 * t + 1) * n;
      A* __restrict__ z = c + n;
      A* __restrict__ s = z + n;
#pragma omp simd
      for (int64_t u = 0; u < n; ++u) {
        z[u] = tanh_of(A(g[u]));
        s[u] = sigmoid_of(A(g[U + u]));
        A share = scale * s[u];
        if constexpr (kMask) share *= A(m[u]);
        c[u] = share * z[u] + (A(1) - share) * before[u];
      }
    }
    A* __restrict__ later = dstate.mutable_data_ptr<A>() + at;
    load<A>(later, glast.const_data_ptr<A>() + at, n);
    for (int64_t t = in.T - 1; t >= 0; --t) {
      const T* __restrict__ g = G(k.b, t) + k.first;
      const T* __restrict__ m = M(k.b, t) + k.first;
      const T* __restrict__ gy_ = Gy(k.b, t) + k.first;
      T* __restrict__ d = Dg(k.b, t) + k.first;
      const A* __restrict__ before = scratch + (t ? 3 * t - 2 : 0) * n;
      const A* __restrict__ c = scratch + (3 * t + 1) * n;
      const A* __restrict__ z = c + n;
      const A* __restrict__ s = z + n;
#pragma omp simd
      for (int64_t u = 0; u < n; ++u) {
        A total = A(gy_[u]);
        if constexpr (kOutput) {
          const A o = sigmoid_of(A(g[2 * U + u]));
          d[2 * U + u] = total * c[u] * o * (A(1) - o);
          total *= o;
        }
        total += later[u];
        A kept = scale;
        if constexpr (kMask) kept *= A(m[u]);
        const A share = kept * s[u];
        d[u] = share * total * (A(1) - z[u] * z[u]);
        d[U + u] = (z[u] - before[u]) * total * share * (A(1) - s[u]);
        later[u] = (A(1) - share) * total;
      }
    }
  });
}

template <class Work>
void for_gates(const Gates& in, const Work& work) {
  for_stored_type(in.gates, [&](auto type) {
    using std::true_type, std::false_type;
    if (in.output && in.mask) work(type, true_type{}, true_type{});
    else if (in.output) work(type, true_type{}, false_type{});
    else if (in.mask) work(type, false_type{}, true_type{});
    else work(type, false_type{}, false_type{});
  });
}

Gates check_gates(const Tensor& gates, const Tensor& state, const std::optional<Tensor>& mask,
                  double share) {
  TORCH_CHECK(gates.dim() == 3 && state.dim() == 2, "got gates with ", gates.dim(),
              " and a state with ", state.dim(), " dimensions, expected 3 and 2");
  const int64_t B = gates.size(0), T = gates.size(1), U = state.size(1);
  TORCH_CHECK(gates.size(2) == 2 * U || gates.size(2) == 3 * U, "got gates of width ",
              gates.size(2), " beside ", U, " units, expected two or three times as many");
  if (mask) check_alike(*mask, gates, {B, T, U}, "mask");
  return {gates, state, mask, share, B, T, U, gates.size(2) == 3 * U};
}

std::optional<Tensor> rows_of(const std::optional<Tensor>& mask) {
  return mask ? std::optional(with_contiguous_width(*mask)) : mask;
}

std::tuple<Tensor, Tensor> fo_pool_forward(const Tensor& gates_in, const Tensor& state_in,
                                           const std::optional<Tensor>& mask_in, double share) {
  const Tensor gates = with_contiguous_width(gates_in);
  const std::optional<Tensor> mask = rows_of(mask_in);
  const Tensor state = computed(state_in, gates);
  const Gates in = check_gates(gates, state, mask, share);
  check_state(state_in, gates, in.B, in.U, "state");
  Tensor y = pooled({in.B, in.T, in.U}, gates.scalar_type());
  Tensor last = pooled(state.sizes(), state.scalar_type());
  for_gates(in, [&](auto type, auto output, auto masked) {
    pool_forward<decltype(type), output.value, masked.value>(in, y, last);
  });
  return {y, last.to(state_in.scalar_type())};
}

std::tuple<Tensor, Tensor> fo_pool_backward(const Tensor& gy_in, const Tensor& glast,
                                            const Tensor& gates_in, const Tensor& state_in,
                                            const std::optional<Tensor>& mask_in, double share) {
  const Tensor gates = with_contiguous_width(gates_in);
  const std::optional<Tensor> mask = rows_of(mask_in);
  const Tensor state = computed(state_in, gates);
  const Gates in = check_gates(gates, state, mask, share);
  check_alike(gy_in, gates, {in.B, in.T, in.U}, "output gradient");
  check_state(glast, gates, in.B, in.U, "state gradient");
  const Tensor gy = with_contiguous_width(gy_in), glast_ = computed(glast, gates);
  Tensor dgates = pooled(gates.sizes(), gates.scalar_type());
  Tensor dstate = pooled(state.sizes(), state.scalar_type());
  for_gates(in, [&](auto type, auto output, auto masked) {
    pool_backward<decltype(type), output.value, masked.value>(in, gy, glast_, dgates, dstate);
  });
  return {dgates, dstate.to(state_in.scalar_type())};
}

TORCH_LIBRARY_IMPL(workbench, CPU, m) {
  m.impl("forget_mult_forward", forget_mult_forward);
  m.impl("forget_mult_backward", forget_mult_backward);
  m.impl("fo_pool_forward", fo_pool_forward);
  m.impl("fo_pool_backward", fo_pool_backward);
}

}  // namespace
}  // namespace workbench
