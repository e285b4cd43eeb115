// Everything but matrix products that is worth an instruction set: one pass over rows of numbers as they are
// stored (f32 or bf16), arithmetic in float, one rounding at the store. Built from one source (vector.inc)
// once for each instruction set, chosen when the device opens.
//
// Every number is computed the same way wherever it stands in its row, and sums depend on the length of a row
// only: a row has the same bits whatever lies beside it and whoever computes it.
//
// Files built with -mavx512f see this header: it may instantiate no function that other files share.
#pragma once

#include <cstdint>

namespace cachalot::cpu {

// c[i][j] (= or, with add, +=) sum_p left[i row + p step] right[p ldr + j],   i < m, j < n, p < k
//   row or step is 1: the left operand lies along p or across it, and neither operand is packed. n is rounded
//   up to `lanes`: what is read and written behind it is the caller's, as wide as the leading dimensions.
// Each number of c is one chain of multiply-adds in the order of p, whatever m and n are.
struct SmallProduct {
  const float* left;
  int64_t row, step;
  const float* right;
  int64_t ldr;
  int64_t m, n, k;
  float* c;
  int64_t ldc;
  bool add;
  // A left operand along p that follows, rows like these, called into the cache meanwhile; nullptr: none.
  const float* left_ahead = nullptr;
};

// Of rows in one format, f32 or bf16: `void` is that format; gains, sums and tables are float.
struct RowVectors {
  // y = gate sigmoid(gate) up
  void (*swiglu_forward)(const void* gate, const void* up, int64_t n, void* y);
  // dgate = dy up s (1 + gate (1 - s)), dup = dy gate s,  s = sigmoid(gate)
  void (*swiglu_backward)(const void* dy, const void* gate, const void* up, int64_t n, void* dgate,
                          void* dup);

  float (*sum_squares)(const void* x, int64_t n);
  float (*dot)(const void* a, const void* b, int64_t n);
  // y = gain (x r)
  void (*normalise)(const void* x, const float* gain, float r, int64_t n, void* y);
  // sum += dy (x r); returns sum of gain dy (x r)
  float (*norm_sums)(const void* dy, const void* x, const float* gain, float r, int64_t n, float* sum);
  // dx = r (gain dy - x r mean) + residual, which may be nullptr
  void (*norm_gradient)(const void* dy, const void* x, const float* gain, const void* residual, float r,
                        float mean, int64_t n, void* dx);

  // x = x along + (x with the numbers of each pair exchanged) across, in `heads` pieces of n, `stride` apart
  void (*rotate)(void* x, int64_t heads, int64_t stride, const float* along, const float* across, int64_t n);

  void (*add)(const void* a, const void* b, int64_t n, void* y);
  // y = sum_j weights[j] rows[j], j < count, in that order; y may be one of the rows
  void (*combine)(const void* const* rows, const float* weights, int64_t count, int64_t n, void* y);
  // y = weight x; returns x . z
  float (*scale_and_dot)(const void* x, const void* z, float weight, int64_t n, void* y);
  void (*accumulate)(const void* x, int64_t n, float* sum);  // sum += x

  void (*to_floats)(const void* x, float factor, int64_t n, float* y);  // y = factor x
  void (*from_floats)(const float* x, float factor, int64_t n, void* y);
};

// One AdamW update (backend/ops/adamw.h); the factors are made in double, once a step.
struct AdamFactors {
  float clip, beta1, beta2, fresh1, fresh2;  // fresh = 1 - beta
  float unbias1, unbias2;                    // 1 / (1 - beta^step)
  float lr, eps, decay;
};

struct Vectors {
  const char* isa;
  int64_t lanes;  // floats in a vector
  RowVectors f32, bf16;

  void (*product)(const SmallProduct& p);

  // m, v bf16; weight bf16 or nullptr
  void (*adamw)(const AdamFactors& f, int64_t n, const float* grad, uint16_t* m, uint16_t* v, float* master,
                uint16_t* weight);
  double (*sum_squares)(const float* x, int64_t n);  // in interleaved double sums

  // The largest of x and `floor`; NaN counts as none.
  float (*largest)(const float* x, int64_t n, float floor);
  // y[i] = exp(x[i] - shift), returns the sum of y; y may be x, or nullptr. Below 2 ulp; results under 2e-38
  // become 0, over the largest float infinity, NaN stays NaN.
  float (*exp_shifted)(const float* x, float shift, int64_t n, float* y);
  // The quantiser of backend/ops/quantize.h. The largest |x| and `floor`, and the same in every place; NaN
  // counts as none.
  float (*largest_size)(const float* x, int64_t n, float floor);
  void (*larger_sizes)(const float* x, int64_t n, float* largest);
  // The E4M3 code nearest to x[i] / scale, ties to even, 0x7F for NaN; |x / scale| <= 448 (1 + 2^-23).
  void (*encode)(const float* x, float scale, int64_t n, uint8_t* codes);
  void (*encode_each)(const float* x, const float* scales, int64_t n, uint8_t* codes);

  void (*scale)(float* x, float factor, int64_t n);
  void (*sigmoid)(const float* x, int64_t n, float* y);

  // Scores and probabilities of attention, a column for each query (or head) of s [keys, n <= ld], n a
  // multiple of lanes. The first `visible[j]` keys of column j count, the others get probability 0.
  //   top'[j] = max(top[j], scale max_i s[i][j]);  s = exp(scale s - top');  shrink = exp(top - top');
  //   sum = sum shrink + sum_i s.     `visible` nullptr: all keys are
  void (*soften)(float* s, int64_t ld, int64_t keys, int64_t n, float scale, const int32_t* visible,
                 float* top, float* sum, float* shrink);
  // The backward, a query for each row of s = scores and ds = d_o . v, both [rows, n <= ld]:
  //   s = p = exp(scale s - lse[r]);  ds = p (ds - d[r])
  // Row r sees the first `seen` + r keys; 0 behind them.
  void (*soften_backward)(float* s, float* ds, int64_t ld, int64_t rows, int64_t seen, int64_t n, float scale,
                          const float* lse, const float* d);

  // Attention in bf16 where an instruction multiplies pairs of it; nullptr elsewhere. A word is two bf16 that
  // follow each other along the sum, the first in the lower half; probabilities and their gradients are
  // rounded to bf16 for the products (as FlashAttention does), sums stay float.
  void (*product_pairs)(const SmallProduct& p) = nullptr;  // of words: k, strides and row, step count words
  // out[i] = the word of first[i] and second[i]; second nullptr: of zeros
  void (*pair_rows)(const uint16_t* first, const uint16_t* second, int64_t n, float* out) = nullptr;
  // As above; row i of s becomes the words of keys 2 i and 2 i + 1.
  void (*soften_pairs)(float* s, int64_t ld, int64_t keys, int64_t n, float scale, const int32_t* visible,
                       float* top, float* sum, float* shrink) = nullptr;
  // As above; row r of s and of ds becomes the words of rows 2 r and 2 r + 1; ds_rows [rows, n <= ds_ld] is
  // ds as it lies, with a zero behind an odd n.
  void (*soften_backward_pairs)(float* s, float* ds, int64_t ld, int64_t rows, int64_t seen, int64_t n,
                                float scale, const float* lse, const float* d, uint16_t* ds_rows,
                                int64_t ds_ld) = nullptr;
};

extern const Vectors vectors_sse2;  // whatever every machine has
extern const Vectors vectors_avx2, vectors_avx512, vectors_avx512_bf16;

// The set that goes with kernels of this name (kernels.h): its own, or for newer ones the best of this
// machine.
const Vectors& vectors_for(const char* isa);

}  // namespace cachalot::cpu
