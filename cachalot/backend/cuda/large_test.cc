// Tensors of more than 2^31 and 2^32 numbers, as DeepSeek-V3's experts and logits have: no index may be of 32
// bits. Most of a tensor is filled with one number; rows at its beginning, around both powers and at its end
// hold others, and what an operation makes of these is what the CPU makes of them alone. Needs a GPU with
// 70 GB free or more; without one there is nothing to prove.
#include "backend/cuda/cuda.h"
#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

constexpr int64_t kWide = 7168, kLong = 640001;  // more than 2^32 numbers

class Large {
 public:
  void cast_add_and_norm();
  void swiglu_quantiser_and_rope();
  void rows_by_index();
  void logits_of_a_whole_vocabulary();
  void optimizer_and_its_norm();

 protected:
  Tensor filled(DType dtype, int64_t rows, int64_t cols, double value) {
    buffers.emplace_back(*device, rows * cols * size_of(dtype), "test");
    const Tensor t = make_tensor(buffers.back().data(), dtype, rows, cols);
    on(s).fill({.y = t, .value = value});
    return t;
  }

  // Four rows at the beginning, around each power of two that the tensor reaches, and at the end.
  static constexpr int64_t kRows = 4;
  static std::vector<int64_t> windows(int64_t rows, int64_t cols) {
    std::vector<int64_t> list{0};
    for (const int64_t power : {int64_t(1) << 31, int64_t(1) << 32})
      if (power / cols + 2 < rows - kRows) list.push_back(power / cols - 1);
    list.push_back(rows - kRows);
    return list;
  }
  // Other numbers into those rows of `t`; the same, beside each other, on the CPU.
  Tensor varied(const Tensor& t, double scale = 1) {
    const std::vector<int64_t> list = windows(t.rows, t.cols);
    const Tensor rows = alone.normal(t.dtype, kRows * int64_t(list.size()), t.cols, scale);
    const HostTensor numbers = download(host, rows);
    for (size_t i = 0; i < list.size(); ++i) {
      const Tensor from = numbers.tensor().slice_rows(kRows * int64_t(i), kRows);
      on(s).upload(from.data, t.slice_rows(list[i], kRows));
    }
    return rows;
  }
  std::vector<double> picked(const Tensor& t) { return picked(t, windows(t.rows, t.cols)); }
  std::vector<double> picked(const Tensor& t, const std::vector<int64_t>& list) {
    std::vector<double> all;
    for (const int64_t first : list) {
      const std::vector<double> rows = read(s, t.slice_rows(first, kRows));
      all.insert(all.end(), rows.begin(), rows.end());
    }
    return all;
  }
  void expect_equal(const Tensor& large, const Tensor& expected) {
    EXPECT_TRUE(picked(large) == read(host, expected)) << large.describe();
  }

  const std::unique_ptr<Device> device = open_device("cuda"), cpu = open_device("cpu");
  Stream s{*device}, host{*cpu};
  TestTensors small{*device, s}, alone{*cpu, host};
  std::vector<Buffer> buffers;
};

void Large::cast_add_and_norm() {
  const Tensor x = filled(DType::f32, kLong, kWide, 0.5), y = filled(DType::bf16, kLong, kWide, 7);
  const Tensor a = varied(x), b = alone.garbage(DType::bf16, a.rows, kWide);
  on(s).cast({.x = x, .y = y});
  on(host).cast({.x = a, .y = b});
  expect_equal(y, b);

  const Tensor z = filled(DType::bf16, kLong, kWide, 0.25), c = varied(z);
  on(s).add({.a = y, .b = z, .y = z});
  on(host).add({.a = b, .b = c, .y = c});
  expect_equal(z, c);

  const Tensor gain = small.normal(DType::f32, 1, kWide), its = alone.copy(s, gain),
               r = small.garbage(DType::f32, 1, kLong), r_alone = alone.garbage(DType::f32, 1, a.rows);
  on(s).rmsnorm_forward({.x = z, .gain = gain, .y = y, .r = r, .eps = 1e-6});
  on(host).rmsnorm_forward({.x = c, .gain = its, .y = b, .r = r_alone, .eps = 1e-6});
  EXPECT_METRIC(picked(y), read(host, b), bound_of(DType::bf16));
}

void Large::swiglu_quantiser_and_rope() {
  const Tensor x = filled(DType::bf16, kLong, kWide, 0.5), y = filled(DType::bf16, kLong, kWide / 2, 7);
  const Tensor a = varied(x), b = alone.garbage(DType::bf16, a.rows, kWide / 2);
  on(s).swiglu_forward({.x = x, .y = y});
  on(host).swiglu_forward({.x = a, .y = b});
  EXPECT_METRIC(picked(y, windows(kLong, kWide)), read(host, b), bound_of(DType::bf16));

  Tensor codes = filled(DType::bf16, kLong, kWide / 2, 0),
         scales = filled(DType::f32, kWide / 128, kLong + 3, 0);
  codes.dtype = DType::e4m3, codes.cols = codes.ld = kWide;
  codes.scale_tile = ScaleTile::row, codes.scale_ld = scales.ld,
  codes.scales = static_cast<float*>(scales.data);
  const Tensor codes_alone = alone.garbage_row_tiles(a.rows, kWide);
  on(s).quantize({.x = x, .y = codes});
  on(host).quantize({.x = a, .y = codes_alone});
  EXPECT_TRUE(picked(codes, windows(kLong, kWide)) == read(host, codes_alone));

  const Tensor positions = small.zeros(DType::i32, 1, kLong),
               cos = small.values(DType::f32, 1, 2, {0.6, 0.8}),
               sin = small.values(DType::f32, 1, 2, {0.8, -0.6});
  const Rope turn{.x = x,
                  .positions = positions,
                  .cos = cos,
                  .sin = sin,
                  .heads = 37,
                  .stride = 192,
                  .offset = 128,
                  .width = 4};
  on(s).rope(turn);
  Rope same = turn;
  same.x = a, same.positions = alone.zeros(DType::i32, 1, a.rows);
  same.cos = alone.copy(s, cos), same.sin = alone.copy(s, sin);
  on(host).rope(same);
  EXPECT_METRIC(picked(x), read(host, a), bound_of(DType::bf16));
}

void Large::rows_by_index() {
  const Tensor x = filled(DType::bf16, kLong, kWide, 0.5), a = varied(x);
  std::vector<int32_t> rows;
  for (const int64_t first : windows(kLong, kWide))
    for (int64_t i = 0; i < kRows; ++i) rows.push_back(int32_t(first + i));
  const Tensor indices = small.indices(rows), y = small.garbage(DType::bf16, a.rows, kWide);
  on(s).gather_rows({.x = x, .rows = indices, .y = y});
  EXPECT_TRUE(read(s, y) == read(host, a));
  on(s).fill({.y = x, .value = 3});
  on(s).scatter_rows({.x = y, .rows = indices, .y = x});
  expect_equal(x, a);

  // A token goes to eight rows, each of another eighth.
  constexpr int64_t kChosen = 8, kTokens = kLong / kChosen;
  const Tensor some = x.slice_rows(0, kTokens), sorted = filled(DType::bf16, kTokens * kChosen, kWide, 9);
  std::vector<int32_t> row_of;
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t j = 0; j < kChosen; ++j) row_of.push_back(int32_t(j * kTokens + t));
  const Tensor places = small.indices(kTokens, kChosen, row_of);
  const Tensor first = varied(some);
  on(s).permute({.x = some, .row_of = places, .y = sorted});
  for (int64_t j = 0; j < kChosen; ++j)
    EXPECT_TRUE(picked(sorted.slice_rows(j * kTokens, kTokens), windows(kTokens, kWide)) == read(host, first))
        << j;
  const Tensor weights = small.values(DType::f32, kTokens, kChosen,
                                      std::vector<double>(size_t(kTokens * kChosen), 0.125)),
               back = filled(DType::bf16, kTokens, kWide, 5);
  on(s).unpermute({.x = sorted, .row_of = places, .weights = weights, .y = back});
  EXPECT_TRUE(picked(back) == read(host, first));
}

// A vocabulary of DeepSeek-V3's beside more rows than a step has at once.
void Large::logits_of_a_whole_vocabulary() {
  constexpr int64_t kVocabulary = 129280, kTokens = 33300;
  const Tensor logits = filled(DType::f32, kTokens, kVocabulary, 1), a = varied(logits, 4);
  std::vector<int32_t> targets(kTokens, 0), some(size_t(a.rows));
  const std::vector<int64_t> list = windows(kTokens, kVocabulary);
  for (int64_t i = 0; i < a.rows; ++i)
    targets[size_t(list[size_t(i / kRows)] + i % kRows)] = some[size_t(i)] =
        int32_t(kVocabulary - 1 - 17 * i);
  const Tensor loss = small.garbage(DType::f32, 1, kTokens), its = alone.garbage(DType::f32, 1, a.rows);
  on(s).cross_entropy(
      {.logits = logits, .targets = small.indices(targets), .loss = loss, .gradient = true, .scale = 0.5});
  on(host).cross_entropy(
      {.logits = a, .targets = alone.indices(some), .loss = its, .gradient = true, .scale = 0.5});
  EXPECT_METRIC(picked(logits), read(host, a), bound_of(DType::f32));
  const std::vector<double> losses = read(s, loss), expected = read(host, its);
  for (int64_t i = 0; i < a.rows; ++i)
    EXPECT_NEAR(losses[size_t(list[size_t(i / kRows)] + i % kRows)], expected[size_t(i)],
                1e-5 * expected[size_t(i)])
        << i;
  EXPECT_NEAR(losses[10], std::log(double(kVocabulary)), 1e-4);
}

void Large::optimizer_and_its_norm() {
  constexpr int64_t kRowsOfIt = 600001;  // 2^32 numbers and some
  const Tensor master = filled(DType::f32, kRowsOfIt, kWide, 0.5),
               grad = filled(DType::f32, kRowsOfIt, kWide, 0), m = filled(DType::bf16, kRowsOfIt, kWide, 0),
               v = filled(DType::bf16, kRowsOfIt, kWide, 0),
               weight = filled(DType::bf16, kRowsOfIt, kWide, 0), sum = small.zeros(DType::f64, 1, 1);
  const Tensor w = varied(master), g = varied(grad), zero = alone.zeros(DType::bf16, w.rows, kWide),
               also = alone.zeros(DType::bf16, w.rows, kWide),
               small_weight = alone.garbage(DType::bf16, w.rows, kWide), its = alone.zeros(DType::f64, 1, 1);
  on(s).sum_squares({.x = grad, .out = sum});
  on(host).sum_squares({.x = g, .out = its});
  EXPECT_NEAR(read_number(s, sum), read_number(host, its), 1e-9 * read_number(host, its));
  const AdamW step{.master = master,
                   .grad = grad,
                   .m = m,
                   .v = v,
                   .weight = weight,
                   .grad_norm_squared = sum,
                   .lr = 0.1,
                   .max_norm = 1,
                   .step = 1};
  AdamW same = step;
  same.master = w, same.grad = g, same.m = zero, same.v = also, same.weight = small_weight,
  same.grad_norm_squared = its;
  on(s).adamw(step);
  on(host).adamw(same);
  EXPECT_METRIC(picked(master), read(host, w), bound_of(DType::f32));
  EXPECT_METRIC(picked(weight), read(host, small_weight), bound_of(DType::bf16));
  EXPECT_METRIC(picked(m), read(host, zero), bound_of(DType::bf16));
}

// The 256 experts of a layer of DeepSeek-V3, of which four have rows: the first, the last, and those that the
// powers of two lie in.
class Experts : public Large {
 public:
  Experts() {
    std::vector<int32_t> list{0};
    for (int64_t e = 0; e < kExperts; ++e) {
      const bool chosen = std::count(std::begin(kChosen), std::end(kChosen), e) > 0;
      list.push_back(list.back() + (chosen ? int32_t(kOfExpert) : 0));
    }
    offsets = small.indices(list);
    rows = list.back();
  }
  void products_and_their_gradients();
  void products_of_codes();

 private:
  static constexpr int64_t kExperts = 256, kOut = 4096, kIn = 7168, kOfExpert = 5;
  static constexpr int64_t kChosen[] = {0, 73, 146, 255};
  Tensor offsets;
  int64_t rows = 0;
};

void Experts::products_and_their_gradients() {
  const Tensor w = filled(DType::bf16, kExperts * kOut, kIn, 0.5),
               dw = filled(DType::f32, kExperts * kOut, kIn, 9);
  const Tensor x = small.normal(DType::bf16, rows, kIn), dy = small.normal(DType::bf16, rows, kOut),
               y = small.garbage(DType::bf16, rows, kOut), dx = small.garbage(DType::bf16, rows, kIn);
  // Numbers of one expert for all four, its rows in another order each time.
  const Tensor one = alone.normal(DType::bf16, kOut, kIn, 0.1);
  const HostTensor numbers = download(host, one);
  const auto turned = [&](int64_t which) { return 1000 * which; };
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t at = kChosen[i] * kOut, by = turned(i);
    on(s).upload(numbers.tensor().slice_rows(by, kOut - by).data, w.slice_rows(at, kOut - by));
    if (by > 0) on(s).upload(numbers.tensor().slice_rows(0, by).data, w.slice_rows(at + kOut - by, by));
  }
  on(s).grouped_gemm({.x = x, .w = w, .y = y, .offsets = offsets, .experts = kExperts});
  on(s).grouped_gemm({.x = dy, .w = w, .y = dx, .offsets = offsets, .experts = kExperts, .input_grad = true});
  on(s).grouped_weight_grad({.dy = dy, .x = x, .dw = dw, .offsets = offsets, .experts = kExperts});
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t first = i * kOfExpert, by = turned(i);
    const Tensor of_x = alone.copy(s, x.slice_rows(first, kOfExpert)),
                 of_dy = alone.copy(s, dy.slice_rows(first, kOfExpert)),
                 weights = alone.garbage(DType::bf16, kOut, kIn);
    on(host).cast({.x = one.slice_rows(by, kOut - by), .y = weights.slice_rows(0, kOut - by)});
    if (by > 0) on(host).cast({.x = one.slice_rows(0, by), .y = weights.slice_rows(kOut - by, by)});
    const Tensor product = alone.garbage(DType::bf16, kOfExpert, kOut),
                 back = alone.garbage(DType::bf16, kOfExpert, kIn),
                 gradient = alone.garbage(DType::f32, kOut, kIn);
    on(host).gemm({.a = of_x, .b = weights, .c = product, .trans_b = true});
    on(host).gemm({.a = of_dy, .b = weights, .c = back});
    on(host).gemm({.a = of_dy, .b = of_x, .c = gradient, .trans_a = true});
    EXPECT_METRIC(read(s, y.slice_rows(first, kOfExpert)), read(host, product), bound_of(DType::bf16));
    EXPECT_METRIC(read(s, dx.slice_rows(first, kOfExpert)), read(host, back), bound_of(DType::bf16));
    for (const int64_t part : {int64_t(0), kOut - 64})
      EXPECT_METRIC(read(s, dw.slice_rows(kChosen[i] * kOut + part, 64)),
                    read(host, gradient.slice_rows(part, 64)), bound_of(DType::f32));
  }
  for (const int64_t empty : {int64_t(1), int64_t(74), int64_t(254)})
    for (const double number : read(s, dw.slice_rows(empty * kOut + 77, 1))) ASSERT_EQ(number, 0) << empty;
}

void Experts::products_of_codes() {
  Tensor w = filled(DType::bf16, kExperts * kOut, kIn / 2, 0);
  w.dtype = DType::e4m3, w.cols = w.ld = kIn, w.part_rows = kOut;
  const Tensor scales = filled(DType::f32, kExperts * kOut / 128, kIn / 128, 0.5);
  w.scales = static_cast<float*>(scales.data), w.scale_ld = scales.ld;
  const Tensor one = alone.normal_e4m3(kOut, kIn), its = alone.garbage(DType::bf16, rows, kOut);
  const HostTensor numbers = download(host, one), of_scales = download(host, scales_of(one));
  for (const int64_t e : kChosen) {
    Tensor codes = w.slice_rows(e * kOut, kOut);
    codes.scales = nullptr;
    on(s).upload(numbers.tensor().data, codes);
    on(s).upload(of_scales.tensor().data, scales.slice_rows(e * kOut / 128, kOut / 128));
  }
  const Tensor y = small.garbage(DType::bf16, rows, kOut);
  TestTensors first(*device, s, 77), second(*cpu, host, 77);
  const Tensor left = first.normal_row_tiles(rows, kIn), right = second.normal_row_tiles(rows, kIn);
  on(s).grouped_gemm({.x = left, .w = w, .y = y, .offsets = offsets, .experts = kExperts});
  on(host).gemm({.a = right, .b = one, .c = its, .trans_b = true});
  EXPECT_METRIC(read(s, y), read(host, its), bound_of(DType::bf16));
}

// One test, so that no two processes want as much at once; each part gives its memory back.
TEST(CudaLarge, NoIndexIsOf32Bits) {
  const CudaStatus status = probe_cuda();
  if (status.devices.empty() || !status.devices[0].usable())
    GTEST_SKIP() << "runs on machines with a GPU, in the preset cuda: " << status.message;
  if (open_device("cuda")->free_bytes() < int64_t(70) << 30)
    GTEST_SKIP() << "needs 70 GiB of the card's memory";
  Large().cast_add_and_norm();
  Large().swiglu_quantiser_and_rope();
  Large().rows_by_index();
  Large().logits_of_a_whole_vocabulary();
  Large().optimizer_and_its_norm();
  Experts().products_and_their_gradients();
  Experts().products_of_codes();
}

}  // namespace
}  // namespace cachalot
