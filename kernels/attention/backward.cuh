// The backward pass of attention: three kernels that compute weights again, each for the gradients that
// it can sum up alone, so that no number depends on the order of blocks; equations in README.md.
#pragma once

#include "problem.cuh"

namespace {

template <class T> struct Gradients {
    const T *gy, *y;
    const float* log_norm;
    T *q, *k, *v, *p, *codes, *bias;
    float* span;  // (B, H, T)
    T *persistent_k, *persistent_v, *persistent_bias;
    float* scratch;
};

// Where sums of parts lie in the scratch memory, and into how many parts batches are divided.
struct Plan {
    int diagonals, first_distance, persistent_splits, code_splits;
    int64_t delta, keys, values, bias, codes, code_bias, total;

    template <class C>
    static Plan of(int64_t B, int64_t T, int64_t H, int64_t K, int64_t V, int64_t N, bool positions,
                   int64_t nearest, int64_t farthest) {
        constexpr int64_t ENOUGH = 512;  // blocks that keep a GPU busy
        auto splits = [&](int64_t blocks) { return blocks ? std::min(B, ceil_div(ENOUGH, blocks)) : int64_t{0}; };
        Plan x{};
        x.first_distance = static_cast<int>(nearest) - C::TILE + 1;
        if (positions && farthest >= nearest)
            x.diagonals = static_cast<int>((farthest - x.first_distance) / C::TILE + 1);
        x.persistent_splits = static_cast<int>(splits(ceil_div(N, C::TILE) * H));
        x.code_splits = static_cast<int>(splits(x.diagonals * H));
        auto next = [&](int64_t n) { return std::exchange(x.total, x.total + n); };
        x.delta = next(B * H * T);
        x.keys = next(x.persistent_splits * H * N * K);
        x.values = next(x.persistent_splits * H * N * V);
        x.bias = next(x.persistent_splits * H * N);
        x.codes = next(x.code_splits * H * x.diagonals * 2 * C::TILE * K);
        x.code_bias = next(x.code_splits * H * x.diagonals * 2 * C::TILE);
        return x;
    }
};

// Tiles that all three kernels need.
template <class C, class T = typename C::T> struct Workspace {
    float* skew;
    typename C::Tile q, gy, k, v, p, codes;
    float* biases;

    __device__ Workspace(Carver& shared, bool positions) {
        skew = shared.take<float>(C::skew_bytes);
        q.at = shared.take<T>(C::tile_bytes), gy.at = shared.take<T>(C::tile_bytes);
        k.at = shared.take<T>(C::tile_bytes), v.at = shared.take<T>(C::tile_bytes);
        p.at = nullptr, codes.at = nullptr, biases = nullptr;
        if (!positions) return;
        p.at = shared.take<T>(C::tile_bytes), codes.at = shared.take<T>(2 * C::tile_bytes);
        biases = shared.take<float>(sizeof(float) * 2 * C::TILE);
    }
    __device__ float* warp_skew() const { return skew + threadIdx.x / 32 * 16 * C::LD_SKEW; }
    __device__ typename C::Strip strip() const { return {reinterpret_cast<T*>(warp_skew())}; }
    // all warps' strips: they follow each other, 16 rows to a warp
    __device__ typename C::Strip strips() const { return {reinterpret_cast<T*>(skew)}; }

    __device__ void load_queries(const Problem<T>& z, const T* gy_all, int b, int h, int i0) const {
        load<C::TILE, C::WIDTH>(q, z.of_queries(z.q, b, h, z.K), i0);
        load<C::TILE, C::WIDTH>(gy, z.of_queries(gy_all, b, h, z.V), i0);
        if (z.has_positions() && p.at) load<C::TILE, C::WIDTH>(p, z.of_queries(z.p, b, h, z.K), i0);
    }
    __device__ void load_keys(const Problem<T>& z, const Keys& keys, int b, int h) const {
        const Source<T> k_ = keys.of_text ? z.of_keys(z.k, b, h, z.K) : z.of_persistent(z.persistent_k, h, z.K);
        const Source<T> v_ = keys.of_text ? z.of_keys(z.v, b, h, z.V) : z.of_persistent(z.persistent_v, h, z.V);
        load<C::TILE, C::WIDTH>(k, k_, keys.first);
        load<C::TILE, C::WIDTH>(v, v_, keys.first);
    }
};

template <class C> size_t backward_bytes(bool positions) {
    return C::skew_bytes + 4 * C::tile_bytes + (positions ? C::tile_bytes + C::code_bytes : 0);
}

// A lane's two rows of a tile of queries, and what the backward pass knows of them.
struct TwoQueries {
    Query query[2];
    float log_norm[2], delta[2];

    template <class T>
    __device__ TwoQueries(const Problem<T>& z, const Gradients<T>& g, const float* delta_BHT, int b, int h, int i0) {
        for (int r = 0; r < 2; r++) {
            const int i = i0 + row_of(threadIdx.x % 32, 2 * r);
            query[r] = Query::of(z, b, h, i);
            log_norm[r] = query[r].there ? g.log_norm[z.row(b, h, i)] : INFINITY;
            delta[r] = query[r].there && delta_BHT ? delta_BHT[z.row(b, h, i)] : 0;
        }
    }
};

// From scores (s) and gy . v (d): the weights that values were read with (s) and the gradients of the
// scores (d); adds up the gradients of the two rows' spans.
template <class C, class T>
__device__ __forceinline__ void differentiate(const Problem<T>& z, const Keys& keys, const TwoQueries& two, int h,
                                              int i0, typename C::Scores& s, typename C::Scores& d, float (&dspan)[2]) {
    const int lane = threadIdx.x % 32;
    const float epsilon = z.epsilon();
    #pragma unroll
    for (int n = 0; n < C::TILE / 8; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const int c = column_of(lane, n, i), r = i / 2;
            const int distance = keys.seen(z, two.query[r], i0 + row_of(lane, i), c);
            float weight = 0, ds = 0;
            if (distance >= 0) {
                const float e = exp2f((s.at[n][i] + keys.bias(z, h, c) - two.log_norm[r]) * LOG2_E);
                const float drop = two.query[r].dropout(z, keys.column + keys.first + c);
                const float room = keys.room(z, two.query[r], distance), m = soft_mask(room, z.ramp);
                const float above = d.at[n][i] * drop - two.delta[r];
                weight = e * m * drop;
                ds = e * (m * above - epsilon * two.delta[r]);
                // clamping passes the gradient on at both ends
                if (keys.of_text && room >= 0 && room <= z.ramp) dspan[r] += e * above / z.ramp;
            }
            s.at[n][i] = weight, d.at[n][i] = ds;
        }
}

// A warp's weights and gradients of scores: 16 queries from row 16 * warp on against a tile of keys.
template <class C, class T>
__device__ __forceinline__ void weights(const Problem<T>& z, const Workspace<C>& w, const Keys& keys,
                                        const TwoQueries& two, int h, int i0, typename C::Scores& s,
                                        typename C::Scores& d, float (&dspan)[2]) {
    const int first = static_cast<int>(threadIdx.x) / 32 * 16;
    const bool by_distance = keys.of_text && z.has_positions();
    scores<C>(s, rows_from(w.q, first), w.k, by_distance, rows_from(w.p, by_distance ? first : 0),
              rows_from(w.codes, by_distance ? first : 0), w.biases + (by_distance ? first : 0), w.warp_skew());
    d.clear();
    Product<T>::template by_rows<C::WIDTH>(d, rows_from(w.gy, first), w.v);
    differentiate<C>(z, keys, two, h, i0 + first, s, d, dspan);
}

// Row i, key c to column i - c + TILE - 1 of row `first` + i.
template <class C, class T, int LD>
__device__ __forceinline__ void put_skewed(Rows<T, LD> to, const typename C::Scores& ds, int first = 0) {
    const int lane = threadIdx.x % 32;
    #pragma unroll
    for (int n = 0; n < C::TILE / 8; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = first + row_of(lane, i);
            *to(row, row - column_of(lane, n, i) + C::TILE - 1) = from_float<T>(ds.at[n][i]);
        }
}

// One block: TILE queries of one head; gradients of queries, position queries and spans; and delta, each
// query's gy . y.
template <class C, class T = typename C::T>
__global__ void __launch_bounds__(C::THREADS, 1) rows(const Problem<T> z, const Gradients<T> g) {
    const Where at = Where::of<C>(blockIdx.x, ceil_div(z.T_, C::TILE), z.H);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i0 = at.tile * C::TILE;
    Carver shared;
    const Workspace<C> w(shared, z.has_positions());
    const typename C::Strip strip = w.strip();
    w.load_queries(z, g.gy, at.b, at.h, i0);
    TwoQueries two(z, g, nullptr, at.b, at.h, i0 + 16 * warp);
    for (int r = 0; r < 2; r++) {
        const int i = i0 + 16 * warp + row_of(lane, 2 * r);
        const int64_t row = ((static_cast<int64_t>(at.b) * z.T_ + i) * z.H + at.h) * z.V;
        float delta = 0;
        if (i < z.T_)
            for (int c = lane % 4; c < z.V; c += 4) delta += to_float(g.gy[row + c]) * to_float(g.y[row + c]);
        two.delta[r] = row_sum(delta);
        if (i < z.T_ && lane % 4 == 0 && at.slice == 0) g.scratch[z.row(at.b, at.h, i)] = two.delta[r];
    }

    typename C::Result dq, dp;
    dq.clear(), dp.clear();
    float dspan[2] = {0, 0};
    const Visits visits = Visits::of_queries<C>(z, at, i0);
    for (int visit = 0; visit < visits.count(); visit++) {
        const Keys keys = visits.keys<C>(z, visit);
        w.load_keys(z, keys, at.b, at.h);
        const bool by_distance = keys.of_text && z.has_positions();
        if (by_distance) load_codes<C>(z, w.codes, w.biases, at.h, z.shift() + i0 - keys.first - C::TILE + 1);
        loaded();
        typename C::Scores s, ds;
        weights<C>(z, w, keys, two, at.h, i0, s, ds, dspan);
        put(strip, ds);
        __syncwarp();
        Product<T>::template by_columns<C::TILE>(dq, strip, rows_from(w.k, 0, at.slice * C::OUT));
        __syncwarp();
        if (by_distance) {
            // the same numbers by distance, zeros where a row has none
            for (int n = lane; n < 16 * C::DISTANCES; n += 32)
                *strip(n / C::DISTANCES, n % C::DISTANCES) = from_float<T>(0);
            __syncwarp();
            put_skewed<C>(strip, ds);
            __syncwarp();
            Product<T>::template by_columns<C::DISTANCES>(dp, strip, rows_from(w.codes, 16 * warp, at.slice * C::OUT));
        }
        __syncthreads();
    }
    cp_async_wait<0>();
    for (int r = 0; r < 2; r++) {
        const int i = i0 + 16 * warp + row_of(lane, 2 * r);
        dspan[r] = row_sum(dspan[r]);
        if (i >= z.T_) continue;
        const int64_t row = ((static_cast<int64_t>(at.b) * z.T_ + i) * z.H + at.h) * z.K;
        write(dq, r, 1, g.q + row, at.slice * C::OUT, z.K);
        if (z.has_positions()) write(dp, r, 1, g.p + row, at.slice * C::OUT, z.K);
        if (z.span_kind != NO_SPAN && at.slice == 0 && lane % 4 == 0) g.span[z.row(at.b, at.h, i)] = dspan[r];
    }
}

// One block: TILE keys of one head; gradients of keys and values, over all queries that see them. Keys
// of the text have one sequence each; persistent ones (of_text false) sum over a part of the batch.
template <class C, class T = typename C::T>
__global__ void __launch_bounds__(C::THREADS, 1) columns(const Problem<T> z, const Gradients<T> g, const Plan plan, const bool of_text) {
    const int count = of_text ? z.S : z.N;
    const Where at = Where::of<C>(blockIdx.x, ceil_div(count, C::TILE), z.H);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, j0 = at.tile * C::TILE;
    const Keys keys{of_text, j0, count, of_text ? 0 : z.S};
    Carver shared;
    const Workspace<C> w(shared, of_text && z.has_positions());
    const typename C::Strip strips = w.strips();
    w.load_keys(z, keys, at.b, at.h);

    typename C::Result dk, dv;
    dk.clear(), dv.clear();
    float dbias = 0, unused[2] = {0, 0};
    int first = 0, last = z.T_ - 1;
    if (of_text) {
        const int reach = z.span_kind == OF_HEADS ? z.reach(z.span[at.h]) : z.farthest;
        first = max(0, j0 + z.nearest - z.shift());
        last = min(last, j0 + C::TILE - 1 + reach - z.shift());
        if (reach < z.nearest) last = -1;
    }
    const int b_first = of_text ? at.b : at.b * z.B / plan.persistent_splits;
    const int b_end = of_text ? at.b + 1 : (at.b + 1) * z.B / plan.persistent_splits;
    for (int b = b_first; b < b_end; b++)
        for (int i0 = first; i0 <= last; i0 += C::TILE) {
            const int closest = z.shift() + i0 - j0 - C::TILE + 1;
            if (of_text && z.template reach_of_tile<C::TILE>(b, at.h, i0) < closest) continue;
            w.load_queries(z, g.gy, b, at.h, i0);
            if (of_text && z.has_positions()) load_codes<C>(z, w.codes, w.biases, at.h, closest);
            const TwoQueries two(z, g, g.scratch + plan.delta, b, at.h, i0 + 16 * warp);
            loaded();
            typename C::Scores s, ds;
            weights<C>(z, w, keys, two, at.h, i0, s, ds, unused);
            put(strips, s, 16 * warp);
            put(rows_from(strips, 0, C::SECOND), ds, 16 * warp);
            __syncthreads();
            Product<T>::template transposed<C::TILE>(dv, rows_from(strips, 0, 16 * warp),
                                                     rows_from(w.gy, 0, at.slice * C::OUT));
            Product<T>::template transposed<C::TILE>(dk, rows_from(strips, 0, C::SECOND + 16 * warp),
                                                     rows_from(w.q, 0, at.slice * C::OUT));
            if (!of_text && z.persistent_bias && threadIdx.x < C::TILE)
                for (int i = 0; i < C::TILE; i++) dbias += to_float(*strips(i, C::SECOND + threadIdx.x));
            __syncthreads();
        }
    cp_async_wait<0>();
    for (int r = 0; r < 2; r++) {
        const int j = j0 + 16 * warp + row_of(lane, 2 * r);
        if (j >= count) continue;
        if (of_text) {
            const int64_t row = (static_cast<int64_t>(at.b) * z.S + j) * z.H + at.h;
            write(dk, r, 1, g.k + row * z.K, at.slice * C::OUT, z.K);
            write(dv, r, 1, g.v + row * z.V, at.slice * C::OUT, z.V);
        } else {
            const int64_t row = (static_cast<int64_t>(at.b) * z.H + at.h) * z.N + j;
            write(dk, r, 1, g.scratch + plan.keys + row * z.K, at.slice * C::OUT, z.K);
            write(dv, r, 1, g.scratch + plan.values + row * z.V, at.slice * C::OUT, z.V);
        }
    }
    if (!of_text && z.persistent_bias && at.slice == 0 && threadIdx.x < C::TILE && j0 + static_cast<int>(threadIdx.x) < count)
        g.scratch[plan.bias + (static_cast<int64_t>(at.b) * z.H + at.h) * z.N + j0 + threadIdx.x] = dbias;
}

// One block: one diagonal of tiles of one head, over a part of the batch: the gradients of the codes of
// 2 TILE distances from `distance` on, the same ones for every tile of queries, whose keys are chosen so.
template <class C, class T = typename C::T>
__global__ void __launch_bounds__(C::THREADS, 1) codes(const Problem<T> z, const Gradients<T> g, const Plan plan) {
    const Where at = Where::of<C>(blockIdx.x, plan.diagonals, z.H);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int distance = plan.first_distance + at.tile * C::TILE;
    Carver shared;
    const Workspace<C> w(shared, true);
    const Rows<T, C::LD_ALL> band{shared.take<T>(sizeof(T) * C::TILE * C::LD_ALL)};
    load_codes<C>(z, w.codes, w.biases, at.h, distance);
    // what lies beside the band of a tile's distances stays zero
    for (int n = threadIdx.x; n < C::TILE * C::LD_ALL; n += C::THREADS) band.at[n] = from_float<T>(0);

    // 2 TILE distances, 16 at a time: this warp has the groups `warp` and `warp + WARPS`
    typename C::Result dcodes[2];
    dcodes[0].clear(), dcodes[1].clear();
    float dbias = 0, unused[2] = {0, 0};
    for (int b = at.b * z.B / plan.code_splits; b < (at.b + 1) * z.B / plan.code_splits; b++)
        for (int i0 = 0; i0 < z.T_; i0 += C::TILE) {
            const Keys keys{true, z.shift() + i0 - distance - C::TILE + 1, z.S, 0};
            if (keys.first >= z.S || keys.first + C::TILE <= 0) continue;
            if (z.template reach_of_tile<C::TILE>(b, at.h, i0) < distance) continue;
            w.load_queries(z, g.gy, b, at.h, i0);
            w.load_keys(z, keys, b, at.h);
            const TwoQueries two(z, g, g.scratch + plan.delta, b, at.h, i0 + 16 * warp);
            loaded();
            typename C::Scores s, ds;
            weights<C>(z, w, keys, two, at.h, i0, s, ds, unused);
            put_skewed<C>(band, ds, 16 * warp);
            __syncthreads();
            #pragma unroll
            for (int part = 0; part < 2; part++) {
                const int first = 16 * (warp + part * C::WARPS);
                #pragma unroll 1
                for (int i = 0; i < C::TILE; i += 16)  // query i has distances i.. i + TILE - 1 of them
                    if (first + 15 >= i && first <= i + 15 + C::TILE - 1)
                        Product<T>::template transposed<16>(dcodes[part], rows_from(band, i, first),
                                                            rows_from(w.p, i, at.slice * C::OUT));
            }
            if (z.bias)
                for (int i = 0; i < C::TILE; i++) dbias += to_float(*band(i, threadIdx.x));
            __syncthreads();
        }
    cp_async_wait<0>();
    const int64_t block = (static_cast<int64_t>(at.b) * z.H + at.h) * plan.diagonals + at.tile;
    #pragma unroll
    for (int part = 0; part < 2; part++)
        #pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = 16 * (warp + part * C::WARPS) + row_of(lane, 2 * r);
            write(dcodes[part], r, 1, g.scratch + plan.codes + (block * 2 * C::TILE + row) * z.K, at.slice * C::OUT, z.K);
        }
    if (z.bias && at.slice == 0) g.scratch[plan.code_bias + block * 2 * C::TILE + threadIdx.x] = dbias;
}

template <class C> size_t codes_bytes() {
    return backward_bytes<C>(true) + sizeof(typename C::T) * C::TILE * C::LD_ALL;
}

template <class T> __global__ void sum_parts(const float* parts, T* to, int64_t n, int splits) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0;
    for (int part = 0; part < splits; part++) sum += parts[part * n + i];
    to[i] = from_float<T>(sum);
}

// Sums what the diagonals found for the distances of one row of codes: each distance lies in two.
// `width` numbers to a distance, of which this is number `column`.
template <class T>
__device__ float sum_of_row(const Problem<T>& z, const Plan& plan, const float* parts, int row, int h, int width,
                            int column, int tile) {
    float sum = 0;
    const int last = row == z.R - 1 ? z.farthest : min(row, z.farthest);
    for (int distance = max(row, z.nearest); distance <= last; distance++)
        for (int part = 0; part < plan.code_splits; part++) {
            const int newest = (distance - plan.first_distance) / tile;
            for (int diagonal = max(0, newest - 1); diagonal <= min(newest, plan.diagonals - 1); diagonal++) {
                const int64_t block = (static_cast<int64_t>(part) * z.H + h) * plan.diagonals + diagonal;
                const int offset = distance - plan.first_distance - diagonal * tile;
                sum += parts[(block * 2 * tile + offset) * width + column];
            }
        }
    return sum;
}

template <class T>
__global__ void sum_codes(const Problem<T> z, const Gradients<T> g, const Plan plan, int tile) {
    const int row = blockIdx.x, head = blockIdx.y;
    for (int column = threadIdx.x; column < z.K; column += blockDim.x) {
        float sum = 0;
        for (int h = z.code_heads == 1 ? 0 : head; h < (z.code_heads == 1 ? z.H : head + 1); h++)
            sum += sum_of_row(z, plan, g.scratch + plan.codes, row, h, z.K, column, tile);
        g.codes[(static_cast<int64_t>(row) * z.code_heads + head) * z.K + column] = from_float<T>(sum);
    }
}

template <class T>
__global__ void sum_code_biases(const Problem<T> z, const Gradients<T> g, const Plan plan, int tile) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<int64_t>(z.R) * z.H) return;
    const int row = static_cast<int>(i / z.H), h = static_cast<int>(i % z.H);
    g.bias[i] = from_float<T>(sum_of_row(z, plan, g.scratch + plan.code_bias, row, h, 1, 0, tile));
}

}  // namespace
