#include "train/resume.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"

namespace cachalot {

namespace {

void flatten(const Json& json, const std::string& prefix, std::map<std::string, std::string>& out) {
  if (json.is_object())  // an empty one is like none
    for (const auto& [key, value] : json.items())
      flatten(value, prefix.empty() ? key : prefix + "." + key, out);
  else out[prefix] = json.dump();
}

bool may_change(const std::string& key) {
  const auto& fields = changeable_fields();
  return std::any_of(fields.begin(), fields.end(),
                     [&](const std::string& f) { return f.ends_with('.') ? key.starts_with(f) : key == f; });
}

}  // namespace

const std::vector<std::string>& changeable_fields() {
  static const std::vector<std::string> fields = {
      // how far, on what and at what price
      "train.steps", "train.tokens", "train.threads", "train.price_per_hour", "train.price_per_kwh",
      "train.recompute",  // to the same bits
      // checkpoints; what is told and watched
      "train.save_every", "train.keep_last", "train.keep_every", "train.eval_every", "train.eval_sequences",
      "train.log_every", "data.validation.", "guard.",
      // places; what is in them is compared
      "data.files", "data.shards", "data.max_epochs", "tokenizer.path"};
  return fields;
}

std::vector<std::string> compare_configs(const Json& was, const Json& now, const std::string& run_dir) {
  std::map<std::string, std::string> old_fields, new_fields;
  flatten(was, "", old_fields);
  flatten(now, "", new_fields);
  std::set<std::string> keys;
  for (const auto& fields : {old_fields, new_fields})
    for (const auto& [key, value] : fields) keys.insert(key);
  const auto value = [](const std::map<std::string, std::string>& fields, const std::string& key) {
    const auto it = fields.find(key);
    return it == fields.end() ? std::string("nothing") : it->second;
  };
  std::vector<std::string> changes, refused;
  for (const std::string& key : keys) {
    const std::string before = value(old_fields, key), after = value(new_fields, key);
    if (before == after) continue;
    (may_change(key) ? changes : refused).push_back(fmt::format("{} {} -> {}", key, before, after));
  }
  if (refused.empty()) return changes;
  std::vector<std::string> names = changeable_fields();
  for (std::string& name : names)
    if (name.ends_with('.')) name += "*";
  throw Error(fmt::format("{} holds a run that cannot go on with other values of: {}", run_dir,
                          fmt::join(refused, "; ")))
      .hint(
          fmt::format("give the values that it was begun with, or begin anew: --overwrite, or --run-dir NEW "
                      "(and --init-from {} for its weights). A run may change {}",
                      run_dir, fmt::join(names, ", ")));
}

std::optional<Checkpoint> newest_checkpoint(const RunDirectory& run,
                                            const std::function<void(const std::string&)>& tell) {
  // A checkpoint appears with its COMPLETE: one that has none was damaged, and is not to go unnoticed.
  const std::vector<std::string> all = run.all_checkpoints();
  std::vector<std::pair<std::string, std::string>> damaged;  // path, what is wrong
  for (auto path = all.rbegin(); path != all.rend(); ++path) {
    try {
      Checkpoint checkpoint(*path);
      for (const auto& [other, damage] : damaged)
        tell(fmt::format("WARNING: {}\n         this checkpoint is not used; it is now {}", damage,
                         run.put_aside(other, RunDirectory::Aside::damaged)));
      if (!damaged.empty()) run.link_model(*path);
      return checkpoint;
    } catch (const Error& e) {
      if (e.hint() != kDamagedCheckpoint) throw;
      damaged.emplace_back(*path, e.what());
    }
  }
  // Nothing is renamed here: the next start must not find a run without checkpoints and begin at step 0.
  if (!damaged.empty())
    throw Error(
        fmt::format("no checkpoint of {} is intact; the last trouble: {}", run.path(), damaged.back().second))
        .hint("restore a checkpoint from a copy, or begin anew with --overwrite");
  if (const std::vector<std::string> aside = run.aside(); !aside.empty())
    throw Error(
        fmt::format("{} has no checkpoint but those put aside: {}", run.path(), fmt::join(aside, ", ")))
        .hint(
            "restore a checkpoint from a copy, take the ending .rewound off a name to go on from there, or "
            "begin anew with --overwrite");
  if (run.had_checkpoint())
    throw Error(
        fmt::format("{0}/checkpoints is empty, but {0}/model says that there was a checkpoint", run.path()))
        .hint("restore a checkpoint from a copy, or begin anew with --overwrite");
  return std::nullopt;
}

DataCursor cursor_of(const Checkpoint& checkpoint) {
  const RunState& state = checkpoint.state();
  return parse_cursor({{"next_row", state.next_row}, {"data", state.data}},
                      checkpoint.directory() + "/state.json");
}

void require_same_bits(const BitsIdentity& was, const BitsIdentity& now) {
  if (was == now) return;
  const bool arithmetic = was.arithmetic != now.arithmetic;
  throw Error(arithmetic ? fmt::format("the checkpoint was computed by {}; this is {}", was.arithmetic,
                                       now.arithmetic)
                         : fmt::format("the checkpoint was written by another program ({}; this is {})",
                                       was.program, now.program))
      .hint(
          fmt::format("{}; --allow-different-bits goes on all the same, and rounds differently from here on",
                      arithmetic ? "resume on such a machine" : "resume with the program that wrote it"));
}

}  // namespace cachalot
