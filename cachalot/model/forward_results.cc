#include "model/forward_results.h"

#include <fmt/format.h>

#include <cstring>
#include <numeric>

#include "model/load.h"
#include "model/safetensors.h"

namespace cachalot {

namespace {

std::vector<double> download(Stream& s, const Tensor& t) {
  std::vector<double> out(size_t(t.size()));
  const auto read = [&]<class T>(T) {
    std::vector<T> values(out.size());
    on(s).download(t, values.data());
    on(s).synchronize();
    for (size_t i = 0; i < out.size(); ++i) {
      if constexpr (std::is_same_v<T, bf16>) out[i] = float(values[i]);
      else out[i] = double(values[i]);
    }
  };
  switch (t.dtype) {
    case DType::f64: read(double{}); break;
    case DType::f32: read(float{}); break;
    case DType::bf16: read(bf16{}); break;
    case DType::i32: read(int32_t{}); break;
    case DType::e4m3: CHECK(false, "no result is E4M3");
  }
  return out;
}

double sum(Stream& s, const Tensor& t) {
  const std::vector<double> v = download(s, t);
  return std::accumulate(v.begin(), v.end(), 0.0);
}

void check_request(const ModelConfig& config, const ForwardRequest& r) {
  if (r.batch < 1 || r.length < 1 || r.length <= config.num_nextn_predict_layers)
    throw Error(fmt::format("tokens of shape [{}, {}]: too few", r.batch, r.length + 1))
        .hint(fmt::format("give [B, T + 1] tokens with T > {} (the MTP depths)",
                          config.num_nextn_predict_layers));
  if (r.length > config.max_position_embeddings)
    throw Error(fmt::format("sequences of {} tokens; the model's context is {}", r.length,
                            config.max_position_embeddings))
        .hint("cut them: the model was made for no more (max_position_embeddings)");
  for (size_t i = 0; i < r.tokens.size(); ++i)
    if (r.tokens[i] < 0 || r.tokens[i] >= config.vocab_size)
      throw Error(fmt::format("token {} at row {}, column {}: the vocabulary has {}", r.tokens[i],
                              i / size_t(r.length + 1), i % size_t(r.length + 1), config.vocab_size))
          .hint("the tokens come from another model's tokenizer");
  constexpr const char* kOtherRun = "give a file that `cachalot forward` wrote for this model and these tokens";
  for (const auto& [layer, choices] : r.routing) {
    const int64_t depth = std::max<int64_t>(0, layer - config.num_hidden_layers + 1);
    const int64_t rows = r.batch * (r.length - depth), k = config.num_experts_per_tok;
    if (layer < 0 || layer >= config.layers_with_mtp() || !config.has_experts(layer))
      throw Error(fmt::format("routing for layer {}, which has no experts", layer)).hint(kOtherRun);
    if (int64_t(choices.size()) != rows * k)
      throw Error(fmt::format("routing of layer {} holds {} choices, this run needs {} x {}", layer,
                              choices.size(), rows, k))
          .hint(kOtherRun);
    for (size_t i = 0; i < choices.size(); ++i)
      if (choices[i] < 0 || choices[i] >= config.n_routed_experts ||
          (i % size_t(k) != 0 && choices[i] <= choices[i - 1]))
        throw Error(fmt::format("routing of layer {}, row {}: not {} ascending experts below {}", layer,
                                i / size_t(k), k, config.n_routed_experts))
            .hint(kOtherRun);
  }
}

// One run on any device: queues everything and leaves the results in the arena.
struct Run {
  TrainingBatch batch;
  TrainingPass pass;
  std::vector<Tensor> logits;  // main, then the MTP depths
};

Run run(Stream& s, Arena& arena, const Transformer& model, const ForwardRequest& request) {
  Run r;
  std::vector<std::span<const int32_t>> sequences;
  for (int64_t b = 0; b < request.batch; ++b)
    sequences.emplace_back(request.tokens.data() + b * (request.length + 1), size_t(request.length + 1));
  const ModelConfig& config = model.config();
  const int64_t depths = config.num_nextn_predict_layers;
  r.batch = make_training_batch(s, arena, sequences, depths);
  std::vector<Tensor> replay(size_t(config.layers_with_mtp()));
  for (const auto& [layer, choices] : request.routing) {
    replay[size_t(layer)] = arena.take(DType::i32, int64_t(choices.size()) / config.num_experts_per_tok,
                                       config.num_experts_per_tok);
    on(s).upload(choices.data(), replay[size_t(layer)]);
  }
  const Transformer::Options options{
      .caches = {}, .replay = replay, .with_balance = request.balance_alpha != 0};
  r.pass = request.gradients
               ? forward_backward(s, arena, model, r.batch,
                                  LossScales::uniform(request.batch, request.length, depths,
                                                      request.mtp_lambda, request.balance_alpha),
                                  options, Accumulate::overwrite)
               : forward_losses(s, arena, model, r.batch, options);
  const auto logits = [&](Tensor hidden) {
    r.logits.push_back(arena.take(model.recipe().stat, hidden.rows, config.vocab_size));
    model.head().logits(s, hidden, r.logits.back());
  };
  logits(r.pass.trunk.hidden);
  for (const auto& m : r.pass.mtp) logits(m.hidden);
  return r;
}

}  // namespace

const NamedTensor& ForwardResults::at(const std::string& name) const {
  for (const auto& t : tensors)
    if (t.name == name) return t;
  CHECK(false, "no result named " + name);
}

ForwardResults run_forward(Device& device, const std::string& model_directory, Precision precision,
                           bool drop_mtp, const ForwardRequest& request) {
  ModelConfig asked = load_model_config(resolve_model_directory(model_directory));
  if (drop_mtp) asked.num_nextn_predict_layers = 0;
  check_request(asked, request);  // before the weights are read
  Stream s(device);
  const LoadedModel loaded =
      load_model(s, model_directory, precision,
                 {.gradients = request.gradients, .drop_mtp = drop_mtp, .keep_fp8 = !request.gradients});
  const ModelConfig& config = loaded.config;

  int64_t bytes = 0;
  {  // the same run where nothing is computed tells how much memory it takes
    auto plan = open_device("plan");
    Stream ps(*plan);
    Arena arena(*plan, int64_t(1) << 42, "plan");
    const ParamSet params(*plan, config, Recipe::of(precision), {.gradients = request.gradients});
    const Transformer model(ps, config, params, request.length);
    run(ps, arena, model, request);
    bytes = arena.high_water();
  }
  Arena arena(device, bytes, "activations");
  const Transformer model(s, config, *loaded.params, request.length);
  const Run r = run(s, arena, model, request);

  ForwardResults results;
  const int64_t b = request.batch, t = request.length, d = config.hidden_size, v = config.vocab_size;
  const auto put = [&](std::string name, const Tensor& x, std::vector<int64_t> shape) {
    NamedTensor n{.name = std::move(name),
                  .dtype = x.dtype == DType::i32 ? DType::i32 : DType::f32,
                  .shape = std::move(shape),
                  .values = {},
                  .indices = {}};
    const std::vector<double> values = download(s, x);
    if (n.dtype == DType::i32) n.indices.assign(values.begin(), values.end());
    else n.values.assign(values.begin(), values.end());
    results.tensors.push_back(std::move(n));
  };
  const auto put_routing = [&](int64_t layer, const Gate::Routing& routing) {
    if (!routing.indices) return;
    const int64_t rows = routing.indices.rows, k = routing.indices.cols;
    put(fmt::format("router.{}.indices", layer), routing.indices, {rows, k});
    put(fmt::format("router.{}.weights", layer), routing.weights, {rows, k});
  };
  put("logits", r.logits[0], {b, t, v});
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    put(fmt::format("hidden.{}", l), r.pass.trunk.blocks[size_t(l)].x, {b, t, d});
    put_routing(l, r.pass.trunk.blocks[size_t(l)].routing);
  }
  put(fmt::format("hidden.{}", config.num_hidden_layers), r.pass.trunk.hidden, {b, t, d});
  for (int64_t k = 1; k <= config.num_nextn_predict_layers; ++k) {
    const Mtp::State& m = r.pass.mtp[size_t(k - 1)];
    put(fmt::format("mtp.{}.hidden", k), m.block.y, {b, t - k, d});
    put(fmt::format("mtp.{}.logits", k), r.logits[size_t(k)], {b, t - k, v});
    put_routing(config.num_hidden_layers + k - 1, m.block.routing);
  }
  if (request.gradients)
    for (size_t i = 0; i < loaded.params->table().size(); ++i) {
      const Param& p = loaded.params->table()[i];
      if (!p.trained()) continue;
      for (const ParamView& view : p.views) {
        if (view.copy) continue;
        const Tensor g = loaded.params->gradient(i).slice_rows(view.first_row, view.rows);
        put("grad." + view.hf_name, g,
            p.is_vector() ? std::vector<int64_t>{p.cols} : std::vector<int64_t>{g.rows, g.cols});
      }
    }
  results.loss_main = sum(s, r.pass.losses) / double(b * t);
  results.loss_total = results.loss_main;
  for (int64_t k = 1; k <= config.num_nextn_predict_layers; ++k) {
    results.loss_mtp.push_back(sum(s, r.pass.mtp_losses[size_t(k - 1)]) / double(b * (t - k)));
    results.loss_total +=
        request.mtp_lambda / double(config.num_nextn_predict_layers) * results.loss_mtp.back();
  }
  for (const Tensor& balance : r.pass.balance()) results.loss_balance += sum(s, balance) / double(b);
  results.loss_total += request.balance_alpha * results.loss_balance;
  return results;
}

namespace {

std::vector<int32_t> read_i32(const SafetensorsFile& file, const StoredTensor& t) {
  if (t.type != StoredType::i32 || t.shape.size() != 2)
    throw Error(fmt::format("{}: {} is {}", file.path(), t.name, t.describe()))
        .hint("it must be I32 with two dimensions");
  std::vector<int32_t> values(size_t(t.size()));
  if (!values.empty()) std::memcpy(values.data(), t.data, size_t(t.bytes()));
  return values;
}

}  // namespace

void read_tokens(const std::string& path, ForwardRequest& request) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  const StoredTensor* t = file.find("tokens");
  if (!t)
    throw Error(fmt::format("{} holds no tensor \"tokens\"", path)).hint("write tokens as I32 [B, T + 1]");
  request.tokens = read_i32(file, *t);
  request.batch = t->shape[0];
  request.length = t->shape[1] - 1;
}

void read_routing(const std::string& path, ForwardRequest& request) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  for (const StoredTensor& t : file.tensors()) {
    int layer = 0, used = 0;
    if (std::sscanf(t.name.c_str(), "router.%d.indices%n", &layer, &used) == 1 && used == int(t.name.size()))
      request.routing[layer] = read_i32(file, t);
  }
  if (request.routing.empty())
    throw Error(fmt::format("{} holds no tensor router.N.indices", path))
        .hint("give a file that `cachalot forward` wrote");
}

void write_results(const std::string& path, const ForwardResults& results) {
  std::vector<TensorSource> sources;
  for (const NamedTensor& t : results.tensors) {
    TensorSource source;
    source.name = t.name;
    source.type = t.dtype == DType::i32 ? StoredType::i32 : StoredType::f32;
    source.shape = t.shape;
    source.fill = [&t](const Append& append) {
      const void* data = t.dtype == DType::i32 ? static_cast<const void*>(t.indices.data()) : t.values.data();
      append({static_cast<const char*>(data), 4 * (t.indices.size() + t.values.size())});
    };
    sources.push_back(std::move(source));
  }
  write_safetensors(path, std::move(sources));
}

}  // namespace cachalot
