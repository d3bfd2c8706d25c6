// Kernels of encoders with fixed weights: what lies between the products. The inputs and results of products are f32, or bf16 if products
// are computed from bf16; the sums of the residual branches are f32. `kernels.cu` includes this file.

// ---------------------------------------------------------------- four values at once

__device__ __forceinline__ void read4(float (&x)[4], const float* at) {
  float4 v = *(const float4*)at;
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
__device__ __forceinline__ void read4(float (&x)[4], const __nv_bfloat16* at) {
  uint2 v = *(const uint2*)at;
  x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
  x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
}
__device__ __forceinline__ void write4(float* at, const float (&x)[4]) { *(float4*)at = make_float4(x[0], x[1], x[2], x[3]); }
__device__ __forceinline__ void write4(__nv_bfloat16* at, const float (&x)[4]) {
  *(__nv_bfloat162*)at = __floats2bfloat162_rn(x[0], x[1]);
  *(__nv_bfloat162*)(at + 2) = __floats2bfloat162_rn(x[2], x[3]);
}

// ---------------------------------------------------------------- input of the layers

// x[t] = (table[ids[t]] + segment) + positions[rows[t]]; the order of the sums is the reference's. One warp per token.
extern "C" __global__ void token_sums(float* x, const float* table, const float* segment, const float* positions, const u32* ids,
                                      const u32* rows, u32 tokens, u32 d) {
  u32 token = warp_index(), lane = threadIdx.x % 32;
  if (token >= tokens) return;
  const float* word = table + (size_t)ids[token] * d;
  const float* position = positions + (size_t)rows[token] * d;
  for (u32 i = lane; i < d; i += 32)
    x[(size_t)token * d + i] = (segment ? word[i] + segment[i] : word[i]) + position[i];
}

// Copies the patches of the pixels [images][3][side][side] to [images across^2][3 patch^2], row by row and each channel by channel. One
// block per patch and 256 of its values.
template <typename T>
__device__ void cut_patches(T* to, const float* pixels, u32 side, u32 patch) {
  u32 across = side / patch, area = patch * patch, value = blockIdx.y * blockDim.x + threadIdx.x;
  if (value >= 3 * area) return;
  u32 image = blockIdx.x / (across * across), at = blockIdx.x % (across * across);
  u32 channel = value / area, y = at / across * patch + value % area / patch, x = at % across * patch + value % patch;
  write(to + (size_t)blockIdx.x * 3 * area + value, pixels[(((size_t)image * 3 + channel) * side + y) * side + x]);
}
extern "C" __global__ void cut_patches_f32(float* to, const float* pixels, u32 side, u32 patch) {
  cut_patches(to, pixels, side, patch);
}
extern "C" __global__ void cut_patches_bf16(__nv_bfloat16* to, const float* pixels, u32 side, u32 patch) {
  cut_patches(to, pixels, side, patch);
}

// An image's tokens are the class, then its patches, each with its position: x [images (count + 1)][d]. One warp per token.
extern "C" __global__ void image_tokens(float* x, const float* patches, const float* first, const float* positions, u32 tokens,
                                        u32 count, u32 d) {
  u32 token = warp_index(), lane = threadIdx.x % 32;
  if (token >= tokens) return;
  u32 image = token / (count + 1), index = token % (count + 1);
  const float* from = index == 0 ? first : patches + ((size_t)image * count + index - 1) * d;
  for (u32 i = lane; i < d; i += 32) x[(size_t)token * d + i] = from[i] + positions[(size_t)index * d + i];
}

// ---------------------------------------------------------------- residual sums, LayerNorm, activation

// x += branch + its bias, if there is a branch; then LayerNorm, if there is a weight. With `norm_first` x keeps the sum and `input` gets
// the normalised row; otherwise both get it. `input` may be missing. One warp per row.
template <int P, typename T>
__device__ void residual_norm(float* x, T* input, const T* branch, const float* branch_bias, const float* weight,
                              const float* bias, float eps, u32 rows, u32 d, u32 norm_first) {
  u32 row = warp_index(), lane = threadIdx.x % 32;
  if (row >= rows) return;
  size_t start = (size_t)row * d;
  float v[P];
  load(v, x + start, d);
  if (branch) {
#pragma unroll
    for (int j = 0; j < P; j++) {
      u32 i = lane + 32 * j;
      if (i < d) v[j] += read(branch + start + i) + branch_bias[i];
    }
    if (norm_first) store(x + start, v, d);
  }
  if (!weight) return;
  float mean = total(v) / d;
#pragma unroll
  for (int j = 0; j < P; j++) v[j] = lane + 32 * j < d ? v[j] - mean : 0.0f;
  float scale = 1.0f / sqrtf(dot(v, v) / d + eps);
#pragma unroll
  for (int j = 0; j < P; j++) {
    u32 i = lane + 32 * j;
    if (i < d) {
      float y = v[j] * scale * weight[i] + bias[i];
      if (!norm_first) x[start + i] = y;
      if (input) write(input + start + i, y);
    }
  }
}

#define RESIDUAL_NORM(P, T, NAME)                                                                                                 \
  extern "C" __global__ void __launch_bounds__(256)                                                                               \
      residual_norm_##P##_##NAME(float* x, T* input, const T* branch, const float* branch_bias, const float* weight,              \
                                 const float* bias, float eps, u32 rows, u32 d, u32 norm_first) {                                 \
    residual_norm<P>(x, input, branch, branch_bias, weight, bias, eps, rows, d, norm_first);                                      \
  }
#define RESIDUAL_NORMS(P) RESIDUAL_NORM(P, float, f32) RESIDUAL_NORM(P, __nv_bfloat16, bf16)
RESIDUAL_NORMS(4)
RESIDUAL_NORMS(8)
RESIDUAL_NORMS(12)
RESIDUAL_NORMS(16)
RESIDUAL_NORMS(24)
RESIDUAL_NORMS(32)
RESIDUAL_NORMS(64)
RESIDUAL_NORMS(128)

__device__ __forceinline__ float activated(float x, u32 quick) {
  return quick ? x / (1.0f + expf(-1.702f * x)) : 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

// y = activation(y + bias) in place: one block per row and 4 x 256 columns, one thread per four values.
template <typename T>
__device__ void activate(T* y, const float* bias, u32 columns, u32 quick) {
  u32 first = blockIdx.y * 4 * blockDim.x;
  y += (size_t)blockIdx.x * columns;
  if (columns % 4 == 0) {
    u32 c = first + 4 * threadIdx.x;
    if (c >= columns) return;
    float x[4], b[4];
    read4(x, y + c);
    read4(b, bias + c);
#pragma unroll
    for (int j = 0; j < 4; j++) x[j] = activated(x[j] + b[j], quick);
    write4(y + c, x);
  } else {
    u32 end = min(first + 4 * blockDim.x, columns);
    for (u32 c = first + threadIdx.x; c < end; c += blockDim.x) write(y + c, activated(read(y + c) + bias[c], quick));
  }
}
extern "C" __global__ void activate_f32(float* y, const float* bias, u32 columns, u32 quick) { activate(y, bias, columns, quick); }
extern "C" __global__ void activate_bf16(__nv_bfloat16* y, const float* bias, u32 columns, u32 quick) {
  activate(y, bias, columns, quick);
}

// ---------------------------------------------------------------- attention

// Loads a tile of T rows of a head's queries, keys or values with their bias, with zeros beyond the end of the sequence and the width of
// the head.
template <int W, int T, typename V>
__device__ __forceinline__ void load_tile(float* to, const V* from, const float* bias, u32 start, u32 length, u32 width,
                                          u32 stride) {
  for (u32 i = threadIdx.x; i < T * W; i += T * T / 16) {
    u32 row = i / W, c = i % W;
    bool inside = start + row < length && c < width;
    to[row * (W + 4) + c] = inside ? read(from + (size_t)(start + row) * stride + c) + bias[c] : 0.0f;
  }
}

// A block has T queries of a sequence and a head, and goes through the keys T at a time with a running maximum and sum per query. Its T / 4
// by T / 4 threads have four queries each, and four keys or W / (T / 4) outputs. qkv [tokens][3 d]; `tiles` has the first token of a
// block's sequence, the sequence's length, and the first query. Heads are at most W wide. Lines of shared memory are 4 values longer than
// their content, so that four values of consecutive lines lie in different banks.
template <int W, int T, typename V>
__device__ void attend(V* out, const V* qkv, const float* qkv_bias, const u32* tiles, const float* relative, u32 reach, u32 d,
                       u32 heads, u32 causal) {
  constexpr int SIDE = T / 4, LINE = W + 4, P_LINE = T + 4, COLUMNS = W / SIDE;
  float* q = shared_room;
  float* kv = q + T * LINE;
  float* p = kv + T * LINE;
  u32 first = tiles[3 * blockIdx.x], length = tiles[3 * blockIdx.x + 1], start = tiles[3 * blockIdx.x + 2];
  u32 head = blockIdx.y, width = d / heads, tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
  const V* rows = qkv + (size_t)first * 3 * d + head * width;
  const float* bias = qkv_bias + head * width;
  load_tile<W, T>(q, rows, bias, start, length, width, 3 * d);
  float top[4], sum[4], o[4][COLUMNS];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    top[i] = -INFINITY, sum[i] = 0.0f;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) o[i][c] = 0.0f;
  }
  float scale = 1.0f / sqrtf((float)width);
  u32 end = causal ? min(length, start + T) : length;
  for (u32 at = 0; at < end; at += T) {
    __syncthreads();  // The values of the previous tile have been read.
    load_tile<W, T>(kv, rows + d, bias + d, at, length, width, 3 * d);
    __syncthreads();
    float s[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) s[i][j] = 0.0f;
    if (start + ty < length && at + tx < length) {
      for (u32 c = 0; c < width; c += 4) {
        float a[4][4], b[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          read4(a[i], q + (ty + i * SIDE) * LINE + c);
          read4(b[i], kv + (tx + i * SIDE) * LINE + c);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int j = 0; j < 4; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) s[i][j] += a[i][k] * b[j][k];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      u32 query = start + ty + i * SIDE;
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        u32 key = at + tx + j * SIDE;
        float x = s[i][j] * scale;
        if (relative) {
          int distance = min(max((int)key - (int)query, -(int)reach), (int)reach) + (int)reach;
          x += relative[head * (2 * reach + 1) + distance];
        }
        s[i][j] = key < length && (!causal || key <= query) ? x : -INFINITY;
        most = fmaxf(most, s[i][j]);
      }
#pragma unroll
      for (int lane = SIDE / 2; lane > 0; lane /= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, lane));
      // The first tile has a key that the query sees, so the maximum is finite from then on.
      float now = fmaxf(top[i], most), shrink = expf(top[i] - now), part = 0.0f;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float e = expf(s[i][j] - now);
        p[(ty + i * SIDE) * P_LINE + tx + j * SIDE] = e;
        part += e;
      }
#pragma unroll
      for (int lane = SIDE / 2; lane > 0; lane /= 2) part += __shfl_xor_sync(ALL, part, lane);
      top[i] = now;
      sum[i] = sum[i] * shrink + part;
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) o[i][c] *= shrink;
    }
    __syncthreads();  // The keys have been read.
    load_tile<W, T>(kv, rows + 2 * d, bias + 2 * d, at, length, width, 3 * d);
    __syncthreads();
    u32 keys = min((u32)T, end - at);
    for (u32 k = 0; k < keys; k += 4) {
      float weights[4][4];
#pragma unroll
      for (int i = 0; i < 4; i++) read4(weights[i], p + (ty + i * SIDE) * P_LINE + k);
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          float v = kv[(k + j) * LINE + tx + c * SIDE];
#pragma unroll
          for (int i = 0; i < 4; i++) o[i][c] += weights[i][j] * v;
        }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    u32 query = start + ty + i * SIDE;
    if (query < length) {
      V* to = out + (size_t)(first + query) * d + head * width;
      float inverse = 1.0f / sum[i];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++)
        if (tx + c * SIDE < width) write(to + tx + c * SIDE, o[i][c] * inverse);
    }
  }
}

#define ATTEND(W, T, V, NAME)                                                                                                     \
  extern "C" __global__ void __launch_bounds__(T* T / 16)                                                                         \
      attend_##W##_##T##_##NAME(V* out, const V* qkv, const float* qkv_bias, const u32* tiles, const float* relative, u32 reach,  \
                                u32 d, u32 heads, u32 causal) {                                                                   \
    attend<W, T>(out, qkv, qkv_bias, tiles, relative, reach, d, heads, causal);                                                   \
  }
#define ATTENDS(W)                                            \
  ATTEND(W, 32, float, f32) ATTEND(W, 64, float, f32)         \
  ATTEND(W, 32, __nv_bfloat16, bf16) ATTEND(W, 64, __nv_bfloat16, bf16)
ATTENDS(32)
ATTENDS(64)
ATTENDS(128)

// ---------------------------------------------------------------- output of the layers

// Pools a sequence's tokens to its vector: their mean (`mode` 0), the first token (1), or the largest values (2); zeros without tokens.
// offsets [sequences + 1]. One block per sequence and 256 columns.
extern "C" __global__ void pool_tokens(float* out, const float* x, const u32* offsets, u32 d, u32 mode) {
  u32 c = blockIdx.y * blockDim.x + threadIdx.x;
  if (c >= d) return;
  u32 first = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
  float y = first < end ? x[(size_t)first * d + c] : 0.0f;
  if (mode != 1) {
    for (u32 t = first + 1; t < end; t++) {
      float value = x[(size_t)t * d + c];
      y = mode == 2 ? fmaxf(y, value) : y + value;
    }
    if (mode == 0 && first < end) y /= end - first;
  }
  out[(size_t)blockIdx.x * d + c] = y;
}
