// What a run remembers of its rewinds (train/guard.h).
#pragma once

#include <cstdint>
#include <string>

namespace cachalot {

// Goes into checkpoints.
struct RewindState {
  int64_t count = 0;    // since a checkpoint was written beyond the trouble
  int64_t trouble = 0;  // the furthest step that led to one
  int64_t to = 0;       // the step that the last one went back to
  template <class V> void visit(V& v) {
    v("count", count, "since a checkpoint was written beyond the trouble");
    v("trouble", trouble, "the furthest step that led to one");
    v("to", to, "the step that the last one went back to");
  }
};

// A rewind, as a file beside the checkpoint that it went back to: until the next checkpoint nothing else
// knows which rows training went on with.
struct RewindRecord {
  int64_t next_row = 0;
  std::string data;  // with next_row the data cursor
  RewindState state;
  std::string event;  // the line of metrics.jsonl
  template <class V> void visit(V& v) {
    v("next_row", next_row, "that training went on with");
    v("data", data, "as in state.json");
    v("state", state, "");
    v("event", event, "of metrics.jsonl");
  }
};

}  // namespace cachalot
