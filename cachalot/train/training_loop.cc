#include "train/training_loop.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "config/fields.h"
#include "train/machine_error.h"
#include "train/resume.h"

namespace cachalot {

namespace {

// Trained tokens of each part so far, when there are several.
std::vector<std::pair<std::string, int64_t>> part_tokens(const Loader& loader, const TrainSection& t) {
  std::vector<std::pair<std::string, int64_t>> tokens;
  if (loader.parts().size() == 1) return tokens;
  const std::vector<int64_t> rows = loader.part_rows(loader.cursor().next_row);
  for (size_t i = 0; i < rows.size(); ++i) tokens.emplace_back(loader.parts()[i].name(), rows[i] * t.seq_len);
  return tokens;
}

Guard::Routers routers_of(const Trainer& trainer) {
  const ModelConfig& model = trainer.model().config();
  return {.layers = trainer.expert_layers(),
          .experts = model.n_routed_experts,
          .per_token = model.num_experts_per_tok};
}

}  // namespace

TrainingLoop::TrainingLoop(LoopParts parts)
    : parts_(std::move(parts)),
      plan_(parts_.config->train),
      guard_(parts_.config->guard, routers_of(*parts_.trainer)) {}

void TrainingLoop::resume(const std::optional<Checkpoint>& checkpoint) {
  if (checkpoint) {
    stand_at(*checkpoint);
    rewinds_ = checkpoint->state().rewinds;
  }
  const std::string path = parts_.run->rewind_path(result_.checkpoint);
  if (!std::filesystem::exists(path)) return;
  RewindRecord record;
  read_fields(record, read_json_file(path), path);
  parts_.loader->seek(parse_cursor({{"next_row", record.next_row}, {"data", record.data}}, path),
                      result_.steps);
  rewinds_ = record.state;
  parts_.telemetry->event(parse_json(record.event, path));
  parts_.telemetry->note(fmt::format("after a rewind of step {} to step {}: on with row {}", rewinds_.trouble,
                                     result_.steps, record.next_row));
}

void TrainingLoop::stand_at(const Checkpoint& checkpoint) {
  const RunState& state = checkpoint.state();
  parts_.loader->seek(cursor_of(checkpoint), state.step);
  checkpoint.load(*parts_.stream, parts_.trainer->state());
  parts_.trainer->adopt_state(state.updates);
  guard_.restore(state.guard);
  result_.steps = saved_step_ = state.step;
  result_.checkpoint = checkpoint.directory();
}

RunState TrainingLoop::state() const {
  const DataCursor cursor = parts_.loader->cursor();
  return {.step = result_.steps,
          .updates = parts_.trainer->updates(),
          .tokens = plan_.tokens_after(result_.steps),
          .next_row = cursor.next_row,
          .data = fmt::format("{:016x}", cursor.data),
          .seed = train().seed,
          .metrics_bytes = parts_.telemetry->metrics_bytes(),
          .device = parts_.device->name(),
          .precision = train().precision,
          .bits = parts_.bits,
          .guard = guard_.state(),
          .rewinds = result_.steps < rewinds_.trouble ? rewinds_ : RewindState{}};
}

void TrainingLoop::hear_of_checkpoints(CheckpointWriter::Wait wait) {
  while (const auto outcome = parts_.writer->finished(wait)) {
    saving_step_.reset();
    if (outcome->error.empty()) {
      saved_step_ = outcome->step;
      result_.checkpoint = outcome->path;
      ++result_.saved;
      if (outcome->step >= rewinds_.trouble) rewinds_ = {};
      failed_.reset();
      continue;
    }
    failed_ = outcome;
    parts_.telemetry->note(
        fmt::format("WARNING: step {}: the checkpoint could not be written: {}\n         {}; training goes "
                    "on, and the next one is tried as planned; {}",
                    outcome->step, outcome->error,
                    outcome->hint.empty() ? "it left nothing behind" : outcome->hint, newest()));
    parts_.telemetry->event(
        {{"event", "checkpoint_failed"}, {"step", outcome->step}, {"error", outcome->error}});
  }
}

// Of checkpoints, for messages.
std::string TrainingLoop::newest() const {
  return result_.checkpoint.empty() ? "none is complete" : "the newest complete one is " + result_.checkpoint;
}

void TrainingLoop::save() {
  parts_.activity->enter("saving a checkpoint");
  hear_of_checkpoints(CheckpointWriter::Wait::no);
  if (result_.steps == saved_step_ || saving_step_ == result_.steps) return;
  on(*parts_.stream).synchronize();  // the step's update is no part of what a checkpoint costs
  const CheckpointWriter::Stall stall = parts_.writer->save(*parts_.stream, state());
  saving_step_ = result_.steps;
  result_.stall += stall.total();
  result_.longest_stall = std::max(result_.longest_stall, stall.total());
  parts_.telemetry->add_stall(stall.total());
  constexpr double kWorthTelling = 1;  // second
  if (stall.for_previous > kWorthTelling)
    parts_.telemetry->note(
        fmt::format("step {}: waited {} for the checkpoint before this one to be written; a larger "
                    "--train.save_every or a faster disk would not",
                    result_.steps, human_seconds(stall.for_previous)));
}

void TrainingLoop::save_and_wait() {
  save();
  hear_of_checkpoints(CheckpointWriter::Wait::yes);
  parts_.telemetry->write_last_stall();
  if (saved_step_ == result_.steps) return;
  throw Error(fmt::format("the checkpoint of step {} could not be written: {}; {}", result_.steps,
                          failed_ ? failed_->error : "", newest()))
      .hint(failed_ && !failed_->hint.empty() ? failed_->hint + "; then the same command goes on from there"
                                              : "the same command goes on from there");
}

bool TrainingLoop::evaluation_due() const {
  const int64_t every = train().eval_every;
  return result_.steps > 0 && result_.steps < plan_.steps() && every > 0 && result_.steps % every == 0;
}

void TrainingLoop::evaluate(int64_t limit, const std::atomic<bool>& stop) {
  parts_.activity->enter("evaluation");
  const auto score = parts_.held_out->score(*parts_.trainer, limit, stop);
  if (!score) return;
  parts_.telemetry->scored(result_.steps, *score);
  if (limit == 0) result_.held_out = score;
}

void TrainingLoop::report(const Verdict& verdict, int64_t step) {
  const bool left_out = verdict.action == Action::skip;
  parts_.telemetry->note(
      fmt::format("WARNING: step {}: {}{}", step, verdict.what, left_out ? "; its update is left out" : ""));
  parts_.telemetry->event({{"event", verdict.trouble},
                           {"step", step},
                           {"what", verdict.what},
                           {"action", name_of(verdict.action)}});
}

void TrainingLoop::stop_after_skips(const Verdict& verdict, int64_t step) {
  save_and_wait();
  throw Error(
      fmt::format(
          "{} steps in a row changed nothing, {} the last: {}; the weights as they were before are in {}",
          guard_.skipped(), step, verdict.what, result_.checkpoint))
      .hint("a lower --train.lr, a longer --train.warmup_steps or a smaller --train.clip");
}

TrainingLoop::After TrainingLoop::act(const Verdict& verdict, int64_t step) {
  if (verdict.action == Action::stop) {
    hear_of_checkpoints(CheckpointWriter::Wait::yes);
    throw Error(fmt::format("step {}: {}; of the checkpoints {}", step, verdict.what, newest()))
        .hint(fmt::format(
            "the same command goes on from there; with --{} rewind it leaves the rows out that led "
            "there",
            verdict.setting));
  }
  if (verdict.action != Action::rewind) return After::go_on;
  rewind(verdict, step);
  return After::rewound;
}

// To a checkpoint, and on with other rows: those of the steps since then, and some more, are left out. The first
// time that is the newest checkpoint, then one before that, which knows less of the trouble, until a checkpoint
// is written beyond the trouble.
void TrainingLoop::rewind(const Verdict& verdict, int64_t step) {
  hear_of_checkpoints(CheckpointWriter::Wait::yes);
  if (rewinds_.count == parts_.config->guard.most_rewinds)
    throw Error(fmt::format("step {}: {}, after {} rewinds without a checkpoint beyond it", step,
                            verdict.what, rewinds_.count))
        .hint(
            "look at the data of these steps, or try a lower --train.lr in a new run: --init-from takes the "
            "weights of a checkpoint");
  const std::vector<std::string> all = parts_.run->checkpoints();
  size_t to = all.empty() ? 0 : all.size() - 1;
  if (rewinds_.count > 0)
    while (to > 0 && RunDirectory::step_of(all[to]) >= rewinds_.to) --to;
  std::optional<Checkpoint> checkpoint;
  if (!all.empty()) checkpoint.emplace(all[to], [this] { ++parts_.activity->progress; });
  const std::string where = checkpoint ? all[to] : "the beginning";
  const int64_t first_left_out = checkpoint ? checkpoint->state().next_row : 0;
  rewinds_ = {.count = rewinds_.count + 1,
              .trouble = std::max(rewinds_.trouble, step),
              .to = checkpoint ? checkpoint->state().step : 0};
  DataCursor next = parts_.loader->cursor();  // behind the rows of the bad step
  for (int64_t i = 1; i <= parts_.config->guard.rewind_beyond; ++i) next.next_row += plan_.batch(step + i);
  std::vector<std::string> aside;  // good checkpoints, but they know of the trouble
  for (size_t i = to + 1; i < all.size(); ++i)
    aside.push_back(RunDirectory::name_aside(all[i], RunDirectory::Aside::rewound));
  const Json event{{"event", "rewind"},
                   {"step", step},
                   {"trouble", verdict.trouble},
                   {"what", verdict.what},
                   {"to_step", rewinds_.to},
                   {"put_aside", aside},
                   {"rows_left_out", {first_left_out, next.next_row}}};
  // Before anything is given up: a process that is killed on the way resumes before the trouble, or here.
  const RewindRecord record{.next_row = next.next_row,
                            .data = fmt::format("{:016x}", next.data),
                            .state = rewinds_,
                            .event = event.dump()};
  try {
    write_file_atomic(parts_.run->rewind_path(checkpoint ? where : ""), write_fields(record).dump(1) + "\n");
  } catch (const Error& e) {  // a full disk does not end a run
    parts_.telemetry->note(fmt::format(
        "WARNING: {}: killed before the next checkpoint, the run would not know of this rewind", e.what()));
  }
  if (checkpoint) {
    for (size_t i = all.size() - 1; i > to; --i) parts_.run->put_aside(all[i], RunDirectory::Aside::rewound);
    if (to + 1 < all.size()) parts_.run->link_model(where);
    stand_at(*checkpoint);
  } else {
    parts_.restart();
    guard_.restore({});
    result_.steps = saved_step_ = 0;
  }
  parts_.loader->seek(next, result_.steps);
  parts_.telemetry->rewind(checkpoint ? checkpoint->state().metrics_bytes : 0);
  parts_.telemetry->event(event);
  parts_.telemetry->note(
      fmt::format("WARNING: step {}: {}\n         back to {} (step {}); rows {} to {} are left out{}{}", step,
                  verdict.what, where, result_.steps, first_left_out, next.next_row - 1,
                  aside.empty() ? "" : "\n         put aside: ", fmt::join(aside, ", ")));
}

void TrainingLoop::check_machine(const Recheck& recheck, int64_t step) {
  if (!recheck.differed) return;
  const std::string what =
      fmt::format("computed twice, the first micro-batch gave different bits: {}", recheck.what);
  parts_.telemetry->event(
      {{"event", "corruption"}, {"step", step}, {"what", what}, {"settled", recheck.settled}});
  if (recheck.settled && parts_.config->guard.on_corruption == "retry") {
    parts_.telemetry->note(
        fmt::format("WARNING: step {}: {}\n         a third time settled it, and training goes on. "
                    "This machine ({}) computes or remembers wrong numbers at times",
                    step, what, parts_.device->name()));
    return;
  }
  hear_of_checkpoints(CheckpointWriter::Wait::yes);
  throw MachineError(fmt::format("step {}: {}{}; of the checkpoints {}", step, what,
                                 recheck.settled ? "" : ", and a third time others again", newest()),
                     fmt::format("{} computes wrong numbers: resume on another machine of the same kind",
                                 parts_.device->name()));
}

void TrainingLoop::one_step(const std::atomic<bool>& stop) {
  const TrainSection& t = train();
  const GuardSection& g = parts_.config->guard;
  const int64_t step = result_.steps + 1;
  const bool last = step == plan_.steps();
  Telemetry& telemetry = *parts_.telemetry;
  Activity& activity = *parts_.activity;

  activity.step = step;
  activity.enter("waiting for data");
  telemetry.step_begins();
  const LoadedBatch batch = parts_.loader->next();
  telemetry.data_came();
  std::optional<Verdict> verdict;
  const auto accept = [&](double loss, double grad_norm) {
    verdict = guard_.judge(loss, grad_norm);
    return !verdict || verdict->action == Action::log;
  };
  const StepMetrics m = parts_.trainer->step(batch.rows, plan_.at(step),
                                             {.accept = accept,
                                              .recheck = g.recheck_every > 0 && step % g.recheck_every == 0,
                                              .activity = &activity});
  if (!verdict && !m.updated) verdict = guard_.judge(m.loss, m.grad_norm);  // not finite: nobody was asked
  telemetry.step_ends();
  if (parts_.watchdog) parts_.watchdog->step_took(telemetry.last_step_seconds());
  activity.enter("after the step");

  // What a step's events say stands before its line, which is written before a checkpoint of the step is.
  if (m.recheck) check_machine(*m.recheck, step);
  if (verdict) {
    if (verdict->action != Action::rewind) report(*verdict, step);
    if (act(*verdict, step) == After::rewound) return;
  }
  if (const auto late = guard_.learn(m.loss, m.grad_norm, m.updated, m.counts, m.max_vio)) {
    if (late->action != Action::rewind) report(*late, step);
    if (act(*late, step) == After::rewound) return;
  }
  result_.steps = step;
  result_.last_loss = m.loss;
  ++result_.here;
  result_.tokens_here += plan_.tokens_after(step) - plan_.tokens_after(step - 1);
  // Before the step's line, which an evaluation will add to: that must be the last one.
  if (!m.counts.empty() && telemetry.wants_expert_load(step))
    telemetry.event({{"event", "expert_load"},
                     {"step", step},
                     {"layers", parts_.trainer->expert_layers()},
                     {"counts", m.counts},
                     {"bias", parts_.trainer->router_biases()}});
  telemetry.step(step, m, std::nullopt, part_tokens(*parts_.loader, t));

  if (guard_.skipped() >= g.most_skipped) stop_after_skips(*verdict, step);
  if (evaluation_due()) evaluate(t.eval_sequences, stop);
  if (!last && t.save_every > 0 && step % t.save_every == 0) save();
  hear_of_checkpoints(CheckpointWriter::Wait::no);
}

LoopResult TrainingLoop::run(const std::atomic<bool>& stop) {
  // One that the end of an earlier process interrupted.
  if (evaluation_due() && !parts_.telemetry->last_is_scored()) evaluate(train().eval_sequences, stop);
  while (result_.steps < plan_.steps() && (result_.steps == 0 || !stop)) one_step(stop);
  result_.stopped = result_.steps < plan_.steps();
  parts_.activity->enter("saving the last checkpoint");
  save_and_wait();  // before the last evaluation: whatever happens now, the work is safe
  if (!result_.stopped && !parts_.telemetry->last_is_scored()) evaluate(0, stop);
  parts_.telemetry->finish();
  parts_.telemetry->require_written();
  return result_;
}

}  // namespace cachalot
