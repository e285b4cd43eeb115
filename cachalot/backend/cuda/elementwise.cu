// Contract: backend/ops/elementwise.h. Bytes moved: what is read and written, once.
#include <type_traits>

#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/reduce.cuh"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

template <class T> __global__ void fill_kernel(Matrix<T> y, T value) {
  start();
  for (int64_t r = blockIdx.y; r < y.rows; r += gridDim.y)
    for (int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; c < y.cols;
         c += int64_t(gridDim.x) * blockDim.x)
      y.data[r * y.ld + c] = value;
}

// The same in 16 bytes a thread; `value` repeats the number.
__global__ void fill_wide(uint4* y, int64_t n, uint4 value) {
  start();
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    y[i] = value;
}

template <class T> void fill_with(const Queue& queue, const Tensor& y, T value) {
  constexpr int64_t kNumbers = 16 / int64_t(sizeof(T));
  if ((y.ld == y.cols || y.rows == 1) && reinterpret_cast<uintptr_t>(y.data) % 16 == 0 &&
      y.size() % kNumbers == 0) {
    uint4 pattern;
    for (int64_t i = 0; i < kNumbers; ++i) reinterpret_cast<T*>(&pattern)[i] = value;
    const int64_t n = y.size() / kNumbers;
    launch(queue, fill_wide, unsigned(std::min<int64_t>((n + 255) / 256, 1 << 30)), 256, 0,
           static_cast<uint4*>(y.data), n, pattern);
    return;
  }
  const dim3 grid(unsigned(std::min<int64_t>((y.cols + 255) / 256, 1 << 20)),
                  unsigned(std::min<int64_t>(y.rows, 65535)));
  launch(queue, fill_kernel<T>, grid, 256, 0, Matrix<T>{static_cast<T*>(y.data), y.rows, y.cols, y.ld},
         value);
}

template <class From, class To, bool wide> __global__ void cast_kernel(Matrix<const From> x, Matrix<To> y) {
  start();
  for_plane(x.rows, x.cols, [&](int64_t r, int64_t c) {
    store_eight<wide>(y.data + r * y.ld, c, y.cols, load_eight<wide>(x.data + r * x.ld, c, x.cols));
  });
}

// Codes times scales; eight neighbours share a scale when they begin at a multiple of eight.
template <class To, bool wide> __global__ void cast_codes(Tensor x, Matrix<To> y) {
  start();
  for_plane(x.rows, x.cols, [&](int64_t r, int64_t c) {
    const e4m3* from = static_cast<const e4m3*>(x.data) + r * x.ld + c;
    const float scale = x.scale(r, c);
    alignas(8) e4m3 codes[kEight];
    if constexpr (wide) {
      *reinterpret_cast<uint2*>(codes) = *reinterpret_cast<const uint2*>(from);
    } else {
#pragma unroll
      for (int i = 0; i < kEight; ++i)
        if (c + i < x.cols) codes[i] = from[i];
    }
    Eight e;
#pragma unroll
    for (int i = 0; i < kEight; ++i) e.v[i] = float(codes[i]) * scale;
    store_eight<wide>(y.data + r * y.ld, c, y.cols, e);
  });
}

__global__ void copy_integers(Matrix<const int32_t> x, Matrix<int32_t> y) {
  start();
  for (int64_t r = blockIdx.y; r < y.rows; r += gridDim.y)
    for (int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; c < y.cols;
         c += int64_t(gridDim.x) * blockDim.x)
      y.data[r * y.ld + c] = x.data[r * x.ld + c];
}

// y may be a or b: a thread reads before it writes, and nobody else touches its numbers.
template <class T, bool wide> __global__ void add_kernel(Matrix<const T> a, Matrix<const T> b, Matrix<T> y) {
  start();
  for_plane(y.rows, y.cols, [&](int64_t r, int64_t c) {
    const Packed<T> left = load<wide>(a.data + r * a.ld, c, a.cols);
    const Packed<T> right = load<wide>(b.data + r * b.ld, c, b.cols);
    const Eight x = unpack(left), z = unpack(right);
    Eight sum;
#pragma unroll
    for (int i = 0; i < kEight; ++i) sum.v[i] = x.v[i] + z.v[i];
    store_eight<wide>(y.data + r * y.ld, c, y.cols, sum);
  });
}

__global__ void add_integers(Matrix<const int32_t> a, Matrix<const int32_t> b, Matrix<int32_t> y) {
  start();
  for (int64_t r = blockIdx.y; r < y.rows; r += gridDim.y)
    for (int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; c < y.cols;
         c += int64_t(gridDim.x) * blockDim.x)
      y.data[r * y.ld + c] = a.data[r * a.ld + c] + b.data[r * b.ld + c];
}

dim3 integer_grid(const Tensor& t) {
  return dim3(unsigned(std::min<int64_t>((t.cols + 255) / 256, 1 << 20)),
              unsigned(std::min<int64_t>(t.rows, 65535)));
}

// partial[block] = sum of squares of x[block * span, + span), each thread's part in order, then the threads'.
constexpr int kSquareThreads = 256;
constexpr int64_t kMostSquareBlocks = 1024;

template <bool wide> __global__ void square_chunks(const float* x, int64_t n, int64_t span, double* partial) {
  start();
  __shared__ double scratch[kSquareThreads / 32];
  const int64_t begin = blockIdx.x * span, end = min(begin + span, n);
  double sum = 0;
#pragma unroll 4
  for (int64_t i = begin + kEight * int64_t(threadIdx.x); i < end; i += kEight * kSquareThreads) {
    const Eight e = load_eight<wide>(x, i, end);
#pragma unroll
    for (int j = 0; j < kEight; ++j) sum += double(e.v[j]) * double(e.v[j]);
  }
  sum = row_sum(sum, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void add_chunks(const double* partial, int64_t n, double* out) {
  start();
  __shared__ double scratch[kSquareThreads / 32];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kSquareThreads) sum += partial[i];
  sum = row_sum(sum, scratch);
  if (threadIdx.x == 0) *out += sum;
}

}  // namespace

// f64 too: sums of squares are kept so, and somebody has to zero them.
void CudaBackend::fill(const Fill& f) {
  check(f);
  if (f.y.size() == 0) return;
  select();
  switch (f.y.dtype) {
    case DType::f64: fill_with(queue_, f.y, f.value); break;
    case DType::f32: fill_with(queue_, f.y, float(f.value)); break;
    case DType::bf16: fill_with(queue_, f.y, bf16(float(f.value))); break;
    case DType::i32: fill_with(queue_, f.y, int32_t(f.value)); break;
    case DType::e4m3: CHECK(false, "fill: e4m3");
  }
  launched("fill");
}

void CudaBackend::cast(const Cast& k) {
  check(k);
  require_no_f64("cast", {&k.x, &k.y});
  if (k.x.size() == 0) return;
  select();
  Tensor x = k.x, y = k.y;
  if (x.dtype == DType::i32 && y.dtype == DType::i32) {
    launch(queue_, copy_integers, integer_grid(y), 256, 0, x.matrix<const int32_t>(), y.matrix<int32_t>());
    return launched("cast");
  }
  CHECK(x.dtype != DType::i32, "cast: i32 to " + y.describe());
  flatten({&x, &y});
  const Plane p = plane(x.rows, x.cols);
  with_act(y.dtype, [&](auto to) {
    using To = decltype(to);
    if (x.dtype == DType::e4m3) {
      const bool on_8_bytes = reinterpret_cast<uintptr_t>(x.data) % 8 == 0 && (x.rows == 1 || x.ld % 8 == 0);
      with_width(is_wide(y) && on_8_bytes, [&](auto wide) {
        launch(queue_, cast_codes<To, wide.value>, p.grid, p.block, 0, x, y.matrix<To>());
      });
    } else {
      with_act(x.dtype, [&](auto from) {
        using From = decltype(from);
        with_width(are_wide({&x, &y}), [&](auto wide) {
          launch(queue_, cast_kernel<From, To, wide.value>, p.grid, p.block, 0, x.matrix<const From>(),
                 y.matrix<To>());
        });
      });
    }
  });
  launched("cast");
}

void CudaBackend::add(const Add& a) {
  check(a);
  require_no_f64("add", {&a.a, &a.b, &a.y});
  if (a.y.size() == 0) return;
  select();
  if (a.y.dtype == DType::i32) {
    launch(queue_, add_integers, integer_grid(a.y), 256, 0, a.a.matrix<const int32_t>(),
           a.b.matrix<const int32_t>(), a.y.matrix<int32_t>());
    return launched("add");
  }
  Tensor left = a.a, right = a.b, y = a.y;
  flatten({&left, &right, &y});
  const Plane p = plane(y.rows, y.cols);
  with_act(y.dtype, [&](auto act) {
    using T = decltype(act);
    with_width(are_wide({&left, &right, &y}), [&](auto wide) {
      launch(queue_, add_kernel<T, wide.value>, p.grid, p.block, 0, left.matrix<const T>(),
             right.matrix<const T>(), y.matrix<T>());
    });
  });
  launched("add");
}

void CudaBackend::sum_squares(const SumSquares& s) {
  check(s);
  require_no_f64("sum_squares", {&s.x});
  if (s.x.size() == 0) return;
  select();
  const Vector<const float> x = s.x.vector<const float>();
  auto* partial = static_cast<double*>(workspace_);
  constexpr int64_t kStep = kEight * kSquareThreads;
  const int64_t steps = (x.size + kStep - 1) / kStep;
  const int64_t span = (steps + kMostSquareBlocks - 1) / kMostSquareBlocks * kStep;
  const int64_t blocks = (x.size + span - 1) / span;
  with_width(x.size % kEight == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0, [&](auto wide) {
    launch(queue_, square_chunks<wide.value>, unsigned(blocks), kSquareThreads, 0, x.data, x.size, span,
           partial);
  });
  launch(queue_, add_chunks, 1, kSquareThreads, 0, partial, blocks, s.out.matrix<double>().data);
  launched("sum_squares");
}

}  // namespace cachalot::cuda
