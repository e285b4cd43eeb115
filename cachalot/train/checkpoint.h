// A checkpoint's files:
//   model/        a Hugging Face directory, with the tokenizer (model/hf_checkpoint.h)
//   optimizer/    state-00001-of-0000N.safetensors: masters, moments and whatever else Trainer::state() lists
//   config.json   the resolved configuration of the run
//   state.json    RunState: where the run stands, and size and checksum of every file above
//   COMPLETE      step and the checksum of state.json; written last
// All tensors have the names and shapes of whole parameters: nothing depends on how many ranks wrote them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "model/load.h"
#include "model/safetensors.h"
#include "train/bits_identity.h"
#include "train/guard_state.h"
#include "train/rewind_state.h"
#include "train/state_tensor.h"

namespace cachalot {

// By router: the biases that balance its experts.
struct RouterBiases {
  std::map<std::string, std::vector<double>> of;
};
void assign(RouterBiases& field, const Json& value, const std::string& where);
void to_json(Json& json, const RouterBiases& biases);

struct FileRecord {
  std::string path;  // below the checkpoint
  int64_t bytes = 0;
  std::string checksum;  // XXH64, hexadecimal
  template <class V> void visit(V& v) {
    v("path", path, "below the checkpoint");
    v("bytes", bytes, "its size");
    v("checksum", checksum, "XXH64");
  }
};

struct RunState {
  static constexpr int64_t kFormat = 1;

  int64_t format = kFormat;
  int64_t step = 0;     // done
  int64_t updates = 0;  // steps that changed the weights: AdamW counts those
  int64_t tokens = 0;   // trained
  int64_t next_row = 0;
  std::string data;  // the data cursor (data/loader.h); every schedule is a function of step and tokens
  int64_t seed =
      0;  // random numbers are functions of (seed, stream, index): there is no other state of theirs
  int64_t metrics_bytes = 0;  // of metrics.jsonl, up to the end of the step's line
  std::string device, precision;
  int64_t ranks = 1;
  BitsIdentity bits;
  GuardState guard;
  RewindState rewinds;
  RouterBiases router_bias;
  std::vector<FileRecord> files;

  template <class V> void visit(V& v) {
    v("format", format, "of this file");
    v("step", step, "steps done");
    v("updates", updates, "of the weights");
    v("tokens", tokens, "trained");
    v("next_row", next_row, "of the data");
    v("data", data, "stands for everything that decides which tokens a row holds");
    v("seed", seed, "of all random numbers");
    v("metrics_bytes", metrics_bytes, "of metrics.jsonl that belong to these steps");
    v("device", device, "that trained");
    v("precision", precision, "of the recipe");
    v("ranks", ranks, "that trained");
    v("bits", bits, "");
    v("guard", guard, "");
    v("rewinds", rewinds, "");
    v("router_bias", router_bias, "by router");
    v("files", files, "of the checkpoint");
  }
};

// Called after every piece that is written or read: a watchdog should know that something comes.
using PieceDone = std::function<void()>;

struct CheckpointContents {
  RunState state;
  std::string config;               // text of config.json
  std::string tokenizer_directory;  // whose tokenizer is copied
  DType storage = DType::bf16;      // of model/
  const ModelConfig* model = nullptr;
  const std::vector<StateTensor>* tensors = nullptr;
  PieceDone progress = [] {};
};

// Fills `directory` but for COMPLETE, whose text it returns. `s` reads tensors on the device.
std::string write_checkpoint_files(Stream& s, const std::string& directory, CheckpointContents contents);

// The hint of errors that an earlier checkpoint may not have.
constexpr const char* kDamagedCheckpoint = "the checkpoint is damaged";

// A checkpoint that was written whole, its files compared with their checksums.
class Checkpoint {
 public:
  // Error naming the file: one that is missing, cut, or has other bytes than were written; a checkpoint
  // without the state of the optimizer, of an earlier version.
  explicit Checkpoint(const std::string& directory, const PieceDone& progress = [] {});

  const std::string& directory() const { return directory_; }
  const RunState& state() const { return state_; }
  const Json config() const;
  // Fills the tensors of `state`: Error, if the checkpoint has others. Waits.
  void load(Stream& s, const std::vector<StateTensor>& state) const;

 private:
  std::string directory_;
  RunState state_;
  std::vector<SafetensorsFile> files_;
};

// Bytes of a checkpoint's files, but for the small ones.
int64_t checkpoint_bytes(const std::vector<StateTensor>& state, const std::vector<Param>& table,
                         DType storage);

}  // namespace cachalot
