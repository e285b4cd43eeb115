// A call of an operation queues work and returns: it neither waits for the card nor takes memory. Every
// operation is called three times: directly, under the recording of a graph, which refuses whatever waits
// (and whose replay must give the same bits), and behind work that keeps the card busy, where a wait would
// show as time.
// Without a GPU there is nothing to prove.
#include <chrono>
#include <numeric>
#include <set>

#include "backend/cuda/cuda.h"
#include "backend/cuda/cuda_device.h"
#include "backend/ops/latent_attention.h"
#include "backend/testing.h"

namespace cachalot {
namespace {

using namespace testing;

// Passes operations on and takes down their names.
class Noting : public Backend {
 public:
  explicit Noting(Backend& inner) : inner_(inner) {}
  std::set<std::string> names;

  void upload(const void*, Tensor) override { CHECK(false, "not inside a graph"); }
  void download(Tensor, void*) override { CHECK(false, "not inside a graph"); }
  void synchronize() override { CHECK(false, "not inside a graph"); }
  EventPtr record() override { return inner_.record(); }
  void wait(const EventPtr& e) override { inner_.wait(e); }
#define CACHALOT_NOTE(name, Args)     \
  void name(const Args& a) override { \
    names.insert(#name);              \
    inner_.name(a);                   \
  }
  CACHALOT_OPS(CACHALOT_NOTE)
#undef CACHALOT_NOTE

 private:
  Backend& inner_;
};

// Those that CudaDevice.OperationsOnlyQueueAndRepeatTheirBitsFromAGraph calls (cuda_device_test.cc).
const std::set<std::string> kBoundByMemory{"rmsnorm_forward",
                                           "rmsnorm_backward",
                                           "cast",
                                           "rope",
                                           "swiglu_forward",
                                           "swiglu_backward",
                                           "gate_forward",
                                           "balance_loss",
                                           "gate_backward",
                                           "count_groups",
                                           "update_gate_bias",
                                           "permute_plan",
                                           "permute",
                                           "unpermute",
                                           "unpermute_backward",
                                           "gather_rows",
                                           "scatter_rows",
                                           "scatter_add_rows",
                                           "cross_entropy",
                                           "sample",
                                           "fill",
                                           "sum_squares",
                                           "adamw",
                                           "add"};

std::vector<int32_t> counting(int64_t n) {
  std::vector<int32_t> v(static_cast<size_t>(n));
  std::iota(v.begin(), v.end(), 0);
  return v;
}

// Tensors of all products, attention and quantisers, in shapes that every family of kernels has some of.
struct Work {
  explicit Work(TestTensors& t) : t(t) {}
  TestTensors& t;
  std::vector<Tensor> outputs;
  std::vector<std::function<void(Backend&)>> calls;

  Tensor out(DType dtype, int64_t rows, int64_t cols) {
    outputs.push_back(t.garbage(dtype, rows, cols));
    return outputs.back();
  }
  Tensor codes(const Tensor& made) {
    outputs.push_back(made);
    return made;
  }
  template <class Args> void add(void (Backend::*op)(const Args&), const Args& args) {
    calls.push_back([op, args](Backend& b) { (b.*op)(args); });
  }

  void products() {
    const DType bf = DType::bf16, f = DType::f32;
    for (const auto& [a, b, c, m, n, k] :
         {std::tuple(bf, bf, bf, 256, 384, 512), std::tuple(f, f, f, 200, 136, 96),
          std::tuple(bf, f, f, 300, 64, 256), std::tuple(f, f, bf, 128, 128, 128),
          std::tuple(bf, bf, bf, 1, 1024, 1024), std::tuple(bf, bf, bf, 8, 512, 768),
          std::tuple(bf, bf, bf, 100, 9, 33)})
      add(&Backend::gemm,
          Gemm{.a = t.normal(a, m, k), .b = t.normal(b, n, k), .c = out(c, m, n), .trans_b = true});
    add(&Backend::gemm, Gemm{.a = t.normal_row_tiles(256, 512),
                             .b = t.normal_e4m3(384, 512),
                             .c = out(bf, 256, 384),
                             .trans_b = true});
    add(&Backend::gemm, Gemm{.a = t.normal(bf, 70, 512),
                             .b = t.normal_e4m3(384, 512),
                             .c = out(bf, 70, 384),
                             .trans_b = true});
    add(&Backend::head_gemm, HeadGemm{.x = t.normal(bf, 40, 3 * 192),
                                      .w = t.normal(bf, 3 * 256, 512),
                                      .y = out(bf, 40, 3 * 512),
                                      .heads = 3,
                                      .x_stride = 192,
                                      .y_stride = 512,
                                      .w_stride = 256,
                                      .w_rows = 128});
    add(&Backend::norm_gemm, NormGemm{.x = t.normal(bf, 40, 512),
                                      .gain = t.normal(f, 1, 512),
                                      .y = out(bf, 40, 512),
                                      .r = out(f, 1, 40),
                                      .eps = 1e-5,
                                      .w = t.normal(bf, 256, 512),
                                      .c = out(bf, 40, 256)});
  }

  void experts() {
    const DType bf = DType::bf16, f = DType::f32;
    constexpr int64_t kRows = 300, kExperts = 4, kOut = 256, kIn = 128;
    const Tensor offsets = t.indices({0, 100, 100, 290, 300}), padded = out(DType::i32, 1, kExperts + 1);
    add(&Backend::pad_offsets, PadOffsets{.offsets = offsets, .padded = padded});
    const int64_t columns = padded_rows(kRows, kExperts);
    const Tensor x = t.normal(bf, kRows, kIn), dy = t.normal(bf, kRows, kOut);
    const Tensor x8 = codes(t.garbage_row_tiles(kRows, kIn)), x8t = codes(t.garbage_row_tiles(kIn, columns)),
                 dy8t = codes(t.garbage_row_tiles(kOut, columns));
    add(&Backend::quantize,
        Quantize{.x = x, .y = x8, .transposed = x8t, .offsets = offsets, .padded = padded});
    add(&Backend::quantize, Quantize{.x = dy, .transposed = dy8t, .offsets = offsets, .padded = padded});
    const Tensor w = t.normal(bf, kExperts * kOut, kIn),
                 w8 = codes(t.garbage_e4m3(kExperts * kOut, kIn, kOut));
    add(&Backend::quantize_weight, QuantizeWeight{.x = w, .y = w8, .experts = kExperts});
    for (const auto& [left, right] : {std::pair(x, w), std::pair(x8, w8)})
      add(&Backend::grouped_gemm,
          GroupedGemm{
              .x = left, .w = right, .y = out(bf, kRows, kOut), .offsets = offsets, .experts = kExperts});
    add(&Backend::grouped_weight_grad,
        GroupedWeightGrad{
            .dy = dy, .x = x, .dw = out(f, kExperts * kOut, kIn), .offsets = offsets, .experts = kExperts});
    add(&Backend::grouped_weight_grad, GroupedWeightGrad{.dy = dy8t,
                                                         .x = x8t,
                                                         .dw = out(f, kExperts * kOut, kIn),
                                                         .offsets = padded,
                                                         .experts = kExperts});
    const Tensor packed = out(DType::i32, kRows, kIn / 8 * 3), scales = out(f, 1, kRows);
    add(&Backend::pack_e5m6, PackE5m6{.x = x, .packed = packed, .scales = scales});
    add(&Backend::unpack_e5m6, UnpackE5m6{.packed = packed, .scales = scales, .y = out(bf, kRows, kIn)});
    const int64_t tokens = 40, chosen = 2, hidden = 64;
    std::vector<int32_t> indices;
    for (int32_t i = 0; i < tokens; ++i) indices.insert(indices.end(), {i % 2, 2 + i % 3 / 2});
    add(&Backend::expert_mlp, ExpertMlp{.x = t.normal(bf, tokens, kIn),
                                        .residual = t.normal(bf, tokens, kIn),
                                        .indices = t.indices(tokens, chosen, indices),
                                        .weights = t.uniform(f, tokens, chosen, 0.1, 1),
                                        .gate_up = t.normal(bf, kExperts * 2 * hidden, kIn),
                                        .down = t.normal(bf, kExperts * kIn, hidden),
                                        .y = out(bf, tokens, kIn),
                                        .experts = kExperts,
                                        .row_of = t.garbage(DType::i32, tokens, chosen),
                                        .offsets = t.garbage(DType::i32, 1, kExperts + 1),
                                        .rows = t.garbage(bf, tokens * chosen, kIn),
                                        .hidden = t.garbage(bf, tokens * chosen, 2 * hidden),
                                        .activated = t.garbage(bf, tokens * chosen, hidden),
                                        .outputs = t.garbage(bf, tokens * chosen, kIn)});
    const Tensor logits = out(f, tokens, 16);
    add(&Backend::route, Route{.project = {.x = t.normal(bf, tokens, 512),
                                           .gain = t.normal(f, 1, 512),
                                           .y = out(bf, tokens, 512),
                                           .r = t.garbage(f, 1, tokens),
                                           .eps = 1e-5,
                                           .w = t.normal(f, 16, 512),
                                           .c = logits},
                               .choose = {.logits = logits,
                                          .bias = t.normal(f, 1, 16),
                                          .scores = t.garbage(f, tokens, 16),
                                          .indices = out(DType::i32, tokens, 4),
                                          .weights = out(f, tokens, 4),
                                          .groups = 4,
                                          .topk_groups = 2}});
    outputs.erase(
        std::find_if(outputs.begin(), outputs.end(), [&](const Tensor& o) { return o.data == logits.data; }));
  }

  // Heads of the real model, and smaller ones.
  void attention() {
    for (const auto& [nope, rope, value] :
         {std::tuple(128, 64, 128), std::tuple(16, 8, 24), std::tuple(5, 4, 3)}) {
      const int64_t tokens = 150, heads = 3;
      const DType act = DType::bf16;
      const AttentionShape shape{.heads = heads,
                                 .nope = nope,
                                 .rope = rope,
                                 .value = value,
                                 .scale = 0.1,
                                 .sequences = 2,
                                 .q_starts = t.indices({0, 70, 150}),
                                 .k_starts = t.indices({0, 70, 150})};
      const Tensor q = t.normal(act, tokens, heads * (nope + rope)),
                   kv = t.normal(act, tokens, heads * (nope + value)), k_rope = t.normal(act, tokens, rope),
                   o = out(act, tokens, heads * value), lse = out(DType::f32, tokens, heads);
      add(&Backend::attention_forward,
          AttentionForward{.shape = shape, .q = q, .kv = kv, .k_rope = k_rope, .o = o, .lse = lse});
      add(&Backend::attention_backward, AttentionBackward{.shape = shape,
                                                          .q = q,
                                                          .kv = kv,
                                                          .k_rope = k_rope,
                                                          .o = o,
                                                          .lse = lse,
                                                          .d_o = t.normal(act, tokens, heads * value),
                                                          .dq = out(act, tokens, q.cols),
                                                          .dkv = out(act, tokens, kv.cols),
                                                          .dk_rope = out(act, tokens, rope)});
    }
  }

  // A step's append, queries and attention, of few heads and of many, over both formats of cache.
  void decoding() {
    for (const DType format : {DType::bf16, DType::e4m3})
      for (const int64_t heads : {2, 40}) {
        const int64_t tokens = 5, latent = 512, rope = 64, head = 192, slots = 20 * 64;
        const DType act = DType::bf16, f = DType::f32;
        const Tensor cache = format == act ? t.normal(act, slots, latent + rope)
                                           : t.zeros(DType::e4m3, slots, latent_bytes(latent, rope));
        const Tensor q = t.garbage(act, tokens, heads * head), q_latent = out(act, tokens, heads * latent);
        const LatentAppend append{.x = t.normal(act, tokens, latent + rope),
                                  .gain = t.normal(f, 1, latent),
                                  .positions = t.indices(counting(tokens)),
                                  .cos = t.normal(f, tokens, rope / 2),
                                  .sin = t.normal(f, tokens, rope / 2),
                                  .slots = t.indices({130, 300, 600, 700, 900}),
                                  .cache = cache,
                                  .latent = latent,
                                  .rope = rope,
                                  .eps = 1e-5,
                                  .q = q,
                                  .heads = heads,
                                  .q_stride = head,
                                  .q_offset = 128};
        LatentAppend alone = append;
        alone.q = {};
        add(&Backend::latent_append, alone);
        add(&Backend::latent_query, LatentQuery{.project = {.x = t.normal(act, tokens, 256),
                                                            .gain = t.normal(f, 1, 256),
                                                            .y = t.garbage(act, tokens, 256),
                                                            .r = t.garbage(f, 1, tokens),
                                                            .eps = 1e-5,
                                                            .w = t.normal(act, heads * head, 256, 0.1),
                                                            .c = q},
                                                .append = append,
                                                .absorb = {.x = q,
                                                           .w = t.normal(act, heads * 256, latent, 0.1),
                                                           .y = q_latent,
                                                           .heads = heads,
                                                           .x_stride = head,
                                                           .y_stride = latent,
                                                           .w_stride = 256,
                                                           .w_rows = 128}});
        const Tensor table = t.indices(tokens, 4, counting(4 * tokens)),
                     lens = t.indices({131, 1, 200, 256, 77}), starts = t.indices(counting(tokens + 1)),
                     plan = t.garbage(DType::i32, 1, latent_plan_size(tokens));
        add(&Backend::latent_plan, LatentPlan{.page_table = table,
                                              .kv_lens = lens,
                                              .q_starts = starts,
                                              .plan = plan,
                                              .cache = format,
                                              .rows = tokens,
                                              .heads = heads,
                                              .page_size = 64,
                                              .sequences = tokens});
        for (const bool planned : {true, false})
          add(&Backend::latent_attention,
              LatentAttention{.q_latent = q_latent,
                              .q_rope = q.slice_cols(128, (heads - 1) * head + rope),
                              .cache = cache,
                              .page_table = table,
                              .kv_lens = lens,
                              .q_starts = starts,
                              .o_latent = out(act, tokens, heads * latent),
                              .heads = heads,
                              .latent = latent,
                              .rope = rope,
                              .q_rope_stride = head,
                              .page_size = 64,
                              .sequences = tokens,
                              .scale = 0.1,
                              .plan = planned ? plan : Tensor{}});
        if (format == DType::e4m3)
          add(&Backend::latent_gather, LatentGather{.cache = cache,
                                                    .rows = t.indices({130, -1, 300}),
                                                    .y = out(act, 3, latent + rope),
                                                    .latent = latent,
                                                    .rope = rope});
      }
  }
};

TEST(CudaQueue, ProductsAndAttentionNeitherWaitNorTakeMemoryAndRepeatTheirBitsFromAGraph) {
  const CudaStatus status = probe_cuda();
  if (status.devices.empty() || !status.devices[0].usable())
    GTEST_SKIP() << "runs on machines with a GPU, in the preset cuda: " << status.message;
  const auto device = open_device("cuda");
  Stream s(*device);
  TestTensors t(*device, s);
  Work work(t);
  work.products();
  work.experts();
  work.attention();
  work.decoding();
  Noting noting(on(s));
  const auto all = [&] {
    for (const auto& call : work.calls) call(noting);
  };
  const auto bits = [&] {
    std::vector<std::string> list;
    for (const Tensor& o : work.outputs) {
      list.push_back(read_bits(s, o));
      if (o.scales) list.back() += read_bits(s, scales_of(o));
    }
    return list;
  };
  const auto poison = [&] {
    for (const Tensor& o : work.outputs) {
      const std::string ones(size_t(o.size() * size_of(o.dtype)), '\xFF');
      on(s).upload(ones.data(), o);
      if (!o.scales) continue;
      const Tensor scales = scales_of(o);
      const std::string more(size_t(scales.size()) * sizeof(float), '\xFF');
      on(s).upload(more.data(), scales);
    }
    on(s).synchronize();
  };
  all();
  const std::vector<std::string> direct = bits();

  std::set<std::string> proved = kBoundByMemory;
  proved.insert(noting.names.begin(), noting.names.end());
#define CACHALOT_LOOK(name, Args) \
  EXPECT_TRUE(proved.contains(#name)) << #name << " is called by neither test";
  CACHALOT_OPS(CACHALOT_LOOK)
#undef CACHALOT_LOOK

  const int64_t taken = cuda_counters().allocations;
  const GraphPtr graph = on(s).capture(all);
  poison();
  on(s).replay(graph);
  const std::vector<std::string> replayed = bits();
  for (size_t i = 0; i < direct.size(); ++i)
    EXPECT_TRUE(replayed[i] == direct[i]) << "output " << i << " " << work.outputs[i].describe();

  // The card is busy for a while, which the host must not notice.
  constexpr int64_t kLarge = 8192;
  Buffer memory(*device, 3 * kLarge * kLarge * 4, "test");
  const Tensor large = make_tensor(memory.data(), DType::f32, 3 * kLarge, kLarge);
  on(s).fill({.y = large, .value = 1});
  const Gemm busy{.a = large.slice_rows(0, kLarge),
                  .b = large.slice_rows(kLarge, kLarge),
                  .c = large.slice_rows(2 * kLarge, kLarge)};
  on(s).gemm(busy);
  // Other processes may use the card, and the processor: once out of five times is proof.
  const auto clock = [] { return std::chrono::steady_clock::now(); };
  double queueing = 1, working = 0;
  int64_t more = 1;
  for (int i = 0; i < 5 && (queueing > working / 2 || more > int64_t(64) << 20); ++i) {
    poison();
    const int64_t before = cuda_counters().waits, free = device->free_bytes();
    const EventPtr begin = on(s).record();
    for (int k = 0; k < 5; ++k) on(s).gemm(busy);
    const EventPtr end = on(s).record();
    const auto start = clock();
    all();
    queueing = std::chrono::duration<double>(clock() - start).count();
    more = free - device->free_bytes();
    EXPECT_EQ(cuda_counters().waits, before);
    on(s).synchronize();
    working = end->seconds_after(*begin);
    EXPECT_TRUE(bits() == direct);
  }
  EXPECT_LT(queueing, working / 2) << "a call waited for the card";
  EXPECT_LT(more, int64_t(64) << 20) << "operations took memory of the card";
  EXPECT_EQ(cuda_counters().allocations, taken + 1);  // ours, for `large`
}

}  // namespace
}  // namespace cachalot
