// Backend::fix_rows: a row's bits hang on its own numbers only, however many rows stand beside it and whatever they
// hold. Every operation that decoding consists of is given many rows at once, then parts of them.
#include "backend/ops/op_testing.h"

namespace cachalot {
namespace {

using namespace testing;

// Rows of a batch, and the parts of them that must have the same bits: every kind of tile, and between them.
constexpr int64_t kRows = 150;
struct Part {
  int64_t first, count;
};
constexpr Part kParts[] = {{0, 1},    {149, 1}, {3, 2},   {70, 8},   {9, 9},
                           {100, 17}, {31, 33}, {64, 65}, {22, 128}, {1, 149}};

// `body` queues an operation on rows [first, first + count) of inputs that `make` made once, and returns its outputs.
using Make = std::function<std::function<Outputs(int64_t first, int64_t count)>(Bench&)>;
void expect_rows_alone(const Make& make, const std::string& what) {
  for (const TestedDevice& tested : tested_devices()) {
    if (tested.name != "cuda" && tested.name != "cpu, 2 threads") continue;
    const ::testing::ScopedTrace trace(__FILE__, __LINE__, tested.name + ", " + what);
    Bench b(*tested.device);
    const auto body = make(b);
    on(b.s).fix_rows(true);
    std::vector<std::string> all;
    std::vector<Tensor> shapes;
    for (const Tensor& t : body(0, kRows)) all.push_back(read_bits(b.s, t)), shapes.push_back(t);
    for (const Part& part : kParts) {
      const Outputs some = body(part.first, part.count);
      for (size_t i = 0; i < some.size(); ++i) {
        const size_t row = shapes[i].rows == 1 ? size_t(size_of(shapes[i].dtype))
                                               : size_t(shapes[i].cols * size_of(shapes[i].dtype));
        EXPECT_TRUE(read_bits(b.s, some[i]) ==
                    all[i].substr(size_t(part.first) * row, size_t(part.count) * row))
            << "output " << i << ", rows " << part.first << " and " << part.count - 1 << " more";
      }
    }
    on(b.s).fix_rows(false);
  }
}

TEST(FixedRows, Products) {
  struct Case {
    int64_t n, k;
    DType out;
    bool add, ahead;
  };
  for (const Case& c : {Case{64, 1024, DType::bf16, true, true}, Case{200, 96, DType::bf16, false, false},
                        Case{40, 8200, DType::bf16, true, true}, Case{33, 30, DType::bf16, false, false},
                        Case{5000, 192, DType::f32, false, false}, Case{4104, 64, DType::bf16, true, true}})
    expect_rows_alone(
        [&](Bench& b) {
          const Tensor x = b.t.normal(DType::bf16, kRows, c.k), w = b.t.normal(DType::bf16, c.n, c.k),
                       before = b.t.normal(c.out, kRows, c.n);
          return [=, &b](int64_t first, int64_t count) -> Outputs {
            const Tensor y = b.t.garbage(c.out, count, c.n);
            on(b.s).cast({.x = before.slice_rows(first, count), .y = y});
            on(b.s).gemm({.a = x.slice_rows(first, count),
                          .b = w,
                          .c = y,
                          .trans_b = true,
                          .accumulate = c.add ? Accumulate::add : Accumulate::overwrite,
                          .read_ahead = c.ahead});
            return {y};
          };
        },
        fmt::format("{} columns of {}", c.n, c.k));
}

// The wide kernel against another order of sums, with every height of its tiles.
TEST(FixedRows, WideProductsMeetTheMetric) {
  for (const auto& [rows, n, k, out, add] :
       {std::tuple(1, 4104, 64, DType::f32, false), std::tuple(17, 4096, 128, DType::bf16, true),
        std::tuple(40, 4104, 64, DType::f32, true), std::tuple(129, 4096, 64, DType::bf16, false)})
    expect_like_ref(
        [&](Bench& b) -> Outputs {
          const Tensor x = b.t.normal(DType::bf16, rows, k, 1, 8), w = b.t.normal(DType::bf16, n, k, 1, 8),
                       y = b.t.normal(out, rows, n, 1, 8);
          on(b.s).fix_rows(true);
          on(b.s).gemm({.a = x,
                        .b = w,
                        .c = y,
                        .trans_b = true,
                        .accumulate = add ? Accumulate::add : Accumulate::overwrite});
          return {y};
        },
        fmt::format("{} rows, {} columns of {}", rows, n, k));
}

TEST(FixedRows, HeadsIntoTheLatentAndOutOfIt) {
  for (const auto& [plain, value, latent] : {std::tuple(128, 128, 512), std::tuple(16, 24, 40)})
    for (const bool out : {false, true})
      expect_rows_alone(
          [&](Bench& b) {
            constexpr int64_t kHeads = 3;
            const int64_t from = out ? latent : plain, to = out ? value : latent;
            const Tensor x = b.t.normal(DType::bf16, kRows, kHeads * from),
                         w = b.t.normal(DType::bf16, kHeads * (plain + value), latent);
            return [=, &b](int64_t first, int64_t count) -> Outputs {
              const Tensor y = b.t.garbage(DType::bf16, count, kHeads * to);
              on(b.s).head_gemm({.x = x.slice_rows(first, count),
                                 .w = w,
                                 .y = y,
                                 .heads = kHeads,
                                 .x_stride = from,
                                 .y_stride = to,
                                 .w_first = out ? plain : 0,
                                 .w_stride = plain + value,
                                 .w_rows = out ? value : plain,
                                 .trans_w = out,
                                 .read_ahead = true});
              return {y};
            };
          },
          fmt::format("{} numbers, a latent of {}, {}", plain, latent, out ? "out" : "in"));
}

TEST(FixedRows, ProductsBehindANorm) {
  for (const auto& [width, first_columns, second_columns] :
       {std::tuple(1024, 72, 40), std::tuple(512, 200, 0), std::tuple(264, 7, 3), std::tuple(2304, 24, 0),
        std::tuple(128, 4200, 16)})
    expect_rows_alone(
        [&](Bench& b) {
          const Tensor x = b.t.normal(DType::bf16, kRows, width), gain = b.t.normal(DType::f32, 1, width),
                       w = b.t.normal(DType::bf16, first_columns, width),
                       w2 = second_columns > 0 ? b.t.normal(DType::bf16, second_columns, width) : Tensor{};
          return [=, &b](int64_t first, int64_t count) -> Outputs {
            NormGemm g{.x = x.slice_rows(first, count),
                       .gain = gain,
                       .y = b.t.garbage(DType::bf16, count, width),
                       .r = b.t.garbage(DType::f32, 1, count),
                       .eps = 1e-6,
                       .w = w,
                       .c = b.t.garbage(DType::bf16, count, w.rows)};
            Outputs outputs{g.y, g.r, g.c};
            if (w2) g.w2 = w2, g.c2 = b.t.garbage(DType::bf16, count, w2.rows), outputs.push_back(g.c2);
            on(b.s).norm_gemm(g);
            return outputs;
          };
        },
        fmt::format("{} to {} and {}", width, first_columns, second_columns));
}

TEST(FixedRows, Routes) {
  for (const auto& [width, experts] : {std::tuple(1024, 64), std::tuple(512, 256)})
    expect_rows_alone(
        [&](Bench& b) {
          const Tensor x = b.t.normal(DType::bf16, kRows, width), gain = b.t.normal(DType::f32, 1, width),
                       w = b.t.normal(DType::f32, experts, width),
                       bias = b.t.normal(DType::f32, 1, experts, 0.1);
          return [=, &b](int64_t first, int64_t count) -> Outputs {
            const Tensor logits = b.t.garbage(DType::f32, count, experts);
            const Route r{.project = {.x = x.slice_rows(first, count),
                                      .gain = gain,
                                      .y = b.t.garbage(DType::bf16, count, width),
                                      .r = b.t.garbage(DType::f32, 1, count),
                                      .eps = 1e-6,
                                      .w = w,
                                      .c = logits},
                          .choose = {.logits = logits,
                                     .bias = bias,
                                     .scores = b.t.garbage(DType::f32, count, experts),
                                     .indices = b.t.garbage(DType::i32, count, 6),
                                     .weights = b.t.garbage(DType::f32, count, 6),
                                     .groups = 8,
                                     .topk_groups = 4,
                                     .scale = 2.5}};
            on(b.s).route(r);
            return {r.project.y, r.choose.indices, r.choose.weights};
          };
        },
        fmt::format("{} wide, {} experts", width, experts));
}

TEST(FixedRows, Experts) {
  // Choices of 50 to 100 tokens an expert, then three experts for all.
  for (const auto& [width, hidden, spread] :
       {std::tuple(256, 128, 3), std::tuple(72, 16, 3), std::tuple(64, 64, 1)})
    expect_rows_alone(
        [&](Bench& b) {
          constexpr int64_t kExperts = 8, kChosen = 3;
          std::vector<int32_t> choices;
          for (int64_t t = 0; t < kRows; ++t)
            for (int64_t j = 0; j < kChosen; ++j) choices.push_back(int32_t(t % spread + 2 * j));
          const Tensor x = b.t.normal(DType::bf16, kRows, width),
                       indices = b.t.indices(kRows, kChosen, choices),
                       weights = b.t.uniform(DType::f32, kRows, kChosen, 0.1, 1),
                       gate_up = b.t.normal(DType::bf16, kExperts * 2 * hidden, width, 0.2),
                       down = b.t.normal(DType::bf16, kExperts * width, hidden, 0.2),
                       shared_gate_up = b.t.normal(DType::bf16, 2 * hidden, width, 0.2),
                       shared_down = b.t.normal(DType::bf16, width, hidden, 0.2);
          return [=, &b](int64_t first, int64_t count) -> Outputs {
            const int64_t rows = count * kChosen;
            const auto taken = [&](int64_t r, int64_t c) { return b.t.garbage(DType::bf16, r, c); };
            const ExpertMlp e{.x = x.slice_rows(first, count),
                              .residual = x.slice_rows(first, count),
                              .indices = indices.slice_rows(first, count),
                              .weights = weights.slice_rows(first, count),
                              .gate_up = gate_up,
                              .down = down,
                              .y = taken(count, width),
                              .experts = kExperts,
                              .row_of = b.t.garbage(DType::i32, count, kChosen),
                              .offsets = b.t.garbage(DType::i32, 1, kExperts + 1),
                              .rows = taken(rows, width),
                              .hidden = taken(rows, 2 * hidden),
                              .activated = taken(rows, hidden),
                              .outputs = taken(rows, width),
                              .shared_gate_up = shared_gate_up,
                              .shared_down = shared_down,
                              .shared_hidden = taken(count, 2 * hidden),
                              .shared_activated = taken(count, hidden),
                              .shared_output = taken(count, width)};
            on(b.s).expert_mlp(e);
            return {e.y};
          };
        },
        fmt::format("{} wide, {} hidden, spread {}", width, hidden, spread));
}

}  // namespace
}  // namespace cachalot
