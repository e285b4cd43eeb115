// Products against each other and against identities; small change by hand.
#include "backend/ops/check.h"
#include "backend/ref/ref_backend.h"
#include "backend/testing.h"

namespace cachalot {
namespace {

using namespace testing;

constexpr DType f64 = DType::f64;

class RefGemmTest : public Test {
 protected:
  std::unique_ptr<Device> device = open_ref_device();
  Stream s{*device};
  TestTensors t{*device, s, 2};

  Tensor transposed(const Tensor& a) {
    const std::vector<double> x = read(s, a);
    std::vector<double> y(x.size());
    for (int64_t r = 0; r < a.rows; ++r)
      for (int64_t c = 0; c < a.cols; ++c) y[size_t(c * a.rows + r)] = x[size_t(r * a.cols + c)];
    return t.values(a.dtype, a.cols, a.rows, y);
  }
  Tensor product(const Gemm& like, int64_t m, int64_t n) {
    Gemm g = like;
    g.c = t.garbage(f64, m, n);
    on(s).gemm(g);
    return g.c;
  }
};

TEST_F(RefGemmTest, ByHand) {
  const Tensor a = t.values(f64, 2, 3, {1, 2, 3, 4, 5, 6}), b = t.values(f64, 3, 2, {1, 0, 2, 1, 0, 3});
  EXPECT_EQ(read(s, product({.a = a, .b = b}, 2, 2)), (std::vector<double>{5, 11, 14, 23}));
}

TEST_F(RefGemmTest, TransposesAgree) {
  const Tensor a = t.normal(f64, 5, 3, 1, 2), b = t.normal(f64, 3, 4, 1, 1);
  const Tensor at = transposed(a), bt = transposed(b);
  const std::vector<double> ab = read(s, product({.a = a, .b = b}, 5, 4));
  EXPECT_EQ(read(s, product({.a = at, .b = b, .trans_a = true}, 5, 4)), ab);
  EXPECT_EQ(read(s, product({.a = a, .b = bt, .trans_b = true}, 5, 4)), ab);
  EXPECT_EQ(read(s, product({.a = at, .b = bt, .trans_a = true, .trans_b = true}, 5, 4)), ab);
  EXPECT_EQ(read(s, transposed(product({.a = b, .b = a, .trans_a = true, .trans_b = true}, 4, 5))), ab);
}

TEST_F(RefGemmTest, OverwritesOrAdds) {
  const Tensor a = t.normal(f64, 2, 3), b = t.normal(f64, 3, 4), c = t.garbage(f64, 2, 4, 3);
  on(s).gemm({.a = a, .b = b, .c = c});
  const std::vector<double> once = read(s, c);
  on(s).gemm({.a = a, .b = b, .c = c, .accumulate = Accumulate::add});
  for (size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(read(s, c)[i], 2 * once[i], 1e-14);
  on(s).gemm({.a = a, .b = b, .c = c});
  EXPECT_EQ(read(s, c), once);
  EXPECT_TRUE(t.padding_intact(c));
}

TEST_F(RefGemmTest, OfDepthZeroIsZeroOrLeavesC) {
  const Tensor a = t.zeros(f64, 2, 0), b = t.zeros(f64, 0, 2), c = t.values(f64, 2, 2, {1, 2, 3, 4});
  on(s).gemm({.a = a, .b = b, .c = c, .accumulate = Accumulate::add});
  EXPECT_EQ(read(s, c), (std::vector<double>{1, 2, 3, 4}));
  on(s).gemm({.a = a, .b = b, .c = c});
  EXPECT_EQ(read(s, c), (std::vector<double>(4, 0)));
}

TEST_F(RefGemmTest, ReadsFp8TimesItsScales) {
  const Tensor w = t.normal_e4m3(130, 140), x = t.normal(DType::f32, 2, 140);
  const Tensor wide = t.garbage(f64, 130, 140);
  on(s).cast({.x = w, .y = wide});
  const std::vector<double> fp8 = read(s, product({.a = x, .b = w, .trans_b = true}, 2, 130));
  EXPECT_EQ(fp8, read(s, product({.a = x, .b = wide, .trans_b = true}, 2, 130)));
  EXPECT_EQ(read(s, wide), read(s, w));
  EXPECT_NE(w.scale(0, 0), w.scale(129, 139));  // ref memory is host memory
}

TEST_F(RefGemmTest, GroupedIsOneProductAnExpert) {
  const int64_t E = 3, I = 4, O = 5, R = 7;
  const Tensor x = t.normal(f64, R, I), dy = t.normal(f64, R, O), w = t.normal(f64, E * O, I);
  const Tensor offsets = t.indices({0, 2, 2, 6});  // expert 1 is idle, row 6 belongs to nobody
  const Tensor y = t.normal(f64, R, O), dx = t.normal(f64, R, I), dw = t.garbage(f64, E * O, I);
  const std::vector<double> y_before = read(s, y), dx_before = read(s, dx);
  on(s).grouped_gemm({.x = x, .w = w, .y = y, .offsets = offsets, .experts = E});
  on(s).grouped_gemm({.x = dy, .w = w, .y = dx, .offsets = offsets, .experts = E, .input_grad = true});
  on(s).grouped_weight_grad({.dy = dy, .x = x, .dw = dw, .offsets = offsets, .experts = E});
  for (const auto& [e, first, count] : {std::tuple{0, 0, 2}, {2, 2, 4}}) {
    const Tensor we = w.slice_rows(e * O, O), xe = x.slice_rows(first, count),
                 dye = dy.slice_rows(first, count);
    EXPECT_EQ(read(s, y.slice_rows(first, count)),
              read(s, product({.a = xe, .b = we, .trans_b = true}, count, O)));
    EXPECT_EQ(read(s, dx.slice_rows(first, count)), read(s, product({.a = dye, .b = we}, count, I)));
    EXPECT_EQ(read(s, dw.slice_rows(e * O, O)), read(s, product({.a = dye, .b = xe, .trans_a = true}, O, I)));
  }
  EXPECT_EQ(read(s, dw.slice_rows(O, O)), std::vector<double>(size_t(O * I), 0));
  EXPECT_EQ(read(s, y)[size_t(6 * O)], y_before[size_t(6 * O)]);
  EXPECT_EQ(read(s, dx)[size_t(6 * I)], dx_before[size_t(6 * I)]);
  const std::vector<double> once = read(s, dw);
  on(s).grouped_weight_grad(
      {.dy = dy, .x = x, .dw = dw, .offsets = offsets, .experts = E, .accumulate = Accumulate::add});
  for (size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(read(s, dw)[i], 2 * once[i], 1e-14);
}

TEST_F(RefGemmTest, HeadProductsUseTheirOwnRows) {
  const int64_t H = 3, N = 2, U = 4, C = 5, T = 2;
  const Tensor w = t.normal(f64, H * (N + U), C), q = t.normal(f64, T, H * 3),
               latent = t.normal(f64, T, H * C);
  const Tensor ql = t.garbage(f64, T, H * C), v = t.garbage(f64, T, H * U);
  on(s).head_gemm(
      {.x = q, .w = w, .y = ql, .heads = H, .x_stride = 3, .y_stride = C, .w_stride = N + U, .w_rows = N});
  on(s).head_gemm({.x = latent,
                   .w = w,
                   .y = v,
                   .heads = H,
                   .x_stride = C,
                   .y_stride = U,
                   .w_first = N,
                   .w_stride = N + U,
                   .w_rows = U,
                   .trans_w = true});
  for (int64_t h = 0; h < H; ++h) {
    const Tensor wk = w.slice_rows(h * (N + U), N), wv = w.slice_rows(h * (N + U) + N, U);
    EXPECT_EQ(read(s, ql.slice_cols(h * C, C)),
              read(s, product({.a = q.slice_cols(h * 3, N), .b = wk}, T, C)));
    EXPECT_EQ(read(s, v.slice_cols(h * U, U)),
              read(s, product({.a = latent.slice_cols(h * C, C), .b = wv, .trans_b = true}, T, U)));
  }
}

TEST_F(RefGemmTest, SmallChange) {
  const Tensor y = t.garbage(DType::i32, 2, 2, 0);
  on(s).fill({.y = y, .value = -2.7});
  EXPECT_EQ(read_indices(s, y), (std::vector<int32_t>{-2, -2, -2, -2}));
  on(s).add({.a = y, .b = y, .y = y});
  EXPECT_EQ(read_indices(s, y), (std::vector<int32_t>{-4, -4, -4, -4}));
  const Tensor x = t.values(DType::f32, 1, 2, {3, 4}), out = t.values(f64, 1, 1, {1});
  on(s).sum_squares({.x = x, .out = out});
  EXPECT_EQ(read_number(s, out), 26);  // 1 was there before
  const Tensor b = t.garbage(DType::bf16, 1, 2, 1);
  on(s).cast({.x = t.values(f64, 1, 2, {1 + 0x1p-8 + 0x1p-40, -2}), .y = b});
  EXPECT_EQ(read(s, b), (std::vector<double>{1 + 0x1p-7, -2}));  // rounded once
  const Tensor to = t.values(DType::bf16, 3, 2, {1, 2, 3, 4, 5, 6});
  on(s).scatter_rows(
      {.x = t.values(DType::f32, 3, 2, {10, 20, 30, 40, 50, 60}), .rows = t.indices({2, -1, 0}), .y = to});
  EXPECT_EQ(read(s, to), (std::vector<double>{50, 60, 3, 4, 10, 20}));
}

TEST_F(RefGemmTest, CheckRefusesWrongShapesFormatsAndOverlap) {
  const Tensor a = t.normal(DType::f32, 4, 6), b = t.normal(DType::f32, 6, 8), c = t.zeros(DType::f32, 4, 8);
  EXPECT_NO_THROW(check(Gemm{.a = a, .b = b, .c = c}));
  EXPECT_THROW(check(Gemm{.a = a, .b = a, .c = c}), InternalError);
  EXPECT_THROW(check(Gemm{.a = a, .b = b, .c = c.slice_cols(0, 7)}), InternalError);
  EXPECT_THROW(check(Gemm{.a = a, .b = b, .c = make_tensor(nullptr, DType::f32, 4, 8)}), InternalError);
  EXPECT_THROW(check(Gemm{.a = a, .b = b, .c = t.zeros(DType::i32, 4, 8)}), InternalError);
  EXPECT_THROW(check(Add{.a = a, .b = t.normal(DType::bf16, 4, 6), .y = a}), InternalError);

  const Tensor buffer = t.zeros(DType::f32, 10, 6);
  const Tensor top = buffer.slice_rows(0, 4), middle = buffer.slice_rows(2, 4),
               bottom = buffer.slice_rows(4, 4);
  EXPECT_NO_THROW(check(Cast{.x = top, .y = bottom}));
  EXPECT_THROW(check(Cast{.x = top, .y = middle}), InternalError);
  EXPECT_THROW(check(Cast{.x = top, .y = top}), InternalError);
  EXPECT_NO_THROW(check(Cast{.x = top.slice_cols(0, 3), .y = top.slice_cols(3, 3)}));
  EXPECT_NO_THROW(check(Cast{.x = middle.slice_cols(3, 3), .y = top.slice_cols(0, 3)}));
  EXPECT_THROW(check(Cast{.x = top.slice_cols(0, 3), .y = middle.slice_cols(2, 3)}), InternalError);
  EXPECT_NO_THROW(check(Add{.a = top, .b = bottom, .y = top}));
  EXPECT_THROW(check(Add{.a = top, .b = bottom, .y = middle}), InternalError);
}

}  // namespace
}  // namespace cachalot
