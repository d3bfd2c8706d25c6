// Kernels of convolutional encoders with fixed weights: what lies between the products. Maps have the channels last,
// [images][height][width][channels], with a multiple of four channels, so that a convolution of one pixel is a product and any other
// convolution is one after its windows are copied side by side. A launch has fewer than 2^32 threads, so indices have 32 bits. `kernels.cu`
// includes this file.

// Copies the windows of the pixels [images][3][height][width] to [images out_height out_width][side^2 3], with zeros beyond the border. One
// thread per value.
template <typename T>
__device__ void pixel_windows(T* to, const float* pixels, u32 count, u32 height, u32 width, u32 side, u32 stride, u32 out_height,
                              u32 out_width) {
  u32 index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= count) return;
  u32 columns = 3 * side * side, value = index % columns, channel = value % 3, tap = value / 3;
  u32 row = index / columns, image = row / (out_height * out_width), at = row % (out_height * out_width);
  int y = (int)(at / out_width * stride + tap / side) - (int)(side / 2);
  int x = (int)(at % out_width * stride + tap % side) - (int)(side / 2);
  bool inside = y >= 0 && y < (int)height && x >= 0 && x < (int)width;
  write(to + index, inside ? pixels[(((size_t)image * 3 + channel) * height + y) * width + x] : 0.0f);
}

// Copies the windows of a map to [images out_height out_width][side^2 channels], with zeros beyond the border. One thread per four values.
template <typename T>
__device__ void windows(T* to, const T* map, u32 fours, u32 height, u32 width, u32 channels, u32 side, u32 stride, u32 out_height,
                        u32 out_width) {
  u32 index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= fours) return;
  u32 columns = side * side * channels / 4, value = index % columns, channel = 4 * (value % (channels / 4));
  u32 tap = value / (channels / 4), row = index / columns;
  u32 image = row / (out_height * out_width), at = row % (out_height * out_width);
  int y = (int)(at / out_width * stride + tap / side) - (int)(side / 2);
  int x = (int)(at % out_width * stride + tap % side) - (int)(side / 2);
  float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (y >= 0 && y < (int)height && x >= 0 && x < (int)width)
    read4(v, map + (((size_t)image * height + y) * width + x) * channels + channel);
  write4(to + 4 * (size_t)index, v);
}

// map += bias and, if there is one, the map `beside`; then ReLU, if `rectify`. One thread per four values.
template <typename T>
__device__ void shift(T* map, const float* bias, const T* beside, u32 fours, u32 channels, u32 rectify) {
  u32 index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= fours) return;
  float v[4], b[4], other[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  read4(v, map + 4 * (size_t)index);
  read4(b, bias + 4 * (index % (channels / 4)));
  if (beside) read4(other, beside + 4 * (size_t)index);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    v[j] = v[j] + b[j] + other[j];
    if (rectify) v[j] = fmaxf(v[j], 0.0f);
  }
  write4(map + 4 * (size_t)index, v);
}

// Max pooling of 3 by 3 pixels with stride 2; pixels beyond the border do not count. One thread per four values.
template <typename T>
__device__ void pool_map(T* to, const T* map, u32 fours, u32 height, u32 width, u32 channels, u32 out_height, u32 out_width) {
  u32 index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= fours) return;
  u32 channel = 4 * (index % (channels / 4)), row = index / (channels / 4);
  u32 image = row / (out_height * out_width), at = row % (out_height * out_width);
  float most[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  for (int tap = 0; tap < 9; tap++) {
    int y = (int)(at / out_width * 2) + tap / 3 - 1, x = (int)(at % out_width * 2) + tap % 3 - 1;
    if (y < 0 || y >= (int)height || x < 0 || x >= (int)width) continue;
    float v[4];
    read4(v, map + (((size_t)image * height + y) * width + x) * channels + channel);
#pragma unroll
    for (int j = 0; j < 4; j++) most[j] = fmaxf(most[j], v[j]);
  }
  write4(to + 4 * (size_t)index, most);
}

// The mean of an image's map by channel: out [images][channels], map [images][pixels][channels]. One block per image and 256 channels.
template <typename T>
__device__ void map_means(float* out, const T* map, u32 pixels, u32 channels) {
  u32 c = blockIdx.y * blockDim.x + threadIdx.x;
  if (c >= channels) return;
  const T* from = map + (size_t)blockIdx.x * pixels * channels + c;
  float sum = 0.0f;
  for (u32 pixel = 0; pixel < pixels; pixel++) sum += read(from + (size_t)pixel * channels);
  out[(size_t)blockIdx.x * channels + c] = sum / pixels;
}

#define CONVOLUTION_KERNELS(T, NAME)                                                                                              \
  extern "C" __global__ void pixel_windows_##NAME(T* to, const float* pixels, u32 count, u32 height, u32 width, u32 side,         \
                                                  u32 stride, u32 out_height, u32 out_width) {                                    \
    pixel_windows(to, pixels, count, height, width, side, stride, out_height, out_width);                                         \
  }                                                                                                                               \
  extern "C" __global__ void windows_##NAME(T* to, const T* map, u32 fours, u32 height, u32 width, u32 channels, u32 side,        \
                                            u32 stride, u32 out_height, u32 out_width) {                                          \
    windows(to, map, fours, height, width, channels, side, stride, out_height, out_width);                                        \
  }                                                                                                                               \
  extern "C" __global__ void shift_##NAME(T* map, const float* bias, const T* beside, u32 fours, u32 channels, u32 rectify) {     \
    shift(map, bias, beside, fours, channels, rectify);                                                                           \
  }                                                                                                                               \
  extern "C" __global__ void pool_map_##NAME(T* to, const T* map, u32 fours, u32 height, u32 width, u32 channels, u32 out_height, \
                                             u32 out_width) {                                                                     \
    pool_map(to, map, fours, height, width, channels, out_height, out_width);                                                     \
  }                                                                                                                               \
  extern "C" __global__ void map_means_##NAME(float* out, const T* map, u32 pixels, u32 channels) {                               \
    map_means(out, map, pixels, channels);                                                                                        \
  }
CONVOLUTION_KERNELS(float, f32)
CONVOLUTION_KERNELS(__nv_bfloat16, bf16)
