#include "model/training_pass.h"

namespace cachalot {

LossScales LossScales::uniform(int64_t sequences, int64_t tokens, int64_t depths, double lambda,
                               double alpha) {
  LossScales scales{
      .main = 1.0 / double(sequences * tokens), .mtp = {}, .balance = alpha / double(sequences)};
  for (int64_t k = 1; k <= depths; ++k)
    scales.mtp.push_back(lambda / double(depths) / double(sequences * (tokens - k)));
  return scales;
}

namespace {

// A tensor of the routing in every layer that has it, MTP layers last.
std::vector<Tensor> of_routers(const TrainingPass& pass, Tensor Gate::Routing::* part) {
  std::vector<Tensor> result;
  for (const auto& b : pass.trunk.blocks)
    if (b.routing.*part) result.push_back(b.routing.*part);
  for (const auto& m : pass.mtp)
    if (m.block.routing.*part) result.push_back(m.block.routing.*part);
  return result;
}

}  // namespace

std::vector<Tensor> TrainingPass::counts() const { return of_routers(*this, &Gate::Routing::counts); }
std::vector<Tensor> TrainingPass::choices() const { return of_routers(*this, &Gate::Routing::indices); }
std::vector<Tensor> TrainingPass::balance() const { return of_routers(*this, &Gate::Routing::balance); }

namespace {

TrainingPass forward_hidden(Stream& s, Arena& arena, const Transformer& model, const TrainingBatch& batch,
                            const Transformer::Options& options) {
  TrainingPass pass;
  pass.trunk = model.forward(s, arena, batch.main, options);
  pass.losses = arena.take_vector(model.recipe().stat, batch.main.rows);
  Tensor hidden = pass.trunk.hidden;
  for (size_t k = 0; k < batch.mtp.size(); ++k) {
    const MtpBatch& m = batch.mtp[k];
    Tensor previous = arena.take(model.recipe().act, m.batch.rows, hidden.cols);
    on(s).gather_rows({.x = hidden, .rows = m.previous_rows, .y = previous});
    pass.mtp.push_back(model.forward_mtp(s, arena, m.batch, int64_t(k) + 1, previous, options));
    pass.mtp_losses.push_back(arena.take_vector(model.recipe().stat, m.batch.rows));
    hidden = pass.mtp.back().hidden;
  }
  return pass;
}

}  // namespace

TrainingPass forward_losses(Stream& s, Arena& arena, const Transformer& model, const TrainingBatch& batch,
                            const Transformer::Options& options) {
  TrainingPass pass = forward_hidden(s, arena, model, batch, options);
  model.head().losses(s, arena, pass.trunk.hidden, batch.main.targets, pass.losses);
  for (size_t k = 0; k < batch.mtp.size(); ++k)
    model.head().losses(s, arena, pass.mtp[k].hidden, batch.mtp[k].batch.targets, pass.mtp_losses[k]);
  return pass;
}

TrainingPass forward_backward(Stream& s, Arena& arena, const Transformer& model, const TrainingBatch& batch,
                              const LossScales& scales, const Transformer::Options& options,
                              Accumulate mode) {
  TrainingPass pass = forward_hidden(s, arena, model, batch, options);
  const Head& head = model.head();

  // The head is used by the main model and by every depth: its gradient starts with the main model's share.
  Tensor dhidden = arena.take_like(pass.trunk.hidden);
  head.losses_and_gradients(s, arena, pass.trunk.hidden, batch.main.targets, scales.main, pass.losses,
                            dhidden, mode);
  std::vector<Tensor> dh{dhidden};
  for (size_t k = 0; k < batch.mtp.size(); ++k) {
    dh.push_back(arena.take_like(pass.mtp[k].hidden));
    head.losses_and_gradients(s, arena, pass.mtp[k].hidden, batch.mtp[k].batch.targets, scales.mtp[k],
                              pass.mtp_losses[k], dh.back(), Accumulate::add);
  }
  // Depths backwards: each passes a gradient to the hidden state of the one before, row by row. The
  // embedding's gradient starts with the deepest.
  Accumulate embedding_mode = mode;
  for (size_t k = batch.mtp.size(); k-- > 0;) {
    const MtpBatch& m = batch.mtp[k];
    model.mtp()[k].backward(s, arena, m.batch, pass.mtp[k], dh[k + 1], scales.balance, mode, embedding_mode);
    embedding_mode = Accumulate::add;
    Arena::Scope scratch(arena);
    Tensor spread = arena.take_like(dh[k]);
    on(s).gather_rows({.x = pass.mtp[k].d_previous, .rows = m.next_rows, .y = spread});
    on(s).add({.a = dh[k], .b = spread, .y = dh[k]});
  }
  model.backward(s, arena, batch.main, pass.trunk, dhidden, scales.balance, mode, embedding_mode);
  return pass;
}

}  // namespace cachalot
