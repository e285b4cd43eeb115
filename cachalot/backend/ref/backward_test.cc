// The oracle checks itself: every backward against central differences of its forward, in double, and against
// the property that defines it (rope, permute, gather: a backward is the transpose).
#include "backend/ref/ref_backend.h"
#include "backend/testing.h"

namespace cachalot {
namespace {

using namespace testing;

constexpr DType f64 = DType::f64;
constexpr double kExact = 1e-28;  // the same sums in another order

class RefBackwardTest : public Test {
 protected:
  std::unique_ptr<Device> device = open_ref_device();
  Stream s{*device};
  TestTensors t{*device, s, 11};
};

TEST_F(RefBackwardTest, RmsNorm) {
  const int64_t T = 3, D = 5;
  const Tensor x = t.normal(f64, T, D, 1, 2), gain = t.normal(f64, 1, D), dy = t.normal(f64, T, D);
  const Tensor y = t.garbage(f64, T, D), r = t.garbage(f64, 1, T);
  const auto loss = [&] {
    on(s).rmsnorm_forward({.x = x, .gain = gain, .y = y, .r = r, .eps = 0.01});
    return dot(s, dy, y);
  };
  loss();
  const Tensor dx = t.garbage(f64, T, D, 3), dgain = t.garbage(f64, 1, D);
  on(s).rmsnorm_backward({.dy = dy, .x = x, .gain = gain, .r = r, .dx = dx, .dgain = dgain});
  EXPECT_METRIC(read(s, dx), numeric_gradient(s, x, loss), kFiniteDifferences);
  EXPECT_METRIC(read(s, dgain), numeric_gradient(s, gain, loss), kFiniteDifferences);
  EXPECT_TRUE(t.padding_intact(dx));

  // Accumulating adds to the gain's gradient, a residual to dx: twice the same call, twice the numbers.
  const std::vector<double> once = read(s, dgain), dx_once = read(s, dx);
  on(s).rmsnorm_backward({.dy = dy,
                          .x = x,
                          .gain = gain,
                          .r = r,
                          .residual = dx,
                          .dx = dx,
                          .dgain = dgain,
                          .accumulate_gain = Accumulate::add});
  for (int64_t i = 0; i < D; ++i) EXPECT_DOUBLE_EQ(read(s, dgain)[size_t(i)], 2 * once[size_t(i)]);
  for (size_t i = 0; i < dx_once.size(); ++i) EXPECT_DOUBLE_EQ(read(s, dx)[i], 2 * dx_once[i]);
}

TEST_F(RefBackwardTest, RmsNormOfAConstantRowIsTheGain) {
  const Tensor x = t.values(f64, 1, 3, {2, 2, 2}), gain = t.values(f64, 1, 3, {1, 3, -5});
  const Tensor y = t.garbage(f64, 1, 3), r = t.garbage(f64, 1, 1);
  on(s).rmsnorm_forward({.x = x, .gain = gain, .y = y, .r = r, .eps = 0});
  EXPECT_EQ(read(s, y), (std::vector<double>{1, 3, -5}));
  EXPECT_EQ(read_number(s, r), 0.5);
}

TEST_F(RefBackwardTest, Swiglu) {
  const int64_t T = 3, I = 4;
  const Tensor x = t.normal(f64, T, 2 * I, 2), dy = t.normal(f64, T, I), y = t.garbage(f64, T, I);
  const Tensor dx = t.garbage(f64, T, 2 * I);
  on(s).swiglu_backward({.dy = dy, .x = x, .dx = dx});
  const auto loss = [&] {
    on(s).swiglu_forward({.x = x, .y = y});
    return dot(s, dy, y);
  };
  EXPECT_METRIC(read(s, dx), numeric_gradient(s, x, loss), kFiniteDifferences);
}

TEST_F(RefBackwardTest, SwigluAtLargeGatesIsFinite) {
  const Tensor x = t.values(f64, 1, 4, {-800, 800, 3, 5}), y = t.garbage(f64, 1, 2);
  on(s).swiglu_forward({.x = x, .y = y});
  EXPECT_EQ(read(s, y)[0], 0);
  EXPECT_EQ(read(s, y)[1], 4000);
}

// Tables of angles p theta_i, times `factor`.
struct RopeTables {
  Tensor cos, sin;
  RopeTables(TestTensors& t, int64_t positions, int64_t pairs, double factor) {
    std::vector<double> c, sn;
    for (int64_t p = 0; p < positions; ++p)
      for (int64_t i = 0; i < pairs; ++i) {
        c.push_back(factor * std::cos(double(p) * std::pow(0.3, double(i))));
        sn.push_back(factor * std::sin(double(p) * std::pow(0.3, double(i))));
      }
    cos = t.values(f64, positions, pairs, c);
    sin = t.values(f64, positions, pairs, sn);
  }
};

TEST_F(RefBackwardTest, RopeInverseIsTheTranspose) {
  const int64_t T = 4, stride = 5, width = 4;
  const RopeTables tables(t, 9, width / 2, 1.3);
  const Tensor x = t.normal(f64, T, 12), y = t.normal(f64, T, 12);
  const Tensor x0 = t.copy(s, x), y0 = t.copy(s, y);
  const Tensor positions = t.indices({0, 8, 3, 3});
  const Rope rope{.x = x,
                  .positions = positions,
                  .cos = tables.cos,
                  .sin = tables.sin,
                  .heads = 2,
                  .stride = stride,
                  .offset = 1,
                  .width = width};
  on(s).rope(rope);
  Rope back = rope;
  back.x = y;
  back.inverse = true;
  on(s).rope(back);
  EXPECT_NEAR(dot(s, x, y0), dot(s, x0, y), 1e-12);  // <R x, y> = <x, R^T y>
  // Back and forth is the factor squared inside the slices, nothing outside of them.
  back.x = x;
  on(s).rope(back);
  const std::vector<double> was = read(s, x0), is = read(s, x);
  for (int64_t i = 0; i < T * 12; ++i) {
    const int64_t c = i % 12, in_head = c % stride;
    const bool turned = c / stride < 2 && in_head >= 1 && in_head < 1 + width;
    EXPECT_NEAR(is[size_t(i)], was[size_t(i)] * (turned ? 1.69 : 1), 1e-13) << i;
  }
}

TEST_F(RefBackwardTest, RopeTurnsInterleavedPairs) {
  const Tensor x = t.values(f64, 1, 4, {1, 0, 0, 1});
  const Tensor cos = t.values(f64, 2, 2, {1, 1, 0, 0.6}), sin = t.values(f64, 2, 2, {0, 0, 1, 0.8});
  on(s).rope({.x = x, .positions = t.indices({1}), .cos = cos, .sin = sin, .heads = 1, .width = 4});
  EXPECT_EQ(read(s, x), (std::vector<double>{0, 1, -0.8, 0.6}));
}

TEST_F(RefBackwardTest, RopeScoresDependOnDistanceOnly) {
  const RopeTables tables(t, 20, 3, 1);
  const Tensor q0 = t.normal(f64, 1, 6), k0 = t.normal(f64, 1, 6);
  const auto score = [&](int32_t qp, int32_t kp) {
    const Tensor q = t.copy(s, q0), k = t.copy(s, k0);
    on(s).rope({.x = q, .positions = t.indices({qp}), .cos = tables.cos, .sin = tables.sin, .width = 6});
    on(s).rope({.x = k, .positions = t.indices({kp}), .cos = tables.cos, .sin = tables.sin, .width = 6});
    return dot(s, q, k);
  };
  EXPECT_NEAR(score(5, 2), score(19, 16), 1e-12);
  EXPECT_GT(std::abs(score(5, 2) - score(5, 3)), 1e-3);
}

// Three sequences: a chunk with 3 keys more than queries, an idle one, a whole one.
class RefAttentionTest : public RefBackwardTest {
 protected:
  const int64_t H = 2, N = 3, P = 2, U = 4, T = 5, R = 11;
  const Tensor q_starts = t.indices({0, 2, 2, 5}), k_starts = t.indices({0, 5, 8, 11});
  const AttentionShape shape{.heads = H,
                             .nope = N,
                             .rope = P,
                             .value = U,
                             .scale = 0.4,
                             .sequences = 3,
                             .q_starts = q_starts,
                             .k_starts = k_starts};
  const Tensor q = t.normal(f64, T, H*(N + P), 1, 1), kv = t.normal(f64, R, H*(N + U), 1, 3);
  const Tensor k_rope = t.normal(f64, R, P, 1, 5);
  const Tensor o = t.garbage(f64, T, H* U, 2), lse = t.garbage(f64, T, H);
  void forward() {
    on(s).attention_forward({.shape = shape, .q = q, .kv = kv, .k_rope = k_rope, .o = o, .lse = lse});
  }
};

TEST_F(RefAttentionTest, Backward) {
  const Tensor d_o = t.normal(f64, T, H * U);
  const auto loss = [&] {
    forward();
    return dot(s, d_o, o);
  };
  loss();
  const Tensor dq = t.garbage(f64, T, q.cols), dkv = t.garbage(f64, R, kv.cols),
               dk_rope = t.garbage(f64, R, P);
  on(s).attention_backward({.shape = shape,
                            .q = q,
                            .kv = kv,
                            .k_rope = k_rope,
                            .o = o,
                            .lse = lse,
                            .d_o = d_o,
                            .dq = dq,
                            .dkv = dkv,
                            .dk_rope = dk_rope});
  EXPECT_METRIC(read(s, dq), numeric_gradient(s, q, loss), kFiniteDifferences);
  EXPECT_METRIC(read(s, dkv), numeric_gradient(s, kv, loss), kFiniteDifferences);
  EXPECT_METRIC(read(s, dk_rope), numeric_gradient(s, k_rope, loss), kFiniteDifferences);
  EXPECT_TRUE(t.padding_intact(o));
}

TEST_F(RefAttentionTest, ForwardIsWhatTheFormulaSays) {
  forward();
  const std::vector<double> qs = read(s, q), kvs = read(s, kv), ks = read(s, k_rope), os = read(s, o),
                            ls = read(s, lse);
  // Row 1 of the first chunk is its last query: it sees all 5 keys. Head 1.
  const size_t i = 1, h = 1;
  std::vector<double> p;
  double total = 0;
  for (size_t j = 0; j < 5; ++j) {
    double score = 0;
    for (size_t d = 0; d < 3; ++d) score += qs[i * 10 + h * 5 + d] * kvs[j * 14 + h * 7 + d];
    for (size_t d = 0; d < 2; ++d) score += qs[i * 10 + h * 5 + 3 + d] * ks[j * 2 + d];
    p.push_back(std::exp(0.4 * score));
    total += p.back();
  }
  EXPECT_NEAR(ls[i * 2 + h], std::log(total), 1e-13);
  for (size_t d = 0; d < 4; ++d) {
    double expected = 0;
    for (size_t j = 0; j < 5; ++j) expected += p[j] / total * kvs[j * 14 + h * 7 + 3 + d];
    EXPECT_NEAR(os[i * 8 + h * 4 + d], expected, 1e-13);
  }
}

TEST_F(RefAttentionTest, NobodySeesLaterKeysOrOtherSequences) {
  forward();
  const std::vector<double> before = read(s, o);
  const std::vector<double> nan(size_t(kv.cols), std::nan(""));
  for (const int64_t row : {4, 5, 6, 7, 10}) on(s).upload(nan.data(), kv.slice_rows(row, 1));
  forward();
  const std::vector<double> after = read(s, o);
  // Keys 4 and 10 are the last of sequences 0 and 2: only their last queries (rows 1, 4) see them; 5 to 7 are
  // of the idle sequence.
  for (const size_t row : {0u, 2u, 3u})
    for (size_t c = 0; c < 8; ++c) EXPECT_EQ(after[row * 8 + c], before[row * 8 + c]) << row;
  for (const size_t row : {1u, 4u}) EXPECT_TRUE(std::isnan(after[row * 8])) << row;
}

// Absorbed MLA equals the expanded form: q_nope W_UK against latents, then W_UV out of the weighted latent.
TEST_F(RefBackwardTest, LatentAttentionEqualsAttentionOnTheExpandedForm) {
  const int64_t H = 2, N = 3, P = 2, U = 4, C = 5, page = 2;
  // Two sequences of 5 and 3 tokens, of which the last 2 and 1 are queries; pages in disorder.
  const Tensor c = t.normal(f64, 8, C), k_rope = t.normal(f64, 8, P), w = t.normal(f64, H * (N + U), C);
  const Tensor q = t.normal(f64, 3, H * (N + P)), q_starts = t.indices({0, 2, 3});
  const Tensor kv = t.garbage(f64, 8, H * (N + U)), o = t.garbage(f64, 3, H * U), lse = t.garbage(f64, 3, H);
  on(s).gemm({.a = c, .b = w, .c = kv, .trans_b = true});
  on(s).attention_forward({.shape = {.heads = H,
                                     .nope = N,
                                     .rope = P,
                                     .value = U,
                                     .scale = 0.3,
                                     .sequences = 2,
                                     .q_starts = q_starts,
                                     .k_starts = t.indices({0, 5, 8})},
                           .q = q,
                           .kv = kv,
                           .k_rope = k_rope,
                           .o = o,
                           .lse = lse});

  const Tensor cache = t.garbage(f64, 7 * page, C + P);  // rows that nobody filled stay NaN
  const Tensor page_table = t.indices(2, 4, {6, 1, 3, 99, 0, 5, -7, 99});
  const Tensor slots = t.indices({12, 13, 2, 3, 6, 0, 1, 10});
  on(s).scatter_rows({.x = c, .rows = slots, .y = cache.slice_cols(0, C)});
  on(s).scatter_rows({.x = k_rope, .rows = slots, .y = cache.slice_cols(C, P)});
  const Tensor q_latent = t.garbage(f64, 3, H * C), o_latent = t.garbage(f64, 3, H * C),
               o2 = t.garbage(f64, 3, H * U);
  on(s).head_gemm({.x = q,
                   .w = w,
                   .y = q_latent,
                   .heads = H,
                   .x_stride = N + P,
                   .y_stride = C,
                   .w_first = 0,
                   .w_stride = N + U,
                   .w_rows = N});
  on(s).latent_attention({.q_latent = q_latent,
                          .q_rope = q.slice_cols(N, q.cols - N),
                          .cache = cache,
                          .page_table = page_table,
                          .kv_lens = t.indices({5, 3}),
                          .q_starts = q_starts,
                          .o_latent = o_latent,
                          .heads = H,
                          .latent = C,
                          .rope = P,
                          .q_rope_stride = N + P,
                          .page_size = page,
                          .sequences = 2,
                          .scale = 0.3});
  on(s).head_gemm({.x = o_latent,
                   .w = w,
                   .y = o2,
                   .heads = H,
                   .x_stride = C,
                   .y_stride = U,
                   .w_first = N,
                   .w_stride = N + U,
                   .w_rows = U,
                   .trans_w = true});
  EXPECT_METRIC(read(s, o2), read(s, o), kExact);
}

TEST_F(RefBackwardTest, CrossEntropy) {
  const int64_t T = 4, V = 7;
  const Tensor logits = t.normal(f64, T, V, 3), targets = t.indices({6, -1, 0, 3}),
               loss = t.garbage(f64, 1, T);
  const Tensor work = t.garbage(f64, T, V);
  const auto total = [&] {
    on(s).cast({.x = logits, .y = work});
    on(s).cross_entropy({.logits = work, .targets = targets, .loss = loss});
    double sum = 0;
    for (const double x : read(s, loss)) sum += 0.7 * x;
    return sum;
  };
  total();
  EXPECT_METRIC(read(s, work), read(s, logits), 0);  // without `gradient` logits stay
  EXPECT_EQ(read(s, loss)[1], 0);
  const std::vector<double> expected = numeric_gradient(s, logits, total);
  total();  // `work` as it was
  on(s).cross_entropy({.logits = work, .targets = targets, .loss = loss, .gradient = true, .scale = 0.7});
  EXPECT_METRIC(read(s, work), expected, kFiniteDifferences);
  for (int64_t v = 0; v < V; ++v) EXPECT_EQ(read(s, work)[size_t(V + v)], 0);
}

TEST_F(RefBackwardTest, CrossEntropyOfEqualLogitsIsTheLogOfTheirNumber) {
  const Tensor logits = t.values(f64, 1, 5, {1000, 1000, 1000, 1000, 1000}), loss = t.garbage(f64, 1, 1);
  on(s).cross_entropy({.logits = logits, .targets = t.indices({2}), .loss = loss});
  EXPECT_NEAR(read_number(s, loss), std::log(5), 1e-12);
}

TEST_F(RefBackwardTest, UnpermuteInAllItsInputs) {
  const int64_t T = 3, K = 2, D = 4, E = 3;
  const Tensor row_of = t.garbage(DType::i32, T, K), offsets = t.garbage(DType::i32, 1, E + 1);
  on(s).permute_plan(
      {.indices = t.indices(T, K, {0, 2, 1, 2, 0, 1}), .row_of = row_of, .offsets = offsets, .experts = E});
  EXPECT_EQ(read_indices(s, row_of), (std::vector<int32_t>{0, 4, 2, 5, 1, 3}));
  EXPECT_EQ(read_indices(s, offsets), (std::vector<int32_t>{0, 2, 4, 6}));

  const Tensor x = t.normal(f64, T * K, D), weights = t.normal(f64, T, K), dy = t.normal(f64, T, D);
  const Tensor residual = t.normal(f64, T, D), shared = t.normal(f64, T, D), y = t.garbage(f64, T, D);
  const auto loss = [&] {
    on(s).unpermute(
        {.x = x, .row_of = row_of, .weights = weights, .residual = residual, .shared = shared, .y = y});
    return dot(s, dy, y);
  };
  const Tensor dx = t.garbage(f64, T * K, D), dweights = t.garbage(f64, T, K);
  on(s).unpermute_backward(
      {.dy = dy, .x = x, .row_of = row_of, .weights = weights, .dx = dx, .dweights = dweights});
  EXPECT_METRIC(read(s, dx), numeric_gradient(s, x, loss), kFiniteDifferences);
  EXPECT_METRIC(read(s, dweights), numeric_gradient(s, weights, loss), kFiniteDifferences);
  EXPECT_METRIC(read(s, dy), numeric_gradient(s, residual, loss),
                kFiniteDifferences);  // d / d residual is dy itself

  // y may be the residual or the shared part itself.
  loss();
  const std::vector<double> expected = read(s, y);
  on(s).unpermute(
      {.x = x, .row_of = row_of, .weights = weights, .residual = residual, .shared = shared, .y = shared});
  EXPECT_EQ(read(s, shared), expected);
}

TEST_F(RefBackwardTest, UnpermuteWithoutWeightsIsThePermutationsTranspose) {
  const int64_t T = 4, K = 3, D = 2;
  const Tensor row_of = t.indices(T, K, {3, 0, 7, 11, 2, 9, 1, 10, 5, 4, 8, 6});
  const Tensor x = t.normal(f64, T, D), px = t.garbage(f64, T * K, D);
  const Tensor y = t.normal(f64, T * K, D), py = t.garbage(f64, T, D);
  on(s).permute({.x = x, .row_of = row_of, .y = px});
  on(s).unpermute({.x = y, .row_of = row_of, .y = py});
  EXPECT_NEAR(dot(s, px, y), dot(s, x, py), 1e-13);
  EXPECT_EQ(read(s, px)[2 * 11], read(s, x)[2 * 1]);  // row 11 is token 1's first choice
}

TEST_F(RefBackwardTest, ScatterAddIsTheTransposeOfGather) {
  const Tensor rows = t.indices({2, 0, 2, -1, 4});
  const Tensor x = t.normal(f64, 6, 3), gathered = t.garbage(f64, 5, 3);
  const Tensor dy = t.normal(f64, 5, 3), dx = t.garbage(f64, 6, 3);
  on(s).gather_rows({.x = x, .rows = rows, .y = gathered});
  on(s).scatter_add_rows({.x = dy, .rows = rows, .y = dx});
  EXPECT_NEAR(dot(s, gathered, dy), dot(s, x, dx), 1e-13);
  for (size_t c = 0; c < 3; ++c) EXPECT_EQ(read(s, gathered)[9 + c], 0);
  const std::vector<double> once = read(s, dx);
  on(s).scatter_add_rows({.x = dy, .rows = rows, .y = dx, .accumulate = Accumulate::add});
  for (size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(read(s, dx)[i], 2 * once[i], 1e-14);
}

}  // namespace
}  // namespace cachalot
