// Contract: backend/ops/gemm.h. Which unit computes what:
//   bf16 x bf16                 cuBLASLt on the tensor cores, f32 sums
//   bf16 x f32 or scaled e4m3   the same, with the other operand as bf16 numbers: x = x1 + x2 + x3 to 24 bits
//                               (two of them where C is bf16), one product each, added in f32; all parts in one
//                               product where the f32 operand has few rows or columns, as the router's
//   e4m3 x e4m3 on Hopper       hopper/fp8_gemm.h
//   f32 x f32, C bf16           the tensor cores too: x1 y1 + x1 y2 + x2 y1 as one product three times as deep
//   everything else             cuBLASLt on the FFMA units (TF32 is never used), e4m3 made f32 before
//   few rows (decoding)         bf16, 2 to 32 rows: some_rows.cu; else up to 8: skinny_products.cu
//   any rows alike (fix_rows)   bf16: some_rows.cu, and fixed_tiles.cu for many columns; else skinny_products.cu
//   rows that do not start on 16 bytes, f32 smaller than a tile: the plain kernel (product.h)
// Operands that have to be converted are cut to fit the workspace.
//
// cuBLASLt's choice of algorithm is made once a shape and kept: the first call of a shape is slower, later
// ones are a launch. Reductions across blocks only in f32 and in a fixed order, so the same shape gives the
// same bits; another number of rows may take another algorithm and differ in the last bits.
#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <string>

#include "backend/cuda/blas_lt.h"
#include "backend/cuda/convert.cuh"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/hopper/fp8_gemm.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/number.cuh"
#include "backend/cuda/product.h"
#include "backend/cuda/some_rows.h"
#include "backend/ops/check.h"

namespace cachalot::cuda {

namespace {

constexpr int64_t kBlasWorkspace = int64_t(32) << 20;  // the rest is for converted operands

void must_blas(cublasStatus_t code, const char* doing) {
  if (code == CUBLAS_STATUS_SUCCESS) return;
  throw Error(std::string("cuBLASLt: ") + doing + ": " + blas_lt().GetStatusString(code))
      .hint("nvidia-smi shows the state of the card and who uses its memory");
}

cudaDataType type_of(DType t) { return t == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

bool starts_on_16_bytes(const Tensor& t, int64_t step = 0) {
  const int64_t size = size_of(t.dtype);
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && (t.rows <= 1 || t.ld * size % 16 == 0) &&
         t.cols * size % 16 == 0 && step * size % 16 == 0;
}

// y = x in f32, contiguous.
__global__ void to_f32(const __grid_constant__ Tensor x, float* y) {
  start();
  const int64_t n = x.rows * x.cols;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    y[i] = load_number(x, i / x.cols, i % x.cols);
}

// x = y[0] + y[1] + ..., each of bf16 and contiguous, to 8 bits more a part. What is not finite stays in
// y[0].
__device__ inline void split(float rest, int parts, int64_t n, int64_t i, bf16* y) {
  for (int j = 0; j < parts; ++j) {
    const bf16 part(rest);
    y[j * n + i] = part;
    rest = isfinite(float(part)) ? rest - float(part) : 0;
  }
}
__global__ void to_parts(const __grid_constant__ Tensor x, int parts, bf16* y) {
  start();
  const int64_t n = x.rows * x.cols, stride = int64_t(gridDim.x) * blockDim.x;
  const int64_t first = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (x.dtype == DType::f32 && x.ld == x.cols) {
    for (int64_t i = first; i < n; i += stride) split(static_cast<const float*>(x.data)[i], parts, n, i, y);
  } else {
    for (int64_t i = first; i < n; i += stride) split(load_number(x, i / x.cols, i % x.cols), parts, n, i, y);
  }
}

// The next part of eight numbers, which become what is left of them.
__device__ inline Packed<bf16> next_part(Eight& rest) {
  const Packed<bf16> part = pack<bf16>(rest);
  const Eight e = unpack(part);
#pragma unroll
  for (int i = 0; i < kEight; ++i) rest.v[i] = isfinite(e.v[i]) ? rest.v[i] - e.v[i] : 0;
  return part;
}
__device__ inline Eight eight_of(const Tensor& x, int64_t row, int64_t col) {
  return load_eight<true>(static_cast<const float*>(x.data) + row * x.ld, col, x.cols);
}

// Of f32 rows that can be read in eights: the parts of a left operand beside each other, x1 x1 x2, or of a right one
// below each other, y1 y2 y1.
__global__ void to_deep(const __grid_constant__ Tensor x, bool left, bf16* y) {
  start();
  const int64_t step = left ? x.cols : x.rows * x.cols;
  for_plane(x.rows, x.cols, [&](int64_t row, int64_t col) {
    Eight rest = eight_of(x, row, col);
    const Packed<bf16> first = next_part(rest), second = next_part(rest);
    bf16* to = y + (left ? 3 : 1) * row * x.cols;
    store<true>(to, col, x.cols, first);
    store<true>(to + step, col, x.cols, left ? first : second);
    store<true>(to + 2 * step, col, x.cols, left ? second : first);
  });
}

// Of such rows: parts that begin `step` numbers apart, in rows y_ld apart.
__global__ void to_parts_of_rows(const __grid_constant__ Tensor x, int parts, bf16* y, int64_t y_ld,
                                 int64_t step) {
  start();
  for_plane(x.rows, x.cols, [&](int64_t row, int64_t col) {
    Eight rest = eight_of(x, row, col);
    for (int p = 0; p < parts; ++p) store<true>(y + row * y_ld + p * step, col, x.cols, next_part(rest));
  });
}

// c = or += the sum of `parts` matrices that begin `step` numbers apart, in rows x_ld apart. All in eights.
__global__ void add_parts(const float* x, int64_t x_ld, int64_t step, int parts,
                          const __grid_constant__ Tensor c, bool add) {
  start();
  for_plane(c.rows, c.cols, [&](int64_t row, int64_t col) {
    Eight sum = load_eight<true>(x + row * x_ld, col, c.cols);
    const auto more = [&](const Eight& e) {
#pragma unroll
      for (int i = 0; i < kEight; ++i) sum.v[i] += e.v[i];
    };
    for (int p = 1; p < parts; ++p) more(load_eight<true>(x + row * x_ld + p * step, col, c.cols));
    if (add) more(eight_of(c, row, col));
    store_eight<true>(static_cast<float*>(c.data) + row * c.ld, col, c.cols, sum);
  });
}

// c = or += x, x contiguous.
__global__ void store_sums(const float* x, const __grid_constant__ Tensor c, bool add) {
  start();
  const int64_t n = c.rows * c.cols;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    const int64_t row = i / c.cols, col = i % c.cols;
    store_number(c, row, col, add ? load_number(c, row, col) + x[i] : x[i]);
  }
}

unsigned blocks_for(int64_t n) { return unsigned(std::clamp<int64_t>((n + 255) / 256, 1, 4096)); }

struct Call {
  cublasLtMatmulDesc_t what = nullptr;
  cublasLtMatrixLayout_t left = nullptr, right = nullptr, out = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool possible = false;
  Call() = default;
  Call(const Call&) = delete;
  ~Call() {
    if (what) blas_lt().MatmulDescDestroy(what);
    for (const auto layout : {left, right, out})
      if (layout) blas_lt().MatrixLayoutDestroy(layout);
  }
};

cublasLtMatrixLayout_t layout_of(const Tensor& t, int64_t count,
                                 int64_t step) {  // rows of t are columns there
  cublasLtMatrixLayout_t layout = nullptr;
  must_blas(blas_lt().MatrixLayoutCreate(&layout, type_of(t.dtype), uint64_t(t.cols), uint64_t(t.rows),
                                         std::max(t.ld, t.cols)),
            "a layout");
  if (count > 1) {
    const int32_t batch = int32_t(count);
    must_blas(
        blas_lt().MatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch),
        "a batch");
    must_blas(blas_lt().MatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
                                                 sizeof step),
              "a batch");
  }
  return layout;
}

}  // namespace

struct BlasCalls {
  using Key = std::array<int64_t, 12>;
  std::map<Key, std::unique_ptr<Call>> calls;
};

namespace {

// One batch of products of equal formats, C f32 or that format. The tensors are of problem 0; problem z
// begins `step` numbers further. False: cuBLASLt knows no way.
struct Batch {
  Tensor a, b, c;
  bool trans_a = false, trans_b = false, add = false;
  int64_t count = 1, a_step = 0, b_step = 0, c_step = 0;
};

bool blas(cublasLtHandle_t handle, std::shared_ptr<BlasCalls>& calls, cudaStream_t stream, void* workspace,
          const Batch& p) {
  const BlasCalls::Key key{
      p.c.rows,
      p.c.cols,
      p.trans_a ? p.a.rows : p.a.cols,
      int64_t(p.trans_a) + 2 * int64_t(p.trans_b) + 4 * int64_t(p.a.dtype) + 64 * int64_t(p.c.dtype),
      p.a.ld,
      p.b.ld,
      p.c.ld,
      p.count,
      p.a_step,
      p.b_step,
      p.c_step,
      int64_t(p.add)};
  if (!calls) calls = std::make_shared<BlasCalls>();
  std::unique_ptr<Call>& kept = calls->calls[key];
  if (!kept) {
    auto made = std::make_unique<Call>();  // kept when whole: a failure is met again, not taken for "no way"
    Call& call = *made;
    // Row-major C = op(A) op(B) is column-major C^T = op(B)^T op(A)^T.
    const cublasOperation_t left = p.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                            right = p.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    must_blas(blas_lt().MatmulDescCreate(&call.what, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product");
    must_blas(blas_lt().MatmulDescSetAttribute(call.what, CUBLASLT_MATMUL_DESC_TRANSA, &left, sizeof left),
              "a product");
    must_blas(blas_lt().MatmulDescSetAttribute(call.what, CUBLASLT_MATMUL_DESC_TRANSB, &right, sizeof right),
              "a product");
    call.left = layout_of(p.b, p.count, p.b_step);
    call.right = layout_of(p.a, p.count, p.a_step);
    call.out = layout_of(p.c, p.count, p.c_step);
    cublasLtMatmulPreference_t preference = nullptr;
    must_blas(blas_lt().MatmulPreferenceCreate(&preference), "a preference");
    const size_t most = size_t(kBlasWorkspace);
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, alignment = 16;
    must_blas(blas_lt().MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                     &most, sizeof most),
              "a preference");
    must_blas(blas_lt().MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                     &reductions, sizeof reductions),
              "a preference");
    for (const auto which :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      must_blas(blas_lt().MatmulPreferenceSetAttribute(preference, which, &alignment, sizeof alignment),
                "a preference");
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status = blas_lt().MatmulAlgoGetHeuristic(
        handle, call.what, call.left, call.right, call.out, call.out, preference, 1, &result, &found);
    blas_lt().MatmulPreferenceDestroy(preference);
    call.possible = status == CUBLAS_STATUS_SUCCESS && found > 0;
    call.algorithm = result.algo;
    kept = std::move(made);
  }
  const Call& call = *kept;
  if (!call.possible) return false;
  const float one = 1, before = p.add ? 1 : 0;
  must_blas(blas_lt().Matmul(handle, call.what, &one, p.b.data, call.left, p.a.data, call.right, &before,
                             p.c.data, call.out, p.c.data, call.out, &call.algorithm, workspace,
                             size_t(kBlasWorkspace), stream),
            "a product");
  return true;
}

}  // namespace

namespace {

Products products_of(const Gemm& g) {
  return {.a = g.a,
          .b = g.b,
          .c = g.c,
          .trans_a = g.trans_a,
          .trans_b = g.trans_b,
          .add = g.accumulate == Accumulate::add,
          .m = g.c.rows,
          .n = g.c.cols,
          .k = g.trans_a ? g.a.rows : g.a.cols,
          .read_ahead = g.read_ahead};
}

}  // namespace

void CudaBackend::plain(const Gemm& g) { plain_products(stream_, context_->multiprocessors, products_of(g)); }

// C bf16 = or += A B of f32 numbers to 16 bits, which the store rounds to 8.
bool CudaBackend::deep_product(const Gemm& g) {
  const int64_t m = g.c.rows, n = g.c.cols, k = g.a.cols;
  const int64_t a_bytes = (6 * m * k + 255) / 256 * 256, b_bytes = 6 * k * n;
  if (g.a.dtype != DType::f32 || g.b.dtype != DType::f32 || g.c.dtype != DType::bf16 || g.trans_a ||
      g.trans_b || a_bytes + b_bytes > kWorkspace - kBlasWorkspace)
    return false;
  uint8_t* memory = static_cast<uint8_t*>(workspace_) + kBlasWorkspace;
  const Tensor a = make_tensor(memory, DType::bf16, m, 3 * k),
               b = make_tensor(memory + a_bytes, DType::bf16, 3 * k, n);
  const Plane of_a = plane(m, k), of_b = plane(k, n);
  launch(queue_, to_deep, of_a.grid, of_a.block, 0, g.a, true, static_cast<bf16*>(a.data));
  launch(queue_, to_deep, of_b.grid, of_b.block, 0, g.b, false, static_cast<bf16*>(b.data));
  launched("gemm: converting an operand");
  return blas(blas_, calls_, stream_, workspace_,
              {.a = a, .b = b, .c = g.c, .add = g.accumulate == Accumulate::add});
}

// C f32 = A B^T or A^T B of a small f32 operand, as the router's are, and a large bf16 one, which is read once: the
// parts stand beside each other in the product's rows or columns and are added behind it.
bool CudaBackend::wide_product(const Gemm& g) {
  constexpr int kParts = 3;
  constexpr int64_t kFew = 256;
  const int64_t m = g.c.rows, n = g.c.cols, k = g.trans_a ? g.a.rows : g.a.cols;
  const bool right =
                 g.a.dtype == DType::bf16 && g.b.dtype == DType::f32 && !g.trans_a && g.trans_b && n <= kFew,
             left =
                 g.a.dtype == DType::f32 && g.b.dtype == DType::bf16 && g.trans_a && !g.trans_b && m <= kFew;
  if (g.c.dtype != DType::f32 || !(left || right)) return false;
  const Tensor& small = left ? g.a : g.b;
  const int64_t part_bytes = (kParts * small.size() * 2 + 255) / 256 * 256;
  if (part_bytes + kParts * m * n * 4 > kWorkspace - kBlasWorkspace) return false;
  uint8_t* memory = static_cast<uint8_t*>(workspace_) + kBlasWorkspace;
  auto* parts = reinterpret_cast<bf16*>(memory);
  const Plane of_small = plane(small.rows, small.cols), of_c = plane(m, n);
  launch(queue_, to_parts_of_rows, of_small.grid, of_small.block, 0, small, kParts, parts,
         left ? kParts * small.cols : small.cols, left ? small.cols : small.size());
  launched("gemm: converting an operand");
  const Tensor wide =
      left ? make_tensor(parts, DType::bf16, k, kParts * m) : make_tensor(parts, DType::bf16, kParts * n, k);
  const Tensor sums = left ? make_tensor(memory + part_bytes, DType::f32, kParts * m, n)
                           : make_tensor(memory + part_bytes, DType::f32, m, kParts * n);
  if (!blas(blas_, calls_, stream_, workspace_,
            {.a = left ? wide : g.a, .b = left ? g.b : wide, .c = sums, .trans_a = left, .trans_b = right}))
    return false;
  launch(queue_, add_parts, of_c.grid, of_c.block, 0, static_cast<const float*>(sums.data), sums.cols,
         left ? m * n : n, kParts, g.c, g.accumulate == Accumulate::add);
  launched("gemm: storing");
  return true;
}

void CudaBackend::gemm(const Gemm& g) {
  check(g);
  require_no_f64("gemm", {&g.a, &g.b, &g.c});
  select();
  const int64_t m = g.c.rows, n = g.c.cols, k = g.trans_a ? g.a.rows : g.a.cols;
  if (m == 0 || n == 0) return;
  if (!g.trans_a && g.trans_b && k > 0 && !rows_fixed_ &&
      !hopper::fp8_gemm({.a = g.a, .b = g.b, .d = g.c, .add = g.accumulate == Accumulate::add},
                        {context_->major, context_->multiprocessors}, stream_))
    return;
  if ((rows_fixed_ && fixed_tiles(queue_, products_of(g))) || some_rows(queue_, products_of(g), rows_fixed_))
    return;
  if (skinny_products(queue_, products_of(g), rows_fixed_)) return;
  if (rows_fixed_) return plain(g);
  if (k == 0 || !starts_on_16_bytes(g.a) || !starts_on_16_bytes(g.b) || !starts_on_16_bytes(g.c) ||
      // The packed rows of a converted operand must start on 16 bytes as well.
      g.a.cols % 8 != 0 || g.b.cols % 8 != 0 || n % 8 != 0 ||
      (g.a.dtype != DType::bf16 && g.b.dtype != DType::bf16 && (m < 64 || n < 64)))
    return plain(g);

  if (deep_product(g) || wide_product(g)) return;

  // What becomes of each operand: itself, f32, or parts of bf16.
  const bool any_bf16 = g.a.dtype == DType::bf16 || g.b.dtype == DType::bf16;
  const DType format = any_bf16 ? DType::bf16 : DType::f32;
  const int parts = !any_bf16 ? 1 : g.c.dtype == DType::bf16 ? 2 : 3;
  const bool convert_a = g.a.dtype != format, convert_b = g.b.dtype != format;
  const bool sums_apart = g.c.dtype == DType::bf16 && (format == DType::f32 || convert_a || convert_b);
  const auto converted = [&](const Tensor& t) {
    return (t.size() * size_of(format) * parts + 255) / 256 * 256;
  };
  // Parts of A [K, M] lie behind each other: with B as often they are one product, which reads and writes C
  // once: worth the copies where C is larger than B, as for the weight gradient of the head.
  const bool one_product = convert_a && parts > 1 && g.trans_a && !g.trans_b && !convert_b && m > k;
  const int64_t need = (convert_a ? converted(g.a) : 0) + (convert_b ? converted(g.b) : 0) +
                       (one_product ? converted(g.b) : 0) + (sums_apart ? 4 * m * n + 256 : 0);
  if (need > kWorkspace - kBlasWorkspace) {
    Gemm first = g, second = g;
    const auto cut = [](int64_t size) { return (size / 2 + 63) / 64 * 64; };
    const bool by_row = !g.trans_a && m >= 128 && (!convert_b || converted(g.b) <= kWorkspace / 4);
    if (by_row) {  // rows of A and C
      const int64_t half = cut(m);
      first.a = g.a.slice_rows(0, half), second.a = g.a.slice_rows(half, m - half);
      first.c = g.c.slice_rows(0, half), second.c = g.c.slice_rows(half, m - half);
    } else if (g.trans_b && n >= 128) {  // rows of B, columns of C
      const int64_t half = cut(n);
      first.b = g.b.slice_rows(0, half), second.b = g.b.slice_rows(half, n - half);
      first.c = g.c.slice_cols(0, half), second.c = g.c.slice_cols(half, n - half);
    } else if (g.trans_a && !g.trans_b && k >= 128 && g.c.dtype == DType::f32) {  // rows of A and B
      const int64_t half = cut(k);
      first.a = g.a.slice_rows(0, half), second.a = g.a.slice_rows(half, k - half);
      first.b = g.b.slice_rows(0, half), second.b = g.b.slice_rows(half, k - half);
      second.accumulate = Accumulate::add;
    } else {
      return plain(g);
    }
    gemm(first);
    return gemm(second);
  }

  uint8_t* memory = static_cast<uint8_t*>(workspace_) + kBlasWorkspace;
  const auto take = [&](int64_t bytes) {
    uint8_t* taken = memory;
    memory += (bytes + 255) / 256 * 256;
    return taken;
  };
  // The operand as `parts` contiguous tensors, or as one where it has the format already.
  const auto make = [&](const Tensor& t, bool convert) {
    std::array<Tensor, 3> made{t, t, t};
    if (!convert) return made;
    uint8_t* data = take(converted(t));
    if (format == DType::f32)
      launch(queue_, to_f32, blocks_for(t.size()), 256, 0, t, reinterpret_cast<float*>(data));
    else launch(queue_, to_parts, blocks_for(t.size()), 256, 0, t, parts, reinterpret_cast<bf16*>(data));
    launched("gemm: converting an operand");
    for (int i = 0; i < parts; ++i)
      made[size_t(i)] = make_tensor(data + i * t.size() * size_of(format), format, t.rows, t.cols);
    return made;
  };
  auto a = make(g.a, convert_a), b = make(g.b, convert_b);
  if (one_product) {
    const int64_t row = n * size_of(format);
    uint8_t* copies = take(converted(g.b));
    for (int i = 0; i < parts; ++i)
      must(cudaMemcpy2DAsync(copies + i * k * row, size_t(row), g.b.data, size_t(g.b.ld * size_of(format)),
                             size_t(row), size_t(k), cudaMemcpyDeviceToDevice, stream_),
           "gemm: copying an operand");
    a[0].rows = parts * k;
    b[0] = make_tensor(copies, format, parts * k, n);
  }
  const Tensor sums = sums_apart ? make_tensor(take(4 * m * n), DType::f32, m, n) : g.c;
  const int products = (convert_a || convert_b) && !one_product ? parts : 1;
  for (int i = 0; i < products; ++i) {
    const bool add = i > 0 || (!sums_apart && g.accumulate == Accumulate::add);
    if (!blas(blas_, calls_, stream_, workspace_,
              {.a = a[size_t(i)],
               .b = b[size_t(i)],
               .c = sums,
               .trans_a = g.trans_a,
               .trans_b = g.trans_b,
               .add = add})) {
      CHECK(i == 0, "cuBLASLt took the first part of a product and not the others");
      return plain(g);
    }
  }
  if (sums_apart) {
    launch(queue_, store_sums, blocks_for(m * n), 256, 0, static_cast<const float*>(sums.data), g.c,
           g.accumulate == Accumulate::add);
    launched("gemm: storing");
  }
}

// Contract: backend/ops/head_gemm.h.
void CudaBackend::head_gemm(const HeadGemm& g) {
  check(g);
  require_no_f64("head_gemm", {&g.x, &g.w, &g.y});
  select();
  if (g.x.rows == 0) return;
  const int64_t x_width = g.trans_w ? g.w.cols : g.w_rows, y_width = g.trans_w ? g.w_rows : g.w.cols;
  const Products p{.a = g.x,
                   .b = g.w,
                   .c = g.y,
                   .trans_b = g.trans_w,
                   .m = g.x.rows,
                   .n = y_width,
                   .k = x_width,
                   .count = g.heads,
                   .a_col_step = g.x_stride,
                   .b_row_first = g.w_first,
                   .b_row_step = g.w_stride,
                   .c_col_step = g.y_stride,
                   .read_ahead = g.read_ahead};
  if (some_rows(queue_, p, rows_fixed_) || absorb_rows(queue_, g, nullptr, faults_, rows_fixed_)) return;
  if (x_width % 8 == 0 && skinny_products(queue_, p, rows_fixed_)) return;
  if (rows_fixed_) return plain_products(stream_, context_->multiprocessors, p);
  const Tensor x = g.x.slice_cols(0, x_width), y = g.y.slice_cols(0, y_width),
               w = g.w.slice_rows(g.w_first, g.w_rows);
  const bool aligned = g.x.dtype == g.w.dtype && g.y.dtype == g.w.dtype &&
                       starts_on_16_bytes(x, g.x_stride) && starts_on_16_bytes(w, g.w_stride * g.w.ld) &&
                       starts_on_16_bytes(y, g.y_stride);
  if (aligned && blas(blas_, calls_, stream_, workspace_,
                      {.a = x,
                       .b = w,
                       .c = y,
                       .trans_b = g.trans_w,
                       .count = g.heads,
                       .a_step = g.x_stride,
                       .b_step = g.w_stride * g.w.ld,
                       .c_step = g.y_stride}))
    return;
  plain_products(stream_, context_->multiprocessors, p);
}

}  // namespace cachalot::cuda
