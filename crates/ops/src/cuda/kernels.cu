// Kernels of the operators on a GPU, forward and backward. The Rust side is in the modules of this folder.
//
// Matrices are row after row. One warp processes a row of width d, and its lanes hold P values each, so d <= 32 P. Sums over many rows go
// through partial results in a fixed order, never through floating-point atomics: the same inputs give the same bytes. Dropout is drawn
// from the same counters as on the CPU.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

#define ALL 0xffffffffu
#define WARPS 8
#define EPS 1e-12f

// ---------------------------------------------------------------- shared by all

// The size is set by each launch.
extern __shared__ __align__(16) float shared_room[];

struct Drop {
  u32 threshold;
  float scale;
  u32 key0;
  u32 key1;
};

__device__ __forceinline__ float factor(Drop drop, u32 index) {
  u32 x = index ^ drop.key0;
  x = ((x ^ (x >> 16)) * 0x7feb352du) ^ drop.key1;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  x = x ^ (x >> 16);
  return x >= drop.threshold ? drop.scale : 0.0f;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int at = 16; at > 0; at /= 2) x += __shfl_xor_sync(ALL, x, at);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int at = 16; at > 0; at /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, at));
  return x;
}

__device__ __forceinline__ float read(const float* at) { return *at; }
__device__ __forceinline__ float read(const __half* at) { return __half2float(*at); }
__device__ __forceinline__ float read(const __nv_bfloat16* at) { return __bfloat162float(*at); }
__device__ __forceinline__ void write(float* at, float x) { *at = x; }
__device__ __forceinline__ void write(__nv_bfloat16* at, float x) { *at = __float2bfloat16(x); }

__device__ __forceinline__ void write_four(float* at, float4 x) { *(float4*)at = x; }
__device__ __forceinline__ void write_four(__nv_bfloat16* at, float4 x) {
  *(__nv_bfloat162*)at = __floats2bfloat162_rn(x.x, x.y);
  *(__nv_bfloat162*)(at + 2) = __floats2bfloat162_rn(x.z, x.w);
}

__device__ __forceinline__ float4 read_four(const float* at) { return *(const float4*)at; }
__device__ __forceinline__ float4 read_four(const __half* at) {
  uint2 both = *(const uint2*)at;
  float2 x = __half22float2(*(__half2*)&both.x), y = __half22float2(*(__half2*)&both.y);
  return make_float4(x.x, x.y, y.x, y.y);
}
__device__ __forceinline__ float4 read_four(const __nv_bfloat16* at) {
  uint2 both = *(const uint2*)at;
  float2 x = __bfloat1622float2(*(__nv_bfloat162*)&both.x), y = __bfloat1622float2(*(__nv_bfloat162*)&both.y);
  return make_float4(x.x, x.y, y.x, y.y);
}

// The index of the warp in the grid.
__device__ __forceinline__ u32 warp_index() { return (blockIdx.x * blockDim.x + threadIdx.x) / 32; }

template <int P>
__device__ __forceinline__ void load(float (&x)[P], const float* from, int d) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < P; j++) {
    int i = lane + 32 * j;
    x[j] = i < d ? from[i] : 0.0f;
  }
}

template <int P>
__device__ __forceinline__ void store(float* to, const float (&x)[P], int d) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < P; j++) {
    int i = lane + 32 * j;
    if (i < d) to[i] = x[j];
  }
}

// The position of values j to j + 3 of a lane in a row whose lanes hold adjacent values, which are read and written at once.
__device__ __forceinline__ u32 four_at(int j) { return 32 * j + 4 * (threadIdx.x % 32); }

template <typename T>
__device__ __forceinline__ void load_four(float* x, const T* row, int j, u32 d) {
  u32 i = four_at(j);
  if (d % 4 == 0) {
    float4 four = i < d ? read_four(row + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
  } else {
#pragma unroll
    for (int k = 0; k < 4; k++) x[k] = i + k < d ? read(row + i + k) : 0.0f;
  }
}

template <typename T>
__device__ __forceinline__ void store_four(T* row, const float* x, int j, u32 d) {
  u32 i = four_at(j);
  if (d % 4 == 0) {
    if (i < d) write_four(row + i, make_float4(x[0], x[1], x[2], x[3]));
  } else {
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (i + k < d) write(row + i + k, x[k]);
  }
}

template <int P, typename T>
__device__ __forceinline__ void load_fours(float (&x)[P], const T* row, u32 d) {
#pragma unroll
  for (int j = 0; j < P; j += 4) load_four(x + j, row, j, d);
}

template <int P, typename T>
__device__ __forceinline__ void store_fours(T* row, const float (&x)[P], u32 d) {
#pragma unroll
  for (int j = 0; j < P; j += 4) store_four(row, x + j, j, d);
}

template <int P>
__device__ __forceinline__ float dot(const float (&x)[P], const float (&y)[P]) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < P; j++) sum += x[j] * y[j];
  return warp_sum(sum);
}

template <int P>
__device__ __forceinline__ float total(const float (&x)[P]) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < P; j++) sum += x[j];
  return warp_sum(sum);
}

// Turns x into (x - mean) / s, and returns 1 / s. Values from d on are 0 before and after.
template <int P>
__device__ __forceinline__ float standardise(float (&x)[P], int d) {
  int lane = threadIdx.x % 32;
  float mean = total(x) / d;
#pragma unroll
  for (int j = 0; j < P; j++) x[j] = lane + 32 * j < d ? x[j] - mean : 0.0f;
  float inverse = 1.0f / sqrtf(dot(x, x) / d + EPS);
#pragma unroll
  for (int j = 0; j < P; j++) x[j] *= inverse;
  return inverse;
}

// Adds the warps' sums in order and writes them to `to`. Every warp of the block must call it; room is [WARPS][32 P].
template <int P>
__device__ __forceinline__ void block_sums(float* to, const float (&x)[P], int d, float* room) {
  __syncthreads();
  store(room + (threadIdx.x / 32) * 32 * P, x, d);
  __syncthreads();
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    float sum = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) sum += room[warp * 32 * P + i];
    to[i] = sum;
  }
}

// The softmax of a few values, value k in lane k.
__device__ __forceinline__ float lane_softmax(const float* from, int count) {
  int lane = threadIdx.x % 32;
  float x = lane < count ? from[lane] : -INFINITY;
  float top = warp_max(x);
  float e = lane < count ? expf(x - top) : 0.0f;
  return e / warp_sum(e);
}

// out[c] = sum over rows of partial[row][c]: blocks of 32 columns by 16 groups of rows.
extern "C" __global__ void sum_rows(float* out, const float* partial, u32 rows, u32 columns) {
  __shared__ float sums[16][33];
  u32 column = blockIdx.x * 32 + threadIdx.x;
  float sum = 0.0f;
  if (column < columns)
    for (u32 row = threadIdx.y; row < rows; row += 16) sum += partial[(size_t)row * columns + column];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    float all = 0.0f;
    for (int group = 0; group < 16; group++) all += sums[group][threadIdx.x];
    out[column] = all;
  }
}

// partial[block][c] = sum of x over the block's rows.
extern "C" __global__ void column_sums(float* partial, const float* x, u32 rows, u32 columns) {
  u32 column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  float sum = 0.0f;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) sum += x[(size_t)row * columns + column];
  partial[(size_t)blockIdx.x * columns + column] = sum;
}

extern "C" __global__ void to_bf16(__nv_bfloat16* to, const float* from, u64 count) {
  u64 i = 4 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);
  if (i + 3 < count && (u64)from % 16 == 0) {
    float4 x = *(const float4*)(from + i);
    *(__nv_bfloat162*)(to + i) = __floats2bfloat162_rn(x.x, x.y);
    *(__nv_bfloat162*)(to + i + 2) = __floats2bfloat162_rn(x.z, x.w);
  } else {
    for (u64 end = min(i + 4, count); i < end; i++) to[i] = __float2bfloat16(from[i]);
  }
}

// y += bias, row by row.
extern "C" __global__ void add_bias(float* y, const float* bias, u64 count, u32 columns) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) y[i] += bias[i % columns];
}

// ---------------------------------------------------------------- rows of tables

extern "C" __global__ void gather_rows(float* out, const float* table, const u32* rows, u32 count, u32 d) {
  u32 at = warp_index(), lane = threadIdx.x % 32;
  if (at >= count) return;
  const float* from = table + (size_t)rows[at] * d;
  for (u32 i = lane; i < d; i += 32) out[(size_t)at * d + i] = from[i];
}

// out[row] = sum of gradient[use] over the row's uses, in order: one warp per row. Rows with more than `most` uses are left out.
extern "C" __global__ void scatter_rows(float* out, const float* gradient, const u32* starts, const u32* uses, u32 rows, u32 d,
                                        u32 most) {
  u32 row = warp_index(), lane = threadIdx.x % 32;
  if (row >= rows) return;
  u32 start = starts[row], end = starts[row + 1];
  if (end - start > most) return;
  for (u32 i = lane; i < d; i += 32) {
    float sum = 0.0f;
    for (u32 u = start; u < end; u++) sum += gradient[(size_t)uses[u] * d + i];
    out[(size_t)row * d + i] = sum;
  }
}

// The same for rows with many uses: one block per row of the list `rows`, one warp per part of its uses.
extern "C" __global__ void __launch_bounds__(1024)
    scatter_long_rows(float* out, const float* gradient, const u32* starts, const u32* uses, const u32* rows, u32 d) {
  __shared__ float sums[32][33];
  u32 row = rows[blockIdx.x], lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  u32 start = starts[row], end = starts[row + 1];
  u32 part = (end - start + warps - 1) / warps;
  u32 from = min(start + warp * part, end), to = min(from + part, end);
  for (u32 first = 0; first < d; first += 32) {
    float sum = 0.0f;
    if (first + lane < d)
      for (u32 u = from; u < to; u++) sum += gradient[(size_t)uses[u] * d + first + lane];
    __syncthreads();
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && first + lane < d) {
      float all = 0.0f;
      for (int w = 0; w < warps; w++) all += sums[w][lane];
      out[(size_t)row * d + first + lane] = all;
    }
  }
}

// out[rows[at]] = gradient[at]; no row occurs twice, and other rows are not written.
extern "C" __global__ void scatter_once(float* out, const float* gradient, const u32* rows, u32 count, u32 d) {
  u32 at = warp_index(), lane = threadIdx.x % 32;
  if (at >= count) return;
  for (u32 i = lane; i < d; i += 32) out[(size_t)rows[at] * d + i] = gradient[(size_t)at * d + i];
}

// y[rows[at]] += x[at]; no row occurs twice.
extern "C" __global__ void add_rows_at(float* y, const float* x, const u32* rows, u32 count, u32 d) {
  u32 at = warp_index(), lane = threadIdx.x % 32;
  if (at >= count) return;
  for (u32 i = lane; i < d; i += 32) y[(size_t)rows[at] * d + i] += x[(size_t)at * d + i];
}

// y = x / max(|x|, eps) by row.
extern "C" __global__ void normalize(float* y, const float* x, u32 rows, u32 d) {
  u32 row = warp_index(), lane = threadIdx.x % 32;
  if (row >= rows) return;
  x += (size_t)row * d;
  float sum = 0.0f;
  for (u32 i = lane; i < d; i += 32) sum += x[i] * x[i];
  float scale = 1.0f / fmaxf(sqrtf(warp_sum(sum)), EPS);
  for (u32 i = lane; i < d; i += 32) y[(size_t)row * d + i] = x[i] * scale;
}

// dx = (dy - y (y . dy)) / |x|; a norm that is clamped is a constant, so that the second term vanishes.
extern "C" __global__ void normalize_backward(float* dx, const float* dy, const float* x, u32 rows, u32 d) {
  u32 row = warp_index(), lane = threadIdx.x % 32;
  if (row >= rows) return;
  x += (size_t)row * d, dy += (size_t)row * d;
  float square = 0.0f, along = 0.0f;
  for (u32 i = lane; i < d; i += 32) square += x[i] * x[i], along += x[i] * dy[i];
  float norm = sqrtf(warp_sum(square));
  float scale = 1.0f / fmaxf(norm, EPS);
  along = warp_sum(along);
  along = norm > EPS ? along * scale : 0.0f;
  for (u32 i = lane; i < d; i += 32) dx[(size_t)row * d + i] = (dy[i] - x[i] * scale * along) * scale;
}

// y = A x with A in compressed rows; with `add`, sum += y too.
extern "C" __global__ void sparse_rows(float* y, float* sum, const float* x, const u32* offsets, const u32* columns,
                                       const float* weights, u32 rows, u32 d, u32 add) {
  u32 row = warp_index(), lane = threadIdx.x % 32;
  if (row >= rows) return;
  u32 start = offsets[row], end = offsets[row + 1];
  for (u32 i = lane; i < d; i += 32) {
    float total = 0.0f;
    for (u32 e = start; e < end; e++) total += weights[e] * x[(size_t)columns[e] * d + i];
    y[(size_t)row * d + i] = total;
    if (add) sum[(size_t)row * d + i] += total;
  }
}

extern "C" __global__ void copy(float* to, const float* from, u64 count) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = from[i];
}

extern "C" __global__ void fill_zero(float* x, u64 count) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) x[i] = 0.0f;
}

extern "C" __global__ void add_to(float* y, const float* x, u64 count) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) y[i] += x[i];
}

extern "C" __global__ void scale_all(float* x, float scale, u64 count) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) x[i] *= scale;
}

// ---------------------------------------------------------------- item encoders

// Writes the softmax weights of an item's rows to shared memory; padding rows of zeros enter the denominator. All threads of the block must
// call it.
template <typename T>
__device__ void pooling_weights(float* alpha, const T* rows, u32 count, u32 d, const float* w, u32 pooling_rows) {
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (u32 r = warp; r < count; r += WARPS) {
    float sum = 0.0f;
    for (u32 i = lane; i < d; i += 32) sum += read(rows + (size_t)r * d + i) * w[i];
    sum = warp_sum(sum);
    if (lane == 0) alpha[r] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    u32 padding = pooling_rows > count ? pooling_rows - count : 0;
    float top = padding > 0 ? 0.0f : -INFINITY;
    for (u32 r = lane; r < count; r += 32) top = fmaxf(top, alpha[r]);
    top = warp_max(top);
    float sum = 0.0f;
    for (u32 r = lane; r < count; r += 32) {
      float e = expf(alpha[r] - top);
      alpha[r] = e;
      sum += e;
    }
    sum = warp_sum(sum) + (padding > 0 ? padding * expf(-top) : 0.0f);
    for (u32 r = lane; r < count; r += 32) alpha[r] /= sum;
  }
  __syncthreads();
}

// e of one item per block; zeros without rows.
template <typename T, typename O>
__device__ void pool(O* e, const T* values, const u64* starts, const u32* counts, const float* w, u32 d, u32 pooling_rows) {
  float* alpha = shared_room;
  u32 count = counts[blockIdx.x];
  const T* rows = values + starts[blockIdx.x] * d;
  e += (size_t)blockIdx.x * d;
  if (count == 1 && pooling_rows < 2) {
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) write(e + i, read(rows + i));
    return;
  }
  pooling_weights(alpha, rows, count, d, w, pooling_rows);
  for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
    float sum = 0.0f;
    for (u32 r = 0; r < count; r++) sum += alpha[r] * read(rows + (size_t)r * d + i);
    write(e + i, sum);
  }
}

// The contribution of the items `items` to dw: partial[block][d]. de has a row for each of these items, e for each item.
template <typename T, typename O>
__device__ void pool_backward(float* partial, const float* de, const O* e, const u32* items, u32 listed, const T* values,
                              const u64* starts, const u32* counts, const float* w, u32 d, u32 pooling_rows) {
  __shared__ float along[WARPS];
  float* dw = shared_room;
  float* alpha = shared_room + d;
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (u32 i = threadIdx.x; i < d; i += blockDim.x) dw[i] = 0.0f;
  for (u32 at = blockIdx.x; at < listed; at += gridDim.x) {
    u32 item = items[at], count = counts[item];
    const T* rows = values + starts[item] * d;
    const float* own = de + (size_t)at * d;
    __syncthreads();
    pooling_weights(alpha, rows, count, d, w, pooling_rows);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) sum += own[i] * read(e + (size_t)item * d + i);
    sum = warp_sum(sum);
    if (lane == 0) along[warp] = sum;
    __syncthreads();
    float all = 0.0f;
    for (int other = 0; other < WARPS; other++) all += along[other];
    for (u32 r = warp; r < count; r += WARPS) {
      float product = 0.0f;
      for (u32 i = lane; i < d; i += 32) product += own[i] * read(rows + (size_t)r * d + i);
      product = warp_sum(product);
      if (lane == 0) alpha[r] *= product - all;
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
      float add = 0.0f;
      for (u32 r = 0; r < count; r++) add += alpha[r] * read(rows + (size_t)r * d + i);
      dw[i] += add;
    }
  }
  for (u32 i = threadIdx.x; i < d; i += blockDim.x) partial[(size_t)blockIdx.x * d + i] = dw[i];
}

// The running softmax of an item's rows, in every lane of its warp.
struct Running {
  float top, total;
  // Padding rows of zeros have a score of 0.
  __device__ Running(u32 padding) : top(padding > 0 ? 0.0f : -INFINITY), total(padding) {}
  // Adds a score. Returns the factor for all that was added up so far, and the weight of the new row.
  __device__ float2 take(float score) {
    float scale = 1.0f;
    if (score > top) {
      scale = expf(top - score);
      top = score;
    }
    float weight = expf(score - top);
    total = total * scale + weight;
    return make_float2(scale, weight);
  }
};

// e of one item per warp, for rows of at most 32 P values: every row is read once.
template <int P, typename T, typename O>
__device__ void pool_by_warps(O* e, const T* values, const u64* starts, const u32* counts, const float* w, u32 items, u32 d,
                              u32 pooling_rows) {
  u32 item = warp_index();
  for (u32 i = threadIdx.x; i < d; i += blockDim.x) shared_room[i] = w[i];
  __syncthreads();
  if (item >= items) return;
  u32 count = counts[item];
  const T* rows = values + starts[item] * d;
  Running running(pooling_rows > count ? pooling_rows - count : 0);
  float pooled[P] = {};
  for (u32 r = 0; r < count; r++) {
    float x[P], score = 0.0f;
    load_fours(x, rows + (size_t)r * d, d);
#pragma unroll
    for (int j = 0; j < P; j += 4) {
      float weight[4];
      load_four(weight, shared_room, j, d);
#pragma unroll
      for (int k = 0; k < 4; k++) score += x[j + k] * weight[k];
    }
    float2 step = running.take(warp_sum(score));
#pragma unroll
    for (int j = 0; j < P; j++) pooled[j] = pooled[j] * step.x + x[j] * step.y;
  }
  float scale = count > 0 ? 1.0f / running.total : 0.0f;
#pragma unroll
  for (int j = 0; j < P; j++) pooled[j] *= scale;
  store_fours(e + (size_t)item * d, pooled, d);
}

// The contribution of the items `items` to dw, one item per warp: with weights a_r of rows x_r and t_r = de . x_r, the sum of a_r t_r x_r
// minus (the sum of a_r t_r) e. Every row is read once. partial[block][d].
template <int P, typename T>
__device__ void pool_backward_by_warps(float* partial, const float* de, const u32* items, u32 listed, const T* values,
                                       const u64* starts, const u32* counts, const float* w, u32 d, u32 pooling_rows) {
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* weight = shared_room;
  float* dw = shared_room + d + warp * d;
  for (u32 i = threadIdx.x; i < d; i += blockDim.x) weight[i] = w[i];
  for (u32 i = lane; i < d; i += 32) dw[i] = 0.0f;
  __syncthreads();
  for (u32 at = blockIdx.x * WARPS + warp; at < listed; at += gridDim.x * WARPS) {
    u32 item = items[at], count = counts[item];
    const T* rows = values + starts[item] * d;
    float own[P], along[P] = {}, pooled[P] = {}, mean = 0.0f;
    load_fours(own, de + (size_t)at * d, d);
    Running running(pooling_rows > count ? pooling_rows - count : 0);
    for (u32 r = 0; r < count; r++) {
      float x[P], score = 0.0f, t = 0.0f;
      load_fours(x, rows + (size_t)r * d, d);
#pragma unroll
      for (int j = 0; j < P; j += 4) {
        float of_four[4];
        load_four(of_four, weight, j, d);
#pragma unroll
        for (int k = 0; k < 4; k++) {
          score += x[j + k] * of_four[k];
          t += x[j + k] * own[j + k];
        }
      }
      score = warp_sum(score), t = warp_sum(t);
      float2 step = running.take(score);
      mean = mean * step.x + step.y * t;
#pragma unroll
      for (int j = 0; j < P; j++) {
        along[j] = along[j] * step.x + step.y * t * x[j];
        pooled[j] = pooled[j] * step.x + step.y * x[j];
      }
    }
    float scale = 1.0f / running.total;
#pragma unroll
    for (int j = 0; j < P; j += 4) {
      float sums[4];
      load_four(sums, dw, j, d);
#pragma unroll
      for (int k = 0; k < 4; k++) sums[k] += (along[j + k] - mean * scale * pooled[j + k]) * scale;
      store_four(dw, sums, j, d);
    }
  }
  __syncthreads();
  // The warps' sums are added in order.
  for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
    float sum = 0.0f;
    for (int other = 0; other < WARPS; other++) sum += shared_room[d + other * d + i];
    partial[(size_t)blockIdx.x * d + i] = sum;
  }
}

#define POOL_WARPS(P, NAME, T)                                                                                               \
  extern "C" __global__ void __launch_bounds__(256, 3) pool_##NAME##_f32_##P(                                                \
      float* e, const T* values, const u64* starts, const u32* counts, const float* w, u32 items, u32 d, u32 pooling_rows) {     \
    pool_by_warps<P, T, float>(e, values, starts, counts, w, items, d, pooling_rows);                                            \
  }                                                                                                                          \
  extern "C" __global__ void __launch_bounds__(256, 3) pool_##NAME##_bf16_##P(                                               \
      __nv_bfloat16* e, const T* values, const u64* starts, const u32* counts, const float* w, u32 items, u32 d,             \
      u32 pooling_rows) {                                                                                                        \
    pool_by_warps<P, T, __nv_bfloat16>(e, values, starts, counts, w, items, d, pooling_rows);                                    \
  }                                                                                                                          \
  extern "C" __global__ void __launch_bounds__(256, 2) pool_backward_##NAME##_##P(                                           \
      float* partial, const float* de, const u32* items, u32 listed, const T* values, const u64* starts, const u32* counts,  \
      const float* w, u32 d, u32 pooling_rows) {                                                                                 \
    pool_backward_by_warps<P, T>(partial, de, items, listed, values, starts, counts, w, d, pooling_rows);                        \
  }
#define POOL_WIDTHS(NAME, T) POOL_WARPS(4, NAME, T) POOL_WARPS(12, NAME, T) POOL_WARPS(16, NAME, T) POOL_WARPS(24, NAME, T)
POOL_WIDTHS(f32, float)
POOL_WIDTHS(f16, __half)
POOL_WIDTHS(bf16, __nv_bfloat16)

#define POOL(NAME, T, O)                                                                                                     \
  extern "C" __global__ void __launch_bounds__(256) pool_##NAME(O* e, const T* values, const u64* starts, const u32* counts, \
                                                                const float* w, u32 d, u32 pooling_rows) {                      \
    pool<T, O>(e, values, starts, counts, w, d, pooling_rows);                                                                   \
  }                                                                                                                          \
  extern "C" __global__ void __launch_bounds__(256) pool_backward_##NAME(                                                    \
      float* partial, const float* de, const O* e, const u32* items, u32 listed, const T* values, const u64* starts,         \
      const u32* counts, const float* w, u32 d, u32 pooling_rows) {                                                              \
    pool_backward<T, O>(partial, de, e, items, listed, values, starts, counts, w, d, pooling_rows);                              \
  }
POOL(f32_f32, float, float)
POOL(f16_f32, __half, float)
POOL(bf16_f32, __nv_bfloat16, float)
POOL(f32_bf16, float, __nv_bfloat16)
POOL(f16_bf16, __half, __nv_bfloat16)
POOL(bf16_bf16, __nv_bfloat16, __nv_bfloat16)

// Copies the experts' weights [o][d][width] and the gate [d][o] to one matrix [d][columns], with zeros behind them.
template <typename O>
__device__ void mixture_matrix(O* matrix, const float* weights, const float* gate, u32 d, u32 experts, u32 width, u32 columns) {
  u32 column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (column >= columns) return;
  u32 outputs = experts * width;
  float x = 0.0f;
  if (column < outputs)
    x = weights[((size_t)(column / width) * d + row) * width + column % width];
  else if (column < outputs + experts)
    x = gate[(size_t)row * experts + column - outputs];
  write(matrix + (size_t)row * columns + column, x);
}
extern "C" __global__ void mixture_matrix_f32(float* m, const float* w, const float* g, u32 d, u32 o, u32 width, u32 columns) {
  mixture_matrix(m, w, g, d, o, width, columns);
}
extern "C" __global__ void mixture_matrix_bf16(__nv_bfloat16* m, const float* w, const float* g, u32 d, u32 o, u32 width,
                                               u32 columns) {
  mixture_matrix(m, w, g, d, o, width, columns);
}

// The reverse for the gradient: copies the parts of the matrix to the weights and the gate.
extern "C" __global__ void mixture_parts(float* weights, float* gate, const float* matrix, u32 d, u32 experts, u32 width,
                                         u32 columns) {
  u32 column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  u32 outputs = experts * width;
  if (column >= outputs + experts) return;
  float x = matrix[(size_t)row * columns + column];
  if (column < outputs)
    weights[((size_t)(column / width) * d + row) * width + column % width] = x;
  else
    gate[(size_t)row * experts + column - outputs] = x;
}

// Copies sums [o][bias, LayerNorm weight, LayerNorm bias][width] to their packed order: all biases, all LayerNorm weights, all LayerNorm
// biases.
extern "C" __global__ void mixture_tail(float* to, const float* sums, u32 experts, u32 width) {
  u32 at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= 3 * experts * width) return;
  u32 k = at / (3 * width), part = at / width % 3, i = at % width;
  to[part * experts * width + k * width + i] = sums[at];
}

// z of one use per warp: the sum over experts of g_k (w_k n_k + b_k), where n_k is the standardised Dropout(product_k + bias_k).
template <int P>
__device__ void mix(float* z, const float* products, const float* biases, const float* norm_weights, const float* norm_biases,
                    const u32* item_of, u32 uses, u32 experts, u32 width, u32 columns, Drop drop) {
  u32 use = warp_index(), lane = threadIdx.x % 32;
  if (use >= uses) return;
  u32 outputs = experts * width;
  const float* product = products + (size_t)item_of[use] * columns;
  float gate = lane_softmax(product + outputs, experts);
  float out[P] = {};
  for (u32 k = 0; k < experts; k++) {
    float n[P];
#pragma unroll
    for (int j = 0; j < P; j++) {
      u32 i = lane + 32 * j, at = k * width + i;
      n[j] = i < width ? (product[at] + biases[at]) * factor(drop, use * outputs + at) : 0.0f;
    }
    standardise(n, width);
    float g = __shfl_sync(ALL, gate, k);
#pragma unroll
    for (int j = 0; j < P; j++) {
      u32 i = lane + 32 * j, at = k * width + i;
      if (i < width) out[j] += g * (n[j] * norm_weights[at] + norm_biases[at]);
    }
  }
  store(z + (size_t)use * width, out, width);
}

// The gradients of one expert's products, one item per warp, from the item's uses. Those of the gates, not yet through their softmax, go to
// d_gates [n][o]; partial[block][expert] has the block's contribution to bias, LayerNorm weight and LayerNorm bias, width values each.
template <int P, typename O>
__device__ void mix_backward(O* d_products, float* d_gates, float* partial, const float* dz, const float* products,
                             const float* biases, const float* norm_weights, const float* norm_biases, const u32* starts,
                             const u32* by_item, u32 items, u32 experts, u32 width, u32 columns, Drop drop) {
  __shared__ float room[WARPS * 32 * P];
  u32 lane = threadIdx.x % 32, k = blockIdx.y, outputs = experts * width;
  float bias[P], wn[P], bn[P], d_bias[P] = {}, dw[P] = {}, db[P] = {};
  load(bias, biases + k * width, width);
  load(wn, norm_weights + k * width, width);
  load(bn, norm_biases + k * width, width);
  // The loads for the next item and the next use are issued while the current one is processed. Otherwise, the warp would wait in turn for
  // an item's range among the uses, for its first use and for that use's gradient.
  u32 item = blockIdx.x * WARPS + threadIdx.x / 32, step = gridDim.x * WARPS;
  u32 start = item < items ? starts[item] : 0, end = item < items ? starts[item + 1] : 0;
  u32 use = start < end ? by_item[start] : 0;
  for (; item < items; item += step) {
    u32 next = min(item + step, items - 1), next_start = starts[next], next_end = starts[next + 1];
    float ahead[P] = {};
    if (start < end) load(ahead, dz + (size_t)use * width, width);
    const float* product = products + (size_t)item * columns;
    float base[P], du[P] = {}, d_gate = 0.0f;
    load(base, product + k * width, width);
    float g = __shfl_sync(ALL, lane_softmax(product + outputs, experts), k);
    u32 next_use = next_start < next_end ? by_item[next_start] : 0;
#pragma unroll
    for (int j = 0; j < P; j++) base[j] += bias[j];
    for (u32 u = start; u < end; u++) {
      u32 first = use * outputs + k * width;
      float n[P], f[P], c[P], own[P];
#pragma unroll
      for (int j = 0; j < P; j++) own[j] = ahead[j];
      if (u + 1 < end) {
        use = by_item[u + 1];
        load(ahead, dz + (size_t)use * width, width);
      }
#pragma unroll
      for (int j = 0; j < P; j++) {
        u32 i = lane + 32 * j;
        f[j] = factor(drop, first + i);
        n[j] = i < width ? base[j] * f[j] : 0.0f;
        c[j] = wn[j] * own[j];
      }
      float inverse = standardise(n, width);
      float along = dot(n, c);
      d_gate += along + dot(bn, own);
      float mean = g * total(c) / width;
      float slope = g * along / width;
#pragma unroll
      for (int j = 0; j < P; j++) {
        dw[j] += g * n[j] * own[j];
        db[j] += g * own[j];
        du[j] += (g * c[j] - mean - n[j] * slope) * inverse * f[j];
      }
    }
#pragma unroll
    for (int j = 0; j < P; j++) {
      u32 i = lane + 32 * j;
      if (i < width) {
        write(d_products + (size_t)item * columns + k * width + i, du[j]);
        d_bias[j] += du[j];
      }
    }
    if (lane == 0) d_gates[(size_t)item * experts + k] = d_gate;
    start = next_start, end = next_end, use = next_use;
  }
  float* own = partial + ((size_t)blockIdx.x * experts + k) * 3 * width;
  block_sums(own, d_bias, width, room);
  block_sums(own + width, dw, width, room);
  block_sums(own + 2 * width, db, width, room);
}

// Passes the gates' gradients through their softmax to the columns behind the experts', followed by zeros: one item per thread.
template <typename O>
__device__ void gates_backward(O* d_products, const float* d_gates, const float* products, u32 items, u32 experts, u32 width,
                               u32 columns) {
  u32 item = blockIdx.x * blockDim.x + threadIdx.x;
  if (item >= items) return;
  u32 outputs = experts * width;
  const float* x = products + (size_t)item * columns + outputs;
  const float* dg = d_gates + (size_t)item * experts;
  O* dx = d_products + (size_t)item * columns + outputs;
  float top = -INFINITY, sum = 0.0f, along = 0.0f;
  for (u32 k = 0; k < experts; k++) top = fmaxf(top, x[k]);
  for (u32 k = 0; k < experts; k++) sum += expf(x[k] - top);
  for (u32 k = 0; k < experts; k++) along += expf(x[k] - top) / sum * dg[k];
  for (u32 k = 0; k < experts; k++) write(dx + k, expf(x[k] - top) / sum * (dg[k] - along));
  for (u32 k = experts; outputs + k < columns; k++) write(dx + k, 0.0f);
}
extern "C" __global__ void gates_backward_f32(float* dp, const float* dg, const float* p, u32 n, u32 o, u32 width, u32 columns) {
  gates_backward(dp, dg, p, n, o, width, columns);
}
extern "C" __global__ void gates_backward_bf16(__nv_bfloat16* dp, const float* dg, const float* p, u32 n, u32 o, u32 width,
                                               u32 columns) {
  gates_backward(dp, dg, p, n, o, width, columns);
}

// The same as gather_rows for bf16.
extern "C" __global__ void gather_half_rows(__nv_bfloat16* out, const __nv_bfloat16* table, const u32* rows, u32 count, u32 d) {
  u32 at = warp_index(), lane = threadIdx.x % 32;
  if (at >= count) return;
  for (u32 i = lane; i < d; i += 32) out[(size_t)at * d + i] = table[(size_t)rows[at] * d + i];
}

// ---------------------------------------------------------------- LayerNorm

// Dropout(LayerNorm(z + id + position)), one token per warp. `norm` has the weight, then the bias.
template <int P>
__device__ void input(float* y, const float* z, const u32* z_rows, const float* ids, const u32* id_rows, const float* positions,
                      const u32* position_rows, const float* norm, u32 tokens, u32 d, Drop drop) {
  u32 token = warp_index(), lane = threadIdx.x % 32;
  if (token >= tokens) return;
  float n[P], other[P], w[P], b[P];
  load(n, z + (size_t)z_rows[token] * d, d);
  if (ids) {
    load(other, ids + (size_t)id_rows[token] * d, d);
#pragma unroll
    for (int j = 0; j < P; j++) n[j] += other[j];
  }
  load(other, positions + (size_t)position_rows[token] * d, d);
#pragma unroll
  for (int j = 0; j < P; j++) n[j] += other[j];
  standardise(n, d);
  load(w, norm, d);
  load(b, norm + d, d);
#pragma unroll
  for (int j = 0; j < P; j++) n[j] = (n[j] * w[j] + b[j]) * factor(drop, token * d + lane + 32 * j);
  store(y + (size_t)token * d, n, d);
}

// dv of every token, and partial[block] with the block's contribution to the LayerNorm's weight and bias.
template <int P>
__device__ void input_backward(float* dv, float* partial, const float* dy, const float* z, const u32* z_rows, const float* ids,
                               const u32* id_rows, const float* positions, const u32* position_rows, const float* norm,
                               u32 tokens, u32 d, Drop drop) {
  __shared__ float room[WARPS * 32 * P];
  u32 lane = threadIdx.x % 32;
  float w[P], dw[P] = {}, db[P] = {};
  load(w, norm, d);
  for (u32 token = warp_index(); token < tokens; token += gridDim.x * WARPS) {
    float n[P], other[P], own[P];
    load(n, z + (size_t)z_rows[token] * d, d);
    if (ids) {
      load(other, ids + (size_t)id_rows[token] * d, d);
#pragma unroll
      for (int j = 0; j < P; j++) n[j] += other[j];
    }
    load(other, positions + (size_t)position_rows[token] * d, d);
#pragma unroll
    for (int j = 0; j < P; j++) n[j] += other[j];
    float inverse = standardise(n, d);
    load(own, dy + (size_t)token * d, d);
#pragma unroll
    for (int j = 0; j < P; j++) {
      own[j] *= factor(drop, token * d + lane + 32 * j);
      dw[j] += n[j] * own[j];
      db[j] += own[j];
      own[j] *= w[j];
    }
    float mean = total(own) / d, along = dot(n, own) / d;
#pragma unroll
    for (int j = 0; j < P; j++) own[j] = (own[j] - mean - n[j] * along) * inverse;
    store(dv + (size_t)token * d, own, d);
  }
  block_sums(partial + (size_t)blockIdx.x * 2 * d, dw, d, room);
  block_sums(partial + (size_t)blockIdx.x * 2 * d + d, db, d, room);
}

// y = LayerNorm(x + Dropout(branch + bias)), one row per warp; n and 1/s are kept.
template <int P>
__device__ void add_norm(float* y, float* n_out, float* inverse, const float* x, const float* branch, const float* bias,
                         const float* weight, const float* norm_bias, u32 rows, u32 d, Drop drop) {
  u32 row = warp_index(), lane = threadIdx.x % 32;
  if (row >= rows) return;
  float n[P], other[P], b[P];
  load(n, x + (size_t)row * d, d);
  load(other, branch + (size_t)row * d, d);
  load(b, bias, d);
#pragma unroll
  for (int j = 0; j < P; j++) n[j] += (other[j] + b[j]) * factor(drop, row * d + lane + 32 * j);
  float scale = standardise(n, d);
  if (lane == 0) inverse[row] = scale;
  store(n_out + (size_t)row * d, n, d);
  load(other, weight, d);
  load(b, norm_bias, d);
#pragma unroll
  for (int j = 0; j < P; j++) n[j] = n[j] * other[j] + b[j];
  store(y + (size_t)row * d, n, d);
}

// dx and dbranch; partial[block] has the block's contribution to weight, norm bias and the branch's bias.
template <int P>
__device__ void add_norm_backward(float* dx, float* d_branch, float* partial, const float* dy, const float* n_in,
                                  const float* inverse, const float* weight, u32 rows, u32 d, Drop drop) {
  __shared__ float room[WARPS * 32 * P];
  u32 lane = threadIdx.x % 32;
  float w[P], dw[P] = {}, db[P] = {}, d_bias[P] = {};
  load(w, weight, d);
  for (u32 row = warp_index(); row < rows; row += gridDim.x * WARPS) {
    float n[P], own[P];
    load(n, n_in + (size_t)row * d, d);
    load(own, dy + (size_t)row * d, d);
#pragma unroll
    for (int j = 0; j < P; j++) {
      dw[j] += n[j] * own[j];
      db[j] += own[j];
      own[j] *= w[j];
    }
    float mean = total(own) / d, along = dot(n, own) / d, scale = inverse[row];
#pragma unroll
    for (int j = 0; j < P; j++) own[j] = (own[j] - mean - n[j] * along) * scale;
    store(dx + (size_t)row * d, own, d);
#pragma unroll
    for (int j = 0; j < P; j++) {
      own[j] = lane + 32 * j < d ? own[j] * factor(drop, row * d + lane + 32 * j) : 0.0f;
      d_bias[j] += own[j];
    }
    store(d_branch + (size_t)row * d, own, d);
  }
  float* out = partial + (size_t)blockIdx.x * 3 * d;
  block_sums(out, dw, d, room);
  block_sums(out + d, db, d, room);
  block_sums(out + 2 * d, d_bias, d, room);
}

#define WIDTH(P)                                                                                                              \
  extern "C" __global__ void mix_##P(float* z, const float* p, const float* b, const float* nw, const float* nb, const u32* i, \
                                     u32 uses, u32 experts, u32 width, u32 columns, Drop drop) {                              \
    mix<P>(z, p, b, nw, nb, i, uses, experts, width, columns, drop);                                                          \
  }                                                                                                                           \
  extern "C" __global__ void __launch_bounds__(256)                                                                           \
      mix_backward_f32_##P(float* dp, float* dg, float* partial, const float* dz, const float* p, const float* b,             \
                           const float* nw, const float* nb, const u32* s, const u32* by, u32 n, u32 experts, u32 width,      \
                           u32 columns, Drop drop) {                                                                          \
    mix_backward<P>(dp, dg, partial, dz, p, b, nw, nb, s, by, n, experts, width, columns, drop);                              \
  }                                                                                                                           \
  extern "C" __global__ void __launch_bounds__(256)                                                                           \
      mix_backward_bf16_##P(__nv_bfloat16* dp, float* dg, float* partial, const float* dz, const float* p, const float* b,    \
                            const float* nw, const float* nb, const u32* s, const u32* by, u32 n, u32 experts, u32 width,     \
                            u32 columns, Drop drop) {                                                                         \
    mix_backward<P>(dp, dg, partial, dz, p, b, nw, nb, s, by, n, experts, width, columns, drop);                              \
  }                                                                                                                           \
  extern "C" __global__ void input_##P(float* y, const float* z, const u32* zr, const float* ids, const u32* ir,              \
                                       const float* pos, const u32* pr, const float* norm, u32 tokens, u32 d, Drop drop) {    \
    input<P>(y, z, zr, ids, ir, pos, pr, norm, tokens, d, drop);                                                              \
  }                                                                                                                           \
  extern "C" __global__ void __launch_bounds__(256)                                                                           \
      input_backward_##P(float* dv, float* partial, const float* dy, const float* z, const u32* zr, const float* ids,         \
                         const u32* ir, const float* pos, const u32* pr, const float* norm, u32 tokens, u32 d, Drop drop) {   \
    input_backward<P>(dv, partial, dy, z, zr, ids, ir, pos, pr, norm, tokens, d, drop);                                       \
  }                                                                                                                           \
  extern "C" __global__ void add_norm_##P(float* y, float* n, float* inverse, const float* x, const float* branch,            \
                                          const float* bias, const float* w, const float* b, u32 rows, u32 d, Drop drop) {    \
    add_norm<P>(y, n, inverse, x, branch, bias, w, b, rows, d, drop);                                                         \
  }                                                                                                                           \
  extern "C" __global__ void __launch_bounds__(256)                                                                           \
      add_norm_backward_##P(float* dx, float* d_branch, float* partial, const float* dy, const float* n, const float* inverse, \
                            const float* w, u32 rows, u32 d, Drop drop) {                                                     \
    add_norm_backward<P>(dx, d_branch, partial, dy, n, inverse, w, rows, d, drop);                                            \
  }
WIDTH(1)
WIDTH(2)
WIDTH(4)
WIDTH(8)
WIDTH(16)
WIDTH(32)

// Copies three parts of d values each to three pointers.
extern "C" __global__ void three_parts(float* first, float* second, float* third, const float* from, u32 d) {
  u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < d) first[i] = from[i], second[i] = from[d + i], third[i] = from[2 * d + i];
}

// ---------------------------------------------------------------- feed-forward block

// y = GELU(x + bias).
extern "C" __global__ void gelu(float* y, const float* x, const float* bias, u64 count, u32 columns) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float v = x[i] + bias[i % columns];
  y[i] = 0.5f * v * (1.0f + erff(v * 0.70710678f));
}

// Turns dy into the gradient of GELU's argument; partial[block][c] = its sum over the block's rows.
extern "C" __global__ void gelu_backward(float* dy, float* partial, const float* x, const float* bias, u32 rows, u32 columns) {
  u32 column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  float b = bias[column], sum = 0.0f;
  for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
    size_t at = (size_t)row * columns + column;
    float v = x[at] + b;
    float slope = 0.5f * (1.0f + erff(v * 0.70710678f)) + v * 0.3989423f * expf(-0.5f * v * v);
    float d = dy[at] * slope;
    dy[at] = d;
    sum += d;
  }
  partial[(size_t)blockIdx.x * columns + column] = sum;
}

// ---------------------------------------------------------------- attention

__device__ __forceinline__ u32 weight_index(u32 token, u32 head, u32 heads) { return (token * heads + head) * 0x00010003u; }

// Loads a part [count][width] of a matrix whose rows are `stride` apart, plus its bias, to shared rows of width + 1.
__device__ void load_part(float* to, const float* from, const float* bias, u32 count, u32 width, u32 stride) {
  for (u32 at = threadIdx.x; at < count * width; at += blockDim.x) {
    u32 row = at / width, i = at % width;
    to[row * (width + 1) + i] = from[(size_t)row * stride + i] + (bias ? bias[i] : 0.0f);
  }
}

// Attention, causal or not, one block per sequence and head, one query per warp at a time. q [rows][d], kv [tokens][2 d].
extern "C" __global__ void attention(float* out, const float* q, const float* q_bias, const float* kv, const float* kv_bias,
                                     const u32* offsets, u32 d, u32 heads, u32 last_only, u32 bidirectional, Drop drop) {
  u32 sequence = blockIdx.x, head = blockIdx.y, width = d / heads;
  u32 first = offsets[sequence], keys = offsets[sequence + 1] - first, queries = last_only ? 1 : keys;
  u32 row = last_only ? sequence : first;
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, line = width + 1;
  float* k = shared_room;
  float* v = k + keys * line;
  float* own = v + keys * line + warp * (keys + width);
  float* p = own + width;
  load_part(k, kv + (size_t)first * 2 * d + head * width, kv_bias + head * width, keys, width, 2 * d);
  load_part(v, kv + (size_t)first * 2 * d + d + head * width, kv_bias + d + head * width, keys, width, 2 * d);
  __syncthreads();
  float scale = 1.0f / sqrtf((float)width);
  for (u32 i = warp; i < queries; i += warps) {
    u32 position = keys - queries + i, seen = bidirectional ? keys : position + 1;
    const float* from = q + (size_t)(row + i) * d + head * width;
    for (u32 c = lane; c < width; c += 32) own[c] = from[c] + q_bias[head * width + c];
    __syncwarp();
    float top = -INFINITY;
    for (u32 j = lane; j < seen; j += 32) {
      float s = 0.0f;
      for (u32 c = 0; c < width; c++) s += own[c] * k[j * line + c];
      p[j] = s * scale;
      top = fmaxf(top, s * scale);
    }
    top = warp_max(top);
    float sum = 0.0f;
    for (u32 j = lane; j < seen; j += 32) {
      float e = expf(p[j] - top);
      p[j] = e;
      sum += e;
    }
    sum = warp_sum(sum);
    u32 index = weight_index(first + position, head, heads);
    for (u32 j = lane; j < seen; j += 32) p[j] = p[j] / sum * factor(drop, index + j);
    __syncwarp();
    for (u32 c = lane; c < width; c += 32) {
      float o = 0.0f;
      for (u32 j = 0; j < seen; j++) o += p[j] * v[j * line + c];
      out[(size_t)(row + i) * d + head * width + c] = o;
    }
    __syncwarp();
  }
}

// dq [rows][d] and dkv [tokens][2 d]. First by query: the logarithm of the softmax's sum, its slope and dq; then by key: dk and dv.
extern "C" __global__ void attention_backward(float* dq, float* dkv, const float* dout, const float* q, const float* q_bias,
                                              const float* kv, const float* kv_bias, const u32* offsets, u32 d, u32 heads,
                                              u32 last_only, u32 bidirectional, Drop drop) {
  u32 sequence = blockIdx.x, head = blockIdx.y, width = d / heads;
  u32 first = offsets[sequence], keys = offsets[sequence + 1] - first, queries = last_only ? 1 : keys;
  u32 row = last_only ? sequence : first;
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, line = width + 1;
  float* k = shared_room;
  float* v = k + keys * line;
  float* qs = v + keys * line;
  float* dos = qs + queries * line;
  float* log_sums = dos + queries * line;
  float* slopes = log_sums + queries;
  float* ds = slopes + queries + warp * keys;
  load_part(k, kv + (size_t)first * 2 * d + head * width, kv_bias + head * width, keys, width, 2 * d);
  load_part(v, kv + (size_t)first * 2 * d + d + head * width, kv_bias + d + head * width, keys, width, 2 * d);
  load_part(qs, q + (size_t)row * d + head * width, q_bias + head * width, queries, width, d);
  load_part(dos, dout + (size_t)row * d + head * width, nullptr, queries, width, d);
  __syncthreads();
  float scale = 1.0f / sqrtf((float)width);
  for (u32 i = warp; i < queries; i += warps) {
    u32 position = keys - queries + i, seen = bidirectional ? keys : position + 1;
    u32 index = weight_index(first + position, head, heads);
    float top = -INFINITY;
    for (u32 j = lane; j < seen; j += 32) {
      float s = 0.0f;
      for (u32 c = 0; c < width; c++) s += qs[i * line + c] * k[j * line + c];
      ds[j] = s * scale;
      top = fmaxf(top, s * scale);
    }
    top = warp_max(top);
    float sum = 0.0f;
    for (u32 j = lane; j < seen; j += 32) sum += expf(ds[j] - top);
    float log_sum = top + logf(warp_sum(sum));
    float along = 0.0f;
    for (u32 j = lane; j < seen; j += 32) {
      float dp = 0.0f;
      for (u32 c = 0; c < width; c++) dp += dos[i * line + c] * v[j * line + c];
      along += expf(ds[j] - log_sum) * factor(drop, index + j) * dp;
    }
    along = warp_sum(along);
    for (u32 j = lane; j < seen; j += 32) {
      float dp = 0.0f;
      for (u32 c = 0; c < width; c++) dp += dos[i * line + c] * v[j * line + c];
      ds[j] = expf(ds[j] - log_sum) * (factor(drop, index + j) * dp - along) * scale;
    }
    if (lane == 0) log_sums[i] = log_sum, slopes[i] = along;
    __syncwarp();
    for (u32 c = lane; c < width; c += 32) {
      float sum = 0.0f;
      for (u32 j = 0; j < seen; j++) sum += ds[j] * k[j * line + c];
      dq[(size_t)(row + i) * d + head * width + c] = sum;
    }
    __syncwarp();
  }
  __syncthreads();
  for (u32 j = warp; j < keys; j += warps) {
    // The first query that sees key j.
    u32 start = !bidirectional && j + queries > keys ? j + queries - keys : 0;
    float dk[4] = {}, dv[4] = {};
    for (u32 base = start; base < queries; base += 32) {
      u32 i = base + lane;
      float weight = 0.0f, slope = 0.0f;
      if (i < queries) {
        float s = 0.0f, dp = 0.0f;
        for (u32 c = 0; c < width; c++) {
          s += qs[i * line + c] * k[j * line + c];
          dp += dos[i * line + c] * v[j * line + c];
        }
        float p = expf(s * scale - log_sums[i]);
        float f = factor(drop, weight_index(first + keys - queries + i, head, heads) + j);
        weight = p * f;
        slope = p * (f * dp - slopes[i]) * scale;
      }
      u32 here = min(32u, queries - base);
      for (u32 t = 0; t < here; t++) {
        float w = __shfl_sync(ALL, weight, t), s = __shfl_sync(ALL, slope, t);
#pragma unroll
        for (int part = 0; part < 4; part++) {
          u32 c = lane + 32 * part;
          if (c < width) {
            dv[part] += w * dos[(base + t) * line + c];
            dk[part] += s * qs[(base + t) * line + c];
          }
        }
      }
    }
    float* to = dkv + (size_t)(first + j) * 2 * d + head * width;
#pragma unroll
    for (int part = 0; part < 4; part++) {
      u32 c = lane + 32 * part;
      if (c < width) to[c] = dk[part], to[d + c] = dv[part];
    }
  }
}

// ---------------------------------------------------------------- candidates

// y of one item and modality per warp: z + id, of length one if `cosine`. y [items][modalities d].
extern "C" __global__ void candidates(float* y, const float* z, const u32* starts, const float* ids, u32 items, u32 modalities,
                                      u32 d, u32 cosine) {
  u32 at = warp_index(), lane = threadIdx.x % 32;
  if (at >= items * modalities) return;
  u32 item = at / modalities, m = at % modalities;
  const float* v = z + (size_t)(starts[m] + item) * d;
  const float* id = ids ? ids + (size_t)(item + 1) * d : nullptr;
  float sum = 0.0f;
  for (u32 i = lane; i < d; i += 32) {
    float x = v[i] + (id ? id[i] : 0.0f);
    sum += x * x;
  }
  float scale = cosine ? 1.0f / fmaxf(sqrtf(warp_sum(sum)), EPS) : 1.0f;
  for (u32 i = lane; i < d; i += 32) y[(size_t)at * d + i] = (v[i] + (id ? id[i] : 0.0f)) * scale;
}

// dz of one item per warp, for all modalities; d_ids is their sum. Rows of dz that do not belong to candidates are not written.
extern "C" __global__ void candidates_backward(float* dz, float* d_ids, const float* dy, const float* z, const u32* starts,
                                               const float* ids, u32 items, u32 modalities, u32 d, u32 cosine) {
  u32 item = warp_index(), lane = threadIdx.x % 32;
  if (item >= items) return;
  const float* id = ids ? ids + (size_t)(item + 1) * d : nullptr;
  if (ids)
    for (u32 i = lane; i < d; i += 32) {
      d_ids[(size_t)(item + 1) * d + i] = 0.0f;
      if (item == 0) d_ids[i] = 0.0f;
    }
  for (u32 m = 0; m < modalities; m++) {
    const float* v = z + (size_t)(starts[m] + item) * d;
    const float* own = dy + ((size_t)item * modalities + m) * d;
    float square = 0.0f, along = 0.0f;
    for (u32 i = lane; i < d; i += 32) {
      float x = v[i] + (id ? id[i] : 0.0f);
      square += x * x;
      along += x * own[i];
    }
    square = warp_sum(square), along = warp_sum(along);
    float norm = sqrtf(square), scale = 1.0f / fmaxf(norm, EPS);
    along = norm > EPS ? along * scale : 0.0f;
    if (!cosine) scale = 1.0f, along = 0.0f;
    for (u32 i = lane; i < d; i += 32) {
      float x = v[i] + (id ? id[i] : 0.0f);
      float dx = (own[i] - x * scale * along) * scale;
      dz[(size_t)(starts[m] + item) * d + i] = dx;
      if (ids) d_ids[(size_t)(item + 1) * d + i] += dx;
    }
  }
}

// ---------------------------------------------------------------- softmax over many columns

// The contribution of column `column` to the sum of row `row`: 0 for the entry, 1 for nothing, 2 for a logit of zero. `mode` is 0 without
// groups, otherwise the treatment of false negatives: 1 to exclude them, 2 to keep them, 3 for a logit of zero.
__device__ __forceinline__ int entry(u32 mode, u32 diagonal, const u32* groups, u32 row, u32 column) {
  if (mode == 0) return 0;
  if (row == column) return diagonal ? 0 : 1;
  if (mode == 2 || groups[row] != groups[column]) return 0;
  return mode == 1 ? 1 : 2;
}

// A maximum, and the sum of exponentials relative to it.
struct Sum {
  float top, total;
};

__device__ __forceinline__ void join(Sum& a, float x) {
  if (x > a.top) {
    a.total = a.total * expf(a.top - x) + 1.0f;
    a.top = x;
  } else if (x > -INFINITY) {
    a.total += expf(x - a.top);
  } else if (!(x == x)) {
    a.total = x;
  }
}

__device__ __forceinline__ Sum join(Sum a, Sum b) {
  float top = fmaxf(a.top, b.top);
  float left = a.top > -INFINITY ? a.total * expf(a.top - top) : a.total;
  float right = b.top > -INFINITY ? b.total * expf(b.top - top) : b.total;
  return {top, left + right};
}

// The joined sums of all threads of the block, in thread 0.
__device__ Sum block_join(Sum own) {
  __shared__ float tops[WARPS], totals[WARPS];
#pragma unroll
  for (int at = 16; at > 0; at /= 2)
    own = join(own, {__shfl_down_sync(ALL, own.top, at), __shfl_down_sync(ALL, own.total, at)});
  if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = own.top, totals[threadIdx.x / 32] = own.total;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int warp = 1; warp < WARPS; warp++) own = join(own, {tops[warp], totals[warp]});
  return own;
}

// Adds a block of columns, from `first` on, to each row's sum; one row per block. The last block of columns writes the result minus the
// logit of the row's target.
extern "C" __global__ void __launch_bounds__(256)
    log_sum_block(float* out, float* hits, Sum* state, const float* products, const u32* targets, const u32* groups, u32 mode,
                  u32 diagonal, float scale, u32 first, u32 columns, u32 is_first, u32 is_last) {
  u32 row = blockIdx.x;
  const float* x = products + (size_t)row * columns;
  Sum own = {-INFINITY, 0.0f};
  for (u32 c = threadIdx.x; c < columns; c += blockDim.x) {
    int kind = entry(mode, diagonal, groups, row, first + c);
    if (kind != 1) join(own, kind == 2 ? 0.0f : x[c] * scale);
  }
  own = block_join(own);
  if (threadIdx.x > 0) return;
  if (!is_first) own = join(state[row], own);
  state[row] = own;
  float hit = is_first ? 0.0f : hits[row];
  if (targets && targets[row] >= first && targets[row] < first + columns) hit = x[targets[row] - first] * scale;
  hits[row] = hit;
  if (is_last) out[row] = own.top + logf(own.total) - hit;
}

// dL/dproduct: (exp(scale x - l) dl - [c is the target] dl) scale, without the first term where the mask has no entry. Four columns per
// thread, which are read at once if rows are aligned for it.
template <typename O>
__device__ void log_sum_gradient(O* to, const float* x, const Sum* state, const float* dl, const u32* targets, const u32* groups,
                                 u32 mode, u32 diagonal, float scale, u32 first, u32 columns) {
  u32 row = blockIdx.x, c = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
  if (c >= columns) return;
  Sum own = state[row];
  float slope = dl[row], l = own.top + logf(own.total), weight = l == -INFINITY ? 0.0f : slope * scale;
  u32 target = targets ? targets[row] - first : columns;
  size_t at = (size_t)row * columns + c;
  u32 here = min(4u, columns - c);
  float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float* v = &values.x;
  if (columns % 4 == 0)
    values = *(const float4*)(x + at);
  else
    for (u32 j = 0; j < here; j++) v[j] = x[at + j];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    bool joins = mode == 0 || (j < here && entry(mode, diagonal, groups, row, first + c + j) == 0);
    float y = weight == 0.0f ? 0.0f * slope : joins ? expf(v[j] * scale - l) * weight : 0.0f;
    v[j] = target == c + j ? y - slope * scale : y;
  }
  if (columns % 4 == 0)
    write_four(to + at, values);
  else
    for (u32 j = 0; j < here; j++) write(to + at + j, v[j]);
}
extern "C" __global__ void log_sum_gradient_f32(float* to, const float* x, const Sum* state, const float* dl, const u32* targets,
                                                const u32* groups, u32 mode, u32 diagonal, float scale, u32 first, u32 columns) {
  log_sum_gradient(to, x, state, dl, targets, groups, mode, diagonal, scale, first, columns);
}
extern "C" __global__ void log_sum_gradient_bf16(__nv_bfloat16* to, const float* x, const Sum* state, const float* dl,
                                                 const u32* targets, const u32* groups, u32 mode, u32 diagonal, float scale,
                                                 u32 first, u32 columns) {
  log_sum_gradient(to, x, state, dl, targets, groups, mode, diagonal, scale, first, columns);
}

// ---------------------------------------------------------------- contrastive losses

// The logarithm of the sum of exponentials, and the logit of the pair, of row (v, j) against the columns of space c. Both are [views
// B][spaces], and products is [views B][spaces B]; a view's own column is left out against itself. One block per row and space.
extern "C" __global__ void __launch_bounds__(256)
    contrastive_sums(float* sums, float* pairs, const float* products, const u32* groups, u32 mode, float scale, u32 batch,
                     u32 spaces) {
  u32 row = blockIdx.x, space = blockIdx.y, view = row / batch, j = row % batch;
  const float* x = products + (size_t)row * spaces * batch + (size_t)space * batch;
  Sum own = {-INFINITY, 0.0f};
  for (u32 c = threadIdx.x; c < batch; c += blockDim.x) {
    int kind = entry(mode, space != view, groups, j, c);
    if (kind != 1) join(own, kind == 2 ? 0.0f : x[c] * scale);
  }
  own = block_join(own);
  if (threadIdx.x > 0) return;
  sums[(size_t)row * spaces + space] = own.top + logf(own.total);
  pairs[(size_t)row * spaces + space] = x[j] * scale;
}

__device__ __forceinline__ float log_add(float a, float b) {
  float top = fmaxf(a, b);
  return top + logf(expf(a - top) + expf(b - top));
}

// The index of the cross sum of the ordered pair (a, b); `row_sums` takes the first direction's matrix again.
__device__ __forceinline__ size_t cross(u32 a, u32 b, u32 j, u32 batch, u32 spaces, u32 row_sums) {
  return row_sums && b < a ? ((size_t)b * batch + j) * spaces + a : ((size_t)a * batch + j) * spaces + b;
}

// out [2][B]: NIP against the targets' space, which is the last one if there are targets, then CMCL; one sample per thread.
extern "C" __global__ void contrastive_terms(float* out, const float* sums, const float* pairs, u32 batch, u32 views, u32 spaces,
                                             u32 row_sums) {
  u32 j = blockIdx.x * blockDim.x + threadIdx.x;
  if (j >= batch) return;
  float nip = 0.0f, cmcl = 0.0f;
  if (spaces > views) {
    float all = -INFINITY, pair = -INFINITY;
    for (u32 v = 0; v < views; v++) {
      size_t at = ((size_t)v * batch + j) * spaces + views;
      all = v == 0 ? sums[at] : log_add(all, sums[at]);
      pair = v == 0 ? pairs[at] : log_add(pair, pairs[at]);
    }
    nip = all - pair;
  }
  for (u32 a = 0; a < views; a++)
    for (u32 b = 0; b < views; b++)
      if (a != b) {
        size_t own = ((size_t)a * batch + j) * spaces;
        cmcl += log_add(sums[cross(a, b, j, batch, spaces, row_sums)], sums[own + a]) - pairs[own + b];
      }
  out[j] = nip;
  out[batch + j] = views > 1 ? cmcl / (views * (views - 1)) : 0.0f;
}

// The gradients of sums and pairs from those of the terms.
extern "C" __global__ void contrastive_terms_backward(float* d_sums, float* d_pairs, const float* dout, const float* sums,
                                                      const float* pairs, u32 batch, u32 views, u32 spaces, u32 row_sums) {
  u32 j = blockIdx.x * blockDim.x + threadIdx.x;
  if (j >= batch) return;
  for (u32 v = 0; v < views; v++)
    for (u32 c = 0; c < spaces; c++) {
      size_t at = ((size_t)v * batch + j) * spaces + c;
      d_sums[at] = 0.0f, d_pairs[at] = 0.0f;
    }
  if (spaces > views) {
    float all = -INFINITY, pair = -INFINITY;
    for (u32 v = 0; v < views; v++) {
      size_t at = ((size_t)v * batch + j) * spaces + views;
      all = v == 0 ? sums[at] : log_add(all, sums[at]);
      pair = v == 0 ? pairs[at] : log_add(pair, pairs[at]);
    }
    for (u32 v = 0; v < views; v++) {
      size_t at = ((size_t)v * batch + j) * spaces + views;
      d_sums[at] = dout[j] * expf(sums[at] - all);
      d_pairs[at] = -dout[j] * expf(pairs[at] - pair);
    }
  }
  float weight = views > 1 ? dout[batch + j] / (views * (views - 1)) : 0.0f;
  for (u32 a = 0; a < views; a++)
    for (u32 b = 0; b < views; b++)
      if (a != b) {
        size_t own = ((size_t)a * batch + j) * spaces, other = cross(a, b, j, batch, spaces, row_sums);
        float both = log_add(sums[other], sums[own + a]);
        d_sums[other] += weight * expf(sums[other] - both);
        d_sums[own + a] += weight * expf(sums[own + a] - both);
        d_pairs[own + b] -= weight;
      }
}

// The gradients of the products, which may overwrite them.
template <typename O>
__device__ void contrastive_gradient(O* to, const float* x, const float* sums, const float* d_sums, const float* d_pairs,
                                     const u32* groups, u32 mode, float scale, u32 batch, u32 spaces) {
  u32 row = blockIdx.x, column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= spaces * batch) return;
  u32 space = column / batch, c = column % batch, view = row / batch, j = row % batch;
  size_t state = (size_t)row * spaces + space, at = (size_t)row * spaces * batch + column;
  float y = 0.0f, slope = d_sums[state];
  if (slope != 0.0f && sums[state] > -INFINITY && entry(mode, space != view, groups, j, c) == 0)
    y = expf(x[at] * scale - sums[state]) * slope * scale;
  if (!(slope == slope)) y = slope;
  if (c == j) y += d_pairs[state] * scale;
  write(to + at, y);
}
extern "C" __global__ void contrastive_gradient_f32(float* to, const float* x, const float* sums, const float* ds, const float* dp,
                                                    const u32* groups, u32 mode, float scale, u32 batch, u32 spaces) {
  contrastive_gradient(to, x, sums, ds, dp, groups, mode, scale, batch, spaces);
}
extern "C" __global__ void contrastive_gradient_bf16(__nv_bfloat16* to, const float* x, const float* sums, const float* ds,
                                                     const float* dp, const u32* groups, u32 mode, float scale, u32 batch,
                                                     u32 spaces) {
  contrastive_gradient(to, x, sums, ds, dp, groups, mode, scale, batch, spaces);
}

// ---------------------------------------------------------------- Adam

// A piece of a parameter, its gradient and its moments.
struct Piece {
  float *value, *first, *second;
  const float* gradient;
  u64 count;
  float step_size, second_root;
};

__device__ double block_sum(double x) {
  __shared__ double sums[WARPS];
#pragma unroll
  for (int at = 16; at > 0; at /= 2) x += __shfl_down_sync(ALL, x, at);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  double all = 0.0;
  for (int warp = 0; warp < WARPS; warp++) all += sums[warp];
  __syncthreads();
  return all;
}

// squares[piece] = the piece's sum of squares.
extern "C" __global__ void __launch_bounds__(256) piece_squares(double* squares, const Piece* pieces) {
  Piece piece = pieces[blockIdx.x];
  double sum = 0.0;
  for (u64 i = threadIdx.x; i < piece.count; i += blockDim.x) sum += (double)piece.gradient[i] * piece.gradient[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

// outcome = (the norm, the loss, whether the step is taken); stopped becomes 1 if either is not finite, and stays 1. One block.
extern "C" __global__ void __launch_bounds__(256)
    joint_norm(double* outcome, u32* stopped, const double* squares, u32 pieces, const float* loss) {
  double sum = 0.0;
  for (u32 i = threadIdx.x; i < pieces; i += blockDim.x) sum += squares[i];
  sum = block_sum(sum);
  if (threadIdx.x > 0) return;
  outcome[0] = sqrt(sum);
  outcome[1] = *loss;
  if (!isfinite(sum) || !isfinite(*loss)) *stopped = 1;
  outcome[2] = *stopped ? 0.0 : 1.0;
}

extern "C" __global__ void __launch_bounds__(256)
    adam(const Piece* pieces, const double* outcome, const u32* stopped, double clip_norm, float decay, float fresh_1, float fresh_2) {
  if (*stopped) return;
  Piece piece = pieces[blockIdx.x];
  float clip = (float)fmin(clip_norm / (outcome[0] + 1e-6), 1.0);
  for (u64 i = threadIdx.x; i < piece.count; i += blockDim.x) {
    float g = piece.gradient[i] * clip + decay * piece.value[i];
    float first = 0.9f * piece.first[i] + fresh_1 * g;
    float second = 0.999f * piece.second[i] + fresh_2 * g * g;
    piece.first[i] = first;
    piece.second[i] = second;
    piece.value[i] -= piece.step_size * first / (sqrtf(second) / piece.second_root + 1e-8f);
  }
}

// ---------------------------------------------------------------- ranking

// The number of candidates that score at least as high as the row's target, and the first column whose score is not finite, or `columns`:
// ahead [rows][2]. A row's removed columns are removed[offsets[row]..offsets[row + 1]] and are not candidates. One block per row.
extern "C" __global__ void __launch_bounds__(256)
    count_ahead(u32* ahead, const float* scores, const u32* targets, const u32* offsets, const u32* removed, u32 columns) {
  __shared__ u32 count, bad;
  if (threadIdx.x == 0) count = 0, bad = columns;
  __syncthreads();
  u32 row = blockIdx.x, target = targets[row], own = 0;
  const float* x = scores + (size_t)row * columns;
  float bound = x[target];
  for (u32 c = threadIdx.x; c < columns; c += blockDim.x) {
    own += c != target && x[c] >= bound;
    if (!isfinite(x[c])) atomicMin(&bad, c);
  }
  for (u32 at = offsets[row] + threadIdx.x; at < offsets[row + 1]; at += blockDim.x) own -= x[removed[at]] >= bound;
  atomicAdd(&count, own);
  __syncthreads();
  if (threadIdx.x == 0) ahead[2 * row] = count, ahead[2 * row + 1] = bad;
}

// All kernels are in one module of the GPU, and these share the helpers above.
#include "inference.cu"

// This comes last because it uses helpers of inference.cu.
#include "convolution.cu"
